//! The event stream: live, resumed and limited. It does not delay a shutdown.

use serde_json::{Value, json};

use crate::support::{Behaviour, Daemon, PATIENCE, Replica, set};

/// An open event stream.
struct Stream {
    answer: reqwest::Response,
    read: String,
}

#[derive(Clone, Debug, PartialEq)]
struct Event {
    id: u64,
    kind: String,
    data: Value,
}

impl Stream {
    async fn open(daemon: &Daemon, query: &str, last: Option<u64>) -> Self {
        let mut request = daemon.client().get(daemon.url(&format!("/v1/events{query}")));
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()["content-type"], "text/event-stream");
        let mut stream = Self { answer, read: String::new() };
        // The first block comes at once, so that a reader knows that it is subscribed.
        assert_eq!(stream.block().await.unwrap(), "retry: 1000");
        stream
    }

    /// The next block of lines; `None` at the end.
    async fn block(&mut self) -> Option<String> {
        loop {
            if let Some((block, rest)) = self.read.split_once("\n\n") {
                let block = block.to_owned();
                self.read = rest.to_owned();
                return Some(block);
            }
            let chunk = tokio::time::timeout(PATIENCE, self.answer.chunk()).await.unwrap();
            let chunk = chunk.ok().flatten()?;
            self.read.push_str(std::str::from_utf8(&chunk).unwrap());
        }
    }

    /// The next event; `None` at the end.
    async fn next(&mut self) -> Option<Event> {
        loop {
            let block = self.block().await?;
            let lines: Vec<_> = block.lines().collect();
            match lines[..] {
                [":"] => {}
                [id, kind, data] => {
                    let id = id.strip_prefix("id: ").unwrap().parse().unwrap();
                    let kind = kind.strip_prefix("event: ").unwrap().to_owned();
                    let data = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
                    return Some(Event { id, kind, data });
                }
                _ => panic!("{block:?}"),
            }
        }
    }

    async fn until(&mut self, right: impl Fn(&Event) -> bool) -> Event {
        loop {
            let event = self.next().await.expect("the stream has ended");
            if right(&event) {
                return event;
            }
        }
    }
}

#[tokio::test]
async fn the_events_of_a_task_arrive_in_order() {
    let daemon = Daemon::start(&["--retry-base", "20ms", "--max-retries", "1000"]).await;
    let replica = Replica::with(|_| Behaviour::Answer(503, "", "")).await;
    let mut stream = Stream::open(&daemon, "?types=task", None).await;
    let task = daemon.accept(&set("k", "v", &[&replica])).await;
    let accepted = stream.next().await.unwrap();
    assert_eq!(accepted.kind, "task");
    assert_eq!(
        (&accepted.data["task_id"], &accepted.data["change"]),
        (&json!(task.to_string()), &json!("accepted"))
    );
    let failed = stream.next().await.unwrap();
    assert_eq!(
        (&failed.data["change"], &failed.data["replica"]),
        (&json!("failed"), &json!(replica.url()))
    );
    assert!(failed.data["error"].as_str().unwrap().contains("503"), "{failed:?}");
    assert!(failed.id > accepted.id);
    replica.behave(|_| Behaviour::Apply);
    stream.until(|event| event.data["change"] == "delivered").await;
}

#[tokio::test]
async fn figures_arrive_every_second_and_replica_events_on_a_change() {
    let daemon = Daemon::start(&[]).await;
    let replica = Replica::start().await;
    daemon.accept(&set("k", "v", &[&replica])).await;
    daemon.until_drained().await;
    let mut stream = Stream::open(&daemon, "?types=figures,replica", None).await;
    daemon.post_to(&format!("{}/pause", super::path_of(&replica)), &Value::Null).await;
    let paused = stream.until(|event| event.kind == "replica").await;
    assert_eq!(
        (&paused.data["replica"], &paused.data["change"]),
        (&json!(replica.url()), &json!("paused"))
    );
    let figures = stream.until(|event| event.kind == "figures").await;
    assert!(figures.data["accepted_per_second"].is_number(), "{figures:?}");
    let shown = &figures.data["replicas"][0];
    assert_eq!((&shown["replica"], &shown["state"]), (&json!(replica.url()), &json!("paused")));
}

#[tokio::test]
async fn a_reader_that_reconnects_resumes_where_it_was() {
    let daemon = Daemon::start(&[]).await;
    let replica = Replica::start().await;
    let mut stream = Stream::open(&daemon, "?types=task", None).await;
    for n in 0..10 {
        daemon.accept(&set(&format!("k{n}"), "v", &[&replica])).await;
    }
    let mut seen = vec![];
    while seen.len() < 20 {
        seen.push(stream.next().await.unwrap());
    }
    // The header wins over the parameter, which a browser repeats at a reconnect.
    let (last, first) = (seen[4].id, seen[0].id);
    let mut resumed =
        Stream::open(&daemon, &format!("?types=task&after={first}"), Some(last)).await;
    let mut after = Stream::open(&daemon, &format!("?types=task&after={last}"), None).await;
    for event in &seen[5..] {
        assert_eq!(resumed.next().await.as_ref(), Some(event));
        assert_eq!(after.next().await.as_ref(), Some(event));
    }
}

#[tokio::test]
async fn a_reader_that_resumes_too_late_gets_the_number_of_missed_events() {
    let daemon = Daemon::start(&["--queue-capacity", "6000"]).await;
    let replica = Replica::start().await;
    let mut stream = Stream::open(&daemon, "?types=task", None).await;
    daemon.accept(&set("first", "v", &[&replica])).await;
    let first = stream.next().await.unwrap();
    // Two events for each: accepted and delivered.
    for batch in 0..5 {
        let writes: Vec<_> =
            (0..1000).map(|n| set(&format!("k{batch}.{n}"), "v", &[&replica])).collect();
        let (status, answers) = daemon.post_to("/v1/replicate/batch", &json!(writes)).await;
        assert_eq!((status, &answers["accepted"]), (200, &json!(1000)));
    }
    daemon.until_drained().await;
    // All kinds of events, because the kept ones include figures.
    let mut resumed = Stream::open(&daemon, "", Some(first.id)).await;
    let lagged = resumed.next().await.unwrap();
    assert_eq!(lagged.kind, "lagged");
    let missed = lagged.data["missed"].as_u64().unwrap();
    assert!(missed > 0);
    assert_eq!(lagged.id, first.id + missed, "its id is that of the last missed event");
    assert_eq!(resumed.next().await.unwrap().id, lagged.id + 1);
}

#[tokio::test]
async fn a_client_has_a_share_of_the_event_streams() {
    let daemon = Daemon::start(&[]).await;
    let mut streams = vec![];
    for _ in 0..58 {
        streams.push(Stream::open(&daemon, "", None).await);
    }
    let (status, answer) = daemon.get("/v1/events").await;
    assert_eq!(
        (status, &answer["error"]),
        (
            503,
            &json!(
                "too many event streams are open, the limit is 64, of which each client has a share"
            )
        )
    );
    streams.pop();
    crate::support::wait_until("there is room again", || async {
        let answer = daemon.client().get(daemon.url("/v1/events")).send().await.unwrap();
        (answer.status() == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_open_stream_does_not_delay_a_shutdown() {
    let mut daemon = Daemon::start(&["--drain-timeout", "5m"]).await;
    let mut stream = Stream::open(&daemon, "", None).await;
    stream.next().await.unwrap();
    assert!(daemon.terminate().await.success());
    while stream.next().await.is_some() {}
}

#[tokio::test]
async fn a_stream_that_is_read_outlives_the_client_timeout() {
    let daemon = Daemon::start(&["--client-timeout", "1s"]).await;
    let mut stream = Stream::open(&daemon, "?types=figures", None).await;
    let mut first = None;
    for _ in 0..5 {
        let event = stream.next().await.unwrap();
        first.get_or_insert(event.id);
    }
    assert!(first.is_some());
}

#[tokio::test]
async fn an_invalid_parameter_is_named() {
    let daemon = Daemon::start(&[]).await;
    for (query, word) in [
        ("?types=tasks", "\"types\""),
        ("?types=", "\"types\""),
        ("?after=now", "\"after\""),
        ("?limit=1", "\"limit\""),
    ] {
        let (status, answer) = daemon.get(&format!("/v1/events{query}")).await;
        assert_eq!(status, 400, "{query} {answer}");
        assert!(answer["error"].as_str().unwrap().contains(word), "{query} {answer}");
    }
    let request = daemon.client().get(daemon.url("/v1/events")).header("last-event-id", "x");
    assert_eq!(request.send().await.unwrap().status(), 400);
}
