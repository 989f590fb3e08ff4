//! The record: the changes of the daemon to its disk, and the marks of the test, in one total order.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use super::support::Daemon;

/// An entry of the test.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Mark {
    /// Before the post.
    Sent { n: u64, key: String },
    /// After the answer to the client: the write must not be lost. `n` is `None` for a DELETE.
    Accepted { task: u64, n: Option<u64>, key: String },
    /// A replica has applied the write and not answered yet.
    Applied { replica: usize, task: u64, n: Option<u64>, key: String },
    /// A replica is about to answer with an error; `forever` with a rejection.
    Refused { replica: usize, task: u64, forever: bool },
}

#[derive(Debug)]
pub struct Entry<'a> {
    pub kind: u8,
    pub path: &'a str,
    pub to: &'a str,
    pub data: &'a [u8],
    pub inode: u64,
    pub offset: u64,
}

/// The kind of an entry with a [`Mark`].
pub const MARK: u8 = b'M';
/// The kind of an entry for a file that was synced.
pub const SYNC: u8 = b'F';
const HEAD: usize = 32;

impl Entry<'_> {
    pub fn mark(&self) -> Option<Mark> {
        (self.kind == MARK).then(|| serde_json::from_slice(self.data).unwrap())
    }
}

/// Parses a record. An entry is appended in one write, so the last one is complete.
pub fn entries(mut bytes: &[u8]) -> Vec<Entry<'_>> {
    let mut entries = Vec::new();
    while !bytes.is_empty() {
        let (head, rest) = bytes.split_at(HEAD);
        let length = |at: usize| u32::from_ne_bytes(head[at..at + 4].try_into().unwrap()) as usize;
        let number = |at: usize| u64::from_ne_bytes(head[at..at + 8].try_into().unwrap());
        let (path, rest) = rest.split_at(length(4));
        let (to, rest) = rest.split_at(length(8));
        let (data, rest) = rest.split_at(length(12));
        let text = |bytes| std::str::from_utf8(bytes).unwrap();
        let (path, to) = (text(path), text(to));
        let (inode, offset) = (number(16), number(24));
        entries.push(Entry { kind: head[0], path, to, data, inode, offset });
        bytes = rest;
    }
    entries
}

/// The index of a field of `struct control` in `recorder.c`.
#[derive(Clone, Copy, Debug)]
pub enum Control {
    Kill = 0,
    Fsync = 1,
    Write = 2,
    Error = 3,
    Lasting = 4,
    Partial = 5,
    Failed = 6,
    BadInode = 7,
    BadAt = 8,
    Read = 9,
    Busy = 10,
    Hold = 11,
}

/// A directory with the data directory of a daemon and its record.
pub struct Recording {
    home: TempDir,
    record: File,
    control: File,
}

impl Recording {
    pub fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let open = |name| {
            let path = home.path().join(name);
            OpenOptions::new().create(true).append(true).read(true).open(path).unwrap()
        };
        let record = open("record");
        let control = File::create_new(home.path().join("control")).unwrap();
        control.set_len(4096).unwrap();
        Self { home, record, control }
    }

    pub fn data_dir(&self) -> PathBuf {
        self.home.path().canonicalize().unwrap().join("data")
    }

    pub fn file(&self) -> PathBuf {
        self.home.path().join("record")
    }

    /// The environment variables of a recorded daemon.
    pub fn environment(&self) -> Vec<(String, String)> {
        let text = |path: PathBuf| path.to_str().unwrap().to_owned();
        vec![
            ("LD_PRELOAD".to_owned(), text(library().to_owned())),
            ("POWER_DIR".to_owned(), text(self.data_dir())),
            ("POWER_RECORD".to_owned(), text(self.file())),
            ("POWER_CONTROL".to_owned(), text(self.home.path().join("control"))),
        ]
    }

    pub fn mark(&self, mark: &Mark) {
        self.append(MARK, Path::new(""), &serde_json::to_vec(mark).unwrap(), 0);
    }

    /// Records the current data directory as written and synced. Returns the number of entries.
    pub fn adopt(&self) -> usize {
        self.adopt_dir(&self.data_dir());
        entries(&self.bytes()).len()
    }

    fn adopt_dir(&self, dir: &Path) {
        let inode = |path: &Path| std::fs::metadata(path).unwrap().ino();
        self.append(b'D', dir, &[], inode(dir));
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                self.adopt_dir(&path);
                continue;
            }
            self.append(b'C', &path, &[], inode(&path));
            self.append(b'W', Path::new(""), &std::fs::read(&path).unwrap(), inode(&path));
            self.append(b'F', Path::new(""), &[], inode(&path));
        }
        self.append(b'F', Path::new(""), &[], inode(dir));
    }

    /// Appends an entry with offset 0, in one write.
    fn append(&self, kind: u8, path: &Path, data: &[u8], inode: u64) {
        let path = path.to_str().unwrap().as_bytes();
        let mut bytes = vec![0; HEAD];
        bytes[0] = kind;
        bytes[4..8].copy_from_slice(&u32::try_from(path.len()).unwrap().to_ne_bytes());
        bytes[12..16].copy_from_slice(&u32::try_from(data.len()).unwrap().to_ne_bytes());
        bytes[16..24].copy_from_slice(&inode.to_ne_bytes());
        bytes.extend(path);
        bytes.extend(data);
        assert_eq!((&self.record).write(&bytes).unwrap(), bytes.len());
    }

    pub fn set(&self, control: Control, value: u32) {
        self.control.write_all_at(&value.to_ne_bytes(), control as u64 * 4).unwrap();
    }

    pub fn get(&self, control: Control) -> u32 {
        let mut bytes = [0; 4];
        self.control.read_exact_at(&mut bytes, control as u64 * 4).unwrap();
        u32::from_ne_bytes(bytes)
    }

    /// Kills a recorded daemon between two calls, so that the record has exactly its changes.
    pub fn kill(&self, daemon: &mut Daemon) {
        self.set(Control::Hold, 1);
        while self.get(Control::Busy) != 0 {
            std::thread::yield_now();
        }
        daemon.kill();
        self.set(Control::Hold, 0);
    }

    pub fn bytes(&self) -> Vec<u8> {
        std::fs::read(self.file()).unwrap()
    }

    /// Keeps the directory after the test.
    pub fn keep(mut self) -> PathBuf {
        self.home.disable_cleanup(true);
        self.file()
    }
}

/// Builds the recorder once.
fn library() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let library = Path::new(env!("CARGO_TARGET_TMPDIR")).join("recorder.so");
        // Built aside and renamed: another test process may have it loaded.
        let aside = library.with_extension(std::process::id().to_string());
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/power/recorder.c");
        let built = Command::new("cc")
            .args(["-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-pthread", "-o"])
            .arg(&aside)
            .arg(&source)
            .status()
            .expect("the C compiler cc");
        assert!(built.success(), "cannot build {}", source.display());
        std::fs::rename(&aside, &library).unwrap();
        library
    })
}
