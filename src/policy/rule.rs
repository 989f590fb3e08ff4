//! The syntax of a rule.
//!
//! | rule | allows |
//! | --- | --- |
//! | `http://node-1:8081` | that name, whatever it resolves to, or that address |
//! | `*.stores.example:8081` | every subdomain, not the domain itself |
//! | `10.0.0.0/8:8000-8999` | these addresses, and names that resolve to them |
//! | `[fd00::/8]:8081` | the same for IPv6 |
//! | `http://node-1:8081/a` | the base path `/a` of that node, and those below it |
//!
//! A rule without a scheme allows `http` and `https`; one without a port allows every port; one without
//! a path allows every base path. A path needs a port: `10.0.0.0/8` is a range.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::str::FromStr;

use ipnet::IpNet;
use thiserror::Error;
use url::{Host, Url};

use super::Target;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    https: Option<bool>,
    host: RuleHost,
    ports: RangeInclusive<u16>,
    /// Without a last slash; empty for every base path.
    path: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum RuleHost {
    Name(String),
    Under(String),
    /// Also a single address.
    Range {
        net: IpNet,
        single: bool,
    },
}

/// The texts continue a sentence that starts with the rule.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum RuleError {
    #[error("must have the scheme http or https, or none")]
    Scheme,
    #[error(
        "has no valid host: expected a name, *.suffix, an address or a range such as 10.0.0.0/8"
    )]
    Host,
    #[error("may contain * only as the first part of a name, as in *.example.org")]
    Star,
    /// `fd00::1:80` is ambiguous.
    #[error("must have brackets around its IPv6 address, as in [fd00::1]:8081")]
    Brackets,
    #[error("has bits set beyond its prefix length: expected {0}")]
    Bits(IpNet),
    #[error("must be written as an IPv4 range")]
    Mapped,
    #[error("has no valid port: expected 1 to 65535, or a range such as 8000-8999")]
    Port,
    #[error("must have a base path without a query or a fragment, as in http://node-1:8081/a")]
    Path,
}

#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum LineError {
    #[error("line {line}: {rule:?} {source}")]
    Rule { line: usize, rule: String, source: RuleError },
    #[error("it contains no rule, so every write would be rejected")]
    Empty,
}

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
    pub(super) fn covers(&self, target: &Target) -> bool {
        let below = target.path.strip_prefix(&self.path);
        self.https.is_none_or(|only| only == target.https)
            && self.ports.contains(&target.port)
            && below.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// Whether it allows this name, which must not end with a dot.
    pub(super) fn names(&self, name: &str) -> bool {
        match &self.host {
            RuleHost::Name(only) => only == name,
            RuleHost::Under(suffix) => name.len() > suffix.len() && name.ends_with(suffix.as_str()),
            RuleHost::Range { .. } => false,
        }
    }

    pub(super) fn contains(&self, address: IpAddr) -> bool {
        matches!(&self.host, RuleHost::Range { net, .. } if net.contains(&address))
    }

    /// Whether names may resolve into it. They cannot be allowed by a rule for a single address.
    pub(super) fn is_range(&self) -> bool {
        matches!(self.host, RuleHost::Range { single: false, .. })
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
        let (rest, path) = split_path(rest);
        let path = base_path(path)?;
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
                Some((host, ports)) => (rule_host(host)?, ports_of(ports)?),
                None => (rule_host(rest)?, 1..=u16::MAX),
            },
        };
        Ok(Self { https, host, ports, path })
    }
}

/// Splits a rule at the slash behind its port.
fn split_path(rule: &str) -> (&str, &str) {
    let host = rule.find(']').unwrap_or(0);
    let port = rule.get(host..).and_then(|rest| rest.find(':')).map(|at| host + at);
    let slash = port.and_then(|port| Some(port + rule.get(port..)?.find('/')?));
    slash.and_then(|slash| rule.split_at_checked(slash)).unwrap_or((rule, ""))
}

/// Normalises a path as in a node's address.
fn base_path(path: &str) -> Result<String, RuleError> {
    let url = Url::parse(&format!("http://h{path}")).map_err(|_| RuleError::Path)?;
    if url.query().is_some() || url.fragment().is_some() || path.contains(char::is_whitespace) {
        return Err(RuleError::Path);
    }
    Ok(url.path().trim_end_matches('/').to_owned())
}

fn bracketed(host: &str) -> Result<RuleHost, RuleError> {
    if host.contains('/') {
        return range(host).and_then(|net| match net {
            IpNet::V6(_) => Ok(RuleHost::Range { net, single: false }),
            IpNet::V4(_) => Err(RuleError::Host),
        });
    }
    let ip: std::net::Ipv6Addr = host.parse().map_err(|_| RuleError::Host)?;
    Ok(single(ip.into()))
}

fn rule_host(host: &str) -> Result<RuleHost, RuleError> {
    if host.contains('/') {
        return Ok(RuleHost::Range { net: range(host)?, single: false });
    }
    if let Some(suffix) = host.strip_prefix("*.") {
        return match normal(&format!("x.{suffix}"))? {
            Host::Domain(name) => match name.strip_prefix('x') {
                Some(suffix) if suffix.len() > 1 => Ok(RuleHost::Under(suffix.to_owned())),
                _ => Err(RuleError::Host),
            },
            Host::Ipv4(_) | Host::Ipv6(_) => Err(RuleError::Host),
        };
    }
    Ok(match normal(host)? {
        Host::Domain(name) => RuleHost::Name(name),
        Host::Ipv4(ip) => single(ip.into()),
        Host::Ipv6(ip) => single(ip.into()),
    })
}

fn single(address: IpAddr) -> RuleHost {
    RuleHost::Range { net: address.to_canonical().into(), single: true }
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

/// Normalises a host as in a node's address: lower case, IDNA, numbers as IPv4, no last dot.
fn normal(host: &str) -> Result<Host<String>, RuleError> {
    if host.contains('*') {
        return Err(RuleError::Star);
    }
    // Characters that end the host of a URL or are decoded in it.
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
