//! The commands of Celery 5.7 (`celery.worker.control`) with their arguments, and the errors that Python's calls of
//! them would raise.

use crate::wire::pidbox::Given;

/// A remote control command.
pub(super) struct Command {
    pub name: &'static str,
    /// An older name.
    alias: &'static str,
    /// Arguments that must be there, in Python's order.
    required: &'static [&'static str],
    /// All arguments there are; `None` for the many commands that ignore what they do not know.
    only: Option<&'static [&'static str]>,
}

const fn command(name: &'static str, required: &'static [&'static str]) -> Command {
    Command {
        name,
        alias: "",
        required,
        only: None,
    }
}

const fn strict(name: &'static str, only: &'static [&'static str]) -> Command {
    Command {
        name,
        alias: "",
        required: &[],
        only: Some(only),
    }
}

const fn aliased(name: &'static str, alias: &'static str) -> Command {
    Command {
        name,
        alias,
        required: &[],
        only: None,
    }
}

const COMMANDS: &[Command] = &[
    aliased("active", "dump_active"),
    strict("active_queues", &[]),
    command("add_consumer", &["queue"]),
    strict("autoscale", &["max", "min"]),
    command("cancel_consumer", &["queue"]),
    command("clock", &[]),
    aliased("conf", "dump_conf"),
    strict("disable_events", &[]),
    command("election", &["id", "topic"]),
    strict("enable_events", &[]),
    strict("heartbeat", &[]),
    command("hello", &["from_node"]),
    command("memdump", &[]),
    command("memsample", &[]),
    strict("objgraph", &["num", "max_depth", "type"]),
    command("ping", &[]),
    command("pool_grow", &[]),
    command("pool_restart", &[]),
    command("pool_shrink", &[]),
    command("query_task", &["ids"]),
    command("rate_limit", &["task_name", "rate_limit"]),
    aliased("registered", "dump_tasks"),
    strict("report", &[]),
    aliased("reserved", "dump_reserved"),
    command("revoke", &["task_id"]),
    command("revoke_by_stamped_headers", &["headers"]),
    aliased("revoked", "dump_revoked"),
    aliased("scheduled", "dump_schedule"),
    command("shutdown", &[]),
    command("stats", &[]),
    command("terminate", &["signal", "task_id"]),
    command("time_limit", &[]),
];

/// The command of that name.
pub(super) fn find(name: &str) -> Option<&'static Command> {
    COMMANDS
        .iter()
        .find(|command| command.name == name || (!command.alias.is_empty() && command.alias == name))
}

impl Command {
    /// Whether Python could call it with these arguments.
    pub(super) fn check(&self, arguments: Option<&Given>) -> Result<(), String> {
        let given = |name: &str| arguments.is_some_and(|map| map.contains_key(name));
        if let (Some(only), Some(map)) = (self.only, arguments)
            && let Some(other) = map.keys().find(|name| !only.contains(&name.as_str()))
        {
            return Err(format!(
                "TypeError(\"{}() got an unexpected keyword argument '{}'\")",
                self.name,
                other.escape_debug()
            ));
        }
        let missing: Vec<String> = self
            .required
            .iter()
            .filter(|name| !given(name))
            .map(|name| format!("'{name}'"))
            .collect();
        match &missing[..] {
            [] => Ok(()),
            [one] => Err(format!(
                "TypeError(\"{}() missing 1 required positional argument: {one}\")",
                self.name
            )),
            // No command has more than two.
            [first, .., last] => Err(format!(
                "TypeError(\"{}() missing {} required positional arguments: {first} and {last}\")",
                self.name,
                missing.len()
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn p_177_p_195_calls_that_python_could_not_make_are_refused_in_its_words() {
        let check = |name: &str, arguments: Value| {
            let given: Given = serde_json::from_value(arguments).unwrap();
            find(name).unwrap().check(Some(&given))
        };
        assert_eq!(
            check("rate_limit", json!({})).unwrap_err(),
            "TypeError(\"rate_limit() missing 2 required positional arguments: 'task_name' and 'rate_limit'\")"
        );
        assert_eq!(
            check("terminate", json!({"signal": "KILL"})).unwrap_err(),
            "TypeError(\"terminate() missing 1 required positional argument: 'task_id'\")"
        );
        assert_eq!(
            check("report", json!({"x": 1})).unwrap_err(),
            "TypeError(\"report() got an unexpected keyword argument 'x'\")"
        );
        check("ping", json!({"x": 1})).unwrap();
        check("revoke", json!({"task_id": null})).unwrap();
        assert_eq!(find("dump_tasks").unwrap().name, "registered");
        assert!(find("").is_none());
    }
}
