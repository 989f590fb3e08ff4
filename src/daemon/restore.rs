//! From disk into the engine, at the start.

use std::collections::HashSet;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use tokio::sync::mpsc::UnboundedSender;
use tracing::{error, info, warn};

use crate::clock::Clock;
use crate::daemon::StartError;
use crate::dispatcher::messages::Event;
use crate::dispatcher::{ReplicaRegistry, UptimeRecorder};
use crate::engine::{Arrived, Engine, KeyHasher, Origin};
use crate::store::{
    self, JournalEvent, LocalStore, OpenError, Opened, RecoveryEvent, RecoveryReport, SetAside,
};
use crate::task::{self, Consistency, TaskId};

/// Tasks that are handed from one thread to the other at once.
const BATCH: usize = 256;

/// An open store, and what was in it.
pub(super) struct Restored {
    pub(super) opened: Opened,
    pub(super) engine: Engine,
    pub(super) keys: KeyHasher,
    pub(super) quarantined_rows: u64,
    pub(super) registry: ReplicaRegistry,
    /// The strong writes among the tasks.
    pub(super) strong: HashSet<TaskId>,
    pub(super) recorder: UptimeRecorder,
}

fn tell_set_aside(set_aside: &SetAside) {
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
    error!(rows, superseded, %file, "rows were set aside; older writes of their keys are superseded, so that nothing stale follows a newer write");
}

/// Opens the store and restores its tasks into `engine`. To be called where it may block.
///
/// One thread reads while the other restores: with a million tasks each takes seconds.
pub(super) fn open(
    settings: store::StoreSettings,
    mut engine: Engine,
    clock: Clock,
    events: UnboundedSender<Event>,
) -> impl FnOnce() -> Result<Restored, StartError> {
    move || {
        let store = LocalStore::open(&settings)?;
        let keys = KeyHasher::default();
        let (found, tasks) = sync_channel(8);
        let registry = ReplicaRegistry::new(store.replicas()?);
        let recorder = UptimeRecorder::begin(clock.now(), store.uptime())?;
        engine.set_uptime(recorder.uptime().clone());
        let (opened, report, strong) = thread::scope(|scope| {
            let reading = scope.spawn(move || read(store, found, events));
            let strong = restore(&mut engine, &keys, clock, &registry, &tasks);
            let (opened, report) = reading.join().map_err(|_| StartError::Interrupted)??;
            Ok::<_, StartError>((opened, report, strong))
        })?;
        if !report.had_marker {
            warn!(
                "the file COMMITTED in the data directory is missing: had the store lost the end of its log, this start would not have noticed; it is written anew"
            );
        }
        tell_set_aside(&report.set_aside);
        if report.rebuilt {
            warn!(
                "the store was damaged: what is whole in it was written into a fresh one, which has taken its place"
            );
        }
        let seconds = clock.now().moment.since_start().as_secs_f64();
        let RecoveryReport {
            tasks, value_bytes, dead_letters, orphans_removed, keys_restored, ..
        } = report;
        info!(
            tasks,
            value_bytes, dead_letters, orphans_removed, keys_restored, seconds, "the store is open"
        );
        let quarantined_rows = report.quarantined_rows;
        Ok(Restored { opened, engine, keys, quarantined_rows, registry, strong, recorder })
    }
}

fn read(
    store: LocalStore,
    found: SyncSender<Vec<RecoveryEvent>>,
    events: UnboundedSender<Event>,
) -> Result<(Opened, RecoveryReport), OpenError> {
    // Who listens to these outlives the sender, but for a panic of its own.
    let notify = move |event| {
        let _ = events.send(match event {
            JournalEvent::Arrived { tasks, took } => Event::Arrived { tasks, took },
            JournalEvent::Failed(why) => Event::StoreFailed(why),
        });
    };
    let mut batch = Vec::with_capacity(BATCH);
    let mut each = |handed| {
        let restart = matches!(handed, RecoveryEvent::Restart);
        batch.push(handed);
        if restart || batch.len() == BATCH {
            let _ = found.send(std::mem::replace(&mut batch, Vec::with_capacity(BATCH)));
        }
    };
    let recovered = store.recover(&mut each, Box::new(notify));
    let _ = found.send(batch);
    // The other thread ends when this is gone.
    drop(found);
    recovered
}

fn restore(
    engine: &mut Engine,
    keys: &KeyHasher,
    clock: Clock,
    registry: &ReplicaRegistry,
    tasks: &Receiver<Vec<RecoveryEvent>>,
) -> HashSet<TaskId> {
    let now = clock.now();
    let mut strong = HashSet::new();
    // Before anything is there to be sent.
    let pause = |engine: &mut Engine| {
        for (node, since) in registry.paused() {
            engine.pause(now, node, Some(since));
        }
    };
    pause(engine);
    for handed in tasks.iter().flatten() {
        let RecoveryEvent::Task(task) = handed else {
            engine.clear();
            strong.clear();
            pause(engine);
            continue;
        };
        let header = &task.header;
        if header.consistency == Consistency::Strong {
            strong.insert(header.id);
        }
        let resolve = |node| registry.resolve(node).clone();
        let replicas: Vec<_> = match registry.has_renamed() {
            true => header.replicas.iter().map(resolve).collect(),
            false => Vec::new(),
        };
        let replicas = if replicas.is_empty() { &header.replicas } else { &replicas };
        let arrived = Arrived {
            id: header.id,
            key: keys.id(&header.key),
            replicas,
            bytes: task::weight(
                &header.key,
                header.value_bytes,
                &header.replicas,
                header.user_id.as_deref(),
                header.trace.as_ref(),
            ) as u64,
            accepted_at: header.accepted_at,
        };
        engine.arrive(now, arrived, Origin::Recovered(task.progress));
    }
    strong
}
