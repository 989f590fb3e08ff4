//! Fault points: the named steps at which a test can have the process die.
//!
//! Built with the feature `faults`, which is for tests alone, and with
//! `REPLICATOR_FAULT_POINT=name` or `name:n` in its environment, the process kills itself with
//! SIGKILL when it passes that point for the first or the n-th time. Without the feature
//! [`point`] is empty and nothing reads the environment.

/// Every point, in the order in which a store's life passes them. `tests/faults.rs` dies at each
/// of them, and fails if one is never reached.
#[cfg(feature = "faults")]
pub const POINTS: &[&str] = &[
    "create.cleared",
    "create.made-aside",
    "create.filled",
    "create.synced",
    "create.renamed",
    "create.ancestors-synced",
    "current.written",
    "current.synced",
    "current.renamed",
    "create.named",
    "rewrite.begun",
    "rewrite.made",
    "rewrite.synced",
    "rewrite.mirroring",
    "rewrite.slice-copied",
    "rewrite.slice-flushed",
    "rewrite.flushed",
    "rewrite.renamed",
    "rewrite.witnessed",
    "rewrite.old-dropped",
    "rewrite.old-removed",
    "clear.found",
    "clear.removed",
    "migrate.begun",
    "migrate.stepped",
    "migrate.flushed",
    "migrate.versioned",
    "migrate.done",
    "rebuild.begun",
    "rebuild.filled",
    "rebuild.synced",
    "recover.orphan-found",
    "recover.orphan-removed",
    "recover.key-written",
    "recover.scanned",
    "recover.leased",
    "recover.flushed",
    "commit.gathered",
    "commit.chunks-written",
    "commit.row-written",
    "commit.key-unwritten",
    "commit.written",
    "commit.flushed",
    "commit.answered",
    "settle.begun",
    "settle.letter-written",
    "settle.saved",
    "settle.row-removed",
    "settle.removed",
    "settle.written",
    "settle.flushed",
    "shutdown.refusing",
    "shutdown.served",
    "shutdown.delivered",
    "shutdown.settled",
    "shutdown.flushed",
    "shutdown.closed",
];

/// Does nothing.
#[cfg(not(feature = "faults"))]
#[inline(always)]
pub(crate) fn point(_name: &'static str) {}

/// Does nothing.
#[cfg(not(feature = "faults"))]
#[inline(always)]
pub(crate) fn point_after<E>(
    _name: &'static str,
    _flush: impl FnOnce() -> Result<(), E>,
) -> Result<(), E> {
    Ok(())
}

/// Ends the process here if a test has asked for it.
#[cfg(feature = "faults")]
pub(crate) fn point(name: &'static str) {
    let _ = point_after(name, || Ok::<_, std::convert::Infallible>(()));
}

/// As [`point`], but only after `flush`: so that what was done until then is on the disk, where a
/// kill by itself would leave it in a buffer most of the time.
#[cfg(feature = "faults")]
pub(crate) fn point_after<E>(
    name: &'static str,
    flush: impl FnOnce() -> Result<(), E>,
) -> Result<(), E> {
    debug_assert!(POINTS.contains(&name), "{name} is not in the list");
    if let Some(armed) = &*ARMED
        && armed.name == name
        && armed.passes.fetch_sub(1, Ordering::Relaxed) == 1
    {
        flush()?;
        // Not by the log: its thread dies with the process before it has written the line.
        let line = format!("killed at a fault point name=\"{name}\"\n");
        let _ = std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes());
        let _ = kill_process(getpid(), Signal::KILL);
    }
    Ok(())
}

/// From which size on a store may be rewritten: what it is, or what a test wants with
/// `REPLICATOR_FAULT_REWRITE_FLOOR`, so that little data is enough.
#[cfg(not(feature = "faults"))]
#[inline(always)]
pub(crate) const fn compaction_floor(bytes: u64) -> u64 {
    bytes
}

#[cfg(feature = "faults")]
pub(crate) fn compaction_floor(bytes: u64) -> u64 {
    static WANTED: LazyLock<Option<u64>> =
        LazyLock::new(|| std::env::var("REPLICATOR_FAULT_REWRITE_FLOOR").ok()?.parse().ok());
    WANTED.unwrap_or(bytes)
}

/// How far the wall clock is ahead of the system's: not at all, or as far as a test wants it with
/// `REPLICATOR_FAULT_CLOCK_AHEAD`, in seconds.
#[cfg(not(feature = "faults"))]
#[inline(always)]
pub(crate) const fn clock_ahead() -> Duration {
    Duration::ZERO
}

#[cfg(feature = "faults")]
pub(crate) fn clock_ahead() -> Duration {
    static WANTED: LazyLock<Option<u64>> =
        LazyLock::new(|| std::env::var("REPLICATOR_FAULT_CLOCK_AHEAD").ok()?.parse().ok());
    WANTED.map_or(Duration::ZERO, Duration::from_secs)
}

/// Returns when the file does not exist that `REPLICATOR_FAULT_HANG` names: for as long as a test
/// keeps it, the disk hangs.
#[cfg(feature = "faults")]
pub(crate) fn hang() {
    static FILE: LazyLock<Option<std::ffi::OsString>> =
        LazyLock::new(|| std::env::var_os("REPLICATOR_FAULT_HANG"));
    while FILE.as_ref().is_some_and(|file| std::path::Path::new(file).exists()) {
        std::thread::sleep(Duration::from_millis(10));
    }
}

use std::time::Duration;

#[cfg(feature = "faults")]
use std::sync::{
    LazyLock,
    atomic::{AtomicU64, Ordering},
};

#[cfg(feature = "faults")]
use rustix::process::{Signal, getpid, kill_process};

#[cfg(feature = "faults")]
struct Armed {
    name: String,
    /// How often it is passed until it kills; wraps far beyond.
    passes: AtomicU64,
}

#[cfg(feature = "faults")]
static ARMED: LazyLock<Option<Armed>> = LazyLock::new(|| {
    let text = std::env::var("REPLICATOR_FAULT_POINT").ok()?;
    let (name, passes) = text.split_once(':').unwrap_or((&text, "1"));
    let passes = AtomicU64::new(passes.parse().unwrap_or(1));
    Some(Armed { name: name.to_owned(), passes })
});
