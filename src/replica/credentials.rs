//! What the replicas are shown and what is asked of them: certificates and tokens. The commands
//! that ask a daemon deal with its certificate in the same way.
//!
//! Everything here is read from the text of files by whoever has them. No `Debug` of it shows a
//! key or a token.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use reqwest::header::HeaderValue;
use reqwest::{Certificate, ClientBuilder, Identity};
use rustls::pki_types::CertificateDer;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, RootCertStore};
use rustls_platform_verifier::Verifier;
use thiserror::Error;

use crate::task::{Node, NodeError};
use crate::tls;

/// Which certificates of the other end are believed, and what it is shown.
#[derive(Clone, Default)]
pub struct Tls {
    /// Instead of those that the system trusts.
    authorities: Option<Vec<Certificate>>,
    identity: Option<Identity>,
    /// The same once more: an HTTP client reads one form, TLS the other.
    roots: Option<Arc<RootCertStore>>,
    shown: Option<Arc<CertifiedKey>>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (authorities, identity) = (&self.authorities, &self.identity);
        f.debug_struct("Tls")
            .field("authorities", authorities)
            .field("identity", identity)
            .finish_non_exhaustive()
    }
}

/// Why files of certificates cannot be used. Reads on after the name of the file.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum TlsError {
    /// Not what PEM looks like.
    #[error("is no valid PEM file: {0}")]
    Pem(String),
    /// PEM of something else.
    #[error("has no certificate in it")]
    NoCertificate,
    /// PEM of something else.
    #[error("has no private key in it that can be read: an unencrypted PKCS#8, PKCS#1 or SEC1 key")]
    NoKey,
    /// Each good, but not together; or a certificate whose content is broken.
    #[error("cannot be used: {0}")]
    Unusable(String),
}

impl Tls {
    /// Trusts whom this file names, and nobody else: a list of authorities as PEM.
    ///
    /// # Errors
    ///
    /// A [`TlsError`].
    pub fn trusting(mut self, pem: &[u8]) -> Result<Self, TlsError> {
        let ders = certificates(pem)?;
        // One by one, for the client would leave out silently what it cannot read.
        let mut roots = RootCertStore::empty();
        for der in &ders {
            roots.add(der.clone()).map_err(unusable)?;
        }
        let read: Result<Vec<_>, _> = ders.iter().map(|der| Certificate::from_der(der)).collect();
        self.authorities = Some(read.map_err(unusable)?);
        self.roots = Some(Arc::new(roots));
        Ok(self)
    }

    /// Shows this certificate, with the chain above it, and proves it by this key.
    ///
    /// # Errors
    ///
    /// A [`TlsError`]; whether they belong together is seen when a client is made of it.
    pub fn showing(mut self, certificate: &[u8], key: &[u8]) -> Result<Self, TlsError> {
        let chain = certificates(certificate)?;
        let key_der = tls::private_key(key).map_err(|_| TlsError::NoKey)?;
        let provider = rustls::crypto::ring::default_provider();
        let shown = CertifiedKey::from_der(chain, key_der, &provider).map_err(unusable)?;
        self.shown = Some(Arc::new(shown));
        let mut pem = certificate.to_vec();
        pem.push(b'\n');
        pem.extend_from_slice(key);
        self.identity = Some(Identity::from_pem(&pem).map_err(unusable)?);
        Ok(self)
    }

    /// Whether it trusts whom the system trusts.
    pub(crate) fn trusts_the_system(&self) -> bool {
        self.authorities.is_none()
    }

    /// What TLS connections to replicas are made with, all of them: their sessions are shared.
    ///
    /// Where the system has no certificates nobody is trusted, which is logged: plain `http`
    /// works without.
    pub(super) fn config(&self) -> ClientConfig {
        let builder = ClientConfig::builder();
        let builder = match &self.roots {
            Some(roots) => builder.with_root_certificates(Arc::clone(roots)),
            None => match Verifier::new(Arc::clone(builder.crypto_provider())) {
                Ok(verifier) => {
                    builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier))
                }
                Err(error) => {
                    tracing::warn!(
                        %error,
                        "no certificates of the system could be read: replicas with https will fail"
                    );
                    builder.with_root_certificates(RootCertStore::empty())
                }
            },
        };
        let mut config = match &self.shown {
            Some(shown) => builder
                .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(shown)))),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config
    }

    pub(crate) fn apply(&self, mut builder: ClientBuilder) -> ClientBuilder {
        if let Some(authorities) = &self.authorities {
            builder = builder.tls_certs_only(authorities.iter().cloned());
        }
        match &self.identity {
            Some(identity) => builder.identity(identity.clone()),
            None => builder,
        }
    }
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read = tls::certificates(pem).map_err(|error| TlsError::Pem(error.to_string()))?;
    if read.is_empty() { Err(TlsError::NoCertificate) } else { Ok(read) }
}

fn unusable(error: impl std::error::Error) -> TlsError {
    TlsError::Unusable(error.to_string())
}

/// A bearer token for each replica, or one for all that have none of their own.
#[derive(Clone, Default)]
pub struct Tokens {
    by_node: HashMap<Node, HeaderValue>,
    any: Option<HeaderValue>,
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nodes: Vec<_> = self.by_node.keys().map(Node::as_str).collect();
        f.debug_struct("Tokens").field("nodes", &nodes).field("any", &self.any.is_some()).finish()
    }
}

/// Why a file of tokens cannot be used. Never shows what stands in the place of a token.
#[derive(Debug, Error)]
pub enum TokensError {
    /// Not two words.
    #[error("line {line}: it must be the address of a replica, or *, and a token")]
    Words {
        /// From 1.
        line: usize,
    },
    /// The first word is no address.
    #[error("line {line}: the address of the replica {source}")]
    Node {
        /// From 1.
        line: usize,
        /// What is wrong with it.
        source: NodeError,
    },
    /// A token that fits no header.
    #[error("line {line}: a token is made of A-Z a-z 0-9 - . _ ~ + / =")]
    Token {
        /// From 1.
        line: usize,
    },
    /// A replica has two.
    #[error("line {line}: there is a token for this replica already")]
    Twice {
        /// From 1.
        line: usize,
    },
    /// Nothing in it.
    #[error("it has no token")]
    Empty,
}

impl Tokens {
    /// The tokens of a file: `http://host:port TOKEN` or `* TOKEN` a line. Empty lines do not
    /// count, nor those that begin with `#`.
    ///
    /// # Errors
    ///
    /// The first line that is wrong.
    pub fn parse(text: &str) -> Result<Self, TokensError> {
        let mut tokens = Self::default();
        for (line, text) in text.lines().enumerate() {
            let (line, text) = (line + 1, text.trim());
            if text.is_empty() || text.starts_with('#') {
                continue;
            }
            let mut words = text.split_whitespace();
            let (Some(node), Some(token), None) = (words.next(), words.next(), words.next()) else {
                return Err(TokensError::Words { line });
            };
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte);
            if !token.bytes().all(plain) {
                return Err(TokensError::Token { line });
            }
            let header = HeaderValue::from_str(&format!("Bearer {token}"));
            let mut header = header.map_err(|_| TokensError::Token { line })?;
            header.set_sensitive(true);
            let before = if node == "*" {
                tokens.any.replace(header)
            } else {
                let node =
                    Node::parse(node).map_err(|source| TokensError::Node { line, source })?;
                tokens.by_node.insert(node, header)
            };
            if before.is_some() {
                return Err(TokensError::Twice { line });
            }
        }
        if tokens.by_node.is_empty() && tokens.any.is_none() {
            return Err(TokensError::Empty);
        }
        Ok(tokens)
    }

    /// Whether there is one for whatever replica a client names.
    #[must_use]
    pub fn serves_any(&self) -> bool {
        self.any.is_some()
    }

    pub(super) fn of(&self, node: &Node) -> Option<&HeaderValue> {
        self.by_node.get(node).or(self.any.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(text: &str) -> Node {
        Node::parse(text).unwrap()
    }

    #[test]
    fn a_token_belongs_to_the_replica_of_its_line_or_to_all_others() {
        let text = "# who\nhttp://A:80/ one\n\n  https://b:1/p two==\n* three\n";
        let tokens = Tokens::parse(text).unwrap();
        let of = |text| tokens.of(&node(text)).unwrap().to_str().unwrap().to_owned();
        assert_eq!(of("http://a"), "Bearer one");
        assert_eq!(of("https://b:1/p"), "Bearer two==");
        for other in ["https://b:1", "http://a:81", "https://a"] {
            assert_eq!(of(other), "Bearer three", "{other}");
        }
        assert!(tokens.serves_any());
        let only = Tokens::parse("http://a one").unwrap();
        assert!(only.of(&node("http://b")).is_none() && !only.serves_any());
    }

    #[test]
    fn a_wrong_line_is_named_without_what_stands_in_it() {
        for (text, said) in [
            ("", "it has no token"),
            ("# nothing\n", "it has no token"),
            ("http://a secret\nhttp://b", "line 2: it must be"),
            ("http://a secret more", "line 1: it must be"),
            ("secret secret", "line 1: the address of the replica must begin with http"),
            ("* se\u{7f}cret", "line 1: a token is made of"),
            ("* sécret", "line 1: a token is made of"),
            ("http://a secret\nhttp://A:80/ secret", "line 2: there is a token"),
            ("* secret\n* secret", "line 2: there is a token"),
        ] {
            let error = Tokens::parse(text).unwrap_err().to_string();
            assert!(error.starts_with(said) && !error.contains("secret"), "{text:?}: {error}");
        }
    }

    #[test]
    fn a_token_is_in_no_debug_text() {
        let tokens = Tokens::parse("http://a secret-one\n* secret-two").unwrap();
        let shown = format!("{tokens:?} {:?}", tokens.of(&node("http://a")));
        assert!(shown.contains("http://a") && !shown.contains("secret"), "{shown}");
    }
}
