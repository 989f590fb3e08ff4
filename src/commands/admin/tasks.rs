//! `replicator tasks`: list, show and discard unsettled tasks.

use super::answer::JsonAnswer;
use super::client::DaemonClient;
use super::list::{ListQuery, key_filter};
use super::screen::Screen;
use super::text::{Table, age, bytes, cell, facts, latency, until};
use super::{CommandError, CommandOutcome, cluster};
use crate::api::{DeliveryInfo, TaskInfo};
use crate::cli::admin::{TaskListArgs, TasksArgs, TasksCommand};
use crate::task::{Consistency, DeliveryState, TaskId, Timestamp};

pub(super) async fn run(
    args: &TasksArgs,
    client: &DaemonClient,
    screen: &mut Screen,
) -> Result<CommandOutcome, CommandError> {
    let json = args.ask.json;
    match &args.command {
        None => show_list(&TaskListArgs::default(), json, client, screen).await,
        Some(TasksCommand::List(args)) => show_list(args, json, client, screen).await,
        Some(TasksCommand::Show(of)) => {
            let id = of.task.to_string();
            let answer = client.get(&["v1", "tasks", &id], &[]).await;
            show_one(&answer.map_err(|error| not_found(error, of.task))?, json, client, screen)
        }
        Some(TasksCommand::Discard(of)) => {
            let id = of.task.to_string();
            let answer = client.delete(&["v1", "tasks", &id]).await;
            show_one(&answer.map_err(|error| not_found(error, of.task))?, json, client, screen)
        }
    }
}

fn not_found(error: super::client::CallError, task: TaskId) -> CommandError {
    if error.is_not_found() {
        let why = "it is settled and past --task-history, or was never accepted";
        return CommandError::Other(format!("no task {task}: {why}"));
    }
    error.into()
}

async fn show_list(
    args: &TaskListArgs,
    json: bool,
    client: &DaemonClient,
    screen: &mut Screen,
) -> Result<CommandOutcome, CommandError> {
    let mut filter = key_filter(&args.keys);
    filter.extend(args.state.map(|state| ("state", state_name(state.into()).to_owned())));
    filter.extend(args.replica.as_ref().map(|node| ("replica", node.to_string())));
    let list = ListQuery { path: &["v1", "tasks"], field: "tasks", filter, page: &args.page };
    if json {
        return list.print_json(client, screen).await;
    }
    let now = screen.now();
    let table = Table::new(&["TASK", ">AGE", "OP", "KEY", ">SIZE", "USER", "DELIVERIES"]);
    let row = |task: &TaskInfo| {
        vec![
            task.task_id.clone(),
            task.accepted_at.as_ref().map_or_else(unknown, |at| age(at, now)),
            task.operation.map_or_else(unknown, |operation| operation.to_string()),
            task.key.as_deref().map_or_else(unknown, cell),
            task.value_bytes.map_or_else(unknown, bytes),
            task.user_id.as_deref().map_or_else(unknown, cell),
            state_counts(&task.deliveries),
        ]
    };
    list.print_table(client, screen, (table, "no unsettled tasks"), row).await
}

fn show_one(
    answer: &JsonAnswer,
    json: bool,
    client: &DaemonClient,
    screen: &mut Screen,
) -> Result<CommandOutcome, CommandError> {
    let task: TaskInfo = client.read(answer)?;
    screen.show(json, answer, details(&task, screen.now()))?;
    cluster::incomplete(&task.incomplete).iter().for_each(|text| screen.message(text));
    Ok(CommandOutcome::Done)
}

fn unknown() -> String {
    "-".to_owned()
}

fn details(task: &TaskInfo, now: Timestamp) -> Vec<String> {
    let mut lines = vec![("task", task.task_id.clone())];
    lines.extend(task.key.as_ref().map(|key| ("key", key.clone())));
    lines.extend(task.operation.map(|write| ("operation", write.to_string())));
    lines.extend(task.value_bytes.map(|length| ("value", bytes(length))));
    lines.extend(task.consistency.map(|consistency| {
        let name = match consistency {
            Consistency::Eventual => "eventual",
            Consistency::Strong => "strong",
        };
        ("consistency", name.to_owned())
    }));
    lines.extend(task.user_id.as_ref().map(|user| ("user", user.clone())));
    let ago = |at: &String| format!("{} ago, {}", age(at, now), at.clone());
    lines.extend(task.accepted_at.as_ref().map(|at| ("accepted", ago(at))));
    lines.extend(task.expires_at.as_ref().map(|at| ("expires", at.clone())));
    lines.extend(task.settled_at.as_ref().map(|at| ("settled", ago(at))));
    let mut table = Table::new(&["REPLICA", "STATE", ">FAILURES", "NEXT", "LAST ERROR"]);
    for delivery in &task.deliveries {
        let next = delivery.next_attempt_at.as_ref();
        let error = delivery.last_error.as_ref().map(|error| match &delivery.last_failed_at {
            Some(at) => format!("{} ago: {}", age(at, now), error.clone()),
            None => error.clone(),
        });
        let state = state_name(delivery.state).replace('_', " ");
        table.row([
            delivery.replica.clone(),
            match delivery.cause {
                Some(cause) => format!("{state}: {}", cause.as_str().replace('_', " ")),
                None => state,
            },
            delivery.failures.to_string(),
            next.map_or_else(unknown, |at| format!("in {}", until(at, now))),
            error.unwrap_or_else(unknown),
        ]);
    }
    let mut lines = [facts(&lines), vec![String::new()], table.render()].concat();
    let mut attempts = Table::new(&["ATTEMPTS", ">ENDED", ">TOOK", "RESULT"]);
    for delivery in &task.deliveries {
        for attempt in &delivery.attempts {
            attempts.row([
                delivery.replica.clone(),
                format!("{} ago", age(&attempt.ended_at, now)),
                latency(Some(attempt.duration_seconds)),
                attempt.error.clone().unwrap_or_else(|| "delivered".to_owned()),
            ]);
        }
    }
    if !attempts.is_empty() {
        lines.push(String::new());
        lines.extend(attempts.render());
    }
    lines
}

/// `2 delivered, 1 retrying`, in the order of the states.
pub(super) fn state_counts(deliveries: &[DeliveryInfo]) -> String {
    use DeliveryState as S;
    let all = [
        S::Delivered,
        S::Superseded,
        S::Discarded,
        S::Queued,
        S::InFlight,
        S::Retrying,
        S::Parked,
        S::Dead,
    ];
    let number = |state| deliveries.iter().filter(|delivery| delivery.state == state).count();
    let counts = all.into_iter().map(|state| (number(state), state));
    let texts = counts
        .filter(|(number, _)| *number > 0)
        .map(|(number, state)| format!("{number} {}", state_name(state).replace('_', " ")));
    texts.collect::<Vec<_>>().join(", ")
}

fn state_name(state: DeliveryState) -> &'static str {
    match state {
        DeliveryState::Queued => "queued",
        DeliveryState::InFlight => "in_flight",
        DeliveryState::Retrying => "retrying",
        DeliveryState::Parked => "parked",
        DeliveryState::Dead => "dead",
        DeliveryState::Delivered => "delivered",
        DeliveryState::Superseded => "superseded",
        DeliveryState::Discarded => "discarded",
    }
}
