//! Failing disks: the process reports the error and ends, and the next start loses nothing.

use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::disk::{Disk, Luck, PAGE};
use super::judge::{Known, judge};
use super::record::{Control, Recording, entries};
use super::scratch;
use super::support::replica::Gate;
use super::support::{Behaviour, Daemon, wait_until};
use super::workload::{Workload, args, start_writers};
use super::world::{self, Witness, world};

/// The n-th call fails, and with `lasting` all calls after it.
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

/// Checks that nothing acknowledged is lost, after a power cut and in the files of the process.
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

/// Checks that the daemon ended with status 1 and one error in the log.
async fn ended_by_fault(daemon: &mut Daemon, fault: Fault) {
    let status = daemon.ended().await;
    let log = daemon.log();
    assert_eq!(status.code(), Some(1), "{fault:?}\n{log}");
    let errors = log.lines().filter(|line| line.contains("ERROR") && line.contains("stopping"));
    assert_eq!(errors.count(), 1, "{fault:?}\n{log}");
}

/// Lets the disk fail during traffic.
async fn fails_during_traffic(fault: Fault) {
    let recording = Arc::new(Recording::new());
    let world = world_in(&recording).await;
    let mut daemon = start(&recording).await.unwrap();
    let numbers = Arc::new(AtomicU64::new(1));
    let writers =
        start_writers(Workload::Churn, &daemon, &world, &recording, &numbers, 100_000, None);
    wait_until("100 writes are posted", || async {
        (numbers.load(Ordering::Relaxed) > 100).then_some(())
    })
    .await;
    fault.arm(&recording);
    ended_by_fault(&mut daemon, fault).await;
    assert!(recording.get(Control::Failed) > 0, "{fault:?} never happened");
    for writer in writers {
        writer.await.unwrap();
    }
    recovers(&recording, &world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_acknowledged_after_a_failed_fsync() {
    for nth in [1, 2, 7, 40] {
        fails_during_traffic(Fault { nth, ..ONCE }).await;
    }
    fails_during_traffic(Fault { nth: 5, lasting: true, ..ONCE }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_write_ends_the_process_and_loses_nothing() {
    for nth in [1, 2, 23] {
        // Lasting, because a single failed write of COMMITTED does not end the process.
        fails_during_traffic(Fault { call: Control::Write, nth, lasting: true, ..ONCE }).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_fills_up_during_a_write_loses_nothing() {
    let full = Fault { call: Control::Write, error: libc::ENOSPC, lasting: true, ..ONCE };
    fails_during_traffic(Fault { nth: 3, ..full }).await;
    fails_during_traffic(Fault { nth: 10, partial: true, ..full }).await;
}

/// The last settlements cannot be written.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_fails_during_the_drain_makes_the_exit_code_nonzero() {
    let recording = Arc::new(Recording::new());
    let world = world_in(&recording).await;
    let mut daemon = start(&recording).await.unwrap();
    // One delivery is in flight until the disk fails, so that its settlement must be written last.
    let gate = Gate::default();
    let behind = gate.clone();
    world[0].behave(
        Some(Arc::clone(&recording)),
        Arc::new(move |_, _| Behaviour::ApplyBehind(behind.clone())),
    );
    let numbers = Arc::new(AtomicU64::new(1));
    let writers = start_writers(Workload::Churn, &daemon, &world, &recording, &numbers, 50, None);
    for writer in writers {
        writer.await.unwrap();
    }
    daemon.signal("-TERM");
    daemon.until_logged("draining").await;
    // Not earlier: the settlements of the other replicas are written all the time.
    let fault = Fault { lasting: true, ..ONCE };
    fault.arm(&recording);
    gate.open();
    let status = daemon.ended().await;
    assert_eq!(status.code(), Some(1), "{}", daemon.log());
    recovers(&recording, &world).await;
}

/// Leaves a store with pending deliveries behind, by a kill.
async fn leave_killed_store(recording: &Arc<Recording>, world: &[Witness]) {
    world[0].replica.stop();
    let mut daemon = start(recording).await.unwrap();
    let numbers = Arc::new(AtomicU64::new(1));
    let writers = start_writers(Workload::Churn, &daemon, world, recording, &numbers, 200, None);
    for writer in writers {
        writer.await.unwrap();
    }
    recording.kill(&mut daemon);
}

/// Starts the stopped replica again and checks that everything is delivered.
async fn everything_is_delivered(recording: &Recording, world: &[Witness]) {
    for witness in world {
        witness.next_life();
    }
    world[0].replica.come_back().await;
    recovers(recording, world).await;
}

/// Checks that a start failed with one sentence, and returns it.
fn refused_in_one_sentence(recording: &Recording, why: &str, fault: &str) -> String {
    assert!(why.contains("exit status: 1"), "{fault}: {why}");
    let errors: Vec<_> = why.lines().filter(|line| line.starts_with("replicator: ")).collect();
    let [error] = errors[..] else { panic!("{fault}: {why}") };
    // Otherwise the next start appends to it.
    std::fs::remove_file(recording.data_dir().with_extension("log")).unwrap();
    error.to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_fails_anywhere_in_a_start_is_reported_and_loses_nothing() {
    let recording = Arc::new(Recording::new());
    let world = world_in(&recording).await;
    leave_killed_store(&recording, &world).await;
    for call in [Control::Write, Control::Fsync] {
        let mut refused = 0;
        // In growing steps, until the start makes fewer calls.
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
                    assert!(has_failed, "{call:?}: an earlier failure left damage: {why}");
                    refused_in_one_sentence(&recording, &why, &format!("{fault:?}"));
                }
                Ok(mut daemon) => {
                    recording.kill(&mut daemon);
                    if !has_failed {
                        break;
                    }
                }
            }
        }
        assert!(refused > 0, "{call:?}");
    }
    everything_is_delivered(&recording, &world).await;
}

/// Includes the reads of sled, which would take a failed read for the end of its log and overwrite
/// what follows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_that_fails_anywhere_in_a_start_is_reported_and_loses_nothing() {
    let recording = Arc::new(Recording::new());
    let world = world_in(&recording).await;
    leave_killed_store(&recording, &world).await;
    let (mut refused, mut by_sled) = (0, 0);
    for nth in 1.. {
        let fault = Fault { call: Control::Read, nth, ..ONCE };
        let failed_before = recording.get(Control::Failed);
        fault.arm(&recording);
        let started = start(&recording).await;
        let has_failed = recording.get(Control::Failed) > failed_before;
        fault.disarm(&recording);
        match started {
            Err(why) => {
                assert!(has_failed, "{nth}: an earlier failure left damage: {why}");
                let error = refused_in_one_sentence(&recording, &why, &format!("{fault:?}"));
                assert!(error.contains("os error 5"), "{nth}: {error}");
                refused += 1;
                if error.contains("the process ends before anything is written") {
                    by_sled += 1;
                    assert!(error.contains("store-000001/db at byte"), "{nth}: {error}");
                }
            }
            Ok(mut daemon) => {
                recording.kill(&mut daemon);
                if !has_failed {
                    break;
                }
            }
        }
        // The store is undamaged: nothing is rebuilt or set aside.
        let mut daemon = start(&recording).await.unwrap_or_else(|why| panic!("{nth}: {why}"));
        let log = daemon.log();
        assert!(!log.contains("damage"), "{nth}: {log}");
        recording.kill(&mut daemon);
        std::fs::remove_file(recording.data_dir().with_extension("log")).unwrap();
    }
    eprintln!("{refused} failed reads failed the start, {by_sled} of them in sled");
    assert!(by_sled > 5, "{by_sled}");
    everything_is_delivered(&recording, &world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_check_reports_a_failed_read_as_an_error_and_not_as_damage() {
    let recording = Arc::new(Recording::new());
    let world = world_in(&recording).await;
    leave_killed_store(&recording, &world).await;
    let mut by_sled = 0;
    for nth in 1.. {
        let fault = Fault { call: Control::Read, nth, ..ONCE };
        let failed_before = recording.get(Control::Failed);
        fault.arm(&recording);
        let mut check = super::support::daemon::command();
        check.arg("check").arg("--data-dir").arg(recording.data_dir());
        let checked = check.envs(recording.environment()).output().unwrap();
        let has_failed = recording.get(Control::Failed) > failed_before;
        fault.disarm(&recording);
        let (out, errors) =
            (String::from_utf8_lossy(&checked.stdout), String::from_utf8_lossy(&checked.stderr));
        assert!(!out.contains("damaged"), "{nth}: {out}");
        if !has_failed {
            assert!(checked.status.success(), "{nth}: {out}{errors}");
            break;
        }
        if !checked.status.success() {
            assert!(errors.contains("os error 5"), "{nth}: {out}{errors}");
            by_sled += u32::from(errors.contains("check.tmp/db at byte"));
        }
    }
    assert!(by_sled > 5, "{by_sled}");
}

/// The store reads its files before sled does, so that it reports the error with nothing changed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_that_is_unreadable_during_one_start_is_reported_and_loses_nothing() {
    let recording = Arc::new(Recording::new());
    let world = world_in(&recording).await;
    leave_killed_store(&recording, &world).await;
    let mut tried = 0;
    for (path, bytes) in super::disk::files(&recording.data_dir()) {
        if bytes.is_empty() || path == "LOCK" {
            continue;
        }
        let file = recording.data_dir().join(&path);
        let pages = std::iter::successors(Some(0), |page| Some(page + 1 + page / 2));
        for page in pages.take_while(|page| page * PAGE < bytes.len()) {
            // An earlier start may have replaced the file.
            let Ok(file) = std::fs::metadata(&file) else { break };
            recording.set(Control::Error, libc::EIO.cast_unsigned());
            recording.set(Control::BadAt, u32::try_from(page * PAGE).unwrap());
            recording.set(Control::BadInode, file.ino() as u32);
            let started = start(&recording).await;
            recording.set(Control::BadInode, 0);
            let fault = format!("page {page} of {path}");
            let Err(why) = started else { panic!("{fault} was not read") };
            let error = refused_in_one_sentence(&recording, &why, &fault);
            assert!(error.contains(&path) && error.contains("os error 5"), "{fault}: {error}");
            let started = start(&recording).await;
            recording.kill(&mut started.unwrap_or_else(|why| panic!("{fault}: {why}")));
            tried += 1;
        }
    }
    assert!(tried > 10, "{tried}");
    eprintln!("{tried} pages were unreadable during one start");
    everything_is_delivered(&recording, &world).await;
}
