# The two commands of the README, and what they are made of. Everything they need they install; what they start they stop.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# rustup puts Cargo there, and only later shells have it on their path.
export PATH := $(PATH):$(or $(CARGO_HOME),$(HOME)/.cargo)/bin

.PHONY: help setup demo demo-check test test-rust test-python test-cost bench test-ollama rusty-celery valkey differential chaos fuzz soak sbom celery-suite fmt lint audit clean

help: ## What there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: ## Install what the others need, by package name
	@tools/setup/debian.sh
	@tools/setup/python.sh
	@tools/setup/oldest.sh

demo: setup ## Run the main job: Redis, a model, the worker, Flower, tasks from Python. Stays until Ctrl-C
	@tools/demo/demo.sh

demo-check: setup ## The same, checked, without staying
	@tools/demo/demo.sh --check

test: setup lint test-rust test-python ## Everything: format, lints, Rust, Python, docs
	@echo "make test: all good"

# The tests mostly wait for processes: two for each core.
test-rust: setup
	cargo build --locked --workspace --bins --examples
	RUST_TEST_THREADS=$${RUST_TEST_THREADS:-$$((2 * $$(nproc)))} cargo test --locked --workspace

# With the examples, as above: without them the features of some packages are others, and all is built once more.
test-python: setup
	cargo build --locked --workspace --bins --examples
	cd python-client && ../.venv/bin/python -m pytest -q

test-cost: setup ## Instructions and allocations of the pure parts of a task, against their bounds
	cargo build --locked --release --workspace --bins
	target/release/orchestra-cost --check

ROWS ?=
ROUNDS ?= 5
SCALE ?= 1

bench: setup ## Our worker and Celery's side by side (ROWS: a part of a row's name, ROUNDS, SCALE): docs/measurements.md
	cargo build --locked --profile dist --example conformance_worker --example flood --example slow_http
	.venv/bin/python tools/bench/run.py --rows '$(ROWS)' --rounds $(ROUNDS) --scale $(SCALE)

test-ollama: setup ## The contract with Ollama, against the server at OLLAMA_HOST
	@: "$${OLLAMA_HOST:?say which server: OLLAMA_HOST=http://127.0.0.1:11434 make test-ollama}"
	cargo build --locked --workspace --bins --examples
	OLLAMA_CONTRACT_HOST="$$OLLAMA_HOST" cargo test --locked --test it contract -- --nocapture

rusty-celery: setup ## The feature of that name: tasks of the `celery` crate in our worker. Builds that crate
	cargo build --locked --features rusty-celery --example rusty_celery
	cargo test --locked --features rusty-celery --test rusty_celery

valkey: setup ## The tests of transport, worker, canvas and results against Valkey (that of PyPI has no TLS)
	@tools/setup/valkey.sh
	cargo build --locked --workspace --bins --examples
	PATH="$(CURDIR)/target/valkey/bin:$$PATH" cargo test --locked --test it -- transport:: worker:: routing:: queues:: loss:: canvas:: results:: control:: cluster:: --skip tls

N ?= 200
SEED ?= 1

differential: setup ## N random canvases, from SEED, run by Python's worker, by ours, by both: they must end alike
	cargo build --locked --example conformance_worker
	.venv/bin/python tests/differential/run.py --number $(N) --seed $(SEED)

MINUTES ?= 10
RATE ?= 350

chaos: setup ## Faults from SEED for MINUTES at workers, connections and the broker; every task is counted
	cargo build --locked --workspace --bins --examples
	CHAOS_SEED=$(SEED) CHAOS_MINUTES=$(MINUTES) cargo test --locked --test it chaos -- --nocapture

fuzz: setup ## Each of the sixteen fuzz targets for MINUTES: with cargo-fuzz where it is there, else with changed seeds alone
	tools/fuzz.sh $(MINUTES)

soak: setup ## Two workers under everything a Celery app does, RATE tasks a second for MINUTES: each result, memory, open files
	cargo build --locked --profile dist --example conformance_worker
	.venv/bin/python tools/measure/soak.py $(MINUTES) $(RATE)

sbom: ## What is linked into the programs, as CycloneDX: orchestra.cdx.json
	tools/sbom.py >orchestra.cdx.json

celery-suite: setup ## Celery's own integration suite, downloaded, against our worker: N of M
	cargo build --locked --example conformance_worker
	.venv/bin/python tests/celery_suite/run.py

fmt: ## Format everything
	cargo fmt --all

lint: setup ## Formatting and lints, as errors
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	cargo check --locked --lib --no-default-features

audit: ## Licences, advisories, duplicates (needs cargo-deny)
	cargo deny check

clean: ## Remove everything that was built or installed here
	rm -rf target .venv .venv-oldest .demo
