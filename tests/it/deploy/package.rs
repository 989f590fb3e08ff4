//! The tarball and the Debian package. The package is installed below a directory of the test, without
//! a chroot, so nothing changes on this machine.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use tempfile::TempDir;

use crate::support::daemon::command;

/// 2024-01-01, before any file of a build.
const TIME: &str = "1704067200";

fn done(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    output
}

struct Packages {
    tarball: PathBuf,
    debian: PathBuf,
}

fn pack(dir: &Path) -> Packages {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/package.sh");
    let mut pack = Command::new(script);
    done(pack.arg(env!("CARGO_BIN_EXE_replicator")).arg(dir).env("SOURCE_DATE_EPOCH", TIME));
    let find = |end: &str| {
        let mut paths = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
        paths.find(|path| path.to_str().unwrap().ends_with(end)).unwrap()
    };
    Packages { tarball: find(".tar.gz"), debian: find(".deb") }
}

/// Made once for all tests, because it takes seconds; `None` where there is no dpkg.
fn packages() -> Option<&'static Packages> {
    static PACKAGES: OnceLock<Option<Packages>> = OnceLock::new();
    let packages = PACKAGES.get_or_init(|| {
        Command::new("dpkg-deb").arg("--version").output().ok()?;
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("packages");
        // Those of the last run.
        let _ = fs::remove_dir_all(&dir);
        Some(pack(&dir))
    });
    if packages.is_none() {
        eprintln!("skipped: there is no dpkg");
    }
    packages.as_ref()
}

/// The manual pages that the binary writes.
fn manual_pages() -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    done(command().arg("man").arg("--dir").arg(dir.path()));
    let names = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
    names.map(|name| name.into_string().unwrap()).collect()
}

/// The first word of `ExecStart=` in a unit.
fn program(unit: &Path) -> PathBuf {
    let text = fs::read_to_string(unit).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("ExecStart=")).unwrap();
    line.split(' ').next().unwrap().into()
}

/// An empty system, with a database of dpkg.
struct Target {
    dir: TempDir,
}

impl Target {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["etc", "var/lib/dpkg/info", "var/lib/dpkg/updates", "var/lib/dpkg/triggers"]
        {
            fs::create_dir_all(dir.path().join(folder)).unwrap();
        }
        fs::write(dir.path().join("var/lib/dpkg/status"), "").unwrap();
        Self { dir }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    /// Runs dpkg on it; returns what it printed to standard output.
    fn dpkg(&self, action: &str, what: &Path) -> String {
        let mut command = Command::new("dpkg");
        command.arg("--root").arg(self.dir.path()).arg("--log=/dev/null");
        // Its libraries are those of this machine. The rest is for users without privileges.
        command.args(["--force-script-chrootless", "--force-depends"]);
        command.args(["--force-not-root", "--force-bad-path"]);
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env_remove("DPKG_ROOT");
        String::from_utf8(done(command.arg(action).arg(what)).stdout).unwrap()
    }
}

#[test]
fn the_debian_package_is_installed_upgraded_removed_and_purged() {
    let Some(Packages { debian, .. }) = packages() else { return };
    let target = Target::new();
    target.dpkg("--install", debian);

    let installed = target.path("usr/bin/replicator");
    let version = done(Command::new(&installed).arg("--version")).stdout;
    assert_eq!(version, done(command().arg("--version")).stdout);
    let unit = target.path("usr/lib/systemd/system/replicator.service");
    assert_eq!(program(&unit), Path::new("/usr/bin/replicator"));
    let enabled = target.path("etc/systemd/system/multi-user.target.wants/replicator.service");
    assert!(enabled.is_symlink());
    let users = fs::read_to_string(target.path("etc/passwd")).unwrap();
    assert!(users.contains("/var/lib/replicator:/usr/sbin/nologin"), "{users}");
    // systemd makes it, with the owner and the mode of the unit.
    assert!(!target.path("var/lib/replicator").exists());

    let settings = target.path("etc/replicator/replicator.env");
    let text = fs::read_to_string(&settings).unwrap();
    let set = |line: &&str| !line.is_empty() && !line.starts_with('#');
    assert!(!text.lines().any(|line| set(&line)), "the package starts with the defaults: {text}");
    fs::write(&settings, "REPLICATOR_WORKERS=7\n").unwrap();
    let row = target.path("var/lib/replicator/CURRENT");
    fs::create_dir(row.parent().unwrap()).unwrap();
    fs::write(&row, "store-000001").unwrap();
    target.dpkg("--install", debian);
    target.dpkg("--remove", Path::new("replicator"));
    assert!(!installed.exists() && !unit.exists());
    assert_eq!(fs::read_to_string(&settings).unwrap(), "REPLICATOR_WORKERS=7\n");
    assert_eq!(fs::read_to_string(&row).unwrap(), "store-000001");

    target.dpkg("--install", debian);
    let printed = target.dpkg("--purge", Path::new("replicator"));
    assert!(printed.contains("all writes that are not delivered yet"), "{printed}");
    assert!(!row.parent().unwrap().exists() && !settings.exists() && !enabled.is_symlink());
}

#[test]
fn the_files_of_the_debian_package_belong_to_root_and_are_where_debian_expects_them() {
    let Some(Packages { debian, .. }) = packages() else { return };
    let listed = done(Command::new("dpkg-deb").arg("--contents").arg(debian)).stdout;
    let listed = String::from_utf8(listed).unwrap();
    let files = listed.lines().map(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        (words[5].to_owned(), (words[0].to_owned(), words[1].to_owned()))
    });
    let mut files: BTreeMap<_, _> = files.collect();
    let mut expect = |path: &str, mode: &str| {
        let found = files.remove(&format!("./{path}"));
        assert_eq!(found, Some((mode.to_owned(), "root/root".to_owned())), "{path}: {listed}");
    };
    expect("usr/bin/replicator", "-rwxr-xr-x");
    for page in manual_pages() {
        expect(&format!("usr/share/man/man1/{page}.gz"), "-rw-r--r--");
    }
    for path in [
        "etc/replicator/replicator.env",
        "usr/lib/systemd/system/replicator.service",
        "usr/lib/sysusers.d/replicator.conf",
        "usr/share/bash-completion/completions/replicator",
        "usr/share/doc/replicator/README.md",
        "usr/share/doc/replicator/changelog.Debian.gz",
        "usr/share/doc/replicator/changelog.gz",
        "usr/share/doc/replicator/copyright",
        "usr/share/doc/replicator/examples/replicator.json",
        "usr/share/doc/replicator/examples/replicator.rules.yml",
        "usr/share/doc/replicator/examples/replicator.toml",
        "usr/share/fish/vendor_completions.d/replicator.fish",
        "usr/share/zsh/vendor-completions/_replicator",
    ] {
        expect(path, "-rw-r--r--");
    }
    files.retain(|path, (mode, owner)| {
        !path.ends_with('/') || mode != "drwxr-xr-x" || owner != "root/root"
    });
    assert!(files.is_empty(), "{files:?}");
}

#[test]
fn the_same_binary_and_time_give_the_same_packages() {
    let Some(one) = packages() else { return };
    let dir = tempfile::tempdir().unwrap();
    let other = pack(dir.path());
    for (one, other) in [(&one.tarball, other.tarball), (&one.debian, other.debian)] {
        assert_eq!(one.file_name(), other.file_name());
        let same = fs::read(one).unwrap() == fs::read(&other).unwrap();
        assert!(same, "{} differs between two runs", one.display());
    }
}

#[test]
fn the_tarball_is_unpacked_below_usr_local() {
    let Some(Packages { tarball, .. }) = packages() else { return };
    let dir = tempfile::tempdir().unwrap();
    let local = dir.path().join("usr/local");
    fs::create_dir_all(&local).unwrap();
    let mut unpack = Command::new("tar");
    unpack.arg("-C").arg(&local).args(["--strip-components=1", "-xf"]).arg(tarball);
    done(&mut unpack);
    let unit = local.join("lib/systemd/system/replicator.service");
    let installed = dir.path().join(program(&unit).strip_prefix("/").unwrap());
    assert_eq!(fs::metadata(&installed).unwrap().permissions().mode() & 0o7777, 0o755);
    done(Command::new(&installed).arg("--version"));
    for page in manual_pages() {
        assert!(local.join("share/man/man1").join(&page).is_file(), "{page}");
    }
    for path in ["lib/sysusers.d/replicator.conf", "share/doc/replicator/examples/replicator.env"] {
        assert!(local.join(path).is_file(), "{path}");
    }
}
