//! Replicas that send HTTP/2 frames of their own making.

use super::http2::knowing;
use super::*;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PUSH_PROMISE: u8 = 5;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// `:status: 200`, and `:status: 103`.
const OK_200: &[u8] = &[0x88];
const HINTS: &[u8] = &[0x08, 3, b'1', b'0', b'3'];

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

fn go_away(last: u32, reason: u32) -> Vec<u8> {
    frame(GOAWAY, 0, 0, &[last.to_be_bytes(), reason.to_be_bytes()].concat())
}

/// Reads up to the first head of a request.
async fn until_headers(stream: &mut TcpStream) -> Option<()> {
    stream.read_exact(&mut [0; 24]).await.ok()?;
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await.ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        stream.read_exact(&mut vec![0; length as usize]).await.ok()?;
        if head[3] == HEADERS {
            return Some(());
        }
    }
}

/// What a replica sends on a connection (from 0): the first part once, the second until the connection is
/// closed. Without a second part it closes the connection.
type Script = fn(usize) -> (Vec<u8>, Vec<u8>);

/// Sends it after the first head of a request. Returns how many bytes each connection took.
async fn raw(script: Script) -> (Node, mpsc::UnboundedReceiver<usize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let node = Node::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
    let (closed, sent) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        for number in 0.. {
            let (mut stream, _) = listener.accept().await.unwrap();
            let closed = closed.clone();
            tokio::spawn(async move {
                until_headers(&mut stream).await.unwrap();
                let (mut read, mut write) = stream.into_split();
                // So that answers to pings and settings never fill the connection.
                tokio::spawn(
                    async move { tokio::io::copy(&mut read, &mut tokio::io::sink()).await },
                );
                let (once, repeated) = script(number);
                let mut piece = [frame(SETTINGS, 0, 0, &[]), once].concat();
                let mut bytes = 0;
                while write.write_all(&piece).await.is_ok() {
                    bytes += piece.len();
                    if repeated.is_empty() {
                        break;
                    }
                    piece = repeated.repeat((8 << 10) / repeated.len() + 1);
                }
                let _ = closed.send(bytes);
            });
        }
    });
    (node, sent)
}

async fn attempt(node: &Node) -> AttemptOutcome {
    let client = knowing(Duration::from_secs(120));
    client.send(node, &set("private-key", b"v"), None, NOW, &Fence::Open).await
}

#[tokio::test]
async fn frames_without_end_fail_the_attempt() {
    let cases: [Script; 11] = [
        |_| (vec![], frame(PING, 0, 0, &[0; 8])),
        |_| (vec![], frame(SETTINGS, 0, 0, &[])),
        |_| (vec![], frame(SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0])),
        |_| (vec![], frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])),
        |_| (vec![], frame(HEADERS, END_HEADERS, 1, HINTS)),
        |_| (frame(HEADERS, 0, 1, OK_200), frame(CONTINUATION, 0, 1, &[])),
        |_| (frame(HEADERS, 0, 1, OK_200), frame(CONTINUATION, 0, 1, &[0; 64])),
        |_| (vec![], frame(RST_STREAM, 0, 3, &[0; 4])),
        |_| (vec![], frame(PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2, 0x82])),
        // An unknown kind is ignored.
        |_| (vec![], frame(0x77, 0, 0, &[0; 64])),
        |_| (vec![], go_away(0x7fff_ffff, 0)),
    ];
    for (case, script) in cases.into_iter().enumerate() {
        let (node, mut sent) = raw(script).await;
        let outcome = attempt(&node).await;
        assert!(outcome.ambiguous, "case {case}: {outcome:?}");
        let error = retry_text(outcome.verdict);
        let texts =
            ["the replica sent more than an answer may take", "the answer is not valid HTTP/2"];
        assert!(texts.contains(&&*error), "case {case}: {error}");
        let sent = sent.recv().await.unwrap();
        // Beside what was read, the socket buffers of both ends.
        assert!(sent < 32 << 20, "case {case}: {sent} bytes");
    }
}

#[tokio::test]
async fn the_rest_of_an_endless_body_is_not_read_over_http_2() {
    let cases: [Script; 2] = [
        |_| (frame(HEADERS, END_HEADERS, 1, OK_200), frame(DATA, 0, 1, &[b'.'; 1024])),
        |_| (frame(HEADERS, END_HEADERS, 1, OK_200), frame(DATA, 0, 1, &[])),
    ];
    for script in cases {
        let (node, mut sent) = raw(script).await;
        assert_eq!(attempt(&node).await.verdict, Verdict::Delivered);
        assert!(sent.recv().await.unwrap() < 32 << 20);
    }
}

#[tokio::test]
async fn a_head_of_more_than_64_kib_fails_the_attempt_over_http_2() {
    // Literal fields of 4 KiB: `a: vvvv…`.
    let (node, _) = raw(|_| {
        let mut field = vec![0, 1, b'a', 0x7f, 0x81, 0x1f];
        field.extend(vec![b'v'; 4096]);
        let mut frames = frame(HEADERS, 0, 1, OK_200);
        for _ in 0..20 {
            frames.extend(frame(CONTINUATION, 0, 1, &field));
        }
        frames.extend(frame(CONTINUATION, END_HEADERS, 1, &[]));
        (frames, vec![])
    })
    .await;
    let outcome = attempt(&node).await;
    assert!(outcome.ambiguous && matches!(outcome.verdict, Verdict::Retry { .. }), "{outcome:?}");
}

#[tokio::test]
async fn a_request_above_the_last_stream_of_a_goaway_is_repeated_without_doubt() {
    let (node, _sent) = raw(|connection| match connection {
        0 => (go_away(0, 0), frame(PING, 0, 0, &[0; 8])),
        _ => (frame(HEADERS, END_HEADERS | END_STREAM, 1, OK_200), vec![]),
    })
    .await;
    let outcome = attempt(&node).await;
    assert!(outcome.verdict == Verdict::Delivered && !outcome.ambiguous, "{outcome:?}");
}

#[tokio::test]
async fn a_request_that_a_goaway_includes_is_ambiguous_without_its_answer() {
    for reason in [0, 2] {
        let script: Script = match reason {
            0 => |_| (go_away(1, 0), vec![]),
            _ => |_| (go_away(1, 2), vec![]),
        };
        let (node, mut sent) = raw(script).await;
        let outcome = attempt(&node).await;
        assert!(
            outcome.ambiguous && matches!(outcome.verdict, Verdict::Retry { .. }),
            "{outcome:?}"
        );
        sent.recv().await.unwrap();
        assert!(sent.try_recv().is_err(), "it is not repeated");
    }
}

#[tokio::test]
async fn an_answer_behind_a_goaway_counts() {
    let (node, _) = raw(|_| {
        let answer = frame(HEADERS, END_HEADERS | END_STREAM, 1, OK_200);
        ([go_away(1, 0), answer].concat(), vec![])
    })
    .await;
    let outcome = attempt(&node).await;
    assert!(outcome.verdict == Verdict::Delivered && !outcome.ambiguous, "{outcome:?}");
}

#[tokio::test]
async fn a_few_interim_answers_are_skipped_over_http_2() {
    let (node, _) = raw(|_| {
        let hints = frame(HEADERS, END_HEADERS, 1, HINTS).repeat(100);
        let answer = frame(HEADERS, END_HEADERS | END_STREAM, 1, OK_200);
        ([hints, answer].concat(), vec![])
    })
    .await;
    assert_eq!(attempt(&node).await.verdict, Verdict::Delivered);
}
