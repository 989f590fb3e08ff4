//! Starts, watches and cancels redrives and discards. A redrive is watched until its deliveries are
//! settled, because that they are queued again says little.

use std::time::Duration;

use serde::Serialize;

use super::answer::JsonAnswer;
use super::client::DaemonClient;
use super::cluster::incomplete;
use super::screen::Screen;
use super::text::{Table, age, count};
use super::{CommandError, CommandOutcome};
use crate::api::{BulkOperation, OperationKind, OperationPage, OperationState};
use crate::cli::admin::OperationRunArgs;

const POLL_INTERVAL: Duration = Duration::from_millis(250);

/// Starts an operation and, unless detached, watches it until it ends. `interrupt` resolves on
/// Ctrl-C: the first cancels the rest, the second stops watching.
pub(super) async fn run(
    path: &[&str],
    request: &(impl Serialize + Sync),
    (run, json): (&OperationRunArgs, bool),
    client: &DaemonClient,
    screen: &mut Screen,
    interrupt: impl AsyncFnMut(),
) -> Result<CommandOutcome, CommandError> {
    let answer = client.post(path, Some(request)).await?;
    if run.detach {
        let operation: BulkOperation = client.read(&answer)?;
        screen.show(json, &answer, [operation.operation_id])?;
        return Ok(CommandOutcome::Done);
    }
    let answer = watch(answer, client, screen, interrupt).await?;
    let operation: BulkOperation = client.read(&answer)?;
    screen.show(json, &answer, [summary(&operation)])?;
    let missing = incomplete(&operation.incomplete);
    if let Some(text) = &missing {
        screen.message(text);
    }
    let outcomes = operation.outcomes.unwrap_or_default();
    Ok(match operation.state {
        OperationState::Done if outcomes.waiting > 0 => CommandOutcome::Incomplete,
        OperationState::Done if missing.is_some() => CommandOutcome::Incomplete,
        OperationState::Done if outcomes.failed > 0 => CommandOutcome::GivenUp,
        OperationState::Done => CommandOutcome::Done,
        OperationState::Failed => CommandOutcome::Failed,
        // Still running after the second Ctrl-C.
        OperationState::Cancelled | OperationState::Running => CommandOutcome::Incomplete,
    })
}

async fn watch(
    mut answer: JsonAnswer,
    client: &DaemonClient,
    screen: &mut Screen,
    mut interrupt: impl AsyncFnMut(),
) -> Result<JsonAnswer, CommandError> {
    let mut cancelled = false;
    loop {
        let operation: BulkOperation = client.read(&answer)?;
        let waiting = operation.outcomes.map_or(0, |outcomes| outcomes.waiting);
        let ended = operation.state != OperationState::Running;
        if ended && waiting == 0 {
            return Ok(answer);
        }
        if ended {
            let waiting = count(waiting, "delivery");
            screen.progress(&format!("waiting for {waiting}; Ctrl-C stops waiting"));
        } else {
            screen.progress(&progress(&operation, cancelled));
        }
        let path = ["v1", "operations", operation.operation_id.as_str()];
        let next = tokio::select! {
            () = tokio::time::sleep(POLL_INTERVAL) => client.get(&path, &[]).await,
            () = interrupt() => {
                if cancelled || ended {
                    return Ok(answer);
                }
                cancelled = true;
                client.delete(&path).await
            }
        };
        answer = next.map_err(|error| lost(&operation, &error))?;
    }
}

fn lost(operation: &BulkOperation, error: &super::client::CallError) -> CommandError {
    let id = &operation.operation_id;
    CommandError::Other(if error.is_not_found() {
        format!(
            "operation {id} does not exist any more: the daemon was restarted, and the remaining dead letters are unchanged"
        )
    } else {
        format!(
            "lost contact with operation {id}, which may still be running (check with dead-letters operations {id}): {error}"
        )
    })
}

/// For example `redriving [#####               ] 25%  250 of 1000, 200/s at most`.
fn progress(operation: &BulkOperation, cancelled: bool) -> String {
    const WIDTH: u64 = 20;
    let BulkOperation { examined, total, done, .. } = operation;
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

fn summary(operation: &BulkOperation) -> String {
    let BulkOperation { matched, done, superseded, held_back, .. } = operation;
    let of = format!("{done} of {}", count(*matched, "dead letter"));
    let mut text = match (operation.dry_run, operation.kind) {
        (true, OperationKind::Redrive) => format!("would redrive {of}"),
        (true, OperationKind::Discard) => format!("would discard {of}"),
        (false, OperationKind::Redrive) => format!("redrove {of}"),
        (false, OperationKind::Discard) => format!("discarded {of}"),
    };
    if let Some(outcomes) = &operation.outcomes {
        let parts = [
            (outcomes.delivered, "delivered"),
            (outcomes.failed, "failed again"),
            (outcomes.superseded, "superseded"),
            (outcomes.discarded, "discarded"),
            (outcomes.handed_over, "handed over to another instance"),
            (outcomes.waiting, "not settled yet"),
        ];
        let parts = parts.into_iter().filter(|(number, _)| *number > 0);
        let parts: Vec<_> = parts.map(|(number, what)| format!("{number} {what}")).collect();
        if !parts.is_empty() {
            text = format!("{text}: {}", parts.join(", "));
        }
    }
    if *superseded > 0 {
        let verb = if *superseded == 1 { "was" } else { "were" };
        text = format!(
            "{text}; {superseded} {verb} skipped because a newer write of the key is pending"
        );
    }
    if *held_back > 0 {
        let verb = if *held_back == 1 { "was" } else { "were" };
        text = format!(
            "{text}; {held_back} {verb} skipped because the replica is paused or failing (replicas resume, probe) or the retry queue is full"
        );
    }
    match operation.state {
        OperationState::Done => text,
        OperationState::Cancelled => format!("cancelled: {text} before that"),
        OperationState::Running => format!("still running: {text} so far"),
        OperationState::Failed => {
            let why = operation.error.as_deref().unwrap_or("no reason given");
            format!("failed: {why}; {text} before that")
        }
    }
}

pub(super) async fn show(
    id: Option<&str>,
    json: bool,
    client: &DaemonClient,
    screen: &mut Screen,
) -> Result<CommandOutcome, CommandError> {
    let answer = match id {
        Some(id) => client.get(&["v1", "operations", id], &[]).await?,
        None => client.get(&["v1", "operations"], &[]).await?,
    };
    if json {
        screen.json(&answer)?;
        return Ok(CommandOutcome::Done);
    }
    let operations = match id {
        Some(_) => vec![client.read(&answer)?],
        None => client.read::<OperationPage>(&answer)?.operations,
    };
    if operations.is_empty() {
        screen.print(["no redrive or discard since the daemon started"])?;
        return Ok(CommandOutcome::Done);
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
            operation.operation_id.clone(),
            state.to_owned(),
            operation.examined.to_string(),
            operation.total.to_string(),
            format!("{} ago", age(&operation.started_at, now)),
            summary(operation),
        ]);
    }
    screen.print(table.render())?;
    Ok(CommandOutcome::Done)
}

pub(super) async fn cancel(
    id: &str,
    json: bool,
    client: &DaemonClient,
    screen: &mut Screen,
) -> Result<CommandOutcome, CommandError> {
    let answer = client.delete(&["v1", "operations", id]).await?;
    let operation: BulkOperation = client.read(&answer)?;
    screen.show(json, &answer, [summary(&operation)])?;
    Ok(CommandOutcome::Done)
}
