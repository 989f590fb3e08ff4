//! The addresses of names: one lookup per name at a time, its last answer, and places for lookups.
//!
//! The system's resolver blocks a thread, for many seconds where a name server is dead. It is used
//! all the same, because only it knows `/etc/hosts`, `nsswitch.conf`, search domains and whatever
//! else this machine is set up with. So that a dead name server costs other names nothing:
//!
//! - **One lookup per name.** All attempts that need the name wait for the same one. It runs to its
//!   end and keeps its answer even if they have all timed out.
//! - **The last answer is cached.** It is used without a lookup for 5 s, and after that only while a
//!   lookup is slow or where it fails: a dead name server does not stop deliveries, and a name that
//!   has moved is followed. Where there is no such name any more, the answer is dropped.
//! - **Places by history.** A lookup has a thread of its own, outside of the runtime's pools. Names
//!   with a quick last lookup have places of their own, names with a slow one share a few, and a new
//!   name passes its place on as soon as it is slow. There are at most 448 threads.
//!
//! An attempt whose lookup did not get a place has met a [`Shortage`], which is not a failure of the
//! replica.
//!
//! It reads no clock: what ends with time is ended by the task of the lookup.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use thiserror::Error;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio::time::timeout;

/// The times of a cache.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    /// How long an answer is used without another lookup.
    pub(super) fresh: Duration,
    /// A lookup that takes longer is slow.
    pub(super) slow: Duration,
}

impl Default for Times {
    /// A replica that has moved is reached again after 5 s. A name server that is well answers in a
    /// fraction of 500 ms.
    fn default() -> Self {
        Self { fresh: Duration::from_secs(5), slow: Duration::from_millis(500) }
    }
}

/// Lookups of names with a quick last lookup.
const QUICK_PLACES: usize = 32;
/// Lookups of names with a slow last lookup.
const SLOW_PLACES: usize = 32;
/// Lookups of new names, until they are slow. More than the replicas of one write.
const NEW_PLACES: usize = 256;
/// Lookups of new names that have become slow.
const STUCK_PLACES: usize = 128;

/// Names that are remembered. Beyond, the one that was not used for longest is forgotten.
const REMEMBERED: usize = 4096;

/// All addresses of a name. Blocks. An error of the kind `NotFound` says that there is no such name.
pub(super) type Lookup = Arc<dyn Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync>;

/// Why there is no address.
#[derive(Clone, Debug, Error)]
pub(super) enum LookupError {
    #[error("{0}")]
    Failed(Arc<io::Error>),
    #[error("the name lookup has not ended within {}", humantime::format_duration(*.0))]
    TimedOut(Duration),
    #[error(transparent)]
    Shortage(#[from] Shortage),
}

impl LookupError {
    /// There is no such name.
    fn is_of_no_name(&self) -> bool {
        matches!(self, Self::Failed(error) if error.kind() == io::ErrorKind::NotFound)
    }
}

/// Something that this process lacks. It says nothing about any replica.
#[derive(Clone, Debug, Error)]
pub(super) enum Shortage {
    #[error("all places for name lookups are taken by lookups that do not end")]
    Places,
    #[error("cannot start a thread for a name lookup: {0}")]
    Thread(Arc<io::Error>),
}

type Answer = Result<Arc<[IpAddr]>, LookupError>;

/// Where a lookup is.
#[derive(Clone, Debug)]
enum Progress {
    /// It waits for a place.
    Queued,
    Running,
    Done(Answer),
}

/// Names and their addresses, shared by all attempts.
pub(super) struct Names {
    lookup: Lookup,
    times: Times,
    entries: Mutex<Entries>,
    quick: Arc<Semaphore>,
    slow: Arc<Semaphore>,
    new: Arc<Semaphore>,
    stuck: Arc<Semaphore>,
}

#[derive(Default)]
struct Entries {
    by_name: HashMap<String, Entry>,
    /// Calls so far, which order the names by use.
    calls: u64,
}

#[derive(Default)]
struct Entry {
    /// The addresses that the last successful lookup found.
    last: Option<Arc<[IpAddr]>>,
    /// They are used without another lookup.
    is_fresh: bool,
    /// The last lookup was slow, or the running one is.
    is_slow: bool,
    running: Option<watch::Receiver<Progress>>,
    /// The last call that used it.
    used: u64,
}

impl Entry {
    /// The lookup that is running; not one whose task has ended without an answer.
    fn running(&self) -> Option<&watch::Receiver<Progress>> {
        self.running.as_ref().filter(|running| running.has_changed().is_ok())
    }
}

impl Entries {
    fn of(&mut self, name: &str) -> &mut Entry {
        self.calls += 1;
        if self.by_name.len() >= REMEMBERED && !self.by_name.contains_key(name) {
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
    pub(super) fn new(lookup: Lookup, times: Times) -> Arc<Self> {
        let places = |number| Arc::new(Semaphore::new(number));
        Arc::new(Self {
            lookup,
            times,
            entries: Mutex::default(),
            quick: places(QUICK_PLACES),
            slow: places(SLOW_PLACES),
            new: places(NEW_PLACES),
            stuck: places(STUCK_PLACES),
        })
    }

    /// The addresses of `name`. Waits for `patience` at most.
    pub(super) async fn addresses(self: Arc<Self>, name: &str, patience: Duration) -> Answer {
        let (last, mut running) = {
            let mut entries = self.entries();
            let entry = entries.of(name);
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
        let done = running.wait_for(|progress| matches!(progress, Progress::Done(_)));
        let progress = timeout(patience, done).await.map(|done| done.map(|done| done.clone()));
        let error = match progress {
            Ok(Ok(Progress::Done(Ok(answer)))) => return Ok(answer),
            Ok(Ok(Progress::Done(Err(error)))) => error,
            Ok(Ok(Progress::Queued | Progress::Running) | Err(_)) => {
                LookupError::Failed(Arc::new(io::Error::other("the name lookup was interrupted")))
            }
            Err(_) if matches!(*running.borrow(), Progress::Queued) => Shortage::Places.into(),
            Err(_) => LookupError::TimedOut(patience),
        };
        // Unless the lookup has dropped it, since there is no such name any more.
        self.last(name).ok_or(error)
    }

    /// The last addresses of a name.
    pub(super) fn last(&self, name: &str) -> Option<Arc<[IpAddr]>> {
        self.entries().by_name.get(name)?.last.clone()
    }

    /// Drops all answers: every name is looked up before it is used again.
    pub(super) fn forget_answers(&self) {
        for entry in self.entries().by_name.values_mut() {
            (entry.last, entry.is_fresh) = (None, false);
        }
    }

    /// Starts a lookup. It does not end with the attempt that needs it.
    fn start(self: Arc<Self>, name: &str, entry: &mut Entry) -> watch::Receiver<Progress> {
        let (progress, running) = watch::channel(Progress::Queued);
        entry.running = Some(running.clone());
        let is_new = entry.last.is_none() && !entry.is_slow;
        let places = match (entry.is_slow, is_new) {
            (true, _) => &self.slow,
            (false, true) => &self.new,
            (false, false) => &self.quick,
        };
        let place = Arc::clone(places).acquire_owned();
        let name = name.to_owned();
        tokio::spawn(async move {
            // The places are never closed.
            let Ok(place) = place.await else { return };
            progress.send_replace(Progress::Running);
            let answer = self.look_up(&name, place, is_new).await;
            self.change(&name, |entry| {
                match &answer {
                    Ok(addresses) => entry.last = Some(Arc::clone(addresses)),
                    Err(error) if error.is_of_no_name() => entry.last = None,
                    Err(_) => {}
                }
                entry.is_fresh = entry.last.is_some() && !self.times.fresh.is_zero();
                entry.running = None;
            });
            progress.send_replace(Progress::Done(answer));
            drop(progress);
            tokio::time::sleep(self.times.fresh).await;
            self.change(&name, |entry| entry.is_fresh = false);
        });
        running
    }

    /// Looks a name up on a thread, which has `place` to its end.
    async fn look_up(&self, name: &str, mut place: OwnedSemaphorePermit, is_new: bool) -> Answer {
        let (done, mut ended) = oneshot::channel();
        let (lookup, asked) = (Arc::clone(&self.lookup), name.to_owned());
        let thread = std::thread::Builder::new().name("lookup".to_owned());
        let started = thread.spawn(move || drop(done.send(lookup(&asked))));
        started.map_err(|error| Shortage::Thread(Arc::new(error)))?;
        let quick = timeout(self.times.slow, &mut ended).await;
        self.change(name, |entry| entry.is_slow = quick.is_err());
        let ended = match quick {
            Ok(ended) => ended,
            Err(_) => {
                if is_new && let Ok(stuck) = Arc::clone(&self.stuck).try_acquire_owned() {
                    place = stuck;
                }
                ended.await
            }
        };
        drop(place);
        match ended.unwrap_or_else(|_| Err(io::Error::other("the name lookup has panicked"))) {
            Ok(addresses) if addresses.is_empty() => {
                let error = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
                Err(LookupError::Failed(Arc::new(error)))
            }
            Ok(addresses) => Ok(addresses.into()),
            Err(error) => Err(LookupError::Failed(Arc::new(error))),
        }
    }

    fn change(&self, name: &str, change: impl FnOnce(&mut Entry)) {
        if let Some(entry) = self.entries().by_name.get_mut(name) {
            change(entry);
        }
    }

    /// A panic leaves them right: each change is an assignment.
    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    pub(super) fn is_slow(&self, name: &str) -> bool {
        self.entries().by_name.get(name).is_some_and(|entry| entry.is_slow)
    }

    #[cfg(test)]
    pub(super) fn remembered(&self) -> usize {
        self.entries().by_name.len()
    }
}
