//! TLS of the inbound side: which certificate is shown, and which ones clients must show.
//!
//! TLS 1.2 and 1.3, HTTP/1.1 alone: a client that offers nothing but another protocol is refused
//! in its handshake. Files are read at the start and at a reload; a connection keeps what it
//! began with.

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

/// How long a client that was refused in its handshake may take to go away.
const REFUSED_PATIENCE: Duration = Duration::from_secs(1);

/// How much it may send meanwhile.
const REFUSED_BYTES: u64 = 64 * 1024;

/// Why TLS cannot be had.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A file is not there, or not what it should be.
    #[error("cannot read {what} in {}: {why}", file.display())]
    File {
        /// What it should hold.
        what: &'static str,
        /// Which.
        file: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// They do not fit together.
    #[error("the certificate in {} and the key in {} cannot be used: {source}", certificate.display(), key.display())]
    Pair {
        /// Which certificate.
        certificate: PathBuf,
        /// Which key.
        key: PathBuf,
        /// What is wrong.
        source: rustls::Error,
    },
}

/// What is shown and asked for now. Cheap to clone; clones share it, reloads included.
#[derive(Clone, Debug)]
pub struct Tls(Arc<ArcSwap<ServerConfig>>);

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    ///
    /// [`TlsError`], which names the file.
    pub fn read(files: &TlsFiles) -> Result<Self, TlsError> {
        Ok(Self(Arc::new(ArcSwap::from_pointee(config(files)?))))
    }

    /// Reads the files again, for the connections to come.
    ///
    /// # Errors
    ///
    /// [`TlsError`]; then all stays as it was.
    pub fn reload(&self, files: &TlsFiles) -> Result<(), TlsError> {
        self.0.store(Arc::new(config(files)?));
        Ok(())
    }

    /// Shakes hands; gives who the client's certificate says it is, where it has shown one.
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

/// Leaves a refused client time to read why. In TLS 1.3 it may be sending its request by then:
/// were the connection closed on it, sending would fail, and it would not come to read the alert.
async fn until_read(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    let gone = async {
        stream.shutdown().await?;
        tokio::io::copy(&mut stream.take(REFUSED_BYTES), &mut tokio::io::sink()).await
    };
    let _ = tokio::time::timeout(REFUSED_PATIENCE, gone).await;
}

/// The first DNS name in a certificate that was verified, or the beginning of its SHA-256 where
/// it has none.
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

fn config(files: &TlsFiles) -> Result<ServerConfig, TlsError> {
    let provider = Arc::new(crypto::ring::default_provider());
    let shown = certificates(&files.certificate)?;
    let what = "a private key";
    let key = tls::private_key(&read(what, &files.key)?)
        .map_err(|error| unreadable(what, &files.key, &error))?;
    let pair = |source| TlsError::Pair {
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
                    .map_err(|error| unreadable("the clients' authorities", file, &error))?;
            }
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            let verifier =
                verifier.map_err(|error| unreadable("the clients' authorities", file, &error))?;
            config.with_client_cert_verifier(verifier)
        }
    };
    let mut config = config.with_single_cert(shown, key).map_err(pair)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let what = "certificates";
    let found = tls::certificates(&read(what, file)?);
    let found = found.map_err(|error| unreadable(what, file, &error))?;
    if found.is_empty() {
        return Err(unreadable(what, file, &"there are none"));
    }
    Ok(found)
}

fn read(what: &'static str, file: &Path) -> Result<Vec<u8>, TlsError> {
    let bytes = std::fs::read(file).map_err(|error| unreadable(what, file, &error))?;
    Ok(without_bom(&bytes).to_vec())
}

fn unreadable(what: &'static str, file: &Path, why: &dyn std::fmt::Display) -> TlsError {
    TlsError::File { what, file: file.to_owned(), why: why.to_string() }
}
