//! The queue of one receiver: bounded, so that a dead receiver costs a known amount of memory.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;

use super::event::Notice;

/// About 1 MiB.
const MAX_NOTICES: usize = 1000;

pub(super) struct Outbox {
    waiting: Mutex<Waiting>,
    /// Counts changes, for [`Self::next`] and [`Self::closed`].
    changes: watch::Sender<u64>,
}

#[derive(Default)]
struct Waiting {
    notices: VecDeque<Arc<Notice>>,
    /// One was taken and is being sent.
    is_sending: bool,
    is_closed: bool,
}

impl Default for Outbox {
    fn default() -> Self {
        Self { waiting: Mutex::default(), changes: watch::Sender::new(0) }
    }
}

impl Outbox {
    fn with<T>(&self, what: impl FnOnce(&mut Waiting) -> T) -> T {
        what(&mut self.waiting.lock())
    }

    fn change<T>(&self, what: impl FnOnce(&mut Waiting) -> T) -> T {
        let done = self.with(what);
        self.changes.send_modify(|changes| *changes = changes.wrapping_add(1));
        done
    }

    /// Adds a notice. Returns how many were dropped for it, the oldest first.
    pub(super) fn push(&self, notice: Arc<Notice>) -> usize {
        self.change(|waiting| {
            waiting.notices.push_back(notice);
            let dropped = waiting.notices.len().saturating_sub(MAX_NOTICES);
            waiting.notices.drain(..dropped);
            dropped
        })
    }

    /// Waits for the oldest notice. `None` when the outbox is closed and empty. Cancel safe.
    pub(super) async fn next(&self) -> Option<Arc<Notice>> {
        let mut changes = self.changes.subscribe();
        loop {
            changes.borrow_and_update();
            let (notice, is_closed) = self.with(|waiting| {
                let notice = waiting.notices.pop_front();
                waiting.is_sending = notice.is_some();
                (notice, waiting.is_closed)
            });
            if notice.is_some() || is_closed || changes.changed().await.is_err() {
                return notice;
            }
        }
    }

    /// The notice of [`Self::next`] was sent or given up.
    pub(super) fn done(&self) {
        self.with(|waiting| waiting.is_sending = false);
    }

    pub(super) fn close(&self) {
        self.change(|waiting| waiting.is_closed = true);
    }

    pub(super) fn is_closed(&self) -> bool {
        self.with(|waiting| waiting.is_closed)
    }

    /// Waits until it is closed.
    pub(super) async fn closed(&self) {
        let mut changes = self.changes.subscribe();
        // The sender lives as long as `self`.
        let _ = changes.wait_for(|_| self.is_closed()).await;
    }

    /// The notices that wait or are being sent.
    pub(super) fn unsent(&self) -> usize {
        self.with(|waiting| waiting.notices.len() + usize::from(waiting.is_sending))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::notify::NotifyEvent;

    fn notice() -> Arc<Notice> {
        Arc::new(Notice::new(Clock::start(), NotifyEvent::Test))
    }

    #[tokio::test]
    async fn a_full_queue_drops_its_oldest_notices() {
        let outbox = Outbox::default();
        let all: Vec<_> = (0..MAX_NOTICES + 3).map(|_| notice()).collect();
        let dropped: usize = all.iter().map(|notice| outbox.push(Arc::clone(notice))).sum();
        assert_eq!((dropped, outbox.unsent()), (3, MAX_NOTICES));
        assert_eq!(outbox.next().await.unwrap().id, all[3].id);
        assert_eq!(outbox.unsent(), MAX_NOTICES, "it is being sent");
        outbox.done();
        assert_eq!(outbox.unsent(), MAX_NOTICES - 1);
    }

    #[tokio::test]
    async fn a_closed_queue_returns_what_is_left_and_then_ends() {
        let outbox = Outbox::default();
        outbox.push(notice());
        outbox.close();
        outbox.closed().await;
        assert!(outbox.next().await.is_some());
        assert!(outbox.next().await.is_none());
    }
}
