use std::num::NonZeroU64;
use std::sync::mpsc::{Receiver, channel};

use super::*;
use crate::store::KeyLimits;
use crate::store::jetstream::testing::NatsServer;

#[test]
fn a_record_is_read_as_it_was_written() {
    let node = |name: &str| Node::parse(&format!("http://{name}")).unwrap();
    let since = Timestamp(1_700_000_000_000_000_001);
    let row = ReplicaRow {
        pause: Some(ReplicaPause { since, until: None }),
        renamed_to: Some(node("b:80")),
        ..ReplicaRow::new(Timestamp(3))
    };
    let limited = ReplicaRow {
        pause: Some(ReplicaPause { since, until: Some(Timestamp(u64::MAX)) }),
        limits: ReplicaLimits { bandwidth: NonZeroU64::new(5), ..ReplicaLimits::default() },
        ..row.clone()
    };
    for row in [Some(row), Some(limited), None] {
        let payload = serde_json::to_vec(&Stored::of(&node("a"), row.as_ref())).unwrap();
        let stored = Stored::parse(&payload).and_then(Stored::into_row);
        assert_eq!(stored, Some((node("a"), row)));
    }
}

#[test]
fn a_record_of_a_newer_version_is_not_read_as_something_else() {
    let payload = br#"{"format":2,"node":"http://a","row":null}"#;
    assert_eq!(Stored::parse(payload), None);
}

/// The records as one instance writes them, and what it reports.
struct Instance {
    records: Records,
    reported: Receiver<Option<ReplicaRow>>,
}

impl Instance {
    async fn start(server: &NatsServer, name: &str) -> Self {
        let keys = KeyLimits { window: Duration::from_secs(60), most: 100 };
        let store = Store::connect(&server.settings(name, 1, keys)).await.unwrap();
        let (sender, reported) = channel();
        let records = Records::new(&store, move |event| {
            let JournalEvent::Replica { row, .. } = event else { panic!("{event:?}") };
            sender.send(row).unwrap();
        });
        Self { records, reported }
    }

    /// Queues a change that must be stored within the time.
    fn change(
        &self,
        cause: RecordCause,
        row: Option<ReplicaRow>,
        within: Duration,
    ) -> RecordChange {
        let mut queued = self.records.queued.lock();
        queued.last += 1;
        let (at, number) = (now(), queued.last);
        queued.nodes.insert(replica(), number);
        RecordChange { node: replica(), row, cause, number, at, deadline: at + within }
    }

    async fn operate(&mut self, row: ReplicaRow) {
        let change = self.change(RecordCause::Operator, Some(row), SOON);
        self.records.carry_out(&change).await;
    }

    fn reported(&self) -> Vec<Option<ReplicaRow>> {
        self.reported.try_iter().collect()
    }

    /// What a new instance reads.
    async fn stored(&self) -> Option<ReplicaRow> {
        read_all(&self.records.store).await.unwrap().remove(&replica())
    }
}

const SOON: Duration = Duration::from_secs(600);

fn replica() -> Node {
    Node::parse("http://a").unwrap()
}

fn paused(since: u64) -> ReplicaRow {
    let pause = Some(ReplicaPause { since: Timestamp(since), until: None });
    ReplicaRow { pause, ..ReplicaRow::new(Timestamp(1)) }
}

fn with_instances<F: Future<Output = ()>>(test: impl FnOnce(Instance, Instance) -> F) {
    let dir = tempfile::tempdir().unwrap();
    let server = NatsServer::start(dir.path());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let this = Instance::start(&server, "this").await;
        let other = Instance::start(&server, "other").await;
        test(this, other).await;
    });
}

#[test]
fn an_action_that_was_not_stored_in_time_yields_to_a_newer_one_of_another_instance() {
    with_instances(|mut this, mut other| async move {
        // It has read the newer one, or only finds it when it writes.
        for (round, reads_first) in [(0, false), (10, true)] {
            let late = this.change(RecordCause::Operator, Some(paused(round + 1)), Duration::ZERO);
            other.operate(paused(round + 2)).await;
            if reads_first {
                this.records.read().await;
            }
            assert_eq!(this.reported(), [], "its own one is still on its way");
            this.records.carry_out(&late).await;
            assert_eq!(this.stored().await, Some(paused(round + 2)));
            assert_eq!(this.reported(), [Some(paused(round + 2))]);
            // It can be changed again.
            this.operate(paused(round + 3)).await;
            assert_eq!(this.stored().await, Some(paused(round + 3)));
            other.records.read().await;
        }
    });
}

#[test]
fn of_two_actions_at_the_same_time_the_last_one_wins() {
    with_instances(|mut this, mut other| async move {
        let later = this.change(RecordCause::Operator, Some(paused(1)), SOON);
        other.operate(paused(2)).await;
        this.records.carry_out(&later).await;
        assert_eq!(this.stored().await, Some(paused(1)));
        assert_eq!(this.reported(), []);
    });
}

#[test]
fn actions_of_one_instance_are_stored_in_their_order_however_late() {
    with_instances(|mut this, _| async move {
        let changes = [1, 2, 3]
            .map(|since| this.change(RecordCause::Operator, Some(paused(since)), Duration::ZERO));
        for change in &changes {
            this.records.carry_out(change).await;
        }
        assert_eq!(this.stored().await, Some(paused(3)));
        assert_eq!(this.reported(), []);
    });
}

#[test]
fn a_late_action_does_not_yield_to_an_earlier_one_of_its_own_instance() {
    with_instances(|mut this, mut other| async move {
        let first = this.change(RecordCause::Operator, Some(paused(1)), SOON);
        let second = this.change(RecordCause::Operator, Some(paused(3)), Duration::ZERO);
        other.operate(paused(2)).await;
        this.records.carry_out(&first).await;
        this.records.carry_out(&second).await;
        assert_eq!(this.stored().await, Some(paused(3)));
        assert_eq!(this.reported(), []);
    });
}

#[test]
fn a_late_action_yields_neither_to_a_first_use_nor_if_it_is_one_of_several_together() {
    with_instances(|mut this, mut other| async move {
        let late = this.change(RecordCause::Operator, Some(paused(1)), Duration::ZERO);
        let first_use = other.change(RecordCause::Use, Some(ReplicaRow::new(Timestamp(5))), SOON);
        other.records.carry_out(&first_use).await;
        this.records.carry_out(&late).await;
        assert_eq!(this.stored().await, Some(paused(1)));
        let together = this.change(RecordCause::Together, Some(paused(2)), Duration::ZERO);
        other.records.read().await;
        other.operate(paused(3)).await;
        this.records.carry_out(&together).await;
        assert_eq!(this.stored().await, Some(paused(2)));
    });
}

#[test]
fn a_first_use_replaces_nothing_that_an_operator_has_set() {
    let used = || Some(ReplicaRow::new(Timestamp(9)));
    with_instances(|mut this, mut other| async move {
        // The pause is read while the first use is on its way.
        let first_use = this.change(RecordCause::Use, used(), SOON);
        other.operate(paused(2)).await;
        this.records.read().await;
        this.records.carry_out(&first_use).await;
        assert_eq!(this.reported(), [Some(paused(2))]);
        assert_eq!(this.stored().await, Some(paused(2)));
        // To make room, only what is not set may go.
        let removal = this.change(RecordCause::Use, None, SOON);
        this.records.carry_out(&removal).await;
        assert_eq!(this.stored().await, Some(paused(2)));
        other.operate(ReplicaRow::new(Timestamp(1))).await;
        this.records.read().await;
        let removal = this.change(RecordCause::Use, None, SOON);
        this.records.carry_out(&removal).await;
        assert_eq!(this.stored().await, None);
        // A removed one is used again.
        let first_use = this.change(RecordCause::Use, used(), SOON);
        this.records.carry_out(&first_use).await;
        assert_eq!(this.stored().await, used());
    });
}
