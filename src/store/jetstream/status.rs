//! What operators see of the cluster store.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use super::checkpoint::StoreInstance;
use super::connect::StoreServer;
use super::figures::ClusterFigures;
use super::members::Member;
use crate::task::Partition;

/// The owner of a partition, as its last checkpoint says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionOwner {
    /// `--node-id`
    pub node: String,
    /// Its run of the process.
    pub process: u64,
    pub epoch: u64,
    /// Whether it is this process.
    pub is_me: bool,
    /// How long this process knows it.
    pub known_for: Duration,
}

impl PartitionOwner {
    pub(super) fn new(instance: &StoreInstance, epoch: u64, is_me: bool) -> Self {
        let StoreInstance { process, node } = instance.clone();
        Self { node, process, epoch, is_me, known_for: Duration::ZERO }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterStatus {
    pub cluster: String,
    pub is_connected: bool,
    /// The server of the connection.
    pub server: Option<String>,
    /// Empty if the servers do not tell.
    pub servers: Vec<StoreServer>,
    /// Whether all servers sync each write to disk; `None` if they do not tell.
    pub sync_always: Option<bool>,
    /// `--store-durability fsync`
    pub demands_sync: bool,
    /// All partitions, with their owners.
    pub partitions: Vec<(Partition, Option<PartitionOwner>)>,
    /// The live instances, this one included.
    pub members: Vec<Member>,
    /// The logs of the partitions whose leader answers.
    pub logs: HashMap<Partition, PartitionLog>,
    /// Until the first lease of this process ends; `None` if it owns nothing.
    pub lease: Option<Duration>,
    pub figures: ClusterFigures,
}

/// The log of a partition, as its leader says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PartitionLog {
    /// The server that leads it; `None` for a single server.
    pub leader: Option<String>,
    /// Operations that the slowest copy lacks.
    pub lag: u64,
    pub bytes: u64,
    pub max_bytes: Option<u64>,
}

impl ClusterStatus {
    /// One entry for each partition.
    pub fn owners(&self) -> impl Iterator<Item = Option<&PartitionOwner>> {
        self.partitions.iter().map(|(_, owner)| owner.as_ref())
    }

    /// Partitions that no instance owns, as far as this one knows.
    pub fn without_owner(&self) -> Vec<u16> {
        let unowned = self.partitions.iter().filter(|(_, owner)| owner.is_none());
        unowned.map(|(partition, _)| partition.0).collect()
    }

    /// Partitions without a leader that answers: they take no writes.
    pub fn without_leader(&self) -> Vec<u16> {
        let all = self.partitions.iter().map(|(partition, _)| partition);
        all.filter(|partition| !self.logs.contains_key(partition)).map(|one| one.0).collect()
    }

    /// How full the fullest log is, from 0 to 1.
    #[expect(clippy::cast_precision_loss, reason = "a ratio")]
    pub fn fullest(&self) -> Option<f64> {
        let ratio =
            |log: &PartitionLog| Some(log.bytes as f64 / log.max_bytes.filter(|m| *m > 0)? as f64);
        self.logs.values().filter_map(ratio).max_by(f64::total_cmp)
    }
}

/// Gathered by the parts of the store.
#[derive(Debug, Default)]
pub(super) struct StoreStatus {
    pub(super) servers: Vec<StoreServer>,
    /// With the time at which each was first known.
    pub(super) owners: HashMap<Partition, (PartitionOwner, Instant)>,
    /// The last action that the credentials do not allow.
    pub(super) forbidden: Option<String>,
    /// With the time of the answer.
    pub(super) logs: HashMap<Partition, (PartitionLog, Instant)>,
}
