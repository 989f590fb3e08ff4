//! The daemon in the foreground, until a signal or a failure ends it.

use std::process::ExitCode;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{error, info, warn};

use super::{output, whole};
use crate::config::Config;
use crate::daemon::Daemon;

/// SIGTERM and SIGINT.
pub(super) struct Signals {
    term: Signal,
    interrupt: Signal,
}

impl Signals {
    pub(super) fn catch() -> std::io::Result<Self> {
        Ok(Self {
            term: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits for the next one and gives its name.
    pub(super) async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.term.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// Has what is freed go back to the system. jemalloc does so by itself only when the thread that
/// freed it allocates again, which after an outage may be never.
fn give_memory_back() {
    let one = tikv_jemalloc_ctl::max_background_threads::write(1);
    if let Err(error) = one.and_then(|()| tikv_jemalloc_ctl::background_thread::write(true)) {
        warn!(%error, "memory that an outage needs is given back late");
    }
}

/// Runs the daemon.
///
/// # Errors
///
/// Why it does not start.
pub(super) async fn run(config: &Config) -> Result<ExitCode, String> {
    // From the very start: a signal while the store is opened must not end the process halfway.
    let mut signals = match Signals::catch() {
        Ok(signals) => signals,
        Err(error) => return Err(format!("cannot catch signals: {error}")),
    };
    // Later than that it is only told to read its files again, which it has just done.
    let mut reload = match signal(SignalKind::hangup()) {
        Ok(reload) => reload,
        Err(error) => return Err(format!("cannot catch signals: {error}")),
    };
    if !config.listen.address.ip().is_loopback() && config.inbound.is_open() {
        warn!(
            address = %config.listen.address,
            "nobody is asked who they are (--insecure): whoever reaches this port can do everything"
        );
    }
    raise_open_files(config);
    give_memory_back();
    let started = tokio::select! {
        started = Daemon::start(config) => started,
        signal = signals.next() => {
            info!(signal, "ending while the store is opened: nothing was changed but what opening repairs");
            return Ok(ExitCode::SUCCESS);
        }
    };
    let mut daemon = match started {
        Ok(daemon) => daemon,
        Err(error) => return Err(whole(&error)),
    };
    if let Err(why) = output::announce(&daemon.url()).await {
        warn!(address = daemon.url(), "{why}");
    }
    let code = loop {
        tokio::select! {
            signal = signals.next() => {
                info!(signal, "draining: what is in flight is finished, a second signal ends at once");
                break ExitCode::SUCCESS;
            }
            why = daemon.failed() => {
                error!(error = %why, "stopping");
                break ExitCode::FAILURE;
            }
            _ = reload.recv() => daemon.reload(),
        }
    };
    Ok(tokio::select! {
        closed = daemon.stop() => match closed {
            Ok(()) => code,
            Err(_) => ExitCode::FAILURE,
        },
        signal = signals.next() => {
            warn!(signal, "ending at once; what is not delivered stays on disk");
            ExitCode::FAILURE
        }
    })
}

/// What is open besides connections: the store, the log, the threads' own.
const OTHER_FILES: u64 = 256;

/// Lets the process have as many open files as its connections may need; where the system allows
/// less it says so, for then connections are refused before `--max-connections` is reached.
fn raise_open_files(config: &Config) {
    let replicas = config.limits.known_replicas.saturating_add(config.limits.connections);
    let needed = OTHER_FILES.saturating_add(u64::try_from(replicas).unwrap_or(u64::MAX));
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current.is_none_or(|current| current >= needed) {
        return;
    }
    let raised = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    let most = if raised.is_ok() { maximum } else { current };
    if let Some(most) = most.filter(|most| *most < needed) {
        warn!(
            open_files = most,
            needed,
            "the system lets this process open fewer files than --max-connections and --max-known-replicas may need: raise the limit (LimitNOFILE, ulimit -n) or lower them"
        );
    }
}
