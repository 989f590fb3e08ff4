//! The files for access: the token list and the certificates, read at the start and on SIGHUP.

use std::collections::HashMap;
use std::net::SocketAddr;

use thiserror::Error;
use tracing::{error, info};

use crate::access::{TokenList, TokenListError};
use crate::config;
use crate::server::{Access, InboundTls, InboundTlsError, Tokens};
use crate::task::{Client, Quota};

#[derive(Debug, Error)]
pub enum InboundError {
    /// `--auth-file`.
    #[error(transparent)]
    Tokens(#[from] TokenListError),
    /// `--tls-cert`, `--tls-key`, `--tls-client-ca`.
    #[error(transparent)]
    Tls(#[from] InboundTlsError),
}

#[derive(Debug)]
pub(super) struct Inbound {
    pub(super) access: Access,
    pub(super) tls: Option<InboundTls>,
    config: config::InboundConfig,
}

impl Inbound {
    pub(super) fn open(
        config: &config::InboundConfig,
        address: SocketAddr,
    ) -> Result<Self, InboundError> {
        let tokens = config.auth_file.as_ref().map(|file| TokenList::read(file)).transpose()?;
        let access = Access {
            tokens: tokens.map(Tokens::new),
            host_names: config.host_names.clone(),
            named_hosts_only: config.is_open()
                && (address.ip().is_loopback() || !config.host_names.is_empty()),
        };
        let tls = config.tls.as_ref().map(InboundTls::read).transpose()?;
        Ok(Self { access, tls, config: config.clone() })
    }

    pub(super) fn quotas(&self) -> HashMap<Client, Quota> {
        self.access.tokens.as_ref().map(|tokens| tokens.list().quotas()).unwrap_or_default()
    }

    /// Reloads each file that can be used.
    pub(super) fn reload(&self) {
        if let (Some(file), Some(tokens)) = (&self.config.auth_file, &self.access.tokens) {
            match TokenList::read(file) {
                Ok(new) => {
                    let count = new.len();
                    tokens.replace(new);
                    info!(tokens = count, "the tokens (--auth-file) are reloaded");
                }
                Err(error) => error!(%error, "the tokens are not reloaded and stay as they were"),
            }
        }
        if let (Some(files), Some(tls)) = (&self.config.tls, &self.tls) {
            match tls.reload(files) {
                Ok(()) => info!("the certificates (--tls-cert) are reloaded"),
                Err(error) => {
                    error!(%error, "the certificates are not reloaded and stay as they were");
                }
            }
        }
    }
}
