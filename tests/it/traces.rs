//! Traces: headers to the replicas, and spans to a collector.

use std::sync::{Arc, Mutex};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use crate::support::{Behaviour, Daemon, Replica, set, strong, wait_until};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CLIENT: &str = "b7ad6b7169203331";

/// A collector: receives spans by OTLP over HTTP, as protobuf.
struct Collector {
    url: String,
    taken: Arc<Mutex<Taken>>,
}

#[derive(Default)]
struct Taken {
    spans: Vec<Span>,
    bodies: Vec<u8>,
}

impl Collector {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let taken: Arc<Mutex<Taken>> = Arc::default();
        let collector = Self { url, taken: Arc::clone(&taken) };
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(serve(BufReader::new(stream), Arc::clone(&taken)));
            }
        });
        collector
    }

    /// Waits until `count` spans of this name have arrived and returns them.
    async fn until(&self, name: &str, count: usize) -> Vec<Span> {
        wait_until(&format!("{count} spans {name}"), || async {
            let spans = &self.taken.lock().unwrap().spans;
            let named: Vec<_> = spans.iter().filter(|span| span.name == name).cloned().collect();
            (named.len() >= count).then_some(named)
        })
        .await
    }
}

async fn serve(mut stream: BufReader<TcpStream>, taken: Arc<Mutex<Taken>>) {
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if stream.read_line(&mut head).await.unwrap_or(0) == 0 {
                return;
            }
        }
        let head = head.to_lowercase();
        assert!(head.starts_with("post /v1/traces http/1.1\r\n"), "{head}");
        assert!(head.contains("content-type: application/x-protobuf"), "{head}");
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
        let mut body = vec![0; length.parse().unwrap()];
        stream.read_exact(&mut body).await.unwrap();
        let request = ExportTraceServiceRequest::decode(&*body).unwrap();
        let scopes = request.resource_spans.into_iter().flat_map(|resource| resource.scope_spans);
        {
            let mut taken = taken.lock().unwrap();
            taken.bodies.extend(body);
            taken.spans.extend(scopes.flat_map(|scope| scope.spans));
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn attribute(span: &Span, key: &str) -> String {
    let attribute = span.attributes.iter().find(|attribute| attribute.key == key);
    let value = attribute.unwrap_or_else(|| panic!("{key} in {span:?}")).value.clone();
    match value.unwrap().value.unwrap() {
        Value::StringValue(text) => text,
        Value::IntValue(number) => number.to_string(),
        other => panic!("{other:?}"),
    }
}

/// Posts a write with these headers.
async fn post(daemon: &Daemon, body: &serde_json::Value, headers: &[(&str, &str)]) -> u16 {
    let mut request = daemon.client().post(daemon.url("/replicate")).json(body);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.send().await.unwrap().status().as_u16()
}

fn parent(flags: &str) -> String {
    format!("00-{TRACE}-{CLIENT}-{flags}")
}

#[tokio::test]
async fn the_password_of_a_collector_is_not_logged() {
    // Nothing listens on port 1.
    let endpoint = "http://me:hidden-word@127.0.0.1:1";
    let mut daemon = Daemon::start(&["--otlp-endpoint", endpoint, "--log", "trace"]).await;
    let replica = Replica::start().await;
    daemon.accept(&set("k", "v", &[&replica])).await;
    daemon.until_logged("spans cannot be sent to the collector").await;
    daemon.terminate().await;
    let log = daemon.log();
    let line = log.lines().find(|line| line.contains("hidden-word"));
    assert_eq!(line, None);
}

#[tokio::test]
async fn a_write_is_one_trace_from_its_request_to_its_replicas_across_a_kill() {
    let collector = Collector::start().await;
    let args = ["--otlp-endpoint", &collector.url, "--trace-ratio", "0", "--retry-base", "20ms"];
    // The test waits for every attempt.
    let still = ["--breaker-failures", "0", "--hinted-handoff", "off"];
    let mut daemon = Daemon::start(&[&args[..], &still].concat()).await;
    let (healthy, down) = (Replica::start().await, Replica::start().await);
    down.behave(|_| Behaviour::Answer(503, "", "not now"));
    let sampled = parent("01");
    let headers = [("traceparent", &*sampled), ("tracestate", "a=1"), ("tracestate", "b=2")];
    let body = set("hidden", "secret", &[&healthy, &down]);
    assert_eq!(post(&daemon, &body, &headers).await, 202);
    // Not traced: it has no parent and the ratio is 0.
    assert_eq!(post(&daemon, &set("plain", "secret", &[&healthy]), &[]).await, 202);
    healthy.until_holds("hidden", "secret").await;
    healthy.until_holds("plain", "secret").await;
    let accept = collector.until("accept", 1).await.remove(0);
    assert_eq!(hex(&accept.trace_id), TRACE);
    assert_eq!(hex(&accept.parent_span_id), CLIENT);
    assert_eq!(attribute(&accept, "http.response.status_code"), "202");
    // One success, and four failures, which use up the retries.
    collector.until("attempt", 5).await;
    daemon.until_metric("dead_letters", 1).await;
    daemon.until_durable(&down).await;
    daemon.kill();
    down.behave(|_| Behaviour::Apply);
    daemon.restart().await;
    let all = serde_json::json!({"all": true});
    assert_eq!(daemon.post_to("/v1/dead-letters/redrive", &all).await.0, 202);
    down.until_holds("hidden", "secret").await;

    let attempts = collector.until("attempt", 6).await;
    let of = |replica: &Replica, verdict: &str| {
        let url = replica.url();
        let ours = attempts.iter().filter(|span| attribute(span, "replicator.replica") == url);
        let ours = ours.filter(|span| attribute(span, "replicator.verdict") == verdict);
        ours.cloned().collect::<Vec<_>>()
    };
    assert_eq!((of(&healthy, "delivered").len(), of(&down, "retry").len()), (1, 4));
    assert_eq!(of(&down, "delivered").len(), 1, "after the kill");
    for span in &attempts {
        assert_eq!(hex(&span.trace_id), TRACE);
        assert_eq!(span.parent_span_id, accept.span_id, "a child of the request");
        assert_eq!(attribute(span, "replicator.task_id"), attribute(&accept, "replicator.task_id"));
    }
    let numbers: Vec<_> =
        of(&down, "retry").iter().map(|span| attribute(span, "replicator.attempt")).collect();
    assert_eq!(numbers, ["1", "2", "3", "4"]);
    // Each replica received the span of its own attempt as the parent.
    let known: Vec<_> =
        attempts.iter().map(|span| format!("00-{TRACE}-{}-01", hex(&span.span_id))).collect();
    for replica in [&healthy, &down] {
        for seen in replica.seen().iter().filter(|seen| seen.key() == "hidden") {
            assert!(known.contains(&seen.headers["traceparent"]), "{seen:?}");
            assert_eq!(seen.headers["tracestate"], "a=1,b=2");
        }
    }
    let plain = healthy.seen().into_iter().find(|seen| seen.key() == "plain").unwrap();
    assert!(!plain.headers.contains_key("traceparent"));
    assert!(daemon.terminate().await.success());
    let taken = collector.taken.lock().unwrap();
    assert_eq!(taken.spans.len(), 7);
    for word in ["hidden", "secret"] {
        let found = taken.bodies.windows(word.len()).any(|part| part == word.as_bytes());
        assert!(!found, "{word} in a span");
    }
}

#[tokio::test]
async fn without_a_collector_a_trace_context_is_forwarded_unchanged_and_an_invalid_one_is_dropped()
{
    let mut daemon = Daemon::start(&["--retry-base", "20ms"]).await;
    let replica = Replica::start().await;
    replica.behave(|_| Behaviour::Hang);
    let good = parent("00");
    let headers = [("traceparent", &*good), ("tracestate", "vendor=x")];
    assert_eq!(post(&daemon, &set("good", "v", &[&replica]), &headers).await, 202);
    replica.until_seen(1).await;
    replica.behave(|_| Behaviour::Apply);
    daemon.kill_and_restart().await;
    replica.until_holds("good", "v").await;
    for (key, headers) in [
        ("bad", vec![("traceparent", "00-nonsense"), ("tracestate", "vendor=x")]),
        ("twice", vec![("traceparent", &*good), ("traceparent", &*good)]),
        ("none", vec![]),
    ] {
        assert_eq!(post(&daemon, &set(key, "v", &[&replica]), &headers).await, 202);
        replica.until_holds(key, "v").await;
    }
    assert!(replica.seen().iter().filter(|seen| seen.key() == "good").count() >= 2);
    for seen in replica.seen() {
        let (parent, state) = (seen.headers.get("traceparent"), seen.headers.get("tracestate"));
        if seen.key() == "good" {
            assert_eq!(parent.unwrap(), &good);
            assert_eq!(state.unwrap(), "vendor=x");
        } else {
            assert_eq!((parent, state), (None, None), "{}", seen.key());
        }
    }
}

#[tokio::test]
async fn an_unreachable_collector_delays_nothing_and_is_logged_once() {
    // No process listens on port 9.
    let mut daemon = Daemon::start(&["--otlp-endpoint", "http://127.0.0.1:9"]).await;
    let replica = Replica::start().await;
    for n in 0..50 {
        daemon.accept(&strong(&format!("k{n}"), "v", &[&replica])).await;
    }
    let logged = |daemon: &Daemon| daemon.log().matches("spans cannot be sent").count();
    wait_until("the failure is logged", || async { (logged(&daemon) > 0).then_some(()) }).await;
    assert!(daemon.terminate().await.success());
    assert_eq!(logged(&daemon), 1, "{}", daemon.log());
}

#[tokio::test]
async fn each_write_of_a_batch_has_a_span_of_its_own() {
    let collector = Collector::start().await;
    let daemon = Daemon::start(&["--otlp-endpoint", &collector.url, "--trace-ratio", "0"]).await;
    let replica = Replica::start().await;
    let mut writes: Vec<_> = (0..3).map(|n| set(&format!("k{n}"), "v", &[&replica])).collect();
    writes.push(serde_json::json!({"key": "k", "operation": "NONSENSE"}));
    let request = daemon.client().post(daemon.url("/v1/replicate/batch"));
    let request = request.header("traceparent", parent("01")).json(&writes);
    let answers: serde_json::Value = request.send().await.unwrap().json().await.unwrap();
    assert_eq!((&answers["accepted"], &answers["refused"]), (&3.into(), &1.into()), "{answers}");
    let accepts = collector.until("accept", 4).await;
    let attempts = collector.until("attempt", 3).await;
    for (answer, status) in answers["answers"].as_array().unwrap().iter().zip([202, 202, 202, 400])
    {
        assert_eq!(answer["status"], status, "{answers}");
    }
    let mut statuses: Vec<_> =
        accepts.iter().map(|span| attribute(span, "http.response.status_code")).collect();
    statuses.sort();
    assert_eq!(statuses, ["202", "202", "202", "400"]);
    for span in &accepts {
        assert_eq!((hex(&span.trace_id), hex(&span.parent_span_id)), (TRACE.into(), CLIENT.into()));
    }
    for attempt in &attempts {
        let of_it = |span: &&Span| span.span_id == attempt.parent_span_id;
        let accept = accepts.iter().find(of_it).expect("a child of its own write");
        assert_eq!(
            attribute(attempt, "replicator.task_id"),
            attribute(accept, "replicator.task_id")
        );
    }
}
