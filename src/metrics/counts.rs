//! Counters shared by the server, the dispatcher and the notifications: responses, refusals by reason,
//! and what became of notifications.

use std::sync::atomic::{AtomicU64, Ordering};

/// Why a write was refused with a 503 and not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The eventual queue is full, or the limit of strong writes is reached.
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
    /// The limit of waiting requests is reached.
    Waiting,
    /// `--request-memory`.
    Memory,
    /// `--max-connections`.
    Connections,
    StoreStalled,
    Draining,
    StoreFailed,
}

impl Reason {
    /// In the order of their discriminants.
    pub const ALL: [Self; 12] = [
        Self::Queue,
        Self::Share,
        Self::Bytes,
        Self::DeadLetters,
        Self::Replicas,
        Self::Disk,
        Self::Waiting,
        Self::Memory,
        Self::Connections,
        Self::StoreStalled,
        Self::Draining,
        Self::StoreFailed,
    ];

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
            Self::Connections => "connections",
            Self::StoreStalled => "store_stalled",
            Self::Draining => "draining",
            Self::StoreFailed => "store_failed",
        }
    }
}

/// What became of a notification for one receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoticeOutcome {
    Delivered,
    /// An attempt failed.
    Retried,
    /// The receiver will not accept it, or it is too old.
    GivenUp,
    /// The queue was full, or the daemon stopped.
    Dropped,
}

impl NoticeOutcome {
    /// In the order of their discriminants.
    const NAMES: [&str; 4] = ["delivered", "retried", "given_up", "dropped"];
}

/// Statuses with a counter of their own. Any other counts as `other`.
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

/// Counts since the start. Two counters may be read a moment apart.
#[derive(Debug, Default)]
pub struct Counts {
    refusals: [AtomicU64; Reason::ALL.len()],
    answers: [AtomicU64; STATUSES.len()],
    other: AtomicU64,
    notices: [AtomicU64; NoticeOutcome::NAMES.len()],
}

impl Counts {
    pub fn refused(&self, reason: Reason) {
        if let Some(count) = self.refusals.get(reason as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts the response to a write, also of one in a batch.
    pub fn answered(&self, status: u16) {
        let place = STATUSES.iter().position(|known| known.0 == status);
        let count = place.and_then(|place| self.answers.get(place)).unwrap_or(&self.other);
        count.fetch_add(1, Ordering::Relaxed);
    }

    pub fn notified(&self, outcome: NoticeOutcome) {
        if let Some(count) = self.notices.get(outcome as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[must_use]
    pub fn notices(&self) -> Vec<(&'static str, u64)> {
        let counts = self.notices.iter().map(|count| count.load(Ordering::Relaxed));
        NoticeOutcome::NAMES.into_iter().zip(counts).collect()
    }

    #[must_use]
    pub fn refusals(&self) -> Vec<(&'static str, u64)> {
        let counts = self.refusals.iter().map(|count| count.load(Ordering::Relaxed));
        Reason::ALL.iter().map(|reason| reason.as_str()).zip(counts).collect()
    }

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
    fn each_reason_and_each_status_has_its_own_counter() {
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
        counts.notified(NoticeOutcome::GivenUp);
        counts.notified(NoticeOutcome::Dropped);
        let expected = [("delivered", 0), ("retried", 0), ("given_up", 1), ("dropped", 1)];
        assert_eq!(counts.notices(), expected);
    }
}
