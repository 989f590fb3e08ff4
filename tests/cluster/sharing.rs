//! Instances that share the partitions, join, leave, stop and continue during traffic.

use std::time::{Duration, Instant};

use crate::support::servers::SERVERS;
use crate::world::World;

const AT_ONCE: Duration = Duration::ZERO;

/// Slower than the writers, so that there is a backlog.
const SLOWLY: Duration = Duration::from_millis(10);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_that_joins_or_leaves_gets_or_gives_its_share() {
    let mut world = World::start("join and leave", &["--workers", "4"], SLOWLY).await;
    for at in [1, 2] {
        let since = Instant::now();
        world.instances[at].terminate().await;
        world
            .until_shared(&(0..SERVERS).filter(|one| *one == 0 || *one > at).collect::<Vec<_>>())
            .await;
        world.traffic.until_more(200).await;
        world.print_hand_overs("one leaves", since);
    }
    let since = Instant::now();
    world.restart(1).await;
    world.restart(2).await;
    world.until_shared(&[0, 1, 2]).await;
    world.traffic.until_more(300).await;
    world.print_hand_overs("two join", since);
    let since = Instant::now();
    world.instances[0].terminate().await;
    world.until_shared(&[1, 2]).await;
    world.traffic.until_more(300).await;
    world.print_hand_overs("one leaves", since);
    world.restart(0).await;
    world.until_shared(&[0, 1, 2]).await;
    world.judge().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_that_was_stopped_past_its_lease_sends_nothing_of_what_others_own() {
    let world = World::start("SIGSTOP of each in turn", &["--workers", "4"], SLOWLY).await;
    for round in 0..10 {
        let at = round % 3;
        world.until_shared(&[0, 1, 2]).await;
        let since = Instant::now();
        world.instances[at].signal("-STOP");
        world.until_taken_over(since).await;
        world.traffic.until_more(50).await;
        world.instances[at].signal("-CONT");
        world.traffic.until_more(100).await;
    }
    world.judge().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_of_the_instances_hands_every_partition_over() {
    let mut world = World::start("rolling restart of the instances", &[], AT_ONCE).await;
    for at in 0..3 {
        let since = Instant::now();
        let status = world.instances[at].terminate().await;
        assert!(status.success(), "{status}");
        world.restart(at).await;
        world.until_shared(&[0, 1, 2]).await;
        world.traffic.until_more(100).await;
        world.print_hand_overs("restart", since);
    }
    world.judge().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_of_the_servers_loses_nothing() {
    let mut world = World::start("rolling restart of the servers", &[], AT_ONCE).await;
    for at in 0..SERVERS {
        let since = Instant::now();
        world.servers.terminate(at).await;
        world.until_delivering(since).await;
        world.servers.spawn(at);
        world.servers.until_ready().await;
        world.traffic.until_more(300).await;
        world.print_hand_overs("restart", since);
    }
    world.judge().await;
}
