//! HTTP client of the daemon. The only file that names reqwest besides `replica`.
//!
//! A call is limited in time by `--timeout` and in memory by [`MAX_ANSWER_BYTES`]. Like the outbound
//! side it follows no redirects and uses no proxies. The token is never printed.

use std::path::Path;
use std::time::Duration;
use std::{io, iter};

use bytes::Bytes;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue, LOCATION};
use reqwest::{ClientBuilder, Method, RequestBuilder, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;
use url::Url;

use super::answer::JsonAnswer;
use crate::api::NO_SUCH_PATH;
use crate::cli::admin::ConnectArgs;
use crate::replica::{
    ClientTls, ClientTlsError, OtherProtocol, TlsPeer, certificate_problem, install_crypto,
    never_written, other_protocol,
};
use crate::text::{unmarked, without_bom};

/// More than a page of 1000 tasks with the longest keys.
const MAX_ANSWER_BYTES: usize = 128 << 20;

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
    #[error("{url} has no path {path}: it is not a replicator, or an older version")]
    NoSuchPath { url: String, path: String },
    #[error("unexpected answer from {url}: {got}, status {status}; is it a replicator? (--url)")]
    Unexpected { url: String, status: u16, got: String },
    #[error("cannot connect to {url}: {why} (--url)")]
    OtherProtocol { url: String, why: &'static str },
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
            Self::Certificate { .. }
            | Self::NoSuchPath { .. }
            | Self::OtherProtocol { .. }
            | Self::Unparsable { .. } => false,
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
            timeout: args.connection.timeout,
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
    ) -> Result<JsonAnswer, CallError> {
        self.get_within(path, query, Duration::ZERO).await
    }

    /// As [`Self::get`], for an answer that the daemon may delay by `longer`.
    pub(super) async fn get_within(
        &self,
        path: &[&str],
        query: &[(&str, String)],
        longer: Duration,
    ) -> Result<JsonAnswer, CallError> {
        let within = self.timeout.saturating_add(longer);
        self.call(self.request(Method::GET, path, query), within).await?.success(self)
    }

    /// As [`Self::get`], but takes a 503 too if a `T` can be read from it.
    pub(super) async fn get_or_503<T: DeserializeOwned>(
        &self,
        path: &[&str],
    ) -> Result<(u16, JsonAnswer), CallError> {
        let answer = self.call(self.request(Method::GET, path, &[]), self.timeout).await?;
        match JsonAnswer::parse(answer.body.clone()) {
            Some(json) if answer.status == 503 && json.read::<T>().is_ok() => Ok((503, json)),
            _ => Ok((answer.status, answer.success(self)?)),
        }
    }

    pub(super) async fn post(
        &self,
        path: &[&str],
        body: Option<&(impl Serialize + Sync)>,
    ) -> Result<JsonAnswer, CallError> {
        self.send_json(Method::POST, path, body, self.timeout).await
    }

    /// As [`Self::post`], for an answer that the daemon may delay by `longer`.
    pub(super) async fn post_within(
        &self,
        path: &[&str],
        body: Option<&(impl Serialize + Sync)>,
        longer: Duration,
    ) -> Result<JsonAnswer, CallError> {
        self.send_json(Method::POST, path, body, self.timeout.saturating_add(longer)).await
    }

    pub(super) async fn patch(
        &self,
        path: &[&str],
        body: &(impl Serialize + Sync),
    ) -> Result<JsonAnswer, CallError> {
        self.send_json(Method::PATCH, path, Some(body), self.timeout).await
    }

    async fn send_json(
        &self,
        method: Method,
        path: &[&str],
        body: Option<&(impl Serialize + Sync)>,
        within: Duration,
    ) -> Result<JsonAnswer, CallError> {
        let mut request = self.request(method, path, &[]);
        if let Some(body) = body {
            let unparsable = |error: serde_json::Error| self.unparsable(&error);
            let json = serde_json::to_vec(body).map_err(unparsable)?;
            request = request.header(CONTENT_TYPE, "application/json").body(json);
        }
        self.call(request, within).await?.success(self)
    }

    pub(super) async fn delete(&self, path: &[&str]) -> Result<JsonAnswer, CallError> {
        self.call(self.request(Method::DELETE, path, &[]), self.timeout).await?.success(self)
    }

    pub(super) fn read<T: DeserializeOwned>(&self, answer: &JsonAnswer) -> Result<T, CallError> {
        answer.read().map_err(|error| self.unparsable(&error))
    }

    /// Opens an endless answer. `--timeout` limits only the wait for its head.
    pub(super) async fn stream(
        &self,
        path: &[&str],
        query: &[(&str, String)],
    ) -> Result<StreamReader, CallError> {
        let request = self.request(Method::GET, path, query).header(ACCEPT, "text/event-stream");
        self.open(request).await
    }

    /// Posts nothing, and opens an answer of any length.
    pub(super) async fn download(&self, path: &[&str]) -> Result<StreamReader, CallError> {
        self.open(self.request(Method::POST, path, &[])).await
    }

    async fn open(&self, request: RequestBuilder) -> Result<StreamReader, CallError> {
        let head = tokio::time::timeout(self.timeout, send(request)).await;
        let head =
            head.map_err(|_| CallError::TimedOut { url: self.url(), within: self.timeout })?;
        let mut response = head.map_err(|error| self.failed(&error, self.timeout))?;
        let status = response.status();
        if !status.is_success() {
            let body = tokio::time::timeout(self.timeout, body(&mut response)).await;
            let body = body.map_or_else(|_| Vec::new(), Result::unwrap_or_default);
            return Err(Answered::of(&response, body).refused(self));
        }
        Ok(StreamReader { response, client: self.clone() })
    }

    /// `--timeout`.
    pub(super) fn timeout(&self) -> Duration {
        self.timeout
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

    async fn call(&self, request: RequestBuilder, within: Duration) -> Result<Answered, CallError> {
        let sent = send(request.timeout(within)).await;
        let mut response = sent.map_err(|error| self.failed(&error, within))?;
        match body(&mut response).await {
            Ok(body) => Ok(Answered::of(&response, body)),
            Err(Some(error)) if error.is_timeout() => Err(self.failed(&error, within)),
            Err(Some(error)) => {
                Err(CallError::Interrupted { url: self.url(), why: innermost(&error) })
            }
            Err(None) => {
                let why = format!("it exceeds {} MiB", MAX_ANSWER_BYTES >> 20);
                Err(CallError::Unparsable { url: self.url(), why })
            }
        }
    }

    pub(super) fn unparsable(&self, error: &dyn std::fmt::Display) -> CallError {
        let mut why = error.to_string();
        // A position is of no use without the text.
        why.truncate(why.find(" at line ").unwrap_or(why.len()));
        CallError::Unparsable { url: self.url(), why }
    }

    fn failed(&self, error: &reqwest::Error, within: Duration) -> CallError {
        let url = self.url();
        if let Some(why) = certificate_problem(error, &DAEMON) {
            CallError::Certificate { url, why }
        } else if let Some(other) = other_protocol(error) {
            let why = match other {
                OtherProtocol::NotTls => "the port does not use TLS: use http://",
                OtherProtocol::NotHttp => {
                    "the port does not use HTTP; if it is a daemon with TLS, use https://"
                }
            };
            CallError::OtherProtocol { url, why }
        } else if error.is_timeout() {
            CallError::TimedOut { url, within }
        } else if error.is_connect() {
            CallError::Unreachable { url, why: innermost(error) }
        } else {
            CallError::Interrupted { url, why: innermost(error) }
        }
    }
}

/// An answer with its whole body.
struct Answered {
    path: String,
    status: u16,
    location: Option<String>,
    body: Vec<u8>,
}

impl Answered {
    fn of(response: &Response, body: Vec<u8>) -> Self {
        let location = response.headers().get(LOCATION);
        Self {
            path: response.url().path().to_owned(),
            status: response.status().as_u16(),
            location: location.map(|to| String::from_utf8_lossy(to.as_bytes()).into_owned()),
            body,
        }
    }

    fn success(self, client: &DaemonClient) -> Result<JsonAnswer, CallError> {
        if !(200..300).contains(&self.status) {
            return Err(self.refused(client));
        }
        let (url, status, got) = (client.url(), self.status, self.found());
        JsonAnswer::parse(self.body).ok_or(CallError::Unexpected { url, status, got })
    }

    fn refused(self, client: &DaemonClient) -> CallError {
        let (url, status) = (client.url(), self.status);
        let Ok(crate::api::Error { error }) = serde_json::from_slice(&self.body) else {
            return CallError::Unexpected { url, status, got: self.found() };
        };
        let place = format!("--token-file, {TOKEN_VARIABLE}");
        let error = match status {
            404 if error == NO_SUCH_PATH => {
                return CallError::NoSuchPath { url, path: self.path };
            }
            401 if client.token.is_none() => format!("{url} requires a token ({place})"),
            401 => format!("{error} ({place})"),
            // Others are about an address or a host name.
            403 if error.contains("token") => format!("{error} ({place})"),
            _ => error,
        };
        CallError::Refused { status, error }
    }

    /// The body, for an error.
    fn found(&self) -> String {
        match (&self.location, self.body.trim_ascii_start()) {
            (Some(to), _) if (300..400).contains(&self.status) => format!("a redirect to {to}"),
            (_, []) => "an empty body".to_owned(),
            (_, [b'<', ..]) => "an HTML page".to_owned(),
            (_, [b'{', ..]) => "other JSON".to_owned(),
            _ => "not JSON".to_owned(),
        }
    }
}

#[derive(Debug)]
pub(super) struct StreamReader {
    response: Response,
    client: DaemonClient,
}

impl StreamReader {
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
        .connect_timeout(args.connection.timeout)
        .no_proxy()
        .referer(false)
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
}

fn tls(args: &ConnectArgs) -> Result<ClientTls, ClientSetupError> {
    let mut tls = ClientTls::default();
    if let Some(ca) = &args.connection.ca_file {
        let refused = |source| ClientSetupError::Tls {
            files: format!("{} (--ca-file)", ca.display()),
            source,
        };
        tls = tls.trusting(&read(ca, "--ca-file")?).map_err(refused)?;
    }
    match (&args.connection.cert_file, &args.connection.key_file) {
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
    let (place, text) = match &args.connection.token_file {
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
