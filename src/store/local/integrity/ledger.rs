//! Row counts and checksums per commit, so that missing rows are noticed.
//!
//! sled takes a damaged message in its log for the end of an interrupted write and silently drops
//! what follows. A row proves itself by its checksum; a missing row proves nothing. So each commit
//! ends with a ledger row: the number of the commit, the highest task, and for each counted tree
//! the number of rows and the sum of their checksums.
//!
//! ```text
//! settling k-1 · settlements · new tasks · ledger k · flush · settling k · settlements · …
//! ```
//!
//! A crash leaves a prefix of that. Behind the newest ledger, k, there can be
//!
//! - nothing: the trees must match it exactly;
//! - new tasks that were never confirmed: their ids are above its highest, so they do not count;
//! - the row `settling` with number k and some settlements: then the ledger does not bind. This is
//!   rare, because settlements reach the disk together with the next ledger.
//!
//! `values` is not counted: the row of a task says how many chunks there are. Nor is `idempotency`: a
//! lost key only allows a repeated write, which is no reason to refuse to start. A lost end of the
//! log takes the ledger with it; the [`commit_marker`](super::commit_marker) covers that.

use crate::store::local::error::Failure;
use crate::store::local::keys::{self, Tree};
use crate::store::local::rows;
use crate::task::TaskId;

/// The counted trees, in the order of their tallies.
pub(crate) const COUNTED: [Tree; 4] =
    [Tree::Tasks, Tree::Progress, Tree::DeadLetters, Tree::Replicas];

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) rows: u64,
    /// The wrapping sum of their checksums.
    pub(crate) sum: u64,
}

impl Tally {
    pub(crate) fn add(&mut self, row: &[u8]) {
        self.rows = self.rows.wrapping_add(1);
        self.sum = self.sum.wrapping_add(rows::stored_checksum(row).into());
    }

    fn take(&mut self, row: &[u8]) {
        self.rows = self.rows.wrapping_sub(1);
        self.sum = self.sum.wrapping_sub(rows::stored_checksum(row).into());
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tallies([Tally; 4]);

impl Tallies {
    pub(crate) fn of(&mut self, tree: Tree) -> Option<&mut Tally> {
        self.0.iter_mut().zip(COUNTED).find(|(_, counted)| *counted == tree).map(|(tally, _)| tally)
    }

    pub(crate) fn replace(&mut self, tree: Tree, old: Option<&[u8]>, new: Option<&[u8]>) {
        if let Some(tally) = self.of(tree) {
            old.inspect(|row| tally.take(row));
            new.inspect(|row| tally.add(row));
        }
    }

    /// Describes how `found` differs from these tallies. The sums of the trees in `broken` are not
    /// compared, because a row there has a wrong checksum.
    pub(crate) fn differ(&self, found: &Self, broken: &[Tree]) -> Option<String> {
        let all = self.0.iter().zip(&found.0).zip(COUNTED);
        let wrong: Vec<_> = all
            .filter(|((must, is), tree)| {
                must.rows != is.rows || (!broken.contains(tree) && must.sum != is.sum)
            })
            .map(|((must, is), tree)| match must.rows == is.rows {
                true => format!("the {} rows of {tree} are not those that were written", is.rows),
                false => format!("{tree} holds {} rows, expected {}", is.rows, must.rows),
            })
            .collect();
        (!wrong.is_empty()).then(|| wrong.join(", "))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ledger {
    /// Of the commit that it closes.
    pub(crate) number: u64,
    /// Tasks above it are not counted.
    pub(crate) highest: TaskId,
    pub(crate) tallies: Tallies,
}

impl Ledger {
    /// The payload of the row in `meta`: ten big endian numbers.
    pub(crate) fn payload(&self) -> Vec<u8> {
        let tallies = self.tallies.0.iter().flat_map(|tally| [tally.rows, tally.sum]);
        let numbers = [self.number, self.highest.0].into_iter().chain(tallies);
        numbers.flat_map(u64::to_be_bytes).collect()
    }

    pub(crate) fn read(payload: &[u8]) -> Option<Self> {
        let (numbers, rest) = payload.as_chunks::<8>();
        let numbers: Vec<_> = numbers.iter().map(|bytes| u64::from_be_bytes(*bytes)).collect();
        let &[number, highest, ref tallies @ ..] = &*numbers else {
            return None;
        };
        let (tallies, odd) = tallies.as_chunks::<2>();
        if !rest.is_empty() || !odd.is_empty() {
            return None;
        }
        let mut tallies: Vec<_> = tallies.iter().map(|&[rows, sum]| Tally { rows, sum }).collect();
        if tallies.len() == 3 {
            // Format 2, read before its migration.
            tallies.push(Tally::default());
        }
        let tallies = Tallies(tallies.try_into().ok()?);
        Some(Self { number, highest: TaskId(highest), tallies })
    }

    /// Reads the row in `meta`; `None` before format 2.
    pub(crate) fn load(meta: &sled::Tree) -> Result<Option<Self>, Failure> {
        rows::read_meta(meta, keys::LEDGER, Self::read)
    }
}

/// Whether the trees must match the ledger: not if settlements follow it.
pub(crate) fn binds(ledger: &Ledger, meta: &sled::Tree) -> Result<bool, Failure> {
    Ok(rows::read_meta(meta, keys::SETTLING, rows::number)? != Some(ledger.number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ledger_is_ten_numbers_and_comes_back() {
        let tallies = Tallies::default();
        let mut ledger = Ledger { number: 3, highest: TaskId(7), tallies };
        let row = rows::seal(Tree::Tasks, b"k", b"payload");
        ledger.tallies.of(Tree::Tasks).unwrap().add(&row);
        let sum = u32::from_be_bytes(row[1..5].try_into().unwrap());
        let payload = ledger.payload();
        let mut golden = [0u8; 80];
        golden[7] = 3;
        golden[15] = 7;
        golden[23] = 1;
        golden[28..32].copy_from_slice(&sum.to_be_bytes());
        assert_eq!(payload, golden);
        assert_eq!(Ledger::read(&payload), Some(ledger));
        // Of format 2.
        assert_eq!(Ledger::read(&payload[..64]), Some(ledger));
        for wrong in [&payload[..63], &payload[..72], &[&payload[..], &[0; 16]].concat(), &[]] {
            assert_eq!(Ledger::read(wrong), None);
        }
    }

    #[test]
    fn a_difference_names_the_tree_and_both_numbers() {
        let row = rows::seal(Tree::Progress, b"k", b"payload");
        let (mut must, mut is) = (Tallies::default(), Tallies::default());
        must.replace(Tree::Progress, None, Some(&row));
        assert_eq!(must.differ(&is, &[]).unwrap(), "progress holds 0 rows, expected 1");
        is.replace(Tree::Progress, None, Some(&rows::seal(Tree::Progress, b"k", b"other")));
        let text = must.differ(&is, &[]).unwrap();
        assert_eq!(text, "the 1 rows of progress are not those that were written");
        assert_eq!(must.differ(&is, &[Tree::Tasks]).as_ref(), Some(&text));
        assert_eq!(must.differ(&is, &[Tree::Progress]), None);
        is.replace(Tree::Progress, Some(&rows::seal(Tree::Progress, b"k", b"other")), Some(&row));
        assert_eq!(must.differ(&is, &[]), None);
        // Not counted, so it changes nothing.
        is.replace(Tree::Values, None, Some(&row));
        assert_eq!(must, is);
    }
}
