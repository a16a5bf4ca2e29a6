//! Handles of results, as Celery writes them down (`celery.result`): `[[id, parent], children]`.

use serde::ser::{Error as _, Serialize, Serializer};
use serde_json::value::RawValue;

use crate::wire::{DEEPEST, Json};

/// How many parents are written down, the nearest ones. Each costs two levels of JSON, and Python's reader stops at a
/// thousand: Celery itself cannot write many more.
const PARENTS: usize = 400;

/// The handle of a task's result, or of a group's.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ResultNode {
    /// Task id, or group id.
    pub id: String,
    /// The results that come before it, the first one first; none of them has some of its own. A list, since a chain is
    /// as long as its author wants.
    pub parents: Vec<ResultNode>,
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
            parents: Vec::new(),
            children: Some(children),
        }
    }

    /// Whether it stands for several results.
    pub fn is_group(&self) -> bool {
        self.children.is_some()
    }

    /// Puts `parent` before the first result of this one's line.
    pub(super) fn root_at(&mut self, mut parent: Self) {
        let mut line = std::mem::take(&mut parent.parents);
        line.push(parent);
        line.append(&mut self.parents);
        self.parents = line;
    }

    /// Reads the text of a handle, with as many parents as are written; `None` for anything else.
    pub fn read(text: &str) -> Option<Self> {
        Self::read_level(text, PARENTS, 0)
    }

    /// The same without the parents.
    pub fn read_alone(text: &str) -> Option<Self> {
        Self::read_level(text, 0, 0)
    }

    /// Layer by layer: parents may be nested deeper than a parser goes.
    fn read_level(text: &str, parents: usize, level: usize) -> Option<Self> {
        let (mut node, mut before) = Self::read_one(text, parents, level)?;
        while before != "null" && node.parents.len() < parents {
            let (parent, next) = Self::read_one(before, parents, level)?;
            node.parents.push(parent);
            before = next;
        }
        node.parents.reverse();
        Some(node)
    }

    /// One that has no parents yet, and the text of those.
    fn read_one(text: &str, parents: usize, level: usize) -> Option<(Self, &str)> {
        if level > DEEPEST {
            return None;
        }
        let [head, children]: [&RawValue; 2] = serde_json::from_str(text).ok()?;
        let [id, before]: [&RawValue; 2] = serde_json::from_str(head.get()).ok()?;
        let children: Option<Vec<&RawValue>> = serde_json::from_str(children.get()).ok()?;
        let read = |child: &RawValue| Self::read_level(child.get(), parents, level + 1);
        let node = Self {
            id: serde_json::from_str(id.get()).ok()?,
            parents: Vec::new(),
            children: match children {
                Some(children) => Some(children.into_iter().map(read).collect::<Option<_>>()?),
                None => None,
            },
        };
        Some((node, before.get()))
    }

    fn write(&self, out: &mut String) {
        let line = &self.parents[self.parents.len().saturating_sub(PARENTS)..];
        let id = |node: &Self, out: &mut String| {
            out.push_str("[[");
            out.push_str(Json::string(&node.id).get());
            out.push(',');
        };
        id(self, out);
        line.iter().rev().for_each(|parent| id(parent, out));
        out.push_str("null");
        for node in line.iter().chain([self]) {
            out.push_str("],");
            match &node.children {
                None => out.push_str("null"),
                Some(children) => {
                    out.push('[');
                    for (n, child) in children.iter().enumerate() {
                        if n > 0 {
                            out.push(',');
                        }
                        child.write(out);
                    }
                    out.push(']');
                }
            }
            out.push(']');
        }
    }
}

impl Serialize for ResultNode {
    /// As text: a serializer goes down level by level, and may not come back from a long line.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut text = String::new();
        self.write(&mut text);
        RawValue::from_string(text)
            .map_err(S::Error::custom)?
            .serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p_155_a_handle_is_a_tuple() {
        let mut group = ResultNode::group("g", vec![ResultNode::task("a"), ResultNode::task("b")]);
        group.root_at(ResultNode::task("q"));
        group.root_at(ResultNode::group("p", vec![]));
        let text = serde_json::to_string(&group).unwrap();
        assert_eq!(
            text,
            r#"[["g",[["q",[["p",null],[]]],null]],[[["a",null],null],[["b",null],null]]]"#
        );
        assert_eq!(ResultNode::read(&text), Some(group.clone()));
        group.parents.clear();
        assert_eq!(ResultNode::read_alone(&text), Some(group));
        for wrong in ["", "[]", "[[1,null],null]", r#"[["g",null],{}]"#, "[[[[", "{}"] {
            assert_eq!(ResultNode::read_alone(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_line_of_parents_is_as_long_as_it_likes() {
        let mut long = ResultNode::task("first");
        for n in 0..100_000 {
            let mut next = ResultNode::task(n.to_string());
            next.root_at(long);
            long = next;
        }
        assert_eq!(long.clone().parents.len(), 100_000);
        let text = serde_json::to_string(&ResultNode::group("g", vec![long])).unwrap();
        assert_eq!(text.matches("[[").count(), 2 + PARENTS);
        let read = ResultNode::read_alone(&text).unwrap();
        assert_eq!(read.children, Some(vec![ResultNode::task("99999")]));
        let read = ResultNode::read(&text).unwrap().children.unwrap();
        assert_eq!((read[0].parents.len(), &*read[0].parents[0].id), (PARENTS, "99599"));
        // Hostile ones end as well.
        let deep = "[[\"a\",".repeat(100_000) + "null" + &"],null]".repeat(100_000);
        assert_eq!(ResultNode::read_alone(&deep), Some(ResultNode::task("a")));
        let deep = "[[\"a\",null],[".repeat(1000) + &"]]".repeat(1000);
        assert_eq!(ResultNode::read_alone(&deep), None);
    }
}
