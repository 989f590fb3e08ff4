//! The payload of a row of `tasks`: one or more tasks of one commit.
//!
//! ```text
//! payload = lengths · head of the stream · any number of (offset · lengths · stream)
//! ```
//!
//! The key of the row is the id of the first task. The offset, one byte, is the difference between
//! the id of a later task and it. Offsets ascend, and no other row has an id between the first and
//! the last of a row. So the row of a task is the last one whose key is not above its id, and not
//! more than [`REACH`] below it.
//!
//! Only a task that is alone in its row has chunks. Others are whole.
//!
//! Settled tasks are left out when the row is written again. Its key stays: when the first task is
//! settled, its two lengths are 0, and its bytes are gone. An envelope is never empty, so no
//! task looks like that. The row is removed with its last task.
//!
//! Before format 6 each row held one task. Such a row is the same in format 6.

use super::{FRAME_BYTES, ROW_BYTES, TaskHead, TaskStream, undecodable, unseal};
use crate::store::local::error::{Damage, Failure};
use crate::store::local::keys::{self, Tree};
use crate::task::TaskId;

/// The greatest difference between two ids in a row.
pub(crate) const REACH: u64 = 255;
/// The lengths of a first task that is settled.
const SETTLED: [u8; 2] = [0, 0];
const MAX_PAYLOAD: usize = ROW_BYTES - FRAME_BYTES;

/// A new row. It is filled with tasks, in the order of their ids.
pub(crate) struct NewRow {
    first: TaskId,
    last: TaskId,
    payload: Vec<u8>,
    /// The task has chunks, so nothing else fits.
    has_chunks: bool,
}

impl NewRow {
    pub(crate) fn of(id: TaskId, stream: &TaskStream<'_>) -> Result<Self, Failure> {
        let (payload, has_chunks) = (stream.head()?, stream.has_chunks());
        Ok(Self { first: id, last: id, payload, has_chunks })
    }

    /// Adds a task if it fits.
    pub(crate) fn add(&mut self, id: TaskId, stream: &TaskStream<'_>) -> Result<bool, Failure> {
        if self.has_chunks || stream.has_chunks() || id <= self.last {
            return Ok(false);
        }
        let Some(offset) = offset(self.first, id) else { return Ok(false) };
        // Without its lengths it is at least as long as this.
        if self.payload.len() + stream.bytes() >= MAX_PAYLOAD {
            return Ok(false);
        }
        let head = stream.head()?;
        if self.payload.len() + 1 + head.len() > MAX_PAYLOAD {
            return Ok(false);
        }
        self.payload.push(offset);
        self.payload.extend(head);
        self.last = id;
        Ok(true)
    }

    pub(crate) fn key(&self) -> [u8; 8] {
        keys::of_task(self.first)
    }

    pub(crate) fn last(&self) -> TaskId {
        self.last
    }

    pub(crate) fn payload(&self) -> &[u8] {
        &self.payload
    }
}

fn offset(first: TaskId, id: TaskId) -> Option<u8> {
    id.0.checked_sub(first.0)?.try_into().ok()
}

/// A task in a row.
pub(crate) struct PackedTask<'a> {
    pub(crate) id: TaskId,
    pub(crate) head: TaskHead<'a>,
    /// Its lengths and the head of its stream, as in the row.
    bytes: &'a [u8],
}

/// The tasks in a row, in the order of their ids. There is at least one.
pub(crate) fn tasks<'a>(key: &[u8], row: &'a [u8]) -> Result<Vec<PackedTask<'a>>, Damage> {
    let payload = unseal(Tree::Tasks, key, row)?;
    let read = keys::task(key).map(|first| parse(first, payload));
    match read {
        Some((tasks, true)) if !tasks.is_empty() => Ok(tasks),
        _ => Err(undecodable(Tree::Tasks, key)),
    }
}

/// Reads tasks up to the first byte that is wrong. Also returns whether there is none.
pub(crate) fn parse(first: TaskId, payload: &[u8]) -> (Vec<PackedTask<'_>>, bool) {
    let (mut tasks, mut id, mut rest) = (Vec::new(), first, payload);
    let is_whole = loop {
        let before = rest;
        let Some(head) = TaskHead::next(&mut rest) else { break false };
        let bytes = before.get(..before.len() - rest.len()).unwrap_or_default();
        let (is_settled, has_chunks) = (head.stream() == 0, head.chunks() > 0);
        if id > first && (is_settled || has_chunks) {
            break false;
        }
        if !is_settled {
            tasks.push(PackedTask { id, head, bytes });
        }
        let Some((offset, behind)) = rest.split_first() else { break true };
        let next = first.0.checked_add(u64::from(*offset)).map(TaskId);
        match next.filter(|next| *next > id && !has_chunks) {
            Some(next) => (id, rest) = (next, behind),
            None => break false,
        }
    };
    (tasks, is_whole)
}

/// The payload of a row after some of its tasks are settled. `None` if none is left.
pub(crate) fn without(
    key: &[u8],
    tasks: &[PackedTask<'_>],
    settled: impl Fn(TaskId) -> bool,
) -> Option<Vec<u8>> {
    let first = keys::task(key)?;
    let mut payload = Vec::new();
    for task in tasks.iter().filter(|task| !settled(task.id)) {
        let offset = offset(first, task.id)?;
        if payload.is_empty() && offset > 0 {
            payload.extend(SETTLED);
        }
        if offset > 0 {
            payload.push(offset);
        }
        payload.extend_from_slice(task.bytes);
    }
    (!payload.is_empty()).then_some(payload)
}
