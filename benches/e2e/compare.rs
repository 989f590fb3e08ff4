//! This build against another one, in the same run.

use std::time::Duration;

use crate::load::{Round, post};
use crate::parts::{WIDE, body, in_turn, median};
use crate::roles::Process;

const ROUNDS: usize = 7;
const ROUND: Duration = Duration::from_secs(2);

/// Eventual and strong writes of this build and of the binary in `E2E_BASELINE`, in turn. The ratios
/// are medians of pairs.
pub async fn compare() {
    let Ok(baseline) = std::env::var("E2E_BASELINE") else {
        println!("\ncompare: set E2E_BASELINE to the binary of another build");
        return;
    };
    println!("\ncompare: beside {baseline}, {ROUNDS} pairs of rounds of {ROUND:?}");
    println!(
        "{:>9} {:>11} {:>11} {:>11} {:>6} {:>13} {:>11} {:>6}",
        "", "connections", "baseline /s", "this /s", "ratio", "baseline p50", "this p50", "ratio"
    );
    for consistency in ["eventual", "strong"] {
        // With silent replicas only accepting is measured.
        let role = if consistency == "strong" { "null-replica" } else { "silent-replica" };
        let replicas = [Process::role(role), Process::role(role)];
        let nodes: Vec<_> = replicas.iter().map(|replica| replica.address.clone()).collect();
        for connections in [1, 16, 64] {
            let daemons = [baseline.as_str(), env!("CARGO_BIN_EXE_replicator")]
                .map(|binary| Process::daemon_at(binary, WIDE));
            let mut pairs = Vec::new();
            for round in 0..ROUNDS {
                let pair = in_turn(round, async |this| {
                    let nodes = nodes.clone();
                    let make = move |connection: usize, n: u64| {
                        let nodes: Vec<_> = nodes.iter().map(String::as_str).collect();
                        body(consistency, &format!("k-{round}-{connection}-{n}"), &nodes)
                    };
                    let daemon = &daemons[usize::from(this)];
                    post(&daemon.address, connections, ROUND, make).await
                });
                pairs.push(pair.await);
            }
            show(consistency, connections, &pairs);
        }
    }
}

fn show(consistency: &str, connections: usize, pairs: &[[Round; 2]]) {
    let p50 = |round: &Round| round.percentile(50).as_secs_f64() * 1e6;
    let of = |figure: &dyn Fn(&[Round; 2]) -> f64| median(pairs.iter().map(figure).collect());
    println!(
        "{consistency:>9} {connections:>11} {:>11.0} {:>11.0} {:>6.2} {:>10.0} us {:>8.0} us {:>6.2}",
        of(&|[baseline, _]| baseline.rate),
        of(&|[_, this]| this.rate),
        of(&|[baseline, this]| this.rate / baseline.rate),
        of(&|[baseline, _]| p50(baseline)),
        of(&|[_, this]| p50(this)),
        of(&|[baseline, this]| p50(this) / p50(baseline)),
    );
}
