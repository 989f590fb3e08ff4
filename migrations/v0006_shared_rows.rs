//! Version 6: a row of `tasks` may hold several tasks of one commit. Behind the first task follow an
//! offset of one byte, the lengths and the stream of the next, and so on. Two lengths of 0 stand for a
//! first task that is settled.
//!
//! Rows of version 5 stay valid and are not changed. The new version only makes older binaries refuse
//! the store, because they take such a row for damage.

#[expect(clippy::unnecessary_wraps, reason = "the signature of all steps")]
pub(super) fn run(_: &sled::Db) -> sled::Result<()> {
    Ok(())
}
