//! The environment of the daemon: replicas that record their requests, and the values.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex};

use super::record::{Mark, Recording};
use super::support::replica::Seen;
use super::support::{Behaviour, Daemon, Replica, daemon};

/// A value that repeats its number, so that a torn value is detected.
pub fn value(n: u64, bytes: usize) -> String {
    let word = format!("<{n}>");
    word.repeat(1 + bytes / word.len())
}

/// The number in a value, or `None` if it is torn.
fn number(bytes: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(bytes).ok()?;
    let word = &text[..=text.find('>')?];
    let is_whole = bytes.chunks(word.len()).all(|chunk| chunk == word.as_bytes());
    word.trim_matches(['<', '>']).parse().ok().filter(|_| is_whole)
}

pub async fn world() -> Vec<Witness> {
    let mut world = Vec::new();
    for number in 0..3 {
        world.push(Witness::start(number).await);
    }
    world
}

/// Starts the daemon. The error contains its log.
pub async fn start(
    path: &Path,
    args: &[&str],
    environment: &[(String, String)],
) -> Result<Daemon, String> {
    let env: Vec<_> = environment.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
    Daemon::try_start_on(path, args, &env)
        .await
        .map_err(|status| format!("the daemon did not start ({status})\n{}", daemon::log(path)))
}

/// The last write of each key at a replica: the task, and the number in its value.
pub type Held = BTreeMap<String, (u64, Option<u64>)>;

/// Decides how a replica answers a request; the number is that of the attempt.
pub type Mood = Arc<dyn Fn(&Seen, u32) -> Behaviour + Send + Sync>;

#[derive(Default)]
struct Book {
    held: Held,
    /// The highest task of each key in this life of the daemon.
    newest: HashMap<String, u64>,
    attempts: HashMap<u64, u32>,
    wrongs: Vec<String>,
}

/// A replica that records the writes it applies.
pub struct Witness {
    pub replica: Replica,
    pub number: usize,
    book: Arc<Mutex<Book>>,
}

impl Witness {
    pub async fn start(number: usize) -> Self {
        let witness = Self { replica: Replica::start().await, number, book: Arc::default() };
        witness.behave(None, Arc::new(|_, _| Behaviour::Apply));
        witness
    }

    /// Behaves as `mood` says, and marks it in `recording`.
    pub fn behave(&self, recording: Option<Arc<Recording>>, mood: Mood) {
        let (book, replica) = (Arc::clone(&self.book), self.number);
        self.replica.behave(move |seen| {
            let (task, key) = (seen.sequence(), seen.key());
            let mut book = book.lock().unwrap();
            let attempt = book.attempts.entry(task).or_default();
            *attempt += 1;
            let behaviour = mood(seen, *attempt);
            let applies = !matches!(behaviour, Behaviour::Answer(..) | Behaviour::Reset);
            if applies {
                book.note(&key, seen);
            }
            if let Some(recording) = &recording {
                recording.mark(&if applies {
                    Mark::Applied { replica, task, n: book.held[&key].1, key }
                } else {
                    let forever = matches!(behaviour, Behaviour::Answer(400, ..));
                    Mark::Refused { replica, task, forever }
                });
            }
            behaviour
        });
    }

    /// The daemon was restarted: older writes may be sent again, in order.
    pub fn next_life(&self) {
        self.book.lock().unwrap().newest.clear();
    }

    /// Resets the replica to this state.
    pub fn restore(&self, held: Held) {
        self.replica.forget();
        *self.book.lock().unwrap() = Book { held, ..Book::default() };
    }

    pub fn held(&self) -> Held {
        self.book.lock().unwrap().held.clone()
    }

    /// Requests that violate the order, and torn values.
    pub fn wrongs(&self) -> Vec<String> {
        self.book.lock().unwrap().wrongs.clone()
    }
}

impl Book {
    fn note(&mut self, key: &str, seen: &Seen) {
        let task = seen.sequence();
        let newest = self.newest.entry(key.to_owned()).or_default();
        if task < *newest {
            self.wrongs.push(format!("{key}: {task} was sent after {newest}"));
        }
        *newest = task.max(*newest);
        let mut n = None;
        if seen.method == "PUT" {
            n = number(&seen.body);
            if n.is_none() {
                self.wrongs.push(format!("{key}: the value of {task} is torn"));
            }
        }
        self.held.insert(key.to_owned(), (task, n));
    }
}
