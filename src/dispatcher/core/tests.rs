//! The loop over a journal in memory: the answers to clients.

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::*;
use crate::dispatcher::messages::{AcceptedWrite, NewWrite, Refusal};
use crate::dispatcher::messages::{
    AdminReply, BarrierRequest, PauseEnd, ReplicaRequest, TaskRequest,
};
use crate::engine::{self, BarrierEnd, EngineSettings};
use crate::store::{IdempotencyAnswer, KeyLimits, MemoryJournal, MemoryStore};
use crate::task::{
    Consistency, DeliveryState, Idempotency, NewTask, Node, Operation, ReplicaState, TaskId,
};

mod early;

type WriteAnswer = Result<AcceptedWrite, Refusal>;

/// The key of a write, its consistency, its idempotency key and the fingerprint of its body.
type TestWrite<'a> = (&'a str, Consistency, Option<(&'a str, u8)>);

/// A write, and the receiver of its answer.
fn new_write(
    (key, consistency, idempotency): TestWrite<'_>,
    replicas: Vec<Node>,
) -> (NewWrite, oneshot::Receiver<WriteAnswer>) {
    let (reply, answer) = oneshot::channel();
    let new = NewTask {
        key: key.to_owned(),
        operation: Operation::Set,
        value: Bytes::from_static(b"value"),
        ttl: None,
        consistency,
        replicas,
        user_id: None,
        client: None,
        primary: None,
        trace: None,
    };
    let idempotency =
        idempotency.map(|(key, body)| Idempotency { key: key.into(), fingerprint: [body; 16] });
    (NewWrite { new: Box::new(new), idempotency, reply }, answer)
}

/// A running loop, without a replica that answers.
struct RunningLoop {
    requests: mpsc::UnboundedSender<Request>,
    events: mpsc::UnboundedSender<LoopEvent>,
    core: JoinHandle<()>,
    journal: Arc<MemoryJournal>,
    replica: Node,
    _dir: tempfile::TempDir,
}

impl RunningLoop {
    fn start(queue_capacity: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let clock = Clock::start();
        let (events, event_receiver) = mpsc::unbounded_channel();
        let (requests, request_receiver) = mpsc::unbounded_channel();
        let (health, _) = watch::channel(Health::Serving);
        let journal_events = events.clone();
        // The loop may have ended.
        let notify = move |event| drop(journal_events.send(LoopEvent::Journal(event)));
        let limits = KeyLimits { window: Duration::from_secs(3_600), most: 100 };
        let store = MemoryStore::new(TaskId(1), limits);
        let journal = Arc::new(MemoryJournal::open(&store, notify));
        let engine = Engine::new(EngineSettings {
            queue_capacity,
            breaker_failures: 0,
            retry_base: Duration::from_secs(3_600),
            strong_timeout: Duration::from_secs(3_600),
            ..engine::settings()
        });
        let engine = (engine, KeyHasher::default());
        let core = Core::over(
            journal.clone(),
            TaskId(0),
            engine,
            clock,
            events.clone(),
            health,
            dir.path(),
        );
        let core = tokio::spawn(core.run(event_receiver, request_receiver));
        Self { replica: replica(), requests, events, core, journal, _dir: dir }
    }

    /// Sends writes in one request and returns the receivers of their answers.
    fn write<const N: usize>(
        &self,
        writes: [TestWrite<'_>; N],
    ) -> [oneshot::Receiver<WriteAnswer>; N] {
        let mut request = Vec::new();
        let answers = writes.map(|write| {
            let (write, answer) = new_write(write, vec![self.replica.clone()]);
            request.push(write);
            answer
        });
        self.requests.send(Request::Replicate(request)).unwrap();
        answers
    }

    async fn ask<T>(&self, request: impl FnOnce(AdminReply<T>) -> Request) -> T {
        let (reply, answer) = oneshot::channel();
        self.requests.send(request(reply)).unwrap();
        answer.await.unwrap().unwrap()
    }

    async fn pause(&self, paused: bool) {
        let node = replica();
        let (end, forbidden) = (paused.then_some(PauseEnd::Never), None);
        let pause = |reply| ReplicaRequest::Pause { node, end, forbidden, reply };
        assert!(self.ask(|reply| Request::Replicas(pause(reply))).await.is_some());
    }

    /// The queued tasks and bytes.
    async fn queued(&self) -> (usize, u64) {
        let (reply, snapshot) = oneshot::channel();
        self.requests.send(Request::Snapshot { reply }).unwrap();
        let snapshot = snapshot.await.unwrap();
        (snapshot.levels.queue, snapshot.levels.bytes)
    }

    async fn stop(self) {
        self.events.send(LoopEvent::Stop).unwrap();
        self.core.await.unwrap();
    }
}

/// No server listens there.
fn replica() -> Node {
    Node::parse("http://127.0.0.1:9").unwrap()
}

const EVENTUAL: Consistency = Consistency::Eventual;
const STRONG: Consistency = Consistency::Strong;

#[tokio::test]
async fn a_client_with_an_answer_finds_its_task() {
    let running = RunningLoop::start(10);
    let [answer] = running.write([("k", EVENTUAL, None)]);
    let id = answer.await.unwrap().unwrap().id;
    let task = running.ask(|reply| Request::Tasks(TaskRequest::Show { id, reply })).await;
    assert_eq!(task.map(|task| task.key), Some(Some("k".to_owned())));
    let barrier = running
        .ask(|reply| Request::Barrier(BarrierRequest { end: None, nodes: vec![], reply }))
        .await;
    assert_eq!(barrier.end, BarrierEnd::Task(id));
    running.stop().await;
}

#[tokio::test]
async fn a_repeat_gets_the_answer_of_the_first_write_and_another_body_a_mismatch() {
    let running = RunningLoop::start(10);
    let [first, second, other] = running.write([
        ("k", EVENTUAL, Some(("key", 1))),
        ("k", EVENTUAL, Some(("key", 1))),
        ("k", EVENTUAL, Some(("key", 2))),
    ]);
    let (first, second) = (first.await.unwrap().unwrap(), second.await.unwrap().unwrap());
    assert_eq!((first.replayed, second.replayed), (false, true));
    assert_eq!(first.id, second.id);
    assert!(matches!(other.await.unwrap(), Err(Refusal::Mismatch)));
    // The writes without a task have freed their room.
    let (_, bytes) = running.queued().await;
    let [answer] = running.write([("x", EVENTUAL, None)]);
    answer.await.unwrap().unwrap();
    assert_eq!(running.queued().await.1, 2 * bytes);
    running.stop().await;
}

#[tokio::test]
async fn the_repeats_of_a_strong_write_wait_for_its_answer() {
    let running = RunningLoop::start(10);
    let [known] = running.write([("other", EVENTUAL, None)]);
    known.await.unwrap().unwrap();
    let write = || running.write([("k", STRONG, Some(("key", 1)))]);
    let ([first], [second]) = (write(), write());
    // A majority is not possible any more.
    running.pause(true).await;
    let mut ids = Vec::new();
    for (answer, repeat) in [(first, false), (second, true)] {
        let Err(Refusal::NoMajority { id, replayed, .. }) = answer.await.unwrap() else {
            panic!("the write has its majority")
        };
        assert_eq!(replayed, repeat);
        ids.push(id);
    }
    let [third] = write();
    let Err(Refusal::NoMajority { id, replayed: true, .. }) = third.await.unwrap() else {
        panic!("the repeat got another answer")
    };
    ids.push(id);
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    running.stop().await;
}

#[tokio::test]
async fn a_full_queue_refuses_new_writes_and_answers_repeats() {
    let running = RunningLoop::start(2);
    let [known] = running.write([("first", EVENTUAL, Some(("key", 1)))]);
    let id = known.await.unwrap().unwrap().id;
    // The delivery has failed and waits for its retry.
    while running.queued().await.0 > 0 {
        tokio::task::yield_now().await;
    }
    running.pause(true).await;
    let writes = running.write(["a", "b", "c"].map(|key| (key, EVENTUAL, None)));
    let mut refused = 0;
    for answer in writes {
        match answer.await.unwrap() {
            Ok(_) => {}
            Err(Refusal::Full(_)) => refused += 1,
            Err(other) => panic!("{other}"),
        }
    }
    let before = running.queued().await;
    assert_eq!((refused, before.0), (1, 2));
    let [answer] = running.write([("d", EVENTUAL, None)]);
    assert!(matches!(answer.await.unwrap(), Err(Refusal::Full(_))));
    let [answer] = running.write([("first", EVENTUAL, Some(("key", 1)))]);
    let answer = answer.await.unwrap().unwrap();
    assert_eq!((answer.id, answer.replayed), (id, true));
    assert_eq!(running.queued().await, before);
    running.stop().await;
}

#[tokio::test]
async fn a_released_partition_takes_its_tasks_and_a_claim_brings_them_back() {
    let running = RunningLoop::start(10);
    let [known] = running.write([("known", EVENTUAL, None)]);
    known.await.unwrap().unwrap();
    running.pause(true).await;
    while running.queued().await.0 > 0 {
        tokio::task::yield_now().await;
    }
    let writes = running.write([("a", EVENTUAL, None), ("b", EVENTUAL, None)]);
    for answer in writes {
        answer.await.unwrap().unwrap();
    }
    let before = running.queued().await;
    assert_eq!(before.0, 2);
    running.journal.release();
    while running.queued().await != (0, 0) {
        tokio::task::yield_now().await;
    }
    running.journal.claim();
    while running.queued().await != before {
        tokio::task::yield_now().await;
    }
    running.stop().await;
}

#[tokio::test]
async fn the_client_of_a_released_strong_write_gets_the_answer_of_the_next_owner() {
    // A replica that never answers.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let node = Node::parse(&format!("http://{address}")).unwrap();
    let running = RunningLoop { replica: node, ..RunningLoop::start(10) };
    let [known] = running.write([("known", EVENTUAL, None)]);
    let known = known.await.unwrap().unwrap().id;
    let [mut answer] = running.write([("k", STRONG, None)]);
    let task = TaskId(known.0 + 1);
    while running.ask(|reply| Request::Tasks(TaskRequest::Show { id: task, reply })).await.is_none()
    {
        tokio::task::yield_now().await;
    }
    running.journal.release();
    while running.queued().await.1 > 0 {
        tokio::task::yield_now().await;
    }
    assert!(answer.try_recv().is_err(), "the next owner decides it");
    let concluded = IdempotencyAnswer { success: true, acked: vec![0], failed: vec![], needed: 1 };
    let concluded = JournalEvent::Concluded { task, answer: concluded, obstacles: Vec::new() };
    running.events.send(LoopEvent::Journal(concluded)).unwrap();
    let answer = answer.await.unwrap().unwrap();
    assert_eq!((answer.id, answer.acked.len(), answer.replayed), (task, 1, false));
    // The attempts end without a client.
    drop(listener);
    running.stop().await;
}

#[tokio::test]
async fn the_end_of_a_pause_after_a_forget_leaves_later_deliveries() {
    let running = RunningLoop::start(10);
    let [known] = running.write([("known", EVENTUAL, None)]);
    known.await.unwrap().unwrap();
    running.pause(true).await;
    let node = running.replica.clone();
    let forget = |reply| ReplicaRequest::Forget { node, keeps_record: true, reply };
    running.ask(|reply| Request::Replicas(forget(reply))).await;
    let [later] = running.write([("later", EVENTUAL, None)]);
    let later = later.await.unwrap().unwrap().id;
    let node = running.replica.clone();
    running.ask(|reply| Request::Replicas(ReplicaRequest::EndRecord { node, reply })).await;
    let list = |reply| ReplicaRequest::List { node: None, reply };
    let [shown] = &running.ask(|reply| Request::Replicas(list(reply))).await[..] else { panic!() };
    assert_ne!(shown.state, ReplicaState::Paused);
    let show = |reply| Request::Tasks(TaskRequest::Show { id: later, reply });
    let task = running.ask(show).await.unwrap();
    assert_ne!(task.deliveries[0].state, DeliveryState::Discarded);
    running.stop().await;
}

#[tokio::test]
async fn a_task_that_another_instance_has_just_accepted_is_known_once_its_partition_has_read_it() {
    let running = RunningLoop::start(10);
    let has_read = async |id: u64| {
        let (reply, answer) = oneshot::channel();
        running.requests.send(Request::HasRead { id: TaskId(id), reply }).unwrap();
        answer.await.unwrap()
    };
    assert!(has_read(9).await, "it is not of a partition of this instance");
    let partition = Partition::default();
    let tell = |event| running.events.send(LoopEvent::Journal(event)).unwrap();
    tell(JournalEvent::Claimed { partition, tasks: Vec::new() });
    tell(JournalEvent::CaughtUp { through: TaskId(5) });
    wait_for(async || has_read(5).await && !has_read(9).await).await;
    tell(JournalEvent::CaughtUp { through: TaskId(9) });
    wait_for(async || has_read(9).await).await;
    running.stop().await;
}

#[tokio::test]
async fn a_write_that_waits_for_room_follows_the_rename_of_its_replica() {
    let running = RunningLoop::start(1);
    let settings = EngineSettings { queue_capacity: 1, breaker_failures: 0, ..engine::settings() };
    let (engine, queue_wait) = (Box::new(settings), Duration::from_secs(3_600));
    running.events.send(LoopEvent::Reconfigured { engine, queue_wait }).unwrap();
    running.pause(true).await;
    let [first, second] = running.write([("k", EVENTUAL, None), ("k", EVENTUAL, None)]);
    let first = first.await.unwrap().unwrap().id;
    let show = |id| move |reply| Request::Tasks(TaskRequest::Show { id, reply });
    wait_for(async || running.ask(show(first)).await.is_some()).await;
    let (node, to) = (running.replica.clone(), Node::parse("http://127.0.0.1:10").unwrap());
    let rename =
        |reply| ReplicaRequest::Rename { node, to: to.clone(), is_settled_elsewhere: true, reply };
    running.ask(|reply| Request::Replicas(rename(reply))).await.unwrap();
    let discard = |reply| Request::Tasks(TaskRequest::Discard { id: first, reply });
    running.ask(discard).await;
    let second = second.await.unwrap().unwrap().id;
    wait_for(async || running.ask(show(second)).await.is_some()).await;
    let task = running.ask(show(second)).await.unwrap();
    assert_eq!(task.deliveries[0].replica, to.as_str());
    let list = |reply| ReplicaRequest::List { node: None, reply };
    assert_eq!(running.ask(|reply| Request::Replicas(list(reply))).await.len(), 1);
    running.stop().await;
}

async fn wait_for(reached: impl AsyncFn() -> bool) {
    while !reached().await {
        tokio::task::yield_now().await;
    }
}
