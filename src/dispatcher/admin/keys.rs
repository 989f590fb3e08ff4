//! The writes of one key.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use super::{PAGE_BYTES, json_length};
use crate::api;
use crate::dispatcher::messages::{AdminError, AdminReply, Request, TaskFilter, TaskRequest};
use crate::dispatcher::{Core, Handle, view};
use crate::engine::Now;
use crate::task::{DeliveryState, TaskId};

/// Writes in an answer.
const MAX_WRITES: usize = 100;

/// Tasks of a page while the unsettled ones are searched.
const PAGE: usize = 1000;

/// Collects the newest writes of a key, and what each replica has of all of them.
#[derive(Default)]
struct KeyWrites {
    newest: BTreeMap<TaskId, api::TaskInfo>,
    replicas: BTreeMap<String, (Option<TaskId>, api::KeyReplica)>,
}

impl KeyWrites {
    fn add(&mut self, id: TaskId, task: api::TaskInfo) {
        for delivery in &task.deliveries {
            let (acknowledged, replica) =
                self.replicas.entry(delivery.replica.clone()).or_default();
            match delivery.state {
                DeliveryState::Delivered => *acknowledged = (*acknowledged).max(Some(id)),
                DeliveryState::Dead => replica.dead_letters += 1,
                DeliveryState::Queued
                | DeliveryState::InFlight
                | DeliveryState::Retrying
                | DeliveryState::Parked => replica.pending += 1,
                DeliveryState::Superseded | DeliveryState::Discarded => {}
            }
        }
        self.newest.insert(id, task);
        if self.newest.len() > MAX_WRITES {
            self.newest.pop_first();
        }
    }

    fn into_info(self, key: String) -> api::KeyInfo {
        let replicas = self.replicas.into_iter().map(|(name, (acknowledged, replica))| {
            let acknowledged_sequence = acknowledged.map(|id| id.to_string());
            api::KeyReplica { replica: name, acknowledged_sequence, ..replica }
        });
        let writes = shown(self.newest.into_values().rev());
        api::KeyInfo { key, writes, replicas: replicas.collect(), incomplete: Vec::new() }
    }
}

/// As many of these writes as fit into an answer, at least one.
pub(in crate::dispatcher) fn shown(
    writes: impl Iterator<Item = api::TaskInfo>,
) -> Vec<api::TaskInfo> {
    let mut bytes = 0;
    let fits = |task: &api::TaskInfo| {
        let before = bytes;
        bytes += json_length(task);
        before < PAGE_BYTES
    };
    writes.take(MAX_WRITES).take_while(fits).collect()
}

impl Handle {
    /// The unsettled writes of a key, and the settled ones of `--task-history`.
    pub(in crate::dispatcher) async fn key_here(
        &self,
        key: String,
    ) -> Result<api::KeyInfo, AdminError> {
        let filter = TaskFilter { key: Some(key.clone()), ..TaskFilter::default() };
        let (mut writes, mut after) = (KeyWrites::default(), None);
        loop {
            let page = self.tasks_here(filter.clone(), PAGE, after).await?;
            page.items.into_iter().for_each(|(id, task)| writes.add(id, task));
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        // Last: a write that was settled meanwhile is found here.
        let of = key.clone();
        let settled = move |reply| Request::Tasks(TaskRequest::Settled { key: of, reply });
        let settled = self.ask(settled).await?;
        settled.into_iter().for_each(|(id, task)| writes.add(id, task));
        Ok(writes.into_info(key))
    }
}

impl Core {
    /// The settled writes of a key that are remembered, the newest ones.
    pub(super) fn settled_of_key(
        &self,
        now: Now,
        key: &str,
        reply: AdminReply<Vec<(TaskId, api::TaskInfo)>>,
    ) {
        let mut found = self.observed.history.of_key(key);
        found.sort_unstable_by_key(|past| Reverse(past.view.id));
        found.truncate(MAX_WRITES);
        let shown = found.into_iter().map(|past| {
            let (view, header) = (past.view.clone(), past.header.as_ref());
            (view.id, view::task(view, header, Some(past.settled_at), now))
        });
        // The operator may be gone.
        let _ = reply.send(Ok(shown.collect()));
    }
}
