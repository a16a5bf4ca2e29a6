//! The result record (`celery.backends.base.Backend._get_result_meta`).

use serde::Serialize;
use serde_json::{Map, Value};

use super::{Json, State};

/// One stored state of a task. Field order matters: a reader that looks at the start of the record sees the state.
#[derive(Clone, Debug, Serialize)]
pub struct Record<'a, R: Serialize> {
    status: &'a str,
    result: R,
    traceback: Option<&'a str>,
    children: Option<&'a [Json]>,
    date_done: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    group_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent_id: Option<&'a str>,
    #[serde(flatten)]
    extended: Option<&'a Map<String, Value>>,
    task_id: &'a str,
}

impl<'a, R: Serialize> Record<'a, R> {
    /// A record of `state` with its value: the return value, the exception object, or the state's own meta data.
    ///
    /// `done` is the ISO time of the end; it is dropped unless the state is a ready one (P-147).
    pub fn new(task_id: &'a str, state: &'a State, result: R, done: String) -> Self {
        Self {
            status: state.as_str(),
            result,
            traceback: None,
            children: Some(&[]),
            date_done: state.is_ready().then_some(done),
            group_id: None,
            parent_id: None,
            extended: None,
            task_id,
        }
    }

    /// With a traceback text.
    #[must_use]
    pub fn traceback(mut self, traceback: Option<&'a str>) -> Self {
        self.traceback = traceback;
        self
    }

    /// With the tasks it sent, as result tuples; `None` when there was no request (P-149).
    #[must_use]
    pub fn children(mut self, children: Option<&'a [Json]>) -> Self {
        self.children = children;
        self
    }

    /// With its group and parent, when it has them (P-148).
    #[must_use]
    pub fn family(mut self, group: Option<&'a str>, parent: Option<&'a str>) -> Self {
        self.group_id = group;
        self.parent_id = parent;
        self
    }

    /// With the fields of `result_extended` (P-152).
    #[must_use]
    pub fn extended(mut self, extended: Option<&'a Map<String, Value>>) -> Self {
        self.extended = extended;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p_146_p_147_the_record_has_celerys_fields() {
        let record = Record::new("1", &State::Success, 5, "T".into());
        assert_eq!(
            serde_json::to_string(&record).unwrap(),
            r#"{"status":"SUCCESS","result":5,"traceback":null,"children":[],"date_done":"T","task_id":"1"}"#
        );
        let record = Record::new("1", &State::Retry, (), "T".into()).family(Some("g"), None);
        assert!(
            serde_json::to_string(&record)
                .unwrap()
                .contains(r#""date_done":null,"group_id":"g","task_id":"1""#)
        );
    }
}
