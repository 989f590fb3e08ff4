//! Flags of the notifications, for the daemon and for `notify test`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Notifications")]
pub struct NotifyArgs {
    /// Send notifications to these URLs when a replica fails or recovers, dead letters appear, or
    /// the store or its disk is in trouble; repeatable, or separated by commas
    ///
    /// Each is an HTTP POST as Standard Webhooks specifies. A URL may be a secret: prefer the
    /// variable, which other users of the machine cannot read.
    #[arg(
        long,
        env = "REPLICATOR_NOTIFY_URL",
        hide_env_values = true,
        value_name = "URLS",
        value_delimiter = ','
    )]
    pub notify_url: Vec<String>,

    /// Secrets that sign notifications, one per line: `whsec_` and the base64 of 24 to 64 bytes;
    /// readable only by its owner; reloaded on SIGHUP
    #[arg(long, env = "REPLICATOR_NOTIFY_SECRET_FILE", value_name = "FILE")]
    pub notify_secret_file: Option<PathBuf>,

    /// Body of notifications
    #[arg(
        long,
        env = "REPLICATOR_NOTIFY_FORMAT",
        value_name = "FORMAT",
        default_value = "standard"
    )]
    pub notify_format: NotifyFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum NotifyFormat {
    /// JSON with type, timestamp and data; needs --notify-secret-file
    Standard,
    /// A text for an incoming webhook of Slack
    Slack,
}

impl NotifyFormat {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Standard => "standard",
            Self::Slack => "slack",
        }
    }
}

#[derive(Debug, Args)]
pub struct NotifyCommandArgs {
    #[command(subcommand)]
    pub command: NotifyCommand,
}

#[derive(Debug, Subcommand)]
pub enum NotifyCommand {
    /// Send one test notification to each URL, and print the answers
    ///
    /// Needs no running daemon. Each URL is tried once.
    #[command(after_long_help = TEST_EXIT_CODES)]
    Test(NotifyTestArgs),
}

#[derive(Debug, Args)]
pub struct NotifyTestArgs {
    #[command(flatten)]
    pub notify: NotifyArgs,

    /// Name of the instance in the notification
    #[arg(long, env = "REPLICATOR_NODE_ID", default_value = "replicator")]
    pub node_id: String,
}

const TEST_EXIT_CODES: &str = "\
Exit codes:
  0  every receiver accepted it
  1  a receiver refused it or did not answer
  2  invalid arguments";
