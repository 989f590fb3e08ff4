//! The commands that ask a running daemon: a file a command.
//!
//! They speak the API of `/v1` as anyone could, by [`client`], and know nothing of the daemon's
//! inside but the words. Each prints to a [`screen`]: text for people, or with `--json` what the
//! API said. A list is read to its end page by page ([`list`]); what lasts ([`dead_letters`],
//! [`barrier`]) draws a line over itself where somebody watches.
//!
//! Start with [`status`].

use std::io;
use std::process::ExitCode;

use thiserror::Error;

use crate::cli::admin::{
    BarrierArgs, ConnectArgs, DeadLettersArgs, ReplicasArgs, StatusArgs, TasksArgs, TopArgs,
};
use client::{AskError, Client, SetupError};
use screen::Screen;

mod barrier;
mod client;
mod dead_letters;
mod list;
mod operations;
mod replicas;
mod screen;
mod status;
mod tasks;
mod text;
mod top;

#[cfg(test)]
mod tests;

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Done,
    /// Asked, and told no.
    Failed,
    /// What was meant has to be said more clearly.
    Unclear,
    /// Degraded, not in time, or cancelled.
    Wanting,
    /// Nothing is accepted.
    Unhealthy,
    /// Reached, but for dead letters.
    GivenUp,
}

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> Self {
        Self::from(match outcome {
            Outcome::Done => 0,
            Outcome::Failed => 1,
            Outcome::Unclear => 2,
            Outcome::Wanting => 3,
            Outcome::Unhealthy => 4,
            Outcome::GivenUp => 5,
        })
    }
}

/// Why a command could not do what it is for.
#[derive(Debug, Error)]
enum Failure {
    #[error(transparent)]
    Ask(#[from] AskError),
    #[error(transparent)]
    Setup(#[from] SetupError),
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

pub(super) async fn dead_letters(args: &DeadLettersArgs) -> ExitCode {
    let command =
        async |client: &Client, screen: &mut Screen| dead_letters::run(args, client, screen).await;
    with(&args.ask.connect, command).await
}

pub(super) async fn barrier(args: &BarrierArgs) -> ExitCode {
    with(&args.ask.connect, async |client, screen| barrier::run(args, client, screen).await).await
}

pub(super) async fn top(args: &TopArgs) -> ExitCode {
    with(&args.connect, async |client, _| top::run(client).await).await
}

async fn with(
    connect: &ConnectArgs,
    command: impl AsyncFnOnce(&Client, &mut Screen) -> Result<Outcome, Failure>,
) -> ExitCode {
    let mut screen = Screen::of_process();
    let ended = match Client::new(connect) {
        Ok(client) => command(&client, &mut screen).await,
        Err(error) => Err(error.into()),
    };
    match ended {
        Ok(outcome) => outcome.into(),
        // Whoever reads has seen enough.
        Err(Failure::Print(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(error) => {
            screen.tell(&error.to_string());
            ExitCode::FAILURE
        }
    }
}
