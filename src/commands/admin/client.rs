//! HTTP client of the daemon. The only file that names reqwest besides `replica`.
//!
//! A call is limited in time by `--timeout` and in memory by [`MAX_ANSWER_BYTES`]. Like the outbound
//! side it follows no redirects and uses no proxies. The token is never printed.

use std::path::Path;
use std::time::Duration;
use std::{io, iter};

use bytes::Bytes;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use reqwest::{ClientBuilder, Method, RequestBuilder, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use thiserror::Error;
use url::Url;

use crate::cli::admin::ConnectArgs;
use crate::replica::{
    ClientTls, ClientTlsError, TlsPeer, certificate_problem, install_crypto, never_written,
};
use crate::text::{unmarked, without_bom};

/// Twice a page of 1000 tasks with the longest keys and many replicas.
const MAX_ANSWER_BYTES: usize = 256 << 20;

/// How often a request is repeated on a new connection if nothing of it was written.
const MAX_RESENDS: usize = 4;

const TOKEN_VARIABLE: &str = "REPLICATOR_TOKEN";

const DAEMON: TlsPeer =
    TlsPeer { name: "the daemon", authorities: "--ca-file", certificate: "--cert-file" };

/// Cheap to clone; clones share connections.
#[derive(Clone, Debug)]
pub(super) struct DaemonClient {
    http: reqwest::Client,
    base: Url,
    token: Option<HeaderValue>,
    timeout: Duration,
}

#[derive(Debug, Error)]
pub(super) enum CallError {
    #[error("cannot reach {url}: {why} (is the daemon running? --url)")]
    Unreachable { url: String, why: String },
    #[error("cannot connect to {url}: {why}")]
    Certificate { url: String, why: String },
    #[error("no answer from {url} within {} (--timeout)", humantime::format_duration(*within))]
    TimedOut { url: String, within: Duration },
    #[error("the connection to {url} was lost: {why}")]
    Interrupted { url: String, why: String },
    #[error("{error}")]
    Refused { status: u16, error: String },
    #[error("unexpected answer {status} from {url}: is it a replicator of this version? (--url)")]
    Unexpected { url: String, status: u16 },
    #[error("cannot parse the answer of {url}: {why}; is it a replicator of this version?")]
    Unparsable { url: String, why: String },
}

impl CallError {
    pub(super) fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { status: 404, .. })
    }

    /// The daemon may be restarting: a retry can help.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::TimedOut { .. } | Self::Interrupted { .. } => true,
            Self::Refused { status, .. } | Self::Unexpected { status, .. } => *status == 503,
            Self::Certificate { .. } | Self::Unparsable { .. } => false,
        }
    }
}

#[derive(Debug, Error)]
pub(super) enum ClientSetupError {
    #[error("cannot read the token in {file}: {source}")]
    TokenFile { file: String, source: io::Error },
    #[error(
        "the token in {place} is empty or contains characters that are not allowed in a header"
    )]
    Token { place: String },
    #[error("cannot read {file} ({flag}): {source}")]
    File { file: String, flag: &'static str, source: io::Error },
    #[error("{files}: {source}")]
    Tls { files: String, source: ClientTlsError },
    #[error("{given} needs {missing}")]
    KeyPair { given: &'static str, missing: &'static str },
    #[error("cannot set up the HTTP client: {source}")]
    Http { source: reqwest::Error },
}

impl DaemonClient {
    pub(super) fn new(args: &ConnectArgs) -> Result<Self, ClientSetupError> {
        install_crypto();
        let tls = tls(args)?;
        let builder = || tls.apply(builder(args));
        let http = match builder().build() {
            // Plain http must work on a system without certificates.
            Err(_) if tls.trusts_the_system() => builder().tls_certs_only([]).build(),
            built => built,
        };
        Ok(Self {
            http: http.map_err(|source| ClientSetupError::Http { source })?,
            base: args.url.clone(),
            token: token(args)?,
            timeout: args.timeout,
        })
    }

    /// The daemon's address without the final slash, for messages.
    pub(super) fn url(&self) -> String {
        self.base.as_str().trim_end_matches('/').to_owned()
    }

    pub(super) async fn get(
        &self,
        path: &[&str],
        query: &[(&str, String)],
    ) -> Result<Value, CallError> {
        self.get_within(path, query, Duration::ZERO).await
    }

    /// As [`Self::get`], for an answer that the daemon may delay by `longer`.
    pub(super) async fn get_within(
        &self,
        path: &[&str],
        query: &[(&str, String)],
        longer: Duration,
    ) -> Result<Value, CallError> {
        let within = self.timeout.saturating_add(longer);
        let (status, body) =
            self.answer(self.request(Method::GET, path, query).timeout(within), within).await?;
        self.success(status, &body)
    }

    pub(super) async fn get_any_status(&self, path: &[&str]) -> Result<(u16, Value), CallError> {
        let request = self.request(Method::GET, path, &[]).timeout(self.timeout);
        let (status, body) = self.answer(request, self.timeout).await?;
        let unexpected = |_| CallError::Unexpected { url: self.url(), status };
        Ok((status, serde_json::from_slice(&body).map_err(unexpected)?))
    }

    pub(super) async fn post(
        &self,
        path: &[&str],
        body: Option<&(impl Serialize + Sync)>,
    ) -> Result<Value, CallError> {
        let mut request = self.request(Method::POST, path, &[]).timeout(self.timeout);
        if let Some(body) = body {
            let unparsable = |error: serde_json::Error| self.unparsable(&error);
            let json = serde_json::to_vec(body).map_err(unparsable)?;
            request = request.header(CONTENT_TYPE, "application/json").body(json);
        }
        let (status, body) = self.answer(request, self.timeout).await?;
        self.success(status, &body)
    }

    pub(super) async fn delete(&self, path: &[&str]) -> Result<Value, CallError> {
        let request = self.request(Method::DELETE, path, &[]).timeout(self.timeout);
        let (status, body) = self.answer(request, self.timeout).await?;
        self.success(status, &body)
    }

    pub(super) fn read<T: DeserializeOwned>(&self, answer: &Value) -> Result<T, CallError> {
        T::deserialize(answer).map_err(|error| self.unparsable(&error))
    }

    /// Opens an endless answer. `--timeout` limits only the wait for its head.
    pub(super) async fn stream(
        &self,
        path: &[&str],
        query: &[(&str, String)],
    ) -> Result<EventReader, CallError> {
        let request = self.request(Method::GET, path, query).header(ACCEPT, "text/event-stream");
        let head = tokio::time::timeout(self.timeout, send(request)).await;
        let head =
            head.map_err(|_| CallError::TimedOut { url: self.url(), within: self.timeout })?;
        let mut response = head.map_err(|error| self.failed(&error, self.timeout))?;
        let status = response.status();
        if !status.is_success() {
            let rest = body(&mut response);
            let rest = tokio::time::timeout(self.timeout, rest).await.unwrap_or(Ok(Vec::new()));
            let status = status.as_u16();
            return Err(self.refused(status, &rest.unwrap_or_default()));
        }
        Ok(EventReader { response, client: self.clone() })
    }

    fn request(&self, method: Method, path: &[&str], query: &[(&str, String)]) -> RequestBuilder {
        let mut url = self.base.clone();
        // Cannot fail: an http URL can be a base.
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path);
        }
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let request = self.http.request(method, url);
        match &self.token {
            Some(token) => request.header(AUTHORIZATION, token.clone()),
            None => request,
        }
    }

    async fn answer(
        &self,
        request: RequestBuilder,
        within: Duration,
    ) -> Result<(u16, Vec<u8>), CallError> {
        let sent = send(request).await;
        let mut response = sent.map_err(|error| self.failed(&error, within))?;
        let status = response.status().as_u16();
        let body = match body(&mut response).await {
            Ok(body) => body,
            Err(Some(error)) if error.is_timeout() => return Err(self.failed(&error, within)),
            Err(Some(error)) => {
                return Err(CallError::Interrupted { url: self.url(), why: innermost(&error) });
            }
            Err(None) => {
                let why = format!("it exceeds {} MiB", MAX_ANSWER_BYTES >> 20);
                return Err(CallError::Unparsable { url: self.url(), why });
            }
        };
        Ok((status, body))
    }

    fn success(&self, status: u16, body: &[u8]) -> Result<Value, CallError> {
        if !(200..300).contains(&status) {
            return Err(self.refused(status, body));
        }
        serde_json::from_slice(body).map_err(|error| self.unparsable(&error))
    }

    fn refused(&self, status: u16, body: &[u8]) -> CallError {
        match serde_json::from_slice::<crate::api::Error>(body) {
            Ok(body) if status == 401 || status == 403 => {
                let error = format!("{} (--token-file, {TOKEN_VARIABLE})", body.error);
                CallError::Refused { status, error }
            }
            Ok(body) => CallError::Refused { status, error: body.error },
            Err(_) => CallError::Unexpected { url: self.url(), status },
        }
    }

    fn unparsable(&self, error: &dyn std::fmt::Display) -> CallError {
        CallError::Unparsable { url: self.url(), why: error.to_string() }
    }

    fn failed(&self, error: &reqwest::Error, within: Duration) -> CallError {
        let url = self.url();
        if let Some(why) = certificate_problem(error, &DAEMON) {
            CallError::Certificate { url, why }
        } else if error.is_timeout() {
            CallError::TimedOut { url, within }
        } else if error.is_connect() {
            CallError::Unreachable { url, why: innermost(error) }
        } else {
            CallError::Interrupted { url, why: innermost(error) }
        }
    }
}

#[derive(Debug)]
pub(super) struct EventReader {
    response: Response,
    client: DaemonClient,
}

impl EventReader {
    /// The next part, or `None` at the end. Fails after `silence` without one.
    pub(super) async fn next(&mut self, silence: Duration) -> Result<Option<Bytes>, CallError> {
        let url = || self.client.url();
        match tokio::time::timeout(silence, self.response.chunk()).await {
            Ok(Ok(part)) => Ok(part),
            Ok(Err(error)) => Err(CallError::Interrupted { url: url(), why: innermost(&error) }),
            Err(_) => Err(CallError::TimedOut { url: url(), within: silence }),
        }
    }
}

fn builder(args: &ConnectArgs) -> ClientBuilder {
    reqwest::Client::builder()
        .connect_timeout(args.timeout)
        .no_proxy()
        .referer(false)
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
}

fn tls(args: &ConnectArgs) -> Result<ClientTls, ClientSetupError> {
    let mut tls = ClientTls::default();
    if let Some(ca) = &args.ca_file {
        let refused = |source| ClientSetupError::Tls {
            files: format!("{} (--ca-file)", ca.display()),
            source,
        };
        tls = tls.trusting(&read(ca, "--ca-file")?).map_err(refused)?;
    }
    match (&args.cert_file, &args.key_file) {
        (None, None) => Ok(tls),
        (Some(cert), Some(key)) => {
            let files =
                format!("{} (--cert-file) with {} (--key-file)", cert.display(), key.display());
            let (cert, key) = (read(cert, "--cert-file")?, read(key, "--key-file")?);
            tls.showing(&cert, &key).map_err(|source| ClientSetupError::Tls { files, source })
        }
        (Some(_), None) => {
            Err(ClientSetupError::KeyPair { given: "--cert-file", missing: "--key-file" })
        }
        (None, Some(_)) => {
            Err(ClientSetupError::KeyPair { given: "--key-file", missing: "--cert-file" })
        }
    }
}

fn read(file: &Path, flag: &'static str) -> Result<Vec<u8>, ClientSetupError> {
    let file_name = || file.display().to_string();
    let read = std::fs::read(file).map(|bytes| without_bom(&bytes).to_vec());
    read.map_err(|source| ClientSetupError::File { file: file_name(), flag, source })
}

/// Sends the request again if the connection was lost before any of it was written: the daemon has
/// not seen it, and another connection may live long enough to return the reason.
async fn send(request: RequestBuilder) -> reqwest::Result<Response> {
    for again in iter::repeat_n(&request, MAX_RESENDS).filter_map(RequestBuilder::try_clone) {
        match again.send().await {
            Err(error) if never_written(&error) => {}
            answered => return answered,
        }
    }
    request.send().await
}

/// The whole body; `Err(None)` if it is too long.
async fn body(response: &mut Response) -> Result<Vec<u8>, Option<reqwest::Error>> {
    let mut body = Vec::new();
    while let Some(part) = response.chunk().await.map_err(Some)? {
        if body.len() + part.len() > MAX_ANSWER_BYTES {
            return Err(None);
        }
        body.extend_from_slice(&part);
    }
    Ok(body)
}

fn token(args: &ConnectArgs) -> Result<Option<HeaderValue>, ClientSetupError> {
    let (place, text) = match &args.token_file {
        Some(file) => {
            let place = file.display().to_string();
            match std::fs::read_to_string(file) {
                Ok(text) => (place, text),
                Err(source) => return Err(ClientSetupError::TokenFile { file: place, source }),
            }
        }
        None => match std::env::var(TOKEN_VARIABLE) {
            // Empty counts as unset, as for every variable.
            Ok(text) if text.trim().is_empty() => return Ok(None),
            Ok(text) => (TOKEN_VARIABLE.to_owned(), text),
            Err(std::env::VarError::NotPresent) => return Ok(None),
            Err(std::env::VarError::NotUnicode(_)) => {
                return Err(ClientSetupError::Token { place: TOKEN_VARIABLE.to_owned() });
            }
        },
    };
    let text = unmarked(&text).trim();
    let visible = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
    match HeaderValue::try_from(format!("Bearer {text}")) {
        Ok(mut value) if visible => {
            value.set_sensitive(true);
            Ok(Some(value))
        }
        _ => Err(ClientSetupError::Token { place }),
    }
}

/// The innermost cause: reqwest's own texts repeat the URL.
fn innermost(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    match cause.downcast_ref::<io::Error>() {
        // The kind alone: "connection refused", not "Connection refused (os error 111)".
        Some(io) if io.raw_os_error().is_some() => io.kind().to_string(),
        _ => cause.to_string(),
    }
}
