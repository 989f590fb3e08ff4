//! Three real nats-servers, which a test kills, stops and starts again.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use serde_json::Value;
use tempfile::TempDir;

use super::ports::free_port;
use super::{client, wait_until};

pub const SERVERS: usize = 3;

/// The address of servers that all tests of this process share. They end with it.
pub fn shared() -> &'static str {
    static SHARED: OnceLock<String> = OnceLock::new();
    SHARED.get_or_init(|| {
        let (sender, url) = std::sync::mpsc::channel();
        // The servers end with the thread that starts them.
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let servers = runtime.unwrap().block_on(Servers::start());
            sender.send(servers.url()).unwrap();
            loop {
                std::thread::park();
            }
        });
        url.recv().expect("the shared servers start")
    })
}

/// For `--store`.
pub fn urls(ports: &[u16]) -> String {
    let urls = ports.iter().map(|port| format!("nats://127.0.0.1:{port}"));
    urls.collect::<Vec<_>>().join(",")
}

/// A cluster of three servers in one directory. Their ports stay the same when they are started again.
pub struct Servers {
    nodes: Vec<NatsServer>,
    http: reqwest::Client,
    dir: TempDir,
}

struct NatsServer {
    name: String,
    config: PathBuf,
    log: PathBuf,
    port: u16,
    monitor: u16,
    /// `None` while it is dead.
    child: Option<Child>,
}

impl Servers {
    /// Starts three servers that sync each write, and waits until they have elected their leaders.
    pub async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let peers: Vec<_> = (0..SERVERS).map(|_| free_port()).collect();
        let routes: Vec<_> = peers.iter().map(|port| format!("nats://127.0.0.1:{port}")).collect();
        let nodes = peers.iter().enumerate().map(|(at, peer)| {
            let (port, monitor) = (free_port(), free_port());
            NatsServer::configure(dir.path(), at, [port, monitor, *peer], &routes.join(", "))
        });
        let mut servers = Self { nodes: nodes.collect(), http: client(), dir };
        (0..SERVERS).for_each(|at| servers.spawn(at));
        servers.until_ready().await;
        servers
    }

    /// The ports for clients.
    pub fn ports(&self) -> Vec<u16> {
        self.nodes.iter().map(|node| node.port).collect()
    }

    /// For `--store`.
    pub fn url(&self) -> String {
        urls(&self.ports())
    }

    /// Kills one with SIGKILL.
    pub fn kill(&mut self, at: usize) {
        let mut child = self.nodes[at].child.take().expect("it runs");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Ends one with SIGTERM.
    pub async fn terminate(&mut self, at: usize) {
        self.end(at, "-TERM").await;
    }

    /// Ends one in its lame duck mode: it hands over what it leads, and closes its clients.
    pub async fn end_as_lame_duck(&mut self, at: usize) {
        self.end(at, "-USR2").await;
    }

    async fn end(&mut self, at: usize, signal: &str) {
        self.signal(at, signal);
        let child = self.nodes[at].child.as_mut().expect("it runs");
        wait_until("a server ends", || std::future::ready(child.try_wait().unwrap())).await;
        self.nodes[at].child = None;
    }

    /// Starts one that was killed, on its directory.
    pub fn spawn(&mut self, at: usize) {
        self.nodes[at].spawn();
    }

    /// Cuts the first file of a stream in half. The server does not run.
    pub fn cut_first_file(&self, at: usize, stream: &str) {
        let streams = self.dir.path().join(&self.nodes[at].name).join("jetstream/$G/streams");
        let files = std::fs::read_dir(streams.join(stream).join("msgs")).unwrap();
        let files = files.map(|file| file.unwrap().path());
        let mut files: Vec<_> = files
            .filter(|file| file.extension().is_some_and(|extension| extension == "blk"))
            .map(|file| (file.file_stem().unwrap().to_str().unwrap().parse::<u64>().unwrap(), file))
            .collect();
        files.sort();
        assert!(files.len() > 1, "the last file is restored from the Raft log");
        let file = std::fs::OpenOptions::new().write(true).open(&files[0].1).unwrap();
        file.set_len(file.metadata().unwrap().len() / 2).unwrap();
    }

    /// Sends a signal: `-STOP`, `-CONT`, `-TERM`, `-USR2`.
    pub fn signal(&self, at: usize, signal: &str) {
        let pid = self.nodes[at].child.as_ref().expect("it runs").id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    /// Waits until all servers that run agree on a leader of everything.
    pub async fn until_ready(&self) {
        wait_until("the servers have elected a leader", || async {
            self.meta_leader().await.map(drop)
        })
        .await;
    }

    /// The leader of the group that places streams; `None` without a quorum.
    pub async fn meta_leader(&self) -> Option<usize> {
        let mut leaders = Vec::new();
        for node in self.running() {
            let info = self.show(node, "jsz").await?;
            leaders.push(self.named(info["meta_cluster"]["leader"].as_str()?)?);
        }
        let first = *leaders.first()?;
        leaders.iter().all(|leader| *leader == first).then_some(first)
    }

    /// The leader of each stream, by the name of the stream, as one server knows them. A stream in an
    /// election has none.
    pub async fn stream_leaders(&self) -> Vec<(String, Option<usize>)> {
        let node = self.running().next().expect("a server runs");
        let Some(info) = self.show(node, "jsz?streams=true").await else { return Vec::new() };
        let accounts = info["account_details"].as_array().cloned().unwrap_or_default();
        let streams = accounts.iter().filter_map(|account| account["stream_detail"].as_array());
        let streams = streams.flatten().map(|stream| {
            let name = stream["name"].as_str().unwrap_or_default().to_owned();
            let leader = stream["cluster"]["leader"].as_str().and_then(|leader| self.named(leader));
            (name, leader)
        });
        streams.collect()
    }

    /// The bytes of all streams, as the first server has them.
    pub async fn log_bytes(&self) -> u64 {
        let node = self.running().next().expect("a server runs");
        self.show(node, "jsz").await.expect("it answers")["bytes"].as_u64().unwrap()
    }

    /// The server that leads the most streams, and one that leads the fewest.
    pub async fn busiest_and_idlest(&self) -> (usize, usize) {
        let leaders = wait_until("every stream has a leader", || async {
            let leaders = self.stream_leaders().await;
            let known: Option<Vec<_>> = leaders.into_iter().map(|(_, leader)| leader).collect();
            known.filter(|known| !known.is_empty())
        })
        .await;
        let led = |at: &usize| leaders.iter().filter(|leader| *leader == at).count();
        let busiest = (0..SERVERS).max_by_key(led).unwrap();
        let idlest = (0..SERVERS).filter(|at| *at != busiest).min_by_key(led).unwrap();
        (busiest, idlest)
    }

    fn running(&self) -> impl Iterator<Item = &NatsServer> {
        self.nodes.iter().filter(|node| node.child.is_some())
    }

    fn named(&self, name: &str) -> Option<usize> {
        self.nodes.iter().position(|node| node.name == name)
    }

    async fn show(&self, node: &NatsServer, path: &str) -> Option<Value> {
        let url = format!("http://127.0.0.1:{}/{path}", node.monitor);
        self.http.get(url).send().await.ok()?.json().await.ok()
    }
}

impl NatsServer {
    fn configure(dir: &Path, at: usize, [port, monitor, peer]: [u16; 3], routes: &str) -> Self {
        let name = format!("n{at}");
        let config = format!(
            "server_name: {name}\n\
             listen: \"127.0.0.1:{port}\"\n\
             http: \"127.0.0.1:{monitor}\"\n\
             lame_duck_duration: 30s\n\
             lame_duck_grace_period: 1s\n\
             # Each test reserves gigabytes and uses little.\n\
             jetstream {{ store_dir: {:?}, sync_interval: always, max_file_store: 1PB }}\n\
             # A client uses only the addresses that it has, which a test may cut off.\n\
             cluster {{ name: test, listen: \"127.0.0.1:{peer}\", routes: [{routes}], no_advertise: true }}\n",
            dir.join(&name),
        );
        let path = dir.join(format!("{name}.conf"));
        std::fs::write(&path, config).unwrap();
        let log = dir.join(format!("{name}.log"));
        Self { name, config: path, log, port, monitor, child: None }
    }

    fn spawn(&mut self) {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(&self.log).unwrap();
        // Ends with the test process, even if that is killed.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "nats-server", "-c"])
            .arg(&self.config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        self.child = Some(child.expect("setpriv, of util-linux"));
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            if let Some(child) = &mut node.child {
                let _ = child.kill();
                let _ = child.wait();
            }
            if std::thread::panicking() {
                let log = std::fs::read_to_string(&node.log).unwrap_or_default();
                let problems = log.lines().filter(|line| !line.contains("[INF]"));
                let problems: Vec<_> = problems.collect();
                eprintln!("--- the log of {}\n{}\n---", node.name, problems.join("\n"));
            }
        }
    }
}
