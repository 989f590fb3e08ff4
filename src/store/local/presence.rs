//! Detects that the data directory was removed or replaced.
//!
//! A removed file can be written and synced while it is open: every commit would succeed, and the next
//! start would find none of them. So the files that a start looks for must be the very files that are
//! open here. This is checked after each flush before it is confirmed, and once a second when idle. It
//! takes about 3 us.

use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Files;
use super::error::{Failure, OpenError};
use super::watched::FileId;

const IDLE_INTERVAL: Duration = Duration::from_secs(1);

/// The files that a start looks for.
#[derive(Debug)]
pub(super) struct Presence {
    dir: PathBuf,
    files: [HeldFile; 3],
}

#[derive(Debug)]
struct HeldFile {
    path: PathBuf,
    id: FileId,
    /// Keeps the inode number from being reused.
    _open: File,
}

impl Presence {
    /// Opens the files, with `store` as the current store.
    pub(super) fn of(dir: &Path, store: &str) -> Result<Self, OpenError> {
        let hold = |name: PathBuf| {
            let path = dir.join(name);
            let open = || Ok((File::open(&path)?, FileId::of(&path)?));
            let (open, id) = open().map_err(OpenError::io("open", &path))?;
            Ok::<_, OpenError>(HeldFile { path, id, _open: open })
        };
        let log = Path::new(store).join("db");
        let files = [hold("LOCK".into())?, hold("CURRENT".into())?, hold(log)?];
        Ok(Self { dir: dir.to_owned(), files })
    }

    pub(super) fn check(&self) -> Result<(), Failure> {
        for HeldFile { path, id, .. } in &self.files {
            let what = match FileId::of(path) {
                Ok(now) if now == *id => continue,
                Ok(_) => "is another file".to_owned(),
                Err(error) if error.kind() == ErrorKind::NotFound => "is gone".to_owned(),
                Err(error) => format!("cannot be looked at ({error})"),
            };
            return Err(Failure::Database(format!(
                "the data directory {} was removed or replaced while it was in use: {} {what}; \
                 the next start could not find newly accepted writes",
                self.dir.display(),
                path.display()
            )));
        }
        Ok(())
    }
}

pub(super) struct Lookout {
    files: Arc<Files>,
    due: Instant,
}

impl Lookout {
    pub(super) fn new(files: Arc<Files>, now: Instant) -> Self {
        Self { files, due: now + IDLE_INTERVAL }
    }

    pub(super) fn wait(&self, now: Instant) -> Duration {
        self.due.saturating_duration_since(now)
    }

    pub(super) fn look(&mut self, now: Instant) -> Result<(), Failure> {
        self.due = now + IDLE_INTERVAL;
        self.files.check_presence()
    }

    pub(super) fn look_if_due(&mut self, now: Instant) -> Result<(), Failure> {
        if self.due <= now { self.look(now) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_removed_or_replaced_file_is_detected_and_a_rewritten_one_is_not() {
        for name in ["LOCK", "CURRENT", "store-000001/db"] {
            let temp = tempfile::tempdir().unwrap();
            let dir = temp.path().join("data");
            fs::create_dir_all(dir.join("store-000001")).unwrap();
            for name in ["LOCK", "CURRENT", "store-000001/db"] {
                fs::write(dir.join(name), "text").unwrap();
            }
            let presence = Presence::of(&dir, "store-000001").unwrap();
            fs::write(dir.join(name), "other").unwrap();
            presence.check().unwrap();
            fs::remove_file(dir.join(name)).unwrap();
            let why = presence.check().unwrap_err().to_string();
            assert!(why.contains("was removed or replaced") && why.contains("is gone"), "{why}");
            assert!(why.contains(name), "{why}");
            fs::write(dir.join(name), "text").unwrap();
            let why = presence.check().unwrap_err().to_string();
            assert!(why.contains(name) && why.contains("is another file"), "{why}");
            // The whole directory is moved away.
            fs::rename(&dir, temp.path().join("moved")).unwrap();
            assert!(presence.check().unwrap_err().to_string().contains("LOCK is gone"));
        }
    }
}
