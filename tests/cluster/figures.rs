//! The metrics of an instance.

use std::collections::BTreeSet;

use crate::support::{Daemon, Replica, set};

const DOCUMENTED: &str = include_str!("../../docs/metrics.md");

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_has_every_metric_of_the_cluster() {
    let (daemon, replica) = (Daemon::start(&[]).await, Replica::start().await);
    daemon.accept(&set("k", "value", &[&replica])).await;
    daemon.until_drained().await;
    let page = daemon.metrics_page().await;
    let families = page.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let families: BTreeSet<_> = families.filter_map(|line| line.split(' ').next()).collect();
    let rows = DOCUMENTED.lines().filter(|row| row.contains("| with `--store`: "));
    let cells = rows.map(|row| row.split('|').nth(2).unwrap());
    let named: Vec<_> = cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).collect();
    assert!(named.len() >= 10, "{named:?}");
    // Servers that do not tell whether they sync have no gauge of it.
    for name in named.into_iter().filter(|name| *name != "replicator_store_sync_always") {
        let family = name.strip_suffix("_total").unwrap_or(name);
        assert!(families.contains(name) || families.contains(family), "{name} in {families:?}");
    }
}
