//! Why an attempt has no answer, as a value and as a short text for operators.
//!
//! The texts name what an operator can look for: no error numbers, no names of libraries, no URL.

use std::error::Error;
use std::io;

use rustls::{AlertDescription, CertificateError, InvalidMessage, OtherError};

use super::bounded::{HeadTooLong, MAX_HEAD_BYTES};
use super::names::LookupError;
use crate::policy::Forbidden;

#[derive(Debug)]
pub(super) enum Unanswered {
    Forbidden(Forbidden),
    Lookup(LookupError),
    Connect(io::Error),
    Tls(io::Error),
    /// The connection ended before any of the request was written.
    Unsent(hyper::Error),
    /// `answered`: a part of an answer had arrived.
    Sent {
        error: hyper::Error,
        answered: bool,
    },
    Http2(Http2Loss),
}

/// A request over HTTP/2 without an answer.
#[derive(Debug)]
pub(super) struct Http2Loss {
    pub(super) error: h2::Error,
    /// Its stream was not opened.
    pub(super) is_unsent: bool,
    /// The replica sent more than it may.
    pub(super) flooded: bool,
    pub(super) tls: Option<rustls::Error>,
}

impl Http2Loss {
    pub(super) fn unsent(error: h2::Error) -> Self {
        Self { error, is_unsent: true, flooded: false, tls: None }
    }

    /// The replica says so: it refused the stream, or it closes the connection and the stream is
    /// above the last one that it read (h2 gives this error to no other stream).
    fn is_unprocessed(&self) -> bool {
        let refused =
            self.error.is_reset() && self.error.reason() == Some(h2::Reason::REFUSED_STREAM);
        self.is_unsent || self.error.is_remote() && (refused || self.error.is_go_away())
    }

    pub(super) fn is_of_the_stream(&self) -> bool {
        self.error.is_reset()
    }

    fn text(&self) -> String {
        if self.flooded {
            return "the replica sent more than an answer may take".to_owned();
        }
        let reason = self.error.reason().map(|reason| format!(" ({reason:?})")).unwrap_or_default();
        match self.error.get_io() {
            Some(error) => match error.kind() {
                io::ErrorKind::BrokenPipe | io::ErrorKind::UnexpectedEof => {
                    "the replica closed the connection without an answer".to_owned()
                }
                _ => io_text(error),
            },
            None if !self.error.is_remote() => "the answer is not valid HTTP/2".to_owned(),
            None if self.error.is_reset() => format!("the replica reset the request{reason}"),
            None => format!("the replica closed the connection{reason}"),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LocalShortage {
    /// Local ports for connections to this replica, or a local address.
    Ports,
    Other,
}

impl Unanswered {
    /// The replica cannot have read the request.
    pub(super) fn is_unsent(&self) -> bool {
        match self {
            Self::Http2(loss) => loss.is_unprocessed(),
            Self::Sent { .. } => false,
            _ => true,
        }
    }

    /// The replica has said that it did not process the request, so a repeat is without doubt.
    pub(super) fn is_refused(&self) -> bool {
        matches!(self, Self::Http2(loss) if loss.is_unprocessed())
    }

    /// Whether the replica has not read the request and never will. It reads nothing before the TLS
    /// handshake is complete.
    pub(super) fn is_unread(&self) -> bool {
        self.is_unsent() || self.certificate_problem().is_some()
    }

    /// Whether it may have come only from a pause of this process, so that a repeat may succeed.
    pub(super) fn is_inconclusive(&self) -> bool {
        !matches!(self, Self::Forbidden(_)) && self.certificate_problem().is_none()
    }

    /// Whether the connection ended without a byte of an answer.
    pub(super) fn is_silent_end(&self) -> bool {
        match self {
            Self::Unsent(_) | Self::Sent { answered: false, .. } => true,
            Self::Http2(loss) => loss.error.is_io() && !loss.flooded,
            _ => false,
        }
    }

    /// The local shortage that prevented the attempt, which is not the replica's fault.
    pub(super) fn shortage(&self) -> Option<LocalShortage> {
        let of_system = |error: &io::Error| match error.raw_os_error()? {
            libc::EADDRNOTAVAIL => Some(LocalShortage::Ports),
            libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM => {
                Some(LocalShortage::Other)
            }
            _ => None,
        };
        match self {
            Self::Lookup(LookupError::Shortage(_)) => Some(LocalShortage::Other),
            Self::Lookup(LookupError::Failed(error)) => of_system(error),
            Self::Connect(error) => of_system(error),
            _ => None,
        }
    }

    pub(super) fn certificate_problem(&self) -> Option<String> {
        match self {
            Self::Tls(error) => certificate_problem(error, &REPLICA),
            Self::Unsent(error) | Self::Sent { error, .. } => certificate_problem(error, &REPLICA),
            Self::Http2(loss) => certificate_problem(loss.tls.as_ref()?, &REPLICA),
            _ => None,
        }
    }

    pub(super) fn text(&self) -> String {
        match self {
            Self::Forbidden(forbidden) => format!("the replica {forbidden}"),
            Self::Lookup(error) if error.is_unknown_name() => "unknown host name".to_owned(),
            Self::Lookup(LookupError::Failed(error)) => {
                format!("the name lookup failed: {}", system_text(error))
            }
            Self::Lookup(error) => error.to_string(),
            Self::Connect(error) => io_text(error),
            Self::Tls(error) => tls_text(error),
            Self::Unsent(error) => request_text(error, false),
            Self::Sent { error, answered } => request_text(error, *answered),
            Self::Http2(loss) => loss.text(),
        }
    }
}

fn io_text(error: &io::Error) -> String {
    use io::ErrorKind as Kind;
    let text = match error.kind() {
        Kind::ConnectionRefused => "connection refused",
        Kind::ConnectionReset | Kind::ConnectionAborted | Kind::BrokenPipe => {
            "the replica reset the connection"
        }
        Kind::TimedOut => "the connection timed out",
        Kind::HostUnreachable | Kind::NetworkUnreachable => "no route to the replica",
        Kind::UnexpectedEof | Kind::NotConnected => "the replica closed the connection",
        _ => return system_text(error),
    };
    text.to_owned()
}

/// The text of a system error without its number.
fn system_text(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error ").next().unwrap_or_default().to_owned()
}

fn tls_text(error: &io::Error) -> String {
    match error.get_ref().and_then(|error| error.downcast_ref()) {
        Some(rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType)) => {
            "the replica does not speak TLS at this port".to_owned()
        }
        Some(tls) => format!("the TLS handshake failed: {tls}"),
        None if error.kind() == io::ErrorKind::UnexpectedEof => {
            "the replica closed the connection in the TLS handshake".to_owned()
        }
        None => io_text(error),
    }
}

fn request_text(error: &hyper::Error, answered: bool) -> String {
    if causes(error).any(|cause| within(cause).is::<HeadTooLong>()) {
        return format!("the replica sent {HeadTooLong}");
    }
    if error.is_parse_too_large() {
        return format!("the head of the answer is longer than {} KiB", MAX_HEAD_BYTES >> 10);
    }
    let system = causes(error).find_map(|cause| cause.downcast_ref::<io::Error>());
    let ended = |error: &hyper::Error| error.is_incomplete_message() || error.is_closed();
    match system {
        Some(error) if error.kind() != io::ErrorKind::UnexpectedEof => return io_text(error),
        Some(_) => {}
        None => {
            // The cause of a cancelled request, if that is known.
            let why = causes(error).filter_map(|cause| cause.downcast_ref::<hyper::Error>()).last();
            if why.is_some_and(|why| !ended(why) && !why.is_canceled()) {
                return "the answer is not valid HTTP".to_owned();
            }
        }
    }
    let when = if answered { "in the middle of its answer" } else { "without an answer" };
    format!("the replica closed the connection {when}")
}

/// Whether a request of the operators' client was lost before any of it was written.
pub(crate) fn never_written(error: &reqwest::Error) -> bool {
    causes(error).any(|cause| cause.downcast_ref().is_some_and(hyper::Error::is_canceled))
}

/// What a port does not use, as its answer shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OtherProtocol {
    NotTls,
    /// Perhaps TLS.
    NotHttp,
}

pub(crate) fn other_protocol(error: &reqwest::Error) -> Option<OtherProtocol> {
    causes(error).find_map(|cause| match within(cause).downcast_ref() {
        Some(rustls::Error::InvalidMessage(_)) => Some(OtherProtocol::NotTls),
        _ if cause.downcast_ref().is_some_and(hyper::Error::is_parse) => {
            Some(OtherProtocol::NotHttp)
        }
        _ => None,
    })
}

/// The name of the other end in error texts, and the flags that configure TLS to it.
pub(crate) struct TlsPeer {
    pub(crate) name: &'static str,
    pub(crate) authorities: &'static str,
    pub(crate) certificate: &'static str,
}

const REPLICA: TlsPeer =
    TlsPeer { name: "the replica", authorities: "--replica-ca", certificate: "--replica-cert" };

pub(crate) fn certificate_problem(error: &(dyn Error + 'static), peer: &TlsPeer) -> Option<String> {
    let tls: &rustls::Error = causes(error).find_map(|cause| within(cause).downcast_ref())?;
    let TlsPeer { name, authorities, certificate } = peer;
    let problem = match tls {
        rustls::Error::InvalidCertificate(why) => {
            let wrong = match why {
                CertificateError::NotValidForName
                | CertificateError::NotValidForNameContext { .. } => {
                    &format!("is for another name: {why}")
                }
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
                _ => &format!("is not accepted: {why}"),
            };
            format!("{name}'s certificate {wrong}")
        }
        rustls::Error::AlertReceived(AlertDescription::CertificateRequired) => {
            format!("{name} requires a client certificate ({certificate})")
        }
        rustls::Error::AlertReceived(
            alert @ (AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied),
        ) => format!("{name} does not accept our client certificate ({certificate}): {alert:?}"),
        _ => return None,
    };
    Some(problem)
}

/// `openssl req -x509` makes such a certificate by default.
fn is_ca_certificate(why: &OtherError) -> bool {
    matches!(why.0.downcast_ref(), Some(webpki::Error::CaUsedAsEndEntity))
}

/// The error and its causes, outermost first.
fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&cause| cause.source())
}

/// Unwraps I/O errors: `source` skips the error that an I/O error wraps.
fn within<'a>(mut cause: &'a (dyn Error + 'static)) -> &'a (dyn Error + 'static) {
    while let Some(inner) = cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        cause = inner;
    }
    cause
}
