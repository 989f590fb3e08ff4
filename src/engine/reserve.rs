//! Reserves room for writes: a write takes its places before it goes to the journal, and uses them
//! when it arrives.

use std::cell::LazyCell;
use std::collections::hash_map::Entry;

use smallvec::SmallVec;

use crate::engine::claims::{OTHERS_IDLE, Pool};
use crate::engine::lane::Lane;
use crate::engine::table::{Reservation, TaskQueue};
use crate::engine::{Claimant, Engine, Full, KeyId, Moment, Now, SharedLimit, TASK_OVERHEAD_BYTES};
use crate::share::{Alone, Held, ShareOf, SharedPool};
use crate::task::{Client, Consistency, Node};

/// All lanes, those with only dead letters included, as a multiple of `--max-known-replicas`.
const MOST_LANES: usize = 4;

/// A client that holds less than this fraction of the dead letter bytes is not refused for them while
/// others have overdrawn the pool, up to twice its size.
const FEW_LETTERS: u64 = 100;

impl Engine {
    /// Reserves places for a write to `replicas`, each named once. `bytes` is its
    /// [`crate::task::weight`]; the engine adds the overhead. A refusal takes nothing.
    pub fn reserve(
        &mut self,
        now: Now,
        key: KeyId,
        replicas: &[Node],
        bytes: u64,
        consistency: Consistency,
        client: Option<&Client>,
    ) -> Result<Reservation, Full> {
        self.now = now;
        // Also of a refused write: it ends the time in which another client was alone.
        self.claims.note_write(client, now.moment);
        let bytes = bytes.saturating_add(TASK_OVERHEAD_BYTES);
        let queue = match consistency {
            Consistency::Strong => TaskQueue::Strong,
            Consistency::Eventual => TaskQueue::Eventual,
        };
        self.room(queue, bytes)?;
        self.check_quota(bytes, client)?;
        self.check_shares(queue, bytes, replicas, client)?;
        let lanes = self.open_lanes(replicas, client)?;
        let client = self.claims.join_client(client);
        lanes.iter().for_each(|&lane| self.lanes[lane].last_used = now.moment);
        self.hold(queue, bytes, client, &lanes, 1);
        self.reservations += 1;
        let number = self.reservations;
        *self.coming.entry(key).or_default() += 1;
        Ok(Reservation { key, queue, bytes, client, lanes: lanes.into(), made: now.moment, number })
    }

    pub fn cancel(&mut self, now: Now, reservation: Reservation) {
        self.now = now;
        self.release_places(reservation);
        self.finish();
    }

    /// Returns the lanes.
    pub(super) fn release_places(&mut self, reservation: Reservation) -> SmallVec<[u32; 2]> {
        let Reservation { key, queue, bytes, client, lanes, .. } = reservation;
        if let Entry::Occupied(mut coming) = self.coming.entry(key) {
            *coming.get_mut() -= 1;
            if *coming.get() == 0 {
                coming.remove();
            }
        }
        self.hold(queue, bytes, client, &lanes, -1);
        self.leave_client(client);
        lanes
    }

    /// Takes the places of a reservation, or gives them back (`-1`).
    fn hold(&mut self, queue: TaskQueue, bytes: u64, client: u32, lanes: &[u32], change: i64) {
        let bytes = change * signed(bytes);
        self.count_bytes(client, bytes);
        self.count_queued(queue, client, change);
        let (from, to) = match change {
            1.. => (TaskQueue::Outside, queue),
            _ => (queue, TaskQueue::Outside),
        };
        for &number in lanes {
            let lane = &mut self.lanes[number];
            lane.places.move_task(from, to);
            self.claims.at_host(Pool::Bytes, client, lane.host, bytes);
            self.claims.at_host(queue.pool(), client, lane.host, change);
        }
    }

    /// Adds bytes to those that are charged for tasks that wait, or removes them.
    pub(super) fn count_bytes(&mut self, client: u32, change: i64) {
        self.levels.bytes = match change {
            0.. => self.levels.bytes + change.unsigned_abs(),
            _ => self.levels.bytes - change.unsigned_abs(),
        };
        self.claims.by_client(Pool::Bytes, client, change);
    }

    pub(super) fn leave_client(&mut self, client: u32) {
        let before = self.claims.clients();
        self.claims.leave_client(client);
        // The last client has the shares of the others.
        self.refill |= before > 1 && self.claims.clients() == 1;
    }

    /// Adds a task to a queue level, or removes it.
    pub(super) fn count_queued(&mut self, queue: TaskQueue, client: u32, change: i64) {
        let level = match queue {
            TaskQueue::Eventual => &mut self.levels.queue,
            TaskQueue::Strong => &mut self.levels.strong,
            TaskQueue::Outside => return,
        };
        *level = match change {
            1.. => *level + 1,
            _ => *level - 1,
        };
        self.claims.by_client(queue.pool(), client, change);
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

    /// Checks the quota that the client has of its own.
    fn check_quota(&self, bytes: u64, client: Option<&Client>) -> Result<(), Full> {
        let Some((client, quota)) = client.and_then(|of| Some((of, self.quotas.get(of)?))) else {
            return Ok(());
        };
        let number = self.claims.find_client(Some(client));
        let held = |pool: Pool| self.claims.held(pool, number, None).client;
        let places = held(Pool::Queue) + held(Pool::Strong);
        for (most, limit, held, more) in [
            (quota.places, SharedLimit::Queue, places, 1),
            (quota.bytes, SharedLimit::Bytes, held(Pool::Bytes), bytes),
        ] {
            if let Some(most) = most.filter(|most| held.saturating_add(more) > most.get()) {
                return Err(Full::Quota { client: client.clone(), limit, most, held, more });
            }
        }
        Ok(())
    }

    /// Checks the shares of the client and the replicas: what a slow replica or a greedy client
    /// queues must leave room for the others.
    fn check_shares(
        &self,
        queue: TaskQueue,
        bytes: u64,
        replicas: &[Node],
        client: Option<&Client>,
    ) -> Result<(), Full> {
        let places = SharedPool::new(self.settings.queue_capacity, self.level(queue));
        let all_bytes = SharedPool { capacity: self.settings.max_bytes, used: self.levels.bytes };
        let letters = SharedPool {
            capacity: self.settings.max_dead_letter_bytes,
            used: self.levels.dead_letter_bytes,
        };
        let number = self.claims.find_client(client);
        // Who is alone is looked up only for a write that a share would refuse.
        let alone = LazyCell::new(|| Alone {
            client: self.claims.is_alone(client, self.now.moment),
            host: !self.others_used(replicas),
        });
        for node in replicas {
            let host = match self.lanes.find(node) {
                Some(lane) => Some(self.lanes[lane].host),
                None => self.claims.find_host(node),
            };
            let held = |pool: Option<Pool>| self.claims.held(pool, number, host);
            let check = |held: Held, pool: SharedPool, more: u64, limit: SharedLimit| {
                held.may_take(pool, more, Alone::default())
                    .or_else(|_| held.may_take(pool, more, *alone))
                    .map_err(|of| share_used_up(of, held, limit, node, client))
            };
            check(held(queue.pool()), places, 1, SharedLimit::Queue)?;
            check(held(Some(Pool::Bytes)), all_bytes, bytes, SharedLimit::Bytes)?;
            let dead = held(Some(Pool::LetterBytes));
            let few = dead.client <= letters.capacity / FEW_LETTERS
                && letters.used / 2 < letters.capacity;
            if dead.pair > 0 && !few {
                if letters.free() == 0 {
                    let limit = SharedLimit::DeadLetters;
                    return Err(share_used_up(ShareOf::Host, dead, limit, node, client));
                }
                check(dead, letters, 1, SharedLimit::DeadLetters)?;
            }
        }
        Ok(())
    }

    /// Whether a replica other than these had a write lately.
    fn others_used(&self, replicas: &[Node]) -> bool {
        let since = self.now.moment.before(OTHERS_IDLE);
        self.lanes.iter().any(|lane| {
            lane.last_used >= since && !lane.is_gone() && !replicas.contains(&lane.node)
        })
    }

    /// The lanes of replicas. Opens missing ones, and removes idle lanes to stay within
    /// `--max-known-replicas`.
    fn open_lanes(&mut self, replicas: &[Node], client: Option<&Client>) -> Result<Vec<u32>, Full> {
        let mut opened = Vec::with_capacity(replicas.len());
        for node in replicas {
            let lane = match self.lanes.find(node) {
                Some(lane) => lane,
                None => {
                    self.room_for_lane(node, client, replicas)
                        .inspect_err(|_| self.replica_refused = Some(self.now.moment))?;
                    self.open_lane(node, client)
                }
            };
            opened.push(lane);
        }
        Ok(opened)
    }

    /// Makes room for another replica. `keep` are the replicas of the write.
    fn room_for_lane(
        &mut self,
        node: &Node,
        client: Option<&Client>,
        keep: &[Node],
    ) -> Result<(), Full> {
        let limit = self.settings.max_known_replicas;
        let (of, at) = (self.claims.find_client(client), self.claims.find_host(node));
        let alone = Alone {
            client: self.claims.is_alone(client, self.now.moment),
            host: self.claims.hosts() <= usize::from(at.is_some()),
        };
        // A replica with only dead letters holds no place: their bytes are limited.
        let in_use = self.lanes.iter().filter(|lane| !lane.has_only_letters());
        let pools = [
            (limit, lanes_held(in_use, of, at)),
            (limit.saturating_mul(MOST_LANES), lanes_held(self.lanes.iter(), of, at)),
        ];
        let Some((full, claimant, held)) = pools.into_iter().find_map(|(limit, (held, used))| {
            let pool = SharedPool::new(limit, used);
            let claimant = held.may_take(pool, 1, alone).err();
            (pool.free() == 0 || claimant.is_some()).then_some((pool.free() == 0, claimant, held))
        }) else {
            return Ok(());
        };
        // A claimant above its share replaces one of its own.
        let replaced = match claimant.filter(|_| !full) {
            None => self.remove_idle_lane(None, None, keep),
            Some(ShareOf::Client) => self.remove_idle_lane(of, None, keep),
            Some(ShareOf::Host) => self.remove_idle_lane(None, at, keep),
            Some(ShareOf::ClientAtHost) => self.remove_idle_lane(of, at, keep),
        };
        match claimant {
            _ if replaced => Ok(()),
            Some(of) if !full => Err(share_used_up(of, held, SharedLimit::Replicas, node, client)),
            _ => Err(Full::Replicas(limit)),
        }
    }

    /// Whether a write was refused lately because it named a new replica.
    pub fn refuses_replicas(&self, now: Moment) -> bool {
        self.replica_refused.is_some_and(|at| at >= now.before(OTHERS_IDLE))
    }

    /// Removes the idle lane that was not used for longest, forgotten ones first: of these
    /// claimants, or of any. Returns whether there was one.
    fn remove_idle_lane(&mut self, client: Option<u32>, host: Option<u32>, keep: &[Node]) -> bool {
        let idle = self.lanes.numbered().filter(|(_, lane)| {
            lane.is_empty()
                && !keep.contains(&lane.node)
                && client.is_none_or(|client| client == lane.opened_by)
                && host.is_none_or(|host| host == lane.host)
        });
        let longest = idle.min_by_key(|(_, lane)| (!lane.is_gone(), lane.last_used));
        let Some((number, _)) = longest else { return false };
        self.remove_lane(number);
        true
    }

    /// Removes an empty lane.
    pub(super) fn remove_lane(&mut self, number: u32) {
        let gone = self.lanes.remove(number);
        self.claims.leave_host(gone.host);
        self.leave_client(gone.opened_by);
    }

    /// The lane of a replica, whatever the limit.
    pub(super) fn lane_for(&mut self, node: &Node, client: Option<&Client>) -> u32 {
        match self.lanes.find(node) {
            Some(lane) => lane,
            None => self.open_lane(node, client),
        }
    }

    fn open_lane(&mut self, node: &Node, client: Option<&Client>) -> u32 {
        let (host, client) = (self.claims.join_host(node), self.claims.join_client(client));
        let number = self.lanes.insert(node.clone(), host, client);
        self.barriers.add_lane(number, node);
        number
    }

    /// Opens the lane of a replica from the records. Returns false if there is no room.
    pub fn know(&mut self, node: &Node) -> bool {
        let number = match self.lanes.find(node) {
            Some(number) => number,
            None if self.room_for_lane(node, None, &[]).is_ok() => self.open_lane(node, None),
            None => return false,
        };
        self.lanes[number].forget.used_again();
        self.lanes[number].recorded = true;
        true
    }

    fn level(&self, queue: TaskQueue) -> usize {
        match queue {
            TaskQueue::Eventual => self.levels.queue,
            TaskQueue::Strong => self.levels.strong,
            TaskQueue::Outside => 0,
        }
    }
}

/// What claimants hold of these lanes, and the number of lanes.
fn lanes_held<'a>(
    lanes: impl Iterator<Item = &'a Lane>,
    client: Option<u32>,
    host: Option<u32>,
) -> (Held, usize) {
    lanes.fold((Held::default(), 0), |(mut held, number), lane| {
        let (of, at) = (Some(lane.opened_by) == client, Some(lane.host) == host);
        held.client += u64::from(of);
        held.host += u64::from(at);
        held.pair += u64::from(of && at);
        (held, number + 1)
    })
}

fn share_used_up(
    of: ShareOf,
    held: Held,
    limit: SharedLimit,
    node: &Node,
    client: Option<&Client>,
) -> Full {
    let client = client.cloned();
    let (claimant, held) = match of {
        ShareOf::Client => (Claimant::Client(client), held.client),
        ShareOf::Host => (Claimant::Replica(node.clone()), held.host),
        ShareOf::ClientAtHost => (Claimant::ClientAtReplica(client, node.clone()), held.pair),
    };
    Full::Share { claimant, limit, held }
}

/// A number of bytes as a change of what a claimant holds.
pub(super) fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
