//! The secrets of `--notify-secret-file`, and the signature of Standard Webhooks.

use std::fmt;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::hmac;
use thiserror::Error;

use crate::text::{unmarked, without_bom};
use crate::trusted_file::{FileContent, UntrustedFile, read_trusted};

const MAX_FILE_BYTES: u64 = 4096;
const PREFIX: &str = "whsec_";

/// Standard Webhooks: a key has 24 to 64 bytes.
const KEY_BYTES: std::ops::RangeInclusive<usize> = 24..=64;

/// A new secret and the ones that it replaces.
const MAX_SECRETS: usize = 4;

/// Empty if nothing is signed.
#[derive(Clone, Default)]
pub struct NotifySecrets(Vec<hmac::Key>);

/// The texts contain nothing of the file.
#[derive(Debug, Error)]
pub enum NotifySecretError {
    #[error("{} (--notify-secret-file) {source}", path.display())]
    Untrusted { path: PathBuf, source: UntrustedFile },
    #[error("{} (--notify-secret-file) is not UTF-8 text", path.display())]
    Text { path: PathBuf },
    #[error(
        "{} (--notify-secret-file) line {line}: expected whsec_ and the base64 of 24 to 64 bytes",
        path.display()
    )]
    Line { path: PathBuf, line: usize },
    #[error(
        "{} (--notify-secret-file) must contain 1 to {MAX_SECRETS} secrets, one per line",
        path.display()
    )]
    Count { path: PathBuf },
}

impl NotifySecrets {
    pub(super) fn read(path: &Path) -> Result<Self, NotifySecretError> {
        let bytes = read_trusted(path, FileContent::Secret, MAX_FILE_BYTES);
        let bytes =
            bytes.map_err(|source| NotifySecretError::Untrusted { path: path.into(), source })?;
        let text = std::str::from_utf8(without_bom(&bytes));
        let text = text.map_err(|_| NotifySecretError::Text { path: path.into() })?;
        Self::parse(text, path)
    }

    /// A line is a secret, empty, or a comment that starts with `#`.
    fn parse(text: &str, path: &Path) -> Result<Self, NotifySecretError> {
        let mut keys = Vec::new();
        for (index, line) in unmarked(text).lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let key = line.strip_prefix(PREFIX).and_then(|text| STANDARD.decode(text).ok());
            let key = key.filter(|key| KEY_BYTES.contains(&key.len()));
            let invalid = || NotifySecretError::Line { path: path.into(), line: index + 1 };
            keys.push(hmac::Key::new(hmac::HMAC_SHA256, &key.ok_or_else(invalid)?));
        }
        if (1..=MAX_SECRETS).contains(&keys.len()) {
            Ok(Self(keys))
        } else {
            Err(NotifySecretError::Count { path: path.into() })
        }
    }

    /// The content of `webhook-signature`: a signature by each secret. `None` without a secret.
    pub(super) fn sign(&self, id: &str, seconds: u64, body: &str) -> Option<String> {
        let content = format!("{id}.{seconds}.{body}");
        let sign = |key| {
            let signature = hmac::sign(key, content.as_bytes());
            format!("v1,{}", STANDARD.encode(signature))
        };
        let all: Vec<_> = self.0.iter().map(sign).collect();
        Some(all.join(" ")).filter(|all| !all.is_empty())
    }
}

impl fmt::Debug for NotifySecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("NotifySecrets").field(&self.0.len()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    fn parse(text: &str) -> Result<NotifySecrets, NotifySecretError> {
        NotifySecrets::parse(text, Path::new("f"))
    }

    /// The example in the libraries of Standard Webhooks.
    #[test]
    fn the_published_example_has_its_published_signature() {
        let secrets = parse(SECRET).unwrap();
        let sign = |secrets: &NotifySecrets| {
            let id = "msg_p5jXN8AQM9LWM0D4loKWxJek";
            secrets.sign(id, 1_614_265_330, "{\"test\": 2432232314}")
        };
        let expected = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
        assert_eq!(sign(&secrets).as_deref(), Some(expected));
        let other = format!("whsec_{}", STANDARD.encode([7; 32]));
        let both = sign(&parse(&format!("# new\n{other}\n\n{SECRET}\n")).unwrap()).unwrap();
        assert_eq!(both.split(' ').count(), 2, "{both}");
        assert!(both.ends_with(expected), "{both}");
        assert_eq!(sign(&NotifySecrets::default()), None);
    }

    #[test]
    fn a_secret_that_is_malformed_or_too_short_is_refused_and_not_quoted() {
        let of = |bytes: usize| format!("whsec_{}", STANDARD.encode(vec![7; bytes]));
        for text in
            ["hidden", "whsec_hidden!", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", &of(23), &of(65)]
        {
            let error = parse(&format!("{SECRET}\n{text}")).unwrap_err().to_string();
            assert!(error.contains("line 2") && !error.contains(text), "{error}");
        }
        assert!(parse(&of(24)).is_ok() && parse(&of(64)).is_ok());
        for text in ["", "# only a comment\n", &format!("{SECRET}\n").repeat(5)] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains("1 to 4 secrets"), "{error}");
        }
    }
}
