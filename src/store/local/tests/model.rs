//! Property test: arbitrary operations against a map.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;

use proptest::prelude::*;
use tokio::sync::oneshot;

use super::{close, dead, failed, image, large, nodes, open, untouched};
use crate::store::{IdempotencyRow, Recovered, ReplicaRow};
use crate::task::{
    Cause, Idempotency, Node, Progress, ReplicaLimits, ReplicaPause, Task, TaskId, Timestamp,
};

#[derive(Clone, Debug)]
enum Operate {
    Accept { value_bytes: usize, replicas: usize, key: Option<u8> },
    Save { which: usize, entries: Vec<u8> },
    Remove { which: usize },
    Replica { node: u8, row: Option<u64> },
    Key { key: u8, row: Option<u64> },
    Sync,
    Reopen,
}

fn operations() -> impl Strategy<Value = Vec<Operate>> {
    let value_bytes = prop_oneof![4 => 0..200usize, 1 => 3_500..20_000usize];
    let operation = prop_oneof![
        4 => (value_bytes, 1..5usize, prop::option::of(0..4u8)).prop_map(
            |(value_bytes, replicas, key)| Operate::Accept { value_bytes, replicas, key }
        ),
        4 => (any::<usize>(), prop::collection::vec(0..6u8, 4))
            .prop_map(|(which, entries)| Operate::Save { which, entries }),
        2 => any::<usize>().prop_map(|which| Operate::Remove { which }),
        2 => (0..4u8, any::<Option<u64>>()).prop_map(|(node, row)| Operate::Replica { node, row }),
        2 => (0..4u8, any::<Option<u64>>()).prop_map(|(key, row)| Operate::Key { key, row }),
        1 => Just(Operate::Sync),
        1 => Just(Operate::Reopen),
    ];
    prop::collection::vec(operation, 1..60)
}

fn named(key: u8) -> Box<str> {
    format!("key {key}").into()
}

fn key_row(n: u64) -> IdempotencyRow {
    IdempotencyRow { task: TaskId(n), fingerprint: [7; 16], at: Timestamp(n), answer: None }
}

fn entry(kind: u8) -> Progress {
    match kind {
        0 => Progress::Untouched,
        1 => failed(1),
        2 => Progress::Delivered,
        3 => Progress::Superseded,
        4 => dead(Cause::Rejected),
        _ => dead(Cause::RetryOverflow),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..Default::default() })]

    #[test]
    fn after_any_operations_a_store_holds_what_a_map_would(operations in operations()) {
        let dir = tempfile::tempdir().unwrap();
        let mut model: BTreeMap<TaskId, Recovered> = BTreeMap::new();
        let mut replicas: BTreeMap<Node, ReplicaRow> = BTreeMap::new();
        let mut idempotency: BTreeMap<Box<str>, IdempotencyRow> = BTreeMap::new();
        let mut opened = open(dir.path()).0;
        let mut next = opened.next_id;
        for operation in operations.into_iter().chain([Operate::Reopen]) {
            let pick = |which: usize| {
                let len = model.len();
                model.keys().nth(which.checked_rem(len)?).copied()
            };
            match operation {
                Operate::Accept { value_bytes, replicas, key } => {
                    let task = Task { replicas: nodes(replicas), ..large(next.0, value_bytes) };
                    next.0 += 1;
                    let key = key.map(named).map(|key| {
                        idempotency.insert(key.clone(), IdempotencyRow::of(&task, [7; 16]));
                        Idempotency { key, fingerprint: [7; 16] }
                    });
                    opened.committer.accept(Arc::new(task.clone()), key.clone(), None);
                    model.insert(task.id, Recovered { idempotency: key, ..untouched(&task) });
                }
                Operate::Save { which, entries } => if let Some(id) = pick(which) {
                    let task = model.get_mut(&id).unwrap();
                    let entries = entries.into_iter().map(entry);
                    task.progress = entries.take(task.progress.len()).collect();
                    opened.committer.save(id, task.progress.clone());
                },
                Operate::Remove { which } => if let Some(id) = pick(which) {
                    model.remove(&id);
                    opened.committer.remove(id);
                },
                Operate::Replica { node, row } => {
                    let node = Node::parse(&format!("http://{node}")).unwrap();
                    let row = row.map(|n| ReplicaRow {
                        pause: (n % 2 == 0).then_some(ReplicaPause {
                            since: Timestamp(n),
                            until: Some(Timestamp(n)).filter(|_| n % 5 == 0),
                        }),
                        limits: ReplicaLimits {
                            rate: NonZeroU32::new(7).filter(|_| n % 7 == 0),
                            ..ReplicaLimits::default()
                        },
                        renamed_to: Some(node.clone()).filter(|_| n % 3 == 0),
                        first_used: Timestamp(n),
                    });
                    match row.clone() {
                        Some(row) => drop(replicas.insert(node.clone(), row)),
                        None => drop(replicas.remove(&node)),
                    }
                    opened.committer.set_replica(node, row, None);
                }
                Operate::Key { key, row: Some(n) } => {
                    idempotency.insert(named(key), key_row(n));
                    opened.committer.set_idempotency(named(key), key_row(n));
                }
                Operate::Key { key, row: None } => {
                    idempotency.remove(&named(key));
                    opened.committer.forget_idempotency(vec![named(key)]);
                }
                Operate::Sync => {
                    let (reply, synced) = oneshot::channel();
                    opened.committer.sync(Box::new(|result| reply.send(result).unwrap()));
                    prop_assert_eq!(synced.blocking_recv().unwrap(), Ok(()));
                    let image = image(dir.path());
                    let (again, recovered, _) = open(image.path());
                    prop_assert!(recovered.iter().eq(model.values()));
                    prop_assert!(again.replicas.into_iter().eq(replicas.clone()));
                    prop_assert!(again.idempotency.into_iter().eq(idempotency.clone()));
                }
                Operate::Reopen => {
                    close(opened);
                    let (reopened, recovered, report) = open(dir.path());
                    prop_assert!(recovered.iter().eq(model.values()));
                    prop_assert_eq!(report.orphans_removed, 0);
                    prop_assert!(reopened.replicas.clone().into_iter().eq(replicas.clone()));
                    prop_assert!(reopened.idempotency.clone().into_iter().eq(idempotency.clone()));
                    prop_assert!(reopened.next_id > next);
                    next = reopened.next_id;
                    opened = reopened;
                }
            }
        }
    }
}
