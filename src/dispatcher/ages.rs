//! How old what is kept is: the calendar of the data directory, kept while the daemon runs.

use std::time::Duration;

use tokio::task::JoinHandle;
use tracing::{info, warn};

use crate::engine::{Moment, Now};
use crate::store::{CalendarFile, OpenError};
use crate::task::{Calendar, Step};

/// How often it is written down that the daemon runs.
const WRITE_EVERY: Duration = Duration::from_secs(60);

/// Steps from which on someone should look at the clock; shorter ones are what a restart takes.
const NOTABLE: Duration = Duration::from_secs(3600);

/// The calendar, and where it is kept.
#[derive(Debug)]
pub(crate) struct Ages {
    calendar: Calendar,
    file: CalendarFile,
    /// When it was last seen that the daemon runs.
    at: Moment,
    /// When it is to be written.
    due: Moment,
    writing: Option<JoinHandle<()>>,
}

impl Ages {
    /// Reads what former daemons have left, and tells of a clock that is not where they left it.
    /// Blocks.
    pub(crate) fn begin(now: Now, file: CalendarFile) -> Result<Self, OpenError> {
        let mut calendar = file.read()?.unwrap_or_else(|| {
            warn!(
                "the file CLOCK in the data directory is damaged: how old dead letters and idempotency keys are is what the clock says; it is written anew"
            );
            Calendar::default()
        });
        if let Some(step) = calendar.see(now.wall, Duration::ZERO) {
            tell(step, "since the daemon was last seen to run");
        }
        let due = now.moment.after(WRITE_EVERY);
        let ages = Self { calendar, file, at: now.moment, due, writing: None };
        // Before anything is thrown away for its age.
        write(&ages.file, &ages.calendar);
        Ok(ages)
    }

    pub(crate) fn calendar(&self) -> &Calendar {
        &self.calendar
    }

    /// The daemon runs. Gives the calendar if the clock was set.
    pub(super) fn see(&mut self, now: Now) -> Option<&Calendar> {
        let ran = now.moment.since_start().saturating_sub(self.at.since_start());
        self.at = now.moment;
        let step = self.calendar.see(now.wall, ran)?;
        tell(step, "while the daemon ran");
        self.due = now.moment;
        Some(&self.calendar)
    }

    /// Writes it down if that is due, elsewhere: the disk may take its time.
    pub(super) fn keep(&mut self, now: Moment) {
        if now < self.due || self.writing.as_ref().is_some_and(|writing| !writing.is_finished()) {
            return;
        }
        self.due = now.after(WRITE_EVERY);
        let (file, calendar) = (self.file.clone(), self.calendar.clone());
        self.writing = Some(tokio::task::spawn_blocking(move || write(&file, &calendar)));
    }
}

fn write(file: &CalendarFile, calendar: &Calendar) {
    if let Err(error) = file.write(calendar) {
        warn!(%error, "the file CLOCK in the data directory cannot be written: what the clock skips until a restart may count for how old dead letters and idempotency keys are");
    }
}

fn tell(step: Step, when: &str) {
    const COUNTS: &str = "it does not count for --dead-letter-retention and --idempotency-window";
    match step {
        Step::Forward(by) if by < NOTABLE => {
            info!(seconds = by.as_secs(), "the clock has gone on {when}: {COUNTS}");
        }
        Step::Forward(by) => {
            warn!(
                seconds = by.as_secs(),
                "the clock has gone on by {} {when}: {COUNTS}",
                humantime::format_duration(Duration::from_secs(by.as_secs()))
            );
        }
        Step::Back(by) => {
            warn!(
                seconds = by.as_secs(),
                "the clock was set back by {} {when}",
                humantime::format_duration(Duration::from_secs(by.as_secs()))
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::Timestamp;

    fn now(ran: u64, wall: u64) -> Now {
        let moment = Moment(0).after(Duration::from_secs(ran));
        Now { moment, wall: Timestamp(0).saturating_add(Duration::from_secs(wall)) }
    }

    #[tokio::test]
    async fn a_step_while_the_daemon_runs_is_written_at_once_and_found_by_the_next_one() {
        let dir = tempfile::tempdir().unwrap();
        let file = CalendarFile::of(dir.path());
        let mut ages = Ages::begin(now(0, 1_000), file.clone()).unwrap();
        assert_eq!(ages.see(now(30, 1_030)), None);
        ages.keep(now(30, 1_030).moment);
        assert!(ages.writing.is_none(), "it is not due");
        let calendar = ages.see(now(31, 91_031)).cloned().unwrap();
        assert_eq!(calendar.gaps, [(now(0, 1_031).wall, now(0, 91_031).wall)]);
        ages.keep(now(31, 91_031).moment);
        ages.writing.take().unwrap().await.unwrap();
        assert_eq!(file.read().unwrap(), Some(calendar));
        // The next one starts a day later.
        let later = Ages::begin(now(0, 180_000), file).unwrap();
        let age = later.calendar().age(now(0, 180_000).wall, now(0, 1_000).wall);
        assert_eq!(age, Duration::from_secs(31));
    }
}
