//! Checks at the start that the system allows the threads that a command needs.
//!
//! The runtime and the store panic or hang if they cannot start a thread, each at another moment.

use std::num::NonZeroUsize;
use std::sync::mpsc;
use std::thread;

use crate::daemon::outbound_threads;

const STACK_BYTES: usize = 64 << 10;

/// Threads of the daemon besides the runtime's workers: allocator, committer, seven of sled,
/// compaction, removal of the old store, and a few for blocking file and DNS calls.
const BESIDE_THE_RUNTIME: usize = 15;

pub(super) fn for_daemon() -> usize {
    let cores = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    cores + outbound_threads() + BESIDE_THE_RUNTIME
}

/// A command that opens the store: seven of sled and two spare.
pub(super) const FOR_STORE: usize = 9;

/// A command that talks to the daemon: DNS and the keyboard.
pub(super) const FOR_CLIENT: usize = 3;

/// Starts `needed` threads at once and ends them again.
pub(super) fn check(needed: usize) -> Result<(), String> {
    let threads: Vec<_> = (0..needed)
        .map_while(|_| {
            let (end, ended) = mpsc::channel::<()>();
            let wait = move || {
                // Returns an error when `end` is dropped.
                let _ = ended.recv();
            };
            let thread = thread::Builder::new().stack_size(STACK_BYTES).spawn(wait).ok()?;
            Some((end, thread))
        })
        .collect();
    let started = threads.len();
    for (end, thread) in threads {
        drop(end);
        // The thread cannot panic.
        let _ = thread.join();
    }
    if started == needed {
        return Ok(());
    }
    Err(format!(
        "the system allows {started} of the {needed} threads that this process needs: raise the limit (TasksMax= of systemd, --pids-limit of the container, ulimit -u)"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn available_threads_pass_the_check() {
        check(for_daemon()).unwrap();
        check(FOR_STORE).unwrap();
    }
}
