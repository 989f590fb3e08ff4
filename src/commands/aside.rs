//! A file that a command writes under another name first.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Readable by its owner only. Removed on drop, unless it got its name.
pub(super) struct AsideFile<'a> {
    path: &'a Path,
    aside: PathBuf,
    pub(super) file: File,
}

impl<'a> AsideFile<'a> {
    pub(super) fn create(path: &'a Path) -> io::Result<Self> {
        let mut name = OsString::from(path);
        name.push(format!(".{}.part", std::process::id()));
        let aside = PathBuf::from(name);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&aside)?;
        Ok(Self { path, aside, file })
    }

    /// Syncs it and gives it its name. A file of this name is replaced.
    pub(super) fn finish(self) -> io::Result<()> {
        self.file.sync_all()?;
        fs::rename(&self.aside, self.path)?;
        let parent = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
        File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
    }
}

impl Drop for AsideFile<'_> {
    fn drop(&mut self) {
        // After `finish` there is none. If it fails, a file with a name of its own remains.
        let _ = fs::remove_file(&self.aside);
    }
}
