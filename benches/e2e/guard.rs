//! The regression guard: ratios of this machine against those in `benches/guard.txt`.

use std::process::ExitCode;

use crate::parts::{Accepts, Delivered, Strong, accepts, deliveries, of, strong_writes};

const COMMITTED: &str = include_str!("../guard.txt");

/// A line of the file.
struct Guarded {
    name: &'static str,
    ratio: f64,
    /// Part of the ratio by which a run may differ.
    band: f64,
}

/// Measures each figure of the file. Fails if one is outside its band, on either side: a ratio that is
/// too low for the code guards nothing.
pub async fn guard() -> ExitCode {
    println!("\nguard: ratios to the references of this run, beside benches/guard.txt");
    println!("{:>12} {:>10} {:>8} {:>15}", "", "committed", "now", "allowed");
    let mut outside = 0;
    for Guarded { name, ratio, band } in committed() {
        let now = measured(name).await;
        let (low, high) = (ratio * (1.0 - band), ratio * (1.0 + band));
        let is_inside = (low..=high).contains(&now);
        outside += usize::from(!is_inside);
        let mark = if is_inside { "" } else { "   outside" };
        println!("{name:>12} {ratio:>10.2} {now:>8.2} {low:>7.2} to {high:.2}{mark}");
    }
    if outside == 0 {
        return ExitCode::SUCCESS;
    }
    println!("  {outside} outside: find the commit, or commit the new ratios");
    ExitCode::FAILURE
}

fn committed() -> Vec<Guarded> {
    let lines = COMMITTED.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let guarded = lines.map(|line| {
        let mut words = line.split_whitespace();
        let mut next = || words.next().unwrap_or_else(|| panic!("guard.txt: {line:?} is short"));
        let name = next();
        let [ratio, band] = [next(), next()].map(|word| word.parse().expect(line));
        Guarded { name, ratio, band }
    });
    guarded.collect()
}

async fn measured(name: &str) -> f64 {
    match name {
        "accept-1" => of(&accepts(1).await, Accepts::ratio),
        "accept-16" => of(&accepts(16).await, Accepts::ratio),
        "accept-64" => of(&accepts(64).await, Accepts::ratio),
        "deliver" => of(&deliveries().await, Delivered::ratio),
        "strong-1" => of(&strong_writes(1).await, Strong::ratio),
        "strong-16" => of(&strong_writes(16).await, Strong::ratio),
        other => panic!("guard.txt: no figure is called {other}"),
    }
}
