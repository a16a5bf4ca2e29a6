//! A request as `inspect` shows it (`celery.worker.request.Request.info`).

use serde_json::{Value, json};

use crate::clock;
use crate::wire;
use crate::worker::consumer::Active;
use crate::worker::request::State;

/// The request object of `active`, `reserved`, `scheduled` and `query_task`. `safe` shows the arguments as text.
pub(super) fn request_info(active: &Active, hostname: &str, safe: bool) -> Value {
    let request = &active.request;
    let headers = &request.message.headers;
    let (args, kwargs) = if safe {
        // What is secret has been taken out of the headers when the message came.
        let shown = |repr: &Option<String>, raw: &str| -> Value {
            repr.clone()
                .unwrap_or_else(|| wire::repr_bounded(&wire::json::parse(raw).unwrap_or_default()))
                .into()
        };
        (
            shown(&headers.argsrepr, request.message.body.args()),
            shown(&headers.kwargsrepr, request.message.body.kwargs()),
        )
    } else {
        let mut arguments = request.message.body.arguments().unwrap_or_default();
        request.entry.hides.hide(&mut arguments);
        (arguments.args.into(), arguments.kwargs.into())
    };
    let running = matches!(active.state, State::Running { .. });
    let acknowledged = matches!(active.state, State::Running { unacked: None, .. });
    let properties = &request.message.properties;
    json!({
        "id": headers.id,
        "name": headers.shown_name(),
        "args": args,
        "kwargs": kwargs,
        "type": headers.task,
        "hostname": hostname,
        "time_start": active.started.filter(|_| running).map(clock::epoch_seconds),
        "acknowledged": acknowledged,
        "delivery_info": {
            "exchange": properties.exchange(),
            "routing_key": properties.routing_key(),
            "priority": properties.priority(),
            "redelivered": properties.redelivered(),
        },
        "worker_pid": running.then_some(active.pid),
    })
}
