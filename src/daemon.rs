//! Connects the parts: start, reload, drain, stop.
//!
//! [`Daemon::start`] opens the store, restores its tasks into the engine, starts the loop of
//! `dispatcher`, and serves. [`Daemon::stop`] has the order of the shutdown. ARCHITECTURE.md lists the
//! tasks and threads.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tracing::{error, info, warn};

use crate::clock::Clock;
use crate::config::{Config, LocalStoreConfig, StoreKind};
use crate::dispatcher::{
    Attempts, Core, EventBus, Handle, Health, Intake, NodeReader, Observability, Operations,
    Operator, PendingAdmin, ReadMemory, RecentWrites, TaskCache, TaskHistory, VerifiedBoard,
    messages::LoopEvent, verify_in_background,
};
use crate::faults;
use crate::metrics::{Counts, Snapshot};
use crate::notify::{NoticeSenders, Notifier, NotifySecretError, POST_TIMEOUT};
use crate::replica::{self, ReplicaClient};
use crate::server::{self, ServerSettings};
use crate::store::{self, CommitError, Journal};
use crate::traces::{self, Tracer};

mod inbound;
mod outbound;
mod outbound_runtime;
mod reload;
mod restore;
mod stall;

use inbound::Inbound;
use outbound::Outbound;
use outbound_runtime::OutboundRuntime;
use reload::Reloadable;
use restore::Restored;

pub use inbound::InboundError;
pub use outbound::OutboundError;
pub(crate) use outbound_runtime::outbound_threads;
pub(crate) use reload::WITHOUT_RESTART;

#[derive(Debug, Error)]
pub enum StartError {
    #[error(transparent)]
    Store(#[from] store::OpenError),
    #[error(transparent)]
    ClusterStore(#[from] store::ConnectError),
    #[error(transparent)]
    Client(#[from] replica::ReplicaClientError),
    #[error(transparent)]
    Traces(#[from] traces::TraceSetupError),
    #[error(transparent)]
    Outbound(#[from] OutboundError),
    #[error("cannot listen on {address} (--bind, --port): {source}")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error(transparent)]
    Inbound(#[from] InboundError),
    #[error(transparent)]
    Notify(#[from] NotifySecretError),
    #[error("cannot start the threads for replicas: {0}")]
    Threads(std::io::Error),
    /// A thread panicked.
    #[error("opening the store was interrupted")]
    Interrupted,
}

/// Reads the files that the settings name, as the start does, except for those of a cluster store.
pub fn check_files(config: &Config) -> Result<(), StartError> {
    Inbound::open(&config.inbound, config.address)?;
    outbound::policy(&config.outbound, config.address)?;
    outbound::credentials(&config.outbound)?;
    if !config.notify.urls.is_empty() {
        config.notify.secrets()?;
    }
    Ok(())
}

#[derive(Debug)]
pub struct Daemon {
    address: SocketAddr,
    handle: Handle,
    health: watch::Receiver<Health>,
    events: mpsc::UnboundedSender<LoopEvent>,
    stop_serving: oneshot::Sender<()>,
    server: JoinHandle<()>,
    core: JoinHandle<()>,
    journal: Arc<dyn Journal>,
    /// Set by `watching` while the store does not answer.
    stalled: watch::Receiver<bool>,
    watching: JoinHandle<()>,
    tracer: Tracer,
    runtime: OutboundRuntime,
    reloadable: Arc<Reloadable>,
    notice_senders: NoticeSenders,
    notifier: Notifier,
}

impl Daemon {
    /// Opens the store, restores its tasks, and serves. After an error nothing runs, and nothing but
    /// repairs was written.
    pub async fn start(config: &Config) -> Result<Self, StartError> {
        // The port first: a second daemon must not even open the store.
        let address = config.address;
        let listener = TcpListener::bind(address).await;
        let listener = listener.map_err(|source| StartError::Listen { address, source })?;
        let address = listener.local_addr().unwrap_or(address);

        let inbound = Inbound::open(&config.inbound, address)?;

        let clock = Clock::start();
        let policy = outbound::policy(&config.outbound, address)?;
        let (tls, tokens) = outbound::credentials(&config.outbound)?;
        let client = ReplicaClient::new(&config.client, policy.clone(), tls, tokens)?;
        let outbound = Outbound::new(config.outbound.clone(), policy.clone(), client.clone());
        let runtime = OutboundRuntime::start().map_err(StartError::Threads)?;
        let tracer = match &config.traces {
            Some(settings) => Tracer::start(settings, client.http()?, runtime.handle().clone())?,
            None => Tracer::off(),
        };
        let counts = Arc::<Counts>::default();
        let (notifier, notice_senders) = match &config.notify {
            settings if settings.urls.is_empty() => Default::default(),
            settings => {
                let http = replica::http_client(POST_TIMEOUT)?;
                Notifier::start(settings, &http, clock, &counts, runtime.handle())?
            }
        };
        let (events, event_receiver) = mpsc::unbounded_channel();
        let (requests, request_receiver) = mpsc::unbounded_channel();
        let (health, watched) = watch::channel(Health::Serving);
        let (stalls, stalled) = watch::channel(false);

        let (kind, keys) = (config.store.kind.clone(), config.store.keys);
        let patience = match &kind {
            StoreKind::Local(_) => stall::DISK_HANGS,
            // Longer than an election.
            StoreKind::Cluster(settings) => settings.timeout,
        };
        let (engine_settings, journal_events) = (config.engine.clone(), events.clone());
        let restored = tokio::task::spawn_blocking(move || match kind {
            StoreKind::Local(store) => {
                let settings = store_settings(&store, clock);
                restore::open(&settings, keys, &engine_settings, clock, journal_events)
            }
            StoreKind::Cluster(settings) => {
                restore::join(&settings, &engine_settings, clock, &journal_events)
            }
        });
        let Restored { journal, newest, mut engine, keys, quarantined_rows, registry, uptime } =
            restored.await.map_err(|_| StartError::Interrupted)??;
        engine.set_quotas(inbound.quotas());
        let bus = EventBus::new(clock.now().wall.0 / 1_000);

        // Weak: the files are closed when the daemon stops, and not when this task ends.
        let watched_journal = Arc::downgrade(&journal);
        let in_progress = move || watched_journal.upgrade()?.in_progress();
        let watching = tokio::spawn(stall::watch(in_progress, patience, health.clone(), stalls));
        let attempts = Attempts {
            client,
            journal: journal.clone(),
            events: events.clone(),
            memory: ReadMemory::new(config.store.memory_budget),
            tracer: tracer.clone(),
            runtime: runtime.handle().clone(),
        };
        let constants = Snapshot {
            queue_capacity: config.engine.queue_capacity,
            retry_capacity: config.engine.retry_capacity,
            quarantined_rows,
            ..Snapshot::default()
        };
        let operations = Operations::default();
        let verified = VerifiedBoard::default();
        let reader = NodeReader::new(
            attempts.client.clone(),
            runtime.handle().clone(),
            config.server.max_value_bytes,
            verified.clone(),
        );
        let core = Core {
            releasing: Vec::new(),
            engine,
            keys,
            journal: journal.clone(),
            clock,
            health,
            registry,
            uptime,
            ownership: Default::default(),
            attempts,
            task_cache: TaskCache::new(config.store.memory_budget),
            recent: RecentWrites::default(),
            verified,
            intake: Intake::new(newest, config.queue_wait, events.clone()),
            admin: PendingAdmin::new(operations.clone()),
            observed: Observability::new(
                Arc::clone(&counts),
                bus.clone(),
                TaskHistory::new(config.task_history),
                constants,
                clock.now().moment,
                notifier.clone(),
            ),
        };
        let core = tokio::spawn(core.run(event_receiver, request_receiver));

        let retry_after = Duration::from_secs(1);
        let (new_redrive_rate, redrive_rate) = watch::channel(config.engine.redrive_rate);
        let peers = journal.peers();
        let (policy_of_operator, reader) = (policy.clone(), Some(reader));
        let operator =
            Operator { bus, operations, redrive_rate, policy: policy_of_operator, reader, peers };
        let handle = Handle { requests, health: watched.clone(), retry_after, counts, operator };
        handle.serve_peers().await;
        if let Some(rate) = config.verify_rate {
            drop(tokio::spawn(verify_in_background(handle.clone(), rate)));
        }
        let (stop_serving, stop) = oneshot::channel();
        let stop = async { drop(stop.await) };
        let settings = ServerSettings {
            access: inbound.access.clone(),
            tls: inbound.tls.clone(),
            tracer: tracer.clone(),
            policy,
            node_id: config.node_id.clone(),
            limits: config.server.clone(),
        };
        let server = server::serve(listener, handle.clone(), settings, stop);
        let server = tokio::spawn(server);
        info!(%address, node_id = %config.node_id, "listening");
        // The capacity of a cluster is that of all instances together.
        let is_local = matches!(config.store.kind, StoreKind::Local(_));
        if is_local && config.server.max_connections <= config.engine.queue_capacity {
            warn!(
                max_connections = config.server.max_connections,
                queue_capacity = config.engine.queue_capacity,
                "strong writes may hold all connections while they wait: set --max-connections above --queue-capacity"
            );
        }
        let reloadable = Reloadable {
            inbound,
            outbound,
            notifier: notifier.clone(),
            events: events.clone(),
            redrive_rate: new_redrive_rate,
            drain_timeout: Mutex::new(config.drain_timeout),
            reloading: Mutex::new(()),
        };
        let (health, reloadable) = (watched, Arc::new(reloadable));
        Ok(Self {
            address,
            handle,
            health,
            events,
            stop_serving,
            server,
            core,
            journal,
            stalled,
            watching,
            tracer,
            runtime,
            reloadable,
            notice_senders,
            notifier,
        })
    }

    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    #[must_use]
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    #[must_use]
    pub fn url(&self) -> String {
        let scheme = if self.reloadable.inbound.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    /// Reloads the config file, with `read`, and access tokens, allowed replicas, certificates,
    /// replica tokens and the secrets of notifications. The content of a file that cannot be used stays
    /// in force, and the log has the error.
    ///
    /// Returns at once, because the disk may hang. Reloads run one after the other.
    pub fn reload(&self, read: impl FnOnce() -> Option<Config> + Send + 'static) {
        let reloadable = Arc::clone(&self.reloadable);
        drop(tokio::task::spawn_blocking(move || reloadable.reload(read)));
    }

    /// Returns the reason when the daemon cannot continue: the store has failed, or the loop or the
    /// server has ended.
    pub async fn failed(&mut self) -> Arc<str> {
        let store_failed = self.health.wait_for(|now| matches!(now, Health::StoreFailed(_)));
        tokio::select! {
            failed = store_failed => match failed.as_deref() {
                Ok(Health::StoreFailed(why)) => Arc::clone(why),
                _ => "the daemon's loop has ended".into(),
            },
            _ = &mut self.core => "the daemon's loop has ended".into(),
            _ = &mut self.server => "the server has ended".into(),
        }
    }

    /// Drains and stops: refuses new writes, answers the requests in flight, finishes the deliveries in
    /// flight until the drain timeout, and saves what is settled. Other deliveries stay on disk. A
    /// store that does not answer is abandoned at the drain timeout.
    ///
    /// # Errors
    ///
    /// The store has failed or does not answer. Accepted writes are on disk. Deliveries that were
    /// settled last may be missing there; they will be sent again.
    pub async fn stop(self) -> Result<(), CommitError> {
        let Self { events, stop_serving, server, core, journal, tracer, runtime, .. } = self;
        let drain_timeout = self.reloadable.drain_timeout();
        let mut stalled = self.stalled;
        let deadline = tokio::time::sleep(drain_timeout).deadline();
        let drain = async {
            // The loop may have ended by a failure.
            let _ = events.send(LoopEvent::Refuse);
            faults::point("shutdown.refusing");
            let _ = stop_serving.send(());
            ended(server).await;
            faults::point("shutdown.served");
            let _ = events.send(LoopEvent::Stop);
            ended(core).await;
            faults::point("shutdown.delivered");
        };
        if tokio::time::timeout_at(deadline, drain).await.is_err() {
            warn!(
                grace_seconds = drain_timeout.as_secs_f64(),
                "the drain did not end within --drain-timeout; remaining deliveries stay on disk"
            );
        }
        // Beside the close of the store, which must not wait for a collector.
        let traced = tokio::task::spawn_blocking(move || tracer.stop());
        let hangs = async {
            tokio::time::sleep_until(deadline).await;
            // Fails only if `watching` has ended, and it has not.
            let _ = stalled.wait_for(|stalled| *stalled).await;
        };
        let (notifier, senders) = (self.notifier, self.notice_senders);
        let notified = tokio::spawn(async move { notifier.stop(senders).await });
        let closed = tokio::select! {
            biased;
            closed = journal.close() => closed,
            () = hangs => Err(CommitError::Stalled),
        };
        self.watching.abort();
        match &closed {
            Ok(()) => info!("stopped"),
            Err(error) => error!(%error, "stopped, but the store could not be closed"),
        }
        faults::point("shutdown.closed");
        // It logs its own errors.
        let _ = traced.await;
        // At most a second.
        let _ = notified.await;
        // Cuts the attempts that did not end within the drain timeout.
        drop(runtime);
        closed
    }
}

/// Waits for a task. `failed` may have polled it to its end: polling it again would panic.
async fn ended(task: JoinHandle<()>) {
    if !task.is_finished()
        && let Err(error) = task.await
    {
        error!(%error, "a part of the daemon has panicked");
    }
}

fn store_settings(store: &LocalStoreConfig, clock: Clock) -> store::StoreSettings {
    store::StoreSettings {
        dir: store.dir.clone(),
        cache_bytes: store.cache_bytes,
        min_free_bytes: store.min_free_bytes,
        now: clock.now().wall,
    }
}

#[cfg(test)]
mod tests;
