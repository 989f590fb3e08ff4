//! Why the cluster store cannot be used: one sentence each.

use std::error::Error;
use std::io;
use std::path::PathBuf;

use async_nats::ConnectErrorKind;
use rustls::{AlertDescription, CertificateError};
use thiserror::Error;

use crate::text::{plain, quoted};
use crate::trusted_file::UntrustedFile;

#[derive(Debug, Error)]
pub enum ConnectError {
    #[error("cannot start the thread of the store: {0}")]
    Threads(String),
    #[error("the file {} ({flag}) {source}", .path.display())]
    File { flag: &'static str, path: PathBuf, source: UntrustedFile },
    #[error("the file {} ({flag}) {problem}", .path.display())]
    Content { flag: &'static str, path: PathBuf, problem: String },
    #[error("cannot connect to a server of --store within --store-timeout: {0}")]
    Unreachable(String),
    #[error("the server {0} refuses this client: set or correct its credentials (--store-creds)")]
    Credentials(String),
    #[error("the credentials have expired, says the server {0}: replace the file of --store-creds")]
    ExpiredCredentials(String),
    #[error("the certificate of the server {0} has expired")]
    ExpiredCertificate(String),
    #[error("the certificate of the server {server} cannot be verified (--store-ca): {problem}")]
    Certificate { server: String, problem: String },
    #[error("the server {server} refuses the client certificate (--store-cert): {problem}")]
    ClientCertificate { server: String, problem: String },
    #[error("the server {server} has version {version}: --store needs nats-server 2.15 or newer")]
    OldServer { server: String, version: String },
    #[error(
        "the server {server} takes messages of at most {found} bytes, and --store needs {needed}: set `max_payload: 1MB` or more"
    )]
    SmallPayload { server: String, found: usize, needed: usize },
    #[error(
        "JetStream is not enabled for this account on the servers of --store: add a block `jetstream` to their configuration and `jetstream: enabled` to the account"
    )]
    NoJetStream,
    #[error("the servers of --store are not ready: {0}")]
    NotReady(String),
    #[error("the credentials do not allow it (--store-creds): {0}")]
    Forbidden(String),
    #[error(
        "the servers {0} acknowledge writes before they are synced to disk: set `sync_interval: always` in the block `jetstream` of their configuration, or accept the loss of writes in a power cut with --store-durability replicated"
    )]
    NotSynced(String),
    #[error(
        "the cluster {cluster:?} has {found} partitions, and --partitions is {wanted}: the number is fixed when a cluster is made; `replicator export` and `replicator import` move its tasks to a new one"
    )]
    Partitions { cluster: String, found: u16, wanted: u16 },
    #[error(
        "the cluster {cluster:?} has format {found}, and this version reads {known}: use a newer version of the replicator"
    )]
    NewerFormat { cluster: String, found: u32, known: u32 },
    #[error("there is no cluster {0:?} on the servers of --store (--cluster)")]
    NoCluster(String),
    #[error(
        "the cluster {0:?} exists already: import into a new one (--cluster), or delete its streams"
    )]
    Exists(String),
    #[error(
        "an import into the cluster {0:?} is running or was interrupted: when it is not running, start it again from the beginning"
    )]
    Importing(String),
    #[error("the record of the cluster {cluster:?} is damaged: {problem}")]
    Record { cluster: String, problem: String },
    #[error(
        "the stream {stream} belongs to something else: {problem}; choose another name with --cluster"
    )]
    Foreign { stream: String, problem: String },
    #[error("the stream {stream} cannot be created or read: {problem}")]
    Stream { stream: String, problem: String },
}

/// Why one server could not be used.
#[derive(Debug)]
pub(super) enum ServerFailure {
    /// No other server will help.
    Final(ConnectError),
    Down(String),
}

/// Finds the reason in the error of a client that tried only this server.
pub(super) fn reason(server: &str, error: &async_nats::ConnectError) -> ServerFailure {
    let server = server.to_owned();
    match error.kind() {
        ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication => {
            return ServerFailure::Final(ConnectError::Credentials(server));
        }
        ConnectErrorKind::TimedOut => {
            return ServerFailure::Down(format!("{server} does not answer"));
        }
        _ => {}
    }
    let text = innermost(error);
    if let Some(problem) = tls_problem(error) {
        return match problem {
            rustls::Error::InvalidCertificate(
                CertificateError::Expired | CertificateError::ExpiredContext { .. },
            ) => ServerFailure::Final(ConnectError::ExpiredCertificate(server)),
            rustls::Error::AlertReceived(alert) if is_about_the_client(*alert) => {
                ServerFailure::Final(ConnectError::ClientCertificate { server, problem: text })
            }
            rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented => {
                ServerFailure::Final(ConnectError::Certificate { server, problem: text })
            }
            _ => ServerFailure::Down(format!("{server}: {text}")),
        };
    }
    if text.to_lowercase().contains("authentication expired") {
        return ServerFailure::Final(ConnectError::ExpiredCredentials(server));
    }
    ServerFailure::Down(format!("{server}: {text}"))
}

fn is_about_the_client(alert: AlertDescription) -> bool {
    matches!(
        alert,
        AlertDescription::BadCertificate
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateRequired
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::UnsupportedCertificate
    )
}

/// The causes of an error. A cause inside an I/O error is not among its sources.
fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| {
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        inner.map(|inner| inner as &(dyn Error + 'static)).or_else(|| error.source())
    })
}

fn tls_problem<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    causes(error).find_map(|cause| cause.downcast_ref())
}

/// The text of the last cause, escaped: a server may have written it.
pub(in crate::store::jetstream) fn innermost(error: &(dyn Error + 'static)) -> String {
    let text = causes(error).last().map(ToString::to_string).unwrap_or_default();
    plain(&text).into_owned()
}

/// A word of a server, escaped and in quotes.
pub(super) fn said(text: &str) -> String {
    quoted(text)
}
