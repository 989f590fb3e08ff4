//! The size of the logs, when old tasks stay in them.

use std::time::Instant;

use serde_json::json;

use crate::support::oracle::ARGS;
use crate::support::servers::Servers;
use crate::support::{Behaviour, Daemon, Replica, set, wait_until};
use crate::world::TURN;

/// The size below which logs are left alone, all together.
const CONSTANT: u64 = 64 << 20;

/// The bytes of all values: more than the logs may have at the end.
const WRITTEN: usize = 128 << 20;

/// Between two looks at the size.
const PART: usize = 8 << 20;

const VALUE_BYTES: usize = 16 << 10;
const BATCH: usize = 32;

/// One write in a hundred is rejected by its replica, and becomes a dead letter.
const ONE_OF: usize = 100;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_letters_do_not_make_the_logs_grow() {
    let _turn = TURN.acquire().await.unwrap();
    let servers = Servers::start().await;
    let store = servers.url();
    let dir = tempfile::tempdir().unwrap();
    let args = [&["--node-id", "a", "--store", &store], ARGS].concat();
    let daemon = Daemon::start_on(&dir.path().join("a"), &args).await;
    let replica = Replica::with(|request| match request.key().starts_with("rejected/") {
        true => Behaviour::Answer(400, "", "no"),
        false => Behaviour::Apply,
    })
    .await;
    let (value, began) = ("v".repeat(VALUE_BYTES), Instant::now());
    let (mut largest, mut live) = (0, 0);
    for first in (0..WRITTEN / VALUE_BYTES).step_by(BATCH) {
        let writes = (first..first + BATCH).map(|number| {
            let kind = if number % ONE_OF == 0 { "rejected" } else { "kept" };
            set(&format!("{kind}/{number}"), &value, &[&replica])
        });
        let writes = json!(writes.collect::<Vec<_>>());
        let (_, answer) = daemon.post_to("/v1/replicate/batch", &writes).await;
        let answers = answer["answers"].as_array().unwrap();
        assert!(answers.iter().all(|answer| answer["status"] == 202), "{answer}");
        largest = largest.max(servers.log_bytes().await);
        if first % (PART / VALUE_BYTES) == 0 {
            live = daemon.metrics().await["dead_letter_bytes"].as_u64().unwrap();
            wait_until("the logs are short", || async {
                (servers.log_bytes().await <= CONSTANT + 2 * live).then_some(())
            })
            .await;
        }
    }
    daemon.until_drained().await;
    let letters = daemon.metrics().await["dead_letters"].as_u64().unwrap();
    assert_eq!(letters, (WRITTEN / VALUE_BYTES).div_ceil(ONE_OF) as u64);
    let per_second = (WRITTEN / VALUE_BYTES) as f64 / began.elapsed().as_secs_f64();
    let [written, largest, live] = [WRITTEN as u64, largest, live].map(|bytes| bytes >> 20);
    eprintln!(
        "dead letters: {written} MiB written, {per_second:.0} writes/s, {letters} letters of {live} MiB; the logs had at most {largest} MiB"
    );
}
