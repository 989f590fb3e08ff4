//! Where the figures come from: the stream of events, or, where there is none, asking each second.

use std::time::Duration;

use serde::Deserialize;
use tokio::sync::mpsc::Sender;
use tokio::time::sleep;

use super::model::Update;
use super::sse::Parser;
use crate::api::{Figures, Replica, ReplicaFigures, ReplicaPage};
use crate::commands::operate::client::{AskError, Client};
use crate::daemon::wall_clock;
use crate::task::Timestamp;

/// How often it is asked without a stream, and how long until the stream is tried again.
const PAUSE: Duration = Duration::from_secs(1);

/// Figures come each second: a stream that says nothing for so long is dead.
const SILENCE: Duration = Duration::from_secs(10);

/// Sends updates until nobody takes them any more.
pub(super) async fn run(client: Client, updates: Sender<Update>) {
    let mut before = None;
    while !updates.is_closed() {
        // Why the stream ended is told by the question after it, if it matters.
        let _ = listen(&client, &updates).await;
        let update = match poll(&client).await {
            Ok(now) => {
                let figures = now.figures(before.as_ref());
                before = Some(now);
                Update::Polled(figures)
            }
            Err(error) => Update::Lost(error.to_string()),
        };
        if updates.send(update).await.is_err() {
            return;
        }
        sleep(PAUSE).await;
    }
}

/// Reads the stream to its end.
async fn listen(client: &Client, updates: &Sender<Update>) -> Result<(), AskError> {
    let query = [("types", "replica,figures".to_owned())];
    let mut stream = client.stream(&["v1", "events"], &query).await?;
    let mut parser = Parser::default();
    while let Some(part) = stream.next(SILENCE).await? {
        let Ok(events) = parser.push(&part) else {
            return Ok(());
        };
        for event in events {
            let update = match event.kind.as_str() {
                "figures" => serde_json::from_str(&event.data).map(Update::Figures),
                "replica" => serde_json::from_str(&event.data).map(Update::Replica),
                // What was missed of figures is in those that follow.
                _ => continue,
            };
            // One that cannot be read is of another version: asking is what is left.
            let Ok(update) = update else {
                return Ok(());
            };
            if updates.send(update).await.is_err() {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// What `/metrics` says of everything since the start.
#[derive(Debug, Default, Deserialize)]
struct Totals {
    total_replications: u64,
    successful_replicas: u64,
    failed_replicas: u64,
    queue_size: u64,
    retries_in_progress: u64,
    dead_letters: u64,
}

/// How it was at a moment.
#[derive(Debug)]
struct Polled {
    at: Timestamp,
    totals: Totals,
    replicas: Vec<Replica>,
}

async fn poll(client: &Client) -> Result<Polled, AskError> {
    let replicas: ReplicaPage = client.read(&client.get(&["v1", "replicas"], &[]).await?)?;
    let totals = client.read(&client.get(&["metrics"], &[]).await?)?;
    Ok(Polled { at: wall_clock(), totals, replicas: replicas.replicas })
}

impl Polled {
    /// The figures, with rates from what has changed since `before`.
    fn figures(&self, before: Option<&Self>) -> Figures {
        let elapsed = before.map_or(Duration::ZERO, |before| self.at.saturating_since(before.at));
        let per_second = |now: u64, before: u64| match elapsed {
            Duration::ZERO => 0.0,
            // After a restart of the daemon it counts from zero again.
            elapsed => now.saturating_sub(before) as f64 / elapsed.as_secs_f64(),
        };
        let Totals { total_replications, successful_replicas, failed_replicas, .. } = self.totals;
        let nothing = Totals::default();
        let then = before.map_or(&nothing, |before| &before.totals);
        let line = |replica: &Replica| {
            let old = before.and_then(|before| {
                before.replicas.iter().find(|old| old.replica == replica.replica)
            });
            let old = old.map_or(replica.books, |old| old.books);
            ReplicaFigures {
                replica: replica.replica.clone(),
                breaker: replica.breaker,
                paused: replica.paused_since.is_some(),
                backlog_tasks: replica.backlog_tasks,
                lag_seconds: replica.lag_seconds,
                in_flight: replica.in_flight,
                retrying: replica.retrying + replica.parked,
                dead_letters: replica.dead_letters,
                delivered_per_second: per_second(replica.books.delivered, old.delivered),
                failed_per_second: per_second(replica.books.failed_attempts, old.failed_attempts),
            }
        };
        let at = std::time::UNIX_EPOCH + Duration::from_nanos(self.at.0);
        Figures {
            at: humantime::format_rfc3339_millis(at).to_string(),
            accepted_per_second: per_second(total_replications, then.total_replications),
            delivered_per_second: per_second(successful_replicas, then.successful_replicas),
            failed_per_second: per_second(failed_replicas, then.failed_replicas),
            queue_tasks: self.totals.queue_size,
            retry_tasks: self.totals.retries_in_progress,
            dead_letters: self.totals.dead_letters,
            backlog_tasks: self.replicas.iter().map(|replica| replica.backlog_tasks).sum(),
            lag_seconds: self
                .replicas
                .iter()
                .map(|replica| replica.lag_seconds)
                .fold(0.0, f64::max),
            replicas: self.replicas.iter().map(line).collect(),
        }
    }
}
