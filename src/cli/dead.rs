//! `orchestra dead`: what could not be run, seen, brought back or removed.

use std::collections::{BTreeMap, BTreeSet};
use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::out::plain;
use super::program::{Common, Stopped, usage, world};
use crate::broker::{Broker, DeadQueue, Found};
use crate::clock;
use crate::config::Settings;

/// Letters looked at in one go.
const PAGE: usize = 200;
/// What a list fetches of each letter: enough for why, whose and when of the large ones too.
const HEAD: usize = 64 << 10;
/// What `show` prints of a message unless all of it is asked for.
const SHOWN: usize = 4 << 10;

#[derive(Debug, Subcommand)]
pub(super) enum Dead {
    /// Dead letters, the oldest first: handle, when, queue, task, id, why
    List {
        #[command(flatten)]
        which: Which,
        /// At most so many
        #[arg(short = 'n', long, default_value_t = 50, conflicts_with = "all")]
        limit: usize,
        /// However many there are
        #[arg(long)]
        all: bool,
        /// Print JSON, one letter a line
        #[arg(short = 'j', long)]
        json: bool,
    },
    /// All that is known of one: its message too
    Show {
        /// Its handle, or the task's id
        letter: String,
        /// Only in this queue
        #[arg(short = 'Q', long)]
        queue: Vec<String>,
        /// Print JSON
        #[arg(short = 'j', long, conflicts_with = "raw")]
        json: bool,
        /// Print the message alone, byte for byte
        #[arg(long)]
        raw: bool,
    },
    /// Put messages back at the end of their queues, as if they had just been sent
    Requeue(Change),
    /// Remove them for good
    Drop(Change),
}

/// How often each handle is meant: letters that are the same have the same.
type Handles = BTreeMap<String, usize>;

/// Which letters.
#[derive(Debug, Default, Args)]
pub(super) struct Which {
    /// Only of these queues, separated by commas [default: every queue that has some]
    #[arg(short = 'Q', long, value_delimiter = ',')]
    queue: Vec<String>,
    /// Only of this task
    #[arg(long, value_name = "NAME")]
    task: Option<String>,
    /// Only those whose reason has this text in it
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Only those that died longer ago than this: 90s, 15m, 2h, 7d
    #[arg(long, value_name = "AGE", value_parser = age)]
    older: Option<Duration>,
    /// Only those that died less long ago than this
    #[arg(long, value_name = "AGE", value_parser = age)]
    newer: Option<Duration>,
}

/// What to change.
#[derive(Debug, Args)]
pub(super) struct Change {
    /// Handles of letters, or ids of tasks
    letters: Vec<String>,
    #[command(flatten)]
    which: Which,
    /// All of them, or all that fit
    #[arg(long, conflicts_with = "letters")]
    all: bool,
    /// Do not ask
    #[arg(short = 'y', long)]
    yes: bool,
}

impl Dead {
    pub(super) async fn run(self, common: &Common) -> Result<ExitCode, Stopped> {
        let settings = common.settings()?;
        let broker = common.broker(&settings).await?;
        let desk = Desk { broker, settings };
        match self {
            Self::List {
                which,
                limit,
                all,
                json,
            } => desk.list(&which, if all { usize::MAX } else { limit }, json).await,
            Self::Show {
                letter,
                queue,
                json,
                raw,
            } => {
                let which = Which {
                    queue,
                    ..Which::default()
                };
                let (queue, found) = desk.one(&letter, &which).await?;
                show(&queue, &found, json, raw)
            }
            Self::Requeue(change) => desk.change(change, true).await,
            Self::Drop(change) => desk.change(change, false).await,
        }
    }
}

impl Which {
    fn takes(&self, found: &Found) -> bool {
        let letter = &found.letter;
        let age = letter.at().map(|at| clock::until(clock::now(), at));
        let fits = |wanted: &Option<Duration>, test: fn(Duration, Duration) -> bool| match (wanted, age) {
            (None, _) => true,
            (Some(wanted), Some(age)) => letter.time > 0.0 && test(age, *wanted),
            (Some(_), None) => false,
        };
        self.task.as_ref().is_none_or(|task| letter.task.as_ref() == Some(task))
            && self
                .reason
                .as_ref()
                .is_none_or(|text| letter.reason.contains(text.as_str()))
            && fits(&self.older, |age, wanted| age > wanted)
            && fits(&self.newer, |age, wanted| age < wanted)
    }
}

struct Desk {
    broker: Broker,
    settings: Settings,
}

impl Desk {
    /// The queues that have letters, of those that are meant.
    async fn queues(&self, which: &Which) -> Result<Vec<DeadQueue>, Stopped> {
        let names: BTreeSet<String> = if which.queue.is_empty() {
            match self.broker.scan_dead_queues().await {
                Ok(names) => names,
                // An ACL without SCAN: those we know of.
                Err(error) if !error.is_transient() => self.settings.named_queues(),
                Err(error) => return Err(world(error)),
            }
        } else {
            which.queue.iter().cloned().collect()
        };
        self.broker
            .dead_queues(names.iter().map(String::as_str))
            .await
            .map_err(world)
    }

    /// Calls `each` with every letter that is meant, until it says that it has enough.
    async fn walk(
        &self,
        which: &Which,
        whole: usize,
        mut each: impl FnMut(&str, Found) -> bool,
    ) -> Result<(), Stopped> {
        for queue in self.queues(which).await? {
            let mut from = 0;
            loop {
                let page = self.broker.dead_letters(&queue.name, from, PAGE, whole).await;
                let page = page.map_err(world)?;
                from += page.len();
                let last = page.len() < PAGE;
                for found in page {
                    if which.takes(&found) && !each(&queue.name, found) {
                        return Ok(());
                    }
                }
                if last {
                    break;
                }
            }
        }
        Ok(())
    }

    async fn list(&self, which: &Which, limit: usize, json: bool) -> Result<ExitCode, Stopped> {
        let (mut shown, mut more) = (0, false);
        self.walk(which, HEAD, |queue, found| {
            more = shown == limit;
            if !more {
                shown += 1;
                if json {
                    println!("{}", object(queue, &found));
                } else {
                    println!("{}", line(queue, &found));
                }
            }
            !more
        })
        .await?;
        if more {
            eprintln!("orchestra: there are more; --all lists them");
        } else if shown == 0 && !json {
            eprintln!("orchestra: no dead letters");
        }
        Ok(ExitCode::SUCCESS)
    }

    /// The letter of that handle, or the newest of the task of that id.
    async fn one(&self, name: &str, which: &Which) -> Result<(String, Found), Stopped> {
        let mut place = None;
        self.walk(which, HEAD, |queue, found| {
            let is_it = found.handle == name;
            if is_it || found.letter.id.as_deref() == Some(name) {
                place = Some((queue.to_owned(), found));
            }
            !is_it
        })
        .await?;
        let (queue, found) = place.ok_or_else(|| gone(name))?;
        let found = self.whole(&queue, found).await?.ok_or_else(|| gone(name))?;
        Ok((queue, found))
    }

    /// The letter with all its bytes, if it is still there.
    async fn whole(&self, queue: &str, found: Found) -> Result<Option<Found>, Stopped> {
        if found.is_whole() {
            return Ok(Some(found));
        }
        let mut from = 0;
        loop {
            let page = self.broker.dead_letters(queue, from, PAGE, HEAD).await.map_err(world)?;
            let Some(at) = page.iter().position(|other| other.handle == found.handle) else {
                if page.len() < PAGE {
                    return Ok(None);
                }
                from += PAGE;
                continue;
            };
            let it = self.broker.dead_letters(queue, from + at, 1, found.bytes).await;
            return Ok(it
                .map_err(world)?
                .pop()
                .filter(|it| it.handle == found.handle && it.is_whole()));
        }
    }

    async fn change(&self, change: Change, requeue: bool) -> Result<ExitCode, Stopped> {
        let Change {
            letters,
            which,
            all,
            yes,
        } = change;
        let what = if requeue { "requeue" } else { "drop" };
        let narrowed = which.task.is_some() || which.reason.is_some() || which.older.or(which.newer).is_some();
        if letters.is_empty() && !all && !narrowed {
            return Err(usage(format!(
                "which? name handles or ids (orchestra dead list shows them), --task, --reason, --older, --newer or --all \
                 to {what}"
            )));
        }
        // Their handles alone: there may be very many, and large ones.
        let mut chosen: BTreeMap<String, Handles> = BTreeMap::new();
        let mut missing: BTreeSet<&str> = letters.iter().map(String::as_str).collect();
        self.walk(&which, HEAD, |queue, found| {
            let names = [Some(found.handle.as_str()), found.letter.id.as_deref()];
            let named = names
                .into_iter()
                .flatten()
                .find(|name| letters.iter().any(|word| word == name));
            if let Some(name) = named {
                missing.remove(name);
            }
            if letters.is_empty() || named.is_some() {
                *chosen
                    .entry(queue.to_owned())
                    .or_default()
                    .entry(found.handle)
                    .or_default() += 1;
            }
            true
        })
        .await?;
        if let Some(name) = missing.first() {
            return Err(gone(name));
        }
        let count = chosen.values().flat_map(BTreeMap::values).sum();
        let sure = yes || chosen.is_empty() || (requeue && !letters.is_empty());
        if !sure && !confirmed(what, count)? {
            return Err(world("nothing was changed"));
        }
        let (mut done, mut queues) = (0, BTreeSet::new());
        for (queue, handles) in chosen {
            let changed = self.change_in(&queue, handles, requeue).await?;
            done += changed;
            if changed > 0 {
                queues.insert(plain(&queue));
            }
        }
        let queues = queues.into_iter().collect::<Vec<_>>().join(", ");
        let of = if done == 0 {
            ""
        } else {
            if requeue { " to " } else { " of " }
        };
        println!("{}ed {done}{of}{queues}", if requeue { "requeu" } else { "dropp" });
        Ok(ExitCode::SUCCESS)
    }
}

impl Desk {
    /// Changes the letters of a queue that have these handles, page by page; how many there still were.
    async fn change_in(&self, queue: &str, mut handles: Handles, requeue: bool) -> Result<usize, Stopped> {
        let (mut done, mut from) = (0, 0);
        while !handles.is_empty() {
            let page = self.broker.dead_letters(queue, from, PAGE, HEAD).await.map_err(world)?;
            let last = page.len() < PAGE;
            from += page.len();
            for found in page {
                match handles.get_mut(&found.handle) {
                    Some(1) => drop(handles.remove(&found.handle)),
                    Some(count) => *count -= 1,
                    None => continue,
                }
                // Somebody else may have been quicker.
                let Some(found) = self.whole(queue, found).await? else {
                    continue;
                };
                let changed = if requeue {
                    self.broker.requeue_dead(queue, &found).await
                } else {
                    self.broker.drop_dead(queue, &found).await
                };
                if changed.map_err(world)? {
                    done += 1;
                    // Those behind it have moved up.
                    from -= 1;
                }
            }
            if last {
                break;
            }
        }
        Ok(done)
    }
}

fn gone(name: &str) -> Stopped {
    usage(format!(
        "there is no dead letter {name:?}; orchestra dead list shows them"
    ))
}

fn confirmed(what: &str, count: usize) -> Result<bool, Stopped> {
    if !std::io::stdin().is_terminal() {
        return Err(usage(format!(
            "this would {what} {}; say --yes to do it",
            crate::text::count(count, "dead letter")
        )));
    }
    yes(&format!("{what} {}?", crate::text::count(count, "dead letter")))
}

/// What a person answers to a question.
pub(super) fn yes(question: &str) -> Result<bool, Stopped> {
    eprint!("{question} [y/N] ");
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).map_err(world)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn object(queue: &str, found: &Found) -> Value {
    let letter = &found.letter;
    json!({
        "handle": found.handle,
        "queue": queue,
        "task": letter.task,
        "id": letter.id,
        "reason": letter.reason,
        "worker": letter.worker,
        "time": at(found),
        "bytes": found.bytes,
    })
}

fn line(queue: &str, found: &Found) -> String {
    let letter = &found.letter;
    let (task, id) = (
        letter.task.as_deref().unwrap_or("-"),
        letter.id.as_deref().unwrap_or("-"),
    );
    let when = at(found).unwrap_or_else(|| "-".into());
    plain(&format!(
        "{}  {when}  {queue}  {task}  {id}  {}",
        found.handle, letter.reason
    ))
}

fn at(found: &Found) -> Option<String> {
    found.letter.at().filter(|_| found.letter.time > 0.0).map(clock::iso)
}

fn show(queue: &str, found: &Found, json: bool, raw: bool) -> Result<ExitCode, Stopped> {
    let message = found.message();
    if raw {
        super::out::bytes(message);
        return Ok(ExitCode::SUCCESS);
    }
    let text = String::from_utf8_lossy(message);
    if json {
        let mut shown = object(queue, found);
        shown["message"] = text.into();
        println!("{shown}");
        return Ok(ExitCode::SUCCESS);
    }
    let letter = &found.letter;
    let or = |text: Option<&str>| plain(text.filter(|text| !text.is_empty()).unwrap_or("-"));
    println!("handle:   {}", found.handle);
    println!("reason:   {}", plain(&letter.reason));
    println!("queue:    {}", plain(queue));
    println!("worker:   {}", or(Some(&letter.worker)));
    println!("time:     {}", or(at(found).as_deref()));
    println!("task:     {}", or(letter.task.as_deref()));
    println!("id:       {}", or(letter.id.as_deref()));
    let beginning: String = text.chars().take(SHOWN).collect();
    let rest = if beginning.len() < text.len() {
        "… (--raw prints all)"
    } else {
        ""
    };
    println!("message:  {} bytes\n{}{rest}", message.len(), plain(&beginning));
    Ok(ExitCode::SUCCESS)
}

/// `90s`, `15m`, `2h`, `7d`; a number alone is seconds.
fn age(text: &str) -> Result<Duration, String> {
    let (number, unit) = match text.strip_suffix(['s', 'm', 'h', 'd']) {
        Some(number) => (number, text.as_bytes()[text.len() - 1]),
        None => (text, b's'),
    };
    let factor = match unit {
        b'm' => 60.0,
        b'h' => 3600.0,
        b'd' => 86_400.0,
        _ => 1.0,
    };
    let seconds = number.parse::<f64>().map(|number| number * factor);
    let age = seconds
        .ok()
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    age.ok_or_else(|| format!("{text:?} is no age; write 90s, 15m, 2h or 7d"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_read() {
        let read = |text| age(text).map(|age| age.as_secs());
        assert_eq!(
            ["90", "90s", "1.5m", "2h", "7d"].map(read),
            [90, 90, 90, 7200, 604_800].map(Ok)
        );
        for wrong in ["", "h", "-1s", "1w", "NaN", "infd"] {
            assert!(age(wrong).is_err(), "{wrong}");
        }
    }
}
