//! Fetches the figures: from the event stream, or by polling every second if there is none.

use std::time::Duration;

use serde::Deserialize;
use tokio::sync::mpsc::Sender;
use tokio::time::sleep;

use super::model::Update;
use super::sse::Parser;
use crate::api::{Cluster, Figures, Replica, ReplicaFigures, ReplicaPage};
use crate::clock::wall_clock;
use crate::commands::admin::client::{CallError, DaemonClient};
use crate::commands::admin::cluster;
use crate::task::Timestamp;

/// Interval of polls. Before each poll the stream is tried again.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

const CLUSTER_INTERVAL: Duration = Duration::from_secs(2);

/// Figures arrive every second; a stream silent for this long is dead.
const MAX_SILENCE: Duration = Duration::from_secs(10);

/// Runs until the receiver is dropped.
pub(super) async fn run(client: DaemonClient, updates: Sender<Update>) {
    let mut before = None;
    while !updates.is_closed() {
        // If the daemon is gone, the poll reports why.
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
        sleep(POLL_INTERVAL).await;
    }
}

/// Follows the instances and partitions of a cluster store. Ends for a daemon without one.
pub(super) async fn follow_cluster(client: DaemonClient, updates: Sender<Update>) {
    while !updates.is_closed() {
        let answer = client.get(&["v1", "cluster"], &[]).await;
        match answer.and_then(|answer| client.read::<Cluster>(&answer)) {
            Ok(shared) => {
                let summary = cluster::summary(&shared);
                let mut lines = vec![format!("{summary}; the figures are of this instance")];
                lines.extend(cluster::problems(&shared));
                let _ = updates.send(Update::Cluster(lines.join("; "))).await;
            }
            Err(error) if error.is_not_found() => return,
            // The figures report it.
            Err(_) => {}
        }
        sleep(CLUSTER_INTERVAL).await;
    }
}

async fn listen(client: &DaemonClient, updates: &Sender<Update>) -> Result<(), CallError> {
    let query = [("types", "replica,figures".to_owned())];
    let mut stream = client.stream(&["v1", "events"], &query).await?;
    let mut parser = Parser::default();
    while let Some(part) = stream.next(MAX_SILENCE).await? {
        let Ok(events) = parser.push(&part) else {
            return Ok(());
        };
        for event in events {
            let update = match event.kind.as_str() {
                "figures" => serde_json::from_str(&event.data).map(Update::Figures),
                "replica" => serde_json::from_str(&event.data).map(Update::Replica),
                // `lagged`: the next figures replace the missed ones.
                _ => continue,
            };
            // Cannot be parsed: a daemon of another version. Poll instead.
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

#[derive(Debug, Default, Deserialize)]
struct PolledTotals {
    total_replications: u64,
    successful_replicas: u64,
    failed_replicas: u64,
    queue_size: u64,
    retries_in_progress: u64,
    dead_letters: u64,
}

#[derive(Debug)]
struct Polled {
    at: Timestamp,
    totals: PolledTotals,
    replicas: Vec<Replica>,
}

async fn poll(client: &DaemonClient) -> Result<Polled, CallError> {
    let replicas: ReplicaPage = client.read(&client.get(&["v1", "replicas"], &[]).await?)?;
    let totals = client.read(&client.get(&["metrics"], &[]).await?)?;
    Ok(Polled { at: wall_clock(), totals, replicas: replicas.replicas })
}

impl Polled {
    fn figures(&self, before: Option<&Self>) -> Figures {
        let elapsed = before.map_or(Duration::ZERO, |before| self.at.saturating_since(before.at));
        let per_second = |now: u64, before: u64| match elapsed {
            Duration::ZERO => 0.0,
            // Counters start at zero after a restart of the daemon.
            elapsed => now.saturating_sub(before) as f64 / elapsed.as_secs_f64(),
        };
        let PolledTotals { total_replications, successful_replicas, failed_replicas, .. } =
            self.totals;
        let nothing = PolledTotals::default();
        let then = before.map_or(&nothing, |before| &before.totals);
        let line = |replica: &Replica| {
            let old = before.and_then(|before| {
                before.replicas.iter().find(|old| old.replica == replica.replica)
            });
            let old = old.map_or(replica.books, |old| old.books);
            ReplicaFigures {
                replica: replica.replica.clone(),
                state: replica.state,
                backlog_tasks: replica.backlog_tasks,
                lag_seconds: replica.lag_seconds,
                in_flight: replica.in_flight,
                retrying: replica.retrying + replica.parked,
                dead_letters: replica.dead_letters,
                delivered_per_second: per_second(replica.books.delivered, old.delivered),
                failed_per_second: per_second(replica.books.failed_attempts, old.failed_attempts),
                limits: replica.limits,
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

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::{Value, json};
    use tokio::net::TcpListener;
    use tokio::sync::mpsc;

    use super::super::model::tests::figures;
    use super::*;
    use crate::cli::{Cli, Command};
    use crate::commands::admin::tests::{ScriptStep, answer, replica, step};
    use crate::task::ReplicaState;

    const EVENTS: &str = "GET /v1/events?types=replica%2Cfigures";

    fn books(delivered: u64) -> Value {
        json!({
            "accepted": 100, "delivered": delivered, "superseded": 0, "dead": 0, "discarded": 0,
            "pending": 0, "failed_attempts": 2, "redriven": 0,
        })
    }

    fn polled(delivered: u64) -> [ScriptStep; 2] {
        let replicas = [replica("http://a", &json!({ "books": books(delivered) }))];
        let totals = json!({
            "total_replications": 100, "successful_replicas": delivered, "failed_replicas": 2,
            "queue_size": 7, "retries_in_progress": 1, "dead_letters": 0,
        });
        [
            step("GET /v1/replicas", 200, json!({ "replicas": replicas })),
            step("GET /metrics", 200, totals),
        ]
    }

    /// The first `number` updates from a scripted daemon.
    async fn updates(steps: Vec<ScriptStep>, number: usize) -> Vec<Update> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let words = ["replicator", "top", "--url", url.as_str()];
        let Some(Command::Top(args)) = Cli::try_parse_from(words).unwrap().command else {
            panic!("not top");
        };
        let (sender, mut receiver) = mpsc::channel(64);
        let feed = tokio::spawn(run(DaemonClient::new(&args.connect).unwrap(), sender));
        let script = tokio::spawn(answer(listener, steps));
        let mut updates = Vec::new();
        for _ in 0..number {
            updates.push(receiver.recv().await.unwrap());
        }
        script.await.unwrap();
        feed.abort();
        updates
    }

    #[tokio::test]
    async fn figures_and_changes_come_from_the_stream_and_from_polls_when_it_ends() {
        let sent = figures(&[("http://a", ReplicaState::Healthy, 3)]);
        let change = json!({
            "at": sent.at, "replica": "http://a", "change": "paused", "detail": null,
        });
        let stream = format!(
            ": hello\n\nid: 1\nevent: figures\ndata: {}\n\nid: 2\nevent: lagged\ndata: {{}}\n\nid: 3\nevent: replica\ndata: {change}\n\n",
            serde_json::to_string(&sent).unwrap()
        );
        let [replicas, metrics] = polled(40);
        let steps = vec![step(EVENTS, 200, stream.into()), replicas, metrics];
        let updates = updates(steps, 3).await;
        assert!(matches!(&updates[0], Update::Figures(figures) if *figures == sent));
        assert!(matches!(&updates[1], Update::Replica(event) if event.replica == "http://a"));
        assert!(matches!(&updates[2], Update::Polled(_)), "{updates:?}");
    }

    #[tokio::test]
    async fn without_a_stream_rates_are_the_change_since_the_last_poll() {
        let none = || step(EVENTS, 404, json!({ "error": "no such path" }));
        let [first, second] = polled(40);
        let [third, fourth] = polled(90);
        let steps = vec![none(), first, second, none(), third, fourth];
        let updates = updates(steps, 2).await;
        let [Update::Polled(before), Update::Polled(after)] = updates.as_slice() else {
            panic!("{updates:?}");
        };
        assert_eq!((before.delivered_per_second, before.queue_tasks), (0.0, 7));
        // 50 in at least one second.
        assert!((1.0..=50.0).contains(&after.delivered_per_second), "{after:?}");
        assert!((1.0..=50.0).contains(&after.replicas[0].delivered_per_second), "{after:?}");
        assert_eq!(after.accepted_per_second, 0.0);
    }

    #[tokio::test]
    async fn a_daemon_that_does_not_answer_is_reported() {
        let refused =
            |request| step(request, 503, json!({ "error": "the replicator is stopping" }));
        let updates = updates(vec![refused(EVENTS), refused("GET /v1/replicas")], 1).await;
        assert!(matches!(&updates[0], Update::Lost(why) if why.contains("stopping")));
    }
}
