//! Histories drawn from bytes, run against the model.

use std::num::NonZeroU32;
use std::time::Duration;

use super::Workers;
use super::model::{How, Op, Shape, holds};
use crate::fuzzing::input::Input;

/// Enough to reach every state of the model; longer histories are only slower.
const MOST_STEPS: usize = 400;

/// Order, counters and convergence hold for any history.
pub(crate) fn engine(data: &[u8]) {
    let mut input = Input::new(data);
    let workers = match NonZeroU32::new(u32::from(input.byte()) % 4) {
        Some(number) => Workers::Fixed(number),
        None => Workers::Auto(NonZeroU32::MIN.saturating_add(3)),
    };
    let shape = Shape {
        workers,
        queue_capacity: 1 + input.below(12),
        retry_capacity: input.below(6),
        breaker_failures: u32::from(input.byte()) % 4,
        hinted_handoff: input.flag(),
        coalesce: input.flag(),
        reports: input.flag(),
        settle_after: Duration::from_secs(if input.flag() { 20 } else { 2 }),
    };
    let mut history = Vec::new();
    while !input.is_empty() && history.len() < MOST_STEPS {
        history.push(op(&mut input));
    }
    holds(&shape, &history);
}

fn op(input: &mut Input<'_>) -> Op {
    match input.below(24) {
        0..=2 => {
            let (key, nodes) = (input.byte() % 4, 1 + input.byte() % 7);
            Op::Write { key, nodes, strong: input.flag() }
        }
        3 => Op::Commit { settled: if input.flag() { usize::MAX } else { input.below(4) } },
        4..=6 => Op::Answer { nth: input.below(64), how: how(input) },
        7 => Op::ApplyLate { nth: input.below(64) },
        8 => Op::Pass { millis: u64::from(input.byte()) * 40 },
        9 => Op::Restart { kept: input.below(4), settled: input.below(6) },
        10 => {
            let seconds = 1 + u64::from(input.byte());
            Op::SetClock { forward: input.flag(), seconds }
        }
        11 => {
            let (node, paused) = (input.below(3), input.flag());
            let millis = paused.then(|| u64::from(input.byte()) * 40).filter(|time| *time > 0);
            Op::Pause { node, paused, millis }
        }
        12 => Op::Redrive { nth: input.below(64) },
        13 => Op::Discard { nth: input.below(64), letter: input.flag() },
        14 => Op::Forget { node: input.below(3) },
        15 => Op::Release { partition: u16::from(input.flag()), settled: input.below(6) },
        16 => Op::Claim { partition: u16::from(input.flag()) },
        17 => Op::Reload,
        18 => Op::Settle { most: input.below(6) },
        19 => Op::Calm { settled: if input.flag() { usize::MAX } else { input.below(3) } },
        21 => {
            let (node, workers) = (input.below(3), u32::from(input.byte() % 4));
            let (rate, bandwidth) = (u32::from(input.byte() % 16), u64::from(input.byte()) * 20);
            Op::Limit { node, workers, rate, bandwidth }
        }
        22 => Op::Reconfigure {
            workers: NonZeroU32::MIN.saturating_add(u32::from(input.byte()) % 4),
            max_retries: u32::from(input.byte()) % 4,
            coalesce: input.flag(),
        },
        20 => Op::Hold { partition: u16::from(input.flag()) },
        _ => Op::Rename { node: input.below(3) },
    }
}

fn how(input: &mut Input<'_>) -> How {
    match input.below(9) {
        0 | 1 => How::Delivered,
        2 => How::Failed,
        3 => How::AppliedAndFailed,
        4 => How::NoAnswer,
        5 => How::NotSent,
        6 => How::DeliveredByRepeat,
        7 => How::Refused,
        _ => How::Rejected,
    }
}
