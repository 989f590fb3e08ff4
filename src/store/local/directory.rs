//! The data directory: who may use it, and which store in it is the current one.
//!
//! ```text
//! DIR/LOCK           held while a process works here; holds its number as text
//! DIR/CURRENT        the name of the current store, a line of text
//! DIR/store-000001/  a sled database
//! ```
//!
//! A store is made in `store-000001.new`, synced, renamed, and named by `CURRENT`, in this order
//! and each step durable before the next; nothing is accepted before `CURRENT` is durable. So
//! whatever ends in `.new` is the rest of an interrupted creation and is removed, and a store
//! without a `CURRENT` either holds nothing yet, or something is damaged and a person must look.

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
/// The most characters that an error quotes of `CURRENT`.
const MOST_QUOTED: usize = 40;
/// Longer than the name of any store.
const MOST_BYTES: u64 = 256;

/// A data directory that is ours until this is dropped.
pub(super) struct Directory {
    path: PathBuf,
    _lock: File,
}

impl Directory {
    /// Takes a data directory, making it where there is none. One that others could change is
    /// refused (`permissions.rs`).
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

    /// Its path.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The current store; `None` if there is none and nothing speaks against a new one.
    ///
    /// `is_used` says whether anything was ever written to the store in a directory.
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
        // sled would make an empty database where its file is missing.
        if !is_store(name) || !store.join("db").is_file() || !store.join("conf").is_file() {
            // Whatever it is, a line of it is enough; `Debug` escapes what a terminal would act upon.
            let found = name.chars().take(MOST_QUOTED).collect();
            return Err(OpenError::CurrentWrong { path, found });
        }
        Ok(Some(store))
    }

    /// Without a `CURRENT`: no store may lie here that was ever used.
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

    /// Makes the first store: `fill` makes a database in the directory that it is given.
    pub(super) fn create(
        &self,
        fill: impl FnOnce(&Path) -> Result<(), Failure>,
    ) -> Result<PathBuf, OpenError> {
        self.remove_unfinished()?;
        faults::point("create.cleared");
        let aside = self.path.join(FIRST_STORE.to_owned() + UNFINISHED);
        DirBuilder::new().mode(0o700).create(&aside).map_err(OpenError::io("create", &aside))?;
        faults::point("create.made-aside");
        fill(&aside).map_err(OpenError::in_store(&aside))?;
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
        Ok(store)
    }

    /// Removes what an interrupted creation has left. Only where no store is named.
    pub(super) fn remove_unfinished(&self) -> Result<(), OpenError> {
        for name in self.names()? {
            let unfinished = name.strip_suffix(UNFINISHED).is_some_and(is_store);
            if unfinished || is_store(&name) {
                let path = self.path.join(name);
                fs::remove_dir_all(&path).map_err(OpenError::io("remove", &path))?;
            }
        }
        Ok(())
    }

    /// How much is free on its disk for this user, in bytes; `None` if the system does not say.
    pub(super) fn free_bytes(&self) -> Option<u64> {
        let disk = rustix::fs::statvfs(&self.path).ok()?;
        Some(disk.f_bavail.saturating_mul(disk.f_frsize))
    }

    /// Where a store is made that is to be called `name`.
    pub(super) fn unfinished(&self, name: &str) -> PathBuf {
        self.path.join(name.to_owned() + UNFINISHED)
    }

    /// Gives a store that was made in [`Self::unfinished`] its name, and makes it the current one,
    /// after [`Self::announce`].
    pub(super) fn adopt(&self, name: &str) -> Result<(), OpenError> {
        self.rename(&self.unfinished(name), &self.path.join(name))?;
        faults::point("rewrite.renamed");
        self.set_current()
    }

    /// Removes whatever stores lie beside the current one: one that was not finished, or that
    /// was replaced.
    pub(super) fn clear_beside(&self, current: &Path) -> Result<(), OpenError> {
        for name in self.names()? {
            let path = self.path.join(&name);
            if is_store(name.strip_suffix(UNFINISHED).unwrap_or(&name)) && path != current {
                faults::point("clear.found");
                fs::remove_dir_all(&path).map_err(OpenError::io("remove", &path))?;
                faults::point("clear.removed");
            }
        }
        Ok(())
    }

    /// A name for the store after `store` that nothing in the directory has.
    pub(super) fn unused_name(&self, store: &str) -> Result<String, OpenError> {
        let names = self.names()?;
        let stores = names.iter().map(|name| name.strip_suffix(UNFINISHED).unwrap_or(name));
        let newest = stores.filter(|name| is_store(name)).max_by_key(|name| number(name));
        let newest = newest.filter(|name| number(name) > number(store)).unwrap_or(store);
        Ok(next_name(newest))
    }

    /// Writes down, durably, which store is to be the current one next. Where that fails, nothing has
    /// happened.
    pub(super) fn announce(&self, name: &str) -> Result<(), OpenError> {
        let aside = self.announced();
        let write = || {
            let mut options = OpenOptions::new();
            options.write(true).create(true).truncate(true).mode(0o600);
            let mut file = permissions::open(&options, &aside)?;
            writeln!(file, "{name}")?;
            faults::point("current.written");
            file.sync_all()
        };
        write().map_err(OpenError::io("write", &aside))?;
        faults::point("current.synced");
        Ok(())
    }

    /// Makes the announced store the current one, durably and at once or not at all.
    fn set_current(&self) -> Result<(), OpenError> {
        let aside = self.announced();
        let current = self.path.join(CURRENT);
        fs::rename(&aside, &current).map_err(OpenError::io("rename", &aside))?;
        faults::point("current.renamed");
        sync(&self.path)
    }

    fn announced(&self) -> PathBuf {
        self.path.join(CURRENT.to_owned() + UNFINISHED)
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), OpenError> {
        fs::rename(from, to).map_err(OpenError::io("rename", from))?;
        sync(&self.path)
    }

    /// Syncs all directories above: those that we made must not be gone after a power cut, and
    /// which of them these are is not known any more if the creation was interrupted before.
    fn sync_ancestors(&self) -> Result<(), OpenError> {
        let path = fs::canonicalize(&self.path).map_err(OpenError::io("find", &self.path))?;
        for above in path.ancestors().skip(1) {
            match sync(above) {
                // Then it is not one of ours.
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

/// Syncs the files that sled never syncs, and the directory that they are in.
pub(super) fn sync_store(store: &Path) -> Result<(), OpenError> {
    for name in ["conf", "db", "blobs"] {
        sync(&store.join(name))?;
    }
    sync(store)
}

/// Makes an empty directory, for this user alone, in place of whatever is there.
pub(super) fn make_empty(path: &Path) -> Result<(), OpenError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(OpenError::io("remove", path)(error));
        }
        _ => {}
    }
    DirBuilder::new().mode(0o700).create(path).map_err(OpenError::io("create", path))
}

/// The name of the store that follows `name`.
pub(super) fn next_name(name: &str) -> String {
    format!("store-{:06}", number(name) + 1)
}

/// The number in the name of a store; 0 if there is none.
pub(super) fn number(name: &str) -> u64 {
    name.rsplit('-').next().and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// Makes the names in a directory durable, or what is in a file.
pub(super) fn sync(path: &Path) -> Result<(), OpenError> {
    File::open(path).and_then(|file| file.sync_all()).map_err(OpenError::io("sync", path))
}

/// What is in a file that names something, or enough of it to see that it does not.
fn read_name(path: &Path) -> std::io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MOST_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn is_store(name: &str) -> bool {
    let number = name.strip_prefix("store-").unwrap_or_default();
    number.len() >= 6 && number.bytes().all(|byte| byte.is_ascii_digit())
}

fn lock(dir: &Path) -> Result<File, OpenError> {
    let path = dir.join(LOCK);
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let mut file = permissions::open(&options, &path).map_err(OpenError::io("open", &path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            // Only for the message: the holder may be about to write it.
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
