//! Concurrent name lookups, which finish when the test lets them.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tokio::sync::watch;

use super::super::names::{Lookup, LookupError, LookupShortage, LookupTimes, Names};

/// Only a failing test waits this long.
const LONG: Duration = Duration::from_secs(120);
const NEVER_SLOW: LookupTimes = LookupTimes { fresh: Duration::ZERO, slow: LONG };
const SLOW_AT_ONCE: LookupTimes = LookupTimes { fresh: Duration::ZERO, slow: Duration::ZERO };

fn address(n: u8) -> IpAddr {
    IpAddr::from([192, 0, 2, n])
}

/// Lookups of names that begin with `dead` hang until [`Servers::hang`] ends that, and then fail. All
/// others succeed at once.
struct Servers {
    hang: Mutex<bool>,
    changed: Condvar,
    hanging: watch::Sender<usize>,
    /// The number of lookups so far.
    all: AtomicUsize,
    max_hanging: AtomicUsize,
}

impl Servers {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            hang: Mutex::new(true),
            changed: Condvar::new(),
            hanging: watch::Sender::new(0),
            all: AtomicUsize::new(0),
            max_hanging: AtomicUsize::new(0),
        })
    }

    fn lookup(self: &Arc<Self>) -> Lookup {
        let this = Arc::clone(self);
        Arc::new(move |name| {
            this.all.fetch_add(1, Ordering::SeqCst);
            if name.starts_with("dead") {
                this.hanging.send_modify(|hanging| {
                    *hanging += 1;
                    this.max_hanging.fetch_max(*hanging, Ordering::SeqCst);
                });
                let mut hang = this.hang.lock();
                this.changed.wait_while(&mut hang, |hang| *hang);
                drop(hang);
                this.hanging.send_modify(|hanging| *hanging -= 1);
                return Err(io::Error::other("the name server is away"));
            }
            Ok(vec![address(1)])
        })
    }

    fn hang(&self, hang: bool) {
        *self.hang.lock() = hang;
        self.changed.notify_all();
    }

    async fn until_hanging(&self, number: usize) {
        let mut hanging = self.hanging.subscribe();
        hanging.wait_for(|hanging| *hanging == number).await.unwrap();
    }
}

/// Starts a lookup of each of `number` dead names.
fn look_up_dead(names: &Arc<Names>, number: usize) -> Vec<tokio::task::JoinHandle<bool>> {
    let look_up = |n| {
        let names = Arc::clone(names);
        tokio::spawn(async move { names.addresses(&format!("dead{n}"), LONG).await.is_err() })
    };
    (0..number).map(look_up).collect()
}

#[tokio::test]
async fn lookups_that_never_finish_delay_no_other_name() {
    let servers = Servers::new();
    let names = Names::new(servers.lookup(), NEVER_SLOW);
    let _lookups = look_up_dead(&names, 250);
    servers.until_hanging(250).await;
    let found = Arc::clone(&names).addresses("healthy", LONG).await.unwrap();
    assert_eq!(*found, [address(1)]);
    servers.hang(false);
}

#[tokio::test]
async fn new_names_free_their_permits_as_soon_as_they_are_slow() {
    let servers = Servers::new();
    let names = Names::new(servers.lookup(), SLOW_AT_ONCE);
    // The permits of new names, and of new names that became slow.
    let _lookups = look_up_dead(&names, 256 + 128);
    servers.until_hanging(256 + 128).await;
    servers.hang(false);
}

#[tokio::test]
async fn names_with_a_slow_last_lookup_share_a_few_permits() {
    let servers = Servers::new();
    let names = Names::new(servers.lookup(), SLOW_AT_ONCE);
    let lookups = look_up_dead(&names, 100);
    servers.until_hanging(100).await;
    while !(0..100).all(|n| names.is_slow(&format!("dead{n}"))) {
        tokio::task::yield_now().await;
    }
    servers.hang(false);
    for lookup in lookups {
        assert!(lookup.await.unwrap());
    }
    servers.hang(true);
    servers.max_hanging.store(0, Ordering::SeqCst);
    let lookups = look_up_dead(&names, 100);
    servers.until_hanging(32).await;
    let found = Arc::clone(&names).addresses("healthy", LONG).await.unwrap();
    assert_eq!(*found, [address(1)]);
    servers.hang(false);
    for lookup in lookups {
        assert!(lookup.await.unwrap());
    }
    assert_eq!(servers.max_hanging.load(Ordering::SeqCst), 32);
}

#[tokio::test]
async fn all_attempts_for_a_name_wait_for_the_same_lookup() {
    let servers = Servers::new();
    let names = Names::new(servers.lookup(), NEVER_SLOW);
    let look_up = || {
        let names = Arc::clone(&names);
        async move { names.addresses("dead", LONG).await }
    };
    let first = tokio::spawn(look_up());
    servers.until_hanging(1).await;
    let short = Arc::clone(&names).addresses("dead", Duration::ZERO).await;
    assert!(matches!(short, Err(LookupError::TimedOut(_))), "{short:?}");
    servers.hang(false);
    assert!(first.await.unwrap().is_err());
    assert_eq!(servers.all.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_lookup_without_a_permit_is_a_local_shortage() {
    let servers = Servers::new();
    let names = Names::new(servers.lookup(), NEVER_SLOW);
    let _lookups = look_up_dead(&names, 256);
    servers.until_hanging(256).await;
    let short = Arc::clone(&names).addresses("new", Duration::ZERO).await;
    assert!(matches!(short, Err(LookupError::Shortage(LookupShortage::Permits))), "{short:?}");
    servers.hang(false);
    assert!(names.addresses("new", LONG).await.is_ok(), "its lookup was only delayed");
}

/// Returns the answers in turn, then hangs for ever.
fn in_turn(answers: Vec<io::Result<Vec<IpAddr>>>) -> Lookup {
    let answers = Mutex::new(answers.into_iter());
    Arc::new(move |_| {
        let answer = answers.lock().next();
        answer.unwrap_or_else(|| {
            loop {
                std::thread::park();
            }
        })
    })
}

#[tokio::test]
async fn a_changed_address_is_followed() {
    let lookup = in_turn(vec![Ok(vec![address(1)]), Ok(vec![address(2)])]);
    let names = Names::new(lookup, NEVER_SLOW);
    for n in 1..=2 {
        assert_eq!(*Arc::clone(&names).addresses("name", LONG).await.unwrap(), [address(n)]);
    }
}

#[tokio::test]
async fn a_fresh_answer_needs_no_lookup_until_the_answers_are_cleared() {
    let lookup = in_turn(vec![Ok(vec![address(1)]), Ok(vec![address(2)])]);
    let names = Names::new(lookup, LookupTimes { fresh: LONG, slow: LONG });
    for n in [1, 1, 1] {
        assert_eq!(*Arc::clone(&names).addresses("name", LONG).await.unwrap(), [address(n)]);
    }
    names.clear_answers();
    assert_eq!(*names.addresses("name", LONG).await.unwrap(), [address(2)]);
}

#[tokio::test]
async fn the_last_answer_is_used_if_a_lookup_fails_or_does_not_finish() {
    let away = || Err(io::Error::other("the name server is away"));
    let names = Names::new(in_turn(vec![Ok(vec![address(1)]), away(), away()]), SLOW_AT_ONCE);
    for _ in 0..20 {
        assert_eq!(*Arc::clone(&names).addresses("name", LONG).await.unwrap(), [address(1)]);
    }
}

#[tokio::test]
async fn the_last_answer_is_dropped_if_the_name_no_longer_exists() {
    let gone = Err(io::Error::new(io::ErrorKind::NotFound, "no such name"));
    let names = Names::new(in_turn(vec![Ok(vec![address(1)]), gone]), NEVER_SLOW);
    assert!(Arc::clone(&names).addresses("name", LONG).await.is_ok());
    assert!(Arc::clone(&names).addresses("name", LONG).await.is_err());
    assert!(names.last("name").is_none());
}

#[tokio::test]
async fn the_number_of_cached_names_is_limited() {
    let servers = Servers::new();
    let names = Names::new(servers.lookup(), NEVER_SLOW);
    for n in 0..4_200 {
        Arc::clone(&names).addresses(&format!("name{n}"), LONG).await.unwrap();
    }
    assert_eq!(names.cached(), 4_096);
    assert!(names.last("name0").is_none() && names.last("name4199").is_some());
}
