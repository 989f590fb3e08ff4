//! Who owns a partition: claims, leases and checkpoints, as a pure state machine.
//!
//! The checkpoints of a partition are a chain: each is written by compare-and-set on the sequence of
//! the one before it. So of two writers only one continues the chain, and the other notices it.
//!
//! - A **claim** is a checkpoint with the next epoch. Its writer owns the partition.
//! - The owner holds the **lease** until it sent its last acknowledged checkpoint, and one lease length
//!   after that. It writes a checkpoint at least every fifth of that length.
//! - Others claim when they have read the same checkpoint for 1.1 lease lengths. They received it after
//!   the owner had sent it, and the compare-and-set proves that none came in between. So the lease has
//!   ended: reads may be stale and clocks may differ, if they run equally fast within a tenth.
//! - If it is unknown whether a checkpoint was stored, the last one tells. It is sent again unchanged
//!   until either is certain.
//!
//! `partition.rs` carries the steps out.

use std::time::Duration;

use super::checkpoint::Checkpoint;
use crate::lease::BootTime;

/// Where a partition stands for this process.
#[derive(Debug)]
pub(super) struct Tenure {
    process: u64,
    lease: Duration,
    /// The last checkpoint that was ever seen. A read of an older one is stale.
    newest: u64,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Another instance may own it.
    Following {
        last: Option<Seen>,
        next_look: Option<BootTime>,
    },
    Claiming(SentCheckpoint),
    Owning {
        epoch: u64,
        /// Of the last stored checkpoint, or of one that was refused since.
        counter: u64,
        sequence: u64,
        sent: BootTime,
        next: Option<SentCheckpoint>,
    },
}

/// The last checkpoint that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    sequence: u64,
    epoch: u64,
    is_released: bool,
    /// When it was first received.
    received: BootTime,
    /// Its writer was running: an older one was read before it.
    is_news: bool,
}

/// A checkpoint that is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct SentCheckpoint {
    epoch: u64,
    counter: u64,
    /// The sequence of the checkpoint before it; 0 if there is none.
    expected: u64,
    /// The first time.
    at: BootTime,
    is_last: bool,
    fate: Fate,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// The answer is awaited.
    Awaited,
    /// To be read from the last checkpoint.
    Unknown,
    /// Was not the last one: to be sent again.
    Again,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing before this time, unless something happens.
    Wait(BootTime),
    /// Wait for an answer.
    Await,
    /// Read the last checkpoint, then call [`Tenure::looked`].
    Look,
    /// Send this checkpoint, then call [`Tenure::stored`], [`Tenure::refused`], [`Tenure::full`] or
    /// [`Tenure::unknown`].
    Write(Link),
}

/// The place of a checkpoint in the chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) epoch: u64,
    pub(super) counter: u64,
    /// The sequence of the checkpoint before it; 0 if there is none.
    pub(super) expected: u64,
    /// SentCheckpoint before: its content must be the same.
    pub(super) is_repeat: bool,
    /// Gives the partition up. The next owner may claim it as soon as this is stored, so the lease must
    /// end before it is sent.
    pub(super) is_last: bool,
}

/// What the owner wants to write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Wish {
    /// This process may claim it, so long after it could be claimed at first.
    pub(super) claim: Option<Duration>,
    /// There are settlements, and they have waited long enough.
    pub(super) settle: bool,
    /// Give it up.
    pub(super) release: bool,
}

/// What an answer means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    None,
    /// This process owns the partition. The claim has this sequence.
    Claimed {
        epoch: u64,
        sequence: u64,
        until: BootTime,
    },
    /// A checkpoint is stored, with all that was sent with it.
    Stored {
        sequence: u64,
        until: BootTime,
    },
    /// Another instance owns the partition, or the last checkpoint of this one is stored.
    Lost,
}

impl Tenure {
    pub(super) fn new(process: u64, lease: Duration) -> Self {
        let state = State::Following { last: None, next_look: None };
        Self { process, lease, newest: 0, state }
    }

    /// How long the same checkpoint must be the last one before a claim.
    fn patience(&self) -> Duration {
        self.lease + self.lease / 10
    }

    pub(super) fn is_owner(&self) -> bool {
        matches!(self.state, State::Owning { .. })
    }

    /// Whether another instance owns it and has written lately.
    pub(super) fn is_owned_elsewhere(&self, now: BootTime) -> bool {
        match self.state {
            State::Following { last: Some(seen), .. } => {
                seen.is_news && !seen.is_released && now < seen.received + self.patience()
            }
            _ => false,
        }
    }

    /// Whether no checkpoint of this process is on its way.
    pub(super) fn is_idle(&self) -> bool {
        matches!(self.state, State::Following { .. })
    }

    pub(super) fn next(&mut self, now: BootTime, wish: Wish) -> Step {
        let (lease, patience) = (self.lease, self.patience());
        let sent = match &mut self.state {
            State::Following { last, next_look } => {
                let Some(look) = *next_look else {
                    *next_look = Some(now + lease / 4);
                    return Step::Look;
                };
                let mut until = look;
                if let (Some(seen), Some(wait)) = (*last, wish.claim) {
                    let lapses = if seen.is_released { Duration::ZERO } else { patience };
                    let claim = seen.received + lapses + wait;
                    if claim <= now {
                        let sent =
                            SentCheckpoint::new(seen.epoch + 1, 0, seen.sequence, now, false);
                        self.state = State::Claiming(sent);
                        return Step::Write(sent.link());
                    }
                    until = until.min(claim);
                }
                if now < look {
                    return Step::Wait(until);
                }
                *next_look = Some(now + lease / 4);
                return Step::Look;
            }
            State::Claiming(sent) | State::Owning { next: Some(sent), .. } => sent,
            State::Owning { epoch, counter, sequence, sent, next: next @ None } => {
                let due = *sent + lease / 5;
                if now < due && !wish.settle && !wish.release {
                    return Step::Wait(due);
                }
                let sent = SentCheckpoint::new(*epoch, *counter + 1, *sequence, now, wish.release);
                *next = Some(sent);
                return Step::Write(sent.link());
            }
        };
        match sent.fate {
            Fate::Awaited => Step::Await,
            Fate::Unknown => Step::Look,
            Fate::Again => {
                sent.fate = Fate::Awaited;
                Step::Write(Link { is_repeat: true, ..sent.link() })
            }
        }
    }

    /// There is news of another instance: look at once.
    pub(super) fn look_now(&mut self) {
        if let State::Following { next_look, .. } = &mut self.state {
            *next_look = None;
        }
    }

    /// The checkpoint on its way is stored.
    pub(super) fn stored(&mut self, sequence: u64) -> Change {
        let (State::Claiming(sent) | State::Owning { next: Some(sent), .. }) = self.state else {
            return Change::None;
        };
        let is_claim = matches!(self.state, State::Claiming(_));
        let SentCheckpoint { epoch, counter, at, is_last, .. } = sent;
        self.newest = self.newest.max(sequence);
        if is_last {
            self.follow();
            return Change::Lost;
        }
        self.state = State::Owning { epoch, counter, sequence, sent: at, next: None };
        let until = at + self.lease;
        match is_claim {
            true => Change::Claimed { epoch, sequence, until },
            false => Change::Stored { sequence, until },
        }
    }

    /// The checkpoint on its way was not stored: it did not follow the last one.
    pub(super) fn refused(&mut self) {
        self.unknown();
    }

    /// It is not known whether the checkpoint on its way was or will be stored.
    pub(super) fn unknown(&mut self) {
        if let State::Claiming(sent) | State::Owning { next: Some(sent), .. } = &mut self.state {
            sent.fate = Fate::Unknown;
        }
    }

    /// The checkpoint on its way was refused, because the log has no room for what came with it. Another
    /// one takes its place, with a number of its own: a copy of the refused one that was sent earlier may
    /// still be stored, and has another content.
    pub(super) fn full(&mut self) {
        match &mut self.state {
            State::Owning { counter, next: next @ Some(_), .. } => {
                *counter = next.take().map_or(*counter, |sent| sent.counter);
            }
            // A claim has only its checkpoint.
            State::Following { .. } | State::Claiming(_) | State::Owning { .. } => self.unknown(),
        }
    }

    /// A read of the last checkpoint was received at `now`. It may be stale.
    pub(super) fn looked(&mut self, now: BootTime, last: Option<(u64, &Checkpoint)>) -> Change {
        let seen = |last: Option<(u64, &Checkpoint)>| match last {
            Some((sequence, checkpoint)) => Seen {
                sequence,
                epoch: checkpoint.epoch,
                is_released: checkpoint.is_released,
                received: now,
                is_news: false,
            },
            // No instance has ever owned it.
            None => {
                let is_released = true;
                Seen { sequence: 0, epoch: 0, is_released, received: now, is_news: false }
            }
        };
        // Not even to be compared with: of this process there may be older ones that look the same.
        let is_stale = last.map_or(0, |(sequence, _)| sequence) < self.newest;
        self.newest = self.newest.max(last.map_or(0, |(sequence, _)| sequence));
        match &mut self.state {
            State::Following { .. } if is_stale => Change::None,
            State::Following { last: known, .. } => {
                let new = seen(last);
                if known.is_none_or(|known| known.sequence < new.sequence) {
                    *known = Some(Seen { is_news: known.is_some(), ..new });
                }
                Change::None
            }
            State::Claiming(sent) | State::Owning { next: Some(sent), .. } => {
                let sequence = last.map_or(0, |(sequence, _)| sequence);
                if sequence <= sent.expected {
                    // Not stored yet, or a stale read.
                    sent.fate = Fate::Again;
                    return Change::None;
                }
                let Some((_, checkpoint)) = last else { return Change::None };
                let is_mine = checkpoint.writer.process == self.process
                    && (checkpoint.epoch, checkpoint.counter) == (sent.epoch, sent.counter);
                if is_mine {
                    return self.stored(sequence);
                }
                let was_owner = self.is_owner();
                let new = seen(last);
                self.follow();
                if let State::Following { last, .. } = &mut self.state {
                    *last = Some(Seen { is_news: true, ..new });
                }
                if was_owner { Change::Lost } else { Change::None }
            }
            State::Owning { next: None, .. } => Change::None,
        }
    }

    /// Nothing is known any more.
    fn follow(&mut self) {
        self.state = State::Following { last: None, next_look: None };
    }
}

impl SentCheckpoint {
    fn new(epoch: u64, counter: u64, expected: u64, at: BootTime, is_last: bool) -> Self {
        Self { epoch, counter, expected, at, is_last, fate: Fate::Awaited }
    }

    fn link(&self) -> Link {
        let Self { epoch, counter, expected, is_last, .. } = *self;
        Link { epoch, counter, expected, is_repeat: false, is_last }
    }
}

#[cfg(test)]
mod tests;
