//! `replicator dead-letters`: list, redrive and discard.

use super::client::DaemonClient;
use super::list::{ListQuery, key_filter};
use super::screen::Screen;
use super::text::{Table, age, bytes, cell};
use super::{CommandError, CommandOutcome, cluster, operations};
use crate::api::{DeadLetterInfo, DiscardRequest, LetterSummary, RedriveRequest, Selection};
use crate::cli::admin::{
    DeadLettersArgs, DeadLettersCommand, LetterListArgs, OperationRunArgs, SelectionArgs,
};
use crate::commands::serve::Signals;
use crate::task::{Cause, Timestamp};

pub(super) async fn run(
    args: &DeadLettersArgs,
    client: &DaemonClient,
    screen: &mut Screen,
) -> Result<CommandOutcome, CommandError> {
    match &args.command {
        Some(DeadLettersCommand::Redrive(_) | DeadLettersCommand::Discard(_)) => {
            let mut signals = Signals::catch()?;
            let interrupt = async || {
                signals.next().await;
            };
            run_interruptible(args, client, screen, interrupt).await
        }
        // Ctrl-C ends the process.
        _ => run_interruptible(args, client, screen, std::future::pending).await,
    }
}

/// As [`run`]; `interrupt` resolves on Ctrl-C.
pub(super) async fn run_interruptible(
    args: &DeadLettersArgs,
    client: &DaemonClient,
    screen: &mut Screen,
    interrupt: impl AsyncFnMut(),
) -> Result<CommandOutcome, CommandError> {
    let json = args.ask.json;
    match &args.command {
        None => show_list(&LetterListArgs::default(), json, client, screen).await,
        Some(DeadLettersCommand::List(args)) => show_list(args, json, client, screen).await,
        Some(DeadLettersCommand::Summary) => {
            let answer = client.get(&["v1", "dead-letters", "summary"], &[]).await?;
            let shown: LetterSummary = client.read(&answer)?;
            screen.show(json, &answer, summary(&shown, screen.now()))?;
            cluster::incomplete(&shown.incomplete).iter().for_each(|text| screen.message(text));
            Ok(CommandOutcome::Done)
        }
        Some(DeadLettersCommand::Redrive(args)) => {
            let OperationRunArgs { dry_run, .. } = args.run;
            let selection = selection(&args.selection);
            let rate = args.rate.map(std::num::NonZeroU32::get);
            let request = RedriveRequest { selection, dry_run, rate };
            let path = ["v1", "dead-letters", "redrive"];
            operations::run(&path, &request, (&args.run, json), client, screen, interrupt).await
        }
        Some(DeadLettersCommand::Discard(args)) => {
            let OperationRunArgs { dry_run, .. } = args.run;
            let request = DiscardRequest { selection: selection(&args.selection), dry_run };
            let path = ["v1", "dead-letters", "discard"];
            operations::run(&path, &request, (&args.run, json), client, screen, interrupt).await
        }
        Some(DeadLettersCommand::Operations(args)) => {
            operations::show(args.operation.as_deref(), json, client, screen).await
        }
        Some(DeadLettersCommand::Cancel(args)) => {
            operations::cancel(&args.operation, json, client, screen).await
        }
    }
}

fn summary(summary: &LetterSummary, now: Timestamp) -> Vec<String> {
    if summary.dead_letters == 0 {
        return vec!["no dead letters".to_owned()];
    }
    let mut table = Table::new(&[">COUNT", "REPLICA", "CAUSE", ">OLDEST", ">NEWEST", "ERROR"]);
    for group in &summary.groups {
        table.row([
            group.count.to_string(),
            cell(&group.replica),
            group.cause.as_str().replace('_', " "),
            age(&group.oldest, now),
            age(&group.newest, now),
            group.error.clone(),
        ]);
    }
    let mut lines = table.render();
    if summary.other > 0 {
        lines.push(format!("and {} in smaller groups", summary.other));
    }
    lines
}

fn selection(args: &SelectionArgs) -> Selection {
    Selection {
        ids: (!args.ids.is_empty()).then(|| args.ids.clone()),
        replica: args.filter.replica.as_ref().map(ToString::to_string),
        key: args.filter.keys.key.clone(),
        key_prefix: args.filter.keys.key_prefix.clone(),
        user_id: args.filter.keys.user_id.clone(),
        cause: args.filter.cause.map(Into::into),
        all: args.all,
    }
}

async fn show_list(
    args: &LetterListArgs,
    json: bool,
    client: &DaemonClient,
    screen: &mut Screen,
) -> Result<CommandOutcome, CommandError> {
    let mut filter = key_filter(&args.filter.keys);
    filter.extend(args.filter.replica.as_ref().map(|node| ("replica", node.to_string())));
    let cause = args.filter.cause.map(|cause| Cause::from(cause).as_str().to_owned());
    filter.extend(cause.map(|cause| ("cause", cause)));
    let (path, page) = (&["v1", "dead-letters"], &args.page);
    let list = ListQuery { path, field: "dead_letters", filter, page };
    if json {
        return list.print_json(client, screen).await;
    }
    let now = screen.now();
    let table = Table::new(&[
        "TASK",
        "REPLICA",
        "OP",
        "KEY",
        ">SIZE",
        ">SINCE",
        "CAUSE",
        ">FAILURES",
        "LAST ERROR",
    ]);
    let row = |letter: &DeadLetterInfo| {
        vec![
            letter.task_id.clone(),
            cell(&letter.replica),
            letter.operation.to_string(),
            cell(&letter.key),
            bytes(letter.value_bytes),
            age(&letter.since, now),
            letter.cause.as_str().replace('_', " "),
            letter.failures.to_string(),
            letter.last_error.clone(),
        ]
    };
    list.print_table(client, screen, (table, "no dead letters"), row).await
}
