//! What can happen in a history.

#[derive(Clone, Debug)]
pub(in crate::engine) enum Op {
    /// A write of a key to some of the nodes (a set of bits).
    Write { key: u8, nodes: u8, strong: bool },
    /// Everything written so far becomes durable.
    Commit,
    /// The n-th delivery on the wire is answered.
    Answer { nth: usize, how: How },
    /// The n-th attempt without an answer is applied, if it is not too late for that.
    ApplyLate { nth: usize },
    /// Time passes.
    Pass { millis: u64 },
    /// Someone sets the wall clock.
    SetClock { forward: bool, seconds: u64 },
    /// An operator pauses a node, or lets it go on.
    Pause { node: usize, paused: bool },
    /// An operator redrives the n-th dead letter.
    Redrive { nth: usize },
    /// An operator throws away the n-th dead letter, or all that is left of the n-th task.
    Discard { nth: usize, letter: bool },
    /// An operator throws away everything for a node.
    Forget { node: usize },
    /// A node is to be found under another name.
    Rename { node: usize },
    /// Another process owns a partition from now on. Settlements as with a restart.
    Release { partition: u16, settled: usize },
    /// A partition that was released is owned by this process again.
    Claim { partition: u16 },
    /// The process is killed, and started again from the disk. Of the settlements that wait to be
    /// written, oldest task first, so many have made it.
    Restart { settled: usize },
}

#[derive(Clone, Copy, Debug)]
pub(in crate::engine) enum How {
    Delivered,
    /// The answer to a repeat; the first request had none, and is applied later, or never.
    DeliveredByRepeat,
    /// Failed, and the replica did not apply it.
    Failed,
    /// Failed, and the replica asks for a long wait.
    Busy,
    /// Failed as far as one can see, but the replica has applied it.
    AppliedAndFailed,
    /// No answer; the replica applies it later, or never.
    NoAnswer,
    /// It was not sent, for want of something that this process needs for it.
    NotSent,
    Rejected,
}
