//! Stamps: headers of one's own that travel with a call and by which it can be revoked (`Signature.stamp`).

use serde::Serialize;
use serde_json::Value;

use crate::wire::{Json, Kind, Signature};

impl Signature {
    /// With a stamp on this call and on everything in it: a value, or a list of them. A stamp that is there already
    /// gets the values in addition.
    #[must_use]
    pub fn stamp(mut self, name: &str, value: impl Serialize) -> Self {
        let given = match serde_json::to_value(value).unwrap_or_default() {
            Value::Array(values) => values,
            one => vec![one],
        };
        stamp(&mut self, name, &given);
        self
    }
}

fn stamp(signature: &mut Signature, name: &str, given: &[Value]) {
    let options = &mut signature.options;
    let mut names: Vec<String> = options
        .get("stamped_headers")
        .and_then(|names| names.parse().ok())
        .unwrap_or_default();
    let mut values = match options.get(name).and_then(|own| own.parse().ok()) {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(values)) => values,
        Some(one) => vec![one],
    };
    for value in given {
        if !values.contains(value) {
            values.push(value.clone());
        }
    }
    if !names.iter().any(|known| known == name) {
        names.push(name.to_owned());
    }
    for (name, value) in [("stamped_headers", Json::new(&names)), (name, Json::new(&values))] {
        if let Ok(value) = value {
            options.rest.insert(name.to_owned(), value);
        }
    }
    for call in options.link.iter_mut().chain(&mut options.link_error) {
        stamp(call, name, given);
    }
    match &mut signature.kind {
        Kind::Task | Kind::Other(_) => {}
        Kind::Chain(tasks) | Kind::Group(tasks) => tasks.iter_mut().for_each(|task| stamp(task, name, given)),
        Kind::Chord(chord) => {
            for part in chord.header.iter_mut().chain(&mut chord.body) {
                stamp(part, name, given);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::wire::Signature;

    #[test]
    fn p_143_a_list_is_several_stamps() {
        let stamped = Signature::new("a")
            .stamp("tags", ["x", "y"])
            .stamp("tags", "y")
            .stamp("tags", ["z"]);
        assert_eq!(
            stamped.options.get("tags").map(|tags| tags.get()),
            Some(r#"["x","y","z"]"#)
        );
    }
}
