//! What the replicas received, against what was acknowledged.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::time::{Duration, Instant};

use super::traffic::Acknowledged;
use crate::support::replica::Seen;
use crate::support::{Replica, wait_until};

/// Ids of a partition: `sequence * PARTITIONS + partition`.
const PARTITIONS: u64 = 1024;

/// The figures of a run. All but the first and the last two must be zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    pub acknowledged: usize,
    /// Acknowledged, and neither it nor a newer write of its key was applied at the end.
    pub lost: usize,
    /// Keys whose last applied write is not their newest.
    pub stale: usize,
    /// Arrivals that are older than the write before them, of the same key and owner.
    pub disordered: usize,
    /// Arrivals from a former owner, after one of a later owner of the same partition.
    pub former: usize,
    /// Arrivals whose value is not that of their write.
    pub torn: usize,
    /// Arrivals of an acknowledged write under another sequence.
    pub doubled: usize,
    /// Keys whose last write is older, for its client, than one that was acknowledged. Its client got
    /// no answer to it.
    pub overtaken: usize,
    /// Arrivals of a write after the first.
    pub repeated: usize,
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { acknowledged, lost, stale, disordered, former, torn, doubled, .. } = self;
        let Self { overtaken, repeated, .. } = self;
        write!(
            f,
            "acknowledged {acknowledged}, lost {lost}, stale {stale}, out of order {disordered}, \
             from a former owner {former}, torn {torn}, doubled {doubled}, overtaken {overtaken}, \
             repeated {repeated}"
        )
    }
}

/// The epoch of the owner that sent a request.
pub fn epoch(seen: &Seen) -> u64 {
    seen.headers.get("x-replication-epoch").expect("a cluster sends epochs").parse().unwrap()
}

/// The number of a SET.
fn number(seen: &Seen) -> Option<u64> {
    (seen.method == "PUT").then(|| seen.text().parse().unwrap())
}

/// The newest applied write of each key, and the last one.
pub fn applied(seen: &[Seen]) -> HashMap<String, (u64, u64)> {
    let mut applied = HashMap::new();
    for request in seen.iter().filter(|request| request.applied) {
        let (newest, last) = applied.entry(request.key()).or_insert((0, 0));
        *newest = request.sequence().max(*newest);
        *last = request.sequence();
    }
    applied
}

/// Waits until every replica has applied all acknowledged writes, or newer ones.
pub async fn until_applied(replicas: &[Replica], acknowledged: &[Acknowledged]) {
    let mut newest = HashMap::<&str, u64>::new();
    for write in acknowledged {
        let newest = newest.entry(&write.key).or_default();
        *newest = write.task.max(*newest);
    }
    for replica in replicas {
        wait_until("everything acknowledged has arrived", || async {
            let applied = applied(&replica.seen());
            let has = |(key, task): (&&str, &u64)| {
                applied.get(*key).is_some_and(|(newest, _)| newest >= task)
            };
            newest.iter().all(has).then_some(())
        })
        .await;
    }
}

/// Counts what must not happen. Everything is delivered.
pub fn judge(replicas: &[Replica], acknowledged: &[Acknowledged]) -> Figures {
    let mut figures = Figures { acknowledged: acknowledged.len(), ..Figures::default() };
    let values: HashMap<u64, &Acknowledged> =
        acknowledged.iter().map(|write| (write.task, write)).collect();
    assert_eq!(values.len(), acknowledged.len(), "two writes have the same id");
    let tasks: HashMap<u64, u64> = acknowledged.iter().map(|write| (write.n, write.task)).collect();
    let mut newest = HashMap::<&str, u64>::new();
    for write in acknowledged {
        let newest = newest.entry(&write.key).or_default();
        *newest = write.n.max(*newest);
    }
    for replica in replicas {
        let seen = replica.seen();
        let applied = applied(&seen);
        let stale = applied.values().filter(|(newest, last)| newest != last);
        figures.stale += stale.count();
        let lost = acknowledged
            .iter()
            .filter(|write| applied.get(&write.key).is_none_or(|(newest, _)| *newest < write.task));
        figures.lost += lost.count();

        let mut arrived = HashSet::new();
        let mut last = HashMap::<String, u64>::new();
        let mut owners = HashMap::<u64, u64>::new();
        let mut orders = HashMap::<(String, u64), u64>::new();
        for request in &seen {
            let (sequence, epoch) = (request.sequence(), epoch(request));
            figures.repeated += usize::from(!arrived.insert(sequence));
            let owner = owners.entry(sequence % PARTITIONS).or_default();
            figures.former += usize::from(epoch < *owner);
            *owner = epoch.max(*owner);
            let before = orders.entry((request.key(), epoch)).or_default();
            figures.disordered += usize::from(sequence < *before);
            *before = sequence.max(*before);
            if let Some(write) = values.get(&sequence) {
                let got = (request.method == "PUT").then(|| request.text());
                let same = request.key() == write.key && got == write.value;
                figures.torn += usize::from(!same);
            }
            let number = number(request);
            let task = number.and_then(|n| tasks.get(&n));
            figures.doubled += usize::from(task.is_some_and(|task| *task != sequence));
            if request.applied
                && let Some(n) = number.or_else(|| Some(values.get(&sequence)?.n))
            {
                last.insert(request.key(), n);
            }
        }
        let overtaken =
            newest.iter().filter(|(key, n)| last.get(**key).is_some_and(|last| last < *n));
        figures.overtaken += overtaken.count();
    }
    figures
}

/// The first arrival after `since` from an owner of a later epoch than all before.
pub fn first_of_a_new_owner(replica: &Replica, since: Instant) -> Option<Seen> {
    let mut owners = HashMap::<u64, u64>::new();
    let mut found = None;
    for request in replica.seen() {
        let owner = owners.entry(request.sequence() % PARTITIONS).or_default();
        if request.at > since && *owner > 0 && epoch(&request) > *owner {
            found = found.or_else(|| Some(request.clone()));
        }
        *owner = epoch(&request).max(*owner);
    }
    found
}

/// The first arrival of each partition after `since`; `None` if one that was seen before has none.
pub fn firsts_of_partitions(replica: &Replica, since: Instant) -> Option<Vec<Instant>> {
    let mut firsts = HashMap::<u64, Option<Instant>>::new();
    for request in replica.seen() {
        let first = firsts.entry(request.sequence() % PARTITIONS).or_default();
        if request.at > since && first.is_none() {
            *first = Some(request.at);
        }
    }
    firsts.into_values().collect()
}

/// For each change of an owner after `since`: the time between the last arrival from the one and the
/// first from the next.
pub fn hand_overs(replica: &Replica, since: Instant) -> Vec<Duration> {
    let mut owners = HashMap::<u64, (u64, Instant)>::new();
    let mut waits = Vec::new();
    for request in replica.seen() {
        let (partition, epoch) = (request.sequence() % PARTITIONS, epoch(&request));
        if let Some((before, last)) = owners.insert(partition, (epoch, request.at))
            && epoch > before
            && request.at > since
        {
            waits.push(request.at.duration_since(last));
        }
    }
    waits
}
