//! The texts for attempts without an answer, with the errors of real sockets.

use tokio::net::TcpListener;

use super::super::names::{Lookup, LookupTimes};
use super::*;

/// A replica that does this with each connection.
async fn replica<F>(serve: impl Fn(TcpStream) -> F + Send + 'static) -> Node
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let node = Node::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(serve(stream));
        }
    });
    node
}

async fn error(node: &Node) -> Arc<str> {
    retry_text(
        patient().send(node, &set("private-key", b"v"), None, NOW, &Fence::Open).await.verdict,
    )
}

fn https(node: &Node) -> Node {
    Node::parse(&node.as_str().replace("http:", "https:")).unwrap()
}

fn reset(stream: TcpStream) {
    stream.set_zero_linger().unwrap();
    drop(stream);
}

#[tokio::test]
async fn a_refused_connection_has_a_short_text() {
    // Bound but not listening, so that no other process gets the port.
    let port = TcpSocket::new_v4().unwrap();
    port.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let node = Node::parse(&format!("http://{}", port.local_addr().unwrap())).unwrap();
    assert_eq!(&*error(&node).await, "connection refused");
    assert_eq!(&*error(&https(&node)).await, "connection refused");
}

#[tokio::test]
async fn a_connection_that_ends_without_a_whole_answer_has_a_short_text() {
    let closing = replica(async |mut stream| drop(read_request(&mut stream).await)).await;
    assert_eq!(&*error(&closing).await, "the replica closed the connection without an answer");

    let resetting = replica(async |mut stream| {
        read_request(&mut stream).await.unwrap();
        reset(stream);
    });
    assert_eq!(&*error(&resetting.await).await, "the replica reset the connection");

    let cut = replica(async |mut stream| {
        read_request(&mut stream).await.unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Le").await.unwrap();
    });
    let expected = "the replica closed the connection in the middle of its answer";
    assert_eq!(&*error(&cut.await).await, expected);
}

#[tokio::test]
async fn an_answer_of_another_protocol_has_a_short_text() {
    for greeting in ["SSH-2.0-OpenSSH_9.2\r\n", "220 mail ESMTP\r\n", "-ERR unknown command\r\n"] {
        let other = replica(async move |mut stream| {
            stream.write_all(greeting.as_bytes()).await.unwrap();
            let _ = read_request(&mut stream).await;
            std::future::pending::<()>().await;
        });
        assert_eq!(&*error(&other.await).await, "the answer is not valid HTTP", "{greeting:?}");
    }
}

#[tokio::test]
async fn a_failed_tls_handshake_has_a_short_text() {
    let plain = replica(async |mut stream| {
        let bad = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n";
        stream.read_u8().await.unwrap();
        stream.write_all(bad).await.unwrap();
        std::future::pending::<()>().await;
    });
    let expected = "the replica does not speak TLS at this port";
    assert_eq!(&*error(&https(&plain.await)).await, expected);

    let closing = replica(async |mut stream| {
        let mut hello = [0; 16 << 10];
        let _ = stream.read(&mut hello).await.unwrap();
    });
    let expected = "the replica closed the connection in the TLS handshake";
    assert_eq!(&*error(&https(&closing.await)).await, expected);
}

#[tokio::test]
async fn an_unknown_name_and_a_failed_lookup_have_a_short_text() {
    let cases: [(Lookup, &str); 3] = [
        (Arc::new(|_| Ok(vec![])), "unknown host name"),
        (Arc::new(|_| Err(std::io::ErrorKind::NotFound.into())), "unknown host name"),
        (
            Arc::new(|_| Err(std::io::Error::from_raw_os_error(libc::EACCES))),
            "the name lookup failed: Permission denied",
        ),
    ];
    for (lookup, expected) in cases {
        let settings = settings(Duration::from_secs(120));
        let (policy, tls) = (Policy::new(None, None), ClientTls::default());
        let resolving = (lookup, LookupTimes::default());
        let client =
            ReplicaClient::resolving(&settings, policy, tls, ReplicaTokens::default(), resolving);
        let node = Node::parse("http://db.example").unwrap();
        let outcome =
            client.unwrap().send(&node, &set("private-key", b"v"), None, NOW, &Fence::Open).await;
        assert_eq!(&*retry_text(outcome.verdict), expected);
    }
}
