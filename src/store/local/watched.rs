//! What the calls that pass through `fsync.rs` tell of sled's log files.
//!
//! Two things that sled keeps to itself are needed outside of it:
//!
//! - **How far a log is durable.** sled syncs every piece of its log that it writes, and says which
//!   piece that is. The end of the last one, as a place in the log, is what `COMMITTED` carries
//!   (`commit_marker.rs`), and up to there the log must be whole at the next start (`sled_log.rs`).
//! - **That a read failed.** sled takes a read of its log that fails for the end of the log, cuts it
//!   there and writes on: one moment of a bad disk at a start would ruin the store. So a read of a
//!   store that fails ends the process before sled hears of it; of a copy, which nobody misses, it
//!   is kept for whoever made the copy.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

#[cfg(target_os = "linux")]
use std::os::fd::BorrowedFd;

/// What becomes of a read of a log that fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OnUnread {
    /// The process ends with one sentence on standard error.
    End,
    /// It is kept until [`unread`] asks for it.
    Keep,
}

/// Which file it is, whatever it is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    /// The file to which a path leads.
    pub(super) fn of(path: &Path) -> std::io::Result<Self> {
        let about = fs::metadata(path)?;
        Ok(Self { device: about.dev(), inode: about.ino() })
    }
}

#[derive(Debug)]
struct Log {
    id: FileId,
    on_unread: OnUnread,
    /// Where the last piece that was synced ends.
    durable: u64,
    unread: Option<String>,
}

/// Few: the store, and now and then another one.
static LOGS: Mutex<Vec<Log>> = Mutex::new(Vec::new());

fn logs() -> MutexGuard<'static, Vec<Log>> {
    LOGS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From now on the file at `path` is a log. Nothing is known of it yet. False if there is none.
pub(super) fn watch(path: &Path, on_unread: OnUnread) -> bool {
    let Ok(id) = FileId::of(path) else { return false };
    let mut logs = logs();
    // Of another file that had this number before.
    logs.retain(|log| log.id != id);
    logs.push(Log { id, on_unread, durable: 0, unread: None });
    true
}

/// The log is closed.
pub(super) fn forget(id: FileId) {
    logs().retain(|log| log.id != id);
}

/// Up to where a log is durable, as a place in it; 0 if nothing is known.
pub(super) fn durable(id: FileId) -> u64 {
    logs().iter().find(|log| log.id == id).map_or(0, |log| log.durable)
}

/// What the system said of a read of this log that failed.
pub(super) fn unread(path: &Path) -> Option<String> {
    let id = FileId::of(path).ok()?;
    logs().iter_mut().find(|log| log.id == id)?.unread.take()
}

/// This piece of a file was synced.
#[cfg(target_os = "linux")]
pub(super) fn synced(file: BorrowedFd<'_>, offset: u64, bytes: u64) {
    use super::integrity::sled_log::{SEGMENT, SEGMENT_HEADER, header};
    let Some(id) = id_of(file) else { return };
    let mut logs = logs();
    let Some(log) = logs.iter_mut().find(|log| log.id == id) else { return };
    // A place in the file says nothing: it is used again. The head of the segment says which place
    // in the log it is. One that is older than this piece gives a smaller place, which is true too.
    let begins_at = offset - offset % SEGMENT as u64;
    let mut head = [0; SEGMENT_HEADER];
    if rustix::io::pread(file, &mut head, begins_at) == Ok(SEGMENT_HEADER)
        && let Some((begins, _)) = header(&head)
    {
        let end = begins.saturating_add(offset - begins_at).saturating_add(bytes);
        log.durable = log.durable.max(end);
    }
}

/// A read of a file failed. Returns if that is no log, or nobody's loss.
#[cfg(target_os = "linux")]
pub(super) fn read_failed(file: BorrowedFd<'_>, offset: i64, error: &std::io::Error) {
    use std::os::fd::AsRawFd;
    let Some(id) = id_of(file) else { return };
    let mut logs = logs();
    let Some(log) = logs.iter_mut().find(|log| log.id == id) else { return };
    let link = format!("/proc/self/fd/{}", file.as_raw_fd());
    let path = fs::read_link(link).unwrap_or_else(|_| "the store's file db".into());
    let why = format!("cannot read {} at byte {offset}: {error}", path.display());
    match log.on_unread {
        OnUnread::Keep => log.unread = Some(why),
        OnUnread::End => end(&why),
    }
}

/// Says why, and ends the process as a kill would: nothing more is written. What prints lines
/// elsewhere may wait for the thread that is here.
#[cfg(target_os = "linux")]
fn end(why: &str) -> ! {
    let line = format!(
        "replicator: {why}; the process ends before anything is written to a store that it cannot \
         read; once the disk can be read, start it again; if that stays as it is, restore the data \
         directory from a copy\n"
    );
    super::fsync::end(&line)
}

#[cfg(target_os = "linux")]
fn id_of(file: BorrowedFd<'_>) -> Option<FileId> {
    let about = rustix::fs::fstat(file).ok()?;
    Some(FileId { device: about.st_dev, inode: about.st_ino })
}
