//! Allowed replicas, and the certificates and tokens for them: from flags and files, read at the start
//! and on SIGHUP.
//!
//! At the start an invalid file is an error. At a reload the previous content of that file stays in
//! force, and the log has the error.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use thiserror::Error;
use tracing::{error, info, warn};

use crate::config;
use crate::policy::{LineError, Own, Policy, Rule, rules};
use crate::replica::{ClientTls, ClientTlsError, ReplicaClient, ReplicaTokens, ReplicaTokensError};
use crate::text::without_bom;
use crate::trusted_file::{FileContent, UntrustedFile, read_trusted};

/// A thousand replicas with tokens are about a tenth of this.
const MAX_FILE_BYTES: u64 = 1 << 20;

#[derive(Debug, Error)]
pub enum OutboundError {
    #[error("cannot read {} ({flag}): {source}", path.display())]
    Read { flag: &'static str, path: PathBuf, source: io::Error },
    #[error("{} ({flag}) {source}", path.display())]
    Untrusted { flag: &'static str, path: PathBuf, source: UntrustedFile },
    #[error("{} (--allow-replica-file): {source}", path.display())]
    Rules { path: PathBuf, source: LineError },
    #[error("{} ({flag}) {source}", path.display())]
    Tls { flag: &'static str, path: PathBuf, source: ClientTlsError },
    #[error("{} (--replica-token-file): {source}", path.display())]
    Tokens { path: PathBuf, source: ReplicaTokensError },
    /// Any client could have the token sent to a server of its own.
    #[error(
        "{} (--replica-token-file) has a token for *, which goes to any replica that a client names: --allow-replica or --allow-replica-file is required",
        path.display()
    )]
    ForAnyone { path: PathBuf },
}

#[derive(Debug)]
pub(super) struct Outbound {
    settings: Mutex<config::OutboundConfig>,
    policy: Policy,
    client: ReplicaClient,
}

impl Outbound {
    pub(super) fn new(
        settings: config::OutboundConfig,
        policy: Policy,
        client: ReplicaClient,
    ) -> Self {
        Self { settings: Mutex::new(settings), policy, client }
    }

    /// Puts new settings in force, and reloads each file that can be used. Blocks.
    pub(super) fn reload(&self, new: Option<config::OutboundConfig>) {
        let mut settings = self.settings.lock();
        if let Some(new) = new
            && logged(may_replace(&settings, &new)).is_some()
        {
            *settings = new;
        }
        let rules = logged(load_rules(&settings));
        if let Some(rules) = rules {
            info!(rules = rules.as_ref().map_or(0, Vec::len), "the allowed replicas are reloaded");
            self.policy.replace(rules);
        }
        let tls = logged(load_tls(&settings));
        let tokens = logged(load_tokens(&settings));
        self.client.renew(tls, tokens);
        info!("connections to replicas are renewed with the current certificates and tokens");
    }
}

/// Without rules, the tokens of the new settings must be in force: the current ones may have a token
/// for `*`, which is only for the replicas of a rule.
fn may_replace(
    current: &config::OutboundConfig,
    new: &config::OutboundConfig,
) -> Result<(), OutboundError> {
    match current.has_rules() && !new.has_rules() {
        true => load_tokens(new).map(drop),
        false => Ok(()),
    }
}

fn logged<T>(read: Result<T, OutboundError>) -> Option<T> {
    read.inspect_err(
        |why| error!(error = %why, "not reloaded: the previous content stays in force"),
    )
    .ok()
}

/// The daemon listens on `address`, where it must not write.
pub(super) fn policy(
    settings: &config::OutboundConfig,
    address: SocketAddr,
) -> Result<Policy, OutboundError> {
    let rules = load_rules(settings)?;
    if rules.is_none() {
        let text = "clients may name any replica address; a list of the allowed ones is recommended (--allow-replica)";
        if address.ip().is_loopback() { info!("{text}") } else { warn!("{text}") }
    }
    Ok(Policy::new(rules, Some(Own { address, is_local })))
}

pub(super) fn credentials(
    settings: &config::OutboundConfig,
) -> Result<(ClientTls, ReplicaTokens), OutboundError> {
    Ok((load_tls(settings)?, load_tokens(settings)?))
}

fn load_rules(settings: &config::OutboundConfig) -> Result<Option<Vec<Rule>>, OutboundError> {
    let mut all = settings.allow.clone();
    if let Some(path) = &settings.allow_file {
        let text = text("--allow-replica-file", path)?;
        let invalid = |source| OutboundError::Rules { path: path.clone(), source };
        all.extend(rules(&text).map_err(invalid)?);
    }
    Ok(settings.has_rules().then_some(all))
}

fn load_tls(settings: &config::OutboundConfig) -> Result<ClientTls, OutboundError> {
    let mut tls = ClientTls::default();
    if let Some(path) = &settings.ca {
        let flag = "--replica-ca";
        let invalid = |source| OutboundError::Tls { flag, path: path.clone(), source };
        tls = tls.trusting(&bytes(flag, path, FileContent::Public)?).map_err(invalid)?;
    }
    if let Some((certificate, key)) = &settings.identity {
        let shown = bytes("--replica-cert", certificate, FileContent::Public)?;
        let secret = bytes("--replica-key", key, FileContent::Secret)?;
        tls = tls.showing(&shown, &secret).map_err(|source| {
            let (flag, path) = match source {
                ClientTlsError::NoKey => ("--replica-key", key),
                _ => ("--replica-cert", certificate),
            };
            OutboundError::Tls { flag, path: path.clone(), source }
        })?;
    }
    Ok(tls)
}

fn load_tokens(settings: &config::OutboundConfig) -> Result<ReplicaTokens, OutboundError> {
    let Some(path) = &settings.token_file else { return Ok(ReplicaTokens::default()) };
    let flag = "--replica-token-file";
    let text = as_text(flag, path, bytes(flag, path, FileContent::Secret)?)?;
    let invalid = |source| OutboundError::Tokens { path: path.clone(), source };
    let tokens = ReplicaTokens::parse(&text).map_err(invalid)?;
    if tokens.serves_any() && !settings.has_rules() {
        return Err(OutboundError::ForAnyone { path: path.clone() });
    }
    Ok(tokens)
}

fn text(flag: &'static str, path: &Path) -> Result<String, OutboundError> {
    as_text(flag, path, bytes(flag, path, FileContent::Public)?)
}

fn as_text(flag: &'static str, path: &Path, bytes: Vec<u8>) -> Result<String, OutboundError> {
    String::from_utf8(bytes).map_err(|_| {
        let source = io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8 text");
        OutboundError::Read { flag, path: path.to_owned(), source }
    })
}

fn bytes(flag: &'static str, path: &Path, content: FileContent) -> Result<Vec<u8>, OutboundError> {
    let path = || path.to_owned();
    match read_trusted(&path(), content, MAX_FILE_BYTES) {
        Ok(bytes) => Ok(without_bom(&bytes).to_vec()),
        Err(UntrustedFile::Unreadable(source)) => {
            Err(OutboundError::Read { flag, path: path(), source })
        }
        Err(source) => Err(OutboundError::Untrusted { flag, path: path(), source }),
    }
}

/// Whether an address belongs to this machine: then the system chooses it as its own source address.
/// Nothing is sent.
fn is_local(address: IpAddr) -> bool {
    let any: IpAddr = match address {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let from = UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.connect((address, 9))?;
        socket.local_addr()
    });
    from.is_ok_and(|from| from.ip() == address)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_rules_stay_while_a_token_for_any_replica_would_be_left_without_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokens");
        fs::write(&path, "* s3cret\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let settings = |allow: Vec<Rule>| config::OutboundConfig {
            allow,
            allow_file: None,
            ca: None,
            identity: None,
            token_file: Some(path.clone()),
        };
        let (with, without) = (settings(vec!["10.0.0.0/8".parse().unwrap()]), settings(vec![]));
        assert!(may_replace(&with, &with).is_ok() && may_replace(&without, &with).is_ok());
        let refused = may_replace(&with, &without);
        assert!(matches!(refused, Err(OutboundError::ForAnyone { .. })), "{refused:?}");
        fs::remove_file(&path).unwrap();
        assert!(may_replace(&with, &without).is_err(), "the old tokens would stay");
    }

    #[test]
    fn an_address_of_this_machine_is_recognised() {
        assert!(is_local("127.0.0.1".parse().unwrap()));
        for elsewhere in ["192.0.2.1", "203.0.113.7"] {
            assert!(!is_local(elsewhere.parse().unwrap()), "{elsewhere}");
        }
    }
}
