//! `replicator barrier`: wait until what was accepted before now is delivered.

use std::pin::pin;
use std::time::Duration;

use serde_json::Value;
use tokio::time::sleep;

use super::client::{AskError, Client};
use super::screen::Screen;
use super::text::{Table, cell, count};
use super::{Failure, Outcome};
use crate::api::{Barrier, NewBarrier};
use crate::cli::admin::BarrierArgs;

/// How long the daemon is asked to hold an answer back. Short enough for a person to see that the
/// number of what is left goes down.
const HELD_BACK: Duration = Duration::from_secs(2);

/// How long until a daemon that did not answer is asked again.
const AGAIN: Duration = Duration::from_secs(1);

pub(super) async fn run(
    args: &BarrierArgs,
    client: &Client,
    screen: &mut Screen,
) -> Result<Outcome, Failure> {
    // From before the barrier is made: --wait is how long the command takes at most.
    let end = pin!(sleep(args.wait));
    let answer = match &args.id {
        Some(id) => ask(client, id, Duration::ZERO).await?,
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
            () = end => ask(client, &first.barrier_id, Duration::ZERO).await?,
        }
    };
    let barrier: Barrier = client.read(&answer)?;
    screen.show(args.ask.json, &answer, &told(&barrier))?;
    Ok(match barrier {
        Barrier { reached: false, .. } => Outcome::Wanting,
        Barrier { given_up: 0, .. } => Outcome::Done,
        Barrier { .. } => Outcome::GivenUp,
    })
}

/// Asks until it is reached. A barrier holds over a restart of the daemon, so one that does not
/// answer for a while is asked again.
async fn until_reached(
    first: &Barrier,
    client: &Client,
    screen: &mut Screen,
) -> Result<Value, Failure> {
    screen.progress(&waiting(first));
    loop {
        match ask(client, &first.barrier_id, HELD_BACK).await {
            Ok(answer) => {
                let barrier: Barrier = client.read(&answer)?;
                if barrier.reached {
                    return Ok(answer);
                }
                screen.progress(&waiting(&barrier));
            }
            Err(error) if error.is_passing() => {
                screen.progress(&format!("{error}; asking again"));
                sleep(AGAIN).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

async fn ask(client: &Client, id: &str, wait: Duration) -> Result<Value, AskError> {
    let query = ("wait", format!("{}s", wait.as_secs()));
    client.get_within(&["v1", "barriers", id], &[query], wait).await
}

fn waiting(barrier: &Barrier) -> String {
    format!("waiting for {}", count(barrier.pending, "delivery"))
}

fn told(barrier: &Barrier) -> String {
    let mut text = if !barrier.reached {
        format!(
            "not reached: {} up to task {} {} not settled; go on with --id {}\n",
            count(barrier.pending, "delivery"),
            barrier.up_to,
            if barrier.pending == 1 { "is" } else { "are" },
            barrier.barrier_id
        )
    } else if barrier.given_up > 0 {
        format!(
            "reached, but for {}: see replicator dead-letters\n",
            count(barrier.given_up, "dead letter")
        )
    } else {
        return format!("reached: everything up to task {} is delivered\n", barrier.up_to);
    };
    let left = barrier.replicas.iter().filter(|replica| replica.pending + replica.given_up > 0);
    let mut table = Table::new(&["REPLICA", ">PENDING", ">DEAD"]);
    for replica in left {
        let figures = [replica.pending.to_string(), replica.given_up.to_string()];
        table.row(std::iter::once(cell(&replica.replica)).chain(figures));
    }
    text += &table.render();
    text
}
