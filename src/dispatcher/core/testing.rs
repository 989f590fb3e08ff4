//! A loop without a daemon, for tests.

use std::path::Path;

use super::*;
use crate::dispatcher::event_bus::EventBus;
use crate::dispatcher::history::TaskHistory;
use crate::dispatcher::read_memory::ReadMemory;
use crate::metrics::Snapshot;
use crate::notify::Notifier;
use crate::policy::Policy;
use crate::replica::{self, ClientTls, ReplicaClient, ReplicaTokens};
use crate::store::UptimeFile;
use crate::task::TaskId;
use crate::traces::Tracer;

impl Core {
    /// A loop over a journal whose newest task is `newest`, with its files in `dir`.
    pub(crate) fn over(
        journal: Arc<dyn Journal>,
        newest: TaskId,
        (engine, keys): (Engine, KeyHasher),
        clock: Clock,
        events: mpsc::UnboundedSender<LoopEvent>,
        health: watch::Sender<Health>,
        dir: &Path,
    ) -> Self {
        let settings = replica::ClientSettings {
            node_id: "test".into(),
            request_timeout: Duration::from_secs(5),
            connection_age: Duration::from_secs(60),
            idle_per_replica: 1,
            idle_replicas: 100,
            http2: replica::ReplicaHttp2::Off,
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
            runtime: tokio::runtime::Handle::current(),
        };
        let bus = EventBus::new(0);
        let history = TaskHistory::new(Duration::ZERO);
        Self {
            releasing: Vec::new(),
            engine,
            keys,
            journal,
            clock,
            health,
            registry: ReplicaRegistry::default(),
            uptime: UptimeRecorder::begin(clock.now(), UptimeFile::of(dir)).unwrap(),
            ownership: Default::default(),
            attempts,
            // Every task is read back.
            task_cache: TaskCache::new(0),
            recent: RecentWrites::default(),
            verified: VerifiedBoard::default(),
            intake: Intake::new(newest, Duration::ZERO, events),
            admin: PendingAdmin::default(),
            observed: Observability::new(
                Arc::default(),
                bus,
                history,
                Snapshot::default(),
                Moment::default(),
                Notifier::default(),
            ),
        }
    }
}
