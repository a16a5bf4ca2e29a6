//! The integration tests: real processes, a real Redis for each test, and the stock Python client where it matters.
//!
//! They need `redis-server` on PATH, and a Python with `celery[redis]` (`.venv` beside the package, or
//! `ORCHESTRA_TEST_PYTHON`). `make test` installs both.

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
mod canvas;
mod cli;
mod cluster;
mod contract;
mod control;
mod differential;
mod errors;
mod examples;
mod faults;
mod fleet;
mod layers;
mod loss;
mod messages;
mod python;
mod routing;
mod serializers;
mod support;
mod templates;
mod transport;
mod worker;
