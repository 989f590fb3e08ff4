//! `DIR/COMMITTED`: the number of the last commit, written outside of sled after it was flushed.
//!
//! sled takes damage at the end of its log for an interrupted write and drops it; the
//! [`ledger`](super::ledger) is dropped with it and cannot tell. The witness can: a store whose
//! newest ledger has a smaller number has lost its end.
//!
//! It is written with one `pwrite` after each flush and not synced, so it is never ahead of what
//! is durable. After a power cut it may be behind, which says nothing; gone or torn it says
//! nothing either.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::access;
use super::error::OpenError;

const NAME: &str = "COMMITTED";

/// What the file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Testimony {
    /// So many commits of this store were flushed.
    Commits {
        /// The name of the store.
        store: String,
        /// The number of the last one.
        number: u64,
    },
    /// There is no such file.
    Missing,
    /// It was not written whole, or is damaged.
    Unreadable,
}

/// Where the file of a data directory is.
pub(super) fn path(dir: &Path) -> PathBuf {
    dir.join(NAME)
}

/// Reads the file.
pub(super) fn read(dir: &Path) -> Result<Testimony, OpenError> {
    let path = path(dir);
    match fs::read(&path) {
        Ok(bytes) => Ok(parse(&bytes).unwrap_or(Testimony::Unreadable)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Testimony::Missing),
        Err(error) => Err(OpenError::io("read", &path)(error)),
    }
}

/// One line: store, number, CRC-32 of what stands before it. Always as long, so that a line
/// written over another leaves nothing of it.
fn line(store: &str, number: u64) -> String {
    let text = format!("{store} {number:020} ");
    let sum = crc32fast::hash(text.as_bytes());
    format!("{text}{sum:08x}\n")
}

fn parse(bytes: &[u8]) -> Option<Testimony> {
    let text = std::str::from_utf8(bytes).ok()?;
    let mut words = text.split(' ');
    let (store, number) = (words.next()?, words.next()?.parse().ok()?);
    let store = store.to_owned();
    (text == line(&store, number)).then_some(Testimony::Commits { store, number })
}

/// The open file.
#[derive(Debug)]
pub(super) struct Witness {
    store: String,
    file: File,
}

impl Witness {
    /// Takes the file into use for `store`, and makes it durable once, so that it is there.
    pub(super) fn begin(dir: &Path, store: &str, number: u64) -> Result<Self, OpenError> {
        let path = path(dir);
        let begin = || {
            let mut options = OpenOptions::new();
            options.write(true).create(true).truncate(false).mode(0o600);
            let file = access::open(&options, &path)?;
            let line = line(store, number);
            file.write_all_at(line.as_bytes(), 0)?;
            file.set_len(line.len() as u64)?;
            file.sync_all()?;
            File::open(dir)?.sync_all()?;
            Ok(Self { store: store.to_owned(), file })
        };
        begin().map_err(OpenError::io("write", &path))
    }

    /// Says that this commit was flushed. A disk that fails shows it by the flush; here it only
    /// leaves the witness behind, which it may be.
    pub(super) fn flushed(&self, number: u64) {
        let _ = self.file.write_all_at(line(&self.store, number).as_bytes(), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path()).unwrap(), Testimony::Missing);
        let witness = Witness::begin(dir.path(), "store-000001", 8).unwrap();
        witness.flushed(123);
        let written = fs::read(path(dir.path())).unwrap();
        assert!(written.starts_with(b"store-000001 00000000000000000123 "), "{written:?}");
        let told = Testimony::Commits { store: "store-000001".into(), number: 123 };
        assert_eq!(parse(&written), Some(told));
        for at in 0..written.len() {
            let mut flipped = written.clone();
            flipped[at] ^= 1;
            assert_eq!(parse(&flipped), None, "byte {at}");
            assert_eq!(parse(&written[..at]), None, "cut at {at}");
        }
        fs::write(path(dir.path()), b"\0\0").unwrap();
        assert_eq!(read(dir.path()).unwrap(), Testimony::Unreadable);
        Witness::begin(dir.path(), "store-000002", 9).unwrap();
        let told = Testimony::Commits { store: "store-000002".into(), number: 9 };
        assert_eq!(read(dir.path()).unwrap(), told);
    }
}
