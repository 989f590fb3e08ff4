//! Bodies in memory: no socket, and no clock but a virtual one.

use axum::http::HeaderValue;
use futures_util::FutureExt;

use super::*;

fn memory() -> BodyMemory {
    BodyMemory {
        pool: ClientPool::new(1 << 20),
        bytes: 1 << 20,
        max_body_bytes: 1 << 20,
        client_timeout: Duration::from_secs(30),
    }
}

/// Reads a body that must be ready without waiting.
fn at_once(headers: &[(&str, &'static str)], body: &[u8]) -> Result<Bytes, Problem> {
    let mut given = HeaderMap::new();
    for (name, value) in headers {
        let name = name.parse::<axum::http::HeaderName>().unwrap();
        given.append(name, HeaderValue::from_static(value));
    }
    let memory = memory();
    let read = memory.read(&None, &given, Body::from(body.to_vec()), Duration::ZERO);
    // A future that waits for a timer is not ready at the first poll.
    read.now_or_never().expect("the read must not wait").map(|(body, _share)| body)
}

/// Waiting for the timer's next tick added a millisecond to every write.
#[tokio::test(start_paused = true)]
async fn an_available_body_is_read_without_waiting_for_a_timer() {
    // Timers fire at whole milliseconds: exactly at one, a timer for now would go unnoticed.
    tokio::time::advance(Duration::from_micros(500)).await;
    let small = br#"{"key":"k"}"#;
    assert_eq!(at_once(&[], small).unwrap(), &small[..]);
    let large = vec![b'x'; 500_000];
    assert_eq!(at_once(&[], &large).unwrap(), large);
}

#[tokio::test(start_paused = true)]
async fn a_utf_8_byte_order_mark_is_stripped_and_utf_16_is_refused() {
    for (given, read) in [("\u{feff}{}", "{}"), ("\u{feff}", ""), ("{\u{feff}}", "{\u{feff}}")] {
        assert_eq!(at_once(&[], given.as_bytes()).unwrap(), read);
    }
    for utf_16 in [&b"\xff\xfe{\0}\0"[..], b"\xfe\xff\0{\0}"] {
        let Err(Problem::Invalid(said)) = at_once(&[], utf_16) else { panic!("{utf_16:?}") };
        assert_eq!(said, "the body begins with a UTF-16 byte order mark: it must be UTF-8");
    }
}

#[tokio::test(start_paused = true)]
async fn a_compressed_body_is_refused_before_it_is_read() {
    for plain in ["", "identity", "Identity, identity"] {
        assert_eq!(at_once(&[("content-encoding", plain)], b"{}").unwrap(), "{}");
    }
    for (given, named) in [("gzip", "\"gzip\""), ("identity, br", "\"br\""), ("a\tb", "\"a\\tb\"")]
    {
        let Err(Problem::Encoded(said)) = at_once(&[("content-encoding", given)], b"{}") else {
            panic!("{given}")
        };
        let rule = "it must be sent without one";
        assert_eq!(said, format!("the body has the Content-Encoding {named}: {rule}"));
    }
}
