//! The records of replicas, which all instances share: first use, pauses, names.
//!
//! Each is a row of the stream `C-meta`. One task writes those of this process, in their order, and
//! reads all of them in the order of the stream: at a hint, which is the row itself on its way to the
//! servers, and otherwise every second.
//!
//! A row is written by compare-and-set on the version that this process has read. A first use never
//! replaces a row. An operator's action does: of two at the same time, the last one wins.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;
use tracing::{debug, warn};

use super::connect::{ConnectError, Store};
use super::record::hash;
use super::rows::{self, Got, Put, Row, Wanted};
use super::transfer::TransferError;
use crate::store::{CommitError, JournalEvent, ReplicaRow};
use crate::task::{Node, ReplicaLimits, ReplicaPause, Timestamp};

const FORMAT: u32 = 1;

const READ_EVERY: Duration = Duration::from_secs(1);

const RETRY_EVERY: Duration = Duration::from_millis(100);

/// Of an import to write a record.
const ATTEMPTS: usize = 5;

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
    number: u64,
}

/// The handle of the task.
#[derive(Debug)]
pub(super) struct Meta {
    changes: mpsc::UnboundedSender<RecordChange>,
    queued: Arc<Mutex<Queued>>,
    written: watch::Receiver<u64>,
}

/// The changes that are not written yet.
#[derive(Debug, Default)]
struct Queued {
    /// Counts all changes.
    last: u64,
    /// What is read of these is older than what the engine knows.
    nodes: HashMap<Node, usize>,
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
        Ok(Self { changes, queued, written })
    }

    /// Writes a record, after those of before.
    pub(super) fn set_replica(&self, node: Node, row: Option<ReplicaRow>) {
        let mut queued = self.queued.lock().unwrap_or_else(PoisonError::into_inner);
        queued.last += 1;
        *queued.nodes.entry(node.clone()).or_default() += 1;
        // Under the lock, so that the numbers are in the order of the channel. It is closed only while
        // the process ends.
        let _ = self.changes.send(RecordChange { node, row, number: queued.last });
    }

    /// Waits until the records set before this call are stored.
    pub(super) async fn written(&self) -> Result<(), CommitError> {
        let last = self.queued.lock().unwrap_or_else(PoisonError::into_inner).last;
        let mut written = self.written.clone();
        let reached = written.wait_for(|written| *written >= last).await;
        reached.map(|_| ()).map_err(|_| CommitError::Closed)
    }
}

/// All records, without those that were removed.
pub(super) async fn read_all(store: &Store) -> Result<BTreeMap<Node, ReplicaRow>, ConnectError> {
    let found = Arc::new(Mutex::new(BTreeMap::new()));
    let rows = Arc::clone(&found);
    let mut records = Records::new(store, move |event| {
        if let JournalEvent::Replica { node, row: Some(row) } = event {
            rows.lock().unwrap_or_else(PoisonError::into_inner).insert(node, row);
        }
    });
    records.read_all().await?;
    Ok(std::mem::take(&mut *found.lock().unwrap_or_else(PoisonError::into_inner)))
}

/// Stores a record of another store.
pub(super) async fn restore(
    store: &Store,
    node: &Node,
    row: &ReplicaRow,
) -> Result<(), TransferError> {
    let mut records = Records::new(store, |_| {});
    for _ in 0..ATTEMPTS {
        if matches!(records.write(node, Some(row)).await, Written::Done) {
            return Ok(());
        }
    }
    Err(TransferError::Unanswered("the record of a replica is not stored".to_owned()))
}

struct Records {
    store: Store,
    notify: Box<dyn Fn(JournalEvent) + Send + Sync>,
    queued: Arc<Mutex<Queued>>,
    /// The sequence of the last message of each record that was read or written.
    versions: HashMap<Node, u64>,
    /// All messages up to this sequence were read.
    read_to: u64,
}

/// The outcome of one attempt to write.
enum Written {
    Done,
    Again,
}

impl Records {
    fn new(store: &Store, notify: impl Fn(JournalEvent) + Send + Sync + 'static) -> Self {
        Self {
            store: store.clone(),
            notify: Box::new(notify),
            queued: Arc::default(),
            versions: HashMap::new(),
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
                    let Some(RecordChange { node, row, number }) = change else { return };
                    while matches!(self.write(&node, row.as_ref()).await, Written::Again) {
                        sleep(RETRY_EVERY).await;
                    }
                    self.forget_queued(&node);
                    done.send_replace(number);
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

    fn forget_queued(&self, node: &Node) {
        let mut queued = self.queued.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = queued.nodes.get_mut(node) {
            *count -= 1;
            if *count == 0 {
                queued.nodes.remove(node);
            }
        }
    }

    async fn write(&mut self, node: &Node, row: Option<&ReplicaRow>) -> Written {
        let known = self.versions.get(node).copied();
        let Ok(payload) = serde_json::to_vec(&Stored::of(node, row)) else { return Written::Done };
        let (client, timeout) = (self.store.client(), self.store.settings().timeout);
        let subject = self.store.names().meta("replica", &hash(node.as_str()));
        let ttl = row.is_none().then_some(REMOVED_FOR);
        let expected = Some(known.unwrap_or_default());
        let payload = Bytes::from(payload);
        match rows::put(client, subject.clone(), payload, expected, ttl, timeout).await {
            Put::Stored(sequence) => {
                self.versions.insert(node.clone(), sequence);
                Written::Done
            }
            Put::Refused => self.refused(node, row, known, &subject).await,
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
    async fn refused(
        &mut self,
        node: &Node,
        row: Option<&ReplicaRow>,
        known: Option<u64>,
        subject: &str,
    ) -> Written {
        let stream = self.store.names().meta_stream();
        let timeout = self.store.settings().timeout;
        let wanted = Wanted::Last { subject };
        match rows::get(self.store.client(), &stream, &wanted, timeout).await {
            Got::Row(found) => {
                let same = Stored::parse(&found.payload) == Some(Stored::of(node, row));
                let is_first_use = row.is_some_and(ReplicaRow::is_plain) && known.is_none();
                self.versions.insert(node.clone(), found.sequence);
                if same || is_first_use { Written::Done } else { Written::Again }
            }
            Got::None => {
                self.versions.remove(node);
                Written::Again
            }
            Got::Unanswered | Got::Failed(_) => Written::Again,
        }
    }

    /// Reads at the start, when nothing may be missing.
    async fn read_all(&mut self) -> Result<(), ConnectError> {
        let deadline = rows::now() + self.store.settings().timeout;
        loop {
            match self.read_next().await {
                Got::Row(row) => self.take(&row),
                Got::None => return Ok(()),
                // A stream without a leader may answer so at once.
                Got::Unanswered if rows::now() < deadline => sleep(RETRY_EVERY).await,
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
        let version = self.versions.entry(node.clone()).or_default();
        *version = found.sequence.max(*version);
        // The newer one is on its way, and will be read, too.
        let queued = self.queued.lock().unwrap_or_else(PoisonError::into_inner);
        if !queued.nodes.contains_key(&node) {
            drop(queued);
            (self.notify)(JournalEvent::Replica { node, row });
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
mod tests {
    use std::num::NonZeroU64;

    use super::*;

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let node = |name: &str| Node::parse(&format!("http://{name}")).unwrap();
        let since = Timestamp(1_700_000_000_000_000_001);
        let row = ReplicaRow {
            pause: Some(ReplicaPause { since, until: None }),
            renamed_to: Some(node("b:80")),
            ..ReplicaRow::new(Timestamp(3))
        };
        let limited = ReplicaRow {
            pause: Some(ReplicaPause { since, until: Some(Timestamp(u64::MAX)) }),
            limits: ReplicaLimits { bandwidth: NonZeroU64::new(5), ..ReplicaLimits::default() },
            ..row.clone()
        };
        for row in [Some(row), Some(limited), None] {
            let payload = serde_json::to_vec(&Stored::of(&node("a"), row.as_ref())).unwrap();
            let stored = Stored::parse(&payload).and_then(Stored::into_row);
            assert_eq!(stored, Some((node("a"), row)));
        }
    }

    #[test]
    fn a_record_of_a_newer_version_is_not_read_as_something_else() {
        let payload = br#"{"format":2,"node":"http://a","row":null}"#;
        assert_eq!(Stored::parse(payload), None);
    }
}
