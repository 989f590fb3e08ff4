//! Strong writes and repeats through every instance, also while the owner of their partition dies.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{strong, wait_until};
use crate::world::World;

const ALL: [usize; 3] = [0, 1, 2];

/// The judge reads values as the numbers of writes.
const VALUE: &str = "999999999";

impl World {
    async fn strong(&self, at: usize, key: &str) -> Option<(u16, Value)> {
        self.write(at, key, "strong").await
    }

    /// Posts a write with an idempotency key; returns its status and its answer. `None` if nothing was
    /// accepted.
    async fn write(&self, at: usize, key: &str, consistency: &str) -> Option<(u16, Value)> {
        let nodes: Vec<_> = self.replicas.iter().collect();
        let instance = &self.instances[at];
        let mut body = strong(key, VALUE, &nodes);
        body["consistency"] = consistency.into();
        let request = instance.client().post(instance.url("/replicate"));
        let request = request.header("Idempotency-Key", key).json(&body);
        let answer = request.send().await.ok()?;
        let status = answer.status().as_u16();
        let answer: Value = answer.json().await.ok()?;
        if !answer["task_id"].is_string() {
            eprintln!("{at} refuses a write: {status} {answer}");
            return None;
        }
        Some((status, answer))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_strong_write_has_one_answer_through_every_instance() {
    let world = World::start("strong writes", &[], Duration::ZERO).await;
    for n in 0..12 {
        let key = format!("strong/{n}");
        let mut answers = Vec::new();
        for nth in ALL {
            let (status, answer) = world.strong((n + nth) % 3, &key).await.unwrap();
            assert_eq!(status, 200, "{answer}");
            let mut acked: Vec<_> =
                answer["acked_nodes"].as_array().unwrap().iter().map(Value::to_string).collect();
            acked.sort();
            answers.push((answer["task_id"].clone(), acked));
        }
        assert_eq!(answers[0].1.len(), 2, "a majority of two is both");
        assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
    }
    world.judge().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_strong_write_without_a_majority_is_refused_word_for_word_through_every_instance() {
    let args = ["--strong-timeout", "5s"];
    let world = World::start("strong writes without a majority", &args, Duration::ZERO).await;
    let dead = "http://127.0.0.1:9";
    for n in 0..12 {
        let mut body = strong(&format!("refused/{n}"), VALUE, &[&world.replicas[0]]);
        body["replica_nodes"] = json!([world.replicas[0].url(), dead]);
        let (status, answer) = world.instances[n % 3].post(&body).await;
        assert_eq!((status, &answer["success"]), (503, &json!(false)), "{answer}");
        let error = answer["error"].as_str().unwrap();
        assert!(error.contains("a majority is 2"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeat_is_the_same_write_after_the_death_of_the_owner() {
    let mut world = World::start("repeats after a kill", &[], Duration::ZERO).await;
    let mut tasks = Vec::new();
    for (n, consistency) in (0..8).flat_map(|n| [(n, "strong"), (n, "eventual")]) {
        let key = format!("before/{consistency}/{n}");
        let (_, answer) = world.write(n % 3, &key, consistency).await.unwrap();
        tasks.push((key, consistency, answer["task_id"].clone()));
    }
    let owner = world.owner().await;
    world.instances[owner].kill();
    for (n, consistency) in (0..8).flat_map(|n| [(n, "strong"), (n, "eventual")]) {
        let (key, at) = (format!("during/{consistency}/{n}"), (owner + 1 + n % 2) % 3);
        // Until one answer says that it is accepted.
        let accepted = wait_until("it is accepted", || world.write(at, &key, consistency)).await;
        tasks.push((key, consistency, accepted.1["task_id"].clone()));
    }
    world.restart(owner).await;
    world.until_shared(&ALL).await;
    for (key, consistency, task) in &tasks {
        let expected = if *consistency == "strong" { 200 } else { 202 };
        for at in ALL {
            let (status, answer) = world.write(at, key, consistency).await.unwrap();
            assert_eq!(
                (status, &answer["task_id"]),
                (expected, task),
                "{key} through {at}: {answer}"
            );
        }
    }
    world.judge().await;
}
