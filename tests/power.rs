//! Power cuts and failing disks.
//!
//! **Power cuts.** The daemon runs with a recorder under it (`power/recorder.c`, preloaded) that
//! writes down every change to its data directory, while writers and replicas mark in the same
//! record what they were told. From points of that record disks are made as a power cut could
//! leave them (`power/disk.rs`): what was synced, and of the rest nothing, everything, or any of
//! it. The daemon is started on each, and must deliver every write that was acknowledged and not
//! yet applied, and nothing old over anything newer (`power/judge.rs`).
//!
//! A control keeps the suite honest: with the store's barrier switched off it must find losses.
//!
//! **Failing disks** (`power/io_errors.rs`): the same recorder makes a write, a read or an fsync
//! fail.
//!
//! Needs the feature `faults` and a C compiler as `cc`.
//!
//! - `POWER_IMAGES=2000 cargo test --release --features faults --test power` makes more images;
//! - one that fails is told with the point of its cut; its image and the record are kept then, to
//!   be looked at. `POWER_SEED` chooses the cuts.
//!
//! What it has found: a snapshot of sled's that a crash has torn kept the store from ever opening
//! again, in 2 of 900 images.

#![cfg(target_os = "linux")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    clippy::print_stderr,
    clippy::cast_possible_truncation,
    unreachable_pub,
    dead_code,
    missing_docs,
    reason = "tests fail by panicking"
)]

#[path = "it"]
mod it {
    pub mod support;
}

#[path = "power/disk.rs"]
mod disk;
#[path = "power/io_errors.rs"]
mod io_errors;
#[path = "power/judge.rs"]
mod judge;
#[path = "power/record.rs"]
mod record;
#[path = "power/workload.rs"]
mod workload;
#[path = "power/world.rs"]
mod world;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use fastrand::Rng;
use tempfile::TempDir;

use disk::{Disk, Luck};
use it::support;
use judge::{Known, judge};
use record::{Recording, entries};
use workload::{Workload, record};
use world::{Witness, world};

/// Of each workload.
const IMAGES: usize = 80;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|number| number.parse().unwrap())
}

fn images() -> usize {
    number("POWER_IMAGES").map_or(IMAGES, |all| (all as usize).div_ceil(3))
}

/// In memory where the system has such a place: what is here need not survive anything.
fn scratch() -> TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap()
}

/// What an image is made with: its point in the record, and its luck.
struct Image {
    number: usize,
    point: usize,
    luck: Luck,
    rng: Rng,
}

/// The images, in the order of their points, each the same for the same seed and record.
fn plan(images: usize, seed: u64, length: usize) -> Vec<Image> {
    let mut plan: Vec<_> = (0..images)
        .map(|number| {
            let mut rng = Rng::with_seed(seed ^ (number as u64) << 32);
            let point = rng.usize(1..=length);
            let luck = match rng.u8(..8) {
                0 => Luck::Nothing,
                1 => Luck::Everything,
                _ => Luck::Some,
            };
            Image { number, point, luck, rng }
        })
        .collect();
    plan.sort_by_key(|image| image.point);
    plan
}

/// Tries the images of a record, and gives what went wrong with the first that fails.
async fn first_loss(
    bytes: &[u8],
    root: &Path,
    world: &[Witness],
    plan: Vec<Image>,
) -> Result<(), (String, TempDir)> {
    let entries = entries(bytes);
    let (mut disk, mut known) = (Disk::new(root), Known::new(world.len()));
    let mut done = 0;
    let images = plan.len();
    for mut image in plan {
        for entry in &entries[done..image.point] {
            match entry.mark() {
                Some(mark) => known.learn(mark),
                None => disk.apply(entry),
            }
        }
        done = image.point;
        let place = scratch();
        let path = place.path().join("data");
        disk.image(image.luck, &mut image.rng, &path);
        let accepted = known.accepted();
        if let Err(wrong) = judge(&path, &known, world).await {
            let point = image.point;
            let number = image.number;
            let what =
                format!("image {number}, cut after entry {point}, {accepted} accepted: {wrong}");
            return Err((what, place));
        }
    }
    eprintln!(
        "nothing lost in {images} images of {} entries, {} writes accepted",
        entries.len(),
        known.accepted()
    );
    Ok(())
}

/// Records a workload and tries its images.
async fn nothing_is_lost(workload: Workload) {
    let world = world().await;
    let seed = number("POWER_SEED").unwrap_or_else(|| fastrand::u64(..));
    let recording = record(workload, &world, true).await;
    let bytes = recording.bytes();
    let plan = plan(images(), seed, entries(&bytes).len());
    if let Err((what, image)) = first_loss(&bytes, &recording.data_dir(), &world, plan).await {
        let (record, image) = (keep(recording, world), image.keep());
        panic!(
            "{what}\n{workload:?}, POWER_SEED={seed}; kept: the record {}, the image in {}",
            record.display(),
            image.display()
        );
    }
}

fn keep(recording: Arc<Recording>, world: Vec<Witness>) -> PathBuf {
    for witness in world {
        witness.behave(None, Arc::new(|_, _| support::Behaviour::Apply));
    }
    Arc::into_inner(recording).unwrap().keep()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_power_cut_amid_overwrites_and_kills_loses_nothing() {
    nothing_is_lost(Workload::Churn).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_power_cut_amid_large_values_and_dead_letters_loses_nothing() {
    nothing_is_lost(Workload::Large).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_power_cut_amid_strong_writes_and_restarts_loses_nothing() {
    nothing_is_lost(Workload::Strong).await;
}

/// The control: without the barrier this suite must fail.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_barrier_the_suite_finds_what_is_lost() {
    let world = world().await;
    let recording = record(Workload::Strong, &world, false).await;
    let bytes = recording.bytes();
    let plan = plan(40, fastrand::u64(..), entries(&bytes).len());
    let lost = first_loss(&bytes, &recording.data_dir(), &world, plan).await;
    let Err((lost, _)) = lost else {
        panic!("a store that never waits for the disk went through 40 power cuts");
    };
    eprintln!("as it must be: {:.300}", lost);
}
