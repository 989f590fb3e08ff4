//! The recovery at the start: from disk into the engine.

use std::sync::mpsc::sync_channel;
use std::thread;

use tokio::sync::mpsc::UnboundedSender;
use tracing::{error, info, warn};

use crate::clock::Clock;
use crate::daemon::StartError;
use crate::dispatcher::messages::LoopEvent;
use crate::dispatcher::{ReplicaRegistry, UptimeRecorder, claim};
use crate::engine::{Engine, EngineSettings, KeyHasher};
use crate::store::{
    self, JournalEvent, KeyLimits, LocalJournal, LocalStore, RecoveryReport, SetAside,
};

pub(super) struct Restored {
    pub(super) journal: LocalJournal,
    pub(super) engine: Engine,
    pub(super) keys: KeyHasher,
    pub(super) quarantined_rows: u64,
    pub(super) registry: ReplicaRegistry,
    pub(super) uptime: UptimeRecorder,
}

fn log_set_aside(set_aside: &SetAside) {
    let Some(file) = &set_aside.file else {
        return;
    };
    let file = file.display();
    for damage in &set_aside.damaged {
        let task = damage.task();
        match task {
            Some(task) => {
                error!(%task, %damage, %file, "a task cannot be read: it is set aside and not delivered");
            }
            None => error!(%damage, %file, "a row that belongs to no task is set aside"),
        }
    }
    let SetAside { rows, superseded, .. } = set_aside;
    error!(rows, superseded, %file, "rows were set aside; older writes of their keys are superseded, so that no stale value follows a newer one");
}

/// Opens the store and restores its tasks into an engine. Blocks.
///
/// One thread reads while this one fills the engine: with a million tasks, each takes seconds.
pub(super) fn open(
    settings: &store::StoreSettings,
    limits: KeyLimits,
    engine_settings: &EngineSettings,
    clock: Clock,
    events: UnboundedSender<LoopEvent>,
) -> Result<Restored, StartError> {
    let store = LocalStore::open(settings)?;
    let uptime = UptimeRecorder::begin(clock.now(), store.uptime())?;
    let new_engine = || {
        let mut engine = Engine::new(engine_settings.clone());
        engine.set_uptime(uptime.uptime().clone());
        engine
    };
    let mut engine = new_engine();
    let (keys, mut registry) = (KeyHasher::default(), ReplicaRegistry::default());
    let now = clock.now();
    let (claims, claimed) = sync_channel(8);
    let (journal, report) = thread::scope(|scope| {
        let uptime = uptime.uptime();
        let reading = scope.spawn(move || {
            // The channel is bounded, as the other side is slower. It closes with this thread.
            let mut claim = |event| drop(claims.send(event));
            // Fails only if the loop has panicked.
            let notify = Box::new(move |event| drop(events.send(LoopEvent::Journal(event))));
            store.into_journal(limits, now, uptime, &mut claim, notify)
        });
        for event in claimed {
            match event {
                JournalEvent::Replica { node, row } => {
                    claim::replica(&mut engine, &mut registry, now, &node, row);
                }
                JournalEvent::Claimed { partition, tasks } => {
                    claim::tasks(&mut engine, &keys, &registry, now, partition, tasks);
                }
                // The store is damaged, and its tasks are claimed again as they are then. Of the
                // first claim nothing may be left, the engine's actions included.
                JournalEvent::Released { .. } => {
                    engine = new_engine();
                    registry.paused().for_each(|(node, since)| {
                        engine.pause(now, node, Some(since));
                    });
                }
                // These go to the loop, which a failure during the start must reach.
                JournalEvent::Arrived { .. }
                | JournalEvent::Settled { .. }
                | JournalEvent::Failed(_) => {}
            }
        }
        reading.join().map_err(|_| StartError::Interrupted)?.map_err(StartError::from)
    })?;
    if report.sent_early {
        engine.expect_unrecorded(now);
    }
    log_report(&report, clock);
    let quarantined_rows = report.quarantined_rows;
    Ok(Restored { journal, engine, keys, quarantined_rows, registry, uptime })
}

fn log_report(report: &RecoveryReport, clock: Clock) {
    if !report.had_marker {
        warn!(
            "the file COMMITTED in the data directory is missing: this start could not check whether the store has lost the end of its log; the file is written again"
        );
    }
    log_set_aside(&report.set_aside);
    if report.rebuilt {
        warn!(
            "the store was damaged: its intact rows were written into a new store, which replaces it"
        );
    }
    let &RecoveryReport {
        tasks, value_bytes, dead_letters, orphans_removed, keys_restored, ..
    } = report;
    let seconds = clock.now().moment.since_start().as_secs_f64();
    info!(
        tasks,
        value_bytes, dead_letters, orphans_removed, keys_restored, seconds, "the store is open"
    );
}
