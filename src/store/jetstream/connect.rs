//! Connects to the servers of the cluster store.
//!
//! [`Store::connect`] returns when every stream has a leader, or with the sentence of what is missing.
//! Later the connection is restored by itself. `connect/options.rs` reads the files,
//! `connect/failure.rs` has the sentences, `connect/servers.rs` asks the servers whether they sync.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use async_nats::connection::State;
use async_nats::jetstream::context::ContextBuilder;
use async_nats::{Client, ConnectOptions, Event, ServerError, jetstream};
use parking_lot::Mutex;
use tokio::time::{Instant, sleep};
use tracing::{debug, info, warn};

use super::figures::StoreFigures;
use super::names::{ClusterName, StreamNames};
use super::record::ClusterRecord;
use super::rows::now;
use super::status::{ClusterStatus, PartitionOwner, StoreStatus};
use super::streams::{Purpose, SPARE_BYTES, Streams, Trouble};
use crate::store::KeyLimits;
use crate::task::{Partition, TaskId};

mod failure;
mod logs;
mod options;
mod servers;

pub use failure::ConnectError;
use failure::ServerFailure;
pub(in crate::store::jetstream) use failure::innermost;
pub use servers::StoreServer;

/// Older servers sync every message instead of every group of them, and have no atomic batches.
const OLDEST_SERVER: (u32, u32) = (2, 15);

/// The default of the servers. Every message of this store fits.
const LARGEST_MESSAGE: usize = 1 << 20;

/// Two elections: of the leader for all streams, then of each stream's.
const ELECTIONS: Duration = Duration::from_secs(30);

/// How long a request about a stream may take before it is made again. A stream in an election does not
/// answer, so after a restart of all servers a longer wait delays every instance.
const STREAM_ANSWER: Duration = Duration::from_secs(2);

const RETRY_EVERY: Duration = Duration::from_millis(250);

/// Between two looks at whether the servers sync.
const ASK_AGAIN: Duration = Duration::from_secs(60);

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
    /// All `nats://` or all `tls://`, without credentials.
    pub urls: Vec<String>,
    pub cluster: ClusterName,
    /// `None` takes those of the cluster, or 8 for a new one.
    pub partitions: Option<u16>,
    pub lease: Duration,
    /// How long a write waits for its acknowledgement, and the start for a server.
    pub timeout: Duration,
    pub durability: StoreDurability,
    pub creds: Option<PathBuf>,
    pub ca: Option<PathBuf>,
    /// Together with `key`.
    pub cert: Option<PathBuf>,
    pub key: Option<PathBuf>,
    pub node_id: String,
    /// Limits of the whole cluster.
    pub queue_capacity: usize,
    pub queue_max_bytes: u64,
    pub dead_letter_max_bytes: u64,
    pub keys: KeyLimits,
    /// The ids of new streams are above it.
    pub ids_after: TaskId,
    /// The size below which the log of a partition is left alone, see `copying.rs`.
    pub clean_above: Option<u64>,
}

/// A connection to the cluster store. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Store(Arc<Connected>);

#[derive(Debug)]
struct Connected {
    client: Client,
    jetstream: jetstream::Context,
    names: StreamNames,
    record: ClusterRecord,
    settings: JetStreamSettings,
    status: Arc<Mutex<StoreStatus>>,
    figures: StoreFigures,
}

impl Store {
    /// Connects, and creates or checks the streams.
    ///
    /// # Errors
    ///
    /// The sentence of what an operator must change. What may pass by itself is waited for:
    /// `--store-timeout` for a server, and two elections for the streams.
    pub async fn connect(settings: &JetStreamSettings) -> Result<Self, ConnectError> {
        Self::open(settings, Purpose::Serve).await
    }

    pub(super) async fn open(
        settings: &JetStreamSettings,
        purpose: Purpose,
    ) -> Result<Self, ConnectError> {
        let status = Arc::new(Mutex::new(StoreStatus::default()));
        let client = client(settings, &status).await?;
        let server = client.server_info();
        check_version(&server.server_name, &server.version)?;
        if server.max_payload < LARGEST_MESSAGE {
            return Err(ConnectError::SmallPayload {
                server: failure::said(&server.server_name),
                found: server.max_payload,
                needed: LARGEST_MESSAGE,
            });
        }
        let timeout = settings.timeout.min(STREAM_ANSWER);
        let jetstream = ContextBuilder::new().timeout(timeout).build(client.clone());
        let names = StreamNames::new(settings.cluster.clone());
        let is_clustered = server.cluster.is_some();
        let streams = Streams {
            client: &client,
            jetstream: &jetstream,
            names: &names,
            settings,
            is_clustered,
            purpose,
            is_begun: AtomicBool::new(false),
        };
        let record = ready(&streams, &status).await?;
        if !is_clustered {
            warn!(
                "the cluster store is a single server: its loss loses the queue; run three servers"
            );
        }
        let store = Self(Arc::new(Connected {
            client,
            jetstream,
            names,
            record,
            settings: settings.clone(),
            status,
            figures: StoreFigures::default(),
        }));
        store.check_servers(servers::ask(store.client()).await, true)?;
        drop(tokio::spawn(ask_again(Arc::downgrade(&store.0))));
        store.ask_leaders().await;
        drop(tokio::spawn(logs::watch(Arc::downgrade(&store.0))));
        Ok(store)
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
    pub fn names(&self) -> &StreamNames {
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

    pub(super) fn figures(&self) -> &StoreFigures {
        &self.0.figures
    }

    /// Whether the log of a partition has room only for what its owner writes: a checkpoint that is
    /// refused would stop it for good.
    pub(super) fn is_nearly_full(&self, partition: Partition) -> bool {
        let status = self.0.status.lock();
        status.logs.get(&partition).is_some_and(|(log, _)| {
            log.max_bytes.is_some_and(|most| log.bytes.saturating_add(SPARE_BYTES / 2) > most)
        })
    }

    /// Notes who owns a partition, for [`Self::status`].
    pub fn set_owner(&self, partition: Partition, owner: Option<PartitionOwner>) {
        let mut status = self.0.status.lock();
        match (status.owners.get(&partition), owner) {
            (Some((known, _)), Some(owner)) if *known == owner => {}
            (_, Some(owner)) => drop(status.owners.insert(partition, (owner, now()))),
            (_, None) => drop(status.owners.remove(&partition)),
        }
    }

    #[must_use]
    pub fn status(&self) -> ClusterStatus {
        let is_connected = self.0.client.connection_state() == State::Connected;
        let server = self.0.client.server_info().server_name;
        let status = self.0.status.lock();
        ClusterStatus {
            cluster: self.0.settings.cluster.to_string(),
            is_connected,
            server: is_connected.then_some(server),
            sync_always: servers::sync_always(&status.servers),
            demands_sync: self.0.settings.durability == StoreDurability::Fsync,
            servers: status.servers.clone(),
            members: Vec::new(),
            partitions: self
                .0
                .record
                .partitions()
                .map(|partition| {
                    let owner = status.owners.get(&partition).cloned();
                    let known = |(owner, since): (PartitionOwner, Instant)| PartitionOwner {
                        known_for: now() - since,
                        ..owner
                    };
                    (partition, owner.map(known))
                })
                .collect(),
            logs: status
                .logs
                .iter()
                .filter(|(_, (_, at))| at.elapsed() < logs::SILENT)
                .map(|(partition, (log, _))| (*partition, log.clone()))
                .collect(),
            lease: None,
            figures: self.0.figures.get(),
        }
    }

    /// Warns, or fails if that is demanded at the start.
    fn check_servers(&self, found: Vec<StoreServer>, at_start: bool) -> Result<(), ConnectError> {
        let mut status = self.0.status.lock();
        let before = servers::sync_always(&status.servers);
        let now = servers::sync_always(&found);
        let fsync = self.0.settings.durability == StoreDurability::Fsync;
        let lazy: Vec<_> =
            found.iter().filter(|server| server.sync_always == Some(false)).collect();
        let lazy: Vec<_> = lazy.iter().map(|server| failure::said(&server.name)).collect();
        if at_start {
            for server in found.iter().filter(|server| server.sync_always.is_some()) {
                check_version(&server.name, &server.version)?;
            }
            if now == Some(false) && fsync {
                return Err(ConnectError::NotSynced(lazy.join(", ")));
            }
        }
        match now {
            // An election or a lost answer.
            None if !at_start => return Ok(()),
            None => warn!(
                "the servers do not tell whether they sync each write to disk: let their system account export $SYS.REQ.SERVER.PING.STATSZ to this account, as in deploy/nats.conf"
            ),
            Some(false) if at_start || before != now => warn!(
                servers = lazy.join(", "),
                "the servers acknowledge writes before they are synced to disk: a power cut can lose acknowledged writes; set `sync_interval: always`"
            ),
            Some(_) => {}
        }
        status.servers = found;
        Ok(())
    }
}

/// Asks the servers now and then, as long as there is a store.
async fn ask_again(store: std::sync::Weak<Connected>) {
    loop {
        sleep(ASK_AGAIN).await;
        let Some(store) = store.upgrade().map(Store) else { return };
        let found = servers::ask(store.client()).await;
        // Returns errors only at the start.
        let _ = store.check_servers(found, false);
    }
}

/// Connects to any of the servers.
async fn client(
    settings: &JetStreamSettings,
    status: &Arc<Mutex<StoreStatus>>,
) -> Result<Client, ConnectError> {
    let deadline = now() + settings.timeout;
    loop {
        if let Ok(client) =
            with_events(options::read(settings)?, status).connect(&settings.urls).await
        {
            return Ok(client);
        }
        // The error is that of the last server. Each may have another reason.
        let mut reasons = Vec::new();
        for url in &settings.urls {
            if let Err(error) = options::read(settings)?.connect(url).await {
                match failure::reason(url, &error) {
                    ServerFailure::Final(error) => return Err(error),
                    ServerFailure::Down(reason) => reasons.push(reason),
                }
            }
        }
        if now() >= deadline {
            return Err(ConnectError::Unreachable(reasons.join("; ")));
        }
        sleep(RETRY_EVERY).await;
    }
}

fn with_events(options: ConnectOptions, status: &Arc<Mutex<StoreStatus>>) -> ConnectOptions {
    let status = Arc::clone(status);
    options.event_callback(move |event| {
        let status = Arc::clone(&status);
        async move {
            match event {
                Event::Connected => info!("connected to the cluster store"),
                Event::Disconnected => warn!("the connection to the cluster store is lost"),
                Event::LameDuckMode => info!("a server of the cluster store shuts down"),
                Event::SlowConsumer(_) => {
                    warn!("messages of the cluster store arrive faster than they are read");
                }
                Event::ServerError(ServerError::Other(text)) => {
                    let text = failure::said(&text);
                    if text.to_lowercase().contains("permissions violation") {
                        let mut status = status.lock();
                        status.forbidden = Some(text.clone());
                    }
                    warn!(problem = text, "a server of the cluster store reports a problem");
                }
                Event::ServerError(error) => warn!(%error, "the cluster store reports a problem"),
                // At every attempt to reconnect.
                Event::ClientError(error) => debug!(%error, "the connection to the cluster store"),
                Event::Draining | Event::Closed => {}
            }
        }
    })
}

/// Waits until all streams are there.
async fn ready(
    streams: &Streams<'_>,
    status: &Mutex<StoreStatus>,
) -> Result<ClusterRecord, ConnectError> {
    let deadline = now() + streams.settings.timeout.max(ELECTIONS);
    loop {
        let why = match streams.open().await {
            Ok(record) => return Ok(record),
            Err(Trouble::Final(error)) => return Err(error),
            Err(Trouble::Later(why)) => why,
        };
        let forbidden = status.lock().forbidden.clone();
        if let Some(forbidden) = forbidden {
            return Err(ConnectError::Forbidden(forbidden));
        }
        // Other servers of a cluster may have it.
        let has_jetstream = streams.client.server_info().jetstream;
        if !has_jetstream && !streams.is_clustered {
            return Err(ConnectError::NoJetStream);
        }
        if now() >= deadline {
            return Err(match has_jetstream {
                true => ConnectError::NotReady(why),
                false => ConnectError::NoJetStream,
            });
        }
        sleep(RETRY_EVERY).await;
    }
}

fn check_version(server: &str, version: &str) -> Result<(), ConnectError> {
    match servers::version(version) {
        Some(found) if found >= OLDEST_SERVER => Ok(()),
        _ => Err(ConnectError::OldServer {
            server: failure::said(server),
            version: failure::said(version),
        }),
    }
}
