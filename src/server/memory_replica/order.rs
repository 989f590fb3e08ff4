//! The order of the writes of a key, for a replica that refuses older ones.

use std::collections::{HashMap, VecDeque};

use axum::http::HeaderMap;

/// Deleted keys whose order is remembered. A late write comes within minutes, and a key that was
/// deleted before that many others is treated like a new one.
const MAX_DELETED: usize = 100_000;

/// The place of a write in the order of its key. Later writes are greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct WriteOrder {
    sequence: u64,
    /// Last: two owners may send the same write, but a new cluster begins to count at 1 again.
    epoch: u64,
}

impl WriteOrder {
    /// `None` for a write of another client, without a sequence.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let number = |name| headers.get(name)?.to_str().ok()?.parse().ok();
        let sequence = number("x-replication-sequence")?;
        Some(Self { sequence, epoch: number("x-replication-epoch").unwrap_or_default() })
    }

    pub(super) fn sequence(self) -> u64 {
        self.sequence
    }
}

/// The order of the last deletion of a key that does not exist, for the last [`MAX_DELETED`].
#[derive(Debug, Default)]
pub(super) struct Deletions {
    by_key: HashMap<String, WriteOrder>,
    oldest: VecDeque<(String, WriteOrder)>,
}

impl Deletions {
    pub(super) fn get(&self, key: &str) -> Option<WriteOrder> {
        self.by_key.get(key).copied()
    }

    pub(super) fn forget(&mut self, key: &str) {
        self.by_key.remove(key);
    }

    pub(super) fn note(&mut self, key: String, order: WriteOrder) {
        if self.oldest.len() == MAX_DELETED
            && let Some((key, order)) = self.oldest.pop_front()
            && self.by_key.get(&key) == Some(&order)
        {
            self.by_key.remove(&key);
        }
        self.by_key.insert(key.clone(), order);
        self.oldest.push_back((key, order));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(sequence: u64, epoch: u64) -> WriteOrder {
        WriteOrder { sequence, epoch }
    }

    #[test]
    fn the_sequence_counts_before_the_epoch() {
        assert!(order(2, 1) > order(1, 9));
        assert!(order(2, 2) > order(2, 1));
    }

    #[test]
    fn the_order_is_read_from_the_headers() {
        let mut headers = HeaderMap::new();
        assert_eq!(WriteOrder::of(&headers), None);
        headers.insert("x-replication-sequence", 7.into());
        assert_eq!(WriteOrder::of(&headers), Some(order(7, 0)));
        headers.insert("x-replication-epoch", 3.into());
        assert_eq!(WriteOrder::of(&headers), Some(order(7, 3)));
    }

    #[test]
    fn the_oldest_deletions_are_forgotten() {
        let mut deletions = Deletions::default();
        deletions.note("again".to_owned(), order(1, 0));
        for key in 1..MAX_DELETED {
            deletions.note(key.to_string(), order(1, 0));
        }
        deletions.note("again".to_owned(), order(2, 0));
        assert_eq!(deletions.get("again"), Some(order(2, 0)));
        assert_eq!(deletions.get("1"), Some(order(1, 0)));
        deletions.note("last".to_owned(), order(1, 0));
        assert_eq!(deletions.get("1"), None);
        assert_eq!(deletions.by_key.len(), MAX_DELETED);
        assert_eq!(deletions.oldest.len(), MAX_DELETED);
    }
}
