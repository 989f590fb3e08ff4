//! The lines of an export, and the checks of an import.

use std::collections::HashSet;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::store::records::MAX_IDEMPOTENCY_KEY_BYTES;
use crate::store::records::{IdempotencyAnswer, IdempotencyRow, ReplicaRow};
use crate::task::{
    Cause, Consistency, DeadLetter, Node, Operation, Progress, ReplicaIndex, ReplicaLimits,
    ReplicaPause, Task, TaskId, Timestamp, Trace,
};

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::store) struct HeadLine {
    pub(in crate::store) export: u32,
    pub(in crate::store) tasks: u64,
    pub(in crate::store) next_id: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::store) struct TaskLine {
    task: u64,
    key: String,
    operation: OperationName,
    value: String,
    accepted_at: u64,
    expires_at: Option<u64>,
    replicas: Vec<String>,
    user_id: Option<ExportedUserId>,
    /// From version 2.
    consistency: Option<ConsistencyName>,
    trace_parent: Option<String>,
    trace_state: Option<String>,
    progress: Vec<ExportedProgress>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::store) struct ReplicaLine {
    replica: String,
    first_used: u64,
    paused_since: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    paused_until: Option<u64>,
    renamed_to: Option<String>,
    #[serde(default, skip_serializing_if = "ReplicaLimits::is_none")]
    limits: ReplicaLimits,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::store) struct KeyLine {
    idempotency: String,
    task: u64,
    /// Hexadecimal.
    fingerprint: String,
    at: u64,
    answer: Option<IdempotencyAnswer>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::store) struct EndLine {
    pub(in crate::store) end: u32,
    pub(in crate::store) tasks: u64,
    pub(in crate::store) skipped: u64,
    /// From version 2.
    #[serde(default)]
    pub(in crate::store) replicas: u64,
    #[serde(default)]
    pub(in crate::store) idempotency_keys: u64,
}

/// Exported as text. A hand-written file may contain an integer, as clients send it.
#[derive(Serialize, Deserialize)]
#[serde(untagged, expecting = "\"user_id\" must be a string, an integer of 64 bits or null")]
enum ExportedUserId {
    Text(String),
    Unsigned(u64),
    Negative(i64),
}

impl ExportedUserId {
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
enum OperationName {
    Set,
    Delete,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum ConsistencyName {
    Eventual,
    Strong,
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case", deny_unknown_fields)]
enum ExportedProgress {
    Untouched,
    Failed {
        failures: u32,
        error: String,
    },
    Delivered,
    Superseded,
    Dead {
        cause: String,
        failures: u32,
        error: String,
        since: u64,
    },
    #[serde(rename = "doubted")]
    Ambiguous {
        since: u64,
    },
    Resend,
}

const CAUSES: [Cause; 4] = [Cause::Rejected, Cause::Refused, Cause::GaveUp, Cause::RetryOverflow];

pub(in crate::store) fn line(task: &Task, progress: &[Progress]) -> TaskLine {
    let exported = |progress: &Progress| match progress {
        Progress::Untouched => ExportedProgress::Untouched,
        Progress::Failed { failures, error } => {
            ExportedProgress::Failed { failures: *failures, error: error.to_string() }
        }
        Progress::Delivered => ExportedProgress::Delivered,
        Progress::Superseded => ExportedProgress::Superseded,
        Progress::Dead(letter) => ExportedProgress::Dead {
            cause: letter.cause.as_str().to_owned(),
            failures: letter.failures,
            error: letter.error.to_string(),
            since: letter.since.0,
        },
        Progress::Ambiguous { since } => ExportedProgress::Ambiguous { since: since.0 },
        Progress::Resend => ExportedProgress::Resend,
    };
    TaskLine {
        task: task.id.0,
        key: task.key.clone(),
        operation: match task.operation {
            Operation::Set => OperationName::Set,
            Operation::Delete => OperationName::Delete,
        },
        value: STANDARD.encode(&task.value),
        accepted_at: task.accepted_at.0,
        expires_at: task.expires_at.map(|end| end.0),
        replicas: task.replicas.iter().map(|node| node.as_str().to_owned()).collect(),
        user_id: task.user_id.clone().map(ExportedUserId::Text),
        consistency: Some(match task.consistency {
            Consistency::Eventual => ConsistencyName::Eventual,
            Consistency::Strong => ConsistencyName::Strong,
        }),
        trace_parent: task.trace.as_ref().map(|trace| trace.parent.to_string()),
        trace_state: task.trace.as_ref().and_then(|trace| Some(trace.state.as_ref()?.to_string())),
        progress: progress.iter().map(exported).collect(),
    }
}

pub(in crate::store) fn replica_line(node: &Node, row: &ReplicaRow) -> ReplicaLine {
    ReplicaLine {
        replica: node.as_str().to_owned(),
        first_used: row.first_used.0,
        paused_since: row.pause.map(|pause| pause.since.0),
        paused_until: row.pause.and_then(|pause| pause.until).map(|until| until.0),
        renamed_to: row.renamed_to.as_ref().map(|node| node.as_str().to_owned()),
        limits: row.limits,
    }
}

pub(in crate::store) fn key_line(key: &str, row: &IdempotencyRow) -> KeyLine {
    KeyLine {
        idempotency: key.to_owned(),
        task: row.task.0,
        fingerprint: format!("{:032x}", u128::from_be_bytes(row.fingerprint)),
        at: row.at.0,
        answer: row.answer.clone(),
    }
}

pub(in crate::store) fn task(line: TaskLine) -> Result<(Task, Vec<Progress>), String> {
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
    if let Some(node) = duplicate(&replicas) {
        return Err(format!("\"replicas\" names {node} twice"));
    }
    if line.progress.len() != replicas.len() {
        return Err("\"progress\" must have an entry for each of \"replicas\"".to_owned());
    }
    let value = STANDARD.decode(&line.value).map_err(|why| format!("\"value\": {why}"))?;
    let operation = match line.operation {
        OperationName::Set => Operation::Set,
        OperationName::Delete if value.is_empty() => Operation::Delete,
        OperationName::Delete => return Err("\"value\" must be empty for a DELETE".to_owned()),
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
        user_id: line.user_id.map(ExportedUserId::into_text),
        client: None,
        consistency: match line.consistency {
            None | Some(ConsistencyName::Eventual) => Consistency::Eventual,
            Some(ConsistencyName::Strong) => Consistency::Strong,
        },
        primary: None,
        trace: trace(line.trace_parent, line.trace_state)?,
    };
    Ok((task, progress))
}

/// A delivery is a task and a replica: with a duplicate, neither delivery would ever settle.
fn duplicate(replicas: &[Node]) -> Option<&Node> {
    let mut before = HashSet::with_capacity(replicas.len());
    replicas.iter().find(|node| !before.insert(*node))
}

fn progress(exported: ExportedProgress) -> Result<Progress, String> {
    Ok(match exported {
        ExportedProgress::Untouched => Progress::Untouched,
        ExportedProgress::Failed { failures, error } => {
            Progress::Failed { failures, error: error.into() }
        }
        ExportedProgress::Delivered => Progress::Delivered,
        ExportedProgress::Superseded => Progress::Superseded,
        ExportedProgress::Ambiguous { since } => Progress::Ambiguous { since: Timestamp(since) },
        ExportedProgress::Resend => Progress::Resend,
        ExportedProgress::Dead { cause, failures, error, since } => {
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
    // They become headers: with an invalid one every replica would reject the write.
    let plain = |text: &str| text.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic());
    if !plain(&parent) || !state.as_deref().is_none_or(plain) {
        return Err("\"trace_parent\" and \"trace_state\" must be visible ASCII".to_owned());
    }
    Ok(Some(Trace { parent: parent.into(), state: state.map(Box::from) }))
}

pub(in crate::store) fn replica(line: ReplicaLine) -> Result<(Node, ReplicaRow), String> {
    let parse = |field, text: &str| Node::parse(text).map_err(|why| format!("\"{field}\": {why}"));
    let node = parse("replica", &line.replica)?;
    let renamed_to = line.renamed_to.map(|text| parse("renamed_to", &text)).transpose()?;
    let (since, until) = (line.paused_since.map(Timestamp), line.paused_until.map(Timestamp));
    if since.is_none() && until.is_some() {
        return Err("\"paused_until\" needs a \"paused_since\"".to_owned());
    }
    if let Some((field, most)) = line.limits.excess() {
        return Err(format!("\"{field}\" must not be above {most}"));
    }
    let pause = since.map(|since| ReplicaPause { since, until });
    let (limits, first_used) = (line.limits, Timestamp(line.first_used));
    Ok((node, ReplicaRow { pause, limits, renamed_to, first_used }))
}

pub(in crate::store) fn key(line: KeyLine) -> Result<(Box<str>, IdempotencyRow), String> {
    if line.idempotency.is_empty() || line.idempotency.len() > MAX_IDEMPOTENCY_KEY_BYTES {
        return Err(format!("\"idempotency\" must have 1 to {MAX_IDEMPOTENCY_KEY_BYTES} bytes"));
    }
    let hex = Some(&*line.fingerprint)
        .filter(|text| text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit()))
        .and_then(|text| u128::from_str_radix(text, 16).ok());
    let fingerprint = hex.ok_or("\"fingerprint\" must be 32 hexadecimal digits")?;
    let row = IdempotencyRow {
        task: TaskId(line.task),
        fingerprint: fingerprint.to_be_bytes(),
        at: Timestamp(line.at),
        answer: line.answer,
    };
    Ok((line.idempotency.into(), row))
}
