//! The other processes of a benchmark: the daemon, and this binary in the role that its environment
//! names.

use std::io::{BufRead, BufReader};
use std::net::TcpStream as BlockingStream;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::http::whole_request;

pub const ROLE: &str = "E2E_BENCH_ROLE";

#[derive(Debug)]
pub struct Process {
    child: Child,
    pub address: String,
    command: Command,
    _dir: Option<tempfile::TempDir>,
}

impl Process {
    fn spawn(mut command: Command, dir: Option<tempfile::TempDir>) -> Self {
        let (child, address) = start(&mut command);
        Self { child, address, command, _dir: dir }
    }

    /// Kills and restarts it. Returns when it listens.
    pub fn kill_and_restart(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        (self.child, self.address) = start(&mut self.command);
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The time that its threads have run, in clock ticks.
    pub fn cpu_ticks(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        // Behind the name, which may contain spaces: user and system time are fields 14 and 15.
        let fields = stat.rsplit(')').next().unwrap().split_whitespace();
        fields.skip(11).take(2).map(|field| field.parse::<u64>().unwrap()).sum()
    }

    pub fn resident_mib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
    }

    /// Another server, which listens on `address` some time after it was started.
    pub fn listening(mut command: Command, dir: tempfile::TempDir, address: String) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().unwrap();
        let started = Self { child, address, command, _dir: Some(dir) };
        let since = Instant::now();
        while BlockingStream::connect(&started.address).is_err() {
            assert!(since.elapsed() < Duration::from_secs(10), "it does not listen: {started:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
        started
    }

    /// One of the roles below.
    pub fn role(role: &str) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.env(ROLE, role);
        Self::spawn(command, None)
    }

    /// The daemon with a new directory below the build directory, which is on a disk and not in memory.
    pub fn daemon(args: &[&str]) -> Self {
        Self::daemon_at(env!("CARGO_BIN_EXE_replicator"), args)
    }

    /// An instance of a cluster.
    pub fn instance(store: &str, node_id: &str, args: &[&str]) -> Self {
        Self::instance_at(env!("CARGO_BIN_EXE_replicator"), store, node_id, args)
    }

    pub fn instance_at(binary: &str, store: &str, node_id: &str, args: &[&str]) -> Self {
        let mut command = Command::new(binary);
        command.args(["--port", "0", "--log", "error", "--node-id", node_id, "--store", store]);
        command.args(args);
        Self::spawn(command, None)
    }

    pub fn daemon_at(binary: &str, args: &[&str]) -> Self {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let mut command = Command::new(binary);
        command.args(["--port", "0", "--log", "error", "--data-dir"]).arg(dir.path().join("data"));
        command.args(args);
        Self::spawn(command, Some(dir))
    }
}

fn start(command: &mut Command) -> (Child, String) {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let address = line.trim().strip_prefix("listening on ").expect("an address");
    let address = address.trim_start_matches("https://").trim_start_matches("http://");
    (child, address.to_owned())
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn play(role: &str) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        println!("listening on http://{}", listener.local_addr().unwrap());
        match role {
            "null-handler" => null_handler(listener).await,
            "null-replica" => null_replica(listener, false).await,
            "silent-replica" => null_replica(listener, true).await,
            other => panic!("no role {other}"),
        }
    });
}

#[derive(Deserialize)]
#[allow(dead_code, reason = "parsed for its cost only")]
struct Body {
    key: String,
    value: Option<String>,
    operation: String,
    #[serde(default)]
    ttl: Option<i64>,
    #[serde(default)]
    consistency: Option<String>,
    replica_nodes: Vec<String>,
    #[serde(default)]
    user_id: Option<String>,
}

async fn null_handler(listener: TcpListener) {
    let app = axum::Router::new().route("/replicate", axum::routing::post(null_answer));
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        let service = hyper_util::service::TowerToHyperService::new(app.clone());
        tokio::spawn(async move {
            let io = hyper_util::rt::TokioIo::new(stream);
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(io, service).await;
        });
    }
}

async fn null_answer(body: axum::body::Bytes) -> (axum::http::StatusCode, String) {
    let parsed: Body = serde_json::from_slice(&body).unwrap();
    std::hint::black_box(&parsed);
    let text = r#"{"success":true,"node_id":"replicator","task_id":"1750000000000000"}"#;
    (axum::http::StatusCode::ACCEPTED, text.to_owned())
}

/// Answers every write at once, or never. A `GET` returns the number of writes. Speaks HTTP/2 with those
/// that begin with it.
async fn null_replica(listener: TcpListener, silent: bool) {
    let answered = Arc::new(AtomicU64::new(0));
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        let answered = Arc::clone(&answered);
        tokio::spawn(async move {
            let mut start = [0; 3];
            match stream.peek(&mut start).await {
                Ok(3) if &start == b"PRI" => null_http2(stream, answered).await,
                _ => null_connection(stream, answered, silent).await,
            }
        });
    }
}

async fn null_http2(stream: TcpStream, answered: Arc<AtomicU64>) {
    let mut connection = h2::server::handshake(stream).await.unwrap();
    while let Some(Ok((mut request, mut respond))) = connection.accept().await {
        let answered = Arc::clone(&answered);
        tokio::spawn(async move {
            while let Some(Ok(piece)) = request.body_mut().data().await {
                request.body_mut().flow_control().release_capacity(piece.len()).unwrap();
            }
            answered.fetch_add(1, Ordering::Relaxed);
            let _ = respond.send_response(hyper::Response::new(()), true);
        });
    }
}

async fn null_connection(mut stream: TcpStream, answered: Arc<AtomicU64>, silent: bool) {
    let mut held = Vec::with_capacity(16 * 1024);
    loop {
        while let Some((length, is_get)) = whole_request(&held) {
            held.drain(..length);
            let answer = if is_get {
                let count = answered.load(Ordering::Relaxed).to_string();
                format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{count}", count.len())
            } else {
                answered.fetch_add(1, Ordering::Relaxed);
                "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".to_owned()
            };
            if (is_get || !silent) && stream.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
        }
        match stream.read_buf(&mut held).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
    }
}
