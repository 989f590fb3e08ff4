//! Inbound TLS: the server certificate, and verification of client certificates.
//!
//! TLS 1.2 and 1.3 with HTTP/1.1 only: the handshake fails for a client that offers only other
//! protocols. Files are read at start and on reload. Open connections keep their configuration.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::pki_types::CertificateDer;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, crypto};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::text::without_bom;
use crate::tls::{self, TlsFiles};
use crate::trusted_file::{FileContent, UntrustedFile, read_trusted};

/// How long a client whose handshake failed may take to read the alert.
const REFUSED_PATIENCE: Duration = Duration::from_secs(1);

const REFUSED_BYTES: u64 = 64 * 1024;

/// Four times a bundle of all public authorities.
const MAX_FILE_BYTES: u64 = 1 << 20;

#[derive(Debug, Error)]
pub enum InboundTlsError {
    #[error("cannot read {what} in {}: {why}", file.display())]
    File { what: &'static str, file: PathBuf, why: String },
    #[error("{} {source}", file.display())]
    Untrusted { file: PathBuf, source: UntrustedFile },
    #[error("cannot use the certificate in {} with the key in {}: {source}", certificate.display(), key.display())]
    Pair { certificate: PathBuf, key: PathBuf, source: rustls::Error },
}

/// The current TLS configuration. Clones share it, including reloads.
#[derive(Clone, Debug)]
pub struct InboundTls(Arc<ArcSwap<ServerConfig>>);

impl InboundTls {
    pub fn read(files: &TlsFiles) -> Result<Self, InboundTlsError> {
        Ok(Self(Arc::new(ArcSwap::from_pointee(config(files)?))))
    }

    /// Reads the files again, for new connections. On an error the old configuration stays in use.
    pub fn reload(&self, files: &TlsFiles) -> Result<(), InboundTlsError> {
        self.0.store(Arc::new(config(files)?));
        Ok(())
    }

    /// Performs the handshake. Also returns the name in the client certificate, if there is one.
    pub(super) async fn handshake<S>(
        &self,
        stream: S,
    ) -> std::io::Result<(TlsStream<S>, Option<String>)>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let accepting = TlsAcceptor::from(self.0.load_full()).accept(stream);
        let stream = match accepting.into_fallible().await {
            Ok(stream) => stream,
            Err((error, stream)) => {
                until_read(stream).await;
                return Err(error);
            }
        };
        let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let name = shown.map(name);
        Ok((stream, name))
    }
}

/// Gives a refused client time to read the alert. In TLS 1.3 it may already be sending its
/// request: closing at once would make that fail before it reads the alert.
async fn until_read(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    let gone = async {
        stream.shutdown().await?;
        tokio::io::copy(&mut stream.take(REFUSED_BYTES), &mut tokio::io::sink()).await
    };
    let _ = tokio::time::timeout(REFUSED_PATIENCE, gone).await;
}

/// The first DNS name in a verified certificate, or else a prefix of its SHA-256.
fn name(certificate: &CertificateDer<'_>) -> String {
    let parsed = webpki::EndEntityCert::try_from(certificate).ok();
    let name = parsed.as_ref().and_then(|parsed| parsed.valid_dns_names().next());
    name.map_or_else(|| fingerprint(certificate), str::to_owned)
}

fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    let hash = ring::digest::digest(&ring::digest::SHA256, certificate);
    let begin: String = hash.as_ref().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{begin}")
}

fn config(files: &TlsFiles) -> Result<ServerConfig, InboundTlsError> {
    let provider = Arc::new(crypto::ring::default_provider());
    let shown = certificates(&files.certificate)?;
    let what = "a private key";
    let key = tls::private_key(&read(what, &files.key, FileContent::Secret)?)
        .map_err(|error| unreadable(what, &files.key, &error))?;
    let pair = |source| InboundTlsError::Pair {
        certificate: files.certificate.clone(),
        key: files.key.clone(),
        source,
    };
    let config = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(pair)?;
    let config = match &files.client_ca {
        None => config.with_no_client_auth(),
        Some(file) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(file)? {
                roots
                    .add(certificate)
                    .map_err(|error| unreadable("the client CA certificates", file, &error))?;
            }
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            let verifier =
                verifier.map_err(|error| unreadable("the client CA certificates", file, &error))?;
            config.with_client_cert_verifier(verifier)
        }
    };
    let mut config = config.with_single_cert(shown, key).map_err(pair)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, InboundTlsError> {
    let what = "certificates";
    let found = tls::certificates(&read(what, file, FileContent::Public)?);
    let found = found.map_err(|error| unreadable(what, file, &error))?;
    if found.is_empty() {
        return Err(unreadable(what, file, &"the file contains none"));
    }
    Ok(found)
}

fn read(what: &'static str, file: &Path, content: FileContent) -> Result<Vec<u8>, InboundTlsError> {
    match read_trusted(file, content, MAX_FILE_BYTES) {
        Ok(bytes) => Ok(without_bom(&bytes).to_vec()),
        Err(UntrustedFile::Unreadable(error)) => Err(unreadable(what, file, &error)),
        Err(source) => Err(InboundTlsError::Untrusted { file: file.to_owned(), source }),
    }
}

fn unreadable(what: &'static str, file: &Path, why: &dyn std::fmt::Display) -> InboundTlsError {
    InboundTlsError::File { what, file: file.to_owned(), why: why.to_string() }
}
