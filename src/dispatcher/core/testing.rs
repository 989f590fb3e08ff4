//! A loop without a daemon around it, for tests.

use std::path::Path;

use super::*;
use crate::dispatcher::read_memory::ReadMemory;
use crate::policy::Policy;
use crate::replica::{self, ClientTls, ReplicaClient, ReplicaTokens};
use crate::store::UptimeFile;
use crate::traces::Tracer;

impl Core {
    /// A loop over this journal, whose newest task is `newest`. It keeps its files in `dir`.
    pub(crate) fn over(
        journal: Arc<dyn Journal>,
        newest: TaskId,
        (engine, keys): (Engine, KeyHasher),
        clock: Clock,
        events: mpsc::UnboundedSender<Event>,
        health: watch::Sender<Health>,
        dir: &Path,
    ) -> Self {
        let settings = replica::ClientSettings {
            node_id: "test".into(),
            request_timeout: Duration::from_secs(5),
            connection_age: Duration::from_secs(60),
            idle_per_replica: 1,
            idle_replicas: 100,
        };
        let policy = Policy::new(None, None);
        let client =
            ReplicaClient::new(&settings, policy, ClientTls::default(), ReplicaTokens::default())
                .unwrap();
        let attempts = Attempts {
            client,
            journal: Arc::clone(&journal),
            events: events.clone(),
            memory: ReadMemory::new(1 << 20),
            tracer: Tracer::off(),
        };
        Self::new(Parts {
            counts: Arc::default(),
            engine,
            keys,
            clock,
            newest,
            journal,
            events,
            attempts,
            health,
            // All is read back.
            memory_budget: 0,
            queue_wait: Duration::ZERO,
            queue_capacity: 1,
            retry_capacity: 1,
            quarantined_rows: 0,
            bus: Bus::new(0),
            registry: ReplicaRegistry::default(),
            history: History::new(Duration::ZERO),
            recorder: UptimeRecorder::begin(clock.now(), UptimeFile::of(dir)).unwrap(),
        })
    }
}
