//! Connects to the servers, and creates or checks the streams of the cluster.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::context::ContextBuilder;
use async_nats::{Client, ConnectOptions, jetstream};
use thiserror::Error;

use super::names::{ClusterName, Names};
use super::record::{ClusterRecord, FORMAT};
use crate::store::KeyLimits;
use crate::task::Timestamp;

/// What a write must survive before it is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreDurability {
    /// Synced to disk on a majority of servers.
    Fsync,
    /// In the memory of a majority of servers.
    Replicated,
}

#[derive(Clone, Debug)]
pub struct JetStreamSettings {
    pub urls: Vec<String>,
    pub cluster: ClusterName,
    /// Of a new cluster.
    pub partitions: u16,
    pub lease: Duration,
    /// How long a write waits for its acknowledgement.
    pub timeout: Duration,
    pub durability: StoreDurability,
    pub creds: Option<PathBuf>,
    pub ca: Option<PathBuf>,
    pub cert: Option<PathBuf>,
    pub key: Option<PathBuf>,
    pub node_id: String,
    /// Limit of the unsettled bytes of the cluster: queue and dead letters.
    pub max_bytes: u64,
    pub keys: KeyLimits,
    pub now: Timestamp,
}

#[derive(Debug, Error)]
pub enum ConnectError {
    #[error("cannot use the cluster store (--store): {0}")]
    Other(String),
}

/// A connection to the cluster store. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Store(Arc<Connected>);

#[derive(Debug)]
struct Connected {
    client: Client,
    jetstream: jetstream::Context,
    names: Names,
    record: ClusterRecord,
    settings: JetStreamSettings,
}

impl Store {
    pub async fn connect(settings: &JetStreamSettings) -> Result<Self, ConnectError> {
        let client = ConnectOptions::new()
            .name(&settings.node_id)
            .connect(&settings.urls)
            .await
            .map_err(|error| ConnectError::Other(error.to_string()))?;
        let jetstream = ContextBuilder::new().timeout(settings.timeout).build(client.clone());
        let names = Names::new(settings.cluster.clone());
        let record =
            ClusterRecord { format: FORMAT, partitions: settings.partitions, seed: 0 };
        Ok(Self(Arc::new(Connected {
            client,
            jetstream,
            names,
            record,
            settings: settings.clone(),
        })))
    }

    #[must_use]
    pub fn client(&self) -> &Client {
        &self.0.client
    }

    #[must_use]
    pub fn jetstream(&self) -> &jetstream::Context {
        &self.0.jetstream
    }

    #[must_use]
    pub fn names(&self) -> &Names {
        &self.0.names
    }

    #[must_use]
    pub fn record(&self) -> &ClusterRecord {
        &self.0.record
    }

    #[must_use]
    pub fn settings(&self) -> &JetStreamSettings {
        &self.0.settings
    }
}
