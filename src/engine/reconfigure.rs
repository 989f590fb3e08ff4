//! Settings that change while the engine runs.

use std::collections::HashMap;

use crate::engine::retry::Schedule;
use crate::engine::{Engine, EngineSettings, Now};
use crate::task::{Client, Quota};

impl Engine {
    /// Puts some of the new settings in force: the workers, the retries, the strong timeout, the
    /// coalescing and the redrive rate.
    ///
    /// What is in flight or waits continues as it is: fewer workers only start fewer deliveries, and
    /// a retry keeps its time.
    pub fn reconfigure(&mut self, now: Now, new: &EngineSettings) {
        self.now = now;
        let EngineSettings { workers, max_retries, retry_base, strong_timeout, .. } = *new;
        let EngineSettings { redrive_rate, coalesce, .. } = *new;
        self.settings.workers = workers;
        self.settings.max_retries = max_retries;
        self.settings.retry_base = retry_base;
        self.settings.strong_timeout = strong_timeout;
        self.settings.redrive_rate = redrive_rate;
        self.settings.coalesce = coalesce;
        self.schedule = Schedule { max_retries, base: retry_base };
        // More workers may start what waits.
        let numbers: Vec<_> = self.lanes.numbers().collect();
        numbers.into_iter().for_each(|number| self.mark_dirty(number));
        self.finish();
    }

    /// Replaces the quotas of all clients. Nothing is taken away from a client above its quota.
    pub fn set_quotas(&mut self, quotas: HashMap<Client, Quota>) {
        self.quotas = quotas;
    }
}
