//! The live instances of the cluster.
//!
//! Each announces itself every half second, and when something changes. Announcements are not stored:
//! they decide which instance should own which partition, never whether one may send. So a wrong list
//! costs time, and nothing else.

#![expect(clippy::disallowed_methods, reason = "waits, which the clock of the loop has no part in")]

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info};

use super::checkpoint::StoreInstance;
use super::connect::Store;
use super::names::MAX_PARTITIONS;
use super::record;
use super::sharing::LISTEN;
use super::status::PartitionOwner;
use crate::task::Partition;

/// Of the announcements.
const FORMAT: u32 = 1;

const ANNOUNCE_EVERY: Duration = Duration::from_millis(500);

/// An instance that was not heard for longer is dead, for now.
const HEARD_WITHIN: Duration = Duration::from_secs(3);

/// Announcements of invented instances cannot fill the memory.
const MAX_MEMBERS: usize = 256;

const MAX_NAME_BYTES: usize = 255;

/// A live instance, as its last announcement says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Of this run of the process.
    pub process: u64,
    /// `--node-id`
    pub node: String,
    pub version: String,
    /// The newest format of the cluster that it reads.
    pub format: u32,
    /// Hands everything over and claims nothing.
    pub is_draining: bool,
    /// Stops.
    pub is_leaving: bool,
    /// Partitions that it cannot own, because it cannot read them.
    pub refuses: Vec<Partition>,
    pub up_for: Duration,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Announcement {
    format: u32,
    /// 16 hexadecimal digits.
    process: String,
    node: String,
    version: String,
    reads: u32,
    draining: bool,
    leaving: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    refuses: Vec<u16>,
    up_ms: u64,
}

/// The list of the live instances, this one included.
pub(super) struct Members {
    store: Store,
    started: Instant,
    list: Mutex<MemberList>,
    changes: watch::Sender<u64>,
    /// Something must be announced at once.
    news: tokio::sync::Notify,
}

struct MemberList {
    this: Member,
    others: HashMap<u64, (Member, Instant)>,
}

impl Member {
    /// An owner of a partition that is not heard any more.
    pub(crate) fn silent(owner: PartitionOwner) -> Self {
        Self {
            process: owner.process,
            node: owner.node,
            version: String::new(),
            format: record::FORMAT,
            is_draining: false,
            is_leaving: false,
            refuses: Vec::new(),
            up_for: Duration::ZERO,
        }
    }
}

#[cfg(test)]
impl Member {
    /// One that may own partitions.
    pub(crate) fn for_tests(process: u64, up_for: Duration) -> Self {
        Self {
            process,
            node: format!("n{process}"),
            version: String::new(),
            format: 1,
            is_draining: false,
            is_leaving: false,
            refuses: Vec::new(),
            up_for,
        }
    }
}

impl Members {
    /// Announces this instance, and listens to the others until those that live are known.
    pub(super) async fn start(store: &Store, this: &StoreInstance) -> Arc<Self> {
        let this = Member {
            process: this.process,
            node: this.node.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            format: record::FORMAT,
            is_draining: false,
            is_leaving: false,
            refuses: Vec::new(),
            up_for: Duration::ZERO,
        };
        let members = Arc::new(Self {
            store: store.clone(),
            started: Instant::now(),
            list: Mutex::new(MemberList { this, others: HashMap::new() }),
            changes: watch::Sender::new(0),
            news: tokio::sync::Notify::new(),
        });
        let hearing = Arc::clone(&members);
        store.listen(store.names().alive(), move |heard| hearing.hear(&heard)).await;
        tokio::spawn(Arc::clone(&members).run());
        sleep(LISTEN).await;
        members
    }

    /// Sorted by node and process; heard within 3 s.
    pub(super) fn live(&self) -> Vec<Member> {
        let now = Instant::now();
        let list = self.list.lock();
        let others = list.others.values().filter(|(_, heard)| now - *heard <= HEARD_WITHIN);
        let others = others.map(|(member, heard)| Member {
            up_for: member.up_for + (now - *heard),
            ..member.clone()
        });
        let this = Member { up_for: now - self.started, ..list.this.clone() };
        let mut live: Vec<_> = others.chain([this]).collect();
        live.sort_by(|a, b| (&a.node, a.process).cmp(&(&b.node, b.process)));
        live
    }

    /// Counts the changes of the list.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// This instance hands everything over and claims nothing, until this is taken back.
    pub(super) fn drain(&self, drain: bool) {
        let is_new = {
            let mut list = self.list.lock();
            std::mem::replace(&mut list.this.is_draining, drain) != drain
        };
        if is_new {
            self.changed();
            self.news.notify_one();
        }
    }

    /// This instance cannot own a partition, for as long as it runs.
    pub(super) fn refuse(&self, partition: Partition) {
        self.list.lock().this.refuses.push(partition);
        self.changed();
        self.news.notify_one();
    }

    /// This instance stops.
    pub(super) async fn leave(&self) {
        self.list.lock().this.is_leaving = true;
        self.changed();
        self.announce().await;
    }

    /// Sends what this process has published.
    pub(super) async fn flush(&self) {
        // A lost hint costs a moment.
        let _ = self.store.client().flush().await;
    }

    async fn run(self: Arc<Self>) {
        loop {
            self.announce().await;
            // Either is a reason to announce.
            let _ = timeout(ANNOUNCE_EVERY, self.news.notified()).await;
            self.forget_dead();
        }
    }

    async fn announce(&self) {
        let announcement = {
            let list = self.list.lock();
            Announcement::of(&Member { up_for: self.started.elapsed(), ..list.this.clone() })
        };
        let Ok(payload) = serde_json::to_vec(&announcement) else { return };
        let client = self.store.client();
        // It would wait in the client for a connection, and be old then.
        if client.connection_state() != async_nats::connection::State::Connected {
            return;
        }
        let sent = client.publish(self.store.names().alive(), payload.into());
        // The next one says the same, and is newer.
        if timeout(ANNOUNCE_EVERY, sent).await.is_ok_and(|sent| sent.is_ok()) {
            return;
        }
        debug!("this instance cannot be announced");
    }

    fn hear(&self, payload: &[u8]) {
        let Some(member) = Announcement::parse(payload).and_then(Announcement::into_member) else {
            return debug!("the announcement of an instance cannot be read");
        };
        let (is_new, is_known) = {
            let mut list = self.list.lock();
            let is_known = list.others.contains_key(&member.process);
            if member.process == list.this.process
                || (!is_known && list.others.len() >= MAX_MEMBERS)
            {
                return;
            }
            let new = (member.clone(), Instant::now());
            let before = list.others.insert(member.process, new);
            let differs = |(before, _)| Member { up_for: member.up_for, ..before } != member;
            (before.is_none_or(differs), is_known)
        };
        if !is_known {
            // So that it knows this one before it claims anything.
            self.news.notify_one();
        }
        if is_new {
            let Member { node, is_draining, is_leaving, .. } = &member;
            let node = node.escape_debug().to_string();
            info!(node, draining = is_draining, leaving = is_leaving, "heard of an instance");
            self.changed();
        }
    }

    fn forget_dead(&self) {
        let dead: Vec<_> = {
            let now = Instant::now();
            let mut list = self.list.lock();
            let is_dead = |(_, heard): &(Member, Instant)| now - *heard > HEARD_WITHIN;
            list.others.extract_if(|_, member| is_dead(member)).map(|(_, dead)| dead.0).collect()
        };
        for member in &dead {
            let node = member.node.escape_debug().to_string();
            info!(node, "an instance is not heard any more");
        }
        if !dead.is_empty() {
            self.changed();
        }
    }

    fn changed(&self) {
        self.changes.send_modify(|changes| *changes += 1);
    }
}

impl Announcement {
    fn of(member: &Member) -> Self {
        Self {
            format: FORMAT,
            process: format!("{:016x}", member.process),
            node: member.node.clone(),
            version: member.version.clone(),
            reads: member.format,
            draining: member.is_draining,
            leaving: member.is_leaving,
            refuses: member.refuses.iter().map(|partition| partition.0).collect(),
            up_ms: u64::try_from(member.up_for.as_millis()).unwrap_or(u64::MAX),
        }
    }

    fn parse(payload: &[u8]) -> Option<Self> {
        serde_json::from_slice(payload).ok().filter(|parsed: &Self| parsed.format <= FORMAT)
    }

    fn into_member(self) -> Option<Member> {
        let texts = [&self.node, &self.version];
        let is_long = texts.iter().any(|text| text.len() > MAX_NAME_BYTES);
        if is_long || self.refuses.len() > usize::from(MAX_PARTITIONS) {
            return None;
        }
        Some(Member {
            process: u64::from_str_radix(&self.process, 16).ok()?,
            node: self.node,
            version: self.version,
            format: self.reads,
            is_draining: self.draining,
            is_leaving: self.leaving,
            refuses: self.refuses.into_iter().map(Partition).collect(),
            up_for: Duration::from_millis(self.up_ms),
        })
    }
}

impl fmt::Debug for Members {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Members").field("live", &self.live()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member() -> Member {
        Member {
            process: 7,
            node: "a".to_owned(),
            version: "1.2.3".to_owned(),
            format: 1,
            is_draining: true,
            is_leaving: false,
            refuses: vec![Partition(3)],
            up_for: Duration::from_millis(1234),
        }
    }

    #[test]
    fn an_announcement_is_read_as_it_was_written() {
        let payload = serde_json::to_vec(&Announcement::of(&member())).unwrap();
        let read = Announcement::parse(&payload).and_then(Announcement::into_member);
        assert_eq!(read, Some(member()));
    }

    #[test]
    fn an_announcement_of_a_newer_format_or_without_sense_is_left_out() {
        let written = Announcement::of(&member());
        let newer = Announcement { format: FORMAT + 1, ..written };
        assert_eq!(Announcement::parse(&serde_json::to_vec(&newer).unwrap()), None);
        assert_eq!(Announcement::parse(b"{"), None);
        let long = Member { node: "x".repeat(256), ..member() };
        assert_eq!(Announcement::of(&long).into_member(), None);
        let many = Member { refuses: vec![Partition(1); 1025], ..member() };
        assert_eq!(Announcement::of(&many).into_member(), None);
        let strange = Announcement { process: "seven".to_owned(), ..Announcement::of(&member()) };
        assert_eq!(strange.into_member(), None);
    }
}
