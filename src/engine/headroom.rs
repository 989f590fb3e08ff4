//! How long a replica may stay away before writes for it are refused. An estimate from what is held
//! now and the present rate.
//!
//! A delivery for a replica that is away stays in the queue for the retry schedule, and is a dead
//! letter after that. So the queue holds at most the writes of that time, and the dead letters grow
//! until their limit. A paused replica, and one without a breaker, keeps its deliveries in the queue.
//! Retry places are no limit: a delivery without one is parked, and counts among the dead letters.

use std::time::Duration;

use crate::engine::Engine;
use crate::engine::claims::Pool;
use crate::share::{Held, SharedPool};
use crate::task::Node;

/// Longer estimates are not reported: the rate will be another one by then.
const MOST_SECONDS: f64 = 30.0 * 24.0 * 3600.0;
/// Rows take more than their length on disk (`src/store/local/room.rs`).
const DISK_FACTOR: f64 = 2.0;
/// The retry schedule adds up to a tenth.
const JITTER: f64 = 1.1;

/// What a replica holds of a limit, and how much more it may take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolRoom {
    pub held: u64,
    pub free: u64,
}

/// The room that the engine has for the writes of one replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutageRoom {
    /// Tasks of `--queue-capacity`.
    pub queue: PoolRoom,
    /// Of `--queue-max-bytes`.
    pub bytes: PoolRoom,
    /// Bytes of `--dead-letter-max-bytes`.
    pub letters: PoolRoom,
    /// How long a delivery stays in the queue; `None` until the replica is back.
    pub stays: Option<Duration>,
}

/// What is accepted for one replica, per second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Inflow {
    pub tasks: f64,
    pub bytes: f64,
}

/// The limit at which writes are refused first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutageLimit {
    Queue,
    Bytes,
    DeadLetters,
    Disk,
}

impl OutageLimit {
    /// The flag that sets it.
    pub fn flag(self) -> &'static str {
        match self {
            Self::Queue => "--queue-capacity",
            Self::Bytes => "--queue-max-bytes",
            Self::DeadLetters => "--dead-letter-max-bytes",
            Self::Disk => "--min-free-disk",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Headroom {
    pub seconds: f64,
    pub limit: OutageLimit,
}

impl Headroom {
    /// The seconds as a metric: 30 days if no limit is in reach.
    pub fn seconds_or_most(headroom: Option<Self>) -> f64 {
        headroom.map_or(MOST_SECONDS, |headroom| headroom.seconds)
    }

    /// `None` if no limit is reached within 30 days. `disk` is the free space above the reserve.
    #[expect(clippy::cast_precision_loss, reason = "an estimate for people")]
    pub fn estimate(room: &OutageRoom, inflow: Inflow, disk: Option<u64>) -> Option<Self> {
        // Of a queue that holds `stays` seconds of writes at most.
        let queued = |pool: PoolRoom, rate: f64| {
            let more = room.stays.map_or(f64::INFINITY, |stays| {
                rate * stays.as_secs_f64() * JITTER - pool.held as f64
            });
            fills(pool.free, rate).filter(|_| pool.free == 0 || more > pool.free as f64)
        };
        let letters = || fills(room.letters.free, inflow.bytes);
        let seconds = [
            (queued(room.queue, inflow.tasks), OutageLimit::Queue),
            (queued(room.bytes, inflow.bytes), OutageLimit::Bytes),
            (room.stays.and_then(|_| letters()), OutageLimit::DeadLetters),
            (disk.and_then(|free| fills(free, inflow.bytes * DISK_FACTOR)), OutageLimit::Disk),
        ];
        let known = seconds
            .into_iter()
            .filter_map(|(seconds, limit)| Some(Self { seconds: seconds?, limit }))
            .filter(|headroom| headroom.seconds < MOST_SECONDS);
        known.min_by(|a, b| a.seconds.total_cmp(&b.seconds))
    }
}

/// The seconds until `free` is used up; at once if there is none, whatever the rate: refused writes
/// are not accepted, so they do not count in it.
#[expect(clippy::cast_precision_loss, reason = "an estimate for people")]
fn fills(free: u64, rate: f64) -> Option<f64> {
    match free {
        0 => Some(0.0),
        _ if rate > 0.0 => Some(free as f64 / rate),
        _ => None,
    }
}

impl Engine {
    /// The room for the writes of a replica, if one client sends them all and the share of the host
    /// and of the client both apply. `None` if it has no lane.
    pub fn outage_room(&self, node: &Node) -> Option<OutageRoom> {
        let lane = &self.lanes[self.lanes.find(node)?];
        let settings = &self.settings;
        let room = |pool: Pool, shared: SharedPool| {
            let held = self.claims.held(pool, None, Some(lane.host)).host;
            let all = Held { client: held, host: held, pair: held };
            PoolRoom { held, free: all.room(shared) }
        };
        let letters = SharedPool {
            capacity: settings.max_dead_letter_bytes,
            used: self.levels.dead_letter_bytes,
        };
        let bytes = SharedPool { capacity: settings.max_bytes, used: self.levels.bytes };
        let queue = SharedPool::new(settings.queue_capacity, self.levels.queue);
        let is_kept = lane.is_suspended() || settings.breaker_failures == 0;
        let waits = settings.max_retries.saturating_mul(settings.max_retries.saturating_add(1)) / 2;
        Some(OutageRoom {
            queue: room(Pool::Queue, queue),
            bytes: room(Pool::Bytes, bytes),
            letters: room(Pool::LetterBytes, letters),
            stays: (!is_kept).then(|| settings.retry_base.saturating_mul(waits)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INFLOW: Inflow = Inflow { tasks: 10.0, bytes: 1000.0 };

    fn free(free: u64) -> PoolRoom {
        PoolRoom { held: 0, free }
    }

    /// A failing replica whose deliveries stay for 10 s, in ample queues.
    fn ample() -> OutageRoom {
        let stays = Some(Duration::from_secs(10));
        OutageRoom { queue: free(1000), bytes: free(1 << 30), letters: free(60_000), stays }
    }

    fn headroom(room: &OutageRoom, disk: Option<u64>) -> Option<(f64, OutageLimit)> {
        Headroom::estimate(room, INFLOW, disk).map(|one| (one.seconds, one.limit))
    }

    #[test]
    fn the_limit_that_is_reached_first_counts() {
        use OutageLimit::{DeadLetters, Disk, Queue};
        assert_eq!(headroom(&ample(), None), Some((60.0, DeadLetters)));
        assert_eq!(headroom(&ample(), Some(40_000)), Some((20.0, Disk)));
        let small = OutageRoom { queue: free(50), ..ample() };
        assert_eq!(headroom(&small, Some(40_000)), Some((5.0, Queue)));
    }

    #[test]
    fn a_queue_that_holds_the_whole_retry_schedule_is_no_limit() {
        let held = |held| OutageRoom { queue: PoolRoom { held, free: 100 }, ..ample() };
        assert_eq!(headroom(&held(0), None), Some((10.0, OutageLimit::Queue)));
        assert_eq!(headroom(&held(20), None), Some((60.0, OutageLimit::DeadLetters)));
    }

    #[test]
    fn the_deliveries_of_a_paused_replica_stay_in_the_queue_and_become_no_dead_letters() {
        let paused = OutageRoom { stays: None, ..ample() };
        assert_eq!(headroom(&paused, None), Some((100.0, OutageLimit::Queue)));
    }

    #[test]
    fn without_writes_or_within_thirty_days_there_is_no_limit() {
        let none = Headroom::estimate(&ample(), Inflow::default(), Some(1));
        assert_eq!((none, Headroom::seconds_or_most(none)), (None, 2_592_000.0));
        let large = OutageRoom { letters: free(3_000_000_000), ..ample() };
        assert_eq!(headroom(&large, None), None);
    }

    #[test]
    fn a_limit_that_is_reached_is_reported_although_nothing_is_accepted() {
        let full = OutageRoom { letters: free(0), ..ample() };
        let now = Headroom::estimate(&full, Inflow::default(), None);
        assert_eq!(now, Some(Headroom { seconds: 0.0, limit: OutageLimit::DeadLetters }));
    }
}
