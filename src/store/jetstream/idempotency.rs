//! Idempotency keys, which any instance answers.
//!
//! A key is a row of the stream `C-keys`, under its hash. The instance that gets the write first
//! **reserves** the key by compare-and-set, with the nonce that the task will have. After the task is
//! stored its id is **bound** to the key: by the publisher, and by the owner of the partition before it
//! may settle the task. So a reservation without an id means that the task is still in the stream,
//! where it has that nonce, or was never stored. The servers drop a row at the end of
//! `--idempotency-window`.
//!
//! No more than `--idempotency-keys` are reserved. Each instance counts them, from a count of the servers
//! that is up to a second old. The stream has room for more: at its limit it would refuse ids, too.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::connect::Store;
use super::record::hash;
use super::rows::{self, Got, Put, Wanted};
use super::streams::DUPLICATE_WINDOW;
use crate::store::{IdempotencyAnswer, IdempotencyRow, Repeated};
use crate::task::{Consistency, Idempotency, Partition, TaskId, Timestamp};

const FORMAT: u32 = 1;

/// Up to this age the servers surely still know the nonce of a reservation, although the clocks of
/// server and instance may differ.
const SURELY_KNOWN: Duration = Duration::from_secs(10);

const _: () = assert!(SURELY_KNOWN.as_secs() * 2 < DUPLICATE_WINDOW.as_secs());

/// Attempts to change a row that others change, too.
const ATTEMPTS: usize = 8;

const COUNT_EVERY: Duration = Duration::from_secs(1);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct ClusterKey {
    format: u32,
    /// For an export; the subject has only its hash.
    key: Box<str>,
    fingerprint: [u8; 16],
    /// As text: JSON has no integers of 128 bits.
    nonce: String,
    partition: u16,
    consistency: Consistency,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    id: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    answer: Option<IdempotencyAnswer>,
}

/// What a key is, for a write that comes with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reserved {
    /// New: the task is published with the nonce of the caller.
    New {
        nonce: u128,
        partition: Partition,
    },
    /// Reserved a moment ago: published again with this nonce, the task is stored once.
    Resume {
        nonce: u128,
        partition: Partition,
    },
    /// Reserved earlier: the task is in the stream with this nonce, or was never stored.
    Lost {
        nonce: u128,
        partition: Partition,
    },
    Known(Repeated),
    /// Used with another body.
    Mismatch,
    /// The limit of keys is reached.
    Full,
    Unanswered,
}

#[derive(Debug)]
pub(super) struct ClusterKeys {
    store: Store,
    count: Mutex<KeyCount>,
}

/// The rows of the stream.
#[derive(Debug, Default)]
struct KeyCount {
    rows: u64,
    counted: Option<Instant>,
}

impl ClusterKeys {
    pub(super) fn new(store: &Store) -> Self {
        Self { store: store.clone(), count: Mutex::default() }
    }

    /// Whether the limit is reached. If the servers do not answer, only that of the stream holds.
    async fn is_full(&self) -> bool {
        let mut count = self.count.lock().await;
        let now = rows::now();
        if count.counted.is_none_or(|counted| now - counted >= COUNT_EVERY) {
            let stream = self.store.names().key_stream();
            if let Ok(stream) = self.store.jetstream().get_stream(stream).await {
                let rows = stream.cached_info().state.messages;
                *count = KeyCount { rows, counted: Some(now) };
            }
        }
        count.rows >= self.store.settings().keys.most as u64
    }

    /// Reserves a key for the task with this nonce, unless it is known.
    pub(super) async fn reserve(
        &self,
        idempotency: &Idempotency,
        consistency: Consistency,
        partition: Partition,
        nonce: u128,
    ) -> Reserved {
        let subject = self.subject(idempotency);
        let fingerprint = idempotency.fingerprint;
        let key = ClusterKey::new(idempotency, consistency, partition, nonce);
        if self.is_full().await {
            return match self.read(&subject).await {
                Read::Key(_, found, age) => found.state(fingerprint, age),
                Read::None => Reserved::Full,
                Read::Unreadable | Read::Unanswered => Reserved::Unanswered,
            };
        }
        for _ in 0..ATTEMPTS {
            match self.put(&subject, &key, 0).await {
                Put::Stored(_) => {
                    self.count.lock().await.rows += 1;
                    return Reserved::New { nonce, partition };
                }
                Put::Full => return Reserved::Full,
                Put::Unanswered => continue,
                Put::Refused => {}
                Put::Failed(problem) => {
                    tracing::warn!(problem, "an idempotency key cannot be stored");
                    return Reserved::Unanswered;
                }
            }
            match self.get(&subject).await {
                // The own one, whose answer was lost.
                Some((_, found, _)) if found == key => return Reserved::New { nonce, partition },
                Some((_, found, age)) => return found.state(fingerprint, age),
                // It has just expired.
                None => {}
            }
        }
        Reserved::Unanswered
    }

    /// Gives a key the id of its stored task. Returns false if it must be tried again.
    pub(super) async fn bind(
        &self,
        idempotency: &Idempotency,
        consistency: Consistency,
        partition: Partition,
        nonce: u128,
        id: TaskId,
    ) -> bool {
        let subject = self.subject(idempotency);
        for _ in 0..ATTEMPTS {
            let (version, mut key) = match self.read(&subject).await {
                Read::Key(version, key, _) => (version, key),
                // Expired, or the reservation was never stored: this one is as good.
                Read::None => (0, ClusterKey::new(idempotency, consistency, partition, nonce)),
                Read::Unreadable => return true,
                Read::Unanswered => return false,
            };
            // Bound already, or a later write has the key after it had expired.
            if key.id.is_some() || key.nonce() != Some(nonce) {
                return true;
            }
            key.id = Some(id.0);
            match self.put(&subject, &key, version).await {
                Put::Stored(_) => return true,
                Put::Refused => {}
                // Without the id, a repeat would be a new write once the task is settled.
                Put::Full | Put::Failed(_) | Put::Unanswered => return false,
            }
        }
        false
    }

    /// Stores the answer to a strong write. Returns false if it must be tried again.
    pub(super) async fn conclude(
        &self,
        idempotency: &Idempotency,
        id: TaskId,
        answer: IdempotencyAnswer,
    ) -> bool {
        let subject = self.subject(idempotency);
        for _ in 0..ATTEMPTS {
            let (version, mut key) = match self.read(&subject).await {
                Read::Key(version, key, _) => (version, key),
                Read::None | Read::Unreadable => return true,
                Read::Unanswered => return false,
            };
            if key.id.is_some_and(|found| found != id.0) || key.answer.is_some() {
                return true;
            }
            (key.id, key.answer) = (Some(id.0), Some(answer.clone()));
            match self.put(&subject, &key, version).await {
                Put::Stored(_) => return true,
                Put::Full | Put::Failed(_) => {
                    tracing::warn!(task = %id, "the answer to a strong write with an idempotency key cannot be stored: its repeats get a 503");
                    return true;
                }
                Put::Refused => {}
                Put::Unanswered => return false,
            }
        }
        false
    }

    /// The answer to the strong write of a key, if it is decided.
    pub(super) async fn answer(
        &self,
        idempotency: &Idempotency,
        id: TaskId,
    ) -> Option<IdempotencyAnswer> {
        let (_, key, _) = self.get(&self.subject(idempotency)).await?;
        key.answer.filter(|_| key.id == Some(id.0))
    }

    /// All keys whose task is stored.
    pub(super) async fn read_all(&self) -> Result<Vec<(Box<str>, IdempotencyRow)>, String> {
        let stream = self.store.names().key_stream();
        let (subjects, mut keys, mut next) = (self.store.names().key("*"), Vec::new(), 1);
        loop {
            let wanted = Wanted::Next { seq: next, subjects: &subjects };
            let timeout = self.store.settings().timeout;
            let row = match rows::get(self.store.client(), &stream, &wanted, timeout).await {
                Got::Row(row) => row,
                Got::None => return Ok(keys),
                Got::Unanswered => return Err(format!("{stream} has no leader")),
                Got::Failed(problem) => return Err(format!("{stream}: {problem}")),
            };
            next = row.sequence + 1;
            let Some(key) = ClusterKey::parse(&row.payload) else { continue };
            let ClusterKey { key, fingerprint, id: Some(id), answer, .. } = key else { continue };
            let row = IdempotencyRow { task: TaskId(id), fingerprint, at: row.stored_at, answer };
            keys.push((key, row));
        }
    }

    /// Stores a key of another store, unless its time is over.
    pub(super) async fn restore(
        &self,
        idempotency: &Idempotency,
        row: &IdempotencyRow,
        task: Option<(TaskId, Consistency)>,
    ) -> Result<(), String> {
        let settings = self.store.settings();
        let left = settings.keys.window.saturating_sub(age(row.at));
        if left.is_zero() {
            return Ok(());
        }
        // Without its task, the consistency is unknown and does not matter.
        let (id, consistency) = task.unwrap_or((row.task, Consistency::Eventual));
        let partition = Partition(0);
        let mut key = ClusterKey::new(idempotency, consistency, partition, u128::from(id.0));
        (key.id, key.answer) = (Some(id.0), row.answer.clone());
        let payload = serde_json::to_vec(&key).map_err(|error| error.to_string())?;
        let (client, subject) = (self.store.client(), self.subject(idempotency));
        let (ttl, timeout) = (Some(left), settings.timeout);
        match rows::put(client, subject, payload.into(), None, ttl, timeout).await {
            Put::Stored(_) => Ok(()),
            Put::Full => Err("it has more idempotency keys than --idempotency-keys".to_owned()),
            Put::Refused | Put::Unanswered => Err("the servers do not answer".to_owned()),
            Put::Failed(problem) => Err(problem),
        }
    }

    fn subject(&self, idempotency: &Idempotency) -> String {
        self.store.names().key(&hash(&idempotency.key))
    }

    async fn put(&self, subject: &str, key: &ClusterKey, version: u64) -> Put {
        let payload = match serde_json::to_vec(key) {
            Ok(payload) => Bytes::from(payload),
            Err(error) => return Put::Failed(error.to_string()),
        };
        let settings = self.store.settings();
        let ttl = Some(settings.keys.window);
        let (client, subject) = (self.store.client(), subject.to_owned());
        rows::put(client, subject, payload, Some(version), ttl, settings.timeout).await
    }

    async fn get(&self, subject: &str) -> Option<(u64, ClusterKey, Duration)> {
        match self.read(subject).await {
            Read::Key(version, key, age) => Some((version, key, age)),
            Read::None | Read::Unreadable | Read::Unanswered => None,
        }
    }

    async fn read(&self, subject: &str) -> Read {
        let stream = self.store.names().key_stream();
        let wanted = Wanted::Last { subject };
        let timeout = self.store.settings().timeout;
        match rows::get(self.store.client(), &stream, &wanted, timeout).await {
            Got::Row(row) => match ClusterKey::parse(&row.payload) {
                Some(key) => Read::Key(row.sequence, key, age(row.stored_at)),
                None => Read::Unreadable,
            },
            Got::None => Read::None,
            Got::Unanswered | Got::Failed(_) => Read::Unanswered,
        }
    }
}

enum Read {
    /// With its version and its age.
    Key(u64, ClusterKey, Duration),
    None,
    /// Of a newer version, or damaged.
    Unreadable,
    Unanswered,
}

/// By the clocks of the server and of this machine.
#[expect(clippy::disallowed_methods, reason = "it is compared with the clock of the server")]
fn age(stored_at: Timestamp) -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(0).saturating_add(now).saturating_since(stored_at)
}

impl ClusterKey {
    fn new(
        idempotency: &Idempotency,
        consistency: Consistency,
        Partition(partition): Partition,
        nonce: u128,
    ) -> Self {
        let Idempotency { key, fingerprint } = idempotency.clone();
        let nonce = format!("{nonce:032x}");
        let format = FORMAT;
        Self { format, key, fingerprint, nonce, partition, consistency, id: None, answer: None }
    }

    fn parse(payload: &[u8]) -> Option<Self> {
        serde_json::from_slice(payload).ok().filter(|key: &Self| key.format <= FORMAT)
    }

    fn nonce(&self) -> Option<u128> {
        u128::from_str_radix(&self.nonce, 16).ok()
    }

    fn state(self, fingerprint: [u8; 16], age: Duration) -> Reserved {
        if self.fingerprint != fingerprint {
            return Reserved::Mismatch;
        }
        let (consistency, partition) = (self.consistency, Partition(self.partition));
        if let Some(id) = self.id {
            let answer = self.answer;
            return Reserved::Known(Repeated { id: TaskId(id), consistency, answer });
        }
        match self.nonce() {
            Some(nonce) if age <= SURELY_KNOWN => Reserved::Resume { nonce, partition },
            Some(nonce) => Reserved::Lost { nonce, partition },
            None => Reserved::Unanswered,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AGE: Duration = Duration::ZERO;

    fn key() -> ClusterKey {
        let idempotency = Idempotency { key: "k".into(), fingerprint: [7; 16] };
        ClusterKey::new(&idempotency, Consistency::Strong, Partition(3), u128::MAX - 5)
    }

    #[test]
    fn a_key_is_read_as_it_was_written() {
        let answer =
            IdempotencyAnswer { success: true, acked: vec![0, 1], failed: vec![2], needed: 2 };
        let bound = ClusterKey { id: Some(u64::MAX), answer: Some(answer), ..key() };
        for key in [key(), bound] {
            assert_eq!(ClusterKey::parse(&serde_json::to_vec(&key).unwrap()), Some(key));
        }
    }

    #[test]
    fn a_reservation_is_resumed_with_its_own_nonce_and_partition() {
        let (nonce, partition) = (u128::MAX - 5, Partition(3));
        assert_eq!(key().state([7; 16], AGE), Reserved::Resume { nonce, partition });
        let later = DUPLICATE_WINDOW;
        assert_eq!(key().state([7; 16], later), Reserved::Lost { nonce, partition });
    }

    #[test]
    fn another_body_is_refused_and_a_bound_key_is_known() {
        assert_eq!(key().state([8; 16], AGE), Reserved::Mismatch);
        let bound = ClusterKey { id: Some(9), ..key() };
        let repeated = Repeated { id: TaskId(9), consistency: Consistency::Strong, answer: None };
        assert_eq!(bound.state([7; 16], DUPLICATE_WINDOW), Reserved::Known(repeated));
    }
}
