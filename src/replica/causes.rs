//! Why an attempt had no answer, read from an error and its causes.

use std::error::Error;
use std::io;

use rustls::{AlertDescription, CertificateError};

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

/// What is wrong with certificates, ours or theirs, if it was that.
pub(super) fn certificate(error: &reqwest::Error) -> Option<String> {
    let tls: &rustls::Error = causes(error).find_map(|cause| within(cause).downcast_ref())?;
    let what = match tls {
        rustls::Error::InvalidCertificate(why) => match why {
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                "the replica's certificate is for another name"
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "the replica's certificate has expired"
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "the replica's certificate is not valid yet"
            }
            CertificateError::UnknownIssuer => {
                "the replica's certificate is from an authority that is not trusted (--replica-ca)"
            }
            _ => "the replica's certificate is not accepted",
        },
        rustls::Error::AlertReceived(AlertDescription::CertificateRequired) => {
            "the replica asks for a client certificate (--replica-cert)"
        }
        rustls::Error::AlertReceived(
            AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied,
        ) => "the replica does not accept our client certificate (--replica-cert)",
        _ => return None,
    };
    Some(format!("{what}: {tls}"))
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
