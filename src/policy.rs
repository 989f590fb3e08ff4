//! Where the daemon may write: the rules of the operator, and addresses that are always blocked.
//!
//! A client names the addresses of the replicas, so without a policy it could direct requests to
//! anything that the daemon can reach. [`Policy::admit`] checks a write before it is accepted.
//! [`Policy::may_connect`] checks the address at every attempt: a name may resolve to another
//! address by then, the rules may have changed, and a task from disk may be older than the rules.
//!
//! - With rules, the daemon connects only to what a rule allows.
//! - Always blocked, in any spelling and as an IPv4 address embedded in IPv6: link-local addresses,
//!   cloud metadata services, multicast, broadcast, unspecified addresses, and the daemon itself.
//!
//! It resolves no names and reads no files.

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use thiserror::Error;
use url::{Host, Url};

use crate::task::Node;

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod never;
mod rule;

#[cfg(test)]
mod tests;

pub use rule::{LineError, Rule, rules};

/// Why an address is blocked. The texts continue a sentence that starts with the address or with
/// "the replica".
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Forbidden {
    #[error("is not allowed by --allow-replica or --allow-replica-file")]
    NotListed,
    #[error(
        "resolves to {address}, which is not allowed by --allow-replica or --allow-replica-file"
    )]
    LeadsElsewhere { address: IpAddr },
    #[error("is {kind}, which is always blocked")]
    Blocked { kind: &'static str },
    #[error("resolves to {address}, {kind}, which is always blocked")]
    Never { address: IpAddr, kind: &'static str },
    #[error("is a cloud metadata service, which is always blocked")]
    Metadata,
    #[error("is this replicator itself")]
    Itself,
    /// Not a URL. Only an address that was read from disk can be unreadable.
    #[error("is not a valid address")]
    Unreadable,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    https: bool,
    /// Without a last dot.
    host: Host<String>,
    absolute: bool,
    port: u16,
    /// The base path, without a last slash.
    path: String,
}

impl Target {
    /// Parses the address like the HTTP client that connects to it.
    pub fn of(node: &Node) -> Result<Self, Forbidden> {
        let url = Url::parse(node.as_str()).map_err(|_| Forbidden::Unreadable)?;
        let port = url.port_or_known_default().ok_or(Forbidden::Unreadable)?;
        let host = match url.host().ok_or(Forbidden::Unreadable)? {
            Host::Domain(name) => Host::Domain(name.trim_end_matches('.').to_owned()),
            Host::Ipv4(ip) => Host::Ipv4(ip),
            Host::Ipv6(ip) => Host::Ipv6(ip),
        };
        // A last dot disables the search list of the resolver. To the rules it is the same name.
        let absolute = url.host_str().is_some_and(|host| host.ends_with('.'));
        let path = url.path().trim_end_matches('/').to_owned();
        Ok(Self { https: url.scheme() == "https", host, absolute, port, path })
    }

    /// The name as the resolver must look it up.
    pub fn lookup_name(&self) -> Option<Cow<'_, str>> {
        self.name().map(|name| if self.absolute { format!("{name}.").into() } else { name.into() })
    }

    pub fn name(&self) -> Option<&str> {
        match &self.host {
            Host::Domain(name) => Some(name),
            Host::Ipv4(_) | Host::Ipv6(_) => None,
        }
    }

    pub fn is_https(&self) -> bool {
        self.https
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn literal(&self) -> Option<IpAddr> {
        match self.host {
            Host::Domain(_) => None,
            Host::Ipv4(ip) => Some(ip.into()),
            Host::Ipv6(ip) => Some(ip.into()),
        }
    }
}

#[derive(Clone, Copy)]
pub struct Own {
    pub address: SocketAddr,
    /// Whether an address belongs to this machine. Used when the daemon listens on all addresses.
    pub is_local: fn(IpAddr) -> bool,
}

impl fmt::Debug for Own {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.address.fmt(f)
    }
}

/// Clones share the rules.
#[derive(Clone, Debug)]
pub struct Policy {
    rules: Arc<ArcSwapOption<Vec<Rule>>>,
    own: Option<Own>,
}

impl Policy {
    /// With rules, nothing else is allowed. With `None`, everything that is not always blocked.
    pub fn new(rules: Option<Vec<Rule>>, own: Option<Own>) -> Self {
        Self { rules: Arc::new(ArcSwapOption::from_pointee(rules)), own }
    }

    pub fn replace(&self, rules: Option<Vec<Rule>>) {
        self.rules.store(rules.map(Arc::new));
    }

    /// Whether writes for `node` may be accepted. A rule for an address range admits every name:
    /// [`Self::may_connect`] decides by its address.
    pub fn admit(&self, node: &Node) -> Result<(), Forbidden> {
        self.admit_target(&Target::of(node)?)
    }

    pub fn admit_target(&self, target: &Target) -> Result<(), Forbidden> {
        let Host::Domain(name) = &target.host else {
            return target.literal().map_or(Ok(()), |address| self.may_connect(target, address));
        };
        if never::name(name) {
            return Err(Forbidden::Metadata);
        }
        let localhost = name == "localhost" || name.ends_with(".localhost");
        if localhost && self.own.is_some_and(|own| own.is_loopback(target.port)) {
            return Err(Forbidden::Itself);
        }
        let rules = self.rules.load();
        let Some(rules) = rules.as_deref() else { return Ok(()) };
        let allowed = |rule: &Rule| rule.covers(target) && (rule.is_range() || rule.names(name));
        if rules.iter().any(allowed) { Ok(()) } else { Err(Forbidden::NotListed) }
    }

    pub fn may_connect(&self, target: &Target, address: IpAddr) -> Result<(), Forbidden> {
        let address = address.to_canonical();
        if let Some(kind) = never::kind(address) {
            return Err(match target.literal() {
                Some(_) => Forbidden::Blocked { kind },
                None => Forbidden::Never { address, kind },
            });
        }
        if self.own.is_some_and(|own| own.is(address, target.port)) {
            return Err(Forbidden::Itself);
        }
        let rules = self.rules.load();
        let Some(rules) = rules.as_deref() else { return Ok(()) };
        let allowed = |rule: &Rule| {
            rule.covers(target)
                && (rule.contains(address)
                    || matches!(&target.host, Host::Domain(name) if rule.names(name)))
        };
        if rules.iter().any(allowed) {
            return Ok(());
        }
        Err(match target.literal() {
            Some(_) => Forbidden::NotListed,
            None => Forbidden::LeadsElsewhere { address },
        })
    }
}

impl Own {
    /// Whether a connection to this port of the loopback interface reaches the daemon.
    fn is_loopback(self, port: u16) -> bool {
        let ip = self.address.ip().to_canonical();
        port == self.address.port() && (ip.is_unspecified() || ip.is_loopback())
    }

    fn is(self, address: IpAddr, port: u16) -> bool {
        if port != self.address.port() {
            return false;
        }
        let own = self.address.ip().to_canonical();
        never::with_embedded(address).any(|address| {
            address == own
                || (own.is_unspecified() && (address.is_loopback() || (self.is_local)(address)))
        })
    }
}
