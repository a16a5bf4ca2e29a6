//! The ways in which a worker stops.

use tracing::{info, warn};

use super::{Consumer, Key};
use crate::worker::request::Input;
use crate::worker::services::spawn_run;
use crate::worker::stop::Phase;

impl Consumer {
    pub(super) fn on_stop(&mut self, phase: Phase) {
        if phase <= self.phase {
            return;
        }
        self.metrics.stops();
        if self.phase == Phase::Run {
            // First of all, so that monitors do not send work this way (P-167).
            self.worker_event("worker-offline");
        }
        self.phase = phase;
        let mut keys: Vec<Key> = self.active.keys().copied().collect();
        // The oldest goes back last, to the front.
        keys.sort_unstable_by(|a, b| b.cmp(a));
        for key in keys {
            self.step(
                key,
                Input::Stop {
                    cold: phase == Phase::Cold,
                },
            );
        }
        self.let_go();
        self.unpark();
        match phase {
            Phase::Soft => {
                let patience = self.options.soft_shutdown_timeout;
                warn!(
                    "Initiating Soft Shutdown, terminating in {} seconds",
                    patience.as_secs_f64()
                );
                let shutdown = self.shutdown.clone();
                spawn_run(async move {
                    tokio::time::sleep(patience).await;
                    shutdown.cold();
                });
            }
            Phase::Cold => warn!("cold stop: running tasks were cancelled and given back"),
            _ => info!("warm stop: waiting for {} running task(s)", self.active.len()),
        }
    }

    /// Whether a soft stop takes its time though nothing runs.
    pub(super) fn lingers(&self) -> bool {
        self.phase == Phase::Soft && self.options.soft_shutdown_on_idle
    }

    /// What is not acknowledged ends with the connection, if that is wanted: another worker may have it soon.
    pub(super) fn look_at_connection(&mut self) {
        if !self.options.cancel_on_connection_loss {
            return;
        }
        let connection = self.client.connection();
        let before = std::mem::replace(&mut self.connection, connection);
        if before == connection || before == 0 {
            return;
        }
        let late: Vec<Key> = self.active.keys().copied().collect();
        for key in late {
            self.step(key, Input::ConnectionLost);
        }
    }
}
