//! Name lookups: one at a time per name, with a cache and a limited number of threads.
//!
//! The system's resolver blocks a thread, for many seconds if a name server is dead. It is used
//! anyway, because only it knows `/etc/hosts`, `nsswitch.conf` and the search domains. A dead name
//! server must not delay other names, so:
//!
//! - **One lookup per name.** All attempts for the name wait for the same lookup. It runs to its end
//!   and caches its answer even if they have all timed out.
//! - **The last answer is cached.** It is used without a lookup for 5 s, and after that only if a
//!   lookup is slow or fails. If the name no longer exists, it is dropped.
//! - **Permits by history.** A lookup has its own thread, outside the runtime's pools. Names whose
//!   last lookup was quick, and names whose last lookup was slow, have separate permits. A new name
//!   frees its permit as soon as it is slow. At most 448 threads run.
//!
//! An attempt whose lookup got no permit ends with [`LookupShortage`], not as the replica's failure.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use thiserror::Error;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio::time::timeout;

#[derive(Clone, Copy, Debug)]
pub(super) struct LookupTimes {
    pub(super) fresh: Duration,
    /// A lookup that takes longer is slow.
    pub(super) slow: Duration,
}

impl Default for LookupTimes {
    /// A replica with a new address is reached after 5 s. A healthy name server answers far within
    /// 500 ms.
    fn default() -> Self {
        Self { fresh: Duration::from_secs(5), slow: Duration::from_millis(500) }
    }
}

/// Lookups of names with a quick last lookup.
const QUICK_PERMITS: usize = 32;
/// Lookups of names with a slow last lookup.
const SLOW_PERMITS: usize = 32;
/// Lookups of new names, until they are slow. More than the replicas of one write.
const NEW_PERMITS: usize = 256;
/// Lookups of new names that have become slow.
const STUCK_PERMITS: usize = 128;

const MAX_NAMES: usize = 4096;

/// Blocks until all addresses of a name are found. `NotFound` means that the name does not exist.
pub(super) type Lookup = Arc<dyn Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync>;

#[derive(Clone, Debug, Error)]
pub(super) enum LookupError {
    #[error("{0}")]
    Failed(Arc<io::Error>),
    #[error("the name lookup did not finish within {}", humantime::format_duration(*.0))]
    TimedOut(Duration),
    #[error(transparent)]
    Shortage(#[from] LookupShortage),
}

impl LookupError {
    pub(super) fn is_unknown_name(&self) -> bool {
        matches!(self, Self::Failed(error) if error.kind() == io::ErrorKind::NotFound)
    }
}

/// A shortage of this process. It says nothing about any replica.
#[derive(Clone, Debug, Error)]
pub(super) enum LookupShortage {
    #[error("too many name lookups have not finished")]
    Permits,
    #[error("cannot start a thread for a name lookup: {0}")]
    Thread(Arc<io::Error>),
}

type LookupAnswer = Result<Arc<[IpAddr]>, LookupError>;

#[derive(Clone, Debug)]
enum LookupProgress {
    Queued,
    Running,
    Done(LookupAnswer),
}

pub(super) struct Names {
    lookup: Lookup,
    times: LookupTimes,
    table: Mutex<NameTable>,
    quick: Arc<Semaphore>,
    slow: Arc<Semaphore>,
    new: Arc<Semaphore>,
    stuck: Arc<Semaphore>,
}

#[derive(Default)]
struct NameTable {
    by_name: HashMap<String, NameEntry>,
    /// Counts calls, to order names by last use.
    calls: u64,
}

#[derive(Default)]
struct NameEntry {
    last: Option<Arc<[IpAddr]>>,
    /// `last` may be used without another lookup.
    is_fresh: bool,
    is_slow: bool,
    running: Option<watch::Receiver<LookupProgress>>,
    used: u64,
}

impl NameEntry {
    /// The running lookup, unless its task has ended without an answer.
    fn running(&self) -> Option<&watch::Receiver<LookupProgress>> {
        self.running.as_ref().filter(|running| running.has_changed().is_ok())
    }
}

impl NameTable {
    fn of(&mut self, name: &str) -> &mut NameEntry {
        self.calls += 1;
        if self.by_name.len() >= MAX_NAMES && !self.by_name.contains_key(name) {
            let idle = self.by_name.iter().filter(|(_, entry)| entry.running().is_none());
            let oldest = idle.min_by_key(|(_, entry)| entry.used).map(|(name, _)| name.clone());
            oldest.map(|name| self.by_name.remove(&name));
        }
        let entry = self.by_name.entry(name.to_owned()).or_default();
        entry.used = self.calls;
        entry
    }
}

impl Names {
    pub(super) fn new(lookup: Lookup, times: LookupTimes) -> Arc<Self> {
        let permits = |number| Arc::new(Semaphore::new(number));
        Arc::new(Self {
            lookup,
            times,
            table: Mutex::default(),
            quick: permits(QUICK_PERMITS),
            slow: permits(SLOW_PERMITS),
            new: permits(NEW_PERMITS),
            stuck: permits(STUCK_PERMITS),
        })
    }

    pub(super) async fn addresses(self: Arc<Self>, name: &str, patience: Duration) -> LookupAnswer {
        let (last, mut running) = {
            let mut table = self.table.lock();
            let entry = table.of(name);
            let last = entry.last.clone();
            if let Some(last) = &last
                && entry.is_fresh
            {
                return Ok(Arc::clone(last));
            }
            let running = match entry.running() {
                Some(running) => running.clone(),
                None => Arc::clone(&self).start(name, entry),
            };
            if let Some(last) = &last
                && entry.is_slow
            {
                return Ok(Arc::clone(last));
            }
            (last, running)
        };
        let patience = if last.is_some() { patience.min(self.times.slow) } else { patience };
        let done = running.wait_for(|progress| matches!(progress, LookupProgress::Done(_)));
        let progress = timeout(patience, done).await.map(|done| done.map(|done| done.clone()));
        let error = match progress {
            Ok(Ok(LookupProgress::Done(Ok(answer)))) => return Ok(answer),
            Ok(Ok(LookupProgress::Done(Err(error)))) => error,
            Ok(Ok(LookupProgress::Queued | LookupProgress::Running) | Err(_)) => {
                LookupError::Failed(Arc::new(io::Error::other("the name lookup was interrupted")))
            }
            Err(_) if matches!(*running.borrow(), LookupProgress::Queued) => {
                LookupShortage::Permits.into()
            }
            Err(_) => LookupError::TimedOut(patience),
        };
        // Read again: the lookup drops the last answer of a name that no longer exists.
        self.last(name).ok_or(error)
    }

    pub(super) fn last(&self, name: &str) -> Option<Arc<[IpAddr]>> {
        self.table.lock().by_name.get(name)?.last.clone()
    }

    pub(super) fn clear_answers(&self) {
        for entry in self.table.lock().by_name.values_mut() {
            (entry.last, entry.is_fresh) = (None, false);
        }
    }

    /// Starts a lookup, which outlives the attempt that needs it.
    fn start(
        self: Arc<Self>,
        name: &str,
        entry: &mut NameEntry,
    ) -> watch::Receiver<LookupProgress> {
        let (progress, running) = watch::channel(LookupProgress::Queued);
        entry.running = Some(running.clone());
        let is_new = entry.last.is_none() && !entry.is_slow;
        let permits = match (entry.is_slow, is_new) {
            (true, _) => &self.slow,
            (false, true) => &self.new,
            (false, false) => &self.quick,
        };
        let permit = Arc::clone(permits).acquire_owned();
        let name = name.to_owned();
        tokio::spawn(async move {
            // Never fails: the semaphores are never closed.
            let Ok(permit) = permit.await else { return };
            progress.send_replace(LookupProgress::Running);
            let answer = self.look_up(&name, permit, is_new).await;
            self.change(&name, |entry| {
                match &answer {
                    Ok(addresses) => entry.last = Some(Arc::clone(addresses)),
                    Err(error) if error.is_unknown_name() => entry.last = None,
                    Err(_) => {}
                }
                entry.is_fresh = entry.last.is_some() && !self.times.fresh.is_zero();
                entry.running = None;
            });
            progress.send_replace(LookupProgress::Done(answer));
            drop(progress);
            tokio::time::sleep(self.times.fresh).await;
            self.change(&name, |entry| entry.is_fresh = false);
        });
        running
    }

    /// Looks a name up on a new thread. `permit` is held until the thread ends.
    async fn look_up(
        &self,
        name: &str,
        mut permit: OwnedSemaphorePermit,
        is_new: bool,
    ) -> LookupAnswer {
        let (sender, mut receiver) = oneshot::channel();
        let (lookup, owned_name) = (Arc::clone(&self.lookup), name.to_owned());
        let thread = std::thread::Builder::new().name("lookup".to_owned());
        let started = thread.spawn(move || drop(sender.send(lookup(&owned_name))));
        started.map_err(|error| LookupShortage::Thread(Arc::new(error)))?;
        let quick = timeout(self.times.slow, &mut receiver).await;
        self.change(name, |entry| entry.is_slow = quick.is_err());
        let received = match quick {
            Ok(received) => received,
            Err(_) => {
                if is_new && let Ok(stuck) = Arc::clone(&self.stuck).try_acquire_owned() {
                    permit = stuck;
                }
                receiver.await
            }
        };
        drop(permit);
        match received.unwrap_or_else(|_| Err(io::Error::other("the name lookup panicked"))) {
            Ok(addresses) if addresses.is_empty() => {
                let error = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
                Err(LookupError::Failed(Arc::new(error)))
            }
            Ok(addresses) => Ok(addresses.into()),
            Err(error) => Err(LookupError::Failed(Arc::new(error))),
        }
    }

    fn change(&self, name: &str, change: impl FnOnce(&mut NameEntry)) {
        if let Some(entry) = self.table.lock().by_name.get_mut(name) {
            change(entry);
        }
    }

    #[cfg(test)]
    pub(super) fn is_slow(&self, name: &str) -> bool {
        self.table.lock().by_name.get(name).is_some_and(|entry| entry.is_slow)
    }

    #[cfg(test)]
    pub(super) fn cached(&self) -> usize {
        self.table.lock().by_name.len()
    }
}
