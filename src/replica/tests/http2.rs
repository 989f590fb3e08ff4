//! HTTP/2, against servers of h2.

use std::collections::HashMap;
use std::net::SocketAddr;

use h2::server::{Builder, SendResponse};
use h2::{Reason, RecvStream};
use hyper::{Request, Response};
use tokio::sync::Semaphore;

use super::secure::{Authority, front_offering};
use super::*;

/// How a replica reacts to a request.
#[derive(Clone, Copy)]
enum Then {
    /// With this status, after [`Replica::release`].
    Answer(u16),
    Reset(Reason),
    /// Never, and reads no body.
    Silence,
    /// Closes the connection.
    Close,
}

/// The reaction to request `count` (from 0) of a connection.
type Script = fn(connection: usize, count: usize) -> Then;

struct Seen {
    connection: usize,
    request: Request<()>,
    body: Vec<u8>,
}

struct Replica {
    node: Node,
    address: SocketAddr,
    seen: mpsc::UnboundedReceiver<Seen>,
    /// A permit for each answer.
    answers: Arc<Semaphore>,
    /// Numbers of the connections on which a stream was reset.
    cancelled: mpsc::UnboundedReceiver<usize>,
}

impl Replica {
    /// Answers at once.
    async fn start(script: Script) -> Self {
        let replica = Self::holding(100, script).await;
        replica.release(Semaphore::MAX_PERMITS);
        replica
    }

    async fn holding(streams: u32, script: Script) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let node = Node::parse(&format!("http://{address}")).unwrap();
        let (sees, seen) = mpsc::unbounded_channel();
        let (cancels, cancelled) = mpsc::unbounded_channel();
        let answers = Arc::new(Semaphore::new(0));
        let permits = Arc::clone(&answers);
        tokio::spawn(async move {
            for number in 0.. {
                let (stream, _) = listener.accept().await.unwrap();
                let (sees, cancels, permits) =
                    (sees.clone(), cancels.clone(), Arc::clone(&permits));
                tokio::spawn(async move {
                    let mut builder = Builder::new();
                    builder.max_concurrent_streams(streams);
                    let Ok(mut connection) = builder.handshake::<_, Bytes>(stream).await else {
                        return;
                    };
                    for count in 0.. {
                        let Some(Ok((request, respond))) = connection.accept().await else {
                            return;
                        };
                        let then = script(number, count);
                        if matches!(then, Then::Close) {
                            return;
                        }
                        let (sees, cancels) = (sees.clone(), cancels.clone());
                        let reaction = react(
                            then,
                            number,
                            request,
                            respond,
                            Arc::clone(&permits),
                            sees,
                            cancels,
                        );
                        tokio::spawn(reaction);
                    }
                });
            }
        });
        Self { node, address, seen, answers, cancelled }
    }

    fn release(&self, answers: usize) {
        self.answers.add_permits(answers);
    }

    /// The connections of all requests since the last call.
    fn connections(&mut self) -> Vec<usize> {
        std::iter::from_fn(|| self.seen.try_recv().ok()).map(|seen| seen.connection).collect()
    }

    /// Waits for `count` requests and returns the number of requests by connection.
    async fn receives(&mut self, count: usize) -> HashMap<usize, usize> {
        let mut by_connection = HashMap::new();
        for _ in 0..count {
            *by_connection.entry(self.seen.recv().await.unwrap().connection).or_default() += 1;
        }
        by_connection
    }
}

async fn react(
    then: Then,
    connection: usize,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    answers: Arc<Semaphore>,
    sees: mpsc::UnboundedSender<Seen>,
    cancels: mpsc::UnboundedSender<usize>,
) {
    let (parts, mut stream) = request.into_parts();
    let mut body = Vec::new();
    if !matches!(then, Then::Silence) {
        while let Some(Ok(piece)) = stream.data().await {
            stream.flow_control().release_capacity(piece.len()).unwrap();
            body.extend_from_slice(&piece);
        }
    }
    let _ = sees.send(Seen { connection, request: Request::from_parts(parts, ()), body });
    match then {
        Then::Answer(status) => {
            tokio::select! {
                permit = answers.acquire() => permit.unwrap().forget(),
                _ = std::future::poll_fn(|context| respond.poll_reset(context)) => {
                    let _ = cancels.send(connection);
                    return;
                }
            }
            let head = Response::builder().status(status).body(()).unwrap();
            let mut stream = respond.send_response(head, false).unwrap();
            let _ = stream.send_data(Bytes::from_static(b"ok"), true);
        }
        Then::Reset(reason) => respond.send_reset(reason),
        Then::Silence => {
            let _ = std::future::poll_fn(|context| respond.poll_reset(context)).await;
            let _ = cancels.send(connection);
        }
        Then::Close => unreachable!(),
    }
}

fn with(http2: ReplicaHttp2, tls: ClientTls, request_timeout: Duration) -> ReplicaClient {
    let settings = ClientSettings { http2, ..settings(request_timeout) };
    ReplicaClient::new(&settings, Policy::new(None, None), tls, ReplicaTokens::default()).unwrap()
}

pub(super) fn knowing(request_timeout: Duration) -> ReplicaClient {
    with(ReplicaHttp2::PriorKnowledge, ClientTls::default(), request_timeout)
}

fn calm() -> ReplicaClient {
    knowing(Duration::from_secs(120))
}

async fn attempt(client: &ReplicaClient, node: &Node) -> AttemptOutcome {
    client.send(node, &set("private-key", b"v"), None, NOW, &Fence::Open).await
}

/// Starts an attempt in a task of its own.
fn start(client: &ReplicaClient, node: &Node) -> tokio::task::JoinHandle<AttemptOutcome> {
    let (client, node) = (client.clone(), node.clone());
    tokio::spawn(async move { attempt(&client, &node).await })
}

#[track_caller]
fn is_delivered(outcome: &AttemptOutcome) {
    assert!(outcome.verdict == Verdict::Delivered && !outcome.ambiguous, "{outcome:?}");
}

#[track_caller]
fn is_lost(outcome: AttemptOutcome, ambiguous: bool, expected: &str) {
    assert_eq!(outcome.ambiguous, ambiguous, "{outcome:?}");
    assert_eq!(&*retry_text(outcome.verdict), expected);
}

#[tokio::test]
async fn a_request_has_the_form_of_http_2() {
    let mut replica = Replica::start(|_, _| Then::Answer(200)).await;
    let base = Node::parse(&format!("{}/base", replica.node)).unwrap();
    is_delivered(&calm().send(&base, &set("a/b", b"value"), None, NOW, &Fence::Open).await);
    let seen = replica.seen.recv().await.unwrap();
    let (uri, headers) = (seen.request.uri(), seen.request.headers());
    assert_eq!(uri, &*format!("http://{}/base/store/a%2Fb", replica.address));
    assert_eq!((seen.request.method().as_str(), &*seen.body), ("PUT", &b"value"[..]));
    assert_eq!(
        (&headers["content-length"], &headers["x-replication-id"]),
        (&"5".parse().unwrap(), &"replicator-42".parse().unwrap())
    );
    assert!(!headers.contains_key("host"));

    is_delivered(&calm().send(&replica.node, &delete("k"), None, NOW, &Fence::Open).await);
    let seen = replica.seen.recv().await.unwrap();
    assert_eq!((seen.request.method().as_str(), &*seen.body), ("DELETE", &b""[..]));
}

#[tokio::test]
async fn a_status_over_http_2_has_its_verdict() {
    let replica = Replica::start(|_, _| Then::Answer(503)).await;
    let outcome = attempt(&calm(), &replica.node).await;
    assert_eq!(&*retry_text(outcome.verdict), "the replica answered 503 Service Unavailable");
    let replica = Replica::start(|_, _| Then::Answer(400)).await;
    let outcome = attempt(&calm(), &replica.node).await;
    assert_eq!(
        &*rejected_text(outcome.verdict),
        "the replica rejected the write with 400 Bad Request: ok"
    );
}

#[tokio::test]
async fn many_attempts_share_one_connection() {
    let mut replica = Replica::holding(100, |_, _| Then::Answer(200)).await;
    let client = calm();
    let first = start(&client, &replica.node);
    assert_eq!(replica.receives(1).await, HashMap::from([(0, 1)]));
    let others: Vec<_> = (0..20).map(|_| start(&client, &replica.node)).collect();
    // All of them are in flight together.
    assert_eq!(replica.receives(20).await, HashMap::from([(0, 20)]));
    replica.release(21);
    is_delivered(&first.await.unwrap());
    for other in others {
        is_delivered(&other.await.unwrap());
    }
}

#[tokio::test]
async fn a_connection_carries_as_many_streams_as_the_replica_allows() {
    let mut replica = Replica::holding(3, |_, _| Then::Answer(200)).await;
    let client = calm();
    // Its answer has the settings before it.
    let first = start(&client, &replica.node);
    replica.receives(1).await;
    replica.release(1);
    is_delivered(&first.await.unwrap());
    let mut attempts = Vec::new();
    for _ in 0..3 {
        attempts.push(start(&client, &replica.node));
        assert_eq!(replica.receives(1).await, HashMap::from([(0, 1)]));
    }
    attempts.push(start(&client, &replica.node));
    assert_eq!(replica.receives(1).await, HashMap::from([(1, 1)]), "a fourth gets another one");
    replica.release(4);
    for attempt in attempts {
        is_delivered(&attempt.await.unwrap());
    }
}

#[tokio::test]
async fn a_refused_stream_is_repeated_without_doubt() {
    let mut replica = Replica::start(|connection, _| match connection {
        0 => Then::Reset(Reason::REFUSED_STREAM),
        _ => Then::Answer(200),
    })
    .await;
    is_delivered(&attempt(&calm(), &replica.node).await);
    assert_eq!(replica.connections(), [0, 1]);

    let replica = Replica::start(|_, _| Then::Reset(Reason::REFUSED_STREAM)).await;
    let outcome = attempt(&calm(), &replica.node).await;
    is_lost(outcome, false, "the replica reset the request (REFUSED_STREAM)");
}

#[tokio::test]
async fn a_stream_that_is_reset_for_another_reason_is_ambiguous() {
    for reason in [Reason::INTERNAL_ERROR, Reason::CANCEL, Reason::NO_ERROR] {
        let script: Script = match reason {
            Reason::INTERNAL_ERROR => |_, _| Then::Reset(Reason::INTERNAL_ERROR),
            Reason::CANCEL => |_, _| Then::Reset(Reason::CANCEL),
            _ => |_, _| Then::Reset(Reason::NO_ERROR),
        };
        let mut replica = Replica::start(script).await;
        let outcome = attempt(&calm(), &replica.node).await;
        is_lost(outcome, true, &format!("the replica reset the request ({reason:?})"));
        assert_eq!(replica.connections(), [0], "it is not repeated");
    }
}

#[tokio::test]
async fn a_request_over_a_closed_connection_is_repeated_once() {
    let mut replica = Replica::start(|_, count| match count {
        0 => Then::Answer(200),
        _ => Then::Close,
    })
    .await;
    let client = calm();
    is_delivered(&attempt(&client, &replica.node).await);
    let outcome = attempt(&client, &replica.node).await;
    assert_eq!(outcome.verdict, Verdict::Delivered);
    // The replica may have read the first request.
    assert!(outcome.ambiguous);
    assert_eq!(replica.connections(), [0, 1]);

    let replica = Replica::start(|_, _| Then::Close).await;
    let outcome = attempt(&calm(), &replica.node).await;
    is_lost(outcome, true, "the replica closed the connection without an answer");
}

#[tokio::test]
async fn a_timeout_resets_its_stream_and_ends_the_reuse_of_its_connection() {
    let mut replica = Replica::holding(100, |connection, count| match (connection, count) {
        (0, 0) => Then::Silence,
        _ => Then::Answer(200),
    })
    .await;
    let hasty = knowing(Duration::from_secs(1));
    let silent = start(&hasty, &replica.node);
    replica.receives(1).await;
    is_lost(silent.await.unwrap(), true, "no answer within 1s");
    assert_eq!(replica.cancelled.recv().await, Some(0));
    replica.release(1);
    is_delivered(&attempt(&hasty, &replica.node).await);
    assert_eq!(replica.connections(), [1]);
}

#[tokio::test]
async fn an_attempt_in_flight_survives_the_timeout_of_another_one_on_its_connection() {
    let mut replica = Replica::holding(100, |_, count| match count {
        0 => Then::Silence,
        _ => Then::Answer(200),
    })
    .await;
    let client = calm();
    let silent = start(&client, &replica.node);
    replica.receives(1).await;
    let other = start(&client, &replica.node);
    assert_eq!(replica.receives(1).await, HashMap::from([(0, 1)]));
    silent.abort();
    assert_eq!(replica.cancelled.recv().await, Some(0));
    replica.release(1);
    is_delivered(&other.await.unwrap());
}

#[tokio::test]
async fn a_connection_of_http_2_is_replaced_at_its_maximum_age() {
    let mut replica = Replica::start(|_, _| Then::Answer(200)).await;
    // 1 ns has always passed by the next request.
    for (age, connections) in [(Duration::from_nanos(1), [0, 1, 2]), (Duration::ZERO, [3, 3, 3])] {
        let settings = ClientSettings {
            connection_age: age,
            http2: ReplicaHttp2::PriorKnowledge,
            ..settings(Duration::from_secs(120))
        };
        let (policy, tls) = (Policy::new(None, None), ClientTls::default());
        let client = ReplicaClient::new(&settings, policy, tls, ReplicaTokens::default()).unwrap();
        for _ in 0..3 {
            is_delivered(&attempt(&client, &replica.node).await);
        }
        assert_eq!(replica.connections(), connections, "{age:?}");
    }
}

#[tokio::test]
async fn a_reload_ends_the_reuse_of_connections_of_http_2() {
    let mut replica = Replica::start(|_, _| Then::Answer(200)).await;
    let client = calm();
    is_delivered(&attempt(&client, &replica.node).await);
    client.renew(None, None);
    is_delivered(&attempt(&client, &replica.node).await);
    assert_eq!(replica.connections(), [0, 1]);
}

#[tokio::test]
async fn a_large_value_arrives_whole_over_http_2() {
    let mut replica = Replica::start(|_, _| Then::Answer(200)).await;
    let client = calm();
    for bytes in [0, 1, 64 << 10, (64 << 10) + 1, 1 << 20] {
        let task = Task { value: Bytes::from(vec![b'v'; bytes]), ..set("k", b"") };
        is_delivered(&client.send(&replica.node, &task, None, NOW, &Fence::Open).await);
        let seen = replica.seen.recv().await.unwrap();
        assert_eq!((seen.connection, seen.body.len()), (0, bytes));
        assert!(seen.body.iter().all(|byte| *byte == b'v'));
    }
}

#[tokio::test]
async fn a_replica_that_opens_no_window_for_a_large_value_times_out() {
    let replica = Replica::start(|_, _| Then::Silence).await;
    let task = Task { value: Bytes::from(vec![b'v'; 1 << 20]), ..set("k", b"") };
    let hasty = knowing(Duration::from_millis(200));
    let outcome = hasty.send(&replica.node, &task, None, NOW, &Fence::Open).await;
    assert!(outcome.ambiguous);
    let error = retry_text(outcome.verdict);
    assert!(error.starts_with("no progress for"), "{error}");
}

#[tokio::test]
async fn a_replica_without_http_2_fails_the_attempt() {
    let peer = Peer::answering(OK).await;
    let hasty = knowing(Duration::from_secs(2));
    let error = retry_text(attempt(&hasty, &peer.node).await.verdict);
    assert!(error.contains("HTTP/2") || error.contains("no answer"), "{error}");
}

/// The connection of an attempt through TLS in front of `to` that offers `protocols`.
async fn over_tls(http2: ReplicaHttp2, protocols: &[&str], to: SocketAddr) -> AttemptOutcome {
    let ours = Authority::new("ours");
    let front = front_offering(protocols, to, &ours.issue("127.0.0.1"), None).await;
    let node = Node::parse(&format!("https://{front}")).unwrap();
    let tls = ClientTls::default().trusting(ours.pem().as_bytes()).unwrap();
    attempt(&with(http2, tls, Duration::from_secs(120)), &node).await
}

#[tokio::test]
async fn the_handshake_of_tls_chooses_the_protocol() {
    let mut second = Replica::start(|_, _| Then::Answer(200)).await;
    let mut first = Peer::answering(OK).await;
    let first_address = first.node.as_str().trim_start_matches("http://").parse().unwrap();
    for http2 in [ReplicaHttp2::Auto, ReplicaHttp2::PriorKnowledge] {
        is_delivered(&over_tls(http2, &["h2", "http/1.1"], second.address).await);
        assert_eq!(second.seen.recv().await.unwrap().request.uri().scheme_str(), Some("https"));
        for protocols in [&["http/1.1"][..], &[]] {
            is_delivered(&over_tls(http2, protocols, first_address).await);
            assert!(request_line(&first.seen().1).ends_with("HTTP/1.1"));
        }
    }
    is_delivered(&over_tls(ReplicaHttp2::Off, &["h2", "http/1.1"], first_address).await);
    assert!(request_line(&first.seen().1).ends_with("HTTP/1.1"));
}

#[tokio::test]
async fn auto_speaks_http_1_without_tls() {
    let mut peer = Peer::answering(OK).await;
    let client = with(ReplicaHttp2::Auto, ClientTls::default(), Duration::from_secs(120));
    is_delivered(&attempt(&client, &peer.node).await);
    assert!(request_line(&peer.seen().1).ends_with("HTTP/1.1"));
}

#[tokio::test]
async fn a_missing_client_certificate_is_reported_over_http_2() {
    let replica = Replica::start(|_, _| Then::Answer(200)).await;
    let ours = Authority::new("ours");
    let issued = ours.issue("127.0.0.1");
    let front = front_offering(&["h2"], replica.address, &issued, Some(&ours)).await;
    let node = Node::parse(&format!("https://{front}")).unwrap();
    let tls = ClientTls::default().trusting(ours.pem().as_bytes()).unwrap();
    let client = with(ReplicaHttp2::Auto, tls, Duration::from_secs(120));
    let outcome = attempt(&client, &node).await;
    is_lost(outcome, false, "the replica requires a client certificate (--replica-cert)");
}
