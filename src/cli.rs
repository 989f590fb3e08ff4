//! Flags, environment, subcommands. What they mean together is decided in `config.rs`.

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

/// Carries writes from the primary of a key-value store to its replica nodes: durably, in order,
/// with retries.
///
/// Without a subcommand it runs the daemon. It prints one line on standard output, `listening on
/// http://ADDRESS`, once it serves; its log goes to standard error. SIGTERM and SIGINT drain it,
/// a second one ends it at once.
#[derive(Debug, Parser)]
#[command(
    name = "replicator",
    version,
    max_term_width = 100,
    args_conflicts_with_subcommands = true
)]
pub struct Cli {
    /// What to do instead of running the daemon.
    #[command(subcommand)]
    pub command: Option<Command>,

    /// The daemon's settings.
    #[command(flatten)]
    pub daemon: DaemonArgs,
}

/// What the binary can do besides running the daemon.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Ask a running daemon how it is, with what is wrong first.
    ///
    /// Exit codes: 0 all is well; 1 the daemon cannot be asked; 2 the arguments are wrong; 3 the
    /// daemon is degraded, or a replica is behind, paused, does not answer or has dead letters; 4
    /// the daemon is unhealthy: it accepts nothing.
    Status(StatusArgs),
    /// Look at replicas, pause, resume, probe, forget and rename them.
    Replicas(ReplicasArgs),
    /// Look at the tasks that are not settled, and throw one away.
    Tasks(TasksArgs),
    /// Look at dead letters, make them ready again or throw them away.
    DeadLetters(DeadLettersArgs),
    /// Wait until everything that was accepted before now is delivered.
    ///
    /// Exit codes: 0 it is; 1 the daemon cannot be asked; 2 the arguments are wrong; 3 not within
    /// --wait; 5 what could be delivered is, and the rest are dead letters.
    Barrier(BarrierArgs),
    /// Watch throughput, backlog and lag of a running daemon, and pause and resume replicas.
    Top(TopArgs),
    /// Make tokens for --auth-file.
    Token(TokenArgs),
    /// Print a completion script for a shell.
    Completions(CompletionsArgs),
    /// Print the manual page, or write one for every command into a directory.
    Man(ManArgs),
    /// Start the daemon with three in-memory replicas and watch writes travel.
    ///
    /// Uses a data directory of its own that is removed at the end. Leaves the daemon running
    /// for your own curl until Ctrl-C.
    Demo(DemoArgs),
    /// Verify a store that is not in use, and with --repair bring a damaged one into order.
    ///
    /// Looks at a copy, in the data directory, that is removed afterwards; without --repair
    /// nothing else is written. Exit codes: 0 the store is whole, or was repaired; 1 it is damaged,
    /// or could not be looked at; 2 the arguments are wrong.
    Check(CheckArgs),
    /// Write all tasks of a store that is not in use as lines of JSON, with values and progress.
    ///
    /// What cannot be read is left out. Exit codes: 0 everything was written; 1 something was
    /// left out, or nothing could be written, the reasons are on standard error; 2 the arguments
    /// are wrong.
    Export(ExportArgs),
    /// Make a store of what `export` wrote, in a data directory that holds none.
    ///
    /// All or nothing. Exit codes: 0 all is imported; 1 nothing is, the reason is on standard
    /// error; 2 the arguments are wrong.
    Import(ImportArgs),
    /// Run one in-memory replica, to try the daemon with: PUT, GET and DELETE on /store/{key}.
    ///
    /// It keeps nothing over its end.
    DemoReplica(DemoReplicaArgs),
}

/// Flags of `token`.
#[derive(Debug, Args)]
pub struct TokenArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: TokenCommand,
}

/// What `token` can do.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a token: print it, this once, and the line of --auth-file for it.
    ///
    /// The token goes to standard output, the line and what to do with it to standard error; with
    /// --append the line is added to a file.
    New(NewTokenArgs),
}

/// Flags of `token new`.
#[derive(Debug, Args)]
pub struct NewTokenArgs {
    /// Who it is for, as the audit log says it: 1 to 64 of A-Z a-z 0-9 . _ - @
    #[arg(long, value_name = "NAME")]
    pub name: String,

    /// What it is for: replicate posts writes, observe looks at everything, operate looks at and
    /// changes everything but posts no writes. Several with commas.
    #[arg(long, value_name = "ROLE", required = true, value_delimiter = ',')]
    pub role: Vec<Role>,

    /// The only replicas that its writes may name. Several with commas.
    #[arg(long, value_name = "URL", value_delimiter = ',', value_parser = admin::node)]
    pub replica: Vec<Node>,

    /// Requests a second; a batch counts as many as it has writes.
    #[arg(long, value_name = "N")]
    pub rate: Option<NonZeroU32>,

    /// The --auth-file to add the line to; made where it is not there.
    #[arg(long, value_name = "FILE")]
    pub append: Option<PathBuf>,
}

/// Flags of `demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// End after the story instead of waiting for Ctrl-C; exit code 1 if the replicas disagree.
    #[arg(long)]
    pub exit: bool,
}

/// Where the store is, for the tools.
#[derive(Debug, Args)]
pub struct StoreArgs {
    /// The data directory.
    #[arg(
        long,
        env = "REPLICATOR_DATA_DIR",
        value_name = "DIR",
        default_value = "./replicator-data"
    )]
    pub data_dir: PathBuf,
}

/// Flags of `check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// The store.
    #[command(flatten)]
    pub store: StoreArgs,

    /// Set damaged tasks aside in DIR/quarantine, and take what is left for all there is.
    #[arg(long)]
    pub repair: bool,

    /// Report as JSON.
    #[arg(long)]
    pub json: bool,
}

/// Flags of `export`.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// The store.
    #[command(flatten)]
    pub store: StoreArgs,

    /// Where to write, a file that is not there yet; without it, standard output.
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// Flags of `import`.
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// The store.
    #[command(flatten)]
    pub store: StoreArgs,

    /// What to read; without it, standard input.
    #[arg(long, value_name = "FILE")]
    pub input: Option<PathBuf>,
}

/// Flags of `demo-replica`.
#[derive(Debug, Args)]
pub struct DemoReplicaArgs {
    /// Address to listen on.
    #[arg(long, env = "REPLICATOR_BIND", default_value = "127.0.0.1")]
    pub bind: IpAddr,

    /// Port to listen on; 0 takes any free one.
    #[arg(long, env = "REPLICATOR_PORT", default_value_t = 8081)]
    pub port: u16,
}

/// Flags of the daemon.
#[derive(Clone, Debug, Args)]
pub struct DaemonArgs {
    /// Where accepted writes are kept until every replica has them.
    #[arg(
        long,
        env = "REPLICATOR_DATA_DIR",
        value_name = "DIR",
        default_value = "./replicator-data"
    )]
    pub data_dir: PathBuf,

    /// Address to listen on.
    #[arg(long, env = "REPLICATOR_BIND", value_name = "IP", default_value = "127.0.0.1")]
    pub bind: IpAddr,

    /// Port to listen on; 0 takes any free one, which standard output names.
    #[arg(long, env = "REPLICATOR_PORT", default_value_t = 8085)]
    pub port: u16,

    /// Who may ask: a token a line, as `replicator token new` prints it; read again on SIGHUP.
    /// Without it everyone who reaches the port may do everything.
    #[arg(long, env = "REPLICATOR_AUTH_FILE", value_name = "FILE")]
    pub auth_file: Option<PathBuf>,

    /// Certificate to serve TLS with, as PEM, those between it and its authority behind it; read
    /// again on SIGHUP.
    #[arg(long, env = "REPLICATOR_TLS_CERT", value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,

    /// Its private key, as PEM; read again on SIGHUP.
    #[arg(long, env = "REPLICATOR_TLS_KEY", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,

    /// Authorities of which every client must show a certificate, as PEM; read again on SIGHUP.
    /// Without --auth-file who shows one may do everything.
    #[arg(long, env = "REPLICATOR_TLS_CLIENT_CA", value_name = "FILE")]
    pub tls_client_ca: Option<PathBuf>,

    /// Listen on other than loopback with neither --auth-file nor --tls-client-ca.
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

    /// Names by which this server is called where it asks for no token, besides addresses and
    /// localhost: another name may be a trick of a page in a browser.
    #[arg(long, env = "REPLICATOR_HOST_NAME", value_name = "NAMES", value_delimiter = ',')]
    pub host_name: Vec<String>,

    /// Name of this replicator in answers and in X-Replication-Id: 1 to 64 of A-Z a-z 0-9 . _ -
    #[arg(long, env = "REPLICATOR_NODE_ID", value_name = "NAME", default_value = "replicator")]
    pub node_id: String,

    /// Deliveries in flight to one replica: a number up to 1024, or auto for as many as its
    /// answers do not become slower from, up to --max-workers.
    #[arg(long, env = "REPLICATOR_WORKERS", value_name = "N", default_value = "5")]
    pub workers: WorkersArg,

    /// The most that --workers auto may come to, up to 1024.
    #[arg(long, env = "REPLICATOR_MAX_WORKERS", value_name = "N", default_value = "256")]
    pub max_workers: NonZeroU32,

    /// Tasks in the eventual queue; as many strong writes may be open besides.
    #[arg(long, env = "REPLICATOR_QUEUE_CAPACITY", value_name = "TASKS", default_value = "1000")]
    pub queue_capacity: NonZeroUsize,

    /// Deliveries that wait for a retry, each to one replica, which holds no more than its share.
    /// What fails beyond is parked on disk until there is room.
    #[arg(
        long,
        env = "REPLICATOR_RETRY_CAPACITY",
        value_name = "DELIVERIES",
        default_value = "500"
    )]
    pub retry_capacity: NonZeroUsize,

    /// Bytes on disk for tasks that wait: keys, values, user ids, 512 for each task, and 64 and the
    /// address for each of its replicas.
    #[arg(long, env = "REPLICATOR_QUEUE_MAX_BYTES", value_name = "SIZE", default_value = "1GiB")]
    pub queue_max_bytes: ByteSize,

    /// How long a request may wait for room before its 503 (at most 1024 wait).
    #[arg(long, env = "REPLICATOR_QUEUE_WAIT", value_name = "TIME", default_value = "500ms", value_parser = duration)]
    pub queue_wait: Duration,

    /// Retries after a first attempt that failed.
    #[arg(long, env = "REPLICATOR_MAX_RETRIES", value_name = "N", default_value_t = 3)]
    pub max_retries: u32,

    /// Wait before the first retry; before the n-th it is n times as long.
    #[arg(long, env = "REPLICATOR_RETRY_BASE", value_name = "TIME", default_value = "2s", value_parser = duration)]
    pub retry_base: Duration,

    /// How long a replica may still apply an attempt that had no answer. When a newer write of the
    /// key is delivered in that time, it is sent once more after so long; 0s is not at all.
    #[arg(long, env = "REPLICATOR_SETTLE_AFTER", value_name = "TIME", default_value = "30s", value_parser = duration)]
    pub settle_after: Duration,

    /// Failures in a row that open the breaker of a replica: then deliveries to it fail without
    /// being sent, except for a probe now and then. It takes more of them where the replica has often
    /// failed before. A delivery that is given up with nothing answered between its attempts opens
    /// it as well. 0 is never.
    #[arg(long, env = "REPLICATOR_BREAKER_FAILURES", value_name = "N", default_value_t = 5)]
    pub breaker_failures: u32,

    /// Bytes on disk for dead letters, parked deliveries included. Past a replica's share of it new
    /// writes that name the replica are refused.
    #[arg(
        long,
        env = "REPLICATOR_DEAD_LETTER_MAX_BYTES",
        value_name = "SIZE",
        default_value = "1GiB"
    )]
    pub dead_letter_max_bytes: ByteSize,

    /// How long a dead letter is kept before it is discarded; 0s is for ever.
    #[arg(long, env = "REPLICATOR_DEAD_LETTER_RETENTION", value_name = "TIME", default_value = "24h", value_parser = duration)]
    pub dead_letter_retention: Duration,

    /// Whether the dead letters of a replica are redriven when it is back.
    #[arg(long, env = "REPLICATOR_HINTED_HANDOFF", value_name = "MODE", default_value = "on")]
    pub hinted_handoff: Switch,

    /// How many of one replica's dead letters are redriven in a second, behind everything else, and
    /// after them how many of its parked deliveries come back.
    #[arg(long, env = "REPLICATOR_REDRIVE_RATE", value_name = "N", default_value = "200")]
    pub redrive_rate: NonZeroU32,

    /// Send only the newest of the writes of one key that wait for a replica.
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

    /// How long a task that is settled stays visible, up to 10,000 of them; 0s is not at all.
    #[arg(long, env = "REPLICATOR_TASK_HISTORY", value_name = "TIME", default_value = "10m", value_parser = duration)]
    pub task_history: Duration,

    /// How long a repeated Idempotency-Key gives the same task.
    #[arg(long, env = "REPLICATOR_IDEMPOTENCY_WINDOW", value_name = "TIME", default_value = "10m", value_parser = duration)]
    pub idempotency_window: Duration,

    /// Idempotency keys that are remembered; beyond, writes with a new one are refused.
    #[arg(long, env = "REPLICATOR_IDEMPOTENCY_KEYS", value_name = "N", default_value = "100000")]
    pub idempotency_keys: NonZeroUsize,

    /// How long one attempt to a replica may take, answer included; for a value of more than 64 KiB,
    /// how long it may make no progress.
    #[arg(long, env = "REPLICATOR_REQUEST_TIMEOUT", value_name = "TIME", default_value = "5s", value_parser = duration)]
    pub request_timeout: Duration,

    /// Age at which a connection to a replica is replaced, so that a name that moved is looked up
    /// again; 0s is no limit.
    #[arg(long, env = "REPLICATOR_REPLICA_CONNECTION_AGE", value_name = "TIME", default_value = "60s", value_parser = duration)]
    pub replica_connection_age: Duration,

    /// How long a strong write may wait for its majority.
    #[arg(long, env = "REPLICATOR_STRONG_TIMEOUT", value_name = "TIME", default_value = "10s", value_parser = duration)]
    pub strong_timeout: Duration,

    /// Largest value, decoded.
    #[arg(long, env = "REPLICATOR_MAX_VALUE_BYTES", value_name = "SIZE", default_value = "8MiB")]
    pub max_value_bytes: ByteSize,

    /// Longest key.
    #[arg(long, env = "REPLICATOR_MAX_KEY_BYTES", value_name = "SIZE", default_value = "4KiB")]
    pub max_key_bytes: ByteSize,

    /// Replicas of one write, up to 1024.
    #[arg(long, env = "REPLICATOR_MAX_REPLICAS", value_name = "N", default_value = "64")]
    pub max_replicas: NonZeroUsize,

    /// Where writes may go, and nowhere else: http://host:port, *.suffix:port, 10.0.0.0/8:8000-8999
    /// or [fd00::/8]:8081. May be given more than once. Without a rule every address is allowed
    /// except those that never are: see docs/policy.md.
    #[arg(
        long,
        env = "REPLICATOR_ALLOW_REPLICA",
        value_name = "RULE",
        value_delimiter = ',',
        value_parser = rule
    )]
    pub allow_replica: Vec<Rule>,

    /// The same, a rule a line of this file; read again on SIGHUP.
    #[arg(long, env = "REPLICATOR_ALLOW_REPLICA_FILE", value_name = "FILE")]
    pub allow_replica_file: Option<PathBuf>,

    /// Authorities that replicas with https are checked against, as PEM, instead of those that the
    /// system trusts; read again on SIGHUP.
    #[arg(long, env = "REPLICATOR_REPLICA_CA", value_name = "FILE")]
    pub replica_ca: Option<PathBuf>,

    /// Certificate that replicas with https are shown, as PEM; read again on SIGHUP.
    #[arg(long, env = "REPLICATOR_REPLICA_CERT", value_name = "FILE")]
    pub replica_cert: Option<PathBuf>,

    /// Its private key, as PEM, readable by its owner alone.
    #[arg(long, env = "REPLICATOR_REPLICA_KEY", value_name = "FILE")]
    pub replica_key: Option<PathBuf>,

    /// Bearer tokens for replicas, readable by its owner alone: `http://host:port TOKEN` or
    /// `* TOKEN` a line; read again on SIGHUP.
    #[arg(long, env = "REPLICATOR_REPLICA_TOKEN_FILE", value_name = "FILE")]
    pub replica_token_file: Option<PathBuf>,

    /// Replicas with deliveries at the same time, over all writes.
    #[arg(long, env = "REPLICATOR_MAX_KNOWN_REPLICAS", value_name = "N", default_value = "1024")]
    pub max_known_replicas: NonZeroUsize,

    /// Client connections at the same time; beyond, those that keep it waiting longest are closed.
    #[arg(long, env = "REPLICATOR_MAX_CONNECTIONS", value_name = "N", default_value = "4096")]
    pub max_connections: NonZeroUsize,

    /// How long a client may take to send the head of its request, and again its body.
    #[arg(long, env = "REPLICATOR_CLIENT_TIMEOUT", value_name = "TIME", default_value = "10s", value_parser = duration)]
    pub client_timeout: Duration,

    /// Request bodies of more than 64 KiB in memory at the same time.
    #[arg(long, env = "REPLICATOR_REQUEST_MEMORY", value_name = "SIZE", default_value = "256MiB")]
    pub request_memory: ByteSize,

    /// Accepted tasks kept in memory until they are delivered; others are read back from disk, in
    /// as much memory again.
    #[arg(long, env = "REPLICATOR_MEMORY_BUDGET", value_name = "SIZE", default_value = "64MiB")]
    pub memory_budget: ByteSize,

    /// What is to stay free on the disk of the data directory: with less, new writes are refused,
    /// and deliveries go on; 0B is off.
    #[arg(long, env = "REPLICATOR_MIN_FREE_DISK", value_name = "SIZE", default_value = "256MiB")]
    pub min_free_disk: ByteSize,

    /// Page cache of the store.
    #[arg(long, env = "REPLICATOR_STORE_CACHE", value_name = "SIZE", default_value = "64MiB")]
    pub store_cache: ByteSize,

    /// On SIGTERM: how long to finish what is in flight.
    #[arg(long, env = "REPLICATOR_DRAIN_TIMEOUT", value_name = "TIME", default_value = "30s", value_parser = duration)]
    pub drain_timeout: Duration,

    /// What is logged: error, warn, info, debug, trace, or a filter such as
    /// info,replicator::daemon::attempt=debug
    #[arg(long, env = "REPLICATOR_LOG", value_name = "FILTER", default_value = "info")]
    pub log: String,

    /// Where to send traces by OTLP over HTTP (protobuf), such as http://127.0.0.1:4318, to which
    /// /v1/traces is appended; off sends none, and a request's traceparent is passed on all the
    /// same. OTEL_EXPORTER_OTLP_HEADERS adds headers.
    #[arg(long, env = "REPLICATOR_OTLP_ENDPOINT", value_name = "URL", default_value = "off")]
    pub otlp_endpoint: String,

    /// Share of the writes without a traceparent that is traced, from 0 to 1. Those with one are
    /// traced where it says so.
    #[arg(long, env = "REPLICATOR_TRACE_RATIO", value_name = "SHARE", default_value = "1")]
    pub trace_ratio: f64,

    /// How each line of the log looks: text for people, json for machines.
    #[arg(long, env = "REPLICATOR_LOG_FORMAT", value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,
}

/// A number, or `auto`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkersArg {
    /// So many.
    Fixed(NonZeroU32),
    /// As many as serve.
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
                .map_err(|error| format!("{error}: a number from 1 on, or auto")),
        }
    }
}

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// It is done.
    On,
    /// It is not.
    Off,
}

/// How a line of the log looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// An object of JSON.
    Json,
}

fn rule(text: &str) -> Result<Rule, String> {
    text.parse().map_err(|error| format!("it {error}"))
}

fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|error| format!("{error}: a time looks like 250ms, 2s or 1h"))
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
            // Without one there is nothing to read, or no rule.
            let names = arg.get_value_names().unwrap_or_default();
            let absent =
                names.iter().any(|name| matches!(name.as_str(), "FILE" | "RULE" | "NAMES"));
            assert!(absent == arg.get_default_values().is_empty(), "{name} has a default");
            assert!(arg.get_help().is_some(), "{name} is explained");
        }
    }

    #[test]
    fn times_and_sizes_have_units() {
        let parse = |args: &[&str]| Cli::try_parse_from([&["replicator"], args].concat());
        let cli = parse(&["--retry-base", "250ms", "--queue-max-bytes", "64MiB"]).unwrap();
        assert_eq!(cli.daemon.retry_base, Duration::from_millis(250));
        assert_eq!(cli.daemon.queue_max_bytes, ByteSize::mib(64));
        let error = parse(&["--retry-base", "soon"]).unwrap_err().to_string();
        assert!(error.contains("--retry-base") && error.contains("250ms"), "{error}");
        let error = parse(&["--queue-max-bytes", "much"]).unwrap_err().to_string();
        assert!(error.contains("--queue-max-bytes"), "{error}");
    }
}
