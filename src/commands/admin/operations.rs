//! Redrives and discards as they run: begun, watched, cancelled.

use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use super::client::Client;
use super::screen::Screen;
use super::text::{Table, age, clean, count};
use super::{Failure, Outcome};
use crate::api::{Operation, OperationKind, OperationPage, OperationState};
use crate::cli::admin::OperationRunArgs;

/// How often it is asked how far an operation is: often enough for a person who watches.
const POLL: Duration = Duration::from_millis(250);

/// Begins an operation and, unless it is detached, watches it to its end.
///
/// `interrupt` comes back when the operator has pressed Ctrl-C: the first time cancels what is
/// left, the second stops watching.
pub(super) async fn run(
    path: &[&str],
    request: &(impl Serialize + Sync),
    (run, json): (&OperationRunArgs, bool),
    client: &Client,
    screen: &mut Screen,
    interrupt: impl AsyncFnMut(),
) -> Result<Outcome, Failure> {
    let answer = client.post(path, Some(request)).await?;
    if run.detach {
        let operation: Operation = client.read(&answer)?;
        let text = format!("{}\n", operation.operation_id);
        screen.show(json, &answer, &text)?;
        return Ok(Outcome::Done);
    }
    let answer = watch(answer, client, screen, interrupt).await?;
    let operation: Operation = client.read(&answer)?;
    screen.show(json, &answer, &format!("{}\n", told(&operation)))?;
    Ok(match operation.state {
        OperationState::Done => Outcome::Done,
        OperationState::Failed => Outcome::Failed,
        // Still running only where the operator did not want to wait for the end of a cancel.
        OperationState::Cancelled | OperationState::Running => Outcome::Wanting,
    })
}

async fn watch(
    mut answer: Value,
    client: &Client,
    screen: &mut Screen,
    mut interrupt: impl AsyncFnMut(),
) -> Result<Value, Failure> {
    let mut cancelled = false;
    loop {
        let operation: Operation = client.read(&answer)?;
        if operation.state != OperationState::Running {
            return Ok(answer);
        }
        screen.progress(&progress(&operation, cancelled));
        let path = ["v1", "operations", operation.operation_id.as_str()];
        let asked = tokio::select! {
            () = tokio::time::sleep(POLL) => client.get(&path, &[]).await,
            () = interrupt() => {
                if cancelled {
                    return Ok(answer);
                }
                cancelled = true;
                client.delete(&path).await
            }
        };
        answer = asked.map_err(|error| lost(&operation, &error))?;
    }
}

fn lost(operation: &Operation, error: &super::client::AskError) -> Failure {
    let id = &operation.operation_id;
    Failure::Other(if error.is_missing() {
        format!(
            "operation {id} is not known any more: the daemon was restarted, and what it had not come to stays as it was"
        )
    } else {
        format!(
            "lost sight of operation {id}, which may go on (dead-letters operations {id}): {error}"
        )
    })
}

/// How far it is, in a line: `redriving [#####               ] 25%  250 of 1000, 200/s at most`.
fn progress(operation: &Operation, cancelled: bool) -> String {
    const WIDTH: u64 = 20;
    let Operation { examined, total, done, .. } = operation;
    let doing = match operation.kind {
        _ if cancelled => "cancelling",
        _ if operation.dry_run => "counting",
        OperationKind::Redrive => "redriving",
        OperationKind::Discard => "discarding",
    };
    let part = |of: u64| (examined.saturating_mul(of) / (*total).max(1)).min(of);
    let full: String = (0..WIDTH).map(|at| if at < part(WIDTH) { '#' } else { ' ' }).collect();
    let rate = operation.rate.map_or_else(String::new, |rate| format!(", {rate}/s at most"));
    let more = if cancelled { "" } else { "; Ctrl-C cancels" };
    format!("{doing} [{full}] {}%  {done} of {examined} seen{rate}{more}", part(100))
}

/// What came of it, in a sentence.
fn told(operation: &Operation) -> String {
    let Operation { matched, done, superseded, held_back, .. } = operation;
    let of = format!("{done} of {}", count(*matched, "dead letter"));
    let mut text = match (operation.dry_run, operation.kind) {
        (true, OperationKind::Redrive) => format!("would redrive {of}"),
        (true, OperationKind::Discard) => format!("would discard {of}"),
        (false, OperationKind::Redrive) => format!("redrove {of}"),
        (false, OperationKind::Discard) => format!("discarded {of}"),
    };
    if *superseded > 0 {
        let verb = if *superseded == 1 { "was" } else { "were" };
        text = format!(
            "{text}; {superseded} {verb} left out, as a newer write of the key is on its way"
        );
    }
    if *held_back > 0 {
        let verb = if *held_back == 1 { "was" } else { "were" };
        text = format!(
            "{text}; {held_back} {verb} left out, as the replica is paused or does not answer (replicas resume, probe) or the retry queue is full"
        );
    }
    match operation.state {
        OperationState::Done => text,
        OperationState::Cancelled => format!("cancelled: {text} before that"),
        OperationState::Running => format!("still running: {text} so far"),
        OperationState::Failed => {
            let why = operation.error.as_deref().map_or_else(|| "no reason given".into(), clean);
            format!("failed: {why}; {text} before that")
        }
    }
}

/// The operations that are remembered, or one of them.
pub(super) async fn show(
    id: Option<&str>,
    json: bool,
    client: &Client,
    screen: &mut Screen,
) -> Result<Outcome, Failure> {
    let answer = match id {
        Some(id) => client.get(&["v1", "operations", id], &[]).await?,
        None => client.get(&["v1", "operations"], &[]).await?,
    };
    if json {
        screen.json(&answer)?;
        return Ok(Outcome::Done);
    }
    let operations = match id {
        Some(_) => vec![client.read(&answer)?],
        None => client.read::<OperationPage>(&answer)?.operations,
    };
    if operations.is_empty() {
        screen.print("no redrive or discard since the start\n")?;
        return Ok(Outcome::Done);
    }
    let now = screen.now();
    let mut table = Table::new(&["OPERATION", "STATE", ">SEEN", ">OF", ">STARTED", "RESULT"]);
    for operation in &operations {
        let state = match operation.state {
            OperationState::Running => "running",
            OperationState::Done => "done",
            OperationState::Cancelled => "cancelled",
            OperationState::Failed => "failed",
        };
        table.row([
            clean(&operation.operation_id),
            state.to_owned(),
            operation.examined.to_string(),
            operation.total.to_string(),
            format!("{} ago", age(&operation.started_at, now)),
            told(operation),
        ]);
    }
    screen.print(&table.render())?;
    Ok(Outcome::Done)
}

/// Cancels one, and says how far it had come.
pub(super) async fn cancel(
    id: &str,
    json: bool,
    client: &Client,
    screen: &mut Screen,
) -> Result<Outcome, Failure> {
    let answer = client.delete(&["v1", "operations", id]).await?;
    let operation: Operation = client.read(&answer)?;
    screen.show(json, &answer, &format!("{}\n", told(&operation)))?;
    Ok(Outcome::Done)
}
