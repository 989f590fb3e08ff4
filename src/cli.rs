//! The command line: flags, environment variables, subcommands. The doc comments of arguments are
//! their help texts. `config.rs` checks the values against their limits and each other.

use std::net::IpAddr;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use bytesize::ByteSize;
use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};

pub mod admin;
pub mod environment;

use crate::access::Role;
use crate::policy::Rule;
use crate::task::Node;
use admin::{
    BarrierArgs, CompletionsArgs, DeadLettersArgs, ManArgs, ReplicasArgs, StatusArgs, TasksArgs,
    TopArgs,
};

/// Replicates the writes of a key-value store from its primary to its replica nodes: durably, in
/// order, with retries
///
/// Without a subcommand it runs the daemon. Once it serves requests, the daemon prints one line to
/// standard output, `listening on URL`; its log goes to standard error. SIGTERM or SIGINT drains
/// and stops it, a second one stops it at once. SIGHUP reloads the files of tokens, certificates
/// and rules.
///
/// TIME is a duration such as 250ms, 2s or 1h; the maximum is 24h unless stated otherwise, 0s is
/// valid only where stated. SIZE is a number of bytes such as 4096, 64KiB or 1GiB. An empty
/// environment variable counts as unset.
#[derive(Debug, Parser)]
#[command(
    name = "replicator",
    version,
    max_term_width = 100,
    args_conflicts_with_subcommands = true,
    after_long_help = DAEMON_EXIT_CODES
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<Command>,

    #[command(flatten)]
    pub daemon: DaemonArgs,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show the health of a running daemon, problems first
    #[command(after_long_help = STATUS_EXIT_CODES)]
    Status(StatusArgs),
    /// List, pause, resume, probe, forget and rename replicas
    Replicas(ReplicasArgs),
    /// List, show and discard unsettled tasks
    Tasks(TasksArgs),
    /// List, redrive and discard dead letters
    DeadLetters(DeadLettersArgs),
    /// Wait until every write accepted so far is delivered
    #[command(after_long_help = BARRIER_EXIT_CODES)]
    Barrier(BarrierArgs),
    /// Watch throughput, backlog and lag live; pause and resume replicas
    Top(TopArgs),
    /// Create tokens for --auth-file
    Token(TokenArgs),
    /// Print a shell completion script
    Completions(CompletionsArgs),
    /// Print the manual page, or write one page per command
    Man(ManArgs),
    /// Run the daemon with three in-memory replicas and a scripted outage
    ///
    /// Uses a temporary data directory. After the script the daemon keeps running for your own
    /// requests until Ctrl-C.
    Demo(DemoArgs),
    /// Verify a store that is not in use; --repair recovers a damaged one
    ///
    /// Works on a temporary copy inside the data directory. Without --repair nothing else is
    /// written.
    #[command(after_long_help = CHECK_EXIT_CODES)]
    Check(CheckArgs),
    /// Write all tasks of a store that is not in use as JSON lines, with values and progress
    ///
    /// Tasks that cannot be read are skipped and reported on standard error.
    #[command(after_long_help = EXPORT_EXIT_CODES)]
    Export(ExportArgs),
    /// Create a store from the output of `export`, in a data directory without one
    ///
    /// Imports everything or nothing.
    Import(ImportArgs),
    /// Run one in-memory replica for trying the daemon
    ///
    /// Serves PUT, GET and DELETE on /store/{key}. Its data is lost when it stops.
    DemoReplica(DemoReplicaArgs),
}

const DAEMON_EXIT_CODES: &str = "\
Exit codes of the daemon:
  0  drained
  1  not started, store failure, or stopped by a second signal
  2  invalid arguments";

const STATUS_EXIT_CODES: &str = "\
Exit codes:
  0  healthy
  1  no valid answer from the daemon
  2  invalid arguments
  3  degraded, or a replica lags, is paused, does not answer or has dead letters
  4  unhealthy: the daemon accepts no writes";

const BARRIER_EXIT_CODES: &str = "\
Exit codes:
  0  reached: everything is delivered
  1  no valid answer from the daemon
  2  invalid arguments
  3  not reached within --wait
  5  reached, but some deliveries became dead letters";

const CHECK_EXIT_CODES: &str = "\
Exit codes:
  0  the store is intact, or was repaired
  1  the store is damaged, or cannot be read
  2  invalid arguments";

const EXPORT_EXIT_CODES: &str = "\
Exit codes:
  0  everything was exported
  1  something was skipped, or nothing could be written
  2  invalid arguments";

#[derive(Debug, Args)]
pub struct TokenArgs {
    #[command(subcommand)]
    pub command: TokenCommand,
}

#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Create a token and its line for --auth-file
    ///
    /// Prints the token, which is not stored anywhere, to standard output. Prints the line to
    /// standard error, or appends it to a file with --append.
    New(NewTokenArgs),
}

#[derive(Debug, Args)]
pub struct NewTokenArgs {
    /// Name in the audit log: 1 to 64 characters of A-Z a-z 0-9 . _ - @
    #[arg(long, value_name = "NAME")]
    pub name: String,

    /// Roles, comma-separated: `replicate` may post writes, `observe` may read everything,
    /// `operate` may read and change everything but not post writes
    #[arg(long, value_name = "ROLE", required = true, value_delimiter = ',')]
    pub role: Vec<Role>,

    /// Replicas that its writes may name, comma-separated [default: all]
    #[arg(long, value_name = "URL", value_delimiter = ',', value_parser = admin::node)]
    pub replica: Vec<Node>,

    /// Requests per second; each write of a batch counts [default: unlimited]
    #[arg(long, value_name = "N")]
    pub rate: Option<NonZeroU32>,

    /// Token file to append the line to; created if missing
    #[arg(long, value_name = "FILE")]
    pub append: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Exit after the script; exit code 1 if the replicas disagree
    #[arg(long)]
    pub exit: bool,
}

/// The store of an offline tool.
#[derive(Debug, Args)]
pub struct StoreArgs {
    /// Data directory
    #[arg(
        long,
        env = "REPLICATOR_DATA_DIR",
        value_name = "DIR",
        default_value = "./replicator-data"
    )]
    pub data_dir: PathBuf,
}

#[derive(Debug, Args)]
pub struct CheckArgs {
    #[command(flatten)]
    pub store: StoreArgs,

    /// Move damaged tasks to DIR/quarantine and accept the rest as complete
    #[arg(long)]
    pub repair: bool,

    /// Print the report as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct ExportArgs {
    #[command(flatten)]
    pub store: StoreArgs,

    /// File to create; must not exist [default: standard output]
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct ImportArgs {
    #[command(flatten)]
    pub store: StoreArgs,

    /// File to read [default: standard input]
    #[arg(long, value_name = "FILE")]
    pub input: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct DemoReplicaArgs {
    /// IP address to listen on
    #[arg(long, env = "REPLICATOR_BIND", value_name = "IP", default_value = "127.0.0.1")]
    pub bind: IpAddr,

    /// TCP port to listen on; 0 picks a free one
    #[arg(long, env = "REPLICATOR_PORT", default_value_t = 8081)]
    pub port: u16,
}

/// Settings of the daemon, one struct per section of the help.
#[derive(Clone, Debug, Args)]
pub struct DaemonArgs {
    #[command(flatten)]
    pub storage: StorageArgs,
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
    pub process: ProcessArgs,
}

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Storage")]
pub struct StorageArgs {
    /// Directory that keeps accepted writes until they are settled
    #[arg(
        long,
        env = "REPLICATOR_DATA_DIR",
        value_name = "DIR",
        default_value = "./replicator-data"
    )]
    pub data_dir: PathBuf,

    /// Minimum free space on the disk of the data directory. Below it new writes are refused and
    /// deliveries continue; 0B disables the check
    #[arg(long, env = "REPLICATOR_MIN_FREE_DISK", value_name = "SIZE", default_value = "256MiB")]
    pub min_free_disk: ByteSize,

    /// Memory for accepted tasks until they are delivered. Other tasks are read back from disk,
    /// in as much memory again
    #[arg(long, env = "REPLICATOR_MEMORY_BUDGET", value_name = "SIZE", default_value = "64MiB")]
    pub memory_budget: ByteSize,

    /// Page cache of the store, 1MiB to 1TiB
    #[arg(long, env = "REPLICATOR_STORE_CACHE", value_name = "SIZE", default_value = "64MiB")]
    pub store_cache: ByteSize,
}

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Listener")]
pub struct ListenerArgs {
    /// IP address to listen on; an address other than loopback needs --auth-file,
    /// --tls-client-ca or --insecure
    #[arg(long, env = "REPLICATOR_BIND", value_name = "IP", default_value = "127.0.0.1")]
    pub bind: IpAddr,

    /// TCP port to listen on; 0 picks a free one
    #[arg(long, env = "REPLICATOR_PORT", default_value_t = 8085)]
    pub port: u16,

    /// Name of this replicator in responses and in X-Replication-Id: 1 to 64 characters of
    /// A-Z a-z 0-9 . _ -
    #[arg(long, env = "REPLICATOR_NODE_ID", value_name = "NAME", default_value = "replicator")]
    pub node_id: String,

    /// Maximum client connections. At the limit, the connections that wait longest for their
    /// clients are closed
    #[arg(long, env = "REPLICATOR_MAX_CONNECTIONS", value_name = "N", default_value = "4096")]
    pub max_connections: NonZeroUsize,

    /// How long a client may take to send the head of a request, and again to send its body
    #[arg(long, env = "REPLICATOR_CLIENT_TIMEOUT", value_name = "TIME", default_value = "10s", value_parser = duration)]
    pub client_timeout: Duration,
}

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Authentication and TLS")]
pub struct AccessArgs {
    /// Token file: one line per token, as printed by `replicator token new`; reloaded on SIGHUP.
    /// Without it every client that can connect has full access
    #[arg(long, env = "REPLICATOR_AUTH_FILE", value_name = "FILE")]
    pub auth_file: Option<PathBuf>,

    /// Certificate chain to serve TLS with (PEM, leaf first); reloaded on SIGHUP
    #[arg(long, env = "REPLICATOR_TLS_CERT", value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,

    /// Private key of --tls-cert (PEM); reloaded on SIGHUP
    #[arg(long, env = "REPLICATOR_TLS_KEY", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,

    /// Require client certificates issued by one of these CAs (PEM); reloaded on SIGHUP. Without
    /// --auth-file every client with such a certificate has full access
    #[arg(long, env = "REPLICATOR_TLS_CLIENT_CA", value_name = "FILE")]
    pub tls_client_ca: Option<PathBuf>,

    /// Listen on an address other than loopback without authentication
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
    /// Maximum number of eventual writes in the queue; the same limit applies separately to open
    /// strong writes
    #[arg(long, env = "REPLICATOR_QUEUE_CAPACITY", value_name = "TASKS", default_value = "1000")]
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
    /// Concurrent deliveries per replica: 1 to 1024, or `auto`: raised until latency grows, up
    /// to --max-workers
    #[arg(long, env = "REPLICATOR_WORKERS", value_name = "N", default_value = "5")]
    pub workers: WorkersArg,

    /// Upper limit of `--workers auto`, 1 to 1024
    #[arg(long, env = "REPLICATOR_MAX_WORKERS", value_name = "N", default_value = "256")]
    pub max_workers: NonZeroU32,

    /// Maximum duration of one attempt, response included. For a value over 64KiB it limits the
    /// time without progress instead
    #[arg(long, env = "REPLICATOR_REQUEST_TIMEOUT", value_name = "TIME", default_value = "5s", value_parser = duration)]
    pub request_timeout: Duration,

    /// Number of retries after a failed first attempt
    #[arg(long, env = "REPLICATOR_MAX_RETRIES", value_name = "N", default_value_t = 3)]
    pub max_retries: u32,

    /// Delay before the first retry. The delay before the n-th is n times as long, plus up to 10%
    /// jitter
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
    /// Send writes only to replicas that match a rule: http://host:port, *.suffix:port,
    /// 10.0.0.0/8:8000-8999 or [fd00::/8]:8081; repeatable or comma-separated. Without rules
    /// every address is allowed except link-local, multicast, cloud metadata and the daemon's own
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

    /// Log level (error, warn, info, debug or trace), or a filter such as
    /// info,replicator::daemon::attempt=debug
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
pub enum LogFormat {
    /// For people
    Text,
    /// One JSON object per line
    Json,
}

fn rule(text: &str) -> Result<Rule, String> {
    text.parse().map_err(|error| format!("it {error}"))
}

fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|error| format!("{error}: expected a duration such as 250ms, 2s or 1h"))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_flag_of_the_daemon_has_an_environment_variable_and_a_default() {
        let command = Cli::command();
        for arg in command.get_arguments().filter(|arg| arg.get_id() != "help") {
            let Some(name) = arg.get_long().filter(|name| *name != "version") else {
                continue;
            };
            let variable = format!("REPLICATOR_{}", name.replace('-', "_").to_uppercase());
            assert_eq!(arg.get_env().and_then(|env| env.to_str()), Some(variable.as_str()));
            // A file, a rule or a name has no default.
            let names = arg.get_value_names().unwrap_or_default();
            let optional =
                names.iter().any(|name| matches!(name.as_str(), "FILE" | "RULE" | "NAMES"));
            assert!(optional == arg.get_default_values().is_empty(), "default of --{name}");
            assert!(arg.get_help().is_some(), "--{name} has no help");
        }
    }

    #[test]
    fn times_and_sizes_have_units() {
        let parse = |args: &[&str]| Cli::try_parse_from([&["replicator"], args].concat());
        let cli = parse(&["--retry-base", "250ms", "--queue-max-bytes", "64MiB"]).unwrap();
        assert_eq!(cli.daemon.delivery.retry_base, Duration::from_millis(250));
        assert_eq!(cli.daemon.queue.queue_max_bytes, ByteSize::mib(64));
        let error = parse(&["--retry-base", "soon"]).unwrap_err().to_string();
        assert!(error.contains("--retry-base") && error.contains("250ms"), "{error}");
        let error = parse(&["--queue-max-bytes", "much"]).unwrap_err().to_string();
        assert!(error.contains("--queue-max-bytes"), "{error}");
    }
}
