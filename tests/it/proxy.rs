//! A TCP proxy in front of a Redis, whose connections can die in all the ways that connections die.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// How connections fare. Those that were made before a number share a fate.
#[derive(Clone, Copy, Debug, Default)]
struct Weather {
    /// Pass nothing on, and neither side is told.
    silent: u64,
    /// What is asked arrives later.
    held: u64,
    /// Are closed.
    closed: u64,
    /// Are closed when the server says something next: what was asked was done, and the answer is lost.
    cut: u64,
    /// New ones are closed at once.
    refuses: bool,
    /// Everything is late by this.
    late: Duration,
    /// Bytes that pass in a second each way; 0 is without limit.
    rate: u64,
    /// Who asks for something with this word in it is the last: every connection is closed, and new ones are refused.
    ends_at: Option<&'static str>,
    /// Whoever asks for something with this word in it loses the answer, and every connection is closed.
    cut_at: Option<&'static str>,
    /// In answers the first stands in the place of the second, which is as long.
    says: Option<(&'static str, &'static str)>,
}

pub struct Proxy {
    port: u16,
    weather: watch::Sender<Weather>,
    made: Arc<AtomicU64>,
}

impl Proxy {
    pub async fn start(to: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let weather = watch::Sender::new(Weather::default());
        let made = Arc::<AtomicU64>::default();
        let (sky, count) = (weather.clone(), made.clone());
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let number = count.fetch_add(1, Ordering::SeqCst);
                if !sky.borrow().refuses {
                    tokio::spawn(join(near, to, number, sky.clone()));
                }
            }
        });
        Self { port, weather, made }
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port)
    }

    fn change(&self, change: impl FnOnce(&mut Weather, u64)) {
        let made = self.made.load(Ordering::SeqCst);
        self.weather.send_modify(|weather| change(weather, made));
    }

    /// Every connection there is passes nothing on from now on; new ones work.
    pub fn silence(&self) {
        self.change(|weather, made| weather.silent = made);
    }

    /// What is asked on every connection there is arrives when it is released, and be it that nobody waits any more;
    /// new connections work.
    pub fn hold(&self) {
        self.change(|weather, made| weather.held = made);
    }

    /// Passes on what was held.
    pub fn release(&self) {
        self.change(|weather, _| weather.held = 0);
    }

    /// Every connection there is is closed.
    pub fn close(&self) {
        self.change(|weather, made| weather.closed = made);
    }

    /// Every connection there is loses the next answer and is closed.
    pub fn cut(&self) {
        self.change(|weather, made| weather.cut = made);
    }

    /// New connections are closed at once, or not any more.
    pub fn refuse(&self, refuses: bool) {
        self.change(|weather, _| weather.refuses = refuses);
    }

    /// Everything takes so much longer each way.
    pub fn delay(&self, late: Duration) {
        self.change(|weather, _| weather.late = late);
    }

    /// Once something with this word in it is asked, every connection is closed, and new ones are too.
    pub fn end_at(&self, word: &'static str) {
        self.change(|weather, _| weather.ends_at = Some(word));
    }

    /// Once something with this word in it is asked, it is done, its answer is lost, and every connection is closed.
    pub fn cut_at(&self, word: &'static str) {
        self.change(|weather, _| weather.cut_at = Some(word));
    }

    /// Every answer has one word in the place of another that is as long.
    pub fn says(&self, word: &'static str, of: &'static str) {
        assert_eq!(word.len(), of.len());
        self.change(|weather, _| weather.says = Some((word, of)));
    }

    /// No more than so many bytes pass in a second each way.
    pub fn limit(&self, rate: u64) {
        self.change(|weather, _| weather.rate = rate);
    }
}

async fn join(near: TcpStream, to: u16, number: u64, sky: watch::Sender<Weather>) {
    let Ok(far) = TcpStream::connect(("127.0.0.1", to)).await else {
        return;
    };
    let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
    let mut weather = sky.subscribe();
    tokio::select! {
        () = pass(near_in, far_out, &sky, number, false) => {}
        () = pass(far_in, near_out, &sky, number, true) => {}
        _ = async { drop(weather.wait_for(|weather| weather.closed > number).await) } => {}
    }
}

/// Passes on what comes, until the connection is no more.
async fn pass(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    sky: &watch::Sender<Weather>,
    number: u64,
    answers: bool,
) {
    let (mut weather, mut bytes) = (sky.subscribe(), vec![0; 64 << 10]);
    loop {
        let Ok(count @ 1..) = from.read(&mut bytes).await else {
            return;
        };
        let now = *weather.borrow();
        if now.silent > number {
            // Both sockets stay open, and nothing moves.
            std::future::pending::<()>().await;
        }
        if answers && now.cut > number {
            return;
        }
        let has = |word: &str| bytes[..count].windows(word.len()).any(|part| part == word.as_bytes());
        if !answers && now.ends_at.is_some_and(has) {
            sky.send_modify(|weather| {
                weather.refuses = true;
                weather.closed = u64::MAX;
            });
        }
        if !answers && now.cut_at.is_some_and(has) {
            sky.send_modify(|weather| {
                weather.cut_at = None;
                weather.cut = number + 1;
            });
        }
        if !answers && weather.wait_for(|weather| weather.held <= number).await.is_err() {
            return;
        }
        if let Some((word, of)) = now.says.filter(|_| answers) {
            let places = bytes[..count].windows(of.len()).enumerate();
            let places: Vec<usize> = places
                .filter(|(_, part)| *part == of.as_bytes())
                .map(|(at, _)| at)
                .collect();
            for at in places {
                bytes[at..at + word.len()].copy_from_slice(word.as_bytes());
            }
        }
        let takes = (count as u64 * 1_000_000).checked_div(now.rate).unwrap_or(0);
        tokio::time::sleep(now.late + Duration::from_micros(takes)).await;
        if to.write_all(&bytes[..count]).await.is_err() {
            return;
        }
    }
}
