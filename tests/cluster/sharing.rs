//! Instances that share the partitions, join, leave, stop and continue during traffic.

use std::time::{Duration, Instant};

use crate::support::servers::SERVERS;
use crate::support::within;
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

/// Stops each instance in turn, at least for this long.
async fn stop_each_in_turn(name: &'static str, least: Duration) {
    let world = World::start(name, &["--workers", "4"], SLOWLY).await;
    for round in 0..10 {
        let at = round % 3;
        world.until_shared(&[0, 1, 2]).await;
        let since = Instant::now();
        world.instances[at].signal("-STOP");
        world.until_taken_over(since).await;
        world.traffic.until_more(50).await;
        let rest = least.saturating_sub(since.elapsed());
        assert_eq!(within(rest, || std::future::ready(None::<()>)).await, None);
        world.instances[at].signal("-CONT");
        world.traffic.until_more(100).await;
        world.print_hand_overs("stop", since);
    }
    world.judge().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_that_was_stopped_past_its_lease_sends_nothing_of_what_others_own() {
    stop_each_in_turn("SIGSTOP of each in turn", Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes three minutes"]
async fn an_instance_that_was_stopped_for_ten_seconds_sends_nothing_of_what_others_own() {
    stop_each_in_turn("SIGSTOP of each in turn for 10 s", Duration::from_secs(10)).await;
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

/// How a server is ended.
#[derive(Clone, Copy)]
enum End {
    /// By SIGTERM: at once.
    Term,
    /// In its lame duck mode: first it hands over what it leads, and closes its clients.
    LameDuck,
}

async fn restart_each_server(name: &'static str, how: End) {
    let mut world = World::start(name, &[], AT_ONCE).await;
    for at in 0..SERVERS {
        let since = Instant::now();
        match how {
            End::Term => world.servers.terminate(at).await,
            End::LameDuck => world.servers.end_as_lame_duck(at).await,
        }
        world.until_delivering(since).await;
        world.servers.spawn(at);
        world.servers.until_ready().await;
        world.traffic.until_more(300).await;
        world.print_hand_overs("restart", since);
    }
    world.judge().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_of_the_servers_loses_nothing() {
    restart_each_server("rolling restart of the servers", End::Term).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_that_hand_over_before_they_end_lose_nothing() {
    restart_each_server("rolling restart in lame duck mode", End::LameDuck).await;
}
