//! Reserves room for writes: a write takes its places before it goes to the journal, and uses them
//! when it arrives.

use smallvec::SmallVec;

use crate::engine::table::{Reservation, TaskQueue};
use crate::engine::{Engine, Full, Now, OTHERS_IDLE, SharedPool, TASK_OVERHEAD_BYTES};
use crate::task::{Consistency, Node};

impl Engine {
    /// Reserves places for a write to `replicas`, each named once. `bytes` is its
    /// [`crate::task::weight`]; the engine adds the overhead. A refusal changes nothing.
    pub fn reserve(
        &mut self,
        now: Now,
        replicas: &[Node],
        bytes: u64,
        consistency: Consistency,
    ) -> Result<Reservation, Full> {
        self.now = now;
        let bytes = bytes.saturating_add(TASK_OVERHEAD_BYTES);
        let queue = match consistency {
            Consistency::Strong => TaskQueue::Strong,
            Consistency::Eventual => TaskQueue::Eventual,
        };
        self.room(queue, bytes)?;
        self.share(queue, replicas)?;
        let limit = self.settings.max_known_replicas;
        let lanes = self.lanes.open(replicas, limit).ok_or(Full::Replicas(limit))?;
        self.levels.bytes += bytes;
        self.count_queued(queue, true);
        for &lane in &lanes {
            let lane = &mut self.lanes[lane];
            lane.last_used = now.moment;
            lane.places.move_task(TaskQueue::Outside, queue);
        }
        self.reservations += 1;
        let number = self.reservations;
        Ok(Reservation { queue, bytes, lanes: lanes.into(), made: now.moment, number })
    }

    pub fn cancel(&mut self, now: Now, reservation: Reservation) {
        self.now = now;
        let Reservation { queue, bytes, lanes, .. } = reservation;
        self.release_places(queue, bytes, &lanes);
    }

    pub(super) fn release_places(&mut self, queue: TaskQueue, bytes: u64, lanes: &[u32]) {
        self.levels.bytes -= bytes;
        self.count_queued(queue, false);
        for &lane in lanes {
            self.lanes[lane].places.move_task(queue, TaskQueue::Outside);
        }
    }

    /// Adds a task to a queue level, or removes it.
    pub(super) fn count_queued(&mut self, queue: TaskQueue, enters: bool) {
        let level = match queue {
            TaskQueue::Eventual => &mut self.levels.queue,
            TaskQueue::Strong => &mut self.levels.strong,
            TaskQueue::Outside => return,
        };
        if enters { *level += 1 } else { *level -= 1 }
    }

    fn room(&self, queue: TaskQueue, bytes: u64) -> Result<(), Full> {
        let capacity = self.settings.queue_capacity;
        if self.level(queue) >= capacity {
            let strong = queue == TaskQueue::Strong;
            return Err(if strong { Full::Strong(capacity) } else { Full::Queue(capacity) });
        }
        if self.levels.bytes.saturating_add(bytes) > self.settings.max_bytes {
            return Err(Full::Bytes(self.settings.max_bytes));
        }
        Ok(())
    }

    /// Checks the replicas' shares: a slow replica keeps its tasks queued and must not fill the
    /// queue for the others.
    fn share(&self, queue: TaskQueue, replicas: &[Node]) -> Result<(), Full> {
        let places = SharedPool::new(self.settings.queue_capacity, self.level(queue));
        let letters = SharedPool {
            capacity: self.settings.max_dead_letter_bytes,
            used: self.levels.dead_letter_bytes,
        };
        let known: SmallVec<[u32; 8]> =
            replicas.iter().filter_map(|node| self.lanes.find(node)).collect();
        let since = self.now.moment.before(OTHERS_IDLE);
        let too_much = |held: u64, pool: SharedPool| {
            let alone = || !self.lanes.others_used(&known, since);
            held > 0 && !pool.has_room_for(held) && (pool.free() == 0 || !alone())
        };
        for lane in known.iter().map(|&lane| &self.lanes[lane]) {
            let (node, held, bytes) = (&lane.node, lane.places.queued(queue), lane.letters.bytes());
            if too_much(held as u64, places) {
                return Err(Full::Share { node: node.clone(), held });
            }
            if too_much(bytes, letters) {
                return Err(Full::DeadLetters { node: node.clone(), bytes });
            }
        }
        Ok(())
    }

    fn level(&self, queue: TaskQueue) -> usize {
        match queue {
            TaskQueue::Eventual => self.levels.queue,
            TaskQueue::Strong => self.levels.strong,
            TaskQueue::Outside => 0,
        }
    }
}
