//! Random kills and stops of instances and servers. Runs for as long as `TORTURE_SECONDS` says:
//!
//! `TORTURE_SECONDS=1200 cargo test --locked --test cluster torture -- --ignored --nocapture`

use std::time::{Duration, Instant};

use crate::support::servers::SERVERS;
use crate::support::within;
use crate::world::World;

/// Between two faults, so that some hit the recovery from the one before.
const CALM: std::ops::Range<u64> = 500..6_000;

/// The time of a fault is drawn: there is no event to wait for.
async fn pause(millis: std::ops::Range<u64>) {
    let time = Duration::from_millis(fastrand::u64(millis));
    assert_eq!(within(time, || std::future::ready(None::<()>)).await, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes TORTURE_SECONDS"]
async fn random_kills_and_stops_lose_nothing() {
    let seconds = std::env::var("TORTURE_SECONDS").ok().and_then(|text| text.parse().ok());
    let until = Instant::now() + Duration::from_secs(seconds.unwrap_or(120));
    let mut world = World::start("torture", &["--workers", "4"], Duration::from_millis(4)).await;
    let mut counts = [0; 5];
    while Instant::now() < until {
        let (kind, at) = (fastrand::usize(..counts.len()), fastrand::usize(..SERVERS));
        counts[kind] += 1;
        match kind {
            0 => {
                world.instances[at].kill();
                pause(0..6_000).await;
                world.restart(at).await;
            }
            1 => {
                world.instances[at].terminate().await;
                pause(0..6_000).await;
                world.restart(at).await;
            }
            2 => {
                world.instances[at].signal("-STOP");
                pause(500..8_000).await;
                world.instances[at].signal("-CONT");
            }
            3 => {
                world.servers.kill(at);
                pause(0..8_000).await;
                world.servers.spawn(at);
                world.servers.until_ready().await;
            }
            _ => {
                world.servers.signal(at, "-STOP");
                pause(500..6_000).await;
                world.servers.signal(at, "-CONT");
            }
        }
        pause(CALM).await;
    }
    let [kills, ends, stops, server_kills, server_stops] = counts;
    eprintln!(
        "torture: instances: {kills} kills, {ends} ends, {stops} stops; servers: {server_kills} kills, {server_stops} stops"
    );
    world.traffic.until_more(200).await;
    world.until_shared(&[0, 1, 2]).await;
    world.judge().await;
}
