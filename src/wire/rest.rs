//! The rest of a chain.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{Json, Signature};

/// What follows in a chain: a list of signatures, last first (trap T14). Each message of a chain carries all that is still to
/// come, so it stays the text it came as, and a step is read when its turn has come.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Rest(Json);

impl Rest {
    /// Of signatures, last first.
    pub fn new(steps: &[Signature]) -> Self {
        // What a signature is made of is JSON already.
        Self(Json::new(steps).unwrap_or_else(|_| Json::list([])))
    }

    /// Whether nothing follows.
    pub fn is_empty(&self) -> bool {
        self.0.get().trim_start_matches(['[', ' ']).starts_with(']')
    }

    /// The next step, and what follows that one.
    ///
    /// # Errors
    /// It is not a signature.
    pub fn next(&self) -> Result<Option<(Signature, Self)>, serde_json::Error> {
        let list = self.0.get();
        let steps: Vec<&RawValue> = serde_json::from_str(list)?;
        let Some((next, rest)) = steps.split_last() else {
            return Ok(None);
        };
        let end = rest.last().map_or(1, |last| end_in(list, last.get()));
        let rest = RawValue::from_string(format!("{}]", &list[..end]))?;
        Ok(Some((super::json::parse(next.get())?, Self(rest.into()))))
    }

    /// All steps, last first.
    ///
    /// # Errors
    /// One is not a signature.
    pub fn steps(&self) -> Result<Vec<Signature>, serde_json::Error> {
        self.0.parse()
    }

    /// With steps that come before these.
    #[must_use]
    pub fn after(&self, steps: &[Signature]) -> Self {
        let (ours, more) = (self.0.get(), Self::new(steps).0);
        let (ours, more) = (ours[..ours.len() - 1].trim_end(), &more.get()[1..]);
        let comma = if ours.len() > 1 && more.len() > 1 { "," } else { "" };
        // Two lists put together are one.
        RawValue::from_string(format!("{ours}{comma}{more}")).map_or_else(|_| self.clone(), |list| Self(list.into()))
    }
}

/// Where in a text a part of it ends.
fn end_in(text: &str, part: &str) -> usize {
    part.as_ptr() as usize - text.as_ptr() as usize + part.len()
}

impl<'de> Deserialize<'de> for Rest {
    /// Takes any list of objects whose last one is a signature: a later one that is none is found in the message before its turn.
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let rest = Self(Json::deserialize(deserializer)?);
        let steps: Vec<&RawValue> = serde_json::from_str(rest.0.get()).map_err(serde::de::Error::custom)?;
        if let Some(wrong) = steps.iter().find(|step| !step.get().starts_with('{')) {
            let shown: String = wrong.get().chars().take(40).collect();
            return Err(serde::de::Error::custom(format_args!(
                "a step of a chain is no signature: {shown}"
            )));
        }
        if let Some(next) = steps.last() {
            super::json::parse::<Signature>(next.get()).map_err(serde::de::Error::custom)?;
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
    }
}
