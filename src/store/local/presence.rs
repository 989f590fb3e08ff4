//! Whether the open files are still those of the data directory.
//!
//! A file that was removed can be written and synced for as long as it is open. So where someone
//! removes the data directory under the daemon, or puts another one in its place, every commit
//! succeeds and nothing of it is found by the next start. Whatever that start would look for must
//! therefore be the very files that are open here: looked at after each flush and before it is
//! answered, and each second while there is none. It takes about 3 us.

use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Files;
use super::error::{Failure, OpenError};
use super::watched::FileId;

/// How often they are looked for where nothing is flushed.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The files of a data directory that a start looks for.
#[derive(Debug)]
pub(super) struct Presence {
    dir: PathBuf,
    files: [Found; 3],
}

#[derive(Debug)]
struct Found {
    path: PathBuf,
    id: FileId,
    /// While it is open its number goes to no other file.
    _open: File,
}

impl Presence {
    /// They are as they should be, with `store` as the current one.
    pub(super) fn of(dir: &Path, store: &str) -> Result<Self, OpenError> {
        let found = |name: PathBuf| {
            let path = dir.join(name);
            let found = || Ok((File::open(&path)?, FileId::of(&path)?));
            let (open, id) = found().map_err(OpenError::io("open", &path))?;
            Ok::<_, OpenError>(Found { path, id, _open: open })
        };
        let log = Path::new(store).join("db");
        let files = [found("LOCK".into())?, found("CURRENT".into())?, found(log)?];
        Ok(Self { dir: dir.to_owned(), files })
    }

    /// Whether they still are.
    pub(super) fn check(&self) -> Result<(), Failure> {
        for Found { path, id, .. } in &self.files {
            let what = match FileId::of(path) {
                Ok(now) if now == *id => continue,
                Ok(_) => "is another file".to_owned(),
                Err(error) if error.kind() == ErrorKind::NotFound => "is gone".to_owned(),
                Err(error) => format!("cannot be looked at ({error})"),
            };
            return Err(Failure::Database(format!(
                "the data directory {} was removed or replaced while it was in use: {} {what}; \
                 what was accepted from then on could not be found by the next start",
                self.dir.display(),
                path.display()
            )));
        }
        Ok(())
    }
}

/// Who looks from time to time.
pub(super) struct Lookout {
    files: Arc<Files>,
    /// When that is due, should nothing be flushed until then.
    due: Instant,
}

impl Lookout {
    pub(super) fn new(files: Arc<Files>, now: Instant) -> Self {
        Self { files, due: now + LOOK_EVERY }
    }

    /// How much longer nobody needs to look.
    pub(super) fn wait(&self, now: Instant) -> Duration {
        self.due.saturating_duration_since(now)
    }

    /// Fails where what is on disk could not be found by the next start.
    pub(super) fn look(&mut self, now: Instant) -> Result<(), Failure> {
        self.due = now + LOOK_EVERY;
        self.files.is_present()
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
    fn a_file_that_is_gone_or_another_one_is_noticed_and_the_same_one_is_not() {
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
            // The whole directory, moved away.
            fs::rename(&dir, temp.path().join("moved")).unwrap();
            assert!(presence.check().unwrap_err().to_string().contains("LOCK is gone"));
        }
    }
}
