//! How old what is kept is: the uptime of the data directory, kept while the daemon runs.

use std::time::Duration;

use tokio::task::JoinHandle;
use tracing::{info, warn};

use crate::engine::{Moment, Now};
use crate::store::{OpenError, UptimeFile};
use crate::task::{ClockStep, Uptime};

/// How often it is written down that the daemon runs.
const WRITE_EVERY: Duration = Duration::from_secs(60);

/// Steps from which on someone should look at the clock; shorter ones are what a restart takes.
const NOTABLE: Duration = Duration::from_secs(3600);

/// The uptime, and where it is kept.
#[derive(Debug)]
pub(crate) struct UptimeRecorder {
    uptime: Uptime,
    file: UptimeFile,
    /// When it was last seen that the daemon runs.
    at: Moment,
    /// When it is to be written.
    due: Moment,
    writing: Option<JoinHandle<()>>,
}

impl UptimeRecorder {
    /// Reads what former daemons have left, and tells of a clock that is not where they left it.
    /// Blocks.
    pub(crate) fn begin(now: Now, file: UptimeFile) -> Result<Self, OpenError> {
        let mut uptime = file.read()?.unwrap_or_else(|| {
            warn!(
                "the file CLOCK in the data directory is damaged: how old dead letters and idempotency keys are is what the clock says; it is written anew"
            );
            Uptime::default()
        });
        if let Some(step) = uptime.see(now.wall, Duration::ZERO) {
            tell(step, "since the daemon was last seen to run");
        }
        let due = now.moment.after(WRITE_EVERY);
        let recorder = Self { uptime, file, at: now.moment, due, writing: None };
        // Before anything is thrown away for its age.
        write(&recorder.file, &recorder.uptime);
        Ok(recorder)
    }

    pub(crate) fn uptime(&self) -> &Uptime {
        &self.uptime
    }

    /// The daemon runs. Gives the uptime if the clock was set.
    pub(super) fn observe(&mut self, now: Now) -> Option<&Uptime> {
        let ran = now.moment.since_start().saturating_sub(self.at.since_start());
        self.at = now.moment;
        let step = self.uptime.see(now.wall, ran)?;
        tell(step, "while the daemon ran");
        self.due = now.moment;
        Some(&self.uptime)
    }

    /// Writes it down if that is due, elsewhere: the disk may take its time.
    pub(super) fn save(&mut self, now: Moment) {
        if now < self.due || self.writing.as_ref().is_some_and(|writing| !writing.is_finished()) {
            return;
        }
        self.due = now.after(WRITE_EVERY);
        let (file, uptime) = (self.file.clone(), self.uptime.clone());
        self.writing = Some(tokio::task::spawn_blocking(move || write(&file, &uptime)));
    }
}

fn write(file: &UptimeFile, uptime: &Uptime) {
    if let Err(error) = file.write(uptime) {
        warn!(%error, "the file CLOCK in the data directory cannot be written: what the clock skips until a restart may count for how old dead letters and idempotency keys are");
    }
}

fn tell(step: ClockStep, when: &str) {
    const COUNTS: &str = "it does not count for --dead-letter-retention and --idempotency-window";
    match step {
        ClockStep::Forward(by) if by < NOTABLE => {
            info!(seconds = by.as_secs(), "the clock has gone on {when}: {COUNTS}");
        }
        ClockStep::Forward(by) => {
            warn!(
                seconds = by.as_secs(),
                "the clock has gone on by {} {when}: {COUNTS}",
                humantime::format_duration(Duration::from_secs(by.as_secs()))
            );
        }
        ClockStep::Back(by) => {
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
        let file = UptimeFile::of(dir.path());
        let mut recorder = UptimeRecorder::begin(now(0, 1_000), file.clone()).unwrap();
        assert_eq!(recorder.observe(now(30, 1_030)), None);
        recorder.save(now(30, 1_030).moment);
        assert!(recorder.writing.is_none(), "it is not due");
        let uptime = recorder.observe(now(31, 91_031)).cloned().unwrap();
        assert_eq!(uptime.gaps, [(now(0, 1_031).wall, now(0, 91_031).wall)]);
        recorder.save(now(31, 91_031).moment);
        recorder.writing.take().unwrap().await.unwrap();
        assert_eq!(file.read().unwrap(), Some(uptime));
        // The next one starts a day later.
        let later = UptimeRecorder::begin(now(0, 180_000), file).unwrap();
        let age = later.uptime().age(now(0, 180_000).wall, now(0, 1_000).wall);
        assert_eq!(age, Duration::from_secs(31));
    }
}
