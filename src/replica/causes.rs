//! Classifies the error of an attempt that had no answer, by its causes.

use std::error::Error;
use std::io;

use hyper::http::Extensions;
use hyper_util::client::legacy::{self, connect::HttpInfo};
use rustls::{AlertDescription, CertificateError, OtherError};

use super::names::LookupError;
use crate::policy::Forbidden;

/// The causes of an error, outermost first. reqwest's own text is left out: it contains the URL,
/// and so the key.
pub(super) fn chain(error: &reqwest::Error) -> String {
    let causes: Vec<_> = causes(error).map(ToString::to_string).collect();
    if causes.is_empty() { "unknown cause".to_owned() } else { causes.join(": ") }
}

pub(super) fn forbidden(error: &reqwest::Error) -> Option<&Forbidden> {
    causes(error).find_map(|cause| cause.downcast_ref())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LocalShortage {
    /// Local ports for connections to this replica, or a local address.
    Ports,
    Other,
}

/// The local shortage that prevented an attempt, which is not the replica's fault.
pub(super) fn short_of(error: &reqwest::Error) -> Option<LocalShortage> {
    if !error.is_connect() {
        return None;
    }
    let of_system = |error: &io::Error| match error.raw_os_error()? {
        libc::EADDRNOTAVAIL => Some(LocalShortage::Ports),
        libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM => Some(LocalShortage::Other),
        _ => None,
    };
    causes(error).find_map(|cause| match cause.downcast_ref() {
        Some(LookupError::Shortage(_)) => Some(LocalShortage::Other),
        Some(LookupError::Failed(error)) => of_system(error),
        Some(LookupError::TimedOut(_)) => None,
        None => cause.downcast_ref().and_then(of_system),
    })
}

/// Whether the connection was lost before any of the request was written. The error may not say
/// why: hyper cancels the request before it reads that.
pub(crate) fn never_written(error: &reqwest::Error) -> bool {
    causes(error).any(|cause| cause.downcast_ref().is_some_and(hyper::Error::is_canceled))
}

/// The local port of a connection that the other end closed or reset without an answer.
pub(super) fn closed_unanswered(error: &reqwest::Error) -> Option<u16> {
    let closed = causes(error).any(|cause| {
        let ended = cause.downcast_ref().is_some_and(hyper::Error::is_incomplete_message);
        ended || cause.downcast_ref().is_some_and(is_lost)
    });
    let client = causes(error).find_map(|cause| cause.downcast_ref::<legacy::Error>())?;
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

pub(super) fn local_port(response: &reqwest::Response) -> Option<u16> {
    port(response.extensions())
}

fn port(extras: &Extensions) -> Option<u16> {
    extras.get().map(|info: &HttpInfo| info.local_addr().port())
}

/// The name of the other end in error texts, and the flags that configure TLS to it.
pub(crate) struct TlsPeer {
    pub(crate) name: &'static str,
    pub(crate) authorities: &'static str,
    pub(crate) certificate: &'static str,
}

pub(super) const REPLICA: TlsPeer =
    TlsPeer { name: "the replica", authorities: "--replica-ca", certificate: "--replica-cert" };

pub(crate) fn certificate_problem(error: &reqwest::Error, peer: &TlsPeer) -> Option<String> {
    let tls: &rustls::Error = causes(error).find_map(|cause| within(cause).downcast_ref())?;
    let TlsPeer { name, authorities, certificate } = peer;
    let problem = match tls {
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
                    &format!("is signed by an authority that is not trusted ({authorities})")
                }
                CertificateError::Other(other) if is_ca_certificate(other) => {
                    "is a CA certificate, not a server certificate (openssl: basicConstraints=CA:FALSE)"
                }
                _ => "is not accepted",
            };
            format!("{name}'s certificate {wrong}")
        }
        rustls::Error::AlertReceived(AlertDescription::CertificateRequired) => {
            format!("{name} requires a client certificate ({certificate})")
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
    Some(format!("{problem}: {tls}"))
}

/// `openssl req -x509` makes such a certificate by default.
fn is_ca_certificate(why: &OtherError) -> bool {
    matches!(why.0.downcast_ref(), Some(webpki::Error::CaUsedAsEndEntity))
}

fn causes(error: &reqwest::Error) -> impl Iterator<Item = &(dyn Error + 'static)> {
    std::iter::successors(error.source(), |&cause| cause.source())
}

/// Unwraps I/O errors: `source` skips the error that an I/O error wraps.
fn within<'a>(mut cause: &'a (dyn Error + 'static)) -> &'a (dyn Error + 'static) {
    while let Some(inner) = cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        cause = inner;
    }
    cause
}
