//! Traces: spans over OTLP, from the request of a write to the answer of each replica.
//!
//! There are two kinds of spans: `accept`, for each write, and `attempt`, for each HTTP call to a
//! replica. Every attempt is a child of its write's `accept`, even hours later and after a restart,
//! because the task stores the context of that span. No span contains a key or a value.
//!
//! With tracing off (the default) there are no spans, and the context of the request is passed on.
//!
//! A separate thread sends the spans in batches. A slow or missing collector loses spans and delays
//! nothing else. This is the only module that names opentelemetry.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use opentelemetry::trace::{
    Span as _, SpanBuilder, SpanContext, SpanKind, Status, TraceContextExt, TraceState,
    Tracer as _, TracerProvider,
};
use opentelemetry::{Context, KeyValue, SpanId, TraceFlags, TraceId, Value};
use opentelemetry_http::{HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracer, SdkTracerProvider,
};
use percent_encoding::percent_decode_str;
use thiserror::Error;
use tokio::runtime::Handle;
use url::Url;

use crate::task::{Node, Task, TaskId, Trace, Verdict};
use crate::text::without_secrets;

mod context;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;

pub use context::{parent, state};

const BATCH_DELAY: Duration = Duration::from_secs(1);
const MAX_QUEUED_SPANS: usize = 16 << 10;
const MAX_BATCH_SPANS: usize = 512;
const SEND_TIMEOUT: Duration = Duration::from_secs(5);
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);
const LOG_EVERY: u64 = 1000;

#[derive(Clone, Debug)]
pub struct TraceSettings {
    /// May contain a password.
    pub endpoint: String,
    /// Share of the writes without a context that is traced, from 0 to 1. The context of a request
    /// decides for itself.
    pub ratio: f64,
    pub node_id: String,
}

#[derive(Debug, Error)]
#[error("cannot set up traces to {endpoint} (--otlp-endpoint): {why}")]
pub struct TraceSetupError {
    endpoint: String,
    why: String,
}

/// Starts spans; `None` means that tracing is off.
#[derive(Clone, Default)]
pub struct Tracer(Option<Arc<ActiveTracer>>);

struct ActiveTracer {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

impl Tracer {
    pub fn off() -> Self {
        Self(None)
    }

    /// `http` runs on `runtime`.
    pub fn start(
        settings: &TraceSettings,
        http: impl HttpClient + 'static,
        runtime: Handle,
    ) -> Result<Self, TraceSetupError> {
        let client = OnRuntime { http: Arc::new(http), runtime, failures: 0.into() };
        let (endpoint, headers) = without_credentials(&settings.endpoint);
        let exporter = SpanExporter::builder()
            .with_http()
            .with_endpoint(endpoint)
            .with_headers(headers)
            .with_protocol(Protocol::HttpBinary)
            .with_timeout(SEND_TIMEOUT)
            .with_http_client(client)
            .build()
            .map_err(|error| {
                let endpoint = without_secrets(&settings.endpoint);
                let why = without_secrets(&error.to_string());
                TraceSetupError { endpoint, why }
            })?;
        let batches = BatchConfigBuilder::default()
            .with_max_queue_size(MAX_QUEUED_SPANS)
            .with_max_export_batch_size(MAX_BATCH_SPANS)
            .with_scheduled_delay(BATCH_DELAY)
            .build();
        let resource = Resource::builder()
            .with_service_name("replicator")
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .with_attribute(KeyValue::new("service.instance.id", settings.node_id.clone()))
            .build();
        let provider = SdkTracerProvider::builder()
            .with_span_processor(
                BatchSpanProcessor::builder(exporter).with_batch_config(batches).build(),
            )
            .with_sampler(Sampler::parent_based(Sampler::TraceIdRatioBased(settings.ratio)))
            .with_resource(resource)
            .build();
        let tracer = provider.tracer("replicator");
        Ok(Self(Some(Arc::new(ActiveTracer { provider, tracer }))))
    }

    /// Starts the span of a write, if it is sampled. `received` is the context of the request.
    pub fn accept(&self, received: Option<&Trace>) -> Option<Span> {
        let active = self.0.as_ref()?;
        let parent = received
            .and_then(remote)
            .map_or_else(Context::new, |parent| Context::new().with_remote_span_context(parent));
        active.span(SpanBuilder::from_name("accept").with_kind(SpanKind::Server), &parent)
    }

    pub fn attempt(&self, task: &Task, node: &Node, attempt: u32) -> Option<Span> {
        let active = self.0.as_ref()?;
        let accept = task.trace.as_ref().and_then(remote)?;
        let attributes = vec![
            KeyValue::new("replicator.replica", node.to_string()),
            KeyValue::new("replicator.task_id", task.id.to_string()),
            KeyValue::new("replicator.attempt", i64::from(attempt)),
            KeyValue::new("replicator.operation", task.operation.to_string()),
        ];
        let span = SpanBuilder::from_name("attempt")
            .with_kind(SpanKind::Client)
            .with_attributes(attributes);
        active.span(span, &Context::new().with_remote_span_context(accept))
    }

    /// Blocks until the last spans are sent, at most for [`SHUTDOWN_TIMEOUT`].
    pub fn stop(&self) {
        if let Some(active) = &self.0
            && let Err(error) = active.provider.shutdown_with_timeout(SHUTDOWN_TIMEOUT)
        {
            tracing::warn!(%error, "cannot send the last spans");
        }
    }
}

impl ActiveTracer {
    fn span(&self, span: SpanBuilder, parent: &Context) -> Option<Span> {
        let span = self.tracer.build_with_context(span, parent);
        span.span_context().is_sampled().then_some(Span(span))
    }
}

pub struct Span(opentelemetry_sdk::trace::Span);

impl Span {
    pub fn trace(&self) -> Trace {
        let context = self.0.span_context();
        let (trace, span) = (context.trace_id(), context.span_id());
        let state = context.trace_state().header();
        Trace {
            parent: format!("00-{trace}-{span}-{:02x}", context.trace_flags().to_u8()).into(),
            state: Some(state).filter(|state| !state.is_empty()).map(Into::into),
        }
    }

    pub fn answered(mut self, status: u16, task: Option<TaskId>) {
        self.set("http.response.status_code", i64::from(status));
        if let Some(task) = task {
            self.set("replicator.task_id", task.to_string());
        }
        if status >= 500 {
            self.0.set_status(Status::error(""));
        }
    }

    pub fn ended(mut self, verdict: &Verdict) {
        let name = match verdict {
            Verdict::Delivered => "delivered",
            Verdict::Retry { .. } => "retry",
            Verdict::Shortage { .. } => "shortage",
            Verdict::Rejected { .. } => "rejected",
            Verdict::Refused { .. } => "refused",
        };
        self.set("replicator.verdict", name);
        if let Some(error) = verdict.error() {
            self.0.set_status(Status::error(error.to_string()));
        }
    }

    fn set(&mut self, name: &'static str, value: impl Into<Value>) {
        self.0.set_attribute(KeyValue::new(name, value));
    }
}

/// Moves the user name and the password of an endpoint into a header. Libraries log the address that
/// they send to.
fn without_credentials(endpoint: &str) -> (String, HashMap<String, String>) {
    let mut headers = HashMap::new();
    let Ok(mut url) = Url::parse(endpoint) else { return (endpoint.to_owned(), headers) };
    let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    let (user, password) = (decoded(url.username()), decoded(url.password().unwrap_or_default()));
    // Both fail only for a URL without a host.
    if (!user.is_empty() || !password.is_empty())
        && url.set_username("").is_ok()
        && url.set_password(None).is_ok()
    {
        let credentials = STANDARD.encode(format!("{user}:{password}"));
        headers.insert("Authorization".to_owned(), format!("Basic {credentials}"));
        return (url.into(), headers);
    }
    (endpoint.to_owned(), headers)
}

fn remote(trace: &Trace) -> Option<SpanContext> {
    let mut fields = trace.parent.split('-').skip(1);
    let id = TraceId::from_hex(fields.next()?).ok()?;
    let span = SpanId::from_hex(fields.next()?).ok()?;
    let flags = u8::from_str_radix(fields.next()?, 16).ok()?;
    let state = trace.state.as_deref().and_then(|state| state.parse::<TraceState>().ok());
    let (flags, state) = (TraceFlags::new(flags), state.unwrap_or_default());
    Some(SpanContext::new(id, span, flags, true, state)).filter(SpanContext::is_valid)
}

/// Runs requests on the tokio runtime: the thread that sends spans has none.
struct OnRuntime<C> {
    http: Arc<C>,
    runtime: Handle,
    failures: AtomicU64,
}

impl<C> fmt::Debug for OnRuntime<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OnRuntime").finish_non_exhaustive()
    }
}

#[async_trait]
impl<C: HttpClient + 'static> HttpClient for OnRuntime<C> {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let http = Arc::clone(&self.http);
        let sending = self.runtime.spawn(async move { http.send_bytes(request).await });
        let sent = sending.await.map_err(HttpError::from).and_then(|sent| sent);
        let error = match &sent {
            Ok(response) if response.status().is_success() => return sent,
            Ok(response) => format!("the collector answered {}", response.status()),
            Err(error) => without_secrets(&error.to_string()),
        };
        let failures = self.failures.fetch_add(1, Ordering::Relaxed);
        if failures.is_multiple_of(LOG_EVERY) {
            tracing::warn!(%error, failures = failures + 1, "spans cannot be sent to the collector (--otlp-endpoint) and are lost");
        }
        // The library logs it too.
        sent.map_err(|_| error.into())
    }
}

impl fmt::Debug for Tracer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Tracer").field(&self.0.is_some()).finish()
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Span").field(&self.trace().parent).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_credentials_of_an_endpoint_are_sent_in_a_header() {
        let (endpoint, headers) = without_credentials("https://me:se%40cret@c:4318/v1/traces");
        assert_eq!(endpoint, "https://c:4318/v1/traces");
        assert_eq!(headers["Authorization"], "Basic bWU6c2VAY3JldA==");
        let (endpoint, headers) = without_credentials("http://c:4318/v1/traces");
        assert_eq!((endpoint.as_str(), headers.len()), ("http://c:4318/v1/traces", 0));
    }

    #[test]
    fn with_tracing_off_there_is_no_span() {
        let received = Trace {
            parent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into(),
            state: None,
        };
        assert!(Tracer::off().accept(Some(&received)).is_none());
    }

    #[test]
    fn a_stored_context_is_converted_without_loss() {
        let trace = Trace {
            parent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into(),
            state: Some("a=1,b=2".into()),
        };
        let context = remote(&trace).unwrap();
        assert_eq!(context.trace_id().to_string(), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(context.span_id().to_string(), "b7ad6b7169203331");
        assert!(context.is_sampled() && context.is_remote());
        assert_eq!(context.trace_state().header(), "a=1,b=2");
    }
}
