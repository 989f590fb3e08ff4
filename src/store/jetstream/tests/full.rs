//! A log that has reached its limit.

use super::*;
use crate::store::jetstream::connect::Store;
use crate::store::jetstream::protocol::{Outgoing, StoreRequestError};
use crate::task::{Cause, DeadLetter};

/// Adds a message of the progress of a task that does not exist, which every reader skips. Returns false if
/// there is no room.
async fn pad(store: &Store, partition: Partition, task: u64, bytes: usize) -> bool {
    let subject = store.names().progress(partition, task);
    let padding = Outgoing::new(subject, vec![0; bytes].into());
    match store.publish(padding, Duration::from_secs(60)).await {
        Ok(_) => true,
        Err(StoreRequestError::Full(_)) => false,
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn an_owner_whose_log_is_full_keeps_its_lease_and_frees_room() {
    const TASKS: usize = 50;
    let world = World::new();
    // So the limit is that of the spare room, 64 MiB, and a little.
    let limits = JetStreamSettings {
        queue_max_bytes: 1 << 20,
        dead_letter_max_bytes: 1 << 20,
        // The log is full for as long as the test wants.
        clean_above: Some(u64::MAX),
        ..world.settings("a")
    };
    let owner = Opened::with(&limits);
    owner.claimed();
    let store = owner.journal.store().clone();
    let append = |from: usize| {
        (from..from + TASKS).for_each(|number| owner.append(number, "key"));
        let (outcomes, _) = owner.outcomes(TASKS);
        let mut ids: Vec<_> = outcomes.values().map(id).collect();
        ids.sort();
        ids
    };
    let older = append(0);
    let (partition, _) = place_of(older[0]);
    let epoch = owner.journal.fence(older[0]).epoch();
    block_on(async {
        for _ in 0..20 {
            assert!(pad(&store, partition, 0, 1_000_000).await);
        }
        assert!(pad(&store, partition, 1, 4_000).await);
    });
    let newer = append(TASKS);
    block_on(async {
        while pad(&store, partition, 0, 1_000_000).await {}
        while pad(&store, partition, 0, 4_000).await {}
        // Room for a checkpoint, and not for the dead letters.
        let purge = format!("$JS.API.STREAM.PURGE.{}", store.names().stream(partition));
        let filter = serde_json::json!({ "filter": store.names().progress(partition, 1) });
        store.client().request(purge, filter.to_string().into()).await.unwrap();
    });
    for id in &newer {
        let letter = DeadLetter {
            cause: Cause::Rejected,
            failures: 1,
            error: "no ".repeat(300).into(),
            since: Timestamp(7),
        };
        owner.journal.save(*id, vec![Progress::Dead(letter)]);
    }
    // Behind them is room, if their settlements are stored without the dead letters.
    older.iter().for_each(|id| owner.journal.remove(*id));
    owner.sync();
    assert_eq!(owner.journal.fence(older[0]).epoch(), epoch);
    owner.close();
    let next = world.open("b");
    let dead = |task: &Recovered| matches!(task.progress[..], [Progress::Dead(_)]);
    let claimed = next.claimed();
    assert!(claimed.iter().all(dead));
    assert!(claimed.iter().map(|task| task.header.id).eq(newer));
    next.close();
}
