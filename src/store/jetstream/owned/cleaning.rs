//! The copies of old tasks, as far as the owner has them.

use tokio::time::Instant;
use tracing::error;

use super::{Owned, SentRow};
use crate::store::jetstream::checkpoint::LogPlace;
use crate::store::jetstream::copying::{CleaningStep, CopiedTask, ReadTask};
use crate::store::jetstream::names::{StreamNames, task_id};
use crate::store::jetstream::protocol::Outgoing;

impl Owned {
    /// Adds the copies that were prepared, and then their progress. So the progress of a task is
    /// always behind the task.
    pub(super) fn add_copies(&mut self, names: &StreamNames, rows: &mut Vec<Outgoing>) {
        let (mut progress, mut copied) = (Vec::new(), Vec::new());
        let most = self.most_rows;
        while let Some(copy) = self.cleaning.next(rows.len() + progress.len(), most) {
            let is_current =
                self.unsettled.get(copy.id).is_some_and(|task| copy.read.is_current(task));
            let CopiedTask { id, chunks, message, progress: saved, .. } = copy;
            if !is_current || self.pending.contains_key(&id) {
                continue;
            }
            self.note(id, None);
            self.unsettled.copy(id, chunks.map(|(first, _)| first));
            rows.push(Outgoing::new(names.copy(self.partition, id), message).replacing());
            self.sent.push(SentRow::Copy(id));
            if let Some(saved) = saved {
                self.unsettled.progress(id, LogPlace::Sent, saved.len());
                let subject = names.progress(self.partition, id);
                progress.push(Outgoing::new(subject, saved).replacing());
                copied.push(SentRow::Progress(id));
            }
        }
        rows.append(&mut progress);
        self.sent.append(&mut copied);
    }

    /// The next step of the cleaning. Everything before `purged` is purged, and may be before `wanted`.
    pub(in crate::store::jetstream) fn clean(
        &mut self,
        now: Instant,
        purged: u64,
        wanted: u64,
    ) -> CleaningStep {
        if !self.is_live() {
            return CleaningStep::Nothing;
        }
        let must_stay = |id| self.unbound.contains(&id) || self.pending.contains_key(&id);
        let is_written = !self.sent.iter().any(|sent| matches!(sent, SentRow::Copy(_)));
        self.cleaning.step(now, &self.unsettled, must_stay, is_written, (purged, wanted))
    }

    pub(in crate::store::jetstream) fn sized(&mut self, bytes: Option<u64>, least: u64) {
        self.cleaning.looked(bytes, self.unsettled.live_bytes(), least);
    }

    /// Tasks were read, to be copied with the next checkpoint, up to the first read that failed.
    /// Returns the number of those that lack messages.
    pub(in crate::store::jetstream) fn copied(
        &mut self,
        tasks: Vec<ReadTask>,
        has_failed: bool,
    ) -> u64 {
        let (mut copied, mut missing) = (Vec::with_capacity(tasks.len()), 0);
        for task in tasks {
            if let ReadTask::Copied(CopiedTask { chunks: Some((first, count)), .. }) = &task {
                self.reader.wrote(*first, first + u64::from(*count) - 1);
            }
            let (id, read, lacks) = match &task {
                ReadTask::Copied(copy) => (copy.id, copy.read, copy.is_incomplete),
                ReadTask::Missing(id, read) => (*id, *read, true),
            };
            // Otherwise its messages were replaced or purged while they were read.
            if !self.unsettled.get(id).is_some_and(|task| read.is_current(task)) {
                continue;
            }
            if lacks {
                let task = task_id(id, self.partition);
                error!(%task, "a message of an unsettled task is missing from the store");
                missing += 1;
            }
            match task {
                ReadTask::Copied(copy) => copied.push(copy),
                ReadTask::Missing(..) => self.unsettled.lose(id),
            }
        }
        self.cleaning.read(copied, has_failed);
        missing
    }
}
