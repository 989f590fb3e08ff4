//! `replicator verify`: compares replicas with the primary.

use std::time::Duration;

use super::client::DaemonClient;
use super::screen::Screen;
use super::text::{Table, cell, count};
use super::{CommandError, CommandOutcome};
use crate::api::{NewVerification, Verification, VerifyFinding, VerifyResult};
use crate::cli::admin::VerifyArgs;

/// How long the daemon compares at most.
const COMPARES_WITHIN: Duration = Duration::from_secs(60);

pub(super) async fn run(
    args: &VerifyArgs,
    client: &DaemonClient,
    screen: &mut Screen,
) -> Result<CommandOutcome, CommandError> {
    let body = NewVerification {
        replica: args.replica.as_ref().map(ToString::to_string),
        sample: Some(args.sample),
        repair: args.repair,
    };
    let answer = client.post_within(&["v1", "verify"], Some(&body), COMPARES_WITHIN).await?;
    let verification: Verification = client.read(&answer)?;
    screen.show(args.ask.json, &answer, lines(&verification))?;
    let counts = &verification.counts;
    let differing = counts.different + counts.missing + counts.extra;
    Ok(if differing > counts.repaired {
        CommandOutcome::GivenUp
    } else if counts.unreadable + counts.pending + verification.unchecked > 0 {
        CommandOutcome::Incomplete
    } else {
        CommandOutcome::Done
    })
}

fn lines(verification: &Verification) -> Vec<String> {
    let Verification { keys, unchecked, counts, replicas, findings } = verification;
    let differing = counts.different + counts.missing + counts.extra;
    let mut first = format!("compared {}: ", count(*keys, "key"));
    first += &match (keys, differing) {
        (0, _) => "no write with the address of a primary was accepted lately".to_owned(),
        (_, 0) => "no difference".to_owned(),
        _ => format!("{}, {} being repaired", count(differing, "difference"), counts.repaired),
    };
    if *unchecked > 0 {
        first += &format!("; {} not compared in time", count(*unchecked, "key"));
    }
    let mut table = Table::new(&[
        "REPLICA",
        ">EQUAL",
        ">DIFFERENT",
        ">MISSING",
        ">EXTRA",
        ">UNREADABLE",
        ">PENDING",
        ">REPAIRED",
    ]);
    for replica in replicas {
        let counts = &replica.counts;
        let figures = [
            counts.equal,
            counts.different,
            counts.missing,
            counts.extra,
            counts.unreadable,
            counts.pending,
            counts.repaired,
        ];
        table.row(std::iter::once(cell(&replica.replica)).chain(figures.map(|n| n.to_string())));
    }
    let mut lines = vec![first];
    if !replicas.is_empty() {
        lines.extend(table.render());
    }
    lines.extend(findings.iter().map(finding));
    lines
}

fn finding(finding: &VerifyFinding) -> String {
    let what = match finding.result {
        VerifyResult::Equal => "equal",
        VerifyResult::Different => "different",
        VerifyResult::Missing => "missing",
        VerifyResult::Extra => "extra",
        VerifyResult::Unreadable => "unreadable",
        VerifyResult::Pending => "pending",
        VerifyResult::Rewritten => "rewritten",
    };
    let mut text = format!("{what}: key {:?} at {}", finding.key, finding.replica);
    if let Some(detail) = &finding.detail {
        text = format!("{text}: {detail}");
    }
    match &finding.repaired_by {
        Some(task) => format!("{text}: repaired by task {task}"),
        None => text,
    }
}
