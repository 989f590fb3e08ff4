//! Version 1: the empty trees of the first release.
//!
//! `src/store/local/rows.rs` describes the rows, `src/store/local/keys.rs` the keys.

pub(super) fn run(db: &sled::Db) -> sled::Result<()> {
    for tree in ["meta", "tasks", "values", "progress", "dead_letters"] {
        db.open_tree(tree)?;
    }
    Ok(())
}
