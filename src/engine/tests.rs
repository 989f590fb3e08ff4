//! The rules of the engine, one test per rule. `tests/model.rs` runs random histories.

use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::time::Duration;

use super::model::{node, settings};
use super::*;
use crate::task::{
    BreakerState, Client, Consistency, DeadLetter, DeliveryState, Partition, Progress,
    ReplicaIndex, TaskChange,
};

mod admin;
mod ages;
mod ambiguous;
mod arrive;
mod barriers;
mod dead_letters;
mod early;
mod flaky;
mod headroom;
mod isolation;
mod limits;
mod model;
mod reach;
mod reconfigure;
mod refused;
mod release;
mod retries;
mod shares;
mod shortage;
mod work;

pub(super) fn workers(number: u32) -> Workers {
    Workers::Fixed(NonZeroU32::new(number).unwrap())
}

/// An engine with a clock and a journal; `eventual` and `strong` append and commit at once.
struct Fixture {
    engine: Engine,
    keys: KeyHasher,
    now: Now,
    next_id: u64,
    /// Appended but not durable.
    appended: VecDeque<Appended>,
}

struct Appended {
    id: u64,
    key: KeyId,
    replicas: Vec<Node>,
    client: Option<Client>,
    bytes: u64,
    reservation: Reservation,
}

impl Fixture {
    fn new(settings: EngineSettings) -> Self {
        Self {
            engine: Engine::new(settings),
            keys: KeyHasher::default(),
            now: Now { moment: Moment(0), wall: Timestamp(0) },
            next_id: 1,
            appended: VecDeque::new(),
        }
    }

    fn append(&mut self, key: &str, nodes: &[&str], consistency: Consistency) -> Result<u64, Full> {
        self.append_of(None, key, nodes, consistency)
    }

    fn append_of(
        &mut self,
        client: Option<&Client>,
        key: &str,
        nodes: &[&str],
        consistency: Consistency,
    ) -> Result<u64, Full> {
        self.append_sized(client, key, nodes, consistency, 10)
    }

    fn append_sized(
        &mut self,
        client: Option<&Client>,
        key: &str,
        nodes: &[&str],
        consistency: Consistency,
        bytes: u64,
    ) -> Result<u64, Full> {
        let replicas: Vec<_> = nodes.iter().map(|name| node(name)).collect();
        let (id, key, now) = (self.next_id, self.keys.id(key), self.now);
        let reservation = self.engine.reserve(now, key, &replicas, bytes, consistency, client)?;
        self.next_id += 1;
        let client = client.cloned();
        self.appended.push_back(Appended { id, key, replicas, client, bytes, reservation });
        Ok(id)
    }

    /// Everything appended up to this task becomes durable.
    fn commit(&mut self, last: u64) {
        while self.appended.front().is_some_and(|task| task.id <= last) {
            let Appended { id, key, replicas, client, bytes, reservation } =
                self.appended.pop_front().unwrap();
            let client = client.as_ref();
            let task = Arrived { client, bytes, ..arrived(id, key, &replicas, self.now.wall) };
            self.engine.arrive(self.now, task, Origin::Written(Some(reservation)));
        }
    }

    fn recover(&mut self, id: u64, key: &str, nodes: &[&str], progress: Vec<Progress>) {
        let replicas: Vec<_> = nodes.iter().map(|name| node(name)).collect();
        let task = arrived(id, self.keys.id(key), &replicas, Timestamp(0));
        self.engine.arrive(self.now, task, Origin::Recovered(progress));
    }

    fn eventual(&mut self, key: &str, nodes: &[&str]) -> u64 {
        let id = self.append(key, nodes, Consistency::Eventual).unwrap();
        self.commit(id);
        id
    }

    fn strong(&mut self, key: &str, nodes: &[&str]) -> u64 {
        let id = self.append(key, nodes, Consistency::Strong).unwrap();
        self.commit(id);
        id
    }

    fn pass(&mut self, time: Duration) {
        self.now.moment = self.now.moment.after(time);
        self.now.wall = self.now.wall.saturating_add(time);
        self.engine.tick(self.now);
    }

    fn answer(&mut self, task: u64, replica: u16, verdict: Verdict) {
        self.ended(task, replica, AttemptOutcome::certain(verdict, Duration::ZERO));
    }

    fn answer_ambiguously(&mut self, task: u64, replica: u16, verdict: Verdict) {
        let outcome = AttemptOutcome { verdict, ambiguous: true, took: Duration::ZERO };
        self.ended(task, replica, outcome);
    }

    fn ended(&mut self, task: u64, replica: u16, outcome: AttemptOutcome) {
        let delivery = DeliveryId { task: TaskId(task), replica: ReplicaIndex(replica) };
        self.engine.answered(self.now, delivery, outcome);
    }

    fn actions(&mut self) -> Vec<EngineAction> {
        std::iter::from_fn(|| self.engine.next_action()).collect()
    }

    /// The deliveries sent since the last call: task, replica, attempt.
    fn sent(&mut self) -> Vec<(u64, u16, u32)> {
        let send = |action| match action {
            EngineAction::Send { delivery, attempt, .. } => {
                Some((delivery.task.0, delivery.replica.0, attempt))
            }
            _ => None,
        };
        self.actions().into_iter().filter_map(send).collect()
    }
}

fn arrived(id: u64, key: KeyId, replicas: &[Node], accepted_at: Timestamp) -> Arrived<'_> {
    Arrived {
        partition: Partition(0),
        id: TaskId(id),
        key,
        replicas,
        bytes: 10,
        client: None,
        accepted_at,
    }
}

fn failed() -> Verdict {
    Verdict::Retry { after: None, error: "down".into() }
}

/// A failure with a `Retry-After`.
fn busy(after: Duration) -> Verdict {
    Verdict::Retry { after: Some(after), error: "busy".into() }
}

fn rejected() -> Verdict {
    Verdict::Rejected { error: "no".into() }
}

#[test]
fn a_task_is_removed_when_its_last_replica_has_it() {
    let mut f = Fixture::new(settings());
    let id = f.eventual("k", &["a", "b"]);
    f.actions();
    f.answer(id, 1, Verdict::Delivered);
    let progress = vec![Progress::Untouched, Progress::Delivered];
    assert_eq!(f.actions(), [EngineAction::Save { task: TaskId(id), progress }]);
    f.answer(id, 0, Verdict::Delivered);
    assert_eq!(f.actions(), [EngineAction::Remove { task: TaskId(id) }]);
    assert_eq!(f.engine.levels(), Levels::default());
}

#[test]
fn the_writes_of_one_key_go_out_one_after_the_other() {
    let mut f = Fixture::new(settings());
    let (first, second, other) =
        (f.eventual("k", &["a"]), f.eventual("k", &["a"]), f.eventual("x", &["a"]));
    assert_eq!(f.sent(), [(first, 0, 1), (other, 0, 1)]);
    f.answer(first, 0, Verdict::Delivered);
    assert_eq!(f.sent(), [(second, 0, 1)]);
}

#[test]
fn a_replica_has_no_more_than_its_workers_in_flight() {
    let mut f = Fixture::new(settings());
    let ids: Vec<_> = (0..8).map(|n| f.eventual(&format!("k{n}"), &["a"])).collect();
    assert_eq!(f.sent().len(), 5);
    f.answer(ids[2], 0, Verdict::Delivered);
    assert_eq!(f.sent(), [(ids[5], 0, 1)]);
}

#[test]
fn a_failed_delivery_is_tried_after_two_four_and_six_seconds_and_then_given_up() {
    let mut f = Fixture::new(settings());
    let id = f.eventual("k", &["a"]);
    assert_eq!(f.sent(), [(id, 0, 1)]);
    for (attempt, seconds) in [(2, 2), (3, 4), (4, 6)] {
        f.answer(id, 0, failed());
        f.pass(Duration::from_millis(seconds * 1000 - 1));
        assert_eq!(f.sent(), [], "before {seconds} s");
        f.pass(Duration::from_millis(seconds * 100 + 1));
        assert_eq!(f.sent(), [(id, 0, attempt)]);
    }
    f.answer(id, 0, failed());
    let actions = f.actions();
    let Some(EngineAction::Buried { letter, .. }) = actions.first() else { panic!("{actions:?}") };
    assert_eq!((letter.cause, letter.failures), (Cause::GaveUp, 4));
    assert!(matches!(actions[1], EngineAction::Breaker { error: Some(_), .. }), "{actions:?}");
    assert!(matches!(actions[2], EngineAction::Save { .. }), "{actions:?}");
    assert_eq!(f.engine.levels().dead_letters, 1);
    assert_eq!(f.engine.levels().retry, 0);
    assert_eq!(f.engine.totals().gave_up, 1);
    assert_eq!(f.engine.totals().failed_attempts, 4);
}

#[test]
fn retry_after_is_waited_for() {
    let mut f = Fixture::new(settings());
    let id = f.eventual("k", &["a"]);
    f.actions();
    let after = Some(Duration::from_secs(60));
    f.answer(id, 0, Verdict::Retry { after, error: "busy".into() });
    f.pass(Duration::from_secs(59));
    assert_eq!(f.sent(), []);
    f.pass(Duration::from_secs(1));
    assert_eq!(f.sent(), [(id, 0, 2)]);
}

#[test]
fn a_rejected_write_is_not_tried_again() {
    let mut f = Fixture::new(settings());
    let id = f.eventual("k", &["a", "b"]);
    f.actions();
    f.answer(id, 0, rejected());
    f.answer(id, 1, Verdict::Delivered);
    f.pass(Duration::from_secs(60));
    assert_eq!(f.sent(), []);
    assert_eq!(f.engine.totals().rejected, 1);
    assert_eq!(f.engine.levels().dead_letters, 1);
}

#[test]
fn a_failed_task_leaves_the_eventual_queue_for_the_retry_queue() {
    let mut f = Fixture::new(settings());
    let id = f.eventual("k", &["a", "b"]);
    assert_eq!((f.engine.levels().queue, f.engine.levels().retry), (1, 0));
    f.answer(id, 0, failed());
    assert_eq!((f.engine.levels().queue, f.engine.levels().retry), (1, 1), "b is being tried");
    f.answer(id, 1, failed());
    assert_eq!((f.engine.levels().queue, f.engine.levels().retry), (0, 2));
}

#[test]
fn a_newer_write_supersedes_one_that_waits_for_its_retry() {
    let mut f = Fixture::new(settings());
    let old = f.eventual("k", &["a"]);
    f.answer(old, 0, failed());
    f.actions();
    let new = f.eventual("k", &["a"]);
    assert!(f.actions().contains(&EngineAction::Remove { task: TaskId(old) }));
    f.pass(Duration::from_secs(60));
    f.answer(new, 0, Verdict::Delivered);
    assert_eq!(f.sent(), []);
    assert_eq!(f.engine.totals().superseded, 1);
    assert_eq!(f.engine.wake_at(), None);
}

#[test]
fn a_write_that_fails_with_a_newer_one_behind_it_is_superseded() {
    let mut f = Fixture::new(settings());
    let (old, new) = (f.eventual("k", &["a"]), f.eventual("k", &["a"]));
    f.actions();
    f.answer(old, 0, failed());
    assert_eq!(f.sent(), [(new, 0, 1)]);
    assert_eq!(f.engine.totals().superseded, 1);
}

#[test]
fn a_due_retry_that_has_no_place_yet_is_superseded_too() {
    let one = workers(1);
    let mut f = Fixture::new(EngineSettings { workers: one, ..settings() });
    let old = f.eventual("k", &["a"]);
    f.answer(old, 0, failed());
    let blocker = f.eventual("x", &["a"]);
    f.pass(Duration::from_secs(3));
    assert_eq!(f.sent(), [(old, 0, 1), (blocker, 0, 1)]);
    let new = f.eventual("k", &["a"]);
    f.answer(blocker, 0, Verdict::Delivered);
    assert_eq!(f.sent(), [(new, 0, 1)]);
}

#[test]
fn with_the_retry_queue_full_a_failure_is_parked_and_comes_back_by_itself() {
    let mut f = Fixture::new(EngineSettings { retry_capacity: 1, ..settings() });
    let (first, second) = (f.eventual("k1", &["a"]), f.eventual("k2", &["a"]));
    f.answer(first, 0, failed());
    f.actions();
    f.answer(second, 0, failed());
    let actions = f.actions();
    let Some(EngineAction::Buried { letter, .. }) = actions.first() else { panic!("{actions:?}") };
    assert_eq!(letter.cause, Cause::RetryOverflow);
    assert_eq!((f.engine.levels().queue, f.engine.levels().retry), (0, 1));
    assert_eq!(f.engine.levels().dead_letters, 1);

    f.pass(Duration::from_secs(3));
    assert_eq!(f.sent(), [(first, 0, 2)]);
    f.answer(first, 0, Verdict::Delivered);
    f.pass(Duration::from_millis(1));
    assert_eq!(f.sent(), [(second, 0, 2)]);
    f.answer(second, 0, Verdict::Delivered);
    assert_eq!(f.engine.levels(), Levels::default());
}

#[test]
fn a_parked_write_is_superseded_by_a_newer_one() {
    let mut f = Fixture::new(EngineSettings { retry_capacity: 0, ..settings() });
    let old = f.eventual("k", &["a"]);
    f.answer(old, 0, failed());
    let new = f.eventual("k", &["a"]);
    f.answer(new, 0, Verdict::Delivered);
    assert_eq!(f.engine.totals().superseded, 1);
    assert_eq!(f.engine.levels(), Levels::default());
}

#[test]
fn parked_replicas_take_turns_when_there_is_room() {
    let mut f = Fixture::new(EngineSettings { retry_capacity: 1, ..settings() });
    let first = f.eventual("k0", &["a"]);
    f.answer(first, 0, failed());
    let of_a = [f.eventual("k1", &["a"]), f.eventual("k2", &["a"])];
    let of_b = f.eventual("k3", &["b"]);
    for id in [of_a[0], of_a[1], of_b] {
        f.answer(id, 0, failed());
    }
    f.actions();
    let mut order = vec![];
    for _ in 0..4 {
        f.pass(Duration::from_secs(3));
        let sent = f.sent();
        f.answer(sent[0].0, 0, Verdict::Delivered);
        order.push(sent[0].0);
    }
    assert_eq!(order, [first, of_a[0], of_b, of_a[1]]);
}

#[test]
fn a_dead_replica_cannot_fill_the_queue_of_the_healthy_ones() {
    let mut f =
        Fixture::new(EngineSettings { queue_capacity: 10, retry_capacity: 3, ..settings() });
    for n in 0..200 {
        let id = f.eventual(&format!("k{n}"), &["dead", "healthy"]);
        f.answer(id, 1, Verdict::Delivered);
        f.answer(id, 0, failed());
    }
    assert_eq!(f.engine.levels().queue, 0);
    assert_eq!(f.engine.levels().retry, 3);
    assert_eq!(f.engine.levels().dead_letters, 197);
}

#[test]
fn each_limit_is_named_in_its_refusal() {
    let full = |settings: EngineSettings, consistency| {
        let mut f = Fixture::new(settings);
        f.append("k", &["a"], consistency).unwrap();
        f.append("x", &["b"], consistency).unwrap_err()
    };
    let (eventual, strong) = (Consistency::Eventual, Consistency::Strong);
    let one = EngineSettings { queue_capacity: 1, ..settings() };
    assert_eq!(full(one.clone(), eventual), Full::Queue(1));
    assert_eq!(full(one, strong), Full::Strong(1));
    assert_eq!(full(EngineSettings { max_bytes: 600, ..settings() }, eventual), Full::Bytes(600));
    let few = EngineSettings { max_known_replicas: 1, ..settings() };
    assert_eq!(full(few, eventual), Full::Replicas(1));
}

#[test]
fn an_idle_replica_makes_way_for_a_new_one() {
    let mut f = Fixture::new(EngineSettings { max_known_replicas: 2, ..settings() });
    let id = f.eventual("k", &["a", "b"]);
    assert_eq!(f.append("k", &["c"], Consistency::Eventual), Err(Full::Replicas(2)));
    f.answer(id, 1, Verdict::Delivered);
    f.eventual("k", &["c"]);
    let mut nodes: Vec<_> = f.engine.lanes().map(|lane| lane.node).collect();
    nodes.sort();
    assert_eq!(nodes, [node("a"), node("c")]);
    assert_eq!(f.engine.totals().unaccounted(), 0);
}

#[test]
fn a_strong_write_is_answered_by_its_majority_and_carried_on_for_the_rest() {
    let mut f = Fixture::new(settings());
    let id = f.strong("k", &["a", "b", "c"]);
    f.actions();
    f.answer(id, 2, Verdict::Delivered);
    f.answer(id, 0, Verdict::Delivered);
    let concluded = f.actions().into_iter().find_map(|action| match action {
        EngineAction::Conclude { success, acked, missing, .. } => Some((success, acked, missing)),
        _ => None,
    });
    let acked = vec![ReplicaIndex(2), ReplicaIndex(0)];
    assert_eq!(concluded, Some((true, acked, vec![ReplicaIndex(1)])));
    assert_eq!((f.engine.levels().strong, f.engine.levels().retry), (0, 0));
    f.answer(id, 1, failed());
    assert_eq!(f.engine.levels().retry, 1);
    f.pass(Duration::from_secs(3));
    assert_eq!(f.sent(), [(id, 1, 2)]);
}

#[test]
fn a_strong_write_fails_as_soon_as_the_majority_is_out_of_reach() {
    let mut f = Fixture::new(settings());
    let id = f.strong("k", &["a", "b"]);
    f.actions();
    f.answer(id, 1, failed());
    let conclude = f.actions().into_iter().find(|a| matches!(a, EngineAction::Conclude { .. }));
    let missing = vec![ReplicaIndex(0), ReplicaIndex(1)];
    let task = TaskId(id);
    let want = EngineAction::Conclude {
        task,
        success: false,
        needed: 2,
        acked: vec![],
        missing,
        obstacles: vec![],
    };
    assert_eq!(conclude, Some(want));
}

#[test]
fn a_strong_write_fails_at_its_timeout() {
    let mut f = Fixture::new(settings());
    let id = f.strong("k", &["a", "b"]);
    f.answer(id, 0, Verdict::Delivered);
    f.actions();
    assert_eq!(f.engine.wake_at(), Some(Moment(10_000_000)));
    f.pass(Duration::from_secs(10));
    let concluded = f.actions().into_iter().find_map(|action| match action {
        EngineAction::Conclude { success, acked, .. } => Some((success, acked)),
        _ => None,
    });
    assert_eq!(concluded, Some((false, vec![ReplicaIndex(0)])));
}

#[test]
fn a_strong_write_passes_other_keys_and_the_workers_limit() {
    let mut f = Fixture::new(settings());
    for n in 0..9 {
        f.eventual(&format!("k{n}"), &["a"]);
    }
    f.actions();
    let id = f.strong("x", &["a"]);
    assert_eq!(f.sent(), [(id, 0, 1)]);
}

#[test]
fn a_strong_write_waits_for_its_own_key_and_supersedes_what_is_queued() {
    let mut f = Fixture::new(settings());
    let on_the_wire = f.eventual("k", &["a"]);
    let queued = f.eventual("k", &["a"]);
    f.actions();
    let strong = f.strong("k", &["a"]);
    let removed = |action: &EngineAction| *action == EngineAction::Remove { task: TaskId(queued) };
    assert!(f.actions().iter().any(removed));
    f.answer(on_the_wire, 0, Verdict::Delivered);
    assert_eq!(f.sent(), [(strong, 0, 1)]);
    assert_eq!(f.engine.totals().superseded, 1);
}

#[test]
fn an_open_strong_write_is_not_superseded_by_the_next() {
    let mut f = Fixture::new(settings());
    let blocker = f.eventual("k", &["a"]);
    let (first, second) = (f.strong("k", &["a"]), f.strong("k", &["a"]));
    f.actions();
    f.answer(blocker, 0, Verdict::Delivered);
    assert_eq!(f.sent(), [(first, 0, 1)]);
    f.answer(first, 0, Verdict::Delivered);
    assert_eq!(f.sent(), [(second, 0, 1)]);
}

#[test]
fn a_strong_write_that_comes_to_lead_its_chain_by_another_overtaking_is_sent() {
    let mut f = Fixture::new(settings());
    // Enough that the next ones wait for a worker.
    let others: Vec<_> = (0..200).map(|n| f.strong(&format!("other{n}"), &["r"])).collect();
    let a = f.strong("k", &["r", "p", "q"]);
    let b = f.strong("k", &["r"]);
    f.answer(a, 1, Verdict::Delivered);
    f.answer(a, 2, Verdict::Delivered);
    let s = f.strong("k", &["r"]);
    f.actions();
    let mut sent = Vec::new();
    for other in others {
        f.answer(other, 0, Verdict::Delivered);
        sent.extend(f.sent());
    }
    let of_key: Vec<_> = sent.into_iter().filter(|&(task, ..)| task >= a).collect();
    assert_eq!(of_key, [(b, 0, 1)], "{a} has its majority and newer writes behind it");
    f.answer(b, 0, Verdict::Delivered);
    assert_eq!(f.sent(), [(s, 0, 1)]);
}

#[test]
fn a_restart_continues_from_the_disk() {
    let mut f = Fixture::new(settings());
    let replicas = [node("a"), node("b"), node("c")];
    let letter = DeadLetter {
        cause: Cause::RetryOverflow,
        failures: 1,
        error: "down".into(),
        since: Timestamp(0),
    };
    let restored = Arrived {
        client: None,
        partition: Partition(0),
        id: TaskId(3),
        key: f.keys.id("k"),
        replicas: &replicas,
        bytes: 10,
        accepted_at: Timestamp(0),
    };
    f.engine.arrive(
        f.now,
        restored,
        Origin::Recovered(vec![
            Progress::Delivered,
            Progress::Failed { failures: 2, error: "down".into() },
            Progress::Dead(letter),
        ]),
    );
    f.next_id = 4;
    assert_eq!(f.engine.levels().retry, 2);
    f.pass(Duration::from_secs(2));
    let mut sent = f.sent();
    sent.sort_unstable();
    assert_eq!(sent, [(3, 1, 3), (3, 2, 2)]);
    f.answer(3, 1, Verdict::Delivered);
    f.answer(3, 2, Verdict::Delivered);
    // Once attempts from before the restart can no longer be applied.
    f.pass(Duration::from_secs(31));
    assert_eq!(f.actions().last(), Some(&EngineAction::Remove { task: TaskId(3) }));
    assert_eq!(f.engine.totals().accepted, 2);
}

#[test]
fn after_stop_sending_nothing_new_goes_out() {
    let mut f = Fixture::new(settings());
    let first = f.eventual("k", &["a"]);
    f.actions();
    f.engine.stop_sending();
    f.eventual("x", &["a"]);
    f.answer(first, 0, Verdict::Delivered);
    assert_eq!(f.sent(), []);
    assert_eq!(f.engine.levels().in_flight, 0);
}

#[test]
fn an_unexpected_answer_changes_nothing() {
    let mut f = Fixture::new(settings());
    let id = f.eventual("k", &["a"]);
    f.answer(id, 0, Verdict::Delivered);
    f.actions();
    f.answer(id, 0, Verdict::Delivered);
    f.answer(id + 100, 0, rejected());
    assert_eq!(f.actions(), []);
    assert_eq!(f.engine.totals().unaccounted(), 0);
}
