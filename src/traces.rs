//! Traces: a write, from its request to each replica's answer, as spans sent by OTLP.
//!
//! Two kinds of spans: `accept`, the request of a write, or each write of a batch, and `attempt`, one
//! HTTP call to a replica.
//! Every attempt is a child of its write's `accept`, also hours later and after a restart, as the
//! task carries the context of that span to disk.
//!
//! Off, which is the default, there is no span and nothing is sent: the context that a request came
//! with is carried on as it is. A key or a value is never part of a span.
//!
//! Spans are sent in batches by a thread of their own. What a collector does not take is lost, and
//! holds up nobody. The only one that names opentelemetry. To read on: `context.rs` for what a
//! request may say of its trace.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
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
use thiserror::Error;
use tokio::runtime::Handle;

use crate::task::{Node, Task, TaskId, Trace, Verdict};

mod context;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;

pub use context::{parent, state};

/// How long a span waits for others to be sent with.
const SENT_WITHIN: Duration = Duration::from_secs(1);
/// Spans that wait; with more, new ones are dropped.
const MOST_WAITING: usize = 16 << 10;
/// Spans that are sent at once.
const BATCH: usize = 512;
/// How long a collector may take.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the last spans may take at the end of the daemon.
const LAST_WITHIN: Duration = Duration::from_secs(2);
/// One of so many failures to send is told.
const TELL_EVERY: u64 = 1000;

/// Where spans go, and how many.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The URL that takes them.
    pub endpoint: String,
    /// Of the writes that come without a context, the share that is traced, from 0 to 1. Those that
    /// come with one are traced where that says so.
    pub ratio: f64,
    /// The name of this replicator.
    pub node_id: String,
}

/// Why spans cannot be sent.
#[derive(Debug, Error)]
#[error("cannot set up the sending of traces to {endpoint} (--otlp-endpoint): {why}")]
pub struct SetupError {
    endpoint: String,
    why: String,
}

/// Makes spans, or none where traces are off. Cheap to clone.
#[derive(Clone, Default)]
pub struct Tracer(Option<Arc<On>>);

struct On {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

impl Tracer {
    /// Makes no spans.
    #[must_use]
    pub fn off() -> Self {
        Self(None)
    }

    /// Sends spans with this client. To be called within the runtime, which the client needs.
    ///
    /// # Errors
    ///
    /// [`SetupError`] where the endpoint is none.
    pub fn start(settings: &Settings, http: impl HttpClient + 'static) -> Result<Self, SetupError> {
        let client =
            OnRuntime { http: Arc::new(http), runtime: Handle::current(), failures: 0.into() };
        let exporter = SpanExporter::builder()
            .with_http()
            .with_endpoint(&settings.endpoint)
            .with_protocol(Protocol::HttpBinary)
            .with_timeout(SEND_TIMEOUT)
            .with_http_client(client)
            .build()
            .map_err(|error| {
                let endpoint = settings.endpoint.clone();
                SetupError { endpoint, why: error.to_string() }
            })?;
        let batches = BatchConfigBuilder::default()
            .with_max_queue_size(MOST_WAITING)
            .with_max_export_batch_size(BATCH)
            .with_scheduled_delay(SENT_WITHIN)
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
        Ok(Self(Some(Arc::new(On { provider, tracer }))))
    }

    /// The span of a request that wants a write accepted, if it is to be traced. `came` is the
    /// context that it came with.
    #[must_use]
    pub fn accept(&self, came: Option<&Trace>) -> Option<Span> {
        let on = self.0.as_ref()?;
        let parent = came
            .and_then(remote)
            .map_or_else(Context::new, |parent| Context::new().with_remote_span_context(parent));
        on.span(SpanBuilder::from_name("accept").with_kind(SpanKind::Server), &parent)
    }

    /// The span of an attempt, if its task is traced.
    #[must_use]
    pub fn attempt(&self, task: &Task, node: &Node, attempt: u32) -> Option<Span> {
        let on = self.0.as_ref()?;
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
        on.span(span, &Context::new().with_remote_span_context(accept))
    }

    /// Sends the last spans, for a while. Blocks.
    pub fn stop(&self) {
        if let Some(on) = &self.0
            && let Err(error) = on.provider.shutdown_with_timeout(LAST_WITHIN)
        {
            tracing::warn!(%error, "the last spans could not be sent");
        }
    }
}

impl On {
    /// Begins a span, unless it is left out by the sampling.
    fn span(&self, span: SpanBuilder, parent: &Context) -> Option<Span> {
        let span = self.tracer.build_with_context(span, parent);
        span.span_context().is_sampled().then_some(Span(span))
    }
}

/// A span that has begun; it ends when it is dropped.
pub struct Span(opentelemetry_sdk::trace::Span);

impl Span {
    /// The context for what is done on behalf of this span.
    #[must_use]
    pub fn trace(&self) -> Trace {
        let context = self.0.span_context();
        let (trace, span) = (context.trace_id(), context.span_id());
        let state = context.trace_state().header();
        Trace {
            parent: format!("00-{trace}-{span}-{:02x}", context.trace_flags().to_u8()).into(),
            state: Some(state).filter(|state| !state.is_empty()).map(Into::into),
        }
    }

    /// A request was answered so; with which task, where it became one.
    pub fn answered(mut self, status: u16, task: Option<TaskId>) {
        self.say("http.response.status_code", i64::from(status));
        if let Some(task) = task {
            self.say("replicator.task_id", task.to_string());
        }
        if status >= 500 {
            self.0.set_status(Status::error(""));
        }
    }

    /// An attempt ended so.
    pub fn ended(mut self, verdict: &Verdict) {
        let (name, error) = match verdict {
            Verdict::Delivered => ("delivered", None),
            Verdict::Retry { error, .. } => ("retry", Some(error)),
            Verdict::Shortage { error } => ("shortage", Some(error)),
            Verdict::Rejected { error } => ("rejected", Some(error)),
        };
        self.say("replicator.verdict", name);
        if let Some(error) = error {
            self.0.set_status(Status::error(error.to_string()));
        }
    }

    fn say(&mut self, name: &'static str, value: impl Into<Value>) {
        self.0.set_attribute(KeyValue::new(name, value));
    }
}

/// A context in the words of the library.
fn remote(trace: &Trace) -> Option<SpanContext> {
    let mut fields = trace.parent.split('-').skip(1);
    let id = TraceId::from_hex(fields.next()?).ok()?;
    let span = SpanId::from_hex(fields.next()?).ok()?;
    let flags = u8::from_str_radix(fields.next()?, 16).ok()?;
    let state = trace.state.as_deref().and_then(|state| state.parse::<TraceState>().ok());
    let (flags, state) = (TraceFlags::new(flags), state.unwrap_or_default());
    Some(SpanContext::new(id, span, flags, true, state)).filter(SpanContext::is_valid)
}

/// A client that does its work in the runtime, whoever waits for it: the thread that sends spans
/// has none.
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
            Ok(response) => format!("it answers {}", response.status()),
            Err(error) => error.to_string(),
        };
        let failures = self.failures.fetch_add(1, Ordering::Relaxed);
        if failures.is_multiple_of(TELL_EVERY) {
            tracing::warn!(%error, failures = failures + 1, "spans cannot be sent to the collector (--otlp-endpoint), some are lost");
        }
        sent
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
    fn without_traces_there_is_no_span() {
        let came = Trace {
            parent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into(),
            state: None,
        };
        assert!(Tracer::off().accept(Some(&came)).is_none());
    }

    #[test]
    fn a_context_is_the_same_in_the_words_of_the_library() {
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
