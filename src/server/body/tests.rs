//! Bodies in memory: no socket, and no clock but a virtual one.

use axum::http::HeaderValue;
use futures_util::FutureExt;

use super::*;

fn memory() -> Memory {
    Memory {
        pages: Semaphore::new(1024),
        wanted: AtomicUsize::new(0),
        bytes: 1 << 20,
        max_body_bytes: 1 << 20,
        client_timeout: Duration::from_secs(30),
    }
}

/// What comes of a body without waiting for anything.
fn at_once(headers: &[(&str, &'static str)], body: &[u8]) -> Result<Bytes, Problem> {
    let mut given = HeaderMap::new();
    for (name, value) in headers {
        let name = name.parse::<axum::http::HeaderName>().unwrap();
        given.append(name, HeaderValue::from_static(value));
    }
    let memory = memory();
    let read = memory.read(&given, Body::from(body.to_vec()), Duration::ZERO);
    // A future that waits for a timer, as for anything else, is not ready the first time.
    read.now_or_never().expect("it is all there").map(|(body, _share)| body)
}

/// To wait for the next tick of the timer took a millisecond of every write.
#[tokio::test(start_paused = true)]
async fn a_body_that_is_there_is_read_without_waiting_for_a_timer() {
    // Timers fire with whole milliseconds: right at one, a timer for now would not be seen.
    tokio::time::advance(Duration::from_micros(500)).await;
    let small = br#"{"key":"k"}"#;
    assert_eq!(at_once(&[], small).unwrap(), &small[..]);
    let large = vec![b'x'; 500_000];
    assert_eq!(at_once(&[], &large).unwrap(), large);
}

#[tokio::test(start_paused = true)]
async fn a_byte_order_mark_is_no_part_of_a_body() {
    for (given, read) in [("\u{feff}{}", "{}"), ("\u{feff}", ""), ("{\u{feff}}", "{\u{feff}}")] {
        assert_eq!(at_once(&[], given.as_bytes()).unwrap(), read);
    }
    for utf_16 in [&b"\xff\xfe{\0}\0"[..], b"\xfe\xff\0{\0}"] {
        let Err(Problem::Invalid(said)) = at_once(&[], utf_16) else { panic!("{utf_16:?}") };
        assert_eq!(said, "the body begins with a byte order mark of UTF-16: it must be UTF-8");
    }
}

#[tokio::test(start_paused = true)]
async fn a_compressed_body_is_refused_by_its_coding_before_it_is_read() {
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
