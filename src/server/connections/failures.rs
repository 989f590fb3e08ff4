//! A line of the log for many failures.

/// How often accepting has failed. While file descriptors are short each connection that closes
/// lets another one in, and then it fails again, up to ten times a second.
#[derive(Debug, Default)]
pub(super) struct Failures {
    untold: u64,
    /// Connections that were accepted since the last failure.
    pub(super) in_between: u64,
}

impl Failures {
    /// About a minute of them are one line.
    const A_LINE: u64 = 600;
    /// After so many connections without one it is another matter.
    const ANOTHER: u64 = 1000;

    /// It has failed again. Gives how often, if that is to be told now.
    pub(super) fn told_now(&mut self) -> Option<u64> {
        let first = self.untold == 0 || self.in_between > Self::ANOTHER;
        self.in_between = 0;
        self.untold += 1;
        if first {
            self.untold = 1;
            return Some(1);
        }
        let due = self.untold > Self::A_LINE;
        due.then(|| std::mem::replace(&mut self.untold, 1) - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::Failures;

    #[test]
    fn accepting_that_fails_again_and_again_is_a_line_a_minute() {
        let mut failures = Failures::default();
        assert_eq!(failures.told_now(), Some(1));
        let mut lines = Vec::new();
        for _ in 0..1800 {
            failures.in_between += 1;
            lines.extend(failures.told_now());
        }
        assert_eq!(lines, [600, 600, 600]);
        failures.in_between = 2000;
        assert_eq!(failures.told_now(), Some(1), "after all was well for a while");
    }
}
