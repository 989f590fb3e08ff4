//! The daemon as a process that is started, stopped and killed.

use std::hash::{Hash, Hasher};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use super::{Replica, client, path_of, wait_until};

/// A daemon and its data directory.
pub struct Daemon {
    dir: Option<TempDir>,
    path: PathBuf,
    args: Vec<String>,
    env: Vec<(String, String)>,
    child: Child,
    scheme: String,
    address: String,
    client: reqwest::Client,
}

impl Daemon {
    /// Starts on a fresh directory.
    pub async fn start(args: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        let mut daemon = Self::start_on(&path, args).await;
        daemon.dir = Some(dir);
        daemon
    }

    /// Starts on a directory that the test keeps.
    pub async fn start_on(path: &Path, args: &[&str]) -> Self {
        match Self::try_start_on(path, args, &[]).await {
            Ok(daemon) => daemon,
            Err(status) => panic!("the daemon did not start ({status})\n{}", log(path)),
        }
    }

    /// Starts on a directory that the test keeps, with additional variables. Returns the exit
    /// status if the daemon ends before it serves.
    pub async fn try_start_on(
        path: &Path,
        args: &[&str],
        env: &[(&str, &str)],
    ) -> Result<Self, ExitStatus> {
        let args: Vec<_> = args.iter().map(|arg| (*arg).to_owned()).collect();
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let env: Vec<_> = env.iter().map(owned).collect();
        let (child, scheme, address) = spawn(path, &args, &env, None).await?;
        let path = path.to_owned();
        Ok(Self { dir: None, path, args, env, child, scheme, address, client: client() })
    }

    /// Starts on a fresh directory and logs to `stderr`.
    pub async fn start_logging_to(stderr: impl Into<Stdio>, args: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        let args: Vec<_> = args.iter().map(|arg| (*arg).to_owned()).collect();
        let started = spawn(&path, &args, &[], Some(stderr.into())).await;
        let (child, scheme, address) = started.expect("it starts");
        let (dir, env) = (Some(dir), Vec::new());
        Self { dir, path, args, env, child, scheme, address, client: client() }
    }

    pub fn url(&self, path: &str) -> String {
        format!("{}://{}{path}", self.scheme, self.address)
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    pub fn dir(&self) -> &Path {
        &self.path
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Uses another client from now on.
    pub fn use_client(&mut self, client: reqwest::Client) {
        self.client = client;
    }

    pub fn client(&self) -> &reqwest::Client {
        &self.client
    }

    /// Posts a write; returns the status and the answer.
    pub async fn post(&self, body: &Value) -> (u16, Value) {
        self.try_post(body).await.unwrap()
    }

    /// The same for a daemon that may have ended.
    pub async fn try_post(&self, body: &Value) -> reqwest::Result<(u16, Value)> {
        let answer = self.client.post(self.url("/replicate")).json(body).send().await?;
        let status = answer.status().as_u16();
        Ok((status, answer.json().await?))
    }

    /// Posts a write that must be accepted; returns its task id.
    pub async fn accept(&self, body: &Value) -> u64 {
        let (status, answer) = self.post(body).await;
        assert!(matches!(status, 200 | 202), "{status} {answer}");
        answer["task_id"].as_str().unwrap().parse().unwrap()
    }

    /// The JSON of a GET.
    pub async fn get(&self, path: &str) -> (u16, Value) {
        self.try_get(path).await.unwrap()
    }

    /// The same for a daemon that may have ended.
    pub async fn try_get(&self, path: &str) -> reqwest::Result<(u16, Value)> {
        let answer = self.client.get(self.url(path)).send().await?;
        let status = answer.status().as_u16();
        Ok((status, answer.json().await?))
    }

    /// The JSON of a POST with this body; null means no body.
    pub async fn post_to(&self, path: &str, body: &Value) -> (u16, Value) {
        let request = self.client.post(self.url(path));
        let request = if body.is_null() { request } else { request.json(body) };
        let answer = request.send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap())
    }

    /// The JSON of a PATCH.
    pub async fn patch(&self, path: &str, body: &Value) -> (u16, Value) {
        let answer = self.client.patch(self.url(path)).json(body).send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap())
    }

    /// The JSON of a DELETE.
    pub async fn delete(&self, path: &str) -> (u16, Value) {
        let answer = self.client.delete(self.url(path)).send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap())
    }

    /// The JSON of a GET that must succeed.
    pub async fn show(&self, path: &str) -> Value {
        let (status, answer) = self.get(path).await;
        assert_eq!(status, 200, "{path}: {answer}");
        answer
    }

    pub async fn metrics(&self) -> Value {
        self.get("/metrics").await.1
    }

    /// The metrics as Prometheus reads them.
    pub async fn metrics_page(&self) -> String {
        let request = self.client.get(self.url("/metrics")).header("accept", "text/plain");
        request.send().await.unwrap().text().await.unwrap()
    }

    /// Waits until a metric has a value.
    pub async fn until_metric(&self, name: &str, value: u64) {
        wait_until(&format!("{name} is {value}"), || async {
            let metrics = self.metrics().await;
            assert!(metrics[name].is_number(), "{name} in {metrics}");
            (metrics[name] == value).then_some(())
        })
        .await;
    }

    /// Waits until no task is queued or retried.
    pub async fn until_drained(&self) {
        wait_until("everything is drained", || async {
            let metrics = self.metrics().await;
            let empty = metrics["queue_size"] == 0 && metrics["retries_in_progress"] == 0;
            empty.then_some(())
        })
        .await;
    }

    /// Waits until all settlements so far are on disk. A request of an operator is answered only
    /// then, even this one, which changes nothing.
    pub async fn until_durable(&self, replica: &Replica) {
        let resume = format!("{}/resume", path_of(replica));
        let (status, answer) = self.post_to(&resume, &Value::Null).await;
        assert_eq!(status, 200, "{answer}");
    }

    /// Kills it with SIGKILL.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits until its log contains the text.
    pub async fn until_logged(&self, text: &str) {
        wait_until(text, || async { self.log().contains(text).then_some(()) }).await;
    }

    pub fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    /// Waits for its end.
    pub async fn ended(&mut self) -> ExitStatus {
        wait_until("the daemon ends", || std::future::ready(self.child.try_wait().unwrap())).await
    }

    /// Waits for its end; `None` if it keeps running.
    pub async fn ended_within(&mut self, patience: Duration) -> Option<ExitStatus> {
        let ended = || std::future::ready(self.child.try_wait().unwrap());
        super::within(patience, ended).await
    }

    /// Sends SIGTERM and waits for its end.
    pub async fn terminate(&mut self) -> ExitStatus {
        self.signal("-TERM");
        self.ended().await
    }

    /// Sets its variables from the next start on.
    pub fn set_env(&mut self, env: &[(&str, &str)]) {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        self.env = env.iter().map(owned).collect();
    }

    /// Starts it again on the same directory, after it has ended.
    pub async fn restart(&mut self) {
        match spawn(&self.path, &self.args, &self.env, None).await {
            Ok(started) => (self.child, self.scheme, self.address) = started,
            Err(status) => panic!("the daemon did not start ({status})\n{}", self.log()),
        }
    }

    /// Kills it and starts it again.
    pub async fn kill_and_restart(&mut self) {
        self.kill();
        self.restart().await;
    }

    /// Its log so far.
    pub fn log(&self) -> String {
        log(&self.path)
    }
}

/// The log of the daemons on this directory so far.
pub fn log(path: &Path) -> String {
    std::fs::read_to_string(log_of(path)).unwrap_or_default()
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- the daemon's log\n{}---", self.log());
        }
    }
}

fn log_of(path: &Path) -> PathBuf {
    path.with_extension("log")
}

/// The binary with a clean environment.
pub fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_replicator"));
    for (name, _) in std::env::vars_os().filter(|(n, _)| n.to_string_lossy().contains("REPLICATOR"))
    {
        command.env_remove(name);
    }
    command
}

/// A `demo-replica` with these flags, and its address. Ended when it is dropped.
pub struct DemoReplica(Child, pub String);

impl DemoReplica {
    pub fn start(flags: &[&str]) -> Self {
        let mut command = command();
        command.args(["demo-replica", "--port", "0"]).args(flags).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Self(child, line.trim().strip_prefix("listening on ").unwrap().to_owned())
    }
}

impl Drop for DemoReplica {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The flags of the store of this path. In the tests of the cluster it is a cluster of its own on
/// servers that all tests share, elsewhere a directory.
fn store(path: &Path) -> Vec<String> {
    if env!("CARGO_CRATE_NAME") != "cluster" {
        return vec!["--data-dir".to_owned(), path.to_str().unwrap().to_owned()];
    }
    let mut hasher = std::hash::DefaultHasher::new();
    path.hash(&mut hasher);
    let cluster = format!("c{:x}", hasher.finish());
    let store = super::servers::shared().to_owned();
    // A machine that is slow for two seconds must not end a lease: deliveries are repeated then.
    let lease = ["--lease", "10s"];
    let flags = ["--store", &store, "--cluster", &cluster, "--partitions", "2"];
    flags.into_iter().chain(lease).map(str::to_owned).collect()
}

/// Starts it and waits until it serves. The runtime is not blocked meanwhile, so replicas of the
/// test answer deliveries that the daemon sends at once.
async fn spawn(
    path: &Path,
    args: &[String],
    env: &[(String, String)],
    stderr: Option<Stdio>,
) -> Result<(Child, String, String), ExitStatus> {
    let log = std::fs::OpenOptions::new().create(true).append(true).open(log_of(path)).unwrap();
    // Flags that a test does not set itself. The request timeout is long, because a slow answer on
    // a busy machine would cause more attempts than the test counts.
    let defaults = [["--port", "0"], ["--request-timeout", "1m"]];
    let port_given = env.iter().any(|(name, _)| name == "REPLICATOR_PORT");
    let given = |flag: &str| args.iter().any(|arg| arg == flag) || (port_given && flag == "--port");
    let missing = defaults.iter().filter(|[flag, _]| !given(flag));
    let mut store = if given("--store") { Vec::new() } else { store(path) };
    // That of the service. A cluster has more by default.
    if store.iter().any(|flag| flag == "--store") && !given("--queue-capacity") {
        store.extend(["--queue-capacity", "1000"].map(str::to_owned));
    }
    let mut child = command()
        .args(missing.flatten())
        .args(store)
        .args(args)
        .envs(env.iter().cloned())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(stderr.unwrap_or_else(|| log.into()))
        .spawn()
        .unwrap();
    // It prints its address to standard output when it listens.
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let (sender, line) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let mut line = String::new();
        // The daemon may have ended, and the receiver may be gone.
        let _ = stdout.read_line(&mut line);
        let _ = sender.send(line);
        let _ = stdout.read_to_end(&mut Vec::new());
    });
    let Ok(line) = tokio::time::timeout(super::PATIENCE, line).await else {
        let _ = child.kill();
        let _ = child.wait();
        panic!("the daemon neither serves nor ends\n{}", self::log(path));
    };
    let line = line.unwrap();
    let url = line.trim().strip_prefix("listening on ");
    match url.and_then(|url| url.split_once("://")) {
        Some((scheme, address)) => Ok((child, scheme.to_owned(), address.to_owned())),
        None => Err(child.wait().unwrap()),
    }
}
