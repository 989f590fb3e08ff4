//! The task of one receiver: sends its queue in order, and retries.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::time::Instant;
use tracing::{info, warn};

use super::body::{self, NoticeOrigin};
use super::event::Notice;
use super::outbox::Outbox;
use super::post::{HttpClient, post};
use super::{NotifySecrets, NotifyUrl};
use crate::cli::notify::NotifyFormat;
use crate::clock::Clock;
use crate::metrics::{Counts, NoticeOutcome};
use crate::text::plain;

/// A notification that is older is given up.
const MAX_AGE: Duration = Duration::from_secs(6 * 60 * 60);

const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(10 * 60);

/// At most one warning about a receiver in this time.
const LOG_EVERY: Duration = Duration::from_secs(60);

pub(super) struct NoticeSender {
    pub(super) url: NotifyUrl,
    pub(super) outbox: Arc<Outbox>,
    pub(super) http: HttpClient,
    pub(super) secrets: Arc<ArcSwap<NotifySecrets>>,
    pub(super) format: NotifyFormat,
    pub(super) origin: NoticeOrigin,
    pub(super) counts: Arc<Counts>,
    pub(super) clock: Clock,
}

enum NoticeResult {
    Delivered,
    /// Sending it again would not help.
    GivenUp(String),
    Failed {
        error: String,
        retry_after: Option<Duration>,
    },
}

impl NoticeSender {
    /// Ends when the outbox is closed: then each notice is tried once more, until one fails.
    pub(super) async fn run(self) {
        let mut health = ReceiverHealth::default();
        while let Some(notice) = self.outbox.next().await {
            if !self.deliver(&notice, &mut health).await {
                return;
            }
            self.outbox.done();
        }
    }

    /// Sends a notice until it is delivered or given up. False if the outbox was closed before.
    async fn deliver(&self, notice: &Notice, health: &mut ReceiverHealth) -> bool {
        loop {
            let result = match notice.since.elapsed() {
                age if age > MAX_AGE => NoticeResult::GivenUp("it is too old".to_owned()),
                _ => self.attempt(notice).await,
            };
            let now = self.clock.instant(self.clock.now().moment);
            match result {
                NoticeResult::Delivered => {
                    self.counts.notified(NoticeOutcome::Delivered);
                    if health.succeeded() {
                        info!(receiver = %self.url, "the receiver accepts notifications again");
                    }
                    return true;
                }
                NoticeResult::GivenUp(error) => {
                    self.counts.notified(NoticeOutcome::GivenUp);
                    if health.may_warn(now) {
                        let kind = notice.event.name();
                        warn!(receiver = %self.url, kind, %error, "a notification is given up");
                    }
                    return true;
                }
                NoticeResult::Failed { error, retry_after } => {
                    self.counts.notified(NoticeOutcome::Retried);
                    health.failures = health.failures.saturating_add(1);
                    if health.may_warn(now) {
                        let (failures, waiting) = (health.failures, self.outbox.unsent());
                        warn!(receiver = %self.url, failures, waiting, %error, "a notification cannot be sent; it is retried for 6 hours");
                    }
                    if self.outbox.is_closed() {
                        return false;
                    }
                    let wait = health.wait(fastrand::f64()).max(retry_after.unwrap_or_default());
                    tokio::select! {
                        () = tokio::time::sleep(wait) => {}
                        () = self.outbox.closed() => {}
                    }
                }
            }
        }
    }

    async fn attempt(&self, notice: &Notice) -> NoticeResult {
        let body = body::of(self.format, notice, &self.origin);
        let secrets = self.secrets.load_full();
        match post(&self.http, &self.url, &secrets, &notice.id, &body).await {
            Ok(answer) if answer.is_success() => NoticeResult::Delivered,
            Ok(answer) => {
                let text: String = answer.body.chars().take(200).collect();
                let error = format!("status {} {}", answer.status, plain(&text));
                if answer.is_final() {
                    NoticeResult::GivenUp(error)
                } else {
                    NoticeResult::Failed { error, retry_after: answer.retry_after }
                }
            }
            Err(error) => NoticeResult::Failed { error: error.to_string(), retry_after: None },
        }
    }
}

/// Whether a receiver answers, and what the log has about it.
#[derive(Debug, Default)]
struct ReceiverHealth {
    /// Failed attempts in a row.
    failures: u32,
    /// The log says that it fails.
    has_warned: bool,
    last_warning: Option<Instant>,
}

impl ReceiverHealth {
    /// True if the log must say that it accepts notifications again.
    fn succeeded(&mut self) -> bool {
        self.failures = 0;
        std::mem::take(&mut self.has_warned)
    }

    fn may_warn(&mut self, now: Instant) -> bool {
        let since = self.last_warning.map(|last| now.saturating_duration_since(last));
        if since.is_some_and(|since| since < LOG_EVERY) {
            return false;
        }
        self.last_warning = Some(now);
        self.has_warned = true;
        true
    }

    /// Doubles with each failure; `jitter` is 0 to 1.
    fn wait(&self, jitter: f64) -> Duration {
        let doublings = self.failures.saturating_sub(1).min(20);
        let longest = FIRST_WAIT.saturating_mul(1 << doublings).min(LONGEST_WAIT);
        longest.mul_f64(0.5 + jitter / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_doubles_up_to_ten_minutes() {
        let wait = |failures, jitter| {
            let health = ReceiverHealth { failures, ..ReceiverHealth::default() };
            health.wait(jitter).as_secs_f64()
        };
        assert_eq!((wait(1, 0.0), wait(1, 1.0)), (0.5, 1.0));
        assert_eq!((wait(2, 1.0), wait(4, 1.0)), (2.0, 8.0));
        assert_eq!((wait(11, 1.0), wait(u32::MAX, 1.0)), (600.0, 600.0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_receiver_that_flaps_causes_one_warning_a_minute() {
        let clock = Clock::start();
        let (mut health, mut warnings, mut ends) = (ReceiverHealth::default(), 0, 0);
        for _ in 0..600 {
            tokio::time::advance(Duration::from_millis(500)).await;
            warnings += u32::from(health.may_warn(clock.instant(clock.now().moment)));
            ends += u32::from(health.succeeded());
        }
        assert_eq!((warnings, ends), (5, 5));
    }
}
