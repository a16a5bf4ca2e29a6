//! A worker with the tasks that measuring tools call: Celery's own integration suite, fault injection, a probe of
//! Flower, a benchmark, the differential test. The first word of the command line chooses which; the rest is that of
//! `orchestra-worker`.
//!
//! ```sh
//! cargo run --release --example conformance_worker -- suite --broker redis://127.0.0.1:6379/0 -c 1
//! ```
//!
//! `flower` runs its tasks in a pool of processes, as `celery worker` does, unless `-P` says otherwise: the probe asks
//! what comes of a restart of the pool, and a pool of threads has nothing that could be restarted.

#![allow(clippy::disallowed_names, reason = "names of parameters are those of the suite")]

mod bench;
mod differential;
mod ends;
mod faults;
mod flower;
mod functions;
mod monitor;
mod python;
mod store;
mod suite;

use std::process::ExitCode;

use functions::Functions;
use orchestra::task::RegisterError;

fn main() -> ExitCode {
    let mut words: Vec<String> = std::env::args().collect();
    let profile = if words.len() > 1 {
        words.remove(1)
    } else {
        String::new()
    };
    let register: fn(&mut Functions<'_>) -> Result<(), RegisterError> = match profile.as_str() {
        "suite" => suite::register,
        "faults" => faults::register,
        "flower" => {
            let names_pool = |word: &String| word.starts_with("-P") || word.starts_with("--pool");
            if !words.iter().any(names_pool) {
                words.extend(["--pool", "prefork"].map(str::to_owned));
            }
            flower::register
        }
        "bench" => bench::register,
        "differential" => differential::register,
        "monitor" => monitor::register,
        "ends" => ends::register,
        _ => {
            eprintln!(
                "conformance_worker: the first word must be suite, faults, flower, bench, differential, monitor or ends"
            );
            return ExitCode::from(2);
        }
    };
    orchestra::cli::worker_main_from(words, |registry| register(&mut Functions::new(registry)))
}
