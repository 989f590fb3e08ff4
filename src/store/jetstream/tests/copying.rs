//! Old tasks in a log that is kept short.

use std::collections::BTreeMap;
use std::thread::sleep;

use super::*;
use crate::store::jetstream::export_cluster;
use crate::task::{Cause, DeadLetter};

/// Of each partition.
const LEAST: u64 = 128 << 10;

/// Between two looks at the size of a log in these tests.
const LOOK: Duration = Duration::from_millis(20);

const SMALL: usize = 3_000;
const LARGE: usize = message::CHUNK_BYTES + 1_000;

/// What is not settled: values and progress.
type Open = BTreeMap<TaskId, (Vec<u8>, Vec<Progress>)>;

fn dead(failures: u32) -> Vec<Progress> {
    vec![Progress::Dead(DeadLetter {
        cause: Cause::Rejected,
        failures,
        error: "no ".repeat(50).into(),
        since: Timestamp(7),
    })]
}

impl Opened {
    fn log_bytes(&self) -> u64 {
        let store = self.journal.store().clone();
        block_on(async move {
            let mut sum = 0;
            for partition in (0..PARTITIONS).map(Partition) {
                sum += store.log(partition).await.unwrap().bytes;
            }
            sum
        })
    }

    /// The number of copies.
    fn copies(&self) -> usize {
        let store = self.journal.store().clone();
        block_on(async move {
            let mut copies = 0;
            for partition in (0..PARTITIONS).map(Partition) {
                let mut next = 1;
                loop {
                    let read = store.read_from(partition, next).await.unwrap();
                    let Some(last) = read.last() else { break };
                    next = last.sequence + 1;
                    let is_copy =
                        |subject: &str| store.names().task_of_copy(partition, subject).is_some();
                    copies += read.iter().filter(|read| is_copy(&read.subject)).count();
                }
            }
            copies
        })
    }

    /// Writes, of which a few become dead letters and the others are delivered.
    fn day(&self, open: &mut Open, day: usize) {
        const WRITES: usize = 240;
        let value = |number: usize| {
            let length = if number == 7 && day.is_multiple_of(3) { LARGE } else { SMALL };
            vec![u8::try_from(number + day).unwrap_or(9); length]
        };
        for number in 0..WRITES {
            let key = format!("key {}", number % 50);
            self.journal.append(vec![self.write(number, &key, value(number), false)]);
        }
        let (outcomes, _) = self.outcomes(WRITES);
        for (number, outcome) in outcomes {
            let id = id(&outcome);
            match number {
                7..12 => {
                    self.journal.save(id, dead(1));
                    open.insert(id, (value(number), dead(1)));
                }
                _ => self.journal.remove(id),
            }
        }
        // Old ones change, too: a copy has another progress, or is settled.
        let old: Vec<_> = open.keys().copied().collect();
        if let [first, second, ..] = old[..]
            && day > 2
        {
            self.journal.remove(first);
            open.remove(&first);
            self.journal.save(second, dead(2));
            open.get_mut(&second).unwrap().1 = dead(2);
        }
        self.sync();
    }

    /// Waits until the logs are short.
    fn until_short(&self, open: &Open) {
        let live: u64 = open.values().map(|(value, _)| value.len() as u64 + 1_000).sum();
        // What a step reads and writes is besides.
        let most = u64::from(PARTITIONS) * (LEAST + (64 << 10)) + 2 * live;
        while self.log_bytes() > most {
            sleep(LOOK);
        }
    }

    fn check(&self, open: &Open) {
        for (id, (value, _)) in open {
            let task = block_on(self.journal.read(*id)).unwrap().expect("it is unsettled");
            assert!(task.id == *id && task.value == value[..], "task {id}");
        }
        let ids = open.keys().copied().collect();
        let headers = block_on(self.journal.headers(ids)).unwrap();
        assert!(headers.iter().zip(open).all(|(header, (id, (value, _)))| {
            header.as_ref().is_some_and(|h| h.id == *id && h.value_bytes == value.len())
        }));
    }
}

fn assert_claimed(claimed: Vec<Recovered>, open: &Open) {
    let mut before = HashMap::new();
    for task in &claimed {
        let (partition, _) = place_of(task.header.id);
        assert!(before.insert(partition, task.header.id) < Some(task.header.id), "in their order");
    }
    let claimed: BTreeMap<_, _> =
        claimed.into_iter().map(|task| (task.header.id, task.progress)).collect();
    let expected = open.iter().map(|(id, (_, progress))| (*id, progress.clone())).collect();
    assert_eq!(claimed, expected);
}

#[test]
fn old_dead_letters_do_not_keep_the_log_long() {
    let world = World { clean_above: Some(LEAST), ..World::new() };
    let (owner, _) = world.owner("a");
    let mut open = Open::new();
    for day in 0..12 {
        owner.day(&mut open, day);
        owner.until_short(&open);
    }
    assert!(owner.copies() > 0);
    owner.check(&open);
    let (next, taken) = {
        let next = world.open("b");
        owner.close();
        let taken = next.claimed();
        (next, taken)
    };
    assert_claimed(taken, &open);
    next.check(&open);
    next.close();
    let mut exported = Vec::new();
    let settings = world.settings("export");
    export_cluster(&settings, &mut exported).unwrap().unwrap();
    let exported = String::from_utf8(exported).unwrap();
    let tasks: Vec<u64> = exported
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .filter(|line| line.get("key").is_some() && line.get("task").is_some())
        .map(|line| line["task"].as_u64().unwrap())
        .collect();
    assert!(tasks.iter().eq(open.keys().map(|id| &id.0)), "{tasks:?}");
}

#[test]
fn an_owner_that_dies_while_it_copies_loses_and_repeats_nothing() {
    let world = World { clean_above: Some(LEAST), ..World::new() };
    let (mut owner, _) = world.owner("0");
    let mut open = Open::new();
    for round in 1..6 {
        // Some of it is copied, or is being copied, or is not.
        for day in 0..2 {
            owner.day(&mut open, round * 3 + day);
        }
        sleep(Duration::from_millis(fastrand::u64(..1_500)));
        // Its thread ends without a last checkpoint.
        drop(owner);
        let (next, claimed) = world.owner(&round.to_string());
        assert_claimed(claimed, &open);
        next.check(&open);
        owner = next;
    }
    owner.until_short(&open);
    owner.check(&open);
    owner.close();
}
