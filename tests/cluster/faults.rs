//! Kills, stops and cuts during traffic.

use std::time::{Duration, Instant};

use crate::support::wait_until;
use crate::world::World;

/// Replicas answer at once.
const AT_ONCE: Duration = Duration::ZERO;

/// Slower than the writers, so that there is a backlog.
const SLOWLY: Duration = Duration::from_millis(10);

/// The instances that run without this one.
fn others(at: usize) -> Vec<usize> {
    (0..3).filter(|other| *other != at).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_death_of_each_instance_in_turn_loses_nothing() {
    let mut world = World::start("kill -9 of each instance in turn", &[], AT_ONCE).await;
    for at in 0..3 {
        let since = Instant::now();
        world.instances[at].kill();
        world.until_taken_over(since).await;
        world.until_shared(&others(at)).await;
        world.traffic.until_more(200).await;
        world.print_hand_overs("kill", since);
        world.restart(at).await;
        // The next one dies as an owner, too.
        world.until_shared(&[0, 1, 2]).await;
        world.traffic.until_more(200).await;
    }
    world.judge().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_of_the_owner_hands_everything_over() {
    let mut world = World::start("SIGTERM of the owner", &[], AT_ONCE).await;
    let owner = world.owner().await;
    let since = Instant::now();
    world.instances[owner].signal("-TERM");
    world.until_taken_over(since).await;
    let status = world.instances[owner].ended().await;
    assert!(status.success(), "{status}");
    world.traffic.until_more(200).await;
    world.restart(owner).await;
    world.judge().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_that_was_stopped_past_its_lease_sends_nothing_after_the_next_one() {
    let world = World::start("SIGSTOP of the owner", &["--workers", "4"], SLOWLY).await;
    for _ in 0..3 {
        let owner = world.owner().await;
        let since = Instant::now();
        world.instances[owner].signal("-STOP");
        world.until_taken_over(since).await;
        world.until_shared(&others(owner)).await;
        world.traffic.until_more(100).await;
        world.print_hand_overs("stop", since);
        world.instances[owner].signal("-CONT");
        world.traffic.until_more(300).await;
    }
    world.judge().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_that_is_cut_off_from_the_servers_sends_nothing_after_the_next_one() {
    let world = World::start("owner cut off from the servers", &["--workers", "4"], SLOWLY).await;
    for _ in 0..2 {
        let owner = world.owner().await;
        let since = Instant::now();
        world.proxies[owner].cut(true);
        world.until_taken_over(since).await;
        world.until_shared(&others(owner)).await;
        world.traffic.until_more(100).await;
        world.print_hand_overs("cut", since);
        world.proxies[owner].cut(false);
        world.traffic.until_more(300).await;
    }
    world.judge().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_death_of_the_server_that_leads_loses_nothing() {
    let mut world = World::start("kill -9 of the server that leads", &[], AT_ONCE).await;
    let (leader, _) = world.servers.busiest_and_idlest().await;
    let since = Instant::now();
    world.servers.kill(leader);
    world.until_delivering(since).await;
    world.traffic.until_more(300).await;
    world.servers.spawn(leader);
    world.traffic.until_more(300).await;
    world.judge().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_death_of_another_server_loses_nothing() {
    let mut world = World::start("kill -9 of another server", &[], AT_ONCE).await;
    let (_, other) = world.servers.busiest_and_idlest().await;
    let since = Instant::now();
    world.servers.kill(other);
    world.until_delivering(since).await;
    world.traffic.until_more(300).await;
    world.servers.spawn(other);
    world.traffic.until_more(300).await;
    world.judge().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_death_of_everything_loses_nothing() {
    let mut world = World::start("kill -9 of everything", &["--workers", "4"], SLOWLY).await;
    for _ in 0..2 {
        world.traffic.until_more(200).await;
        for at in 0..world.instances.len() {
            world.instances[at].kill();
        }
        world.kill_all_servers();
        world.stop_writers().await;
        let since = Instant::now();
        for at in 0..3 {
            world.servers.spawn(at);
        }
        world.servers.until_ready().await;
        for at in 0..world.instances.len() {
            world.restart(at).await;
        }
        world.write_again();
        world.until_delivering(since).await;
    }
    world.traffic.until_more(200).await;
    world.judge().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_acknowledged_without_a_quorum_and_everything_continues_with_it() {
    let mut world = World::start("loss of the quorum", &["--store-timeout", "2s"], AT_ONCE).await;
    let (one, two) = world.servers.busiest_and_idlest().await;
    world.servers.kill(one);
    world.servers.kill(two);
    let unanswered = world.traffic.unanswered();
    wait_until("writes are refused", || async {
        (world.traffic.unanswered() > unanswered + 8).then_some(())
    })
    .await;
    // Each writer has had an answer since the loss: what is acknowledged now had no quorum.
    let acknowledged = world.traffic.count();
    let unanswered = world.traffic.unanswered();
    wait_until("more writes are refused", || async {
        (world.traffic.unanswered() > unanswered + 8).then_some(())
    })
    .await;
    assert_eq!(world.traffic.count(), acknowledged);
    for instance in &world.instances {
        wait_until("the instance is not ready", || async {
            let (status, shown) = instance.try_get("/readyz").await.ok()?;
            (status == 503 && shown["status"] == "not ready").then_some(())
        })
        .await;
        let (status, shown) = instance.get("/health").await;
        assert_eq!((status, &shown["status"]), (200, &"degraded".into()));
        let numbers = ["partitions_without_owner", "partitions_without_leader"];
        assert!(numbers.iter().all(|name| shown[name].is_array()), "{shown}");
    }
    let since = Instant::now();
    world.servers.spawn(one);
    world.servers.spawn(two);
    world.until_delivering(since).await;
    world.traffic.until_more(300).await;
    for instance in &world.instances {
        wait_until("the instance is ready again", || async {
            let (status, _) = instance.try_get("/readyz").await.ok()?;
            let (_, health) = instance.try_get("/health").await.ok()?;
            (status == 200 && health["status"] == "healthy").then_some(())
        })
        .await;
    }
    world.judge().await;
}
