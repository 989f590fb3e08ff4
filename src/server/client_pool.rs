//! A limited resource that clients share fairly.
//!
//! Each client has a share ([`SharedPool`]), so that one client cannot use a pool up. Requests that
//! wait are served in order. Those of clients that have used up their share delay no others.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::oneshot;

use crate::share::SharedPool;
use crate::task::Client;

/// `None` without a connection, in tests.
pub(super) type PoolClient = Option<Client>;

/// Clones are the same pool.
#[derive(Clone, Debug)]
pub(super) struct ClientPool(Arc<Mutex<PoolClaims>>);

#[derive(Debug)]
struct PoolClaims {
    capacity: usize,
    used: usize,
    held: HashMap<PoolClient, usize>,
    waiting: VecDeque<PoolWaiter>,
}

#[derive(Debug)]
struct PoolWaiter {
    client: PoolClient,
    amount: usize,
    /// What the request holds already.
    own: usize,
    granted: oneshot::Sender<PoolShare>,
}

/// A part of the pool, given back on drop.
#[derive(Debug)]
pub(super) struct PoolShare {
    pool: ClientPool,
    client: PoolClient,
    amount: usize,
}

impl ClientPool {
    pub(super) fn new(capacity: usize) -> Self {
        let (held, waiting) = (HashMap::new(), VecDeque::new());
        Self(Arc::new(Mutex::new(PoolClaims { capacity, used: 0, held, waiting })))
    }

    /// `None` if there is no room, or not for this client.
    pub(super) fn try_take(&self, client: &PoolClient, amount: usize) -> Option<PoolShare> {
        let mut claims = self.claims();
        let free = claims.waiting.is_empty() && claims.fits(client, amount, 0) == Fit::Now;
        free.then(|| self.grant(&mut claims, client.clone(), amount))
    }

    /// Waits until there is room. Cancel safe. Never resolves for more than the capacity.
    pub(super) async fn take(&self, client: &PoolClient, amount: usize) -> PoolShare {
        self.granted(client, amount, 0).await
    }

    async fn granted(&self, client: &PoolClient, amount: usize, own: usize) -> PoolShare {
        // A request that leaves its place lets those behind it through.
        let _served = ServeOnDrop(self);
        let (granted, share) = oneshot::channel();
        let waiter = PoolWaiter { client: client.clone(), amount, own, granted };
        // A request that holds something comes first: others wait for its memory.
        match own {
            0 => self.claims().waiting.push_back(waiter),
            _ => self.claims().waiting.push_front(waiter),
        }
        self.serve();
        match share.await {
            Ok(share) => share,
            // The pool keeps the sender until it grants.
            Err(_) => std::future::pending().await,
        }
    }

    /// Whether a request waits.
    pub(super) fn is_awaited(&self) -> bool {
        self.claims().waiting.iter().any(|waiter| !waiter.granted.is_closed())
    }

    /// Grants what is possible.
    fn serve(&self) {
        let mut claims = self.claims();
        // A share whose request is gone gives itself back, which needs the lock.
        let mut untaken = Vec::new();
        let mut skipped = VecDeque::new();
        while let Some(waiter) = claims.waiting.pop_front() {
            if waiter.granted.is_closed() {
                continue;
            }
            let same = |before: &PoolWaiter| before.client == waiter.client;
            let is_behind = waiter.own == 0 && skipped.iter().any(same);
            let fit = if is_behind {
                Fit::Share
            } else {
                claims.fits(&waiter.client, waiter.amount, waiter.own)
            };
            match fit {
                Fit::Now => {
                    let share = self.grant(&mut claims, waiter.client, waiter.amount);
                    untaken.extend(waiter.granted.send(share).err());
                }
                Fit::Share => skipped.push_back(waiter),
                Fit::Capacity => {
                    claims.waiting.push_front(waiter);
                    break;
                }
            }
        }
        skipped.append(&mut claims.waiting);
        claims.waiting = skipped;
        drop(claims);
        drop(untaken);
    }

    fn grant(&self, claims: &mut PoolClaims, client: PoolClient, amount: usize) -> PoolShare {
        claims.used += amount;
        *claims.held.entry(client.clone()).or_default() += amount;
        PoolShare { pool: self.clone(), client, amount }
    }

    fn claims(&self) -> MutexGuard<'_, PoolClaims> {
        self.0.lock()
    }
}

struct ServeOnDrop<'a>(&'a ClientPool);

impl Drop for ServeOnDrop<'_> {
    fn drop(&mut self) {
        self.0.serve();
    }
}

#[derive(PartialEq)]
enum Fit {
    Now,
    /// The pool has too little left.
    Capacity,
    /// The client has used up its share.
    Share,
}

impl PoolClaims {
    fn fits(&self, client: &PoolClient, amount: usize, own: usize) -> Fit {
        let held = self.held.get(client).copied().unwrap_or_default();
        let pool = SharedPool::new(self.capacity, self.used);
        // A client that holds nothing else may take anything: a large body must find room at all.
        if held > own && !pool.has_room_for_more(held as u64, amount as u64) {
            Fit::Share
        } else if self.used.saturating_add(amount) > self.capacity {
            Fit::Capacity
        } else {
            Fit::Now
        }
    }
}

impl PoolShare {
    /// Waits until there is room for more. Cancel safe.
    pub(super) async fn grow(&mut self, more: usize) {
        let mut more = self.pool.granted(&self.client, more, self.amount).await;
        self.amount += std::mem::take(&mut more.amount);
    }
}

impl Drop for PoolShare {
    fn drop(&mut self) {
        if self.amount == 0 {
            return;
        }
        let mut claims = self.pool.claims();
        claims.used -= self.amount;
        if let Some(held) = claims.held.get_mut(&self.client) {
            *held -= self.amount;
            if *held == 0 {
                claims.held.remove(&self.client);
            }
        }
        drop(claims);
        self.pool.serve();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn client(last: u8) -> PoolClient {
        Some(Client::at([10, 0, 0, last].into()))
    }

    fn take_all(pool: &ClientPool, client: &PoolClient) -> Vec<PoolShare> {
        std::iter::from_fn(|| pool.try_take(client, 1)).collect()
    }

    #[test]
    fn one_client_cannot_use_a_pool_up() {
        let pool = ClientPool::new(100);
        let greedy = take_all(&pool, &client(1));
        assert_eq!(greedy.len(), 90);
        let second = take_all(&pool, &client(2));
        assert!((1..=10).contains(&second.len()), "{}", second.len());
        drop(greedy);
        assert!(take_all(&pool, &client(3)).len() > 10);
    }

    #[test]
    fn a_client_that_holds_nothing_may_take_all() {
        let pool = ClientPool::new(100);
        let all = pool.try_take(&client(1), 100).unwrap();
        assert!(pool.try_take(&client(2), 1).is_none());
        drop(all);
        assert!(pool.try_take(&client(1), 101).is_none());
    }

    #[tokio::test]
    async fn the_only_share_of_a_client_may_grow_to_all() {
        let pool = ClientPool::new(100);
        let mut share = pool.try_take(&client(1), 50).unwrap();
        share.grow(50).now_or_never().expect("it holds nothing else");
        assert!(pool.try_take(&client(2), 1).is_none());
        drop(share);
        let _other = pool.try_take(&client(1), 1).unwrap();
        let mut share = pool.try_take(&client(1), 50).unwrap();
        assert!(share.grow(49).now_or_never().is_none(), "that would be more than its share");
        assert!(!pool.is_awaited());
    }

    #[tokio::test]
    async fn a_client_that_waits_for_its_share_delays_no_other() {
        let pool = ClientPool::new(100);
        let mut greedy = take_all(&pool, &client(1));
        let own = client(1);
        let mut waiting = Box::pin(pool.take(&own, 1));
        assert!((&mut waiting).now_or_never().is_none() && pool.is_awaited());
        let _other = pool.take(&client(2), 5).now_or_never().expect("it has a share");
        greedy.truncate(50);
        waiting.await;
        assert!(!pool.is_awaited());
    }

    #[tokio::test]
    async fn a_large_claim_is_not_overtaken_by_small_ones() {
        let pool = ClientPool::new(100);
        let mut held: Vec<_> = (1..=10).map(|n| pool.try_take(&client(n), 10).unwrap()).collect();
        let (large, small) = (client(20), client(21));
        let mut first = Box::pin(pool.take(&large, 15));
        let mut second = Box::pin(pool.take(&small, 1));
        assert!((&mut first).now_or_never().is_none() && (&mut second).now_or_never().is_none());
        held.pop();
        assert!((&mut second).now_or_never().is_none());
        held.pop();
        assert_eq!(first.await.amount, 15);
        second.await;
    }

    #[tokio::test]
    async fn a_waiter_that_is_gone_leaves_nothing_behind() {
        let pool = ClientPool::new(10);
        let all = pool.try_take(&client(1), 10).unwrap();
        let two = client(2);
        let mut gone = Box::pin(pool.take(&two, 5));
        assert!((&mut gone).now_or_never().is_none());
        drop(gone);
        let three = client(3);
        drop(all);
        let most = pool.try_take(&three, 8).unwrap();
        let mut gone = Box::pin(pool.take(&two, 5));
        let four = client(4);
        let mut behind = Box::pin(pool.take(&four, 1));
        assert!((&mut gone).now_or_never().is_none() && (&mut behind).now_or_never().is_none());
        drop(gone);
        behind.now_or_never().expect("it is not behind another one any more");
        assert!(!pool.is_awaited());
        drop(most);
        assert!(pool.try_take(&client(3), 10).is_some());
    }
}
