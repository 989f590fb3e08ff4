//! Arguments into validated settings: every unit and limit, and how they go together.
//!
//! Everything is checked before a port is bound or a file is opened, and all problems are
//! reported at once.

use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use thiserror::Error;
use url::Url;

use crate::cli::{DaemonArgs, Switch, WorkersArg};
use crate::engine::Workers;
use crate::policy::Rule;
use crate::task::MAX_NODE_BYTES;
use crate::tls::TlsFiles;

/// The settings of the daemon, each group what one part of it needs.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where it listens, and its name.
    pub listen: Listen,
    /// Where it keeps what it has accepted.
    pub store: Store,
    /// How much may wait.
    pub queue: Queue,
    /// When a failed delivery is tried again.
    pub retry: Retry,
    /// What becomes of those that are given up.
    pub dead_letters: DeadLetters,
    /// How long things may take.
    pub timeouts: Timeouts,
    /// How large requests may be, and how many.
    pub limits: Limits,
    /// What is remembered of what is over.
    pub memory: Memory,
    /// Who may ask.
    pub inbound: Inbound,
    /// Where traces go; `None` is nowhere.
    pub traces: Option<Traces>,
    /// Where it may write, and as whom.
    pub outbound: Outbound,
}

/// Where the daemon may write, and as whom. The files are read by it.
#[derive(Clone, Debug)]
pub struct Outbound {
    /// `--allow-replica`.
    pub allow: Vec<Rule>,
    /// `--allow-replica-file`.
    pub allow_file: Option<PathBuf>,
    /// `--replica-ca`.
    pub ca: Option<PathBuf>,
    /// `--replica-cert` and `--replica-key`.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// `--replica-token-file`.
    pub token_file: Option<PathBuf>,
}

impl Outbound {
    /// Whether there is a list of where it may write.
    #[must_use]
    pub fn has_rules(&self) -> bool {
        !self.allow.is_empty() || self.allow_file.is_some()
    }
}

/// Who may ask, and how. The files are read by the daemon.
#[derive(Clone, Debug)]
pub struct Inbound {
    /// `--auth-file`.
    pub auth_file: Option<PathBuf>,
    /// `--tls-cert`, `--tls-key` and `--tls-client-ca`.
    pub tls: Option<TlsFiles>,
    /// `--host-name`.
    pub host_names: Vec<String>,
}

impl Inbound {
    /// Whether everyone who reaches the port may do everything.
    #[must_use]
    pub fn is_open(&self) -> bool {
        let shown = self.tls.as_ref().is_some_and(|files| files.client_ca.is_some());
        self.auth_file.is_none() && !shown
    }
}

/// What is remembered of what is over.
#[derive(Clone, Debug)]
pub struct Memory {
    /// `--task-history`; zero is not at all.
    pub task_history: Duration,
    /// `--idempotency-window`.
    pub idempotency_window: Duration,
    /// `--idempotency-keys`.
    pub idempotency_keys: usize,
}

/// Where traces go, and how many.
#[derive(Clone, Debug)]
pub struct Traces {
    /// `--otlp-endpoint`, the path included.
    pub endpoint: String,
    /// `--trace-ratio`.
    pub ratio: f64,
}

/// Where the daemon listens, and its name.
#[derive(Clone, Debug)]
pub struct Listen {
    /// `--bind` and `--port`.
    pub address: SocketAddr,
    /// `--node-id`.
    pub node_id: String,
}

/// Where it keeps what it has accepted.
#[derive(Clone, Debug)]
pub struct Store {
    /// `--data-dir`.
    pub dir: PathBuf,
    /// `--store-cache`, in bytes.
    pub cache_bytes: u64,
    /// `--memory-budget`, in bytes.
    pub memory_budget: usize,
    /// `--min-free-disk`, in bytes; 0 is off.
    pub min_free_bytes: u64,
}

/// How much may wait.
#[derive(Clone, Debug)]
pub struct Queue {
    /// `--workers` and `--max-workers`.
    pub workers: Workers,
    /// `--queue-capacity`, in tasks.
    pub capacity: usize,
    /// `--retry-capacity`, in deliveries.
    pub retry_capacity: usize,
    /// `--queue-max-bytes`.
    pub max_bytes: u64,
    /// `--queue-wait`.
    pub wait: Duration,
    /// `--coalesce`.
    pub coalesce: bool,
}

/// When a failed delivery is tried again.
#[derive(Clone, Debug)]
pub struct Retry {
    /// `--max-retries`.
    pub max_retries: u32,
    /// `--retry-base`.
    pub base: Duration,
    /// `--settle-after`; zero is not at all.
    pub settle_after: Duration,
    /// `--breaker-failures`; 0 is never.
    pub breaker_failures: u32,
}

/// What becomes of deliveries that are given up.
#[derive(Clone, Debug)]
pub struct DeadLetters {
    /// `--dead-letter-max-bytes`.
    pub max_bytes: u64,
    /// `--dead-letter-retention`; `None` is for ever.
    pub retention: Option<Duration>,
    /// `--hinted-handoff`.
    pub hinted_handoff: bool,
    /// `--redrive-rate`, a second.
    pub redrive_rate: NonZeroU32,
}

/// How long things may take.
#[derive(Clone, Debug)]
pub struct Timeouts {
    /// `--request-timeout`.
    pub request: Duration,
    /// `--replica-connection-age`; zero is no limit.
    pub replica_connection_age: Duration,
    /// `--strong-timeout`.
    pub strong: Duration,
    /// `--client-timeout`.
    pub client: Duration,
    /// `--drain-timeout`.
    pub drain: Duration,
}

/// How large requests may be, and how many.
#[derive(Clone, Debug)]
pub struct Limits {
    /// `--max-value-bytes`.
    pub value_bytes: usize,
    /// `--max-key-bytes`.
    pub key_bytes: usize,
    /// `--max-replicas`.
    pub replicas: usize,
    /// The body of a request that keeps all the others: a value may double by its encoding.
    pub body_bytes: usize,
    /// `--max-known-replicas`.
    pub known_replicas: usize,
    /// `--max-connections`.
    pub connections: usize,
    /// `--request-memory`, in bytes.
    pub request_memory: usize,
}

/// Everything that is wrong with the settings.
#[derive(Debug, Error, PartialEq, Eq)]
pub struct ConfigErrors(Vec<String>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

/// The most that `--workers` and `--max-replicas` can be: beyond, one write could open more
/// connections than a process usually may.
const MOST: u64 = 1024;

/// The largest `--max-value-bytes`. The store counts a value's bytes in 32 bits, and a request is
/// held in memory whole.
const MOST_VALUE_BYTES: u64 = 1 << 30;

/// The longest time: far beyond it a timer of the system may overflow.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// The longest `--dead-letter-retention` that is not for ever: ten years.
const LONGEST_RETENTION: Duration = Duration::from_secs(3650 * 24 * 60 * 60);

/// The largest `--redrive-rate`: no replica is that fast.
const MOST_REDRIVES: u64 = 1_000_000;

/// The smallest and largest `--store-cache`: with less than a few pages, or more than half of what
/// an address can say, sled panics.
const LEAST_CACHE_BYTES: u64 = 1 << 20;
const MOST_CACHE_BYTES: u64 = 1 << 40;

/// The largest `--max-key-bytes`: a key must fit a request line, percent-encoded.
const MOST_KEY_BYTES: u64 = 16 << 10;

impl Config {
    /// Checks the arguments and puts them in order.
    ///
    /// # Errors
    ///
    /// [`ConfigErrors`]: every problem, each with its flag, value and limit.
    pub fn from_args(args: &DaemonArgs) -> Result<Self, ConfigErrors> {
        let mut problems = Problems::default();
        let id = &args.node_id;
        let plain = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
        problems.check(!id.is_empty() && id.len() <= 64 && id.chars().all(plain), || {
            format!("--node-id {id:?} must be 1 to 64 of A-Z a-z 0-9 . _ -")
        });
        let workers = match args.workers {
            WorkersArg::Fixed(workers) => Workers::Fixed(workers),
            WorkersArg::Auto => Workers::Auto(args.max_workers),
        };
        if let Workers::Fixed(workers) = workers {
            problems.at_most("--workers", workers.get().into(), MOST);
        }
        problems.at_most("--max-workers", args.max_workers.get().into(), MOST);
        problems.at_most("--max-replicas", args.max_replicas.get() as u64, MOST);
        problems.size("--max-value-bytes", args.max_value_bytes, 1, MOST_VALUE_BYTES);
        problems.size("--max-key-bytes", args.max_key_bytes, 1, MOST_KEY_BYTES);
        problems.size("--store-cache", args.store_cache, LEAST_CACHE_BYTES, MOST_CACHE_BYTES);
        for (flag, time) in [
            ("--retry-base", args.retry_base),
            ("--request-timeout", args.request_timeout),
            ("--strong-timeout", args.strong_timeout),
            ("--client-timeout", args.client_timeout),
            ("--idempotency-window", args.idempotency_window),
        ] {
            problems.check(!time.is_zero(), || format!("{flag} must be longer than zero"));
        }
        for (flag, time) in [
            ("--queue-wait", args.queue_wait),
            ("--settle-after", args.settle_after),
            ("--retry-base", args.retry_base),
            ("--request-timeout", args.request_timeout),
            ("--replica-connection-age", args.replica_connection_age),
            ("--strong-timeout", args.strong_timeout),
            ("--client-timeout", args.client_timeout),
            ("--drain-timeout", args.drain_timeout),
            ("--task-history", args.task_history),
            ("--idempotency-window", args.idempotency_window),
        ] {
            problems.check(time <= LONGEST, || format!("{flag} must be at most 24h"));
        }
        problems.check(args.dead_letter_retention <= LONGEST_RETENTION, || {
            "--dead-letter-retention must be at most 3650days; 0s is for ever".to_owned()
        });
        problems.at_most("--redrive-rate", args.redrive_rate.get().into(), MOST_REDRIVES);
        let known = args.max_known_replicas.get();
        problems.check(known >= args.max_replicas.get(), || {
            let one = args.max_replicas;
            format!("--max-known-replicas {known} must be at least --max-replicas {one}")
        });

        let traces = match traces(&args.otlp_endpoint) {
            Ok(endpoint) => endpoint.map(|endpoint| Traces { endpoint, ratio: args.trace_ratio }),
            Err(problem) => {
                problems.check(false, || problem);
                None
            }
        };
        problems.check((0.0..=1.0).contains(&args.trace_ratio), || {
            format!("--trace-ratio {} must be from 0 to 1", args.trace_ratio)
        });

        let inbound = Inbound {
            auth_file: args.auth_file.clone(),
            tls: tls(args, &mut problems),
            host_names: args.host_name.clone(),
        };
        let exposed = !args.bind.is_loopback() && inbound.is_open();
        problems.check(!exposed || args.insecure, || {
            let address = args.bind;
            format!("--bind {address} lets others in, who may then do everything: ask for tokens (--auth-file) or certificates (--tls-client-ca), or say that it is meant (--insecure)")
        });

        let value_bytes = narrow(args.max_value_bytes);
        let key_bytes = narrow(args.max_key_bytes);
        let replicas = args.max_replicas.get();
        let fixed = key_bytes.saturating_mul(6) + replicas.saturating_mul(2 * MAX_NODE_BYTES);
        let body_bytes = value_bytes.saturating_mul(2).saturating_add(fixed + (64 << 10));

        let value = args.max_value_bytes;
        problems.check(value < args.queue_max_bytes, || {
            let all = args.queue_max_bytes;
            format!("--max-value-bytes {value} must be less than --queue-max-bytes {all}")
        });
        problems.check(body_bytes as u64 <= args.request_memory.as_u64(), || {
            let (all, body) = (args.request_memory, ByteSize(body_bytes as u64));
            format!("--request-memory {all} must hold the largest request, {body} with --max-value-bytes {value}")
        });

        let identity = match (&args.replica_cert, &args.replica_key) {
            (Some(certificate), Some(key)) => Some((certificate.clone(), key.clone())),
            (None, None) => None,
            (Some(_), None) | (None, Some(_)) => {
                let rule = "--replica-cert and --replica-key are of use together alone";
                problems.check(false, || rule.to_owned());
                None
            }
        };

        problems.none()?;
        Ok(Self {
            listen: Listen {
                address: SocketAddr::new(args.bind, args.port),
                node_id: args.node_id.clone(),
            },
            store: Store {
                dir: args.data_dir.clone(),
                cache_bytes: args.store_cache.as_u64(),
                memory_budget: narrow(args.memory_budget),
                min_free_bytes: args.min_free_disk.as_u64(),
            },
            queue: Queue {
                workers,
                capacity: args.queue_capacity.get(),
                retry_capacity: args.retry_capacity.get(),
                max_bytes: args.queue_max_bytes.as_u64(),
                wait: args.queue_wait,
                coalesce: args.coalesce,
            },
            retry: Retry {
                max_retries: args.max_retries,
                base: args.retry_base,
                settle_after: args.settle_after,
                breaker_failures: args.breaker_failures,
            },
            dead_letters: DeadLetters {
                max_bytes: args.dead_letter_max_bytes.as_u64(),
                retention: Some(args.dead_letter_retention).filter(|time| !time.is_zero()),
                hinted_handoff: args.hinted_handoff == Switch::On,
                redrive_rate: args.redrive_rate,
            },
            timeouts: Timeouts {
                request: args.request_timeout,
                replica_connection_age: args.replica_connection_age,
                strong: args.strong_timeout,
                client: args.client_timeout,
                drain: args.drain_timeout,
            },
            limits: Limits {
                value_bytes,
                key_bytes,
                replicas,
                body_bytes,
                known_replicas: known,
                connections: args.max_connections.get(),
                request_memory: narrow(args.request_memory),
            },
            memory: Memory {
                task_history: args.task_history,
                idempotency_window: args.idempotency_window,
                idempotency_keys: args.idempotency_keys.get(),
            },
            traces,
            outbound: Outbound {
                allow: args.allow_replica.clone(),
                allow_file: args.allow_replica_file.clone(),
                ca: args.replica_ca.clone(),
                identity,
                token_file: args.replica_token_file.clone(),
            },
            inbound,
        })
    }
}

/// The files of TLS, which are of use together.
fn tls(args: &DaemonArgs, problems: &mut Problems) -> Option<TlsFiles> {
    match (&args.tls_cert, &args.tls_key, &args.tls_client_ca) {
        (Some(certificate), Some(key), client_ca) => Some(TlsFiles {
            certificate: certificate.clone(),
            key: key.clone(),
            client_ca: client_ca.clone(),
        }),
        (None, None, None) => None,
        _ => {
            let rule = "--tls-cert and --tls-key belong together, and --tls-client-ca needs both";
            problems.check(false, || rule.to_owned());
            None
        }
    }
}

/// The URL that takes traces; nothing for `off`.
fn traces(endpoint: &str) -> Result<Option<String>, String> {
    if endpoint == "off" {
        return Ok(None);
    }
    let problem = |why: &str| format!("--otlp-endpoint {endpoint:?} must be a URL or off: {why}");
    let mut url = Url::parse(endpoint).map_err(|error| problem(&error.to_string()))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(problem("its scheme must be http or https"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(problem("it has a query or a fragment"));
    }
    let path = url.path().trim_end_matches('/');
    if !path.ends_with("/v1/traces") {
        let path = format!("{path}/v1/traces");
        url.set_path(&path);
    }
    Ok(Some(url.into()))
}

fn narrow(size: ByteSize) -> usize {
    usize::try_from(size.as_u64()).unwrap_or(usize::MAX)
}

#[derive(Default)]
struct Problems(Vec<String>);

impl Problems {
    fn check(&mut self, good: bool, problem: impl FnOnce() -> String) {
        if !good {
            self.0.push(problem());
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

    fn none(self) -> Result<(), ConfigErrors> {
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
    fn the_defaults_are_those_of_the_documentation() {
        let config = config(&[]).unwrap();
        assert_eq!(config.listen.address.to_string(), "127.0.0.1:8085");
        assert_eq!(config.listen.node_id, "replicator");
        assert_eq!(config.store.dir, PathBuf::from("./replicator-data"));
        assert_eq!(config.store.cache_bytes, 64 << 20);
        assert_eq!(config.queue.workers, Workers::Fixed(NonZeroU32::new(5).unwrap()));
        assert_eq!((config.queue.capacity, config.queue.retry_capacity), (1000, 500));
        assert_eq!(config.queue.max_bytes, 1 << 30);
        assert_eq!(config.queue.wait, Duration::from_millis(500));
        assert_eq!((config.retry.max_retries, config.retry.base), (3, Duration::from_secs(2)));
        assert_eq!(config.timeouts.request, Duration::from_secs(5));
        assert_eq!(config.timeouts.strong, Duration::from_secs(10));
        assert_eq!(config.timeouts.drain, Duration::from_secs(30));
        assert_eq!(config.limits.value_bytes, 8 << 20);
        assert_eq!((config.limits.key_bytes, config.limits.replicas), (4 << 10, 64));
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
    fn the_path_of_otlp_is_appended_to_an_endpoint_that_lacks_it() {
        let endpoint = |url| config(&["--otlp-endpoint", url]).unwrap().traces.map(|t| t.endpoint);
        assert_eq!(endpoint("off"), None);
        assert_eq!(endpoint("http://c:4318").as_deref(), Some("http://c:4318/v1/traces"));
        assert_eq!(endpoint("http://c/otlp/").as_deref(), Some("http://c/otlp/v1/traces"));
        assert_eq!(endpoint("https://c/v1/traces").as_deref(), Some("https://c/v1/traces"));
    }

    #[test]
    fn what_others_can_reach_asks_who_they_are_or_says_that_it_does_not() {
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
    fn limits_that_cannot_go_together_are_refused() {
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
