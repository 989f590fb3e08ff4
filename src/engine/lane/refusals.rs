//! Whether a replica refuses writes, and when its refused dead letters are tried again.

use std::time::Duration;

use crate::engine::Moment;

/// The wait before the first try. It doubles with each try.
const FIRST_TRY: Duration = Duration::from_secs(1);
/// The maximum wait: how long a replica without other traffic can accept writes again without being
/// noticed.
const LAST_TRY: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(in crate::engine) struct LaneRefusals {
    /// The first refusal since the replica accepted a write.
    refused_at: Option<Moment>,
    /// It accepted a write since a letter was refused.
    accepted: bool,
    /// When dead letters are tried again; `None` if none waits for that.
    due: Option<Moment>,
    wait: Duration,
    /// A letter was refused although another write had been accepted: the replica refuses only some
    /// writes. So an accepted write does not show that the letters would be accepted.
    selective: bool,
}

impl Default for LaneRefusals {
    fn default() -> Self {
        Self { refused_at: None, accepted: false, due: None, wait: FIRST_TRY, selective: false }
    }
}

impl LaneRefusals {
    /// Whether the last known answer is a refusal.
    pub(in crate::engine) fn is_refusing(&self) -> bool {
        self.refused_at.is_some()
    }

    pub(in crate::engine) fn due(&self) -> Option<Moment> {
        self.due
    }

    /// Whether the letters take turns as the probe, because the oldest may be refused for itself.
    pub(in crate::engine) fn take_turns(&self) -> bool {
        self.selective || self.wait >= LAST_TRY
    }

    /// The replica refused a write. `again`: it was a refused letter. Returns when the next letter
    /// is tried.
    pub(in crate::engine) fn refused(&mut self, now: Moment, again: bool) -> Moment {
        let accepts_others = self.refused_at.is_none() || self.accepted;
        if again && accepts_others && !self.selective {
            // The next pass leaves this letter for last.
            self.selective = true;
        } else {
            self.refused_at.get_or_insert(now);
        }
        self.accepted &= !again;
        *self.due.get_or_insert(now.after(self.wait))
    }

    /// The replica acknowledged a write that was sent at `sent_at`. `redriven`: it was a dead letter.
    /// Returns when the letters that wait are tried.
    pub(in crate::engine) fn accepted(
        &mut self,
        now: Moment,
        sent_at: Moment,
        redriven: bool,
    ) -> Option<Moment> {
        if !redriven && self.refused_at.is_some_and(|refused_at| sent_at < refused_at) {
            return None;
        }
        (self.refused_at, self.accepted) = (None, true);
        if redriven {
            (self.selective, self.wait) = (false, FIRST_TRY);
        }
        if !self.selective {
            self.due = self.due.map(|due| due.min(now));
        }
        self.due
    }

    /// The letters that wait are tried at `at`, and it is not known whether the replica accepts
    /// them.
    pub(in crate::engine) fn try_at(&mut self, now: Moment, at: Moment) {
        self.refused_at.get_or_insert(now);
        self.due = Some(at);
    }

    /// The credentials or the address have changed. Returns whether letters wait for that.
    pub(in crate::engine) fn renewed(&mut self, now: Moment) -> bool {
        if self.due.is_some() {
            *self = Self { refused_at: self.refused_at, due: Some(now), ..Self::default() };
        }
        self.due.is_some()
    }

    /// One letter is tried, as the probe. Returns when the next one is.
    pub(in crate::engine) fn probed(&mut self, now: Moment) -> Moment {
        self.wait = (self.wait * 2).min(LAST_TRY);
        let next = now.after(self.wait);
        self.due = Some(next);
        next
    }

    /// A pass over all letters starts.
    pub(in crate::engine) fn passes(&mut self) {
        self.wait = (self.wait * 2).min(LAST_TRY);
        self.due = None;
    }
}
