//! Flags of the commands that ask a running daemon.

use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Args, Subcommand, ValueEnum};
use url::Url;

use super::duration;
use crate::api::{Cause, DeliveryState, LetterId};
use crate::task::{Node, TaskId};

/// Which daemon is asked, and how.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "The daemon")]
pub struct ConnectArgs {
    /// Where the daemon listens.
    #[arg(long, global = true, env = "REPLICATOR_URL", value_name = "URL", default_value = "http://127.0.0.1:8085", value_parser = daemon_url)]
    pub url: Url,

    /// How long the daemon may take to answer.
    #[arg(long, global = true, value_name = "TIME", default_value = "10s", value_parser = positive_duration)]
    pub timeout: Duration,

    /// A file with the token that is sent as `Authorization: Bearer`; without it, the variable
    /// REPLICATOR_TOKEN holds the token itself, if it is set.
    #[arg(long, global = true, env = "REPLICATOR_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,

    /// Authorities that a daemon with https is checked against, as PEM, instead of those that the
    /// system trusts.
    #[arg(long, global = true, env = "REPLICATOR_CA_FILE", value_name = "FILE")]
    pub ca_file: Option<PathBuf>,

    /// A certificate to show to a daemon that asks for one, as PEM, with the chain above it; needs
    /// --key-file.
    #[arg(long, global = true, env = "REPLICATOR_CERT_FILE", value_name = "FILE")]
    pub cert_file: Option<PathBuf>,

    /// The key of --cert-file, as PEM.
    #[arg(long, global = true, env = "REPLICATOR_KEY_FILE", value_name = "FILE")]
    pub key_file: Option<PathBuf>,
}

/// Which daemon is asked, and how its answer is shown.
#[derive(Clone, Debug, Args)]
pub struct AskArgs {
    /// The daemon.
    #[command(flatten)]
    pub connect: ConnectArgs,

    /// Print the API's JSON, one line, instead of text for people.
    #[arg(long, global = true)]
    pub json: bool,
}

/// Flags of `status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Who is asked.
    #[command(flatten)]
    pub ask: AskArgs,

    /// A replica whose oldest unsettled delivery is older than this is behind.
    #[arg(long, value_name = "TIME", default_value = "1m", value_parser = duration)]
    pub max_lag: Duration,
}

/// Flags of `replicas`.
#[derive(Debug, Args)]
pub struct ReplicasArgs {
    /// Who is asked.
    #[command(flatten)]
    pub ask: AskArgs,

    /// What to do; without it, list.
    #[command(subcommand)]
    pub command: Option<ReplicasCommand>,
}

/// What `replicas` can do.
#[derive(Debug, Subcommand)]
pub enum ReplicasCommand {
    /// List the replicas with their backlogs.
    List,
    /// Show everything that is known of one replica.
    Show(NodeArgs),
    /// Send nothing to a replica until it is resumed; holds over a restart.
    Pause(NodeArgs),
    /// Send to a paused replica again.
    Resume(NodeArgs),
    /// Let a delivery to a replica with an open breaker go out now.
    Probe(NodeArgs),
    /// Throw away everything that waits for a replica, its dead letters included.
    ///
    /// Without --yes it only says what that would be, and ends with 2.
    Forget(ForgetArgs),
    /// Send what waits for a replica, and what is still accepted for it, to another address.
    Rename(RenameArgs),
}

/// Names a replica.
#[derive(Debug, Args)]
pub struct NodeArgs {
    /// Its address; without a scheme it is an http one.
    #[arg(value_name = "NODE", value_parser = node)]
    pub node: Node,
}

/// Flags of `replicas forget`.
#[derive(Debug, Args)]
pub struct ForgetArgs {
    /// Which.
    #[command(flatten)]
    pub node: NodeArgs,

    /// Do it.
    #[arg(long)]
    pub yes: bool,
}

/// Flags of `replicas rename`.
#[derive(Debug, Args)]
pub struct RenameArgs {
    /// Which.
    #[command(flatten)]
    pub node: NodeArgs,

    /// Its new address, to which nothing may have been sent before.
    #[arg(value_name = "NEW", value_parser = node)]
    pub to: Node,
}

/// Flags of `tasks`.
#[derive(Debug, Args)]
pub struct TasksArgs {
    /// Who is asked.
    #[command(flatten)]
    pub ask: AskArgs,

    /// What to do; without it, list.
    #[command(subcommand)]
    pub command: Option<TasksCommand>,
}

/// What `tasks` can do.
#[derive(Debug, Subcommand)]
pub enum TasksCommand {
    /// List the tasks that are not settled, oldest first.
    List(TaskListArgs),
    /// Show one task and its deliveries.
    Show(TaskArgs),
    /// Throw away what is not yet delivered of a task.
    ///
    /// What is on the wire is not tried again.
    Discard(TaskArgs),
}

/// Names a task.
#[derive(Debug, Args)]
pub struct TaskArgs {
    /// Its id, as the 202 had it.
    #[arg(value_name = "TASK", value_parser = task_id)]
    pub task: TaskId,
}

/// Which tasks.
#[derive(Debug, Default, Args)]
pub struct TaskListArgs {
    /// Those with a delivery in this state.
    #[arg(long, value_name = "STATE")]
    pub state: Option<StateArg>,

    /// Those for this replica.
    #[arg(long, value_name = "NODE", value_parser = node)]
    pub replica: Option<Node>,

    /// Whose.
    #[command(flatten)]
    pub keys: KeyArgs,

    /// How many.
    #[command(flatten)]
    pub page: PageArgs,
}

/// Whose writes.
#[derive(Debug, Default, Args)]
pub struct KeyArgs {
    /// Those of this key.
    #[arg(long)]
    pub key: Option<String>,

    /// Those of the keys that begin so.
    #[arg(long, value_name = "PREFIX", conflicts_with = "key")]
    pub key_prefix: Option<String>,

    /// Those of this user.
    #[arg(long, value_name = "USER", allow_negative_numbers = true)]
    pub user_id: Option<String>,
}

/// How much of a list.
#[derive(Debug, Default, Args)]
pub struct PageArgs {
    /// At most so many; 100 by default.
    #[arg(long, value_name = "N")]
    pub limit: Option<NonZeroUsize>,

    /// Go on where a list ended: the cursor that it gave.
    #[arg(long)]
    pub cursor: Option<String>,
}

/// Flags of `dead-letters`.
#[derive(Debug, Args)]
pub struct DeadLettersArgs {
    /// Who is asked.
    #[command(flatten)]
    pub ask: AskArgs,

    /// What to do; without it, list.
    #[command(subcommand)]
    pub command: Option<DeadLettersCommand>,
}

/// What `dead-letters` can do.
#[derive(Debug, Subcommand)]
pub enum DeadLettersCommand {
    /// List the dead letters, oldest first.
    List(LetterListArgs),
    /// Make dead letters ready to be sent again.
    ///
    /// Waits for the end and shows how far it is; Ctrl-C cancels what is left. Exit codes: 0 done;
    /// 1 it failed, or the daemon cannot be asked; 2 the arguments are wrong; 3 it was cancelled.
    Redrive(RedriveArgs),
    /// Throw dead letters away.
    ///
    /// Waits for the end and shows how far it is; Ctrl-C cancels what is left. Exit codes as of
    /// redrive.
    Discard(DiscardArgs),
    /// List the redrives and discards that are remembered, newest first, or show one.
    Operations(OperationsArgs),
    /// Cancel a redrive or discard; what it has done stays done.
    Cancel(OperationArgs),
}

/// Which dead letters are listed.
#[derive(Debug, Default, Args)]
pub struct LetterListArgs {
    /// Which.
    #[command(flatten)]
    pub filter: LetterFilterArgs,

    /// How many.
    #[command(flatten)]
    pub page: PageArgs,
}

/// Narrows dead letters down.
#[derive(Debug, Default, Args)]
pub struct LetterFilterArgs {
    /// Those of this replica.
    #[arg(long, value_name = "NODE", value_parser = node)]
    pub replica: Option<Node>,

    /// Whose.
    #[command(flatten)]
    pub keys: KeyArgs,

    /// Those that lie there for this reason.
    #[arg(long, value_name = "CAUSE")]
    pub cause: Option<CauseArg>,
}

/// Which dead letters something is done with.
#[derive(Debug, Default, Args)]
#[command(group(
    ArgGroup::new("selection")
        .args(["ids", "replica", "key", "key_prefix", "user_id", "cause", "all"])
        .required(true)
        .multiple(true)
))]
pub struct SelectionArgs {
    /// Those of these tasks; TASK@NODE is that of one replica.
    #[arg(value_name = "TASK", value_parser = letter_id)]
    pub ids: Vec<LetterId>,

    /// Which.
    #[command(flatten)]
    pub filter: LetterFilterArgs,

    /// All of them.
    #[arg(
        long,
        conflicts_with_all = ["ids", "replica", "key", "key_prefix", "user_id", "cause"]
    )]
    pub all: bool,
}

/// Flags of `dead-letters redrive`.
#[derive(Debug, Args)]
pub struct RedriveArgs {
    /// Which.
    #[command(flatten)]
    pub selection: SelectionArgs,

    /// At most so many in a second; the daemon's --redrive-rate by default.
    #[arg(long, value_name = "N")]
    pub rate: Option<NonZeroU32>,

    /// How it runs.
    #[command(flatten)]
    pub run: OperationRunArgs,
}

/// Flags of `dead-letters discard`.
#[derive(Debug, Args)]
pub struct DiscardArgs {
    /// Which.
    #[command(flatten)]
    pub selection: SelectionArgs,

    /// How it runs.
    #[command(flatten)]
    pub run: OperationRunArgs,
}

/// How an operation over many dead letters runs.
#[derive(Debug, Default, Args)]
pub struct OperationRunArgs {
    /// Only count what would be done.
    #[arg(long)]
    pub dry_run: bool,

    /// Do not wait for the end: print the operation's id.
    #[arg(long)]
    pub detach: bool,
}

/// Flags of `dead-letters operations`.
#[derive(Debug, Args)]
pub struct OperationsArgs {
    /// Only this one.
    #[arg(value_name = "OPERATION")]
    pub operation: Option<String>,
}

/// Names an operation.
#[derive(Debug, Args)]
pub struct OperationArgs {
    /// Its id.
    #[arg(value_name = "OPERATION")]
    pub operation: String,
}

/// Flags of `barrier`.
#[derive(Debug, Args)]
pub struct BarrierArgs {
    /// Who is asked.
    #[command(flatten)]
    pub ask: AskArgs,

    /// Whose deliveries it is about, may be given several times; by default all replicas'.
    #[arg(long, value_name = "NODE", value_parser = node)]
    pub replica: Vec<Node>,

    /// Go on waiting for a barrier that was made before.
    #[arg(long, value_name = "BARRIER", conflicts_with = "replica")]
    pub id: Option<String>,

    /// How long to wait for it; 0s only says how it stands.
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = duration)]
    pub wait: Duration,
}

/// Flags of `top`.
#[derive(Debug, Args)]
pub struct TopArgs {
    /// Who is asked.
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// Flags of `completions`.
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// For which shell.
    pub shell: clap_complete::Shell,
}

/// Flags of `man`.
#[derive(Debug, Args)]
pub struct ManArgs {
    /// Write a page for every command into this directory, which is made if need be.
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

/// The states of a delivery that can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StateArg {
    /// Not sent yet, or about to be sent again.
    Queued,
    /// On the wire.
    #[value(alias = "in_flight")]
    InFlight,
    /// Failed, and waiting for its retry.
    Retrying,
    /// Failed, without a place in the retry queue.
    Parked,
    /// A dead letter.
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

/// Why a dead letter lies there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CauseArg {
    /// The replica refused it for good.
    Rejected,
    /// All attempts failed.
    #[value(alias = "gave_up")]
    GaveUp,
    /// It has no place in the retry queue; comes back by itself.
    #[value(alias = "retry_overflow")]
    RetryOverflow,
}

impl From<CauseArg> for Cause {
    fn from(cause: CauseArg) -> Self {
        match cause {
            CauseArg::Rejected => Self::Rejected,
            CauseArg::GaveUp => Self::GaveUp,
            CauseArg::RetryOverflow => Self::RetryOverflow,
        }
    }
}

fn daemon_url(text: &str) -> Result<Url, String> {
    const LIKE: &str = "an address looks like http://127.0.0.1:8085";
    let url = Url::parse(text).map_err(|error| format!("{error}: {LIKE}"))?;
    let plain = url.query().is_none() && url.fragment().is_none() && url.username().is_empty();
    match url.scheme() {
        "http" | "https" if plain && url.password().is_none() => Ok(url),
        "http" | "https" => Err("user info, query and fragment mean nothing here".to_owned()),
        other => Err(format!("{other} is neither http nor https: {LIKE}")),
    }
}

fn positive_duration(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("nothing can be answered in no time".to_owned()),
        time => Ok(time),
    }
}

pub(super) fn node(text: &str) -> Result<Node, String> {
    let spelled = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    Node::parse(&spelled).map_err(|error| format!("the address {error}"))
}

fn task_id(text: &str) -> Result<TaskId, String> {
    text.parse().map(TaskId).map_err(|_| "a task's id is a number".to_owned())
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
    fn the_daemon_can_be_named_before_and_after_what_is_done() {
        for line in [
            "replicas --url http://h:1 --json pause h:8081",
            "replicas pause h:8081 --json --url http://h:1",
        ] {
            let Ok(Command::Replicas(args)) = parse(line) else { panic!("{line}") };
            assert!(args.ask.json);
            assert_eq!(args.ask.connect.url.as_str(), "http://h:1/");
            let Some(ReplicasCommand::Pause(of)) = args.command else { panic!("{line}") };
            assert_eq!(of.node.as_str(), "http://h:8081");
        }
    }

    #[test]
    fn addresses_that_mean_nothing_are_refused_by_their_reason() {
        refused("status --url 127.0.0.1:8085", "http://127.0.0.1:8085");
        refused("status --url ftp://h", "neither http nor https");
        refused("status --url http://u@h", "user info");
        refused("status --timeout 0s", "no time");
        refused("replicas show http://h/?a", "query");
        refused("tasks show first", "number");
    }

    #[test]
    fn nothing_is_done_with_dead_letters_that_were_not_selected() {
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
    fn a_user_may_be_a_negative_number() {
        let Ok(Command::Tasks(args)) = parse("tasks list --user-id -5 --limit 1") else { panic!() };
        let Some(TasksCommand::List(list)) = args.command else { panic!() };
        assert_eq!(list.keys.user_id.as_deref(), Some("-5"));
    }

    #[test]
    fn a_dead_letter_is_named_by_its_task_or_by_both() {
        let both = letter_id("7@h:8081").unwrap();
        assert_eq!((both.task_id.as_str(), both.replica.as_deref()), ("7", Some("http://h:8081")));
        assert_eq!(letter_id("7").unwrap().replica, None);
        assert!(letter_id("@h").is_err() && letter_id("7@").is_err());
    }
}
