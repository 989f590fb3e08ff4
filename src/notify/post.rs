//! One request to a receiver, and its answer.

use std::error::Error as _;
use std::time::Duration;

use super::{NotifySecrets, NotifyUrl, POST_TIMEOUT, PostError};
use crate::clock::wall_clock;

/// The client of `replica::http_client`.
pub(crate) type HttpClient = reqwest::Client;

/// So much of an answer is read, to show it.
const MAX_ANSWER_BYTES: usize = 1024;

/// Shown instead of a body that quotes the URL.
const QUOTES_URL: &str = "(an answer that quotes the URL)";

/// Time to read the rest of an answer whose status is known.
const READ_TIMEOUT: Duration = Duration::from_secs(1);

const MAX_RETRY_AFTER: Duration = Duration::from_secs(60 * 60);

pub(crate) struct PostAnswer {
    pub(crate) status: u16,
    pub(super) retry_after: Option<Duration>,
    /// The beginning of the body, unless it quotes the URL.
    pub(crate) body: String,
}

impl PostAnswer {
    pub(crate) fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// The receiver will not accept this notification later either.
    pub(super) fn is_final(&self) -> bool {
        matches!(self.status, 400 | 410 | 413 | 422)
    }
}

/// The timestamp and the signature are those of this attempt.
pub(super) async fn post(
    http: &HttpClient,
    url: &NotifyUrl,
    secrets: &NotifySecrets,
    id: &str,
    body: &str,
) -> Result<PostAnswer, PostError> {
    let seconds = wall_clock().0 / 1_000_000_000;
    let mut request = http
        .post(url.reveal().clone())
        .header("content-type", "application/json")
        .header("user-agent", concat!("replicator/", env!("CARGO_PKG_VERSION")))
        .header("webhook-id", id)
        .header("webhook-timestamp", seconds);
    if let Some(signature) = secrets.sign(id, seconds, body) {
        request = request.header("webhook-signature", signature);
    }
    let mut response =
        request.body(body.to_owned()).send().await.map_err(|error| failed(&error))?;
    let status = response.status().as_u16();
    let retry_after = response.headers().get("retry-after");
    let retry_after = retry_after.and_then(|value| value.to_str().ok()?.parse().ok());
    let mut read = Vec::new();
    let reading = async {
        while read.len() < MAX_ANSWER_BYTES
            && let Ok(Some(chunk)) = response.chunk().await
        {
            let room = MAX_ANSWER_BYTES - read.len();
            read.extend_from_slice(chunk.get(..room).unwrap_or(&chunk));
        }
    };
    // The status decides. A body that does not end only costs its connection.
    let _ = tokio::time::timeout(READ_TIMEOUT, reading).await;
    let body = String::from_utf8_lossy(&read).into_owned();
    Ok(PostAnswer {
        status,
        retry_after: retry_after.map(|seconds| Duration::from_secs(seconds).min(MAX_RETRY_AFTER)),
        body: if url.is_quoted_by(&body) { QUOTES_URL.to_owned() } else { body },
    })
}

/// The text of reqwest contains the URL; its last cause does not.
fn failed(error: &reqwest::Error) -> PostError {
    if error.is_timeout() {
        return PostError(format!("no answer within {} s", POST_TIMEOUT.as_secs()));
    }
    let causes = std::iter::successors(error.source(), |&cause| cause.source());
    PostError(causes.last().map_or_else(|| "the request failed".to_owned(), ToString::to_string))
}
