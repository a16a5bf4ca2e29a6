//! Any sequence of inputs leads a request to one end: its delivery is spent exactly once, in the right order.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::value::RawValue;

use super::Options;
use super::request::{Delivery, Effect, Input, Outcome, Request, State};
use super::strategy;
use crate::broker::Tag;
use crate::clock;
use crate::conn::Endpoint;
use crate::task::{self, Context, Exception, Failure, Registry, Task};
use crate::wire::{Json, Signature};

/// Steps of one walk.
const STEPS: usize = 12;

#[derive(serde::Deserialize)]
struct Nothing;

impl Task for Nothing {
    const NAME: &'static str = "walk";
    type Env = ();
    type Output = ();

    async fn run(self, (): (), _: Context) -> Result<(), Failure> {
        Ok(())
    }
}

/// A request; with `follows` in a chord and with callbacks.
fn request(policy: task::Options, follows: bool) -> Request {
    let call = r#"{"task": "walk"}"#;
    let embed = if follows {
        format!(r#"{{"chord": {call}, "callbacks": [{call}], "errbacks": [{call}], "chain": [{call}]}}"#)
    } else {
        "null".to_owned()
    };
    let body = STANDARD.encode(format!("[[], {{}}, {embed}]"));
    let raw = format!(
        r#"{{"body": "{body}", "content-type": "application/json", "headers": {{"task": "walk", "id": "1", "lang": "py", "group": "g"}},
            "properties": {{"body_encoding": "base64", "delivery_info": {{"exchange": "", "routing_key": "celery"}}}}}}"#
    );
    Request {
        policy,
        is_last: rand::random_range(0..2) == 0,
        ..received(raw)
    }
}

/// A request with more headers, and these keyword arguments.
pub(super) fn request_with(headers: &str, kwargs: &str) -> Request {
    let body = STANDARD.encode(format!("[[], {kwargs}, null]"));
    let raw = format!(
        r#"{{"body": "{body}", "content-type": "application/json", "headers": {{"task": "walk", "id": "1"{headers}}},
            "properties": {{"body_encoding": "base64", "delivery_info": {{"exchange": "", "routing_key": "celery"}}}}}}"#
    );
    received(raw)
}

fn received(raw: String) -> Request {
    let mut registry = Registry::new();
    registry.register::<Nothing>(()).unwrap();
    let options = Options::new("w@h", Endpoint::parse("redis://localhost").unwrap());
    strategy::receive(Bytes::from(raw), &registry, &options).unwrap()
}

fn pick<T>(choices: Vec<T>) -> T {
    let at = rand::random_range(0..choices.len());
    choices.into_iter().nth(at).unwrap()
}

fn input(run: u64) -> Input {
    let failed = |failure| Input::Ended {
        run,
        outcome: Outcome::Failed(failure),
        runtime: Duration::ZERO,
    };
    let ended = |run, outcome| Input::Ended {
        run,
        outcome,
        runtime: Duration::ZERO,
    };
    let revoked = rand::random_range(0..6) == 0;
    pick(vec![
        Input::Received {
            revoked,
            waiting: super::request::Waiting::Nothing,
        },
        Input::Due { revoked },
        Input::RateLimited,
        Input::Waits {
            waiting: super::request::Waiting::Nothing,
        },
        Input::Other {
            outcome: Outcome::Success(RawValue::from_string("3".into()).unwrap()),
        },
        Input::Other {
            outcome: Outcome::Failed(Failure::Fail(Exception::value_error("x"))),
        },
        Input::Slot {
            run,
            since: clock::instant(),
            revoked,
            pid: 1,
        },
        ended(run, Outcome::Success(RawValue::from_string("1".into()).unwrap())),
        ended(run + 1, Outcome::Success(RawValue::from_string("2".into()).unwrap())),
        ended(
            run,
            Outcome::Done {
                result: Json::null(),
                followed: false,
            },
        ),
        ended(run, Outcome::HardLimit(Duration::from_secs(1))),
        ended(run, Outcome::SoftLimit),
        ended(run, Outcome::Panicked("x".into())),
        ended(run, Outcome::Lost("x".into())),
        ended(run, Outcome::Known),
        Input::ConnectionLost,
        failed(Failure::Fail(Exception::value_error("x"))),
        failed(Failure::Retry {
            after: None,
            cause: None,
            arguments: None,
        }),
        failed(Failure::Reject {
            requeue: true,
            reason: "x".into(),
        }),
        failed(Failure::Reject {
            requeue: false,
            reason: "x".into(),
        }),
        failed(Failure::Ignore),
        failed(Failure::replace(Signature::new("walk"))),
        failed(Failure::replace(crate::canvas::chain([]))),
        Input::PutOff {
            run,
            until: clock::now(),
            waiting: super::request::Waiting::Nothing,
        },
        failed(Failure::Later(Duration::from_secs(1))),
        Input::Revoked { terminate: None },
        Input::Revoked { terminate: Some(15) },
        Input::Stop { cold: false },
        Input::Stop { cold: true },
        Input::LeaseLost,
    ])
}

#[test]
fn a_delivery_is_spent_exactly_once_and_last() {
    for walk in 0..20_000 {
        let policy = task::Options {
            acks_late: walk % 2 == 0,
            acks_on_failure: walk % 3 != 0,
            acks_on_timeout: walk % 5 != 0,
            autoretry: walk % 7 == 0,
            reject_on_worker_lost: walk % 4 == 0,
            retry_on_worker_lost: walk % 19 == 0,
            track_started: walk % 11 == 0,
            streams: walk % 13 == 0,
            ..task::Options::DEFAULT
        };
        let request = request_of(&policy, walk % 17 < 8);
        let delivery = Delivery::new(Tag("t".into()), "celery".into(), None);
        let mut state = State::Received { delivery };
        let (mut spent, mut started, mut said) = (0, false, Vec::new());
        for _ in 0..STEPS {
            let input = input(1);
            said.push(format!("{input:?}"));
            let was_done = state.is_done();
            let mut effects = Vec::new();
            let is_put_off = matches!(input, Input::PutOff { run: 1, .. });
            state = state.step(input, &request, clock::now(), &mut effects);
            // What was put off starts again.
            started &= !(is_put_off && matches!(state, State::Held { .. }));
            assert!(
                !was_done || effects.is_empty(),
                "a request that is over does nothing: {said:?}"
            );
            let at = effects.iter().position(spends);
            for (number, effect) in effects.iter().enumerate() {
                match effect {
                    effect if spends(effect) => spent += 1,
                    Effect::Start => {
                        assert!(!started, "started twice: {said:?}");
                        started = true;
                        let early = !request.policy.acks_late;
                        assert!(
                            !early || at.is_some_and(|at| at < number),
                            "an early ack comes before the start: {said:?}"
                        );
                    }
                    // What must not be lost stands before the message is given up.
                    Effect::Retry(..) | Effect::Apply(_) | Effect::Follow(_) => {
                        assert!(at.is_none_or(|at| number < at), "{said:?}")
                    }
                    // It takes the message along, or leaves it to what is counted later; an ack would be written first.
                    Effect::Fallout(failing) if failing.delivery.is_none() => {
                        let waits = |at| number < at && matches!(effects[at], Effect::Part(_));
                        assert!(at.is_none_or(waits), "{said:?}: {effects:?}");
                    }
                    Effect::Store(..) if started && request.policy.acks_late => {
                        assert!(at.is_none_or(|at| number < at), "{said:?}: {effects:?}");
                    }
                    _ => {}
                }
            }
            assert!(spent <= 1, "spent twice: {said:?}");
            assert_eq!(
                spent == 0,
                state.tag().is_some(),
                "held or spent, never both or neither: {said:?}"
            );
        }
    }
}

/// Whoever lost the lease of what he runs leaves it to whoever has the message now.
#[test]
fn a_run_without_its_lease_says_nothing_of_what_is_to_be_repeated() {
    let policy = task::Options {
        acks_late: true,
        ..task::Options::DEFAULT
    };
    let request = request_of(&policy, false);
    let again = Failure::Retry {
        after: None,
        cause: None,
        arguments: None,
    };
    let ended = Input::Ended {
        run: 1,
        outcome: Outcome::Failed(again),
        runtime: Duration::ZERO,
    };
    for end in [ended, Input::Stop { cold: true }] {
        let running = || State::Running {
            unacked: Some(Delivery::new(Tag("t".into()), "celery".into(), None)),
            run: 1,
            since: clock::instant(),
        };
        let mut effects = Vec::new();
        let orphan = running().step(Input::LeaseLost, &request, clock::now(), &mut effects);
        effects.clear();
        let over = orphan.step(end, &request, clock::now(), &mut effects);
        let speaks = |effect: &Effect| matches!(effect, Effect::Retry(..) | Effect::Store(..));
        assert!(over.is_done() && !effects.iter().any(speaks), "{effects:?}");
    }
}

fn request_of(policy: &task::Options, follows: bool) -> Arc<Request> {
    Arc::new(request(policy.clone(), follows))
}

/// Whether the delivery leaves with it.
fn spends(effect: &Effect) -> bool {
    match effect {
        Effect::Early(_) | Effect::Ack(_) | Effect::Requeue(..) | Effect::Forget(_) => true,
        Effect::Part(done) => done.delivery.is_some(),
        Effect::Fallout(failing) => failing.delivery.is_some(),
        _ => false,
    }
}
