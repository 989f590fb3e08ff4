//! Requests that found no room wait here a moment: `--queue-wait`.
//!
//! The known gateway posts each write once and only logs a 503; a queue that is full for half a
//! second would cost it writes for good.

use std::collections::{HashMap, VecDeque};

use crate::dispatcher::messages::{Refusal, WriteReply};
use crate::engine::{Full, Moment};
use crate::task::{Consistency, Idempotency, NewTask, Node};

/// How many may wait: each holds a connection and the memory of its request.
pub(super) const MAX_WAITING: usize = 1024;

/// A request that waits for room.
#[derive(Debug)]
pub(super) struct Waiter {
    pub(super) new: Box<NewTask>,
    pub(super) idempotency: Option<Idempotency>,
    pub(super) reply: WriteReply,
    /// When it came.
    pub(super) arrived: Moment,
    /// When it is refused.
    pub(super) deadline: Moment,
}

/// What those in one line wait for: room in the queue of eventual or of strong writes, for
/// everyone or within the share of one replica. Nobody stands in the way of others who wait for
/// something else.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct WaitLine {
    consistency: Consistency,
    share_of: Option<Node>,
}

impl WaitLine {
    /// Where a write waits that was refused for this.
    pub(super) fn after(consistency: Consistency, full: &Full) -> Self {
        let share_of = match full {
            Full::Share { node, .. } => Some(node.clone()),
            Full::Queue(_)
            | Full::Strong(_)
            | Full::Bytes(_)
            | Full::DeadLetters { .. }
            | Full::Replicas(_) => None,
        };
        Self { consistency, share_of }
    }
}

/// The waiting requests: in each line first come, first served.
#[derive(Debug, Default)]
pub(super) struct Admission {
    /// None of them is empty.
    lines: HashMap<WaitLine, VecDeque<Waiter>>,
}

impl Admission {
    /// The line that a new request must not pass, if there is one.
    pub(super) fn ahead_of(&self, new: &NewTask) -> Option<WaitLine> {
        if self.lines.is_empty() {
            return None;
        }
        let line = |share_of| WaitLine { consistency: new.consistency, share_of };
        let shares = new.replicas.iter().map(|node| line(Some(node.clone())));
        let lines = || std::iter::once(line(None)).chain(shares);
        // The writes of one key stay in their order, whatever they wait for: their client may not
        // have waited for the answer of the first.
        let of_key = |waiting: &VecDeque<Waiter>| waiting.iter().any(|w| w.new.key == new.key);
        let same_key = self.lines.iter().find(|(_, waiting)| of_key(waiting));
        same_key
            .map(|(line, _)| line.clone())
            .or_else(|| lines().find(|line| self.lines.contains_key(line)))
    }

    /// The lines that there are now.
    pub(super) fn lines(&self) -> Vec<WaitLine> {
        self.lines.keys().cloned().collect()
    }

    /// Takes the first out of a line.
    pub(super) fn pop(&mut self, line: &WaitLine) -> Option<Waiter> {
        let waiting = self.lines.get_mut(line)?;
        let first = waiting.pop_front();
        if waiting.is_empty() {
            self.lines.remove(line);
        }
        first
    }

    /// Puts a request into a line, by its deadline: all wait equally long, so this is by age, for
    /// one that changes lines as well. The waiting writes of one key are in one line.
    pub(super) fn push(&mut self, line: WaitLine, waiter: Waiter) {
        let waiting = self.lines.entry(line).or_default();
        let place = waiting.partition_point(|other| other.deadline <= waiter.deadline);
        waiting.insert(place, waiter);
    }

    /// Puts a request that was taken out of a line into another, and behind it the writes of its
    /// key that are still in the first: they come in in their order or not at all.
    pub(super) fn change(&mut self, from: &WaitLine, to: &WaitLine, waiter: Waiter) {
        let waiting = self.lines.remove(from).unwrap_or_default();
        let (followers, others): (VecDeque<_>, VecDeque<_>) =
            waiting.into_iter().partition(|other| other.new.key == waiter.new.key);
        if !others.is_empty() {
            self.lines.insert(from.clone(), others);
        }
        self.push(to.clone(), waiter);
        followers.into_iter().for_each(|follower| self.push(to.clone(), follower));
    }

    /// Gives back who was taken out by [`Self::pop`].
    pub(super) fn put_back(&mut self, line: &WaitLine, waiter: Waiter) {
        self.lines.entry(line.clone()).or_default().push_front(waiter);
    }

    pub(super) fn len(&self) -> usize {
        self.lines.values().map(VecDeque::len).sum()
    }

    /// When the first of them is refused.
    pub(super) fn wake_at(&self) -> Option<Moment> {
        self.lines.values().filter_map(VecDeque::front).map(|waiter| waiter.deadline).min()
    }

    /// Refuses all. Without a reason their replies are closed.
    pub(super) fn clear(&mut self, refusal: impl Fn() -> Option<Refusal>) {
        for waiter in self.lines.drain().flat_map(|(_, line)| line) {
            if let Some(refusal) = refusal() {
                // The client may be gone.
                let _ = waiter.reply.send(Err(refusal));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use tokio::sync::oneshot;

    use super::*;
    use crate::task::Operation;

    fn write(key: &str, consistency: Consistency, node: &str) -> NewTask {
        NewTask {
            key: key.into(),
            operation: Operation::Set,
            value: Bytes::new(),
            ttl: None,
            consistency,
            replicas: vec![Node::parse(node).unwrap()],
            user_id: None,
            trace: None,
        }
    }

    fn share(host: &str) -> WaitLine {
        let node = Node::parse(&format!("http://{host}")).unwrap();
        WaitLine::after(Consistency::Eventual, &Full::Share { node, held: 900 })
    }

    fn waiter(key: &str, node: &str) -> Waiter {
        Waiter {
            new: Box::new(write(key, Consistency::Eventual, node)),
            idempotency: None,
            reply: oneshot::channel().0,
            arrived: Moment(0),
            deadline: Moment(1),
        }
    }

    #[test]
    fn a_write_takes_the_later_ones_of_its_key_along_into_another_line() {
        let mut admission = Admission::default();
        let (a, b) = (share("a"), share("b"));
        for (key, node) in [("k", "http://a"), ("x", "http://a"), ("k", "http://c")] {
            admission.push(a.clone(), waiter(key, node));
        }
        let first = admission.pop(&a).unwrap();
        admission.change(&a, &b, first);
        let mut keys = |line| {
            let waiters = std::iter::from_fn(|| admission.pop(line));
            waiters.map(|w| format!("{} {}", w.new.key, w.new.replicas[0])).collect::<Vec<_>>()
        };
        assert_eq!(keys(&b), ["k http://a", "k http://c"]);
        assert_eq!(keys(&a), ["x http://a"]);
        assert_eq!(admission.lines(), []);
    }

    #[test]
    fn only_those_who_wait_for_the_same_or_write_the_same_key_are_not_passed() {
        let mut admission = Admission::default();
        let line = share("hangs");
        admission.push(line.clone(), waiter("k", "http://hangs"));
        let ahead = |key, consistency, node| admission.ahead_of(&write(key, consistency, node));
        assert_eq!(ahead("x", Consistency::Eventual, "http://hangs"), Some(line.clone()));
        assert_eq!(ahead("x", Consistency::Eventual, "http://other"), None);
        assert_eq!(ahead("x", Consistency::Strong, "http://hangs"), None);
        assert_eq!(ahead("k", Consistency::Strong, "http://other"), Some(line));
    }
}
