//! Tasks: list, show, discard.

use std::sync::Arc;

use super::{PAGE_BYTES, READS, TextFilter, answer_in_background, headers, json_length, page};
use crate::api;
use crate::dispatcher::messages::{
    AdminError, AdminReply, ListPage, ListPart, Request, TaskFilter, TaskRequest,
};
use crate::dispatcher::{Core, Handle, view};
use crate::engine::{DeliveryFilter, Now};
use crate::store::Header;
use crate::task::TaskId;

impl Handle {
    /// Unsettled tasks, oldest first. The page may be short and still not be the last.
    pub(in crate::dispatcher) async fn tasks_here(
        &self,
        filter: TaskFilter,
        limit: usize,
        after: Option<TaskId>,
    ) -> Result<ListPage<TaskId, api::TaskInfo>, AdminError> {
        let part = |limit, after| {
            let filter = filter.clone();
            self.ask(move |reply| Request::Tasks(TaskRequest::List { filter, limit, after, reply }))
        };
        let (items, next) = page(limit, after, part).await?;
        Ok(ListPage { items, next })
    }

    /// One task. A settled task is found for `--task-history`.
    pub(in crate::dispatcher) async fn task_here(
        &self,
        id: TaskId,
    ) -> Result<Option<api::TaskInfo>, AdminError> {
        self.ask(|reply| Request::Tasks(TaskRequest::Show { id, reply })).await
    }

    /// Discards the unsettled deliveries of a task, durably. One in flight is not retried. Returns
    /// the task as it is then.
    pub(in crate::dispatcher) async fn discard_task_here(
        &self,
        id: TaskId,
    ) -> Result<Option<api::TaskInfo>, AdminError> {
        // The row of a dead letter is only on disk, and discarding removes it.
        let before = self.task_here(id).await?;
        let discarded =
            self.ask(|reply| Request::Tasks(TaskRequest::Discard { id, reply })).await?;
        Ok(discarded.map(|task| match before {
            Some(before) if task.key.is_none() => {
                let api::TaskInfo { settled_at, deliveries, .. } = task;
                api::TaskInfo { settled_at, deliveries, ..before }
            }
            _ => task,
        }))
    }
}

impl Core {
    pub(in crate::dispatcher) fn serve_tasks(&mut self, now: Now, request: TaskRequest) {
        match request {
            TaskRequest::List { filter, limit, after, reply } => {
                self.list_tasks(now, filter, limit, after, reply);
            }
            TaskRequest::Settled { key, reply } => self.settled_of_key(now, &key, reply),
            TaskRequest::Show { id, reply } => self.show_task(now, id, reply),
            TaskRequest::Discard { id, reply } => self.discard_task(now, id, reply),
        }
    }

    fn list_tasks(
        &self,
        now: Now,
        filter: TaskFilter,
        limit: usize,
        after: Option<TaskId>,
        reply: AdminReply<ListPart<(TaskId, api::TaskInfo), TaskId>>,
    ) {
        let of_delivery = DeliveryFilter {
            state: filter.state,
            ..self.delivery_filter(filter.replica.as_ref(), filter.key.as_ref())
        };
        let text =
            TextFilter { key: filter.key, key_prefix: filter.key_prefix, user_id: filter.user_id };
        let most = if text.is_empty() { limit } else { READS };
        let found = self.engine.find_tasks(&of_delivery, after, most);
        let journal = Arc::clone(&self.journal);
        answer_in_background(reply, async move {
            let ids: Vec<_> = found.items.iter().map(|task| task.id).collect();
            let examined = ids.len();
            let (mut items, mut bytes, mut next) = (Vec::new(), 0, found.next);
            // A task without a row was settled in the meantime.
            for (task, header) in found.items.into_iter().zip(headers(&*journal, ids).await?) {
                let Some(header) = header.filter(|header| text.matches(header)) else { continue };
                if items.len() == limit || bytes >= PAGE_BYTES {
                    break;
                }
                let id = task.id;
                let item = view::task(task, Some(&header), None, now);
                bytes += json_length(&item);
                items.push((id, item));
                if items.len() == limit || bytes >= PAGE_BYTES {
                    next = Some(id);
                }
            }
            Ok(ListPart { items, bytes, examined, next })
        });
    }

    fn show_task(&self, now: Now, id: TaskId, reply: AdminReply<Option<api::TaskInfo>>) {
        if let Some(found) = self.engine.view(id) {
            let header = self.task_in_memory(id).map(|task| Header::of(&task));
            let journal = Arc::clone(&self.journal);
            return answer_in_background(reply, async move {
                let header = match header {
                    Some(header) => Some(header),
                    None => headers(&*journal, vec![id]).await?.pop().flatten(),
                };
                Ok(Some(view::task(found, header.as_ref(), None, now)))
            });
        }
        let shown = self.observed.history.get(id).map(|past| {
            view::task(past.view.clone(), past.header.as_ref(), Some(past.settled_at), now)
        });
        let _ = reply.send(Ok(shown));
    }

    fn discard_task(&mut self, now: Now, id: TaskId, reply: AdminReply<Option<api::TaskInfo>>) {
        // The cache loses the task when it is discarded.
        let header = self.task_in_memory(id).map(|task| Header::of(&task));
        if !self.engine.discard_task(now, id) {
            return self.show_task(now, id, reply);
        }
        self.act(now);
        let past = self.observed.history.get(id);
        let settled_at = past.map(|past| past.settled_at);
        let found = self.engine.view(id).or_else(|| past.map(|past| past.view.clone()));
        let header = header.or_else(|| past.and_then(|past| past.header.clone()));
        let found = found.map(|found| view::task(found, header.as_ref(), settled_at, now));
        self.answer_when_durable(reply, found);
    }
}
