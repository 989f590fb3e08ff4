//! Requests that stay: streams of events, and those who wait for a barrier.
//!
//! Their clients have asked for all that they want, so none of them gives its connection up for
//! another. Without a share of their own, whoever opens enough of them would keep all others out.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{Inbound, Problem};

/// Of so many connections one may stay.
const OF_CONNECTIONS: usize = 4;

/// Streams open at once.
const MAX_STREAMS: usize = 64;

/// Room for those who stay.
#[derive(Debug)]
pub(in crate::server) struct LongPolls {
    all: Arc<Semaphore>,
    most: usize,
    streams: Arc<Semaphore>,
}

/// The room of one of them, free again when it is dropped.
#[derive(Debug)]
pub(super) struct Stay {
    _one: OwnedSemaphorePermit,
    _stream: Option<OwnedSemaphorePermit>,
}

impl LongPolls {
    pub(in crate::server) fn new(max_connections: usize) -> Self {
        let most = (max_connections / OF_CONNECTIONS).clamp(1, Semaphore::MAX_PERMITS);
        let all = Arc::new(Semaphore::new(most));
        Self { all, most, streams: Arc::new(Semaphore::new(MAX_STREAMS)) }
    }
}

impl Inbound {
    /// Room for one that waits.
    pub(super) fn stay(&self) -> Result<Stay, Problem> {
        let LongPolls { all, most, .. } = &self.long_polls;
        let one = Arc::clone(all).try_acquire_owned().map_err(|_| Problem::Unavailable {
            error: format!(
                "too many requests wait or stream events, the limit is {most} (a quarter of --max-connections)"
            ),
            retry_after: self.handle.retry_after(),
        })?;
        Ok(Stay { _one: one, _stream: None })
    }

    /// Room for a stream.
    pub(super) fn stream(&self) -> Result<Stay, Problem> {
        let streams = Arc::clone(&self.long_polls.streams);
        let stream = streams.try_acquire_owned().map_err(|_| Problem::Unavailable {
            error: format!("{MAX_STREAMS} streams of events are open, the limit"),
            retry_after: self.handle.retry_after(),
        })?;
        Ok(Stay { _stream: Some(stream), ..self.stay()? })
    }
}
