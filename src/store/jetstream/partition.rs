//! The task of one partition: claims it, reads its log, settles, and gives it up.
//!
//! All inputs come through one channel, and each is handled at once. Requests to the servers run beside
//! it; their results are inputs. `tenure.rs` decides about ownership, `reader.rs` puts the messages into
//! their order, `owned.rs` and `checkpoint.rs` know what is settled.
//!
//! **Settlements** are gathered. A group is one atomic batch: the progress of tasks, then the
//! checkpoint. One is on its way at a time, and it has all settlements so far, or the oldest ones. So a
//! settlement implies those of older writes. If the log has no room for it, a bare checkpoint follows, and
//! then groups that grow again.
//!
//! **Hand-over.** A partition that another instance should own is given up in order: the engine starts
//! no more of its deliveries, what is in flight is finished and settled, then the last checkpoint is written,
//! and then a hint is sent, so that the next owner looks at once. `sharing.rs` decides when.

#![expect(clippy::disallowed_methods, reason = "waits, which the clock of the loop has no part in")]

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{debug, error, info, warn};

use super::checkpoint::{Checkpoint, PartitionLevels, Settled};
use super::copying;
use super::idempotency::ClusterKeys;
use super::message::{self, MessageError};
use super::owned::{Group, LogRead, Owned};
use super::protocol::{Ack, LogMessage, Outgoing, StoreRequestError};
use super::publish::{Found, Publisher};
use super::shared::StoreShared;
use super::standing::{Owner, PartitionOrder, Standing};
use super::status::PartitionOwner;
use super::tenure::{Change, Link, Step, Tenure, Wish};
use crate::lease::{BootTime, Fence};
use crate::store::journal::JournalEvent;
use crate::store::records::CommitError;
use crate::task::Partition;

mod cleaning;
mod hand_over;
mod keys;

use cleaning::Purge;
use hand_over::HandOver;

/// Before a request that failed is made again.
const PAUSE: Duration = Duration::from_millis(50);

/// How long a checkpoint may take before it is looked for.
const CHECKPOINT: Duration = Duration::from_secs(1);

const BATCH: usize = 256;

pub(super) struct PartitionTask {
    partition: Partition,
    shared: Arc<StoreShared>,
    publisher: Arc<Publisher>,
    keys: Arc<ClusterKeys>,
    standing: Arc<Standing>,
    tenure: Tenure,
    /// A request of the tenure is on its way.
    is_asking: bool,
    /// After a failed one.
    ask_at: Option<Instant>,
    hand_over: HandOver,
    /// Whether to hand it over is decided again then.
    decide_at: Option<Instant>,
    /// The next look asks the leader, because there is news.
    has_news: bool,
    /// The checkpoint on its way, and what is stored with it.
    outgoing: Option<OutgoingGroup>,
    owned: Option<Owned>,
    /// The last checkpoint that was read.
    last: Option<(u64, Checkpoint)>,
    /// The engine has tasks of this partition.
    is_in_engine: bool,
    /// It has messages that this binary cannot read.
    is_unreadable: bool,
    closing: Option<oneshot::Sender<()>>,
    /// Since then, nothing but the last settlements holds up its release.
    releasing_since: Option<Instant>,
    purge: Purge,
}

#[derive(Clone)]
struct OutgoingGroup {
    messages: Vec<Outgoing>,
    settled: Settled,
    levels: PartitionLevels,
}

impl PartitionTask {
    pub(super) fn new(
        shared: Arc<StoreShared>,
        publisher: Arc<Publisher>,
        keys: Arc<ClusterKeys>,
        standing: Arc<Standing>,
    ) -> Self {
        let lease = shared.store.settings().lease;
        Self {
            partition: standing.partition,
            tenure: Tenure::new(shared.this.process, lease),
            shared,
            publisher,
            keys,
            standing,
            is_asking: false,
            ask_at: None,
            hand_over: HandOver::None,
            decide_at: None,
            has_news: false,
            outgoing: None,
            owned: None,
            last: None,
            is_in_engine: false,
            is_unreadable: false,
            closing: None,
            releasing_since: None,
            purge: Purge::default(),
        }
    }

    /// Runs until it is closed.
    pub(super) async fn run(mut self, mut orders: mpsc::UnboundedReceiver<PartitionOrder>) {
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            let wake = self.act();
            if self.closing.is_some() && self.owned.is_none() && self.tenure.is_idle() {
                break;
            }
            tokio::select! {
                received = orders.recv_many(&mut batch, BATCH) => {
                    if received == 0 {
                        return;
                    }
                }
                () = sleep_until(wake) => {}
            }
            for order in batch.drain(..) {
                self.handle(order);
            }
            self.advance();
        }
        if let Some(closed) = self.closing {
            // The journal may be gone.
            let _ = closed.send(());
        }
        orders.close();
        while let Ok(order) = orders.try_recv() {
            if let PartitionOrder::Sync(reply) = order {
                reply(Err(CommitError::Closed));
            }
        }
    }

    fn handle(&mut self, order: PartitionOrder) {
        match order {
            PartitionOrder::Acked { sequence, task } => {
                if let Some(owned) = &mut self.owned {
                    owned.acked(sequence, task);
                }
            }
            PartitionOrder::Hint { sequence } => {
                if let Some(owned) = &mut self.owned {
                    owned.note_stored(sequence);
                }
            }
            PartitionOrder::ReportCaughtUp => {
                if let Some(owned) = &mut self.owned {
                    owned.reports_caught_up = true;
                }
            }
            PartitionOrder::Settle { sequence, settlement } => {
                // Its arrival may be due.
                self.advance();
                if let Some(owned) = &mut self.owned {
                    owned.settle(sequence, settlement);
                }
            }
            PartitionOrder::Conclude { sequence, answer, obstacles } => {
                self.conclude(sequence, answer, &obstacles);
            }
            PartitionOrder::Bound { sequence } => {
                if let Some(owned) = &mut self.owned {
                    owned.bound(sequence);
                }
            }
            PartitionOrder::Answered { sequence } => {
                if let Some(owned) = &mut self.owned {
                    owned.answered(sequence);
                }
            }
            PartitionOrder::Quiet => {
                if let HandOver::Begun { at } = self.hand_over {
                    self.hand_over = HandOver::Quiet { begun: at };
                }
            }
            PartitionOrder::News => {
                self.has_news = true;
                self.tenure.look_now();
            }
            PartitionOrder::GivenUp => self.is_in_engine = false,
            PartitionOrder::Sync(reply) => match &mut self.owned {
                Some(owned) => owned.sync(reply),
                // Nothing is settled here.
                None => reply(Ok(())),
            },
            PartitionOrder::Wake => self.decide_at = None,
            PartitionOrder::Close(closed) => self.closing = Some(closed),
            PartitionOrder::Read { epoch, result } => self.read(epoch, result),
            PartitionOrder::Looked { at, result } => self.looked(at, result),
            PartitionOrder::Written { result } => self.written(result),
            PartitionOrder::Sized { epoch, bytes } => {
                let least = copying::least(&self.shared.store);
                if let Some(owned) = self.owned_in(epoch) {
                    owned.sized(bytes, least);
                }
            }
            PartitionOrder::Copied { epoch, tasks, has_failed } => {
                if let Some(owned) = self.owned_in(epoch) {
                    let missing = owned.copied(tasks, has_failed);
                    self.shared.store.figures().missing(missing);
                }
            }
            PartitionOrder::Purged { before, result } => {
                self.purge.is_running = false;
                self.purge.ended(self.partition, before, result);
            }
        }
    }

    /// Begins what is due, and returns when to look again.
    fn act(&mut self) -> Instant {
        let now = Instant::now();
        let mut wake = now + Duration::from_secs(1);
        self.decide(now);
        let wish = self.wish(now);
        if self.is_asking {
        } else if let Some(at) = self.ask_at.filter(|at| *at > now) {
            wake = wake.min(at);
        } else {
            self.ask_at = None;
            let boot_now = BootTime::now();
            match self.tenure.next(boot_now, wish) {
                Step::Wait(until) => wake = wake.min(now + until.saturating_since(boot_now)),
                Step::Await => {}
                Step::Look => self.look(),
                Step::Write(link) => self.write(link),
            }
        }
        if let Some(owned) = &mut self.owned {
            if let Some(wanted) = owned.read_from(now) {
                self.shared.clone().read(self.partition, owned.epoch, wanted);
            }
            let wakes = [owned.read_wake(now), owned.group_due().filter(|due| *due > now)];
            wake = wakes.into_iter().flatten().fold(wake, Instant::min);
        }
        self.clean(now);
        self.purge(now);
        wake
    }

    fn owned_in(&mut self, epoch: u64) -> Option<&mut Owned> {
        self.owned.as_mut().filter(|owned| owned.epoch == epoch)
    }

    fn wish(&mut self, now: Instant) -> Wish {
        let may_own = !self.is_unreadable && self.closing.is_none();
        let owned = self.owned.as_ref();
        let may_claim = may_own && owned.is_none() && !self.is_in_engine;
        let last = self.last.as_ref().map(|(_, last)| last);
        let former = last.filter(|last| !last.is_released).map(|last| last.writer.process);
        let is_quiet = matches!(self.hand_over, HandOver::Quiet { .. });
        let releases = owned.is_some() && (!may_own || is_quiet);
        self.releasing_since = releases.then(|| self.releasing_since.unwrap_or(now));
        // Without them, the next owner repeats the deliveries of these tasks.
        let patience = self.shared.store.settings().timeout / 2;
        let awaits_keys = self.releasing_since.is_some_and(|since| now < since + patience);
        Wish {
            claim: may_claim.then(|| self.shared.claims_after(self.partition, former)).flatten(),
            settle: owned.and_then(Owned::group_due).is_some_and(|due| due <= now),
            release: releases && owned.is_some_and(|owned| owned.may_release(awaits_keys)),
        }
    }

    /// Reads the last checkpoint. What is on its way is compared with that of the leader.
    fn look(&mut self) {
        self.is_asking = true;
        let (shared, standing) = (Arc::clone(&self.shared), Arc::clone(&self.standing));
        let from_any = self.tenure.is_idle() && !std::mem::take(&mut self.has_news);
        tokio::spawn(async move {
            let partition = standing.partition;
            let subject = shared.store.names().checkpoint(partition);
            let result = match from_any {
                true => shared.store.last(partition, &subject).await,
                false => shared.store.last_of_leader(partition, &subject).await,
            };
            standing.order(PartitionOrder::Looked { at: BootTime::now(), result });
        });
    }

    fn looked(&mut self, at: BootTime, result: Result<Option<LogMessage>, StoreRequestError>) {
        self.is_asking = false;
        let stored = match result {
            Ok(stored) => stored,
            Err(error) => {
                debug!(%error, partition = self.partition.0, "a checkpoint cannot be read");
                self.show_standing(at);
                return self.ask_later();
            }
        };
        let read = stored.map(|stored| {
            let checkpoint = message::read_checkpoint(&stored.payload)?;
            Ok::<_, MessageError>((stored.sequence, checkpoint))
        });
        let last = match read.transpose() {
            Ok(last) => last,
            Err(error) => {
                self.refuse(error);
                return self.ask_later();
            }
        };
        let seen = last.as_ref().map(|(sequence, checkpoint)| (*sequence, checkpoint));
        let change = self.tenure.looked(at, seen);
        if let Some((sequence, checkpoint)) = last
            && self.last.as_ref().is_none_or(|(known, _)| *known < sequence)
        {
            self.standing.note_stored(sequence);
            self.last = Some((sequence, checkpoint));
        }
        self.change(change);
        self.show_standing(at);
    }

    fn ask_later(&mut self) {
        self.ask_at = Some(Instant::now() + PAUSE);
    }

    /// Shows who else owns the partition.
    fn show_standing(&self, now: BootTime) {
        if self.owned.is_some() {
            return;
        }
        let last = self.last.as_ref().map(|(_, checkpoint)| checkpoint);
        if let Some(checkpoint) = last {
            self.standing.set_levels(checkpoint.levels);
        }
        let alive = last.filter(|_| self.tenure.is_owned_elsewhere(now));
        match alive {
            Some(Checkpoint { writer, epoch, .. }) => {
                self.show_owner(Owner::Other(writer.clone()), *epoch);
            }
            None => self.show_owner(Owner::Unknown, 0),
        }
    }

    /// Shows an owner to this process and to its operators.
    fn show_owner(&self, owner: Owner, epoch: u64) {
        let (instance, is_me) = match &owner {
            Owner::Unknown => (None, false),
            Owner::This { .. } => (Some(&self.shared.this), true),
            Owner::Other(instance) => (Some(instance), false),
        };
        let shown = instance.map(|instance| PartitionOwner::new(instance, epoch, is_me));
        self.shared.store.set_owner(self.partition, shown);
        self.standing.set_owner(owner);
    }

    fn write(&mut self, link: Link) {
        self.is_asking = true;
        if link.is_last
            && let Some(owned) = &self.owned
        {
            owned.lease.lose();
            self.standing.set_fence(Fence::Lost);
        }
        if self.outgoing.is_none() || !link.is_repeat {
            self.outgoing = self.build(link);
        }
        let Some(outgoing) = self.outgoing.clone() else {
            self.is_asking = false;
            return self.ask_later();
        };
        let (shared, standing) = (Arc::clone(&self.shared), Arc::clone(&self.standing));
        tokio::spawn(async move {
            if link.is_repeat {
                sleep(PAUSE).await;
            }
            let within = CHECKPOINT.min(shared.store.settings().lease / 2);
            let result = shared.store.publish_batch(outgoing.messages, within).await;
            standing.order(PartitionOrder::Written { result });
        });
    }

    fn build(&mut self, link: Link) -> Option<OutgoingGroup> {
        let Link { epoch, counter, expected, is_last, .. } = link;
        let names = self.shared.store.names();
        let Group { rows, settled, levels } = match (&mut self.owned, &self.last) {
            (Some(owned), _) => owned.group(names),
            // A claim takes over what is settled.
            (None, Some((_, Checkpoint { settled, levels, .. }))) => {
                Group { rows: Vec::new(), settled: settled.clone(), levels: *levels }
            }
            (None, None) => Group::default(),
        };
        let checkpoint = Checkpoint {
            writer: self.shared.this.clone(),
            is_released: is_last,
            epoch,
            counter,
            settled: settled.clone(),
            levels,
        };
        match message::checkpoint(&checkpoint) {
            Ok(payload) => {
                let checkpoint = Outgoing::new(names.checkpoint(self.partition), payload);
                let messages = rows.into_iter().chain([checkpoint.after(expected)]).collect();
                Some(OutgoingGroup { messages, settled, levels })
            }
            Err(error) => {
                error!(%error, "a checkpoint cannot be encoded");
                None
            }
        }
    }

    fn written(&mut self, result: Result<Ack, StoreRequestError>) {
        self.is_asking = false;
        match result {
            Ok(Ack { sequence, .. }) => {
                let change = self.tenure.stored(sequence);
                self.change(change);
            }
            Err(StoreRequestError::OutOfTurn) => {
                self.tenure.refused();
            }
            Err(StoreRequestError::Full(why)) => {
                self.tenure.full();
                self.ask_later();
                if self.owned.as_mut().is_some_and(Owned::refused) {
                    let partition = self.partition.0;
                    warn!(
                        partition,
                        why, "the log of a partition is full: it takes few settlements"
                    );
                }
            }
            Err(error) => {
                debug!(%error, partition = self.partition.0, "a checkpoint is not acknowledged");
                self.tenure.unknown();
                self.ask_later();
            }
        }
    }

    fn change(&mut self, change: Change) {
        match change {
            Change::None => {}
            Change::Claimed { epoch, sequence, until } => self.claimed(epoch, sequence, until),
            Change::Stored { sequence, until } => {
                let Some(OutgoingGroup { settled, levels, .. }) = self.outgoing.take() else {
                    return;
                };
                self.standing.set_levels(levels);
                self.standing.note_stored(sequence);
                // The checkpoint itself stays.
                self.purge.wanted = sequence.min(settled.floor.saturating_add(1));
                if let Some(owned) = &mut self.owned {
                    let (copies, had_lapsed) = owned.stored(sequence, until);
                    self.shared.store.figures().stored(copies, had_lapsed);
                }
            }
            Change::Lost => self.lost(),
        }
    }

    fn claimed(&mut self, epoch: u64, claim: u64, until: BootTime) {
        let Some(OutgoingGroup { settled, levels, .. }) = self.outgoing.take() else { return };
        let before = self.last.as_ref().filter(|(_, last)| !last.is_released);
        if before.is_some_and(|(_, last)| last.writer.process != self.shared.this.process) {
            self.shared.store.figures().taken_over();
        }
        let owned = Owned::claimed(self.partition, epoch, claim, settled, levels);
        owned.lease.extend(until);
        self.standing.note_stored(claim);
        self.standing.set_fence(Fence::Held { epoch, lease: owned.lease.clone() });
        self.show_owner(Owner::This { claim }, epoch);
        self.owned = Some(owned);
        debug!(partition = self.partition.0, epoch, "a partition is claimed and will be read");
    }

    fn lost(&mut self) {
        self.outgoing = None;
        let Some(owned) = self.owned.take() else { return };
        self.show_owner(Owner::Unknown, 0);
        self.standing.set_fence(Fence::Lost);
        let (partition, epoch) = (self.partition, owned.epoch);
        owned.lose();
        self.decide_at = None;
        let hand_over = std::mem::replace(&mut self.hand_over, HandOver::None);
        if self.closing.is_some() || matches!(hand_over, HandOver::Quiet { .. }) {
            self.announce_release();
        }
        if self.closing.is_none() {
            // Also without a task in the engine: clients may wait for the arrival of theirs.
            self.is_in_engine = true;
            self.shared.notify(JournalEvent::Released { partition });
            match hand_over {
                HandOver::Quiet { begun } => {
                    let seconds = begun.elapsed().as_secs_f64();
                    info!(partition = partition.0, epoch, seconds, "a partition is handed over");
                }
                HandOver::None | HandOver::Begun { .. } => warn!(
                    partition = partition.0,
                    epoch, "a partition is released: another instance owns it"
                ),
            }
        }
    }

    fn read(&mut self, epoch: u64, result: Result<Vec<LogMessage>, StoreRequestError>) {
        if self.owned_in(epoch).is_none() {
            return;
        }
        let messages = match result {
            Ok(messages) => Some(messages),
            Err(error) => {
                debug!(%error, partition = self.partition.0, "the log cannot be read");
                None
            }
        };
        let names = self.shared.store.names();
        let notify = |event| self.shared.notify(event);
        let Some(owned) = &mut self.owned else { return };
        let stored = |nonce, sequence| self.publisher.stored(nonce, sequence, Found::InLog);
        let read = owned.read(names, &stored, messages, &notify);
        self.shared.store.figures().missing(owned.take_missing());
        if let Err(error) = read {
            self.refuse(error);
        }
    }

    fn advance(&mut self) {
        let Some(owned) = &mut self.owned else { return };
        let notify = |event| self.shared.notify(event);
        let stored = |nonce, sequence| self.publisher.stored(nonce, sequence, Found::InLog);
        let advanced = owned.advance(&stored, &notify);
        for (sequence, task) in owned.take_to_bind() {
            self.bind(sequence, task);
        }
        if let Err(error) = advanced {
            self.refuse(error);
        }
    }

    /// The partition cannot be owned by this binary.
    fn refuse(&mut self, error: MessageError) {
        if !std::mem::replace(&mut self.is_unreadable, true) {
            error!(
                partition = self.partition.0,
                %error,
                "this version cannot own a partition, because it cannot read one of its messages"
            );
            self.shared.members.refuse(self.partition);
        }
    }
}

impl StoreShared {
    fn read(self: Arc<Self>, partition: Partition, epoch: u64, wanted: LogRead) {
        let Some(standing) = self.standing(partition).cloned() else { return };
        tokio::spawn(async move {
            let result = match wanted {
                LogRead::From(first) => self.store.read_from(partition, first).await,
                LogRead::Missing(some) => self.store.read_missing(partition, &some).await,
            };
            standing.order(PartitionOrder::Read { epoch, result });
        });
    }
}
