//! Disks that fail: the process says so, ends, and the next one has everything.

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
    let writers =
        start_writers(Workload::Churn, &daemon, &world, &recording, &numbers, 100_000, None);
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
    // Something is on its way until the disk fails: what becomes of it must be written in the end.
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
    // Not before: what the others have acknowledged is being written all the time.
    let fault = Fault { lasting: true, ..ONCE };
    fault.arm(&recording);
    gate.open();
    let status = daemon.ended().await;
    assert_eq!(status.code(), Some(1), "{}", daemon.log());
    recovers(&recording, &world).await;
}

/// A store with writes that wait for a replica, left by a kill.
async fn left_by_a_kill(recording: &Arc<Recording>, world: &[Witness]) {
    world[0].replica.stop();
    let mut daemon = start(recording).await.unwrap();
    let numbers = Arc::new(AtomicU64::new(1));
    let writers = start_writers(Workload::Churn, &daemon, world, recording, &numbers, 200, None);
    for writer in writers {
        writer.await.unwrap();
    }
    recording.kill(&mut daemon);
}

/// The replica that was away is back, and everything comes to it.
async fn all_is_delivered_after_all(recording: &Recording, world: &[Witness]) {
    for witness in world {
        witness.next_life();
    }
    world[0].replica.come_back().await;
    recovers(recording, world).await;
}

/// The start ended as it should: with one sentence.
fn refused_in_one_sentence(recording: &Recording, why: &str, fault: &str) -> String {
    assert!(why.contains("exit status: 1"), "{fault}: {why}");
    let said: Vec<_> = why.lines().filter(|line| line.starts_with("replicator: ")).collect();
    let [said] = said[..] else { panic!("{fault}: {why}") };
    // It would be kept from one start to the next.
    std::fs::remove_file(recording.data_dir().with_extension("log")).unwrap();
    said.to_owned()
}

/// Opening the store fails in every place in turn; each time it is said, and the next start is
/// as good as if nothing had been.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_fails_at_the_start_is_told_of_and_loses_nothing() {
    let recording = Arc::new(Recording::new());
    let world = world_in(&recording).await;
    left_by_a_kill(&recording, &world).await;
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
    all_is_delivered_after_all(&recording, &world).await;
}

/// Each read of a start fails in its turn, those of sled too. sled would take one for the end of its
/// log and write over what follows, for good.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_that_fails_anywhere_in_a_start_is_told_of_and_loses_nothing() {
    let recording = Arc::new(Recording::new());
    let world = world_in(&recording).await;
    left_by_a_kill(&recording, &world).await;
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
                assert!(has_failed, "{nth}: an earlier failure has left damage: {why}");
                let said = refused_in_one_sentence(&recording, &why, &format!("{fault:?}"));
                assert!(said.contains("os error 5"), "{nth}: {said}");
                refused += 1;
                if said.contains("the process ends before anything is written") {
                    by_sled += 1;
                    assert!(said.contains("store-000001/db at byte"), "{nth}: {said}");
                }
            }
            Ok(mut daemon) => {
                recording.kill(&mut daemon);
                if !has_failed {
                    break;
                }
            }
        }
        // It is whole: nothing is made anew or set aside.
        let mut daemon = start(&recording).await.unwrap_or_else(|why| panic!("{nth}: {why}"));
        let log = daemon.log();
        assert!(!log.contains("damage"), "{nth}: {log}");
        recording.kill(&mut daemon);
        std::fs::remove_file(recording.data_dir().with_extension("log")).unwrap();
    }
    eprintln!("{refused} reads failed a start, {by_sled} of them sled's");
    assert!(by_sled > 5, "{by_sled}");
    all_is_delivered_after_all(&recording, &world).await;
}

/// A copy that cannot be read says nothing of the store.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_check_whose_read_fails_says_so_and_calls_nothing_damaged() {
    let recording = Arc::new(Recording::new());
    let world = world_in(&recording).await;
    left_by_a_kill(&recording, &world).await;
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

/// A page of the store that cannot be read for one start: the store has read its files itself before
/// sled does, so that it says so with nothing changed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_that_cannot_be_read_for_a_while_is_told_of_and_loses_nothing() {
    let recording = Arc::new(Recording::new());
    let world = world_in(&recording).await;
    left_by_a_kill(&recording, &world).await;
    let mut tried = 0;
    for (path, bytes) in super::disk::files(&recording.data_dir()) {
        if bytes.is_empty() || path == "LOCK" {
            continue;
        }
        let file = recording.data_dir().join(&path);
        let pages = std::iter::successors(Some(0), |page| Some(page + 1 + page / 2));
        for page in pages.take_while(|page| page * PAGE < bytes.len()) {
            // Gone, if an earlier start has made another of it.
            let Ok(file) = std::fs::metadata(&file) else { break };
            recording.set(Control::Error, libc::EIO.cast_unsigned());
            recording.set(Control::BadAt, u32::try_from(page * PAGE).unwrap());
            recording.set(Control::BadInode, file.ino() as u32);
            let started = start(&recording).await;
            recording.set(Control::BadInode, 0);
            let fault = format!("page {page} of {path}");
            let Err(why) = started else { panic!("{fault} was not read") };
            let said = refused_in_one_sentence(&recording, &why, &fault);
            assert!(said.contains(&path) && said.contains("os error 5"), "{fault}: {said}");
            let started = start(&recording).await;
            recording.kill(&mut started.unwrap_or_else(|why| panic!("{fault}: {why}")));
            tried += 1;
        }
    }
    assert!(tried > 10, "{tried}");
    eprintln!("{tried} pages could not be read for a while");
    all_is_delivered_after_all(&recording, &world).await;
}
