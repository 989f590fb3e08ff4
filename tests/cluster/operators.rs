//! Operators ask and change the whole cluster through any instance.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Behaviour, Daemon, Replica, encoded, path_of, set, wait_until};
use crate::world::World;

const AT_ONCE: Duration = Duration::ZERO;
const SLOWLY: Duration = Duration::from_millis(10);

/// What the instances say of themselves, by name, as one of them answers.
async fn members(through: &Daemon) -> HashMap<String, Value> {
    let cluster = through.show("/v1/cluster").await;
    let members = cluster["members"].as_array().unwrap().iter();
    members.map(|member| (member["node"].as_str().unwrap().to_owned(), member.clone())).collect()
}

/// Waits until nothing is in flight to a replica, and returns how much it has received.
async fn received(through: &Daemon, replica: &Replica) -> usize {
    wait_until("nothing is in flight", || async {
        let shown = through.show(&path_of(replica)).await;
        let quiet = shown["in_flight"] == 0 && shown.get("incomplete").is_none();
        quiet.then(|| replica.seen().len())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pause_through_one_instance_is_that_of_all_and_names_who_has_not_confirmed() {
    let world = World::start("pauses through any instance", &[], AT_ONCE).await;
    let (owner, other) = (0, 1);
    let (pause, resume) =
        ["pause", "resume"].map(|verb| format!("{}/{verb}", path_of(&world.replicas[0]))).into();
    let confirmed = async |path: &str| {
        wait_until("all instances confirm it", || async {
            let (status, answer) = world.instances[other].post_to(path, &Value::Null).await;
            assert_eq!(status, 200, "{answer}");
            answer.get("unconfirmed").is_none().then_some(answer)
        })
        .await
    };
    assert_eq!(confirmed(&pause).await["state"], "paused");
    let before = received(&world.instances[other], &world.replicas[0]).await;
    world.traffic.until_more(200).await;
    assert_eq!(world.replicas[0].seen().len(), before, "everyone has stopped");

    world.instances[owner].signal("-STOP");
    let (status, answer) = world.instances[other].post_to(&resume, &Value::Null).await;
    assert_eq!(status, 200, "{answer}");
    let unconfirmed = answer["unconfirmed"].as_array().unwrap();
    assert!(unconfirmed.contains(&json!("a")), "{answer}");
    world.instances[owner].signal("-CONT");
    confirmed(&resume).await;
    world.judge().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_and_the_end_of_a_pause_through_one_instance_are_those_of_all() {
    let world = World::start("limits through any instance", &[], SLOWLY).await;
    let path = path_of(&world.replicas[0]);
    let confirmed = async |change: Value| {
        wait_until("all instances confirm it", || async {
            let (status, answer) = world.instances[1].patch(&path, &change).await;
            assert_eq!(status, 200, "{answer}");
            answer.get("unconfirmed").is_none().then_some(answer)
        })
        .await
    };
    let shown = confirmed(json!({ "rate": 3, "workers": 1 })).await;
    assert_eq!((&shown["limits"]["rate"], &shown["workers"]), (&json!(3), &json!(3)), "{shown}");
    world.traffic.until_more(100).await;
    confirmed(json!({ "rate": null, "workers": null })).await;

    let pause = format!("{path}/pause");
    let (status, answer) = world.instances[2].post_to(&pause, &json!({ "for_seconds": 1 })).await;
    assert_eq!(status, 200, "{answer}");
    for instance in &world.instances {
        wait_until("the pause has ended", || async {
            let shown = instance.show(&path).await;
            (shown["state"] != "paused" && shown.get("paused_until").is_none()).then_some(())
        })
        .await;
    }
    world.judge().await;
}

/// All entries of a list, page by page; `None` if a page lacks partitions.
async fn try_list(through: &Daemon, path: &str, field: &str) -> Option<Vec<Value>> {
    let (mut all, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = through.show(&format!("{path}?limit=7{cursor}")).await;
        if page.get("incomplete").is_some() {
            return None;
        }
        all.extend(page[field].as_array().unwrap().iter().cloned());
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={}", encoded(next)),
            None => return Some(all),
        }
    }
}

async fn list(through: &Daemon, path: &str, field: &str) -> Vec<Value> {
    wait_until("a list is complete", || try_list(through, path, field)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_are_the_same_through_each_instance_and_a_redrive_is_over_all() {
    const LETTERS: usize = 40;
    let mut world = World::start("lists and redrives", &[], AT_ONCE).await;
    world.stop_writers().await;
    let rejecting = Replica::with(|_| Behaviour::Answer(400, "", "no")).await;
    for n in 0..LETTERS {
        let at = &world.instances[n % world.instances.len()];
        at.accept(&set(&format!("letter/{n}"), "v", &[&rejecting])).await;
    }
    let letters = wait_until("only dead letters are left", || async {
        let tasks = list(&world.instances[0], "/v1/tasks", "tasks").await;
        let is_dead = |task: &Value| task["deliveries"][0]["state"] == "dead";
        if tasks.len() != LETTERS || !tasks.iter().all(is_dead) {
            return None;
        }
        let summary = world.instances[0].show("/v1/dead-letters/summary").await;
        (summary["dead_letters"] == LETTERS && summary.get("incomplete").is_none())
            .then_some(summary)
    })
    .await;
    let (mut lists, mut tasks) = (Vec::new(), Vec::new());
    for instance in &world.instances {
        assert_eq!(instance.show("/v1/dead-letters/summary").await, letters);
        lists.push(list(instance, "/v1/dead-letters", "dead_letters").await);
        tasks.push(list(instance, "/v1/tasks", "tasks").await);
    }
    assert_eq!((lists[0].len(), tasks[0].len()), (LETTERS, LETTERS));
    assert!(
        lists.iter().all(|list| *list == lists[0]) && tasks.iter().all(|list| *list == tasks[0])
    );
    let ids: Vec<u64> = lists[0]
        .iter()
        .map(|letter| letter["task_id"].as_str().unwrap().parse().unwrap())
        .collect();
    assert!(ids.is_sorted(), "{ids:?}");
    for instance in &world.instances {
        let task = instance.show(&format!("/v1/tasks/{}", ids[0])).await;
        assert_eq!(task["task_id"], ids[0].to_string());
        let (status, _) = instance.get("/v1/tasks/1").await;
        assert_eq!(status, 404);
    }

    rejecting.behave(|_| Behaviour::Apply);
    let everything = json!({ "all": true, "rate": 3000 });
    let (status, begun) = world.instances[1].post_to("/v1/dead-letters/redrive", &everything).await;
    assert_eq!(status, 202, "{begun}");
    let path = format!("/v1/operations/{}", begun["operation_id"].as_str().unwrap());
    for instance in &world.instances {
        let done = wait_until("the operation is done", || async {
            let shown = instance.show(&path).await;
            (shown["state"] != "running" && shown["outcomes"]["waiting"] == 0).then_some(shown)
        })
        .await;
        assert_eq!((&done["state"], &done["done"]), (&json!("done"), &json!(LETTERS)), "{done}");
        assert_eq!(done["outcomes"]["delivered"], LETTERS, "{done}");
        assert!(done.get("incomplete").is_none() && done["error"].is_null(), "{done}");
        let page = instance.show("/v1/operations").await;
        assert_eq!(page["operations"].as_array().unwrap().len(), 1, "{page}");
    }
    world.judge().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_barrier_during_a_kill_is_not_reached_early() {
    let mut world = World::start("barriers during kills", &["--workers", "4"], SLOWLY).await;
    for (killed, other) in [(0, 1), (2, 0)] {
        world.until_shared(&[0, 1, 2]).await;
        let before = world.traffic.acknowledged();
        let (status, made) = world.instances[other].post_to("/v1/barriers", &Value::Null).await;
        assert_eq!(status, 201, "{made}");
        world.instances[killed].kill();
        let path = format!("/v1/barriers/{}?wait=10s", made["barrier_id"].as_str().unwrap());
        wait_until("the barrier is reached", || async {
            let barrier = world.instances[other].show(&path).await;
            let reached = barrier["reached"] == true;
            assert!(!reached || barrier.get("incomplete").is_none(), "{barrier}");
            assert!(!reached || barrier["given_up"] == 0, "{barrier}");
            reached.then_some(())
        })
        .await;
        for replica in &world.replicas {
            let applied = crate::judge::applied(&replica.seen());
            for write in &before {
                let newest = applied.get(&write.key).map(|(newest, _)| *newest);
                assert!(newest >= Some(write.task), "{write:?} is missing: {newest:?}");
            }
        }
        world.restart(killed).await;
        world.traffic.until_more(100).await;
    }
    world.judge().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_is_drained_through_another_one() {
    let world = World::start("a drain through another instance", &[], AT_ONCE).await;
    let (name, other) = ("a", 1);
    let drain = async |drain: bool| {
        let request = json!({ "node": name, "drain": drain });
        let through = &world.instances[other];
        let (status, answer) = through.post_to("/v1/cluster/drain", &request).await;
        assert_eq!(status, 200, "{answer}");
        for instance in &world.instances {
            wait_until("every instance knows it", || async {
                (members(instance).await[name]["draining"] == drain).then_some(())
            })
            .await;
        }
    };
    drain(true).await;
    world.until_shared(&[1, 2]).await;
    world.traffic.until_more(200).await;
    wait_until("another instance shows that it owns nothing", || async {
        let members = members(&world.instances[other]).await;
        let owned = |name: &str| members[name]["partitions"].as_u64().unwrap();
        (owned("a") == 0 && owned("b") + owned("c") == 8).then_some(())
    })
    .await;
    drain(false).await;
    world.until_shared(&[0, 1, 2]).await;
    let nobody = json!({ "node": "nobody", "drain": true });
    let (status, answer) = world.instances[other].post_to("/v1/cluster/drain", &nobody).await;
    assert_eq!(status, 404, "{answer}");
    world.judge().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_to_a_frozen_instance_is_not_carried_out_when_it_continues() {
    let world = World::start("a late request", &[], AT_ONCE).await;
    let (frozen, other) = (0, 1);
    world.instances[frozen].signal("-STOP");
    let request = json!({ "node": "a", "drain": true });
    let (status, answer) = world.instances[other].post_to("/v1/cluster/drain", &request).await;
    assert_eq!(status, 503, "{answer}");
    world.instances[frozen].signal("-CONT");
    // It would not get its share of the partitions.
    world.until_shared(&[0, 1, 2]).await;
    assert_eq!(members(&world.instances[other]).await["a"]["draining"], false);
    world.judge().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_owner_is_unconfirmed_until_its_lease_has_ended() {
    let world = World::start("a frozen owner", &["--lease", "30s"], AT_ONCE).await;
    let (frozen, other) = (0, 1);
    world.instances[frozen].signal("-STOP");
    wait_until("it is not listed any more", || async {
        let members = members(&world.instances[other]).await;
        (!members.contains_key("a")).then_some(())
    })
    .await;
    let path = format!("{}/pause", path_of(&world.replicas[0]));
    let (status, answer) = world.instances[other].post_to(&path, &Value::Null).await;
    assert_eq!((status, &answer["unconfirmed"]), (200, &json!(["a"])), "{answer}");
    world.instances[frozen].signal("-CONT");
    let path = format!("{}/resume", path_of(&world.replicas[0]));
    wait_until("all instances confirm the end of the pause", || async {
        let (status, answer) = world.instances[other].post_to(&path, &Value::Null).await;
        assert_eq!(status, 200, "{answer}");
        answer.get("unconfirmed").is_none().then_some(())
    })
    .await;
    world.judge().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_is_found_through_each_instance_as_soon_as_it_is_accepted() {
    let mut world = World::start("tasks just accepted", &[], AT_ONCE).await;
    world.stop_writers().await;
    let slow = Replica::with(|_| Behaviour::ApplyAfter(SLOWLY)).await;
    for n in 0..90 {
        let task = world.instances[n % 3].accept(&set(&format!("k{n}"), "v", &[&slow])).await;
        let (status, found) = world.instances[(n + 1) % 3].get(&format!("/v1/tasks/{task}")).await;
        assert_eq!((status, &found["task_id"]), (200, &json!(task.to_string())), "{found}");
    }
    world.judge().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rename_moves_what_waits_in_every_partition_in_order() {
    const KEYS: u64 = 100;
    let mut world = World::start("renames", &[], AT_ONCE).await;
    world.stop_writers().await;
    let (gone, new) = (Replica::start().await, Replica::start().await);
    let newest = |replica: &Replica| crate::judge::applied(&replica.seen());
    gone.stop();
    let mut last = HashMap::new();
    for n in 0..3 * KEYS {
        let key = format!("k{}", n % KEYS);
        let at = &world.instances[usize::try_from(n % 3).unwrap()];
        last.insert(key.clone(), at.accept(&set(&key, &n.to_string(), &[&gone])).await);
    }
    let through = &world.instances[1];
    let rename = async |from: &Replica, to: &Replica| {
        let path = format!("{}/rename", path_of(from));
        through.post_to(&path, &json!({ "to": to.url() })).await
    };
    let (status, refused) = rename(&gone, &world.replicas[0]).await;
    assert_eq!(status, 409, "{refused}");
    let (status, renamed) = rename(&gone, &new).await;
    assert_eq!((status, &renamed["replica"]), (200, &json!(new.url())), "{renamed}");
    assert!(renamed.get("unconfirmed").is_none() && renamed.get("incomplete").is_none());
    wait_until("everything is at the new address", || async {
        let applied = newest(&new);
        last.iter().all(|(key, task)| applied.get(key) == Some(&(*task, *task))).then_some(())
    })
    .await;
    let partitions: std::collections::HashSet<_> = last.values().map(|task| task % 1024).collect();
    assert_eq!(partitions.len(), 8, "there was something in every partition");
    let mut before = HashMap::new();
    for request in new.seen() {
        let before = before.entry(request.key()).or_insert(0);
        assert!(request.sequence() >= *before, "an older write of {} follows", request.key());
        *before = request.sequence();
    }
    // Writes that still name the former address.
    let task = world.instances[2].accept(&set("later", "v", &[&gone])).await;
    wait_until("it is sent to the new address", || async {
        (newest(&new).get("later") == Some(&(task, task))).then_some(())
    })
    .await;
    assert_eq!(gone.seen().len(), 0);
    world.judge().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operation_that_is_refused_begins_nowhere_and_one_that_others_refuse_names_them() {
    const LETTERS: usize = 300;
    let mut world = World::start("operations that are refused", &[], AT_ONCE).await;
    world.stop_writers().await;
    let rejecting = Replica::with(|_| Behaviour::Answer(400, "", "no")).await;
    for n in 0..LETTERS {
        world.instances[n % 3].accept(&set(&format!("letter/{n}"), "v", &[&rejecting])).await;
    }
    wait_until("only dead letters are left", || async {
        let summary = world.instances[0].show("/v1/dead-letters/summary").await;
        (summary["dead_letters"] == LETTERS && summary.get("incomplete").is_none()).then_some(())
    })
    .await;
    let redrive = async |through: &Daemon| {
        let slowly = json!({ "all": true, "rate": 1 });
        through.post_to("/v1/dead-letters/redrive", &slowly).await
    };
    for _ in 0..4 {
        let (status, begun) = redrive(&world.instances[0]).await;
        assert_eq!(status, 202, "{begun}");
    }
    for restarted in [1, 2] {
        world.instances[restarted].kill();
        world.restart(restarted).await;
    }
    let listed = async || {
        let page = wait_until("every instance answers", || async {
            let page = world.instances[1].show("/v1/operations").await;
            page.get("incomplete").is_none().then_some(page)
        })
        .await;
        let operations = page["operations"].as_array().unwrap().iter();
        let ids = operations.map(|one| one["operation_id"].as_str().unwrap().to_owned());
        ids.collect::<Vec<_>>()
    };
    let before = listed().await;
    assert_eq!(before.len(), 4);
    let (status, refused) = redrive(&world.instances[0]).await;
    assert_eq!(status, 503, "{refused}");
    assert_eq!(listed().await, before, "the others have not begun");
    let (status, begun) = redrive(&world.instances[1]).await;
    assert_eq!((status, &begun["state"]), (202, &json!("running")), "{begun}");
    let error = begun["error"].as_str().unwrap();
    assert!(error.starts_with("a has refused its part: too many operations"), "{error}");
    for id in listed().await {
        world.instances[1].delete(&format!("/v1/operations/{id}")).await;
    }
    let (status, discarded) =
        world.instances[1].post_to("/v1/dead-letters/discard", &json!({ "all": true })).await;
    assert_eq!(status, 202, "{discarded}");
    world.judge().await;
}

/// The limit that an instance itself applies to a replica.
async fn own_limit(instance: &Daemon, replica: &Replica) -> Option<String> {
    let page = instance.metrics_page().await;
    let name = format!("replicator_replica_rate_limit{{replica=\"{}\"}} ", replica.url());
    page.lines().find_map(|line| line.strip_prefix(&name)).map(str::to_owned)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_limit_that_was_set_without_the_servers_yields_to_a_newer_one() {
    let world = World::start("a late limit", &["--store-timeout", "2s"], AT_ONCE).await;
    let replica = &world.replicas[0];
    let limit = async |at: usize, replica: &Replica, rate: u32| {
        let instance = &world.instances[at];
        let request = instance.client().patch(instance.url(&path_of(replica)));
        let answer = request.json(&json!({ "rate": rate })).send().await.unwrap();
        (answer.status().as_u16(), answer.json::<Value>().await.unwrap())
    };
    world.proxies[0].cut(true);
    // The answer to the second one comes after the time of the first one.
    for replica in &world.replicas {
        let (status, answer) = limit(0, replica, 9_000).await;
        assert_eq!(status, 503, "{answer}");
        assert!(answer["error"].as_str().unwrap().contains("has not confirmed it"), "{answer}");
    }
    let (status, answer) = limit(1, replica, 8_000).await;
    assert_eq!(status, 200, "{answer}");
    world.proxies[0].cut(false);
    for instance in &world.instances {
        wait_until("the newer limit holds", || async {
            (own_limit(instance, replica).await.as_deref() == Some("8000")).then_some(())
        })
        .await;
    }
    world.judge().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_cluster_does_not_have_is_refused_with_a_sentence() {
    let daemon = Daemon::start(&[]).await;
    for (path, sentence) in [("/v1/snapshot", "export --store"), ("/v1/verify", "with --store")] {
        let (status, answer) = daemon.post_to(path, &json!({})).await;
        assert_eq!(status, 409, "{answer}");
        assert!(answer["error"].as_str().unwrap().contains(sentence), "{answer}");
    }
}
