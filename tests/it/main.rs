//! The integration tests: real processes, a real Redis for each test, and the stock Python client where it matters.
//!
//! They need `redis-server` on PATH, a Python with `celery[redis]` (`.venv` beside the package, or
//! `ORCHESTRA_TEST_PYTHON`), and one with the oldest Celery (`.venv-oldest`, or `ORCHESTRA_TEST_OLDEST_PYTHON`).
//! `make test` installs them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "tests fail loudly and may block"
)]

mod ai;
mod batch;
mod beat;
mod bounds;
mod broker;
mod cache;
mod canvas;
mod chaos;
mod cli;
mod cluster;
mod contract;
mod control;
mod dead;
mod deliveries;
mod deploy;
mod dice;
mod differential;
mod docs;
mod embeddings;
mod ends;
mod errors;
mod examples;
mod execution;
mod fairness;
mod faults;
mod fleet;
mod fleet_rules;
mod fuzz;
mod garbage;
mod kept;
mod labels;
mod layers;
mod leases;
mod limits;
mod loss;
mod messages;
mod misbehaviour;
mod monitor;
mod openai;
mod processes;
mod proxy;
mod python;
mod python_oldest;
mod queues;
mod refused;
mod results;
mod revokes;
mod rights;
mod routing;
mod rows;
mod serializers;
mod states;
mod step_limits;
mod support;
mod systemd;
mod tally;
mod templates;
mod terminal;
mod transport;
mod unique;
mod wallclock;
mod worker;
