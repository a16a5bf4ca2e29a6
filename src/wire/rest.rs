//! The rest of a chain.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::Signature;

/// What follows in a chain: a list of signatures, last first. Each message of a chain carries all that is still to
/// come, so it stays the text it came as, and a step is read when its turn has come.
#[derive(Clone, Debug, PartialEq)]
pub struct Rest {
    /// A list, as JSON without blanks around it.
    list: String,
}

impl Rest {
    /// Of signatures, last first.
    pub fn new(steps: &[Signature]) -> Self {
        // What a signature is made of is JSON already.
        let list = serde_json::to_string(steps).unwrap_or_else(|_| "[]".into());
        Self { list }
    }

    /// Its text.
    pub(super) fn get(&self) -> &str {
        &self.list
    }

    /// Whether nothing follows.
    pub fn is_empty(&self) -> bool {
        self.last().1.is_empty()
    }

    /// What is before the last step, its comma included, and the last step; that is empty when there is none.
    fn last(&self) -> (&str, &str) {
        let list = &self.list[..self.list.len() - 1];
        let (before, last) = list.split_at(last_begins(list));
        (before, last.trim_ascii())
    }

    /// The next step, and what follows that one.
    ///
    /// # Errors
    /// It is not a signature.
    pub fn next(&self) -> Result<Option<(Signature, Self)>, serde_json::Error> {
        let (before, next) = self.last();
        if next.is_empty() {
            return Ok(None);
        }
        let before = before.strip_suffix(',').unwrap_or(before).trim_ascii_end();
        let list = [before, "]"].concat();
        Ok(Some((super::json::parse(next)?, Self { list })))
    }

    /// All steps, last first.
    ///
    /// # Errors
    /// One is not a signature.
    pub fn steps(&self) -> Result<Vec<Signature>, serde_json::Error> {
        super::json::parse(&self.list)
    }

    /// Each step, last first, or why it is none.
    ///
    /// # Errors
    /// It is no list.
    pub fn each(&self) -> Result<Vec<Result<Signature, serde_json::Error>>, serde_json::Error> {
        let steps: Vec<&RawValue> = serde_json::from_str(&self.list)?;
        Ok(steps.into_iter().map(|step| super::json::parse(step.get())).collect())
    }

    /// With steps that come before these.
    #[must_use]
    pub fn after(&self, steps: &[Signature]) -> Self {
        let more = Self::new(steps).list;
        let ours = self.list[..self.list.len() - 1].trim_ascii_end();
        let comma = if ours.len() > 1 && more.len() > 2 { "," } else { "" };
        // Two lists put together are one.
        let list = [ours, comma, &more[1..]].concat();
        Self { list }
    }
}

/// Where the last element begins in a list that is JSON but for the bracket behind it. From the end: what is before
/// that element is long, and was read when it came.
fn last_begins(list: &str) -> usize {
    let text = list.as_bytes();
    let (mut depth, mut quoted) = (0_usize, false);
    for (at, byte) in text.iter().enumerate().rev() {
        match byte {
            b'"' if !is_escaped(&text[..at]) => quoted = !quoted,
            _ if quoted => {}
            b']' | b'}' => depth += 1,
            b',' | b'[' if depth == 0 => return at + 1,
            b'[' | b'{' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    0
}

/// Whether what follows is escaped: by an odd number of backslashes.
fn is_escaped(before: &[u8]) -> bool {
    before.iter().rev().take_while(|byte| **byte == b'\\').count() % 2 == 1
}

impl Serialize for Rest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let list: &RawValue = serde_json::from_str(&self.list).map_err(serde::ser::Error::custom)?;
        list.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Rest {
    /// Takes any list whose last element is a signature: a later one that is none is found in the message before its
    /// turn.
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let list = String::from(Box::<str>::from(Box::<RawValue>::deserialize(deserializer)?));
        if !list.starts_with('[') || !list.ends_with(']') {
            let shown: String = list.chars().take(40).collect();
            return Err(serde::de::Error::custom(format_args!(
                "a chain is no list of signatures: {shown}"
            )));
        }
        let rest = Self { list };
        let next = rest.last().1;
        if !next.is_empty() && !next.starts_with('{') {
            let shown: String = next.chars().take(40).collect();
            return Err(serde::de::Error::custom(format_args!(
                "a step of a chain is no signature: {shown}"
            )));
        }
        if !next.is_empty() {
            super::json::parse::<Signature>(next).map_err(serde::de::Error::custom)?;
        }
        Ok(rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(rest: &Rest) -> Vec<String> {
        rest.steps().unwrap().into_iter().map(|step| step.task).collect()
    }

    #[test]
    fn t14_the_next_step_is_the_last_and_the_others_stay_as_they_came() {
        let text = r#"[ {"task": "c", "x":  1.50}, {"task":"b"} , {"task":"a"} ]"#;
        let rest: Rest = serde_json::from_str(text).unwrap();
        let (a, rest) = rest.next().unwrap().unwrap();
        assert_eq!(a.task, "a");
        assert_eq!(
            serde_json::to_string(&rest).unwrap(),
            r#"[ {"task": "c", "x":  1.50}, {"task":"b"}]"#
        );
        let (b, rest) = rest.next().unwrap().unwrap();
        let (c, rest) = rest.next().unwrap().unwrap();
        assert_eq!((b.task, c.task), ("b".into(), "c".into()));
        assert!(rest.is_empty() && rest.next().unwrap().is_none());
    }

    #[test]
    fn the_last_step_is_found_whatever_its_text_is() {
        for step in [
            r#"{"task":"a","args":["],[",{"x":"{\"}"}]}"#,
            r#"{"task":"a","args":["\\","\\\"",",\\"]}"#,
            r#"{"task":"a","kwargs":{"ü,":"[ü"},"n":[[],{}]}"#,
        ] {
            for (list, before) in [
                (format!("[{step}]"), "[]".to_owned()),
                (format!("[ {step} ]"), "[]".to_owned()),
                (format!("[{step}, {step}]"), format!("[{step}]")),
                (format!(r#"[3,"\\",{step}]"#), r#"[3,"\\"]"#.to_owned()),
            ] {
                let rest: Rest = serde_json::from_str(&list).unwrap();
                let (next, rest) = rest.next().unwrap().unwrap();
                assert_eq!(next, serde_json::from_str(step).unwrap(), "{list}");
                assert_eq!(
                    serde_json::to_string(&rest).unwrap().replace("[ ]", "[]"),
                    before,
                    "{list}"
                );
            }
        }
    }

    #[test]
    fn steps_come_before_those_that_are_there() {
        let steps = |names: &[&str]| names.iter().map(|name| Signature::new(*name)).collect::<Vec<_>>();
        let rest = Rest::new(&steps(&["d", "c"]));
        assert_eq!(named(&rest.after(&steps(&["b", "a"]))), ["d", "c", "b", "a"]);
        assert_eq!(named(&rest.after(&[])), ["d", "c"]);
        let none: Rest = serde_json::from_str(" [ ] ").unwrap();
        assert!(none.is_empty());
        assert_eq!(named(&none.after(&steps(&["a"]))), ["a"]);
    }

    #[test]
    fn p_073_what_is_no_list_of_signatures_is_an_error() {
        for text in [
            "3",
            "{}",
            r#""abc""#,
            "[3]",
            r#"[{"task": "b"}, null]"#,
            r#"[{"task": "b"}, {}]"#,
        ] {
            assert!(serde_json::from_str::<Rest>(text).is_err(), "{text}");
        }
        // Its turn has not come.
        let rest: Rest = serde_json::from_str(r#"[{}, {"task": "a"}]"#).unwrap();
        let (_, rest) = rest.next().unwrap().unwrap();
        assert!(rest.next().is_err() && rest.steps().is_err());
        let rest: Rest = serde_json::from_str(r#"[{"task": "c"}, {}, {"task": "a"}]"#).unwrap();
        let names = rest
            .each()
            .unwrap()
            .into_iter()
            .map(|step| step.map_or_else(|_| "?".into(), |step| step.task));
        assert_eq!(names.collect::<Vec<String>>(), ["c", "?", "a"]);
    }
}
