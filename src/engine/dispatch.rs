//! Sends what a lane may send: within its workers, its breaker, and the limits of an operator.
//!
//! A strong write waits for the limits like any other, and gets the next token: urgent deliveries go before
//! all others.

use std::time::Duration;

use crate::engine::breaker::Gate;
use crate::engine::counters::Attempt;
use crate::engine::table::{Priority, Slot, Stage};
use crate::engine::{Engine, EngineAction};

/// Maximum deliveries per call that fail because a breaker is open; the rest follows in the next
/// call, which is due at once. Failing a full queue in one call would delay everything else.
const FAST_FAILURES: usize = 256;

/// Maximum deliveries that are looked at for one of another client to be the probe.
const PROBE_LOOKS: usize = 256;

/// The shortest wait for a limit: a high rate sends several at once instead of waking for each.
const PACE: Duration = Duration::from_millis(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Allowed {
    Everything,
    NoRedrives,
    Nothing,
}

impl Engine {
    /// Sends what a lane may send, and fails what its breaker blocks.
    pub(super) fn dispatch(&mut self, number: u32) {
        self.dispatch_dirty(number);
        // Last, so that the changes made here do not queue the lane again.
        self.lanes[number].dirty = false;
    }

    fn dispatch_dirty(&mut self, number: u32) {
        if self.stopped || self.lanes[number].is_suspended() {
            return;
        }
        for failed_fast in 0.. {
            let lane = &mut self.lanes[number];
            let letter =
                lane.heads.foremost().is_some_and(|(priority, _)| priority == Priority::Redrive);
            match lane.health.breaker().gate(self.now.moment, letter) {
                Gate::Pass(most) => {
                    let workers = lane.workers(self.settings.workers);
                    loop {
                        let allowed = self.allowed(number);
                        if allowed == Allowed::Nothing {
                            return;
                        }
                        let redrives = allowed == Allowed::Everything;
                        let next = self.lanes[number].next(workers, most, redrives);
                        let Some((priority, slot)) = next else { return };
                        self.send(number, slot, priority, false);
                    }
                }
                Gate::Probe => {
                    let Some((priority, slot)) = self.next_probe(number) else { return };
                    if self.allowed(number) == Allowed::Nothing {
                        return;
                    }
                    let client = self.claims.client_id(self.tasks[slot].client);
                    self.lanes[number].health.probe_sent(client);
                    self.send(number, slot, priority, true);
                }
                Gate::Blocked => {
                    let Some((_, slot)) = lane.heads.foremost() else { return };
                    if failed_fast >= FAST_FAILURES {
                        return self.schedule_wakeup(number, self.now.moment);
                    }
                    self.fail_fast(number, slot);
                }
            }
        }
    }

    /// What the limits of a lane let through now. For what they do not, a wakeup is scheduled.
    fn allowed(&mut self, number: u32) -> Allowed {
        let lane = &self.lanes[number];
        let Some(limits) = &lane.limits else { return Allowed::Everything };
        let now = self.now.moment;
        let (wait, redrive_wait) = (limits.wait(now), limits.redrive_wait(now));
        let (waits, redrives) = (lane.heads.foremost().is_some(), lane.heads.redriven() > 0);
        let (due, allowed) = match (wait, redrive_wait) {
            (Some(due), _) => (Some(due).filter(|_| waits), Allowed::Nothing),
            (None, Some(due)) => (Some(due).filter(|_| redrives), Allowed::NoRedrives),
            (None, None) => return Allowed::Everything,
        };
        if let Some(due) = due {
            self.schedule_wakeup(number, due.max(now.after(PACE)));
        }
        allowed
    }

    /// The delivery that is sent as the probe: the foremost, but of another client than the last
    /// probe, whose writes may fail for their own reasons.
    fn next_probe(&self, number: u32) -> Option<(Priority, Slot)> {
        let lane = &self.lanes[number];
        let foremost = lane.heads.foremost()?;
        let (Some(last), true) = (lane.health.last_probe_of(), foremost.0 != Priority::Redrive)
        else {
            return Some(foremost);
        };
        let mut live = lane.heads.live().take(PROBE_LOOKS);
        live.find(|&(_, slot)| self.claims.client_id(self.tasks[slot].client) != last)
            .or(Some(foremost))
    }

    fn send(&mut self, number: u32, slot: Slot, priority: Priority, probe: bool) {
        let at = self.tasks.delivery_on(slot, number);
        self.change(at, Stage::InFlight { priority, probe, discard: false });
        if priority == Priority::Redrive
            && let Some(failures) = &mut self.tasks[at].failures
        {
            // A redriven letter has all its attempts again.
            failures.count = 0;
        }
        let delivery = self.delivery_id(at);
        let entry = &self.tasks[slot];
        if let Some(limits) = &mut self.lanes[number].limits {
            limits.spend(self.now.moment, self.processes.get(), entry.bytes, priority);
        }
        let attempt = self.tasks[at].failure_count().saturating_add(1);
        let node = self.lanes[number].node.clone();
        self.actions.push_back(EngineAction::Send { delivery, node, attempt, bytes: entry.bytes });
    }

    /// Fails a delivery on its retry schedule without sending it, because the breaker is open.
    fn fail_fast(&mut self, number: u32, slot: Slot) {
        let at = self.tasks.delivery_on(slot, number);
        let stage = self.tasks[at].stage;
        if stage == Stage::Ready(Priority::Redrive) {
            return self.return_to_dead(at);
        }
        let error = self.lanes[number].health.unsent_error();
        self.note_failure(at, error, Attempt::Unsent);
        if stage == Stage::Ready(Priority::Resend) {
            return self.resend_failed(at);
        }
        self.fail(at, None);
    }
}
