//! Version 1: the trees of the first release, empty.
//!
//! The rows in them are described in `src/store/local/rows.rs`, the keys in `src/store/local/keys.rs`.

pub(super) fn run(db: &sled::Db) -> sled::Result<()> {
    for tree in ["meta", "tasks", "values", "progress", "dead_letters"] {
        db.open_tree(tree)?;
    }
    Ok(())
}
