//! What can happen in a history.

use proptest::prelude::*;

#[derive(Clone, Debug)]
pub(super) enum Op {
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
    /// The process is killed, and started again from the disk. Of the settlements that wait to be
    /// written, oldest task first, so many have made it.
    Restart { settled: usize },
}

#[derive(Clone, Copy, Debug)]
pub(super) enum How {
    Delivered,
    /// Failed, and the replica did not apply it.
    Failed,
    /// Failed as far as one can see, but the replica has applied it.
    AppliedAndFailed,
    /// No answer; the replica applies it later, or never.
    NoAnswer,
    Rejected,
}

pub(super) fn op() -> impl Strategy<Value = Op> {
    let how = prop_oneof![
        4 => Just(How::Delivered),
        2 => Just(How::Failed),
        1 => Just(How::AppliedAndFailed),
        1 => Just(How::NoAnswer),
        1 => Just(How::Rejected),
    ];
    prop_oneof![
        6 => (0..4u8, 1..8u8, prop::bool::weighted(0.2))
            .prop_map(|(key, nodes, strong)| Op::Write { key, nodes, strong }),
        4 => Just(Op::Commit),
        8 => (0..64usize, how).prop_map(|(nth, how)| Op::Answer { nth, how }),
        2 => (0..64usize).prop_map(|nth| Op::ApplyLate { nth }),
        2 => (0..8_000u64).prop_map(|millis| Op::Pass { millis }),
        1 => (0..6usize).prop_map(|settled| Op::Restart { settled }),
        1 => (any::<bool>(), 1..100u64)
            .prop_map(|(forward, seconds)| Op::SetClock { forward, seconds }),
        1 => (0..3usize, any::<bool>()).prop_map(|(node, paused)| Op::Pause { node, paused }),
        2 => (0..64usize).prop_map(|nth| Op::Redrive { nth }),
        1 => (0..64usize, any::<bool>()).prop_map(|(nth, letter)| Op::Discard { nth, letter }),
        1 => prop::sample::select(vec![0, 0, 1]).prop_map(|node| Op::Forget { node }),
        1 => (0..3usize).prop_map(|node| Op::Rename { node }),
    ]
}
