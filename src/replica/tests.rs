//! The client against a small server that records every byte.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::mpsc;

use super::{ClientSettings, ClientTls, ReplicaClient, ReplicaHttp2, ReplicaTokens};
use crate::lease::Fence;
use crate::policy::Policy;
use crate::task::{AttemptOutcome, Consistency, Node, Operation, Task, TaskId, Timestamp, Verdict};

mod causes;
mod connections;
mod endless;
mod fences;
mod http2;
mod http2_floods;
mod lookups;
mod names;
#[path = "../../tests/it/support/tls.rs"]
mod secure;
mod tls;

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const NOW: Timestamp = Timestamp(1_000_000_000);

/// How a [`Peer`] answers a request.
#[derive(Clone)]
enum Reply {
    /// At once.
    Whole(Vec<u8>),
    /// One byte at a time; repeats the last byte for ever.
    Trickle(Vec<u8>),
    /// Never, and leaves the connection open.
    Silence,
}

/// A replica that records requests with the number of their connection.
struct Peer {
    node: Node,
    requests: mpsc::UnboundedReceiver<(usize, Vec<u8>)>,
}

impl Peer {
    async fn replying(reply: Reply) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let node = Node::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
        let (seen, requests) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            for connection in 0.. {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(converse(stream, connection, seen.clone(), reply.clone()));
            }
        });
        Self { node, requests }
    }

    async fn answering(text: &str) -> Self {
        Self::replying(Reply::Whole(text.into())).await
    }

    /// The next request, head and body, with the number of its connection.
    fn seen(&mut self) -> (usize, String) {
        let (connection, bytes) = self.requests.try_recv().expect("a request was sent");
        (connection, String::from_utf8(bytes).unwrap())
    }
}

/// Answers requests until the client disconnects.
async fn converse(
    mut stream: TcpStream,
    connection: usize,
    seen: mpsc::UnboundedSender<(usize, Vec<u8>)>,
    reply: Reply,
) {
    while let Some(request) = read_request(&mut stream).await {
        // Before the answer, so that a test that has the answer finds the request.
        let _ = seen.send((connection, request));
        let written = match &reply {
            Reply::Whole(bytes) => stream.write_all(bytes).await,
            Reply::Trickle(bytes) => trickle(&mut stream, bytes).await,
            Reply::Silence => std::future::pending().await,
        };
        if written.is_err() {
            return;
        }
    }
}

async fn read_request(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut request = Vec::new();
    loop {
        request.push(stream.read_u8().await.ok()?);
        if request.ends_with(b"\r\n\r\n") {
            break;
        }
    }
    let head = String::from_utf8(request.clone()).unwrap();
    let length = header(&head, "content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    request.extend(body);
    Some(request)
}

async fn trickle(stream: &mut TcpStream, bytes: &[u8]) -> std::io::Result<()> {
    let mut pace = tokio::time::interval(Duration::from_millis(5));
    let last = *bytes.last().unwrap();
    for byte in bytes.iter().copied().chain(std::iter::repeat(last)) {
        pace.tick().await;
        stream.write_u8(byte).await?;
    }
    Ok(())
}

fn header<'a>(request: &'a str, name: &str) -> Option<&'a str> {
    let head = request.split("\r\n\r\n").next().unwrap();
    head.lines().skip(1).find_map(|line| {
        let (key, value) = line.split_once(": ")?;
        key.eq_ignore_ascii_case(name).then_some(value)
    })
}

fn request_line(request: &str) -> &str {
    request.lines().next().unwrap()
}

fn settings(request_timeout: Duration) -> ClientSettings {
    ClientSettings {
        node_id: "replicator".into(),
        request_timeout,
        connection_age: Duration::from_secs(60),
        idle_per_replica: 2,
        idle_replicas: 100,
        http2: ReplicaHttp2::Off,
    }
}

fn client(request_timeout: Duration) -> ReplicaClient {
    let settings = settings(request_timeout);
    ReplicaClient::new(
        &settings,
        Policy::new(None, None),
        ClientTls::default(),
        ReplicaTokens::default(),
    )
    .unwrap()
}

fn patient() -> ReplicaClient {
    client(Duration::from_secs(120))
}

fn set(key: &str, value: &'static [u8]) -> Task {
    Task {
        id: TaskId(42),
        key: key.into(),
        operation: Operation::Set,
        value: Bytes::from_static(value),
        accepted_at: NOW,
        expires_at: None,
        replicas: Vec::new(),
        user_id: None,
        client: None,
        consistency: Consistency::Eventual,
        primary: None,
        trace: None,
    }
}

fn delete(key: &str) -> Task {
    Task { operation: Operation::Delete, ..set(key, b"") }
}

#[track_caller]
fn retry_text(verdict: Verdict) -> Arc<str> {
    match verdict {
        Verdict::Retry { error, .. } => error,
        other => panic!("expected a retry, not {other:?}"),
    }
}

#[track_caller]
fn rejected_text(verdict: Verdict) -> Arc<str> {
    match verdict {
        Verdict::Rejected { error } => error,
        other => panic!("expected a rejection, not {other:?}"),
    }
}

#[tokio::test]
async fn a_set_goes_out_as_a_put_of_its_bytes() {
    let mut peer = Peer::answering(OK).await;
    let verdict =
        patient().send(&peer.node, &set("k", b"value"), None, NOW, &Fence::Open).await.verdict;
    assert_eq!(verdict, Verdict::Delivered);

    let (_, request) = peer.seen();
    assert_eq!(request_line(&request), "PUT /store/k HTTP/1.1");
    assert_eq!(header(&request, "x-replication"), Some("true"));
    assert_eq!(header(&request, "x-replication-id"), Some("replicator-42"));
    assert_eq!(header(&request, "x-replication-sequence"), Some("42"));
    assert_eq!(header(&request, "content-type"), Some("application/octet-stream"));
    assert_eq!(header(&request, "content-length"), Some("5"));
    assert!(request.ends_with("\r\n\r\nvalue"));
}

#[tokio::test]
async fn an_empty_value_is_sent_with_content_length_zero() {
    let mut peer = Peer::answering(OK).await;
    patient().send(&peer.node, &set("k", b""), None, NOW, &Fence::Open).await;
    assert_eq!(header(&peer.seen().1, "content-length"), Some("0"));
}

#[tokio::test]
async fn a_delete_goes_out_without_body_and_ttl() {
    let mut peer = Peer::answering("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n").await;
    let verdict = patient().send(&peer.node, &delete("k"), None, NOW, &Fence::Open).await.verdict;
    assert_eq!(verdict, Verdict::Delivered);

    let (_, request) = peer.seen();
    assert_eq!(request_line(&request), "DELETE /store/k HTTP/1.1");
    assert_eq!(header(&request, "x-replication-id"), Some("replicator-42"));
    assert_eq!(header(&request, "content-type"), None);
    assert!(request.ends_with("\r\n\r\n"));
}

#[tokio::test]
async fn any_key_is_sent_as_one_path_segment() {
    let mut peer = Peer::answering(OK).await;
    let client = patient();
    let cases = [
        ("a/b", "a%2Fb"),
        ("/", "%2F"),
        ("100%", "100%25"),
        ("a?b=c", "a%3Fb%3Dc"),
        ("a#b", "a%23b"),
        ("a b+c", "a%20b%2Bc"),
        ("schlüssel", "schl%C3%BCssel"),
        ("%2e%2e", "%252e%252e"),
        ("../x", "..%2Fx"),
        ("...", "..."),
        ("a\\b", "a%5Cb"),
        ("line\r\nbreak", "line%0D%0Abreak"),
        ("A-z_0.9~", "A-z_0.9~"),
        ("a:b@c;d,e!", "a%3Ab%40c%3Bd%2Ce%21"),
    ];
    for (key, segment) in cases {
        for (task, method) in [(set(key, b"v"), "PUT"), (delete(key), "DELETE")] {
            client.send(&peer.node, &task, None, NOW, &Fence::Open).await;
            let expected = format!("{method} /store/{segment} HTTP/1.1");
            assert_eq!(request_line(&peer.seen().1), expected);
        }
    }
}

#[tokio::test]
async fn a_key_of_the_longest_configurable_size_can_be_sent() {
    let peer = Peer::answering(OK).await;
    let verdict = patient()
        .send(&peer.node, &set(&"/".repeat(16 * 1024), b"v"), None, NOW, &Fence::Open)
        .await
        .verdict;
    assert_eq!(verdict, Verdict::Delivered);
}

#[tokio::test]
async fn the_base_path_of_a_node_is_kept() {
    let mut peer = Peer::answering(OK).await;
    let node = Node::parse(&format!("{}/base/path/", peer.node)).unwrap();
    patient().send(&node, &set("k", b"v"), None, NOW, &Fence::Open).await;
    assert_eq!(request_line(&peer.seen().1), "PUT /base/path/store/k HTTP/1.1");
}

#[tokio::test]
async fn the_remaining_ttl_is_sent() {
    let mut peer = Peer::answering(OK).await;
    let task =
        Task { expires_at: Some(NOW.saturating_add(Duration::from_secs(3_600))), ..set("k", b"v") };
    let client = patient();
    let later = |millis| NOW.saturating_add(Duration::from_millis(millis));

    client.send(&peer.node, &task, None, NOW, &Fence::Open).await;
    assert_eq!(request_line(&peer.seen().1), "PUT /store/k?ttl=1h0m0s HTTP/1.1");
    client.send(&peer.node, &task, None, later(3_598_500), &Fence::Open).await;
    assert_eq!(request_line(&peer.seen().1), "PUT /store/k?ttl=1.5s HTTP/1.1");
    client.send(&peer.node, &task, None, later(3_600_000), &Fence::Open).await;
    assert_eq!(request_line(&peer.seen().1), "DELETE /store/k HTTP/1.1");
}

#[tokio::test]
async fn a_redirect_is_a_rejection_and_is_not_followed() {
    let mut elsewhere = Peer::answering(OK).await;
    let redirect = format!(
        "HTTP/1.1 307 Temporary Redirect\r\nLocation: {}/store/k\r\nContent-Length: 0\r\n\r\n",
        elsewhere.node
    );
    let peer = Peer::answering(&redirect).await;
    let verdict =
        patient().send(&peer.node, &set("k", b"v"), None, NOW, &Fence::Open).await.verdict;
    assert!(rejected_text(verdict).contains("307 Temporary Redirect"));
    assert!(elsewhere.requests.try_recv().is_err());
}

#[tokio::test]
async fn retry_after_is_read_from_the_answer() {
    let busy = "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 7\r\nContent-Length: 0\r\n\r\n";
    let peer = Peer::answering(busy).await;
    let verdict =
        patient().send(&peer.node, &set("k", b"v"), None, NOW, &Fence::Open).await.verdict;
    assert_eq!(
        verdict,
        Verdict::Retry {
            after: Some(Duration::from_secs(7)),
            error: "the replica answered 503 Service Unavailable".into()
        }
    );
}

/// A 500 whose body contains `already replicated` at byte `at` and never ends.
fn phrase_at(at: usize) -> Reply {
    let mut answer = b"HTTP/1.1 500 Oops\r\nContent-Length: 1000000\r\n\r\n".to_vec();
    answer.extend(vec![b'.'; at]);
    answer.extend(b"already replicated");
    Reply::Whole(answer)
}

#[tokio::test]
async fn only_64_kib_of_a_long_answer_are_read() {
    const CUT: usize = 64 * 1024 - b"already replicated".len();
    let task = set("k", b"v");

    let inside = Peer::replying(phrase_at(CUT)).await;
    let verdict = patient().send(&inside.node, &task, None, NOW, &Fence::Open).await.verdict;
    assert_eq!(verdict, Verdict::Delivered);

    let across = Peer::replying(phrase_at(CUT + 1)).await;
    retry_text(patient().send(&across.node, &task, None, NOW, &Fence::Open).await.verdict);
}

#[tokio::test]
async fn a_body_that_is_cut_off_counts_up_to_the_cut() {
    let broken = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 99\r\n\r\nno such bucket".to_vec();
    let peer = Peer::replying(Reply::Whole(broken)).await;
    // The part before the cut arrives long before this timeout.
    let hasty = client(Duration::from_secs(2));
    let verdict =
        hasty.send(&peer.node, &set("a/b", b"12345"), None, NOW, &Fence::Open).await.verdict;
    assert_eq!(
        &*rejected_text(verdict),
        "the replica rejected the write with 400 Bad Request: no such bucket"
    );
}

#[tokio::test]
async fn a_response_head_that_trickles_in_times_out() {
    let slow = b"HTTP/1.1 200 OK\r\nX-Slow: .".to_vec();
    let peer = Peer::replying(Reply::Trickle(slow)).await;
    let hasty = client(Duration::from_millis(200));
    let verdict = hasty.send(&peer.node, &set("k", b"v"), None, NOW, &Fence::Open).await.verdict;
    assert_eq!(&*retry_text(verdict), "no answer within 200ms");
}

#[tokio::test]
async fn a_replica_that_never_answers_times_out() {
    let peer = Peer::replying(Reply::Silence).await;
    let hasty = client(Duration::from_millis(200));
    let verdict = hasty.send(&peer.node, &set("k", b"v"), None, NOW, &Fence::Open).await.verdict;
    assert_eq!(&*retry_text(verdict), "no answer within 200ms");
}

#[tokio::test]
async fn a_success_whose_body_never_ends_is_delivered() {
    let slow = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n.".to_vec();
    let peer = Peer::replying(Reply::Trickle(slow)).await;
    let verdict =
        patient().send(&peer.node, &set("k", b"v"), None, NOW, &Fence::Open).await.verdict;
    assert_eq!(verdict, Verdict::Delivered);
}

#[tokio::test]
async fn a_request_that_cannot_be_built_is_rejected_without_the_key() {
    let peer = Peer::answering(OK).await;
    let task = set(&"private-key".repeat(10_000), b"v");
    let error =
        rejected_text(patient().send(&peer.node, &task, None, NOW, &Fence::Open).await.verdict);
    assert!(error.starts_with("cannot build the request: "), "{error}");
    assert!(!error.contains("private-key"), "{error}");
}

#[tokio::test]
async fn https_to_a_replica_without_tls_is_retried() {
    let peer = Peer::answering(OK).await;
    let node = Node::parse(&peer.node.as_str().replace("http:", "https:")).unwrap();
    let hasty = client(Duration::from_millis(200));
    let verdict = hasty.send(&node, &set("k", b"v"), None, NOW, &Fence::Open).await.verdict;
    assert_eq!(&*retry_text(verdict), "cannot connect: no answer within 200ms");
}

#[tokio::test]
async fn consecutive_attempts_reuse_one_connection() {
    for answer in [
        OK,
        "HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    ] {
        let mut peer = Peer::answering(answer).await;
        let client = patient();
        for _ in 0..5 {
            client.send(&peer.node, &set("k", b"v"), None, NOW, &Fence::Open).await;
            assert_eq!(peer.seen().0, 0, "the connection of {answer:?}");
        }
    }
}

/// Runs one of the tests above in another process, with these environment variables.
#[track_caller]
fn passes_with(test: &str, variables: &[(&str, &str)]) {
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("replica::tests::{test}")])
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && stdout.contains("1 passed"), "{stdout}");
}

#[test]
fn a_proxy_from_the_environment_is_not_used() {
    // Nothing listens on port 1, so an attempt through it would fail.
    let proxy = "http://127.0.0.1:1";
    let names = ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"];
    passes_with("a_set_goes_out_as_a_put_of_its_bytes", &names.map(|name| (name, proxy)));
}

#[test]
fn plain_http_works_without_system_certificates() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("missing");
    let missing = missing.to_str().unwrap();
    passes_with(
        "a_set_goes_out_as_a_put_of_its_bytes",
        &[("SSL_CERT_FILE", missing), ("SSL_CERT_DIR", missing)],
    );
}

#[test]
fn a_node_id_that_is_not_a_valid_header_is_an_error() {
    let settings =
        ClientSettings { node_id: "two\nlines".into(), ..settings(Duration::from_secs(1)) };
    let policy = Policy::new(None, None);
    let error =
        ReplicaClient::new(&settings, policy, ClientTls::default(), ReplicaTokens::default())
            .unwrap_err();
    assert!(error.to_string().contains(r#""two\nlines""#));
}
