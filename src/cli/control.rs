//! `orchestra control`: what `celery control` tells workers.

use std::process::ExitCode;

use clap::Args;
use serde_json::{Map, Value, json};

use super::program::{Common, Stopped, seconds, usage, world};

/// A command and the words behind it.
struct Command {
    name: &'static str,
    words: &'static [&'static str],
    /// How many of the words there have to be.
    needed: usize,
    /// What all further words are; one at least.
    rest: Option<&'static str>,
}

const fn command(name: &'static str, words: &'static [&'static str], needed: usize) -> Command {
    Command {
        name,
        words,
        needed,
        rest: None,
    }
}

const fn many(name: &'static str, words: &'static [&'static str], rest: &'static str) -> Command {
    Command {
        name,
        words,
        needed: words.len(),
        rest: Some(rest),
    }
}

const COMMANDS: &[Command] = &[
    command(
        "add_consumer",
        &["queue", "exchange", "exchange_type", "routing_key"],
        1,
    ),
    command("autoscale", &["max", "min"], 1),
    command("cancel_consumer", &["queue"], 1),
    command("disable_events", &[], 0),
    command("enable_events", &[], 0),
    command("heartbeat", &[], 0),
    command("pool_grow", &["n"], 0),
    command("pool_restart", &[], 0),
    command("pool_shrink", &["n"], 0),
    command("rate_limit", &["task_name", "rate_limit"], 2),
    many("revoke", &[], "task_id"),
    many("revoke_by_stamped_headers", &[], "headers"),
    command("shutdown", &[], 0),
    many("terminate", &["signal"], "task_id"),
    command("time_limit", &["task_name", "soft", "hard"], 2),
];

#[derive(Debug, Args)]
pub(super) struct Control {
    /// What to tell: add_consumer, autoscale, cancel_consumer, disable_events, enable_events, heartbeat, pool_grow, pool_restart, pool_shrink, rate_limit, revoke, revoke_by_stamped_headers, shutdown, terminate, time_limit
    method: String,
    /// Its arguments, in the order of `celery control`
    arguments: Vec<String>,
    /// Tell only these workers, separated by commas
    #[arg(short = 'd', long, value_delimiter = ',')]
    destination: Option<Vec<String>>,
    /// Seconds to wait for answers
    #[arg(short = 't', long, default_value_t = 1.0)]
    timeout: f64,
    /// Print JSON
    #[arg(short = 'j', long)]
    json: bool,
}

impl Control {
    pub(super) async fn run(self, common: &Common) -> Result<ExitCode, Stopped> {
        let arguments = arguments(&self.method, &self.arguments).map_err(usage)?;
        let timeout = seconds("timeout", self.timeout)?;
        let client = common.client().await?;
        let destination = self.destination.as_deref();
        if self.method == "shutdown" {
            client.cast("shutdown", &arguments, destination).await.map_err(world)?;
            println!("asked to shut down");
            return Ok(ExitCode::SUCCESS);
        }
        let answers = client
            .inspect(&self.method, &arguments, destination, timeout)
            .await
            .map_err(world)?;
        if answers.is_empty() {
            return Err(world(format!("no worker answered within {} s", self.timeout)));
        }
        let failed = answers.values().any(|answer| answer.get("error").is_some());
        if self.json {
            println!("{}", Value::Object(answers));
        } else {
            for (worker, answer) in &answers {
                println!("->  {worker}: {}", shown(answer));
            }
        }
        Ok(ExitCode::from(u8::from(failed)))
    }
}

fn shown(answer: &Value) -> String {
    let text = |name: &str| answer.get(name).and_then(Value::as_str);
    match (text("ok"), text("error")) {
        (Some(text), _) => text.to_owned(),
        (_, Some(text)) => format!("error: {text}"),
        _ => "done".to_owned(),
    }
}

/// The arguments of a command from the words of a command line.
fn arguments(method: &str, words: &[String]) -> Result<Value, String> {
    let Some(command) = COMMANDS.iter().find(|command| command.name == method) else {
        let names = || COMMANDS.iter().map(|command| command.name);
        let meant = match crate::text::closest(method, names()) {
            Some(close) => format!("did you mean {close}?"),
            None => format!("use one of {}", names().collect::<Vec<_>>().join(", ")),
        };
        return Err(format!("workers cannot be told {method:?}; {meant}"));
    };
    let missing = command.words.iter().take(command.needed).nth(words.len());
    if let Some(missing) = missing.or(command.rest.as_ref().filter(|_| words.len() <= command.words.len())) {
        return Err(format!("{method}: {missing} is missing"));
    }
    let mut map = Map::new();
    for (name, word) in command.words.iter().zip(words) {
        map.insert((*name).to_owned(), value(name, word)?);
    }
    match (command.rest, words.get(command.words.len()..)) {
        (Some(name), Some(rest)) => drop(map.insert(name.to_owned(), json!(rest))),
        (None, Some([one, ..])) => return Err(format!("{method}: there is no place for {one:?}")),
        _ => {}
    }
    Ok(map.into())
}

fn value(name: &str, word: &str) -> Result<Value, String> {
    match name {
        "n" | "max" | "min" => match word.parse::<u32>() {
            Ok(number) => Ok(number.into()),
            Err(_) => Err(format!("{name}: {word:?} is no whole number")),
        },
        "soft" | "hard" => match word.parse::<f64>() {
            Ok(number) if number.is_finite() => Ok(number.into()),
            _ => Err(format!("{name}: {word:?} is no number of seconds")),
        },
        _ => Ok(word.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Value, String> {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        arguments(&words[0], &words[1..])
    }

    #[test]
    fn words_become_the_arguments_that_celery_sends() {
        assert_eq!(read("revoke a b").unwrap(), json!({"task_id": ["a", "b"]}));
        assert_eq!(
            read("terminate KILL a").unwrap(),
            json!({"signal": "KILL", "task_id": ["a"]})
        );
        assert_eq!(read("pool_grow").unwrap(), json!({}));
        assert_eq!(read("autoscale 4 1").unwrap(), json!({"max": 4, "min": 1}));
        assert_eq!(
            read("time_limit t 3 5").unwrap(),
            json!({"task_name": "t", "soft": 3.0, "hard": 5.0})
        );
        for (line, wrong) in [
            ("revok a", "did you mean revoke?"),
            ("revoke", "task_id is missing"),
            ("terminate KILL", "task_id is missing"),
            ("rate_limit t", "rate_limit is missing"),
            ("pool_grow x", "no whole number"),
            ("pool_grow 1 2", "no place for \"2\""),
            ("time_limit t nan", "no number of seconds"),
        ] {
            let error = read(line).unwrap_err();
            assert!(error.contains(wrong), "{line}: {error}");
        }
    }
}
