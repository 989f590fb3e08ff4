//! Limits long-lived requests: event streams and waits for barriers.
//!
//! Their connections are never evicted, since their requests are complete. Without a limit of their
//! own, enough of them would lock all other clients out. Each client has a share of the limit.

use super::{Problem, ServerState};
use crate::server::access::Caller;
use crate::server::client_pool::{ClientPool, PoolShare};

/// Long-lived requests may use one in this many connections.
const CONNECTIONS_PER_REQUEST: usize = 4;

const MAX_STREAMS: usize = 64;

#[derive(Debug)]
pub(in crate::server) struct LongPolls {
    all: ClientPool,
    limit: usize,
    streams: ClientPool,
}

/// The permit of one long-lived request, released on drop.
#[derive(Debug)]
pub(super) struct Stay {
    _one: PoolShare,
    _stream: Option<PoolShare>,
}

impl LongPolls {
    pub(in crate::server) fn new(max_connections: usize) -> Self {
        let limit = (max_connections / CONNECTIONS_PER_REQUEST).max(1);
        Self { all: ClientPool::new(limit), limit, streams: ClientPool::new(MAX_STREAMS) }
    }
}

impl ServerState {
    pub(super) fn stay(&self, caller: &Caller) -> Result<Stay, Problem> {
        let LongPolls { all, limit, .. } = &self.long_polls;
        let one = all.try_take(&caller.client(), 1).ok_or_else(|| Problem::Unavailable {
            error: format!(
                "too many requests wait or stream events, the limit is {limit} (a quarter of --max-connections), of which each client has a share"
            ),
            retry_after: self.handle.retry_after(),
        })?;
        Ok(Stay { _one: one, _stream: None })
    }

    pub(super) fn stream(&self, caller: &Caller) -> Result<Stay, Problem> {
        let stream = self.long_polls.streams.try_take(&caller.client(), 1);
        let stream = stream.ok_or_else(|| Problem::Unavailable {
            error: format!(
                "too many event streams are open, the limit is {MAX_STREAMS}, of which each client has a share"
            ),
            retry_after: self.handle.retry_after(),
        })?;
        Ok(Stay { _stream: Some(stream), ..self.stay(caller)? })
    }
}
