//! Fault points: named steps at which a test can kill the process.
//!
//! Built with the feature `faults` (tests only), the process kills itself with SIGKILL when it
//! passes the point in `REPLICATOR_FAULT_POINT=name` (or `name:n`: the n-th time). Without the
//! feature these functions are empty and the environment is not read.

use std::time::Duration;

#[cfg(feature = "faults")]
use std::sync::{
    LazyLock,
    atomic::{AtomicU64, Ordering},
};

#[cfg(feature = "faults")]
use rustix::process::{Signal, getpid, kill_process};

/// All points, in the order in which a store passes them. `tests/faults.rs` kills the daemon at each
/// one, and fails if one is never reached.
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
    "commit.taken",
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

#[cfg(not(feature = "faults"))]
#[inline(always)]
pub(crate) fn point(_name: &'static str) {}

#[cfg(not(feature = "faults"))]
#[inline(always)]
pub(crate) fn point_after<E>(
    _name: &'static str,
    _flush: impl FnOnce() -> Result<(), E>,
) -> Result<(), E> {
    Ok(())
}

#[cfg(feature = "faults")]
pub(crate) fn point(name: &'static str) {
    let _ = point_after(name, || Ok::<_, std::convert::Infallible>(()));
}

/// [`point`], but calls `flush` first. A kill alone would leave most writes in a buffer.
#[cfg(feature = "faults")]
pub(crate) fn point_after<E>(
    name: &'static str,
    flush: impl FnOnce() -> Result<(), E>,
) -> Result<(), E> {
    debug_assert!(POINTS.contains(&name), "{name} is not in POINTS");
    if let Some(armed) = &*ARMED
        && armed.name == name
        && armed.passes.fetch_sub(1, Ordering::Relaxed) == 1
    {
        flush()?;
        // Not through the log: the process dies before the log's thread writes the line.
        let line = format!("killed at a fault point name=\"{name}\"\n");
        let _ = std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes());
        let _ = kill_process(getpid(), Signal::KILL);
    }
    Ok(())
}

/// The size from which a store may be compacted. A test lowers it with
/// `REPLICATOR_FAULT_REWRITE_FLOOR`, so that it needs little data.
#[cfg(not(feature = "faults"))]
#[inline(always)]
pub(crate) const fn compaction_floor(bytes: u64) -> u64 {
    bytes
}

#[cfg(feature = "faults")]
pub(crate) fn compaction_floor(bytes: u64) -> u64 {
    static FLOOR: LazyLock<Option<u64>> =
        LazyLock::new(|| std::env::var("REPLICATOR_FAULT_REWRITE_FLOOR").ok()?.parse().ok());
    FLOOR.unwrap_or(bytes)
}

/// How far the wall clock runs ahead of the system's. A test sets it in seconds with
/// `REPLICATOR_FAULT_CLOCK_AHEAD`.
#[cfg(not(feature = "faults"))]
#[inline(always)]
pub(crate) const fn clock_ahead() -> Duration {
    Duration::ZERO
}

#[cfg(feature = "faults")]
pub(crate) fn clock_ahead() -> Duration {
    static AHEAD: LazyLock<Option<u64>> =
        LazyLock::new(|| std::env::var("REPLICATOR_FAULT_CLOCK_AHEAD").ok()?.parse().ok());
    AHEAD.map_or(Duration::ZERO, Duration::from_secs)
}

/// Blocks while the file in `REPLICATOR_FAULT_HANG` exists, like a disk that hangs.
#[cfg(feature = "faults")]
pub(crate) fn hang() {
    static FILE: LazyLock<Option<std::ffi::OsString>> =
        LazyLock::new(|| std::env::var_os("REPLICATOR_FAULT_HANG"));
    while FILE.as_ref().is_some_and(|file| std::path::Path::new(file).exists()) {
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[cfg(feature = "faults")]
struct Armed {
    name: String,
    /// Passes that are left. Wraps after the kill.
    passes: AtomicU64,
}

#[cfg(feature = "faults")]
static ARMED: LazyLock<Option<Armed>> = LazyLock::new(|| {
    let text = std::env::var("REPLICATOR_FAULT_POINT").ok()?;
    let (name, passes) = text.split_once(':').unwrap_or((&text, "1"));
    let passes = AtomicU64::new(passes.parse().unwrap_or(1));
    Some(Armed { name: name.to_owned(), passes })
});
