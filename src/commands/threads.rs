//! Whether the system lets the process have its threads.
//!
//! The runtime and the store panic or wait for ever where a thread cannot be started, and each at
//! another moment. So the start tries it out: as many as are needed at once, before anything else.

use std::num::NonZeroUsize;
use std::sync::mpsc;
use std::thread;

/// The stack of a thread that only waits.
const STACK_BYTES: usize = 64 << 10;

/// What the daemon needs beside the runtime's: the allocator's, the committer, sled's seven, the rewrite of the store
/// and its removal, and those of the runtime that read files and names, of which a few suffice.
const BESIDE_THE_RUNTIME: usize = 15;

/// The threads of the daemon.
pub(super) fn of_daemon() -> usize {
    let cores = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    cores + BESIDE_THE_RUNTIME
}

/// The threads of a tool that opens the store: sled's, and a few.
pub(super) const OF_STORE: usize = 9;

/// The threads of a command that asks the daemon: for names, and for the keyboard.
pub(super) const OF_CLIENT: usize = 3;

/// Tries whether so many threads can run beside each other.
///
/// # Errors
///
/// How many can, and what to do.
pub(super) fn check(needed: usize) -> Result<(), String> {
    let threads: Vec<_> = (0..needed)
        .map_while(|_| {
            let (end, ended) = mpsc::channel::<()>();
            let wait = move || {
                // It is an error: nothing is sent, and the other end is dropped.
                let _ = ended.recv();
            };
            let thread = thread::Builder::new().stack_size(STACK_BYTES).spawn(wait).ok()?;
            Some((end, thread))
        })
        .collect();
    let started = threads.len();
    for (end, thread) in threads {
        drop(end);
        // It only waits, and cannot panic.
        let _ = thread.join();
    }
    if started == needed {
        return Ok(());
    }
    Err(format!(
        "the system lets this process start {started} of the {needed} threads that it needs: raise the limit (TasksMax= of systemd, --pids-limit of the container, ulimit -u)"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_that_can_be_had_are_let_go_again() {
        check(of_daemon()).unwrap();
        check(OF_STORE).unwrap();
    }
}
