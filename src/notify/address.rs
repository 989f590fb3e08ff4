//! The address of a receiver. Its path and its query may be a secret, and are never shown.

use std::fmt;

use percent_encoding::percent_decode_str;
use url::{Host, Url};

/// A shorter part of a URL is no secret.
const MIN_SECRET_BYTES: usize = 4;

#[derive(Clone, PartialEq, Eq)]
pub struct NotifyUrl(Url);

impl NotifyUrl {
    /// The error continues a sentence that starts with the flag. It quotes nothing of the text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let url = Url::parse(text).map_err(|error| format!("must be a URL: {error}"))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err("must start with http:// or https://".to_owned());
        }
        if url.fragment().is_some() {
            return Err("must not have a fragment (#)".to_owned());
        }
        Ok(Self(url))
    }

    pub(super) fn reveal(&self) -> &Url {
        &self.0
    }

    /// Whether a text contains a part of the URL that may be a secret. A server may quote the path
    /// in its answer.
    pub(super) fn is_quoted_by(&self, text: &str) -> bool {
        let Self(url) = self;
        let parts = url.path().split('/').chain(url.query().unwrap_or_default().split(['&', '=']));
        let parts = parts.chain([url.username(), url.password().unwrap_or_default()]);
        let text = text.to_lowercase();
        parts.filter(|part| part.len() >= MIN_SECRET_BYTES).any(|part| {
            let part = part.to_lowercase();
            text.contains(&part) || text.contains(&*percent_decode_str(&part).decode_utf8_lossy())
        })
    }

    pub fn is_loopback(&self) -> bool {
        match self.0.host() {
            Some(Host::Ipv4(address)) => address.is_loopback(),
            Some(Host::Ipv6(address)) => address.is_loopback(),
            Some(Host::Domain(name)) => name == "localhost",
            None => false,
        }
    }

    pub fn is_encrypted(&self) -> bool {
        self.0.scheme() == "https"
    }
}

/// The scheme, the host and the port.
impl fmt::Display for NotifyUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.0.scheme(), self.0.host_str().unwrap_or_default())?;
        self.0.port().map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

impl fmt::Debug for NotifyUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_scheme_and_the_host_of_a_receiver_are_shown() {
        for (url, shown) in [
            ("https://hooks.slack.com/services/T0/B0/hidden", "https://hooks.slack.com"),
            ("https://me:hidden@h:8443/x?token=hidden", "https://h:8443"),
            ("http://[::1]:9/hidden", "http://[::1]:9"),
        ] {
            let url = NotifyUrl::parse(url).unwrap();
            assert_eq!((url.to_string(), format!("{url:?}")), (shown.to_owned(), shown.to_owned()));
        }
        for text in ["", "hooks/hidden", "ftp://h/hidden", "https://", "https://h/#hidden"] {
            let error = NotifyUrl::parse(text).unwrap_err();
            assert!(error.starts_with("must ") && !error.contains("hidden"), "{text}: {error}");
        }
    }

    #[test]
    fn an_answer_that_quotes_the_url_is_recognised() {
        let url = NotifyUrl::parse("https://user:word@h/v1/T%20Hidden?token=abcd").unwrap();
        for text in ["Cannot POST /v1/T%20Hidden", "no t hidden", "a ABCD", "user", "WORD"] {
            assert!(url.is_quoted_by(text), "{text}");
        }
        for text in ["", "ok", "invalid_payload", "Cannot POST /v1/"] {
            assert!(!url.is_quoted_by(text), "{text}");
        }
    }
}
