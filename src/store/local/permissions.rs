//! Permissions of the data directory, and which file types are accepted in it.
//!
//! A user who can write to the directory could replace the store, or plant a link through which this
//! process overwrites a file of its own user. So a directory that others can write to is refused, and
//! everything in it must be a regular file or a directory. A directory of another user is refused
//! because that user could not read the new files. The path to the directory is the operator's choice:
//! links in it are followed, and the directories above are not checked.
//!
//! The umask makes new files private. Here, the permissions left by an older release or a copy are
//! tightened.

use std::fs::{self, File, Metadata, OpenOptions, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use rustix::process::geteuid;

use super::error::OpenError;

const GROUP_AND_OTHERS: u32 = 0o077;
const GROUP_AND_OTHERS_WRITE: u32 = 0o022;
/// Prefixes of the names that the store uses in a data directory.
const NAMES: [&str; 7] =
    ["LOCK", "CURRENT", "COMMITTED", "CLOCK", "store-", "quarantine", "check.tmp"];

/// Refuses a data directory that others can change, or that holds links.
pub(super) fn check(dir: &Path) -> Result<(), OpenError> {
    let about = fs::metadata(dir).map_err(OpenError::io("look at", dir))?;
    trust(dir, (about.uid(), about.gid()), about.mode() & 0o7777, geteuid().as_raw())?;
    visit_ours(dir, &mut |path, about| {
        if about.is_dir() || about.is_file() {
            return Ok(());
        }
        Err(OpenError::WrongFileType { path: path.to_owned(), link: about.is_symlink() })
    })
}

/// Requires that only `user` and root can change a directory of this owner and mode.
fn trust(dir: &Path, owned_by: (u32, u32), mode: u32, user: u32) -> Result<(), OpenError> {
    let (owner, group) = owned_by;
    let dir = dir.to_owned();
    if owner != user && owner != 0 {
        return Err(OpenError::ForeignOwner { dir, owner, group, user });
    }
    if mode & GROUP_AND_OTHERS_WRITE != 0 {
        return Err(OpenError::OthersMayWrite { dir, mode });
    }
    Ok(())
}

/// Removes all permissions of group and others in the directory.
pub(super) fn close(dir: &Path) -> Result<(), OpenError> {
    let user = geteuid().as_raw();
    visit_ours(dir, &mut |path, about| {
        let mode = about.mode() & 0o7777;
        // Another owner can only be root; opening the file reports it if that matters.
        if mode & GROUP_AND_OTHERS == 0 || about.uid() != user {
            return Ok(());
        }
        let only = Permissions::from_mode(mode & !GROUP_AND_OTHERS);
        fs::set_permissions(path, only).map_err(OpenError::io("close to other users", path))
    })
}

/// Opens a file of the data directory. Fails on a symbolic link.
pub(super) fn open(options: &OpenOptions, path: &Path) -> std::io::Result<File> {
    let mut options = options.clone();
    options.custom_flags(libc::O_NOFOLLOW).open(path)
}

/// Creates or truncates a file of the data directory, for this user alone.
pub(super) fn create(path: &Path) -> std::io::Result<File> {
    let mut options = OpenOptions::new();
    open(options.read(true).write(true).create(true).truncate(true).mode(0o600), path)
}

type Visit<'a> = dyn FnMut(&Path, &Metadata) -> Result<(), OpenError> + 'a;

/// Visits everything that the store uses. Other names, such as `lost+found`, are ignored.
fn visit_ours(dir: &Path, visit: &mut Visit<'_>) -> Result<(), OpenError> {
    walk(dir, &|name| NAMES.iter().any(|known| name.starts_with(known)), visit)
}

fn walk(dir: &Path, which: &dyn Fn(&str) -> bool, visit: &mut Visit<'_>) -> Result<(), OpenError> {
    for entry in fs::read_dir(dir).map_err(OpenError::io("list", dir))? {
        let path = entry.map_err(OpenError::io("list", dir))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if !which(&name) {
            continue;
        }
        let about = match fs::symlink_metadata(&path) {
            // Removed by a daemon that uses the directory.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            about => about.map_err(OpenError::io("look at", &path))?,
        };
        visit(&path, &about)?;
        if about.is_dir() {
            walk(&path, &|_| true, visit)?;
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
    fn a_directory_is_trusted_if_only_its_user_and_root_can_change_it() {
        let refusal = |owner, mode, user| {
            let trusted = trust(Path::new("/data"), (owner, 7), mode, user);
            trusted.err().map(|error| error.to_string())
        };
        assert_eq!(refusal(1000, 0o700, 1000), None);
        assert_eq!(refusal(0, 0o755, 1000), None);
        for mode in [0o770, 0o720, 0o702, 0o1777, 0o2775] {
            let refusal = refusal(1000, mode, 1000).unwrap();
            assert!(refusal.contains(&format!("mode {mode:04o}")), "{refusal}");
            assert!(refusal.contains("chmod go-w /data"), "{refusal}");
        }
        for user in [0, 1001] {
            let refusal = refusal(1000, 0o700, user).unwrap();
            assert!(refusal.contains("setpriv --reuid=1000 --regid=7"), "{refusal}");
            assert!(refusal.contains(&format!("chown -R {user} /data")), "{refusal}");
        }
    }

    #[test]
    fn permissions_of_others_in_a_data_directory_are_removed() {
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
