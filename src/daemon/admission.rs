//! Requests that found no room wait here a moment: `--queue-wait`.
//!
//! The known gateway posts each write once and only logs a 503; a queue that is full for half a
//! second would cost it writes for good.

use std::collections::VecDeque;

use tokio::sync::oneshot;

use crate::daemon::handle::{Accepted, Refusal};
use crate::engine::Moment;
use crate::task::{Consistency, NewTask};

/// How many may wait: each holds a connection and the memory of its request.
pub(super) const MAX_WAITING: usize = 1024;

/// Where the answer of a request goes.
pub(super) type Reply = oneshot::Sender<Result<Accepted, Refusal>>;

/// A request that waits for room.
#[derive(Debug)]
pub(super) struct Waiter {
    pub(super) new: Box<NewTask>,
    pub(super) reply: Reply,
    /// When it is refused.
    pub(super) deadline: Moment,
}

/// The waiting requests, first come first served. Eventual and strong writes wait for different
/// room, so neither stands in the other's way.
#[derive(Debug, Default)]
pub(super) struct Admission {
    eventual: VecDeque<Waiter>,
    strong: VecDeque<Waiter>,
}

impl Admission {
    pub(super) fn line(&mut self, consistency: Consistency) -> &mut VecDeque<Waiter> {
        match consistency {
            Consistency::Eventual => &mut self.eventual,
            Consistency::Strong => &mut self.strong,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.eventual.len() + self.strong.len()
    }

    /// When the first of them is refused.
    pub(super) fn wake_at(&self) -> Option<Moment> {
        // All wait equally long, so the first in line is the first to go.
        let first = |line: &VecDeque<Waiter>| line.front().map(|waiter| waiter.deadline);
        first(&self.eventual).into_iter().chain(first(&self.strong)).min()
    }

    /// Everyone goes, with no answer but the one that a closed reply is.
    pub(super) fn clear(&mut self) {
        self.eventual.clear();
        self.strong.clear();
    }
}
