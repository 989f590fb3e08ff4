//! Messages that the log of one server lacks: its files may be damaged.

use tracing::{error, warn};

use super::{Owned, OwnedStage};
use crate::store::jetstream::reader::LogTurn;
use crate::store::journal::JournalEvent;

impl Owned {
    /// Takes the turns of messages that are ahead of the log before this one. Returns false if
    /// messages in between must be looked for first.
    pub(super) fn own_turns(&mut self, sequence: u64, turns: &mut Vec<LogTurn>) -> bool {
        while self.is_live() && self.reader.next() < sequence {
            turns.extend(std::iter::from_fn(|| self.reader.advance()));
            self.holes = self.reader.holes(self.holes_known, sequence);
            if !self.holes.is_empty() {
                return false;
            }
            self.reader.skip(sequence);
        }
        self.holes.is_empty()
    }

    /// These messages were looked for, and some were found.
    pub(super) fn searched(&mut self, holes: &[u64], found: usize, notify: &dyn Fn(JournalEvent)) {
        let partition = self.partition.0;
        if found > 0 {
            warn!(
                partition,
                found,
                "a server lacks messages of a partition that another one has: its files are damaged, replace its store_dir"
            );
        }
        let missing = match &mut self.stage {
            OwnedStage::Recovering { recovery, .. } => recovery.looked_for(holes),
            OwnedStage::Live => holes.len() - found.min(holes.len()),
        };
        if missing > 0 {
            let (first, last) = (holes.first(), holes.last());
            error!(
                partition,
                missing,
                first,
                last,
                "messages of a partition are missing from its log: writes that were accepted may be lost; are files of a server damaged?"
            );
            self.missing += missing as u64;
        }
        if let OwnedStage::Recovering { claim, .. } = self.stage {
            self.recover_through(claim + 1, notify);
        }
    }
}
