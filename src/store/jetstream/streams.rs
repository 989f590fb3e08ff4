//! Creates or checks the streams and the record of a cluster.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream::context::{
    CreateStreamErrorKind, DeleteStreamErrorKind, GetStreamErrorKind,
};
use async_nats::jetstream::stream::{Config, DiscardPolicy, RetentionPolicy, StorageType};
use async_nats::jetstream::{self, Context, ErrorCode};
use bytes::Bytes;
use tracing::{info, warn};

use super::DEFAULT_PARTITIONS;
use super::connect::{ConnectError, JetStreamSettings, innermost};
use super::names::{MAX_PARTITIONS, StreamNames};
use super::record::{ClusterRecord, FORMAT};
use super::rows::{self, Got, Put, Wanted};

/// A message repeated within this time is stored once. The servers keep its ids in memory.
pub(super) const DUPLICATE_WINDOW: Duration = Duration::from_secs(30);

const COPIES: usize = 3;

/// On top of twice the queue and the dead letters. Half of it is reserved for what owners write.
pub(super) const SPARE_BYTES: u64 = 64 << 20;

const META_BYTES: i64 = 256 << 20;

/// An idempotency key with the answer to a strong write.
const KEY_BYTES: u64 = 1 << 10;

/// On top of `--idempotency-keys`: servers refuse a new version of a message, too, when a stream has
/// reached its limit, and a reserved key must get its id.
const SPARE_KEYS: u64 = 1 << 14;

/// Why a step did not succeed.
#[derive(Debug)]
pub(super) enum Trouble {
    /// It may succeed later: an election, or servers that do not know each other yet.
    Later(String),
    Final(ConnectError),
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// A cluster is made if there is none.
    Serve,
    /// There must be one.
    Export,
    /// A new one is made. What an interrupted import has left is removed.
    Import,
}

pub(super) struct Streams<'a> {
    pub(super) client: &'a Client,
    pub(super) jetstream: &'a Context,
    pub(super) names: &'a StreamNames,
    pub(super) settings: &'a JetStreamSettings,
    /// The servers form a cluster, so that a stream can have copies.
    pub(super) is_clustered: bool,
    pub(super) purpose: Purpose,
    /// The import has removed what was there before.
    pub(super) is_begun: AtomicBool,
}

impl Streams<'_> {
    pub(super) async fn open(&self) -> Result<ClusterRecord, Trouble> {
        match (self.purpose, self.found().await?) {
            (Purpose::Export, None) => {
                let cluster = self.settings.cluster.to_string();
                return Err(Trouble::Final(ConnectError::NoCluster(cluster)));
            }
            (Purpose::Import, Some(record)) if !self.is_begun.swap(true, Ordering::Relaxed) => {
                self.remove(&record).await?;
            }
            _ => {}
        }
        let meta = Config {
            subjects: vec![self.names.meta_subjects()],
            max_messages_per_subject: 1,
            max_bytes: META_BYTES,
            ..self.config(self.names.meta_stream())
        };
        self.stream(meta).await?;
        let record = self.record().await?;
        let most_keys = self.settings.keys.most as u64;
        let most_keys = most_keys.saturating_add(most_keys / 4).saturating_add(SPARE_KEYS);
        let keys = Config {
            subjects: vec![self.names.key("*")],
            max_messages_per_subject: 1,
            max_messages: signed(most_keys),
            max_bytes: signed(most_keys.saturating_mul(KEY_BYTES)),
            ..self.config(self.names.key_stream())
        };
        self.stream(keys).await?;
        let JetStreamSettings { queue_max_bytes, dead_letter_max_bytes, .. } = self.settings;
        let share = queue_max_bytes.saturating_add(*dead_letter_max_bytes).saturating_mul(2)
            / u64::from(record.partitions);
        for partition in record.partitions() {
            self.stream(Config {
                subjects: self.names.stream_subjects(partition),
                max_bytes: signed(share.saturating_add(SPARE_BYTES)),
                allow_atomic_publish: true,
                first_sequence: Some(first_sequence(self.settings)),
                ..self.config(self.names.stream(partition))
            })
            .await?;
        }
        Ok(record)
    }

    /// The record of a cluster, if there is one that may be used.
    async fn found(&self) -> Result<Option<ClusterRecord>, Trouble> {
        let stream = self.names.meta_stream();
        let record = match self.jetstream.get_stream(&stream).await {
            Ok(_) => self.read_record().await?,
            Err(error) => match error.kind() {
                GetStreamErrorKind::JetStream(error)
                    if error.error_code() == ErrorCode::STREAM_NOT_FOUND =>
                {
                    None
                }
                GetStreamErrorKind::JetStream(error) => return Err(trouble(&stream, &error)),
                _ => return Err(Trouble::Later(format!("{stream}: {}", innermost(&error)))),
            },
        };
        let cluster = || self.settings.cluster.to_string();
        match (self.purpose, &record) {
            (Purpose::Import, Some(record)) if !record.importing => {
                Err(Trouble::Final(ConnectError::Exists(cluster())))
            }
            (Purpose::Serve | Purpose::Export, Some(record)) if record.importing => {
                Err(Trouble::Final(ConnectError::Importing(cluster())))
            }
            _ => Ok(record),
        }
    }

    /// Removes what an interrupted import has left, the record last.
    async fn remove(&self, record: &ClusterRecord) -> Result<(), Trouble> {
        let partitions = record.partitions().map(|partition| self.names.stream(partition));
        for stream in partitions.chain([self.names.key_stream(), self.names.meta_stream()]) {
            match self.jetstream.delete_stream(&stream).await {
                Ok(_) => {}
                Err(error) => match error.kind() {
                    DeleteStreamErrorKind::JetStream(error)
                        if error.error_code() == ErrorCode::STREAM_NOT_FOUND => {}
                    DeleteStreamErrorKind::JetStream(error) => {
                        return Err(trouble(&stream, &error));
                    }
                    _ => return Err(Trouble::Later(format!("{stream}: {}", innermost(&error)))),
                },
            }
        }
        Ok(())
    }

    fn config(&self, name: String) -> Config {
        Config {
            name,
            retention: RetentionPolicy::Limits,
            discard: DiscardPolicy::New,
            storage: StorageType::File,
            num_replicas: if self.is_clustered { COPIES } else { 1 },
            duplicate_window: DUPLICATE_WINDOW,
            allow_direct: true,
            allow_rollup: true,
            allow_message_ttl: true,
            deny_delete: true,
            max_messages: -1,
            max_messages_per_subject: -1,
            ..Config::default()
        }
    }

    /// Creates a stream, or checks the one that exists.
    async fn stream(&self, wanted: Config) -> Result<(), Trouble> {
        let name = wanted.name.clone();
        let found = match self.jetstream.get_stream(&name).await {
            Ok(stream) => stream.cached_info().config.clone(),
            Err(error) => match error.kind() {
                GetStreamErrorKind::JetStream(error)
                    if error.error_code() == ErrorCode::STREAM_NOT_FOUND =>
                {
                    return self.create(wanted).await;
                }
                GetStreamErrorKind::JetStream(error) => return Err(trouble(&name, &error)),
                _ => return Err(Trouble::Later(format!("{name}: {}", innermost(&error)))),
            },
        };
        if found.subjects != wanted.subjects || found.storage != StorageType::File {
            let problem = format!("its subjects are {:?}", found.subjects);
            return Err(Trouble::Final(ConnectError::Foreign { stream: name, problem }));
        }
        if self.is_clustered && found.num_replicas < COPIES {
            warn!(
                stream = name,
                copies = found.num_replicas,
                "the stream has fewer copies than three: the loss of a server may lose writes; set them with `nats stream edit --replicas 3`"
            );
        }
        let grows = |found: i64, wanted: i64| found >= 0 && wanted > found;
        if grows(found.max_bytes, wanted.max_bytes)
            || grows(found.max_messages, wanted.max_messages)
        {
            let max_bytes = found.max_bytes.max(wanted.max_bytes);
            let max_messages = found.max_messages.max(wanted.max_messages);
            let config = Config { max_bytes, max_messages, ..found };
            self.jetstream.update_stream(config).await.map_err(|error| {
                Trouble::Later(format!("the limits of {name} cannot be raised: {error}"))
            })?;
            info!(stream = name, max_bytes, "the limits of the stream are raised");
        }
        Ok(())
    }

    async fn create(&self, config: Config) -> Result<(), Trouble> {
        let name = config.name.clone();
        let copies = config.num_replicas;
        match self.jetstream.create_stream(config).await {
            Ok(_) => {
                info!(stream = name, copies, "the stream is created");
                Ok(())
            }
            Err(error) => Err(match error.kind() {
                // Another instance was faster. The next attempt finds it.
                CreateStreamErrorKind::JetStream(error)
                    if error.error_code() == ErrorCode::STREAM_NAME_EXIST =>
                {
                    Trouble::Later(format!("{name} is being created"))
                }
                CreateStreamErrorKind::JetStream(error) => trouble(&name, &error),
                _ => Trouble::Later(format!("{name}: {}", innermost(&error))),
            }),
        }
    }

    /// Reads the record of the cluster, or writes it. Of several instances one writes it.
    async fn record(&self) -> Result<ClusterRecord, Trouble> {
        if let Some(record) = self.read_record().await? {
            return Ok(record);
        }
        let subject = self.names.record();
        let stream = self.names.meta_stream();
        let timeout = self.settings.timeout;
        let partitions = self.settings.partitions.unwrap_or(DEFAULT_PARTITIONS);
        let (format, seed) = (FORMAT, fastrand::u64(..));
        let importing = self.purpose == Purpose::Import;
        let record = ClusterRecord { format, partitions, seed, importing };
        let Ok(payload) = serde_json::to_vec(&record).map(Bytes::from) else {
            return Err(Trouble::Later("the record cannot be written".to_owned()));
        };
        match rows::put(self.client, subject, payload, Some(0), None, timeout).await {
            Put::Stored(_) => {
                info!(cluster = %self.settings.cluster, partitions, "a new cluster");
                Ok(record)
            }
            Put::Refused => Err(Trouble::Later("the cluster is being created".to_owned())),
            Put::Unanswered => Err(Trouble::Later(format!("{stream} has no leader"))),
            Put::Full => {
                let problem = "it is full".to_owned();
                Err(Trouble::Final(ConnectError::Stream { stream, problem }))
            }
            Put::Failed(problem) => Err(Trouble::Final(ConnectError::Stream { stream, problem })),
        }
    }

    async fn read_record(&self) -> Result<Option<ClusterRecord>, Trouble> {
        let (stream, subject) = (self.names.meta_stream(), self.names.record());
        let wanted = Wanted::Last { subject: &subject };
        match rows::get(self.client, &stream, &wanted, self.settings.timeout).await {
            Got::Row(row) => self.check(&row.payload).map(Some).map_err(Trouble::Final),
            Got::None => Ok(None),
            Got::Unanswered => Err(Trouble::Later(format!("{stream} has no leader"))),
            Got::Failed(problem) => Err(Trouble::Final(ConnectError::Stream { stream, problem })),
        }
    }

    fn check(&self, payload: &[u8]) -> Result<ClusterRecord, ConnectError> {
        let cluster = || self.settings.cluster.to_string();
        /// The only field that every format has.
        #[derive(serde::Deserialize)]
        struct Version {
            format: u32,
        }
        let damaged = |error: serde_json::Error| ConnectError::Record {
            cluster: cluster(),
            problem: error.to_string(),
        };
        let Version { format } = serde_json::from_slice(payload).map_err(damaged)?;
        if format > FORMAT {
            return Err(ConnectError::NewerFormat {
                cluster: cluster(),
                found: format,
                known: FORMAT,
            });
        }
        let record: ClusterRecord = serde_json::from_slice(payload).map_err(damaged)?;
        if !(1..=MAX_PARTITIONS).contains(&record.partitions) {
            let problem = format!("it has {} partitions", record.partitions);
            return Err(ConnectError::Record { cluster: cluster(), problem });
        }
        match self.settings.partitions {
            Some(wanted) if wanted != record.partitions && !record.importing => {
                Err(ConnectError::Partitions {
                    cluster: cluster(),
                    found: record.partitions,
                    wanted,
                })
            }
            _ => Ok(record),
        }
    }
}

fn trouble(stream: &str, error: &jetstream::Error) -> Trouble {
    let problem = error.to_string();
    match error.error_code() {
        ErrorCode::JETSTREAM_NOT_ENABLED | ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT => {
            Trouble::Final(ConnectError::NoJetStream)
        }
        ErrorCode::CLUSTER_NO_PEERS
        | ErrorCode::INSUFFICIENT_RESOURCES
        | ErrorCode::CLUSTER_NOT_LEADER => Trouble::Later(format!("{stream}: {problem}")),
        _ if error.code() == 503 => Trouble::Later(format!("{stream}: {problem}")),
        _ => {
            let stream = stream.to_owned();
            Trouble::Final(ConnectError::Stream { stream, problem })
        }
    }
}

/// Ids go on from those of a local store, and do not repeat if a stream is lost and made again.
fn first_sequence(settings: &JetStreamSettings) -> u64 {
    settings.ids_after.0 / u64::from(MAX_PARTITIONS) + 1
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
