//! `replicator replicas`: list, show, pause, resume, set, probe, forget and rename.

use std::collections::BTreeMap;
use std::time::Duration;

use super::client::DaemonClient;
use super::cluster::incomplete;
use super::screen::Screen;
use super::text::{Table, age, bytes, cell, count, facts, latency, rate, seconds};
use super::{CommandError, CommandOutcome, text};
use crate::api::{Convergence, Forgotten, PauseRequest, Probed, Rename, Replica, ReplicaPage};
use crate::cli::admin::{ForgetArgs, RenameArgs, ReplicasArgs, ReplicasCommand};
use crate::task::{Node, Timestamp};

const NO_BODY: Option<&()> = None;

pub(super) async fn run(
    args: &ReplicasArgs,
    client: &DaemonClient,
    screen: &mut Screen,
) -> Result<CommandOutcome, CommandError> {
    let json = args.ask.json;
    match args.command.as_ref().unwrap_or(&ReplicasCommand::List) {
        ReplicasCommand::List => {
            let answer = client.get(&["v1", "replicas"], &[]).await?;
            let page: ReplicaPage = client.read(&answer)?;
            let lines = match page.replicas.as_slice() {
                [] => vec!["no replica has had a delivery since the daemon started".to_owned()],
                replicas => table(replicas),
            };
            screen.show(json, &answer, lines)?;
            incomplete(&page.incomplete).iter().for_each(|text| screen.message(text));
        }
        ReplicasCommand::Show(of) => {
            let answer = client.get(&path(&of.node, None), &[]).await?;
            let replica: Replica = client.read(&answer)?;
            screen.show(json, &answer, details(&replica, screen.now()))?;
            incomplete(&replica.incomplete).iter().for_each(|text| screen.message(text));
        }
        ReplicasCommand::Pause(args) => {
            let whole = |time: Duration| time.as_secs() + u64::from(time.subsec_nanos() > 0);
            let for_seconds = args.time.map(whole);
            let end = PauseRequest { for_seconds, until: args.until.clone() };
            let answer = client.post(&path(&args.node.node, Some("pause")), Some(&end)).await?;
            let replica: Replica = client.read(&answer)?;
            let waiting = count(replica.backlog_tasks, "task");
            let until = replica.paused_until.as_deref().unwrap_or("it is resumed");
            let text = format!(
                "paused {}: nothing is sent until {until}; backlog of {waiting}",
                replica.replica
            );
            screen.show(json, &answer, [text])?;
            return Ok(confirmed(&replica, screen));
        }
        ReplicasCommand::Resume(of) => {
            let answer = client.post(&path(&of.node, Some("resume")), NO_BODY).await?;
            let replica: Replica = client.read(&answer)?;
            let waiting = count(replica.backlog_tasks, "task");
            let text = format!("resumed {}: sending its backlog of {waiting}", replica.replica);
            screen.show(json, &answer, [text])?;
            return Ok(confirmed(&replica, screen));
        }
        ReplicasCommand::Set(args) => {
            let limits = [
                ("workers", args.workers),
                ("rate", args.rate),
                ("bandwidth", args.bandwidth),
                ("redrive_rate", args.redrive_rate),
            ];
            let given = limits.into_iter().filter_map(|(name, limit)| Some((name, limit?.0)));
            let change: BTreeMap<_, _> = given.collect();
            let answer = client.patch(&path(&args.node.node, None), &change).await?;
            let replica: Replica = client.read(&answer)?;
            let text = format!("limits of {}: {}", replica.replica, replica.limits);
            screen.show(json, &answer, [text])?;
            return Ok(confirmed(&replica, screen));
        }
        ReplicasCommand::Probe(of) => {
            let answer = client.post(&path(&of.node, Some("probe")), NO_BODY).await?;
            let probed: Probed = client.read(&answer)?;
            let name = probed.replica;
            let text = if probed.probing {
                format!("probing {name}: sending a delivery now")
            } else {
                let why = probed.reason.unwrap_or_else(|| "no reason given".to_owned());
                format!("not probing {name}: {why}")
            };
            screen.show(json, &answer, [text])?;
            incomplete(&probed.incomplete).iter().for_each(|text| screen.message(text));
            if !probed.probing {
                return Ok(CommandOutcome::Failed);
            }
        }
        ReplicasCommand::Forget(args) => return forget(args, json, client, screen).await,
        ReplicasCommand::Rename(args) => return rename(args, json, client, screen).await,
    }
    Ok(CommandOutcome::Done)
}

/// Whether every instance of a cluster applies a change.
fn confirmed(replica: &Replica, screen: &mut Screen) -> CommandOutcome {
    if let Some(text) = incomplete(&replica.incomplete) {
        screen.message(&text);
    }
    if replica.unconfirmed.is_empty() {
        return match replica.incomplete.is_empty() {
            true => CommandOutcome::Done,
            false => CommandOutcome::Incomplete,
        };
    }
    let nodes = replica.unconfirmed.join(", ");
    screen.message(&format!("not confirmed by {nodes}: check with replicator cluster"));
    CommandOutcome::Incomplete
}

/// Without `--yes` it only prints what would be lost.
async fn forget(
    args: &ForgetArgs,
    json: bool,
    client: &DaemonClient,
    screen: &mut Screen,
) -> Result<CommandOutcome, CommandError> {
    let node = &args.node.node;
    if !args.yes {
        let answer = client.get(&path(node, None), &[]).await?;
        let replica: Replica = client.read(&answer)?;
        screen.message(&format!(
            "this would discard {} and {} of {}, which then lacks those writes: confirm with --yes",
            count(replica.backlog_tasks, "delivery"),
            count(replica.dead_letters, "dead letter"),
            replica.replica,
        ));
        return Ok(CommandOutcome::Unconfirmed);
    }
    let answer = client.post(&path(node, Some("forget")), NO_BODY).await?;
    let Forgotten { replica, discarded, in_flight, incomplete: missing } = client.read(&answer)?;
    let mut text = format!("forgot {replica}: discarded {discarded}");
    if in_flight > 0 {
        text = format!("{text}; {in_flight} in flight are not retried");
    }
    screen.show(json, &answer, [text])?;
    if let Some(text) = incomplete(&missing) {
        screen.message(&text);
        return Ok(CommandOutcome::Incomplete);
    }
    Ok(CommandOutcome::Done)
}

/// Without `--yes` it only prints what would change.
async fn rename(
    args: &RenameArgs,
    json: bool,
    client: &DaemonClient,
    screen: &mut Screen,
) -> Result<CommandOutcome, CommandError> {
    let node = &args.node.node;
    if !args.yes {
        let answer = client.get(&path(node, None), &[]).await?;
        let replica: Replica = client.read(&answer)?;
        screen.message(&format!(
            "this would send {} and all future writes of {} to {}, and cannot be undone: confirm with --yes",
            count(replica.backlog_tasks, "pending delivery"),
            replica.replica,
            args.to,
        ));
        return Ok(CommandOutcome::Unconfirmed);
    }
    let to = Rename { to: args.to.to_string() };
    let answer = client.post(&path(node, Some("rename")), Some(&to)).await?;
    let replica: Replica = client.read(&answer)?;
    let text = format!(
        "renamed {node}: its writes now go to {}; backlog of {}",
        replica.replica,
        count(replica.backlog_tasks, "task")
    );
    screen.show(json, &answer, [text])?;
    Ok(confirmed(&replica, screen))
}

fn path<'a>(node: &'a Node, verb: Option<&'a str>) -> Vec<&'a str> {
    ["v1", "replicas", node.as_str()].into_iter().chain(verb).collect()
}

pub(super) fn table<'a>(replicas: impl IntoIterator<Item = &'a Replica>) -> Vec<String> {
    let replicas: Vec<_> = replicas.into_iter().collect();
    let mut headings = vec![
        "REPLICA",
        "STATE",
        ">BACKLOG",
        ">SIZE",
        ">LAG",
        ">IN/S",
        ">OUT/S",
        ">P99",
        ">DEAD",
        ">PARKED",
        "DRAINED IN",
    ];
    // Limits are rare.
    let is_limited = replicas.iter().any(|replica| !replica.limits.is_none());
    headings.extend(is_limited.then_some("LIMITS"));
    let mut table = Table::new(&headings);
    for replica in replicas {
        let limits = is_limited.then(|| match replica.limits {
            limits if limits.is_none() => "-".to_owned(),
            limits => limits.to_string(),
        });
        let row = [
            cell(&replica.replica),
            replica.state.as_str().to_owned(),
            replica.backlog_tasks.to_string(),
            bytes(replica.backlog_bytes),
            seconds(replica.lag_seconds),
            rate(replica.rate_in),
            rate(replica.rate_out),
            latency(replica.latency_p99_seconds),
            replica.dead_letters.to_string(),
            replica.parked.to_string(),
            drained(replica),
        ];
        table.row(row.into_iter().chain(limits));
    }
    table.render()
}

fn drained(replica: &Replica) -> String {
    match (replica.convergence, replica.drained_in_seconds) {
        (Convergence::Drained | Convergence::Steady, _) => "-".to_owned(),
        (Convergence::Draining, Some(left)) => seconds(left),
        (Convergence::Draining, None) => "draining".to_owned(),
        (Convergence::NotConverging, _) => "not converging".to_owned(),
        (Convergence::Paused, _) => "paused".to_owned(),
    }
}

/// How long the replica may stay away before writes are refused, and by which limit.
pub(super) fn headroom(replica: &Replica) -> String {
    match (replica.outage_headroom_seconds, &replica.outage_limit) {
        (Some(left), Some(limit)) => format!("{} before {limit} refuses writes", seconds(left)),
        _ => "for 30 days or more".to_owned(),
    }
}

fn details(replica: &Replica, now: Timestamp) -> Vec<String> {
    let duration = |since: &Option<String>| {
        since.as_ref().map_or_else(String::new, |since| format!(" for {}", age(since, now)))
    };
    let mut lines = vec![("replica", replica.replica.clone())];
    if !replica.renamed_from.is_empty() {
        lines.push(("renamed from", replica.renamed_from.join(", ")));
    }
    let mut state = format!("{}{}", replica.state.as_str(), duration(&replica.state_since));
    if let Some(probe) = &replica.next_probe_at {
        state = format!("{state}, {}", text::probe(probe, now));
    }
    if let Some(until) = &replica.paused_until {
        state = format!("{state}, until {until}");
    }
    lines.push(("state", state));
    lines.push((
        "backlog",
        format!(
            "{}, {}: {} in flight, {} retrying, {} parked",
            count(replica.backlog_tasks, "task"),
            bytes(replica.backlog_bytes),
            replica.in_flight,
            replica.retrying,
            replica.parked
        ),
    ));
    lines.push(("lag", seconds(replica.lag_seconds)));
    lines.push(("drained in", drained(replica)));
    lines.push(("may be away", headroom(replica)));
    lines.push((
        "dead letters",
        format!(
            "{}; {} including parked deliveries",
            replica.dead_letters,
            bytes(replica.dead_letter_bytes)
        ),
    ));
    lines.push((
        "rates",
        format!("{}/s in, {}/s out", rate(replica.rate_in), rate(replica.rate_out)),
    ));
    lines.push((
        "latency",
        format!(
            "p50 {}, p99 {}",
            latency(replica.latency_p50_seconds),
            latency(replica.latency_p99_seconds)
        ),
    ));
    lines.push(("workers", replica.workers.to_string()));
    if !replica.limits.is_none() {
        lines.push(("limits", replica.limits.to_string()));
    }
    if let Some(last) = &replica.last_error {
        lines.push(("last error", format!("{} ago: {}", age(&last.at, now), last.error)));
    }
    let books = &replica.books;
    lines.push((
        "books",
        format!(
            "{} accepted = {} delivered + {} superseded + {} dead + {} discarded{} + {} pending",
            books.accepted,
            books.delivered,
            books.superseded,
            books.dead,
            books.discarded,
            match books.handed_over {
                0 => String::new(),
                handed_over => format!(" + {handed_over} handed over"),
            },
            books.pending
        ),
    ));
    lines.push((
        "",
        format!(
            "{} attempts failed, {} not sent, {} redriven",
            books.failed_attempts, books.unsent_attempts, books.redriven
        ),
    ));
    facts(&lines)
}
