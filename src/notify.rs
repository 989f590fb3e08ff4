//! Notifications: small JSON requests to the receivers of the operator (`--notify-url`), signed as
//! Standard Webhooks specifies.
//!
//! [`Notifier::send`] puts an event into the queue of each receiver and returns at once. One task per
//! receiver sends its queue in order, on the threads for outbound work. A receiver that is slow, dead
//! or hostile fills its own queue and delays nothing else.
//!
//! The URLs come from the operator, so the policy for replicas does not apply. A URL may contain a
//! secret: only its scheme and host are shown.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use thiserror::Error;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tracing::{error, info, warn};

use crate::cli::notify::NotifyFormat;
use crate::clock::Clock;
use crate::metrics::{Counts, NoticeOutcome};

mod address;
mod body;
mod event;
mod outbox;
mod post;
mod secrets;
mod sender;

pub use address::NotifyUrl;
pub use event::{Condition, NewLetters, NotifyEvent};
pub(crate) use post::{HttpClient, PostAnswer};
pub use secrets::{NotifySecretError, NotifySecrets};

use body::NoticeOrigin;
use event::Notice;
use outbox::Outbox;
use sender::NoticeSender;

/// The time for the last notifications when the daemon stops.
const STOP_TIMEOUT: Duration = Duration::from_secs(1);

/// Limit of one request, answer included.
pub(crate) const POST_TIMEOUT: Duration = Duration::from_secs(15);

#[derive(Clone, Debug)]
pub struct NotifyConfig {
    pub urls: Vec<NotifyUrl>,
    pub format: NotifyFormat,
    pub secret_file: Option<PathBuf>,
    /// The name of this instance, and of its cluster.
    pub node_id: String,
    pub cluster: Option<String>,
}

impl NotifyConfig {
    /// Without a file there are no secrets, and nothing is signed.
    pub(crate) fn secrets(&self) -> Result<NotifySecrets, NotifySecretError> {
        self.secret_file
            .as_deref()
            .map_or_else(|| Ok(NotifySecrets::default()), NotifySecrets::read)
    }

    fn origin(&self) -> NoticeOrigin {
        NoticeOrigin { node_id: self.node_id.clone(), cluster: self.cluster.clone() }
    }
}

/// Queues notifications; by default it drops them. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Notifier(Option<Arc<ActiveNotifier>>);

struct ActiveNotifier {
    config: NotifyConfig,
    clock: Clock,
    counts: Arc<Counts>,
    outboxes: Vec<Arc<Outbox>>,
    secrets: Arc<ArcSwap<NotifySecrets>>,
}

/// The tasks of [`Notifier::start`].
#[derive(Debug, Default)]
pub(crate) struct NoticeSenders(Vec<JoinHandle<()>>);

impl Notifier {
    /// Starts a task for each receiver.
    pub(crate) fn start(
        config: &NotifyConfig,
        http: &HttpClient,
        clock: Clock,
        counts: &Arc<Counts>,
        runtime: &Handle,
    ) -> Result<(Self, NoticeSenders), NotifySecretError> {
        let secrets = Arc::new(ArcSwap::from_pointee(config.secrets()?));
        let mut active = ActiveNotifier {
            config: config.clone(),
            clock,
            counts: Arc::clone(counts),
            outboxes: Vec::new(),
            secrets,
        };
        let mut senders = Vec::new();
        for url in &config.urls {
            let outbox = Arc::<Outbox>::default();
            let sender = NoticeSender {
                url: url.clone(),
                outbox: Arc::clone(&outbox),
                http: http.clone(),
                secrets: Arc::clone(&active.secrets),
                format: config.format,
                origin: config.origin(),
                counts: Arc::clone(counts),
                clock,
            };
            senders.push(runtime.spawn(sender.run()));
            active.outboxes.push(outbox);
            info!(receiver = %url, format = config.format.as_str(), "notifications are sent");
            if !url.is_encrypted() && !url.is_loopback() {
                warn!(receiver = %url, "notifications to this receiver are not encrypted: use https");
            }
        }
        Ok((Self(Some(Arc::new(active))), NoticeSenders(senders)))
    }

    pub(crate) fn is_off(&self) -> bool {
        self.0.is_none()
    }

    /// Queues an event for each receiver. Waits for nothing.
    pub(crate) fn send(&self, event: NotifyEvent) {
        let Some(active) = &self.0 else { return };
        let notice = Arc::new(Notice::new(active.clock, event));
        for outbox in &active.outboxes {
            for _ in 0..outbox.push(Arc::clone(&notice)) {
                active.counts.notified(NoticeOutcome::Dropped);
            }
        }
    }

    /// Reads the secrets again. Those in force stay if the file cannot be used. Blocks.
    pub(crate) fn reload(&self) {
        let Some(active) = &self.0 else { return };
        match active.config.secrets() {
            Ok(secrets) if active.config.secret_file.is_some() => {
                active.secrets.store(Arc::new(secrets));
                info!("the secrets of notifications (--notify-secret-file) are reloaded");
            }
            Ok(_) => {}
            Err(error) => {
                error!(%error, "the secrets of notifications are not reloaded and stay as they were");
            }
        }
    }

    /// Tries once more to send what is queued, within a second; the rest is lost.
    pub(crate) async fn stop(&self, senders: NoticeSenders) {
        let Some(active) = &self.0 else { return };
        active.outboxes.iter().for_each(|outbox| outbox.close());
        let aborts: Vec<_> = senders.0.iter().map(JoinHandle::abort_handle).collect();
        let ended = async {
            for sender in senders.0 {
                // A sender that panicked has ended too.
                let _ = sender.await;
            }
        };
        let _ = tokio::time::timeout(STOP_TIMEOUT, ended).await;
        aborts.iter().for_each(tokio::task::AbortHandle::abort);
        let lost: usize = active.outboxes.iter().map(|outbox| outbox.unsent()).sum();
        if lost > 0 {
            (0..lost).for_each(|_| active.counts.notified(NoticeOutcome::Dropped));
            warn!(
                notifications = lost,
                "notifications that could not be sent before the stop are lost"
            );
        }
    }
}

impl fmt::Debug for Notifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Notifier").field(&self.0.is_some()).finish()
    }
}

/// Sends one test notification to each receiver, and returns the outcome of each.
pub(crate) async fn test(
    config: &NotifyConfig,
    http: &HttpClient,
) -> Result<Vec<(NotifyUrl, Result<PostAnswer, PostError>)>, NotifySecretError> {
    let secrets = config.secrets()?;
    let notice = Notice::new(Clock::start(), NotifyEvent::Test);
    let body = body::of(config.format, &notice, &config.origin());
    let mut answers = Vec::new();
    for url in &config.urls {
        answers.push((url.clone(), post::post(http, url, &secrets, &notice.id, &body).await));
    }
    Ok(answers)
}

/// There is no answer. The text contains no URL.
#[derive(Debug, Error)]
#[error("{0}")]
pub(crate) struct PostError(String);
