//! The DNS resolver of the HTTP client. It returns only addresses that the policy allows for the
//! target in [`TARGET`], whether they come from the cache or from a lookup. `names.rs` looks up.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use super::names::{Lookup, LookupTimes, Names};
use crate::policy::{Forbidden, Policy, Target};

tokio::task_local! {
    /// The target of the attempt that this tokio task runs. The HTTP client does not pass the port
    /// to the resolver. It calls the resolver within the first poll of a request, or not at all.
    pub(super) static TARGET: Target;
}

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

    /// Whether this machine has a route to an address of `target`. Sends nothing.
    pub(super) fn has_route(&self, target: &Target) -> bool {
        let known = || target.name().and_then(|name| self.names.last(name));
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

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let target = TARGET.try_with(Clone::clone);
        let Self { names, policy, lookup_timeout } = self.clone();
        Box::pin(async move {
            let target = target?;
            let addresses = names.addresses(name.as_str(), lookup_timeout).await?;
            let allowed = allowed(&policy, &target, &addresses)?;
            Ok(Box::new(allowed.into_iter().map(|ip| SocketAddr::new(ip, 0))) as Addrs)
        })
    }
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
