//! Answers that never end, sent as fast as the connection takes them.

use super::*;

/// A replica that answers with `start`, then with `repeated` until the connection is closed. Returns
/// how many bytes it could send.
async fn endless(
    start: &'static str,
    repeated: &'static str,
) -> (Node, mpsc::UnboundedReceiver<usize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let node = Node::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
    let (closed, sent) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let closed = closed.clone();
            tokio::spawn(async move {
                read_request(&mut stream).await.unwrap();
                let many = repeated.repeat((8 << 10) / repeated.len() + 1);
                let (mut piece, mut bytes) = (start.to_owned(), 0);
                while stream.write_all(piece.as_bytes()).await.is_ok() {
                    bytes += piece.len();
                    piece.clone_from(&many);
                }
                let _ = closed.send(bytes);
            });
        }
    });
    (node, sent)
}

async fn attempt(start: &'static str, repeated: &'static str) -> AttemptOutcome {
    let (node, mut sent) = endless(start, repeated).await;
    let outcome = patient().send(&node, &set("k", b"v"), None, NOW, &Fence::Open).await;
    let sent = sent.recv().await.unwrap();
    // Beside what was read, the socket buffers of both ends.
    assert!(sent < 32 << 20, "{sent} bytes of {repeated:?}");
    outcome
}

#[tokio::test]
async fn endless_interim_answers_fail_the_attempt() {
    for interim in ["HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.1 103 Hints\r\nLink: a\r\n\r\n"] {
        let outcome = attempt("", interim).await;
        assert!(outcome.ambiguous);
        let error = retry_text(outcome.verdict);
        assert_eq!(&*error, "the replica sent more than 64 KiB before the final answer");
    }
}

#[tokio::test]
async fn an_endless_head_fails_the_attempt() {
    for (start, repeated) in [
        ("HTTP/1.1 200 ", "OK"),
        ("HTTP/1.1 200 OK\r\nX-Long: ", "long"),
        ("HTTP/1.1 200 OK\r\n", "X: y\r\n"),
        ("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nX-Long: ", "long"),
    ] {
        let error = retry_text(attempt(start, repeated).await.verdict);
        let texts = [
            "the head of the answer is longer than 64 KiB",
            "the replica sent more than 64 KiB before the final answer",
            "the answer is not valid HTTP",
        ];
        assert!(texts.contains(&&*error), "{start:?}: {error}");
    }
}

#[tokio::test]
async fn the_rest_of_an_endless_body_is_not_read() {
    for (start, repeated) in [
        ("HTTP/1.1 503 Busy\r\n\r\n", "busy"),
        ("HTTP/1.1 503 Busy\r\nTransfer-Encoding: chunked\r\n\r\n", "1\r\nx\r\n"),
        ("HTTP/1.1 503 Busy\r\nTransfer-Encoding: chunked\r\n\r\n1;", "extension"),
        ("HTTP/1.1 503 Busy\r\nTransfer-Encoding: chunked\r\n\r\n", "1;extension\r\nx\r\n"),
        ("HTTP/1.1 503 Busy\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", "Trailer: t\r\n"),
        ("HTTP/1.1 503 Busy\r\nTransfer-Encoding: chunked\r\n\r\n", "0"),
    ] {
        let error = retry_text(attempt(start, repeated).await.verdict);
        assert_eq!(&*error, "the replica answered 503 Service Unavailable", "{repeated:?}");
        let success = start.replace("503 Busy", "200 OK");
        let outcome = attempt(Box::leak(success.into()), repeated).await;
        assert_eq!(outcome.verdict, Verdict::Delivered, "{repeated:?}");
    }
}

#[tokio::test]
async fn a_few_interim_answers_are_skipped() {
    let interim = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n";
    let peer = Peer::answering(&format!("{interim}{OK}")).await;
    let client = patient();
    for _ in 0..3 {
        let outcome = client.send(&peer.node, &set("k", b"v"), None, NOW, &Fence::Open).await;
        assert_eq!(outcome.verdict, Verdict::Delivered);
    }
}
