//! The token list file. Each line is `NAME ROLES ID:HASH`, and optional fields: `replicas=URL,…`,
//! `rate=N`, `expires=TIME`, `places=N`, `bytes=SIZE`.

use std::collections::HashSet;
use std::io::{Error, ErrorKind::InvalidData};
use std::num::{NonZeroU32, NonZeroU64};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use bytesize::ByteSize;

use super::{Grant, Holder, Role, StoredToken, TokenList, TokenListError, token};
use crate::task::{Node, Quota, Timestamp};
use crate::text::unmarked;
use crate::trusted_file::{FileContent, UntrustedFile, read_trusted};

/// Size limit of the list: about ten thousand tokens.
const MAX_BYTES: u64 = 4 << 20;

const MAX_NAME_BYTES: usize = 64;
const NAME: &str = "must be 1 to 64 of A-Z a-z 0-9 . _ - @, and not a token";

pub(super) fn read(path: &Path) -> Result<TokenList, TokenListError> {
    let file = path.display().to_string();
    let unreadable = |source| TokenListError::Unreadable { file: file.clone(), source };
    let bytes = match read_trusted(path, FileContent::Public, MAX_BYTES) {
        Ok(bytes) => bytes,
        Err(UntrustedFile::Unreadable(source)) => return Err(unreadable(source)),
        Err(source) => return Err(TokenListError::Untrusted { file, source }),
    };
    let text = String::from_utf8(bytes);
    let text = text.map_err(|_| unreadable(Error::new(InvalidData, "it is not UTF-8 text")))?;
    parse(&text, &file)
}

pub(super) fn parse(text: &str, file: &str) -> Result<TokenList, TokenListError> {
    let mut tokens = TokenList::default();
    let mut names = HashSet::new();
    for (index, line) in unmarked(text).lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let at = |why| TokenListError::Line { file: file.to_owned(), line: index + 1, why };
        let (stored, grant) = entry(line).map_err(at)?;
        if !names.insert(Arc::clone(&grant.name)) {
            return Err(at(format!("the name {:?} is used twice", grant.name)));
        }
        let holder = Arc::new(Holder::new(grant));
        if tokens.0.insert(stored.id(), (stored, holder)).is_some() {
            return Err(at("this hash is used twice".to_owned()));
        }
    }
    if tokens.is_empty() {
        Err(TokenListError::Empty { file: file.to_owned() })
    } else {
        Ok(tokens)
    }
}

/// Errors quote nothing of the line, since any word may be a token in the wrong place.
fn entry(line: &str) -> Result<(StoredToken, Grant), String> {
    if token::is_in(line) {
        return Err(token::IN_THE_LIST.to_owned());
    }
    let mut words = line.split_whitespace();
    let (Some(name), Some(roles), Some(hash)) = (words.next(), words.next(), words.next()) else {
        return Err("a line must be NAME ROLES HASH, as printed by replicator token new".to_owned());
    };
    let stored = hash.parse::<StoredToken>()?;
    let mut grant = Grant {
        name: Some(name)
            .filter(|name| is_name(name))
            .ok_or_else(|| format!("the name {NAME}"))?
            .into(),
        roles: self::roles(roles)?,
        replicas: None,
        rate: None,
        expires: None,
        quota: Quota::default(),
    };
    for word in words {
        match word.split_once('=') {
            Some(("replicas", list)) if grant.replicas.is_none() => {
                grant.replicas = Some(replicas(list)?);
            }
            Some(("rate", number)) if grant.rate.is_none() => {
                let rate = number.parse::<NonZeroU32>();
                let wrong = format!("rate= must be a number from 1 to {}", u32::MAX);
                grant.rate = Some(rate.map_err(|_| wrong)?);
            }
            Some(("expires", time)) if grant.expires.is_none() => {
                grant.expires = Some(expiry(time).map_err(|why| format!("expires= {why}"))?);
            }
            Some(("places", number)) if grant.quota.places.is_none() => {
                let wrong = "places= must be a number from 1";
                grant.quota.places = Some(number.parse().map_err(|_| wrong.to_owned())?);
            }
            Some(("bytes", size)) if grant.quota.bytes.is_none() => {
                let bytes = size.parse::<ByteSize>().map_or(0, |size| size.as_u64());
                let wrong = "bytes= must be a size from 1B, such as 64MiB";
                grant.quota.bytes = Some(NonZeroU64::new(bytes).ok_or_else(|| wrong.to_owned())?);
            }
            _ => {
                let known = "replicas=…, rate=…, expires=…, places=… and bytes=…";
                return Err(format!("only {known} may follow the hash, each once"));
            }
        }
    }
    Ok((stored, grant))
}

/// The time of day of a date.
const MIDNIGHT: &str = "T00:00:00Z";

pub(super) fn expiry(text: &str) -> Result<Timestamp, &'static str> {
    const DATE_CHARS: usize = 10;
    let time = if text.len() == DATE_CHARS { format!("{text}{MIDNIGHT}") } else { text.to_owned() };
    let time = humantime::parse_rfc3339(&time).ok();
    let since = time.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    let nanos = since.and_then(|since| u64::try_from(since.as_nanos()).ok());
    nanos.map(Timestamp).ok_or(
        "must be a date such as 2027-01-31, of which it means the beginning, or a time such as 2027-01-31T12:00:00Z, in UTC",
    )
}

pub(super) fn expiry_text(expires: Timestamp) -> String {
    let text = humantime::format_rfc3339(UNIX_EPOCH + Duration::from_nanos(expires.0)).to_string();
    text.strip_suffix(MIDNIGHT).map_or_else(|| text.clone(), str::to_owned)
}

fn roles(text: &str) -> Result<Vec<Role>, String> {
    let roles: Result<_, _> = text.split(',').map(str::parse).collect();
    let wrong = "the second word must be a comma-separated list of replicate, observe and operate";
    roles.map_err(|_: String| wrong.to_owned())
}

fn replicas(list: &str) -> Result<Vec<Node>, String> {
    let node = |(at, text): (usize, &str)| {
        let node = Node::parse(text).map_err(|error| error.to_string());
        let node = node.and_then(|node| is_listed(&node).map(|()| node));
        node.map_err(|why| format!("address {} of replicas= {why}", at + 1))
    };
    let mut replicas: Vec<_> = list.split(',').enumerate().map(node).collect::<Result<_, _>>()?;
    replicas.sort();
    replicas.dedup();
    Ok(replicas)
}

/// Rejects addresses with a comma, the separator of the list. A path may contain one, and a
/// full-width comma in a host is normalized to one.
pub(super) fn is_listed(node: &Node) -> Result<(), String> {
    match node.as_str().contains(',') {
        true => Err("must not contain a comma, which separates addresses".to_owned()),
        false => Ok(()),
    }
}

pub(super) fn check_name(name: &str) -> Result<&str, String> {
    if is_name(name) { Ok(name) } else { Err(format!("the name {name:?} {NAME}")) }
}

fn is_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-@".contains(c);
    (1..=MAX_NAME_BYTES).contains(&name.len()) && name.chars().all(plain) && !token::is_in(name)
}

pub(super) fn line(stored: &StoredToken, grant: &Grant) -> String {
    let roles: Vec<_> = grant.roles.iter().map(Role::to_string).collect();
    let mut line = format!("{} {} {stored}", grant.name, roles.join(","));
    if let Some(replicas) = &grant.replicas {
        let replicas: Vec<_> = replicas.iter().map(Node::as_str).collect();
        line = format!("{line} replicas={}", replicas.join(","));
    }
    if let Some(rate) = grant.rate {
        line = format!("{line} rate={rate}");
    }
    if let Some(expires) = grant.expires {
        line = format!("{line} expires={}", expiry_text(expires));
    }
    if let Some(places) = grant.quota.places {
        line = format!("{line} places={places}");
    }
    if let Some(bytes) = grant.quota.bytes {
        line = format!("{line} bytes={bytes}");
    }
    line
}
