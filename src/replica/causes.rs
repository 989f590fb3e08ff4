//! Why an attempt had no answer, read from an error and its causes.

use std::error::Error;
use std::io;

use hyper::http::Extensions;
use hyper_util::client::legacy::{self, connect::HttpInfo};
use rustls::{AlertDescription, CertificateError, OtherError};

use super::names::LookupError;
use crate::policy::Forbidden;

/// An error and its causes, from the outside in.
///
/// Only the causes: reqwest's own line is `error sending request for url (…)`, and the URL
/// contains the key.
pub(super) fn chain(error: &reqwest::Error) -> String {
    let causes: Vec<_> = causes(error).map(ToString::to_string).collect();
    if causes.is_empty() {
        return "of an unknown cause".to_owned();
    }
    causes.join(": ")
}

/// What the policy said, if it was that.
pub(super) fn forbidden(error: &reqwest::Error) -> Option<&Forbidden> {
    causes(error).find_map(|cause| cause.downcast_ref())
}

/// What this process or this machine lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Short {
    /// Ports for connections to this replica, or an address to connect from.
    Ports,
    Other,
}

/// What has kept an attempt from being sent that is not the replica's fault, if it was that.
pub(super) fn short_of(error: &reqwest::Error) -> Option<Short> {
    if !error.is_connect() {
        return None;
    }
    let of_system = |error: &io::Error| match error.raw_os_error()? {
        libc::EADDRNOTAVAIL => Some(Short::Ports),
        libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM => Some(Short::Other),
        _ => None,
    };
    causes(error).find_map(|cause| match cause.downcast_ref() {
        Some(LookupError::Shortage(_)) => Some(Short::Other),
        Some(LookupError::Failed(error)) => of_system(error),
        Some(LookupError::TimedOut(_)) => None,
        None => cause.downcast_ref().and_then(of_system),
    })
}

/// Whether the connection was made and lost before any of the request was written. Why it was
/// lost the error may not say: hyper gives up the request before it has read that.
pub(crate) fn never_written(error: &reqwest::Error) -> bool {
    causes(error).any(|cause| cause.downcast_ref().is_some_and(hyper::Error::is_canceled))
}

/// The local port of the connection, if it ended without an answer: closed or reset by the other
/// end.
pub(super) fn closed_unanswered(error: &reqwest::Error) -> Option<u16> {
    let closed = causes(error).any(|cause| {
        let ended = cause.downcast_ref().is_some_and(hyper::Error::is_incomplete_message);
        ended || cause.downcast_ref().is_some_and(is_lost)
    });
    let client = causes(error).find_map(|cause| cause.downcast_ref::<legacy::Error>())?;
    // Of one that was never made there is no port.
    let connection = client.connect_info().filter(|_| closed)?;
    let mut extras = Extensions::new();
    connection.get_extras(&mut extras);
    port(&extras)
}

fn is_lost(error: &io::Error) -> bool {
    use io::ErrorKind::{
        BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected, UnexpectedEof,
    };
    matches!(
        error.kind(),
        BrokenPipe | ConnectionAborted | ConnectionReset | NotConnected | UnexpectedEof
    )
}

/// The local port of the connection that an answer came over.
pub(super) fn local_port(response: &reqwest::Response) -> Option<u16> {
    port(response.extensions())
}

fn port(extras: &Extensions) -> Option<u16> {
    extras.get().map(|info: &HttpInfo| info.local_addr().port())
}

/// The other end of a connection, and the flags that have to do with certificates there.
pub(crate) struct Peer {
    /// As in "the replica".
    pub(crate) name: &'static str,
    pub(crate) authorities: &'static str,
    pub(crate) certificate: &'static str,
}

pub(super) const REPLICA: Peer =
    Peer { name: "the replica", authorities: "--replica-ca", certificate: "--replica-cert" };

/// What is wrong with certificates, ours or theirs, if it was that.
pub(crate) fn certificate(error: &reqwest::Error, peer: &Peer) -> Option<String> {
    let tls: &rustls::Error = causes(error).find_map(|cause| within(cause).downcast_ref())?;
    let Peer { name, authorities, certificate } = peer;
    let what = match tls {
        rustls::Error::InvalidCertificate(why) => {
            let wrong = match why {
                CertificateError::NotValidForName
                | CertificateError::NotValidForNameContext { .. } => "is for another name",
                CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                    "has expired"
                }
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                    "is not valid yet"
                }
                CertificateError::UnknownIssuer => {
                    &format!("is from an authority that is not trusted ({authorities})")
                }
                CertificateError::Other(other) if is_of_an_authority(other) => {
                    "is one of an authority, not of a server (openssl: basicConstraints=CA:FALSE)"
                }
                _ => "is not accepted",
            };
            format!("{name}'s certificate {wrong}")
        }
        rustls::Error::AlertReceived(AlertDescription::CertificateRequired) => {
            format!("{name} asks for a client certificate ({certificate})")
        }
        rustls::Error::AlertReceived(
            AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied,
        ) => format!("{name} does not accept our client certificate ({certificate})"),
        _ => return None,
    };
    Some(format!("{what}: {tls}"))
}

/// What `openssl req -x509` makes where it is not told otherwise.
fn is_of_an_authority(why: &OtherError) -> bool {
    matches!(why.0.downcast_ref(), Some(webpki::Error::CaUsedAsEndEntity))
}

fn causes(error: &reqwest::Error) -> impl Iterator<Item = &(dyn Error + 'static)> {
    std::iter::successors(error.source(), |&cause| cause.source())
}

/// What an I/O error wraps, however often: its `source` is what comes after that.
fn within<'a>(mut cause: &'a (dyn Error + 'static)) -> &'a (dyn Error + 'static) {
    while let Some(inner) = cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        cause = inner;
    }
    cause
}
