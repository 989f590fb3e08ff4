//! The addresses of a replica: only those that the policy allows, whether they come from the cache or
//! from a lookup. `names.rs` looks up.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, ToSocketAddrs, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use super::causes::Unanswered;
use super::names::{Lookup, LookupTimes, Names};
use crate::policy::{Forbidden, Policy, Target};

#[derive(Clone)]
pub(super) struct Resolver {
    names: Arc<Names>,
    policy: Policy,
    lookup_timeout: Duration,
}

impl Resolver {
    pub(super) fn new(
        policy: Policy,
        lookup: Lookup,
        times: LookupTimes,
        request_timeout: Duration,
    ) -> Self {
        // Shorter than the attempt, so that a slow lookup is reported as such, with nothing sent.
        let lookup_timeout = request_timeout.mul_f64(0.8);
        Self { names: Names::new(lookup, times), policy, lookup_timeout }
    }

    pub(super) fn clear_answers(&self) {
        self.names.clear_answers();
    }

    pub(super) async fn addresses(&self, target: &Target) -> Result<Vec<IpAddr>, Unanswered> {
        let found: Arc<[IpAddr]> = match (target.literal(), target.lookup_name()) {
            (Some(address), _) => [address].into(),
            (None, name) => {
                let (names, name) = (Arc::clone(&self.names), name.unwrap_or_default());
                let found = names.addresses(&name, self.lookup_timeout);
                found.await.map_err(Unanswered::Lookup)?
            }
        };
        allowed(&self.policy, target, &found).map_err(Unanswered::Forbidden)
    }

    /// Whether this machine has a route to an address of `target`. Sends nothing.
    pub(super) fn has_route(&self, target: &Target) -> bool {
        let known = || target.lookup_name().and_then(|name| self.names.last(&name));
        match target.literal() {
            Some(address) => has_route(address),
            None => known().is_some_and(|known| known.iter().copied().any(has_route)),
        }
    }
}

fn has_route(address: IpAddr) -> bool {
    let any: IpAddr = match address {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    UdpSocket::bind((any, 0)).is_ok_and(|socket| socket.connect((address, 9)).is_ok())
}

pub(super) fn system() -> Lookup {
    Arc::new(|name| {
        let found = (name, 0).to_socket_addrs();
        Ok(found.map_err(system_error)?.map(|address| address.ip()).collect())
    })
}

fn system_error(error: io::Error) -> io::Error {
    // Without a free file descriptor the resolver cannot read its configuration, and may report
    // that the name does not exist.
    if let Err(shortage) = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)) {
        return shortage;
    }
    // EAI_NONAME and EAI_NODATA of glibc, EAI_NONAME of musl: std exposes only their texts.
    let text = error.to_string();
    let no_name = [
        "Name or service not known",
        "No address associated with hostname",
        "Name does not resolve",
    ];
    if no_name.iter().any(|no_name| text.contains(no_name)) {
        return io::Error::new(io::ErrorKind::NotFound, error);
    }
    error
}

fn allowed(
    policy: &Policy,
    target: &Target,
    addresses: &[IpAddr],
) -> Result<Vec<IpAddr>, Forbidden> {
    let mut allowed = Vec::with_capacity(addresses.len());
    let mut forbidden = None;
    for &address in addresses {
        match policy.may_connect(target, address) {
            Ok(()) => allowed.push(address),
            Err(reason) => forbidden = forbidden.or(Some(reason)),
        }
    }
    match forbidden {
        Some(reason) if allowed.is_empty() => Err(reason),
        _ => Ok(allowed),
    }
}
