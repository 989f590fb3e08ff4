//! Names into addresses, by the system's resolver, with a limit of its own.
//!
//! The system's resolver blocks, for many seconds where a name server is dead. Without a limit, a
//! few replicas with such names would take every blocking thread of the process, and with them the
//! reading of other replicas' tasks from disk.

use std::net::ToSocketAddrs;
use std::sync::Arc;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::sync::Semaphore;

/// Names that are looked up at once. Far below the runtime's 512 blocking threads.
const LOOKUPS: usize = 64;

/// The system's resolver.
pub(super) struct Resolver {
    lookups: Arc<Semaphore>,
}

impl Default for Resolver {
    fn default() -> Self {
        Self { lookups: Arc::new(Semaphore::new(LOOKUPS)) }
    }
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let lookups = Arc::clone(&self.lookups);
        Box::pin(async move {
            let permit = lookups.acquire_owned().await?;
            let addresses = tokio::task::spawn_blocking(move || {
                // Held to the end of the lookup, which goes on when the attempt has timed out.
                let _permit = permit;
                (name.as_str(), 0).to_socket_addrs()
            });
            Ok(Box::new(addresses.await??) as Addrs)
        })
    }
}
