//! Requests between the instances of a cluster.
//!
//! They go by core NATS and are not stored: one that is lost has no answer. What they say is decided
//! above; here they are bytes. An answer comes in messages of at most [`PART_BYTES`], each with a kind
//! and a number before its content. An instance that needs longer says so every [`WORKING_EVERY`], so
//! that silence means that it is dead, stopped or cut off.
//!
//! A request can lie in the socket of a stopped process for any time. So an instance answers only a
//! request that is still wanted: it asks the sender, and carries the request out within [`SILENCE`] of
//! that, by its own clock.

#![expect(clippy::disallowed_methods, reason = "waits, which the clock of the loop has no part in")]

use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use async_nats::connection::State;
use async_nats::{Client, Message, Subject};
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::StreamExt as _;
use thiserror::Error;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, error};

use super::inbox::request_all;
use super::members::Member;
use super::message::random;
use super::shared::StoreShared;
use super::status::PartitionOwner;
use crate::lease::BootTime;
use crate::store::journal::BoxFuture;

/// Without a message for so long, an instance has no answer.
const SILENCE: Duration = Duration::from_secs(1);

const WORKING_EVERY: Duration = Duration::from_millis(300);

const PART_BYTES: usize = 512 << 10;

/// More than the largest page of a list.
const MAX_ANSWER_BYTES: usize = 128 << 20;

/// Requests that are answered at the same time.
const MAX_AT_ONCE: usize = 64;

/// Kind and number of a message.
const HEAD_BYTES: usize = 5;

/// Answers a request; `None` if it is not known here.
pub type PeerHandler = Arc<dyn Fn(Bytes) -> BoxFuture<'static, Option<Vec<u8>>> + Send + Sync>;

/// The instances of a cluster. Cheap to clone.
#[derive(Clone)]
pub struct Peers {
    pub(super) shared: Arc<StoreShared>,
}

/// Why an instance has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PeerSilence {
    #[error("it does not answer")]
    Silent,
    #[error("its version does not know the request")]
    Unknown,
    /// It was not sent.
    #[error("the request is too large for the servers of the cluster store")]
    TooLarge,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum PartKind {
    Working = 0,
    Part = 1,
    Last = 2,
    Unknown = 3,
    /// Asks whether the request is still wanted.
    Ready = 4,
}

impl PartKind {
    fn of(byte: u8) -> Option<Self> {
        [Self::Working, Self::Part, Self::Last, Self::Unknown, Self::Ready]
            .into_iter()
            .find(|kind| *kind as u8 == byte)
    }

    fn message(self, number: u32, content: &[u8]) -> Bytes {
        let mut message = BytesMut::with_capacity(HEAD_BYTES + content.len());
        message.put_u8(self as u8);
        message.put_u32(number);
        message.put_slice(content);
        message.freeze()
    }
}

/// An answer whose messages come in.
#[derive(Debug, Default)]
struct IncomingAnswer {
    parts: u32,
    bytes: Vec<u8>,
}

impl IncomingAnswer {
    /// Takes a message; the answer at its end.
    fn take(&mut self, message: &[u8]) -> Option<Result<Vec<u8>, PeerSilence>> {
        let Some((head, content)) = message.split_at_checked(HEAD_BYTES) else {
            return Some(Err(PeerSilence::Silent));
        };
        let (kind, number) = head.split_first()?;
        let number = number.iter().fold(0, |sum, byte| sum << 8 | u32::from(*byte));
        let kind = PartKind::of(*kind);
        match kind {
            Some(PartKind::Working | PartKind::Ready) => return None,
            Some(PartKind::Unknown) => return Some(Err(PeerSilence::Unknown)),
            // A message before it was lost, or the answer has no end.
            _ if number != self.parts => return Some(Err(PeerSilence::Silent)),
            _ if self.bytes.len() + content.len() > MAX_ANSWER_BYTES => {
                return Some(Err(PeerSilence::Silent));
            }
            Some(PartKind::Part | PartKind::Last) => self.bytes.extend_from_slice(content),
            None => return Some(Err(PeerSilence::Unknown)),
        }
        self.parts += 1;
        (kind == Some(PartKind::Last)).then(|| Ok(std::mem::take(&mut self.bytes)))
    }
}

/// The messages of an answer.
fn parts(answer: &[u8]) -> Vec<Bytes> {
    let chunks: Vec<_> = answer.chunks(PART_BYTES).collect();
    let chunks = if chunks.is_empty() { vec![&[][..]] } else { chunks };
    let last = chunks.len() - 1;
    let part = |(at, content): (usize, &[u8])| {
        let kind = if at == last { PartKind::Last } else { PartKind::Part };
        kind.message(u32::try_from(at).unwrap_or(u32::MAX), content)
    };
    chunks.into_iter().enumerate().map(part).collect()
}

impl Peers {
    pub(super) fn new(shared: Arc<StoreShared>) -> Self {
        Self { shared }
    }

    /// The live instances, this one included, by name.
    #[must_use]
    pub fn members(&self) -> Vec<Member> {
        self.shared.members.live()
    }

    /// This run of this process.
    #[must_use]
    pub fn this(&self) -> u64 {
        self.shared.this.process
    }

    /// The owners of partitions, as their last checkpoints say. One that is not live any more may still
    /// send until its lease ends.
    #[must_use]
    pub fn owners(&self) -> Vec<PartitionOwner> {
        let owners = self.shared.store.status().partitions;
        owners.into_iter().filter_map(|(_, owner)| owner).collect()
    }

    /// Whether a request of this size can be sent.
    #[must_use]
    pub fn takes(&self, bytes: usize) -> bool {
        bytes <= self.client().server_info().max_payload
    }

    /// The number of partitions of the cluster.
    #[must_use]
    pub fn partitions(&self) -> u16 {
        self.shared.store.record().partitions
    }

    /// This instance hands its partitions over and claims none, until this is taken back.
    pub fn drain(&self, drain: bool) {
        self.shared.members.drain(drain);
    }

    /// Asks an instance. Waits `longest` as long as it works.
    ///
    /// # Errors
    ///
    /// There is no whole answer.
    pub async fn ask(
        &self,
        process: u64,
        request: Bytes,
        longest: Duration,
    ) -> Result<Vec<u8>, PeerSilence> {
        let (client, names) = (self.client(), self.shared.store.names());
        if !self.takes(request.len()) {
            return Err(PeerSilence::TooLarge);
        }
        // It would wait in the client for a connection, and could be carried out much later.
        if client.connection_state() != State::Connected {
            return Err(PeerSilence::Silent);
        }
        let (subject, inbox) = (names.questions(process), self.new_inbox());
        let answers = request_all(client, subject, inbox, request, SILENCE).await;
        let mut answers = answers.map_err(|_| PeerSilence::Silent)?;
        let (deadline, mut answer) = (Instant::now() + longest, IncomingAnswer::default());
        loop {
            let wait = SILENCE.min(deadline.saturating_duration_since(Instant::now()));
            let Ok(Some(message)) = timeout(wait, answers.next()).await else {
                return Err(PeerSilence::Silent);
            };
            // No instance listens there.
            if message.status.is_some() {
                return Err(PeerSilence::Silent);
            }
            // Only a `Ready` can be answered.
            if let Some(ready) = message.reply.filter(|ready| names.is_answer(ready)) {
                let confirmed = client.publish(ready, Bytes::new()).await;
                confirmed.map_err(|_| PeerSilence::Silent)?;
            }
            if let Some(answer) = answer.take(&message.payload) {
                return answer;
            }
        }
    }

    /// Answers the requests of other instances from now on, on the runtime of the caller.
    pub async fn serve(&self, handler: PeerHandler) {
        let subject = self.shared.store.names().questions(self.this());
        let mut requests = match self.client().subscribe(subject).await {
            Ok(requests) => requests,
            Err(error) => return error!(%error, "cannot listen to other instances"),
        };
        let this = self.clone();
        tokio::spawn(async move {
            let turns = Arc::new(Semaphore::new(MAX_AT_ONCE));
            while let Some(request) = requests.next().await {
                let Ok(turn) = Arc::clone(&turns).acquire_owned().await else { return };
                let (this, handler) = (this.clone(), Arc::clone(&handler));
                tokio::spawn(async move {
                    this.answer(request, &handler).await;
                    drop(turn);
                });
            }
        });
    }

    async fn answer(&self, request: Message, handler: &PeerHandler) {
        let names = self.shared.store.names();
        let Some(reply) = request.reply.filter(|reply| names.is_answer(reply)) else {
            return debug!("a request of another instance cannot be answered");
        };
        let client = self.client();
        if !self.is_wanted(&reply).await {
            return debug!("a request of another instance is too old, and is not carried out");
        }
        let send = async |message: Bytes| match client.publish(reply.clone(), message).await {
            Ok(()) => true,
            Err(error) => {
                debug!(%error, "an answer to another instance cannot be sent");
                false
            }
        };
        let mut answer = pin!(handler(request.payload));
        let answer = loop {
            tokio::select! {
                answer = &mut answer => break answer,
                () = sleep(WORKING_EVERY) => {
                    if !send(PartKind::Working.message(0, &[])).await {
                        return;
                    }
                }
            }
        };
        let messages = match &answer {
            Some(answer) => parts(answer),
            None => vec![PartKind::Unknown.message(0, &[])],
        };
        for message in messages {
            if !send(message).await {
                return;
            }
        }
    }

    /// Whether the sender of a request still waits for its answer.
    async fn is_wanted(&self, reply: &Subject) -> bool {
        let asked = BootTime::now();
        // Not an inbox of the client: an instance may publish only below the name of the cluster.
        let inbox = self.new_inbox();
        let ready = PartKind::Ready.message(0, &[]);
        let answers = request_all(self.client(), reply.clone(), inbox, ready, SILENCE).await;
        let Ok(mut answers) = answers else { return false };
        // Without a sender that listens, the servers answer at once.
        let confirmed = timeout(SILENCE, answers.next()).await;
        // This process may have been stopped after it had asked.
        let took = BootTime::now().saturating_since(asked);
        matches!(confirmed, Ok(Some(answer)) if answer.status.is_none()) && took < SILENCE
    }

    /// For the answer to one request.
    fn new_inbox(&self) -> String {
        let token = format!("{:016x}", u64::from_be_bytes(random()));
        self.shared.store.names().answer(self.this(), &token)
    }

    fn client(&self) -> &Client {
        self.shared.store.client()
    }
}

impl fmt::Debug for Peers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Peers").field(&self.shared).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(messages: &[Bytes]) -> Option<Result<Vec<u8>, PeerSilence>> {
        let mut answer = IncomingAnswer::default();
        messages.iter().find_map(|message| answer.take(message))
    }

    #[test]
    fn an_answer_of_any_size_is_read_as_it_was_sent() {
        for bytes in [0, 1, PART_BYTES, PART_BYTES + 1, 3 * PART_BYTES] {
            let answer: Vec<u8> = (0..=250).cycle().take(bytes).collect();
            let messages = parts(&answer);
            assert!(messages.iter().all(|message| message.len() <= PART_BYTES + HEAD_BYTES));
            assert_eq!(read(&messages), Some(Ok(answer)));
        }
    }

    #[test]
    fn an_answer_with_a_lost_message_is_none() {
        let messages = parts(&vec![7; 3 * PART_BYTES]);
        assert_eq!(read(&messages[1..]), Some(Err(PeerSilence::Silent)));
        let gap = [messages[0].clone(), messages[2].clone()];
        assert_eq!(read(&gap), Some(Err(PeerSilence::Silent)));
        assert_eq!(read(&messages[..2]), None, "it is awaited");
    }

    #[test]
    fn an_instance_that_works_is_waited_for_and_another_version_is_named() {
        let working = PartKind::Working.message(0, &[]);
        let mut answer = IncomingAnswer::default();
        assert_eq!(answer.take(&working), None);
        assert_eq!(answer.take(&parts(b"yes")[0]), Some(Ok(b"yes".to_vec())));
        let unknown = PartKind::Unknown.message(0, &[]);
        assert_eq!(read(&[unknown]), Some(Err(PeerSilence::Unknown)));
        assert_eq!(read(&[Bytes::from_static(&[9, 0, 0, 0, 0])]), Some(Err(PeerSilence::Unknown)));
        assert_eq!(read(&[Bytes::from_static(&[1])]), Some(Err(PeerSilence::Silent)));
    }
}
