//! Names into addresses that may be connected to, by the system's resolver, with a limit of its
//! own.
//!
//! The system's resolver blocks, for many seconds where a name server is dead. Without a limit, a
//! few replicas with such names would take every blocking thread of the process, and with them the
//! reading of other replicas' tasks from disk.
//!
//! What it gives is what is connected to, so this is where the policy sees a name's addresses:
//! those that it forbids are left out. It knows from [`TARGET`] for whom it resolves, and without
//! that resolves nothing.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::Arc;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::sync::Semaphore;

use crate::policy::{Forbidden, Policy, Target};

/// Names that are looked up at once. Far below the runtime's 512 blocking threads.
const LOOKUPS: usize = 64;

tokio::task_local! {
    /// What the attempt is for that this task is busy with. The HTTP client asks the resolver
    /// within the first poll of a request, or not at all; a port is nothing that it tells it.
    pub(super) static TARGET: Target;
}

/// All addresses of a name. Blocks.
pub(super) type Lookup = Arc<dyn Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync>;

/// A resolver that gives no address which the policy forbids.
#[derive(Clone)]
pub(super) struct Resolver {
    lookups: Arc<Semaphore>,
    lookup: Lookup,
    policy: Policy,
}

impl Resolver {
    pub(super) fn new(policy: Policy, lookup: Lookup) -> Self {
        Self { lookups: Arc::new(Semaphore::new(LOOKUPS)), lookup, policy }
    }
}

/// The system's.
pub(super) fn system() -> Lookup {
    Arc::new(|name| Ok((name, 0).to_socket_addrs()?.map(|address| address.ip()).collect()))
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let target = TARGET.try_with(Clone::clone);
        let Self { lookups, lookup, policy } = self.clone();
        Box::pin(async move {
            let target = target?;
            let permit = lookups.acquire_owned().await?;
            let addresses = tokio::task::spawn_blocking(move || {
                // Held to the end of the lookup, which goes on when the attempt has timed out.
                let _permit = permit;
                lookup(name.as_str())
            });
            let allowed = allowed(&policy, &target, addresses.await??)?;
            Ok(Box::new(allowed.into_iter().map(|ip| SocketAddr::new(ip, 0))) as Addrs)
        })
    }
}

/// Those of `addresses` that may be connected to; the first reason where that is none of them.
fn allowed(
    policy: &Policy,
    target: &Target,
    addresses: Vec<IpAddr>,
) -> Result<Vec<IpAddr>, Forbidden> {
    let mut allowed = Vec::with_capacity(addresses.len());
    let mut forbidden = None;
    for address in addresses {
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
