//! A replica inside this process that records its requests.
//!
//! Every write carries its number and the time of its post, so that the requests of a replica can be
//! compared with the accepted writes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};

use crate::http::whole_request;

/// The start of the run, from which all times are counted.
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

pub fn since_start() -> Duration {
    START.elapsed()
}

/// The body of write `n`, with the current time.
pub fn stamped(n: u64, nodes: &[&str]) -> String {
    let nodes: Vec<_> = nodes.iter().map(|node| format!("\"http://{node}\"")).collect();
    let (now, padding) = (since_start().as_micros(), "v".repeat(60));
    format!(
        r#"{{"key":"k-{n}","value":"{now} {n} {padding}","value_encoding":"raw","operation":"SET","replica_nodes":[{}],"user_id":"bench"}}"#,
        nodes.join(",")
    )
}

#[derive(Clone)]
pub enum Way {
    AtOnce,
    After(Duration),
    Hang,
    FailHalf,
    /// Processes a limited number at a time, each for the duration; others wait.
    Limited(Arc<Semaphore>, Duration),
}

#[derive(Clone, Copy)]
pub struct Seen {
    pub n: u64,
    pub at: Duration,
    /// Time from the post to the answer.
    pub since_post: Duration,
    /// Time from the request to the answer.
    pub took: Duration,
    pub applied: bool,
}

pub struct Node {
    pub address: String,
    way: Way,
    seen: Arc<Mutex<Vec<Seen>>>,
    serving: Option<JoinHandle<()>>,
    /// Bound but not listening: connections are refused, and no other process gets the port.
    refusing: Option<TcpSocket>,
}

impl Node {
    pub async fn start(way: Way) -> Self {
        let mut node = Self::down();
        node.way = way;
        node.come_back();
        node
    }

    pub fn down() -> Self {
        let socket = bound("127.0.0.1:0");
        let address = socket.local_addr().unwrap().to_string();
        let (seen, refusing) = (Arc::default(), Some(socket));
        Self { address, way: Way::AtOnce, seen, serving: None, refusing }
    }

    pub fn come_back(&mut self) {
        let listener = self.refusing.take().unwrap().listen(1024).unwrap();
        let serving = serve(listener, self.way.clone(), Arc::clone(&self.seen));
        self.serving = Some(tokio::spawn(serving));
    }

    /// Closes all connections and refuses new ones.
    pub async fn go_down(&mut self) {
        let serving = self.serving.take().unwrap();
        serving.abort();
        let _ = serving.await;
        self.refusing = Some(bound(&self.address));
    }

    pub fn take_seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.seen.lock().unwrap())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(serving) = &self.serving {
            serving.abort();
        }
    }
}

fn bound(address: &str) -> TcpSocket {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind(address.parse().unwrap()).unwrap();
    socket
}

async fn serve(listener: TcpListener, way: Way, seen: Arc<Mutex<Vec<Seen>>>) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        connections.spawn(connection(stream, way.clone(), Arc::clone(&seen)));
        while connections.try_join_next().is_some() {}
    }
}

async fn connection(mut stream: TcpStream, way: Way, seen: Arc<Mutex<Vec<Seen>>>) {
    let mut held = Vec::with_capacity(16 * 1024);
    loop {
        while let Some((length, _)) = whole_request(&held) {
            let arrived = since_start();
            let request: Vec<u8> = held.drain(..length).collect();
            let applied = apply(&way).await;
            let status = if applied { "200 OK" } else { "500 Internal Server Error" };
            let at = since_start();
            let (posted, n) = stamp(&request);
            let since_post = at.saturating_sub(posted);
            seen.lock().unwrap().push(Seen { n, at, since_post, took: at - arrived, applied });
            let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
            if stream.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
        }
        match stream.read_buf(&mut held).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
    }
}

async fn apply(way: &Way) -> bool {
    static TURN: AtomicBool = AtomicBool::new(false);
    match way {
        Way::AtOnce => {}
        Way::After(time) => tokio::time::sleep(*time).await,
        Way::Hang => std::future::pending().await,
        Way::FailHalf => return TURN.fetch_xor(true, Ordering::Relaxed),
        Way::Limited(permits, time) => {
            let _permit = permits.acquire().await.unwrap();
            tokio::time::sleep(*time).await;
        }
    }
    true
}

/// The time of the post of a write, and its number.
fn stamp(request: &[u8]) -> (Duration, u64) {
    let body = request.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
    let text = std::str::from_utf8(&request[body..]).unwrap();
    let mut words = text.split(' ').map(|word| word.parse().unwrap_or_default());
    (Duration::from_micros(words.next().unwrap()), words.next().unwrap())
}
