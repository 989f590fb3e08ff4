//! The deadline of an attempt.
//!
//! A small request may take [`ClientSettings::request_timeout`] in total. A large body may take that
//! long without progress, and in total as long as it takes at [`AttemptLimits::slowest`].
//!
//! Time is counted in steps. A step that ends much too late does not count: this process did not
//! run (stopped, suspended, starved), so the silence is not the replica's. Of two late steps in a
//! row the second counts, so that attempts also end on a machine that is always late.
//!
//! [`ClientSettings::request_timeout`]: super::ClientSettings::request_timeout

#![expect(clippy::disallowed_methods, reason = "measures how long a step really took")]

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::upload::UploadProgress;

/// An attempt that is answered within one step sets one timer.
const STEP: Duration = Duration::from_millis(500);

const LATE: Duration = Duration::from_millis(500);

/// Extra time after the deadline. The answer may be in the socket while the task that reads the
/// connection waits for a processor.
const LAST_LOOK: Duration = Duration::from_millis(20);

/// Bytes that were taken but may still be in buffers: 256 KiB of ours, and the socket buffers
/// (Linux: up to 4 MiB for sending). They drain at [`AttemptLimits::slowest`].
const BUFFERED: u64 = 4 << 20;

#[derive(Clone, Copy, Debug)]
pub(super) struct AttemptLimits {
    pub(super) silence: Duration,
    /// Lowest accepted upload rate, in bytes per second.
    pub(super) slowest: u64,
}

impl AttemptLimits {
    fn time_for(&self, bytes: u64) -> Duration {
        let millis = bytes.saturating_mul(1_000) / self.slowest.max(1);
        Duration::from_millis(millis)
    }
}

#[derive(Debug)]
pub(super) struct Patience {
    limits: AttemptLimits,
    upload: Option<Arc<UploadProgress>>,
    taken: u64,
    /// Counted time since the last progress.
    silent: Duration,
    /// Counted time of all requests of the attempt.
    total: Duration,
    forgave: bool,
    slept: bool,
}

impl Patience {
    pub(super) fn new(limits: AttemptLimits) -> Self {
        let (silent, total) = (Duration::ZERO, Duration::ZERO);
        Self { limits, upload: None, taken: 0, silent, total, forgave: false, slept: false }
    }

    /// Starts a request. `upload` is the progress of a large body. The time of an earlier request
    /// still counts towards the total; its progress does not.
    pub(super) fn watch(&mut self, upload: Option<Arc<UploadProgress>>) {
        if upload.is_some() {
            (self.taken, self.silent) = (0, Duration::ZERO);
        }
        self.upload = upload;
    }

    /// Runs `work` until the deadline; `None` means that it passed. An output that is ready wins
    /// over the deadline.
    pub(super) async fn until<F: Future>(&mut self, mut work: Pin<&mut F>) -> Option<F::Output> {
        loop {
            let Some(step) = self.step() else {
                return timeout(LAST_LOOK, work).await.ok();
            };
            let began = Instant::now();
            let output = timeout(step, &mut work).await;
            self.end_step(step, began.elapsed());
            if let Ok(output) = output {
                return Some(output);
            }
        }
    }

    pub(super) fn slept(&self) -> bool {
        self.slept
    }

    pub(super) fn total(&self) -> Duration {
        self.total
    }

    pub(super) fn exceeded(&self) -> String {
        let silence = self.longest_silence();
        let total = self.longest_total();
        match &self.upload {
            Some(upload) if upload.taken() < upload.total() => {
                let (taken, bytes) = (upload.taken(), upload.total());
                if self.total >= total {
                    format!("too slow: {taken} of {bytes} bytes sent within {}", rounded(total))
                } else {
                    format!("no progress for {}: {taken} of {bytes} bytes sent", rounded(silence))
                }
            }
            _ => format!("no answer within {}", rounded(silence.min(total))),
        }
    }

    fn longest_silence(&self) -> Duration {
        self.limits.silence.saturating_add(self.limits.time_for(self.taken.min(BUFFERED)))
    }

    fn longest_total(&self) -> Duration {
        let bytes = self.upload.as_ref().map_or(0, |upload| upload.total());
        self.limits.silence.saturating_add(self.limits.time_for(bytes))
    }

    fn step(&self) -> Option<Duration> {
        let silence = self.longest_silence().saturating_sub(self.silent);
        let total = self.longest_total().saturating_sub(self.total);
        let left = silence.min(total);
        (!left.is_zero()).then(|| left.min(STEP))
    }

    fn end_step(&mut self, step: Duration, took: Duration) {
        let late = took > step + LATE;
        self.slept |= late;
        self.forgave = late && !self.forgave;
        let counts = if self.forgave { Duration::ZERO } else { took.min(step + LATE) };
        self.total += counts;
        self.silent += counts;
        if let Some(upload) = &self.upload {
            let taken = upload.taken();
            if taken != self.taken {
                self.taken = taken;
                self.silent = Duration::ZERO;
            }
        }
    }
}

fn rounded(time: Duration) -> humantime::FormattedDuration {
    let whole = time >= Duration::from_secs(10);
    humantime::format_duration(if whole { Duration::from_secs(time.as_secs()) } else { time })
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::pin::pin;

    use tokio::sync::oneshot;
    use tokio::time::{advance, sleep_until};

    use super::*;

    const LIMITS: AttemptLimits =
        AttemptLimits { silence: Duration::from_secs(5), slowest: 64 << 10 };

    async fn waited(upload: Option<Arc<UploadProgress>>) -> Duration {
        let mut patience = Patience::new(LIMITS);
        patience.watch(upload);
        let began = Instant::now();
        assert_eq!(patience.until(pin!(pending::<()>())).await, None);
        began.elapsed() - LAST_LOOK
    }

    fn taking(bytes: u64, progress: &Arc<UploadProgress>) {
        let progress = Arc::clone(progress);
        tokio::spawn(async move {
            let mut next = Instant::now();
            while progress.taken() < progress.total() {
                next += Duration::from_secs(1);
                sleep_until(next).await;
                progress.take(bytes.min(progress.total() - progress.taken()));
            }
        });
    }

    #[track_caller]
    fn about(waited: Duration, seconds: u64) {
        let (least, most) = (Duration::from_secs(seconds), Duration::from_secs(seconds + 2));
        assert!((least..most).contains(&waited), "expected about {seconds} s, got {waited:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_small_request_times_out_after_the_request_timeout() {
        about(waited(None).await, 5);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_without_progress_times_out_after_the_request_timeout() {
        about(waited(Some(UploadProgress::of_body(8 << 20))).await, 5);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_upload_does_not_time_out_while_it_makes_progress() {
        let progress = UploadProgress::of_body(8 << 20);
        taking(640 << 10, &progress);
        // 13 s for the body, then its last 4 MiB at the slowest rate, then the timeout.
        about(waited(Some(Arc::clone(&progress))).await, 13 + 64 + 5);
        assert_eq!(progress.taken(), progress.total());
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_is_read_byte_by_byte_times_out_at_the_slowest_rate() {
        let progress = UploadProgress::of_body(8 << 20);
        taking(1, &progress);
        about(waited(Some(progress)).await, 128 + 5);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_of_the_process_does_not_count_towards_the_timeout() {
        let mut patience = Patience::new(LIMITS);
        let began = Instant::now();
        tokio::spawn(async {
            sleep_until(Instant::now() + Duration::from_millis(4_700)).await;
            // Makes all timers late.
            advance(Duration::from_secs(3_600)).await;
        });
        assert_eq!(patience.until(pin!(pending::<()>())).await, None);
        assert!(patience.slept());
        let waited = began.elapsed() - Duration::from_secs(3_600) - LAST_LOOK;
        assert!(waited >= LIMITS.silence, "{waited:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_attempt_times_out_on_a_machine_that_is_always_late() {
        let mut patience = Patience::new(LIMITS);
        let steps = std::iter::from_fn(|| {
            let step = patience.step()?;
            patience.end_step(step, Duration::from_secs(60));
            Some(())
        });
        assert!(steps.count() <= 20);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_is_ready_wins_over_the_deadline() {
        let mut patience = Patience::new(LIMITS);
        let (answer, answered) = oneshot::channel();
        patience.total = LIMITS.silence;
        patience.silent = LIMITS.silence;
        tokio::spawn(async move { answer.send(()) });
        assert_eq!(patience.until(pin!(answered)).await, Some(Ok(())));
    }
}
