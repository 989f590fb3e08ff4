//! The effect of a bad replica on four healthy ones.
//!
//! A run without the bad replica has the same writes without its address, so that the healthy replicas
//! have the same load. Runs with and without alternate in pairs; the results are medians of the ratios
//! of the pairs.

use std::collections::HashMap;
use std::time::Duration;

use crate::load::{Paced, Posted, percentile_ms, post};
use crate::node::{Node, Seen, Way, since_start, stamped};
use crate::parts::{in_turn, median};
use crate::roles::Process;

const ROUNDS: usize = 3;
const PACED: u64 = 750;
/// Writes per second that name the bad replica, besides the saturating load.
const BESIDE: u64 = 200;
const BAD: usize = 4;

const KINDS: [&str; 4] = ["dead", "hangs", "after 2 s", "fails half"];
const NONE: &str = "none";

async fn bad(kind: &str) -> Option<Node> {
    Some(match kind {
        NONE => return None,
        "dead" => Node::down(),
        "hangs" => Node::start(Way::Hang).await,
        "after 2 s" => Node::start(Way::After(Duration::from_secs(2))).await,
        _ => Node::start(Way::FailHalf).await,
    })
}

/// The time of a run: long enough for the last retry of its first writes.
fn time() -> Duration {
    let seconds = std::env::var("E2E_SECONDS").ok().map_or(15, |text| text.parse().unwrap());
    Duration::from_secs(seconds)
}

/// The replicas of write `n`: each one alone and each pair, in turn.
fn named(n: u64) -> Vec<usize> {
    let mut all: Vec<_> = (0..=BAD).map(|one| vec![one]).collect();
    for one in 0..BAD {
        all.extend((one + 1..=BAD).map(|other| vec![one, other]));
    }
    all[n as usize % all.len()].clone()
}

/// Write `n` for these replicas. In a run without the bad replica it is left out, and with it a write
/// for it alone.
fn write(n: u64, named: &[usize], nodes: &[String]) -> Option<String> {
    let nodes: Vec<_> =
        named.iter().filter_map(|&one| nodes.get(one).map(String::as_str)).collect();
    (!nodes.is_empty()).then(|| stamped(n, &nodes))
}

type Figures = Vec<(&'static str, f64)>;

struct Run {
    healthy: Vec<Node>,
    _bad: Option<Node>,
    daemon: Process,
    nodes: Vec<String>,
}

impl Run {
    async fn start(kind: &str) -> Self {
        let mut healthy = vec![];
        for _ in 0..BAD {
            healthy.push(Node::start(Way::AtOnce).await);
        }
        let bad = bad(kind).await;
        let nodes = healthy.iter().chain(&bad).map(|node| node.address.clone()).collect();
        Self { healthy, _bad: bad, daemon: Process::daemon(&[]), nodes }
    }

    /// The requests to the healthy replicas until `end`.
    fn seen(&self, end: Duration) -> Vec<Seen> {
        let seen = self.healthy.iter().flat_map(Node::take_seen);
        seen.filter(|seen| seen.at <= end).collect()
    }
}

fn refused<'a>(posted: impl Iterator<Item = &'a Posted>) -> f64 {
    posted.filter(|one| one.status != 202).count() as f64
}

async fn paced(kind: &str) -> Figures {
    let run = Run::start(kind).await;
    let nodes = run.nodes.clone();
    let load = Paced::start(&run.daemon.address, PACED, move |n| write(n, &named(n), &nodes));
    tokio::time::sleep(time()).await;
    let end = since_start();
    let posted = load.stop().await;
    let seen = run.seen(end);
    let names_it = |n| named(n).contains(&BAD);
    let (with_bad, without): (Vec<_>, Vec<_>) = posted.iter().partition(|one| names_it(one.n));
    let (seen_with_bad, seen_without): (Vec<_>, Vec<_>) =
        seen.iter().partition(|seen| names_it(seen.n));
    let percentile = |seen: &[&Seen], percent| {
        percentile_ms(seen.iter().map(|seen| seen.since_post).collect(), percent)
    };
    vec![
        (
            "accepted/s",
            (without.len() as f64 - refused(without.iter().copied())) / time().as_secs_f64(),
        ),
        ("delivered/s", seen_without.len() as f64 / time().as_secs_f64()),
        ("accept p99 ms", percentile_ms(without.iter().map(|one| one.took).collect(), 99)),
        ("deliver p50 ms", percentile(&seen_without, 50)),
        ("deliver p99 ms", percentile(&seen_without, 99)),
        ("naming it, del./s", seen_with_bad.len() as f64 / time().as_secs_f64()),
        ("naming it, p99 ms", percentile(&seen_with_bad, 99)),
        ("refused, others", refused(without.iter().copied())),
        ("refused, naming it", refused(with_bad.iter().copied())),
        ("of", with_bad.len() as f64),
    ]
}

/// A saturating load for the healthy replicas, and some writes that name the bad one.
async fn saturating(kind: &str) -> Figures {
    let run = Run::start(kind).await;
    let (nodes, all) = (run.nodes.clone(), run.nodes.clone());
    let beside = Paced::start(&run.daemon.address, BESIDE, move |n| {
        let partner = n as usize % (BAD + 1);
        write(n, &if partner == BAD { vec![BAD] } else { vec![partner, BAD] }, &nodes)
    });
    let load = post(&run.daemon.address, 32, time(), move |connection, n| {
        let pairs = named(n + connection as u64);
        let healthy: Vec<_> = pairs.into_iter().filter(|&one| one != BAD).collect();
        let healthy = if healthy.is_empty() { vec![0] } else { healthy };
        write((1 << 40) | (connection as u64) << 32 | n, &healthy, &all).unwrap()
    });
    let load = load.await;
    let end = since_start();
    let posted = beside.stop().await;
    let seen = run.seen(end);
    vec![
        ("accepted/s", load.rate),
        ("delivered/s", seen.len() as f64 / time().as_secs_f64()),
        ("accept p99 ms", load.percentile(99).as_secs_f64() * 1e3),
        ("deliver p50 ms", percentile_ms(seen.iter().map(|seen| seen.since_post).collect(), 50)),
        ("deliver p99 ms", percentile_ms(seen.iter().map(|seen| seen.since_post).collect(), 99)),
        ("refused, others", load.refused as f64),
        ("refused, naming it", refused(posted.iter())),
        ("of", posted.len() as f64),
    ]
}

pub async fn isolation() {
    println!(
        "\nisolation: four healthy replicas and a bad one, {ROUNDS} rounds of {:?} each",
        time()
    );
    println!(
        "  {PACED} writes/s, each for one or two of the five replicas; measured at the four healthy ones,\n  for writes that do not name the bad one and for writes that do"
    );
    table(&pairs(paced).await);
    println!(
        "  saturating load of 32 connections for the healthy replicas, and {BESIDE}/s that name the bad one"
    );
    table(&pairs(saturating).await);
}

/// Pairs of runs without and with each bad replica.
type Pairs = HashMap<&'static str, Vec<[Figures; 2]>>;

async fn pairs(run: impl AsyncFn(&'static str) -> Figures) -> Pairs {
    let mut pairs = Pairs::new();
    for round in 0..ROUNDS {
        for kind in KINDS {
            let pair = in_turn(round, async |with| run(if with { kind } else { NONE }).await);
            pairs.entry(kind).or_default().push(pair.await);
        }
    }
    pairs
}

fn table(pairs: &Pairs) {
    let names: Vec<_> = pairs[KINDS[0]][0][0].iter().map(|&(name, _)| name).collect();
    print!("  {:<12}", "the bad one");
    names.iter().for_each(|name| print!(" {name:>19}"));
    println!();
    print!("  {NONE:<12}");
    for n in 0..names.len() {
        let without = pairs.values().flatten().map(|[without, _]| without[n].1);
        print!(" {:>10.2}         ", median(without.collect()));
    }
    println!();
    for kind in KINDS {
        print!("  {kind:<12}");
        for n in 0..names.len() {
            let ours = median(pairs[kind].iter().map(|[_, with]| with[n].1).collect());
            let ratios = pairs[kind].iter().map(|[without, with]| with[n].1 / without[n].1);
            match names[n] {
                "refused, others" | "refused, naming it" | "of" => print!(" {ours:>19.0}"),
                _ => print!(" {ours:>10.2} ({:>4.2} x)", median(ratios.collect())),
            }
        }
        println!();
    }
}
