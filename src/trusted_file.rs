//! Reads files that decide who may ask and where the daemon may write: token lists, lists of allowed
//! replicas, certificates, keys.
//!
//! Such a file is refused if anyone but root and the user of this process may write it, and a secret
//! also if others may read it. The open file is checked, so that it cannot be replaced after the
//! check.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use thiserror::Error;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileContent {
    /// Others may read it.
    Public,
    Secret,
}

/// The texts continue a sentence that starts with the file name.
#[derive(Debug, Error)]
pub enum UntrustedFile {
    #[error("cannot be read: {0}")]
    Unreadable(#[from] io::Error),
    #[error("is longer than {0} bytes")]
    TooLong(u64),
    #[error(
        "belongs to the user {owner}, who can change it: chown it to root or to the user of the daemon"
    )]
    Foreign { owner: u32 },
    #[error("can be written by others than its owner (mode {mode:04o}): chmod go-w it")]
    Writable { mode: u32 },
    /// A secret that others can read or write.
    #[error("is open to others than its owner (mode {mode:04o}): chmod 600 it")]
    Open { mode: u32 },
}

/// Reads a file of at most `limit` bytes.
pub fn read_trusted(
    path: &Path,
    content: FileContent,
    limit: u64,
) -> Result<Vec<u8>, UntrustedFile> {
    let file = File::open(path)?;
    let found = file.metadata()?;
    let access = FileAccess { mode: found.mode() & 0o7777, owner: found.uid(), group: found.gid() };
    let process = Process {
        user: rustix::process::geteuid().as_raw(),
        groups: groups()?,
        is_credential: is_credential(path),
    };
    process.check(access, content)?;
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(UntrustedFile::TooLong(limit));
    }
    Ok(bytes)
}

fn groups() -> io::Result<Vec<u32>> {
    let mut groups = rustix::process::getgroups()?;
    groups.push(rustix::process::getegid());
    Ok(groups.into_iter().map(rustix::process::Gid::as_raw).collect())
}

/// A file from systemd (`LoadCredential=`). Its group read bit stands for an access list with only
/// the daemon's user.
fn is_credential(path: &Path) -> bool {
    let credentials = std::env::var_os("CREDENTIALS_DIRECTORY").filter(|dir| !dir.is_empty());
    credentials.is_some_and(|dir| path.starts_with(dir))
}

#[derive(Clone, Copy)]
struct FileAccess {
    mode: u32,
    owner: u32,
    group: u32,
}

struct Process {
    user: u32,
    groups: Vec<u32>,
    /// The file comes from systemd.
    is_credential: bool,
}

const ROOT: u32 = 0;

impl Process {
    fn check(&self, file: FileAccess, content: FileContent) -> Result<(), UntrustedFile> {
        let FileAccess { mode, owner, group } = file;
        if owner != ROOT && owner != self.user {
            return Err(UntrustedFile::Foreign { owner });
        }
        // Kubernetes gives a secret to root and to a group that only the pod has (fsGroup).
        let is_mounted = owner == ROOT && group != ROOT && self.groups.contains(&group);
        let forbidden = match content {
            FileContent::Public => 0o022,
            FileContent::Secret if is_mounted || self.is_credential => 0o037,
            FileContent::Secret => 0o077,
        };
        match content {
            _ if mode & forbidden == 0 => Ok(()),
            FileContent::Public => Err(UntrustedFile::Writable { mode }),
            FileContent::Secret => Err(UntrustedFile::Open { mode }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::FileContent::{Public, Secret};
    use super::*;

    /// The user 100 in the groups 100 and 200.
    #[track_caller]
    fn check(content: FileContent, owner: u32, group: u32, mode: u32) -> Option<&'static str> {
        let process = Process { user: 100, groups: vec![100, 200], is_credential: false };
        match process.check(FileAccess { mode, owner, group }, content) {
            Ok(()) => None,
            Err(UntrustedFile::Foreign { .. }) => Some("foreign"),
            Err(UntrustedFile::Writable { .. }) => Some("writable"),
            Err(UntrustedFile::Open { .. }) => Some("open"),
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn a_file_that_others_can_write_is_refused() {
        for owner in [0, 100] {
            for mode in [0o600, 0o640, 0o644, 0o444, 0o755] {
                assert_eq!(check(Public, owner, owner, mode), None, "{mode:o}");
            }
            for mode in [0o620, 0o660, 0o664, 0o602, 0o646, 0o666, 0o777] {
                assert_eq!(check(Public, owner, owner, mode), Some("writable"), "{mode:o}");
            }
        }
    }

    #[test]
    fn a_file_of_another_user_is_refused() {
        for content in [Public, Secret] {
            for mode in [0o400, 0o600, 0o644] {
                assert_eq!(check(content, 300, 100, mode), Some("foreign"), "{mode:o}");
            }
        }
    }

    #[test]
    fn a_secret_that_others_can_read_is_refused() {
        for owner in [0, 100] {
            for mode in [0o400, 0o600, 0o700] {
                assert_eq!(check(Secret, owner, owner, mode), None, "{mode:o}");
            }
            for mode in [0o604, 0o644, 0o602, 0o660, 0o620] {
                assert_eq!(check(Secret, owner, owner, mode), Some("open"), "{mode:o}");
            }
        }
        assert_eq!(check(Secret, 100, 200, 0o640), Some("open"), "a group of other users");
    }

    #[test]
    fn a_secret_that_kubernetes_mounts_for_the_group_of_the_pod_is_accepted() {
        for mode in [0o400, 0o440, 0o640] {
            assert_eq!(check(Secret, 0, 200, mode), None, "{mode:o}");
        }
        for (group, mode) in [(200, 0o444), (200, 0o460), (300, 0o440), (0, 0o440)] {
            assert_eq!(check(Secret, 0, group, mode), Some("open"), "{group} {mode:o}");
        }
    }

    #[test]
    fn the_file_that_a_link_leads_to_is_checked_and_read_up_to_the_limit() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        fs::write(&file, "12345").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let mode = |mode| fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        mode(0o600);
        assert_eq!(read_trusted(&link, Secret, 5).unwrap(), b"12345");
        assert!(matches!(read_trusted(&link, Secret, 4), Err(UntrustedFile::TooLong(4))));
        mode(0o604);
        assert_eq!(read_trusted(&link, Public, 5).unwrap(), b"12345");
        let open = read_trusted(&link, Secret, 5).unwrap_err().to_string();
        assert_eq!(open, "is open to others than its owner (mode 0604): chmod 600 it");
        mode(0o606);
        let writable = read_trusted(&link, Public, 5).unwrap_err().to_string();
        let expected = "can be written by others than its owner (mode 0606): chmod go-w it";
        assert_eq!(writable, expected);
    }
}
