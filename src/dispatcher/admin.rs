//! Requests of operators. Each resource has a file with the methods of [`Handle`] that send its
//! requests to the loop, and the methods of [`Core`] that answer them.
//!
//! The loop looks only at the engine. Rows are read from disk in a task of their own, and a list is
//! searched in parts, so that no request holds up the loop.

use std::collections::VecDeque;
use std::io;

use serde::Serialize;
use tokio::sync::oneshot;

use crate::dispatcher::bulk::Operations;
use crate::dispatcher::messages::{AdminError, AdminReply, ListPart, Request};
use crate::dispatcher::replica_registry::RegistryChange;
use crate::dispatcher::{Core, Handle};
use crate::engine::DeliveryFilter;
use crate::store::{CommitError, Header, Journal, RecordCause};
use crate::task::{Node, TaskId};

pub(super) mod barriers;
pub(super) mod dead_letters;
pub(super) mod keys;
mod letter_summary;
mod past;
pub(super) mod replicas;
mod snapshots;
pub(super) mod tasks;
mod verify;

use barriers::CountingBarrier;
use replicas::Forgetting;

/// Parts that one page of a list may search: a few hundred thousand tasks.
const MAX_PARTS: usize = 16;
/// A page ends with the item that exceeds it. A task with many replicas and long errors is shown in
/// tens of kilobytes, so a thousand of them would be too much for one answer.
pub(super) const PAGE_BYTES: usize = 1 << 20;

/// Rows that are read for one part.
const READS: usize = 1000;

/// The admin requests that take more than one turn of the loop.
#[derive(Debug, Default)]
pub(crate) struct PendingAdmin {
    forgetting: Vec<Forgetting>,
    /// The engine counts one barrier at a time.
    counting: VecDeque<CountingBarrier>,
    /// Shared with the handle.
    pub(super) operations: Operations,
}

impl PendingAdmin {
    pub(crate) fn new(operations: Operations) -> Self {
        Self { operations, ..Self::default() }
    }
}

impl Handle {
    async fn ask<T>(
        &self,
        request: impl FnOnce(AdminReply<T>) -> Request,
    ) -> Result<T, AdminError> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(request(reply)).map_err(|_| AdminError::Stopped)?;
        answer.await.map_err(|_| AdminError::Stopped)?
    }
}

/// Collects a page from the parts that `part` finds. The page may be short and still not be the last.
async fn page<T, C, F>(
    limit: usize,
    mut after: Option<C>,
    part: impl Fn(usize, Option<C>) -> F,
) -> Result<(Vec<T>, Option<C>), AdminError>
where
    F: Future<Output = Result<ListPart<T, C>, AdminError>>,
{
    let (mut items, mut bytes) = (Vec::new(), 0);
    for _ in 0..MAX_PARTS {
        let limit = limit.saturating_sub(items.len());
        let found = part(limit, after).await?;
        bytes += found.bytes;
        let full = found.items.len() >= limit || bytes >= PAGE_BYTES;
        items.extend(found.items);
        after = found.next;
        if after.is_none() || full {
            break;
        }
    }
    Ok((items, after))
}

impl Core {
    /// Answers when all changes so far are durable.
    fn answer_when_durable<T: Send + 'static>(&self, reply: AdminReply<T>, answer: T) {
        self.journal.sync(Box::new(|synced| answer_synced(reply, synced, answer)));
    }

    /// Answers when the records of replicas are durable.
    fn answer_when_recorded<T: Send + 'static>(&self, reply: AdminReply<T>, answer: T) {
        self.journal.sync_replicas(Box::new(|synced| answer_synced(reply, synced, answer)));
    }

    /// Answers at once if the record of a replica was not changed.
    fn answer_change<T: Send + 'static>(
        &self,
        reply: AdminReply<Option<T>>,
        changed: Result<Option<T>, AdminError>,
    ) {
        match changed {
            Ok(Some(changed)) => self.answer_when_recorded(reply, Some(changed)),
            unchanged => drop(reply.send(unchanged)),
        }
    }

    /// The current name of a replica. A replica that was used before the start, and not since, gets
    /// its lane here.
    fn resolve_for_admin(&mut self, node: &Node) -> Node {
        let node = self.registry.resolve(node).clone();
        if self.registry.knows(&node) {
            self.engine.know(&node);
        }
        node
    }

    pub(super) fn save_registry(&self, changes: Vec<RegistryChange>, cause: RecordCause) {
        for (node, row) in changes {
            self.journal.set_replica(node, row, cause);
        }
    }

    fn delivery_filter(&self, node: Option<&Node>, key: Option<&String>) -> DeliveryFilter {
        DeliveryFilter {
            state: None,
            node: node.map(|node| self.registry.resolve(node).clone()),
            key: key.map(|key| self.keys.id(key)),
        }
    }
}

fn answer_synced<T>(reply: AdminReply<T>, synced: Result<(), CommitError>, answer: T) {
    let answer = match synced {
        Ok(()) => Ok(answer),
        Err(CommitError::Stalled | CommitError::Released) => Err(AdminError::Unconfirmed),
        Err(_) => Err(AdminError::Stopped),
    };
    // The operator may be gone.
    let _ = reply.send(answer);
}

/// The part of a filter that needs the row.
struct TextFilter {
    key: Option<String>,
    key_prefix: Option<String>,
    user_id: Option<String>,
}

impl TextFilter {
    fn is_empty(&self) -> bool {
        self.key.is_none() && self.key_prefix.is_none() && self.user_id.is_none()
    }

    fn matches(&self, header: &Header) -> bool {
        self.key.as_ref().is_none_or(|key| *key == header.key)
            && self.key_prefix.as_ref().is_none_or(|prefix| header.key.starts_with(prefix))
            && (self.user_id.is_none() || self.user_id == header.user_id)
    }
}

/// The length of an item as JSON.
pub(super) fn json_length(item: &impl Serialize) -> usize {
    struct Length(usize);

    impl io::Write for Length {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    let mut length = Length(0);
    // Nothing fails: there is no map with other keys than strings.
    let _ = serde_json::to_writer(&mut length, item);
    length.0
}

async fn headers(
    journal: &dyn Journal,
    ids: Vec<TaskId>,
) -> Result<Vec<Option<Header>>, AdminError> {
    let headers = journal.headers(ids).await;
    headers.map_err(|error| AdminError::Unreadable(error.to_string()))
}

/// Answers from a task of its own, which may wait for the disk.
fn answer_in_background<T: Send + 'static>(
    reply: AdminReply<T>,
    answer: impl Future<Output = Result<T, AdminError>> + Send + 'static,
) {
    tokio::spawn(async move {
        // The operator may be gone.
        let _ = reply.send(answer.await);
    });
}
