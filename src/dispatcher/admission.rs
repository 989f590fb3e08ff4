//! Writes that found no room wait here, up to `--queue-wait`.
//!
//! The known gateway sends each write once and only logs a 503, so a queue that is full for half a
//! second would lose writes.

use std::collections::{HashMap, VecDeque};

use crate::dispatcher::messages::{Refusal, WriteReply};
use crate::engine::{Claimant, Full, Moment};
use crate::share::SharedPool;
use crate::task::{Client, Consistency, Idempotency, NewTask};

/// Each waiting write holds a connection and the memory of its request.
const MAX_WAITING: usize = 1024;

#[derive(Debug)]
pub(super) struct Waiter {
    /// Counts the writes, in the order of their arrival.
    pub(super) number: u64,
    pub(super) new: Box<NewTask>,
    pub(super) idempotency: Option<Idempotency>,
    pub(super) reply: WriteReply,
    pub(super) arrived: Moment,
    pub(super) deadline: Moment,
}

impl Waiter {
    /// Whether `later` must stay behind this write: writes of one key to one replica keep their order
    /// even in different lines, because the client may have sent the second without waiting for the
    /// first answer.
    fn keeps(&self, later: &NewTask) -> bool {
        let common = |node| later.replicas.contains(node);
        self.new.key == later.key && self.new.replicas.iter().any(common)
    }
}

/// A line waits for one thing: room in the eventual or strong queue, in total or in the share of a
/// claimant. It does not block writes that wait for something else.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct WaitLine {
    consistency: Consistency,
    share_of: Option<Claimant>,
}

impl WaitLine {
    /// The line of a write that met this limit.
    pub(super) fn after(new: &NewTask, full: &Full) -> Self {
        let share_of = match full {
            Full::Share { claimant, .. } => Some(claimant.clone()),
            Full::Quota { client, .. } => Some(Claimant::Client(Some(client.clone()))),
            // Smaller writes of other clients may have room.
            Full::Bytes(_) => Some(Claimant::Client(new.client.clone())),
            Full::Queue(_) | Full::Strong(_) | Full::Replicas(_) => None,
        };
        Self { consistency: new.consistency, share_of }
    }

    /// All lines in which a write may wait.
    fn of(new: &NewTask) -> impl Iterator<Item = Self> {
        let client = || new.client.clone();
        let replicas = new.replicas.iter().flat_map(move |node| {
            [Claimant::Replica(node.clone()), Claimant::ClientAtReplica(client(), node.clone())]
        });
        let shares = replicas.chain([Claimant::Client(client())]).map(Some);
        let consistency = new.consistency;
        std::iter::once(None).chain(shares).map(move |share_of| Self { consistency, share_of })
    }
}

#[derive(Debug, Default)]
pub(super) struct Admission {
    /// Without empty lines.
    lines: HashMap<WaitLine, VecDeque<Waiter>>,
    /// A write has older writes of its key in several lines.
    scattered: bool,
}

impl Admission {
    /// The line that a new write must not overtake.
    pub(super) fn ahead_of(&mut self, new: &NewTask) -> Option<WaitLine> {
        if self.lines.is_empty() {
            self.scattered = false;
            return None;
        }
        let mut same_key =
            self.lines.iter().filter(|(_, waiting)| waiting.iter().any(|w| w.keeps(new)));
        let first = same_key.next();
        self.scattered |= same_key.next().is_some();
        first
            .map(|(line, _)| line.clone())
            .or_else(|| WaitLine::of(new).find(|line| self.lines.contains_key(line)))
    }

    /// Another line than `line`, in which an older write must go before this one.
    pub(super) fn held_back_by(&self, waiter: &Waiter, line: &WaitLine) -> Option<WaitLine> {
        if !self.scattered {
            return None;
        }
        let older = |w: &Waiter| w.number < waiter.number && w.keeps(&waiter.new);
        let mut others = self.lines.iter().filter(|(other, _)| *other != line);
        others.find(|(_, waiting)| waiting.iter().any(older)).map(|(other, _)| other.clone())
    }

    /// Whether another write of a client may wait, within its share of the places.
    pub(super) fn has_room_for(&self, client: Option<&Client>) -> bool {
        let waiting = self.lines.values().flatten();
        let held = waiting.filter(|waiter| waiter.new.client.as_ref() == client).count();
        SharedPool::new(MAX_WAITING, self.len()).has_room_for(held as u64)
    }

    /// Whether a write of this key waits.
    pub(super) fn has_key(&self, key: &str) -> bool {
        self.lines.values().flatten().any(|waiter| waiter.new.key == key)
    }

    pub(super) fn lines(&self) -> Vec<WaitLine> {
        self.lines.keys().cloned().collect()
    }

    pub(super) fn pop(&mut self, line: &WaitLine) -> Option<Waiter> {
        let waiting = self.lines.get_mut(line)?;
        let first = waiting.pop_front();
        if waiting.is_empty() {
            self.lines.remove(line);
        }
        first
    }

    /// Inserts by deadline. All wait equally long, so the order is by age, even for a write from
    /// another line.
    pub(super) fn push(&mut self, line: WaitLine, waiter: Waiter) {
        let waiting = self.lines.entry(line).or_default();
        let place = waiting.partition_point(|other| other.deadline <= waiter.deadline);
        waiting.insert(place, waiter);
    }

    /// Moves a write that was popped from `from` to another line, and behind it the writes of its key
    /// that are still in `from`, so that they stay in order.
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

    /// Reverts [`Self::pop`].
    pub(super) fn put_back(&mut self, line: &WaitLine, waiter: Waiter) {
        self.lines.entry(line.clone()).or_default().push_front(waiter);
    }

    pub(super) fn len(&self) -> usize {
        self.lines.values().map(VecDeque::len).sum()
    }

    pub(super) fn wake_at(&self) -> Option<Moment> {
        self.lines.values().filter_map(VecDeque::front).map(|waiter| waiter.deadline).min()
    }

    /// Refuses those for which there is a refusal.
    pub(super) fn refuse_if(&mut self, mut refusal: impl FnMut(&mut NewTask) -> Option<Refusal>) {
        for line in self.lines() {
            let waiting = self.lines.remove(&line).unwrap_or_default();
            for mut waiter in waiting {
                match refusal(&mut waiter.new) {
                    // The client may be gone.
                    Some(refusal) => drop(waiter.reply.send(Err(refusal))),
                    None => self.lines.entry(line.clone()).or_default().push_back(waiter),
                }
            }
        }
    }

    /// Refuses all, or closes their replies without a refusal.
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
    use crate::engine::SharedLimit;
    use crate::task::{Node, Operation};

    fn write(key: &str, consistency: Consistency, node: &str) -> NewTask {
        NewTask {
            key: key.into(),
            operation: Operation::Set,
            value: Bytes::new(),
            ttl: None,
            consistency,
            replicas: vec![Node::parse(node).unwrap()],
            user_id: None,
            client: None,
            primary: None,
            trace: None,
        }
    }

    fn share(host: &str) -> WaitLine {
        let node = Node::parse(&format!("http://{host}")).unwrap();
        let claimant = Claimant::Replica(node);
        let full = Full::Share { claimant, limit: SharedLimit::Queue, held: 900 };
        WaitLine::after(&write("", Consistency::Eventual, "http://x"), &full)
    }

    fn waiter(key: &str, node: &str) -> Waiter {
        Waiter {
            number: 0,
            new: Box::new(write(key, Consistency::Eventual, node)),
            idempotency: None,
            reply: oneshot::channel().0,
            arrived: Moment(0),
            deadline: Moment(1),
        }
    }

    #[test]
    fn a_write_that_changes_lines_takes_later_writes_of_its_key_along() {
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
    fn a_later_write_stays_behind_one_that_waits_under_the_former_name_of_its_replica() {
        let mut admission = Admission::default();
        admission.push(share("a"), waiter("k", "http://a"));
        let later = write("k", Consistency::Eventual, "http://c");
        assert_eq!(admission.ahead_of(&later), None);
        admission.refuse_if(|new| {
            new.replicas.clone_from(&later.replicas);
            None
        });
        assert_eq!(admission.ahead_of(&later), Some(share("a")));
        admission.refuse_if(|_| Some(Refusal::Invalid("two names of one node".to_owned())));
        assert_eq!((admission.len(), admission.lines()), (0, vec![]));
    }

    #[test]
    fn a_write_with_older_ones_of_its_key_in_two_lines_goes_behind_both() {
        let mut admission = Admission::default();
        let (a, b) = (share("a"), share("b"));
        admission.push(a.clone(), waiter("k", "http://a"));
        admission.push(b.clone(), Waiter { number: 1, ..waiter("k", "http://b") });
        let mut last = Waiter { number: 2, ..waiter("k", "http://a") };
        last.new.replicas.push(Node::parse("http://b").unwrap());
        let line = admission.ahead_of(&last.new).unwrap();
        admission.push(line.clone(), last);
        assert_eq!(admission.pop(&line).unwrap().new.replicas.len(), 1);
        let last = admission.pop(&line).unwrap();
        let other = if line == a { b } else { a };
        assert_eq!(admission.held_back_by(&last, &line), Some(other.clone()));
        admission.change(&line, &other, last);
        let numbers = std::iter::from_fn(|| admission.pop(&other)).map(|w| w.number);
        assert_eq!(numbers.last(), Some(2));
    }

    #[test]
    fn a_new_write_overtakes_only_writes_that_wait_for_something_else_and_have_no_key_and_replica_in_common()
     {
        let mut admission = Admission::default();
        let line = share("hangs");
        admission.push(line.clone(), waiter("k", "http://hangs"));
        let mut ahead = |key, consistency, node| admission.ahead_of(&write(key, consistency, node));
        assert_eq!(ahead("x", Consistency::Eventual, "http://hangs"), Some(line.clone()));
        assert_eq!(ahead("x", Consistency::Eventual, "http://other"), None);
        assert_eq!(ahead("x", Consistency::Strong, "http://hangs"), None);
        assert_eq!(ahead("k", Consistency::Strong, "http://hangs"), Some(line));
        assert_eq!(ahead("k", Consistency::Strong, "http://other"), None, "no replica in common");
    }
}
