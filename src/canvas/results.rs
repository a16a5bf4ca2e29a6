//! Handles of results, as Celery writes them down (`celery.result`): `[[id, parent], children]`.

use serde::ser::{Serialize, SerializeTuple, Serializer};

/// The handle of a task's result, or of a group's.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ResultNode {
    /// Task id, or group id.
    pub id: String,
    /// The result that comes before it.
    pub parent: Option<Box<ResultNode>>,
    /// The results of a group; `None` for a task.
    pub children: Option<Vec<ResultNode>>,
}

impl ResultNode {
    /// The handle of a task.
    pub fn task(id: impl Into<String>) -> Self {
        Self {
            id: id.into(),
            ..Self::default()
        }
    }

    /// The handle of a group.
    pub fn group(id: impl Into<String>, children: Vec<Self>) -> Self {
        Self {
            id: id.into(),
            parent: None,
            children: Some(children),
        }
    }

    /// Whether it stands for several results.
    pub fn is_group(&self) -> bool {
        self.children.is_some()
    }

    /// Puts `parent` before the first result of this one's line.
    pub(super) fn root_at(&mut self, parent: Self) {
        match &mut self.parent {
            Some(own) => own.root_at(parent),
            None => self.parent = Some(Box::new(parent)),
        }
    }

    /// Reads a stored handle; `None` for anything else. Depth and number are bounded by what it is read from.
    pub fn read(value: &serde_json::Value) -> Option<Self> {
        let [head, children] = value.as_array()?.as_slice() else {
            return None;
        };
        let [id, parent] = head.as_array()?.as_slice() else {
            return None;
        };
        Some(Self {
            id: id.as_str()?.to_owned(),
            parent: match parent {
                serde_json::Value::Null => None,
                parent => Some(Box::new(Self::read(parent)?)),
            },
            children: match children {
                serde_json::Value::Array(children) => Some(children.iter().map(Self::read).collect::<Option<_>>()?),
                _ => None,
            },
        })
    }
}

impl Serialize for ResultNode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut tuple = serializer.serialize_tuple(2)?;
        tuple.serialize_element(&(&self.id, &self.parent))?;
        tuple.serialize_element(&self.children)?;
        tuple.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p_155_a_handle_is_a_tuple() {
        let mut group = ResultNode::group("g", vec![ResultNode::task("a"), ResultNode::task("b")]);
        group.root_at(ResultNode::task("p"));
        let text = serde_json::to_string(&group).unwrap();
        assert_eq!(
            text,
            r#"[["g",[["p",null],null]],[[["a",null],null],[["b",null],null]]]"#
        );
        assert_eq!(ResultNode::read(&serde_json::from_str(&text).unwrap()), Some(group));
    }
}
