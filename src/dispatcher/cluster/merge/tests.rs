use super::*;
use crate::task::{Counters, ReplicaLimits};

fn page(ids: &[u64], next: Option<u64>) -> ListPage<u64, u64> {
    ListPage { items: ids.iter().map(|id| (*id, *id)).collect(), next }
}

fn ids(page: &ListPage<u64, u64>) -> Vec<u64> {
    page.items.iter().map(|(_, item)| *item).collect()
}

#[test]
fn pages_are_merged_in_order_and_continue_where_the_first_of_them_ends() {
    let merged = pages(vec![page(&[1, 4, 7], Some(7)), page(&[2, 9], None)], 10);
    assert_eq!((ids(&merged), merged.next), (vec![1, 2, 4, 7], Some(7)));
    let merged = pages(vec![page(&[1, 4], None), page(&[2, 9], None)], 10);
    assert_eq!((ids(&merged), merged.next), (vec![1, 2, 4, 9], None));
    let merged = pages(vec![page(&[1, 4], None), page(&[2, 9], None)], 3);
    assert_eq!((ids(&merged), merged.next), (vec![1, 2, 4], Some(4)));
    let merged = pages(vec![page(&[], Some(3)), page(&[5], None)], 3);
    assert_eq!((ids(&merged), merged.next), (vec![], Some(3)), "it was searched up to 3");
}

#[test]
fn an_entry_that_two_instances_have_is_listed_once() {
    let merged = pages(vec![page(&[1, 4], None), page(&[4, 5], None)], 3);
    assert_eq!((ids(&merged), merged.next), (vec![1, 4, 5], None));
}

/// A member's page of what is behind a cursor.
fn page_of(list: &[u64], after: Option<u64>, limit: usize) -> ListPage<u64, u64> {
    let rest: Vec<_> =
        list.iter().copied().filter(|id| after.is_none_or(|after| *id > after)).collect();
    let shown = &rest[..rest.len().min(limit)];
    page(shown, if shown.len() < rest.len() { shown.last().copied() } else { None })
}

proptest::proptest! {
    #[test]
    fn the_pages_of_several_instances_list_everything_once_and_in_order(
        owners in proptest::collection::btree_map(0_u64..200, 0_usize..3, 0..60),
        limit in 1_usize..9,
    ) {
        let lists: Vec<Vec<u64>> = (0..3)
            .map(|owner| owners.iter().filter(|(_, of)| **of == owner).map(|(id, _)| *id).collect())
            .collect();
        let (mut seen, mut after) = (Vec::new(), None);
        loop {
            let merged = pages(lists.iter().map(|list| page_of(list, after, limit)).collect(), limit);
            proptest::prop_assert!(merged.items.len() <= limit);
            seen.extend(ids(&merged));
            after = merged.next;
            if after.is_none() {
                break;
            }
        }
        proptest::prop_assert_eq!(seen, owners.keys().copied().collect::<Vec<_>>());
    }
}

fn settled(at: Option<&str>) -> Option<api::TaskInfo> {
    Some(api::TaskInfo {
        task_id: "1".to_owned(),
        key: None,
        operation: None,
        value_bytes: None,
        accepted_at: None,
        expires_at: None,
        user_id: None,
        consistency: None,
        settled_at: at.map(str::to_owned),
        deliveries: vec![],
        incomplete: vec![],
    })
}

#[test]
fn the_owner_knows_a_task_best_and_then_the_one_that_settled_it_last() {
    let (early, late) = (settled(Some("2026-01-01")), settled(Some("2026-01-02")));
    assert_eq!(task(vec![early.clone(), settled(None), late.clone()]), settled(None));
    assert_eq!(task(vec![late.clone(), None, early]), late);
    assert_eq!(task(vec![None, None]), None);
}

fn group(replica: &str, count: u64, oldest: &str, newest: &str) -> api::LetterGroup {
    let (error, cause) = ("no".to_owned(), Cause::Rejected);
    let (oldest, newest) = (oldest.to_owned(), newest.to_owned());
    api::LetterGroup { replica: replica.to_owned(), cause, error, count, oldest, newest }
}

#[test]
fn groups_of_dead_letters_are_added_and_the_largest_come_first() {
    let summary = |groups: Vec<api::LetterGroup>, other: u64| {
        let dead_letters = groups.iter().map(|group| group.count).sum::<u64>() + other;
        api::LetterSummary { dead_letters, groups, other, incomplete: vec![] }
    };
    let merged = summaries(vec![
        summary(vec![group("a", 3, "2", "5"), group("b", 2, "1", "1")], 4),
        summary(vec![group("b", 2, "3", "7")], 0),
    ]);
    assert_eq!(merged.groups, [group("b", 4, "1", "7"), group("a", 3, "2", "5")]);
    assert_eq!((merged.dead_letters, merged.other), (11, 4));
}

fn replica(name: &str) -> api::Replica {
    api::Replica {
        replica: name.to_owned(),
        renamed_from: vec![],
        state: ReplicaState::Healthy,
        state_since: None,
        paused_until: None,
        next_probe_at: None,
        backlog_tasks: 0,
        backlog_bytes: 0,
        oldest_accepted_at: None,
        lag_seconds: 0.0,
        in_flight: 0,
        retrying: 0,
        parked: 0,
        dead_letters: 0,
        refused_letters: 0,
        dead_letter_bytes: 0,
        workers: 0,
        limits: ReplicaLimits::default(),
        rate_in: 0.0,
        rate_out: 0.0,
        latency_p50_seconds: None,
        latency_p99_seconds: None,
        last_error: None,
        convergence: Convergence::Drained,
        drained_in_seconds: None,
        outage_headroom_seconds: None,
        outage_limit: None,
        books: Counters::default(),
        incomplete: vec![],
        unconfirmed: vec![],
    }
}

#[test]
fn counts_of_a_replica_are_added_and_times_are_those_of_the_worst() {
    let error = |at: &str| Some(api::LastError { error: "no".to_owned(), at: at.to_owned() });
    let a = api::Replica {
        backlog_tasks: 3,
        oldest_accepted_at: Some("2026-01-02".to_owned()),
        lag_seconds: 5.0,
        in_flight: 1,
        dead_letters: 2,
        workers: 5,
        rate_out: 10.0,
        latency_p99_seconds: Some(0.5),
        last_error: error("2026-01-03"),
        convergence: Convergence::Draining,
        drained_in_seconds: Some(4.0),
        books: Counters { accepted: 7, delivered: 2, dead: 2, pending: 3, ..Counters::default() },
        ..replica("http://a")
    };
    let b = api::Replica {
        oldest_accepted_at: Some("2026-01-01".to_owned()),
        lag_seconds: 9.0,
        last_error: error("2026-01-02"),
        latency_p99_seconds: Some(0.1),
        ..a.clone()
    };
    let merged = replicas(vec![vec![replica("http://b"), a], vec![b], vec![replica("http://a")]]);
    assert_eq!(merged.len(), 2);
    let merged = &merged[0];
    assert_eq!(merged.replica, "http://a");
    assert_eq!((merged.backlog_tasks, merged.in_flight, merged.dead_letters), (6, 2, 4));
    assert_eq!((merged.workers, merged.books.accepted, merged.books.pending), (10, 14, 6));
    assert_eq!((merged.lag_seconds, merged.rate_out), (9.0, 20.0));
    assert_eq!(merged.oldest_accepted_at.as_deref(), Some("2026-01-01"));
    assert_eq!(merged.latency_p99_seconds, Some(0.5));
    assert_eq!(merged.last_error, error("2026-01-03"));
    assert_eq!((merged.convergence, merged.drained_in_seconds), (Convergence::Draining, Some(4.0)));
}

#[test]
fn a_replica_is_as_bad_as_for_the_worst_instance_and_paused_for_all() {
    use ReplicaState::{Failing, Healthy, Paused, Recovering};
    let of = |state, since: &str, convergence| api::Replica {
        state,
        state_since: Some(since.to_owned()),
        next_probe_at: (state == Failing).then(|| "p".to_owned()),
        convergence,
        backlog_tasks: 1,
        ..replica("http://a")
    };
    let steady = Convergence::Steady;
    let merge = |a, b| replicas(vec![vec![a], vec![b]]).pop().unwrap();
    let merged = merge(of(Healthy, "1", steady), of(Failing, "2", Convergence::NotConverging));
    assert_eq!((merged.state, merged.state_since.as_deref()), (Failing, Some("2")));
    assert_eq!(
        (merged.next_probe_at.as_deref(), merged.convergence),
        (Some("p"), Convergence::NotConverging)
    );
    let merged = merge(of(Failing, "2", steady), of(Recovering, "1", steady));
    assert_eq!((merged.state, merged.state_since.as_deref()), (Failing, Some("2")));
    let merged = merge(of(Failing, "2", steady), of(Paused, "3", Convergence::Paused));
    assert_eq!((merged.state, merged.state_since.as_deref()), (Paused, Some("3")));
    assert_eq!((merged.next_probe_at, merged.convergence), (None, Convergence::Paused));
    let merged = merge(of(Paused, "4", steady), of(Paused, "3", steady));
    assert_eq!(merged.state_since.as_deref(), Some("3"));
}

#[test]
fn a_key_has_the_writes_of_all_instances_and_what_is_known_of_each_replica() {
    let task = |id: u64, is_settled: bool| api::TaskInfo {
        task_id: id.to_string(),
        key: Some("k".to_owned()),
        ..settled(is_settled.then_some("2026-01-01")).unwrap()
    };
    let of = |writes, acknowledged: Option<u64>, pending| api::KeyInfo {
        key: "k".to_owned(),
        writes,
        replicas: vec![api::KeyReplica {
            replica: "http://a".to_owned(),
            acknowledged_sequence: acknowledged.map(|id| id.to_string()),
            pending,
            dead_letters: 0,
        }],
        incomplete: vec![],
    };
    let former = of(vec![task(10, true), task(9, true)], Some(9), 0);
    let owner = of(vec![task(100, false), task(10, false)], Some(10), 2);
    let merged = key("k".to_owned(), vec![former, owner, of(vec![], None, 0)]);
    let writes = [task(100, false), task(10, false), task(9, true)];
    assert_eq!(merged, of(writes.to_vec(), Some(10), 2));
}
