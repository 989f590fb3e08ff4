//! Asks the leaders of all partitions about their logs, now and then.

use std::sync::Weak;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::sleep;

use super::{Connected, Store, now};

const ASK_EVERY: Duration = Duration::from_secs(2);

/// Longer than two rounds, of which one may be lost.
pub(super) const SILENT: Duration = Duration::from_secs(6);

/// As long as there is a store.
pub(super) async fn watch(store: Weak<Connected>) {
    loop {
        sleep(ASK_EVERY).await;
        let Some(store) = store.upgrade().map(Store) else { return };
        store.ask_leaders().await;
    }
}

impl Store {
    pub(super) async fn ask_leaders(&self) {
        let asked = self.record().partitions().map(async |partition| {
            // One that does not answer is as silent as before.
            if let Ok(log) = self.log(partition).await {
                let mut status = self.0.status.lock();
                status.logs.insert(partition, (log, now()));
            }
        });
        join_all(asked).await;
    }
}
