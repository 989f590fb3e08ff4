use proptest::prelude::*;

use super::*;

fn unsettled(through: u64, open: &[(u64, u32)]) -> Unsettled {
    let mut unsettled = Unsettled::after(100);
    unsettled.read_through(through);
    for &(sequence, chunks) in open {
        unsettled.add(sequence, OpenTask::first(sequence, 10, chunks));
    }
    unsettled
}

#[test]
fn the_floor_is_before_the_first_message_that_is_needed() {
    assert_eq!(unsettled(200, &[]).settled().floor, 200);
    assert_eq!(unsettled(200, &[(150, 0), (160, 0)]).settled().floor, 149);
    assert_eq!(unsettled(200, &[(150, 3), (160, 0)]).settled().floor, 146);
}

#[test]
fn a_copy_frees_the_place_of_its_task_with_its_checkpoint() {
    let mut unsettled = unsettled(200, &[(110, 0), (150, 3), (160, 0)]);
    unsettled.copy(110, None);
    // The checkpoint of the same batch, before the place of the copy is known.
    let settled = unsettled.settled();
    assert_eq!(settled.floor, 146);
    assert!(settled.index().has_task(110) && !settled.index().has_copy(205));
    unsettled.copy_stored(110, 205);
    unsettled.copied_through(206);
    unsettled.copy(150, Some(202));
    let settled = unsettled.settled();
    assert_eq!(settled.floor, 159);
    assert!(settled.index().has_task(150) && !settled.index().has_copy(205));
    unsettled.copy_stored(150, 210);
    unsettled.copied_through(211);
    unsettled.settle(110);
    unsettled.settle(160);
    // Not every message up to the copies was read, and yet they are known.
    let settled = unsettled.settled();
    assert_eq!(settled.floor, 200);
    let is_settled = |sequence| settled.index().has_copy(sequence);
    assert!(is_settled(205) && !is_settled(210) && is_settled(211) && !is_settled(212));
    unsettled.read_through(300);
    assert_eq!(unsettled.settled().floor, 201, "its chunks begin at 202");
}

#[test]
fn a_checkpoint_tells_which_messages_are_missing() {
    let mut unsettled = unsettled(200, &[(110, 0), (150, 3), (151, 0), (160, 0)]);
    unsettled.copy(110, None);
    unsettled.copy_stored(110, 205);
    unsettled.copied_through(206);
    let index = unsettled.settled().index();
    let missing = |known: &[u64], most| index.missing(&known.iter().copied().collect(), most);
    assert_eq!(missing(&[], 10), [150, 151, 160, 205]);
    assert_eq!(missing(&[], 2), [150, 151]);
    assert_eq!(missing(&[151, 205, 300], 10), [150, 160]);
    assert!(missing(&[150, 151, 160, 205], 10).is_empty());
    // Anyone may have written it.
    let forged = Settled {
        floor: 0,
        tasks: Runs(vec![u64::MAX, 7]),
        copies: Runs::default(),
        deliveries: vec![],
    };
    assert_eq!(forged.index().missing(&BTreeSet::new(), 3), [1, 2, 3]);
}

#[test]
fn levels_tell_tasks_in_the_queue_from_dead_letters() {
    let mut unsettled = unsettled(200, &[(150, 0), (160, 0), (170, 0)]);
    assert!(unsettled.mark(160, true));
    unsettled.settle(150);
    assert!(!unsettled.mark(150, true));
    let levels = PartitionLevels { queued: 1, queued_bytes: 10, dead: 1, dead_bytes: 10 };
    assert_eq!(unsettled.levels(), levels);
    unsettled.mark(160, false);
    unsettled.settle(160);
    unsettled.settle(170);
    assert_eq!(unsettled.levels(), PartitionLevels::default());
    assert_eq!(unsettled.live_bytes(), 0);
}

#[test]
fn with_too_many_runs_only_the_newest_tasks_count_as_unsettled() {
    let open: Vec<_> = (0..60_000).map(|nth| (101 + nth * 2, 0)).collect();
    let settled = unsettled(200_000, &open).settled().index();
    let last = (101..200_000).rev().find(|sequence| settled.has_task(*sequence)).unwrap();
    assert_eq!(last, 100 + MAX_RUNS as u64);
    assert!(!settled.is_left_out(last) && settled.is_left_out(last + 1));
    for sequence in 101..=last {
        assert_eq!(settled.has_task(sequence), sequence % 2 == 0, "{sequence}");
    }
}

#[test]
fn a_replica_that_is_ahead_costs_a_few_numbers_and_one_in_disorder_as_many_as_fit() {
    let open: Vec<_> = (0..50_000).map(|nth| (101 + nth * 3, 0)).collect();
    let mut unsettled = unsettled(200_000, &open);
    let progress = [Progress::Untouched, Progress::Delivered];
    let list = |unsettled: &mut Unsettled, id| {
        let deliveries = unsettled.listed(id, &progress)?;
        unsettled.list(id, deliveries);
        Some(())
    };
    for group in open[..20_000].chunks(1_000) {
        assert!(group.iter().all(|(id, _)| list(&mut unsettled, *id).is_some()));
        let lengths: Vec<_> =
            unsettled.settled().deliveries.iter().map(|runs| runs.0.len()).collect();
        assert_eq!(lengths, [0, 2]);
    }
    // Every second one of the others, until there are too many runs.
    let mut others = open[20_000..].iter().step_by(2).copied();
    for _ in 0..3 {
        others.by_ref().take_while(|(id, _)| list(&mut unsettled, *id).is_some()).count();
        let runs = unsettled.settled().deliveries[1].0.len();
        assert!((MAX_DELIVERY_RUNS - 2..=MAX_DELIVERY_RUNS).contains(&runs), "{runs}");
    }
    assert!(others.len() > 12_000);
    // Also one that would need no run has a message, if there was one before.
    unsettled.settle(open[0].0);
    unsettled.progress(open[1].0, LogPlace::At(190_000), 10);
    assert_eq!(list(&mut unsettled, open[1].0), None);
}

#[test]
fn only_deliveries_to_the_first_64_replicas_can_be_listed() {
    let of = |position: usize, progress| {
        let mut all = vec![Progress::Untouched; 70];
        all[position] = progress;
        Deliveries::of(&all)
    };
    assert!(of(63, Progress::Delivered).is_some_and(|of| of.contains(63) && !of.contains(62)));
    assert_eq!(of(64, Progress::Delivered), None);
    assert_eq!(of(1, Progress::Superseded), None);
    assert_eq!(of(1, Progress::Failed { failures: 1, error: "".into() }), None);
}

/// The servers take messages of up to 1 MiB.
#[test]
fn the_largest_checkpoint_fits_into_a_message() {
    let mut unsettled = unsettled(10_000_000, &[]);
    for nth in 0..MAX_COPIES as u64 + MAX_RUNS as u64 {
        let id = 1_000_000 + nth * 70_000;
        unsettled.add(id, OpenTask::first(id, 10, 0));
        if nth < MAX_COPIES as u64 {
            unsettled.copy(id, None);
            unsettled.copy_stored(id, 20_000_000_000 + nth * 2);
        }
    }
    unsettled.copied_through(30_000_000_000);
    // As many replicas as can be listed, for every second task.
    let progress = [const { Progress::Delivered }; 64];
    let mut listed = 0;
    while let Some(deliveries) = unsettled.listed(1_000_000 + listed * 140_000, &progress) {
        unsettled.list(1_000_000 + listed * 140_000, deliveries);
        listed += 1;
    }
    let settled = unsettled.settled();
    assert_eq!(settled.copies.0.len(), MAX_COPIES * 2 + 2);
    let runs: usize = settled.deliveries.iter().map(|runs| runs.0.len()).sum();
    assert!((MAX_DELIVERY_RUNS - 128..=MAX_DELIVERY_RUNS).contains(&runs), "{runs}");
    let writer = StoreInstance { process: u64::MAX, node: "n".repeat(255) };
    let levels = unsettled.levels();
    let checkpoint =
        Checkpoint { writer, is_released: false, epoch: 1, counter: 1, settled, levels };
    let message = crate::store::jetstream::message::checkpoint(&checkpoint).unwrap();
    assert!(message.len() < 1_000_000, "{}", message.len());
}

proptest! {
    #[test]
    fn a_checkpoint_says_exactly_which_tasks_are_settled(
        open in proptest::collection::btree_map(101_u64..180, 0_u32..3, 0..40),
        behind in 0_u64..40,
    ) {
        let through = open.keys().max().copied().unwrap_or(100) + behind;
        // A chunk is no task.
        let tasks: BTreeSet<_> = open.keys().copied().collect();
        let open: Vec<_> = open.into_iter().filter(|(sequence, chunks)| {
            *sequence > 104 || *chunks == 0
        }).collect();
        let settled = unsettled(through, &open).settled().index();
        let open: BTreeSet<_> = open.into_iter().map(|(sequence, _)| sequence).collect();
        for sequence in tasks.iter().copied().chain(90..=through) {
            prop_assert_eq!(settled.has_task(sequence), !open.contains(&sequence));
        }
        prop_assert!((through + 1..through + 9).all(|sequence| !settled.has_task(sequence)));
    }

    #[test]
    fn a_checkpoint_says_exactly_which_replicas_have_an_unsettled_task(
        open in proptest::collection::btree_map(101_u64..180, 0_u64..8, 0..40),
        position in 0_usize..62,
    ) {
        let tasks: Vec<_> = open.keys().map(|id| (*id, 0)).collect();
        let mut unsettled = unsettled(200, &tasks);
        for (&id, &bits) in &open {
            unsettled.list(id, Deliveries(bits << position));
        }
        let settled = unsettled.settled();
        let settled = settled.index();
        for (&id, &bits) in &open {
            prop_assert_eq!(settled.deliveries(id), Deliveries(bits << position));
        }
        prop_assert_eq!(settled.deliveries(1_000), Deliveries::default());
    }
}
