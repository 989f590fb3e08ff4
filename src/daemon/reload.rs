//! SIGHUP: puts a config file that was read again in force, as far as that needs no restart, and
//! reads the files for access, for replicas and for notifications again.

use std::num::NonZeroU32;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};

use super::inbound::Inbound;
use super::outbound::Outbound;
use crate::config::Config;
use crate::dispatcher::messages::LoopEvent;
use crate::notify::Notifier;

/// The settings that [`Reloadable::reload`] puts in force. All others need a restart.
pub(crate) const WITHOUT_RESTART: [&str; 15] = [
    "allow-replica",
    "allow-replica-file",
    "coalesce",
    "drain-timeout",
    "max-retries",
    "max-workers",
    "queue-wait",
    "redrive-rate",
    "replica-ca",
    "replica-cert",
    "replica-key",
    "replica-token-file",
    "retry-base",
    "strong-timeout",
    "workers",
];

#[derive(Debug)]
pub(super) struct Reloadable {
    pub(super) inbound: Inbound,
    pub(super) outbound: Outbound,
    pub(super) notifier: Notifier,
    pub(super) events: mpsc::UnboundedSender<LoopEvent>,
    pub(super) redrive_rate: watch::Sender<NonZeroU32>,
    pub(super) drain_timeout: Mutex<Duration>,
    /// One reload at a time, so that the last one is in force.
    pub(super) reloading: Mutex<()>,
}

impl Reloadable {
    /// Reloads each file that can be used. `read` reads the config file. Blocks.
    pub(super) fn reload(&self, read: impl FnOnce() -> Option<Config>) {
        let _one = self.reloading.lock();
        // The loop, to which the events go, may have ended.
        let new = read();
        if let Some(config) = &new {
            *self.drain_timeout.lock() = config.drain_timeout;
            self.redrive_rate.send_replace(config.engine.redrive_rate);
            let (engine, queue_wait) = (Box::new(config.engine.clone()), config.queue_wait);
            let _ = self.events.send(LoopEvent::Reconfigured { engine, queue_wait });
        }
        self.inbound.reload();
        let _ = self.events.send(LoopEvent::Quotas(self.inbound.quotas()));
        self.outbound.reload(new.map(|config| config.outbound));
        self.notifier.reload();
        let _ = self.events.send(LoopEvent::CredentialsRenewed);
    }

    pub(super) fn drain_timeout(&self) -> Duration {
        *self.drain_timeout.lock()
    }
}
