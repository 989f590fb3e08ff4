//! What can go wrong with the store: on opening it, on committing to it, on reading from it.

use std::cell::Cell;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Once;

use thiserror::Error;

use super::keys::Tree;
use crate::task::TaskId;

/// Why a store could not be opened. The text names the file or directory and what to do.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OpenError {
    /// sled would not wait for the disk in this binary, or would write after a read that failed.
    #[error(
        "refusing to open a store: this binary does not override {function}, so that a power cut or \
         a read that fails could cost what was accepted; link it without another definition of \
         that function"
    )]
    Barrier {
        /// Which function, and what was found instead.
        function: String,
    },
    /// Another process works on it.
    #[error("the data directory {} is in use by another replicator ({holder})", dir.display())]
    InUse {
        /// The data directory.
        dir: PathBuf,
        /// `process N`, as far as it is known.
        holder: String,
    },
    /// The operating system refused something.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// A verb, to be followed by the path.
        doing: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// Others could put something else in its place.
    #[error(
        "the data directory {} may be written to by other users (mode {mode:04o}); take that from \
         them: chmod go-w {}, or name a directory below it that does not exist yet (--data-dir)",
        dir.display(), dir.display()
    )]
    OthersMayWrite {
        /// The data directory.
        dir: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// What we would write there would not be its owner's.
    #[error(
        "the data directory {} belongs to user {owner}, and this process runs as user {user}; run \
         it as that user, as root can with: setpriv --reuid={owner} --regid={group} --clear-groups \
         replicator …; or give the directory and all in it to this one: chown -R {user} {}",
        dir.display(), dir.display()
    )]
    ForeignOwner {
        /// The data directory.
        dir: PathBuf,
        /// The number of the user that owns it.
        owner: u32,
        /// The number of its group.
        group: u32,
        /// The number of this user.
        user: u32,
    },
    /// A name in the data directory that leads out of it.
    #[error(
        "{} is {}, which is not followed; put what belongs there in its place", path.display(),
        if *link { "a symbolic link" } else { "neither a file nor a directory" }
    )]
    Elsewhere {
        /// The name.
        path: PathBuf,
        /// Whether it is a link.
        link: bool,
    },
    /// There are tasks, but nothing says which store is the current one.
    #[error(
        "the data directory {} holds tasks in {store} but no file CURRENT that names it; if no \
         newer store is missing, restore it with: echo {store} > {}",
        dir.display(), dir.join("CURRENT").display()
    )]
    CurrentMissing {
        /// The data directory.
        dir: PathBuf,
        /// The name of the store found in it.
        store: String,
    },
    /// There is no store to look at.
    #[error("{} holds no store (--data-dir)", dir.display())]
    NoStore {
        /// The data directory.
        dir: PathBuf,
    },
    /// There is one already.
    #[error(
        "{} holds a store already; import into a data directory that does not exist yet \
         (--data-dir)", dir.display()
    )]
    NotEmpty {
        /// The data directory.
        dir: PathBuf,
    },
    /// `CURRENT` names no store, or one that is not there.
    #[error(
        "{} names {found:?}, and there is no such store beside it; restore the data directory \
         from a copy, or put the missing store back", path.display()
    )]
    CurrentWrong {
        /// The file `CURRENT`.
        path: PathBuf,
        /// What it says.
        found: String,
    },
    /// Written by a newer release.
    #[error(
        "cannot open the store in {}: its format is version {found}, this binary knows up to \
         {known}", dir.display()
    )]
    Newer {
        /// The data directory.
        dir: PathBuf,
        /// The version of what is on disk.
        found: u32,
        /// The newest version that this binary reads.
        known: u32,
    },
    /// A row is not what was written.
    #[error(
        "the store in {} is damaged: {damage}; restore the data directory from a copy, or go on \
         with what is left by: replicator check --repair --data-dir {}",
        dir.display(), dir.display()
    )]
    Damaged {
        /// The data directory.
        dir: PathBuf,
        /// Which row, and what about it.
        damage: Damage,
    },
    /// The end of the log is gone, and accepted tasks may be gone with it.
    #[error(
        "the store in {} has lost the end of {}: {} says that commit {flushed} was on disk, and \
         the last one found is {found}; restore the data directory from a copy, or go on with what \
         is left by: replicator check --repair --data-dir {}",
        dir.display(), store.display(), marker_file.display(), dir.display()
    )]
    TailGone {
        /// The data directory.
        dir: PathBuf,
        /// The store in it.
        store: PathBuf,
        /// The file `COMMITTED`.
        marker_file: PathBuf,
        /// The number that it names.
        flushed: u64,
        /// The newest that the store knows of.
        found: u64,
    },
    /// The file `COMMITTED` is not what was written.
    #[error(
        "{} is damaged, so a lost end of the store in {} would not be noticed; nothing was changed; \
         restore the data directory from a copy, or look at the store and go on with what is there \
         by: replicator check --repair --data-dir {}",
        marker_file.display(), dir.display(), dir.display()
    )]
    MarkerWrong {
        /// The data directory.
        dir: PathBuf,
        /// The file `COMMITTED`.
        marker_file: PathBuf,
    },
    /// The file `COMMITTED` is of a store that came after the current one.
    #[error(
        "{} names {other}, and CURRENT names {store}, which is older: what was accepted since is not \
         in it; nothing was changed; restore the data directory {} from a copy, or go on with what \
         is in {store} by: replicator check --repair --data-dir {}",
        marker_file.display(), dir.display(), dir.display()
    )]
    MarkerOfAnother {
        /// The data directory.
        dir: PathBuf,
        /// The file `COMMITTED`.
        marker_file: PathBuf,
        /// The name of the current store.
        store: String,
        /// The name of the store in that file.
        other: String,
    },
    /// A repair would remove the store that the last commits went to.
    #[error(
        "{newer} in {} holds what was accepted last, and CURRENT names {store}, which is older; \
         nothing was changed; write {newer} into CURRENT, or move {newer} away to go on with {store}",
        dir.display()
    )]
    NewerStore {
        /// The data directory.
        dir: PathBuf,
        /// The name of the current store.
        store: String,
        /// The name of the newer one.
        newer: String,
    },
    /// Rows have vanished.
    #[error(
        "the store in {} has lost rows: {gone}; restore the data directory from a copy, or go on \
         with what is left by: replicator check --repair --data-dir {}",
        dir.display(), dir.display()
    )]
    RowsGone {
        /// The data directory.
        dir: PathBuf,
        /// In which trees, and how many.
        gone: Gone,
    },
    /// The disk does not give back what is on it.
    #[error(
        "cannot open the store in {}: {why}; nothing in it was changed, and once the disk can be \
         read it opens; if that stays as it is, restore the data directory from a copy",
        dir.display()
    )]
    Unread {
        /// The data directory or the store in it.
        dir: PathBuf,
        /// Which file, and what the operating system says.
        why: String,
    },
    /// sled cannot work with its files.
    #[error(
        "cannot open the store in {}: {why}; if the disk is well and not full, its files are \
         damaged: restore the data directory from a copy, or save what replicator export can still \
         read of it, if anything, and move it away to begin with an empty one", dir.display()
    )]
    Database {
        /// The data directory or the store in it.
        dir: PathBuf,
        /// What sled says.
        why: String,
    },
}

impl OpenError {
    /// For `map_err`: the operating system refused to do this to `path`.
    pub(super) fn io(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { doing, path, source }
    }

    /// For `map_err`: the open store in `dir` failed.
    pub(super) fn in_store(dir: &Path) -> impl FnOnce(Failure) -> Self {
        let dir = dir.to_owned();
        move |failure| match failure {
            Failure::Damaged(damage) => Self::Damaged { dir, damage },
            Failure::Gone(gone) => Self::RowsGone { dir, gone },
            Failure::Unread(why) => Self::Unread { dir, why },
            Failure::Database(why) => Self::Database { dir, why },
        }
    }
}

/// Why a commit did not happen, as far as anyone knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CommitError {
    /// The store failed, now or earlier; it accepts nothing until a restart.
    #[error("the store has failed and nothing can be accepted until a restart")]
    StoreFailed,
    /// The store does not answer; what was handed in last may be on disk or not.
    #[error("the store does not answer")]
    Stalled,
    /// The committer was closed before this was handed in.
    #[error("the store is closed")]
    Closed,
}

/// Why a task could not be read.
#[derive(Clone, Debug, Error)]
pub enum ReadError {
    /// A row of it is not what was written.
    #[error("the store is damaged: {0}")]
    Damaged(Damage),
    /// sled failed.
    #[error("cannot read from the store: {0}")]
    Database(String),
    /// It was not read to the end, as the process ends.
    #[error("reading from the store was interrupted")]
    Interrupted,
}

impl From<Failure> for ReadError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Damaged(damage) => Self::Damaged(damage),
            Failure::Gone(Gone(why)) | Failure::Unread(why) | Failure::Database(why) => {
                Self::Database(why)
            }
        }
    }
}

/// Rows that must be there and are not: in which trees, and how many.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct Gone(pub(super) String);

/// A row that is not what was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    pub(super) tree: Tree,
    pub(super) key: Vec<u8>,
    pub(super) what: &'static str,
}

impl Damage {
    /// The task that the row belongs to, if its key says so.
    #[must_use]
    pub fn task(&self) -> Option<TaskId> {
        self.tree.owner(&self.key)
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tree, key, what } = self;
        write!(f, "the row {} of {tree} {what}", shown(key))
    }
}

/// How keys are shown: the names in `meta` as they are, numbers in hexadecimal.
fn shown(key: &[u8]) -> String {
    if !key.is_empty() && key.iter().all(u8::is_ascii_graphic) {
        return key.escape_ascii().to_string();
    }
    super::keys::hex(key)
}

/// What any work on the open database can end with.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(super) enum Failure {
    #[error("{0}")]
    Damaged(Damage),
    #[error("{0}")]
    Gone(Gone),
    /// The disk did not give back a file, before sled has touched any.
    #[error("{0}")]
    Unread(String),
    #[error("{0}")]
    Database(String),
}

impl From<Damage> for Failure {
    fn from(damage: Damage) -> Self {
        Self::Damaged(damage)
    }
}

impl From<sled::Error> for Failure {
    fn from(error: sled::Error) -> Self {
        Self::Database(match error {
            sled::Error::Corruption { .. } => "the database finds its file corrupted".to_owned(),
            other => in_one_line(&other.to_string()),
        })
    }
}

/// sled's texts can have several lines, and places in its source.
fn in_one_line(text: &str) -> String {
    let line: String = text.lines().next().unwrap_or_default().chars().take(200).collect();
    line.trim_end().to_owned()
}

thread_local! {
    /// This thread is in [`guarded`].
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// From now on panics in here and in sled's own threads say nothing by themselves.
fn silence_sled() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let tell = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let of_sled = |name: &str| name.starts_with("sled");
            if !GUARDED.get() && !std::thread::current().name().is_some_and(of_sled) {
                tell(panic);
            }
        }));
    });
}

/// Runs what touches sled. sled answers some damage and some I/O errors with a panic instead of
/// an error; to the rest of the program they are one thing.
///
/// What it panicked with is told once, by the error; the usual text on standard error is left out.
pub(super) fn guarded<T, E: From<Failure>>(work: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    silence_sled();
    let nested = GUARDED.replace(true);
    // Nothing that `work` has left half done is looked at again: every caller gives up the store.
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
    GUARDED.set(nested);
    outcome.unwrap_or_else(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("a panic without a text");
        Err(Failure::Database(format!("the database gave up: {}", in_one_line(text))).into())
    })
}
