//! The mean time of the last acknowledged attempts.

use std::collections::VecDeque;
use std::time::Duration;

const WINDOW: usize = 1000;

#[derive(Clone, Debug, Default)]
pub struct AckWindow {
    times: VecDeque<Duration>,
    sum: Duration,
}

impl AckWindow {
    pub fn record(&mut self, took: Duration) {
        if self.times.len() == WINDOW {
            self.sum -= self.times.pop_front().unwrap_or_default();
        }
        self.times.push_back(took);
        self.sum += took;
    }

    /// Zero without any acknowledgement.
    #[must_use]
    pub fn mean(&self) -> Duration {
        let count = u32::try_from(self.times.len()).unwrap_or(u32::MAX);
        self.sum.checked_div(count).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_covers_the_last_thousand_attempts() {
        let mut window = AckWindow::default();
        assert_eq!(window.mean(), Duration::ZERO);
        for _ in 0..1000 {
            window.record(Duration::from_secs(5));
        }
        assert_eq!(window.mean(), Duration::from_secs(5));
        for _ in 0..1000 {
            window.record(Duration::from_millis(2));
        }
        assert_eq!(window.mean(), Duration::from_millis(2));
    }
}
