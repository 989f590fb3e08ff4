//! `replicator status`: how the daemon is, what is wrong first.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use super::client::{AskError, Client};
use super::screen::{Mood, Screen};
use super::text::{age, bytes, clean, count, seconds};
use super::{Failure, Outcome, replicas, text};
use crate::api::{BreakerState, Convergence, Replica, ReplicaPage};
use crate::cli::admin::StatusArgs;
use crate::task::Timestamp;

/// What `/health` says.
#[derive(Deserialize)]
struct Health {
    status: String,
    reason: Option<String>,
}

/// What of `/metrics` everyone wants to see.
#[derive(Default, Deserialize)]
struct Totals {
    queue_size: u64,
    queue_capacity: u64,
    queue_bytes: u64,
    retries_in_progress: u64,
    retry_capacity: u64,
    waiting_requests: u64,
    dead_letters: u64,
    store_file_bytes: Option<u64>,
    disk_free_bytes: Option<u64>,
}

/// What was asked and answered.
struct Asked {
    health: Value,
    /// Why nothing is accepted.
    not_ready: Option<String>,
    figures: Value,
    replicas: Value,
}

pub(super) async fn run(
    args: &StatusArgs,
    client: &Client,
    screen: &mut Screen,
) -> Result<Outcome, Failure> {
    let asked = ask(client).await?;
    let health: Health = client.read(&asked.health)?;
    let page = match &asked.replicas {
        Value::Null => ReplicaPage { replicas: Vec::new() },
        page => client.read(page)?,
    };
    let now = screen.now();
    let mut problems = Vec::new();
    problems.extend(asked.not_ready.as_ref().map(|why| format!("accepts no writes: {why}")));
    if health.status != "healthy" {
        let reason = health.reason.clone();
        problems.push(reason.unwrap_or_else(|| match health.status.as_str() {
            "degraded" => "the queue is nearly full (--queue-capacity)".to_owned(),
            other => other.to_owned(),
        }));
        problems.dedup();
    }
    let unhealthy = asked.not_ready.is_some() || health.status == "unhealthy";
    problems.extend(page.replicas.iter().filter_map(|replica| problem(replica, args.max_lag, now)));
    let (outcome, mood, status) = match problems.as_slice() {
        _ if unhealthy => (Outcome::Unhealthy, Mood::Bad, "unhealthy"),
        [] => (Outcome::Done, Mood::Good, "healthy"),
        _ => (Outcome::Wanting, Mood::Doubtful, "degraded"),
    };
    if args.ask.json {
        screen.json(&json!({
            "status": status, "problems": problems, "health": asked.health,
            "figures": asked.figures,
            "replicas": asked.replicas.get("replicas").cloned().unwrap_or_default(),
        }))?;
        return Ok(outcome);
    }
    let mut text = format!("{}  {}\n", screen.paint(mood, status), client.url());
    for problem in &problems {
        let mark = screen.paint(if unhealthy { Mood::Bad } else { Mood::Doubtful }, "!");
        text = format!("{text}{mark} {}\n", clean(problem));
    }
    if !asked.figures.is_null() {
        text += &totals(&client.read(&asked.figures)?);
    }
    if !page.replicas.is_empty() {
        let mut rows: Vec<_> = page.replicas.iter().collect();
        rows.sort_by_key(|replica| problem(replica, args.max_lag, now).is_none());
        text = format!("{text}\n{}", replicas::table(rows));
    }
    screen.print(&text)?;
    Ok(outcome)
}

/// Of a daemon that is unhealthy one takes what one can get.
async fn ask(client: &Client) -> Result<Asked, Failure> {
    let (status, health) = client.get_whatever(&["health"]).await?;
    let not_ready = match client.get(&["readyz"], &[]).await {
        Ok(_) => None,
        Err(AskError::Refused { status: 503, error }) => Some(error),
        Err(error) => return Err(error.into()),
    };
    let well = status == 200 && not_ready.is_none();
    let take = |answer: Result<Value, AskError>| match answer {
        Err(error) if well => Err(error),
        answer => Ok(answer.unwrap_or_default()),
    };
    let figures = take(client.get(&["metrics"], &[]).await)?;
    let replicas = take(client.get(&["v1", "replicas"], &[]).await)?;
    Ok(Asked { health, not_ready, figures, replicas })
}

fn totals(totals: &Totals) -> String {
    let Totals { queue_size, queue_capacity, retries_in_progress, retry_capacity, .. } = totals;
    let queued = bytes(totals.queue_bytes);
    let mut text = format!(
        "queue {queue_size} of {queue_capacity} tasks, {queued}; retrying {retries_in_progress} of {retry_capacity}; {}",
        count(totals.dead_letters, "dead letter")
    );
    if totals.waiting_requests > 0 {
        text = format!("{text}; {} waiting for room", count(totals.waiting_requests, "request"));
    }
    if let (Some(store), Some(free)) = (totals.store_file_bytes, totals.disk_free_bytes) {
        text = format!("{text}; store {}, {} free", bytes(store), bytes(free));
    }
    text + "\n"
}

/// What an operator has to know of a replica, if there is anything.
fn problem(replica: &Replica, max_lag: Duration, now: Timestamp) -> Option<String> {
    let mut told = Vec::new();
    let since = |moment: &Option<String>| match moment {
        Some(moment) => format!(" for {}", age(moment, now)),
        None => String::new(),
    };
    if replica.paused_since.is_some() {
        told.push(format!("paused{}", since(&replica.paused_since)));
    }
    match replica.breaker {
        BreakerState::Closed => {}
        BreakerState::HalfOpen => told.push("is coming back".to_owned()),
        BreakerState::Open => {
            told.push(format!("does not answer{}", since(&replica.breaker_since)));
            let probe = replica.next_probe_at.as_ref();
            told.extend(probe.map(|moment| text::probe(moment, now)));
        }
    }
    if replica.lag_seconds > max_lag.as_secs_f64() {
        told.push(format!("behind by {}", seconds(replica.lag_seconds)));
        told.extend(match (replica.convergence, replica.drained_in_seconds) {
            (Convergence::NotConverging, _) => Some("not catching up".to_owned()),
            (_, Some(left)) => Some(format!("caught up in about {}", seconds(left))),
            _ => None,
        });
    }
    if !told.is_empty() && replica.backlog_tasks > 0 {
        told.push(format!("backlog of {}", count(replica.backlog_tasks, "task")));
    }
    if replica.dead_letters > 0 {
        told.push(count(replica.dead_letters, "dead letter"));
    }
    if told.is_empty() {
        return None;
    }
    let mut text = format!("{}: {}", replica.replica, told.join(", "));
    if replica.breaker != BreakerState::Closed
        && let Some(last) = &replica.last_error
    {
        text = format!("{text}: {}", last.error);
    }
    Some(text)
}
