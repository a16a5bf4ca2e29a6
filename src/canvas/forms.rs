//! Forms of calls that are made of others: the same task for many items, in one task or in several.

use serde::Serialize;

use super::compose::group;
use crate::wire::{Json, Kind, Signature};

/// One task that calls another for each item, one after the other, and gives the list of the results
/// (`celery.canvas.xmap`, `task.map`).
pub fn map(task: Signature, items: impl IntoIterator<Item = impl Serialize>) -> Signature {
    over("celery.map", task, items)
}

/// The same, with items that are lists of arguments (`celery.canvas.xstarmap`, `task.starmap`).
pub fn starmap(task: Signature, items: impl IntoIterator<Item = impl Serialize>) -> Signature {
    over("celery.starmap", task, items)
}

/// A group of [`starmap`]s of at most `size` items each (`task.chunks(items, size).group()`).
pub fn chunks(task: &Signature, items: impl IntoIterator<Item = impl Serialize>, size: usize) -> Signature {
    let items: Vec<Json> = items.into_iter().map(json).collect();
    group(items.chunks(size.max(1)).map(|part| starmap(task.clone(), part)))
}

/// The body of a chord whose results are wanted as they are: gives back the list that it gets (`celery.accumulate`).
pub fn accumulate() -> Signature {
    Signature::new("celery.accumulate").kwarg("index", 0)
}

fn over(name: &str, task: Signature, items: impl IntoIterator<Item = impl Serialize>) -> Signature {
    let items: Vec<Json> = items.into_iter().map(json).collect();
    Signature::new(name).kwarg("task", task).kwarg("it", items).immutable()
}

fn json(value: impl Serialize) -> Json {
    Json::new(&value).unwrap_or_else(|_| Json::null())
}

impl Signature {
    /// Of a group: each member starts `step` seconds after the one before, the first after `start` (`group.skew`).
    /// Whatever is no group stays as it is.
    #[must_use]
    pub fn skew(mut self, start: f64, step: f64) -> Self {
        if let Kind::Group(tasks) = &mut self.kind {
            let mut countdown = start;
            for task in tasks {
                *task = std::mem::take(task).option("countdown", countdown);
                countdown += step;
            }
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_skewed_member_by_member() {
        let skewed = group(["a", "b", "c"].map(Signature::new)).skew(1.0, 0.5);
        let Kind::Group(tasks) = skewed.kind else { panic!() };
        let delays: Vec<&str> = tasks
            .iter()
            .filter_map(|task| Some(task.options.get("countdown")?.get()))
            .collect();
        assert_eq!(delays, ["1.0", "1.5", "2.0"]);
    }

    #[test]
    fn chunks_are_a_group_of_starmaps() {
        let parts = chunks(&Signature::new("add"), (0..5).map(|n| (n, n)), 2);
        let Kind::Group(tasks) = parts.kind else { panic!() };
        let items: Vec<&str> = tasks.iter().map(|task| task.kwargs["it"].get()).collect();
        assert_eq!(items, ["[[0,0],[1,1]]", "[[2,2],[3,3]]", "[[4,4]]"]);
        assert!(tasks.iter().all(|task| task.task == "celery.starmap" && task.immutable));
    }
}
