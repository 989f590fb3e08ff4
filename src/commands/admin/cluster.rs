//! `replicator cluster`: the instances and partitions of a cluster store; drains an instance.

use super::client::DaemonClient;
use super::screen::{Screen, ScreenLine, Severity};
use super::text::{Table, age, cell, count, seconds};
use super::{CommandError, CommandOutcome};
use crate::api::{Cluster, ClusterDrain, ClusterMember, PartitionInfo, PartitionState};
use crate::cli::admin::{ClusterCommand, ClusterViewArgs};
use crate::task::Timestamp;

pub(super) async fn run(
    args: &ClusterViewArgs,
    client: &DaemonClient,
    screen: &mut Screen,
) -> Result<CommandOutcome, CommandError> {
    let json = args.ask.json;
    match &args.command {
        None | Some(ClusterCommand::Show) => {
            let answer = client.get(&["v1", "cluster"], &[]).await?;
            let cluster: Cluster = client.read(&answer)?;
            let problems = problems(&cluster);
            let mut lines: Vec<_> = vec![ScreenLine::from(summary(&cluster))];
            let problem = |text: &String| ScreenLine::marked(Severity::Warning, "!", text.clone());
            lines.extend(problems.iter().map(problem));
            lines.extend(tables(&cluster, screen.now()).into_iter().map(ScreenLine::from));
            screen.show(json, &answer, lines)?;
            Ok(if problems.is_empty() { CommandOutcome::Done } else { CommandOutcome::Incomplete })
        }
        Some(ClusterCommand::Drain(args)) => {
            let drain = !args.undo;
            let request = ClusterDrain { node: args.node.clone(), drain };
            let answer = client.post(&["v1", "cluster", "drain"], Some(&request)).await?;
            let cluster: Cluster = client.read(&answer)?;
            let of = |member: &&ClusterMember| member.node == args.node;
            let left: u64 = cluster.members.iter().filter(of).map(|of| of.partitions).sum();
            let node = &args.node;
            let text = match drain {
                true => format!(
                    "draining {node}: it hands over {} and claims none until --undo or its end",
                    count(left, "partition")
                ),
                false => format!("{node} takes its share of the partitions again"),
            };
            screen.show(json, &answer, [text])?;
            Ok(CommandOutcome::Done)
        }
    }
}

/// The cluster in one line.
pub(super) fn summary(cluster: &Cluster) -> String {
    let synced = match cluster.store.sync_always {
        Some(true) => "writes are synced to disk",
        Some(false) => "writes are not synced to disk at once",
        None => "the servers do not tell whether writes are synced to disk",
    };
    let members: Vec<_> = cluster
        .members
        .iter()
        .map(|member| format!("{} {}", member.node, member.partitions))
        .collect();
    format!(
        "cluster {}: {} of {} ({}); {synced}",
        cluster.name,
        count(cluster.members.len() as u64, "instance"),
        count(cluster.partitions.len() as u64, "partition"),
        members.join(", "),
    )
}

/// What an operator should look at.
pub(super) fn problems(cluster: &Cluster) -> Vec<String> {
    let numbers = |state: PartitionState| {
        let of = cluster.partitions.iter().filter(|one| one.state == state);
        of.map(|one| one.number.to_string()).collect::<Vec<_>>().join(", ")
    };
    let mut problems = Vec::new();
    let (unled, unowned) = (numbers(PartitionState::NoLeader), numbers(PartitionState::NoOwner));
    if !unled.is_empty() {
        problems.push(format!("no server leads the partitions {unled}: their writes wait"));
    }
    if !unowned.is_empty() {
        problems.push(format!("no instance delivers the partitions {unowned}"));
    }
    problems
}

fn tables(cluster: &Cluster, now: Timestamp) -> Vec<String> {
    let mut members = Table::new(&["INSTANCE", "VERSION", ">UP", ">PARTITIONS", "STATE"]);
    for member in &cluster.members {
        members.row([
            cell(&member.node),
            member.version.clone(),
            seconds(member.up_for_seconds),
            member.partitions.to_string(),
            state(member).to_owned(),
        ]);
    }
    let mut partitions =
        Table::new(&[">PARTITION", "STATE", "OWNER", ">EPOCH", ">FOR", "LED BY SERVER"]);
    for one in &cluster.partitions {
        let PartitionInfo { number, state, owner, epoch, since, leader } = one;
        let state = match state {
            PartitionState::Owned => "owned",
            PartitionState::NoOwner => "no owner",
            PartitionState::NoLeader => "no leader",
        };
        partitions.row([
            number.to_string(),
            state.to_owned(),
            cell(owner.as_deref().unwrap_or("-")),
            epoch.to_string(),
            since.as_ref().map_or_else(|| "-".to_owned(), |since| age(since, now)),
            cell(leader.as_deref().unwrap_or("-")),
        ]);
    }
    let store = match cluster.store.lag {
        Some(lag) => format!("slowest copy: {} behind", count(lag, "operation")),
        None => "no stream answers".to_owned(),
    };
    let gap = || vec![String::new()];
    [gap(), members.render(), gap(), partitions.render(), gap(), vec![store]].concat()
}

fn state(member: &ClusterMember) -> &'static str {
    match (member.leaving, member.draining) {
        (true, _) => "stopping",
        (_, true) => "draining",
        _ => "-",
    }
}

/// The sentence of an answer that lacks partitions.
pub(super) fn incomplete(partitions: &[u16]) -> Option<String> {
    let numbers: Vec<_> = partitions.iter().map(u16::to_string).collect();
    (!numbers.is_empty()).then(|| {
        format!("incomplete: there is no answer for the partitions {}", numbers.join(", "))
    })
}
