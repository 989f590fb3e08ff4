//! The records of replicas, which all instances share: first use, pauses, names.
//!
//! Each is a row of the stream `C-meta`. One task writes those of this process, in their order, and
//! reads all of them in the order of the stream: at a hint, which is the row itself on its way to the
//! servers, and otherwise every second.
//!
//! A row is written by compare-and-set on the version that this process has read. What an operator has
//! set is never replaced by a first use or by the removal of an unused record. It is by another
//! operator's action: of two at the same time, the last one wins. An action that could not be stored
//! within `--store-timeout` yields to a row that another instance has written since.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep};
use tracing::{debug, warn};

use super::connect::{ConnectError, Store};
use super::record::hash;
use super::rows::{self, Got, Put, Row, Wanted, now};
use super::transfer::TransferError;
use crate::store::{CommitError, JournalEvent, RecordCause, ReplicaRow};
use crate::task::{Node, ReplicaLimits, ReplicaPause, Timestamp};

const FORMAT: u32 = 1;

const READ_EVERY: Duration = Duration::from_secs(1);

const RETRY_EVERY: Duration = Duration::from_millis(100);

/// Of an import to write a record.
const ATTEMPTS: u32 = 5;

/// How long a removed record is kept, so that every instance reads it.
const REMOVED_FOR: Duration = Duration::from_secs(24 * 60 * 60);

/// The message of a record. `format` is the lowest that a reader must know: fields that an older one
/// may ignore do not raise it. Without the end of a pause and the limits, it pauses and resumes with
/// the others and sends without limits, and it confirms neither to an operator.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Stored {
    format: u32,
    node: String,
    /// `None` if the record was removed.
    row: Option<StoredRow>,
}

/// Times in nanoseconds since 1970.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct StoredRow {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    paused_since: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    paused_until: Option<u64>,
    #[serde(default, skip_serializing_if = "ReplicaLimits::is_none")]
    limits: ReplicaLimits,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    renamed_to: Option<String>,
    first_used: u64,
}

struct RecordChange {
    node: Node,
    row: Option<ReplicaRow>,
    cause: RecordCause,
    number: u64,
    at: Instant,
    /// From then on an operator's change yields.
    deadline: Instant,
}

/// The last message of a record that was read or written.
struct Known {
    sequence: u64,
    row: Option<ReplicaRow>,
    /// When it was read, if another process wrote it and it is more than a first use.
    heard: Option<Instant>,
}

/// The handle of the task.
#[derive(Debug)]
pub(super) struct Meta {
    changes: mpsc::UnboundedSender<RecordChange>,
    queued: Arc<Mutex<Queued>>,
    written: watch::Receiver<u64>,
    timeout: Duration,
}

/// The changes that are not written yet.
#[derive(Debug, Default)]
struct Queued {
    /// Counts all changes.
    last: u64,
    /// The number of the last change of each. What is read of these is older than what the engine knows.
    nodes: HashMap<Node, u64>,
}

impl Meta {
    /// Reports every record, and from then on what other instances change.
    pub(super) async fn start(
        store: &Store,
        notify: impl Fn(JournalEvent) + Send + Sync + 'static,
    ) -> Result<Self, ConnectError> {
        let (changes, received) = mpsc::unbounded_channel();
        let (done, written) = watch::channel(0);
        let queued = Arc::<Mutex<Queued>>::default();
        let mut records = Records { queued: Arc::clone(&queued), ..Records::new(store, notify) };
        let subjects = store.names().meta("replica", "*");
        let hints = store.client().subscribe(subjects).await.map_err(|error| {
            ConnectError::NotReady(format!("cannot listen to other instances: {error}"))
        })?;
        records.read_all().await?;
        tokio::spawn(records.run(received, hints, done));
        Ok(Self { changes, queued, written, timeout: store.settings().timeout })
    }

    /// Writes a record, after those of before.
    pub(super) fn set_replica(&self, node: Node, row: Option<ReplicaRow>, cause: RecordCause) {
        let at = now();
        let mut queued = self.queued.lock();
        queued.last += 1;
        let number = queued.last;
        queued.nodes.insert(node.clone(), number);
        // Its operator has an answer by then.
        let deadline = at + self.timeout + READ_EVERY;
        // Under the lock, so that the numbers are in the order of the channel. It is closed only while
        // the process ends.
        let _ = self.changes.send(RecordChange { node, row, cause, number, at, deadline });
    }

    /// Waits until all records set before this call are stored.
    pub(super) async fn written(&self) -> Result<(), CommitError> {
        let last = self.queued.lock().last;
        self.written_through(last).await
    }

    /// Waits until the records of these replicas set before this call are stored.
    pub(super) async fn written_of(&self, nodes: &[Node]) -> Result<(), CommitError> {
        let last = {
            let queued = self.queued.lock();
            nodes.iter().filter_map(|node| queued.nodes.get(node)).max().copied()
        };
        match last {
            Some(last) => self.written_through(last).await,
            None => Ok(()),
        }
    }

    async fn written_through(&self, number: u64) -> Result<(), CommitError> {
        let mut written = self.written.clone();
        let reached = written.wait_for(|written| *written >= number).await;
        reached.map(|_| ()).map_err(|_| CommitError::Closed)
    }
}

/// All records, without those that were removed.
pub(super) async fn read_all(store: &Store) -> Result<BTreeMap<Node, ReplicaRow>, ConnectError> {
    let found = Arc::new(Mutex::new(BTreeMap::new()));
    let rows = Arc::clone(&found);
    let mut records = Records::new(store, move |event| {
        if let JournalEvent::Replica { node, row: Some(row) } = event {
            rows.lock().insert(node, row);
        }
    });
    records.read_all().await?;
    Ok(std::mem::take(&mut *found.lock()))
}

/// Stores a record of another store.
pub(super) async fn restore(
    store: &Store,
    node: &Node,
    row: &ReplicaRow,
) -> Result<(), TransferError> {
    let mut records = Records::new(store, |_| {});
    let (at, row) = (now(), Some(row.clone()));
    let deadline = at + ATTEMPTS * store.settings().timeout;
    let cause = RecordCause::Operator;
    let change = RecordChange { node: node.clone(), row, cause, number: 0, at, deadline };
    for _ in 0..ATTEMPTS {
        if matches!(records.write(&change).await, Written::Done) {
            return Ok(());
        }
    }
    Err(TransferError::Unanswered("the record of a replica is not stored".to_owned()))
}

struct Records {
    store: Store,
    notify: Box<dyn Fn(JournalEvent) + Send + Sync>,
    queued: Arc<Mutex<Queued>>,
    known: HashMap<Node, Known>,
    /// All messages up to this sequence were read.
    read_to: u64,
}

/// The outcome of one attempt to write.
enum Written {
    Done,
    Again,
    /// A row of another process stays.
    Yielded,
}

impl Records {
    fn new(store: &Store, notify: impl Fn(JournalEvent) + Send + Sync + 'static) -> Self {
        Self {
            store: store.clone(),
            notify: Box::new(notify),
            queued: Arc::default(),
            known: HashMap::new(),
            read_to: 0,
        }
    }

    async fn run(
        mut self,
        mut changes: mpsc::UnboundedReceiver<RecordChange>,
        mut hints: async_nats::Subscriber,
        done: watch::Sender<u64>,
    ) {
        loop {
            tokio::select! {
                biased;
                change = changes.recv() => {
                    let Some(change) = change else { return };
                    self.carry_out(&change).await;
                    done.send_replace(change.number);
                }
                hint = hints.next() => {
                    if hint.is_none() {
                        // The client is closed.
                        return;
                    }
                    self.read().await;
                }
                () = sleep(READ_EVERY) => self.read().await,
            }
        }
    }

    async fn carry_out(&mut self, change: &RecordChange) {
        let written = loop {
            match self.write(change).await {
                Written::Again => sleep(RETRY_EVERY).await,
                written => break written,
            }
        };
        let node = &change.node;
        {
            let mut queued = self.queued.lock();
            if queued.nodes.get(node) == Some(&change.number) {
                queued.nodes.remove(node);
            }
        }
        if let Written::Yielded = written {
            if change.cause != RecordCause::Use {
                warn!(replica = %node, "a change of a replica could not be stored in time: another instance has changed it since, and that holds");
            }
            let row = self.known.get(node).and_then(|known| known.row.clone());
            self.report(node.clone(), row);
        }
    }

    async fn write(&mut self, change: &RecordChange) -> Written {
        let RecordChange { node, row, .. } = change;
        let subject = self.store.names().meta("replica", &hash(node.as_str()));
        let known = self.known.get(node);
        if known.is_some_and(|known| change.yields_to(known)) {
            return match change.cause {
                RecordCause::Use => Written::Yielded,
                // The last attempt may be stored, without an answer.
                _ => self.refused(change, &subject).await,
            };
        }
        let expected = Some(known.map_or(0, |known| known.sequence));
        let Ok(payload) = serde_json::to_vec(&Stored::of(node, row.as_ref())) else {
            return Written::Done;
        };
        let (client, timeout) = (self.store.client(), self.store.settings().timeout);
        let ttl = row.is_none().then_some(REMOVED_FOR);
        let payload = Bytes::from(payload);
        match rows::put(client, subject.clone(), payload, expected, ttl, timeout).await {
            Put::Stored(sequence) => {
                self.known.insert(node.clone(), Known { sequence, row: row.clone(), heard: None });
                Written::Done
            }
            Put::Refused => self.refused(change, &subject).await,
            Put::Unanswered => Written::Again,
            Put::Full => {
                warn!(
                    "the stream of the records of replicas is full: writes for new replicas wait"
                );
                sleep(READ_EVERY).await;
                Written::Again
            }
            Put::Failed(problem) => {
                warn!(%node, problem, "the record of a replica cannot be written yet");
                sleep(READ_EVERY).await;
                Written::Again
            }
        }
    }

    /// Another message is the last one: of another instance, or of an attempt whose answer was lost.
    async fn refused(&mut self, change: &RecordChange, subject: &str) -> Written {
        let RecordChange { node, row, .. } = change;
        let stream = self.store.names().meta_stream();
        let timeout = self.store.settings().timeout;
        let wanted = Wanted::Last { subject };
        match rows::get(self.store.client(), &stream, &wanted, timeout).await {
            Got::Row(found) => {
                let stored = Stored::parse(&found.payload);
                let is_same = stored.as_ref() == Some(&Stored::of(node, row.as_ref()));
                let known = match stored.and_then(Stored::into_row) {
                    // One of a newer version is a record, too.
                    None if change.cause == RecordCause::Use => return Written::Done,
                    None => Known { sequence: found.sequence, row: None, heard: None },
                    Some((_, row)) if is_same => {
                        Known { sequence: found.sequence, row, heard: None }
                    }
                    Some((_, row)) => self.heard(node, found.sequence, row),
                };
                let yields = change.yields_to(&known);
                self.known.insert(node.clone(), known);
                match (is_same, yields) {
                    (true, _) => Written::Done,
                    (false, true) => Written::Yielded,
                    (false, false) => Written::Again,
                }
            }
            Got::None => {
                self.known.remove(node);
                Written::Again
            }
            Got::Unanswered | Got::Failed(_) => Written::Again,
        }
    }

    /// Reads at the start, when nothing may be missing.
    async fn read_all(&mut self) -> Result<(), ConnectError> {
        let deadline = now() + self.store.settings().timeout;
        loop {
            match self.read_next().await {
                Got::Row(row) => self.take(&row),
                Got::None => return Ok(()),
                // A stream without a leader may answer so at once.
                Got::Unanswered if now() < deadline => sleep(RETRY_EVERY).await,
                Got::Unanswered => {
                    return Err(ConnectError::NotReady("the records cannot be read".to_owned()));
                }
                Got::Failed(problem) => {
                    let stream = self.store.names().meta_stream();
                    return Err(ConnectError::Stream { stream, problem });
                }
            }
        }
    }

    /// Reads what is new. What cannot be read now is read later.
    async fn read(&mut self) {
        loop {
            match self.read_next().await {
                Got::Row(row) => self.take(&row),
                Got::None => return,
                Got::Unanswered => return debug!("the records of replicas are read again later"),
                Got::Failed(problem) => {
                    return warn!(problem, "the records of replicas cannot be read");
                }
            }
        }
    }

    async fn read_next(&self) -> Got {
        let names = self.store.names();
        let subjects = names.meta("replica", "*");
        let wanted = Wanted::Next { seq: self.read_to + 1, subjects: &subjects };
        let timeout = self.store.settings().timeout;
        rows::get(self.store.client(), &names.meta_stream(), &wanted, timeout).await
    }

    fn take(&mut self, found: &Row) {
        self.read_to = found.sequence;
        let stored = Stored::parse(&found.payload);
        let Some((node, row)) = stored.and_then(Stored::into_row) else {
            return warn!(
                sequence = found.sequence,
                "the record of a replica cannot be read: it was written by a newer version or is damaged"
            );
        };
        if self.known.get(&node).is_none_or(|known| known.sequence < found.sequence) {
            let known = self.heard(&node, found.sequence, row.clone());
            self.known.insert(node.clone(), known);
        }
        self.report(node, row);
    }

    /// A row of another process.
    fn heard(&self, node: &Node, sequence: u64, row: Option<ReplicaRow>) -> Known {
        let is_first = !self.known.contains_key(node);
        let is_first_use = is_first && row.as_ref().is_some_and(ReplicaRow::is_plain);
        Known { sequence, row, heard: (!is_first_use).then(now) }
    }

    fn report(&self, node: Node, row: Option<ReplicaRow>) {
        // A newer one is on its way, and will be read, too.
        if !self.queued.lock().nodes.contains_key(&node) {
            (self.notify)(JournalEvent::Replica { node, row });
        }
    }
}

impl RecordChange {
    /// Whether a row stays as it is.
    fn yields_to(&self, known: &Known) -> bool {
        match self.cause {
            RecordCause::Use => {
                let is_use = self.row.is_some();
                known.row.as_ref().is_some_and(|row| is_use || !row.is_plain())
            }
            RecordCause::Operator => {
                let is_newer = known.heard.is_some_and(|heard| heard > self.at);
                is_newer && now() >= self.deadline
            }
            RecordCause::Together => false,
        }
    }
}

impl Stored {
    fn of(node: &Node, row: Option<&ReplicaRow>) -> Self {
        let row = row.map(|row| StoredRow {
            paused_since: row.pause.map(|pause| pause.since.0),
            paused_until: row.pause.and_then(|pause| pause.until).map(|until| until.0),
            limits: row.limits,
            renamed_to: row.renamed_to.as_ref().map(ToString::to_string),
            first_used: row.first_used.0,
        });
        Self { format: FORMAT, node: node.to_string(), row }
    }

    fn parse(payload: &[u8]) -> Option<Self> {
        serde_json::from_slice(payload).ok().filter(|stored: &Self| stored.format <= FORMAT)
    }

    fn into_row(self) -> Option<(Node, Option<ReplicaRow>)> {
        let node = Node::parse(&self.node).ok()?;
        let Some(row) = self.row else { return Some((node, None)) };
        let renamed_to = match row.renamed_to {
            Some(name) => Some(Node::parse(&name).ok()?),
            None => None,
        };
        let until = row.paused_until.map(Timestamp);
        let row = ReplicaRow {
            pause: row.paused_since.map(|since| ReplicaPause { since: Timestamp(since), until }),
            limits: row.limits,
            renamed_to,
            first_used: Timestamp(row.first_used),
        };
        Some((node, Some(row)))
    }
}

#[cfg(test)]
mod tests;
