//! `replicator status`: the health of the daemon, problems first.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::answer::JsonAnswer;
use super::client::{CallError, DaemonClient};
use super::screen::{Screen, ScreenLine, Severity};
use super::text::{age, bytes, count, seconds};
use super::{CommandError, CommandOutcome, cluster, replicas, text};
use crate::api::{Cluster, Convergence, Instance, Replica, ReplicaPage};
use crate::cli::admin::StatusArgs;
use crate::task::{ReplicaState, Timestamp};

#[derive(Deserialize)]
struct HealthAnswer {
    status: String,
    reason: Option<String>,
}

#[derive(Default, Deserialize)]
struct StatusTotals {
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

struct StatusAnswers {
    health: JsonAnswer,
    not_ready: Option<String>,
    figures: Option<JsonAnswer>,
    replicas: Option<JsonAnswer>,
    /// With a cluster store.
    cluster: Option<JsonAnswer>,
}

/// The output with `--json`.
#[derive(Serialize)]
struct StatusReport<'a> {
    state: &'a str,
    problems: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster: Option<&'a RawValue>,
    health: &'a RawValue,
    figures: Option<&'a RawValue>,
    replicas: Option<&'a RawValue>,
}

pub(super) async fn run(
    args: &StatusArgs,
    client: &DaemonClient,
    screen: &mut Screen,
) -> Result<CommandOutcome, CommandError> {
    let answers = fetch(client).await?;
    let health: HealthAnswer = client.read(&answers.health)?;
    let page = answers.replicas.as_ref().map(|answer| client.read::<ReplicaPage>(answer));
    let page = page.transpose()?.unwrap_or(ReplicaPage::default());
    let now = screen.now();
    let mut problems = Vec::new();
    problems.extend(answers.not_ready.as_ref().map(|why| format!("accepts no writes: {why}")));
    let shared = answers.cluster.as_ref().map(|answer| client.read::<Cluster>(answer));
    let shared = shared.transpose()?;
    problems.extend(shared.iter().flat_map(cluster::problems));
    problems.extend(cluster::incomplete(&page.incomplete));
    if health.status != "healthy" {
        let reason = health.reason.clone();
        problems.push(reason.unwrap_or_else(|| match health.status.as_str() {
            "degraded" => "the queue is nearly full (--queue-capacity)".to_owned(),
            other => other.to_owned(),
        }));
        problems.dedup();
    }
    let refusing = answers.not_ready.is_some() || health.status == "unhealthy";
    problems.extend(page.replicas.iter().filter_map(|replica| problem(replica, args.max_lag, now)));
    // Not the words of `/health`, which knows only the queue, the disk and the store.
    let (outcome, severity, state) = match problems.as_slice() {
        _ if refusing => (CommandOutcome::Unhealthy, Severity::Error, "refusing"),
        [] => (CommandOutcome::Done, Severity::Ok, "ok"),
        _ => (CommandOutcome::Incomplete, Severity::Warning, "attention"),
    };
    if args.ask.json {
        let unparsable = |error| client.unparsable(&error);
        let replicas = answers.replicas.as_ref();
        let replicas = replicas.map(|answer| answer.field("replicas")).transpose();
        let report = StatusReport {
            state,
            problems: &problems,
            cluster: answers.cluster.as_ref().map(JsonAnswer::raw),
            health: answers.health.raw(),
            figures: answers.figures.as_ref().map(JsonAnswer::raw),
            replicas: replicas.map_err(unparsable)?,
        };
        screen.json_part(&serde_json::to_string(&report).map_err(unparsable)?)?;
        screen.end_json()?;
        return Ok(outcome);
    }
    let mut lines = vec![ScreenLine::marked(severity, state, format!(" {}", client.url()))];
    lines.extend(shared.as_ref().map(|shared| cluster::summary(shared).into()));
    let severity = if refusing { Severity::Error } else { Severity::Warning };
    lines.extend(problems.into_iter().map(|problem| ScreenLine::marked(severity, "!", problem)));
    if let Some(figures) = &answers.figures {
        lines.push(totals(&client.read(figures)?, shared.is_none()).into());
    }
    if !page.replicas.is_empty() {
        let mut rows: Vec<_> = page.replicas.iter().collect();
        rows.sort_by_key(|replica| problem(replica, args.max_lag, now).is_none());
        lines.push("".into());
        lines.extend(replicas::table(rows).into_iter().map(ScreenLine::from));
    }
    screen.print(lines)?;
    Ok(outcome)
}

/// If the daemon is unhealthy, missing answers are tolerated.
async fn fetch(client: &DaemonClient) -> Result<StatusAnswers, CommandError> {
    let (status, health) = client.get_or_503::<HealthAnswer>(&["health"]).await?;
    let not_ready = match client.get(&["readyz"], &[]).await {
        Ok(_) => None,
        Err(CallError::Refused { status: 503, error }) => Some(error),
        Err(error) => return Err(error.into()),
    };
    let healthy = status == 200 && not_ready.is_none();
    let if_possible = |answer: Result<JsonAnswer, CallError>| match answer {
        Err(error) if healthy => Err(error),
        answer => Ok(answer.ok()),
    };
    let figures = if_possible(client.get(&["metrics"], &[]).await)?;
    let replicas = if_possible(client.get(&["v1", "replicas"], &[]).await)?;
    let instance = if_possible(client.get(&["v1", "instance"], &[]).await)?;
    let instance = instance.map(|answer| client.read::<Instance>(&answer)).transpose()?;
    let cluster = match instance.and_then(|instance| instance.cluster) {
        Some(_) => if_possible(client.get(&["v1", "cluster"], &[]).await)?,
        None => None,
    };
    Ok(StatusAnswers { health, not_ready, figures, replicas, cluster })
}

fn totals(totals: &StatusTotals, has_disk: bool) -> String {
    let StatusTotals { queue_size, queue_capacity, retries_in_progress, retry_capacity, .. } =
        totals;
    let queued = bytes(totals.queue_bytes);
    let mut text = format!(
        "queue {queue_size} of {queue_capacity} tasks, {queued}; retrying {retries_in_progress} of {retry_capacity}; {}",
        count(totals.dead_letters, "dead letter")
    );
    if totals.waiting_requests > 0 {
        text = format!("{text}; {} waiting for room", count(totals.waiting_requests, "request"));
    }
    if let (true, Some(store), Some(free)) =
        (has_disk, totals.store_file_bytes, totals.disk_free_bytes)
    {
        text = format!("{text}; store {}, {} free", bytes(store), bytes(free));
    }
    text
}

/// The problems of a replica in one line, if it has any.
fn problem(replica: &Replica, max_lag: Duration, now: Timestamp) -> Option<String> {
    let mut parts = Vec::new();
    let since = |moment: &Option<String>| match moment {
        Some(moment) => format!(" for {}", age(moment, now)),
        None => String::new(),
    };
    if replica.state != ReplicaState::Healthy {
        parts.push(format!("{}{}", replica.state.as_str(), since(&replica.state_since)));
    }
    parts.extend(replica.paused_until.as_ref().map(|until| format!("until {until}")));
    parts.extend(replica.next_probe_at.as_ref().map(|moment| text::probe(moment, now)));
    if replica.lag_seconds > max_lag.as_secs_f64() {
        parts.push(format!("behind by {}", seconds(replica.lag_seconds)));
        parts.extend(match (replica.convergence, replica.drained_in_seconds) {
            (Convergence::NotConverging, _) => Some("not catching up".to_owned()),
            (_, Some(left)) => Some(format!("caught up in about {}", seconds(left))),
            _ => None,
        });
    }
    if !parts.is_empty() && replica.backlog_tasks > 0 {
        parts.push(format!("backlog of {}", count(replica.backlog_tasks, "task")));
        if replica.parked > 0 {
            parts.push(format!("{} of them parked", replica.parked));
        }
    }
    if replica.dead_letters > 0 {
        parts.push(count(replica.dead_letters, "dead letter"));
    }
    if replica.outage_headroom_seconds.is_some() && replica.state != ReplicaState::Healthy {
        parts.push(format!("may be away {}", replicas::headroom(replica)));
    }
    if parts.is_empty() {
        return None;
    }
    let mut text = format!("{}: {}", replica.replica, parts.join(", "));
    if matches!(replica.state, ReplicaState::Failing | ReplicaState::Recovering)
        && let Some(last) = &replica.last_error
    {
        text = format!("{text}: {}", last.error);
    }
    Some(text)
}
