//! To whom connections are kept open.
//!
//! Each replica that was sent something leaves idle connections behind for a while. Whoever makes
//! up names, each of which leads somewhere, could use up the process's open files with them.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::task::{Node, Timestamp};

/// The replicas that were sent something lately.
#[derive(Debug)]
pub(super) struct Kept {
    most: usize,
    /// How long behind a request its connection may still be there.
    there: Duration,
    recent: Mutex<Recent>,
}

#[derive(Debug)]
struct Recent {
    last: HashMap<Node, Timestamp>,
    /// When those were let go that were not sent anything lately.
    cleaned: Timestamp,
}

impl Kept {
    /// For a pool that closes what has lain idle for `idle`. It looks for that once in as long, so
    /// that a connection may lie there for twice the time; and it begins to with the answer, which
    /// may take `answer`.
    pub(super) fn new(most: usize, idle: Duration, answer: Duration) -> Self {
        let recent = Recent { last: HashMap::new(), cleaned: Timestamp(0) };
        let there = answer.saturating_add(idle).saturating_add(idle);
        Self { most, there, recent: Mutex::new(recent) }
    }

    /// Something is sent to `node`: whether its connection may be kept. If not, it is to be closed
    /// behind the answer.
    pub(super) fn may_keep(&self, node: &Node, now: Timestamp) -> bool {
        // A count is right enough whatever panicked while it was held.
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(last) = recent.last.get_mut(node) {
            *last = now;
            return true;
        }
        // Looking at all of them once a second is enough.
        let due = now.saturating_since(recent.cleaned) >= Duration::from_secs(1);
        if recent.last.len() >= self.most && due {
            recent.cleaned = now;
            recent.last.retain(|_, last| now.saturating_since(*last) <= self.there);
        }
        let room = recent.last.len() < self.most;
        if room {
            recent.last.insert(node.clone(), now);
        }
        room
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_kept_to_so_many_replicas_and_no_more() {
        let kept = Kept::new(2, Duration::from_secs(30), Duration::from_secs(5));
        let node = |name: &str| Node::parse(&format!("http://{name}")).unwrap();
        let at = |second| Timestamp(0).saturating_add(Duration::from_secs(second));
        assert!(kept.may_keep(&node("a"), at(1)));
        assert!(kept.may_keep(&node("b"), at(10)));
        assert!(!kept.may_keep(&node("c"), at(11)));
        assert!(kept.may_keep(&node("a"), at(20)), "as before");
        assert!(
            !kept.may_keep(&node("c"), at(42)),
            "b's are idle for too long, and not closed yet"
        );
        assert!(!kept.may_keep(&node("c"), at(75)));
        assert!(kept.may_keep(&node("c"), at(77)), "b's are closed by now");
        assert!(!kept.may_keep(&node("b"), at(78)));
    }
}
