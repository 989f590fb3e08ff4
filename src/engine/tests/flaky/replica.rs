//! A replica that fails attempts at random, on a virtual clock: a seed gives the same figures on
//! every machine. The tests and the benchmark both include this file.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use super::{
    Arrived, AttemptOutcome, Consistency, DeliveryId, Engine, EngineAction, EngineSettings,
    KeyHasher, Moment, Node, Now, Origin, Partition, TaskId, Timestamp, Verdict,
};

/// How long writes arrive.
pub(crate) const TIME: Duration = Duration::from_secs(60);
/// The time between two writes, each of a different key.
const BETWEEN: Duration = Duration::from_millis(6);
/// The shortest latency; the longest is ten times as long.
const FASTEST: Duration = Duration::from_millis(2);

/// The writes of [`TIME`], at its end.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) written: u64,
    pub(crate) delivered: u64,
    pub(crate) dead_letters: u64,
    /// How often the breaker opened.
    pub(crate) opened: u64,
}

/// Writes for [`TIME`] to a replica that fails this share of its attempts.
pub(crate) fn run(settings: EngineSettings, fails: f64) -> Outcome {
    let mut rng = fastrand::Rng::with_seed(settings.seed);
    let mut engine = Engine::new(settings);
    let (keys, replicas) = (KeyHasher::default(), [Node::parse("http://flaky").unwrap()]);
    let mut in_flight: BinaryHeap<Reverse<(Moment, DeliveryId, Duration, bool)>> =
        BinaryHeap::new();
    let (mut outcome, mut next_write) = (Outcome::default(), Moment(0));
    let end = Moment(0).after(TIME);
    loop {
        let answer = in_flight.peek().map(|Reverse((at, ..))| *at);
        let moment = [answer, engine.wake_at()].into_iter().flatten().fold(next_write, Moment::min);
        if moment >= end {
            break;
        }
        let now = Now { moment, wall: Timestamp(0).saturating_add(moment.since_start()) };
        if answer.is_some_and(|at| at <= moment) {
            let Some(Reverse((_, delivery, took, failed))) = in_flight.pop() else { break };
            let failure = Verdict::Retry { after: None, error: "503".into() };
            let verdict = if failed { failure } else { Verdict::Delivered };
            engine.answered(now, delivery, AttemptOutcome::certain(verdict, took));
        } else if next_write <= moment {
            outcome.written += 1;
            let id = TaskId(outcome.written);
            let key = keys.id(&outcome.written.to_string());
            let consistency = Consistency::Eventual;
            let reservation = engine.reserve(now, key, &replicas, 100, consistency, None).unwrap();
            let accepted_at = now.wall;
            let task = Arrived {
                client: None,
                partition: Partition::default(),
                id,
                key,
                replicas: &replicas,
                bytes: 100,
                accepted_at,
            };
            engine.arrive(now, task, Origin::Written(Some(reservation)));
            next_write = moment.after(BETWEEN);
        } else {
            engine.tick(now);
        }
        while let Some(action) = engine.next_action() {
            match action {
                EngineAction::Send { delivery, .. } => {
                    let took = FASTEST.mul_f64(1.0 + 9.0 * rng.f64());
                    let failed = rng.f64() < fails;
                    in_flight.push(Reverse((moment.after(took), delivery, took, failed)));
                }
                EngineAction::Breaker { error: Some(_), .. } => outcome.opened += 1,
                _ => {}
            }
        }
    }
    outcome.delivered = engine.totals().delivered;
    outcome.dead_letters = engine.levels().dead_letters;
    outcome
}
