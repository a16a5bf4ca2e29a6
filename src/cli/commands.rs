//! The commands of remote control and the words behind them, as the `celery` program takes them.

use clap::Args;
use serde_json::{Map, Value, json};

use super::program::{Common, Stopped, number_of_seconds, seconds, world};
use crate::client::Client;

/// Which of the two programs of Celery's a command belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Asks and changes nothing.
    Inspect,
    /// Changes something.
    Control,
}

/// Whom to ask, how long, and what to print: the same for all of `status`, `inspect` and `control`.
#[derive(Debug, Args)]
pub(super) struct Audience {
    /// Only these workers, separated by commas
    #[arg(short = 'd', long, value_delimiter = ',')]
    destination: Option<Vec<String>>,
    /// Seconds to wait for answers
    #[arg(short = 't', long, value_name = "SECONDS", value_parser = number_of_seconds, default_value = "1")]
    timeout: f64,
    /// Print JSON
    #[arg(short = 'j', long)]
    pub json: bool,
}

impl Audience {
    /// The answers by worker; none at all is an error.
    pub(super) async fn ask(
        &self,
        common: &Common,
        name: &str,
        arguments: &Value,
    ) -> Result<Map<String, Value>, Stopped> {
        let answers = self.ask_anybody(common, name, arguments).await?;
        if answers.is_empty() {
            return Err(self.unheard());
        }
        Ok(answers)
    }

    /// Nobody answered.
    pub(super) fn unheard(&self) -> Stopped {
        world(format!("no worker answered within {} s", self.timeout))
    }

    /// The answers of those who are there.
    pub(super) async fn ask_anybody(
        &self,
        common: &Common,
        name: &str,
        arguments: &Value,
    ) -> Result<Map<String, Value>, Stopped> {
        let timeout = seconds("timeout", self.timeout)?;
        let client = common.sender().await?;
        let answers = client
            .inspect(name, arguments, self.destination.as_deref(), timeout)
            .await;
        answers.map_err(world)
    }

    /// Whether nobody in particular is meant.
    pub(super) fn is_for_all(&self) -> bool {
        self.destination.is_none()
    }

    /// Tells something that nobody answers.
    pub(super) async fn tell(&self, client: &Client, name: &str, arguments: &Value) -> Result<(), Stopped> {
        let told = client.cast(name, arguments, self.destination.as_deref()).await;
        told.map_err(world)
    }
}

/// A command and the words behind it.
pub(super) struct Command {
    pub kind: Kind,
    pub name: &'static str,
    about: &'static str,
    words: &'static [&'static str],
    /// How many of the words there have to be.
    needed: usize,
    /// What all further words are, and how many of them there have to be.
    rest: Option<(&'static str, usize)>,
}

const fn command(
    kind: Kind,
    name: &'static str,
    words: &'static [&'static str],
    needed: usize,
    about: &'static str,
) -> Command {
    Command {
        kind,
        name,
        about,
        words,
        needed,
        rest: None,
    }
}

const fn many(
    kind: Kind,
    name: &'static str,
    words: &'static [&'static str],
    rest: (&'static str, usize),
    about: &'static str,
) -> Command {
    Command {
        kind,
        name,
        about,
        words,
        needed: words.len(),
        rest: Some(rest),
    }
}

use Kind::{Control, Inspect};

/// All of `celery inspect` and `celery control`.
const COMMANDS: &[Command] = &[
    command(Inspect, "active", &[], 0, "tasks that run"),
    command(Inspect, "active_queues", &[], 0, "queues that workers consume"),
    command(Inspect, "clock", &[], 0, "logical clocks"),
    command(Inspect, "conf", &["with_defaults"], 0, "settings, without secrets"),
    command(Inspect, "memdump", &["samples"], 0, "samples of memory"),
    command(Inspect, "memsample", &[], 0, "samples the memory"),
    command(
        Inspect,
        "objgraph",
        &["type", "num", "max_depth"],
        0,
        "objects of Python; only Python workers have some",
    ),
    command(Inspect, "ping", &[], 0, "who is there"),
    many(Inspect, "query_task", &[], ("ids", 1), "where tasks are"),
    many(
        Inspect,
        "registered",
        &[],
        ("taskinfoitems", 0),
        "tasks that workers know, with attributes such as rate_limit",
    ),
    command(Inspect, "report", &[], 0, "versions and settings, for a bug report"),
    command(Inspect, "reserved", &[], 0, "tasks that wait for a place to run"),
    command(Inspect, "revoked", &[], 0, "ids of revoked tasks"),
    command(Inspect, "scheduled", &[], 0, "tasks that wait for their ETA"),
    command(
        Inspect,
        "stats",
        &[],
        0,
        "counts of tasks, uptime, broker, pool and memory of workers",
    ),
    command(
        Control,
        "add_consumer",
        &["queue", "exchange", "exchange_type", "routing_key"],
        1,
        "consume from a queue as well",
    ),
    command(Control, "autoscale", &["max", "min"], 0, "between how many places"),
    command(
        Control,
        "cancel_consumer",
        &["queue"],
        1,
        "consume from a queue no more",
    ),
    command(Control, "disable_events", &[], 0, "send no task events"),
    command(
        Control,
        "election",
        &["id", "topic", "action"],
        3,
        "let one worker act; harms Python workers that are alone",
    ),
    command(Control, "enable_events", &[], 0, "send task events"),
    command(Control, "heartbeat", &[], 0, "send a heartbeat now"),
    command(Control, "pool_grow", &["n"], 0, "more places to run"),
    command(Control, "pool_restart", &[], 0, "renew the processes of the pool"),
    command(Control, "pool_shrink", &["n"], 0, "fewer places to run"),
    command(
        Control,
        "rate_limit",
        &["task_name", "rate_limit"],
        2,
        "starts per time of a task, such as 10/m; 0 is no limit",
    ),
    many(Control, "revoke", &[], ("task_id", 1), "do not run these tasks"),
    many(
        Control,
        "revoke_by_stamped_headers",
        &[],
        ("headers", 1),
        "do not run tasks with these stamps, NAME=VALUE",
    ),
    command(Control, "shutdown", &[], 0, "stop the workers, warm"),
    many(Control, "terminate", &["signal"], ("task_id", 1), "end these tasks"),
    command(
        Control,
        "time_limit",
        &["task_name", "soft", "hard"],
        2,
        "limits of a task in seconds",
    ),
];

/// What there is, with the words that each takes.
pub(super) fn list(kind: Kind) -> String {
    let line = |command: &Command| {
        let mut usage = command.name.to_owned();
        for (at, word) in command.words.iter().enumerate() {
            let word = if at < command.needed {
                format!(" <{word}>")
            } else {
                format!(" [{word}]")
            };
            usage.push_str(&word);
        }
        match command.rest {
            Some((name, 0)) => usage.push_str(&format!(" [{name} …]")),
            Some((name, _)) => usage.push_str(&format!(" <{name}> …")),
            None => {}
        }
        (usage, command.about)
    };
    let of_kind = COMMANDS.iter().filter(|command| command.kind == kind);
    let lines: Vec<(String, &str)> = of_kind.map(line).collect();
    let width = lines.iter().map(|(usage, _)| usage.chars().count()).max().unwrap_or(0);
    let lines = lines.iter().map(|(usage, about)| format!("  {usage:<width$}  {about}"));
    lines.collect::<Vec<_>>().join("\n")
}

/// The command of that name.
///
/// # Errors
/// There is none; which was probably meant.
pub(super) fn find(kind: Kind, name: &str) -> Result<&'static Command, String> {
    let of_kind = || COMMANDS.iter().filter(move |command| command.kind == kind);
    if let Some(command) = of_kind().find(|command| command.name == name) {
        return Ok(command);
    }
    let (what, other, program) = match kind {
        Inspect => ("workers cannot be asked for", Control, "control"),
        Control => ("workers cannot be told", Inspect, "inspect"),
    };
    let names = || of_kind().map(|command| command.name);
    let meant = if COMMANDS
        .iter()
        .any(|command| command.kind == other && command.name == name)
    {
        format!("that is a command of `orchestra {program}`")
    } else if let Some(close) = crate::text::closest(name, names()) {
        format!("did you mean {close}?")
    } else {
        format!("use one of {}", names().collect::<Vec<_>>().join(", "))
    };
    Err(format!("{what} {name:?}; {meant}"))
}

impl Command {
    /// Its arguments from the words of a command line.
    ///
    /// # Errors
    /// One is missing, too many, or of a wrong type.
    pub(super) fn arguments(&self, words: &[String]) -> Result<Value, String> {
        let name = self.name;
        if let Some(missing) = self.words.iter().take(self.needed).nth(words.len()) {
            return Err(format!("{name}: {missing} is missing"));
        }
        let mut map = Map::new();
        for (name, word) in self.words.iter().zip(words) {
            map.insert((*name).to_owned(), value(name, word)?);
        }
        let rest = words.get(self.words.len()..).unwrap_or_default();
        match (self.rest, rest) {
            (Some((missing, needed)), rest) if rest.len() < needed => {
                return Err(format!("{name}: {missing} is missing"));
            }
            (Some((_, _)), []) => {}
            (Some((name, _)), rest) => drop(map.insert(name.to_owned(), json!(rest))),
            (None, [one, ..]) => return Err(format!("{name}: there is no place for {one:?}")),
            (None, []) => {}
        }
        Ok(map.into())
    }
}

fn value(name: &str, word: &str) -> Result<Value, String> {
    match name {
        "n" | "max" | "min" | "samples" | "num" | "max_depth" => match word.parse::<u32>() {
            Ok(number) => Ok(number.into()),
            Err(_) => Err(format!("{name}: {word:?} is no whole number")),
        },
        "soft" | "hard" => match word.parse::<f64>() {
            Ok(number) if number.is_finite() => Ok(number.into()),
            _ => Err(format!("{name}: {word:?} is no number of seconds")),
        },
        "with_defaults" => match word.to_ascii_lowercase().as_str() {
            "1" | "true" | "yes" | "on" => Ok(true.into()),
            "0" | "false" | "no" | "off" => Ok(false.into()),
            _ => Err(format!("{name}: {word:?} is neither true nor false")),
        },
        // A signature as JSON.
        "action" => Ok(serde_json::from_str(word).unwrap_or_else(|_| word.into())),
        _ => Ok(word.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(kind: Kind, line: &str) -> Result<Value, String> {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        find(kind, &words[0])?.arguments(&words[1..])
    }

    #[test]
    fn words_become_the_arguments_that_celery_sends() {
        for (line, arguments) in [
            ("revoke a b", json!({"task_id": ["a", "b"]})),
            ("terminate KILL a", json!({"signal": "KILL", "task_id": ["a"]})),
            ("pool_grow", json!({})),
            ("autoscale 4 1", json!({"max": 4, "min": 1})),
            ("time_limit t 3 5", json!({"task_name": "t", "soft": 3.0, "hard": 5.0})),
            ("revoke_by_stamped_headers a=b", json!({"headers": ["a=b"]})),
        ] {
            assert_eq!(read(Control, line).unwrap(), arguments, "{line}");
        }
        assert_eq!(read(Inspect, "query_task a b").unwrap(), json!({"ids": ["a", "b"]}));
        assert_eq!(read(Inspect, "registered").unwrap(), json!({}));
        assert_eq!(read(Inspect, "conf true").unwrap(), json!({"with_defaults": true}));
        for (line, wrong) in [
            ("revok a", "did you mean revoke?"),
            ("revoke", "task_id is missing"),
            ("terminate KILL", "task_id is missing"),
            ("rate_limit t", "rate_limit is missing"),
            ("pool_grow x", "no whole number"),
            ("pool_grow 1 2", "no place for \"2\""),
            ("time_limit t nan", "no number of seconds"),
            ("stats", "a command of `orchestra inspect`"),
        ] {
            let error = read(Control, line).unwrap_err();
            assert!(error.contains(wrong), "{line}: {error}");
        }
    }
}
