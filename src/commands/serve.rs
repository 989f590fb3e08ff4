//! Runs the daemon in the foreground until a signal or a failure stops it.

use std::process::ExitCode;
use std::sync::Arc;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{error, info, warn};

use super::reload::SettingsReader;
use super::{output, with_causes};
use crate::config::Config;
use crate::daemon::Daemon;

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

    pub(super) async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.term.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// Starts jemalloc's background thread, which returns freed memory to the system. Without it, memory
/// is returned only when the thread that freed it allocates again: after an outage, maybe never.
fn return_freed_memory() {
    let one = tikv_jemalloc_ctl::max_background_threads::write(1);
    if let Err(error) = one.and_then(|()| tikv_jemalloc_ctl::background_thread::write(true)) {
        warn!(%error, "cannot start the allocator's background thread: memory freed after an outage may stay allocated");
    }
}

/// An error is the reason why the daemon did not start.
///
/// `reread` reads the settings again on SIGHUP.
pub(super) async fn run(config: &Config, reread: Arc<SettingsReader>) -> Result<ExitCode, String> {
    // Before the store opens: a signal must not kill the process while it does.
    let cannot_catch = |error| format!("cannot catch signals: {error}");
    let mut signals = Signals::catch().map_err(cannot_catch)?;
    // The default action of SIGHUP would kill the process.
    let mut reload = signal(SignalKind::hangup()).map_err(cannot_catch)?;
    if !config.address.ip().is_loopback() && config.inbound.is_open() {
        warn!(
            address = %config.address,
            "authentication is disabled (--insecure): anyone who can reach this port has full access"
        );
    }
    raise_open_files(config);
    return_freed_memory();
    let started = tokio::select! {
        started = Daemon::start(config) => started,
        signal = signals.next() => {
            info!(signal, "stopping while the store opens: nothing was changed except repairs");
            return Ok(ExitCode::SUCCESS);
        }
    };
    let mut daemon = started.map_err(|error| with_causes(&error))?;
    if let Err(why) = output::announce(&daemon.url()).await {
        warn!(address = daemon.url(), "{why}");
    }
    let code = loop {
        tokio::select! {
            signal = signals.next() => {
                info!(signal, "draining: finishing requests and deliveries in flight; a second signal stops at once");
                break ExitCode::SUCCESS;
            }
            why = daemon.failed() => {
                error!(error = %why, "stopping");
                break ExitCode::FAILURE;
            }
            _ = reload.recv() => {
                let reread = Arc::clone(&reread);
                daemon.reload(move || reread.read());
            }
        }
    };
    Ok(tokio::select! {
        closed = daemon.stop() => match closed {
            Ok(()) => code,
            Err(_) => ExitCode::FAILURE,
        },
        signal = signals.next() => {
            warn!(signal, "stopping at once; undelivered writes stay on disk");
            ExitCode::FAILURE
        }
    })
}

/// File descriptors besides connections: the store, the log, the runtime.
const OTHER_FILES: u64 = 256;

/// Raises the limit of open files to what the connections may need. Warns if the system allows
/// fewer: connections are then refused below `--max-connections`.
fn raise_open_files(config: &Config) {
    let replicas = config.engine.max_known_replicas.saturating_add(config.server.max_connections);
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
            "the limit of open files is lower than --max-connections and --max-known-replicas may need: raise it (LimitNOFILE, ulimit -n) or lower them"
        );
    }
}
