//! One question to the daemon, over HTTP. The only file that names reqwest beside the
//! outbound side.
//!
//! A question is bounded in time by `--timeout` and in memory by [`MAX_ANSWER_BYTES`]; redirects
//! are not followed and proxies not used, as on the way to the replicas. The token is sent and
//! never shown.

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

/// The largest answer that is read: a page of a thousand tasks with the longest keys and many
/// replicas is about half of it.
const MAX_ANSWER_BYTES: usize = 256 << 20;

/// So many connections may be lost with nothing written before the question is given up.
const CONNECTIONS_LOST: usize = 4;

/// The variable that holds the token where no file does.
const TOKEN_VARIABLE: &str = "REPLICATOR_TOKEN";

const DAEMON: TlsPeer =
    TlsPeer { name: "the daemon", authorities: "--ca-file", certificate: "--cert-file" };

/// Asks one daemon. Cheap to clone, clones share connections.
#[derive(Clone, Debug)]
pub(super) struct Client {
    http: reqwest::Client,
    base: Url,
    token: Option<HeaderValue>,
    timeout: Duration,
}

/// Why there is no answer, or not the one that was asked for.
#[derive(Debug, Error)]
pub(super) enum AskError {
    #[error("cannot reach {url}: {why} (is the daemon running? --url)")]
    Unreachable { url: String, why: String },
    #[error("cannot speak to {url}: {why}")]
    Certificate { url: String, why: String },
    #[error("no answer from {url} within {} (--timeout)", humantime::format_duration(*within))]
    TimedOut { url: String, within: Duration },
    #[error("the answer of {url} broke off: {why}")]
    BrokeOff { url: String, why: String },
    /// The daemon's own sentence.
    #[error("{error}")]
    Refused { status: u16, error: String },
    #[error("{url} answered {status}: is that a replicator of this version? (--url)")]
    Stranger { url: String, status: u16 },
    #[error("cannot understand the answer of {url}, is that a replicator of this version?: {why}")]
    Unclear { url: String, why: String },
}

impl AskError {
    /// There is no such thing, as the daemon says.
    pub(super) fn is_missing(&self) -> bool {
        matches!(self, Self::Refused { status: 404, .. })
    }

    /// The daemon may be on its way back: asking again can help.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::TimedOut { .. } | Self::BrokeOff { .. } => true,
            Self::Refused { status, .. } | Self::Stranger { status, .. } => *status == 503,
            Self::Certificate { .. } | Self::Unclear { .. } => false,
        }
    }
}

/// Why no question can be asked at all.
#[derive(Debug, Error)]
pub(super) enum SetupError {
    #[error("cannot read the token in {file}: {source}")]
    TokenFile { file: String, source: io::Error },
    #[error("the token in {place} is empty or contains what cannot stand in a header")]
    Token { place: String },
    #[error("cannot read {file} ({flag}): {source}")]
    File { file: String, flag: &'static str, source: io::Error },
    #[error("{files}: {source}")]
    Tls { files: String, source: ClientTlsError },
    #[error("{given} needs {missing}: a certificate is shown with its key")]
    Half { given: &'static str, missing: &'static str },
    #[error("cannot set up the HTTP client: {source}")]
    Http { source: reqwest::Error },
}

impl Client {
    /// Opens no connection yet.
    pub(super) fn new(args: &ConnectArgs) -> Result<Self, SetupError> {
        install_crypto();
        let tls = tls(args)?;
        let builder = || tls.apply(builder(args));
        let http = match builder().build() {
            // Where the system has no certificates plain http must work all the same.
            Err(_) if tls.trusts_the_system() => builder().tls_certs_only([]).build(),
            built => built,
        };
        Ok(Self {
            http: http.map_err(|source| SetupError::Http { source })?,
            base: args.url.clone(),
            token: token(args)?,
            timeout: args.timeout,
        })
    }

    /// The daemon's address, for people.
    pub(super) fn url(&self) -> String {
        self.base.as_str().trim_end_matches('/').to_owned()
    }

    pub(super) async fn get(
        &self,
        path: &[&str],
        query: &[(&str, String)],
    ) -> Result<Value, AskError> {
        self.get_within(path, query, Duration::ZERO).await
    }

    /// A question whose answer the daemon may hold back for `longer`.
    pub(super) async fn get_within(
        &self,
        path: &[&str],
        query: &[(&str, String)],
        longer: Duration,
    ) -> Result<Value, AskError> {
        let within = self.timeout.saturating_add(longer);
        let (status, body) =
            self.answer(self.request(Method::GET, path, query).timeout(within), within).await?;
        self.good(status, &body)
    }

    /// An answer with whatever status, as long as it is JSON.
    pub(super) async fn get_whatever(&self, path: &[&str]) -> Result<(u16, Value), AskError> {
        let request = self.request(Method::GET, path, &[]).timeout(self.timeout);
        let (status, body) = self.answer(request, self.timeout).await?;
        let stranger = |_| AskError::Stranger { url: self.url(), status };
        Ok((status, serde_json::from_slice(&body).map_err(stranger)?))
    }

    /// Posts JSON, or nothing.
    pub(super) async fn post(
        &self,
        path: &[&str],
        body: Option<&(impl Serialize + Sync)>,
    ) -> Result<Value, AskError> {
        let mut request = self.request(Method::POST, path, &[]).timeout(self.timeout);
        if let Some(body) = body {
            let unclear = |error: serde_json::Error| self.unclear(&error);
            let json = serde_json::to_vec(body).map_err(unclear)?;
            request = request.header(CONTENT_TYPE, "application/json").body(json);
        }
        let (status, body) = self.answer(request, self.timeout).await?;
        self.good(status, &body)
    }

    pub(super) async fn delete(&self, path: &[&str]) -> Result<Value, AskError> {
        let request = self.request(Method::DELETE, path, &[]).timeout(self.timeout);
        let (status, body) = self.answer(request, self.timeout).await?;
        self.good(status, &body)
    }

    /// An answer as the type that it should be.
    pub(super) fn read<T: DeserializeOwned>(&self, answer: &Value) -> Result<T, AskError> {
        T::deserialize(answer).map_err(|error| self.unclear(&error))
    }

    /// Begins to read what has no end. No part of it may take longer than `--timeout`, and
    /// [`Stream::next`] says how long there may be silence.
    pub(super) async fn stream(
        &self,
        path: &[&str],
        query: &[(&str, String)],
    ) -> Result<Stream, AskError> {
        let request = self.request(Method::GET, path, query).header(ACCEPT, "text/event-stream");
        let head = tokio::time::timeout(self.timeout, send(request)).await;
        let head =
            head.map_err(|_| AskError::TimedOut { url: self.url(), within: self.timeout })?;
        let mut response = head.map_err(|error| self.unanswered(&error, self.timeout))?;
        let status = response.status();
        if !status.is_success() {
            let rest = body(&mut response);
            let rest = tokio::time::timeout(self.timeout, rest).await.unwrap_or(Ok(Vec::new()));
            let status = status.as_u16();
            return Err(self.refusal(status, &rest.unwrap_or_default()));
        }
        Ok(Stream { response, client: self.clone() })
    }

    fn request(&self, method: Method, path: &[&str], query: &[(&str, String)]) -> RequestBuilder {
        let mut url = self.base.clone();
        // An http URL always can be a base.
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
    ) -> Result<(u16, Vec<u8>), AskError> {
        let sent = send(request).await;
        let mut response = sent.map_err(|error| self.unanswered(&error, within))?;
        let status = response.status().as_u16();
        let body = match body(&mut response).await {
            Ok(body) => body,
            Err(Some(error)) if error.is_timeout() => return Err(self.unanswered(&error, within)),
            Err(Some(error)) => {
                return Err(AskError::BrokeOff { url: self.url(), why: innermost(&error) });
            }
            Err(None) => {
                let why = format!("it is longer than {} MiB", MAX_ANSWER_BYTES >> 20);
                return Err(AskError::Unclear { url: self.url(), why });
            }
        };
        Ok((status, body))
    }

    fn good(&self, status: u16, body: &[u8]) -> Result<Value, AskError> {
        if !(200..300).contains(&status) {
            return Err(self.refusal(status, body));
        }
        serde_json::from_slice(body).map_err(|error| self.unclear(&error))
    }

    fn refusal(&self, status: u16, body: &[u8]) -> AskError {
        match serde_json::from_slice::<crate::api::Error>(body) {
            Ok(told) if status == 401 || status == 403 => {
                let error = format!("{} (--token-file, {TOKEN_VARIABLE})", told.error);
                AskError::Refused { status, error }
            }
            Ok(told) => AskError::Refused { status, error: told.error },
            Err(_) => AskError::Stranger { url: self.url(), status },
        }
    }

    fn unclear(&self, error: &dyn std::fmt::Display) -> AskError {
        AskError::Unclear { url: self.url(), why: error.to_string() }
    }

    fn unanswered(&self, error: &reqwest::Error, within: Duration) -> AskError {
        let url = self.url();
        if let Some(why) = certificate_problem(error, &DAEMON) {
            AskError::Certificate { url, why }
        } else if error.is_timeout() {
            AskError::TimedOut { url, within }
        } else if error.is_connect() {
            AskError::Unreachable { url, why: innermost(error) }
        } else {
            AskError::BrokeOff { url, why: innermost(error) }
        }
    }
}

/// An answer that goes on.
#[derive(Debug)]
pub(super) struct Stream {
    response: Response,
    client: Client,
}

impl Stream {
    /// The next part, `None` at the end.
    pub(super) async fn next(&mut self, silence: Duration) -> Result<Option<Bytes>, AskError> {
        let url = || self.client.url();
        match tokio::time::timeout(silence, self.response.chunk()).await {
            Ok(Ok(part)) => Ok(part),
            Ok(Err(error)) => Err(AskError::BrokeOff { url: url(), why: innermost(&error) }),
            Err(_) => Err(AskError::TimedOut { url: url(), within: silence }),
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

/// Whom the daemon's certificate must come from, and what it is shown.
fn tls(args: &ConnectArgs) -> Result<ClientTls, SetupError> {
    let mut tls = ClientTls::default();
    if let Some(ca) = &args.ca_file {
        let refused =
            |source| SetupError::Tls { files: format!("{} (--ca-file)", ca.display()), source };
        tls = tls.trusting(&read(ca, "--ca-file")?).map_err(refused)?;
    }
    match (&args.cert_file, &args.key_file) {
        (None, None) => Ok(tls),
        (Some(cert), Some(key)) => {
            let files =
                format!("{} (--cert-file) with {} (--key-file)", cert.display(), key.display());
            let (cert, key) = (read(cert, "--cert-file")?, read(key, "--key-file")?);
            tls.showing(&cert, &key).map_err(|source| SetupError::Tls { files, source })
        }
        (Some(_), None) => Err(SetupError::Half { given: "--cert-file", missing: "--key-file" }),
        (None, Some(_)) => Err(SetupError::Half { given: "--key-file", missing: "--cert-file" }),
    }
}

fn read(file: &Path, flag: &'static str) -> Result<Vec<u8>, SetupError> {
    let file_name = || file.display().to_string();
    let read = std::fs::read(file).map(|bytes| without_bom(&bytes).to_vec());
    read.map_err(|source| SetupError::File { file: file_name(), flag, source })
}

/// Sends it, again where nothing of it was written because the connection was lost. Nobody has
/// seen it then, and another connection may live to say why the one before did not.
async fn send(request: RequestBuilder) -> reqwest::Result<Response> {
    for again in iter::repeat_n(&request, CONNECTIONS_LOST).filter_map(RequestBuilder::try_clone) {
        match again.send().await {
            Err(error) if never_written(&error) => {}
            answered => return answered,
        }
    }
    request.send().await
}

/// The whole body; without an error where it is too long.
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

fn token(args: &ConnectArgs) -> Result<Option<HeaderValue>, SetupError> {
    let (place, text) = match &args.token_file {
        Some(file) => {
            let place = file.display().to_string();
            match std::fs::read_to_string(file) {
                Ok(text) => (place, text),
                Err(source) => return Err(SetupError::TokenFile { file: place, source }),
            }
        }
        None => match std::env::var(TOKEN_VARIABLE) {
            // Set to nothing is how compose files and unit files leave a variable out.
            Ok(text) if text.trim().is_empty() => return Ok(None),
            Ok(text) => (TOKEN_VARIABLE.to_owned(), text),
            Err(std::env::VarError::NotPresent) => return Ok(None),
            Err(std::env::VarError::NotUnicode(_)) => {
                return Err(SetupError::Token { place: TOKEN_VARIABLE.to_owned() });
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
        _ => Err(SetupError::Token { place }),
    }
}

/// What lies at the bottom of an error. reqwest's own lines repeat the address.
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
