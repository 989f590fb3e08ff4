//! The bodies of notifications.

use std::borrow::Cow;
use std::time::{Duration, UNIX_EPOCH};

use serde_json::json;

use super::event::Notice;
use crate::cli::notify::NotifyFormat;
use crate::text::{json as escaped_json, plain};

/// The instance that sends.
#[derive(Clone, Debug)]
pub(super) struct NoticeOrigin {
    pub(super) node_id: String,
    pub(super) cluster: Option<String>,
}

pub(super) fn of(format: NotifyFormat, notice: &Notice, origin: &NoticeOrigin) -> String {
    let body = match format {
        NotifyFormat::Standard => standard(notice, origin),
        NotifyFormat::Slack => slack(notice, origin),
    };
    match escaped_json(&body) {
        Cow::Borrowed(_) => body,
        Cow::Owned(escaped) => escaped,
    }
}

fn standard(notice: &Notice, origin: &NoticeOrigin) -> String {
    let at = UNIX_EPOCH + Duration::from_nanos(notice.at.0);
    let mut data = serde_json::Map::new();
    data.insert("node".to_owned(), origin.node_id.as_str().into());
    if let Some(cluster) = &origin.cluster {
        data.insert("cluster".to_owned(), cluster.as_str().into());
    }
    data.extend(notice.event.fields());
    data.insert(
        "summary".to_owned(),
        notice.event.sentence(|text| plain(text).into_owned()).into(),
    );
    let timestamp = humantime::format_rfc3339_millis(at).to_string();
    json!({ "type": notice.event.name(), "timestamp": timestamp, "data": data }).to_string()
}

fn slack(notice: &Notice, origin: &NoticeOrigin) -> String {
    let mut from = format!("replicator {}", code(&origin.node_id));
    if let Some(cluster) = &origin.cluster {
        from = format!("{from} of cluster {}", code(cluster));
    }
    // Nothing but quoted text comes from outside.
    let text = format!("{from}: {}", notice.event.sentence(code));
    json!({ "text": text }).to_string()
}

/// Text as code: Slack finds no mention, link or format in it.
fn code(text: &str) -> String {
    let text = plain(text).replace('`', "'");
    format!("`{}`", text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;"))
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::clock::Clock;
    use crate::notify::{Condition, NewLetters, NotifyEvent};
    use crate::task::{Node, Timestamp};

    fn body(format: NotifyFormat, event: NotifyEvent) -> (String, Value) {
        let origin = NoticeOrigin { node_id: "r1".into(), cluster: Some("main".into()) };
        let mut notice = Notice::new(Clock::start(), event);
        notice.at = Timestamp(1_500_000_000);
        let body = of(format, &notice, &origin);
        let json = serde_json::from_str(&body).unwrap();
        (body, json)
    }

    fn failing(error: &str) -> NotifyEvent {
        let replica = Node::parse("http://a:1").unwrap();
        NotifyEvent::ReplicaFailing { replica, error: error.into(), backlog: 7 }
    }

    #[test]
    fn the_body_has_type_timestamp_and_data() {
        let expected = serde_json::json!({
            "type": "replica.failing",
            "timestamp": "1970-01-01T00:00:01.500Z",
            "data": {
                "node": "r1",
                "cluster": "main",
                "replica": "http://a:1",
                "error": "no",
                "backlog_tasks": 7,
                "summary": "Replica http://a:1 is failing, 7 tasks wait for it: no",
            },
        });
        assert_eq!(body(NotifyFormat::Standard, failing("no")).1, expected);
    }

    #[test]
    fn text_from_outside_is_cut_and_escaped() {
        let long = "\u{202e}\u{1b}[2J".to_owned() + &"é".repeat(10_000);
        for format in [NotifyFormat::Standard, NotifyFormat::Slack] {
            let (text, _) = body(format, failing(&long));
            assert!(text.len() < 4_000 && !text.chars().any(crate::text::is_odd), "{text}");
        }
    }

    #[test]
    fn slack_finds_no_mention_link_or_format_in_text_from_outside() {
        let (_, json) = body(NotifyFormat::Slack, failing("`<!channel> & <http://x|y>` *b*"));
        let expected = "replicator `r1` of cluster `main`: Replica `http://a:1` is failing, \
            7 tasks wait for it: `'&lt;!channel&gt; &amp; &lt;http://x|y&gt;' *b*`";
        assert_eq!(json, serde_json::json!({ "text": expected }));
    }

    #[test]
    fn every_event_has_a_type_and_a_sentence_of_its_own() {
        let replica = Node::parse("http://a:1").unwrap();
        let new = NewLetters { rejected: 1, refused: 2, given_up: 3 };
        let mut events = vec![
            NotifyEvent::Test,
            NotifyEvent::StoreFailed,
            failing("e"),
            NotifyEvent::ReplicaRecovered { replica: replica.clone(), backlog: 1 },
            NotifyEvent::ReplicaRemoved { replica: replica.clone() },
            NotifyEvent::LettersAppeared { replica: replica.clone(), new, kept: 9 },
            NotifyEvent::LettersCleared { replica },
        ];
        for condition in Condition::ALL {
            events.extend([
                NotifyEvent::Began(condition),
                NotifyEvent::Ended { condition, seconds: 5 },
            ]);
        }
        let documented = include_str!("../../docs/notifications.md");
        let mut texts = std::collections::HashSet::new();
        for event in &events {
            let (_, json) = body(NotifyFormat::Standard, event.clone());
            let name = json["type"].as_str().unwrap().to_owned();
            assert!(documented.contains(&format!("`{name}`")), "{name}");
            texts.extend([name, json["data"]["summary"].as_str().unwrap().to_owned()]);
        }
        assert_eq!(texts.len(), 2 * events.len());
    }
}
