//! Hostile clients: each attack alone, and thousands of connections beside honest clients.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::layering::{is_test, sources};
use crate::support::{Daemon, PATIENCE, Replica, set, wait_until};

mod answers;
mod json;
mod names;
mod probes;

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

/// The HTTP/2 preface and the empty SETTINGS of a client.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// Memory of the process as the system reports it, in bytes.
fn memory(daemon: &Daemon, line: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let found = status.lines().find_map(|text| text.strip_prefix(line)?.strip_prefix(':'));
    let kib: u64 = found.unwrap().trim().trim_end_matches(" kB").parse().unwrap();
    kib * KIB
}

/// A metric by its name in Prometheus.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count")]
async fn figure(daemon: &Daemon, name: &str) -> u64 {
    // The daemon may close the reused connection in favour of another one.
    let page = wait_until("the metrics are readable", || async {
        let request = daemon.client().get(daemon.url("/metrics")).header("accept", "text/plain");
        request.send().await.ok()?.text().await.ok()
    })
    .await;
    let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("{name} in {page}")).parse::<f64>().unwrap() as u64
}

/// Raises the limit of open files of this process to its maximum and returns it.
fn raise_open_files() -> u64 {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
    maximum.unwrap_or(u64::MAX)
}

async fn connect(address: &str) -> TcpStream {
    wait_until("a connection", || async { TcpStream::connect(address).await.ok() }).await
}

/// Sends `bytes`, as far as the daemon reads them, and returns everything until the daemon closes.
async fn exchange(address: &str, bytes: &[u8]) -> String {
    let stream = connect(address).await;
    let (mut reading, mut writing) = stream.into_split();
    let sending = async {
        // The daemon may have closed the connection.
        let _ = writing.write_all(bytes).await;
        let _ = writing.shutdown().await;
    };
    let mut answer = Vec::new();
    let talk = async {
        // A reset counts as closed; everything before it was read.
        tokio::join!(sending, async { while let Ok(1..) = reading.read_buf(&mut answer).await {} });
    };
    let closed = tokio::time::timeout(PATIENCE, talk).await;
    closed.expect("the daemon should have closed the connection");
    String::from_utf8_lossy(&answer).into_owned()
}

/// An HTTP/2 frame.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// HEADERS that never end, as in CVE-2024-27316.
fn continuation_flood() -> Vec<u8> {
    let mut flood = PREFACE.to_vec();
    flood.extend(frame(1, 0, 1, b"\x82\x86\x84"));
    for _ in 0..1000 {
        flood.extend(frame(9, 0, 1, &[b'x'; 1000]));
    }
    flood
}

/// Streams that are opened and reset at once: CVE-2023-44487.
fn rapid_reset() -> Vec<u8> {
    let mut flood = PREFACE.to_vec();
    for stream in (1..20_000).step_by(2) {
        flood.extend(frame(1, 5, stream, b"\x82\x86\x84"));
        flood.extend(frame(3, 0, stream, &[0, 0, 0, 8]));
    }
    flood
}

fn with_headers(headers: &str) -> Vec<u8> {
    format!("GET /livez HTTP/1.1\r\nhost: localhost\r\n{headers}\r\n").into_bytes()
}

/// Invalid requests: name, bytes, and the allowed statuses.
fn attacks() -> Vec<(&'static str, Vec<u8>, &'static [&'static str])> {
    let closed_or_400: &[_] = &["", "400"];
    let too_large: &[_] = &["", "431"];
    let post = "POST /replicate HTTP/1.1\r\nhost: localhost\r\n";
    let chunked = format!("{post}transfer-encoding: chunked\r\n\r\n");
    let long = "x".repeat(200_000);
    vec![
        ("too many headers", with_headers(&"a: b\r\n".repeat(5_000)), too_large),
        ("a header too long", with_headers(&format!("a: {long}\r\n")), too_large),
        ("a header without an end", format!("GET / HTTP/1.1\r\na: {long}").into_bytes(), too_large),
        (
            "an address too long",
            format!("GET /{long} HTTP/1.1\r\n\r\n").into_bytes(),
            &["", "414", "431"],
        ),
        ("a method without an end", long.clone().into_bytes(), &["", "400", "431"]),
        ("half a head", b"POST /replicate HTT".to_vec(), closed_or_400),
        ("half a body", format!("{post}content-length: 999\r\n\r\n{{").into_bytes(), closed_or_400),
        (
            "garbage",
            (0..50_000).flat_map(|n: u32| n.wrapping_mul(2_654_435_761).to_be_bytes()).collect(),
            closed_or_400,
        ),
        (
            "a TLS greeting",
            [&[22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3][..], &[7; 600]].concat(),
            closed_or_400,
        ),
        ("line ends without an end", b"\r\n".repeat(100_000), &["", "400", "431"]),
        ("HTTP/2 with prior knowledge", PREFACE.to_vec(), closed_or_400),
        ("a flood of CONTINUATION", continuation_flood(), closed_or_400),
        ("a rapid reset", rapid_reset(), closed_or_400),
        (
            "an upgrade to HTTP/2",
            with_headers(
                "connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\nconnection: close\r\n",
            ),
            &["200"],
        ),
        (
            "two lengths",
            format!("{post}content-length: 1\r\ncontent-length: 2\r\n\r\n{{}}").into_bytes(),
            closed_or_400,
        ),
        (
            "a length that is none",
            format!("{post}content-length: -1\r\n\r\n").into_bytes(),
            closed_or_400,
        ),
        (
            "a length beyond all numbers",
            format!("{post}content-length: {}\r\n\r\n", "9".repeat(40)).into_bytes(),
            closed_or_400,
        ),
        (
            "a chunk's length without an end",
            format!("{chunked}{}", "1".repeat(100_000)).into_bytes(),
            closed_or_400,
        ),
        (
            "a chunk's extension without an end",
            format!("{chunked}1;{long}").into_bytes(),
            closed_or_400,
        ),
        (
            "trailers without an end",
            format!("{chunked}0\r\n{}", "a: b\r\n".repeat(50_000)).into_bytes(),
            closed_or_400,
        ),
    ]
}

#[tokio::test]
async fn an_invalid_request_is_rejected_or_cut_and_leaves_nothing_behind() {
    let daemon = Daemon::start(&["--client-timeout", "2s"]).await;
    // A first request, so that the memory that it allocates is not counted.
    exchange(daemon.address(), &with_headers("connection: close\r\n")).await;
    let before = memory(&daemon, "VmRSS");
    for (name, bytes, allowed) in attacks() {
        let answer = exchange(daemon.address(), &bytes).await;
        let status = answer.get(9..12).unwrap_or_default();
        assert!(allowed.contains(&status), "{name}: {answer:?}");
    }
    let mut floods = JoinSet::new();
    for n in 0..200 {
        let address = daemon.address().to_owned();
        let flood = if n % 2 == 0 { continuation_flood() } else { rapid_reset() };
        floods.spawn(async move { exchange(&address, &flood).await });
    }
    floods.join_all().await;
    // The floods sent 200 MB.
    let grown = memory(&daemon, "VmHWM").saturating_sub(before);
    assert!(grown < 64 * MIB, "{} MiB more", grown / MIB);
    assert_eq!(daemon.metrics().await["total_replications"], 0);
}

/// The replica side speaks it to replicas, and so does a demo replica.
#[test]
fn no_port_of_the_daemon_has_an_http_2_server() {
    let (mut http1, mut http2) = (vec![], vec![]);
    for (path, text) in sources("src") {
        let server = text.contains("hyper::server::conn") && !is_test(&path);
        if server && text.contains("http1") {
            http1.push(path.clone());
        }
        let other = ["conn::auto", "h2::server"].iter().any(|word| text.contains(word));
        if !is_test(&path) && (other || server && text.contains("http2")) {
            http2.push(path);
        }
    }
    assert_eq!(http1, [Path::new("src/server/connections.rs")]);
    assert_eq!(http2, [Path::new("src/server/memory_replica.rs")]);
}

/// Opens a hostile connection and sends its first bytes.
async fn open_hostile(address: &str, kind: usize) -> Option<TcpStream> {
    let mut stream = connect(address).await;
    let bytes = match kind {
        0 => Vec::new(),
        1 => b"POST /replicate HTTP/1.1\r\nhost: local".to_vec(),
        2 => b"POST /replicate HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100000\r\n\r\n{"
            .to_vec(),
        3 => with_headers(&"a: b\r\n".repeat(1_000)),
        4 => format!("GET /livez HTTP/1.1\r\na: {}", "x".repeat(60_000)).into_bytes(),
        // Cheap requests whose answers fill the socket buffers.
        5 => "GET /assets/style.css HTTP/1.1\r\nhost: localhost\r\n\r\n".repeat(40).into_bytes(),
        6 => PREFACE.to_vec(),
        7 => vec![0xff; 10_000],
        _ => b"POST /replicate HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\n{".to_vec(),
    };
    // The daemon may have closed the connection or stopped reading.
    let _ = tokio::time::timeout(Duration::from_millis(100), stream.write_all(&bytes)).await;
    if kind == 5 {
        // Reads only the first byte of the answers, so that connections do not open faster than the
        // daemon accepts them. The system would drop the others and repeat them after seconds.
        let _ = tokio::time::timeout(PATIENCE, stream.read_u8()).await;
    }
    match kind {
        8 => None,
        9 => {
            let _ = stream.shutdown().await;
            Some(stream)
        }
        _ => Some(stream),
    }
}

const KINDS: usize = 10;

/// An honest client: it sends one write after the other, and each must be accepted.
struct Honest {
    address: String,
    body: String,
    /// Reuses its connection. The known gateway opens a new one for each write.
    keeps: bool,
    stream: Option<TcpStream>,
}

impl Honest {
    /// Whether the write was accepted; `None` if the connection ended before an answer.
    async fn try_write(&mut self) -> Option<bool> {
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => TcpStream::connect(&self.address).await.ok()?,
        };
        let Self { body, .. } = self;
        let head = "POST /replicate HTTP/1.1\r\nhost: localhost\r\ncontent-length:";
        stream.write_all(format!("{head} {}\r\n\r\n{body}", body.len()).as_bytes()).await.ok()?;
        let mut answer = Vec::new();
        while !answer.ends_with(b"\"}") {
            if stream.read_buf(&mut answer).await.ok()? == 0 {
                return None;
            }
        }
        let accepted = answer.starts_with(b"HTTP/1.1 202 ");
        assert!(accepted, "{}", String::from_utf8_lossy(&answer));
        self.stream = self.keeps.then_some(stream);
        Some(true)
    }

    /// Sends a write until it is answered and returns the number of requests. The daemon may close
    /// an idle connection, and then there is no answer.
    async fn write(&mut self) -> u64 {
        for asked in 1..=100 {
            if self.try_write().await.is_some() {
                return asked;
            }
        }
        panic!("no answer to a hundred requests");
    }
}

/// More connections than `--max-connections`: idle ones, ones that do not read, and short ones.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_ten_thousand_hostile_connections_every_honest_write_is_accepted() {
    const CONNECTIONS: u64 = 2000;
    const WRITES_AT_LEAST: u64 = 50;
    // This process holds both ends of 10,000 connections, if the system allows it.
    let hostile = usize::try_from(raise_open_files().saturating_sub(2000).clamp(500, 10_000));
    let hostile = hostile.unwrap();
    let args = [
        "--max-connections",
        &CONNECTIONS.to_string(),
        "--request-memory",
        "32MiB",
        "--max-value-bytes",
        "1MiB",
        "--queue-capacity",
        "100000",
        "--client-timeout",
        "5m",
    ];
    let daemon = Daemon::start(&args).await;
    let replica = Replica::start().await;
    daemon.accept(&set("first", "v", &[&replica])).await;
    let (memory_before, files_before) =
        (memory(&daemon, "VmRSS"), figure(&daemon, "process_open_fds").await);

    let stop = Arc::new(AtomicBool::new(false));
    let written: Arc<[AtomicU64; 8]> = Arc::default();
    let mut honest = JoinSet::new();
    for n in 0..written.len() {
        let (stop, written) = (Arc::clone(&stop), Arc::clone(&written));
        let mut client = Honest {
            address: daemon.address().to_owned(),
            body: set(&format!("honest{n}"), "v", &[&replica]).to_string(),
            keeps: n % 2 == 0,
            stream: None,
        };
        honest.spawn(async move {
            let mut repeated = 0;
            while !stop.load(Ordering::Relaxed) {
                repeated += client.write().await - 1;
                written[n].fetch_add(1, Ordering::Relaxed);
            }
            repeated
        });
    }

    let mut opening = JoinSet::new();
    for lane in 0..20 {
        let address = daemon.address().to_owned();
        opening.spawn(async move {
            let mut held = Vec::new();
            for n in (lane..hostile).step_by(20) {
                held.extend(open_hostile(&address, n / 20 % KINDS).await);
            }
            held
        });
    }
    let mut held: Vec<_> = opening.join_all().await.into_iter().flatten().collect();
    assert!(held.len() >= hostile * 8 / 10);
    // Each open connection sends a byte from time to time.
    for _ in 0..3 {
        held.retain(|stream| !matches!(stream.try_write(b"x"), Err(error) if error.kind() != std::io::ErrorKind::WouldBlock));
        let files = figure(&daemon, "process_open_fds").await;
        assert!(files <= files_before + CONNECTIONS + 100, "{files} files");
    }
    let before: Vec<_> = written.iter().map(|count| count.load(Ordering::Relaxed)).collect();
    let go_on = wait_until("every honest client makes progress", || async {
        let mut counts = written.iter().zip(&before);
        let enough = |(now, before): (&AtomicU64, &u64)| {
            now.load(Ordering::Relaxed) >= before + WRITES_AT_LEAST
        };
        counts.all(enough).then_some(())
    });
    tokio::select! {
        () = go_on => {}
        ended = honest.join_next() => panic!("an honest client ended: {ended:?}"),
    }
    // Per connection a head, hyper's buffers and the connection itself; then the bodies and the
    // writes.
    let bound = CONNECTIONS * (64 + 48) * KIB + 32 * MIB + 64 * MIB;
    let grown = memory(&daemon, "VmHWM").saturating_sub(memory_before);
    assert!(grown < bound, "{} MiB more, of {} allowed", grown / MIB, bound / MIB);
    drop(held);

    stop.store(true, Ordering::Relaxed);
    let repeated: u64 = honest.join_all().await.into_iter().sum();
    // A busy client has not waited longest, so it is rarely evicted, unless this process stalls.
    let accepted: u64 = written.iter().map(|count| count.load(Ordering::Relaxed)).sum();
    assert!(repeated * 5 <= accepted, "{repeated} of {accepted} were repeated");
    wait_until("the connections are closed", || async {
        (figure(&daemon, "process_open_fds").await <= files_before + 100).then_some(())
    })
    .await;
    let replica = format!("{{replica=\"{}\"}}", replica.url());
    let of = |name: &str| format!("replicator_deliveries_{name}{replica}");
    wait_until("everything is delivered", || async {
        (figure(&daemon, &of("pending")).await == 0).then_some(())
    })
    .await;
    assert!(figure(&daemon, &of("accepted_total")).await > accepted);
    let unaccounted = format!("replicator_deliveries_unaccounted{replica}");
    assert_eq!(figure(&daemon, &unaccounted).await, 0);
}
