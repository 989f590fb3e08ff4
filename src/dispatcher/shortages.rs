//! Attempts that this process could not make: one line of log in ten seconds, whatever the replicas.

use std::time::Duration;

use tracing::warn;

use crate::engine::Moment;

const INTERVAL: Duration = Duration::from_secs(10);

/// What the log has not been told yet.
#[derive(Debug, Default)]
pub(super) struct Shortages {
    /// The next line may be written.
    next: Moment,
    untold: u64,
}

impl Shortages {
    /// Another attempt was not made.
    pub(super) fn happened(&mut self, now: Moment, error: &str) {
        if let Some(attempts) = self.count(now) {
            warn!(
                attempts,
                error,
                "attempts could not be sent: this process is short of resources (file descriptors, ports, memory, places for name lookups). They do not count as failures and are repeated"
            );
        }
    }

    /// How many attempts a line has to tell of, if one is due.
    fn count(&mut self, now: Moment) -> Option<u64> {
        self.untold += 1;
        (self.next <= now).then(|| {
            self.next = now.after(INTERVAL);
            std::mem::take(&mut self.untold)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shortage_is_one_line_in_ten_seconds_with_the_number_of_attempts() {
        let mut shortages = Shortages::default();
        let at = |second| Moment(0).after(Duration::from_secs(second));
        let lines = (0..=20).map(|second| shortages.count(at(second)));
        let told: Vec<_> = lines.flatten().collect();
        assert_eq!(told, [1, 10, 10]);
    }
}
