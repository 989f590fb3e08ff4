//! The idempotency key of a write: what it may look like, and what it stands for.
//!
//! The key stands for the bytes that came with it. So a client that never heard its answer sends
//! them again and hears it, and one that by mistake uses a key twice is told.

use axum::http::HeaderMap;
use ring::digest::{SHA256, digest};

use super::access::Caller;
use super::errors::Problem;
use super::validate::{invalid, must_be};
use super::wire::Json;
use crate::task::Idempotency;

/// Under this name a client gives the key of a single write.
const HEADER: &str = "Idempotency-Key";

/// The longest key.
const MAX_KEY_BYTES: usize = 255;

/// The key in the head of a request.
///
/// # Errors
///
/// 400 for one that breaks the rule, and for two of them.
pub(super) fn header(headers: &HeaderMap) -> Result<Option<Box<str>>, Problem> {
    let mut lines = headers.get_all(HEADER).iter();
    let Some(line) = lines.next() else { return Ok(None) };
    if lines.next().is_some() {
        return Err(invalid(format!(r#"header "{HEADER}" is there more than once"#)));
    }
    match line.to_str() {
        Ok(text) if is_key(text) => Ok(Some(text.into())),
        _ => Err(invalid(format!(
            r#"header "{HEADER}" must be 1 to {MAX_KEY_BYTES} visible ASCII characters"#
        ))),
    }
}

/// The key in a field of a write, for one of a batch.
pub(super) fn field(json: &Json<'_>) -> Result<Option<Box<str>>, Problem> {
    match json {
        Json::Null => Ok(None),
        Json::Text(text) if is_key(text) => Ok(Some((&**text).into())),
        other => {
            let rule = format!("a string of 1 to {MAX_KEY_BYTES} visible ASCII characters");
            Err(must_be("idempotency_key", &rule, other))
        }
    }
}

/// Refuses a request that has the header and no use for it, rather than let its client believe.
pub(super) fn no_header(headers: &HeaderMap) -> Result<(), Problem> {
    if headers.contains_key(HEADER) {
        return Err(invalid(format!(
            r#"header "{HEADER}" is for a single write, in a batch each has its field "idempotency_key""#
        )));
    }
    Ok(())
}

/// `key` of `caller`, for the write that is in `body`.
pub(super) fn of(caller: &Caller, key: Box<str>, body: &[u8]) -> Idempotency {
    let mut fingerprint = [0; 16];
    let hash = digest(&SHA256, body);
    for (byte, hashed) in fingerprint.iter_mut().zip(hash.as_ref()) {
        *byte = *hashed;
    }
    Idempotency { key: caller.own_key(key), fingerprint }
}

fn is_key(text: &str) -> bool {
    (1..=MAX_KEY_BYTES).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn said(values: &[&'static [u8]]) -> Result<Option<Box<str>>, String> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(HEADER, HeaderValue::from_bytes(value).unwrap());
        }
        header(&headers).map_err(|problem| format!("{problem:?}"))
    }

    #[test]
    fn a_key_is_up_to_255_visible_characters_and_given_once() {
        assert_eq!(said(&[]), Ok(None));
        assert_eq!(said(&[b"6f1e-\"x\"~!"]), Ok(Some("6f1e-\"x\"~!".into())));
        assert_eq!(said(&[&[b'k'; 255]]), Ok(Some("k".repeat(255).into())));
        for bad in [&b""[..], b"two words", b"t\tab", "ä".as_bytes(), b"\xff", &[b'k'; 256]] {
            assert!(said(&[bad]).unwrap_err().contains("1 to 255 visible ASCII"), "{bad:?}");
        }
        assert!(said(&[b"a", b"a"]).unwrap_err().contains("more than once"));
    }

    #[test]
    fn another_body_has_another_fingerprint() {
        let one = of(&Caller::default(), "k".into(), b"{}");
        assert_eq!(one, of(&Caller::default(), "k".into(), b"{}"));
        assert_ne!(one.fingerprint, of(&Caller::default(), "k".into(), b"{} ").fingerprint);
        assert_ne!(one.fingerprint, [0; 16]);
    }
}
