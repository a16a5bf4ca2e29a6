//! Connections of strangers, of which there is never more than a bounded number. Each lives a bounded time, and the
//! oldest makes room for one that comes: whoever opens many and says nothing keeps nobody out, and takes no files that
//! the process needs elsewhere.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::Timeout;

/// Those who ask are a Prometheus or two, and whoever looks after the process.
const MOST: usize = 32;

/// From its beginning to the end of its answer.
const LONGEST: Duration = Duration::from_secs(5);

/// Takes connections.
pub(super) struct Visits {
    listener: TcpListener,
    places: Arc<Semaphore>,
    /// Of those that are not over, oldest first. A visit whose end here is dropped is over.
    latest: VecDeque<oneshot::Sender<()>>,
}

impl Visits {
    pub(super) fn new(listener: TcpListener) -> Self {
        Self {
            listener,
            places: Arc::new(Semaphore::new(MOST)),
            latest: VecDeque::new(),
        }
    }

    /// A place for one more. Whoever has one is among the latest: if none is free, the end of the oldest of them frees
    /// it.
    async fn place(&mut self) -> Option<OwnedSemaphorePermit> {
        self.latest.retain(|visit| !visit.is_closed());
        if self.latest.len() == MOST {
            self.latest.pop_front();
        }
        // None: it was closed, and nobody does that.
        Arc::clone(&self.places).acquire_owned().await.ok()
    }
}

impl Listener for Visits {
    type Io = Visit;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Visit, SocketAddr) {
        let (stream, address) = Listener::accept(&mut self.listener).await;
        let place = self.place().await;
        let (latest, ended) = oneshot::channel();
        self.latest.push_back(latest);
        let visit = Visit {
            stream,
            over: Box::pin(tokio::time::timeout(LONGEST, ended)),
            is_over: false,
            _place: place,
        };
        (visit, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// One connection, which breaks when it is over.
pub(super) struct Visit {
    stream: TcpStream,
    over: Pin<Box<Timeout<oneshot::Receiver<()>>>>,
    is_over: bool,
    _place: Option<OwnedSemaphorePermit>,
}

impl Visit {
    /// Its stream, unless it is over; wakes the task when it will be.
    fn stream(&mut self, context: &mut Context<'_>) -> io::Result<Pin<&mut TcpStream>> {
        self.is_over = self.is_over || self.over.as_mut().poll(context).is_ready();
        if self.is_over {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(Pin::new(&mut self.stream))
    }
}

impl AsyncRead for Visit {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.stream(context)?.poll_read(context, buffer)
    }
}

impl AsyncWrite for Visit {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.stream(context)?.poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream(context)?.poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
