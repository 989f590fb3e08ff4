//! The commands that talk to a running daemon, one file per command.
//!
//! They use the public API `/v1` through [`client`] and print to a [`screen`], which escapes: text,
//! or with `--json` the API's answer. [`list`] reads paged lists. Long commands ([`dead_letters`],
//! [`barrier`]) draw a progress line on a terminal.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use thiserror::Error;

use crate::cli::admin::{
    BarrierArgs, ClusterViewArgs, ConnectArgs, DeadLettersArgs, KeyShowArgs, ReplicasArgs,
    StatusArgs, TasksArgs, TopArgs, VerifyArgs,
};
use client::{CallError, ClientSetupError, DaemonClient};
use screen::Screen;

mod answer;
mod barrier;
mod client;
mod cluster;
mod dead_letters;
mod export;
mod keys;
mod list;
mod operations;
mod replicas;
mod screen;
mod status;
mod tasks;
pub(super) mod text;
mod top;
mod verify;

#[cfg(test)]
mod tests;

/// The result of a command; the value is its exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CommandOutcome {
    Done = 0,
    /// The daemon refused, or the operation failed.
    Failed = 1,
    /// `--yes` is missing.
    Unconfirmed = 2,
    /// Something needs attention, was not reached in time, or cancelled.
    Incomplete = 3,
    /// The daemon accepts no writes.
    Unhealthy = 4,
    /// A barrier is reached or a redrive done, but some deliveries are dead letters.
    GivenUp = 5,
}

impl From<CommandOutcome> for ExitCode {
    fn from(outcome: CommandOutcome) -> Self {
        Self::from(outcome as u8)
    }
}

#[derive(Debug, Error)]
enum CommandError {
    #[error(transparent)]
    Call(#[from] CallError),
    #[error(transparent)]
    Setup(#[from] ClientSetupError),
    #[error("cannot print: {0}")]
    Print(#[from] io::Error),
    #[error("{0}")]
    Other(String),
}

pub(super) async fn status(args: &StatusArgs) -> ExitCode {
    with(&args.ask.connect, async |client, screen| status::run(args, client, screen).await).await
}

pub(super) async fn replicas(args: &ReplicasArgs) -> ExitCode {
    with(&args.ask.connect, async |client, screen| replicas::run(args, client, screen).await).await
}

pub(super) async fn tasks(args: &TasksArgs) -> ExitCode {
    with(&args.ask.connect, async |client, screen| tasks::run(args, client, screen).await).await
}

pub(super) async fn key(args: &KeyShowArgs) -> ExitCode {
    with(&args.ask.connect, async |client, screen| keys::run(args, client, screen).await).await
}

pub(super) async fn dead_letters(args: &DeadLettersArgs) -> ExitCode {
    let command = async |client: &DaemonClient, screen: &mut Screen| {
        dead_letters::run(args, client, screen).await
    };
    with(&args.ask.connect, command).await
}

pub(super) async fn barrier(args: &BarrierArgs) -> ExitCode {
    with(&args.ask.connect, async |client, screen| barrier::run(args, client, screen).await).await
}

pub(super) async fn verify(args: &VerifyArgs) -> ExitCode {
    with(&args.ask.connect, async |client, screen| verify::run(args, client, screen).await).await
}

pub(super) async fn cluster(args: &ClusterViewArgs) -> ExitCode {
    with(&args.ask.connect, async |client, screen| cluster::run(args, client, screen).await).await
}

pub(super) async fn export(connect: ConnectArgs, output: Option<PathBuf>) -> ExitCode {
    with(&connect, async |client, screen| export::run(output.as_deref(), client, screen).await)
        .await
}

pub(super) async fn top(args: &TopArgs) -> ExitCode {
    with(&args.connect, async |client, _| top::run(client).await).await
}

async fn with(
    connect: &ConnectArgs,
    command: impl AsyncFnOnce(&DaemonClient, &mut Screen) -> Result<CommandOutcome, CommandError>,
) -> ExitCode {
    let mut screen = Screen::of_process();
    let ended = match DaemonClient::new(connect) {
        Ok(client) => command(&client, &mut screen).await,
        Err(error) => Err(error.into()),
    };
    match ended {
        Ok(outcome) => outcome.into(),
        // `| head` has read enough.
        Err(CommandError::Print(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(error) => {
            screen.message(&error.to_string());
            ExitCode::FAILURE
        }
    }
}
