//! A rule, as operators write it.
//!
//! | rule | allows |
//! | --- | --- |
//! | `http://node-1:8081` | that name, wherever it leads, or that address |
//! | `*.stores.example:8081` | every name under it, not itself |
//! | `10.0.0.0/8:8000-8999` | these addresses, and names that lead to them |
//! | `[fd00::/8]:8081` | the same |
//!
//! Without `http://` or `https://` both, without a port every port.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::str::FromStr;

use ipnet::IpNet;
use thiserror::Error;
use url::{Host, Url};

/// What may be written to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// `None` for both http and https.
    https: Option<bool>,
    place: Place,
    ports: RangeInclusive<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    Name(String),
    /// With its leading dot.
    Under(String),
    /// A single address is a range of one.
    Range {
        net: IpNet,
        single: bool,
    },
}

/// Why a text is no rule. Reads on after the rule.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum RuleError {
    /// Not http, not https.
    #[error("has a scheme that is neither http nor https")]
    Scheme,
    /// Nothing that a host can be.
    #[error("has no valid host: a name, *.suffix, an address or a range such as 10.0.0.0/8")]
    Host,
    /// `*` elsewhere than in front.
    #[error("has a * that does not stand for the first part of a name, as in *.example.org")]
    Star,
    /// `fd00::1:80` can be read in two ways.
    #[error("has an IPv6 address without brackets around it, as in [fd00::1]:8081")]
    Brackets,
    /// `10.1.2.3/8`.
    #[error("has bits beyond the length of its range, it should be {0}")]
    Bits(IpNet),
    /// An IPv4 range in IPv6 clothes.
    #[error("is a range of IPv4 addresses written as IPv6: write it as IPv4")]
    Mapped,
    /// No port, no range of ports.
    #[error("has no valid port after its host: 1 to 65535, or a range such as 8000-8999")]
    Port,
}

/// A line of a file that is no rule.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum LineError {
    /// This one.
    #[error("line {line}: {rule:?} {source}")]
    Rule {
        /// From 1.
        line: usize,
        /// What stands there.
        rule: String,
        /// What is wrong with it.
        source: RuleError,
    },
    /// None at all: that would refuse every write.
    #[error("it has no rule, and every write would be refused")]
    Empty,
}

/// The rules of a file: one a line; empty lines and what follows a `#` do not count.
///
/// # Errors
///
/// The first line that is no rule.
pub fn rules(text: &str) -> Result<Vec<Rule>, LineError> {
    let mut rules = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let rule = line.split('#').next().unwrap_or_default().trim();
        if rule.is_empty() {
            continue;
        }
        let wrong = |source| LineError::Rule { line: index + 1, rule: rule.to_owned(), source };
        rules.push(rule.parse().map_err(wrong)?);
    }
    if rules.is_empty() { Err(LineError::Empty) } else { Ok(rules) }
}

impl Rule {
    /// Whether it is about this scheme and port.
    pub(super) fn covers(&self, https: bool, port: u16) -> bool {
        self.https.is_none_or(|only| only == https) && self.ports.contains(&port)
    }

    /// Whether it allows this name, which has no last dot.
    pub(super) fn names(&self, name: &str) -> bool {
        match &self.place {
            Place::Name(only) => only == name,
            Place::Under(suffix) => name.len() > suffix.len() && name.ends_with(suffix.as_str()),
            Place::Range { .. } => false,
        }
    }

    /// Whether it allows this address, by whatever name.
    pub(super) fn contains(&self, address: IpAddr) -> bool {
        matches!(&self.place, Place::Range { net, .. } if net.contains(&address))
    }

    /// Whether names may lead into it.
    pub(super) fn is_range(&self) -> bool {
        matches!(self.place, Place::Range { single: false, .. })
    }
}

impl FromStr for Rule {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        let (https, rest) = match text.split_once("://") {
            None => (None, text),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => (Some(false), rest),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => (Some(true), rest),
            Some(_) => return Err(RuleError::Scheme),
        };
        // As addresses are copied from somewhere.
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (host, ports) = match rest.strip_prefix('[') {
            Some(inner) => {
                let (host, after) = inner.split_once(']').ok_or(RuleError::Host)?;
                match after.strip_prefix(':') {
                    Some(ports) => (bracketed(host)?, ports_of(ports)?),
                    None if after.is_empty() => (bracketed(host)?, 1..=u16::MAX),
                    None => return Err(RuleError::Port),
                }
            }
            None => match rest.rsplit_once(':') {
                Some((host, _)) if host.contains(':') => return Err(RuleError::Brackets),
                Some((host, ports)) => (place(host)?, ports_of(ports)?),
                None => (place(rest)?, 1..=u16::MAX),
            },
        };
        Ok(Self { https, place: host, ports })
    }
}

/// What stands in brackets: an IPv6 address or a range of them.
fn bracketed(host: &str) -> Result<Place, RuleError> {
    if host.contains('/') {
        return range(host).and_then(|net| match net {
            IpNet::V6(_) => Ok(Place::Range { net, single: false }),
            IpNet::V4(_) => Err(RuleError::Host),
        });
    }
    let ip: std::net::Ipv6Addr = host.parse().map_err(|_| RuleError::Host)?;
    Ok(single(ip.into()))
}

fn place(host: &str) -> Result<Place, RuleError> {
    if host.contains('/') {
        return Ok(Place::Range { net: range(host)?, single: false });
    }
    if let Some(suffix) = host.strip_prefix("*.") {
        return match normal(&format!("x.{suffix}"))? {
            Host::Domain(name) => match name.strip_prefix('x') {
                Some(suffix) if suffix.len() > 1 => Ok(Place::Under(suffix.to_owned())),
                _ => Err(RuleError::Host),
            },
            Host::Ipv4(_) | Host::Ipv6(_) => Err(RuleError::Host),
        };
    }
    Ok(match normal(host)? {
        Host::Domain(name) => Place::Name(name),
        Host::Ipv4(ip) => single(ip.into()),
        Host::Ipv6(ip) => single(ip.into()),
    })
}

fn single(address: IpAddr) -> Place {
    Place::Range { net: address.to_canonical().into(), single: true }
}

fn range(text: &str) -> Result<IpNet, RuleError> {
    let net: IpNet = text.parse().map_err(|_| RuleError::Host)?;
    if net.addr() != net.network() {
        return Err(RuleError::Bits(net.trunc()));
    }
    match net {
        IpNet::V6(net) if net.addr().to_ipv4_mapped().is_some() && net.prefix_len() >= 96 => {
            Err(RuleError::Mapped)
        }
        net => Ok(net),
    }
}

/// A host as the addresses of nodes have it: lower case, IDNA, numbers as IPv4, no last dot.
fn normal(host: &str) -> Result<Host<String>, RuleError> {
    if host.contains('*') {
        return Err(RuleError::Star);
    }
    // What would end the host of a URL, or be decoded in it.
    let odd = |c: char| c.is_whitespace() || c.is_control() || "@/\\?#%:[]".contains(c);
    if host.is_empty() || host.contains(odd) {
        return Err(RuleError::Host);
    }
    let url = Url::parse(&format!("http://{host}/")).map_err(|_| RuleError::Host)?;
    match url.host() {
        Some(Host::Domain(name)) => match name.trim_end_matches('.') {
            "" => Err(RuleError::Host),
            name => Ok(Host::Domain(name.to_owned())),
        },
        Some(Host::Ipv4(ip)) => Ok(Host::Ipv4(ip)),
        Some(Host::Ipv6(_)) | None => Err(RuleError::Host),
    }
}

/// `8081`, `8000-8999`, `*`.
fn ports_of(text: &str) -> Result<RangeInclusive<u16>, RuleError> {
    let port = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let port = text.parse().ok().filter(|port| digits && *port > 0);
        port.ok_or(RuleError::Port)
    };
    if text == "*" {
        return Ok(1..=u16::MAX);
    }
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (port(first)?, port(last)?);
    if first > last { Err(RuleError::Port) } else { Ok(first..=last) }
}
