//! Disks that fail: the process says so, ends, and the next one has everything.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::disk::{Disk, Luck};
use super::judge::{Known, judge};
use super::record::{Control, Recording, entries};
use super::scratch;
use super::support::{Behaviour, Daemon, wait_until};
use super::workload::{Workload, args, start_writers};
use super::world::{self, Witness, world};

/// How the disk fails: from the n-th call on, or only there.
#[derive(Clone, Copy, Debug)]
struct Fault {
    call: Control,
    nth: u32,
    error: i32,
    lasting: bool,
    partial: bool,
}

const ONCE: Fault =
    Fault { call: Control::Fsync, nth: 1, error: libc::EIO, lasting: false, partial: false };

impl Fault {
    fn arm(self, recording: &Recording) {
        recording.set(Control::Error, self.error.cast_unsigned());
        recording.set(Control::Lasting, self.lasting.into());
        recording.set(Control::Partial, self.partial.into());
        recording.set(self.call, self.nth);
    }

    fn disarm(self, recording: &Recording) {
        recording.set(self.call, 0);
        recording.set(Control::Lasting, 0);
    }
}

async fn start(recording: &Recording) -> Result<Daemon, String> {
    world::start(&recording.data_dir(), &args("1000"), &recording.environment()).await
}

async fn world_in(recording: &Arc<Recording>) -> Vec<Witness> {
    let world = world().await;
    for witness in &world {
        witness.behave(Some(Arc::clone(recording)), Arc::new(|_, _| Behaviour::Apply));
    }
    world
}

/// Everything that was acknowledged is there after a power cut, and in what the process left.
async fn recovers(recording: &Recording, world: &[Witness]) {
    let bytes = recording.bytes();
    let (mut disk, mut known) = (Disk::new(&recording.data_dir()), Known::new(world.len()));
    for entry in entries(&bytes) {
        match entry.mark() {
            Some(mark) => known.learn(mark),
            None => disk.apply(&entry),
        }
    }
    assert!(known.accepted() > 0);
    let place = scratch();
    let cut = place.path().join("data");
    disk.image(Luck::Nothing, &mut fastrand::Rng::with_seed(0), &cut);
    for dir in [cut, recording.data_dir()] {
        judge(&dir, &known, world).await.unwrap_or_else(|wrong| panic!("{wrong}"));
    }
}

/// The daemon ended as it should: not by a panic, not in silence, and not as if all were well.
async fn ended_by_it(daemon: &mut Daemon, fault: Fault) {
    let status = daemon.ended().await;
    let log = daemon.log();
    assert_eq!(status.code(), Some(1), "{fault:?}\n{log}");
    let said = log.lines().filter(|line| line.contains("ERROR") && line.contains("stopping"));
    assert_eq!(said.count(), 1, "{fault:?}\n{log}");
}

/// The disk fails amid traffic.
async fn amid_traffic(fault: Fault) {
    let recording = Arc::new(Recording::new());
    let world = world_in(&recording).await;
    let mut daemon = start(&recording).await.unwrap();
    let numbers = Arc::new(AtomicU64::new(1));
    let writers = start_writers(Workload::Churn, &daemon, &world, &recording, &numbers, 100_000);
    wait_until("some are posted", || async {
        (numbers.load(Ordering::Relaxed) > 100).then_some(())
    })
    .await;
    fault.arm(&recording);
    ended_by_it(&mut daemon, fault).await;
    assert!(recording.get(Control::Failed) > 0, "{fault:?} never came");
    for writer in writers {
        writer.await.unwrap();
    }
    recovers(&recording, &world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_acknowledged_after_an_fsync_that_failed() {
    for nth in [1, 2, 7, 40] {
        amid_traffic(Fault { nth, ..ONCE }).await;
    }
    amid_traffic(Fault { nth: 5, lasting: true, ..ONCE }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_fails_ends_the_process_and_loses_nothing() {
    for nth in [1, 2, 23] {
        // Lasting: the witness beside the store may fail to be written, the store may not.
        amid_traffic(Fault { call: Control::Write, nth, lasting: true, ..ONCE }).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_is_full_amid_a_write_loses_nothing() {
    let full = Fault { call: Control::Write, error: libc::ENOSPC, lasting: true, ..ONCE };
    amid_traffic(Fault { nth: 3, ..full }).await;
    amid_traffic(Fault { nth: 10, partial: true, ..full }).await;
}

/// The settlements of the end cannot be written: that is no good end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_fails_while_the_daemon_drains_is_no_success() {
    let recording = Arc::new(Recording::new());
    let world = world_in(&recording).await;
    let mut daemon = start(&recording).await.unwrap();
    let numbers = Arc::new(AtomicU64::new(1));
    let writers = start_writers(Workload::Churn, &daemon, &world, &recording, &numbers, 50);
    for writer in writers {
        writer.await.unwrap();
    }
    let fault = Fault { lasting: true, ..ONCE };
    fault.arm(&recording);
    let status = daemon.terminate().await;
    assert_eq!(status.code(), Some(1), "{}", daemon.log());
    recovers(&recording, &world).await;
}

/// Opening the store fails in every place in turn; each time it is said, and the next start is
/// as good as if nothing had been.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_fails_at_the_start_is_told_of_and_loses_nothing() {
    let recording = Arc::new(Recording::new());
    let world = world_in(&recording).await;
    world[0].replica.stop();
    let mut daemon = start(&recording).await.unwrap();
    let numbers = Arc::new(AtomicU64::new(1));
    let writers = start_writers(Workload::Churn, &daemon, &world, &recording, &numbers, 200);
    for writer in writers {
        writer.await.unwrap();
    }
    daemon.kill();
    for call in [Control::Write, Control::Fsync] {
        let mut refused = 0;
        // From the first of its calls, in growing steps, to where the start has no more of them.
        for nth in std::iter::successors(Some(1), |nth| Some(nth + 1 + nth / 2)) {
            let fault = Fault { call, nth, ..ONCE };
            fault.arm(&recording);
            let failed_before = recording.get(Control::Failed);
            let started = start(&recording).await;
            let has_failed = recording.get(Control::Failed) > failed_before;
            fault.disarm(&recording);
            match started {
                Err(why) => {
                    refused += 1;
                    assert!(has_failed, "{call:?}: an earlier failure has left damage: {why}");
                    assert!(why.contains("exit status: 1"), "{fault:?}: {why}");
                    let said = why.lines().filter(|line| line.starts_with("replicator: "));
                    // The log is kept from one start to the next.
                    assert_eq!(said.count(), refused, "{fault:?}: {why}");
                }
                Ok(mut daemon) => {
                    daemon.kill();
                    if !has_failed {
                        break;
                    }
                }
            }
        }
        assert!(refused > 0, "{call:?}");
        std::fs::remove_file(recording.data_dir().with_extension("log")).unwrap();
    }
    for witness in &world {
        witness.next_life();
    }
    world[0].replica.come_back().await;
    recovers(&recording, &world).await;
}
