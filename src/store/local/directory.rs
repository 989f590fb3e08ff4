//! The data directory: its lock, and which store in it is the current one.
//!
//! ```text
//! DIR/LOCK           held by the process that uses the directory; contains its number
//! DIR/CURRENT        the name of the current store, a line of text
//! DIR/store-000001/  a sled database
//! ```
//!
//! A store is created as `store-000001.new`, synced, renamed, and named by `CURRENT`, each step
//! durable before the next; nothing is accepted before `CURRENT` is durable. So a name that ends in
//! `.new` is an interrupted creation and is removed. A store without a `CURRENT` is either empty, or
//! something is damaged and a person must decide.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::error::{Failure, OpenError};
use super::permissions;
use crate::faults;

const LOCK: &str = "LOCK";
const CURRENT: &str = "CURRENT";
const FIRST_STORE: &str = "store-000001";
const UNFINISHED: &str = ".new";
const MAX_QUOTED_CHARS: usize = 40;
/// Above the length of any store's name.
const MAX_BYTES: u64 = 256;

pub(super) struct Directory {
    path: PathBuf,
    _lock: File,
}

impl Directory {
    /// Locks a data directory, and creates it if it is missing. Refuses one that others can change
    /// (`permissions.rs`).
    pub(super) fn lock(path: &Path) -> Result<Self, OpenError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(OpenError::io("create the data directory", path))?;
        permissions::check(path)?;
        let lock = lock(path)?;
        permissions::close(path)?;
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The current store; `None` if a new one may be created.
    pub(super) fn current(
        &self,
        is_used: impl Fn(&Path) -> Result<bool, Failure>,
    ) -> Result<Option<PathBuf>, OpenError> {
        let path = self.path.join(CURRENT);
        let text = match read_name(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.refuse_used_stores(is_used)?;
                return Ok(None);
            }
            Err(error) => return Err(OpenError::io("read", &path)(error)),
        };
        let name = text.trim_ascii_end();
        let store = self.path.join(name);
        // sled would create an empty database if its file is missing.
        if !is_store(name) || !store.join("db").is_file() || !store.join("conf").is_file() {
            let found = name.chars().take(MAX_QUOTED_CHARS).collect();
            return Err(OpenError::CurrentWrong { path, found });
        }
        Ok(Some(store))
    }

    /// Without a `CURRENT`, there must be no store that was ever used.
    fn refuse_used_stores(
        &self,
        is_used: impl Fn(&Path) -> Result<bool, Failure>,
    ) -> Result<(), OpenError> {
        let mut used: Vec<String> = Vec::new();
        for name in self.names()?.into_iter().filter(|name| is_store(name)) {
            let store = self.path.join(&name);
            if is_used(&store).map_err(OpenError::in_store(&store))? {
                used.push(name);
            }
        }
        match used.into_iter().max() {
            Some(store) => Err(OpenError::CurrentMissing { dir: self.path.clone(), store }),
            None => Ok(()),
        }
    }

    /// Creates the first store: `fill` creates the database in an empty directory.
    pub(super) fn create<T, E: From<OpenError>>(
        &self,
        fill: impl FnOnce(&Path) -> Result<T, E>,
    ) -> Result<(PathBuf, T), E> {
        self.remove_stores()?;
        faults::point("create.cleared");
        let aside = self.unfinished(FIRST_STORE);
        DirBuilder::new().mode(0o700).create(&aside).map_err(OpenError::io("create", &aside))?;
        faults::point("create.made-aside");
        let filled = fill(&aside)?;
        faults::point("create.filled");
        sync_store(&aside)?;
        faults::point("create.synced");
        let store = self.path.join(FIRST_STORE);
        self.rename(&aside, &store)?;
        faults::point("create.renamed");
        self.sync_ancestors()?;
        faults::point("create.ancestors-synced");
        self.announce(FIRST_STORE)?;
        self.set_current()?;
        faults::point("create.named");
        Ok((store, filled))
    }

    /// Removes the remains of an interrupted creation. Only without a `CURRENT`.
    pub(super) fn remove_stores(&self) -> Result<(), OpenError> {
        for name in self.names()?.into_iter().filter(|name| is_store_or_unfinished(name)) {
            let path = self.path.join(name);
            fs::remove_dir_all(&path).map_err(OpenError::io("remove", &path))?;
        }
        Ok(())
    }

    pub(super) fn free_bytes(&self) -> Option<u64> {
        let disk = rustix::fs::statvfs(&self.path).ok()?;
        Some(disk.f_bavail.saturating_mul(disk.f_frsize))
    }

    /// Where the store `name` is created before [`Self::adopt`].
    pub(super) fn unfinished(&self, name: &str) -> PathBuf {
        self.path.join(name.to_owned() + UNFINISHED)
    }

    /// Must follow [`Self::announce`].
    pub(super) fn adopt(&self, name: &str) -> Result<(), OpenError> {
        self.rename(&self.unfinished(name), &self.path.join(name))?;
        faults::point("rewrite.renamed");
        self.set_current()
    }

    pub(super) fn clear_beside(&self, current: &Path) -> Result<(), OpenError> {
        for name in self.names()? {
            let path = self.path.join(&name);
            if is_store_or_unfinished(&name) && path != current {
                faults::point("clear.found");
                fs::remove_dir_all(&path).map_err(OpenError::io("remove", &path))?;
                faults::point("clear.removed");
            }
        }
        Ok(())
    }

    pub(super) fn unused_name(&self, store: &str) -> Result<String, OpenError> {
        let names = self.names()?;
        let stores = names.iter().map(|name| name.strip_suffix(UNFINISHED).unwrap_or(name));
        let newest = stores.filter(|name| is_store(name)).max_by_key(|name| number(name));
        let newest = newest.filter(|name| number(name) > number(store)).unwrap_or(store);
        Ok(next_name(newest))
    }

    /// Writes `CURRENT.new` durably. If this fails, nothing has changed.
    pub(super) fn announce(&self, name: &str) -> Result<(), OpenError> {
        let aside = self.announced();
        let write = || {
            let mut file = permissions::create(&aside)?;
            writeln!(file, "{name}")?;
            faults::point("current.written");
            file.sync_all()
        };
        write().map_err(OpenError::io("write", &aside))?;
        faults::point("current.synced");
        Ok(())
    }

    fn set_current(&self) -> Result<(), OpenError> {
        let aside = self.announced();
        let current = self.path.join(CURRENT);
        fs::rename(&aside, &current).map_err(OpenError::io("rename", &aside))?;
        faults::point("current.renamed");
        sync(&self.path)
    }

    fn announced(&self) -> PathBuf {
        self.unfinished(CURRENT)
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), OpenError> {
        fs::rename(from, to).map_err(OpenError::io("rename", from))?;
        sync(&self.path)
    }

    /// Syncs all directories above. Those that were created here must survive a power cut, and
    /// after an interrupted creation nothing tells which ones these are.
    fn sync_ancestors(&self) -> Result<(), OpenError> {
        let path = fs::canonicalize(&self.path).map_err(OpenError::io("find", &self.path))?;
        for above in path.ancestors().skip(1) {
            match sync(above) {
                // Not created by us.
                Err(OpenError::Io { source, .. })
                    if source.kind() == ErrorKind::PermissionDenied => {}
                synced => synced?,
            }
        }
        Ok(())
    }

    fn names(&self) -> Result<Vec<String>, OpenError> {
        let list = || {
            fs::read_dir(&self.path)?
                .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
                .collect::<Result<_, _>>()
        };
        list().map_err(OpenError::io("list", &self.path))
    }
}

/// Syncs the files that sled never syncs, and their directory.
pub(super) fn sync_store(store: &Path) -> Result<(), OpenError> {
    for name in ["conf", "db", "blobs"] {
        sync(&store.join(name))?;
    }
    sync(store)
}

/// Replaces whatever is at `path` by an empty directory, for this user alone.
pub(super) fn make_empty(path: &Path) -> Result<(), OpenError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(OpenError::io("remove", path)(error));
        }
        _ => {}
    }
    DirBuilder::new().mode(0o700).create(path).map_err(OpenError::io("create", path))
}

pub(super) fn next_name(name: &str) -> String {
    format!("store-{:06}", number(name) + 1)
}

/// The number in the name of a store, or 0.
pub(super) fn number(name: &str) -> u64 {
    name.rsplit('-').next().and_then(|number| number.parse().ok()).unwrap_or(0)
}

pub(super) fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

pub(super) fn sync(path: &Path) -> Result<(), OpenError> {
    File::open(path).and_then(|file| file.sync_all()).map_err(OpenError::io("sync", path))
}

/// Reads at most [`MAX_BYTES`].
fn read_name(path: &Path) -> std::io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn is_store(name: &str) -> bool {
    let number = name.strip_prefix("store-").unwrap_or_default();
    number.len() >= 6 && number.bytes().all(|byte| byte.is_ascii_digit())
}

fn is_store_or_unfinished(name: &str) -> bool {
    is_store(name.strip_suffix(UNFINISHED).unwrap_or(name))
}

fn lock(dir: &Path) -> Result<File, OpenError> {
    let path = dir.join(LOCK);
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let mut file = permissions::open(&options, &path).map_err(OpenError::io("open", &path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            // Only for the message: the holder may not have written it yet.
            let holder = read_name(&path).unwrap_or_default();
            return Err(OpenError::InUse {
                dir: dir.to_owned(),
                holder: match holder.trim().parse::<u32>() {
                    Ok(number) => format!("process {number}"),
                    Err(_) => "process unknown".to_owned(),
                },
            });
        }
        Err(TryLockError::Error(error)) => return Err(OpenError::io("lock", &path)(error)),
    }
    file.set_len(0)
        .and_then(|()| writeln!(file, "{}", std::process::id()))
        .map_err(OpenError::io("write", &path))?;
    Ok(file)
}

#[cfg(test)]
mod tests;
