//! Parses path segments and query parameters.

use std::borrow::Cow;
use std::str::FromStr;
use std::time::Duration;

use axum::extract::{FromRequestParts, Path};
use axum::http::request::Parts;
use url::form_urlencoded;

use super::Problem;
use super::wire::{shown, shown_address};
use crate::server::errors::invalid;
use crate::task::{Cause, DeliveryState, Node};

const DEFAULT_LIMIT: usize = 100;

const MAX_LIMIT: usize = 1000;

/// States to filter tasks by: those of unsettled deliveries, and `dead`.
pub(super) const STATES: [(&str, DeliveryState); 5] = [
    ("queued", DeliveryState::Queued),
    ("in_flight", DeliveryState::InFlight),
    ("retrying", DeliveryState::Retrying),
    ("parked", DeliveryState::Parked),
    ("dead", DeliveryState::Dead),
];

pub(super) const CAUSES: [(&str, Cause); 4] = [
    ("rejected", Cause::Rejected),
    ("refused", Cause::Refused),
    ("gave_up", Cause::GaveUp),
    ("retry_overflow", Cause::RetryOverflow),
];

/// The decoded variable segment of the path.
pub(super) struct PathName(pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for PathName {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match Path::from_request_parts(parts, state).await {
            Ok(Path(name)) => Ok(Self(name)),
            Err(_) => Err(invalid("the decoded path must be UTF-8")),
        }
    }
}

pub(super) struct PathNode(pub(super) Node);

impl<S: Send + Sync> FromRequestParts<S> for PathNode {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let PathName(text) = PathName::from_request_parts(parts, state).await?;
        node("the replica in the path", &text).map(Self)
    }
}

/// Rejects query parameters.
pub(super) struct NoParameters;

impl<S: Send + Sync> FromRequestParts<S> for NoParameters {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        Parameters::read(parts.uri.query(), &[]).map(|_| Self)
    }
}

/// Parses an address. The default scheme is `http`.
pub(super) fn node(what: &str, text: &str) -> Result<Node, Problem> {
    let address = if text.contains("://") {
        Cow::Borrowed(text)
    } else {
        Cow::Owned(format!("http://{text}"))
    };
    Node::parse(&address)
        .map_err(|error| invalid(format!("{what}: {} {error}", shown_address(text))))
}

pub(super) fn word<T: Copy>(table: &[(&str, T)], name: &str) -> Option<T> {
    table.iter().find(|(word, _)| *word == name).map(|(_, value)| *value)
}

/// Formats the words of a table for an error: `a, b or c`.
pub(super) fn words<T>(table: &[(&str, T)]) -> String {
    let words: Vec<_> = table.iter().map(|(word, _)| *word).collect();
    match words.split_last() {
        Some((last, first)) if !first.is_empty() => format!("{} or {last}", first.join(", ")),
        _ => words.concat(),
    }
}

/// Query parameters. Unknown, empty and repeated ones are rejected.
#[derive(Debug)]
pub(super) struct Parameters(Vec<(&'static str, String)>);

impl Parameters {
    pub(super) fn read(query: Option<&str>, known: &[&'static str]) -> Result<Self, Problem> {
        let mut given = Vec::new();
        for (name, value) in form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
            let Some(name) = known.iter().find(|known| **known == name) else {
                let name = shown(&name);
                return Err(invalid(if known.is_empty() {
                    format!("unknown parameter {name}: this path takes none")
                } else {
                    format!("unknown parameter {name}, expected one of {}", known.join(", "))
                }));
            };
            if value.is_empty() {
                return Err(invalid(format!(
                    r#"parameter "{name}" must not be empty, omit it to not filter by it"#
                )));
            }
            if given.iter().any(|(before, _)| before == name) {
                return Err(invalid(format!(r#"parameter "{name}" is given more than once"#)));
            }
            given.push((*name, value.into_owned()));
        }
        Ok(Self(given))
    }

    pub(super) fn text(&mut self, name: &str) -> Option<String> {
        let at = self.0.iter().position(|(given, _)| *given == name)?;
        Some(self.0.swap_remove(at).1)
    }

    pub(super) fn node(&mut self, name: &str) -> Result<Option<Node>, Problem> {
        let what = format!(r#"parameter "{name}""#);
        self.text(name).map(|text| node(&what, &text)).transpose()
    }

    pub(super) fn limit(&mut self) -> Result<usize, Problem> {
        let rule = format!("an integer from 1 to {MAX_LIMIT}");
        let in_range = |limit: &usize| (1..=MAX_LIMIT).contains(limit);
        let read = |text: &str| text.parse().ok().filter(in_range);
        Ok(self.read_as("limit", &rule, read)?.unwrap_or(DEFAULT_LIMIT))
    }

    pub(super) fn cursor<T: FromStr>(&mut self) -> Result<Option<T>, Problem> {
        self.read_as("cursor", r#"a "next_cursor" of this list"#, |text| text.parse().ok())
    }

    pub(super) fn word<T: Copy>(
        &mut self,
        name: &str,
        table: &[(&str, T)],
    ) -> Result<Option<T>, Problem> {
        self.read_as(name, &words(table), |text| word(table, text))
    }

    pub(super) fn words<T: Copy>(
        &mut self,
        name: &str,
        table: &[(&str, T)],
    ) -> Result<Option<Vec<T>>, Problem> {
        let rule = format!("a comma-separated list of {}", words(table));
        let read = |text: &str| text.split(',').map(|name| word(table, name)).collect();
        self.read_as(name, &rule, read)
    }

    pub(super) fn number(&mut self, name: &str) -> Result<Option<u64>, Problem> {
        self.read_as(name, "a number", |text| text.parse().ok())
    }

    pub(super) fn duration(
        &mut self,
        name: &str,
        max: Duration,
    ) -> Result<Option<Duration>, Problem> {
        let most = humantime::format_duration(max);
        let rule = format!("a duration such as 500ms or 30s, up to {most}");
        self.read_as(name, &rule, |text| {
            humantime::parse_duration(text).ok().filter(|duration| *duration <= max)
        })
    }

    fn read_as<T>(
        &mut self,
        name: &str,
        rule: &str,
        read: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, Problem> {
        let Some(text) = self.text(name) else { return Ok(None) };
        let wrong =
            || invalid(format!(r#"parameter "{name}" must be {rule}, got {}"#, shown(&text)));
        read(&text).map(Some).ok_or_else(wrong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: [&str; 4] = ["limit", "cursor", "state", "replica"];

    fn given(query: &str) -> Parameters {
        Parameters::read(Some(query), &KNOWN).unwrap()
    }

    #[track_caller]
    fn refused<T: std::fmt::Debug>(outcome: Result<T, Problem>, sentence: &str) {
        match outcome {
            Err(Problem::Invalid(said)) => assert_eq!(said, sentence),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_unknown_empty_or_repeated_parameter_is_named() {
        refused(
            Parameters::read(Some("limt=1"), &KNOWN),
            r#"unknown parameter "limt", expected one of limit, cursor, state, replica"#,
        );
        refused(Parameters::read(Some("a"), &[]), r#"unknown parameter "a": this path takes none"#);
        refused(
            Parameters::read(Some("state="), &KNOWN),
            r#"parameter "state" must not be empty, omit it to not filter by it"#,
        );
        refused(
            Parameters::read(Some("limit=1&limit=1"), &KNOWN),
            r#"parameter "limit" is given more than once"#,
        );
        assert!(Parameters::read(None, &[]).is_ok());
        assert!(Parameters::read(Some(""), &[]).is_ok());
    }

    #[test]
    fn a_limit_is_from_one_to_a_thousand() {
        assert_eq!(given("").limit().unwrap(), 100);
        assert_eq!(given("limit=1000").limit().unwrap(), 1000);
        for bad in ["0", "1001", "-1", "ten", "1.5", "99999999999999999999999"] {
            let sentence =
                format!(r#"parameter "limit" must be an integer from 1 to 1000, got "{bad}""#);
            refused(given(&format!("limit={bad}")).limit(), &sentence);
        }
    }

    #[test]
    fn only_words_of_the_table_are_accepted() {
        assert_eq!(
            given("state=parked").word("state", &STATES).unwrap(),
            Some(DeliveryState::Parked)
        );
        refused(
            given("state=delivered").word("state", &STATES),
            r#"parameter "state" must be queued, in_flight, retrying, parked or dead, got "delivered""#,
        );
        let both = given("state=dead,queued").words("state", &STATES).unwrap();
        assert_eq!(both, Some(vec![DeliveryState::Dead, DeliveryState::Queued]));
        assert!(given("state=dead,").words("state", &STATES).is_err());
    }

    #[test]
    fn the_word_tables_match_the_json_names() {
        for (word, state) in STATES {
            assert_eq!(serde_json::to_value(state).unwrap(), word);
        }
        for (word, cause) in CAUSES {
            assert_eq!(serde_json::to_value(cause).unwrap(), word);
        }
    }

    #[test]
    fn an_address_without_a_scheme_means_http() {
        for text in
            ["http://127.0.0.1:8081", "127.0.0.1:8081", "127.0.0.1:8081/", "HTTP://127.0.0.1:8081"]
        {
            assert_eq!(node("x", text).unwrap().as_str(), "http://127.0.0.1:8081");
        }
        let query = "replica=h%2Fp";
        assert_eq!(given(query).node("replica").unwrap().unwrap().as_str(), "http://h/p");
        refused(
            given("replica=ftp%3A%2F%2Fh").node("replica"),
            r#"parameter "replica": "ftp://h" must begin with http:// or https://"#,
        );
    }

    #[test]
    fn a_wait_is_a_duration_up_to_its_limit() {
        let max = Duration::from_secs(60);
        let read = |text: &str| {
            Parameters::read(Some(&format!("wait={text}")), &["wait"])
                .unwrap()
                .duration("wait", max)
        };
        assert_eq!(read("1m").unwrap(), Some(max));
        for bad in ["61s", "30", "-1s", "soon"] {
            let sentence = format!(
                r#"parameter "wait" must be a duration such as 500ms or 30s, up to 1m, got "{bad}""#
            );
            refused(read(bad), &sentence);
        }
    }
}
