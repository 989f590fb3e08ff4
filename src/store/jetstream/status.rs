//! What operators see of the cluster store.

use std::collections::HashMap;

use super::connect::StoreServer;
use super::members::Member;
use crate::task::Partition;

/// The owner of a partition, as its last checkpoint says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionOwner {
    /// `--node-id`
    pub node: String,
    pub epoch: u64,
    /// Whether it is this process.
    pub is_me: bool,
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
}

impl ClusterStatus {
    /// One entry for each partition.
    pub fn owners(&self) -> impl Iterator<Item = Option<&PartitionOwner>> {
        self.partitions.iter().map(|(_, owner)| owner.as_ref())
    }
}

/// Gathered by the parts of the store.
#[derive(Debug, Default)]
pub(super) struct StoreStatus {
    pub(super) servers: Vec<StoreServer>,
    pub(super) owners: HashMap<Partition, PartitionOwner>,
    /// The last action that the credentials do not allow.
    pub(super) forbidden: Option<String>,
}
