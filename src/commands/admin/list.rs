//! Lists, page by page.

use std::num::NonZeroUsize;

use serde_json::{Value, json};

use super::client::{AskError, Client};
use crate::cli::admin::{KeyArgs, PageArgs};

/// The most that the API gives at once.
const PAGE: usize = 1000;

/// How many are listed where nobody says.
const DEFAULT_LIMIT: usize = 100;

/// What was read of a list, and how to go on.
pub(super) struct Listed {
    pub(super) items: Vec<Value>,
    pub(super) next: Option<String>,
}

impl Listed {
    /// As one page of the API.
    pub(super) fn to_json(&self, field: &str) -> Value {
        json!({ field: self.items, "next_cursor": self.next })
    }

    /// What a person is told of the rest.
    pub(super) fn rest(&self) -> Option<String> {
        let next = self.next.as_ref()?;
        Some(format!("there is more: --limit, or go on with --cursor {next}"))
    }
}

/// Reads a list up to its limit. A page may be empty and still not be the last.
pub(super) async fn read(
    client: &Client,
    path: &[&str],
    field: &str,
    filter: &[(&str, String)],
    page: &PageArgs,
) -> Result<Listed, AskError> {
    let limit = page.limit.map_or(DEFAULT_LIMIT, NonZeroUsize::get);
    let mut listed = Listed { items: Vec::new(), next: page.cursor.clone() };
    loop {
        let room = limit.saturating_sub(listed.items.len()).min(PAGE);
        let mut query = filter.to_vec();
        query.push(("limit", room.to_string()));
        query.extend(listed.next.take().map(|cursor| ("cursor", cursor)));
        let answer = client.get(path, &query).await?;
        let items = answer.get(field).cloned().unwrap_or_default();
        listed.items.extend(client.read::<Vec<Value>>(&items)?);
        let next = answer.get("next_cursor").cloned().unwrap_or_default();
        listed.next = client.read(&next)?;
        if listed.next.is_none() || listed.items.len() >= limit {
            return Ok(listed);
        }
    }
}

/// The part of a filter that tasks and dead letters have in common.
pub(super) fn whose(keys: &KeyArgs) -> Vec<(&'static str, String)> {
    let given = [("key", &keys.key), ("key_prefix", &keys.key_prefix), ("user_id", &keys.user_id)];
    given.into_iter().filter_map(|(name, value)| Some((name, value.clone()?))).collect()
}
