//! Certificates and tokens for outgoing requests. The admin commands use [`ClientTls`] too.
//!
//! Parses the contents of files; the caller reads them. No `Debug` output shows a key or a token.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use hyper::header::HeaderValue;
use reqwest::{Certificate, ClientBuilder, Identity};
use rustls::pki_types::CertificateDer;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, RootCertStore};
use rustls_platform_verifier::Verifier;
use thiserror::Error;

use super::ReplicaHttp2;
use crate::task::{Node, NodeError};
use crate::tls;

/// Trusted authorities and the client certificate, each in the form of reqwest and of rustls.
#[derive(Clone, Default)]
pub struct ClientTls {
    /// `None` means those of the system.
    authorities: Option<Vec<Certificate>>,
    identity: Option<Identity>,
    roots: Option<Arc<RootCertStore>>,
    certified_key: Option<Arc<CertifiedKey>>,
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (authorities, identity) = (&self.authorities, &self.identity);
        f.debug_struct("ClientTls")
            .field("authorities", authorities)
            .field("identity", identity)
            .finish_non_exhaustive()
    }
}

/// The texts continue a sentence that starts with the file name.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ClientTlsError {
    #[error("is not a valid PEM file: {0}")]
    Pem(String),
    #[error("contains no certificate")]
    NoCertificate,
    #[error("contains no readable private key: expected an unencrypted PKCS#8, PKCS#1 or SEC1 key")]
    NoKey,
    /// A malformed certificate, or a key that does not belong to it.
    #[error("cannot be used: {0}")]
    Unusable(String),
}

impl ClientTls {
    pub fn trusting(mut self, pem: &[u8]) -> Result<Self, ClientTlsError> {
        let ders = certificates(pem)?;
        // One by one: in bulk, unreadable certificates would be skipped silently.
        let mut roots = RootCertStore::empty();
        for der in &ders {
            roots.add(der.clone()).map_err(unusable)?;
        }
        let read: Result<Vec<_>, _> = ders.iter().map(|der| Certificate::from_der(der)).collect();
        self.authorities = Some(read.map_err(unusable)?);
        self.roots = Some(Arc::new(roots));
        Ok(self)
    }

    /// Presents this client certificate, followed by its chain, with its private key.
    pub fn showing(mut self, certificate: &[u8], key: &[u8]) -> Result<Self, ClientTlsError> {
        let chain = certificates(certificate)?;
        let key_der = tls::private_key(key).map_err(|_| ClientTlsError::NoKey)?;
        let provider = rustls::crypto::ring::default_provider();
        let certified_key = CertifiedKey::from_der(chain, key_der, &provider).map_err(unusable)?;
        self.certified_key = Some(Arc::new(certified_key));
        let mut pem = certificate.to_vec();
        pem.push(b'\n');
        pem.extend_from_slice(key);
        self.identity = Some(Identity::from_pem(&pem).map_err(unusable)?);
        Ok(self)
    }

    pub(crate) fn trusts_the_system(&self) -> bool {
        self.authorities.is_none()
    }

    /// The configuration of all connections to replicas, which share its session cache. Unreadable
    /// system certificates are only logged, because `http` works without them.
    pub(super) fn config(&self, http2: ReplicaHttp2) -> ClientConfig {
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
                        "the system's certificates cannot be read: attempts to https replicas will fail"
                    );
                    builder.with_root_certificates(RootCertStore::empty())
                }
            },
        };
        let mut config = match &self.certified_key {
            Some(key) => {
                builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(key))))
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = match http2 {
            ReplicaHttp2::Off => vec![b"http/1.1".to_vec()],
            ReplicaHttp2::Auto | ReplicaHttp2::PriorKnowledge => {
                vec![b"h2".to_vec(), b"http/1.1".to_vec()]
            }
        };
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

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, ClientTlsError> {
    let found = tls::certificates(pem).map_err(|error| ClientTlsError::Pem(error.to_string()))?;
    if found.is_empty() { Err(ClientTlsError::NoCertificate) } else { Ok(found) }
}

fn unusable(error: impl std::error::Error) -> ClientTlsError {
    ClientTlsError::Unusable(error.to_string())
}

#[derive(Clone, Default)]
pub struct ReplicaTokens {
    by_node: HashMap<Node, HeaderValue>,
    /// For replicas without a token of their own.
    any: Option<HeaderValue>,
}

impl fmt::Debug for ReplicaTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nodes: Vec<_> = self.by_node.keys().map(Node::as_str).collect();
        f.debug_struct("ReplicaTokens")
            .field("nodes", &nodes)
            .field("any", &self.any.is_some())
            .finish()
    }
}

/// The texts never contain a word from the file: it may be a token in the wrong place.
#[derive(Debug, Error)]
pub enum ReplicaTokensError {
    #[error("line {line}: expected the address of a replica, or *, and a token")]
    Words { line: usize },
    #[error("line {line}: the address of the replica {source}")]
    Node { line: usize, source: NodeError },
    #[error("line {line}: a token may only contain A-Z a-z 0-9 - . _ ~ + / =")]
    Token { line: usize },
    #[error("line {line}: this replica already has a token")]
    Twice { line: usize },
    #[error("it contains no token")]
    Empty,
}

impl ReplicaTokens {
    /// Parses a token file. A line is `http://host:port TOKEN`, `* TOKEN`, empty, or a comment that
    /// starts with `#`.
    pub fn parse(text: &str) -> Result<Self, ReplicaTokensError> {
        let mut tokens = Self::default();
        for (line, text) in text.lines().enumerate() {
            let (line, text) = (line + 1, text.trim());
            if text.is_empty() || text.starts_with('#') {
                continue;
            }
            let mut words = text.split_whitespace();
            let (Some(node), Some(token), None) = (words.next(), words.next(), words.next()) else {
                return Err(ReplicaTokensError::Words { line });
            };
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte);
            if !token.bytes().all(plain) {
                return Err(ReplicaTokensError::Token { line });
            }
            let header = HeaderValue::from_str(&format!("Bearer {token}"));
            let mut header = header.map_err(|_| ReplicaTokensError::Token { line })?;
            header.set_sensitive(true);
            let previous = if node == "*" {
                tokens.any.replace(header)
            } else {
                let node = Node::parse(node)
                    .map_err(|source| ReplicaTokensError::Node { line, source })?;
                tokens.by_node.insert(node, header)
            };
            if previous.is_some() {
                return Err(ReplicaTokensError::Twice { line });
            }
        }
        if tokens.by_node.is_empty() && tokens.any.is_none() {
            return Err(ReplicaTokensError::Empty);
        }
        Ok(tokens)
    }

    /// Whether any replica that a client names gets a token.
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
        let text = "# tokens\nhttp://A:80/ one\n\n  https://b:1/p two==\n* three\n";
        let tokens = ReplicaTokens::parse(text).unwrap();
        let of = |text| tokens.of(&node(text)).unwrap().to_str().unwrap().to_owned();
        assert_eq!(of("http://a"), "Bearer one");
        assert_eq!(of("https://b:1/p"), "Bearer two==");
        for other in ["https://b:1", "http://a:81", "https://a"] {
            assert_eq!(of(other), "Bearer three", "{other}");
        }
        assert!(tokens.serves_any());
        let only = ReplicaTokens::parse("http://a one").unwrap();
        assert!(only.of(&node("http://b")).is_none() && !only.serves_any());
    }

    #[test]
    fn an_error_names_the_wrong_line_without_its_content() {
        for (text, expected) in [
            ("", "it contains no token"),
            ("# nothing\n", "it contains no token"),
            ("http://a secret\nhttp://b", "line 2: expected the address"),
            ("http://a secret more", "line 1: expected the address"),
            ("secret secret", "line 1: the address of the replica must begin with http"),
            ("* se\u{7f}cret", "line 1: a token may only contain"),
            ("* sécret", "line 1: a token may only contain"),
            ("http://a secret\nhttp://A:80/ secret", "line 2: this replica already has a token"),
            ("* secret\n* secret", "line 2: this replica already has a token"),
        ] {
            let error = ReplicaTokens::parse(text).unwrap_err().to_string();
            assert!(error.starts_with(expected) && !error.contains("secret"), "{text:?}: {error}");
        }
    }

    #[test]
    fn debug_output_contains_no_token() {
        let tokens = ReplicaTokens::parse("http://a secret-one\n* secret-two").unwrap();
        let shown = format!("{tokens:?} {:?}", tokens.of(&node("http://a")));
        assert!(shown.contains("http://a") && !shown.contains("secret"), "{shown}");
    }
}
