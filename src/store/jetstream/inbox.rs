//! Requests whose answer is a series of messages.

use std::time::Duration;

use async_nats::{Client, Subject, Subscriber};
use bytes::Bytes;
use thiserror::Error;
use tokio::time::timeout;

/// Nothing is known of what it would have done.
#[derive(Debug, Error)]
#[error("the request could not be sent")]
pub(super) struct NotSent;

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
