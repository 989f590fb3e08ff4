//! Starts the daemon on an image and checks its deliveries.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::record::Mark;
use super::support::{Behaviour, Daemon, PATIENCE};
use super::workload::args;
use super::world::{Held, Witness, start};

/// Time until the replicas must hold everything after the daemon reports that all is delivered.
const LATE: Duration = Duration::from_secs(1);
/// Failures after which a delivery is a dead letter, in the workload that has them.
const GIVEN_UP: u32 = 3;

/// The marks up to a point of the record.
#[derive(Clone, Debug, Default)]
pub struct Known {
    sent: HashMap<u64, String>,
    accepted: BTreeMap<u64, (String, Option<u64>)>,
    held: Vec<Held>,
    refused: HashMap<(usize, u64), u32>,
    highest: u64,
}

impl Known {
    pub fn new(replicas: usize) -> Self {
        Self { held: vec![Held::new(); replicas], ..Self::default() }
    }

    pub fn learn(&mut self, mark: Mark) {
        match mark {
            Mark::Sent { n, key } => {
                self.sent.insert(n, key);
            }
            Mark::Accepted { task, n, key } => {
                self.highest = self.highest.max(task);
                self.accepted.insert(task, (key, n));
            }
            Mark::Applied { replica, task, n, key } => {
                self.highest = self.highest.max(task);
                self.held[replica].insert(key, (task, n));
            }
            Mark::Refused { replica, task, forever } => {
                let count = if forever { GIVEN_UP } else { 1 };
                *self.refused.entry((replica, task)).or_default() += count;
            }
        }
    }

    pub fn accepted(&self) -> usize {
        self.accepted.len()
    }

    /// Errors in the contents of the replicas after all is delivered.
    fn wrongs(&self, world: &[Witness]) -> Vec<String> {
        let mut wrongs = Vec::new();
        for (number, witness) in world.iter().enumerate() {
            let held = witness.held();
            let mut wrong = |key: &str, what: String| {
                wrongs.push(format!("replica {number}, {key}: {what}"));
            };
            witness.wrongs().into_iter().for_each(|what| wrong("", what));
            let mut newest: HashMap<&str, (u64, Option<u64>)> = HashMap::new();
            for (&task, (key, n)) in &self.accepted {
                let given_up = self.refused.get(&(number, task)).copied() >= Some(GIVEN_UP);
                if !given_up || !key.starts_with("dead/") {
                    newest.insert(key, (task, *n));
                }
            }
            for (key, &(task, _)) in &self.held[number] {
                if held[key].0 < task {
                    wrong(key, format!("{} came after {task}", held[key].0));
                }
            }
            for (key, (task, n)) in newest {
                match held.get(key) {
                    Some(&(other, _)) if other > task => {}
                    Some(&(other, holds)) if other == task && holds == n => {}
                    other => wrong(key, format!("{task} was accepted, but it holds {other:?}")),
                }
            }
            for (key, (task, n)) in &held {
                if let Some(n) = n
                    && self.sent.get(n) != Some(key)
                {
                    wrong(key, format!("{task} has the value {n}, which was never sent"));
                }
            }
        }
        wrongs
    }
}

/// The failure of a daemon on an image.
#[derive(Debug)]
pub enum Wrong {
    /// It does not start.
    Refused(String),
    /// A replica lacks an accepted write.
    Lost(String),
    /// It does not drain, or accepts no new write.
    Stuck(String),
    /// It starts, then ends by itself.
    Ended(String),
}

impl Wrong {
    /// Appends the log of the daemon.
    fn with(self, log: &str) -> Self {
        let with = |what| format!("{what}\n{log}");
        match self {
            Self::Refused(what) => Self::Refused(with(what)),
            Self::Lost(what) => Self::Lost(with(what)),
            Self::Stuck(what) => Self::Stuck(with(what)),
            Self::Ended(what) => Self::Ended(with(what)),
        }
    }
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(what) | Self::Lost(what) | Self::Stuck(what) | Self::Ended(what) => {
                f.write_str(what)
            }
        }
    }
}

pub async fn judge(image: &Path, known: &Known, world: &[Witness]) -> Result<(), Wrong> {
    judge_in(&[], image, known, world).await
}

async fn judge_in(
    environment: &[(String, String)],
    image: &Path,
    known: &Known,
    world: &[Witness],
) -> Result<(), Wrong> {
    for (witness, held) in world.iter().zip(&known.held) {
        witness.replica.until_quiet().await;
        witness.restore(held.clone());
        witness.behave(None, std::sync::Arc::new(|_, _| Behaviour::Apply));
    }
    let mut daemon = start(image, &args("1000"), environment).await.map_err(Wrong::Refused)?;
    let outcome = match delivers(&daemon, known, world).await {
        Ok(outcome) => outcome,
        Err(silent) => Err(Wrong::Stuck(format!("the daemon does not answer: {silent}"))),
    };
    let outcome = match outcome {
        // If the daemon is ending, report its end and not the call that failed because of it.
        Err(Wrong::Stuck(what)) => Err(match daemon.ended_within(PATIENCE).await {
            Some(status) => Wrong::Ended(format!("the daemon ended by itself, {status}: {what}")),
            None => Wrong::Stuck(what),
        }),
        outcome => outcome,
    };
    let log = daemon.log();
    daemon.kill();
    outcome.map_err(|wrong| wrong.with(&log))
}

/// The daemon has ended or does not answer in time.
type Silent = Box<dyn std::error::Error + Send + Sync>;

async fn answer(
    request: impl Future<Output = reqwest::Result<(u16, Value)>>,
) -> Result<(u16, Value), Silent> {
    Ok(tokio::time::timeout(PATIENCE, request).await??)
}

/// Checks that the daemon delivers everything and accepts a new write.
async fn delivers(
    daemon: &Daemon,
    known: &Known,
    world: &[Witness],
) -> Result<Result<(), Wrong>, Silent> {
    let begin = Instant::now();
    let mut drained_at = None;
    let wrongs = loop {
        let (_, metrics) = answer(daemon.try_get("/metrics")).await?;
        if metrics["queue_size"] == 0 && metrics["retries_in_progress"] == 0 {
            let wrongs = known.wrongs(world);
            let drained = *drained_at.get_or_insert_with(Instant::now);
            if wrongs.is_empty() || drained.elapsed() > LATE {
                break wrongs;
            }
        } else {
            drained_at = None;
            if begin.elapsed() > PATIENCE {
                let what = format!("not drained within {PATIENCE:?}: {metrics}");
                return Ok(Err(Wrong::Stuck(what)));
            }
        }
        tokio::task::yield_now().await;
    };
    if !wrongs.is_empty() {
        return Ok(Err(Wrong::Lost(wrongs.join("\n"))));
    }
    // A new write is accepted, and its id is not a reused one.
    let url = world[0].replica.url();
    let body = json!({"key": "after", "operation": "DELETE", "replica_nodes": [url]});
    let (status, answer) = answer(daemon.try_post(&body)).await?;
    let task = answer["task_id"].as_str().and_then(|task| task.parse::<u64>().ok());
    if status != 202 || task <= Some(known.highest) {
        let what = format!("a new write, after task {}: {status} {answer}", known.highest);
        return Ok(Err(Wrong::Stuck(what)));
    }
    Ok(Ok(()))
}

#[tokio::test]
async fn the_judge_reports_a_daemon_that_ends_with_its_log() {
    let world = super::world().await;
    let image = super::scratch();
    let fault = ("REPLICATOR_FAULT_POINT".to_owned(), "commit.flushed".to_owned());
    let known = Known::new(world.len());
    let outcome = judge_in(&[fault], &image.path().join("data"), &known, &world).await;
    let Err(Wrong::Ended(what)) = outcome else { panic!("{outcome:?}") };
    assert!(what.contains("signal: 9") && what.contains("name=\"commit.flushed\""), "{what}");
}
