//! Which connection carries a request, and when a new one is made.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Barrier;

use super::*;
use crate::replica::names::{Lookup, LookupTimes};

/// How a replica reacts to a request.
#[derive(Clone, Copy)]
enum Then {
    Answer(&'static str),
    /// Reads the request and closes the connection.
    Close,
    Silence,
}

/// The reaction to request `count` (from 0) of a connection.
type Script = fn(connection: usize, count: usize) -> Then;

struct Scripted {
    node: Node,
    requests: mpsc::UnboundedReceiver<(usize, Vec<u8>)>,
}

impl Scripted {
    async fn start(script: Script) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let node = Node::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
        let (seen, requests) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            for connection in 0.. {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(follow(stream, connection, script, seen.clone()));
            }
        });
        Self { node, requests }
    }

    /// The connection numbers of all requests since the last call, in order.
    fn connections(&mut self) -> Vec<usize> {
        std::iter::from_fn(|| self.requests.try_recv().ok()).map(|(number, _)| number).collect()
    }
}

async fn follow(
    mut stream: TcpStream,
    connection: usize,
    script: Script,
    seen: mpsc::UnboundedSender<(usize, Vec<u8>)>,
) {
    for count in 0.. {
        let Some(request) = read_request(&mut stream).await else { return };
        let _ = seen.send((connection, request));
        match script(connection, count) {
            Then::Answer(text) => stream.write_all(text.as_bytes()).await.unwrap(),
            Then::Close => return,
            Then::Silence => std::future::pending().await,
        }
    }
}

async fn attempt(client: &ReplicaClient, node: &Node) -> AttemptOutcome {
    client.send(node, &set("private-key", b"v"), None, NOW, &Fence::Open).await
}

async fn send(client: &ReplicaClient, node: &Node) -> Verdict {
    attempt(client, node).await.verdict
}

#[track_caller]
fn is_ambiguous(outcome: &AttemptOutcome) {
    let retry = matches!(outcome.verdict, Verdict::Retry { .. });
    assert!(retry && outcome.ambiguous, "{outcome:?}");
}

#[tokio::test]
async fn a_request_over_a_closed_idle_connection_is_repeated_on_a_new_one() {
    let mut replica =
        Scripted::start(|_, count| if count == 0 { Then::Answer(OK) } else { Then::Close }).await;
    let client = patient();
    for repeated in [false, true, true] {
        let outcome = attempt(&client, &replica.node).await;
        assert_eq!(outcome.verdict, Verdict::Delivered);
        // The replica has read the first request and may apply it after a newer write.
        assert_eq!(outcome.ambiguous, repeated);
    }
    assert_eq!(replica.connections(), [0, 0, 1, 1, 2]);
}

#[tokio::test]
async fn a_new_connection_that_closes_without_an_answer_is_a_failure() {
    let mut replica = Scripted::start(|_, _| Then::Close).await;
    let client = patient();
    for _ in 0..3 {
        is_ambiguous(&attempt(&client, &replica.node).await);
    }
    assert_eq!(replica.connections(), [0, 1, 2]);
}

#[tokio::test]
async fn a_new_connection_that_closes_is_a_failure_even_if_others_have_served() {
    const CLOSING: &str = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
    let script: Script = |connection, _| match connection {
        0 => Then::Answer(CLOSING),
        _ => Then::Close,
    };
    let mut replica = Scripted::start(script).await;
    let client = patient();
    assert_eq!(send(&client, &replica.node).await, Verdict::Delivered);
    is_ambiguous(&attempt(&client, &replica.node).await);
    assert_eq!(replica.connections(), [0, 1]);
}

#[tokio::test]
async fn a_request_is_repeated_once_and_a_failed_repeat_is_a_failure() {
    let script: Script = |connection, count| match (connection, count) {
        (0, 0) => Then::Answer(OK),
        _ => Then::Close,
    };
    let mut replica = Scripted::start(script).await;
    let client = patient();
    assert_eq!(send(&client, &replica.node).await, Verdict::Delivered);
    is_ambiguous(&attempt(&client, &replica.node).await);
    assert_eq!(replica.connections(), [0, 0, 1]);
}

#[tokio::test]
async fn a_repeat_that_cannot_connect_leaves_the_first_request_ambiguous() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let node = Node::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
    let replica = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        read_request(&mut stream).await.unwrap();
        stream.write_all(OK.as_bytes()).await.unwrap();
        drop(listener);
        read_request(&mut stream).await.unwrap();
    });
    let client = patient();
    assert_eq!(send(&client, &node).await, Verdict::Delivered);
    let outcome = attempt(&client, &node).await;
    is_ambiguous(&outcome);
    assert!(retry_text(outcome.verdict).starts_with("connection refused"));
    replica.await.unwrap();
}

/// Sends `count` attempts at the same time, so that each has its own connection.
async fn together(count: usize, client: &ReplicaClient, node: &Node) {
    let barrier = Arc::new(Barrier::new(count));
    let sends = (0..count).map(|_| {
        let (client, node, barrier) = (client.clone(), node.clone(), Arc::clone(&barrier));
        tokio::spawn(async move {
            barrier.wait().await;
            send(&client, &node).await
        })
    });
    for sent in sends.collect::<Vec<_>>() {
        assert_eq!(sent.await.unwrap(), Verdict::Delivered);
    }
}

#[tokio::test]
async fn connections_older_than_a_timeout_are_not_reused() {
    // Connections with a lower number never answer again.
    static MADE_BEFORE: AtomicUsize = AtomicUsize::new(usize::MAX);
    let script: Script = |connection, _| {
        let dead = connection < MADE_BEFORE.load(Ordering::SeqCst);
        if dead && MADE_BEFORE.load(Ordering::SeqCst) != usize::MAX {
            Then::Silence
        } else {
            Then::Answer(OK)
        }
    };
    let mut replica = Scripted::start(script).await;
    let client = client(Duration::from_secs(2));
    together(4, &client, &replica.node).await;
    let before = replica.connections().into_iter().max().unwrap();
    MADE_BEFORE.store(before + 1, Ordering::SeqCst);
    is_ambiguous(&attempt(&client, &replica.node).await);
    assert!(replica.connections().iter().all(|connection| *connection <= before));
    for _ in 0..4 {
        assert_eq!(send(&client, &replica.node).await, Verdict::Delivered);
    }
    let after = replica.connections();
    assert!(after.iter().all(|connection| *connection > before), "{before}: {after:?}");
}

fn aged(age: Duration) -> ReplicaClient {
    let settings = ClientSettings { connection_age: age, ..settings(Duration::from_secs(120)) };
    let (policy, tls) = (Policy::new(None, None), ClientTls::default());
    ReplicaClient::new(&settings, policy, tls, ReplicaTokens::default()).unwrap()
}

#[tokio::test]
async fn a_connection_is_replaced_at_its_maximum_age() {
    let mut replica = Scripted::start(|_, _| Then::Answer(OK)).await;
    // 1 ns has always passed by the next request.
    for (age, connections) in [(Duration::from_nanos(1), [0, 1, 2]), (Duration::ZERO, [3, 3, 3])] {
        let client = aged(age);
        for _ in 0..3 {
            assert_eq!(send(&client, &replica.node).await, Verdict::Delivered);
        }
        assert_eq!(replica.connections(), connections, "{age:?}");
    }
}

#[tokio::test]
async fn a_name_is_looked_up_again_when_its_connection_expires() {
    let replica = Scripted::start(|_, _| Then::Answer(OK)).await;
    let node = Node::parse(&replica.node.as_str().replace("127.0.0.1", "db.example")).unwrap();
    for (age, lookups) in [(Duration::from_nanos(1), 3), (Duration::ZERO, 1)] {
        let calls = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&calls);
        let lookup = move |_: &str| {
            count.fetch_add(1, Ordering::SeqCst);
            Ok(vec!["127.0.0.1".parse().unwrap()])
        };
        let settings = ClientSettings { connection_age: age, ..settings(Duration::from_secs(120)) };
        let (policy, tls, tokens) =
            (Policy::new(None, None), ClientTls::default(), ReplicaTokens::default());
        let uncached = LookupTimes { fresh: Duration::ZERO, ..LookupTimes::default() };
        let resolving: (Lookup, LookupTimes) = (Arc::new(lookup), uncached);
        let client = ReplicaClient::resolving(&settings, policy, tls, tokens, resolving).unwrap();
        for _ in 0..3 {
            assert_eq!(send(&client, &node).await, Verdict::Delivered);
        }
        assert_eq!(calls.load(Ordering::SeqCst), lookups, "{age:?}");
    }
}

#[tokio::test]
async fn answers_with_malformed_headers_are_accepted() {
    for header in [
        "X-Folded: one\r\n two\r\n\tthree",
        "X-Space : before the colon",
        "X Odd: a name with a space",
        "no colon at all",
        "X-Latin: caf\u{e9}",
        ": no name",
    ] {
        let text = format!("HTTP/1.1 200 OK\r\n{header}\r\nContent-Length: 2\r\n\r\nok");
        let peer = Peer::answering(&text).await;
        assert_eq!(send(&patient(), &peer.node).await, Verdict::Delivered, "{header:?}");
        let text = format!("HTTP/1.1 409 No\r\n{header}\r\nContent-Length: 4\r\n\r\nwhy?");
        let peer = Peer::answering(&text).await;
        let said = rejected_text(send(&patient(), &peer.node).await);
        assert!(said.ends_with("409 Conflict: why?"), "{header:?}: {said}");
    }
}

/// A replica that reads the body in `pieces`, one every 20 ms.
async fn slow_reader(pieces: usize) -> (Node, mpsc::UnboundedReceiver<(String, usize)>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let node = Node::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
    let (seen, requests) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap();
        let length: usize = header(&head, "content-length").unwrap().parse().unwrap();
        let mut pace = tokio::time::interval(Duration::from_millis(20));
        let (mut piece, mut read) = (vec![0; length.div_ceil(pieces)], 0);
        while read < length {
            pace.tick().await;
            read += stream.read(&mut piece).await.unwrap();
        }
        seen.send((head, read)).unwrap();
        stream.write_all(OK.as_bytes()).await.unwrap();
    });
    (node, requests)
}

fn large(bytes: usize) -> Task {
    Task { value: Bytes::from(vec![b'v'; bytes]), ..set("k", b"") }
}

#[tokio::test]
async fn a_large_value_may_take_longer_than_the_timeout_while_it_makes_progress() {
    let (node, mut seen) = slow_reader(150).await;
    let verdict = client(Duration::from_secs(1))
        .send(&node, &large(2 << 20), None, NOW, &Fence::Open)
        .await
        .verdict;
    assert_eq!(verdict, Verdict::Delivered);
    let (head, read) = seen.try_recv().unwrap();
    assert_eq!(read, 2 << 20);
    assert_eq!(header(&head, "transfer-encoding"), None);
}

#[tokio::test]
async fn a_large_value_arrives_whole() {
    let mut peer = Peer::answering(OK).await;
    for bytes in [64 << 10, (64 << 10) + 1, 1 << 20] {
        let verdict =
            patient().send(&peer.node, &large(bytes), None, NOW, &Fence::Open).await.verdict;
        assert_eq!(verdict, Verdict::Delivered);
        let request = peer.seen().1;
        assert_eq!(header(&request, "content-length"), Some(&*bytes.to_string()));
        assert!(request.split("\r\n\r\n").nth(1).unwrap().bytes().all(|byte| byte == b'v'));
    }
}

#[tokio::test]
async fn a_replica_that_stops_reading_a_large_value_times_out() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let node = Node::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
    let client = client(Duration::from_millis(200));
    is_ambiguous(&client.send(&node, &large(100 << 10), None, NOW, &Fence::Open).await);
    drop(listener);
}
