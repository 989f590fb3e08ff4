//! How many rows there must be: what tells a row that has vanished from one that was removed.
//!
//! A row that is there proves itself by its checksum; one that is not there proves nothing. And
//! sled takes a damaged message in its log for the end of an interrupted write: what follows in
//! that segment, or in the whole log, is dropped in silence. So the store counts. For each tree
//! that is counted, the ledger has the number of rows and the sum of their checksums,
//! updated with every row that is written or removed, and written as a row itself at the end of
//! every commit, with the number of that commit and the highest task in it:
//!
//! ```text
//! settling k-1 · settlements · new tasks · ledger k · flush · settling k · settlements · …
//! ```
//!
//! What survives is a prefix of that. Behind the newest ledger, k, there may be
//!
//! - nothing: the trees must hold exactly what it says;
//! - new tasks that nobody was told of: their ids are above its highest, so they are not counted;
//! - the marker `settling` with the same number, and some of the settlements. Which of them, no
//!   ledger says yet, so nothing can be demanded then. It takes a cut within one write of sled's
//!   for that: settlements reach the disk together with the ledger that follows them.
//!
//! The rows of `replicas` are counted too, as a pause that vanished would be a replica that is
//! written to again, and a rename that vanished the writes of one replica sent to another. They
//! change like settlements, behind the marker.
//!
//! Chunks of values need no count: their task says how many there are. Idempotency keys have none: one
//! that vanished lets a write be repeated, which the contract allows, and that is no reason to refuse
//! to start.
//!
//! A loss of the log's end takes ledger and rows together. Against that there is the
//! [`commit_marker`](super::commit_marker).

use std::fmt;

use crate::store::local::error::Failure;
use crate::store::local::keys::{self, Tree};
use crate::store::local::rows;
use crate::task::TaskId;

/// The trees that are counted, in the order of their tallies.
pub(in crate::store::local) const COUNTED: [Tree; 4] =
    [Tree::Tasks, Tree::Progress, Tree::DeadLetters, Tree::Replicas];

/// What a tree holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::store::local) struct Tally {
    /// Rows.
    pub(in crate::store::local) rows: u64,
    /// Their checksums, added up and wrapping.
    pub(in crate::store::local) sum: u64,
}

impl Tally {
    pub(in crate::store::local) fn add(&mut self, row: &[u8]) {
        self.rows = self.rows.wrapping_add(1);
        self.sum = self.sum.wrapping_add(rows::checksum_in(row).into());
    }

    fn take(&mut self, row: &[u8]) {
        self.rows = self.rows.wrapping_sub(1);
        self.sum = self.sum.wrapping_sub(rows::checksum_in(row).into());
    }
}

/// What the trees together hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::store::local) struct Tallies([Tally; 4]);

impl Tallies {
    /// That of a tree; `None` if it is not counted.
    pub(in crate::store::local) fn of(&mut self, tree: Tree) -> Option<&mut Tally> {
        self.0.iter_mut().zip(COUNTED).find(|(_, counted)| *counted == tree).map(|(tally, _)| tally)
    }

    /// A row takes the place of another, or of none.
    pub(in crate::store::local) fn replace(
        &mut self,
        tree: Tree,
        old: Option<&[u8]>,
        new: Option<&[u8]>,
    ) {
        if let Some(tally) = self.of(tree) {
            old.inspect(|row| tally.take(row));
            new.inspect(|row| tally.add(row));
        }
    }

    /// Where `found` is not what there must be, in words. The sums of the trees in `broken` say
    /// nothing: a row there has a wrong checksum.
    pub(in crate::store::local) fn differ(&self, found: &Self, broken: &[Tree]) -> Option<String> {
        let all = self.0.iter().zip(&found.0).zip(COUNTED);
        let wrong: Vec<_> = all
            .filter(|((must, is), tree)| {
                must.rows != is.rows || (!broken.contains(tree) && must.sum != is.sum)
            })
            .map(|((must, is), tree)| match must.rows == is.rows {
                true => format!("the {} rows of {tree} are not those that were written", is.rows),
                false => format!("{tree} holds {} rows where {} must be", is.rows, must.rows),
            })
            .collect();
        (!wrong.is_empty()).then(|| wrong.join(", "))
    }
}

impl fmt::Display for Tallies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (tally, tree)) in self.0.iter().zip(COUNTED).enumerate() {
            let comma = if at > 0 { ", " } else { "" };
            write!(f, "{comma}{tree} {}", tally.rows)?;
        }
        Ok(())
    }
}

/// The row of this name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store::local) struct Ledger {
    /// The number of the commit that it closes.
    pub(in crate::store::local) number: u64,
    /// The highest task in this commit or an earlier one. What is above is not counted.
    pub(in crate::store::local) highest: TaskId,
    /// What the trees hold up to that task.
    pub(in crate::store::local) tallies: Tallies,
}

impl Ledger {
    /// As it lies in `meta`: ten big endian numbers.
    pub(in crate::store::local) fn payload(&self) -> Vec<u8> {
        let tallies = self.tallies.0.iter().flat_map(|tally| [tally.rows, tally.sum]);
        let numbers = [self.number, self.highest.0].into_iter().chain(tallies);
        numbers.flat_map(u64::to_be_bytes).collect()
    }

    pub(in crate::store::local) fn read(payload: &[u8]) -> Option<Self> {
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
            // Of format 2, which is looked at before it is brought up to date.
            tallies.push(Tally::default());
        }
        let tallies = Tallies(tallies.try_into().ok()?);
        Some(Self { number, highest: TaskId(highest), tallies })
    }

    /// The one in `meta`; `None` before format 2.
    pub(in crate::store::local) fn load(meta: &sled::Tree) -> Result<Option<Self>, Failure> {
        let key = keys::LEDGER;
        let Some(row) = meta.get(key)? else {
            return Ok(None);
        };
        let ledger = Self::read(rows::unseal(Tree::Meta, key, &row)?);
        Ok(Some(ledger.ok_or_else(|| rows::damage(Tree::Meta, key, "does not decode"))?))
    }
}

/// Whether the trees must hold what the ledger says: not if settlements were cut after it.
pub(in crate::store::local) fn binds(ledger: &Ledger, meta: &sled::Tree) -> Result<bool, Failure> {
    let key = keys::SETTLING;
    let Some(row) = meta.get(key)? else {
        return Ok(true);
    };
    let payload = rows::unseal(Tree::Meta, key, &row)?;
    let number =
        payload.try_into().map_err(|_| rows::damage(Tree::Meta, key, "does not decode"))?;
    Ok(u64::from_be_bytes(number) != ledger.number)
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
        assert_eq!(must.differ(&is, &[]).unwrap(), "progress holds 0 rows where 1 must be");
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
