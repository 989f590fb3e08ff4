//! Arguments of `replicator replicas`. The doc comments are the help texts.

use std::time::Duration;

use bytesize::ByteSize;
use clap::{ArgGroup, Args, Subcommand};

use super::{AskArgs, node, positive_duration};
use crate::task::Node;

#[derive(Debug, Args)]
pub struct ReplicasArgs {
    #[command(flatten)]
    pub ask: AskArgs,

    #[command(subcommand)]
    pub command: Option<ReplicasCommand>,
}

#[derive(Debug, Subcommand)]
pub enum ReplicasCommand {
    /// List replicas with state, backlog, lag and rates (default)
    List,
    /// Show one replica in full
    Show(NodeArgs),
    /// Stop sending to a replica until it is resumed; survives a restart
    ///
    /// Also before its first write. A paused replica gets the new end, or none.
    Pause(PauseArgs),
    /// Resume sending to a paused replica
    Resume(NodeArgs),
    /// Limit what is sent to a replica; survives a restart
    ///
    /// Each flag also takes `default` or `none`, which unset the limit. Also before its first write.
    Set(SetArgs),
    /// Send the next delivery to a failing replica now
    Probe(NodeArgs),
    /// Discard all pending deliveries and dead letters of a replica
    ///
    /// Without --yes it only prints how many there are and exits with code 2.
    Forget(ForgetArgs),
    /// Send the pending and future writes of a replica to another address
    ///
    /// Without --yes it only prints how many there are and exits with code 2.
    Rename(RenameArgs),
}

#[derive(Debug, Args)]
pub struct NodeArgs {
    /// Address of the replica; http:// if it has no scheme
    #[arg(value_name = "NODE", value_parser = node)]
    pub node: Node,
}

#[derive(Debug, Args)]
pub struct PauseArgs {
    #[command(flatten)]
    pub node: NodeArgs,

    /// Resume it after this time, at most 366d
    #[arg(long = "for", value_name = "TIME", value_parser = positive_duration)]
    pub time: Option<Duration>,

    /// Resume it at this time, such as 2026-12-01T06:00:00Z
    #[arg(long, value_name = "TIME", value_parser = moment, conflicts_with = "time")]
    pub until: Option<String>,
}

#[derive(Debug, Args)]
#[command(group(
    ArgGroup::new("limits")
        .args(["workers", "rate", "bandwidth", "redrive_rate"])
        .required(true)
        .multiple(true)
))]
pub struct SetArgs {
    #[command(flatten)]
    pub node: NodeArgs,

    /// Concurrent deliveries to it, instead of --workers; the maximum if that is auto
    #[arg(long, value_name = "N", value_parser = limit)]
    pub workers: Option<LimitArg>,

    /// Requests per second
    #[arg(long, value_name = "N", value_parser = limit)]
    pub rate: Option<LimitArg>,

    /// Bytes per second, such as 10MB
    #[arg(long, value_name = "BYTES", value_parser = byte_limit)]
    pub bandwidth: Option<LimitArg>,

    /// Redriven dead letters per second, instead of --redrive-rate
    #[arg(long, value_name = "N", value_parser = limit)]
    pub redrive_rate: Option<LimitArg>,
}

/// A limit to set, or `None` to unset it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitArg(pub Option<u64>);

#[derive(Debug, Args)]
pub struct ForgetArgs {
    #[command(flatten)]
    pub node: NodeArgs,

    /// Confirm: discard them
    #[arg(long)]
    pub yes: bool,
}

#[derive(Debug, Args)]
pub struct RenameArgs {
    #[command(flatten)]
    pub node: NodeArgs,

    /// New address; nothing may have been sent to it before
    #[arg(value_name = "NEW", value_parser = node)]
    pub to: Node,

    /// Confirm: send them there
    #[arg(long)]
    pub yes: bool,
}

fn limit(text: &str) -> Result<LimitArg, String> {
    let number = || text.parse().map_err(|_| "expected a number, default or none".to_owned());
    unset_or(text, number)
}

fn byte_limit(text: &str) -> Result<LimitArg, String> {
    unset_or(text, || match text.parse::<ByteSize>() {
        Ok(bytes) => Ok(bytes.0),
        Err(_) => Err("expected bytes such as 10MB, default or none".to_owned()),
    })
}

fn unset_or(text: &str, number: impl FnOnce() -> Result<u64, String>) -> Result<LimitArg, String> {
    match text {
        "default" | "none" => Ok(LimitArg(None)),
        _ => number().map(|number| LimitArg(Some(number))),
    }
}

fn moment(text: &str) -> Result<String, String> {
    match humantime::parse_rfc3339(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err("expected a time in UTC such as 2026-12-01T06:00:00Z".to_owned()),
    }
}
