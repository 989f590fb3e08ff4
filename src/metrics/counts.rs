//! What the server and the loop both count while they work: answers, and refusals by reason.

use std::sync::atomic::{AtomicU64, Ordering};

/// Why a write was refused with a 503 and nothing was accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The eventual queue is full, or there are as many strong writes as there may be.
    Queue,
    /// A replica has used up its share of the queue.
    Share,
    /// `--queue-max-bytes`.
    Bytes,
    /// A replica's share of `--dead-letter-max-bytes`.
    DeadLetters,
    /// `--max-known-replicas`.
    Replicas,
    /// `--min-free-disk`.
    Disk,
    /// As many requests wait for room as may.
    Waiting,
    /// `--request-memory`.
    Memory,
    /// The store does not answer.
    StoreStalled,
    /// The daemon is stopping.
    Draining,
    /// The store has failed.
    StoreFailed,
}

impl Reason {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 11] = [
        Self::Queue,
        Self::Share,
        Self::Bytes,
        Self::DeadLetters,
        Self::Replicas,
        Self::Disk,
        Self::Waiting,
        Self::Memory,
        Self::StoreStalled,
        Self::Draining,
        Self::StoreFailed,
    ];

    /// The label of it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::Share => "share",
            Self::Bytes => "bytes",
            Self::DeadLetters => "dead_letters",
            Self::Replicas => "replicas",
            Self::Disk => "disk",
            Self::Waiting => "waiting",
            Self::Memory => "memory",
            Self::StoreStalled => "store_stalled",
            Self::Draining => "draining",
            Self::StoreFailed => "store_failed",
        }
    }
}

/// The answers to a write that are counted by themselves; any other counts as `other`.
const STATUSES: [(u16, &str); 12] = [
    (200, "200"),
    (202, "202"),
    (400, "400"),
    (401, "401"),
    (403, "403"),
    (408, "408"),
    (413, "413"),
    (415, "415"),
    (422, "422"),
    (429, "429"),
    (500, "500"),
    (503, "503"),
];

/// Counts since the start. Each is right by itself; two of them may be a moment apart.
#[derive(Debug, Default)]
pub struct Counts {
    refusals: [AtomicU64; Reason::ALL.len()],
    answers: [AtomicU64; STATUSES.len()],
    other: AtomicU64,
}

impl Counts {
    /// A write was refused.
    pub fn refused(&self, reason: Reason) {
        if let Some(count) = self.refusals.get(reason as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A write was answered, by itself or in a batch.
    pub fn answered(&self, status: u16) {
        let place = STATUSES.iter().position(|known| known.0 == status);
        let count = place.and_then(|place| self.answers.get(place)).unwrap_or(&self.other);
        count.fetch_add(1, Ordering::Relaxed);
    }

    /// Refusals by reason, each reason once.
    #[must_use]
    pub fn refusals(&self) -> Vec<(&'static str, u64)> {
        let counts = self.refusals.iter().map(|count| count.load(Ordering::Relaxed));
        Reason::ALL.iter().map(|reason| reason.as_str()).zip(counts).collect()
    }

    /// Answers by status, each status once.
    #[must_use]
    pub fn answers(&self) -> Vec<(&'static str, u64)> {
        let names = STATUSES.iter().map(|status| status.1).chain(["other"]);
        let counts = self.answers.iter().chain([&self.other]);
        names.zip(counts.map(|count| count.load(Ordering::Relaxed))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_and_each_status_has_a_count_of_its_own() {
        let counts = Counts::default();
        for (n, reason) in Reason::ALL.into_iter().enumerate() {
            (0..=n).for_each(|_| counts.refused(reason));
        }
        for (n, (name, count)) in counts.refusals().into_iter().enumerate() {
            assert_eq!((name, count), (Reason::ALL[n].as_str(), n as u64 + 1));
        }
        [202, 202, 503, 418].into_iter().for_each(|status| counts.answered(status));
        let answers = counts.answers();
        for answer in [("202", 2), ("503", 1), ("other", 1), ("400", 0)] {
            assert!(answers.contains(&answer), "{answer:?} in {answers:?}");
        }
    }
}
