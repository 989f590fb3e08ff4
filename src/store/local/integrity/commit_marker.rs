//! `DIR/COMMITTED`: the number of the last commit and up to where the log was durable then, written
//! outside of sled after the flush.
//!
//! sled takes damage at the end of its log for an interrupted write and drops it; the
//! [`ledger`](super::ledger) is dropped with it and cannot tell. The commit marker can: a store whose
//! newest ledger has a smaller number has lost its end, and a log that is not whole up to that place
//! is damaged ([`sled_log`](super::sled_log)).
//!
//! It is written with one `pwrite` after each flush and not synced, so it is never ahead of what
//! is durable. After a power cut it may be behind, which says nothing; gone, it says nothing either.
//! When the store is closed it is written once more, and synced: then it names the end of the log. It
//! never claims that nothing follows, so it stays true whatever sled writes after the next start.
//!
//! It is made aside and renamed, and the line in it is shorter than a sector and always as long, so
//! nothing that a crash does leaves a part of it: if it cannot be read, it is damaged.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::store::local::error::OpenError;
use crate::store::local::watched::{self, FileId};
use crate::store::local::{directory, permissions};

const NAME: &str = "COMMITTED";
/// The version of what is in it. Version 1 had no number of its own, and no place.
const VERSION: &str = "2";
/// Longer than any line.
const MOST_BYTES: u64 = 256;

/// What the file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::store::local) enum Marker {
    /// So many commits of this store were flushed.
    Commits {
        /// The name of the store.
        store: String,
        /// The number of the last one.
        number: u64,
        /// Up to where its log was durable then; 0 if that was not written down.
        durable: u64,
    },
    /// There is no such file, or nothing was ever written to it.
    Missing,
    /// It is not what was written.
    Unreadable,
}

impl Marker {
    /// Up to where the log of the store at this path must be whole.
    pub(in crate::store::local) fn durable(&self, path: &Path) -> u64 {
        match self {
            Self::Commits { store, durable, .. } if path.ends_with(store) => *durable,
            _ => 0,
        }
    }

    /// Whether it is about a store that follows this one, so that `CURRENT` went back.
    pub(in crate::store::local) fn is_of_one_after(&self, path: &Path) -> bool {
        let current = path.file_name().unwrap_or_default().to_string_lossy();
        let number = directory::number;
        matches!(self, Self::Commits { store, .. } if number(store) > number(&current))
    }
}

/// Where the file of a data directory is.
pub(in crate::store::local) fn path(dir: &Path) -> PathBuf {
    dir.join(NAME)
}

/// Reads the file.
pub(in crate::store::local) fn read(dir: &Path) -> Result<Marker, OpenError> {
    let path = path(dir);
    let read = || {
        let mut bytes = Vec::new();
        File::open(&path)?.take(MOST_BYTES).read_to_end(&mut bytes)?;
        Ok::<_, std::io::Error>(bytes)
    };
    match read() {
        // As a crash left it under an older release, which made it in its place.
        Ok(bytes) if bytes.iter().all(|byte| *byte == 0) => Ok(Marker::Missing),
        Ok(bytes) => Ok(parse(&bytes).unwrap_or(Marker::Unreadable)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Marker::Missing),
        Err(error) => Err(OpenError::io("read", &path)(error)),
    }
}

/// One line: version, store, number, place, CRC-32 of what stands before it. Always as long, so that
/// a line written over another leaves nothing of it.
fn line(store: &str, number: u64, durable: u64) -> String {
    sealed(&format!("{VERSION} {store} {number:020} {durable:020} "))
}

fn line_of_version_1(store: &str, number: u64) -> String {
    sealed(&format!("{store} {number:020} "))
}

fn sealed(text: &str) -> String {
    let sum = crc32fast::hash(text.as_bytes());
    format!("{text}{sum:08x}\n")
}

fn parse(bytes: &[u8]) -> Option<Marker> {
    let text = std::str::from_utf8(bytes).ok()?;
    let (store, number, durable, intact) = match text.split(' ').collect::<Vec<_>>()[..] {
        [VERSION, store, number, durable, _] => {
            let (number, durable) = (number.parse().ok()?, durable.parse().ok()?);
            (store, number, durable, line(store, number, durable))
        }
        [store, number, _] => {
            let number = number.parse().ok()?;
            (store, number, 0, line_of_version_1(store, number))
        }
        _ => return None,
    };
    let store = store.to_owned();
    (text == intact).then_some(Marker::Commits { store, number, durable })
}

/// The open file.
#[derive(Debug)]
pub(in crate::store::local) struct MarkerFile {
    store: String,
    number: u64,
    /// Of this file the store's log is made.
    log: FileId,
    file: File,
}

impl MarkerFile {
    /// Takes the file into use for `store`, which is open, and makes it durable.
    pub(in crate::store::local) fn begin(
        dir: &Path,
        store: &str,
        number: u64,
    ) -> Result<Self, OpenError> {
        let path = path(dir);
        let aside = dir.join(format!("{NAME}.new"));
        let begin = || {
            let log = FileId::of(&dir.join(store).join("db"))?;
            let mut options = OpenOptions::new();
            options.write(true).create(true).truncate(true).mode(0o600);
            let mut file = permissions::open(&options, &aside)?;
            file.write_all(line(store, number, watched::durable(log)).as_bytes())?;
            file.sync_all()?;
            fs::rename(&aside, &path)?;
            File::open(dir)?.sync_all()?;
            Ok(Self { store: store.to_owned(), number, log, file })
        };
        begin().map_err(OpenError::io("write", &path))
    }

    /// Says that this commit was flushed. A disk that fails shows it by the flush; here it only
    /// leaves the commit marker behind, which it may be.
    pub(in crate::store::local) fn flushed(&mut self, number: u64) {
        self.number = number;
        self.say();
    }

    fn say(&self) {
        let line = line(&self.store, self.number, watched::durable(self.log));
        let _ = self.file.write_all_at(line.as_bytes(), 0);
    }
}

/// The store is closed, and with it all of its log durable; or another one has taken its place, and
/// another file that of this.
impl Drop for MarkerFile {
    fn drop(&mut self) {
        self.say();
        let _ = self.file.sync_data();
        watched::forget(self.log);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A data directory with the file of a store in it.
    fn dir_with(stores: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for store in stores {
            fs::create_dir(dir.path().join(store)).unwrap();
            let log = dir.path().join(store).join("db");
            fs::write(&log, b"").unwrap();
            // As a store that is opened: nothing is known of another file that had its number.
            assert!(watched::watch(&log, watched::OnUnread::Keep));
        }
        dir
    }

    fn said(store: &str, number: u64, durable: u64) -> Marker {
        Marker::Commits { store: store.into(), number, durable }
    }

    #[test]
    fn what_was_written_is_read_and_nothing_else() {
        let dir = dir_with(&["store-000001", "store-000002"]);
        assert_eq!(read(dir.path()).unwrap(), Marker::Missing);
        let mut marker_file = MarkerFile::begin(dir.path(), "store-000001", 8).unwrap();
        marker_file.flushed(123);
        let written = fs::read(path(dir.path())).unwrap();
        assert!(written.starts_with(b"2 store-000001 00000000000000000123 "), "{written:?}");
        assert_eq!(parse(&written), Some(said("store-000001", 123, 0)));
        for at in 0..written.len() {
            let mut flipped = written.clone();
            flipped[at] ^= 1;
            assert_eq!(parse(&flipped), None, "byte {at}");
            assert_eq!(parse(&written[..at]), None, "cut at {at}");
        }
        fs::write(path(dir.path()), b"\0\0\x01").unwrap();
        assert_eq!(read(dir.path()).unwrap(), Marker::Unreadable);
        // What a crash could leave while an older release made it.
        for nothing in [&b""[..], &[0; 44]] {
            fs::write(path(dir.path()), nothing).unwrap();
            assert_eq!(read(dir.path()).unwrap(), Marker::Missing);
        }
        let next = MarkerFile::begin(dir.path(), "store-000002", 9).unwrap();
        // That of the one before has no say any more.
        drop(marker_file);
        assert_eq!(read(dir.path()).unwrap(), said("store-000002", 9, 0));
        drop(next);
        assert_eq!(read(dir.path()).unwrap(), said("store-000002", 9, 0));
    }

    #[test]
    fn the_line_of_an_older_release_is_understood() {
        let written = b"store-000001 00000000000000000123 f1da4b91\n";
        let line = line_of_version_1("store-000001", 123);
        assert_eq!(parse(line.as_bytes()), Some(said("store-000001", 123, 0)));
        assert_eq!(line.as_bytes(), written);
        assert!(said("store-000003", 1, 0).is_of_one_after(Path::new("/data/store-000002")));
        assert!(!said("store-000002", 1, 0).is_of_one_after(Path::new("/data/store-000002")));
        assert!(!said("store-000002", 1, 0).is_of_one_after(Path::new("/data/store-000011")));
        assert_eq!(said("store-000002", 1, 7).durable(Path::new("/data/store-000002")), 7);
        assert_eq!(said("store-000002", 1, 7).durable(Path::new("/data/store-000003")), 0);
    }
}
