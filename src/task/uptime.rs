//! Ages by a wall clock that people set.
//!
//! Records that outlive a process carry wall clock times. If the clock is corrected by a day, plain
//! ages would expire all of them at once. So time that the clock skips does not count, nor does
//! time in which no daemon ran, which looks the same.

use std::time::Duration;

use super::Timestamp;

/// Shorter gaps count as running time, because the daemon notes only now and then that it runs.
const SHORTEST: Duration = Duration::from_secs(120);

/// A longer gap is a corrected clock, not a daemon that was off while its backlog waited.
const LONGEST: Duration = Duration::from_secs(30 * 24 * 3600);

/// Ages that span a dropped gap are too high.
const MOST: usize = 64;

/// Which part of wall clock time has passed while a daemon ran.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Uptime {
    pub seen: Option<Timestamp>,
    /// Gaps without a daemon or skipped by the clock, oldest first.
    pub gaps: Vec<(Timestamp, Timestamp)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClockStep {
    Forward(Duration),
    Back(Duration),
}

impl Uptime {
    /// Records that a daemon runs at `now`, and has run for `ran` by the monotonic clock since the
    /// last record.
    pub fn see(&mut self, now: Timestamp, ran: Duration) -> Option<ClockStep> {
        let before = self.seen.replace(now)?;
        let expected = before.saturating_add(ran);
        let (ahead, behind) = (now.saturating_since(expected), expected.saturating_since(now));
        if ahead > SHORTEST {
            self.gaps.push((expected, now));
            let over = self.gaps.len().saturating_sub(MOST);
            self.gaps.drain(..over);
            return Some(ClockStep::Forward(ahead));
        }
        if now < before {
            // This time passes again, so it is not a gap.
            self.gaps.retain(|(from, _)| *from < now);
            self.gaps.iter_mut().for_each(|(_, to)| *to = now.min(*to));
        }
        (behind > SHORTEST).then_some(ClockStep::Back(behind))
    }

    /// The age of `since` when a daemon starts at `now`. The gap that just ended counts as well,
    /// unless it is so long that the clock was more likely corrected.
    #[must_use]
    pub fn age_at_start(&self, now: Timestamp, since: Timestamp) -> Duration {
        let away = self.gaps.last().filter(|(_, to)| Some(*to) == self.seen);
        let away = away.map(|(from, to)| to.saturating_since(since.max(*from)));
        self.age(now, since) + away.filter(|away| *away < LONGEST).unwrap_or_default()
    }

    /// The age of `since`, without the gaps.
    pub fn age(&self, now: Timestamp, since: Timestamp) -> Duration {
        let skipped =
            self.gaps.iter().map(|(from, to)| now.min(*to).saturating_since(since.max(*from)));
        now.saturating_since(since).saturating_sub(skipped.sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn at(hour: u64) -> Timestamp {
        Timestamp(0).saturating_add(HOUR * u32::try_from(hour).unwrap())
    }

    fn hours(age: Duration) -> u64 {
        age.as_secs() / 3600
    }

    #[test]
    fn time_that_the_clock_skips_makes_nothing_older() {
        let mut uptime = Uptime::default();
        assert_eq!(uptime.see(at(100), Duration::ZERO), None, "the first record");
        assert_eq!(uptime.see(at(101), HOUR), None);
        assert_eq!(uptime.see(at(150), HOUR), Some(ClockStep::Forward(HOUR * 48)));
        let ages = [100, 101, 102, 120, 150].map(|since| hours(uptime.age(at(150), at(since))));
        assert_eq!(ages, [2, 1, 0, 0, 0]);
        assert_eq!(hours(uptime.age(at(153), at(100))), 5);
        // After a restart, without a daemon for ten hours.
        assert_eq!(uptime.see(at(160), Duration::ZERO), Some(ClockStep::Forward(HOUR * 10)));
        assert_eq!(hours(uptime.age(at(160), at(100))), 2);
    }

    #[test]
    fn a_short_gap_counts_as_running_time() {
        let mut uptime = Uptime { seen: Some(at(1)), gaps: vec![] };
        let later = at(1).saturating_add(SHORTEST);
        assert_eq!(uptime.see(later, Duration::ZERO), None);
        assert_eq!(uptime.age(later, at(1)), SHORTEST);
        assert_eq!(uptime.gaps, []);
    }

    #[test]
    fn a_clock_that_is_set_back_leaves_no_gap_in_the_future() {
        let mut uptime = Uptime { seen: Some(at(10)), gaps: vec![] };
        uptime.see(at(50), Duration::ZERO);
        assert_eq!(uptime.see(at(12), HOUR), Some(ClockStep::Back(HOUR * 39)));
        assert_eq!(uptime.gaps, [(at(10), at(12))]);
        assert_eq!(hours(uptime.age(at(60), at(12))), 48);
        assert_eq!(hours(uptime.age(at(60), at(8))), 50);
        assert_eq!(
            uptime.age(at(13), at(40)),
            Duration::ZERO,
            "a time from when the clock was ahead"
        );
    }

    #[test]
    fn the_newest_gaps_are_remembered() {
        let mut uptime = Uptime { seen: Some(at(0)), gaps: vec![] };
        (1..=100).for_each(|n| assert!(uptime.see(at(n), Duration::ZERO).is_some()));
        assert_eq!((uptime.gaps.len(), uptime.gaps[0]), (MOST, (at(36), at(37))));
        assert_eq!(uptime.age(at(100), at(50)), Duration::ZERO);
    }
}
