//! The operations of a history.

use std::num::NonZeroU32;

#[derive(Clone, Debug)]
pub(in crate::engine) enum Op {
    /// A write of a key to some of the nodes (a set of bits).
    Write {
        key: u8,
        nodes: u8,
        strong: bool,
    },
    /// Everything appended becomes durable, after the settlements of the `settled` oldest tasks.
    Commit {
        settled: usize,
    },
    /// The settlements of the `most` oldest tasks become durable.
    Settle {
        most: usize,
    },
    /// Replicas acknowledge everything in flight, and the settlements of the `settled` oldest tasks
    /// become durable: the next strong writes may be early.
    Calm {
        settled: usize,
    },
    /// The n-th delivery in flight is answered.
    Answer {
        nth: usize,
        how: How,
    },
    /// The n-th attempt without an answer is applied, if it is not too late.
    ApplyLate {
        nth: usize,
    },
    Pass {
        millis: u64,
    },
    /// The wall clock is set.
    SetClock {
        forward: bool,
        seconds: u64,
    },
    /// An operator pauses or resumes a node. A pause may end by itself.
    Pause {
        node: usize,
        paused: bool,
        millis: Option<u64>,
    },
    /// An operator limits a node. Zero sets no limit.
    Limit {
        node: usize,
        workers: u32,
        rate: u32,
        bandwidth: u64,
    },
    /// The credentials for replicas are reloaded.
    Reload,
    /// A config file is read again.
    Reconfigure {
        workers: NonZeroU32,
        max_retries: u32,
        coalesce: bool,
    },
    /// An operator redrives the n-th dead letter.
    Redrive {
        nth: usize,
    },
    /// An operator discards the n-th dead letter, or the rest of the n-th task.
    Discard {
        nth: usize,
        letter: bool,
    },
    /// An operator forgets a node.
    Forget {
        node: usize,
    },
    /// A node is renamed.
    Rename {
        node: usize,
    },
    /// Another process owns a partition from now on. The settlements of the `settled` oldest tasks
    /// are durable.
    Release {
        partition: u16,
        settled: usize,
    },
    /// No more deliveries of a partition are started. The next release is orderly if none is in flight.
    Hold {
        partition: u16,
    },
    /// This process owns a released partition again.
    Claim {
        partition: u16,
    },
    /// The process is killed and restarted. Of the settlements, those of the `settled` oldest tasks
    /// are durable; with none of them, the `kept` oldest writes are.
    Restart {
        kept: usize,
        settled: usize,
    },
}

#[derive(Clone, Copy, Debug)]
pub(in crate::engine) enum How {
    Delivered,
    /// The answer to a repeat. The first request got none, and is applied later or never.
    DeliveredByRepeat,
    /// Failed, and the replica did not apply it.
    Failed,
    /// Failed, and the replica asks for a long wait.
    Busy,
    /// Failed for the sender, but the replica has applied it.
    AppliedAndFailed,
    /// No answer; the replica applies it later or never.
    NoAnswer,
    /// Cut by this process, which says nothing about the replica; it applies it later or never.
    Cut,
    /// Not sent, because this process lacks a resource.
    NotSent,
    Rejected,
    /// The replica accepts no write with the current credentials.
    Refused,
}
