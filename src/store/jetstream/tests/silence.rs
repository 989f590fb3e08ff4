//! Streams without a leader, and servers that do not answer: each holds up what needs it, and nothing
//! else, and not for ever.

use super::*;
use crate::store::jetstream::connect::Store;

impl World {
    /// An owner that gives up soon.
    fn impatient(&self) -> Opened {
        let settings = JetStreamSettings { timeout: Duration::from_secs(2), ..self.settings("a") };
        let owner = Opened::with(&settings);
        owner.claimed();
        owner
    }
}

impl Opened {
    fn synced(
        &self,
        sync: impl FnOnce(&JetStreamJournal, Box<dyn FnOnce(Result<(), CommitError>) + Send>),
    ) -> Result<(), CommitError> {
        let (synced, done) = channel();
        sync(&self.journal, Box::new(move |result| _ = synced.send(result)));
        done.recv_timeout(Duration::from_secs(120)).unwrap()
    }

    fn outcome(&self) -> Result<Appended, AppendError> {
        loop {
            if let Report::Outcome(_, outcome) = self.next() {
                return outcome;
            }
        }
    }
}

/// Nothing answers for this stream any more.
fn remove(store: &Store, stream: &str) {
    let deletion = format!("$JS.API.STREAM.DELETE.{stream}");
    block_on(store.client().request(deletion, Bytes::new())).unwrap();
}

#[test]
fn a_record_that_cannot_be_stored_does_not_hold_up_the_writes_to_other_replicas() {
    let world = World::new();
    let owner = world.impatient();
    let store = owner.journal.store();
    remove(store, &store.names().meta_stream());
    let new = Node::parse("http://new").unwrap();
    let row = Some(ReplicaRow::new(Timestamp(1)));
    owner.journal.set_replica(new.clone(), row, RecordCause::Use);
    owner.append(0, "key");
    assert!(matches!(owner.outcome(), Ok(Appended::New(_))));
    let mut write = owner.write(1, "key", vec![1], false);
    write.new.replicas.push(new);
    owner.journal.append(vec![write]);
    assert_eq!(owner.outcome(), Err(AppendError::Unconfirmed));
    let stalled = Err(CommitError::Stalled);
    assert_eq!(owner.synced(Journal::sync_replicas), stalled);
}

#[test]
fn a_change_of_a_replica_does_not_wait_for_a_partition() {
    let world = World::new();
    let owner = world.impatient();
    owner.append(0, "key");
    let task = id(&owner.outcomes(1).0[&0]);
    let store = owner.journal.store();
    remove(store, &store.names().stream(place_of(task).0));
    owner.journal.remove(task);
    let row = Some(ReplicaRow::new(Timestamp(1)));
    owner.journal.set_replica(Node::parse("http://a").unwrap(), row, RecordCause::Operator);
    assert_eq!(owner.synced(Journal::sync_replicas), Ok(()));
    assert_ne!(owner.synced(Journal::sync), Ok(()));
}

#[test]
fn a_close_does_not_wait_for_idempotency_keys_that_cannot_be_stored() {
    let world = World::new();
    let owner = world.impatient();
    let key = Idempotency { key: "k".into(), fingerprint: [1; 16] };
    let write = Append { idempotency: Some(key), ..owner.write(0, "key", vec![1], true) };
    owner.journal.append(vec![write]);
    let task = id(&owner.outcomes(1).0[&0]);
    // More than the last group takes, behind the one that waits for its key.
    const OTHERS: usize = 300;
    (1..=OTHERS).for_each(|number| owner.append(number, "key"));
    let others: Vec<_> = owner.outcomes(OTHERS).0.values().map(id).collect();
    let store = owner.journal.store();
    remove(store, &store.names().key_stream());
    let answer = IdempotencyAnswer { success: true, acked: vec![0], failed: vec![], needed: 1 };
    owner.journal.conclude(task, answer, &[]);
    owner.journal.remove(task);
    others.iter().for_each(|other| owner.journal.remove(*other));
    assert_eq!(block_on(owner.journal.close()), Ok(()));
    // Without its answer in the store it is not settled.
    let next = world.open("b");
    let left: Vec<_> = next.claimed().iter().map(|task| task.header.id).collect();
    assert_eq!((left.len(), left.contains(&task)), (OTHERS + 1, true));
}

#[test]
fn a_read_of_a_value_ends_although_the_servers_do_not_answer() {
    let world = World::new();
    let owner = world.impatient();
    owner.append(0, "key");
    let task = id(&owner.outcomes(1).0[&0]);
    world.server.suspend();
    let read = block_on(owner.journal.read(task));
    assert!(matches!(read, Err(ReadError::Interrupted)), "{read:?}");
    let headers = block_on(owner.journal.headers(vec![task]));
    assert!(matches!(headers, Err(ReadError::Interrupted)), "{headers:?}");
}
