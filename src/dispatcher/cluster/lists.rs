//! Tasks, dead letters and past figures.

use super::{Question, merge, unanswered};
use crate::api;
use crate::dispatcher::Handle;
use crate::dispatcher::messages::{AdminError, LetterCursor, LetterFilter, ListPage, TaskFilter};
use crate::store::MAX_PARTITIONS;
use crate::task::{Node, TaskId};

impl Handle {
    /// Unsettled tasks, oldest first. The page may be short and still not be the last.
    pub async fn tasks(
        &self,
        filter: TaskFilter,
        limit: usize,
        after: Option<TaskId>,
    ) -> Result<api::TaskPage, AdminError> {
        let (page, incomplete) = match &self.operator.peers {
            None => (self.tasks_here(filter, limit, after).await?, Vec::new()),
            Some(peers) => {
                let question = Question::Tasks { filter, limit, after };
                let (pages, incomplete) = self.ask_all(peers, &question).await?.into_answers();
                (merge::pages(pages, limit), incomplete)
            }
        };
        let ListPage { items, next } = page;
        let tasks = items.into_iter().map(|(_, task)| task).collect();
        Ok(api::TaskPage { tasks, next_cursor: next.map(|id| id.to_string()), incomplete })
    }

    /// One task. A settled task is found for `--task-history`, by the instances that had it.
    pub async fn task(&self, id: TaskId) -> Result<Option<api::TaskInfo>, AdminError> {
        match &self.operator.peers {
            None => self.task_here(id).await,
            Some(_) => self.find_task(id, Question::Task { id }).await,
        }
    }

    /// The unsettled writes of a key, and the settled ones of `--task-history`.
    pub async fn key(&self, key: String) -> Result<api::KeyInfo, AdminError> {
        let Some(peers) = &self.operator.peers else { return self.key_here(key).await };
        let asked = self.ask_all(peers, &Question::Key { key: key.clone() }).await?;
        let (found, incomplete) = asked.into_answers();
        Ok(api::KeyInfo { incomplete, ..merge::key(key, found) })
    }

    /// Discards the unsettled deliveries of a task, durably. One in flight is not retried. Returns
    /// the task as it is then.
    pub async fn discard_task(&self, id: TaskId) -> Result<Option<api::TaskInfo>, AdminError> {
        match &self.operator.peers {
            None => self.discard_task_here(id).await,
            Some(_) => self.find_task(id, Question::DiscardTask { id }).await,
        }
    }

    async fn find_task(
        &self,
        id: TaskId,
        question: Question,
    ) -> Result<Option<api::TaskInfo>, AdminError> {
        let Some(peers) = &self.operator.peers else { return Ok(None) };
        let (found, incomplete) = self.ask_all(peers, &question).await?.into_answers();
        let partition = id.0 % u64::from(MAX_PARTITIONS);
        let is_unknown = |incomplete: &u16| u64::from(*incomplete) == partition;
        let incomplete: Vec<_> = incomplete.into_iter().filter(is_unknown).collect();
        match merge::task(found) {
            Some(task) => Ok(Some(api::TaskInfo { incomplete, ..task })),
            None if incomplete.is_empty() => Ok(None),
            None => Err(unanswered(&incomplete)),
        }
    }

    /// Dead letters, oldest task first. The page may be short and still not be the last.
    pub async fn dead_letters(
        &self,
        filter: LetterFilter,
        limit: usize,
        after: Option<LetterCursor>,
    ) -> Result<api::DeadLetterPage, AdminError> {
        let (page, incomplete) = match &self.operator.peers {
            None => (self.dead_letters_here(filter, limit, after).await?, Vec::new()),
            Some(peers) => {
                let question = Question::Letters { filter, limit, after };
                let (pages, incomplete) = self.ask_all(peers, &question).await?.into_answers();
                (merge::pages(pages, limit), incomplete)
            }
        };
        let ListPage { items, next } = page;
        let dead_letters = items.into_iter().map(|(_, letter)| letter).collect();
        let next_cursor = next.map(|next| next.to_string());
        Ok(api::DeadLetterPage { dead_letters, next_cursor, incomplete })
    }

    pub async fn dead_letter_summary(&self) -> Result<api::LetterSummary, AdminError> {
        let Some(peers) = &self.operator.peers else {
            return self.dead_letter_summary_here().await;
        };
        let asked = self.ask_all(peers, &Question::LetterSummary).await?;
        let (summaries, incomplete) = asked.into_answers();
        Ok(api::LetterSummary { incomplete, ..merge::summaries(summaries) })
    }

    /// Of the daemon or the cluster, or of one replica.
    pub async fn past_figures(
        &self,
        node: Option<Node>,
    ) -> Result<Option<api::PastFigures>, AdminError> {
        let Some(peers) = &self.operator.peers else { return self.past_figures_here(node).await };
        let asked = self.ask_all(peers, &Question::Past { node }).await?;
        let (pasts, incomplete) = asked.into_answers();
        match merge::pasts(pasts) {
            Some(past) => Ok(Some(api::PastFigures { incomplete, ..past })),
            None if incomplete.is_empty() => Ok(None),
            None => Err(unanswered(&incomplete)),
        }
    }
}
