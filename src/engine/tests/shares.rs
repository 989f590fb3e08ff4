//! A client that uses its whole share leaves room for the others.

use std::num::NonZeroU64;

use proptest::prelude::*;

use super::*;
use crate::task::Quota;

fn token(name: &str) -> Client {
    Client::Token(name.into())
}

/// Writes as a client until it is refused.
fn fill(f: &mut Fixture, client: &Client, nodes: &[&str], consistency: Consistency) -> (u64, Full) {
    for accepted in 0.. {
        let key = f.next_id.to_string();
        if let Err(full) = f.append_of(Some(client), &key, nodes, consistency) {
            return (accepted, full);
        }
    }
    unreachable!()
}

fn quota(places: u64, bytes: u64) -> HashMap<Client, Quota> {
    let [places, bytes] = [places, bytes].map(NonZeroU64::new);
    HashMap::from([(token("limited"), Quota { places, bytes })])
}

#[test]
fn a_quota_limits_the_places_of_a_token_in_both_queues_together_and_no_one_else() {
    let mut f = Fixture::new(settings());
    f.engine.set_quotas(quota(5, 0));
    let limited = token("limited");
    f.append_of(Some(&limited), "k", &["a"], Consistency::Strong).unwrap();
    let (accepted, full) = fill(&mut f, &limited, &["a"], Consistency::Eventual);
    let most = NonZeroU64::new(5).unwrap();
    let expected =
        Full::Quota { client: limited.clone(), limit: SharedLimit::Queue, most, held: 5, more: 1 };
    assert_eq!((accepted, &full), (4, &expected));
    let text = "this token has used up its quota (places=5; queued for it: 5)";
    assert_eq!(full.to_string(), text);
    assert!(fill(&mut f, &token("other"), &["b"], Consistency::Eventual).0 > 5);
    // A place is free again when a write is settled.
    f.commit(1);
    f.answer(1, 0, Verdict::Delivered);
    assert_eq!(fill(&mut f, &limited, &["a"], Consistency::Eventual).0, 1);
    // Another list of tokens.
    f.engine.set_quotas(quota(7, 0));
    assert_eq!(fill(&mut f, &limited, &["a"], Consistency::Eventual).0, 2);
    f.engine.set_quotas(HashMap::new());
    f.append_of(Some(&limited), "k", &["a"], Consistency::Strong).unwrap();
}

#[test]
fn a_quota_limits_the_bytes_of_a_token() {
    let mut f = Fixture::new(settings());
    // A write of ten bytes counts 522.
    f.engine.set_quotas(quota(0, 522 * 3 + 521));
    let (accepted, full) = fill(&mut f, &token("limited"), &["a"], Consistency::Eventual);
    assert_eq!(accepted, 3);
    let text = "this token has used up its quota (bytes=2087; bytes queued for it: 1566)";
    assert_eq!(full.to_string(), text);
}

fn refused(claimant: Claimant, limit: SharedLimit, held: u64) -> Full {
    Full::Share { claimant, limit, held }
}

#[test]
fn a_client_leaves_places_to_clients_that_have_been_idle_for_long() {
    for consistency in [Consistency::Eventual, Consistency::Strong] {
        let mut f = Fixture::new(settings());
        let (greedy, honest) = (token("greedy"), token("honest"));
        f.pass(Duration::from_secs(3600));
        let (accepted, full) = fill(&mut f, &greedy, &["own"], consistency);
        let claimant = Claimant::Client(Some(greedy));
        assert_eq!((accepted, &full), (900, &refused(claimant, SharedLimit::Queue, 900)));
        assert!(full.to_string().starts_with("this client has used up its share of"), "{full}");
        let (accepted, _) = fill(&mut f, &honest, &["healthy"], consistency);
        assert_eq!(accepted, 50);
    }
}

#[test]
fn a_client_without_a_token_that_is_alone_for_a_minute_has_the_whole_queue() {
    let mut f = Fixture::new(settings());
    let [one, other] = ["10.0.0.1", "10.0.0.2"].map(|ip| Client::at(ip.parse().unwrap()));
    f.append_of(Some(&other), "k", &["b"], Consistency::Eventual).unwrap();
    f.commit(1);
    f.answer(1, 0, Verdict::Delivered);
    let (accepted, full) = fill(&mut f, &one, &["a"], Consistency::Eventual);
    let claimant = Claimant::ClientAtReplica(Some(one.clone()), node("a"));
    assert_eq!((accepted, full), (810, refused(claimant, SharedLimit::Queue, 810)));
    f.pass(Duration::from_secs(61));
    let (accepted, full) = fill(&mut f, &one, &["a"], Consistency::Eventual);
    assert_eq!((accepted, full), (190, Full::Queue(1000)));
}

#[test]
fn a_client_leaves_bytes_to_the_others() {
    let mut f = Fixture::new(EngineSettings { max_bytes: 522 * 100, ..settings() });
    let greedy = token("greedy");
    let (accepted, full) = fill(&mut f, &greedy, &["own"], Consistency::Eventual);
    let claimant = Claimant::Client(Some(greedy));
    assert_eq!((accepted, full), (90, refused(claimant, SharedLimit::Bytes, 90 * 522)));
    f.append_of(Some(&token("honest")), "k", &["healthy"], Consistency::Eventual).unwrap();
}

#[test]
fn a_client_leaves_a_part_of_each_replica_to_the_others_and_of_its_own_share_to_other_replicas() {
    let mut f = Fixture::new(settings());
    let (greedy, honest) = (token("greedy"), token("honest"));
    f.append_of(Some(&greedy), "k", &["other"], Consistency::Eventual).unwrap();
    let (accepted, full) = fill(&mut f, &greedy, &["shared"], Consistency::Eventual);
    let claimant = Claimant::ClientAtReplica(Some(greedy.clone()), node("shared"));
    assert_eq!((accepted, full), (809, refused(claimant, SharedLimit::Queue, 809)));
    f.append_of(Some(&honest), "k", &["shared"], Consistency::Eventual).unwrap();
    f.append_of(Some(&greedy), "k", &["other"], Consistency::Eventual).unwrap();
}

#[test]
fn all_base_paths_of_a_host_are_one_claimant() {
    let mut f = Fixture::new(settings());
    f.eventual("k", &["healthy"]);
    let paths: Vec<_> = (0..12).map(|n| format!("host:8083/base{n}")).collect();
    let mut accepted = 0;
    for n in 0..2_000 {
        accepted +=
            u64::from(f.append(&n.to_string(), &[&paths[n % 12]], Consistency::Eventual).is_ok());
    }
    assert_eq!(accepted, 899);
    f.append("k", &["healthy"], Consistency::Eventual).unwrap();
}

#[test]
fn dead_letters_are_charged_to_the_client_that_wrote_them() {
    let mut f = Fixture::new(EngineSettings { max_dead_letter_bytes: 522 * 10, ..settings() });
    let (poisoner, honest) = (token("poisoner"), token("honest"));
    f.append_of(Some(&honest), "good", &["shared"], Consistency::Eventual).unwrap();
    let full = loop {
        let key = f.next_id.to_string();
        match f.append_of(Some(&poisoner), &key, &["shared"], Consistency::Eventual) {
            Ok(id) => f.commit(id),
            Err(full) => break full,
        }
        f.answer(f.next_id - 1, 0, rejected());
    };
    assert!(matches!(full, Full::Share { limit: SharedLimit::DeadLetters, .. }), "{full}");
    f.append_of(Some(&honest), "k", &["shared"], Consistency::Eventual).unwrap();
    f.append_of(Some(&poisoner), "k", &["another"], Consistency::Eventual).unwrap();
}

#[test]
fn a_client_leaves_retry_places_of_a_replica_to_the_others() {
    let settings = EngineSettings {
        retry_capacity: 20,
        breaker_failures: 0,
        workers: workers(100),
        ..settings()
    };
    let mut f = Fixture::new(settings);
    f.append_of(Some(&token("b")), "b", &["shared"], Consistency::Eventual).unwrap();
    for n in 0..40 {
        let id = f
            .append_of(Some(&token("a")), &n.to_string(), &["shared"], Consistency::Eventual)
            .unwrap();
        f.commit(id);
        f.answer(id, 0, failed());
    }
    assert_eq!((f.engine.levels().retry, f.engine.levels().dead_letters), (17, 23));
    f.answer(1, 0, failed());
    assert_eq!((f.engine.levels().retry, f.engine.levels().dead_letters), (18, 23));
}

#[test]
fn the_probe_is_a_write_of_another_client_than_the_last_one() {
    let mut f = Fixture::new(settings());
    let clients = [token("poisoner"), token("honest")];
    for n in 0..12 {
        let client = &clients[usize::from(n >= 6)];
        f.append_of(Some(client), &n.to_string(), &["a"], Consistency::Eventual).unwrap();
    }
    f.commit(12);
    let mut probes = Vec::new();
    for _ in 0..40 {
        for (task, replica, _) in f.sent() {
            probes.push(task);
            f.answer(task, replica, if task <= 6 { failed() } else { Verdict::Delivered });
        }
        f.pass(Duration::from_secs(1));
    }
    // Five attempts open the breaker; of the first two probes one is honest.
    assert!(probes[..5].iter().all(|&task| task <= 6), "{probes:?}");
    assert!(probes[5..7].iter().any(|&task| task > 6), "{probes:?}");
}

#[test]
fn base_paths_of_one_host_do_not_use_up_the_known_replicas() {
    let mut f = Fixture::new(EngineSettings { max_known_replicas: 20, ..settings() });
    f.eventual("k", &["healthy"]);
    let mut outcomes = Vec::new();
    for n in 0..40 {
        let path = format!("host/base{n}");
        let accepted = f.append(&n.to_string(), &[&path], Consistency::Eventual);
        outcomes.push(accepted.is_ok());
        f.commit(f.next_id - 1);
        f.actions();
    }
    assert_eq!(outcomes.iter().filter(|&&ok| ok).count(), 17);
    f.append("k", &["healthy"], Consistency::Eventual).unwrap();
    f.append("k", &["another"], Consistency::Eventual).unwrap();
}

#[test]
fn replicas_with_only_dead_letters_hold_no_place_among_the_known_ones() {
    let mut f = Fixture::new(EngineSettings { max_known_replicas: 20, ..settings() });
    for n in 0..60 {
        let id = f.eventual(&n.to_string(), &[&format!("host/base{n}")]);
        f.answer(id, 0, rejected());
        f.actions();
    }
    assert_eq!(f.engine.levels().dead_letters, 60);
    f.append("k", &["another"], Consistency::Eventual).unwrap();
}

#[derive(Clone, Debug)]
enum GreedyOp {
    Write { client: usize, host: usize, strong: bool, big: bool },
    Commit,
    Answer { nth: usize, rejected: bool },
    Pass,
    Pause { host: usize },
}

fn greedy_op() -> impl Strategy<Value = GreedyOp> {
    prop_oneof![
        60 => (0..4usize, 0..4usize, any::<bool>(), prop::bool::weighted(0.1))
            .prop_map(|(client, host, strong, big)| GreedyOp::Write { client, host, strong, big }),
        3 => Just(GreedyOp::Commit),
        20 => (0..50usize, any::<bool>()).prop_map(|(nth, rejected)| GreedyOp::Answer { nth, rejected }),
        1 => Just(GreedyOp::Pass),
        1 => (0..4usize).prop_map(|host| GreedyOp::Pause { host }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever up to four greedy clients write to their replicas, an honest client is served: at a
    /// replica of its own, and at one that it shares with one of them.
    #[test]
    fn an_honest_client_below_its_share_is_always_served(
        ops in prop::collection::vec(greedy_op(), 1..1500),
        clients in 1..5usize,
        hosts in 1..5usize,
        queue_capacity in 300..700usize,
        retry_capacity in 0..50usize,
        strong in any::<bool>(),
    ) {
        let max_bytes = queue_capacity as u64 * 600;
        let mut f = Fixture::new(EngineSettings {
            queue_capacity,
            retry_capacity,
            max_bytes,
            max_dead_letter_bytes: max_bytes / 4,
            max_known_replicas: 300,
            ..settings()
        });
        let names: Vec<_> = (0..4).map(|n| token(&format!("greedy{n}"))).collect();
        let mut on_wire = Vec::new();
        for op in ops {
            match op {
                GreedyOp::Write { client, host, strong, big } => {
                    let (client, host) = (client % clients, host % hosts);
                    // Only the first client writes to the shared replica.
                    let node = match client {
                        0 => "shared".to_owned(),
                        _ => format!("host{host}/base{}", f.next_id % 400),
                    };
                    let bytes = if big { max_bytes / 20 } else { 10 };
                    let consistency = if strong { Consistency::Strong } else { Consistency::Eventual };
                    let key = f.next_id.to_string();
                    let _ = f.append_sized(Some(&names[client]), &key, &[&node], consistency, bytes);
                }
                GreedyOp::Commit => f.commit(u64::MAX),
                GreedyOp::Answer { nth, rejected: no } => {
                    on_wire.extend(f.sent());
                    if !on_wire.is_empty() {
                        let (task, replica, _) = on_wire.swap_remove(nth % on_wire.len());
                        f.answer(task, replica, if no { rejected() } else { failed() });
                    }
                }
                GreedyOp::Pass => f.pass(Duration::from_secs(3)),
                GreedyOp::Pause { host } => {
                    f.engine.pause(f.now, &node(&format!("host{host}/base1")), Some(Timestamp(1).into()));
                }
            }
        }
        let honest = token("honest");
        let consistency = if strong { Consistency::Strong } else { Consistency::Eventual };
        for replica in ["shared", "own"] {
            let served = f.append_of(Some(&honest), replica, &[replica], consistency);
            prop_assert!(served.is_ok(), "{replica}: {served:?} {:?}", f.engine.levels());
        }
    }
}

#[test]
fn a_write_that_is_refused_ends_the_time_in_which_another_client_was_alone() {
    let mut f = Fixture::new(EngineSettings { queue_capacity: 10, ..settings() });
    let [greedy, other] = ["10.0.0.1", "10.0.0.2"].map(|ip| Client::at(ip.parse().unwrap()));
    let (accepted, _) = fill(&mut f, &greedy, &["a"], Consistency::Eventual);
    assert_eq!(accepted, 10);
    assert!(f.append_of(Some(&other), "k", &["b"], Consistency::Eventual).is_err());
    f.commit(10);
    f.actions();
    f.answer(1, 0, Verdict::Delivered);
    f.append_of(Some(&greedy), "k", &["a"], Consistency::Eventual).unwrap_err();
    f.append_of(Some(&other), "k", &["b"], Consistency::Eventual).unwrap();
}

#[test]
fn a_write_that_is_larger_than_a_share_finds_room_when_nothing_else_is_queued() {
    let mut f = Fixture::new(EngineSettings { max_bytes: 10_000, ..settings() });
    let client = token("a");
    let large =
        |f: &mut Fixture| f.append_sized(Some(&client), "k", &["a"], Consistency::Eventual, 9_400);
    let id = large(&mut f).unwrap();
    assert!(large(&mut f).is_err());
    f.commit(id);
    f.actions();
    f.answer(id, 0, Verdict::Delivered);
    large(&mut f).unwrap();
}
