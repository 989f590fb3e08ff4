//! How long an attempt may take.
//!
//! A small request may take [`Settings::request_timeout`] in all. A large body may take that long
//! without progress, and in all as long as the slowest replica that is served needs for it.
//!
//! The time is counted in steps, and a step that ends much too late is not counted: then this
//! process did not run (it was stopped, suspended with its machine, or starved), and the silence
//! is its own. A step that ends late after another one counts, so that an attempt ends on a
//! machine that is always late, too.
//!
//! [`Settings::request_timeout`]: super::Settings::request_timeout

#![expect(clippy::disallowed_methods, reason = "a step is compared with the time that it took")]

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::upload::Progress;

/// The steps in which time is counted. An attempt that is answered within one sets one timer.
const STEP: Duration = Duration::from_millis(500);

/// A step that ends later than this was overslept.
const LATE: Duration = Duration::from_millis(500);

/// After the deadline the answer gets one more chance: it may be in the socket, and the task of
/// the connection, which reads it, may wait for the processor.
const LAST_LOOK: Duration = Duration::from_millis(20);

/// How much of a body that was taken may still lie in buffers: 256 KiB of ours and those of both
/// kernels (Linux: up to 4 MiB for sending). It is on its way at [`Limits::slowest`].
const BUFFERED: u64 = 4 << 20;

/// The limits of all attempts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Without progress.
    pub(super) silence: Duration,
    /// The lowest rate of a body, in bytes a second.
    pub(super) slowest: u64,
}

impl Limits {
    fn time_for(&self, bytes: u64) -> Duration {
        let millis = bytes.saturating_mul(1_000) / self.slowest.max(1);
        Duration::from_millis(millis)
    }
}

/// The time that an attempt has left.
#[derive(Debug)]
pub(super) struct Patience {
    limits: Limits,
    upload: Option<Arc<Progress>>,
    /// What of the body was taken when it was last looked at.
    taken: u64,
    /// The time that has counted, since the last progress and in all.
    silent: Duration,
    total: Duration,
    /// The last step ended late and did not count.
    forgave: bool,
    slept: bool,
}

impl Patience {
    pub(super) fn new(limits: Limits) -> Self {
        let (silent, total) = (Duration::ZERO, Duration::ZERO);
        Self { limits, upload: None, taken: 0, silent, total, forgave: false, slept: false }
    }

    /// A request goes out, with the progress of its body where that is large. The time of a
    /// request before it counts in all, and its progress does not.
    pub(super) fn watch(&mut self, upload: Option<Arc<Progress>>) {
        if upload.is_some() {
            (self.taken, self.silent) = (0, Duration::ZERO);
        }
        self.upload = upload;
    }

    /// The output of `work`, or `None` if it has none in the time that is left. An output that is
    /// there wins over the deadline.
    pub(super) async fn until<F: Future>(&mut self, work: F) -> Option<F::Output> {
        let mut work = pin!(work);
        loop {
            let Some(step) = self.step() else {
                return timeout(LAST_LOOK, work).await.ok();
            };
            let began = Instant::now();
            let output = timeout(step, &mut work).await;
            self.passed(step, began.elapsed());
            if let Ok(output) = output {
                return Some(output);
            }
        }
    }

    /// Whether this process did not run for a while during the attempt.
    pub(super) fn slept(&self) -> bool {
        self.slept
    }

    /// The time that it has taken so far, without what did not count.
    pub(super) fn total(&self) -> Duration {
        self.total
    }

    /// What the replica did not do, for an attempt that is over.
    pub(super) fn exceeded(&self) -> String {
        let limit = self.longest_silence();
        let in_all = self.longest_total();
        match &self.upload {
            Some(upload) if upload.taken() < upload.of() && self.total >= in_all => format!(
                "too slow: {} of {} bytes taken within {}",
                upload.taken(),
                upload.of(),
                rounded(in_all)
            ),
            Some(upload) if upload.taken() < upload.of() => format!(
                "no progress for {}: {} of {} bytes taken",
                rounded(limit),
                upload.taken(),
                upload.of()
            ),
            _ => format!("no answer within {}", rounded(limit.min(in_all))),
        }
    }

    fn longest_silence(&self) -> Duration {
        self.limits.silence.saturating_add(self.limits.time_for(self.taken.min(BUFFERED)))
    }

    fn longest_total(&self) -> Duration {
        let bytes = self.upload.as_ref().map_or(0, |upload| upload.of());
        self.limits.silence.saturating_add(self.limits.time_for(bytes))
    }

    /// How long it may go on until the time is looked at again.
    fn step(&self) -> Option<Duration> {
        let silence = self.longest_silence().saturating_sub(self.silent);
        let total = self.longest_total().saturating_sub(self.total);
        let left = silence.min(total);
        (!left.is_zero()).then(|| left.min(STEP))
    }

    /// A step has ended that took so long.
    fn passed(&mut self, step: Duration, took: Duration) {
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

/// In whole seconds, where it is long.
fn rounded(time: Duration) -> humantime::FormattedDuration {
    let whole = time >= Duration::from_secs(10);
    humantime::format_duration(if whole { Duration::from_secs(time.as_secs()) } else { time })
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::sync::oneshot;
    use tokio::time::{advance, sleep_until};

    use super::*;

    const LIMITS: Limits = Limits { silence: Duration::from_secs(5), slowest: 64 << 10 };

    /// How long it waits for an answer that never comes, while `upload` happens.
    async fn waited(upload: Option<Arc<Progress>>) -> Duration {
        let mut patience = Patience::new(LIMITS);
        patience.watch(upload);
        let began = Instant::now();
        assert_eq!(patience.until(pending::<()>()).await, None);
        began.elapsed() - LAST_LOOK
    }

    /// Takes `bytes` of a body each second.
    fn taking(bytes: u64, progress: &Arc<Progress>) {
        let progress = Arc::clone(progress);
        tokio::spawn(async move {
            let mut next = Instant::now();
            while progress.taken() < progress.of() {
                next += Duration::from_secs(1);
                sleep_until(next).await;
                progress.take(bytes.min(progress.of() - progress.taken()));
            }
        });
    }

    fn about(waited: Duration, seconds: u64) {
        let (least, most) = (Duration::from_secs(seconds), Duration::from_secs(seconds + 2));
        assert!((least..most).contains(&waited), "{waited:?}, not {seconds} s");
    }

    #[tokio::test(start_paused = true)]
    async fn a_small_request_may_take_the_timeout_in_all() {
        about(waited(None).await, 5);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_of_which_nothing_is_taken_may_take_the_timeout() {
        about(waited(Some(Progress::of_body(8 << 20))).await, 5);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_upload_takes_as_long_as_it_makes_progress() {
        let progress = Progress::of_body(8 << 20);
        taking(640 << 10, &progress);
        // 13 seconds for the body, then its last 4 MiB at the slowest rate, then the timeout.
        about(waited(Some(Arc::clone(&progress))).await, 13 + 64 + 5);
        assert_eq!(progress.taken(), progress.of());
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_is_taken_byte_by_byte_fails_when_the_slowest_replica_would_have_it() {
        let progress = Progress::of_body(8 << 20);
        taking(1, &progress);
        about(waited(Some(progress)).await, 128 + 5);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_of_the_process_does_not_count() {
        let mut patience = Patience::new(LIMITS);
        let began = Instant::now();
        tokio::spawn(async {
            sleep_until(Instant::now() + Duration::from_millis(4_700)).await;
            // All timers are late by this.
            advance(Duration::from_secs(3_600)).await;
        });
        assert_eq!(patience.until(pending::<()>()).await, None);
        assert!(patience.slept());
        let waited = began.elapsed() - Duration::from_secs(3_600) - LAST_LOOK;
        assert!(waited >= LIMITS.silence, "{waited:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_machine_that_is_always_late_ends_an_attempt_as_well() {
        let mut patience = Patience::new(LIMITS);
        let steps = std::iter::from_fn(|| {
            let step = patience.step()?;
            patience.passed(step, Duration::from_secs(60));
            Some(())
        });
        assert!(steps.count() <= 20);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_is_there_wins_over_the_deadline() {
        let mut patience = Patience::new(LIMITS);
        let (answer, answered) = oneshot::channel();
        patience.total = LIMITS.silence;
        patience.silent = LIMITS.silence;
        tokio::spawn(async move { answer.send(()) });
        assert_eq!(patience.until(answered).await, Some(Ok(())));
    }
}
