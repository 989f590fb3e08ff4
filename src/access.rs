//! Who may ask: tokens, what each may do, and the file that lists them.
//!
//! A token is made by `replicator token new` and never by a person: 256 random bits. That is why a
//! plain SHA-256 of it is kept and looked up at each request, where a password would need a hash
//! that is slow by design: nobody guesses 256 bits, however fast each guess is, and a slow hash
//! would let anyone keep the processor busy with wrong tokens. What was not made so does not
//! look like it (its checksum is wrong) and is refused before anything is hashed.
//!
//! It guarantees that a token is compared in constant time, that nothing here shows one (no
//! `Debug`, no error text), and that a list is taken whole or not at all. It knows no HTTP: what
//! needs which role is the table of `server::access`.
//!
//! Start with [`TokenList::read`] and [`TokenList::find`]; `token` is how one is made and looks, `file`
//! reads the list, `bucket` is how often.

use std::collections::HashMap;
use std::fmt;
use std::num::NonZeroU32;
use std::path::Path;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use subtle::ConstantTimeEq;
use thiserror::Error;

use crate::task::Node;

mod bucket;
mod file;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod token;

pub use bucket::Bucket;
pub use token::{NewToken, NoRandomness, StoredToken};
use token::{TokenId, PresentedToken};

/// What a token may be used for. One may have several.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Post writes, and nothing else.
    Replicate,
    /// Look at everything, change nothing.
    Observe,
    /// Look at everything and change it; post no writes.
    Operate,
}

/// The roles by name, as the list and the command line spell them.
pub const ROLES: [(&str, Role); 3] =
    [("replicate", Role::Replicate), ("observe", Role::Observe), ("operate", Role::Operate)];

impl Role {
    /// Whether who has this role may do what needs `other`.
    #[must_use]
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
        let wrong = || format!("{text:?} is no role, only replicate, observe and operate are");
        found.map(|(_, role)| *role).ok_or_else(wrong)
    }
}

/// What the list says of one token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Who it was given to, as the audit log says it.
    pub name: Arc<str>,
    /// What it may do; at least one.
    pub roles: Vec<Role>,
    /// The only replicas that its writes may name, sorted; `None` is all.
    pub replicas: Option<Vec<Node>>,
    /// Requests a second.
    pub rate: Option<NonZeroU32>,
}

impl Grant {
    /// Whether it may do what needs `role`.
    #[must_use]
    pub fn allows(&self, role: Role) -> bool {
        self.roles.iter().any(|own| own.covers(role))
    }

    /// The line of the list for a token with this grant.
    #[must_use]
    pub fn line(&self, stored: &StoredToken) -> String {
        file::line(stored, self)
    }

    /// Whether its writes may name this replica.
    #[must_use]
    pub fn may_name(&self, node: &Node) -> bool {
        self.replicas.as_ref().is_none_or(|replicas| replicas.binary_search(node).is_ok())
    }
}

/// Checks a name as it may stand in the list and in the log.
///
/// # Errors
///
/// What it must be.
pub fn check_name(name: &str) -> Result<&str, String> {
    file::check_name(name)
}

/// Checks that an address can stand in the list.
///
/// # Errors
///
/// Why not. Reads on after the address.
pub fn check_replica(node: &Node) -> Result<(), String> {
    file::is_listed(node)
}

/// A token that is in use: what it may do, and how often it has.
#[derive(Debug)]
pub struct Holder {
    /// What the list says of it.
    pub grant: Grant,
    bucket: Option<Mutex<Bucket>>,
}

impl Holder {
    fn new(grant: Grant) -> Self {
        let bucket = grant.rate.map(|rate| Mutex::new(Bucket::new(rate)));
        Self { grant, bucket }
    }

    /// Counts so many requests at `now`.
    ///
    /// # Errors
    ///
    /// How long to wait, where it has used up its rate; then nothing is counted.
    pub fn spend(&self, requests: u32, now: Instant) -> Result<(), Duration> {
        let Some(bucket) = &self.bucket else { return Ok(()) };
        // A count is right enough whatever panicked while it was held.
        bucket.lock().unwrap_or_else(PoisonError::into_inner).spend(requests, now)
    }

    /// Counts so many more requests, of one that has been let in: what is over the rate is a debt.
    pub fn owe(&self, requests: u32) {
        if let Some(bucket) = &self.bucket {
            bucket.lock().unwrap_or_else(PoisonError::into_inner).owe(requests);
        }
    }
}

/// Why a list of tokens is not taken.
#[derive(Debug, Error)]
pub enum TokenListError {
    /// It cannot be read.
    #[error("cannot read the list of tokens {file}: {source}")]
    Unreadable {
        /// Which.
        file: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// Whoever may write it makes themselves an operator.
    #[error("{file} can be written by everyone on this machine: chmod o-w it")]
    Writable {
        /// Which.
        file: String,
    },
    /// A line of it is wrong. Shows nothing of what could be a token.
    #[error("{file}, line {line}: {why}")]
    Line {
        /// Which.
        file: String,
        /// Counted from 1.
        line: usize,
        /// What is wrong.
        why: String,
    },
    /// A list without a token would lock everyone out.
    #[error("there is no token in {file}: make one with replicator token new")]
    Empty {
        /// Which.
        file: String,
    },
}

/// All tokens that are good.
#[derive(Default)]
pub struct TokenList(HashMap<TokenId, (StoredToken, Arc<Holder>)>);

impl fmt::Debug for TokenList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} tokens", self.0.len())
    }
}

impl TokenList {
    /// Reads the list.
    ///
    /// # Errors
    ///
    /// [`TokenListError`]: one wrong line and none of it is taken.
    pub fn read(path: &Path) -> Result<Self, TokenListError> {
        file::read(path)
    }

    /// Reads a list that is no file yet; `file` is how it is called in an error.
    ///
    /// # Errors
    ///
    /// [`TokenListError`], as of a file.
    pub fn parse(list: &str, file: &Path) -> Result<Self, TokenListError> {
        file::parse(list, &file.display().to_string())
    }

    /// The holder of a token, if it is a good one.
    #[must_use]
    pub fn find(&self, token: &str) -> Option<&Arc<Holder>> {
        let presented = PresentedToken::parse(token)?;
        let (stored, holder) = self.0.get(presented.id())?;
        let same = stored.hash().ct_eq(&presented.hash());
        bool::from(same).then_some(holder)
    }

    /// Takes over how often the tokens of `old` were used, where nothing was changed about them:
    /// a reload gives nobody a full bucket.
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

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests;
