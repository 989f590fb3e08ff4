use std::os::unix::fs::PermissionsExt;

use super::*;

const NEVER_USED: fn(&Path) -> Result<bool, Failure> = |_| Ok(false);

/// The files of sled that this module looks at.
fn fill(path: &Path) -> Result<(), Failure> {
    fs::create_dir(path.join("blobs")).unwrap();
    fs::write(path.join("conf"), "conf").unwrap();
    fs::write(path.join("db"), "db").unwrap();
    Ok(())
}

#[test]
fn a_new_directory_is_private_and_names_its_store() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("a/b");
    let directory = Directory::lock(&dir).unwrap();
    assert_eq!(directory.current(NEVER_USED).unwrap(), None);
    let store = directory.create(fill).unwrap().0;
    assert_eq!(store, dir.join("store-000001"));
    assert_eq!(fs::read_to_string(dir.join(CURRENT)).unwrap(), "store-000001\n");
    assert_eq!(directory.current(NEVER_USED).unwrap(), Some(store));
    assert_eq!(fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn a_directory_in_use_is_refused_with_the_number_of_the_process() {
    let temp = tempfile::tempdir().unwrap();
    let first = Directory::lock(temp.path()).unwrap();
    let error = Directory::lock(temp.path()).err().unwrap();
    let (dir, process) = (temp.path().display(), std::process::id());
    assert_eq!(
        error.to_string(),
        format!("the data directory {dir} is in use by another replicator (process {process})")
    );
    drop(first);
    Directory::lock(temp.path()).unwrap();
}

#[test]
fn an_interrupted_creation_starts_again_from_every_step() {
    type Stop = fn(&Path);
    let stops: [Stop; 5] = [
        |dir| fs::create_dir(dir.join("store-000001.new")).unwrap(),
        |dir| {
            fs::create_dir(dir.join("store-000001.new")).unwrap();
            fs::write(dir.join("store-000001.new/conf"), "to").unwrap();
        },
        |dir| {
            fs::create_dir(dir.join("store-000001")).unwrap();
            fill(&dir.join("store-000001")).unwrap();
        },
        |dir| fs::write(dir.join("CURRENT.new"), "sto").unwrap(),
        |dir| fs::write(dir.join("LOCK"), "4294967295\n").unwrap(),
    ];
    for stop in stops {
        let temp = tempfile::tempdir().unwrap();
        stop(temp.path());
        let directory = Directory::lock(temp.path()).unwrap();
        assert_eq!(directory.current(NEVER_USED).unwrap(), None);
        let store = directory.create(fill).unwrap().0;
        assert_eq!(directory.current(NEVER_USED).unwrap(), Some(store));
        assert!(!temp.path().join("store-000001.new").exists());
    }
}

#[test]
fn a_used_store_without_current_is_not_removed() {
    let temp = tempfile::tempdir().unwrap();
    let directory = Directory::lock(temp.path()).unwrap();
    directory.create(fill).unwrap();
    fs::remove_file(temp.path().join(CURRENT)).unwrap();
    let error = directory.current(|_| Ok(true)).unwrap_err().to_string();
    assert!(error.contains("holds tasks in store-000001 but no file CURRENT"), "{error}");
    let broken = |_: &Path| Err(Failure::Database("torn".into()));
    let error = directory.current(broken).unwrap_err().to_string();
    assert!(error.contains("store-000001: torn"), "{error}");
}

#[test]
fn a_current_that_names_no_store_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    let directory = Directory::lock(temp.path()).unwrap();
    directory.create(fill).unwrap();
    for text in ["", "store-000002", "../store-000001", "store-1\n", "\u{0}\u{0}"] {
        fs::write(temp.path().join(CURRENT), text).unwrap();
        let error = directory.current(NEVER_USED).unwrap_err().to_string();
        assert!(error.contains("CURRENT names"), "{error}");
    }
    fs::write(temp.path().join(CURRENT), "store-000001").unwrap();
    fs::remove_file(temp.path().join("store-000001/db")).unwrap();
    assert!(directory.current(NEVER_USED).is_err());
}
