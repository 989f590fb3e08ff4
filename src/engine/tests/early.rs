//! Strong writes that are sent before they are durable.

use super::*;

/// An engine whose journal reports, and replicas `a`, `b` and `c` that have had a write.
fn reporting(settings: EngineSettings) -> Fixture {
    let mut f = Fixture::new(settings);
    let first = f.eventual("first", &["a", "b", "c"]);
    f.engine.settled(0);
    (0..3).for_each(|replica| f.answer(first, replica, Verdict::Delivered));
    f.actions();
    f.settle();
    f
}

impl Fixture {
    /// All settlements so far become durable.
    fn settle(&mut self) {
        self.engine.settled(u64::MAX);
    }

    /// Appends a strong write. It is sent at once if it may be.
    fn early(&mut self, key: &str, nodes: &[&str]) -> Option<u64> {
        let id = self.append(key, nodes, Consistency::Strong).unwrap();
        let Appended { key, replicas, reservation, .. } = self.appended.pop_back().unwrap();
        match self.engine.clear(self.now, reservation) {
            Ok(clear) => {
                let task = arrived(id, key, &replicas, self.now.wall);
                self.engine.arrive(self.now, task, Origin::Early(clear));
                Some(id)
            }
            Err(reservation) => {
                self.engine.cancel(self.now, reservation);
                None
            }
        }
    }

    fn concluded(&mut self) -> Option<bool> {
        self.actions().into_iter().find_map(|action| match action {
            EngineAction::Conclude { success, .. } => Some(success),
            _ => None,
        })
    }
}

#[test]
fn a_strong_write_is_sent_before_it_is_durable_if_nothing_older_can_follow_it() {
    let mut f = reporting(settings());
    let id = f.early("k", &["a", "b"]).unwrap();
    assert_eq!(f.sent(), [(id, 0, 1), (id, 1, 1)]);
}

#[test]
fn whatever_an_older_write_has_left_holds_a_strong_write_back() {
    type Leave = fn(&mut Fixture);
    let cases: [(&str, Leave); 10] = [
        ("a pending write", |f| {
            f.eventual("k", &["a"]);
        }),
        ("a reserved write", |f| {
            f.append("k", &["a"], Consistency::Eventual).unwrap();
        }),
        ("an early write", |f| {
            f.early("k", &["a"]).unwrap();
        }),
        ("a retry", |f| {
            let id = f.eventual("k", &["a"]);
            f.answer(id, 0, failed());
            f.settle();
        }),
        ("a dead letter", |f| {
            let id = f.eventual("k", &["a"]);
            f.answer(id, 0, rejected());
            f.settle();
        }),
        ("a settlement that is not durable", |f| {
            let id = f.eventual("k", &["a"]);
            f.answer(id, 0, Verdict::Delivered);
        }),
        ("an ambiguous attempt", |f| {
            let id = f.eventual("k", &["a"]);
            f.answer_ambiguously(id, 0, Verdict::Delivered);
            f.settle();
        }),
        ("a replica whose record is not durable", |f| {
            f.engine.rename(f.now, &node("a"), &node("a1")).unwrap();
            f.engine.rename(f.now, &node("a1"), &node("a")).unwrap();
        }),
        ("a crash", |f| f.engine.expect_unrecorded(f.now)),
        ("a journal that does not report", |f| {
            *f = Fixture::new(settings());
            let id = f.eventual("first", &["a", "b"]);
            f.answer(id, 0, Verdict::Delivered);
            f.answer(id, 1, Verdict::Delivered);
        }),
    ];
    for (what, leave) in cases {
        let mut f = reporting(settings());
        leave(&mut f);
        f.actions();
        assert_eq!(f.early("k", &["a", "b"]), None, "{what}");
    }
}

#[test]
fn settlements_from_before_the_first_report_are_waited_for() {
    let mut f = Fixture::new(settings());
    let id = f.eventual("k", &["a"]);
    f.answer(id, 0, Verdict::Delivered);
    f.actions();
    f.engine.settled(0);
    assert_eq!(f.early("k", &["a"]), None);
    f.engine.settled(1);
    assert!(f.early("k", &["a"]).is_some());
}

#[test]
fn a_later_settlement_of_the_key_is_waited_for() {
    let mut f = reporting(settings());
    let id = f.eventual("k", &["a", "b"]);
    f.answer(id, 0, Verdict::Delivered);
    f.answer(id, 1, Verdict::Delivered);
    f.actions();
    // The first write was removed, this one saved, then removed.
    f.engine.settled(4);
    assert_eq!(f.early("k", &["a", "b"]), None);
    f.engine.settled(5);
    assert!(f.early("k", &["a", "b"]).is_some());
}

#[test]
fn an_early_write_is_answered_when_all_replicas_have_it_and_is_removed() {
    let mut f = reporting(settings());
    let id = f.early("k", &["a", "b", "c"]).unwrap();
    f.answer(id, 0, Verdict::Delivered);
    f.answer(id, 1, Verdict::Delivered);
    assert_eq!(f.concluded(), None, "a crash would lose what the third replica lacks");
    f.answer(id, 2, Verdict::Delivered);
    let actions = f.actions();
    assert!(matches!(actions[0], EngineAction::Conclude { success: true, .. }), "{actions:?}");
    assert_eq!(actions[1..], [EngineAction::Remove { task: TaskId(id) }]);
    f.engine.committed(f.now, TaskId(id));
    assert_eq!((f.actions(), f.engine.levels()), (vec![], Levels::default()));
}

#[test]
fn an_early_write_without_all_its_replicas_is_answered_when_it_is_durable() {
    for (second, success) in [(Verdict::Delivered, true), (failed(), false)] {
        let mut f = reporting(settings());
        let id = f.early("k", &["a", "b", "c"]).unwrap();
        f.answer(id, 0, Verdict::Delivered);
        f.answer(id, 1, second);
        f.answer(id, 2, failed());
        f.pass(Duration::from_secs(60));
        assert_eq!(f.concluded(), None);
        f.engine.committed(f.now, TaskId(id));
        assert_eq!(f.concluded(), Some(success));
    }
}

#[test]
fn an_early_write_of_which_nothing_is_left_is_answered_at_once() {
    let mut f = reporting(settings());
    let id = f.early("k", &["a", "b"]).unwrap();
    f.answer(id, 0, Verdict::Delivered);
    f.engine.discard_task(f.now, TaskId(id));
    f.answer(id, 1, Verdict::Delivered);
    assert_eq!(f.concluded(), Some(true));
    let id = f.early("x", &["a", "b"]).unwrap();
    f.answer(id, 0, Verdict::Delivered);
    f.engine.discard_task(f.now, TaskId(id));
    f.answer(id, 1, failed());
    f.pass(Duration::from_secs(60));
    assert_eq!(f.concluded(), Some(false));
}

#[test]
fn after_a_crash_a_delivered_write_is_sent_again_because_a_lost_one_may_be_applied_over_it() {
    let mut f = Fixture::new(settings());
    f.engine.expect_unrecorded(f.now);
    let id = f.eventual("k", &["a"]);
    f.actions();
    f.answer(id, 0, Verdict::Delivered);
    f.pass(Duration::from_secs(30));
    assert_eq!(f.sent(), [(id, 0, 1)]);
    f.answer(id, 0, Verdict::Delivered);
    f.actions();
    let later = f.eventual("k", &["a"]);
    f.answer(later, 0, Verdict::Delivered);
    f.pass(Duration::from_secs(60));
    assert_eq!(f.sent(), [(later, 0, 1)], "once");
}

#[test]
fn a_newer_write_of_the_key_waits_behind_an_early_one() {
    let mut f = reporting(settings());
    let id = f.early("k", &["a", "b"]).unwrap();
    let newer = f.append("k", &["a", "b"], Consistency::Strong).unwrap();
    f.actions();
    f.engine.committed(f.now, TaskId(id));
    f.commit(newer);
    assert_eq!(f.sent(), []);
    f.answer(id, 1, Verdict::Delivered);
    assert_eq!(f.sent(), [(newer, 1, 1)]);
}
