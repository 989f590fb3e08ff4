//! `replicator demo`: the daemon, three in-memory replicas and a scripted outage of one of them.
//!
//! Everything runs in this process and talks HTTP over loopback.

use std::error::Error;
use std::io;
use std::process::ExitCode;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::output::{self, PrintError, fail, line};
use super::serve::Signals;
use super::with_causes;
use crate::cli::{DemoArgs, environment};
use crate::clock::wall_clock;
use crate::config::Config;
use crate::daemon::Daemon;
use crate::dispatcher::{AcceptedWrite, Handle, Refusal};
use crate::metrics::Snapshot;
use crate::server::MemoryReplica;
use crate::task::{Consistency, NewTask, Node, Operation};

pub(super) mod replica;

/// How long each step may take before it is reported as failed.
const PATIENCE: Duration = Duration::from_secs(30);

/// The exit code says whether the replicas agree at the end.
pub(super) async fn run(args: &DemoArgs) -> ExitCode {
    let dir = std::env::temp_dir().join(format!("replicator-demo-{}", std::process::id()));
    let result = start(args, &dir).await;
    if let Err(error) = std::fs::remove_dir_all(&dir) {
        output::say(&format!("replicator: cannot remove {}: {error}", dir.display()));
    }
    match result {
        Ok(code) => code,
        Err(error) => match error.downcast::<PrintError>() {
            Ok(error) => output::exit_code(Err(*error), ExitCode::SUCCESS),
            Err(error) => fail(&with_causes(&*error)),
        },
    }
}

async fn start(args: &DemoArgs, dir: &std::path::Path) -> Result<ExitCode, Box<dyn Error>> {
    let mut signals = Signals::catch()?;
    let mut replicas = Vec::new();
    for name in ["A", "B", "C"] {
        replicas.push(DemoReplica::start(name).await?);
    }
    let config = config(dir)?;
    let daemon = tokio::select! {
        daemon = Daemon::start(&config) => daemon?,
        _ = signals.next() => return Ok(ExitCode::SUCCESS),
    };
    let story = Story { handle: daemon.handle().clone(), replicas };
    let result = present(args, dir, &daemon, story, &mut signals).await;
    daemon.stop().await?;
    result
}

async fn present(
    args: &DemoArgs,
    dir: &std::path::Path,
    daemon: &Daemon,
    story: Story,
    signals: &mut Signals,
) -> Result<ExitCode, Box<dyn Error>> {
    line(format_args!("The replicator listens on http://{}", daemon.address()))?;
    line(format_args!("and keeps accepted writes in {} until they are delivered.", dir.display()))?;
    for replica in &story.replicas {
        line(format_args!("Replica {} listens on {}", replica.name, replica.node))?;
    }
    let (agree, replicas) = story.run().await?;

    if !args.exit {
        print_invitation(daemon, &replicas)?;
        signals.next().await;
        line(format_args!("\nDraining."))?;
    }
    Ok(if agree { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Default settings, except for a free port, a temporary directory and short retry delays.
fn config(dir: &std::path::Path) -> Result<Config, Box<dyn Error>> {
    let mut cli =
        environment::read_arguments(&["replicator", "--port", "0", "--retry-base", "300ms"])?;
    cli.daemon.storage.data_dir = dir.to_owned();
    Ok(Config::from_args(&cli.daemon)?)
}

fn print_invitation(daemon: &Daemon, replicas: &[DemoReplica]) -> Result<(), PrintError> {
    let nodes: Vec<_> = replicas.iter().map(|replica| format!("\"{}\"", replica.node)).collect();
    let (url, nodes) = (format!("http://{}", daemon.address()), nodes.join(","));
    let first = replicas.first().map_or("", |replica| replica.node.as_str());
    line(format_args!("\nThe daemon runs until Ctrl-C. Try:\n"))?;
    line(format_args!(
        "  curl -i {url}/replicate -d '{{\"key\":\"hello\",\"value\":\"world!\",\"operation\":\"SET\",\"replica_nodes\":[{nodes}]}}'"
    ))?;
    line(format_args!("  curl -i {first}/store/hello"))?;
    line(format_args!(
        "  curl -i {url}/replicate -d '{{\"key\":\"hello\",\"operation\":\"DELETE\",\"consistency\":\"strong\",\"replica_nodes\":[{nodes}]}}'"
    ))?;
    line(format_args!("  curl {url}/metrics"))?;
    line(format_args!("  curl -H 'Accept: text/plain' {url}/metrics"))?;
    line(format_args!("  curl {url}/health"))
}

struct Story {
    handle: Handle,
    replicas: Vec<DemoReplica>,
}

impl Story {
    async fn run(mut self) -> Result<(bool, Vec<DemoReplica>), Box<dyn Error>> {
        line(format_args!(
            "\n1. An eventual write is accepted once it is on disk, and delivered in the background."
        ))?;
        self.write("greeting", Some("hello"), None, Consistency::Eventual).await?;
        self.until_all_hold("greeting", Some("hello")).await?;

        line(format_args!("\n2. A strong write is answered once a majority has acknowledged it."))?;
        self.write("answer", Some("42"), None, Consistency::Strong).await?;
        self.until_all_hold("answer", Some("42")).await?;

        line(format_args!(
            "\n3. Replica C goes down. Writes are still accepted; A and B get them at once."
        ))?;
        self.stop_last().await;
        self.write("greeting", Some("hello again"), None, Consistency::Eventual).await?;
        self.write("greeting", Some("good evening"), None, Consistency::Eventual).await?;
        self.write("answer", None, None, Consistency::Eventual).await?;
        self.write(
            "brief",
            Some("gone soon"),
            Some(Duration::from_millis(200)),
            Consistency::Eventual,
        )
        .await?;
        self.write("vote", Some("yes"), None, Consistency::Strong).await?;
        self.until_others_are_drained().await?;
        self.show("greeting")?;

        line(format_args!(
            "\n4. C comes back with its old data. The writes it missed are retried in order, outdated ones"
        ))?;
        line(format_args!("   are skipped, and an expired value arrives as a DELETE."))?;
        self.start_last().await?;
        for (key, value) in
            [("greeting", Some("good evening")), ("answer", None), ("vote", Some("yes"))]
        {
            self.until_all_hold(key, value).await?;
        }
        let figures = self.until_drained().await?;

        line(format_args!("\n5. Deliveries per replica:"))?;
        for replica in &figures.replicas {
            let counters = replica.lane.counters;
            line(format_args!(
                "   {}  accepted {} = delivered {} + superseded {} + given up {} + pending {}  ({} failed attempts)",
                replica.lane.node,
                counters.accepted,
                counters.delivered,
                counters.superseded,
                counters.gave_up + counters.rejected,
                counters.pending,
                counters.failed_attempts,
            ))?;
        }
        let keys = ["greeting", "answer", "brief", "vote"];
        let agree = keys
            .into_iter()
            .all(|key| self.held(key).windows(2).all(|two| two.first() == two.last()));
        line(format_args!(
            "\nThe replicas {} on every key.",
            if agree { "agree" } else { "DISAGREE" }
        ))?;
        Ok((agree, self.replicas))
    }

    async fn write(
        &self,
        key: &str,
        value: Option<&str>,
        ttl: Option<Duration>,
        consistency: Consistency,
    ) -> Result<(), PrintError> {
        let new = NewTask {
            key: key.to_owned(),
            operation: if value.is_some() { Operation::Set } else { Operation::Delete },
            value: value.unwrap_or_default().to_owned().into(),
            ttl,
            consistency,
            replicas: self.replicas.iter().map(|replica| replica.node.clone()).collect(),
            user_id: Some("demo".to_owned()),
            client: None,
            primary: None,
            trace: None,
        };
        let what = match (value, ttl) {
            (Some(value), None) => format!("SET {key} = {value:?}"),
            (Some(value), Some(ttl)) => format!("SET {key} = {value:?} for {ttl:?}"),
            (None, _) => format!("DELETE {key}"),
        };
        let names = |indexes: &[crate::task::ReplicaIndex]| {
            let named = indexes.iter().filter_map(|index| self.replicas.get(index.get()));
            named.map(|replica| replica.name).collect::<Vec<_>>().join(", ")
        };
        match self.handle.replicate(new, None).await {
            Ok(AcceptedWrite { id, acked, .. }) if acked.is_empty() => {
                line(format_args!("   {what}: accepted as task {id}"))
            }
            Ok(AcceptedWrite { id, acked, .. }) => {
                line(format_args!("   {what}: task {id}, acknowledged by {}", names(&acked)))
            }
            Err(Refusal::NoMajority { acked, .. }) => {
                line(format_args!("   {what}: no majority in time, only {}", names(&acked)))
            }
            Err(refusal) => line(format_args!("   {what}: refused, {refusal}")),
        }
    }

    fn held(&self, key: &str) -> Vec<Option<String>> {
        let text = |bytes: bytes::Bytes| String::from_utf8_lossy(&bytes).into_owned();
        self.replicas.iter().map(|replica| replica.data.get(key).map(text)).collect()
    }

    fn show(&self, key: &str) -> Result<(), PrintError> {
        let held = self.held(key).into_iter().zip(&self.replicas).map(|(held, replica)| {
            format!("{} = {}", replica.name, held.map_or("(none)".into(), |v| format!("{v:?}")))
        });
        line(format_args!("   {key}: {}", held.collect::<Vec<_>>().join("   ")))
    }

    async fn until_all_hold(&self, key: &str, value: Option<&str>) -> Result<(), PrintError> {
        wait(|| async { self.held(key).iter().all(|held| held.as_deref() == value) }).await?;
        self.show(key)
    }

    async fn until_others_are_drained(&self) -> Result<(), PrintError> {
        let last = self.replicas.last().map(|replica| replica.node.clone());
        wait(|| async {
            let figures = self.handle.snapshot().await.unwrap_or_default();
            figures
                .replicas
                .iter()
                .all(|r| Some(&r.lane.node) == last.as_ref() || r.lane.counters.pending == 0)
        })
        .await
    }

    async fn until_drained(&self) -> Result<Box<Snapshot>, PrintError> {
        wait(|| async {
            let figures = self.handle.snapshot().await.unwrap_or_default();
            figures.replicas.iter().all(|replica| replica.lane.counters.pending == 0)
        })
        .await?;
        Ok(self.handle.snapshot().await.unwrap_or_default())
    }

    async fn stop_last(&mut self) {
        if let Some(replica) = self.replicas.last_mut() {
            replica.stop().await;
        }
    }

    async fn start_last(&mut self) -> io::Result<()> {
        match self.replicas.last_mut() {
            Some(replica) => replica.restart().await,
            None => Ok(()),
        }
    }
}

/// Polls until `done`, at most [`PATIENCE`]. A failure is printed and the demo continues.
async fn wait<F: Future<Output = bool>>(mut done: impl FnMut() -> F) -> Result<(), PrintError> {
    let poll = async {
        while !done().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    if tokio::time::timeout(PATIENCE, poll).await.is_err() {
        line(format_args!("   ... not reached after {PATIENCE:?}"))?;
    }
    Ok(())
}

/// A replica that can be stopped and restarted on its port.
struct DemoReplica {
    name: &'static str,
    node: Node,
    data: MemoryReplica,
    address: std::net::SocketAddr,
    running: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

impl DemoReplica {
    async fn start(name: &'static str) -> Result<Self, Box<dyn Error>> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let node = Node::parse(&format!("http://{address}"))?;
        let data = MemoryReplica::new(wall_clock);
        let mut replica = Self { name, node, data, address, running: None };
        replica.serve(listener);
        Ok(replica)
    }

    fn serve(&mut self, listener: TcpListener) {
        let (stop, stopped) = oneshot::channel::<()>();
        let data = self.data.clone();
        let server = tokio::spawn(async move {
            data.serve(listener, async { drop(stopped.await) }).await;
        });
        self.running = Some((stop, server));
    }

    async fn stop(&mut self) {
        if let Some((stop, server)) = self.running.take() {
            drop(stop);
            // A panic of the server shows in the comparison at the end.
            let _ = server.await;
        }
    }

    async fn restart(&mut self) -> io::Result<()> {
        let socket = TcpSocket::new_v4()?;
        // Old connections of the port may still be in TIME_WAIT.
        socket.set_reuseaddr(true)?;
        socket.bind(self.address)?;
        self.serve(socket.listen(1024)?);
        Ok(())
    }
}
