//! Names into addresses that may be connected to.
//!
//! What it gives is what is connected to, so this is where the policy sees a name's addresses, from
//! the cache or not: those that it forbids are left out. It knows from [`TARGET`] for whom it
//! resolves, and without that resolves nothing. How names are looked up is in `names.rs`.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use super::names::{Lookup, Names, Times};
use crate::policy::{Forbidden, Policy, Target};

tokio::task_local! {
    /// What the attempt is for that this task is busy with. The HTTP client asks the resolver
    /// within the first poll of a request, or not at all; a port is nothing that it tells it.
    pub(super) static TARGET: Target;
}

/// A resolver that gives no address which the policy forbids. Clones share what is known of names.
#[derive(Clone)]
pub(super) struct Resolver {
    names: Arc<Names>,
    policy: Policy,
    /// How long an attempt waits for a lookup.
    patience: Duration,
}

impl Resolver {
    pub(super) fn new(
        policy: Policy,
        lookup: Lookup,
        times: Times,
        request_timeout: Duration,
    ) -> Self {
        // Before the attempt times out: then it is known that nothing has been sent, and why.
        let patience = request_timeout.mul_f64(0.8);
        Self { names: Names::new(lookup, times), policy, patience }
    }

    /// Looks every name up before it is used again.
    pub(super) fn forget_answers(&self) {
        self.names.forget_answers();
    }

    /// Whether this machine could send to one of the addresses of `target`. Nothing is sent.
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

/// The system's.
pub(super) fn system() -> Lookup {
    Arc::new(|name| {
        let found = (name, 0).to_socket_addrs();
        Ok(found.map_err(of_the_system)?.map(|address| address.ip()).collect())
    })
}

/// The error of a lookup by the system, as a [`Lookup`] reports it.
fn of_the_system(error: io::Error) -> io::Error {
    // Without a file descriptor it cannot read its configuration, and may say that there is no such
    // name.
    if let Err(shortage) = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)) {
        return shortage;
    }
    // EAI_NONAME and EAI_NODATA of glibc, EAI_NONAME of musl: std has only the text of them.
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
        let Self { names, policy, patience } = self.clone();
        Box::pin(async move {
            let target = target?;
            let addresses = names.addresses(name.as_str(), patience).await?;
            let allowed = allowed(&policy, &target, &addresses)?;
            Ok(Box::new(allowed.into_iter().map(|ip| SocketAddr::new(ip, 0))) as Addrs)
        })
    }
}

/// Those of `addresses` that may be connected to; the first reason where that is none of them.
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
