//! The errors of the store: opening, committing, reading.

use std::cell::Cell;
use std::fmt;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Once;

use bincode::error::EncodeError;
use thiserror::Error;

use super::keys::Tree;
use crate::store::records::ReadError;
use crate::task::TaskId;

/// Why a store could not be opened. The text names the file or directory and the remedy.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OpenError {
    /// A function that `fsync.rs` replaces is not replaced in this binary.
    #[error(
        "refusing to open a store: this binary does not override {function}, so a power cut or a \
         failed read could lose accepted writes; link it without another definition of that function"
    )]
    Barrier { function: String },
    #[error("the data directory {} is in use by another replicator ({holder})", dir.display())]
    InUse { dir: PathBuf, holder: String },
    #[error("cannot {doing} {}", path.display())]
    Io { doing: &'static str, path: PathBuf, source: std::io::Error },
    #[error(
        "other users can write to the data directory {} (mode {mode:04o}); run chmod go-w {}, or \
         name a directory below it that does not exist yet (--data-dir)",
        dir.display(), dir.display()
    )]
    OthersMayWrite { dir: PathBuf, mode: u32 },
    #[error(
        "the data directory {} belongs to user {owner}, but this process runs as user {user}; as \
         root, run it as that user: setpriv --reuid={owner} --regid={group} --clear-groups \
         replicator …; or change the owner: chown -R {user} {}",
        dir.display(), dir.display()
    )]
    ForeignOwner { dir: PathBuf, owner: u32, group: u32, user: u32 },
    #[error(
        "{} is {}; replace it with a file or directory", path.display(),
        if *link { "a symbolic link, which is not followed" }
        else { "neither a file nor a directory" }
    )]
    WrongFileType { path: PathBuf, link: bool },
    #[error(
        "the data directory {} holds tasks in {store} but no file CURRENT that names it; if no \
         newer store is missing, restore it with: echo {store} > {}",
        dir.display(), dir.join("CURRENT").display()
    )]
    CurrentMissing { dir: PathBuf, store: String },
    #[error("{} holds no store (--data-dir)", dir.display())]
    NoStore { dir: PathBuf },
    #[error(
        "{} holds a store already; import into a data directory that does not exist yet \
         (--data-dir)", dir.display()
    )]
    NotEmpty { dir: PathBuf },
    #[error(
        "{} names {found:?}, but there is no such store beside it; restore the data directory \
         from a copy, or put the missing store back", path.display()
    )]
    CurrentWrong { path: PathBuf, found: String },
    #[error(
        "cannot open the store in {}: its format is version {found}, this binary knows up to \
         {known}", dir.display()
    )]
    Newer { dir: PathBuf, found: u32, known: u32 },
    #[error(
        "the store in {} is damaged: {damage}; restore the data directory from a copy, or continue \
         with what is left: replicator check --repair --data-dir {}",
        dir.display(), dir.display()
    )]
    Damaged { dir: PathBuf, damage: Damage },
    #[error(
        "the store in {} has lost the end of {}: {} records commit {flushed}, but the last commit \
         found is {found}; restore the data directory from a copy, or continue with what is left: \
         replicator check --repair --data-dir {}",
        dir.display(), store.display(), marker_file.display(), dir.display()
    )]
    TailGone { dir: PathBuf, store: PathBuf, marker_file: PathBuf, flushed: u64, found: u64 },
    #[error(
        "{} is damaged, so a lost end of the store in {} would not be noticed; nothing was changed; \
         restore the data directory from a copy, or check the store and continue with what is \
         there: replicator check --repair --data-dir {}",
        marker_file.display(), dir.display(), dir.display()
    )]
    MarkerWrong { dir: PathBuf, marker_file: PathBuf },
    #[error(
        "{} names {other}, but CURRENT names {store}, which is older and lacks the latest writes; \
         nothing was changed; restore the data directory {} from a copy, or continue with {store}: \
         replicator check --repair --data-dir {}",
        marker_file.display(), dir.display(), dir.display()
    )]
    MarkerOfAnother { dir: PathBuf, marker_file: PathBuf, store: String, other: String },
    /// A repair would remove the store that holds the latest commits.
    #[error(
        "{newer} in {} holds the latest writes, but CURRENT names {store}, which is older; nothing \
         was changed; write {newer} into CURRENT, or move {newer} away to continue with {store}",
        dir.display()
    )]
    NewerStore { dir: PathBuf, store: String, newer: String },
    #[error(
        "the store in {} has lost rows: {missing}; restore the data directory from a copy, or \
         continue with what is left: replicator check --repair --data-dir {}",
        dir.display(), dir.display()
    )]
    RowsGone { dir: PathBuf, missing: MissingRows },
    /// The disk failed before anything was written.
    #[error(
        "cannot open the store in {}: {why}; nothing in it was changed, and it opens once the disk \
         can be read; if the error persists, restore the data directory from a copy",
        dir.display()
    )]
    Unread { dir: PathBuf, why: String },
    #[error(
        "cannot open the store in {}: {why}; if the disk works and is not full, the files are \
         damaged: restore the data directory from a copy, or save what replicator export can still \
         read, move the directory away and start with an empty one", dir.display()
    )]
    Database { dir: PathBuf, why: String },
}

impl OpenError {
    /// For `map_err`: the operating system refused an operation on `path`.
    pub(super) fn io(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { doing, path, source }
    }

    /// For `map_err`: the store in `dir` failed.
    pub(super) fn in_store(dir: &Path) -> impl FnOnce(Failure) -> Self {
        let dir = dir.to_owned();
        move |failure| match failure {
            Failure::Damaged(damage) => Self::Damaged { dir, damage },
            Failure::RowsGone(missing) => Self::RowsGone { dir, missing },
            Failure::Unread(why) => Self::Unread { dir, why },
            Failure::Newer { found, known } => Self::Newer { dir, found, known },
            Failure::Database(why) => Self::Database { dir, why },
        }
    }
}

impl From<Failure> for ReadError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Damaged(damage) => Self::Damaged(damage.to_string()),
            other => Self::Database(other.to_string()),
        }
    }
}

/// Rows that the ledger counts and the trees lack: which trees, and how many.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct MissingRows(pub(super) String);

/// A row that is not as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    pub(super) tree: Tree,
    pub(super) key: Vec<u8>,
    pub(super) what: &'static str,
    /// The last task that the row can hold; `None` if it belongs to at most one.
    pub(super) last: Option<TaskId>,
}

impl Damage {
    /// The task that the row belongs to, or the first of them, if its key tells.
    pub fn task(&self) -> Option<TaskId> {
        self.tree.owner(&self.key)
    }

    /// The tasks that are lost with the row, as far as they are still on disk.
    pub fn tasks(&self) -> Option<RangeInclusive<TaskId>> {
        let first = self.task()?;
        Some(first..=self.last.unwrap_or(first))
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tree, key, what, last } = self;
        // Names as they are, numbers in hexadecimal.
        let key = match !key.is_empty() && key.iter().all(u8::is_ascii_graphic) {
            true => key.escape_ascii().to_string(),
            false => super::keys::hex(key),
        };
        write!(f, "the row {key} of {tree} {what}")?;
        match last.filter(|last| Some(*last) > self.task()) {
            Some(last) => write!(f, "; it may hold tasks up to {last}"),
            None => Ok(()),
        }
    }
}

/// Any failure of work on the open database.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(super) enum Failure {
    #[error("{0}")]
    Damaged(Damage),
    #[error("{0}")]
    RowsGone(MissingRows),
    /// The disk failed before sled changed any file.
    #[error("{0}")]
    Unread(String),
    #[error("the format is version {found}, this binary knows up to {known}")]
    Newer { found: u32, known: u32 },
    #[error("{0}")]
    Database(String),
}

impl From<Damage> for Failure {
    fn from(damage: Damage) -> Self {
        Self::Damaged(damage)
    }
}

impl From<OpenError> for Failure {
    fn from(error: OpenError) -> Self {
        Self::Database(match std::error::Error::source(&error) {
            Some(cause) => format!("{error}: {cause}"),
            None => error.to_string(),
        })
    }
}

impl From<EncodeError> for Failure {
    fn from(error: EncodeError) -> Self {
        Self::Database(error.to_string())
    }
}

impl From<sled::Error> for Failure {
    fn from(error: sled::Error) -> Self {
        Self::Database(match error {
            sled::Error::Corruption { .. } => "the database finds its file corrupted".to_owned(),
            other => first_line(&other.to_string()),
        })
    }
}

/// sled's texts can have several lines, with places in its source.
fn first_line(text: &str) -> String {
    let line: String = text.lines().next().unwrap_or_default().chars().take(200).collect();
    line.trim_end().to_owned()
}

thread_local! {
    /// This thread is in [`guarded`].
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Suppresses the panic messages of [`guarded`] code and of sled's own threads.
fn silence_sled() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let report = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let of_sled = |name: &str| name.starts_with("sled");
            if !GUARDED.get() && !std::thread::current().name().is_some_and(of_sled) {
                report(panic);
            }
        }));
    });
}

/// Runs code that touches sled, and turns a panic into an error. sled answers some damage and some
/// I/O errors with a panic. The panic's text is reported once, by the error.
pub(super) fn guarded<T, E: From<Failure>>(work: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    silence_sled();
    let nested = GUARDED.replace(true);
    // Unwind safe: every caller gives up the store, so no half-done state is used again.
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
    GUARDED.set(nested);
    outcome.unwrap_or_else(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("a panic without a text");
        Err(Failure::Database(format!("the database failed: {}", first_line(text))).into())
    })
}
