//! The newest writes by key, whose values can be compared with those of their primaries.
//!
//! Bounded: the oldest are dropped. Values are not kept, and nothing survives a restart. While no request
//! reads all of them, one write of [`ONE_OF`] is noted once they are full: enough for a sample, and the path
//! of a write has less to do.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound::{Excluded, Included};
use std::sync::Arc;

use crate::task::{Node, Operation, Task, TaskId, Timestamp};

/// About 3 MB with two replicas and short keys.
const MAX_KEYS: usize = 10_000;

/// A write may have a key of kilobytes and a thousand replicas.
const MAX_BYTES: usize = 8 << 20;

const ONE_OF: u32 = 8;

/// The newest write of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RecentWrite {
    pub(crate) sequence: TaskId,
    pub(crate) key: Arc<str>,
    pub(crate) operation: Operation,
    pub(crate) expires_at: Option<Timestamp>,
    pub(crate) primary: Node,
    pub(crate) replicas: Vec<Node>,
}

impl RecentWrite {
    fn bytes(&self) -> usize {
        2 * size_of::<Self>() + self.key.len() + self.replicas.len() * size_of::<Node>()
    }
}

/// A part of the recent writes, in the order of their sequences.
#[derive(Debug)]
pub(crate) struct RecentPart {
    pub(crate) writes: Vec<RecentWrite>,
    /// The last write that was dropped because of the limits, or left out.
    pub(crate) dropped_through: TaskId,
}

#[derive(Debug, Default)]
pub(crate) struct RecentWrites {
    keys: HashMap<Arc<str>, TaskId>,
    writes: BTreeMap<TaskId, RecentWrite>,
    bytes: usize,
    /// The last write that was dropped because of the limits.
    dropped_through: TaskId,
    /// The last write that was not noted.
    left_out_through: TaskId,
    /// Writes are read one after the other, so none may be left out.
    is_followed: bool,
}

impl RecentWrites {
    /// A write was accepted. It replaces the last one of its key, also if it names no primary.
    pub(crate) fn note(&mut self, task: &Task) {
        if let Some(before) = self.keys.get(task.key.as_str()).copied() {
            if before > task.id {
                return;
            }
            self.remove(before);
        }
        let Some(primary) = &task.primary else { return };
        let is_full = self.writes.len() >= MAX_KEYS || self.bytes > MAX_BYTES - MAX_BYTES / 64;
        // Not each eighth: clients may write the same keys in turn.
        if is_full && !self.is_followed && fastrand::u32(..ONE_OF) > 0 {
            self.left_out_through = self.left_out_through.max(task.id);
            return;
        }
        let write = RecentWrite {
            sequence: task.id,
            key: task.key.as_str().into(),
            operation: task.operation,
            expires_at: task.expires_at,
            primary: primary.clone(),
            replicas: task.replicas.clone(),
        };
        self.bytes += write.bytes();
        self.keys.insert(Arc::clone(&write.key), task.id);
        self.writes.insert(task.id, write);
        while self.writes.len() > MAX_KEYS || self.bytes > MAX_BYTES {
            let Some((&oldest, _)) = self.writes.first_key_value() else { break };
            self.remove(oldest);
            self.dropped_through = self.dropped_through.max(oldest);
        }
    }

    /// The last write that was dropped because of the limits.
    pub(crate) fn dropped_through(&self) -> TaskId {
        self.dropped_through
    }

    fn remove(&mut self, sequence: TaskId) {
        if let Some(write) = self.writes.remove(&sequence) {
            self.keys.remove(&write.key);
            self.bytes -= write.bytes();
        }
    }

    /// Whether this is the newest write of its key.
    pub(crate) fn is_newest(&self, key: &str, sequence: TaskId) -> bool {
        self.keys.get(key) == Some(&sequence)
    }

    /// Up to `most` of the writes that `wanted` selects, evenly spread. `turn` moves the choice.
    pub(crate) fn sample(
        &self,
        most: usize,
        turn: usize,
        wanted: impl Fn(&RecentWrite) -> bool,
    ) -> Vec<RecentWrite> {
        let all: Vec<_> = self.writes.values().filter(|write| wanted(write)).collect();
        let most = most.min(all.len());
        let turn = turn.checked_rem(all.len()).unwrap_or_default();
        // Each place once, because there are at least as many writes as places.
        let places = (0..most).map(|n| (n * all.len() + turn) / most);
        places.filter_map(|place| all.get(place)).map(|&write| write.clone()).collect()
    }

    /// Up to `most` writes after `after`, up to the sequence `through`. From now on, all are noted.
    pub(crate) fn part(&mut self, after: TaskId, through: TaskId, most: usize) -> RecentPart {
        self.is_followed = true;
        let writes = match after < through {
            true => self.writes.range((Excluded(after), Included(through))).take(most),
            false => self.writes.range(..TaskId(0)).take(0),
        };
        let writes = writes.map(|(_, write)| write.clone()).collect();
        RecentPart { writes, dropped_through: self.dropped_through.max(self.left_out_through) }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::task::{Consistency, NewTask};

    fn task(id: u64, key: &str, primary: Option<&str>) -> Task {
        let new = NewTask {
            key: key.to_owned(),
            operation: Operation::Set,
            value: bytes::Bytes::new(),
            ttl: Some(Duration::from_secs(1)),
            consistency: Consistency::Eventual,
            replicas: vec![Node::parse("http://a").unwrap()],
            user_id: None,
            client: None,
            primary: primary.map(|text| Node::parse(text).unwrap()),
            trace: None,
        };
        Task::accepted(new, TaskId(id), Timestamp(0))
    }

    fn sequences(writes: &[RecentWrite]) -> Vec<u64> {
        writes.iter().map(|write| write.sequence.0).collect()
    }

    #[test]
    fn only_the_newest_write_of_a_key_is_kept() {
        let mut recent = RecentWrites::default();
        recent.note(&task(1, "k", Some("http://p")));
        recent.note(&task(2, "l", Some("http://p")));
        recent.note(&task(3, "k", Some("http://p")));
        assert!(recent.is_newest("k", TaskId(3)) && !recent.is_newest("k", TaskId(1)));
        assert_eq!(sequences(&recent.part(TaskId(0), TaskId(9), 9).writes), [2, 3]);
        assert_eq!(sequences(&recent.part(TaskId(2), TaskId(9), 9).writes), [3]);
        assert_eq!(sequences(&recent.part(TaskId(0), TaskId(2), 9).writes), [2]);
        assert_eq!(sequences(&recent.part(TaskId(9), TaskId(2), 9).writes), [0; 0]);
        // It cannot be compared, and the value before it is replaced.
        recent.note(&task(4, "k", None));
        assert_eq!(sequences(&recent.part(TaskId(0), TaskId(9), 9).writes), [2]);
        assert!(!recent.is_newest("k", TaskId(4)));
    }

    #[test]
    fn some_are_left_out_when_it_is_full_and_they_are_not_all_read() {
        let mut recent = RecentWrites::default();
        let note = |recent: &mut RecentWrites, ids: std::ops::RangeInclusive<u64>| {
            ids.for_each(|id| recent.note(&task(id, &format!("k{id}"), Some("http://p"))));
        };
        let most = MAX_KEYS as u64;
        fastrand::seed(7);
        note(&mut recent, 1..=most + 800);
        let noted = recent.writes.range(TaskId(most + 1)..).count();
        assert!(recent.writes.len() == MAX_KEYS && (50..200).contains(&noted), "{noted}");
        // What was left out is not taken for compared, nor for dropped before a newer write of its key.
        assert!(recent.dropped_through() < TaskId(most));
        let part = recent.part(TaskId(0), TaskId(u64::MAX), 1);
        assert!(part.dropped_through > TaskId(most + 700), "{part:?}");
        // From now on, none is.
        let from = most + 801;
        note(&mut recent, from..=from + 79);
        assert_eq!(recent.writes.range(TaskId(from)..).count(), 80);
    }

    #[test]
    fn the_last_write_of_a_known_key_replaces_it_when_it_is_full() {
        let mut recent = RecentWrites::default();
        for id in 1..=MAX_KEYS as u64 {
            recent.note(&task(id, &format!("k{id}"), Some("http://p")));
        }
        recent.note(&task(20_000, "k50", Some("http://p")));
        assert!(recent.is_newest("k50", TaskId(20_000)) && !recent.is_newest("k50", TaskId(50)));
    }

    #[test]
    fn the_oldest_are_dropped_at_the_limits() {
        let mut recent = RecentWrites { is_followed: true, ..RecentWrites::default() };
        for id in 1..=MAX_KEYS as u64 + 2 {
            recent.note(&task(id, &format!("k{id}"), Some("http://p")));
        }
        let part = recent.part(TaskId(0), TaskId(u64::MAX), 1);
        assert_eq!((sequences(&part.writes), part.dropped_through), (vec![3], TaskId(2)));
        let long = "k".repeat(4 << 10);
        for id in 20_000..25_000 {
            recent.note(&task(id, &format!("{long}{id}"), Some("http://p")));
        }
        assert!(recent.bytes <= MAX_BYTES);
        assert!((1_000..2_200).contains(&recent.writes.len()), "{}", recent.writes.len());
        let bytes: usize = recent.writes.values().map(RecentWrite::bytes).sum();
        assert_eq!((bytes, recent.writes.len()), (recent.bytes, recent.keys.len()));
    }

    #[test]
    fn a_sample_is_spread_and_has_each_write_once() {
        let mut recent = RecentWrites::default();
        for id in 0..10 {
            recent.note(&task(id, &format!("k{id}"), Some("http://p")));
        }
        let sample = |most, turn| sequences(&recent.sample(most, turn, |_| true));
        assert_eq!(sample(2, 0), [0, 5]);
        assert_eq!(sample(2, 3), [1, 6]);
        assert_eq!(sample(20, 7), (0..10).collect::<Vec<_>>());
        assert_eq!(sequences(&recent.sample(2, 1, |write| write.sequence.0 > 7)), [8, 9]);
        assert_eq!(sequences(&recent.sample(2, 1, |_| false)), [0; 0]);
    }
}
