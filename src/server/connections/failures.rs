//! Throttles a repeated warning.

/// Counts failures of accepting between log lines. While file descriptors are short, each closing
/// connection lets another one in and accepting fails again, up to ten times a second.
#[derive(Debug, Default)]
pub(super) struct RepeatedWarning {
    unlogged: u64,
    /// Successes since the last failure.
    pub(super) successes: u64,
}

impl RepeatedWarning {
    /// One log line for this many failures, about a minute of them.
    const PER_LINE: u64 = 600;
    /// After this many successes the next failure is logged at once.
    const RECOVERED: u64 = 1000;

    /// Records a failure. Returns the number of failures to log, if a line is due.
    pub(super) fn failed(&mut self) -> Option<u64> {
        let first = self.unlogged == 0 || self.successes > Self::RECOVERED;
        self.successes = 0;
        self.unlogged += 1;
        if first {
            self.unlogged = 1;
            return Some(1);
        }
        let due = self.unlogged > Self::PER_LINE;
        due.then(|| std::mem::replace(&mut self.unlogged, 1) - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::RepeatedWarning;

    #[test]
    fn repeated_accept_failures_log_one_line_a_minute() {
        let mut failures = RepeatedWarning::default();
        assert_eq!(failures.failed(), Some(1));
        let mut lines = Vec::new();
        for _ in 0..1800 {
            failures.successes += 1;
            lines.extend(failures.failed());
        }
        assert_eq!(lines, [600, 600, 600]);
        failures.successes = 2000;
        assert_eq!(failures.failed(), Some(1), "after a recovery");
    }
}
