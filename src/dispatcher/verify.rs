//! Compares the values of replicas with those of the primary, and repairs what differs.
//!
//! For a recent write, the newest of its key, it waits until the write has arrived at the replicas, and
//! reads the key from the primary and from them. A difference counts if a second look, after a pause,
//! finds the same (`judge.rs`). The loop knows the recent writes (`recent.rs`) and whether they have
//! arrived (`admin/verify.rs`). It is not available in a cluster: an instance knows only the primaries
//! of the writes that it accepted itself.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt};
use tokio::runtime;
use tokio::sync::Semaphore;
use tokio::time::sleep;
use tracing::{info, warn};

use crate::api::{self, VerifyResult};
use crate::clock::wall_clock;
use crate::dispatcher::Handle;
use crate::dispatcher::messages::AdminError;
use crate::engine::KeyStanding;
use crate::replica::{ReadValue, ReplicaClient, ValueLimit};
use crate::task::{Consistency, NewTask, Node, Operation, TaskId, Timestamp};

mod judge;
mod marks;
mod recent;

pub(crate) use marks::VerifiedBoard;
pub(crate) use recent::{RecentPart, RecentWrite, RecentWrites};

use judge::{Judged, Reading, SeenReplica};

/// How long a write may take to arrive before it counts as pending.
const ARRIVES_WITHIN: Duration = Duration::from_secs(5);
const ASK_EVERY: Duration = Duration::from_millis(50);
/// Between the two looks. A write that a client has sent to the primary before the first one is
/// accepted by then.
const LOOK_AGAIN_AFTER: Duration = Duration::from_secs(2);
/// A ttl ends at the primary and at the replicas at slightly different times.
const EXPIRES_SOON: Duration = Duration::from_secs(60);
/// Keys at the same time.
const AT_ONCE: usize = 8;
const TIME_LIMIT: Duration = Duration::from_secs(45);
/// No repair begins later after the comparisons.
const REPAIRS_WITHIN: Duration = Duration::from_secs(10);
const MAX_FINDINGS: usize = 100;
/// Writes that the background verification takes at once, and its pause between two passes.
const PART: usize = 64;
const BETWEEN_PASSES: Duration = Duration::from_secs(5);

/// What to verify.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifyOptions {
    /// All replicas if `None`.
    pub replica: Option<Node>,
    /// Keys to compare.
    pub sample: usize,
    pub repair: bool,
}

/// Reads values from nodes.
#[derive(Clone, Debug)]
pub(crate) struct NodeReader {
    client: ReplicaClient,
    /// On which the reads run.
    runtime: runtime::Handle,
    max_value_bytes: usize,
    /// One verification of an operator at a time.
    turn: Arc<Semaphore>,
    board: VerifiedBoard,
}

impl NodeReader {
    pub(crate) fn new(
        client: ReplicaClient,
        runtime: runtime::Handle,
        max_value_bytes: usize,
        board: VerifiedBoard,
    ) -> Self {
        Self { client, runtime, max_value_bytes, turn: Arc::new(Semaphore::new(1)), board }
    }

    async fn read(
        &self,
        node: &Node,
        key: &Arc<str>,
        keeps: bool,
    ) -> Result<Option<ReadValue>, String> {
        let (client, node, key) = (self.client.clone(), node.clone(), Arc::clone(key));
        let limit = ValueLimit { bytes: self.max_value_bytes, keeps };
        let read = self.runtime.spawn(async move { client.read(&node, &key, limit).await });
        read.await.unwrap_or_else(|_| Err("the read was interrupted".to_owned()))
    }

    async fn reading(&self, node: &Node, key: &Arc<str>) -> Reading {
        match self.read(node, key, false).await {
            Ok(Some(value)) => Reading::Value { digest: value.digest },
            Ok(None) => Reading::Missing,
            Err(why) => Reading::Unreadable(why),
        }
    }
}

/// What a look at a key found.
struct Look {
    primary: Reading,
    replicas: Vec<(Node, SeenReplica)>,
}

/// The comparison of one write.
struct Comparison {
    write: RecentWrite,
    /// What the primary returned at last.
    primary: Reading,
    results: Vec<ReplicaResult>,
}

struct ReplicaResult {
    replica: Node,
    judged: Judged,
    repaired_by: Option<TaskId>,
}

impl ReplicaResult {
    fn differs(&self) -> bool {
        use VerifyResult::{Different, Extra, Missing};
        matches!(self.judged.0, Different | Missing | Extra)
    }
}

impl Handle {
    /// Compares recent writes with their primaries. [`AdminError::TooMany`] while another comparison
    /// runs, [`AdminError::Conflict`] in a cluster.
    pub async fn verify(&self, options: VerifyOptions) -> Result<api::Verification, AdminError> {
        let reader = match &self.operator.reader {
            Some(reader) if self.operator.peers.is_none() => reader,
            _ => {
                let error = "with --store replicas cannot be compared with the primary: an instance does not know the primaries of writes that others accepted";
                return Err(AdminError::Conflict(error.to_owned()));
            }
        };
        let _turn = reader.turn.try_acquire().map_err(|_| {
            AdminError::TooMany("a verification is running, the limit is 1".to_owned())
        })?;
        let VerifyOptions { replica, sample, repair } = options;
        let writes = self.recent_sample(replica, sample).await?;
        let mut report = VerifyReport { chosen: writes.len() as u64, ..VerifyReport::default() };
        let comparisons = writes.into_iter().map(|write| self.compare(reader, write));
        let mut comparisons = stream::iter(comparisons).buffer_unordered(AT_ONCE);
        let mut compared = Vec::new();
        let collected = async {
            while let Some(comparison) = comparisons.next().await {
                compared.push(comparison?);
            }
            Ok(())
        };
        // At the limit, what was not compared is counted.
        if let Ok(Err(stopped)) = tokio::time::timeout(TIME_LIMIT, collected).await {
            return Err(stopped);
        }
        // Afterwards, because a repair that has begun must be reported, and one at a time, because each
        // holds a value.
        let until = wall_clock().saturating_add(REPAIRS_WITHIN);
        for mut comparison in compared {
            if repair {
                self.repair_differences(reader, &mut comparison, until).await;
            }
            report.add(comparison);
        }
        let counts = report.counts;
        info!(
            keys = report.keys,
            different = counts.different + counts.missing + counts.extra,
            repaired = counts.repaired,
            "an operator has compared replicas with the primary"
        );
        Ok(report.shown())
    }

    async fn compare(
        &self,
        reader: &NodeReader,
        write: RecentWrite,
    ) -> Result<Comparison, AdminError> {
        let (results, primary) = self.judged(reader, &write).await?;
        for result in &results {
            reader.board.with(|marks| marks.count(result.judged.0));
            if result.differs() {
                let node = &result.replica;
                warn!(replica = %node, task = %write.sequence, "a replica differs from the primary");
            }
        }
        Ok(Comparison { write, primary, results })
    }

    async fn repair_differences(
        &self,
        reader: &NodeReader,
        Comparison { write, primary, results }: &mut Comparison,
        until: Timestamp,
    ) {
        let differ = results.iter().filter(|one| one.differs());
        let nodes: Vec<_> = differ.map(|one| one.replica.clone()).collect();
        if nodes.is_empty() {
            return;
        }
        let repaired = match wall_clock() < until {
            true => self.repaired(reader, write, primary, nodes).await,
            false => Err("no time was left, verify again".to_owned()),
        };
        for result in results.iter_mut().filter(|one| one.differs()) {
            match &repaired {
                Ok(task) => result.repaired_by = Some(*task),
                Err(why) => result.judged.1 = Some(format!("not repaired: {why}")),
            }
        }
    }

    /// The result of each replica, and what the primary returned at last.
    async fn judged(
        &self,
        reader: &NodeReader,
        write: &RecentWrite,
    ) -> Result<(Vec<ReplicaResult>, Reading), AdminError> {
        let result =
            |replica: Node, judged: Judged| ReplicaResult { replica, judged, repaired_by: None };
        let rewritten = |replica: Node| result(replica, (VerifyResult::Rewritten, None));
        let all = write.replicas.clone();
        let Some(first) = self.look(reader, write, all.clone()).await? else {
            return Ok((all.into_iter().map(rewritten).collect(), Reading::Missing));
        };
        let (mut results, mut again) = (Vec::new(), Vec::new());
        for (node, seen) in first.replicas {
            match judge::after_first(&first.primary, &seen) {
                Some(judged) => results.push(result(node, judged)),
                None => again.push(node),
            }
        }
        if again.is_empty() {
            return Ok((results, first.primary));
        }
        sleep(LOOK_AGAIN_AFTER).await;
        let Some(second) = self.look(reader, write, again.clone()).await? else {
            results.extend(again.into_iter().map(rewritten));
            return Ok((results, first.primary));
        };
        for (node, seen) in second.replicas {
            let judged = judge::after_second(&first.primary, &second.primary, &seen);
            results.push(result(node, judged));
        }
        Ok((results, second.primary))
    }

    /// Reads the key once its write has arrived. `None` if there is a newer write of the key.
    async fn look(
        &self,
        reader: &NodeReader,
        write: &RecentWrite,
        replicas: Vec<Node>,
    ) -> Result<Option<Look>, AdminError> {
        let mut polls = ARRIVES_WITHIN.as_millis() / ASK_EVERY.as_millis();
        let before = loop {
            let Some(standings) = self.standing(write, replicas.clone()).await? else {
                return Ok(None);
            };
            if polls == 0 || !standings.contains(&KeyStanding::Pending) {
                break standings;
            }
            polls -= 1;
            sleep(ASK_EVERY).await;
        };
        // A forgotten replica is not compared.
        let known = replicas.into_iter().zip(before);
        let known = known.filter(|(_, standing)| *standing != KeyStanding::Unknown);
        let (replicas, before): (Vec<_>, Vec<_>) = known.unzip();
        let read = async |node: &Node, standing: KeyStanding| match standing {
            KeyStanding::Settled => SeenReplica::Read(reader.reading(node, &write.key).await),
            standing => SeenReplica::Unsettled(standing),
        };
        let reads = replicas.iter().zip(before).map(|(node, standing)| read(node, standing));
        let (primary, seen) =
            tokio::join!(reader.reading(&write.primary, &write.key), join_all(reads));
        let Some(after) = self.standing(write, replicas.clone()).await? else { return Ok(None) };
        let replicas = replicas.into_iter().zip(seen).zip(after);
        let replicas = replicas.map(|((node, seen), standing)| match standing {
            KeyStanding::Settled => (node, seen),
            standing => (node, SeenReplica::Unsettled(standing)),
        });
        Ok(Some(Look { primary, replicas: replicas.collect() }))
    }

    /// Writes what the primary has to `nodes`, as an ordinary write behind the others of its key.
    async fn repaired(
        &self,
        reader: &NodeReader,
        write: &RecentWrite,
        primary: &Reading,
        nodes: Vec<Node>,
    ) -> Result<TaskId, String> {
        let (operation, value) = match primary {
            Reading::Value { digest } => {
                let read = reader.read(&write.primary, &write.key, true).await?;
                let read = read.filter(|read| read.digest == *digest);
                let value = read.and_then(|read| read.value);
                (Operation::Set, value.ok_or("the value of the primary has changed")?)
            }
            Reading::Missing if write.operation == Operation::Delete => {
                (Operation::Delete, bytes::Bytes::new())
            }
            // A primary that has lost its data must not empty the replicas.
            Reading::Missing => {
                return Err("the primary has no value, but the last write has set one".to_owned());
            }
            Reading::Unreadable(why) => return Err(why.clone()),
        };
        let new = NewTask {
            key: write.key.to_string(),
            operation,
            value,
            ttl: write.expires_at.map(|end| end.saturating_since(wall_clock())),
            consistency: Consistency::Eventual,
            replicas: nodes,
            user_id: None,
            client: None,
            primary: Some(write.primary.clone()),
            trace: None,
        };
        if new.ttl.is_some_and(|ttl| ttl.is_zero()) {
            return Err("its ttl has ended".to_owned());
        }
        match self.repair(write.sequence, new).await {
            Ok(accepted) => {
                info!(task = %accepted.id, of = %write.sequence, "a difference is repaired");
                Ok(accepted.id)
            }
            Err(refusal) => Err(refusal.to_string()),
        }
    }
}

/// Compares every recent write, at most `rate` keys a second, until the daemon stops.
pub(crate) async fn verify_in_background(handle: Handle, rate: NonZeroU32) {
    let Some(reader) = handle.operator.reader.clone() else { return };
    // Fails only when the loop has ended.
    while verify_pass(&handle, &reader, rate).await.is_ok() {
        sleep(BETWEEN_PASSES).await;
    }
}

/// One pass, from the first write that is not proven to the last one.
async fn verify_pass(
    handle: &Handle,
    reader: &NodeReader,
    rate: NonZeroU32,
) -> Result<(), AdminError> {
    let pause = Duration::from_secs(1) / rate.get();
    let mut after = reader.board.with(marks::VerifiedMarks::begin);
    loop {
        let part = handle.recent_after(after, PART).await?;
        reader.board.with(|marks| marks.dropped(part.dropped_through));
        let Some(last) = part.writes.last() else { return Ok(()) };
        after = last.sequence;
        // In their order, because the range must not skip one.
        let comparisons = part.writes.into_iter().map(async |write| {
            if expires_soon(&write, wall_clock()) {
                let (primary, results) = (Reading::Missing, Vec::new());
                return Ok(Comparison { write, primary, results });
            }
            handle.compare(reader, write).await
        });
        let mut comparisons = stream::iter(comparisons).buffered(AT_ONCE);
        while let Some(comparison) = comparisons.next().await {
            let Comparison { write, results, .. } = comparison?;
            // The newer write is compared in its turn.
            let proven = |one: &ReplicaResult| {
                matches!(one.judged.0, VerifyResult::Equal | VerifyResult::Rewritten)
            };
            let replicas: Vec<_> =
                results.iter().map(|one| (one.replica.clone(), proven(one))).collect();
            reader.board.with(|marks| marks.compared(write.sequence, &replicas));
            sleep(pause).await;
        }
    }
}

pub(super) fn expires_soon(write: &RecentWrite, now: Timestamp) -> bool {
    write.expires_at.is_some_and(|end| end <= now.saturating_add(EXPIRES_SOON))
}

#[derive(Default)]
struct VerifyReport {
    chosen: u64,
    keys: u64,
    counts: api::VerifyCounts,
    replicas: BTreeMap<Node, api::VerifyCounts>,
    findings: Vec<api::VerifyFinding>,
}

impl VerifyReport {
    fn add(&mut self, comparison: Comparison) {
        let Comparison { write, results, .. } = comparison;
        self.keys += 1;
        for ReplicaResult { replica, judged: (result, detail), repaired_by } in results {
            let of_replica = self.replicas.entry(replica.clone()).or_default();
            for counts in [&mut self.counts, of_replica] {
                *match result {
                    VerifyResult::Equal => &mut counts.equal,
                    VerifyResult::Different => &mut counts.different,
                    VerifyResult::Missing => &mut counts.missing,
                    VerifyResult::Extra => &mut counts.extra,
                    VerifyResult::Unreadable => &mut counts.unreadable,
                    VerifyResult::Pending => &mut counts.pending,
                    VerifyResult::Rewritten => &mut counts.rewritten,
                } += 1;
                counts.repaired += u64::from(repaired_by.is_some());
            }
            if matches!(result, VerifyResult::Equal | VerifyResult::Rewritten)
                || self.findings.len() == MAX_FINDINGS
            {
                continue;
            }
            self.findings.push(api::VerifyFinding {
                key: write.key.to_string(),
                sequence: write.sequence.to_string(),
                primary: write.primary.to_string(),
                replica: replica.to_string(),
                result,
                detail,
                repaired_by: repaired_by.map(|task| task.to_string()),
            });
        }
    }

    fn shown(self) -> api::Verification {
        let Self { chosen, keys, counts, replicas, findings } = self;
        let replicas = replicas
            .into_iter()
            .map(|(node, counts)| api::VerifiedReplica { replica: node.to_string(), counts })
            .collect();
        api::Verification { keys, unchecked: chosen - keys, counts, replicas, findings }
    }
}
