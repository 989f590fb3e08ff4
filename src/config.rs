//! Turns the daemon's arguments into validated settings.
//!
//! Every value is checked against its limits and the other values before a port is bound or a file
//! is opened. All problems are reported at once.

use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use thiserror::Error;
use url::Url;

use crate::cli::daemon::{AccessArgs, DaemonArgs, HintedHandoff, ReplicaHttp2Arg, WorkersArg};
use crate::engine::{EngineSettings, Workers};
use crate::notify::NotifyConfig;
use crate::policy::Rule;
use crate::replica::{ClientSettings, ReplicaHttp2};
use crate::server::ServerLimits;
use crate::store::{JetStreamSettings, KeyLimits, MAX_CLUSTER_VALUE_BYTES};
use crate::task::MAX_NODE_BYTES;
use crate::text::without_secrets;
use crate::tls::TlsFiles;
use crate::traces::TraceSettings;

mod cluster;
mod notify;

use cluster::QueueLimits;
pub(crate) use cluster::of_command as cluster_of_command;
pub(crate) use notify::of_command as notify_of_command;

#[derive(Clone, Debug)]
pub struct Config {
    pub address: SocketAddr,
    pub node_id: String,
    pub engine: EngineSettings,
    pub store: StoreConfig,
    pub client: ClientSettings,
    pub server: ServerLimits,
    /// `None` if no traces are exported.
    pub traces: Option<TraceSettings>,
    pub inbound: InboundConfig,
    pub outbound: OutboundConfig,
    pub notify: NotifyConfig,
    /// How long a write waits for room in a queue.
    pub queue_wait: Duration,
    /// How long settled tasks are remembered. Zero disables the history.
    pub task_history: Duration,
    /// Keys per second that are compared with their primaries in the background. `None` is off.
    pub verify_rate: Option<NonZeroU32>,
    pub drain_timeout: Duration,
}

/// Where the daemon may send writes, and its credentials. The daemon reads the files, again on
/// SIGHUP.
#[derive(Clone, Debug)]
pub struct OutboundConfig {
    pub allow: Vec<Rule>,
    pub allow_file: Option<PathBuf>,
    pub ca: Option<PathBuf>,
    pub identity: Option<(PathBuf, PathBuf)>,
    pub token_file: Option<PathBuf>,
}

impl OutboundConfig {
    pub fn has_rules(&self) -> bool {
        !self.allow.is_empty() || self.allow_file.is_some()
    }
}

/// How clients are authenticated. The daemon reads the files, again on SIGHUP.
#[derive(Clone, Debug)]
pub struct InboundConfig {
    pub auth_file: Option<PathBuf>,
    pub tls: Option<TlsFiles>,
    pub host_names: Vec<String>,
}

impl InboundConfig {
    /// Whether anyone who can connect has full access.
    pub fn is_open(&self) -> bool {
        let client_ca = self.tls.as_ref().is_some_and(|files| files.client_ca.is_some());
        self.auth_file.is_none() && !client_ca
    }
}

#[derive(Clone, Debug)]
pub struct StoreConfig {
    pub kind: StoreKind,
    /// Memory for queued tasks, and for tasks that are read back.
    pub memory_budget: usize,
    pub keys: KeyLimits,
}

#[derive(Clone, Debug)]
pub enum StoreKind {
    Local(LocalStoreConfig),
    Cluster(Box<JetStreamSettings>),
}

#[derive(Clone, Debug)]
pub struct LocalStoreConfig {
    pub dir: PathBuf,
    pub cache_bytes: u64,
    /// 0 disables the check.
    pub min_free_bytes: u64,
}

#[derive(Debug, Error, PartialEq, Eq)]
pub struct ConfigErrors(Vec<String>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

/// Limit of `--workers` and `--max-replicas`: above it one write could open more connections than
/// the file descriptors that a process usually has.
const MAX_PARALLEL: u64 = 1024;

/// Limit of `--max-value-bytes`: the store counts the bytes of a value in 32 bits, and a request is
/// held in memory as a whole.
const MAX_VALUE_BYTES: u64 = 1 << 30;

/// Limit of durations: timers of the system may overflow far above it.
const MAX_TIME: Duration = Duration::from_secs(24 * 60 * 60);

const MAX_RETENTION: Duration = Duration::from_secs(3650 * 24 * 60 * 60);

/// Limit of `--redrive-rate`: faster than any replica.
const MAX_REDRIVE_RATE: u64 = 1_000_000;

/// Limits of `--store-cache`: sled panics with less than a few pages or more than half of the
/// address space.
const MIN_CACHE_BYTES: u64 = 1 << 20;
const MAX_CACHE_BYTES: u64 = 1 << 40;

/// Limit of `--max-key-bytes`: a percent-encoded key must fit a request line.
const MAX_KEY_BYTES: u64 = 16 << 10;

impl Config {
    pub fn from_args(args: &DaemonArgs) -> Result<Self, ConfigErrors> {
        let DaemonArgs {
            config: _,
            listener,
            access,
            requests,
            queue,
            delivery,
            dead_letters,
            replicas,
            notify,
            storage,
            cluster,
            process,
        } = args;
        let mut problems = Problems::default();
        let id = &listener.node_id;
        let plain = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
        problems.check(!id.is_empty() && id.len() <= 64 && id.chars().all(plain), || {
            format!("--node-id {id:?} must be 1 to 64 characters of A-Z a-z 0-9 . _ -")
        });
        let workers = match delivery.workers {
            WorkersArg::Fixed(workers) => Workers::Fixed(workers),
            WorkersArg::Auto => Workers::Auto(delivery.max_workers),
        };
        if let Workers::Fixed(workers) = workers {
            problems.at_most("--workers", workers.get().into(), MAX_PARALLEL);
        }
        problems.at_most("--max-workers", delivery.max_workers.get().into(), MAX_PARALLEL);
        problems.at_most("--max-replicas", requests.max_replicas.get() as u64, MAX_PARALLEL);
        problems.size("--max-value-bytes", requests.max_value_bytes, 1, MAX_VALUE_BYTES);
        problems.size("--max-key-bytes", requests.max_key_bytes, 1, MAX_KEY_BYTES);
        problems.size("--store-cache", storage.store_cache, MIN_CACHE_BYTES, MAX_CACHE_BYTES);
        for (flag, time) in [
            ("--retry-base", delivery.retry_base),
            ("--request-timeout", delivery.request_timeout),
            ("--strong-timeout", requests.strong_timeout),
            ("--client-timeout", listener.client_timeout),
            ("--idempotency-window", requests.idempotency_window),
        ] {
            problems.check(!time.is_zero(), || format!("{flag} must be longer than zero"));
        }
        for (flag, time) in [
            ("--queue-wait", queue.queue_wait),
            ("--settle-after", delivery.settle_after),
            ("--retry-base", delivery.retry_base),
            ("--request-timeout", delivery.request_timeout),
            ("--replica-connection-age", delivery.replica_connection_age),
            ("--strong-timeout", requests.strong_timeout),
            ("--client-timeout", listener.client_timeout),
            ("--drain-timeout", process.drain_timeout),
            ("--task-history", queue.task_history),
            ("--idempotency-window", requests.idempotency_window),
        ] {
            problems.check(time <= MAX_TIME, || format!("{flag} must be at most 24h"));
        }
        problems.check(dead_letters.dead_letter_retention <= MAX_RETENTION, || {
            "--dead-letter-retention must be at most 3650days; 0s keeps dead letters forever"
                .to_owned()
        });
        problems.at_most(
            "--redrive-rate",
            dead_letters.redrive_rate.get().into(),
            MAX_REDRIVE_RATE,
        );
        let known = delivery.max_known_replicas.get();
        problems.check(known >= requests.max_replicas.get(), || {
            let one = requests.max_replicas;
            format!("--max-known-replicas {known} must be at least --max-replicas {one}")
        });

        let traces = match traces(&process.otlp_endpoint) {
            Ok(endpoint) => endpoint.map(|endpoint| TraceSettings {
                endpoint,
                ratio: process.trace_ratio,
                node_id: id.clone(),
            }),
            Err(problem) => {
                problems.add(problem);
                None
            }
        };
        problems.check((0.0..=1.0).contains(&process.trace_ratio), || {
            format!("--trace-ratio {} must be from 0 to 1", process.trace_ratio)
        });

        let inbound = InboundConfig {
            auth_file: access.auth_file.clone(),
            tls: tls(access, &mut problems),
            host_names: access.host_name.clone(),
        };
        let exposed = !listener.bind.is_loopback() && inbound.is_open();
        problems.check(!exposed || access.insecure, || {
            let address = listener.bind;
            format!("--bind {address} would give everyone on the network full access: require tokens (--auth-file) or client certificates (--tls-client-ca), or allow it (--insecure)")
        });

        let value_bytes = to_usize(requests.max_value_bytes);
        let key_bytes = to_usize(requests.max_key_bytes);
        let max_replicas = requests.max_replicas.get();
        let fixed = key_bytes.saturating_mul(6) + max_replicas.saturating_mul(2 * MAX_NODE_BYTES);
        let body_bytes = value_bytes.saturating_mul(2).saturating_add(fixed + (64 << 10));

        let value = requests.max_value_bytes;
        problems.check(value < queue.queue_max_bytes, || {
            let all = queue.queue_max_bytes;
            format!("--max-value-bytes {value} must be less than --queue-max-bytes {all}")
        });
        problems.check(cluster.store.is_empty() || value.as_u64() <= MAX_CLUSTER_VALUE_BYTES, || {
            let most = ByteSize(MAX_CLUSTER_VALUE_BYTES);
            format!("--max-value-bytes {value} must be at most {most} with --store, whose servers take a value as one batch of messages")
        });
        problems.check(body_bytes as u64 <= requests.request_memory.as_u64(), || {
            let (all, body) = (requests.request_memory, ByteSize(body_bytes as u64));
            format!("--request-memory {all} must be at least {body}, the largest request with --max-value-bytes {value}")
        });

        let identity = match (&replicas.replica_cert, &replicas.replica_key) {
            (Some(certificate), Some(key)) => Some((certificate.clone(), key.clone())),
            (None, None) => None,
            _ => {
                let rule = "--replica-cert and --replica-key must be given together";
                problems.add(rule.to_owned());
                None
            }
        };

        let keys = KeyLimits {
            window: requests.idempotency_window,
            most: requests.idempotency_keys.get(),
        };
        let limits = QueueLimits {
            capacity: queue.queue_capacity.get(),
            max_bytes: queue.queue_max_bytes.as_u64(),
            dead_letter_max_bytes: dead_letters.dead_letter_max_bytes.as_u64(),
            keys,
        };
        let cluster = cluster::settings(cluster, id, limits, &mut problems);
        problems.check(cluster.is_none() || delivery.replica_http2 == ReplicaHttp2Arg::Off, || {
            "--replica-http2 must be off with --store: an attempt on a shared connection cannot be cut when the lease ends".to_owned()
        });
        if cluster.is_some() {
            let most = cluster::most_replicas(key_bytes);
            problems.check(max_replicas <= most, || {
                format!("--max-replicas {max_replicas} must be at most {most} with --store: the addresses of a write must fit into a message of the servers")
            });
        }
        // An attempt keeps its id when another instance takes over.
        let sender = cluster.as_ref().map_or_else(|| id.clone(), |c| c.cluster.to_string());

        let cluster_name = cluster.as_ref().map(|cluster| cluster.cluster.to_string());
        let notify = notify::settings(notify, id, cluster_name, &mut problems);

        problems.into_result()?;
        Ok(Self {
            address: SocketAddr::new(listener.bind, listener.port),
            node_id: id.clone(),
            engine: EngineSettings {
                workers,
                queue_capacity: queue.queue_capacity.get(),
                retry_capacity: delivery.retry_capacity.get(),
                max_bytes: queue.queue_max_bytes.as_u64(),
                max_dead_letter_bytes: dead_letters.dead_letter_max_bytes.as_u64(),
                dead_letter_retention: Some(dead_letters.dead_letter_retention)
                    .filter(|time| !time.is_zero()),
                hinted_handoff: dead_letters.hinted_handoff == HintedHandoff::On,
                redrive_rate: dead_letters.redrive_rate,
                breaker_failures: delivery.breaker_failures,
                settle_after: delivery.settle_after,
                coalesce: queue.coalesce,
                max_known_replicas: known,
                max_retries: delivery.max_retries,
                retry_base: delivery.retry_base,
                strong_timeout: requests.strong_timeout,
                seed: fastrand::u64(..),
            },
            store: StoreConfig {
                kind: match cluster {
                    Some(settings) => StoreKind::Cluster(Box::new(settings)),
                    None => StoreKind::Local(LocalStoreConfig {
                        dir: storage.data_dir.clone(),
                        cache_bytes: storage.store_cache.as_u64(),
                        min_free_bytes: storage.min_free_disk.as_u64(),
                    }),
                },
                memory_budget: to_usize(storage.memory_budget),
                keys,
            },
            client: ClientSettings {
                node_id: sender,
                request_timeout: delivery.request_timeout,
                connection_age: delivery.replica_connection_age,
                idle_replicas: known,
                http2: match delivery.replica_http2 {
                    ReplicaHttp2Arg::Off => ReplicaHttp2::Off,
                    ReplicaHttp2Arg::Auto => ReplicaHttp2::Auto,
                    ReplicaHttp2Arg::PriorKnowledge => ReplicaHttp2::PriorKnowledge,
                },
                // All workers, and as many strong writes. More are kept while few replicas need them.
                idle_per_replica: match workers {
                    Workers::Fixed(workers) | Workers::Auto(workers) => 2 * workers.get() as usize,
                },
            },
            server: ServerLimits {
                max_connections: listener.max_connections.get(),
                client_timeout: listener.client_timeout,
                max_body_bytes: body_bytes,
                request_memory: to_usize(requests.request_memory),
                max_value_bytes: value_bytes,
                max_key_bytes: key_bytes,
                max_replicas,
            },
            traces,
            queue_wait: queue.queue_wait,
            task_history: queue.task_history,
            verify_rate: NonZeroU32::new(delivery.verify_rate),
            drain_timeout: process.drain_timeout,
            outbound: OutboundConfig {
                allow: replicas.allow_replica.clone(),
                allow_file: replicas.allow_replica_file.clone(),
                ca: replicas.replica_ca.clone(),
                identity,
                token_file: replicas.replica_token_file.clone(),
            },
            inbound,
            notify,
        })
    }
}

fn tls(access: &AccessArgs, problems: &mut Problems) -> Option<TlsFiles> {
    match (&access.tls_cert, &access.tls_key, &access.tls_client_ca) {
        (Some(certificate), Some(key), client_ca) => Some(TlsFiles {
            certificate: certificate.clone(),
            key: key.clone(),
            client_ca: client_ca.clone(),
        }),
        (None, None, None) => None,
        _ => {
            let rule =
                "--tls-cert and --tls-key must be given together, and --tls-client-ca needs both";
            problems.add(rule.to_owned());
            None
        }
    }
}

fn traces(endpoint: &str) -> Result<Option<String>, String> {
    if endpoint == "off" {
        return Ok(None);
    }
    let shown = without_secrets(endpoint);
    let problem = |why: &str| format!("--otlp-endpoint {shown:?} must be a URL or off: {why}");
    let mut url = Url::parse(endpoint).map_err(|error| problem(&error.to_string()))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(problem("its scheme must be http or https"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(problem("it must not have a query or a fragment"));
    }
    let path = url.path().trim_end_matches('/');
    if !path.ends_with("/v1/traces") {
        let path = format!("{path}/v1/traces");
        url.set_path(&path);
    }
    Ok(Some(url.into()))
}

fn to_usize(size: ByteSize) -> usize {
    usize::try_from(size.as_u64()).unwrap_or(usize::MAX)
}

#[derive(Default)]
struct Problems(Vec<String>);

impl Problems {
    fn add(&mut self, problem: String) {
        self.0.push(problem);
    }

    fn check(&mut self, good: bool, problem: impl FnOnce() -> String) {
        if !good {
            self.add(problem());
        }
    }

    fn at_most(&mut self, flag: &str, value: u64, limit: u64) {
        self.check(value <= limit, || format!("{flag} {value} must be at most {limit}"));
    }

    fn size(&mut self, flag: &str, value: ByteSize, least: u64, most: u64) {
        self.check((least..=most).contains(&value.as_u64()), || {
            format!("{flag} {value} must be from {} to {}", ByteSize(least), ByteSize(most))
        });
    }

    fn into_result(self) -> Result<(), ConfigErrors> {
        if self.0.is_empty() { Ok(()) } else { Err(ConfigErrors(self.0)) }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::Cli;

    fn config(args: &[&str]) -> Result<Config, ConfigErrors> {
        let cli = Cli::try_parse_from([&["replicator"], args].concat()).unwrap();
        Config::from_args(&cli.daemon)
    }

    #[test]
    fn the_defaults_match_the_documentation() {
        let config = config(&[]).unwrap();
        assert_eq!(config.address.to_string(), "127.0.0.1:8085");
        assert_eq!(config.node_id, "replicator");
        let StoreKind::Local(store) = config.store.kind else { panic!("a cluster") };
        assert_eq!(store.dir, PathBuf::from("./replicator-data"));
        assert_eq!(store.cache_bytes, 64 << 20);
        let EngineSettings { workers, queue_capacity, retry_capacity, .. } = config.engine;
        assert_eq!(workers, Workers::Fixed(NonZeroU32::new(5).unwrap()));
        assert_eq!((queue_capacity, retry_capacity), (1000, 500));
        let EngineSettings { max_bytes, max_retries, retry_base, .. } = config.engine;
        assert_eq!((max_bytes, max_retries, retry_base), (1 << 30, 3, Duration::from_secs(2)));
        assert_eq!(config.queue_wait, Duration::from_millis(500));
        assert_eq!(config.client.request_timeout, Duration::from_secs(5));
        assert_eq!(config.engine.strong_timeout, Duration::from_secs(10));
        assert_eq!(config.drain_timeout, Duration::from_secs(30));
        let ServerLimits { max_value_bytes, max_key_bytes, max_replicas, .. } = config.server;
        assert_eq!((max_value_bytes, max_key_bytes, max_replicas), (8 << 20, 4 << 10, 64));
    }

    #[test]
    fn all_problems_are_reported_at_once() {
        let errors = config(&["--node-id", "a b", "--workers", "9999", "--retry-base", "0s"]);
        let text = errors.unwrap_err().to_string();
        assert_eq!(text.lines().count(), 3, "{text}");
        for word in ["--node-id \"a b\"", "--workers 9999 must be at most 1024", "--retry-base"] {
            assert!(text.contains(word), "{text}");
        }
    }

    #[test]
    fn the_otlp_path_is_appended_to_an_endpoint_without_it() {
        let endpoint = |url| config(&["--otlp-endpoint", url]).unwrap().traces.map(|t| t.endpoint);
        assert_eq!(endpoint("off"), None);
        assert_eq!(endpoint("http://c:4318").as_deref(), Some("http://c:4318/v1/traces"));
        assert_eq!(endpoint("http://c/otlp/").as_deref(), Some("http://c/otlp/v1/traces"));
        assert_eq!(endpoint("https://c/v1/traces").as_deref(), Some("https://c/v1/traces"));
    }

    #[test]
    fn a_bind_beyond_loopback_requires_authentication_or_insecure() {
        for more in [
            &["--auth-file", "f"][..],
            &["--tls-cert", "c", "--tls-key", "k", "--tls-client-ca", "a"],
            &["--insecure"],
        ] {
            assert!(config(&[&["--bind", "::"], more].concat()).is_ok(), "{more:?}");
        }
        let tls_alone = ["--bind", "0.0.0.0", "--tls-cert", "c", "--tls-key", "k"];
        assert!(config(&tls_alone).is_err());
        assert!(config(&["--bind", "127.0.0.2"]).is_ok());
    }

    #[test]
    fn invalid_or_conflicting_limits_are_refused() {
        for (args, word) in [
            (["--max-value-bytes", "900MiB"], "--request-memory"),
            (["--queue-max-bytes", "1MiB"], "--queue-max-bytes"),
            (["--max-known-replicas", "3"], "--max-known-replicas"),
            (["--max-key-bytes", "1MiB"], "--max-key-bytes"),
            (["--max-value-bytes", "0B"], "--max-value-bytes"),
            (["--store-cache", "0B"], "--store-cache"),
            (["--store-cache", "9999PiB"], "--store-cache"),
            (["--client-timeout", "0s"], "--client-timeout"),
            (["--drain-timeout", "2days"], "--drain-timeout"),
            (["--otlp-endpoint", "collector:4318"], "--otlp-endpoint"),
            (["--otlp-endpoint", "http://c/?a=b"], "--otlp-endpoint"),
            (["--trace-ratio", "1.5"], "--trace-ratio"),
            (["--trace-ratio", "NaN"], "--trace-ratio"),
            (["--replica-cert", "cert.pem"], "--replica-key"),
            (["--replica-key", "key.pem"], "--replica-cert"),
            (["--bind", "0.0.0.0"], "--insecure"),
            (["--tls-cert", "c.pem"], "--tls-key"),
            (["--tls-client-ca", "c.pem"], "--tls-client-ca needs both"),
        ] {
            let text = config(&args).unwrap_err().to_string();
            assert!(text.contains(word), "{args:?}: {text}");
        }
    }
}
