//! Reads paged lists.

use std::num::NonZeroUsize;

use serde_json::{Value, json};

use super::client::{CallError, DaemonClient};
use crate::cli::admin::{KeyArgs, PageArgs};

/// The largest `limit` of the API.
const MAX_PAGE: usize = 1000;

const DEFAULT_LIMIT: usize = 100;

pub(super) struct Listed {
    pub(super) items: Vec<Value>,
    pub(super) next: Option<String>,
}

impl Listed {
    pub(super) fn to_json(&self, field: &str) -> Value {
        json!({ field: self.items, "next_cursor": self.next })
    }

    pub(super) fn more_hint(&self) -> Option<String> {
        let next = self.next.as_ref()?;
        Some(format!("there are more: raise --limit, or continue with --cursor {next}"))
    }
}

/// Reads up to `page.limit` entries. A page may be empty without being the last.
pub(super) async fn read(
    client: &DaemonClient,
    path: &[&str],
    field: &str,
    filter: &[(&str, String)],
    page: &PageArgs,
) -> Result<Listed, CallError> {
    let limit = page.limit.map_or(DEFAULT_LIMIT, NonZeroUsize::get);
    let mut listed = Listed { items: Vec::new(), next: page.cursor.clone() };
    loop {
        let room = limit.saturating_sub(listed.items.len()).min(MAX_PAGE);
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

pub(super) fn key_filter(keys: &KeyArgs) -> Vec<(&'static str, String)> {
    let given = [("key", &keys.key), ("key_prefix", &keys.key_prefix), ("user_id", &keys.user_id)];
    given.into_iter().filter_map(|(name, value)| Some((name, value.clone()?))).collect()
}
