//! Metrics, alerts and the dashboard.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::support::{Behaviour, Daemon, Replica, set};

/// A metric by its full name, labels included.
fn figure(page: &str, name: &str) -> f64 {
    let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("{name} in {page}")).parse().unwrap()
}

/// The names of the metric families.
fn names(page: &str) -> BTreeSet<String> {
    let helped = page.lines().filter_map(|line| line.strip_prefix("# HELP "));
    helped.map(|line| line.split(' ').next().unwrap().to_owned()).collect()
}

/// A daemon after delivered, rejected and invalid writes.
async fn busy_daemon() -> (Daemon, Replica, Replica) {
    let daemon = Daemon::start(&["--retry-base", "20ms", "--max-retries", "1"]).await;
    let healthy = Replica::start().await;
    let refusing = Replica::with(|_| Behaviour::Answer(400, "", "no")).await;
    for n in 0..20 {
        daemon.accept(&set(&format!("k{n}"), "v", &[&healthy, &refusing])).await;
    }
    assert_eq!(daemon.post(&serde_json::json!({})).await.0, 400);
    daemon.until_metric("successful_replicas", 20).await;
    daemon.until_metric("permanent_failures", 20).await;
    (daemon, healthy, refusing)
}

#[tokio::test]
async fn the_histograms_count_every_write_and_every_attempt() {
    let begun = Instant::now();
    let (daemon, healthy, refusing) = busy_daemon().await;
    let page = daemon.metrics_page().await;
    let elapsed = begun.elapsed().as_secs_f64();
    let is = |name: &str, value: f64| assert_eq!(figure(&page, name), value, "{name}");
    is("replicator_accept_seconds_count", 20.0);
    is("replicator_accept_seconds_bucket{le=\"+Inf\"}", 20.0);
    is("replicator_delivery_seconds_count", 20.0);
    is("replicator_attempt_seconds_count", 40.0);
    is("replicator_commit_tasks_sum", 20.0);
    let commits = figure(&page, "replicator_commit_tasks_count");
    is("replicator_commit_seconds_count", commits);
    for (replica, attempts, delivered) in [(&healthy, 20.0, 20.0), (&refusing, 20.0, 0.0)] {
        let of = |name: &str| {
            format!("replicator_replica_{name}_count{{replica=\"{}\"}}", replica.url())
        };
        is(&of("attempt_seconds"), attempts);
        is(&of("delivery_seconds"), delivered);
        let unaccounted =
            format!("replicator_deliveries_unaccounted{{replica=\"{}\"}}", replica.url());
        is(&unaccounted, 0.0);
    }
    let seconds = figure(&page, "replicator_accept_seconds_sum");
    assert!(seconds > 0.0 && seconds < elapsed, "{seconds} of {elapsed}");
    is("replicator_requests_total{status=\"202\"}", 20.0);
    is("replicator_requests_total{status=\"400\"}", 1.0);
    assert!(figure(&page, "process_resident_memory_bytes") > 1e6);
    let version = concat!("replicator_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"}");
    is(version, 1.0);
}

#[tokio::test]
async fn rejected_writes_are_counted_by_reason() {
    let daemon =
        Daemon::start(&["--queue-capacity", "2", "--queue-wait", "0ms", "--request-timeout", "5m"])
            .await;
    let hanging = Replica::with(|_| Behaviour::Hang).await;
    let mut refused = 0;
    for n in 0..6 {
        refused += u32::from(daemon.post(&set(&format!("k{n}"), "v", &[&hanging])).await.0 == 503);
    }
    assert!(refused >= 3, "{refused}");
    let page = daemon.metrics_page().await;
    let of = |reason| figure(&page, &format!("replicator_refusals_total{{reason=\"{reason}\"}}"));
    assert_eq!(of("queue") + of("share"), f64::from(refused));
    assert_eq!(of("store_failed"), 0.0);
    assert_eq!(figure(&page, "replicator_requests_total{status=\"503\"}"), f64::from(refused));
}

#[tokio::test]
async fn the_metrics_are_exactly_those_of_the_documentation() {
    let (daemon, ..) = busy_daemon().await;
    // A store of one process has no servers and partitions.
    assert_eq!(documented(false), names(&daemon.metrics_page().await));
}

/// The metrics of the documentation: those of a cluster, or all others.
fn documented(of_a_cluster: bool) -> BTreeSet<String> {
    let (_, table) = DOCUMENTED.split_once("| JSON | Prometheus | meaning |").unwrap();
    let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    let rows = rows.filter(|row| row.contains("| with `--store`: ") == of_a_cluster);
    let cells = rows.map(|row| row.split('|').nth(2).unwrap());
    cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).map(str::to_owned).collect()
}

/// `promtool`, which `tests/run` installs; `None` if it is missing.
fn promtool(args: &[&str], input: &str) -> Option<()> {
    let command = Command::new("promtool")
        .args(args)
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/prometheus"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut child) = command else {
        eprintln!("skipped: there is no promtool (Debian's package prometheus has it)");
        return None;
    };
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let printed = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "promtool {args:?}: {}", String::from_utf8_lossy(&printed));
    Some(())
}

#[tokio::test]
async fn promtool_accepts_the_metrics() {
    let (daemon, ..) = busy_daemon().await;
    promtool(&["check", "metrics"], &daemon.metrics_page().await);
}

#[test]
fn the_alerts_fire_when_they_should_and_not_before() {
    promtool(&["check", "rules", "replicator.rules.yml"], "");
    promtool(&["test", "rules", "replicator.test.yml"], "");
}

const RULES: &str = include_str!("../../deploy/prometheus/replicator.rules.yml");
const RULE_TESTS: &str = include_str!("../../deploy/prometheus/replicator.test.yml");
const DASHBOARD: &str = include_str!("../../deploy/grafana/replicator.json");
const DOCUMENTED: &str = include_str!("../../docs/metrics.md");

#[test]
fn the_documentation_lists_every_alert_and_no_other() {
    let (_, table) = DOCUMENTED.split_once("| alert | meaning |").unwrap();
    let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    let listed: Vec<_> = rows.map(|row| row.split('`').nth(1).unwrap()).collect();
    let rules = RULES.lines().filter_map(|line| line.trim().strip_prefix("- alert: "));
    assert_eq!(listed, rules.collect::<Vec<_>>());
}

/// Each alert is expected to fire in at least one test and not to fire in at least one.
#[test]
fn every_alert_has_a_test_of_both_kinds() {
    let cases: Vec<_> = RULE_TESTS.split("eval_time:").skip(1).collect();
    let mut alerts = 0;
    for alert in RULES.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")) {
        let of = |case: &&&str| case.contains(&format!("alertname: {alert}\n"));
        let fires = cases.iter().filter(of).filter(|case| case.contains("exp_alerts")).count();
        let all = cases.iter().filter(of).count();
        assert!(fires > 0 && fires < all, "{alert}");
        alerts += 1;
    }
    assert!(alerts >= 15, "{alerts}");
}

/// The names of the metrics in an expression.
fn metrics_in(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let ours = words.filter(|word| word.starts_with("replicator_") || word.starts_with("process_"));
    let family = |word: &str| {
        let parts = ["_bucket", "_sum", "_count"];
        let histogram = parts.iter().find_map(|part| word.strip_suffix(part));
        histogram.unwrap_or(word).to_owned()
    };
    ours.map(family).collect()
}

#[tokio::test]
async fn alerts_and_dashboard_name_metrics_that_exist() {
    let (daemon, ..) = busy_daemon().await;
    let mut known = names(&daemon.metrics_page().await);
    known.extend(documented(true));
    for (file, text) in [("rules", RULES), ("their tests", RULE_TESTS), ("dashboard", DASHBOARD)] {
        let named = metrics_in(text);
        assert!(named.len() >= 10, "{file}: {named:?}");
        let unknown: Vec<_> = named.difference(&known).collect();
        assert!(unknown.is_empty(), "{file}: {unknown:?}");
    }
}

#[test]
fn the_dashboard_is_well_formed() {
    let dashboard: serde_json::Value = serde_json::from_str(DASHBOARD).unwrap();
    assert!(dashboard["schemaVersion"].as_u64().unwrap() >= 39);
    assert!(dashboard["id"].is_null(), "Grafana assigns the id at the import");
    let panels = dashboard["panels"].as_array().unwrap();
    let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len(), "an id is used twice");
    let mut taken = BTreeSet::new();
    for panel in panels {
        let at = |name: &str| panel["gridPos"][name].as_u64().unwrap();
        for x in at("x")..at("x") + at("w") {
            for y in at("y")..at("y") + at("h") {
                assert!(x < 24 && taken.insert((x, y)), "panels overlap: {}", panel["title"]);
            }
        }
        if panel["type"] == "row" {
            continue;
        }
        assert!(!panel["description"].as_str().unwrap().is_empty(), "{}", panel["title"]);
        for target in panel["targets"].as_array().unwrap() {
            let expression = target["expr"].as_str().unwrap();
            assert!(!metrics_in(expression).is_empty(), "{expression}");
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{expression}");
            // promtool does not support variables.
            let plain = expression.replace("$__rate_interval", "5m");
            let rule = serde_json::json!({"groups": [{"name": "g", "rules": [
                {"record": "r", "expr": plain},
            ]}]});
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), rule.to_string()).unwrap();
            promtool(&["check", "rules", file.path().to_str().unwrap()], "");
        }
    }
}
