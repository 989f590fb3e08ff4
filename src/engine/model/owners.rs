//! Restarts of the process, and releases and claims of a partition.

use super::*;

impl World {
    /// Ends an attempt that was in flight at a release. It is applied only within its time.
    pub(super) fn answer_orphan(&mut self, orphan: (DeliveryId, Moment), how: How) {
        let (delivery, until) = orphan;
        let applied = matches!(how, How::Delivered) && self.now.moment <= until;
        let verdict = match applied {
            true => Verdict::Delivered,
            false => Verdict::Retry { after: None, error: "cut".into() },
        };
        if applied {
            let task = &self.tasks[&delivery.task.0];
            let place = (site(&task.replicas[delivery.replica.get()]), task.key);
            self.acknowledged.insert(delivery);
            self.apply(place, delivery.task.0);
        } else {
            self.unanswered.push((delivery, until));
        }
        let outcome = AttemptOutcome { verdict, ambiguous: !applied, took: Duration::ZERO };
        self.engine.answered(self.now, delivery, outcome);
        self.act();
    }

    pub(super) fn restart(&mut self, kept: usize, settled: usize) {
        // A kill loses settlements, and with them which older writes a delivery stands for.
        if !self.appended.is_empty() || !self.unsettled.is_empty() {
            self.barriers.clear();
        }
        // A prefix of the log is durable, and a write comes before everything that it settles.
        self.lose_appended(if settled > 0 { usize::MAX } else { kept });
        self.settle(settled);
        self.unsettled.clear();
        self.settlements = 0;
        self.engine = Engine::new(self.settings.clone());
        if self.reported {
            self.engine.expect_unrecorded(self.now);
        }
        self.strong.clear();
        self.unanswered.append(&mut self.orphans);
        let on_wire = std::mem::take(&mut self.on_wire);
        on_wire.into_iter().for_each(|delivery| self.unanswered(delivery));
        if std::mem::take(&mut self.set_forward) {
            self.unanswered.clear();
        }
        self.open.clear();
        self.sent.clear();
        self.restarted = true;
        for name in &self.names {
            if let Some((pause, ends)) = self.paused.get_mut(&site(name)) {
                *ends = pause.left(self.now.wall).map(|left| self.now.moment.after(left));
                self.engine.pause(self.now, name, Some(*pause));
            }
        }
        self.limit_again();
        self.released.clear();
        self.held.clear();
        self.acked.clear();
        self.recover(Partition(0));
        self.recover(Partition(1));
    }

    /// The partition is about to be handed over.
    pub(super) fn hold(&mut self, partition: Partition) {
        if !self.released.contains(&partition) && self.held.insert(partition) {
            self.engine.hold_back(partition);
        }
    }

    /// Another engine claims a partition. It delivers nothing.
    pub(super) fn release(&mut self, given_up: Partition, settled: usize) {
        let of_it =
            |delivery: &&DeliveryId| partition(self.tasks[&delivery.task.0].key) == given_up;
        let is_orderly = self.engine.is_quiet(given_up);
        let in_flight = self.on_wire.iter().filter(of_it).count();
        assert!(!is_orderly || (self.held.contains(&given_up) && in_flight == 0), "{in_flight}");
        self.held.remove(&given_up);
        self.settle(if is_orderly { usize::MAX } else { settled });
        if is_orderly {
            self.check_handed_over(given_up);
        }
        let of_others =
            |delivery: &DeliveryId| partition(self.tasks[&delivery.task.0].key) != given_up;
        self.acked.retain(of_others);
        let tasks = &self.tasks;
        let leaves = |id: &u64| partition(tasks[id].key) == given_up;
        self.unsettled.retain(|id, _| !leaves(id));
        let (orphans, on_wire): (Vec<_>, Vec<_>) =
            self.on_wire.drain(..).partition(|delivery| leaves(&delivery.task.0));
        self.on_wire = on_wire;
        let until = self.late();
        self.orphans.extend(orphans.into_iter().map(|delivery| (delivery, until)));
        self.released.insert(given_up);
        self.barriers.clear();
        self.engine.release(self.now, given_up);
        self.act();
    }

    /// After an orderly hand-over, the next owner sends nothing again that was acknowledged.
    fn check_handed_over(&self, given_up: Partition) {
        for (&id, stored) in
            self.disk.iter().filter(|(_, stored)| partition(stored.key) == given_up)
        {
            for (replica, progress) in (0..).map(ReplicaIndex).zip(&stored.progress) {
                let delivery = DeliveryId { task: TaskId(id), replica };
                let is_repeated = matches!(progress, Progress::Untouched | Progress::Failed { .. });
                assert!(!(is_repeated && self.acked.contains(&delivery)), "{delivery:?}");
            }
        }
    }

    pub(super) fn claim(&mut self, claimed: Partition) {
        if !self.released.remove(&claimed) {
            return;
        }
        self.restarted = true;
        if self.set_forward {
            self.unanswered.clear();
        }
        self.sent.retain(|(_, key), _| partition(*key) != claimed);
        self.recover(claimed);
    }

    fn recover(&mut self, claimed: Partition) {
        let recovered = self.disk.iter().filter(|(_, stored)| partition(stored.key) == claimed);
        for (&id, stored) in recovered {
            let now_named = |old: &Node| self.names.iter().find(|name| site(name) == site(old));
            let replicas: Vec<_> = stored.replicas.iter().filter_map(now_named).cloned().collect();
            let client = client_of(id);
            let task = self.arrived(id, stored, &replicas, client.as_ref());
            self.engine.arrive(self.now, task, Origin::Recovered(stored.progress.clone()));
        }
        self.act();
    }
}
