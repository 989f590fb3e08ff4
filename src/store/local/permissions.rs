//! Who may change a data directory, and what in it may be followed.
//!
//! Whoever can write to the directory can put another store in its place, or a link by which this
//! process writes over a file of its user. So one that others may write to is refused, and so is
//! one of another user: what this process would leave in it, its owner could not read any more.
//! What lies in it must be what it is called, a file or a directory, and no link. The path to the
//! directory is the operator's, links in it are followed; the directories above it are not looked
//! at.
//!
//! Files and directories in it are for this user alone. The process makes them so by its umask;
//! here, what an older release or a copy has left open is closed.

use std::fs::{self, File, Metadata, OpenOptions, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use rustix::process::geteuid;

use super::error::OpenError;

/// What group and others may do with a file.
const OTHERS: u32 = 0o077;
/// What lets them write.
const OTHERS_WRITE: u32 = 0o022;
/// How the names begin that the store gives in a data directory.
const NAMES: [&str; 7] =
    ["LOCK", "CURRENT", "COMMITTED", "CLOCK", "store-", "quarantine", "check.tmp"];

/// Refuses a data directory that others could change, or in which a name leads elsewhere.
///
/// # Errors
///
/// An [`OpenError`] that says what to do.
pub(super) fn check(dir: &Path) -> Result<(), OpenError> {
    let about = fs::metadata(dir).map_err(OpenError::io("look at", dir))?;
    trust(dir, (about.uid(), about.gid()), about.mode() & 0o7777, geteuid().as_raw())?;
    ours(dir, &mut |path, about| {
        let (is_dir, is_file) = (about.is_dir(), about.is_file());
        if is_dir || is_file {
            return Ok(());
        }
        Err(OpenError::Elsewhere { path: path.to_owned(), link: about.is_symlink() })
    })
}

/// Whether only `user` and root can change a directory of this owner and mode.
fn trust(dir: &Path, owned_by: (u32, u32), mode: u32, user: u32) -> Result<(), OpenError> {
    let (owner, group) = owned_by;
    let dir = dir.to_owned();
    if owner != user && owner != 0 {
        return Err(OpenError::ForeignOwner { dir, owner, group, user });
    }
    if mode & OTHERS_WRITE != 0 {
        return Err(OpenError::OthersMayWrite { dir, mode });
    }
    Ok(())
}

/// Takes from group and others what they may do with anything in the directory.
///
/// # Errors
///
/// An [`OpenError`] if the operating system refuses.
pub(super) fn close(dir: &Path) -> Result<(), OpenError> {
    let user = geteuid().as_raw();
    ours(dir, &mut |path, about| {
        let mode = about.mode() & 0o7777;
        // Another's can only be root's; where it is needed, opening it says so.
        if mode & OTHERS == 0 || about.uid() != user {
            return Ok(());
        }
        let only = Permissions::from_mode(mode & !OTHERS);
        fs::set_permissions(path, only).map_err(OpenError::io("close to other users", path))
    })
}

/// Opens a file of the data directory, unless its name is a link.
pub(super) fn open(options: &OpenOptions, path: &Path) -> std::io::Result<File> {
    let mut options = options.clone();
    options.custom_flags(libc::O_NOFOLLOW).open(path)
}

type Each<'a> = dyn FnMut(&Path, &Metadata) -> Result<(), OpenError> + 'a;

/// Shows all that the store uses or makes. What it does not know, such as the `lost+found` of a
/// disk, is not ours to judge.
fn ours(dir: &Path, each: &mut Each<'_>) -> Result<(), OpenError> {
    walk(dir, &|name| NAMES.iter().any(|known| name.starts_with(known)), each)
}

fn walk(dir: &Path, which: &dyn Fn(&str) -> bool, each: &mut Each<'_>) -> Result<(), OpenError> {
    for entry in fs::read_dir(dir).map_err(OpenError::io("list", dir))? {
        let path = entry.map_err(OpenError::io("list", dir))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if !which(&name) {
            continue;
        }
        let about = match fs::symlink_metadata(&path) {
            // A daemon that has the directory in use removes a file now and then.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            about => about.map_err(OpenError::io("look at", &path))?,
        };
        each(&path, &about)?;
        if about.is_dir() {
            walk(&path, &|_| true, each)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o777
    }

    #[test]
    fn a_directory_is_trusted_where_only_its_user_and_root_can_change_it() {
        let told = |owner, mode, user| {
            let trusted = trust(Path::new("/data"), (owner, 7), mode, user);
            trusted.err().map(|error| error.to_string())
        };
        assert_eq!(told(1000, 0o700, 1000), None);
        assert_eq!(told(0, 0o755, 1000), None);
        for mode in [0o770, 0o720, 0o702, 0o1777, 0o2775] {
            let told = told(1000, mode, 1000).unwrap();
            assert!(told.contains(&format!("mode {mode:04o}")), "{told}");
            assert!(told.contains("chmod go-w /data"), "{told}");
        }
        for user in [0, 1001] {
            let told = told(1000, 0o700, user).unwrap();
            assert!(told.contains("setpriv --reuid=1000 --regid=7"), "{told}");
            assert!(told.contains(&format!("chown -R {user} /data")), "{told}");
        }
    }

    #[test]
    fn what_others_may_read_in_a_data_directory_is_closed_to_them() {
        let dir = tempfile::tempdir().unwrap();
        let store = dir.path().join("store-000001");
        fs::create_dir(&store).unwrap();
        fs::write(store.join("db"), "rows").unwrap();
        fs::set_permissions(&store, Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(store.join("db"), Permissions::from_mode(0o664)).unwrap();
        check(dir.path()).unwrap();
        close(dir.path()).unwrap();
        assert_eq!((mode(&store), mode(&store.join("db"))), (0o700, 0o600));
        close(dir.path()).unwrap();
    }

    #[test]
    fn a_file_is_not_opened_through_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        fs::write(&file, "text").unwrap();
        symlink(&file, &link).unwrap();
        let mut truncate = OpenOptions::new();
        truncate.write(true).truncate(true).create(true);
        assert!(open(&truncate, &link).is_err());
        assert_eq!(fs::read(&file).unwrap(), b"text");
        open(&truncate, &file).unwrap();
    }
}
