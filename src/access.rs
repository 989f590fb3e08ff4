//! Authentication: tokens, their roles and rate limits, and the token list file. No HTTP: the table
//! of required roles is in `server::access`.
//!
//! `replicator token new` creates tokens from 256 random bits, so an unsalted SHA-256 is enough:
//! guessing is infeasible, and a slow password hash would let anyone burn CPU with wrong tokens. A
//! string with a wrong checksum is rejected before hashing.
//!
//! Guarantees: tokens are compared in constant time, never appear in `Debug` or error texts, and a
//! list is loaded completely or not at all. Start with [`TokenList::read`] and [`TokenList::find`].

use std::collections::HashMap;
use std::fmt;
use std::num::NonZeroU32;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use subtle::ConstantTimeEq;
use thiserror::Error;

use crate::task::{Client, Node, Quota, Timestamp};
use crate::trusted_file::UntrustedFile;

mod bucket;
mod file;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod token;

pub use bucket::Bucket;
pub use token::{NewToken, StoredToken};
use token::{PresentedToken, TokenId};

/// A token may have several roles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Post writes only.
    Replicate,
    Observe,
    /// Includes [`Self::Observe`], but not posting writes.
    Operate,
}

pub const ROLES: [(&str, Role); 3] =
    [("replicate", Role::Replicate), ("observe", Role::Observe), ("operate", Role::Operate)];

impl Role {
    pub fn covers(self, other: Self) -> bool {
        self == other || (self, other) == (Self::Operate, Self::Observe)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Replicate => "replicate",
            Self::Observe => "observe",
            Self::Operate => "operate",
        })
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = ROLES.iter().find(|(name, _)| *name == text);
        let wrong = || format!("unknown role {text:?}, expected replicate, observe or operate");
        found.map(|(_, role)| *role).ok_or_else(wrong)
    }
}

/// The rights of a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The holder's name in the audit log.
    pub name: Arc<str>,
    pub roles: Vec<Role>,
    /// Sorted. Writes may name only these; `None` allows all.
    pub replicas: Option<Vec<Node>>,
    /// Requests per second.
    pub rate: Option<NonZeroU32>,
    /// The first moment at which the token is not valid any more.
    pub expires: Option<Timestamp>,
    pub quota: Quota,
}

impl Grant {
    /// `None` for a token that never expires, zero for one that has.
    pub fn time_left(&self, now: Timestamp) -> Option<Duration> {
        self.expires.map(|expires| expires.saturating_since(now))
    }

    pub fn has_expired(&self, now: Timestamp) -> bool {
        self.time_left(now).is_some_and(|left| left.is_zero())
    }

    pub fn allows(&self, role: Role) -> bool {
        self.roles.iter().any(|own| own.covers(role))
    }

    /// Formats the entry of a token with this grant.
    pub fn line(&self, stored: &StoredToken) -> String {
        file::line(stored, self)
    }

    pub fn may_name(&self, node: &Node) -> bool {
        self.replicas.as_ref().is_none_or(|replicas| replicas.binary_search(node).is_ok())
    }
}

/// A date or a time in UTC. The error continues a sentence after the name of the field.
pub fn parse_expiry(text: &str) -> Result<Timestamp, &'static str> {
    file::expiry(text)
}

/// As [`parse_expiry`] takes it.
pub fn expiry_text(expires: Timestamp) -> String {
    file::expiry_text(expires)
}

/// Fails with the rule for names.
pub fn check_name(name: &str) -> Result<&str, String> {
    file::check_name(name)
}

/// Checks that the list can contain an address. The error continues a sentence after the address.
pub fn check_replica(node: &Node) -> Result<(), String> {
    file::is_listed(node)
}

/// How long before its expiry the log warns of a token that is used.
const EXPIRES_SOON: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// A token in use: its grant and the state of its rate limit.
#[derive(Debug)]
pub struct Holder {
    pub grant: Grant,
    bucket: Option<Mutex<Bucket>>,
    warned_of_expiry: AtomicBool,
}

impl Holder {
    fn new(grant: Grant) -> Self {
        let bucket = grant.rate.map(|rate| Mutex::new(Bucket::new(rate)));
        Self { grant, bucket, warned_of_expiry: AtomicBool::new(false) }
    }

    /// Whether the token expires soon. Only once.
    pub fn warns_of_expiry(&self, now: Timestamp) -> bool {
        self.grant.time_left(now).is_some_and(|left| left < EXPIRES_SOON)
            && !self.warned_of_expiry.swap(true, Ordering::Relaxed)
    }

    /// Charges a request to the rate limit, or fails with the time to wait.
    pub fn spend(&self, now: Instant) -> Result<(), Duration> {
        self.bucket().map_or(Ok(()), |mut bucket| bucket.spend(now))
    }

    /// Charges the rest of a batch whose first request was admitted. Fails with the time to wait if
    /// another batch has taken more than there was since.
    pub fn spend_more(&self, requests: u32, now: Instant) -> Result<(), Duration> {
        self.bucket().map_or(Ok(()), |mut bucket| bucket.spend_more(requests, now))
    }

    fn bucket(&self) -> Option<MutexGuard<'_, Bucket>> {
        Some(self.bucket.as_ref()?.lock())
    }
}

#[derive(Debug, Error)]
pub enum TokenListError {
    #[error("cannot read the token list {file}: {source}")]
    Unreadable { file: String, source: std::io::Error },
    /// Anyone who can write to the list can grant themselves every role.
    #[error("the token list {file} {source}")]
    Untrusted { file: String, source: UntrustedFile },
    /// Quotes nothing that could be a token.
    #[error("{file}, line {line}: {why}")]
    Line { file: String, line: usize, why: String },
    /// An empty list would lock everyone out.
    #[error("{file} contains no token: create one with replicator token new")]
    Empty { file: String },
}

#[derive(Default)]
pub struct TokenList(HashMap<TokenId, (StoredToken, Arc<Holder>)>);

impl fmt::Debug for TokenList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} tokens", self.0.len())
    }
}

impl TokenList {
    /// A single wrong line rejects the whole list.
    pub fn read(path: &Path) -> Result<Self, TokenListError> {
        file::read(path)
    }

    /// Parses a list that is not yet in a file; `file` is its name in errors.
    pub fn parse(list: &str, file: &Path) -> Result<Self, TokenListError> {
        file::parse(list, &file.display().to_string())
    }

    pub fn find(&self, token: &str) -> Option<&Arc<Holder>> {
        let presented = PresentedToken::parse(token)?;
        let (stored, holder) = self.0.get(presented.id())?;
        let same = stored.hash().ct_eq(&presented.hash());
        bool::from(same).then_some(holder)
    }

    /// Whether this token is in the list, with this grant.
    pub fn holds(&self, holder: &Arc<Holder>) -> bool {
        self.0.values().any(|(_, held)| Arc::ptr_eq(held, holder))
    }

    /// Keeps the rate limit state of tokens that a reload did not change, so that a reload does not
    /// refill any bucket.
    pub fn take_over(&mut self, old: &Self) {
        for (id, (stored, holder)) in &mut self.0 {
            if let Some((before, held)) = old.0.get(id)
                && before == stored
                && held.grant == holder.grant
            {
                *holder = Arc::clone(held);
            }
        }
    }

    /// Ids and grants, by name. They contain no secrets.
    pub fn grants(&self) -> Vec<(String, &Grant)> {
        let entries = self.0.values();
        let mut grants: Vec<_> =
            entries.map(|(stored, holder)| (stored.id_text(), &holder.grant)).collect();
        grants.sort_by(|(_, a), (_, b)| a.name.cmp(&b.name));
        grants
    }

    /// Of the tokens that have one.
    pub fn quotas(&self) -> HashMap<Client, Quota> {
        let grants = self.0.values().map(|(_, holder)| &holder.grant);
        let limited = grants.filter(|grant| grant.quota != Quota::default());
        limited.map(|grant| (Client::Token(Arc::clone(&grant.name)), grant.quota)).collect()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests;
