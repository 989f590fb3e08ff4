//! A summary of the dead letters: by replica, cause and kind of error.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;

use crate::api;
use crate::dispatcher::messages::{
    AdminError, AdminReply, DeadLetterRequest, LetterCursor, Request,
};
use crate::dispatcher::{Core, Handle, view};
use crate::engine::{DeliveryFilter, DeliveryView, LetterView, SearchPage};
use crate::task::{Cause, Node, Timestamp};

/// Dead letters per turn of the loop.
const SCANNED: usize = 5_000;
/// Groups that are counted. Dead letters of further ones are counted together.
const MAX_COUNTED: usize = 2_000;
const MAX_SHOWN: usize = 100;
/// Characters of an error that distinguish groups.
const MAX_ERROR: usize = 200;

impl Handle {
    pub(in crate::dispatcher) async fn dead_letter_summary_here(
        &self,
    ) -> Result<api::LetterSummary, AdminError> {
        let (mut groups, mut after) = (LetterGroups::default(), None);
        loop {
            let scan = |reply| Request::DeadLetters(DeadLetterRequest::Scan { after, reply });
            let found = self.ask(scan).await?;
            found.items.into_iter().for_each(|letter| groups.add(letter.delivery));
            after = found.next;
            if after.is_none() {
                return Ok(groups.summary());
            }
        }
    }
}

impl Core {
    pub(super) fn scan_letters(
        &self,
        after: Option<LetterCursor>,
        reply: AdminReply<SearchPage<LetterView, LetterCursor>>,
    ) {
        let after = after.map(|after| (after.0, after.1));
        let found = self.engine.find_letters(&DeliveryFilter::default(), after, SCANNED);
        let next = found.next.map(|(task, replica)| LetterCursor(task, replica));
        // The operator may be gone.
        let _ = reply.send(Ok(SearchPage { items: found.items, next }));
    }
}

#[derive(Default)]
struct LetterGroups {
    groups: HashMap<(Node, Cause, String), GroupCount>,
    other: u64,
    /// The last error and its kind: most letters of an outage share it.
    last: Option<(Arc<str>, String)>,
}

#[derive(Clone, Copy)]
struct GroupCount {
    count: u64,
    oldest: Timestamp,
    newest: Timestamp,
}

impl LetterGroups {
    fn add(&mut self, letter: DeliveryView) {
        let Some(cause) = letter.cause else { return };
        let (error, at) = letter.error.unwrap_or_else(|| ("".into(), Timestamp(0)));
        let kind = match &self.last {
            Some((last, kind)) if *last == error => kind.clone(),
            _ => kind_of(&error),
        };
        self.last = Some((error, kind.clone()));
        let is_full = self.groups.len() >= MAX_COUNTED;
        let group = (letter.node, cause, kind);
        if is_full && !self.groups.contains_key(&group) {
            self.other += 1;
            return;
        }
        let counted =
            self.groups.entry(group).or_insert(GroupCount { count: 0, oldest: at, newest: at });
        counted.count += 1;
        (counted.oldest, counted.newest) = (counted.oldest.min(at), counted.newest.max(at));
    }

    fn summary(self) -> api::LetterSummary {
        let counted: u64 = self.groups.values().map(|counted| counted.count).sum();
        let dead_letters = counted + self.other;
        let mut groups: Vec<_> = self.groups.into_iter().collect();
        groups.sort_by(|(a, one), (b, two)| {
            let by_name = || (&a.0, &a.2).cmp(&(&b.0, &b.2));
            Reverse(one.count).cmp(&Reverse(two.count)).then_with(by_name)
        });
        groups.truncate(MAX_SHOWN);
        let shown: u64 = groups.iter().map(|(_, counted)| counted.count).sum();
        let group = |((node, cause, error), counted): ((Node, Cause, String), GroupCount)| {
            let (oldest, newest) = (view::time(counted.oldest), view::time(counted.newest));
            let replica = node.to_string();
            api::LetterGroup { replica, cause, error, count: counted.count, oldest, newest }
        };
        api::LetterSummary {
            dead_letters,
            groups: groups.into_iter().map(group).collect(),
            other: dead_letters - shown,
            incomplete: Vec::new(),
        }
    }
}

/// The error without what differs between letters: words that contain digits become `#`, except
/// numbers of up to three digits, such as a status.
fn kind_of(error: &str) -> String {
    let mut kind = String::new();
    for (number, word) in error.split(' ').enumerate() {
        if number > 0 {
            kind.push(' ');
        }
        let bare = word.trim_matches(|c: char| c.is_ascii_punctuation());
        let is_short_number = bare.len() <= 3 && bare.bytes().all(|b| b.is_ascii_digit());
        if is_short_number {
            kind.push_str(word);
        } else {
            push_without_digits(&mut kind, word);
        }
        if kind.chars().nth(MAX_ERROR).is_some() {
            kind = kind.chars().take(MAX_ERROR).chain(['…']).collect();
            break;
        }
    }
    kind
}

fn push_without_digits(kind: &mut String, word: &str) {
    let is_part = |c: char| c.is_alphanumeric() || c == '-' || c == '_';
    for part in word.split_inclusive(|c| !is_part(c)) {
        let (name, end) = match part.char_indices().last() {
            Some((at, last)) if !is_part(last) => part.split_at(at),
            _ => (part, ""),
        };
        kind.push_str(if name.contains(|c: char| c.is_ascii_digit()) { "#" } else { name });
        kind.push_str(end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::DeliveryState;

    #[test]
    fn the_kind_of_an_error_has_no_keys_addresses_or_ids() {
        for (error, kind) in [
            ("connection refused", "connection refused"),
            (
                "the replica rejected the write with 400 Bad Request: no key user/17",
                "the replica rejected the write with 400 Bad Request: no key user/#",
            ),
            ("id 3f2a9c1e-beef-4711 (at 10.0.0.1:8080)", "id # (at #.#.#.#:#)"),
            ("waited 5000 ms, (404).", "waited # ms, (404)."),
            ("", ""),
        ] {
            assert_eq!(kind_of(error), kind);
        }
        assert_eq!(kind_of(&"é".repeat(9_000)).chars().count(), MAX_ERROR + 1);
    }

    fn letter(node: &str, error: &str, at: u64) -> DeliveryView {
        DeliveryView {
            node: Node::parse(node).unwrap(),
            state: DeliveryState::Dead,
            cause: Some(Cause::Rejected),
            failures: 1,
            error: Some((error.into(), Timestamp(at))),
            due: None,
            attempts: vec![],
        }
    }

    #[test]
    fn letters_are_counted_by_replica_and_kind_of_error_and_the_groups_are_limited() {
        let mut groups = LetterGroups::default();
        for (node, error, at) in [
            ("http://a", "no key 4711", 3_000_000),
            ("http://a", "no key 4712", 1_000_000),
            ("http://b", "no key 4713", 2_000_000),
        ] {
            groups.add(letter(node, error, at));
        }
        let summary = groups.summary();
        assert_eq!((summary.dead_letters, summary.other, summary.groups.len()), (3, 0, 2));
        let first = &summary.groups[0];
        assert_eq!((&*first.replica, &*first.error, first.count), ("http://a", "no key #", 2));
        assert_eq!(first.oldest, "1970-01-01T00:00:00.001Z");
        assert_eq!(first.newest, "1970-01-01T00:00:00.003Z");

        let mut groups = LetterGroups::default();
        let word = |n: usize| n.to_string().bytes().map(|b| char::from(b + 49)).collect::<String>();
        (0..MAX_COUNTED + 7).for_each(|n| groups.add(letter("http://a", &word(n), 0)));
        assert_eq!(groups.groups.len(), MAX_COUNTED);
        let summary = groups.summary();
        assert_eq!(summary.groups.len(), MAX_SHOWN);
        assert_eq!(summary.other, summary.dead_letters - MAX_SHOWN as u64);
    }
}
