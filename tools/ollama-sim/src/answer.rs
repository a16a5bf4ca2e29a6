//! One answer in the making: the back end's work and the frames that come out of it, as one stream.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::Stream;
use tokio::sync::mpsc;

use crate::backend::{BoxFuture, End, Event};
use crate::error::Error;

/// What comes out: frames, then exactly one end.
#[derive(Debug)]
pub enum Item {
    Event(Event),
    End(Result<End, Error>),
}

/// The work is done while the stream is polled, so a client that does not read slows it down, and dropping the
/// stream stops it.
pub struct Answer {
    work: Option<BoxFuture<Result<End, Error>>>,
    end: Option<Result<End, Error>>,
    events: mpsc::Receiver<Event>,
}

impl Answer {
    pub fn new(work: BoxFuture<Result<End, Error>>, events: mpsc::Receiver<Event>) -> Self {
        Self {
            work: Some(work),
            end: None,
            events,
        }
    }
}

impl Stream for Answer {
    type Item = Item;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Item>> {
        if let Some(work) = &mut self.work
            && let Poll::Ready(end) = work.as_mut().poll(context)
        {
            // Dropped here: the runner and the slot are free before the last frame is read.
            self.work = None;
            self.end = Some(end);
        }
        match self.events.poll_recv(context) {
            Poll::Ready(Some(event)) => Poll::Ready(Some(Item::Event(event))),
            Poll::Ready(None) => Poll::Ready(self.end.take().map(Item::End)),
            Poll::Pending => Poll::Pending,
        }
    }
}
