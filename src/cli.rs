//! The command line: flags, environment variables, subcommands. The doc comments of arguments are
//! their help texts. `config.rs` checks the values against their limits and each other.

use std::net::IpAddr;
use std::num::{NonZeroU32, NonZeroU64};
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use clap::{Args, Parser, Subcommand};
use url::Url;

pub mod admin;
pub mod daemon;
pub mod environment;
mod file;
mod help;
pub mod notify;
pub mod settings;

use crate::access::{self, Role};
use crate::task::{Node, Timestamp};
use admin::{
    BarrierArgs, ClusterViewArgs, CompletionsArgs, ConnectionArgs, DeadLettersArgs, KeyShowArgs,
    ManArgs, ReplicasArgs, StatusArgs, TasksArgs, TopArgs, VerifyArgs,
};
use daemon::{ClusterArgs, DaemonArgs};
use notify::NotifyCommandArgs;
use settings::ConfigArgs;

/// Replicates the writes of a key-value store from its primary to its replicas, durably, in order
///
/// Without a subcommand it runs the daemon. Once it serves requests, the daemon prints one line to
/// standard output, `listening on URL`; its log goes to standard error. SIGTERM or SIGINT drains
/// and stops it, a second one stops it at once. SIGHUP reloads the files of tokens, certificates,
/// rules and secrets, and what can change without a restart of --config.
///
/// TIME is a duration such as 250ms, 2s or 1h; the maximum is 24h unless stated otherwise, 0s is
/// valid only where stated. SIZE is a number of bytes such as 4096, 64KiB or 1GiB. An empty
/// environment variable counts as unset.
#[derive(Debug, Parser)]
#[command(
    name = "replicator",
    version = env!("REPLICATOR_BUILD"),
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
    /// Show the last writes of a key, and which replica has which of them
    Key(KeyShowArgs),
    /// List, count, redrive and discard dead letters
    DeadLetters(DeadLettersArgs),
    /// Wait until every write accepted so far is delivered
    #[command(after_long_help = BARRIER_EXIT_CODES)]
    Barrier(BarrierArgs),
    /// Compare recent writes at the replicas with the primary; --repair writes what differs
    #[command(after_long_help = VERIFY_EXIT_CODES)]
    Verify(VerifyArgs),
    /// Show the instances and partitions of a cluster store; drain an instance
    #[command(after_long_help = CLUSTER_EXIT_CODES)]
    Cluster(ClusterViewArgs),
    /// Watch throughput, backlog and lag live; pause and resume replicas
    Top(TopArgs),
    /// Check a config file, or show the settings of the daemon
    Config(ConfigArgs),
    /// Create, list and revoke tokens of --auth-file
    Token(TokenArgs),
    /// Test the notifications of --notify-url
    Notify(NotifyCommandArgs),
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
    /// Works on a temporary copy inside the data directory, which needs as much space as the store.
    /// Without --repair nothing else is written.
    #[command(after_long_help = CHECK_EXIT_CODES)]
    Check(CheckArgs),
    /// Write all tasks of a store, or with --url of a running daemon, as JSON lines
    ///
    /// Includes values, delivery progress, dead letters, replicas and idempotency keys. Works on a
    /// temporary copy inside the data directory. Tasks that cannot be read are skipped and reported
    /// on standard error.
    #[command(after_long_help = EXPORT_EXIT_CODES)]
    Export(ExportArgs),
    /// Create a store from the output of `export`, in a data directory without one
    ///
    /// Imports everything or nothing.
    #[command(after_long_help = IMPORT_EXIT_CODES)]
    Import(ImportArgs),
    /// Run one in-memory replica for trying the daemon
    ///
    /// Serves PUT, GET and DELETE on /store/{key}. Its data is lost when it stops.
    DemoReplica(DemoReplicaArgs),
}

const DAEMON_EXIT_CODES: &str = "\
Exit codes of the daemon:
  0  stopped by a signal, also if --drain-timeout cut deliveries off
  1  not started, store failure, store not closed, or stopped by a second signal
  2  invalid arguments";

const STATUS_EXIT_CODES: &str = "\
Exit codes:
  0  healthy
  1  no valid answer from the daemon
  2  invalid arguments
  3  attention: the queue is nearly full, or a replica lags, is paused, is failing or has dead letters
  4  refusing: the daemon accepts no writes";

const BARRIER_EXIT_CODES: &str = "\
Exit codes:
  0  reached: everything is delivered
  1  no valid answer from the daemon
  2  invalid arguments
  3  not reached within --wait
  5  reached, but some deliveries became dead letters";

const VERIFY_EXIT_CODES: &str = "\
Exit codes:
  0  no difference, or all are being repaired
  1  no valid answer from the daemon
  2  invalid arguments
  3  some values could not be compared: a node did not answer, or a write is on its way
  5  a replica differs from the primary";

const CLUSTER_EXIT_CODES: &str = "\
Exit codes:
  0  every partition has an owner and a leader; or drained
  1  no valid answer from the daemon, or it has no cluster store
  2  invalid arguments
  3  a partition has no owner or no leader";

const CHECK_EXIT_CODES: &str = "\
Exit codes:
  0  the store is intact, or was repaired
  1  the store is damaged, or cannot be read
  2  invalid arguments";

const IMPORT_EXIT_CODES: &str = "\
Exit codes:
  0  everything was imported
  1  nothing was imported
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
    /// List the tokens of a token file: names, roles, limits and expiry
    ///
    /// Fails if the daemon would refuse the file. A token is `rpl_`, its id and a secret; the file
    /// has only the id and a hash.
    List(ListTokensArgs),
    /// Remove the token of this name from a token file
    ///
    /// The rest of the file stays as it is. Send SIGHUP to the daemon afterwards.
    Revoke(RevokeTokenArgs),
}

#[derive(Debug, Args)]
pub struct RevokeTokenArgs {
    /// Name of the token
    #[arg(value_name = "NAME")]
    pub name: String,

    /// Token file
    #[arg(long, env = "REPLICATOR_AUTH_FILE", value_name = "FILE")]
    pub auth_file: PathBuf,
}

#[derive(Debug, Args)]
pub struct ListTokensArgs {
    /// Token file
    #[arg(long, env = "REPLICATOR_AUTH_FILE", value_name = "FILE")]
    pub auth_file: PathBuf,

    /// Print JSON on one line
    #[arg(long)]
    pub json: bool,
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

    /// Date or time in UTC from which the token is not valid any more, such as 2027-01-31 or
    /// 2027-01-31T12:00:00Z [default: never]
    #[arg(long, value_name = "TIME", value_parser = expiry, conflicts_with = "expires_in")]
    pub expires: Option<Timestamp>,

    /// How long the token is valid, such as 90d
    #[arg(long, value_name = "TIME", value_parser = admin::positive_duration)]
    pub expires_in: Option<Duration>,

    /// Places that its unsettled writes may take of the queue [default: its share]
    #[arg(long, value_name = "N")]
    pub places: Option<NonZeroU64>,

    /// Bytes that its unsettled writes may take of the queue [default: its share]
    #[arg(long, value_name = "SIZE")]
    pub bytes: Option<ByteSize>,

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
    /// Copy the store of a running daemon, at this address, instead of a directory
    #[arg(long, value_name = "URL", value_parser = admin::daemon_url)]
    pub url: Option<Url>,

    /// File to create; must not exist [default: standard output]
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,

    #[command(flatten)]
    pub store: StoreArgs,

    #[command(flatten)]
    pub cluster: ClusterArgs,

    #[command(flatten)]
    pub connection: ConnectionArgs,
}

#[derive(Debug, Args)]
pub struct ImportArgs {
    #[command(flatten)]
    pub store: StoreArgs,

    #[command(flatten)]
    pub cluster: ClusterArgs,

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

    /// Speak HTTP/2 only, without TLS, for a daemon with --replica-http2 prior-knowledge
    #[arg(long)]
    pub http2: bool,

    /// Refuse a write that is older than the last one of its key, by X-Replication-Sequence
    #[arg(long)]
    pub fenced: bool,
}

fn expiry(text: &str) -> Result<Timestamp, String> {
    access::parse_expiry(text).map_err(|why| format!("it {why}"))
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
            let optional = names
                .iter()
                .any(|name| matches!(name.as_str(), "FILE" | "RULE" | "NAMES" | "URLS"));
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
