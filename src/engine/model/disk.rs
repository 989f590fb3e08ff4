//! The disk of the model: what is durable, and what the journal reports as durable.

use super::*;
use crate::task::ReplicaIndex;

impl World {
    /// Everything appended becomes durable, after the settlements of the `settled` oldest tasks.
    pub(super) fn commit(&mut self, settled: usize) {
        self.settle(settled);
        self.report();
        while let Some((id, (stored, reservation))) = self.appended.pop_first() {
            self.durable.insert(id);
            self.disk.insert(id, stored.clone());
            let Some(reservation) = reservation else {
                self.engine.committed(self.now, TaskId(id));
                self.act();
                continue;
            };
            if self.released.contains(&partition(stored.key)) {
                // The task arrives at the owner of its partition.
                self.strong.remove(&id);
                self.engine.cancel(self.now, reservation);
                continue;
            }
            if self.strong.remove(&id) {
                self.open.insert(id);
            }
            let client = client_of(id);
            let task = self.arrived(id, &stored, &stored.replicas, client.as_ref());
            self.engine.arrive(self.now, task, Origin::Written(Some(reservation)));
            if id.is_multiple_of(3) {
                self.engine.barrier(TaskId(id - id % 2), &[]);
                self.barriers.push(id - id % 2);
            }
            self.act();
        }
    }

    /// Replicas acknowledge everything, and the settlements of the `settled` oldest tasks are durable.
    pub(super) fn calm(&mut self, settled: usize) {
        self.commit(usize::MAX);
        while !self.on_wire.is_empty() {
            self.answer(0, How::Delivered);
        }
        self.settle(settled);
        self.report();
    }

    /// Makes the settlements of the `most` oldest tasks durable.
    pub(super) fn settle(&mut self, most: usize) {
        // A task is written before its settlement.
        let on_disk = self.unsettled.keys().copied().take_while(|id| self.disk.contains_key(id));
        let due: Vec<_> = on_disk.take(most).collect();
        for id in due {
            match self.unsettled.remove(&id).unwrap().progress {
                Some(progress) => self.disk.get_mut(&id).unwrap().progress = progress,
                None => drop(self.disk.remove(&id).unwrap()),
            }
        }
    }

    /// The journal reports how many settlements are durable.
    pub(super) fn report(&mut self) {
        if self.reports {
            self.reported = true;
            let waiting = self.unsettled.values().map(|unsettled| unsettled.number - 1);
            self.engine.settled(waiting.min().unwrap_or(self.settlements));
        }
    }

    /// The engine settles a task.
    pub(super) fn settles(&mut self, id: u64, progress: Option<Vec<Progress>>) {
        self.settlements += 1;
        let early = self.appended.get(&id).is_some_and(|(_, reservation)| reservation.is_none());
        assert!(early || self.disk.contains_key(&id), "{id} is on disk");
        // The commit of some early writes has begun.
        if early && progress.is_none() && id.is_multiple_of(2) {
            self.appended.remove(&id);
            self.unsettled.remove(&id);
            return;
        }
        let number = self.unsettled.get(&id).map_or(self.settlements, |before| before.number);
        self.unsettled.insert(id, Unsettled { progress, number });
    }

    /// The client of a strong write has its answer. A crash must not prove it wrong.
    pub(super) fn answered(&mut self, id: u64, missing: &[ReplicaIndex]) {
        if self.durable.contains(&id) {
            return;
        }
        let stored = &self.tasks[&id];
        for replica in missing {
            let place = (site(&stored.replicas[replica.get()]), stored.key);
            assert!(self.discarded.contains(&place), "{id} is answered before it is durable");
        }
        self.durable.insert(id);
    }

    /// Whether a write may be sent: it is durable, or nothing older could be sent after a crash.
    pub(super) fn may_be_sent(&self, id: u64, place: &(Node, u8)) {
        let lost = self.lost.get(place).copied().unwrap_or_default();
        assert!(id > lost, "{id} is sent after {lost}, which a crash has lost");
        if self.disk.contains_key(&id) {
            return;
        }
        let early = self.appended.get(&id).is_some_and(|(_, reservation)| reservation.is_none());
        assert!(early, "{id} is sent before it is durable");
    }

    /// Ends the life of everything that is not durable, except the first `kept` writes.
    pub(super) fn lose_appended(&mut self, kept: usize) {
        let appended = std::mem::take(&mut self.appended);
        for (nth, (id, (stored, reservation))) in appended.into_iter().enumerate() {
            if nth < kept {
                self.durable.insert(id);
                self.disk.insert(id, stored);
            } else if reservation.is_none() {
                for name in &stored.replicas {
                    let lost = self.lost.entry((site(name), stored.key)).or_default();
                    *lost = id.max(*lost);
                }
            }
        }
    }
}
