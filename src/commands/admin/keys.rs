//! `replicator key`: the last writes of a key, and what each replica has of them.

use super::client::DaemonClient;
use super::screen::Screen;
use super::tasks::state_counts;
use super::text::{Table, age, bytes};
use super::{CommandError, CommandOutcome, cluster};
use crate::api::KeyInfo;
use crate::cli::admin::KeyShowArgs;
use crate::task::Timestamp;

pub(super) async fn run(
    args: &KeyShowArgs,
    client: &DaemonClient,
    screen: &mut Screen,
) -> Result<CommandOutcome, CommandError> {
    let answer = client.get(&["v1", "keys", &args.key], &[]).await?;
    let key: KeyInfo = client.read(&answer)?;
    screen.show(args.ask.json, &answer, details(&key, screen.now()))?;
    cluster::incomplete(&key.incomplete).iter().for_each(|text| screen.message(text));
    Ok(CommandOutcome::Done)
}

fn details(key: &KeyInfo, now: Timestamp) -> Vec<String> {
    if key.writes.is_empty() {
        return vec!["no unsettled writes, and none in --task-history".to_owned()];
    }
    let unknown = || "-".to_owned();
    let mut replicas = Table::new(&["REPLICA", ">ACKNOWLEDGED", ">PENDING", ">DEAD LETTERS"]);
    for replica in &key.replicas {
        replicas.row([
            replica.replica.clone(),
            replica.acknowledged_sequence.clone().unwrap_or_else(unknown),
            replica.pending.to_string(),
            replica.dead_letters.to_string(),
        ]);
    }
    let mut writes = Table::new(&["TASK", ">AGE", "OP", ">SIZE", "DELIVERIES"]);
    for task in &key.writes {
        writes.row([
            task.task_id.clone(),
            task.accepted_at.as_ref().map_or_else(unknown, |at| age(at, now)),
            task.operation.map_or_else(unknown, |operation| operation.to_string()),
            task.value_bytes.map_or_else(unknown, bytes),
            state_counts(&task.deliveries),
        ]);
    }
    [replicas.render(), vec![String::new()], writes.render()].concat()
}
