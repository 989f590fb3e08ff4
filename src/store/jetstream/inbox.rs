//! Messages that are not stored: those of other instances, and the answers to a request that has several.

use std::time::Duration;

use async_nats::{Client, Subject, Subscriber};
use bytes::Bytes;
use futures_util::StreamExt;
use thiserror::Error;
use tokio::time::timeout;
use tracing::error;

use super::connect::Store;

/// Nothing is known of what it would have done.
#[derive(Debug, Error)]
#[error("the request could not be sent")]
pub(super) struct NotSent;

impl Store {
    /// Calls `take` with each message of a subject from now on, on the runtime of the caller.
    pub(super) async fn listen(
        &self,
        subject: String,
        mut take: impl FnMut(Bytes) + Send + 'static,
    ) {
        match self.client().subscribe(subject).await {
            Ok(mut messages) => {
                tokio::spawn(async move {
                    while let Some(message) = messages.next().await {
                        take(message.payload);
                    }
                });
            }
            Err(error) => error!(%error, "cannot listen to other instances"),
        }
    }
}

/// Sends a request, and listens at `inbox` for its answers. Gives up after `within`: without a
/// connection, the client takes a limited number of messages and then waits for one.
pub(super) async fn request_all(
    client: &Client,
    subject: impl Into<Subject>,
    inbox: String,
    payload: Bytes,
    within: Duration,
) -> Result<Subscriber, NotSent> {
    let subject = subject.into();
    let send = async {
        let answers = client.subscribe(inbox.clone()).await.ok()?;
        client.publish_with_reply(subject, inbox, payload).await.ok()?;
        Some(answers)
    };
    timeout(within, send).await.ok().flatten().ok_or(NotSent)
}
