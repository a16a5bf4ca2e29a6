//! What is known of the cluster, from answers and events. No terminal and no Redis here.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use ratatui::widgets::TableState;
use serde_json::Value;

use super::watch::{News, Round};
use crate::clock::{self, Instant, Timestamp};
use crate::wire::Heard;

/// Failures that are shown.
const FAILURES: usize = 50;
/// Tasks whose names are remembered, for failures.
const NAMES: usize = 5000;
/// A worker that says nothing for so many heartbeats is gone.
const BEATS: f64 = 3.0;

/// A worker.
#[derive(Default)]
pub(super) struct Worker {
    pub places: u64,
    pub running: usize,
    pub done: u64,
    pub rate: f64,
    pub load: Option<f64>,
    pub software: String,
    pub uptime: u64,
    pub silent: bool,
    /// It has told more than that it is there.
    pub answered: bool,
    /// Its queues.
    queues: Vec<String>,
    /// What it has used models for.
    models: BTreeMap<String, Usage>,
    heard: Option<Instant>,
    freq: f64,
}

/// A queue.
#[derive(Default)]
pub(super) struct Queue {
    pub waiting: u64,
    pub consumers: usize,
}

/// A model, on all workers together.
#[derive(Clone, Default)]
pub(super) struct Usage {
    pub running: u64,
    pub succeeded: u64,
    pub failed: u64,
    pub read: u64,
    pub written: u64,
    pieces: u64,
    pub tokens_per_second: f64,
}

/// A task that runs.
#[derive(Clone, Debug, Default)]
pub(super) struct Task {
    pub id: String,
    pub name: String,
    pub worker: String,
    pub since: Option<f64>,
    pub args: String,
    pub kwargs: String,
    pub queue: String,
}

/// What tasks are sorted by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Sort {
    #[default]
    Age,
    Name,
    Worker,
}

impl Sort {
    pub(super) fn next(self) -> Self {
        match self {
            Self::Age => Self::Name,
            Self::Name => Self::Worker,
            Self::Worker => Self::Age,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Age => "age",
            Self::Name => "task",
            Self::Worker => "worker",
        }
    }
}

/// What lies above the rest.
#[derive(Debug, Default)]
pub(super) enum Popup {
    #[default]
    None,
    Help,
    Task(Task),
    Revoke(Task),
}

pub(super) struct Model {
    pub broker: String,
    pub now: Timestamp,
    instant: Instant,
    pub workers: BTreeMap<String, Worker>,
    pub queues: BTreeMap<String, Queue>,
    pub models: BTreeMap<String, Usage>,
    tasks: Vec<Task>,
    pub failures: VecDeque<String>,
    pub failed: u64,
    pub retried: u64,
    pub events: bool,
    pub trouble: Option<String>,
    pub notice: Option<(String, Instant)>,
    pub sort: Sort,
    pub popup: Popup,
    pub table: TableState,
    pub rounds: u64,
    last_round: Option<Instant>,
    names: HashMap<String, String>,
    order: VecDeque<String>,
}

impl Model {
    pub(super) fn new(broker: String) -> Self {
        Self {
            broker,
            now: clock::now(),
            instant: clock::instant(),
            workers: BTreeMap::new(),
            queues: BTreeMap::new(),
            models: BTreeMap::new(),
            tasks: Vec::new(),
            failures: VecDeque::new(),
            failed: 0,
            retried: 0,
            events: false,
            trouble: None,
            notice: None,
            sort: Sort::default(),
            popup: Popup::default(),
            table: TableState::default(),
            rounds: 0,
            last_round: None,
            names: HashMap::new(),
            order: VecDeque::new(),
        }
    }

    /// Time goes on.
    pub(super) fn at(&mut self, now: Timestamp, instant: Instant) {
        (self.now, self.instant) = (now, instant);
        for worker in self.workers.values_mut() {
            let patience = Duration::from_secs_f64((worker.freq.max(1.0) * BEATS).min(3600.0));
            worker.silent = worker
                .heard
                .is_none_or(|heard| instant.saturating_duration_since(heard) > patience + Duration::from_secs(5));
        }
        if self.notice.as_ref().is_some_and(|(_, until)| *until < instant) {
            self.notice = None;
        }
    }

    /// Says something for a few seconds.
    pub(super) fn note(&mut self, text: String) {
        self.notice = Some((text, self.instant + Duration::from_secs(4)));
    }

    pub(super) fn hear(&mut self, news: News) {
        match news {
            News::Round(round) => self.on_round(&round),
            News::Event(event) => self.on_event(&event),
            News::Trouble(text) => self.trouble = Some(text),
        }
    }

    fn on_round(&mut self, round: &Round) {
        let now = clock::instant();
        let passed = self
            .last_round
            .map(|last| now.saturating_duration_since(last).as_secs_f64());
        let per_second = |new: u64, old: u64| match passed {
            #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
            Some(passed) if passed > 0.0 => new.saturating_sub(old) as f64 / passed,
            _ => 0.0,
        };
        self.trouble = None;
        self.rounds += 1;
        let mut models: BTreeMap<String, Usage> = BTreeMap::new();
        for (name, stats) in &round.stats {
            let worker = self.workers.entry(name.clone()).or_default();
            let number = |pointer: &str| stats.pointer(pointer).and_then(Value::as_u64).unwrap_or(0);
            let totals = stats.get("total").and_then(Value::as_object);
            let done = totals
                .into_iter()
                .flat_map(|totals| totals.values())
                .filter_map(Value::as_u64)
                .sum();
            worker.rate = per_second(done, worker.done.min(done));
            if worker.heard.is_none() {
                worker.rate = 0.0;
            }
            worker.done = done;
            worker.answered = true;
            worker.models.clear();
            worker.places = number("/pool/max-concurrency");
            worker.uptime = number("/uptime");
            worker.heard = Some(now);
            for (model, numbers) in stats.get("models").and_then(Value::as_object).into_iter().flatten() {
                let number = |name: &str| numbers.get(name).and_then(Value::as_u64).unwrap_or(0);
                let usage = Usage {
                    running: number("running"),
                    succeeded: number("succeeded"),
                    failed: number("failed"),
                    read: number("prompt_tokens"),
                    written: number("completion_tokens"),
                    pieces: number("pieces"),
                    tokens_per_second: 0.0,
                };
                worker.models.insert(model.clone(), usage);
            }
        }
        // Who was too slow to answer this time is shown as it was the last time.
        for (model, used) in self.workers.values().flat_map(|worker| &worker.models) {
            let usage = models.entry(model.clone()).or_default();
            usage.running += used.running;
            usage.succeeded += used.succeeded;
            usage.failed += used.failed;
            usage.read += used.read;
            usage.written += used.written;
            usage.pieces += used.pieces;
        }
        for (name, usage) in &mut models {
            let before = self.models.get(name).map_or(usage.pieces, |before| before.pieces);
            usage.tokens_per_second = per_second(usage.pieces, before.min(usage.pieces));
        }
        self.models = models;
        // Who does not answer and sends no heartbeats any more has gone without a word.
        let gone = Duration::from_secs(60);
        self.workers.retain(|_, worker| {
            worker
                .heard
                .is_some_and(|heard| now.saturating_duration_since(heard) < gone)
        });
        self.last_round = Some(now);
        self.read_tasks(round);
        for (worker, queues) in &round.queues {
            if let Some(worker) = self.workers.get_mut(worker) {
                let names = queues.as_array().into_iter().flatten();
                let names = names.filter_map(|queue| queue.get("name")?.as_str());
                worker.queues = names.map(str::to_owned).collect();
            }
        }
        let before = std::mem::take(&mut self.queues);
        for name in self.workers.values().flat_map(|worker| &worker.queues) {
            let queue = self.queues.entry(name.clone()).or_default();
            queue.consumers += 1;
            queue.waiting = before.get(name).map_or(0, |before| before.waiting);
        }
        for (name, waiting) in &round.lengths {
            self.queues.entry(name.clone()).or_default().waiting = *waiting;
        }
    }

    fn read_tasks(&mut self, round: &Round) {
        let chosen = self.selected().map(|task| task.id);
        self.tasks
            .retain(|task| self.workers.contains_key(&task.worker) && !round.active.contains_key(&task.worker));
        for (worker, tasks) in &round.active {
            let tasks = tasks.as_array().map(Vec::as_slice).unwrap_or_default();
            if let Some(known) = self.workers.get_mut(worker) {
                known.running = tasks.len();
            }
            for task in tasks {
                let text = |pointer: &str| match task.pointer(pointer) {
                    Some(Value::String(text)) => text.clone(),
                    None | Some(Value::Null) => String::new(),
                    Some(other) => other.to_string(),
                };
                self.tasks.push(Task {
                    id: text("/id"),
                    name: text("/name"),
                    worker: worker.clone(),
                    since: task.get("time_start").and_then(Value::as_f64),
                    args: text("/args"),
                    kwargs: text("/kwargs"),
                    queue: text("/delivery_info/routing_key"),
                });
            }
        }
        let tasks = self.tasks();
        let at = chosen.and_then(|id| tasks.iter().position(|task| task.id == id));
        let last = tasks.len().checked_sub(1);
        let selected = at.or(self.table.selected()).and_then(|at| Some(at.min(last?)));
        self.table.select(selected);
    }

    /// The tasks that run, sorted.
    pub(super) fn tasks(&self) -> Vec<&Task> {
        let mut tasks: Vec<&Task> = self.tasks.iter().collect();
        tasks.sort_by(|a, b| {
            let age = a.since.unwrap_or(f64::MAX).total_cmp(&b.since.unwrap_or(f64::MAX));
            match self.sort {
                Sort::Age => age,
                Sort::Name => a.name.cmp(&b.name).then(age),
                Sort::Worker => a.worker.cmp(&b.worker).then(age),
            }
            .then_with(|| a.id.cmp(&b.id))
        });
        tasks
    }

    /// The task that is chosen.
    pub(super) fn selected(&self) -> Option<Task> {
        let at = self.table.selected()?;
        self.tasks().get(at).map(|task| (*task).clone())
    }

    /// Chooses another task.
    pub(super) fn select(&mut self, by: isize) {
        let Some(last) = self.tasks.len().checked_sub(1) else {
            return self.table.select(None);
        };
        let at = self.table.selected().map_or(0, |at| at.saturating_add_signed(by));
        self.table.select(Some(at.min(last)));
    }

    fn on_event(&mut self, event: &Heard) {
        let text = |name: &str| event.fields.get(name).and_then(Value::as_str).unwrap_or_default();
        if event.name.starts_with("worker-") {
            let number = |name: &str| event.fields.get(name).and_then(Value::as_f64);
            if event.name == "worker-offline" {
                self.workers.remove(&event.hostname);
                return;
            }
            let worker = self.workers.entry(event.hostname.clone()).or_default();
            worker.heard = Some(clock::instant());
            worker.freq = number("freq").unwrap_or(2.0);
            worker.software = format!("{} {}", text("sw_ident"), text("sw_ver"));
            let loads = event.fields.get("loadavg").and_then(Value::as_array);
            worker.load = loads.and_then(|loads| loads.first()?.as_f64()).or(worker.load);
            return;
        }
        if !event.name.starts_with("task-") || event.name == "task-sent" {
            return;
        }
        self.events = true;
        let id = text("uuid");
        match event.name.as_str() {
            "task-received" => self.learn(id, text("name")),
            "task-failed" => {
                self.failed += 1;
                let name = self.names.get(id).map_or("?", String::as_str);
                let time = clock::local_time(self.now);
                let time = time.split('.').next().unwrap_or_default();
                // What it says is worth more room than the whole id.
                let short: String = id.chars().take(8).collect();
                let line = format!("{time} {name}[{short}] {}", text("exception"));
                self.failures.push_front(line);
                self.failures.truncate(FAILURES);
            }
            "task-retried" => self.retried += 1,
            _ => {}
        }
    }

    fn learn(&mut self, id: &str, name: &str) {
        if self.names.insert(id.to_owned(), name.to_owned()).is_none() {
            self.order.push_back(id.to_owned());
        }
        if self.order.len() > NAMES
            && let Some(oldest) = self.order.pop_front()
        {
            self.names.remove(&oldest);
        }
    }

    /// Seconds since a task began.
    pub(super) fn age(&self, task: &Task) -> Option<f64> {
        Some((clock::epoch_seconds(self.now) - task.since?).max(0.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_failures_are_those_of_the_newest() {
        let mut model = Model::new(String::new());
        for n in 0..NAMES + 5 {
            model.learn(&n.to_string(), "t");
        }
        assert_eq!((model.names.len(), model.order.len()), (NAMES, NAMES));
        for n in 0..FAILURES + 5 {
            let fields = serde_json::json!({"uuid": n.to_string(), "exception": format!("error {n}")});
            let event = Heard {
                name: "task-failed".into(),
                fields: fields.as_object().cloned().unwrap(),
                ..Heard::default()
            };
            model.hear(News::Event(event));
        }
        assert_eq!(model.failures.len(), FAILURES);
        assert!(model.failures[0].ends_with(&format!("error {}", FAILURES + 4)));
    }
}
