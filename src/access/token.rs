//! The format of a token: `rpl_`, an id of 12 hex digits, `_`, a secret of 64 hex digits, and 8 hex
//! digits of the CRC-32 of all that.
//!
//! The checksum distinguishes a token from a made-up password or a truncated copy, and lets secret
//! scanners recognize leaked tokens reliably.

use std::fmt;
use std::str::FromStr;

use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom, SystemRandom};
use thiserror::Error;

const PREFIX: &str = "rpl_";
const ID_BYTES: usize = 6;
const SECRET_BYTES: usize = 32;
const TOKEN_CHARS: usize = PREFIX.len() + 2 * ID_BYTES + 1 + 2 * SECRET_BYTES + 8;

pub(super) const IN_THE_LIST: &str =
    "this contains a token: the list must contain only its hash, create a new token";

/// The lookup key of a token. Not secret.
pub(super) type TokenId = [u8; ID_BYTES];

type Hash = [u8; 32];

#[derive(Debug, Error)]
#[error("the random number generator of the system failed")]
pub struct NoRandomness;

/// A newly created token, the only time its text is available.
pub struct NewToken(String);

impl NewToken {
    pub fn make() -> Result<Self, NoRandomness> {
        let mut random = [0; ID_BYTES + SECRET_BYTES];
        SystemRandom::new().fill(&mut random).map_err(|_| NoRandomness)?;
        let (id, secret) = random.split_at(ID_BYTES);
        let text = format!("{PREFIX}{}_{}", hex(id), hex(secret));
        let sum = crc32fast::hash(text.as_bytes());
        Ok(Self(format!("{text}{sum:08x}")))
    }

    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// The id and hash for the list. Never `None`.
    pub fn stored(&self) -> Option<StoredToken> {
        let presented = PresentedToken::parse(&self.0)?;
        Some(StoredToken { id: presented.id, hash: presented.hash() })
    }
}

/// The id and hash of a token, formatted as `id:hash` in hex digits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredToken {
    id: TokenId,
    hash: Hash,
}

impl StoredToken {
    pub(super) fn id(&self) -> TokenId {
        self.id
    }

    /// As in the token, behind its prefix.
    pub(super) fn id_text(&self) -> String {
        hex(&self.id)
    }

    pub(super) fn hash(&self) -> &Hash {
        &self.hash
    }
}

impl fmt::Display for StoredToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", hex(&self.id), hex(&self.hash))
    }
}

impl FromStr for StoredToken {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        if text.starts_with(PREFIX) {
            return Err(IN_THE_LIST);
        }
        let stored = text
            .split_once(':')
            .and_then(|(id, hash)| Some(Self { id: unhex(id)?, hash: unhex(hash)? }));
        stored.ok_or("the hash must be one printed by replicator token new")
    }
}

/// A well-formed token from a client.
pub(super) struct PresentedToken<'a> {
    text: &'a str,
    id: TokenId,
}

impl<'a> PresentedToken<'a> {
    pub(super) fn parse(text: &'a str) -> Option<Self> {
        if text.len() != TOKEN_CHARS {
            return None;
        }
        let (body, sum) = text.split_at_checked(TOKEN_CHARS - 8)?;
        let sum: [u8; 4] = unhex(sum)?;
        if u32::from_be_bytes(sum) != crc32fast::hash(body.as_bytes()) {
            return None;
        }
        let (id, secret) = body.strip_prefix(PREFIX)?.split_once('_')?;
        unhex::<SECRET_BYTES>(secret)?;
        Some(Self { text, id: unhex(id)? })
    }

    pub(super) fn id(&self) -> &TokenId {
        &self.id
    }

    pub(super) fn hash(&self) -> Hash {
        let mut hash = [0; 32];
        for (to, from) in hash.iter_mut().zip(digest(&SHA256, self.text.as_bytes()).as_ref()) {
            *to = *from;
        }
        hash
    }
}

/// Whether a text contains a token, or enough of one to reveal part of its secret.
pub(super) fn is_in(text: &str) -> bool {
    text.match_indices(PREFIX).any(|(at, _)| {
        let rest =
            text.get(at + PREFIX.len()..).and_then(|rest| rest.split_at_checked(2 * ID_BYTES));
        rest.is_some_and(|(id, rest)| unhex::<ID_BYTES>(id).is_some() && rest.starts_with('_'))
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Parses exactly `N` bytes from lower-case digits, so that a token has only one spelling.
fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        for digit in pair {
            let value = match digit {
                b'0'..=b'9' => digit - b'0',
                b'a'..=b'f' => digit - b'a' + 10,
                _ => return None,
            };
            *byte = (*byte << 4) | value;
        }
    }
    Some(bytes)
}
