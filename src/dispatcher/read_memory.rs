//! The memory for tasks that are read back from disk.
//!
//! A task stays in memory for the whole attempt, which can take minutes at a slow replica. Each
//! replica has a share, so a few slow replicas cannot take all of the memory.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::share::SharedPool;
use crate::task::Node;

/// After this wait an attempt ends unsent, so that the next delivery, perhaps with its task in
/// memory, can be sent.
const WAIT: Duration = Duration::from_secs(30);

#[derive(Clone)]
pub(crate) struct ReadMemory {
    state: Arc<Mutex<ReadMemoryState>>,
}

struct ReadMemoryState {
    pool: SharedPool,
    held: HashMap<Node, u64>,
    /// First come, first served, except for replicas that have used up their share.
    waiting: Vec<ReadWaiter>,
}

struct ReadWaiter {
    node: Node,
    bytes: u64,
    granted: oneshot::Sender<ReadPermit>,
}

/// Memory for one task, freed on drop.
pub(super) struct ReadPermit {
    state: Arc<Mutex<ReadMemoryState>>,
    node: Node,
    bytes: u64,
}

impl ReadMemory {
    pub(crate) fn new(bytes: usize) -> Self {
        // With 0, nothing could be read back.
        let pool = SharedPool::new(bytes.max(1), 0);
        let state = ReadMemoryState { pool, held: HashMap::new(), waiting: Vec::new() };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// Waits for memory for a task of this size. `None` after [`WAIT`].
    ///
    /// A task gets its memory as soon as any is free for its replica. The budget is overdrawn by one
    /// task at most, and a large task waits no longer than a small one.
    pub(super) async fn take(&self, node: &Node, bytes: u64) -> Option<ReadPermit> {
        let (granted, permit) = oneshot::channel();
        let waiting = ReadWaiter { node: node.clone(), bytes, granted };
        self.state.lock().waiting.push(waiting);
        grant(&self.state);
        timeout(WAIT, permit).await.ok()?.ok()
    }

    /// The error of an attempt that got no memory.
    pub(super) fn shortage(&self) -> String {
        let ReadMemoryState { pool, .. } = *self.state.lock();
        format!(
            "no memory to read the task back from disk within {} s: other tasks hold {} of {} bytes (--memory-budget)",
            WAIT.as_secs(),
            pool.used,
            pool.capacity
        )
    }
}

impl Drop for ReadPermit {
    fn drop(&mut self) {
        self.state.lock().give_back(&self.node, self.bytes);
        grant(&self.state);
    }
}

impl ReadMemoryState {
    fn give_back(&mut self, node: &Node, bytes: u64) {
        self.pool.used -= bytes;
        if let Some(held) = self.held.get_mut(node) {
            *held -= bytes;
            if *held == 0 {
                self.held.remove(node);
            }
        }
    }

    /// Takes memory for the next waiter that may have it.
    fn next(&mut self) -> Option<ReadWaiter> {
        self.waiting.retain(|waiting| !waiting.granted.is_closed());
        let held = |node| self.held.get(node).copied().unwrap_or_default();
        let next = self.waiting.iter().position(|one| self.pool.has_room_for(held(&one.node)))?;
        let next = self.waiting.remove(next);
        self.pool.used += next.bytes;
        *self.held.entry(next.node.clone()).or_default() += next.bytes;
        Some(next)
    }
}

fn grant(state: &Arc<Mutex<ReadMemoryState>>) {
    loop {
        let Some(ReadWaiter { node, bytes, granted }) = state.lock().next() else { return };
        // If the waiter is gone, the permit comes back and is dropped here, without the lock.
        let _ = granted.send(ReadPermit { state: Arc::clone(state), node, bytes });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUDGET: usize = 1 << 20;

    fn node(name: &str) -> Node {
        Node::parse(&format!("http://{name}")).unwrap()
    }

    /// Takes tasks of a hundredth of the budget until the replica gets no more.
    async fn taken(memory: &ReadMemory, name: &str) -> Vec<ReadPermit> {
        let mut permits = Vec::new();
        while let Some(permit) = memory.take(&node(name), BUDGET as u64 / 100).await {
            permits.push(permit);
        }
        permits
    }

    #[tokio::test(start_paused = true)]
    async fn slow_replicas_leave_memory_for_the_tasks_of_others() {
        let memory = ReadMemory::new(BUDGET);
        let slow = taken(&memory, "slow").await;
        assert!((85..=91).contains(&slow.len()), "{}", slow.len());
        let slower = taken(&memory, "slower").await;
        assert!(slower.len() <= 10, "{}", slower.len());
        for _ in 0..1000 {
            assert!(memory.take(&node("healthy"), BUDGET as u64 / 100).await.is_some());
        }
        assert!(memory.shortage().contains("--memory-budget"), "{}", memory.shortage());
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_larger_than_the_budget_gets_memory_alone() {
        let memory = ReadMemory::new(BUDGET);
        let all = memory.take(&node("a"), 3 * BUDGET as u64).await;
        assert!(all.is_some());
        assert!(memory.take(&node("b"), 1).await.is_none());
        drop(all);
        assert!(memory.take(&node("b"), 1).await.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn freed_memory_goes_to_a_waiter_and_a_cancelled_waiter_holds_none() {
        let memory = ReadMemory::new(BUDGET);
        let all = memory.take(&node("a"), BUDGET as u64).await.unwrap();
        let gone = tokio::spawn({
            let memory = memory.clone();
            async move { memory.take(&node("b"), BUDGET as u64).await.is_some() }
        });
        tokio::task::yield_now().await;
        gone.abort();
        let waits = tokio::spawn({
            let memory = memory.clone();
            async move { memory.take(&node("c"), BUDGET as u64).await.is_some() }
        });
        tokio::task::yield_now().await;
        assert!(!waits.is_finished());
        drop(all);
        assert!(waits.await.unwrap());
        let state = memory.state.lock();
        assert_eq!((state.pool.used, state.held.len(), state.waiting.len()), (0, 0, 0));
    }
}
