//! The actions of an operator in a history.

use std::time::Duration;

use super::{NODES, World};
use crate::engine::model::{node, site};
use crate::engine::{AdminOutcome, DeliveryFilter, LetterView, RenameError};
use crate::task::{DeliveryId, ReplicaPause, TaskId};

impl World {
    pub(super) fn pause(&mut self, at: usize, paused: bool, millis: Option<u64>) {
        let (name, since) = (self.names[at].clone(), self.now.wall);
        let time = millis.map(Duration::from_millis);
        let until = time.map(|time| since.saturating_add(time));
        let pause = paused.then_some(ReplicaPause { since, until });
        self.engine.pause(self.now, &name, pause);
        let ends = time.map(|time| self.now.moment.after(time));
        match pause {
            Some(pause) => self.paused.insert(site(&name), (pause, ends)),
            None => self.paused.remove(&site(&name)),
        };
        self.act();
    }

    fn letters(&self) -> Vec<DeliveryId> {
        let found = self.engine.find_letters(&DeliveryFilter::default(), None, usize::MAX);
        let of = |letter: LetterView| DeliveryId { task: letter.task, replica: letter.replica };
        found.items.into_iter().map(of).collect()
    }

    pub(super) fn redrive(&mut self, nth: usize) {
        let letters = self.letters();
        if !letters.is_empty() {
            let letter = letters[nth % letters.len()];
            let would = self.engine.would_redrive(letter);
            let does = self.engine.redrive_letter(self.now, letter, None);
            assert_eq!(would, does);
            self.act();
        }
    }

    pub(super) fn discard(&mut self, nth: usize, letter: bool) {
        if letter {
            let letters = self.letters();
            if letters.is_empty() {
                return;
            }
            let letter = letters[nth % letters.len()];
            self.note_discarded(letter.task.0, |at| at == letter.replica.get());
            assert_eq!(self.engine.discard_letter(self.now, letter), AdminOutcome::Done);
        } else {
            let ids: Vec<_> = self.disk.keys().copied().collect();
            if ids.is_empty() {
                return;
            }
            let id = ids[nth % ids.len()];
            if self.engine.discard_task(self.now, TaskId(id)) {
                self.note_discarded(id, |_| true);
            }
        }
        self.act();
    }

    fn note_discarded(&mut self, id: u64, which: impl Fn(usize) -> bool) {
        let task = &self.tasks[&id];
        let chosen = task.replicas.iter().enumerate().filter(|(at, _)| which(*at));
        self.discarded.extend(chosen.map(|(_, name)| (site(name), task.key)));
    }

    pub(super) fn forget(&mut self, at: usize) {
        let name = self.names[at].clone();
        if self.engine.forget(self.now, &name).is_some() {
            self.discarded.extend((0..4).map(|key| (site(&name), key)));
        }
        self.act();
    }

    pub(super) fn rename(&mut self, at: usize) {
        let old = self.names[at].clone();
        self.renames += 1;
        let new = node(&format!("{}{}", NODES[at], self.renames));
        let known = self.engine.lanes().any(|lane| lane.node == old);
        let renamed = self.engine.rename(self.now, &old, &new);
        assert_eq!(renamed, if known { Ok(()) } else { Err(RenameError::Unknown) });
        if known {
            self.names[at] = new;
        }
        self.act();
    }
}
