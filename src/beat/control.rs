//! Beat's remote control, as of Celery 5.7 (`celery.beat.BeatPidbox`): it answers `celery inspect ping` while it ticks,
//! and nothing else.

use std::time::Duration;

use redis::Pipeline;
use serde_json::json;
use tokio::sync::watch;
use tracing::warn;

use crate::broker::{Broker, Write};
use crate::clock::{self, Instant};
use crate::conn::Push;
use crate::wire::{Accept, pidbox};

/// Listens until it is dropped. Silence is what a probe can act on, so a beat that does not tick does not answer.
pub(super) async fn listen(
    broker: &Broker,
    exchange: &str,
    hostname: &str,
    ticked: watch::Receiver<Instant>,
    longest: Duration,
) {
    let mut messages = match broker.subscribe_control(exchange, hostname).await {
        Ok(messages) => messages,
        Err(error) => {
            warn!("no remote control of beat: {error}");
            return std::future::pending().await;
        }
    };
    while let Some(Push { payload, .. }) = messages.recv().await {
        // Whatever else is said on this channel is for workers.
        let Ok(request) = pidbox::decode(&payload, &Accept::default(), payload.len()) else {
            continue;
        };
        let Some(reply_to) = &request.reply_to else { continue };
        if request.method != "ping" || !request.is_for(hostname) {
            continue;
        }
        let age = clock::instant().saturating_duration_since(*ticked.borrow());
        if age > longest {
            warn!("beat does not answer: its last tick is {} s ago", age.as_secs());
            continue;
        }
        let pong = json!({"ok": "pong"});
        let Ok(payload) = pidbox::encode_reply(reply_to, request.ticket.as_deref(), request.clock + 1, hostname, &pong)
        else {
            continue;
        };
        let mut pipe = Pipeline::new();
        let reply = Write::Reply {
            exchange: reply_to.exchange.clone(),
            routing_key: reply_to.routing_key.clone(),
            payload: payload.into(),
        };
        broker.append(&mut pipe, &[reply]);
        if let Err(error) = broker.writer().pipeline(&pipe).await {
            warn!("beat could not answer a ping: {error}");
        }
    }
    std::future::pending().await
}
