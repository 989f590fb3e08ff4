//! Flags of the daemon, one struct per section of its help.

use std::net::IpAddr;
use std::num::{NonZeroU16, NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use bytesize::ByteSize;
use clap::builder::ArgPredicate;
use clap::{ArgAction, Args, ValueEnum};

use super::duration;
use super::notify::NotifyArgs;
use crate::policy::Rule;

#[derive(Clone, Debug, Args)]
pub struct DaemonArgs {
    /// File of settings in TOML; flags and variables win over it
    ///
    /// Its keys are the flags without dashes in front, such as `queue-wait = "2s"`. Read again on
    /// SIGHUP, for what can change without a restart.
    #[arg(long, env = "REPLICATOR_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,

    #[command(flatten)]
    pub storage: StorageArgs,
    #[command(flatten)]
    pub cluster: ClusterArgs,
    #[command(flatten)]
    pub listener: ListenerArgs,
    #[command(flatten)]
    pub access: AccessArgs,
    #[command(flatten)]
    pub requests: RequestArgs,
    #[command(flatten)]
    pub queue: QueueArgs,
    #[command(flatten)]
    pub delivery: DeliveryArgs,
    #[command(flatten)]
    pub dead_letters: DeadLetterArgs,
    #[command(flatten)]
    pub replicas: ReplicaArgs,
    #[command(flatten)]
    pub notify: NotifyArgs,
    #[command(flatten)]
    pub process: ProcessArgs,
}

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Storage")]
pub struct StorageArgs {
    /// Directory of accepted, unsettled writes
    #[arg(
        long,
        env = "REPLICATOR_DATA_DIR",
        value_name = "DIR",
        default_value = "./replicator-data"
    )]
    pub data_dir: PathBuf,

    /// Minimum free space on the disk of the data directory. Below it new writes are refused and
    /// deliveries continue; 0B disables the check
    #[arg(
        long,
        env = "REPLICATOR_MIN_FREE_DISK",
        value_name = "SIZE",
        default_value = "256MiB",
        conflicts_with = "store"
    )]
    pub min_free_disk: ByteSize,

    /// Memory for accepted tasks until they are delivered. Other tasks are read back from disk,
    /// in as much memory again
    #[arg(long, env = "REPLICATOR_MEMORY_BUDGET", value_name = "SIZE", default_value = "64MiB")]
    pub memory_budget: ByteSize,

    /// Page cache of the store, 1MiB to 1TiB
    #[arg(
        long,
        env = "REPLICATOR_STORE_CACHE",
        value_name = "SIZE",
        default_value = "64MiB",
        conflicts_with = "store"
    )]
    pub store_cache: ByteSize,
}

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Cluster store")]
pub struct ClusterArgs {
    /// NATS servers that hold the queue instead of --data-dir
    ///
    /// Such as nats://h1:4222,nats://h2:4222,nats://h3:4222, or tls://h1:4222 and so on, with
    /// JetStream. Several instances with the same servers and the same --cluster share one queue.
    #[arg(
        long,
        env = "REPLICATOR_STORE",
        value_name = "URLS",
        value_delimiter = ',',
        conflicts_with = "data_dir"
    )]
    pub store: Vec<String>,

    /// Credentials for --store, readable only by its owner: a credentials file of nsc, the seed of an
    /// nkey, or one line user:password
    #[arg(long, env = "REPLICATOR_STORE_CREDS", value_name = "FILE", requires = "store")]
    pub store_creds: Option<PathBuf>,

    /// CAs that tls:// servers of --store are verified against, instead of the system's (PEM)
    #[arg(long, env = "REPLICATOR_STORE_CA", value_name = "FILE", requires = "store")]
    pub store_ca: Option<PathBuf>,

    /// Client certificate for --store (PEM); needs --store-key
    #[arg(
        long,
        env = "REPLICATOR_STORE_CERT",
        value_name = "FILE",
        requires_all = ["store", "store_key"]
    )]
    pub store_cert: Option<PathBuf>,

    /// Private key of --store-cert (PEM), readable only by its owner
    #[arg(
        long,
        env = "REPLICATOR_STORE_KEY",
        value_name = "FILE",
        requires_all = ["store", "store_cert"]
    )]
    pub store_key: Option<PathBuf>,

    /// How long a write waits until the servers have stored it before it is answered 503, and the
    /// start for a server, 1s to 5min. An election of the servers takes 4s to 9s
    #[arg(long, env = "REPLICATOR_STORE_TIMEOUT", value_name = "TIME", default_value = "10s", value_parser = duration, requires = "store")]
    pub store_timeout: Duration,

    /// What a write survives once it is accepted: `fsync`, a power cut of all servers; `replicated`,
    /// the loss of one
    ///
    /// With `fsync` the daemon does not start if a server tells that it does not sync each write.
    #[arg(
        long,
        env = "REPLICATOR_STORE_DURABILITY",
        value_name = "HOW",
        default_value = "fsync",
        requires = "store"
    )]
    pub store_durability: DurabilityArg,

    /// Name of the queue on the servers, in the names of streams and subjects: 1 to 32 characters of
    /// A-Z a-z 0-9 - _
    #[arg(
        long,
        env = "REPLICATOR_CLUSTER",
        value_name = "NAME",
        default_value = "replicator",
        requires = "store"
    )]
    pub cluster: String,

    /// Number of partitions of the cluster, 1 to 1024, fixed when it is made
    #[arg(
        long,
        env = "REPLICATOR_PARTITIONS",
        value_name = "N",
        default_value = "8",
        requires = "store"
    )]
    pub partitions: NonZeroU16,

    /// How long an instance may deliver after its last checkpoint, 1s to 1min. Another instance
    /// takes over a little later
    #[arg(long, env = "REPLICATOR_LEASE", value_name = "TIME", default_value = "2s", value_parser = duration, requires = "store")]
    pub lease: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DurabilityArg {
    Fsync,
    Replicated,
}

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Listener")]
pub struct ListenerArgs {
    /// IP address to listen on
    ///
    /// An address other than loopback needs --auth-file, --tls-client-ca or --insecure.
    #[arg(long, env = "REPLICATOR_BIND", value_name = "IP", default_value = "127.0.0.1")]
    pub bind: IpAddr,

    /// TCP port to listen on; 0 picks a free one
    #[arg(long, env = "REPLICATOR_PORT", default_value_t = 8085)]
    pub port: u16,

    /// Name of this replicator in responses and in X-Replication-Id: 1 to 64 characters of
    /// A-Z a-z 0-9 . _ -
    #[arg(long, env = "REPLICATOR_NODE_ID", value_name = "NAME", default_value = "replicator")]
    pub node_id: String,

    /// Maximum client connections, more than --queue-capacity. At the limit, connections that wait
    /// for their clients are closed
    #[arg(long, env = "REPLICATOR_MAX_CONNECTIONS", value_name = "N", default_value = "4096")]
    pub max_connections: NonZeroUsize,

    /// How long a client may take to send the head of a request, and again to send its body
    #[arg(long, env = "REPLICATOR_CLIENT_TIMEOUT", value_name = "TIME", default_value = "10s", value_parser = duration)]
    pub client_timeout: Duration,
}

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Authentication and TLS")]
pub struct AccessArgs {
    /// Token file, one line per token of `replicator token new`
    ///
    /// Reloaded on SIGHUP. Without it every client that can connect has full access.
    #[arg(long, env = "REPLICATOR_AUTH_FILE", value_name = "FILE")]
    pub auth_file: Option<PathBuf>,

    /// Certificate chain for TLS (PEM, leaf first); needs --tls-key
    ///
    /// Reloaded on SIGHUP.
    #[arg(long, env = "REPLICATOR_TLS_CERT", value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,

    /// Private key of --tls-cert (PEM); reloaded on SIGHUP
    #[arg(long, env = "REPLICATOR_TLS_KEY", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,

    /// Require client certificates issued by one of these CAs (PEM); reloaded on SIGHUP. Without
    /// --auth-file every client with such a certificate has full access
    #[arg(long, env = "REPLICATOR_TLS_CLIENT_CA", value_name = "FILE")]
    pub tls_client_ca: Option<PathBuf>,

    /// Listen on any address without authentication
    #[arg(
        long,
        env = "REPLICATOR_INSECURE",
        value_name = "BOOL",
        action = ArgAction::Set,
        num_args = 0..=1,
        require_equals = true,
        default_value = "false",
        default_missing_value = "true"
    )]
    pub insecure: bool,

    /// Host names accepted in requests when no token is required, comma-separated. IP addresses
    /// and localhost are always accepted; any other name may be a DNS rebinding attack
    #[arg(long, env = "REPLICATOR_HOST_NAME", value_name = "NAMES", value_delimiter = ',')]
    pub host_name: Vec<String>,
}

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Requests")]
pub struct RequestArgs {
    /// Maximum size of a value after base64 decoding, 1B to 1GiB
    #[arg(long, env = "REPLICATOR_MAX_VALUE_BYTES", value_name = "SIZE", default_value = "8MiB")]
    pub max_value_bytes: ByteSize,

    /// Maximum size of a key, 1B to 16KiB
    #[arg(long, env = "REPLICATOR_MAX_KEY_BYTES", value_name = "SIZE", default_value = "4KiB")]
    pub max_key_bytes: ByteSize,

    /// Maximum number of replicas of one write, 1 to 1024
    #[arg(long, env = "REPLICATOR_MAX_REPLICAS", value_name = "N", default_value = "64")]
    pub max_replicas: NonZeroUsize,

    /// Memory for request bodies over 64KiB; must hold the largest request, a little more than
    /// twice --max-value-bytes
    #[arg(long, env = "REPLICATOR_REQUEST_MEMORY", value_name = "SIZE", default_value = "256MiB")]
    pub request_memory: ByteSize,

    /// How long a strong write waits for its majority before it is answered 503
    #[arg(long, env = "REPLICATOR_STRONG_TIMEOUT", value_name = "TIME", default_value = "10s", value_parser = duration)]
    pub strong_timeout: Duration,

    /// How long an Idempotency-Key is remembered. A request repeated within that time gets the
    /// same task
    #[arg(long, env = "REPLICATOR_IDEMPOTENCY_WINDOW", value_name = "TIME", default_value = "10m", value_parser = duration)]
    pub idempotency_window: Duration,

    /// Maximum number of remembered idempotency keys. At the limit, writes with a new key are
    /// refused
    #[arg(long, env = "REPLICATOR_IDEMPOTENCY_KEYS", value_name = "N", default_value = "100000")]
    pub idempotency_keys: NonZeroUsize,
}

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Queue")]
pub struct QueueArgs {
    /// Maximum number of eventual writes in the queue
    ///
    /// The same limit applies separately to open strong writes. With --store it is the limit of the
    /// cluster, 10000 by default.
    #[arg(
        long,
        env = "REPLICATOR_QUEUE_CAPACITY",
        value_name = "TASKS",
        default_value = "1000",
        default_value_if("store", ArgPredicate::IsPresent, "10000")
    )]
    pub queue_capacity: NonZeroUsize,

    /// Maximum disk usage of the queue. A task counts its key, value and user id plus 512 bytes,
    /// and 64 bytes plus the address for each of its replicas
    #[arg(long, env = "REPLICATOR_QUEUE_MAX_BYTES", value_name = "SIZE", default_value = "1GiB")]
    pub queue_max_bytes: ByteSize,

    /// How long a request waits for room in the queue before it is answered 503, at most 1024
    /// requests at a time; 0s answers at once
    #[arg(long, env = "REPLICATOR_QUEUE_WAIT", value_name = "TIME", default_value = "500ms", value_parser = duration)]
    pub queue_wait: Duration,

    /// Send only the newest of the writes of a key that are pending for a replica
    #[arg(
        long,
        env = "REPLICATOR_COALESCE",
        value_name = "BOOL",
        action = ArgAction::Set,
        num_args = 0..=1,
        require_equals = true,
        default_value = "false",
        default_missing_value = "true"
    )]
    pub coalesce: bool,

    /// How long settled tasks stay visible, up to 10,000 of them; 0s hides them at once
    #[arg(long, env = "REPLICATOR_TASK_HISTORY", value_name = "TIME", default_value = "10m", value_parser = duration)]
    pub task_history: Duration,
}

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Delivery")]
pub struct DeliveryArgs {
    /// Concurrent deliveries per replica: 1 to 1024, or `auto`
    ///
    /// `auto` raises the number until latency grows, up to --max-workers.
    #[arg(long, env = "REPLICATOR_WORKERS", value_name = "N", default_value = "5")]
    pub workers: WorkersArg,

    /// Upper limit of `--workers auto`, 1 to 1024
    #[arg(long, env = "REPLICATOR_MAX_WORKERS", value_name = "N", default_value = "256")]
    pub max_workers: NonZeroU32,

    /// Maximum duration of one attempt, response included
    ///
    /// For a value over 64KiB it limits the time without progress instead.
    #[arg(long, env = "REPLICATOR_REQUEST_TIMEOUT", value_name = "TIME", default_value = "5s", value_parser = duration)]
    pub request_timeout: Duration,

    /// Number of retries after a failed first attempt
    #[arg(long, env = "REPLICATOR_MAX_RETRIES", value_name = "N", default_value_t = 3)]
    pub max_retries: u32,

    /// Delay before the first retry
    ///
    /// The delay before the n-th is n times as long, plus up to 10% jitter.
    #[arg(long, env = "REPLICATOR_RETRY_BASE", value_name = "TIME", default_value = "2s", value_parser = duration)]
    pub retry_base: Duration,

    /// Maximum number of deliveries that wait for a retry. One replica holds no more than its
    /// share; above that, failed deliveries are parked on disk until there is room
    #[arg(
        long,
        env = "REPLICATOR_RETRY_CAPACITY",
        value_name = "DELIVERIES",
        default_value = "500"
    )]
    pub retry_capacity: NonZeroUsize,

    /// How long a replica may still apply an attempt that had no response. If a newer write of
    /// the key is delivered within that time, it is sent once more after it; 0s disables this
    #[arg(long, env = "REPLICATOR_SETTLE_AFTER", value_name = "TIME", default_value = "30s", value_parser = duration)]
    pub settle_after: Duration,

    /// Consecutive failures that open the circuit breaker of a replica, more for one that often
    /// fails; 0 disables the breaker. While it is open only probes are sent, other deliveries fail
    /// at once. A delivery that is given up also opens it if the replica answered nothing between
    /// its attempts
    #[arg(long, env = "REPLICATOR_BREAKER_FAILURES", value_name = "N", default_value_t = 5)]
    pub breaker_failures: u32,

    /// Maximum age of a connection to a replica. Its name is resolved again for the next
    /// connection; 0s is unlimited
    #[arg(long, env = "REPLICATOR_REPLICA_CONNECTION_AGE", value_name = "TIME", default_value = "60s", value_parser = duration)]
    pub replica_connection_age: Duration,

    /// HTTP/2 to replicas, with many deliveries on one connection
    #[arg(long, env = "REPLICATOR_REPLICA_HTTP2", value_name = "WHEN", default_value = "off")]
    pub replica_http2: ReplicaHttp2Arg,

    /// Keys per second whose values at the replicas are compared with the primary in the background,
    /// at most 1000; 0 is off. Not with --store
    #[arg(long, env = "REPLICATOR_VERIFY_RATE", value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=1000), conflicts_with = "store")]
    pub verify_rate: u32,

    /// Maximum number of replicas with unsettled deliveries; at least --max-replicas
    #[arg(long, env = "REPLICATOR_MAX_KNOWN_REPLICAS", value_name = "N", default_value = "1024")]
    pub max_known_replicas: NonZeroUsize,
}

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Dead letters")]
pub struct DeadLetterArgs {
    /// Maximum disk usage of dead letters and parked deliveries. New writes for a replica above
    /// its share are refused
    #[arg(
        long,
        env = "REPLICATOR_DEAD_LETTER_MAX_BYTES",
        value_name = "SIZE",
        default_value = "1GiB"
    )]
    pub dead_letter_max_bytes: ByteSize,

    /// How long a dead letter is kept before it is discarded, at most 3650days; 0s keeps it
    /// forever
    #[arg(long, env = "REPLICATOR_DEAD_LETTER_RETENTION", value_name = "TIME", default_value = "24h", value_parser = duration)]
    pub dead_letter_retention: Duration,

    /// Whether the dead letters of a replica are redriven when it is back
    #[arg(long, env = "REPLICATOR_HINTED_HANDOFF", value_name = "MODE", default_value = "on")]
    pub hinted_handoff: HintedHandoff,

    /// Dead letters redriven per second and replica, 1 to 1000000, at lower priority than other
    /// deliveries. Parked deliveries follow at the same rate
    #[arg(long, env = "REPLICATOR_REDRIVE_RATE", value_name = "N", default_value = "200")]
    pub redrive_rate: NonZeroU32,
}

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Replica access")]
pub struct ReplicaArgs {
    /// Send writes only to replicas that match a rule; repeatable
    ///
    /// A rule is http://host:port, *.suffix:port, 10.0.0.0/8:8000-8999 or [fd00::/8]:8081; separate
    /// rules of one argument by commas. Without rules every address is allowed except link-local,
    /// multicast, cloud metadata and the daemon's own.
    #[arg(
        long,
        env = "REPLICATOR_ALLOW_REPLICA",
        value_name = "RULE",
        value_delimiter = ',',
        value_parser = rule
    )]
    pub allow_replica: Vec<Rule>,

    /// File of such rules, one per line; reloaded on SIGHUP
    #[arg(long, env = "REPLICATOR_ALLOW_REPLICA_FILE", value_name = "FILE")]
    pub allow_replica_file: Option<PathBuf>,

    /// CAs that https replicas are verified against, instead of the system's (PEM); reloaded on
    /// SIGHUP
    #[arg(long, env = "REPLICATOR_REPLICA_CA", value_name = "FILE")]
    pub replica_ca: Option<PathBuf>,

    /// Client certificate for https replicas (PEM); needs --replica-key; reloaded on SIGHUP
    #[arg(long, env = "REPLICATOR_REPLICA_CERT", value_name = "FILE")]
    pub replica_cert: Option<PathBuf>,

    /// Private key of --replica-cert (PEM), readable only by its owner; reloaded on SIGHUP
    #[arg(long, env = "REPLICATOR_REPLICA_KEY", value_name = "FILE")]
    pub replica_key: Option<PathBuf>,

    /// Bearer tokens for replicas, one `http://host:port TOKEN` or `* TOKEN` per line, readable
    /// only by its owner; reloaded on SIGHUP
    #[arg(long, env = "REPLICATOR_REPLICA_TOKEN_FILE", value_name = "FILE")]
    pub replica_token_file: Option<PathBuf>,
}

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Shutdown, log and traces")]
pub struct ProcessArgs {
    /// How long a drain waits for requests and deliveries in flight; 0s does not wait
    #[arg(long, env = "REPLICATOR_DRAIN_TIMEOUT", value_name = "TIME", default_value = "30s", value_parser = duration)]
    pub drain_timeout: Duration,

    /// Log level: off, error, warn, info, debug or trace
    ///
    /// Or a filter such as info,replicator::daemon::attempt=debug, which logs each attempt.
    #[arg(long, env = "REPLICATOR_LOG", value_name = "FILTER", default_value = "info")]
    pub log: String,

    /// Format of log lines
    #[arg(long, env = "REPLICATOR_LOG_FORMAT", value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,

    /// Trace collector (OTLP over HTTP, protobuf) such as http://127.0.0.1:4318; /v1/traces is
    /// appended. OTEL_EXPORTER_OTLP_HEADERS adds headers. `off` exports nothing; a traceparent
    /// header is forwarded to replicas either way
    #[arg(long, env = "REPLICATOR_OTLP_ENDPOINT", value_name = "URL", default_value = "off")]
    pub otlp_endpoint: String,

    /// Share of the writes without a traceparent header that are traced, 0 to 1. A traceparent
    /// header decides for its own write
    #[arg(long, env = "REPLICATOR_TRACE_RATIO", value_name = "SHARE", default_value = "1")]
    pub trace_ratio: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkersArg {
    Fixed(NonZeroU32),
    Auto,
}

impl FromStr for WorkersArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            number => number
                .parse()
                .map(Self::Fixed)
                .map_err(|_| "expected a number from 1 to 1024, or auto".to_owned()),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum HintedHandoff {
    /// Redrive them
    On,
    /// Leave them to the operator
    Off,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ReplicaHttp2Arg {
    /// HTTP/1.1
    Off,
    /// To https replicas that choose it in the TLS handshake
    Auto,
    /// As auto, and to all http replicas, which must speak it
    PriorKnowledge,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people
    Text,
    /// One JSON object per line
    Json,
}

fn rule(text: &str) -> Result<Rule, String> {
    text.parse().map_err(|error| format!("it {error}"))
}
