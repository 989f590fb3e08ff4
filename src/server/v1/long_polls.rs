//! Limits long-lived requests: event streams and waits for barriers.
//!
//! Their connections are never evicted, since their requests are complete. Without a limit of their
//! own, enough of them would lock all other clients out.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{Problem, ServerState};

/// Long-lived requests may use one in this many connections.
const CONNECTIONS_PER_REQUEST: usize = 4;

const MAX_STREAMS: usize = 64;

#[derive(Debug)]
pub(in crate::server) struct LongPolls {
    all: Arc<Semaphore>,
    limit: usize,
    streams: Arc<Semaphore>,
}

/// The permit of one long-lived request, released on drop.
#[derive(Debug)]
pub(super) struct Stay {
    _one: OwnedSemaphorePermit,
    _stream: Option<OwnedSemaphorePermit>,
}

impl LongPolls {
    pub(in crate::server) fn new(max_connections: usize) -> Self {
        let limit = (max_connections / CONNECTIONS_PER_REQUEST).clamp(1, Semaphore::MAX_PERMITS);
        let all = Arc::new(Semaphore::new(limit));
        Self { all, limit, streams: Arc::new(Semaphore::new(MAX_STREAMS)) }
    }
}

impl ServerState {
    pub(super) fn stay(&self) -> Result<Stay, Problem> {
        let LongPolls { all, limit, .. } = &self.long_polls;
        let one = Arc::clone(all).try_acquire_owned().map_err(|_| Problem::Unavailable {
            error: format!(
                "too many requests wait or stream events, the limit is {limit} (a quarter of --max-connections)"
            ),
            retry_after: self.handle.retry_after(),
        })?;
        Ok(Stay { _one: one, _stream: None })
    }

    pub(super) fn stream(&self) -> Result<Stay, Problem> {
        let streams = Arc::clone(&self.long_polls.streams);
        let stream = streams.try_acquire_owned().map_err(|_| Problem::Unavailable {
            error: format!("too many event streams are open, the limit is {MAX_STREAMS}"),
            retry_after: self.handle.retry_after(),
        })?;
        Ok(Stay { _stream: Some(stream), ..self.stay()? })
    }
}
