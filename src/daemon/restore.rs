//! The recovery at the start: from disk into the engine.

use std::mem;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::thread;

use parking_lot::Mutex;
use tokio::sync::mpsc::UnboundedSender;
use tracing::{error, info, warn};

use crate::clock::Clock;
use crate::daemon::StartError;
use crate::dispatcher::messages::LoopEvent;
use crate::dispatcher::{ReplicaRegistry, UptimeRecorder, claim};
use crate::engine::{Engine, EngineSettings, KeyHasher};
use crate::store::{
    self, JetStreamJournal, JetStreamSettings, Journal, JournalEvent, KeyLimits, LocalStore,
    RecoveryReport, SetAside,
};
use crate::task::TaskId;

pub(super) struct Restored {
    pub(super) journal: Arc<dyn Journal>,
    /// The newest task of the store.
    pub(super) newest: TaskId,
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
                    registry.paused().for_each(|(node, pause)| {
                        engine.pause(now, node, Some(pause));
                    });
                    registry.limited().for_each(|(node, limits)| engine.limit(now, node, limits));
                }
                // These go to the loop, which a failure during the start must reach.
                JournalEvent::Arrived { .. }
                | JournalEvent::CaughtUp { .. }
                | JournalEvent::Settled { .. }
                | JournalEvent::Releasing { .. }
                | JournalEvent::Concluded { .. }
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
    let (newest, journal) = (journal.newest(), Arc::new(journal));
    Ok(Restored { journal, newest, engine, keys, quarantined_rows, registry, uptime })
}

/// Where the events of the cluster store go.
enum Receiver {
    /// This start, which knows the replicas before the loop takes a write.
    Start(Vec<JournalEvent>),
    Loop,
}

/// Connects to the cluster store. The engine gets its tasks later, by claims. Blocks.
pub(super) fn join(
    settings: &JetStreamSettings,
    engine_settings: &EngineSettings,
    clock: Clock,
    events: &UnboundedSender<LoopEvent>,
) -> Result<Restored, StartError> {
    let uptime = UptimeRecorder::in_memory(clock.now());
    let mut engine = Engine::new(engine_settings.clone());
    engine.set_uptime(uptime.uptime().clone());
    let (keys, mut registry) = (KeyHasher::default(), ReplicaRegistry::default());
    let receiver = Arc::new(Mutex::new(Receiver::Start(Vec::new())));
    let (notified, sender) = (Arc::clone(&receiver), events.clone());
    let notify = Box::new(move |event| {
        match &mut *notified.lock() {
            Receiver::Start(events) => events.push(event),
            // Fails only if the loop has panicked.
            Receiver::Loop => drop(sender.send(LoopEvent::Journal(event))),
        }
    });
    let ids_after = TaskId(clock.now().wall.0 / 1_000);
    let settings = JetStreamSettings { ids_after, ..settings.clone() };
    let journal = JetStreamJournal::open(&settings, notify)?;
    // Under the lock, so that no later event overtakes one of these.
    let mut receiver = receiver.lock();
    if let Receiver::Start(early) = mem::replace(&mut *receiver, Receiver::Loop) {
        for event in early {
            match event {
                JournalEvent::Replica { node, row } => {
                    claim::replica(&mut engine, &mut registry, clock.now(), &node, row);
                }
                event => drop(events.send(LoopEvent::Journal(event))),
            }
        }
    }
    drop(receiver);
    let seconds = clock.now().moment.since_start().as_secs_f64();
    info!(cluster = %settings.cluster, seconds, "the cluster store is open");
    let (journal, newest) = (Arc::new(journal), TaskId::default());
    Ok(Restored { journal, newest, engine, keys, quarantined_rows: 0, registry, uptime })
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
