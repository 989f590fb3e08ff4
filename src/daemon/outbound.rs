//! Where the daemon may write, and as whom: read from flags and files, at the start and again on
//! SIGHUP.
//!
//! At the start a file that is wrong is an error. At a reload it keeps what was in force, of that
//! file alone, and the log says so.

use std::fs::File;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use thiserror::Error;
use tracing::{error, info, warn};

use crate::config;
use crate::policy::{LineError, Own, Policy, Rule, rules};
use crate::replica::{ClientTls, ClientTlsError, ReplicaClient, ReplicaTokens, ReplicaTokensError};
use crate::text::without_bom;

/// The longest file that is read. A thousand replicas with tokens are a tenth of it.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// What is wrong with a file of the outbound side.
#[derive(Debug, Error)]
pub enum OutboundError {
    /// It cannot be read.
    #[error("cannot read {} ({flag}): {source}", path.display())]
    Read {
        /// Who names it.
        flag: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// More than anyone would write.
    #[error("{} ({flag}) is longer than {MAX_FILE_BYTES} bytes", path.display())]
    TooLong {
        /// Who names it.
        flag: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// A secret that is none.
    #[error("{} ({flag}) is open to others than its owner (mode {mode:04o}): chmod 600 it", path.display())]
    Open {
        /// Who names it.
        flag: &'static str,
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// Rules that are none.
    #[error("{} (--allow-replica-file): {source}", path.display())]
    Rules {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: LineError,
    },
    /// Certificates that are none.
    #[error("{} ({flag}) {source}", path.display())]
    Tls {
        /// Who names it.
        flag: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: ClientTlsError,
    },
    /// Tokens that are none.
    #[error("{} (--replica-token-file): {source}", path.display())]
    Tokens {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: ReplicaTokensError,
    },
    /// Whoever may post a write could have the token sent to himself.
    #[error(
        "{} (--replica-token-file) has a token for *, whatever a client names: that needs --allow-replica or --allow-replica-file",
        path.display()
    )]
    ForAnyone {
        /// The file.
        path: PathBuf,
    },
}

/// What SIGHUP reads again.
#[derive(Debug)]
pub(super) struct Outbound {
    settings: config::OutboundConfig,
    /// Held by the one reload that goes on.
    reloading: Mutex<()>,
    policy: Policy,
    client: ReplicaClient,
}

impl Outbound {
    pub(super) fn new(
        settings: config::OutboundConfig,
        policy: Policy,
        client: ReplicaClient,
    ) -> Self {
        Self { settings, reloading: Mutex::new(()), policy, client }
    }

    /// Reads all files again. Blocks.
    pub(super) fn reload(&self) {
        // It protects nothing that a panic could leave half done.
        let _one = self.reloading.lock().unwrap_or_else(PoisonError::into_inner);
        let rules = kept(load_rules(&self.settings));
        if let Some(rules) = rules {
            info!(rules = rules.as_ref().map_or(0, Vec::len), "where writes may go was read again");
            self.policy.replace(rules);
        }
        let tls = kept(load_tls(&self.settings));
        let tokens = kept(load_tokens(&self.settings));
        match self.client.renew(tls, tokens) {
            Ok(()) => info!(
                "connections to replicas are made anew, with the certificates and tokens as they are now"
            ),
            Err(why) => {
                error!(error = %why, "the new certificates cannot be used, what was in force stays");
            }
        }
    }
}

fn kept<T>(read: Result<T, OutboundError>) -> Option<T> {
    read.inspect_err(|why| error!(error = %why, "not read again, what was in force stays")).ok()
}

/// The policy of a daemon that listens on `address`.
pub(super) fn policy(
    settings: &config::OutboundConfig,
    address: SocketAddr,
) -> Result<Policy, OutboundError> {
    let rules = load_rules(settings)?;
    if rules.is_none() {
        let text = "writes may go to whatever replica a client names; a list of those that there are is recommended (--allow-replica)";
        if address.ip().is_loopback() { info!("{text}") } else { warn!("{text}") }
    }
    Ok(Policy::new(rules, Some(Own { address, is_local })))
}

/// The certificates and the tokens.
pub(super) fn credentials(
    settings: &config::OutboundConfig,
) -> Result<(ClientTls, ReplicaTokens), OutboundError> {
    Ok((load_tls(settings)?, load_tokens(settings)?))
}

fn load_rules(settings: &config::OutboundConfig) -> Result<Option<Vec<Rule>>, OutboundError> {
    let mut all = settings.allow.clone();
    if let Some(path) = &settings.allow_file {
        let text = text("--allow-replica-file", path)?;
        let wrong = |source| OutboundError::Rules { path: path.clone(), source };
        all.extend(rules(&text).map_err(wrong)?);
    }
    Ok(settings.has_rules().then_some(all))
}

fn load_tls(settings: &config::OutboundConfig) -> Result<ClientTls, OutboundError> {
    let mut tls = ClientTls::default();
    if let Some(path) = &settings.ca {
        let flag = "--replica-ca";
        let wrong = |source| OutboundError::Tls { flag, path: path.clone(), source };
        tls = tls.trusting(&bytes(flag, path, false)?).map_err(wrong)?;
    }
    if let Some((certificate, key)) = &settings.identity {
        let shown = bytes("--replica-cert", certificate, false)?;
        let secret = bytes("--replica-key", key, true)?;
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
    let text = as_text(flag, path, bytes(flag, path, true)?)?;
    let wrong = |source| OutboundError::Tokens { path: path.clone(), source };
    let tokens = ReplicaTokens::parse(&text).map_err(wrong)?;
    if tokens.serves_any() && !settings.has_rules() {
        return Err(OutboundError::ForAnyone { path: path.clone() });
    }
    Ok(tokens)
}

fn text(flag: &'static str, path: &Path) -> Result<String, OutboundError> {
    as_text(flag, path, bytes(flag, path, false)?)
}

fn as_text(flag: &'static str, path: &Path, bytes: Vec<u8>) -> Result<String, OutboundError> {
    String::from_utf8(bytes).map_err(|_| {
        let source = io::Error::new(io::ErrorKind::InvalidData, "it is no UTF-8 text");
        OutboundError::Read { flag, path: path.to_owned(), source }
    })
}

/// What is in a file. A secret one must be closed to everyone else: seen on the file that is open,
/// so that it cannot be another one by then.
fn bytes(flag: &'static str, path: &Path, secret: bool) -> Result<Vec<u8>, OutboundError> {
    let failed = |source| OutboundError::Read { flag, path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o7777;
    if secret && mode & closed(path) != 0 {
        return Err(OutboundError::Open { flag, path: path.to_owned(), mode });
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(OutboundError::TooLong { flag, path: path.to_owned() });
    }
    Ok(without_bom(&bytes).to_vec())
}

/// What of its mode a secret file may not have. Where systemd hands it over (`LoadCredential=`), what
/// looks like the right of its group to read it is the daemon's user's alone, by an access list.
fn closed(path: &Path) -> u32 {
    let credentials = std::env::var_os("CREDENTIALS_DIRECTORY").filter(|dir| !dir.is_empty());
    if credentials.is_some_and(|dir| path.starts_with(dir)) { 0o037 } else { 0o077 }
}

/// Whether an address is one of this machine's: then the system would send from it to it. Nothing
/// is sent.
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
    use super::*;

    #[test]
    fn an_address_of_this_machine_is_known_for_one() {
        assert!(is_local("127.0.0.1".parse().unwrap()));
        for elsewhere in ["192.0.2.1", "203.0.113.7"] {
            assert!(!is_local(elsewhere.parse().unwrap()), "{elsewhere}");
        }
    }
}
