//! `task-sent` events: whoever sends a task tells monitors, if asked to (`task_send_sent_event`). Without them Flower
//! knows of a task when a worker has it.

use crate::broker::Write;
use crate::wire::{Event, Events, Lamport, Limits, Message, decode};

/// Makes them.
#[derive(Clone, Debug)]
pub(crate) struct SentEvents {
    /// `event_exchange`.
    pub exchange: String,
    /// Who sends.
    pub sender: String,
    /// The clock they carry.
    pub clock: Lamport,
}

impl SentEvents {
    /// The event of a message, to be sent after it.
    /// `shown` gives arguments as they may be shown, where those of the message tell too much.
    pub(crate) fn of(
        &self,
        message: &Write,
        shown: impl FnOnce(&Message) -> Option<(String, String)>,
    ) -> Option<Write> {
        let Write::Publish {
            exchange,
            routing_key,
            envelope,
            ..
        } = message
        else {
            return None;
        };
        let message = decode(envelope, &Limits::default()).ok()?;
        let shown = shown(&message);
        let mut headers = message.headers;
        if let Some((args, kwargs)) = shown {
            (headers.argsrepr, headers.kwargsrepr) = (Some(args), Some(kwargs));
        }
        let event = Event::sent(&headers, exchange, routing_key, &self.sender, self.clock.tick());
        let (routing_key, payload) = Events::one(&event, &self.exchange).ok()?;
        Some(Write::Broadcast {
            exchange: self.exchange.clone(),
            routing_key,
            payload: payload.into(),
        })
    }
}
