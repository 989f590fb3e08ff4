//! The options of the connection: TLS, credentials, and how fast a silent server is left.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_nats::ConnectOptions;
use rustls::crypto::ring;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, RootCertStore};
use rustls_platform_verifier::Verifier;

use super::JetStreamSettings;
use super::failure::ConnectError;
use crate::tls;
use crate::trusted_file::FileContent::{self, Public, Secret};
use crate::trusted_file::read_trusted;

const MAX_FILE_BYTES: u64 = 1 << 20;

/// A server that answers no ping is left after the third one.
const PING_EVERY: Duration = Duration::from_secs(1);

/// For one server: TCP, TLS and the answer to the credentials.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Between two rounds of attempts to reconnect. Far below the lease, as an instance without a server
/// loses its partitions.
const MAX_RECONNECT_DELAY: Duration = Duration::from_millis(200);

/// How the connection proves who it is. Has no `Debug`: it is a secret.
enum Credentials {
    /// A JWT and the seed of its key, as `nsc` writes them.
    Jwt(String),
    /// The seed of a key.
    Seed(String),
    Password {
        user: String,
        password: String,
    },
}

pub(super) fn read(settings: &JetStreamSettings) -> Result<ConnectOptions, ConnectError> {
    let mut options = ConnectOptions::new()
        .name(format!("replicator {}", settings.node_id))
        .ping_interval(PING_EVERY)
        .connection_timeout(CONNECT_TIMEOUT)
        .request_timeout(Some(settings.timeout))
        .reconnect_delay_callback(|attempts| match attempts {
            0 | 1 => Duration::ZERO,
            _ => MAX_RECONNECT_DELAY,
        })
        .tls_client_config(client_config(settings)?);
    if settings.urls.iter().any(|url| url.starts_with("tls://")) {
        // Also for servers that the first one names.
        options = options.require_tls(true);
    }
    let Some(path) = &settings.creds else { return Ok(options) };
    let text = text(path)?;
    let credentials = Credentials::parse(&text).ok_or_else(|| bad(
        "--store-creds",
        path,
        "is neither a credentials file of nsc, nor the seed of an nkey, nor one line `user:password`".to_owned(),
    ))?;
    Ok(match credentials {
        // Its error may quote the file.
        Credentials::Jwt(text) => options.credentials(&text).map_err(|_| {
            bad("--store-creds", path, "contains no valid JWT with its seed".to_owned())
        })?,
        Credentials::Seed(seed) => options.nkey(seed),
        Credentials::Password { user, password } => options.user_and_password(user, password),
    })
}

impl Credentials {
    fn parse(text: &str) -> Option<Self> {
        if text.contains("-----BEGIN NATS USER JWT-----") {
            return Some(Self::Jwt(text.to_owned()));
        }
        let mut lines = text.lines().map(str::trim);
        let mut lines = lines.by_ref().filter(|line| !line.is_empty() && !line.starts_with('#'));
        let (line, None) = (lines.next()?, lines.next()) else { return None };
        let seed = |c: char| c.is_ascii_uppercase() || ('2'..='7').contains(&c);
        if line.starts_with("SU") && line.len() == 58 && line.chars().all(seed) {
            return Some(Self::Seed(line.to_owned()));
        }
        let (user, password) = line.split_once(':')?;
        let (user, password) = (user.to_owned(), password.to_owned());
        (!user.is_empty() && !password.is_empty()).then_some(Self::Password { user, password })
    }
}

fn client_config(settings: &JetStreamSettings) -> Result<ClientConfig, ConnectError> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        // Fails only without ciphers.
        .map_err(|error| ConnectError::NotReady(error.to_string()))?;
    let builder = match &settings.ca {
        Some(path) => builder.with_root_certificates(authorities(path)?),
        None => match Verifier::new(Arc::clone(&provider)) {
            Ok(verifier) => {
                builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier))
            }
            // Not needed without TLS.
            Err(_) => builder.with_root_certificates(RootCertStore::empty()),
        },
    };
    let (Some(certificate), Some(key)) = (&settings.cert, &settings.key) else {
        return Ok(builder.with_no_client_auth());
    };
    let chain = certificates("--store-cert", certificate)?;
    let pem = file("--store-key", key, Secret)?;
    let key_der = tls::private_key(&pem).map_err(|_| {
        let problem =
            "contains no readable private key: expected an unencrypted PKCS#8, PKCS#1 or SEC1 key";
        bad("--store-key", key, problem.to_owned())
    })?;
    let certified = CertifiedKey::from_der(chain, key_der, &provider)
        .map_err(|error| bad("--store-cert", certificate, format!("cannot be used: {error}")))?;
    let certified = SingleCertAndKey::from(Arc::new(certified));
    Ok(builder.with_client_cert_resolver(Arc::new(certified)))
}

fn authorities(path: &Path) -> Result<RootCertStore, ConnectError> {
    let mut roots = RootCertStore::empty();
    for der in certificates("--store-ca", path)? {
        let added = roots.add(der);
        added.map_err(|error| bad("--store-ca", path, format!("cannot be used: {error}")))?;
    }
    Ok(roots)
}

fn certificates(
    flag: &'static str,
    path: &Path,
) -> Result<Vec<rustls::pki_types::CertificateDer<'static>>, ConnectError> {
    let pem = file(flag, path, Public)?;
    let found = tls::certificates(&pem)
        .map_err(|error| bad(flag, path, format!("is not a valid PEM file: {error}")))?;
    if found.is_empty() {
        return Err(bad(flag, path, "contains no certificate".to_owned()));
    }
    Ok(found)
}

fn text(path: &Path) -> Result<String, ConnectError> {
    let bytes = file("--store-creds", path, Secret)?;
    String::from_utf8(bytes).map_err(|_| bad("--store-creds", path, "is not text".to_owned()))
}

fn file(flag: &'static str, path: &Path, content: FileContent) -> Result<Vec<u8>, ConnectError> {
    read_trusted(path, content, MAX_FILE_BYTES).map_err(|source| ConnectError::File {
        flag,
        path: path.to_owned(),
        source,
    })
}

fn bad(flag: &'static str, path: &Path, problem: String) -> ConnectError {
    ConnectError::Content { flag, path: path.to_owned(), problem }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_a_jwt_a_seed_or_a_password() {
        let seed = format!("SU{}\n", "A".repeat(56));
        let kind = |text: &str| match Credentials::parse(text) {
            Some(Credentials::Jwt(_)) => "jwt",
            Some(Credentials::Seed(_)) => "seed",
            Some(Credentials::Password { .. }) => "password",
            None => "none",
        };
        let jwt = "-----BEGIN NATS USER JWT-----\na.b.c\n------END NATS USER JWT------\n";
        assert_eq!(kind(jwt), "jwt");
        assert_eq!(kind(&seed), "seed");
        assert_eq!(kind("# made by hand\n\nreplicator:a:b\n"), "password");
        for text in ["", "replicator", ":p", "u:", "u:p\nv:q\n"] {
            assert_eq!(kind(text), "none", "{text:?}");
        }
    }
}
