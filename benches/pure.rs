//! What the pure parts of a task cost: nanoseconds, and under valgrind instructions and allocations, which are the same
//! on every machine and have bounds.
//!
//! ```sh
//! cargo run --release --bin orchestra-cost               # nanoseconds
//! cargo run --release --bin orchestra-cost -- --check    # instructions and allocations against their bounds
//! ```

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "it fails loudly")]

use std::hint::black_box;
use std::process::{Command, ExitCode};
use std::time::Instant;

use base64::Engine as _;
use bytes::Bytes;
use futures_util::FutureExt;
use orchestra::task::{Context, Details, Failure, Registry, Task};
use orchestra::wire::{Json, Limits, Message, Record, State, decode};
use orchestra::worker::Way;
use serde::Deserialize;

/// A part, and the most instructions and allocations that one turn of it may take.
struct Part {
    name: &'static str,
    instructions: u64,
    allocations: u64,
    make: fn() -> Box<dyn FnMut()>,
}

/// A bound is a sixth above what was measured (x86_64, profile `release`), so that another libc passes and a pass over
/// the message more does not.
const PARTS: [Part; 6] = [
    part("decode a message", 31_500, 18, || {
        let raw = message("[2, 3]");
        Box::new(move || drop(black_box(decoded(&raw))))
    }),
    // Where there are no vector instructions for base64; where there are it takes half.
    part("decode a message of 100 KB", 2_080_000, 18, || {
        let raw = message(&format!("[\"{}\", 3]", "x".repeat(100_000)));
        Box::new(move || drop(black_box(decoded(&raw))))
    }),
    part("bind its arguments and run it", 4_700, 9, || {
        let (registry, message) = (registry(), decoded(&message("[2, 3]")));
        let notes = tokio::sync::mpsc::channel(1).0;
        let context = Context::new(Details::default(), notes, None);
        Box::new(move || {
            let run = registry.get("bench.add").unwrap().start(&message.body, context.clone());
            assert!(black_box(run.ok().and_then(FutureExt::now_or_never)).is_some());
        })
    }),
    part("encode its result", 3_800, 4, || {
        let value = Json::number(5);
        Box::new(move || {
            let date = orchestra::clock::iso(orchestra::clock::now());
            let record = Record::new("af65a9d9-2ba5-4341-9f5e-b0d47b5f7ac9", &State::Success, &value, date);
            drop(black_box(serde_json::to_vec(&record)));
        })
    }),
    part("all of it, with its steps", 51_000, 38, || walk(false)),
    part("all of it, with events", 65_500, 43, || walk(true)),
];

const fn part(name: &'static str, instructions: u64, allocations: u64, make: fn() -> Box<dyn FnMut()>) -> Part {
    Part {
        name,
        instructions,
        allocations,
        make,
    }
}

#[derive(Deserialize)]
struct Add {
    x: Json,
    y: i64,
}

impl Task for Add {
    const NAME: &'static str = "bench.add";
    type Env = ();
    type Output = i64;

    async fn run(self, (): (), _: Context) -> Result<i64, Failure> {
        Ok(self.x.parse::<i64>().unwrap_or(0) + self.y)
    }
}

fn registry() -> Registry {
    let mut registry = Registry::new();
    registry.register::<Add>(()).unwrap();
    registry
}

fn walk(events: bool) -> Box<dyn FnMut()> {
    let mut way = Way::new(registry(), events).unwrap();
    let raw = message("[2, 3]");
    Box::new(move || assert!(black_box(way.walk(&raw)) >= 2))
}

fn decoded(raw: &Bytes) -> Message {
    decode(raw, &Limits::default()).unwrap()
}

/// A message as Celery 5.7 sends it.
fn message(args: &str) -> Bytes {
    let body = format!(r#"[{args}, {{}}, {{"callbacks": null, "errbacks": null, "chain": null, "chord": null}}]"#);
    let body = base64::engine::general_purpose::STANDARD.encode(body);
    let id = "af65a9d9-2ba5-4341-9f5e-b0d47b5f7ac9";
    let envelope = format!(
        r#"{{"body": "{body}", "content-encoding": "utf-8", "content-type": "application/json", "headers": {{"lang":
        "py", "task": "bench.add", "id": "{id}", "shadow": null, "eta": null, "expires": null, "group": null,
        "group_index": null, "retries": 0, "timelimit": [null, null], "root_id": "{id}", "parent_id": null,
        "argsrepr": "(2, 3)", "kwargsrepr": "{{}}", "origin": "gen4711@somewhere", "ignore_result": false,
        "replaced_task_nesting": 0, "stamped_headers": null, "stamps": {{}}}}, "properties": {{"correlation_id":
        "{id}", "reply_to": "38bae4ee-0f3c-3f9b-9d5b-9a1d2f2d0f5e", "delivery_mode": 2, "delivery_info":
        {{"exchange": "", "routing_key": "celery"}}, "priority": 0, "body_encoding": "base64", "delivery_tag":
        "0d0c5a0c-5a0e-4c3e-8f5c-0f3c3f9b9d5b"}}}}"#
    );
    envelope.into()
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--turn", part, turns] => {
            let mut part = (PARTS[part.parse::<usize>().unwrap()].make)();
            (0..turns.parse::<u32>().unwrap()).for_each(|_| part());
            ExitCode::SUCCESS
        }
        ["--check"] => check(),
        _ => {
            for part in &PARTS {
                println!("{:<32}{:>9.0} ns", part.name, nanoseconds(&mut *(part.make)()));
            }
            ExitCode::SUCCESS
        }
    }
}

/// The fastest of some rounds: what disturbs only adds.
fn nanoseconds(part: &mut dyn FnMut()) -> f64 {
    const TURNS: u32 = 2_000;
    let round = |part: &mut dyn FnMut()| {
        let began = Instant::now();
        (0..TURNS).for_each(|_| part());
        began.elapsed().as_nanos() as f64 / f64::from(TURNS)
    };
    (0..20).map(|_| round(part)).fold(f64::INFINITY, f64::min)
}

fn check() -> ExitCode {
    let mut over = false;
    println!(
        "{:<32}{:>14}{:>8}{:>13}{:>8}",
        "", "instructions", "most", "allocations", "most"
    );
    for (at, part) in PARTS.iter().enumerate() {
        let instructions = each(at, "callgrind", "--callgrind-out-file=/dev/null", "Collected : ");
        let allocations = each(at, "memcheck", "--leak-check=no", "total heap usage: ");
        println!(
            "{:<32}{instructions:>14}{:>8}{allocations:>13}{:>8}",
            part.name, part.instructions, part.allocations
        );
        over |= instructions > part.instructions || allocations > part.allocations;
    }
    if over {
        println!("a part costs more than its bound: find out why, or say so in benches/pure.rs");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// What a tool of valgrind counts for one turn: the difference of many turns and few.
fn each(part: usize, tool: &str, option: &str, before: &str) -> u64 {
    const MORE: u64 = 400;
    let count = |turns: u64| {
        let program = std::env::current_exe().unwrap();
        let output = Command::new("valgrind")
            .args([&format!("--tool={tool}"), option])
            .arg(program)
            .args(["--turn", &part.to_string(), &turns.to_string()])
            .output()
            .expect("valgrind is on PATH: tools/setup/debian.sh installs it");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        let number = text
            .split(before)
            .nth(1)
            .and_then(|rest| rest.split_whitespace().next());
        let number = number.unwrap_or_else(|| panic!("valgrind says {text}"));
        number.replace(',', "").parse::<u64>().unwrap()
    };
    (count(100 + MORE) - count(100)) / MORE
}
