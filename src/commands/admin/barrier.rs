//! `replicator barrier`: waits until every write accepted so far is delivered.

use std::pin::pin;
use std::time::Duration;

use tokio::time::sleep;

use super::answer::JsonAnswer;
use super::client::{CallError, DaemonClient};
use super::screen::Screen;
use super::text::{Table, cell, count};
use super::{CommandError, CommandOutcome, cluster};
use crate::api::{Barrier, NewBarrier};
use crate::cli::admin::BarrierArgs;

/// How long the daemon may delay an answer. Short, so that the progress line shows the count going
/// down.
const LONG_POLL: Duration = Duration::from_secs(2);

const RETRY_DELAY: Duration = Duration::from_secs(1);

pub(super) async fn run(
    args: &BarrierArgs,
    client: &DaemonClient,
    screen: &mut Screen,
) -> Result<CommandOutcome, CommandError> {
    // Starts before the barrier is created: --wait limits the whole command.
    let end = pin!(sleep(args.wait));
    let answer = match &args.id {
        Some(id) => get(client, id, Duration::ZERO).await?,
        None => {
            let replicas = args.replica.iter().map(ToString::to_string).collect();
            client.post(&["v1", "barriers"], Some(&NewBarrier { replicas })).await?
        }
    };
    let first: Barrier = client.read(&answer)?;
    let answer = if first.reached || args.wait.is_zero() {
        answer
    } else {
        tokio::select! {
            answer = until_reached(&first, client, screen) => answer?,
            () = end => get(client, &first.barrier_id, Duration::ZERO).await?,
        }
    };
    let barrier: Barrier = client.read(&answer)?;
    screen.show(args.ask.json, &answer, summary(&barrier))?;
    Ok(match barrier {
        Barrier { reached: false, .. } => CommandOutcome::Incomplete,
        Barrier { given_up: 0, .. } => CommandOutcome::Done,
        Barrier { .. } => CommandOutcome::GivenUp,
    })
}

/// Polls until the barrier is reached. It survives a restart of the daemon, so a daemon that does
/// not answer is polled again.
async fn until_reached(
    first: &Barrier,
    client: &DaemonClient,
    screen: &mut Screen,
) -> Result<JsonAnswer, CommandError> {
    screen.progress(&waiting(first));
    loop {
        match get(client, &first.barrier_id, LONG_POLL).await {
            Ok(answer) => {
                let barrier: Barrier = client.read(&answer)?;
                if barrier.reached {
                    return Ok(answer);
                }
                screen.progress(&waiting(&barrier));
            }
            Err(error) if error.is_transient() => {
                screen.progress(&format!("{error}; retrying"));
                sleep(RETRY_DELAY).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

async fn get(client: &DaemonClient, id: &str, wait: Duration) -> Result<JsonAnswer, CallError> {
    let query = ("wait", format!("{}s", wait.as_secs()));
    client.get_within(&["v1", "barriers", id], &[query], wait).await
}

fn waiting(barrier: &Barrier) -> String {
    format!("waiting for {}", count(barrier.pending, "delivery"))
}

fn summary(barrier: &Barrier) -> Vec<String> {
    let verdict = if let Some(incomplete) = cluster::incomplete(&barrier.incomplete) {
        format!("not reached: {incomplete}; continue with --id {}", barrier.barrier_id)
    } else if !barrier.reached {
        format!(
            "not reached: {} up to task {} {} not settled; continue with --id {}",
            count(barrier.pending, "delivery"),
            barrier.up_to,
            if barrier.pending == 1 { "is" } else { "are" },
            barrier.barrier_id
        )
    } else if barrier.given_up > 0 {
        format!(
            "reached, except {}: see replicator dead-letters",
            count(barrier.given_up, "dead letter")
        )
    } else {
        return vec![format!("reached: everything up to task {} is delivered", barrier.up_to)];
    };
    let left = barrier.replicas.iter().filter(|replica| replica.pending + replica.given_up > 0);
    let mut table = Table::new(&["REPLICA", ">PENDING", ">DEAD"]);
    for replica in left {
        let figures = [replica.pending.to_string(), replica.given_up.to_string()];
        table.row(std::iter::once(cell(&replica.replica)).chain(figures));
    }
    [vec![verdict], table.render()].concat()
}
