//! `POST /v1/replicate/batch`: many writes in one request and one commit.
//!
//! Each write is validated and answered on its own, as by `POST /replicate`. The valid ones are
//! submitted together. A body that cannot be split into writes is rejected as a whole.

use std::fmt;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::http::header::CONTENT_TYPE;
use axum::response::Response;
use serde::de::{Deserializer, IgnoredAny, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::extract::NoParameters;
use super::validate::{self, ValidWrite};
use super::{BodyErrors, CommonErrors, Problem, ServerState, idempotency};
use crate::api::{self, BatchAnswer, BatchAnswers};
use crate::server::access::Caller;
use crate::server::errors::invalid;
use crate::server::errors::{ok, taken_in_batch};
use crate::server::replicate::trace_of;
use crate::task::{Consistency, Idempotency, NewTask};
use crate::traces::Span;

pub(super) const MAX_WRITES: usize = 1000;

struct BatchMember {
    /// Each write has its own span, as if it were a request of its own.
    span: Option<Span>,
    checked: CheckedWrite,
}

enum CheckedWrite {
    Submitted { consistency: Consistency, spelled: Vec<Arc<str>> },
    Refused(Problem),
}

#[utoipa::path(
    post, path = "/v1/replicate/batch", tag = "writes",
    operation_id = "replicateBatch",
    summary = "Replicate many writes",
    description = "Up to 1000 writes, as a JSON array or one per line. Each write is validated and \
        answered on its own. The valid ones become durable together. If the daemon is killed before \
        it responds, it may have accepted a prefix of the batch: send the batch again, with the same \
        `idempotency_key` for each write, to get the same tasks.",
    request_body(content(
        (Vec<api::BatchWrite> = "application/json"), (String = "application/x-ndjson")
    )),
    responses(
        (status = 200, body = BatchAnswers, description = "One answer per write, in order."),
        BodyErrors, CommonErrors,
    ),
)]
pub(super) async fn batch(
    State(server): State<Arc<ServerState>>,
    _: NoParameters,
    request: Request,
) -> Result<Response, Problem> {
    let ServerState { handle, memory, .. } = &*server;
    let (head, body) = request.into_parts();
    let early = server.serving().and_then(|()| idempotency::no_header(&head.headers));
    if let Err(problem) = early {
        memory.discard(&head.headers, body);
        return Err(problem);
    }
    let parent = trace_of(&head.headers);
    let (limit, retry_after) = (memory.max_batch_bytes(), handle.retry_after());
    let caller = Caller::of(&head.extensions)?;
    let client = caller.client();
    let read = memory.read_up_to(limit, &client, &head.headers, body, retry_after).await;
    let (body, _share) = read.inspect_err(|problem| server.count_memory_refusal(problem))?;
    let mut members = Vec::new();
    let mut valid = Vec::new();
    let writes = split(&head.headers, &body)?;
    caller.spend(writes.len().saturating_sub(1))?;
    for write in writes {
        let span = server.settings.tracer.accept(parent.as_ref());
        let checked = match server.checked(write, &caller) {
            Ok((ValidWrite { mut task, spelled }, idempotency)) => {
                task.client = client.clone();
                task.trace = span.as_ref().map(Span::trace).or_else(|| parent.clone());
                server.count_user(&task);
                let consistency = task.consistency;
                valid.push((task, idempotency));
                CheckedWrite::Submitted { consistency, spelled }
            }
            Err(problem) => CheckedWrite::Refused(problem),
        };
        members.push(BatchMember { span, checked });
    }
    drop(body);
    Ok(ok(&server.answered(members, valid).await))
}

impl ServerState {
    fn checked(
        &self,
        write: &[u8],
        caller: &Caller,
    ) -> Result<(ValidWrite, Option<Idempotency>), Problem> {
        let (checked, key) = validate::batched(write, &self.settings, &self.addresses)?;
        caller.may_name(&checked.task.replicas)?;
        Ok((checked, key.map(|key| idempotency::of(caller, key, write))))
    }

    async fn answered(
        &self,
        members: Vec<BatchMember>,
        valid: Vec<(NewTask, Option<Idempotency>)>,
    ) -> BatchAnswers {
        let mut outcomes = self.handle.replicate_all(valid).await.into_iter();
        let mut answers = BatchAnswers { accepted: 0, refused: 0, answers: Vec::new() };
        for BatchMember { span, checked } in members {
            let outcome = match checked {
                CheckedWrite::Refused(problem) => Err(problem),
                CheckedWrite::Submitted { consistency, spelled } => match outcomes.next() {
                    Some(Ok(accepted)) => {
                        let body = self.success(&accepted, consistency, &spelled);
                        Ok((accepted.id, taken_in_batch(&body, accepted.replayed)))
                    }
                    Some(Err(refusal)) => Err(self.refused(&refusal, &spelled)),
                    None => Err(Problem::internal(&"the daemon did not answer a write of a batch")),
                },
            };
            let durable = match &outcome {
                Ok(_) | Err(Problem::NoMajority { .. }) => &mut answers.accepted,
                Err(_) => &mut answers.refused,
            };
            *durable += 1;
            let (task, answer): (_, BatchAnswer) = match outcome {
                Ok((id, answer)) => (Some(id), answer),
                Err(problem) => (problem.task(), problem.in_batch()),
            };
            self.handle.counts().answered(answer.status);
            if let Some(span) = span {
                span.answered(answer.status, task);
            }
            answers.answers.push(answer);
        }
        answers
    }
}

pub(super) fn split<'a>(headers: &HeaderMap, body: &'a [u8]) -> Result<Vec<&'a [u8]>, Problem> {
    let in_lines = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let in_lines = in_lines.is_some_and(|value| {
        let essence = value.split(';').next().unwrap_or_default();
        essence.trim().eq_ignore_ascii_case("application/x-ndjson")
    });
    let writes = if in_lines || body.trim_ascii_start().first() != Some(&b'[') {
        let lines = body.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
        lines.filter(|line| !line.is_empty()).take(MAX_WRITES + 1).collect()
    } else {
        let mut json = serde_json::Deserializer::from_slice(body);
        let read =
            json.deserialize_seq(BatchMembers).and_then(|writes| json.end().map(|()| writes));
        read.map_err(|error| invalid(format!("the body is not a valid JSON array: {error}")))?
    };
    match writes.len() {
        0 => Err(invalid("the body must contain at least one write")),
        1..=MAX_WRITES => Ok(writes),
        _ => {
            Err(Problem::TooLarge(format!("the batch must not have more than {MAX_WRITES} writes")))
        }
    }
}

/// Reads up to [`MAX_WRITES`] members of an array, plus one to detect too many.
struct BatchMembers;

impl<'de> Visitor<'de> for BatchMembers {
    type Value = Vec<&'de [u8]>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of writes")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut writes = Vec::new();
        while writes.len() <= MAX_WRITES {
            match list.next_element::<&RawValue>()? {
                Some(write) => writes.push(write.get().as_bytes()),
                None => return Ok(writes),
            }
        }
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(writes)
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn plain(body: &str) -> Result<Vec<String>, Problem> {
        said(&HeaderMap::new(), body)
    }

    fn said(headers: &HeaderMap, body: &str) -> Result<Vec<String>, Problem> {
        let writes = split(headers, body.as_bytes())?;
        Ok(writes.into_iter().map(|write| String::from_utf8(write.to_vec()).unwrap()).collect())
    }

    #[test]
    fn an_array_and_lines_are_split_alike() {
        let one = r#"{"key":"a\nb","x":[1,{}]}"#;
        let expected = vec![one.to_owned(), "7".to_owned()];
        assert_eq!(plain(&format!(" [{one} ,\n 7]\n")).unwrap(), expected);
        assert_eq!(plain(&format!("{one}\r\n\n  7 ")).unwrap(), expected);
    }

    #[test]
    fn the_content_type_ndjson_means_lines_even_if_the_body_begins_like_an_array() {
        let mut headers = HeaderMap::new();
        let value = HeaderValue::from_static("Application/X-NDJSON; charset=utf-8");
        headers.insert(CONTENT_TYPE, value);
        assert_eq!(said(&headers, "[1]\n[2]").unwrap(), ["[1]", "[2]"]);
    }

    #[test]
    fn a_body_that_cannot_be_split_is_rejected_as_a_whole() {
        for body in ["", " \n\n", "[]"] {
            assert!(matches!(
                plain(body),
                Err(Problem::Invalid(said)) if said == "the body must contain at least one write"
            ));
        }
        for body in ["[{}", "[{}] x", "[{},]", "[{\"a\":}]"] {
            let Err(Problem::Invalid(said)) = plain(body) else { panic!("{body}") };
            assert!(said.starts_with("the body is not a valid JSON array: "), "{said}");
        }
    }

    #[test]
    fn a_batch_has_at_most_a_thousand_writes() {
        let lines = |count: usize| vec!["{}"; count].join("\n");
        let array = |count: usize| format!("[{}]", vec!["{}"; count].join(","));
        for body in [lines(1000), array(1000)] {
            assert_eq!(plain(&body).unwrap().len(), 1000);
        }
        for body in [lines(1001), array(3000)] {
            assert!(matches!(
                plain(&body),
                Err(Problem::TooLarge(said)) if said == "the batch must not have more than 1000 writes"
            ));
        }
    }
}
