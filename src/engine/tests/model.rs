//! Random histories against the model.

use std::num::NonZeroU32;
use std::time::Duration;

use proptest::prelude::*;

use crate::engine::Workers;
use crate::engine::model::{How, Op, Shape, holds};

fn op() -> impl Strategy<Value = Op> {
    let how = prop_oneof![
        4 => Just(How::Delivered),
        2 => Just(How::Failed),
        1 => Just(How::Busy),
        1 => Just(How::AppliedAndFailed),
        1 => Just(How::NoAnswer),
        1 => Just(How::Cut),
        1 => Just(How::NotSent),
        1 => Just(How::DeliveredByRepeat),
        1 => Just(How::Rejected),
        2 => Just(How::Refused),
    ];
    prop_oneof![
        6 => (0..4u8, 1..8u8, prop::bool::weighted(0.4))
            .prop_map(|(key, nodes, strong)| Op::Write { key, nodes, strong }),
        4 => prop::sample::select(vec![0, 1, 3, usize::MAX, usize::MAX])
            .prop_map(|settled| Op::Commit { settled }),
        2 => (0..6usize).prop_map(|most| Op::Settle { most }),
        2 => prop::sample::select(vec![0, 1, 2, usize::MAX])
            .prop_map(|settled| Op::Calm { settled }),
        8 => (0..64usize, how).prop_map(|(nth, how)| Op::Answer { nth, how }),
        2 => (0..64usize).prop_map(|nth| Op::ApplyLate { nth }),
        2 => (0..8_000u64).prop_map(|millis| Op::Pass { millis }),
        1 => (0..4usize, 0..6usize).prop_map(|(kept, settled)| Op::Restart { kept, settled }),
        1 => (0..2u16, 0..6usize)
            .prop_map(|(partition, settled)| Op::Release { partition, settled }),
        2 => (0..2u16).prop_map(|partition| Op::Hold { partition }),
        2 => (0..2u16).prop_map(|partition| Op::Claim { partition }),
        1 => (any::<bool>(), 1..100u64)
            .prop_map(|(forward, seconds)| Op::SetClock { forward, seconds }),
        2 => (0..3usize, any::<bool>(), prop::option::of(0..9_000u64))
            .prop_map(|(node, paused, millis)| Op::Pause { node, paused, millis }),
        2 => (0..3usize, 0..3u32, 0..6u32, prop::sample::select(vec![0, 0, 600, 5_000]))
            .prop_map(|(node, workers, rate, bandwidth)| {
                Op::Limit { node, workers, rate, bandwidth }
            }),
        1 => Just(Op::Reload),
        1 => (1..5u32, 0..4u32, any::<bool>()).prop_map(|(workers, max_retries, coalesce)| {
            let workers = NonZeroU32::new(workers).unwrap();
            Op::Reconfigure { workers, max_retries, coalesce }
        }),
        2 => (0..64usize).prop_map(|nth| Op::Redrive { nth }),
        1 => (0..64usize, any::<bool>()).prop_map(|(nth, letter)| Op::Discard { nth, letter }),
        1 => prop::sample::select(vec![0, 0, 1]).prop_map(|node| Op::Forget { node }),
        1 => (0..3usize).prop_map(|node| Op::Rename { node }),
    ]
}

/// Few writes of few keys, so that many strong writes are early, and many crashes.
fn early_op() -> impl Strategy<Value = Op> {
    let how = prop_oneof![
        8 => Just(How::Delivered),
        1 => Just(How::Failed),
        1 => Just(How::AppliedAndFailed),
        1 => Just(How::NoAnswer),
        1 => Just(How::DeliveredByRepeat),
        1 => Just(How::Rejected),
        1 => Just(How::Refused),
    ];
    let settled = || prop::sample::select(vec![0, 1, usize::MAX, usize::MAX, usize::MAX]);
    prop_oneof![
        6 => (0..2u8, 1..4u8, prop::bool::weighted(0.6))
            .prop_map(|(key, nodes, strong)| Op::Write { key, nodes, strong }),
        2 => settled().prop_map(|settled| Op::Commit { settled }),
        3 => settled().prop_map(|settled| Op::Calm { settled }),
        1 => settled().prop_map(|most| Op::Settle { most }),
        6 => (0..64usize, how).prop_map(|(nth, how)| Op::Answer { nth, how }),
        2 => (0..64usize).prop_map(|nth| Op::ApplyLate { nth }),
        3 => (0..5_000u64).prop_map(|millis| Op::Pass { millis }),
        2 => (0..2usize, 0..2usize).prop_map(|(kept, settled)| Op::Restart { kept, settled }),
        2 => (0..64usize).prop_map(|nth| Op::Redrive { nth }),
        1 => (0..64usize, any::<bool>()).prop_map(|(nth, letter)| Op::Discard { nth, letter }),
    ]
}

/// `PROPTEST_CASES` sets their number.
fn cases() -> u32 {
    let cases = std::env::var("PROPTEST_CASES").ok();
    cases.and_then(|number| number.parse().ok()).unwrap_or(1000)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_history_keeps_the_order_and_the_books_and_converges(
        ops in prop::collection::vec(op(), 1..120),
        workers in 1..5u32,
        queue_capacity in 1..12usize,
        retry_capacity in 0..6usize,
        breaker_failures in 0..4u32,
        hinted_handoff in any::<bool>(),
        coalesce in prop::bool::weighted(0.2),
        reports in any::<bool>(),
        settle_after in prop::sample::select(vec![2, 20]),
    ) {
        let workers = match NonZeroU32::new(workers).unwrap() {
            n if n.get() == 4 => Workers::Auto(n),
            n => Workers::Fixed(n),
        };
        let shape = Shape {
            workers,
            queue_capacity,
            retry_capacity,
            breaker_failures,
            hinted_handoff,
            coalesce,
            reports,
            settle_after: Duration::from_secs(settle_after),
        };
        holds(&shape, &ops);
    }

    #[test]
    fn no_older_write_follows_one_that_was_sent_and_lost(
        ops in prop::collection::vec(early_op(), 1..60),
    ) {
        let shape = Shape {
            workers: Workers::Fixed(NonZeroU32::new(5).unwrap()),
            queue_capacity: 100,
            retry_capacity: 100,
            breaker_failures: 0,
            hinted_handoff: true,
            coalesce: false,
            reports: true,
            settle_after: Duration::from_secs(2),
        };
        holds(&shape, &ops);
    }
}
