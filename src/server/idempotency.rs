//! Idempotency keys: their syntax, and the fingerprint that binds a key to a body.
//!
//! A client that missed its response resends the same bytes and gets it. A client that reuses a
//! key for another body gets an error.

use axum::http::HeaderMap;
use ring::digest::{SHA256, digest};

use super::access::Caller;
use super::errors::{Problem, invalid, must_be};
use super::wire::Json;
use crate::task::Idempotency;

const HEADER: &str = "Idempotency-Key";

const MAX_KEY_BYTES: usize = 255;

/// Reads the key from the header.
pub(super) fn header(headers: &HeaderMap) -> Result<Option<Box<str>>, Problem> {
    let mut lines = headers.get_all(HEADER).iter();
    let Some(line) = lines.next() else { return Ok(None) };
    if lines.next().is_some() {
        return Err(invalid(format!(r#"header "{HEADER}" is given more than once"#)));
    }
    match line.to_str() {
        Ok(text) if is_key(text) => Ok(Some(text.into())),
        _ => Err(invalid(format!(
            r#"header "{HEADER}" must be 1 to {MAX_KEY_BYTES} visible ASCII characters"#
        ))),
    }
}

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

/// Rejects a batch with the header: ignoring it would suggest protection that does not exist.
pub(super) fn no_header(headers: &HeaderMap) -> Result<(), Problem> {
    if headers.contains_key(HEADER) {
        return Err(invalid(format!(
            r#"header "{HEADER}" is for a single write: in a batch, set the field "idempotency_key" of each write"#
        )));
    }
    Ok(())
}

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
    use axum::http::{Extensions, HeaderValue};

    use super::*;

    fn said(values: &[&'static [u8]]) -> Result<Option<Box<str>>, String> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(HEADER, HeaderValue::from_bytes(value).unwrap());
        }
        header(&headers).map_err(|problem| format!("{problem:?}"))
    }

    #[test]
    fn a_key_has_up_to_255_visible_characters_and_is_given_once() {
        assert_eq!(said(&[]), Ok(None));
        assert_eq!(said(&[b"6f1e-\"x\"~!"]), Ok(Some("6f1e-\"x\"~!".into())));
        assert_eq!(said(&[&[b'k'; 255]]), Ok(Some("k".repeat(255).into())));
        for bad in [&b""[..], b"two words", b"t\tab", "ä".as_bytes(), b"\xff", &[b'k'; 256]] {
            assert!(said(&[bad]).unwrap_err().contains("1 to 255 visible ASCII"), "{bad:?}");
        }
        assert!(said(&[b"a", b"a"]).unwrap_err().contains("more than once"));
    }

    #[test]
    fn a_different_body_has_a_different_fingerprint() {
        let one = of(&Caller::anonymous(&Extensions::new()), "k".into(), b"{}");
        assert_eq!(one, of(&Caller::anonymous(&Extensions::new()), "k".into(), b"{}"));
        assert_ne!(
            one.fingerprint,
            of(&Caller::anonymous(&Extensions::new()), "k".into(), b"{} ").fingerprint
        );
        assert_ne!(one.fingerprint, [0; 16]);
    }
}
