//! `DIR/COMMITTED`: the number of the last commit and how far the log was durable then, stored
//! outside sled.
//!
//! sled silently drops a damaged end of its log, and the [`ledger`](super::ledger) with it. A store
//! whose newest ledger has a smaller number than the marker has lost its end; a log that is torn
//! before the marker's position is damaged ([`sled_log`](super::sled_log)).
//!
//! It is written by one `pwrite` after each flush and not synced, so it is never ahead of what is
//! durable. After a power cut it may be behind or missing, which proves nothing. On close it is
//! synced, and then names the end of the log. It says nothing about what follows that position.
//!
//! It is created aside and renamed, and its line is shorter than a sector and of constant length, so
//! no crash leaves a partial line: an unreadable marker is damage.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::store::local::error::OpenError;
use crate::store::local::watched::{self, FileId};
use crate::store::local::{directory, permissions};

const NAME: &str = "COMMITTED";
/// Version 1 had neither a version nor a position in the log.
const VERSION: &str = "2";
/// Above the length of any line.
const MAX_BYTES: u64 = 256;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Marker {
    Commits {
        store: String,
        /// Of the last commit.
        number: u64,
        /// How far the log was durable then; 0 if unknown.
        durable: u64,
    },
    /// There is no file, or it was never written to.
    Missing,
    Unreadable,
}

impl Marker {
    /// Up to which position the log of the store at this path must be whole.
    pub(crate) fn durable(&self, path: &Path) -> u64 {
        match self {
            Self::Commits { store, durable, .. } if path.ends_with(store) => *durable,
            _ => 0,
        }
    }

    /// Whether it belongs to a newer store than this one: then `CURRENT` went back.
    pub(crate) fn is_of_newer_store(&self, path: &Path) -> bool {
        let current = directory::number(&directory::name_of(path));
        matches!(self, Self::Commits { store, .. } if directory::number(store) > current)
    }
}

pub(crate) fn path(dir: &Path) -> PathBuf {
    dir.join(NAME)
}

pub(crate) fn read(dir: &Path) -> Result<Marker, OpenError> {
    let path = path(dir);
    let read = || {
        let mut bytes = Vec::new();
        File::open(&path)?.take(MAX_BYTES).read_to_end(&mut bytes)?;
        Ok::<_, std::io::Error>(bytes)
    };
    match read() {
        // Left by a crash of an older release, which created the file in place.
        Ok(bytes) if bytes.iter().all(|byte| *byte == 0) => Ok(Marker::Missing),
        Ok(bytes) => Ok(parse(&bytes).unwrap_or(Marker::Unreadable)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Marker::Missing),
        Err(error) => Err(OpenError::io("read", &path)(error)),
    }
}

/// Version, store, number, position, CRC-32 of these. Its length is constant, so that one line
/// completely overwrites another.
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

#[derive(Debug)]
pub(crate) struct MarkerFile {
    store: String,
    number: u64,
    log: FileId,
    file: File,
}

impl MarkerFile {
    /// Replaces the file durably by one for `store`, which must be open.
    pub(crate) fn begin(dir: &Path, store: &str, number: u64) -> Result<Self, OpenError> {
        let path = path(dir);
        let aside = dir.join(format!("{NAME}.new"));
        let begin = || {
            let log = FileId::of(&dir.join(store).join("db"))?;
            let mut file = permissions::create(&aside)?;
            file.write_all(line(store, number, watched::durable(log)).as_bytes())?;
            file.sync_all()?;
            fs::rename(&aside, &path)?;
            File::open(dir)?.sync_all()?;
            Ok(Self { store: store.to_owned(), number, log, file })
        };
        begin().map_err(OpenError::io("write", &path))
    }

    pub(crate) fn flushed(&mut self, number: u64) {
        self.number = number;
        self.write();
    }

    fn write(&self) {
        let line = line(&self.store, self.number, watched::durable(self.log));
        // If this fails, the marker is behind, which is allowed. A failing disk fails the flush.
        let _ = self.file.write_all_at(line.as_bytes(), 0);
    }
}

/// The store is closed and all of its log durable; or another store has replaced it, and another
/// file has replaced this one.
impl Drop for MarkerFile {
    fn drop(&mut self) {
        self.write();
        let _ = self.file.sync_data();
        watched::forget(self.log);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A data directory with the log files of these stores.
    fn dir_with(stores: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for store in stores {
            fs::create_dir(dir.path().join(store)).unwrap();
            let log = dir.path().join(store).join("db");
            fs::write(&log, b"").unwrap();
            // As when a store is opened: forgets an earlier file with the same inode number.
            assert!(watched::watch(&log, watched::OnReadError::Record));
        }
        dir
    }

    fn commits(store: &str, number: u64, durable: u64) -> Marker {
        Marker::Commits { store: store.into(), number, durable }
    }

    #[test]
    fn a_marker_is_read_back_and_a_changed_or_truncated_one_is_refused() {
        let dir = dir_with(&["store-000001", "store-000002"]);
        assert_eq!(read(dir.path()).unwrap(), Marker::Missing);
        let mut marker_file = MarkerFile::begin(dir.path(), "store-000001", 8).unwrap();
        marker_file.flushed(123);
        let written = fs::read(path(dir.path())).unwrap();
        assert!(written.starts_with(b"2 store-000001 00000000000000000123 "), "{written:?}");
        assert_eq!(parse(&written), Some(commits("store-000001", 123, 0)));
        for at in 0..written.len() {
            let mut flipped = written.clone();
            flipped[at] ^= 1;
            assert_eq!(parse(&flipped), None, "byte {at}");
            assert_eq!(parse(&written[..at]), None, "cut at {at}");
        }
        fs::write(path(dir.path()), b"\0\0\x01").unwrap();
        assert_eq!(read(dir.path()).unwrap(), Marker::Unreadable);
        // Left by a crash of an older release.
        for nothing in [&b""[..], &[0; 44]] {
            fs::write(path(dir.path()), nothing).unwrap();
            assert_eq!(read(dir.path()).unwrap(), Marker::Missing);
        }
        let next = MarkerFile::begin(dir.path(), "store-000002", 9).unwrap();
        // The old file no longer has an effect.
        drop(marker_file);
        assert_eq!(read(dir.path()).unwrap(), commits("store-000002", 9, 0));
        drop(next);
        assert_eq!(read(dir.path()).unwrap(), commits("store-000002", 9, 0));
    }

    #[test]
    fn a_marker_of_version_1_is_understood() {
        let written = b"store-000001 00000000000000000123 f1da4b91\n";
        let line = line_of_version_1("store-000001", 123);
        assert_eq!(parse(line.as_bytes()), Some(commits("store-000001", 123, 0)));
        assert_eq!(line.as_bytes(), written);
        assert!(commits("store-000003", 1, 0).is_of_newer_store(Path::new("/data/store-000002")));
        assert!(!commits("store-000002", 1, 0).is_of_newer_store(Path::new("/data/store-000002")));
        assert!(!commits("store-000002", 1, 0).is_of_newer_store(Path::new("/data/store-000011")));
        assert_eq!(commits("store-000002", 1, 7).durable(Path::new("/data/store-000002")), 7);
        assert_eq!(commits("store-000002", 1, 7).durable(Path::new("/data/store-000003")), 0);
    }
}
