//! A limited resource that clients share fairly.
//!
//! Each client has a share ([`SharedPool`]), so that one client cannot use a pool up. Who waits is
//! served in order, except for clients that have used up their share: they delay no others.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::share::SharedPool;
use crate::task::Client;

/// `None` without a connection, in tests.
pub(super) type Claimant = Option<Client>;

/// Clones are the same pool.
#[derive(Clone, Debug)]
pub(super) struct ClientPool(Arc<Mutex<Claims>>);

#[derive(Debug)]
struct Claims {
    capacity: usize,
    used: usize,
    held: HashMap<Claimant, usize>,
    waiting: VecDeque<PoolWaiter>,
}

#[derive(Debug)]
struct PoolWaiter {
    client: Claimant,
    amount: usize,
    granted: oneshot::Sender<PoolShare>,
}

/// A part of the pool, given back on drop.
#[derive(Debug)]
pub(super) struct PoolShare {
    pool: ClientPool,
    client: Claimant,
    amount: usize,
}

impl ClientPool {
    pub(super) fn new(capacity: usize) -> Self {
        let (held, waiting) = (HashMap::new(), VecDeque::new());
        Self(Arc::new(Mutex::new(Claims { capacity, used: 0, held, waiting })))
    }

    /// `None` if there is no room, or not for this client.
    pub(super) fn try_take(&self, client: &Claimant, amount: usize) -> Option<PoolShare> {
        let mut claims = self.claims();
        let free = claims.waiting.is_empty() && claims.fits(client, amount) == Fit::Now;
        free.then(|| self.grant(&mut claims, client.clone(), amount))
    }

    /// Waits until there is room. Cancel safe. Never resolves for more than the capacity.
    pub(super) async fn take(&self, client: &Claimant, amount: usize) -> PoolShare {
        let (granted, share) = oneshot::channel();
        let waiter = PoolWaiter { client: client.clone(), amount, granted };
        self.claims().waiting.push_back(waiter);
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
        // A share that nobody takes gives itself back, which needs the lock.
        let mut untaken = Vec::new();
        let mut skipped = VecDeque::new();
        while let Some(waiter) = claims.waiting.pop_front() {
            if waiter.granted.is_closed() {
                continue;
            }
            let is_behind =
                skipped.iter().any(|before: &PoolWaiter| before.client == waiter.client);
            let fit =
                if is_behind { Fit::Share } else { claims.fits(&waiter.client, waiter.amount) };
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

    fn grant(&self, claims: &mut Claims, client: Claimant, amount: usize) -> PoolShare {
        claims.used += amount;
        *claims.held.entry(client.clone()).or_default() += amount;
        PoolShare { pool: self.clone(), client, amount }
    }

    fn claims(&self) -> MutexGuard<'_, Claims> {
        // No holder can panic in the middle of a change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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

impl Claims {
    fn fits(&self, client: &Claimant, amount: usize) -> Fit {
        let held = self.held.get(client).copied().unwrap_or_default();
        let pool = SharedPool::new(self.capacity, self.used);
        // A client that holds nothing may take anything: a large body must find room at all.
        if held > 0 && !pool.has_room_for_more(held as u64, amount as u64) {
            Fit::Share
        } else if self.used.saturating_add(amount) > self.capacity {
            Fit::Capacity
        } else {
            Fit::Now
        }
    }
}

impl PoolShare {
    /// Adds another share of the same client.
    pub(super) fn merge(&mut self, mut other: Self) {
        self.amount += std::mem::take(&mut other.amount);
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

    fn client(last: u8) -> Claimant {
        Some(Client::at([10, 0, 0, last].into()))
    }

    fn take_all(pool: &ClientPool, client: &Claimant) -> Vec<PoolShare> {
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
        assert!(!pool.is_awaited());
        drop(all);
        assert!(pool.try_take(&client(3), 10).is_some());
    }
}
