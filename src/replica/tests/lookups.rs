//! Names that are looked up at the same time, with lookups that end when the test lets them.

use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use tokio::sync::watch;

use super::super::names::{Lookup, LookupError, LookupShortage, LookupTimes, Names};

/// So long that only a test that fails gets there.
const LONG: Duration = Duration::from_secs(120);
const NEVER_SLOW: LookupTimes = LookupTimes { fresh: Duration::ZERO, slow: LONG };
const SLOW_AT_ONCE: LookupTimes = LookupTimes { fresh: Duration::ZERO, slow: Duration::ZERO };

fn address(n: u8) -> IpAddr {
    IpAddr::from([192, 0, 2, n])
}

/// Name servers: those of names that begin with `dead` answer when [`Servers::die`] lets them, with
/// an error; the others at once.
struct Servers {
    hang: Mutex<bool>,
    changed: Condvar,
    /// Lookups that hang now, and all that there were.
    hanging: watch::Sender<usize>,
    all: AtomicUsize,
    most: AtomicUsize,
}

impl Servers {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            hang: Mutex::new(true),
            changed: Condvar::new(),
            hanging: watch::Sender::new(0),
            all: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
        })
    }

    fn lookup(self: &Arc<Self>) -> Lookup {
        let this = Arc::clone(self);
        Arc::new(move |name| {
            this.all.fetch_add(1, Ordering::SeqCst);
            if name.starts_with("dead") {
                this.hanging.send_modify(|hanging| {
                    *hanging += 1;
                    this.most.fetch_max(*hanging, Ordering::SeqCst);
                });
                let hang = this.hang.lock().unwrap();
                drop(this.changed.wait_while(hang, |hang| *hang).unwrap());
                this.hanging.send_modify(|hanging| *hanging -= 1);
                return Err(io::Error::other("the name server is away"));
            }
            Ok(vec![address(1)])
        })
    }

    fn hang(&self, hang: bool) {
        *self.hang.lock().unwrap() = hang;
        self.changed.notify_all();
    }

    async fn until_hanging(&self, number: usize) {
        let mut hanging = self.hanging.subscribe();
        hanging.wait_for(|hanging| *hanging == number).await.unwrap();
    }
}

/// Asks for as many dead names; the questions wait for their answers.
fn ask_dead(names: &Arc<Names>, number: usize) -> Vec<tokio::task::JoinHandle<bool>> {
    let ask = |n| {
        let names = Arc::clone(names);
        tokio::spawn(async move { names.addresses(&format!("dead{n}"), LONG).await.is_err() })
    };
    (0..number).map(ask).collect()
}

#[tokio::test]
async fn names_whose_lookup_never_ends_hold_up_no_other_name() {
    let servers = Servers::new();
    let names = Names::new(servers.lookup(), NEVER_SLOW);
    let _asked = ask_dead(&names, 250);
    servers.until_hanging(250).await;
    let found = Arc::clone(&names).addresses("healthy", LONG).await.unwrap();
    assert_eq!(*found, [address(1)]);
    servers.hang(false);
}

#[tokio::test]
async fn new_names_pass_their_places_on_as_soon_as_they_are_slow() {
    let servers = Servers::new();
    let names = Names::new(servers.lookup(), SLOW_AT_ONCE);
    // As many as there are places for names that are new, and for those that were.
    let _asked = ask_dead(&names, 256 + 128);
    servers.until_hanging(256 + 128).await;
    servers.hang(false);
}

#[tokio::test]
async fn names_that_were_slow_share_a_few_places() {
    let servers = Servers::new();
    let names = Names::new(servers.lookup(), SLOW_AT_ONCE);
    let asked = ask_dead(&names, 100);
    servers.until_hanging(100).await;
    while !(0..100).all(|n| names.is_slow(&format!("dead{n}"))) {
        tokio::task::yield_now().await;
    }
    servers.hang(false);
    for asked in asked {
        assert!(asked.await.unwrap());
    }
    servers.hang(true);
    servers.most.store(0, Ordering::SeqCst);
    let asked = ask_dead(&names, 100);
    servers.until_hanging(32).await;
    let found = Arc::clone(&names).addresses("healthy", LONG).await.unwrap();
    assert_eq!(*found, [address(1)]);
    servers.hang(false);
    for asked in asked {
        assert!(asked.await.unwrap());
    }
    assert_eq!(servers.most.load(Ordering::SeqCst), 32);
}

#[tokio::test]
async fn all_who_need_a_name_wait_for_the_same_lookup() {
    let servers = Servers::new();
    let names = Names::new(servers.lookup(), NEVER_SLOW);
    let ask = || {
        let names = Arc::clone(&names);
        async move { names.addresses("dead", LONG).await }
    };
    let first = tokio::spawn(ask());
    servers.until_hanging(1).await;
    let short = Arc::clone(&names).addresses("dead", Duration::ZERO).await;
    assert!(matches!(short, Err(LookupError::TimedOut(_))), "{short:?}");
    servers.hang(false);
    assert!(first.await.unwrap().is_err());
    assert_eq!(servers.all.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn who_has_no_place_for_a_lookup_has_met_a_shortage_of_ours() {
    let servers = Servers::new();
    let names = Names::new(servers.lookup(), NEVER_SLOW);
    let _asked = ask_dead(&names, 256);
    servers.until_hanging(256).await;
    let short = Arc::clone(&names).addresses("new", Duration::ZERO).await;
    assert!(matches!(short, Err(LookupError::Shortage(LookupShortage::Permits))), "{short:?}");
    servers.hang(false);
    assert!(names.addresses("new", LONG).await.is_ok(), "its lookup was only put off");
}

/// Answers with each of these in turn, and hangs for ever behind them.
fn in_turn(answers: Vec<io::Result<Vec<IpAddr>>>) -> Lookup {
    let answers = Mutex::new(answers.into_iter());
    Arc::new(move |_| {
        let answer = answers.lock().unwrap().next();
        answer.unwrap_or_else(|| {
            loop {
                std::thread::park();
            }
        })
    })
}

#[tokio::test]
async fn a_name_that_has_moved_is_followed() {
    let lookup = in_turn(vec![Ok(vec![address(1)]), Ok(vec![address(2)])]);
    let names = Names::new(lookup, NEVER_SLOW);
    for n in 1..=2 {
        assert_eq!(*Arc::clone(&names).addresses("name", LONG).await.unwrap(), [address(n)]);
    }
}

#[tokio::test]
async fn a_fresh_answer_needs_no_lookup_until_all_are_dropped() {
    let lookup = in_turn(vec![Ok(vec![address(1)]), Ok(vec![address(2)])]);
    let names = Names::new(lookup, LookupTimes { fresh: LONG, slow: LONG });
    for n in [1, 1, 1] {
        assert_eq!(*Arc::clone(&names).addresses("name", LONG).await.unwrap(), [address(n)]);
    }
    names.clear_answers();
    assert_eq!(*names.addresses("name", LONG).await.unwrap(), [address(2)]);
}

#[tokio::test]
async fn the_last_answer_serves_where_a_lookup_fails_or_does_not_end() {
    let away = || Err(io::Error::other("the name server is away"));
    let names = Names::new(in_turn(vec![Ok(vec![address(1)]), away(), away()]), SLOW_AT_ONCE);
    for _ in 0..20 {
        assert_eq!(*Arc::clone(&names).addresses("name", LONG).await.unwrap(), [address(1)]);
    }
}

#[tokio::test]
async fn the_last_answer_is_dropped_where_there_is_no_such_name_any_more() {
    let gone = Err(io::Error::new(io::ErrorKind::NotFound, "no such name"));
    let names = Names::new(in_turn(vec![Ok(vec![address(1)]), gone]), NEVER_SLOW);
    assert!(Arc::clone(&names).addresses("name", LONG).await.is_ok());
    assert!(Arc::clone(&names).addresses("name", LONG).await.is_err());
    assert!(names.last("name").is_none());
}

#[tokio::test]
async fn the_names_that_are_remembered_are_bounded() {
    let servers = Servers::new();
    let names = Names::new(servers.lookup(), NEVER_SLOW);
    for n in 0..4_200 {
        Arc::clone(&names).addresses(&format!("name{n}"), LONG).await.unwrap();
    }
    assert_eq!(names.cached(), 4_096);
    assert!(names.last("name0").is_none() && names.last("name4199").is_some());
}
