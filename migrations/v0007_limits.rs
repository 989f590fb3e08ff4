//! Version 7: the record of a replica may end with the end of its pause and its limits.
//!
//! Rows of version 6 stay valid and are not changed. The new version only makes older binaries refuse
//! the store, because they take such a row for damage.

#[expect(clippy::unnecessary_wraps, reason = "the signature of all steps")]
pub(super) fn run(_: &sled::Db) -> sled::Result<()> {
    Ok(())
}
