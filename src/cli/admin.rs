//! Arguments of the commands that talk to a running daemon. The doc comments are the help texts.

use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Args, Subcommand, ValueEnum};
use url::Url;

use super::duration;
use crate::api::LetterId;
use crate::task::{Cause, DeliveryState, Node, TaskId};

mod replicas;

pub use replicas::{ForgetArgs, RenameArgs, ReplicasArgs, ReplicasCommand};

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Connection")]
pub struct ConnectArgs {
    /// Address of the daemon
    #[arg(long, global = true, env = "REPLICATOR_URL", value_name = "URL", default_value = "http://127.0.0.1:8085", value_parser = daemon_url)]
    pub url: Url,

    #[command(flatten)]
    pub connection: ConnectionArgs,
}

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Connection")]
pub struct ConnectionArgs {
    /// Timeout of one request, longer than 0s
    #[arg(long, global = true, value_name = "TIME", default_value = "10s", value_parser = positive_duration)]
    pub timeout: Duration,

    /// File with the bearer token [default: the token in REPLICATOR_TOKEN, if set]
    #[arg(long, global = true, env = "REPLICATOR_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,

    /// CAs to verify an https daemon with (PEM) [default: those of the system]
    #[arg(long, global = true, env = "REPLICATOR_CA_FILE", value_name = "FILE")]
    pub ca_file: Option<PathBuf>,

    /// Client certificate chain (PEM, leaf first); needs --key-file
    #[arg(long, global = true, env = "REPLICATOR_CERT_FILE", value_name = "FILE")]
    pub cert_file: Option<PathBuf>,

    /// Private key of --cert-file (PEM)
    #[arg(long, global = true, env = "REPLICATOR_KEY_FILE", value_name = "FILE")]
    pub key_file: Option<PathBuf>,
}

#[derive(Clone, Debug, Args)]
pub struct AskArgs {
    /// Print the API's JSON on one line
    #[arg(long, global = true)]
    pub json: bool,

    #[command(flatten)]
    pub connect: ConnectArgs,
}

#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Report a replica as a problem if its oldest unsettled delivery is older than this
    #[arg(long, value_name = "TIME", default_value = "1m", value_parser = duration)]
    pub max_lag: Duration,

    #[command(flatten)]
    pub ask: AskArgs,
}

#[derive(Debug, Args)]
pub struct TasksArgs {
    #[command(flatten)]
    pub ask: AskArgs,

    #[command(subcommand)]
    pub command: Option<TasksCommand>,
}

#[derive(Debug, Subcommand)]
pub enum TasksCommand {
    /// List unsettled tasks, oldest first (default)
    List(TaskListArgs),
    /// Show a task and its deliveries
    Show(TaskArgs),
    /// Discard the unsettled deliveries of a task
    ///
    /// A delivery in flight is not retried, but the replica may still apply it.
    Discard(TaskArgs),
}

#[derive(Debug, Args)]
pub struct TaskArgs {
    /// Task id, as returned by POST /replicate
    #[arg(value_name = "TASK", value_parser = task_id)]
    pub task: TaskId,
}

#[derive(Debug, Args)]
pub struct KeyShowArgs {
    /// The key
    pub key: String,

    #[command(flatten)]
    pub ask: AskArgs,
}

#[derive(Debug, Default, Args)]
pub struct TaskListArgs {
    /// Only tasks with a delivery in this state
    #[arg(long, value_name = "STATE")]
    pub state: Option<StateArg>,

    /// Only tasks for this replica
    #[arg(long, value_name = "NODE", value_parser = node)]
    pub replica: Option<Node>,

    #[command(flatten)]
    pub keys: KeyArgs,

    #[command(flatten)]
    pub page: PageArgs,
}

#[derive(Debug, Default, Args)]
pub struct KeyArgs {
    /// Only writes of this key
    #[arg(long)]
    pub key: Option<String>,

    /// Only writes of keys with this prefix
    #[arg(long, value_name = "PREFIX", conflicts_with = "key")]
    pub key_prefix: Option<String>,

    /// Only writes of this user
    #[arg(long, value_name = "USER", allow_negative_numbers = true)]
    pub user_id: Option<String>,
}

#[derive(Debug, Default, Args)]
pub struct PageArgs {
    /// Maximum number of entries [default: 100]
    #[arg(long, value_name = "N")]
    pub limit: Option<NonZeroUsize>,

    /// Continue a list at the cursor it ended with
    #[arg(long)]
    pub cursor: Option<String>,
}

#[derive(Debug, Args)]
pub struct DeadLettersArgs {
    #[command(flatten)]
    pub ask: AskArgs,

    #[command(subcommand)]
    pub command: Option<DeadLettersCommand>,
}

const OPERATION_EXIT_CODES: &str = "\
Exit codes:
  0  done, or started with --detach
  1  failed, or no valid answer from the daemon
  2  invalid arguments
  3  cancelled, or not settled when Ctrl-C ended the wait
  5  done, but some redriven dead letters failed again";

#[derive(Debug, Subcommand)]
pub enum DeadLettersCommand {
    /// List dead letters, oldest first (default)
    List(LetterListArgs),
    /// Count dead letters by replica, cause and error, largest group first
    Summary,
    /// Queue dead letters for delivery again, and report what became of them
    ///
    /// Filters combine: a dead letter must match all of them. Waits until all are queued and then
    /// settled, and shows the progress; Ctrl-C cancels the rest, a second Ctrl-C stops waiting.
    #[command(after_long_help = OPERATION_EXIT_CODES)]
    Redrive(RedriveArgs),
    /// Discard dead letters
    ///
    /// Filters combine: a dead letter must match all of them. Waits and shows the progress; Ctrl-C
    /// cancels the rest, a second Ctrl-C stops waiting.
    #[command(after_long_help = OPERATION_EXIT_CODES)]
    Discard(DiscardArgs),
    /// List recent redrives and discards, newest first, or show one
    Operations(OperationsArgs),
    /// Cancel a running redrive or discard; completed work is kept
    Cancel(OperationArgs),
}

#[derive(Debug, Default, Args)]
pub struct LetterListArgs {
    #[command(flatten)]
    pub filter: LetterFilterArgs,

    #[command(flatten)]
    pub page: PageArgs,
}

#[derive(Debug, Default, Args)]
pub struct LetterFilterArgs {
    /// Only dead letters of this replica
    #[arg(long, value_name = "NODE", value_parser = node)]
    pub replica: Option<Node>,

    #[command(flatten)]
    pub keys: KeyArgs,

    /// Only dead letters with this cause
    #[arg(long, value_name = "CAUSE")]
    pub cause: Option<CauseArg>,
}

#[derive(Debug, Default, Args)]
#[command(group(
    ArgGroup::new("selection")
        .args(["ids", "replica", "key", "key_prefix", "user_id", "cause", "all"])
        .required(true)
        .multiple(true)
))]
pub struct SelectionArgs {
    /// Only dead letters of these tasks: TASK for all its replicas, TASK@NODE for one
    #[arg(value_name = "TASK", value_parser = letter_id)]
    pub ids: Vec<LetterId>,

    #[command(flatten)]
    pub filter: LetterFilterArgs,

    /// Select all dead letters
    #[arg(
        long,
        conflicts_with_all = ["ids", "replica", "key", "key_prefix", "user_id", "cause"]
    )]
    pub all: bool,
}

#[derive(Debug, Args)]
pub struct RedriveArgs {
    #[command(flatten)]
    pub selection: SelectionArgs,

    /// Maximum dead letters per second [default: --redrive-rate of the daemon]
    #[arg(long, value_name = "N")]
    pub rate: Option<NonZeroU32>,

    #[command(flatten)]
    pub run: OperationRunArgs,
}

#[derive(Debug, Args)]
pub struct DiscardArgs {
    #[command(flatten)]
    pub selection: SelectionArgs,

    #[command(flatten)]
    pub run: OperationRunArgs,
}

#[derive(Debug, Default, Args)]
pub struct OperationRunArgs {
    /// Only count the dead letters
    #[arg(long)]
    pub dry_run: bool,

    /// Print the operation id and do not wait
    #[arg(long)]
    pub detach: bool,
}

#[derive(Debug, Args)]
pub struct OperationsArgs {
    /// Id of an operation
    #[arg(value_name = "OPERATION")]
    pub operation: Option<String>,
}

#[derive(Debug, Args)]
pub struct OperationArgs {
    /// Id of the operation
    #[arg(value_name = "OPERATION")]
    pub operation: String,
}

#[derive(Debug, Args)]
pub struct BarrierArgs {
    /// Wait for this replica only; repeatable [default: all replicas]
    #[arg(long, value_name = "NODE", value_parser = node)]
    pub replica: Vec<Node>,

    /// Wait for an existing barrier instead of creating one
    #[arg(long, value_name = "BARRIER", conflicts_with = "replica")]
    pub id: Option<String>,

    /// How long to wait; 0s only prints the current state
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = duration)]
    pub wait: Duration,

    #[command(flatten)]
    pub ask: AskArgs,
}

#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// Compare this replica only [default: all replicas]
    #[arg(long, value_name = "NODE", value_parser = node)]
    pub replica: Option<Node>,

    /// Keys to compare: 1 to 1000
    #[arg(long, value_name = "COUNT", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub sample: u32,

    /// Write the primary's value to the replicas that differ
    ///
    /// It is an ordinary write: a newer one replaces it. A key that the primary has lost is not
    /// deleted at the replicas.
    #[arg(long)]
    pub repair: bool,

    #[command(flatten)]
    pub ask: AskArgs,
}

#[derive(Debug, Args)]
pub struct ClusterViewArgs {
    #[command(flatten)]
    pub ask: AskArgs,

    #[command(subcommand)]
    pub command: Option<ClusterCommand>,
}

#[derive(Debug, Subcommand)]
pub enum ClusterCommand {
    /// Show the instances and the partitions with their owners (default)
    Show,
    /// Let an instance hand its partitions over and claim none
    ///
    /// It accepts writes as before. The drain ends with --undo, and with its process.
    Drain(InstanceArgs),
}

#[derive(Debug, Args)]
pub struct InstanceArgs {
    /// The --node-id of the instance
    #[arg(value_name = "NODE")]
    pub node: String,

    /// End the drain
    #[arg(long)]
    pub undo: bool,
}

#[derive(Debug, Args)]
pub struct TopArgs {
    #[command(flatten)]
    pub connect: ConnectArgs,
}

#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// Shell to complete for
    pub shell: clap_complete::Shell,
}

#[derive(Debug, Args)]
pub struct ManArgs {
    /// Write one page per command to this directory; created if missing
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StateArg {
    /// Ready to be sent
    Queued,
    /// Being sent
    #[value(alias = "in_flight")]
    InFlight,
    /// Failed, waiting for a retry
    Retrying,
    /// Failed, waiting for room in the retry queue
    Parked,
    /// Given up or rejected: a dead letter
    Dead,
}

impl From<StateArg> for DeliveryState {
    fn from(state: StateArg) -> Self {
        match state {
            StateArg::Queued => Self::Queued,
            StateArg::InFlight => Self::InFlight,
            StateArg::Retrying => Self::Retrying,
            StateArg::Parked => Self::Parked,
            StateArg::Dead => Self::Dead,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CauseArg {
    /// Rejected by the replica
    Rejected,
    /// Refused by the replica, whatever the write: its credentials; redriven automatically
    Refused,
    /// All retries failed
    #[value(alias = "gave_up")]
    GaveUp,
    /// No room in the retry queue; retried automatically
    #[value(alias = "retry_overflow")]
    RetryOverflow,
}

impl From<CauseArg> for Cause {
    fn from(cause: CauseArg) -> Self {
        match cause {
            CauseArg::Rejected => Self::Rejected,
            CauseArg::Refused => Self::Refused,
            CauseArg::GaveUp => Self::GaveUp,
            CauseArg::RetryOverflow => Self::RetryOverflow,
        }
    }
}

pub(super) fn daemon_url(text: &str) -> Result<Url, String> {
    const EXPECTED: &str = "expected an address such as http://127.0.0.1:8085";
    let url = Url::parse(text).map_err(|error| format!("{error}: {EXPECTED}"))?;
    let plain = url.query().is_none() && url.fragment().is_none() && url.username().is_empty();
    match url.scheme() {
        "http" | "https" if plain && url.password().is_none() => Ok(url),
        "http" | "https" => {
            Err("an address must not contain user info, a query or a fragment".to_owned())
        }
        other => Err(format!("scheme {other} is neither http nor https: {EXPECTED}")),
    }
}

pub(super) fn positive_duration(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("must be longer than zero".to_owned()),
        time => Ok(time),
    }
}

pub(super) fn node(text: &str) -> Result<Node, String> {
    let spelled = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    Node::parse(&spelled).map_err(|error| format!("the address {error}"))
}

fn task_id(text: &str) -> Result<TaskId, String> {
    text.parse().map(TaskId).map_err(|_| "a task id must be a number".to_owned())
}

fn letter_id(text: &str) -> Result<LetterId, String> {
    let (task, replica) = match text.split_once('@') {
        None => (text, None),
        Some((task, replica)) => (task, Some(node(replica)?.as_str().to_owned())),
    };
    Ok(LetterId { task_id: task_id(task)?.0.to_string(), replica })
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use clap::error::ErrorKind;

    use super::replicas::LimitArg;
    use super::*;
    use crate::cli::{Cli, Command};

    fn parse(line: &str) -> Result<Command, clap::Error> {
        let cli = Cli::try_parse_from(std::iter::once("replicator").chain(line.split(' ')))?;
        Ok(cli.command.unwrap())
    }

    #[track_caller]
    fn refused(line: &str, word: &str) {
        let error = parse(line).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        let text = error.to_string();
        assert!(text.contains(word), "{text}");
    }

    #[test]
    fn connection_flags_are_accepted_before_and_after_the_subcommand() {
        for line in [
            "replicas --url http://h:1 --json pause h:8081",
            "replicas pause h:8081 --json --url http://h:1",
        ] {
            let Ok(Command::Replicas(args)) = parse(line) else { panic!("{line}") };
            assert!(args.ask.json);
            assert_eq!(args.ask.connect.url.as_str(), "http://h:1/");
            let Some(ReplicasCommand::Pause(of)) = args.command else { panic!("{line}") };
            assert_eq!(of.node.node.as_str(), "http://h:8081");
        }
    }

    #[test]
    fn invalid_addresses_are_refused_with_the_reason() {
        refused("status --url 127.0.0.1:8085", "http://127.0.0.1:8085");
        refused("status --url ftp://h", "neither http nor https");
        refused("status --url http://u@h", "user info");
        refused("status --timeout 0s", "longer than zero");
        refused("replicas show http://h/?a", "query");
        refused("tasks show first", "number");
        refused("replicas pause h --for 0s", "longer than zero");
        refused("replicas pause h --until tomorrow", "2026-12-01T06:00:00Z");
        refused("replicas pause h --for 1h --until 2026-12-01T06:00:00Z", "--until");
    }

    #[test]
    fn redrive_and_discard_require_a_selection() {
        for line in ["dead-letters redrive", "dead-letters discard --dry-run"] {
            let error = parse(line).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::MissingRequiredArgument);
            let choice = "<TASK|--replica <NODE>|--key <KEY>|--key-prefix <PREFIX>|--user-id <USER>|--cause <CAUSE>|--all>";
            assert!(error.to_string().contains(choice), "{error}");
        }
        for line in ["dead-letters redrive --all --key k", "dead-letters discard 7 --all"] {
            assert_eq!(parse(line).unwrap_err().kind(), ErrorKind::ArgumentConflict, "{line}");
        }
        assert!(parse("dead-letters redrive --cause gave-up").is_ok());
        assert!(parse("dead-letters discard --all").is_ok());
    }

    #[test]
    fn a_limit_is_a_number_or_unset() {
        let Ok(Command::Replicas(args)) = parse("replicas set h --rate none --bandwidth 10MB")
        else {
            panic!()
        };
        let Some(ReplicasCommand::Set(set)) = args.command else { panic!() };
        assert_eq!((set.workers, set.rate), (None, Some(LimitArg(None))));
        assert_eq!(set.bandwidth, Some(LimitArg(Some(10_000_000))));
        refused("replicas set h", "--redrive-rate <N>");
        refused("replicas set h --workers many", "expected a number, default or none");
        refused("replicas set h --bandwidth much", "expected bytes such as 10MB");
    }

    #[test]
    fn a_user_id_may_be_a_negative_number() {
        let Ok(Command::Tasks(args)) = parse("tasks list --user-id -5 --limit 1") else { panic!() };
        let Some(TasksCommand::List(list)) = args.command else { panic!() };
        assert_eq!(list.keys.user_id.as_deref(), Some("-5"));
    }

    #[test]
    fn a_dead_letter_is_named_by_task_or_by_task_and_replica() {
        let both = letter_id("7@h:8081").unwrap();
        assert_eq!((both.task_id.as_str(), both.replica.as_deref()), ("7", Some("http://h:8081")));
        assert_eq!(letter_id("7").unwrap().replica, None);
        assert!(letter_id("@h").is_err() && letter_id("7@").is_err());
    }
}
