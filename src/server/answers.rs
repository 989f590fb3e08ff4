//! The memory of answers that their clients have not read yet.
//!
//! A client that reads slowly keeps its answer in memory, and its connection is not evicted while it
//! reads. So large answers are charged to a pool until they are written, and each client has a share
//! of the pool. Answers to writes are not charged: they are no longer than the names in the request.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use axum::body::{Body, Bytes, HttpBody, to_bytes};
use axum::response::{IntoResponse, Response};
use tokio::sync::Mutex;

use super::ServerState;
use super::body::SMALL_BYTES;
use super::client_pool::{ClientPool, PoolClient, PoolShare};
use super::errors::Problem;

/// The memory for large answers is the request memory divided by this. It is separate from the memory
/// for bodies, so that readers cannot block writes.
const MEMORY_PER_ANSWERS: usize = 4;

/// Less would not hold the figures of a thousand replicas.
const MIN_BYTES: usize = 32 << 20;

/// Lists that are put together at the same time. Each may look at many tasks.
const LISTS: usize = 8;

#[derive(Debug)]
pub(super) struct AnswerMemory {
    pool: ClientPool,
    capacity: usize,
    lists: ClientPool,
    pub(super) json_figures: SharedAnswer,
    pub(super) text_figures: SharedAnswer,
}

impl AnswerMemory {
    pub(super) fn new(request_memory: usize) -> Self {
        let bytes = (request_memory / MEMORY_PER_ANSWERS).max(MIN_BYTES);
        Self {
            pool: ClientPool::new(bytes),
            capacity: bytes,
            lists: ClientPool::new(LISTS),
            json_figures: SharedAnswer::default(),
            text_figures: SharedAnswer::default(),
        }
    }

    /// Charges bytes until the last of their clones is dropped. `None` without memory for them. An
    /// answer that is larger than the pool is charged for the whole pool.
    fn charge(&self, client: &PoolClient, bytes: Bytes) -> Option<Bytes> {
        if bytes.len() <= SMALL_BYTES {
            return Some(bytes);
        }
        let share = self.pool.try_take(client, bytes.len().min(self.capacity))?;
        Some(Bytes::from_owner(ChargedBytes { bytes, _share: share }))
    }

    /// Waits for the turn of a list.
    pub(super) async fn list(&self, client: &PoolClient) -> PoolShare {
        self.lists.take(client, 1).await
    }
}

impl ServerState {
    /// Charges a large answer until it is written. Without memory for it the answer is a 503.
    pub(super) async fn charged(&self, client: &PoolClient, response: Response) -> Response {
        let (head, body) = response.into_parts();
        // A stream has no length, and holds one chunk at a time.
        if body.size_hint().exact().is_none_or(|length| length <= SMALL_BYTES as u64) {
            return Response::from_parts(head, body);
        }
        let charged = match to_bytes(body, usize::MAX).await {
            Ok(bytes) => self.charge(client, bytes),
            Err(error) => Err(Problem::internal(&error)),
        };
        match charged {
            Ok(bytes) => Response::from_parts(head, Body::from(bytes)),
            Err(problem) => problem.into_response(),
        }
    }

    pub(super) fn charge(&self, client: &PoolClient, bytes: Bytes) -> Result<Bytes, Problem> {
        self.answers.charge(client, bytes).ok_or_else(|| Problem::Unavailable {
            error: "too many large answers are not read yet, or the share of this client is in use"
                .to_owned(),
            retry_after: self.handle.retry_after(),
        })
    }
}

/// hyper keeps them until they are written or the client is gone.
struct ChargedBytes {
    bytes: Bytes,
    _share: PoolShare,
}

impl AsRef<[u8]> for ChargedBytes {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// An answer that is rendered once for all requests that wait for it. A request gets a rendering
/// that began after it, so no answer is out of date.
#[derive(Debug, Default)]
pub(super) struct SharedAnswer {
    begun: AtomicU64,
    waiting: AtomicUsize,
    /// With its number. Kept only while a request waits.
    last: Mutex<Option<(u64, Bytes)>>,
}

impl SharedAnswer {
    pub(super) async fn get(
        &self,
        render: impl Future<Output = Result<Bytes, Problem>>,
    ) -> Result<Bytes, Problem> {
        let begun = self.begun.load(Ordering::SeqCst);
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let waits = AnswerWaiter(&self.waiting);
        let mut last = self.last.lock().await;
        let shared = last.as_ref().filter(|(number, _)| *number > begun).map(|(_, b)| b.clone());
        let answer = match shared {
            Some(bytes) => Ok(bytes),
            None => {
                let number = self.begun.fetch_add(1, Ordering::SeqCst) + 1;
                let rendered = render.await;
                *last = rendered.as_ref().ok().map(|bytes| (number, bytes.clone()));
                rendered
            }
        };
        drop(waits);
        if self.waiting.load(Ordering::SeqCst) == 0 {
            *last = None;
        }
        answer
    }
}

/// A request that waits for a [`SharedAnswer`].
struct AnswerWaiter<'a>(&'a AtomicUsize);

impl Drop for AnswerWaiter<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use tokio::sync::oneshot;

    use super::*;
    use crate::task::Client;

    #[test]
    fn answers_that_are_not_read_have_a_limit() {
        let memory = AnswerMemory::new(0);
        let client = |last: u8| Some(Client::at([10, 0, 0, last].into()));
        let answer = || Bytes::from(vec![b'x'; 1 << 20]);
        let mut unread: Vec<_> =
            std::iter::from_fn(|| memory.charge(&client(1), answer())).collect();
        assert!((20..32).contains(&unread.len()), "{} of 32", unread.len());
        assert!(memory.charge(&client(1), Bytes::from_static(b"small")).is_some());
        unread.push(memory.charge(&client(2), answer()).expect("another client has a share"));
        let clone = unread[0].slice(..10);
        unread.clear();
        assert!(memory.pool.try_take(&client(3), 31 << 20).is_some());
        assert!(memory.pool.try_take(&client(3), 32 << 20).is_none(), "a clone is still there");
        drop(clone);
        assert!(memory.pool.try_take(&client(3), 32 << 20).is_some());
    }

    #[tokio::test]
    async fn requests_at_the_same_time_share_a_rendering_that_began_after_them() {
        let answer = SharedAnswer::default();
        let renderings = AtomicUsize::new(0);
        let (go, gone) = oneshot::channel::<()>();
        let render = async |wait: Option<oneshot::Receiver<()>>| {
            let number = renderings.fetch_add(1, Ordering::SeqCst);
            if let Some(wait) = wait {
                let _ = wait.await;
            }
            Ok(Bytes::from(number.to_string()))
        };
        let mut first = Box::pin(answer.get(render(Some(gone))));
        assert!((&mut first).now_or_never().is_none());
        let mut others: Vec<_> = (0..9).map(|_| Box::pin(answer.get(render(None)))).collect();
        for other in &mut others {
            assert!(other.now_or_never().is_none());
        }
        go.send(()).unwrap();
        assert_eq!(first.await.unwrap(), "0");
        for other in others {
            assert_eq!(other.await.unwrap(), "1", "the first began before it was asked for");
        }
        assert_eq!(answer.get(render(None)).await.unwrap(), "2");
        assert!(answer.last.lock().await.is_none(), "it is kept for nobody");
    }
}
