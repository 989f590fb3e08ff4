//! Records when the daemon ran, so that the age of a record does not depend on jumps of the clock.

use std::time::Duration;

use tokio::task::JoinHandle;
use tracing::{info, warn};

use crate::engine::{Moment, Now};
use crate::store::{OpenError, UptimeFile};
use crate::task::{ClockStep, Uptime};

const WRITE_EVERY: Duration = Duration::from_secs(60);

/// A clock that moved forward this much is a warning. A restart takes less.
const WARN_FROM: Duration = Duration::from_secs(3600);

#[derive(Debug)]
pub(crate) struct UptimeRecorder {
    uptime: Uptime,
    /// `None` for a store that several processes share: ages are then by the clock, except for its steps
    /// while this process runs.
    file: Option<UptimeFile>,
    /// The last observation.
    at: Moment,
    /// The next write.
    due: Moment,
    writing: Option<JoinHandle<()>>,
}

impl UptimeRecorder {
    /// Reads the record of earlier daemons, and logs a clock that has moved since. Blocks.
    pub(crate) fn begin(now: Now, file: UptimeFile) -> Result<Self, OpenError> {
        let mut uptime = file.read()?.unwrap_or_else(|| {
            warn!(
                "the file CLOCK in the data directory is damaged: the age of dead letters and idempotency keys is taken from the clock; the file is written again"
            );
            Uptime::default()
        });
        if let Some(step) = uptime.see(now.wall, Duration::ZERO) {
            log_step(step, "since the daemon last ran");
        }
        let due = now.moment.after(WRITE_EVERY);
        // Before anything is discarded for its age.
        write(&file, &uptime);
        Ok(Self { uptime, file: Some(file), at: now.moment, due, writing: None })
    }

    /// Records nothing beyond this process.
    pub(crate) fn in_memory(now: Now) -> Self {
        let mut uptime = Uptime::default();
        uptime.see(now.wall, Duration::ZERO);
        Self { uptime, file: None, at: now.moment, due: now.moment, writing: None }
    }

    pub(crate) fn uptime(&self) -> &Uptime {
        &self.uptime
    }

    /// Records that the daemon runs. Returns the uptime if the clock was set.
    pub(super) fn observe(&mut self, now: Now) -> Option<&Uptime> {
        let ran = now.moment.since_start().saturating_sub(self.at.since_start());
        self.at = now.moment;
        let step = self.uptime.see(now.wall, ran)?;
        log_step(step, "while the daemon ran");
        self.due = now.moment;
        Some(&self.uptime)
    }

    /// Writes the file if that is due, on the blocking pool.
    pub(super) fn save(&mut self, now: Moment) {
        let Some(file) = self.file.clone() else { return };
        if now < self.due || self.writing.as_ref().is_some_and(|writing| !writing.is_finished()) {
            return;
        }
        self.due = now.after(WRITE_EVERY);
        let uptime = self.uptime.clone();
        self.writing = Some(tokio::task::spawn_blocking(move || write(&file, &uptime)));
    }
}

fn write(file: &UptimeFile, uptime: &Uptime) {
    if let Err(error) = file.write(uptime) {
        warn!(%error, "the file CLOCK in the data directory cannot be written: if the clock is set before a restart, dead letters and idempotency keys may have the wrong age");
    }
}

fn log_step(step: ClockStep, when: &str) {
    const COUNTS: &str = "it does not count for --dead-letter-retention and --idempotency-window";
    match step {
        ClockStep::Forward(by) if by < WARN_FROM => {
            info!(seconds = by.as_secs(), "the clock has moved forward {when}: {COUNTS}");
        }
        ClockStep::Forward(by) => {
            warn!(
                seconds = by.as_secs(),
                "the clock has moved forward by {} {when}: {COUNTS}",
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
    async fn a_clock_step_while_the_daemon_runs_is_written_at_once_and_read_at_the_next_start() {
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
