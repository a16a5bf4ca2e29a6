//! What systemd is told (`sd_notify(3)`): that the worker is ready, that it stops, and that it lives. One datagram
//! each, to the socket that systemd names in the environment; without one nobody is told anything.

use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use tracing::warn;

use crate::worker::{Stop, Watch};

/// Whoever started us and wants to know.
pub(super) struct Notify {
    to: SocketAddr,
    socket: UnixDatagram,
    /// How often a sign of life is expected.
    watchdog: Option<Duration>,
}

impl Notify {
    /// From `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID`.
    pub(super) fn from_environment() -> Option<Self> {
        let path = std::env::var_os("NOTIFY_SOCKET").filter(|path| !path.is_empty())?;
        let to = match path.as_bytes().strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name),
            None => SocketAddr::from_pathname(&path),
        };
        let socket = UnixDatagram::unbound().and_then(|socket| {
            // A systemd that does not read must not hold up the worker.
            socket.set_nonblocking(true)?;
            Ok((to?, socket))
        });
        let variable = |name: &str| std::env::var(name).ok();
        let ours = variable("WATCHDOG_PID").is_none_or(|pid| pid == std::process::id().to_string());
        let watchdog = variable("WATCHDOG_USEC").and_then(|text| text.parse().ok());
        match socket {
            Ok((to, socket)) => Some(Self {
                to,
                socket,
                watchdog: watchdog.filter(|usec| ours && *usec > 0).map(Duration::from_micros),
            }),
            Err(error) => {
                warn!("systemd cannot be told anything: {}: {error}", path.display());
                None
            }
        }
    }

    fn tell(&self, state: &str) {
        // It may be gone; the worker is not there for it.
        let _ = self.socket.send_to_addr(state.as_bytes(), &self.to);
    }

    /// Says that the worker is ready, gives signs of life as long as its loop goes round, and says when it stops.
    pub(super) async fn run(self, watch: Watch, stop: Stop) {
        self.follow(|| watch.health(), stop.asked()).await;
    }

    async fn follow(self, health: impl Fn() -> Result<(), String>, asked_to_stop: impl Future<Output = ()>) {
        self.tell("READY=1\nSTATUS=takes tasks");
        let stopping = async {
            asked_to_stop.await;
            self.tell("STOPPING=1\nSTATUS=lets running tasks end");
            std::future::pending().await
        };
        let living = async {
            // Twice as often as asked for, as sd_watchdog_enabled(3) recommends.
            let Some(pause) = self.watchdog.map(|longest| longest / 2) else {
                return std::future::pending().await;
            };
            let mut pause = tokio::time::interval(pause);
            loop {
                pause.tick().await;
                match health() {
                    Ok(()) => self.tell("WATCHDOG=1"),
                    Err(why) => warn!("systemd is not told that the worker lives: {why}"),
                }
            }
        };
        let ((), ()) = tokio::join!(stopping, living);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// systemd kills what is not heard of: a worker whose loop hangs must fall silent, though everything else goes on.
    #[tokio::test]
    async fn the_watchdog_is_not_fed_while_the_loop_hangs() {
        let path = std::env::temp_dir().join(format!("orchestra-notify-{}", uuid::Uuid::new_v4()));
        let systemd = UnixDatagram::bind(&path).unwrap();
        systemd.set_nonblocking(true).unwrap();
        let socket = UnixDatagram::unbound().unwrap();
        socket.set_nonblocking(true).unwrap();
        let notify = Notify {
            to: SocketAddr::from_pathname(&path).unwrap(),
            socket,
            watchdog: Some(Duration::from_millis(20)),
        };
        let told = || {
            let (mut bytes, mut fed) = ([0; 64], 0);
            while let Ok(count) = systemd.recv(&mut bytes) {
                fed += usize::from(&bytes[..count] == b"WATCHDOG=1");
            }
            fed
        };
        let hangs = Cell::new(false);
        let health = || match hangs.get() {
            true => Err("it hangs".to_owned()),
            false => Ok(()),
        };
        let test = async {
            let pause = || tokio::time::sleep(Duration::from_millis(300));
            pause().await;
            assert!(told() > 3);
            hangs.set(true);
            pause().await;
            assert_eq!(told(), 0);
            hangs.set(false);
            pause().await;
            assert!(told() > 3);
        };
        tokio::select! {
            () = notify.follow(health, std::future::pending()) => unreachable!("it goes on as long as the worker"),
            () = test => {}
        }
        std::fs::remove_file(path).unwrap();
    }
}
