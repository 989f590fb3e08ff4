//! Load generators: cheap closed loops over keep-alive connections, and writes at a fixed rate.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;

use crate::http::content_length;
use crate::node::since_start;

pub struct Round {
    /// 2xx answers per second.
    pub rate: f64,
    pub refused: u64,
    /// Times from request to 2xx answer, sorted.
    pub times: Vec<Duration>,
}

impl Round {
    pub fn percentile(&self, percent: usize) -> Duration {
        self.times[(self.times.len() * percent / 100).min(self.times.len() - 1)]
    }
}

#[derive(Clone)]
pub struct Target {
    pub address: String,
    /// Method and path of a write.
    pub write: &'static str,
    pub token: Option<String>,
    pub tls: Option<TlsConnector>,
}

impl From<&str> for Target {
    fn from(address: &str) -> Self {
        Self { address: address.to_owned(), write: "POST /replicate", token: None, tls: None }
    }
}

impl From<&String> for Target {
    fn from(address: &String) -> Self {
        Self::from(address.as_str())
    }
}

/// Posts for `time` over `connections`, each as fast as its answers arrive. `body` makes the n-th body
/// of a connection.
pub async fn post(
    target: impl Into<Target>,
    connections: usize,
    time: Duration,
    body: impl Fn(usize, u64) -> String + Send + Sync + 'static,
) -> Round {
    load(target.into(), connections, time, false, body).await
}

/// [`post`], with a new connection for each write.
pub async fn post_reconnecting(
    target: impl Into<Target>,
    connections: usize,
    time: Duration,
    body: impl Fn(usize, u64) -> String + Send + Sync + 'static,
) -> Round {
    load(target.into(), connections, time, true, body).await
}

async fn load(
    target: Target,
    connections: usize,
    time: Duration,
    reconnect: bool,
    body: impl Fn(usize, u64) -> String + Send + Sync + 'static,
) -> Round {
    let (stop, body) = (Arc::new(AtomicBool::new(false)), Arc::new(body));
    let started = Instant::now();
    let loops: Vec<_> = (0..connections)
        .map(|connection| {
            let (stop, body, target) = (Arc::clone(&stop), Arc::clone(&body), target.clone());
            tokio::spawn(async move {
                let mut client = Client::to(&target).await;
                let (mut times, mut refused) = (Vec::new(), 0);
                let mut n = 0;
                while !stop.load(Ordering::Relaxed) {
                    let body = body(connection, n);
                    let sent = Instant::now();
                    if reconnect && n > 0 {
                        client = Client::to(&target).await;
                    }
                    let status = client.send(target.write, &body).await;
                    if (200..300).contains(&status) {
                        times.push(sent.elapsed());
                    } else {
                        refused += 1;
                    }
                    n += 1;
                }
                (times, refused)
            })
        })
        .collect();
    tokio::time::sleep(time).await;
    stop.store(true, Ordering::Relaxed);
    let (mut times, mut refused) = (Vec::new(), 0);
    for one in loops {
        let (more_times, more_refused) = one.await.unwrap();
        times.extend(more_times);
        refused += more_refused;
    }
    let rate = times.len() as f64 / started.elapsed().as_secs_f64();
    times.sort_unstable();
    Round { rate, refused, times }
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

pub struct Client {
    stream: Box<dyn Stream>,
    token: String,
    held: Vec<u8>,
}

impl Client {
    pub async fn connect(address: &str) -> Self {
        Self::to(&Target::from(address)).await
    }

    async fn to(target: &Target) -> Self {
        let stream = TcpStream::connect(&target.address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let stream: Box<dyn Stream> = match &target.tls {
            None => Box::new(stream),
            Some(tls) => {
                let name = ServerName::try_from("localhost").unwrap();
                Box::new(tls.connect(name, stream).await.unwrap())
            }
        };
        let token = target.token.as_ref();
        let token = token.map_or(String::new(), |t| format!("authorization: Bearer {t}\r\n"));
        Self { stream, token, held: Vec::with_capacity(4096) }
    }

    pub async fn post(&mut self, path: &str, body: &str) -> u16 {
        self.send(&format!("POST {path}"), body).await
    }

    async fn send(&mut self, method_and_path: &str, body: &str) -> u16 {
        let request = format!(
            "{method_and_path} HTTP/1.1\r\nhost: localhost\r\n{}content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            self.token,
            body.len()
        );
        self.request(&request).await.0
    }

    pub async fn get(&mut self, path: &str) -> String {
        self.get_as(path, "application/json").await
    }

    pub async fn get_as(&mut self, path: &str, accept: &str) -> String {
        let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\naccept: {accept}\r\n\r\n");
        self.request(&request).await.1
    }

    /// The value of a metric, summed over its labels.
    pub async fn figure(&mut self, name: &str) -> f64 {
        let text = self.get_as("/metrics", "text/plain").await;
        let of_name =
            |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{']));
        let lines = text.lines().filter(of_name);
        lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
    }

    async fn request(&mut self, request: &str) -> (u16, String) {
        self.stream.write_all(request.as_bytes()).await.unwrap();
        self.held.clear();
        loop {
            let read = self.stream.read_buf(&mut self.held).await.unwrap();
            assert!(read > 0, "the connection was closed");
            let Some(end) = self.held.windows(4).position(|w| w == b"\r\n\r\n") else {
                continue;
            };
            let head = &self.held[..end + 4];
            let length = content_length(head);
            if self.held.len() >= head.len() + length {
                let status = std::str::from_utf8(&head[9..12]).unwrap().parse().unwrap();
                let body = String::from_utf8_lossy(&self.held[head.len()..]).into_owned();
                return (status, body);
            }
        }
    }
}

/// A write of a [`Paced`] load and its answer.
#[derive(Clone, Copy)]
pub struct Posted {
    pub n: u64,
    /// Time of the post since the start of the run.
    pub at: Duration,
    pub took: Duration,
    pub status: u16,
}

/// An open-loop load: writes at a fixed rate, independent of earlier answers.
pub struct Paced {
    stop: Arc<AtomicBool>,
    feeding: JoinHandle<Vec<Posted>>,
}

impl Paced {
    /// `make` makes the body of the n-th write; `None` skips it.
    pub fn start(
        address: &str,
        a_second: u64,
        make: impl Fn(u64) -> Option<String> + Send + Sync + 'static,
    ) -> Self {
        let (stop, address) = (Arc::new(AtomicBool::new(false)), address.to_owned());
        let feeding = tokio::spawn(feed(address, a_second, make, Arc::clone(&stop)));
        Self { stop, feeding }
    }

    /// Stops posting and waits for the outstanding answers.
    pub async fn stop(self) -> Vec<Posted> {
        self.stop.store(true, Ordering::Relaxed);
        self.feeding.await.unwrap()
    }
}

async fn feed(
    address: String,
    a_second: u64,
    make: impl Fn(u64) -> Option<String>,
    stop: Arc<AtomicBool>,
) -> Vec<Posted> {
    let idle: Arc<Mutex<VecDeque<Client>>> = Arc::default();
    let (mut writes, mut n, started) = (JoinSet::new(), 0, Instant::now());
    let mut tick = tokio::time::interval(Duration::from_millis(1));
    while !stop.load(Ordering::Relaxed) {
        tick.tick().await;
        let due = (started.elapsed().as_secs_f64() * a_second as f64) as u64;
        for n in std::mem::replace(&mut n, due)..due {
            let Some(body) = make(n) else { continue };
            let (idle, address) = (Arc::clone(&idle), address.clone());
            writes.spawn(async move {
                let (at, sent) = (since_start(), Instant::now());
                // The connection that was idle longest, so that none reaches the idle timeout.
                let client = idle.lock().unwrap().pop_front();
                let mut client = match client {
                    Some(client) => client,
                    None => Client::connect(&address).await,
                };
                let status = client.post("/replicate", &body).await;
                idle.lock().unwrap().push_back(client);
                Posted { n, at, took: sent.elapsed(), status }
            });
        }
    }
    writes.join_all().await
}

pub fn percentile_ms(mut times: Vec<Duration>, percent: usize) -> f64 {
    if times.is_empty() {
        return f64::NAN;
    }
    times.sort_unstable();
    times[(times.len() * percent / 100).min(times.len() - 1)].as_secs_f64() * 1e3
}
