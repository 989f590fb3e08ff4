//! Requests whose right to be sent ends.

use std::io::ErrorKind;

use super::secure::{Authority, front};
use super::*;
use crate::lease::{BootTime, Lease};
use crate::replica::fenced::{Fenced, FencedRequest};

const LONG: Duration = Duration::from_secs(3_600);

fn held() -> Lease {
    let lease = Lease::new();
    lease.extend(BootTime::now() + LONG);
    lease
}

fn fence(lease: &Lease) -> Fence {
    Fence::Held { epoch: 7, lease: lease.clone() }
}

async fn attempt(client: &ReplicaClient, node: &Node, fence: &Fence) -> AttemptOutcome {
    client.send(node, &set("private-key", b"v"), None, NOW, fence).await
}

#[track_caller]
fn is_withheld(outcome: &AttemptOutcome) {
    let error = outcome.verdict.error().unwrap();
    assert!(matches!(outcome.verdict, Verdict::Shortage { .. }), "{outcome:?}");
    assert_eq!(&**error, "not sent: the lease of the partition has ended");
    assert!(!outcome.ambiguous);
}

#[track_caller]
fn is_cut(outcome: &AttemptOutcome) {
    let error = outcome.verdict.error().unwrap();
    assert!(matches!(outcome.verdict, Verdict::Shortage { .. }), "{outcome:?}");
    assert_eq!(&**error, "cut: the lease of the partition has ended");
    assert!(outcome.ambiguous);
}

#[tokio::test]
async fn the_epoch_of_the_owner_is_sent() {
    let mut peer = Peer::answering(OK).await;
    let client = patient();
    assert_eq!(attempt(&client, &peer.node, &fence(&held())).await.verdict, Verdict::Delivered);
    assert_eq!(header(&peer.seen().1, "x-replication-epoch"), Some("7"));
    assert_eq!(attempt(&client, &peer.node, &Fence::Open).await.verdict, Verdict::Delivered);
    assert_eq!(header(&peer.seen().1, "x-replication-epoch"), None);
}

#[tokio::test]
async fn nothing_is_sent_without_a_lease_over_a_new_or_a_kept_connection() {
    let mut peer = Peer::answering(OK).await;
    let client = patient();
    for _ in 0..2 {
        for fence in [fence(&Lease::new()), Fence::Lost] {
            is_withheld(&attempt(&client, &peer.node, &fence).await);
            assert!(peer.requests.try_recv().is_err());
        }
        let outcome = attempt(&client, &peer.node, &fence(&held())).await;
        assert_eq!(outcome, AttemptOutcome::certain(Verdict::Delivered, outcome.took));
        peer.seen();
    }
}

#[tokio::test]
async fn a_request_in_flight_is_cut_when_the_lease_is_lost() {
    let mut peer = Peer::replying(Reply::Silence).await;
    let (client, lease) = (patient(), held());
    let fence = fence(&lease);
    let seen = async {
        peer.requests.recv().await.unwrap();
        lease.lose();
    };
    let (outcome, ()) = tokio::join!(attempt(&client, &peer.node, &fence), seen);
    is_cut(&outcome);
}

#[tokio::test]
async fn a_request_in_flight_is_cut_when_the_lease_ends() {
    let mut peer = Peer::replying(Reply::Silence).await;
    let (client, lease) = (patient(), Lease::new());
    lease.extend(BootTime::now() + Duration::from_millis(300));
    let outcome = attempt(&client, &peer.node, &fence(&lease)).await;
    // On a busy machine it may end before the request is sent.
    match peer.requests.try_recv() {
        Ok(_) => is_cut(&outcome),
        Err(_) => assert!(matches!(outcome.verdict, Verdict::Shortage { .. }), "{outcome:?}"),
    }
}

#[tokio::test]
async fn an_answered_request_has_its_verdict_although_the_lease_has_ended() {
    // The body of the answer never ends.
    let mut peer = Peer::replying(Reply::Trickle(
        b"HTTP/1.1 400 Bad Request\r\nContent-Length: 9999\r\n\r\nno".to_vec(),
    ))
    .await;
    let (client, lease) = (client(Duration::from_millis(300)), held());
    let fence = fence(&lease);
    let seen = async {
        peer.requests.recv().await.unwrap();
    };
    let (outcome, ()) = tokio::join!(attempt(&client, &peer.node, &fence), seen);
    lease.lose();
    rejected_text(outcome.verdict);
    assert!(!outcome.ambiguous);
}

/// The bytes that a replica gets of a large request that is cut in the middle, and how they end.
async fn bytes_of_a_cut_request(large: usize) -> (usize, std::io::Result<usize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let node = Node::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
    let (client, lease) = (patient(), held());
    let fence = fence(&lease);
    let task = Task { value: Bytes::from(vec![b'v'; large]), ..set("k", b"") };
    let replica = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut first = [0; 1_000];
        stream.read_exact(&mut first).await.unwrap();
        lease.lose();
        stream
    };
    let (outcome, mut stream) = tokio::join!(client.send(&node, &task, None, NOW, &fence), replica);
    is_cut(&outcome);
    let mut rest = Vec::new();
    let end = stream.read_to_end(&mut rest).await;
    (1_000 + rest.len(), end)
}

#[tokio::test]
async fn what_is_in_buffers_when_a_request_is_cut_is_discarded() {
    let large = 64 << 20;
    let (bytes, end) = bytes_of_a_cut_request(large).await;
    assert!(bytes < large);
    // A reset: the kernel has discarded what it had not sent.
    assert_eq!(end.unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn encrypted_bytes_are_checked_too() {
    let mut peer = Peer::answering(OK).await;
    let ours = Authority::new("ours");
    let to = peer.node.as_str().trim_start_matches("http://").parse().unwrap();
    let front = front(to, &ours.issue("127.0.0.1"), None).await;
    let node = Node::parse(&format!("https://{front}")).unwrap();
    let tls = ClientTls::default().trusting(ours.pem().as_bytes()).unwrap();
    let policy = Policy::new(None, None);
    let client =
        ReplicaClient::new(&settings(LONG), policy, tls, ReplicaTokens::default()).unwrap();
    for _ in 0..2 {
        is_withheld(&attempt(&client, &node, &fence(&Lease::new())).await);
        assert!(peer.requests.try_recv().is_err());
        let outcome = attempt(&client, &node, &fence(&held())).await;
        assert_eq!(outcome.verdict, Verdict::Delivered);
        assert_eq!(header(&peer.seen().1, "x-replication-epoch"), Some("7"));
    }
}

#[tokio::test]
async fn each_write_to_the_socket_is_checked() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let connecting = TcpStream::connect(listener.local_addr().unwrap());
    let (stream, accepted) = tokio::join!(connecting, listener.accept());
    let (mut fenced, place) = Fenced::over(stream.unwrap());
    let mut received = accepted.unwrap().0;

    fenced.write_all(b"no fence,").await.unwrap();
    let lease = held();
    let first = FencedRequest::of(&fence(&lease)).unwrap();
    place.set(Some(&first));
    assert!(!first.has_begun());
    fenced.write_all(b"held,").await.unwrap();
    assert!(first.has_begun());
    lease.lose();
    assert!(fenced.write_all(b"lost,").await.is_err());
    assert!(fenced.write_vectored(&[std::io::IoSlice::new(b"lost,")]).await.is_err());
    assert!(first.has_begun() && first.was_refused());

    let second = FencedRequest::of(&fence(&lease)).unwrap();
    place.set(Some(&second));
    assert!(fenced.write_all(b"lost,").await.is_err());
    assert!(!second.has_begun() && second.was_refused());

    place.set(None);
    fenced.write_all(b"no fence.").await.unwrap();
    let mut bytes = [0; 23];
    received.read_exact(&mut bytes).await.unwrap();
    assert_eq!(&bytes, b"no fence,held,no fence.");
    assert!(FencedRequest::of(&Fence::Open).is_none());
}
