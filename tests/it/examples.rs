//! The examples, run as their readers run them.

use std::process::Command;

use crate::support::{Redis, Worker, program};

#[test]
fn the_producer_and_the_worker_of_the_examples_work_together() {
    let redis = Redis::start();
    let _worker = Worker::start(&redis, &[]);
    let out = Command::new(program("producer"))
        .env("CELERY_BROKER_URL", redis.url())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success(), "{text}{}", String::from_utf8_lossy(&out.stderr));
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[..2], ["2 + 3 = 5", "0 + 1 + … + 99 = 4950"]);
    assert!(lines[2].starts_with("failed: ValueError: hello.add(): "), "{text}");
    assert_eq!(lines[3], "revoked: terminated");
}
