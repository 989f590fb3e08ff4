//! A partition that this process owns: what was read, what is settled, what must be written.

#![expect(clippy::disallowed_methods, reason = "waits, which the clock of the loop has no part in")]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::mem;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use tracing::{error, info, warn};

use super::checkpoint::{LogPlace, OpenTask, PartitionLevels, Settled, SettledIndex, Unsettled};
use super::copying::Cleaning;
use super::message::{self, MessageError, Nonce};
use super::names::{StreamNames, task_id};
use super::protocol::{LogMessage, Outgoing};
use super::reader::{LogTurn, LoggedTask, PartitionRecovery, Reader, RecoveredHead, RecoveredTask};
use super::standing::TaskSettlement;
use crate::lease::{BootTime, Lease};
use crate::store::journal::{JournalEvent, Reply};
use crate::store::records::CommitError;
use crate::task::{Consistency, Idempotency, Partition, Progress};

mod cleaning;
mod holes;
mod keys;
mod recent;
mod refused;

use recent::RecentNonces;
use refused::GroupUndo;

/// How long settlements wait for others, and how many do not wait. A checkpoint costs the servers as much
/// as several writes; one in this time is written in any case, with the default of `--lease`. A crash repeats
/// the deliveries of this time, and a settled task keeps its place in the queue of the cluster until then.
const GATHER: Duration = Duration::from_millis(400);
const GATHERED: usize = 128;

/// Of the unsettled tasks, such a part does not wait either: a checkpoint looks at all of them.
const GATHERED_PART: usize = 256;

/// The most progress rows of a group, and their bytes.
const MAX_ROWS: usize = 900;
const MAX_ROW_BYTES: usize = 512 << 10;

/// How long a gap may be filled by what this process stores or another one passes on, before the log is
/// read.
const GAP: Duration = Duration::from_millis(10);

/// Before a read of the log that found nothing or failed is repeated.
const READ_AGAIN: Duration = Duration::from_millis(20);

/// Tasks in one event of a claim.
const CLAIMED_AT_ONCE: usize = 256;

/// Settled tasks with an idempotency key whose answer is still taken.
const MAX_KEYED: usize = 10_000;

pub(super) struct Owned {
    pub(super) epoch: u64,
    pub(super) lease: Lease,
    partition: Partition,
    since: Instant,
    stage: OwnedStage,
    reader: Reader,
    is_reading: bool,
    /// The next read begins no sooner.
    read_at: Option<Instant>,
    gap_since: Option<Instant>,
    unsettled: Unsettled,
    /// Of tasks that were settled since the last purge.
    pub(super) settled_bytes: u64,
    pending: BTreeMap<u64, TaskSettlement>,
    pending_since: Option<Instant>,
    /// Settlements that came, and how many of the first ones a group has, and are durable.
    came: u64,
    grouped: u64,
    durable: u64,
    syncs: Vec<(u64, Reply)>,
    /// Tasks with an idempotency key. Settled ones stay until there are many.
    keyed: BTreeMap<u64, KeyedTask>,
    /// Those that are settled, in the order of their settlements.
    settled_keyed: VecDeque<u64>,
    /// The processes that wait for the answers of strong writes.
    awaited: BTreeMap<u64, u64>,
    /// Those whose key may lack their id. They must not be settled: a repeat looks for them.
    unbound: BTreeSet<u64>,
    /// Those whose key may lack the answer to their strong write. The same holds for them.
    unanswered: BTreeSet<u64>,
    /// To be reported: up to where the tasks have arrived.
    pub(super) reports_caught_up: bool,
    to_bind: Vec<u64>,
    recent: RecentNonces,
    /// What the messages of the batch on its way are, without its checkpoint.
    sent: Vec<SentRow>,
    undo: GroupUndo,
    /// Fewer after the log was full, and then groups wait: it may refuse the next one, too.
    most_rows: usize,
    not_before: Option<Instant>,
    cleaning: Cleaning,
    /// Messages that the log of a server lacks, to be looked for on all.
    holes: Vec<u64>,
    /// All servers lack the same up to this one.
    holes_known: u64,
    /// Messages that are missing, and were not reported yet.
    missing: u64,
    /// A message has a version that this binary does not know. It and those behind it stay unread.
    is_unreadable: bool,
}

/// What to read of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum LogRead {
    /// From this message on, from any server.
    From(u64),
    /// These, from whichever server has them.
    Missing(Vec<u64>),
}

/// A message of a batch, by the id of its task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SentRow {
    Progress(u64),
    Copy(u64),
}

#[derive(Clone, Debug)]
pub(super) struct KeyedTask {
    pub(super) idempotency: Idempotency,
    pub(super) consistency: Consistency,
    pub(super) nonce: Nonce,
}

enum OwnedStage {
    /// Reads the unsettled tasks up to the claim.
    Recovering {
        claim: u64,
        settled: Settled,
        levels: PartitionLevels,
        recovery: Box<PartitionRecovery>,
        index: Box<SettledIndex>,
    },
    Live,
}

/// The content of a checkpoint, and the progress rows before it.
#[derive(Default)]
pub(super) struct Group {
    pub(super) rows: Vec<Outgoing>,
    pub(super) settled: Settled,
    pub(super) levels: PartitionLevels,
}

impl Owned {
    pub(super) fn claimed(
        partition: Partition,
        epoch: u64,
        claim: u64,
        settled: Settled,
        levels: PartitionLevels,
    ) -> Self {
        let reader = Reader::after(settled.floor);
        let recovery = Box::<PartitionRecovery>::default();
        Self {
            epoch,
            lease: Lease::new(),
            partition,
            since: Instant::now(),
            stage: OwnedStage::Recovering {
                claim,
                index: Box::new(settled.index()),
                settled,
                levels,
                recovery,
            },
            reader,
            is_reading: false,
            read_at: None,
            gap_since: None,
            unsettled: Unsettled::default(),
            settled_bytes: 0,
            pending: BTreeMap::new(),
            pending_since: None,
            came: 0,
            grouped: 0,
            durable: 0,
            syncs: Vec::new(),
            keyed: BTreeMap::new(),
            settled_keyed: VecDeque::new(),
            awaited: BTreeMap::new(),
            unbound: BTreeSet::new(),
            unanswered: BTreeSet::new(),
            reports_caught_up: false,
            to_bind: Vec::new(),
            recent: RecentNonces::default(),
            sent: Vec::new(),
            undo: GroupUndo::default(),
            most_rows: usize::MAX,
            not_before: None,
            cleaning: Cleaning::default(),
            holes: Vec::new(),
            holes_known: 0,
            missing: 0,
            is_unreadable: false,
        }
    }

    /// Whether its tasks were passed to the engine.
    pub(super) fn is_live(&self) -> bool {
        matches!(self.stage, OwnedStage::Live)
    }

    pub(super) fn acked(&mut self, sequence: u64, task: LoggedTask) {
        self.reader.acked(sequence, task);
    }

    pub(super) fn note_stored(&mut self, sequence: u64) {
        self.reader.note_stored(sequence);
    }

    pub(super) fn settle(&mut self, sequence: u64, settlement: TaskSettlement) {
        self.came += 1;
        if self.is_live() && self.unsettled.get(sequence).is_some() {
            self.pending.insert(sequence, settlement);
            self.pending_since.get_or_insert_with(Instant::now);
        } else if self.pending.is_empty() {
            self.grouped = self.came;
        }
    }

    /// Calls `reply` once all settlements so far are durable.
    pub(super) fn sync(&mut self, reply: Reply) {
        self.syncs.push((self.came, reply));
        self.answer_syncs();
    }

    fn answer_syncs(&mut self) {
        let durable = self.durable;
        let (done, rest) =
            mem::take(&mut self.syncs).into_iter().partition(|(at, _)| *at <= durable);
        self.syncs = rest;
        let done: Vec<(u64, Reply)> = done;
        done.into_iter().for_each(|(_, reply)| reply(Ok(())));
    }

    /// When a group should be written; `None` without settlements.
    pub(super) fn group_due(&self) -> Option<Instant> {
        // Nothing can be written before its key is.
        let waits = self.pending.first_key_value().is_some_and(|(sequence, settlement)| {
            matches!(settlement, TaskSettlement::Remove) && self.lacks_its_key(*sequence)
        });
        let many = GATHERED.max(self.unsettled.len() / GATHERED_PART);
        let is_due = !waits && (!self.syncs.is_empty() || self.pending.len() >= many);
        let wait = if is_due { Duration::ZERO } else { GATHER };
        let settlements = self.pending_since.map(|since| since + wait);
        // Copies wait for nothing.
        let copies = self.cleaning.has_ready().then_some(self.since);
        let due = settlements.into_iter().chain(copies).min()?;
        Some(self.not_before.map_or(due, |earliest| due.max(earliest)))
    }

    /// Whether one group has all that is left. Of what waits for a key, only if `awaits_keys`.
    pub(super) fn may_release(&self, awaits_keys: bool) -> bool {
        let mut lacking = self.unbound.iter().chain(&self.unanswered);
        if awaits_keys && lacking.any(|sequence| self.pending.contains_key(sequence)) {
            return false;
        }
        let bytes = |settlement: &TaskSettlement| match settlement {
            TaskSettlement::Remove => 0,
            TaskSettlement::Save(progress) => {
                message::progress(progress).map_or(0, |row| row.len())
            }
        };
        let has_key = |sequence: u64, settlement: &TaskSettlement| {
            !matches!(settlement, TaskSettlement::Remove) || !self.lacks_its_key(sequence)
        };
        // The group ends before the first one that lacks its key.
        let taken = self.pending.iter().take_while(|(id, settlement)| has_key(**id, settlement));
        let (rows, bytes) = taken
            .map(|(_, settlement)| bytes(settlement))
            .fold((0, 0), |(rows, sum), bytes| (rows + 1, sum + bytes));
        rows <= self.most_rows.min(MAX_ROWS / 4) && bytes <= MAX_ROW_BYTES
    }

    /// Takes settlements, from the oldest task on.
    pub(super) fn group(&mut self, names: &StreamNames) -> Group {
        if let OwnedStage::Recovering { settled, levels, .. } = &self.stage {
            return Group { rows: Vec::new(), settled: settled.clone(), levels: *levels };
        }
        let (mut rows, mut bytes) = (Vec::new(), 0);
        let most_rows = self.most_rows.min(MAX_ROWS);
        self.sent.clear();
        while let Some((sequence, settlement)) = self.pending.pop_first() {
            let row = match &settlement {
                TaskSettlement::Remove if self.lacks_its_key(sequence) => None,
                TaskSettlement::Remove => {
                    self.note(sequence, Some(settlement));
                    self.settled_bytes += self.unsettled.settle(sequence);
                    self.keep_key(sequence);
                    continue;
                }
                TaskSettlement::Save(progress) => {
                    if let Some(deliveries) = self.unsettled.listed(sequence, progress) {
                        self.note(sequence, Some(settlement));
                        self.unsettled.list(sequence, deliveries);
                        continue;
                    }
                    match message::progress(progress) {
                        Ok(row) => Some((row, is_dead(progress))),
                        Err(error) => {
                            error!(%error, "progress cannot be encoded");
                            continue;
                        }
                    }
                }
            };
            let fits = |row: &Bytes| rows.len() < most_rows && bytes + row.len() <= MAX_ROW_BYTES;
            let Some((row, is_dead)) = row.filter(|(row, _)| fits(row)) else {
                self.pending.insert(sequence, settlement);
                break;
            };
            self.note(sequence, Some(settlement));
            bytes += row.len();
            self.unsettled.progress(sequence, LogPlace::Sent, row.len());
            self.unsettled.mark(sequence, is_dead);
            let subject = names.progress(self.partition, sequence);
            rows.push(Outgoing::new(subject, row).replacing());
            self.sent.push(SentRow::Progress(sequence));
        }
        if self.pending.is_empty() {
            (self.pending_since, self.grouped) = (None, self.came);
        } else {
            self.pending_since = Some(Instant::now());
        }
        self.add_copies(names, &mut rows);
        let (settled, levels) = (self.unsettled.settled(), self.unsettled.levels());
        Group { rows, settled, levels }
    }

    /// A checkpoint is stored, with the rows before it. Returns the number of copies in it, and whether
    /// the lease had ended before.
    pub(super) fn stored(&mut self, sequence: u64, until: BootTime) -> (u64, bool) {
        let had_lapsed = !self.lease.is_held();
        self.lease.extend(until);
        let is_copy = |sent: &&SentRow| matches!(sent, SentRow::Copy(_));
        let copies = self.sent.iter().filter(is_copy).count() as u64;
        let first = sequence - self.sent.len() as u64;
        for (sequence, sent) in (first..).zip(self.sent.drain(..)) {
            match sent {
                SentRow::Progress(id) => self.unsettled.progress_stored(id, sequence),
                SentRow::Copy(id) => self.unsettled.copy_stored(id, sequence),
            }
        }
        self.unsettled.copied_through(sequence);
        self.reader.wrote(first, sequence);
        self.durable = self.grouped;
        self.accepted();
        self.answer_syncs();
        (copies, had_lapsed)
    }

    /// Where to read the log from, if a read should begin now. [`Self::read`] follows.
    pub(super) fn read_from(&mut self, now: Instant) -> Option<LogRead> {
        if self.is_reading || self.read_wake(now)? > now {
            return None;
        }
        self.is_reading = true;
        Some(match self.holes.is_empty() {
            true => LogRead::From(self.reader.next()),
            false => LogRead::Missing(self.holes.clone()),
        })
    }

    /// Messages that are missing from the log, since the last call.
    pub(super) fn take_missing(&mut self) -> u64 {
        mem::take(&mut self.missing)
    }

    /// When a read should begin.
    pub(super) fn read_wake(&mut self, now: Instant) -> Option<Instant> {
        if self.is_reading || self.is_unreadable {
            return None;
        }
        let at = match self.stage {
            OwnedStage::Recovering { .. } => now,
            OwnedStage::Live if !self.holes.is_empty() => now,
            OwnedStage::Live if self.reader.has_gap() => *self.gap_since.get_or_insert(now) + GAP,
            OwnedStage::Live => {
                self.gap_since = None;
                return None;
            }
        };
        Some(self.read_at.map_or(at, |read_at| read_at.max(at)))
    }

    /// Messages of the log, in order; `None` if they could not be read. `stored` gets each task before
    /// `notify` is.
    pub(super) fn read(
        &mut self,
        names: &StreamNames,
        stored: &dyn Fn(Nonce, u64),
        messages: Option<Vec<LogMessage>>,
        notify: &dyn Fn(JournalEvent),
    ) -> Result<(), MessageError> {
        self.is_reading = false;
        self.gap_since = None;
        if self.is_unreadable {
            return Ok(());
        }
        let found = messages.as_ref().is_some_and(|messages| !messages.is_empty());
        self.read_at = (!found).then(|| Instant::now() + READ_AGAIN);
        let looked_for = if messages.is_some() { mem::take(&mut self.holes) } else { Vec::new() };
        let is_search = !looked_for.is_empty();
        self.holes_known = self.holes_known.max(looked_for.last().copied().unwrap_or(0));
        let mut turns = Vec::new();
        let mut found = 0;
        for message in messages.into_iter().flatten() {
            found += 1;
            self.recover_through(message.sequence, notify);
            if !self.own_turns(message.sequence, &mut turns) {
                break;
            }
            match &mut self.stage {
                OwnedStage::Recovering { index, recovery, .. } => {
                    if self.reader.pass(message.sequence) || is_search {
                        let read = recovery.read(names, self.partition, &message, index);
                        self.is_unreadable |= read.is_err();
                        if let Some((id, nonce)) = read? {
                            self.recent.is_first(nonce, id);
                        }
                    }
                    self.recover_through(message.sequence + 1, notify);
                }
                OwnedStage::Live => turns.extend(self.reader.read(names, self.partition, message)),
            }
        }
        if is_search {
            self.searched(&looked_for, found, notify);
        }
        self.enter(turns, stored, notify)
    }

    /// After the events of the tasks before it.
    fn report_caught_up(&mut self, notify: &dyn Fn(JournalEvent)) {
        if mem::take(&mut self.reports_caught_up) {
            let through = task_id(self.reader.next() - 1, self.partition);
            notify(JournalEvent::CaughtUp { through });
        }
    }

    /// Passes tasks on whose turn has come.
    pub(super) fn advance(
        &mut self,
        stored: &dyn Fn(Nonce, u64),
        notify: &dyn Fn(JournalEvent),
    ) -> Result<(), MessageError> {
        if !self.is_live() || self.is_unreadable {
            return Ok(());
        }
        let mut turns = Vec::new();
        while let Some(turn) = self.reader.advance() {
            turns.push(turn);
        }
        if !turns.is_empty() {
            // Another gap is a new one.
            self.gap_since = None;
        }
        let entered = self.enter(turns, stored, notify);
        if entered.is_ok() {
            self.report_caught_up(notify);
        }
        entered
    }

    fn enter(
        &mut self,
        turns: Vec<LogTurn>,
        stored: &dyn Fn(Nonce, u64),
        notify: &dyn Fn(JournalEvent),
    ) -> Result<(), MessageError> {
        let (mut tasks, mut took) = (Vec::with_capacity(turns.len()), Duration::ZERO);
        let mut result = Ok(());
        for LogTurn { sequence, task } in turns {
            let task = match task {
                Ok(task) => task,
                Err(error @ MessageError::Version(_)) => {
                    (result, self.is_unreadable) = (Err(error), true);
                    break;
                }
                Err(error) => {
                    self.unsettled.add(sequence, OpenTask::first(sequence, 0, 0));
                    self.log_unreadable(sequence, error);
                    continue;
                }
            };
            let LoggedTask { task, chunks, nonce, idempotency, awaited_by, took: this } = task;
            if !self.recent.is_first(nonce, sequence) {
                warn!(task = %task.id, "a copy of a stored task came too late and is left out");
                continue;
            }
            let open = OpenTask::first(sequence, task.weight() as u64, chunks);
            self.unsettled.add(sequence, open);
            self.add_key(sequence, idempotency, task.consistency, nonce);
            self.add_awaited(sequence, awaited_by);
            took = took.max(this);
            // Its outcome comes before its arrival.
            stored(nonce, sequence);
            tasks.push(task);
        }
        if self.is_live() && result.is_ok() {
            self.unsettled.read_through(self.reader.through());
        }
        if !tasks.is_empty() {
            notify(JournalEvent::Arrived { partition: self.partition, tasks, took });
        }
        result
    }

    /// Ends the recovery if the message before `sequence` is not before the claim.
    fn recover_through(&mut self, sequence: u64, notify: &dyn Fn(JournalEvent)) {
        let OwnedStage::Recovering { claim, .. } = self.stage else { return };
        if sequence <= claim {
            return;
        }
        if let OwnedStage::Recovering { recovery, index, .. } = &self.stage {
            self.holes = recovery.missing(index);
            if !self.holes.is_empty() {
                return;
            }
        }
        let OwnedStage::Recovering { recovery, index, .. } =
            mem::replace(&mut self.stage, OwnedStage::Live)
        else {
            return;
        };
        self.reader.pass(claim);
        self.holes_known = claim;
        self.unsettled = Unsettled::after(claim);
        let mut tasks = Vec::with_capacity(CLAIMED_AT_ONCE);
        let (partition, mut total) = (self.partition, 0);
        for (id, RecoveredTask { open, task, progress }) in recovery.finish(&index) {
            self.unsettled.add(id, open);
            if let Some((sequence, bytes)) = progress {
                self.unsettled.progress(id, LogPlace::At(sequence), bytes);
            }
            match task {
                Ok((task, RecoveredHead { nonce, awaited_by })) => {
                    self.add_awaited(id, awaited_by);
                    self.unsettled.mark(id, is_dead(&task.progress));
                    let (key, consistency) = (task.idempotency.clone(), task.header.consistency);
                    self.add_key(id, key, consistency, nonce);
                    tasks.push(task);
                    total += 1;
                }
                Err(error) => self.log_unreadable(id, error),
            }
            if tasks.len() == CLAIMED_AT_ONCE {
                let tasks = mem::replace(&mut tasks, Vec::with_capacity(CLAIMED_AT_ONCE));
                notify(JournalEvent::Claimed { partition, tasks });
            }
        }
        notify(JournalEvent::Claimed { partition, tasks });
        self.unsettled.count_deliveries();
        self.reports_caught_up = true;
        self.report_caught_up(notify);
        let (epoch, seconds) = (self.epoch, self.since.elapsed().as_secs_f64());
        info!(partition = partition.0, epoch, tasks = total, seconds, "a partition is claimed");
    }

    /// It stays in the stream, and is not delivered.
    fn log_unreadable(&self, sequence: u64, error: MessageError) {
        let task = task_id(sequence, self.partition);
        error!(%task, %error, "a task cannot be read from the store: it stays there and is not delivered");
    }

    #[cfg(test)]
    pub(super) fn unsettled_tasks(&self) -> impl Iterator<Item = (u64, &OpenTask)> {
        self.unsettled.tasks()
    }

    #[cfg(test)]
    pub(super) fn pending_tasks(&self) -> impl Iterator<Item = u64> {
        self.pending.keys().copied()
    }

    /// Ends it. All tasks stay unsettled, for the next owner.
    pub(super) fn lose(self) {
        self.lease.lose();
        self.syncs.into_iter().for_each(|(_, reply)| reply(Err(CommitError::Released)));
    }
}

/// Whether only dead letters are left of a task.
fn is_dead(progress: &[Progress]) -> bool {
    let is_over = |progress: &Progress| {
        matches!(progress, Progress::Dead(_) | Progress::Delivered | Progress::Superseded)
    };
    progress.iter().all(is_over) && progress.iter().any(|one| matches!(one, Progress::Dead(_)))
}
