//! Facts about sled's log files, recorded by the system calls that `fsync.rs` intercepts.
//!
//! - **How far a log is durable.** sled syncs each piece of its log that it writes. The end of the
//!   last piece, as a position in the log, goes to `COMMITTED` (`commit_marker.rs`), and up to there
//!   the log must be whole at the next start (`sled_log.rs`).
//! - **That a read failed.** sled takes a failed read for the end of the log, cuts the log there and
//!   continues to write: one read error at a start would ruin the store. So a failed read of a store
//!   ends the process before sled sees it. For a disposable copy the error is only recorded.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

#[cfg(target_os = "linux")]
use std::os::fd::BorrowedFd;

use parking_lot::{Mutex, MutexGuard};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OnReadError {
    Exit,
    /// Keep the error for [`take_read_error`].
    Record,
}

/// Identifies a file independently of its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    pub(super) fn of(path: &Path) -> std::io::Result<Self> {
        let about = fs::metadata(path)?;
        Ok(Self { device: about.dev(), inode: about.ino() })
    }
}

#[derive(Debug)]
struct WatchedLog {
    id: FileId,
    on_read_error: OnReadError,
    durable: u64,
    read_error: Option<String>,
}

/// Few: the store, and sometimes a copy.
static LOGS: Mutex<Vec<WatchedLog>> = Mutex::new(Vec::new());

fn logs() -> MutexGuard<'static, Vec<WatchedLog>> {
    LOGS.lock()
}

/// Starts to watch the file at `path`, with no recorded facts. Returns false if there is none.
pub(super) fn watch(path: &Path, on_read_error: OnReadError) -> bool {
    let Ok(id) = FileId::of(path) else { return false };
    let mut logs = logs();
    // An earlier file with the same inode number.
    logs.retain(|log| log.id != id);
    logs.push(WatchedLog { id, on_read_error, durable: 0, read_error: None });
    true
}

pub(super) fn forget(id: FileId) {
    logs().retain(|log| log.id != id);
}

/// How far a log is durable, as a position in it; 0 if unknown.
pub(super) fn durable(id: FileId) -> u64 {
    logs().iter().find(|log| log.id == id).map_or(0, |log| log.durable)
}

pub(super) fn take_read_error(path: &Path) -> Option<String> {
    let id = FileId::of(path).ok()?;
    logs().iter_mut().find(|log| log.id == id)?.read_error.take()
}

#[cfg(target_os = "linux")]
pub(super) fn synced(file: BorrowedFd<'_>, offset: u64, bytes: u64) {
    use super::integrity::sled_log::{SEGMENT, SEGMENT_HEADER, header};
    let Some(id) = id_of(file) else { return };
    let mut logs = logs();
    let Some(log) = logs.iter_mut().find(|log| log.id == id) else { return };
    // Segments are reused, so the position in the log comes from the segment's header. A header
    // older than this piece gives a smaller position, which is also true.
    let begins_at = offset - offset % SEGMENT as u64;
    let mut head = [0; SEGMENT_HEADER];
    if rustix::io::pread(file, &mut head, begins_at) == Ok(SEGMENT_HEADER)
        && let Some((begins, _)) = header(&head)
    {
        let end = begins.saturating_add(offset - begins_at).saturating_add(bytes);
        log.durable = log.durable.max(end);
    }
}

/// Handles a failed read. Returns the line with which the process must end, if the file is the log of
/// a store.
#[cfg(target_os = "linux")]
pub(super) fn read_failed(
    file: BorrowedFd<'_>,
    offset: i64,
    error: &std::io::Error,
) -> Option<String> {
    use std::os::fd::AsRawFd;
    let id = id_of(file)?;
    let mut logs = logs();
    let log = logs.iter_mut().find(|log| log.id == id)?;
    let link = format!("/proc/self/fd/{}", file.as_raw_fd());
    let path = fs::read_link(link).unwrap_or_else(|_| "the store's file db".into());
    let why = format!("cannot read {} at byte {offset}: {error}", path.display());
    match log.on_read_error {
        OnReadError::Record => {
            log.read_error = Some(why);
            None
        }
        OnReadError::Exit => Some(format!(
            "replicator: {why}; the process ends before anything is written to a store that cannot be \
             read; start it again once the disk can be read; if the error persists, restore the data \
             directory from a copy\n"
        )),
    }
}

#[cfg(target_os = "linux")]
fn id_of(file: BorrowedFd<'_>) -> Option<FileId> {
    let about = rustix::fs::fstat(file).ok()?;
    Some(FileId { device: about.st_dev, inode: about.st_ino })
}
