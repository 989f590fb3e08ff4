//! Where the daemon may write: which addresses of replicas, by rules, and which never.
//!
//! Whoever may post a write names the addresses that it goes to, so the daemon could be made to
//! talk to anything that it reaches. The policy is asked twice. [`Policy::admit`] looks at what a
//! request names, before anything is accepted. [`Policy::may_connect`] looks at the address that
//! is about to be connected to, at every attempt: a name may lead elsewhere by then, the rules may
//! have changed, and a task from disk was never asked about.
//!
//! It guarantees that
//!
//! - with rules, nothing is connected to that no rule allows;
//! - with or without, neither what is never a replica ([`Forbidden::Never`]: link-local addresses,
//!   the metadata services of clouds, multicast, broadcast, unspecified) nor the daemon's own
//!   address, in whatever spelling, and also as an IPv4 address inside an IPv6 one.
//!
//! It deliberately resolves no names, opens nothing and reads no files: addresses and rules come
//! in as parameters, new rules by [`Policy::replace`]. To read: [`Policy`], then `rule.rs` for how
//! a rule is written, and `never.rs` for the list.

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

pub use rule::{LineError, Rule, RuleError, rules};

/// Why an address may not be written to. Reads on after the address, or after "the replica".
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Forbidden {
    /// There are rules, and none allows it.
    #[error(
        "is not among the replicas that may be written to (--allow-replica, --allow-replica-file)"
    )]
    NotListed,
    /// The same, of the address that a name leads to.
    #[error(
        "leads to {address}, which is not among the replicas that may be written to (--allow-replica, --allow-replica-file)"
    )]
    LeadsElsewhere {
        /// The address.
        address: IpAddr,
    },
    /// No rule can allow it.
    #[error("leads to {address}, {kind}, which is never written to")]
    Never {
        /// The address.
        address: IpAddr,
        /// What it is.
        kind: &'static str,
    },
    /// A name that is known to be a metadata service.
    #[error("is the metadata service of a cloud, which is never written to")]
    Metadata,
    /// It would write to itself.
    #[error("is this replicator itself")]
    Itself,
    /// Not to be read as a URL: it came from a disk.
    #[error("is no address that can be written to")]
    Unreadable,
}

/// Where a node is, as far as rules look at it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    https: bool,
    host: Host<String>,
    port: u16,
}

impl Target {
    /// Reads the address as the client does that will connect to it.
    ///
    /// # Errors
    ///
    /// [`Forbidden::Unreadable`].
    pub fn of(node: &Node) -> Result<Self, Forbidden> {
        let url = Url::parse(node.as_str()).map_err(|_| Forbidden::Unreadable)?;
        let port = url.port_or_known_default().ok_or(Forbidden::Unreadable)?;
        let host = match url.host().ok_or(Forbidden::Unreadable)? {
            // `name.` is `name`, without the search list of the resolver.
            Host::Domain(name) => Host::Domain(name.trim_end_matches('.').to_owned()),
            Host::Ipv4(ip) => Host::Ipv4(ip),
            Host::Ipv6(ip) => Host::Ipv6(ip),
        };
        Ok(Self { https: url.scheme() == "https", host, port })
    }

    /// The name, where it is not an address.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        match &self.host {
            Host::Domain(name) => Some(name),
            Host::Ipv4(_) | Host::Ipv6(_) => None,
        }
    }

    /// The address, where it is no name.
    #[must_use]
    pub fn literal(&self) -> Option<IpAddr> {
        match self.host {
            Host::Domain(_) => None,
            Host::Ipv4(ip) => Some(ip.into()),
            Host::Ipv6(ip) => Some(ip.into()),
        }
    }
}

/// Where the daemon listens.
#[derive(Clone, Copy)]
pub struct Own {
    /// The address, as it is bound.
    pub address: SocketAddr,
    /// Whether an address is one of this machine's: that is what counts where it is bound to all.
    pub is_local: fn(IpAddr) -> bool,
}

impl fmt::Debug for Own {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.address.fmt(f)
    }
}

/// The rules as they are now, and what is never allowed. Cheap to clone; clones share the rules.
#[derive(Clone, Debug)]
pub struct Policy {
    rules: Arc<ArcSwapOption<Vec<Rule>>>,
    own: Option<Own>,
}

impl Policy {
    /// With `rules` nothing else is allowed; without, everything but what never is.
    #[must_use]
    pub fn new(rules: Option<Vec<Rule>>, own: Option<Own>) -> Self {
        Self { rules: Arc::new(ArcSwapOption::from_pointee(rules)), own }
    }

    /// These rules from now on, for all clones.
    pub fn replace(&self, rules: Option<Vec<Rule>>) {
        self.rules.store(rules.map(Arc::new));
    }

    /// Whether writes for `node` may be accepted.
    ///
    /// An address is decided here. A name is too, but for rules of address ranges: there it may
    /// pass, and what it leads to is decided when it is connected to.
    ///
    /// # Errors
    ///
    /// Why not.
    pub fn admit(&self, node: &Node) -> Result<(), Forbidden> {
        self.admit_target(&Target::of(node)?)
    }

    /// The same, of an address that was read before.
    ///
    /// # Errors
    ///
    /// Why not.
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
        let allowed = |rule: &Rule| {
            rule.covers(target.https, target.port) && (rule.is_range() || rule.names(name))
        };
        if rules.iter().any(allowed) { Ok(()) } else { Err(Forbidden::NotListed) }
    }

    /// Whether `address`, which `target` leads to, may be connected to.
    ///
    /// # Errors
    ///
    /// Why not.
    pub fn may_connect(&self, target: &Target, address: IpAddr) -> Result<(), Forbidden> {
        let address = address.to_canonical();
        if let Some(kind) = never::kind(address) {
            return Err(Forbidden::Never { address, kind });
        }
        if self.own.is_some_and(|own| own.is(address, target.port)) {
            return Err(Forbidden::Itself);
        }
        let rules = self.rules.load();
        let Some(rules) = rules.as_deref() else { return Ok(()) };
        let allowed = |rule: &Rule| {
            rule.covers(target.https, target.port)
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
    /// Whether whoever connects to this port of the machine's loopback comes out here.
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
