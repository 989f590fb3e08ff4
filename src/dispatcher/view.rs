//! Converts views of the engine and rows of the store into the types of the API.

use std::time::{Duration, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::api;
use crate::dispatcher::latency::{Rate, Trend};
use crate::dispatcher::messages::CountedBarrier;
use crate::engine::{
    BarrierEnd, BarrierView, DeliveryView, EndedSend, Headroom, LaneView, LetterView, Moment, Now,
    TaskView,
};
use crate::store::{Header, MAX_PARTITIONS};
use crate::task::{Node, ReplicaState, TaskId, Timestamp};

pub(super) fn time(at: Timestamp) -> String {
    humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_nanos(at.0)).to_string()
}

/// A future moment, by the wall clock.
fn to_come(at: Moment, now: Now) -> String {
    let wait = at.since_start().saturating_sub(now.moment.since_start());
    time(now.wall.saturating_add(wait))
}

fn delivery(view: DeliveryView, now: Now) -> api::DeliveryInfo {
    let (error, failed_at) = view.error.unzip();
    api::DeliveryInfo {
        replica: view.node.to_string(),
        state: view.state,
        failures: view.failures,
        next_attempt_at: view.due.map(|due| to_come(due, now)),
        last_error: error.map(|error| error.to_string()),
        last_failed_at: failed_at.map(time),
        cause: view.cause,
        attempts: view.attempts.into_iter().map(attempt).collect(),
    }
}

fn attempt(ended: EndedSend) -> api::AttemptInfo {
    api::AttemptInfo {
        ended_at: time(ended.at),
        duration_seconds: ended.took.as_secs_f64(),
        error: ended.error.map(|error| error.to_string()),
    }
}

/// `header` may be unknown if the task is settled.
pub(super) fn task(
    view: TaskView,
    header: Option<&Header>,
    settled_at: Option<Timestamp>,
    now: Now,
) -> api::TaskInfo {
    api::TaskInfo {
        task_id: view.id.to_string(),
        key: header.map(|header| header.key.clone()),
        operation: header.map(|header| header.operation),
        value_bytes: header.map(|header| header.value_bytes as u64),
        accepted_at: header.map(|header| time(header.accepted_at)),
        expires_at: header.and_then(|header| header.expires_at).map(time),
        user_id: header.and_then(|header| header.user_id.clone()),
        consistency: header.map(|header| header.consistency),
        settled_at: settled_at.map(time),
        deliveries: view.deliveries.into_iter().map(|view| delivery(view, now)).collect(),
        incomplete: Vec::new(),
    }
}

/// `None` if the delivery is no dead letter any more.
pub(super) fn dead_letter(view: LetterView, header: Header) -> Option<api::DeadLetterInfo> {
    let (error, since) = view.delivery.error.unzip();
    Some(api::DeadLetterInfo {
        task_id: view.task.to_string(),
        replica: view.delivery.node.to_string(),
        key: header.key,
        operation: header.operation,
        value_bytes: header.value_bytes as u64,
        user_id: header.user_id,
        accepted_at: time(header.accepted_at),
        cause: view.delivery.cause?,
        failures: view.delivery.failures,
        last_error: error.map(|error| error.to_string()).unwrap_or_default(),
        since: time(since.unwrap_or(header.accepted_at)),
    })
}

/// Age of the oldest pending delivery in seconds; 0 without any.
pub(super) fn lag(lane: &LaneView, now: Now) -> f64 {
    lane.oldest_since.map_or(0.0, |oldest| oldest.age(now.moment).as_secs_f64())
}

/// `latency` is the p50 and p99 of the attempts.
pub(super) fn replica(
    lane: &LaneView,
    rate: Rate,
    latency: Option<(Duration, Duration)>,
    headroom: Option<Headroom>,
    renamed_from: Vec<String>,
    now: Now,
) -> api::Replica {
    let (p50, p99) = latency.unzip();
    let (convergence, drained_in_seconds) = convergence(lane, rate);
    api::Replica {
        replica: lane.node.to_string(),
        renamed_from,
        state: lane.state(),
        state_since: lane.state_since().map(time),
        paused_until: lane.paused.and_then(|pause| pause.until).map(time),
        next_probe_at: lane
            .next_probe
            .filter(|_| lane.state() == ReplicaState::Failing)
            .map(|at| to_come(at, now)),
        backlog_tasks: lane.counters.pending,
        backlog_bytes: lane.pending_bytes,
        oldest_accepted_at: lane.oldest.map(time),
        lag_seconds: lag(lane, now),
        in_flight: lane.in_flight,
        retrying: lane.waiting,
        parked: lane.parked,
        dead_letters: lane.counters.dead,
        refused_letters: lane.refused_letters,
        dead_letter_bytes: lane.dead_letter_bytes,
        workers: lane.workers,
        limits: lane.limits,
        rate_in: rate.accepted,
        rate_out: rate.delivered,
        latency_p50_seconds: p50.map(|p50| p50.as_secs_f64()),
        latency_p99_seconds: p99.map(|p99| p99.as_secs_f64()),
        last_error: lane
            .last_error
            .as_ref()
            .map(|(error, at)| api::LastError { error: error.to_string(), at: time(*at) }),
        convergence,
        drained_in_seconds,
        outage_headroom_seconds: headroom.map(|headroom| headroom.seconds),
        outage_limit: headroom.map(|headroom| headroom.limit.flag().to_owned()),
        books: lane.counters,
        incomplete: Vec::new(),
        unconfirmed: Vec::new(),
    }
}

/// The trend of the backlog, and the seconds until it is drained.
#[expect(clippy::cast_precision_loss, reason = "an estimate for people")]
fn convergence(lane: &LaneView, rate: Rate) -> (api::Convergence, Option<f64>) {
    let pending = lane.counters.pending;
    match (rate.trend, lane.state()) {
        (_, ReplicaState::Paused) => (api::Convergence::Paused, None),
        _ if pending == 0 => (api::Convergence::Drained, None),
        (Trend::Grows, _) if pending > lane.workers.into() => {
            (api::Convergence::NotConverging, None)
        }
        (Trend::Falls(falls), ReplicaState::Healthy) => {
            (api::Convergence::Draining, Some(pending as f64 / falls))
        }
        // While it recovers, its rate changes too much for an estimate.
        (Trend::Falls(_), ReplicaState::Recovering) => (api::Convergence::Draining, None),
        _ => (api::Convergence::Steady, None),
    }
}

pub(super) fn replica_figures(lane: &LaneView, rate: Rate, now: Now) -> api::ReplicaFigures {
    api::ReplicaFigures {
        replica: lane.node.to_string(),
        state: lane.state(),
        backlog_tasks: lane.counters.pending,
        lag_seconds: lag(lane, now),
        in_flight: lane.in_flight,
        retrying: lane.waiting + lane.parked,
        dead_letters: lane.counters.dead,
        delivered_per_second: rate.delivered_now,
        failed_per_second: rate.failed_now,
        limits: lane.limits,
    }
}

pub(super) fn barrier_replicas(nodes: &[Node], view: BarrierView) -> Vec<api::BarrierReplica> {
    let mut replicas: Vec<_> = view
        .lanes
        .into_iter()
        .map(|lane| api::BarrierReplica {
            replica: lane.node.to_string(),
            pending: lane.pending,
            given_up: lane.dead,
        })
        .collect();
    for node in nodes {
        if !replicas.iter().any(|known| known.replica == node.as_str()) {
            let replica = node.to_string();
            replicas.push(api::BarrierReplica { replica, pending: 0, given_up: 0 });
        }
    }
    replicas
}

/// A barrier of a store of one process.
pub(super) fn barrier(counted: CountedBarrier) -> api::Barrier {
    let CountedBarrier { end, nodes, replicas, .. } = counted;
    let pending = replicas.iter().map(|replica| replica.pending).sum();
    api::Barrier {
        barrier_id: barrier_id(&end, &nodes),
        reached: pending == 0,
        up_to: last_of(&end).to_string(),
        pending,
        given_up: replicas.iter().map(|replica| replica.given_up).sum(),
        replicas,
        incomplete: Vec::new(),
    }
}

/// The newest id before a barrier.
pub(super) fn last_of(end: &BarrierEnd) -> TaskId {
    match end {
        BarrierEnd::Task(last) => *last,
        BarrierEnd::Partitions { last, .. } => last.iter().copied().max().unwrap_or_default(),
    }
}

/// The id of the task, or those of several partitions; unless all replicas are covered, a dot and the
/// encoded replicas.
pub(super) fn barrier_id(end: &BarrierEnd, nodes: &[Node]) -> String {
    let end = match end {
        BarrierEnd::Task(last) => last.to_string(),
        BarrierEnd::Partitions { last, .. } => {
            let last: Vec<_> = last.iter().map(TaskId::to_string).collect();
            last.join("-")
        }
    };
    if nodes.is_empty() {
        return end;
    }
    let nodes: Vec<_> = nodes.iter().map(Node::as_str).collect();
    format!("{end}.{}", URL_SAFE_NO_PAD.encode(nodes.join("\n")))
}

/// `None` if the text is no barrier id. `partitions` is the number of partitions of a cluster.
pub(super) fn read_barrier_id(
    id: &str,
    partitions: Option<u16>,
) -> Option<(BarrierEnd, Vec<Node>)> {
    let (end, nodes) = match id.split_once('.') {
        None => (id, Vec::new()),
        Some((end, nodes)) => {
            let nodes = String::from_utf8(URL_SAFE_NO_PAD.decode(nodes).ok()?).ok()?;
            let nodes: Option<Vec<_>> = nodes.lines().map(|node| Node::parse(node).ok()).collect();
            (end, nodes.filter(|nodes| !nodes.is_empty())?)
        }
    };
    let end = match partitions {
        None => BarrierEnd::Task(end.parse().ok()?),
        Some(partitions) => {
            let last: Option<Vec<TaskId>> = end.split('-').map(|id| id.parse().ok()).collect();
            let last = last.filter(|last| last.len() == usize::from(partitions))?;
            BarrierEnd::Partitions { divisor: MAX_PARTITIONS.into(), last }
        }
    };
    Some((end, nodes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::{BreakerState, Counters};

    /// A replica with five workers.
    fn lane(pending: u64, breaker: BreakerState) -> LaneView {
        let counters = Counters { pending, ..Counters::default() };
        LaneView { breaker, ..LaneView::idle("http://a", counters) }
    }

    #[test]
    fn only_a_falling_backlog_of_a_healthy_replica_has_an_end() {
        use api::Convergence::{Drained, Draining, NotConverging, Paused, Steady};
        let (healthy, recovering, failing) =
            (BreakerState::Closed, BreakerState::HalfOpen, BreakerState::Open);
        let after = |trend, lane: LaneView| {
            convergence(&lane, Rate { trend, accepted: 7.0, delivered: 7.0, ..Rate::default() })
        };
        let falls = Trend::Falls(2.0);
        assert_eq!(after(falls, lane(10, healthy)), (Draining, Some(5.0)));
        assert_eq!(after(falls, lane(10, recovering)), (Draining, None));
        assert_eq!(after(falls, lane(10, failing)), (Steady, None));
        let paused = LaneView { paused: Some(Timestamp(1).into()), ..lane(10, healthy) };
        assert_eq!(after(falls, paused), (Paused, None));
        assert_eq!(after(falls, lane(0, healthy)), (Drained, None));
        assert_eq!(after(Trend::Grows, lane(6, healthy)), (NotConverging, None));
        assert_eq!(after(Trend::Grows, lane(5, healthy)), (Steady, None), "all are being sent");
        assert_eq!(after(Trend::Steady, lane(500, healthy)), (Steady, None));
    }

    #[test]
    fn a_barrier_is_read_back_from_its_id() {
        let nodes = ["http://a:1", "https://b/base"].map(|node| Node::parse(node).unwrap());
        let last = [2048, 4097].map(TaskId).to_vec();
        let both = BarrierEnd::Partitions { divisor: 1024, last };
        for (end, partitions) in [(BarrierEnd::Task(TaskId(7)), None), (both, Some(2))] {
            for nodes in [&nodes[..], &[]] {
                let id = barrier_id(&end, nodes);
                let read = read_barrier_id(&id, partitions);
                assert_eq!(read, Some((end.clone(), nodes.to_vec())), "{id}");
            }
        }
        for id in ["", "x", "7.", "7.!", "7.aHR0cA", "7-8"] {
            assert_eq!(read_barrier_id(id, None), None, "{id}");
        }
        for id in ["7", "7-8-9", "7-", "7-x"] {
            assert_eq!(read_barrier_id(id, Some(2)), None, "{id}");
        }
    }

    #[test]
    fn a_moment_is_written_to_the_millisecond_in_utc() {
        assert_eq!(time(Timestamp(1_500_000_000)), "1970-01-01T00:00:01.500Z");
    }
}
