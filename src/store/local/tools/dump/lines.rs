//! What stands in the lines of an export, and what is refused of those of an import.

use std::collections::HashSet;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::store::local::keys::MAX_IDEMPOTENCY_KEY_BYTES;
use crate::store::local::rows::{IdempotencyAnswer, IdempotencyRow, ReplicaRow};
use crate::task::{
    Cause, Consistency, DeadLetter, Node, Operation, Progress, ReplicaIndex, Task, TaskId,
    Timestamp, Trace,
};

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Head {
    pub(super) export: u32,
    pub(super) tasks: u64,
    pub(super) next_id: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Line {
    task: u64,
    key: String,
    operation: Kind,
    value: String,
    accepted_at: u64,
    expires_at: Option<u64>,
    replicas: Vec<String>,
    user_id: Option<User>,
    /// Not there before export 2.
    consistency: Option<Wish>,
    trace_parent: Option<String>,
    trace_state: Option<String>,
    progress: Vec<State>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ReplicaLine {
    replica: String,
    first_used: u64,
    paused_since: Option<u64>,
    renamed_to: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct KeyLine {
    idempotency: String,
    task: u64,
    /// Hexadecimal.
    fingerprint: String,
    at: u64,
    answer: Option<Answer>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Answer {
    success: bool,
    acked: Vec<u16>,
    failed: Vec<u16>,
    needed: u16,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct End {
    pub(super) end: u32,
    pub(super) tasks: u64,
    pub(super) skipped: u64,
    /// Not there before export 2.
    #[serde(default)]
    pub(super) replicas: u64,
    #[serde(default)]
    pub(super) idempotency_keys: u64,
}

/// Exported as text. A file that was written by hand may have it as clients send it.
#[derive(Serialize, Deserialize)]
#[serde(untagged, expecting = "\"user_id\" must be a string, an integer of 64 bits or null")]
enum User {
    Text(String),
    Unsigned(u64),
    Negative(i64),
}

impl User {
    fn into_text(self) -> String {
        match self {
            Self::Text(text) => text,
            Self::Unsigned(number) => number.to_string(),
            Self::Negative(number) => number.to_string(),
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
enum Kind {
    Set,
    Delete,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Wish {
    Eventual,
    Strong,
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case", deny_unknown_fields)]
enum State {
    Untouched,
    Failed { failures: u32, error: String },
    Delivered,
    Superseded,
    Dead { cause: String, failures: u32, error: String, since: u64 },
    Doubted { since: u64 },
    Resend,
}

const CAUSES: [Cause; 3] = [Cause::Rejected, Cause::GaveUp, Cause::RetryOverflow];

pub(super) fn line(task: &Task, progress: &[Progress]) -> Line {
    let state = |progress: &Progress| match progress {
        Progress::Untouched => State::Untouched,
        Progress::Failed { failures, error } => {
            State::Failed { failures: *failures, error: error.to_string() }
        }
        Progress::Delivered => State::Delivered,
        Progress::Superseded => State::Superseded,
        Progress::Dead(letter) => State::Dead {
            cause: letter.cause.as_str().to_owned(),
            failures: letter.failures,
            error: letter.error.to_string(),
            since: letter.since.0,
        },
        Progress::Ambiguous { since } => State::Doubted { since: since.0 },
        Progress::Resend => State::Resend,
    };
    Line {
        task: task.id.0,
        key: task.key.clone(),
        operation: match task.operation {
            Operation::Set => Kind::Set,
            Operation::Delete => Kind::Delete,
        },
        value: STANDARD.encode(&task.value),
        accepted_at: task.accepted_at.0,
        expires_at: task.expires_at.map(|end| end.0),
        replicas: task.replicas.iter().map(|node| node.as_str().to_owned()).collect(),
        user_id: task.user_id.clone().map(User::Text),
        consistency: Some(match task.consistency {
            Consistency::Eventual => Wish::Eventual,
            Consistency::Strong => Wish::Strong,
        }),
        trace_parent: task.trace.as_ref().map(|trace| trace.parent.to_string()),
        trace_state: task.trace.as_ref().and_then(|trace| Some(trace.state.as_ref()?.to_string())),
        progress: progress.iter().map(state).collect(),
    }
}

pub(super) fn replica_line(node: &Node, row: &ReplicaRow) -> ReplicaLine {
    ReplicaLine {
        replica: node.as_str().to_owned(),
        first_used: row.first_used.0,
        paused_since: row.paused_since.map(|since| since.0),
        renamed_to: row.renamed_to.as_ref().map(|node| node.as_str().to_owned()),
    }
}

pub(super) fn key_line(key: &str, row: &IdempotencyRow) -> KeyLine {
    let answer = |answer: &IdempotencyAnswer| Answer {
        success: answer.success,
        acked: answer.acked.clone(),
        failed: answer.failed.clone(),
        needed: answer.needed,
    };
    KeyLine {
        idempotency: key.to_owned(),
        task: row.task.0,
        fingerprint: format!("{:032x}", u128::from_be_bytes(row.fingerprint)),
        at: row.at.0,
        answer: row.answer.as_ref().map(answer),
    }
}

pub(super) fn task(line: Line) -> Result<(Task, Vec<Progress>), String> {
    if matches!(&*line.key, "" | "." | "..") {
        return Err(format!("\"key\" must not be {:?}", line.key));
    }
    if line.task > super::MAX_ID {
        return Err(format!("\"task\" must not be above {}", super::MAX_ID));
    }
    let parse = |text: &String| Node::parse(text).map_err(|why| format!("\"replicas\": {why}"));
    let replicas = line.replicas.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
    if replicas.is_empty() || u16::try_from(replicas.len()).map(ReplicaIndex).is_err() {
        return Err("\"replicas\" must name 1 to 65535 nodes".to_owned());
    }
    if let Some(node) = twice(&replicas) {
        return Err(format!("\"replicas\" names {node} twice"));
    }
    if line.progress.len() != replicas.len() {
        return Err("\"progress\" must have an entry for each of \"replicas\"".to_owned());
    }
    let value = STANDARD.decode(&line.value).map_err(|why| format!("\"value\": {why}"))?;
    let operation = match line.operation {
        Kind::Set => Operation::Set,
        Kind::Delete if value.is_empty() => Operation::Delete,
        Kind::Delete => return Err("\"value\" must be empty for a DELETE".to_owned()),
    };
    let progress = line.progress.into_iter().map(progress).collect::<Result<_, _>>()?;
    let task = Task {
        id: TaskId(line.task),
        key: line.key,
        operation,
        value: value.into(),
        accepted_at: Timestamp(line.accepted_at),
        expires_at: line.expires_at.map(Timestamp),
        replicas,
        user_id: line.user_id.map(User::into_text),
        consistency: match line.consistency {
            None | Some(Wish::Eventual) => Consistency::Eventual,
            Some(Wish::Strong) => Consistency::Strong,
        },
        trace: trace(line.trace_parent, line.trace_state)?,
    };
    Ok((task, progress))
}

/// A delivery is a task and a replica: with one in two places neither would ever be settled.
fn twice(replicas: &[Node]) -> Option<&Node> {
    let mut before = HashSet::with_capacity(replicas.len());
    replicas.iter().find(|node| !before.insert(*node))
}

fn progress(state: State) -> Result<Progress, String> {
    Ok(match state {
        State::Untouched => Progress::Untouched,
        State::Failed { failures, error } => Progress::Failed { failures, error: error.into() },
        State::Delivered => Progress::Delivered,
        State::Superseded => Progress::Superseded,
        State::Doubted { since } => Progress::Ambiguous { since: Timestamp(since) },
        State::Resend => Progress::Resend,
        State::Dead { cause, failures, error, since } => {
            let known = CAUSES.into_iter().find(|known| known.as_str() == cause);
            let cause = known.ok_or_else(|| format!("\"cause\" {cause:?} is not known"))?;
            let (error, since) = (error.into(), Timestamp(since));
            Progress::Dead(DeadLetter { cause, failures, error, since })
        }
    })
}

fn trace(parent: Option<String>, state: Option<String>) -> Result<Option<Trace>, String> {
    let Some(parent) = parent else {
        return match state {
            Some(_) => Err("\"trace_state\" needs a \"trace_parent\"".to_owned()),
            None => Ok(None),
        };
    };
    let state_bytes = state.as_ref().map_or(0, String::len);
    if parent.len() > Trace::MAX_PARENT_BYTES || state_bytes > Trace::MAX_STATE_BYTES {
        return Err("\"trace_parent\" or \"trace_state\" is too long".to_owned());
    }
    // They become headers: what cannot be one would have the write rejected by every replica.
    let plain = |text: &str| text.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic());
    if !plain(&parent) || !state.as_deref().is_none_or(plain) {
        return Err("\"trace_parent\" and \"trace_state\" are visible ASCII".to_owned());
    }
    Ok(Some(Trace { parent: parent.into(), state: state.map(Box::from) }))
}

pub(super) fn replica(line: ReplicaLine) -> Result<(Node, ReplicaRow), String> {
    let parse = |field, text: &str| Node::parse(text).map_err(|why| format!("\"{field}\": {why}"));
    let node = parse("replica", &line.replica)?;
    let renamed_to = line.renamed_to.map(|text| parse("renamed_to", &text)).transpose()?;
    let paused_since = line.paused_since.map(Timestamp);
    Ok((node, ReplicaRow { paused_since, renamed_to, first_used: Timestamp(line.first_used) }))
}

pub(super) fn key(line: KeyLine) -> Result<(Box<str>, IdempotencyRow), String> {
    if line.idempotency.is_empty() || line.idempotency.len() > MAX_IDEMPOTENCY_KEY_BYTES {
        return Err(format!("\"idempotency\" must have 1 to {MAX_IDEMPOTENCY_KEY_BYTES} bytes"));
    }
    let hex = Some(&*line.fingerprint)
        .filter(|text| text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit()))
        .and_then(|text| u128::from_str_radix(text, 16).ok());
    let fingerprint = hex.ok_or("\"fingerprint\" must be 32 hexadecimal digits")?;
    let answer = line.answer.map(|Answer { success, acked, failed, needed }| IdempotencyAnswer {
        success,
        acked,
        failed,
        needed,
    });
    let row = IdempotencyRow {
        task: TaskId(line.task),
        fingerprint: fingerprint.to_be_bytes(),
        at: Timestamp(line.at),
        answer,
    };
    Ok((line.idempotency.into(), row))
}
