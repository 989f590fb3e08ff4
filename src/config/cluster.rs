//! The flags of the cluster store.

use std::time::Duration;

use url::Url;

use super::{ConfigErrors, Problems};
use crate::cli::daemon::{ClusterArgs, DurabilityArg};
use crate::store::{ClusterName, JetStreamSettings, KeyLimits, MAX_PARTITIONS, StoreDurability};
use crate::task::{MAX_NODE_BYTES, TaskId, Timestamp};
use crate::text::without_secrets;

const LEASE: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(60)];
const TIMEOUT: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(300)];

/// Of a message of 1 MiB, beside a value of 512 KiB.
const KEY_AND_ADDRESSES: usize = 384 << 10;

/// How many replicas a write may have so that its message is not too long.
pub(super) fn most_replicas(key_bytes: usize) -> usize {
    KEY_AND_ADDRESSES.saturating_sub(key_bytes) / MAX_NODE_BYTES
}

/// Limits of the queue, which in a cluster count for all instances together.
#[derive(Clone, Copy, Debug)]
pub struct QueueLimits {
    pub capacity: usize,
    pub max_bytes: u64,
    pub dead_letter_max_bytes: u64,
    pub keys: KeyLimits,
}

/// The settings without the time of the start. `None` without `--store`, or with a problem.
pub(super) fn settings(
    args: &ClusterArgs,
    node_id: &str,
    limits: QueueLimits,
    problems: &mut Problems,
) -> Option<JetStreamSettings> {
    if args.store.is_empty() {
        return None;
    }
    for url in &args.store {
        if let Err(why) = address(url) {
            problems.add(format!(
                "--store {:?} must be addresses such as nats://host:4222, comma-separated: {why}",
                without_secrets(url)
            ));
        }
    }
    let tls = args.store.iter().filter(|url| url.starts_with("tls://")).count();
    problems.check(tls == 0 || tls == args.store.len(), || {
        "--store must have either only tls:// or only nats:// addresses".to_owned()
    });
    for (flag, file) in [("--store-ca", &args.store_ca), ("--store-cert", &args.store_cert)] {
        problems.check(file.is_none() || tls > 0, || {
            format!("{flag} needs tls:// addresses in --store")
        });
    }
    for (flag, time, [least, most]) in
        [("--lease", args.lease, LEASE), ("--store-timeout", args.store_timeout, TIMEOUT)]
    {
        problems.check((least..=most).contains(&time), || {
            let [time, least, most] = [time, least, most].map(humantime::format_duration);
            format!("{flag} {time} must be from {least} to {most}")
        });
    }
    problems.at_most("--partitions", args.partitions.get().into(), MAX_PARTITIONS.into());
    let cluster = args.cluster.parse::<ClusterName>();
    let cluster =
        cluster.map_err(|why| problems.add(format!("--cluster {:?} {why}", args.cluster))).ok()?;
    Some(JetStreamSettings {
        urls: args.store.clone(),
        cluster,
        partitions: Some(args.partitions.get()),
        lease: args.lease,
        timeout: args.store_timeout,
        durability: match args.store_durability {
            DurabilityArg::Fsync => StoreDurability::Fsync,
            DurabilityArg::Replicated => StoreDurability::Replicated,
        },
        creds: args.store_creds.clone(),
        ca: args.store_ca.clone(),
        cert: args.store_cert.clone(),
        key: args.store_key.clone(),
        node_id: node_id.to_owned(),
        queue_capacity: limits.capacity,
        queue_max_bytes: limits.max_bytes,
        dead_letter_max_bytes: limits.dead_letter_max_bytes,
        keys: limits.keys,
        ids_after: TaskId(0),
        clean_above: None,
    })
}

/// The settings of `export` and `import`. `None` without `--store`.
pub(crate) fn of_command(
    args: &ClusterArgs,
    now: Timestamp,
) -> Result<Option<JetStreamSettings>, ConfigErrors> {
    // The next start of an instance raises the limits to its own.
    let keys = KeyLimits { window: Duration::from_secs(600), most: 100_000 };
    let (max_bytes, dead_letter_max_bytes) = (1 << 30, 1 << 30);
    let limits = QueueLimits { capacity: 10_000, max_bytes, dead_letter_max_bytes, keys };
    let mut problems = Problems::default();
    let settings = settings(args, "export", limits, &mut problems);
    problems.into_result()?;
    let ids_after = TaskId(now.0 / 1_000);
    Ok(settings.map(|settings| JetStreamSettings { ids_after, ..settings }))
}

fn address(text: &str) -> Result<(), &'static str> {
    let url = Url::parse(text).map_err(|_| "one is not a URL")?;
    if !matches!(url.scheme(), "nats" | "tls") {
        return Err("the scheme must be nats or tls");
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("credentials belong in the file of --store-creds");
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err("one has no host");
    }
    if !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some() {
        return Err("an address has only a scheme, a host and a port");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::{Config, StoreKind};
    use crate::cli::Cli;

    fn config(args: &[&str]) -> Result<Config, String> {
        let cli = Cli::try_parse_from([&["replicator"], args].concat());
        let cli = cli.map_err(|error| error.to_string())?;
        Config::from_args(&cli.daemon).map_err(|error| error.to_string())
    }

    #[test]
    fn a_cluster_has_its_own_defaults() {
        let config = config(&["--store", "nats://a:4222,nats://b:4222"]).unwrap();
        assert_eq!(config.engine.queue_capacity, 10_000);
        let StoreKind::Cluster(settings) = config.store.kind else { panic!("not a cluster") };
        assert_eq!(settings.urls, ["nats://a:4222", "nats://b:4222"]);
        assert_eq!(settings.cluster.to_string(), "replicator");
        assert_eq!((settings.partitions, settings.lease.as_secs()), (Some(8), 2));
        assert_eq!(settings.timeout.as_secs(), 10);
        // The id of a delivery stays the same when another instance takes over.
        assert_eq!(config.client.node_id, "replicator");
    }

    #[test]
    fn flags_without_a_meaning_in_one_mode_are_refused_with_a_sentence() {
        const STORE: [&str; 2] = ["--store", "nats://a"];
        for (args, words) in [
            (&["--data-dir", "d"][..], "--data-dir"),
            (&["--min-free-disk", "1MiB"], "--min-free-disk"),
            (&["--store-cache", "1MiB"], "--store-cache"),
            (&["--replica-http2", "auto"], "--replica-http2"),
            (&["--store-ca", "f"], "--store-ca needs tls://"),
            (&["--store-cert", "f"], "--store-key"),
            (&["--lease", "10ms"], "--lease 10ms must be from 1s to 1m"),
            (&["--store-timeout", "0s"], "--store-timeout"),
            (&["--partitions", "1025"], "--partitions 1025 must be at most 1024"),
            (&["--cluster", "a.b"], "--cluster \"a.b\" must be"),
            (&["--max-replicas", "500"], "--max-replicas 500 must be at most 380 with --store"),
            (&["--max-value-bytes", "500MiB"], "--max-value-bytes 500.0 MiB must be at most"),
        ] {
            let text = config(&[&STORE, args].concat()).unwrap_err();
            assert!(text.contains(words), "{args:?}: {text}");
        }
        for args in [
            ["--store-creds", "f"],
            ["--store-ca", "f"],
            ["--store-timeout", "1s"],
            ["--store-durability", "fsync"],
            ["--cluster", "c"],
            ["--partitions", "3"],
            ["--lease", "2s"],
        ] {
            let text = config(&args).unwrap_err();
            assert!(text.contains("--store <URLS>"), "{args:?}: {text}");
        }
    }

    #[test]
    fn an_address_of_the_store_has_a_scheme_a_host_and_a_port() {
        for url in ["nats://h", "tls://h:4222", "nats://[::1]:4222", "nats://10.0.0.1:4222"] {
            assert!(config(&["--store", url]).is_ok(), "{url}");
        }
        for url in ["h:4222", "http://h", "nats://", "nats://h/x", "nats://h?a", "nats://a,tls://b"]
        {
            let text = config(&["--store", url]).unwrap_err();
            assert!(text.contains("--store"), "{url}: {text}");
        }
        let text = config(&["--store", "nats://user:hunter2@h:4222"]).unwrap_err();
        assert!(text.contains("--store-creds") && !text.contains("hunter2"), "{text}");
    }
}
