//! Reads and prints paged lists.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;

use serde::de::DeserializeOwned;
use serde_json::json;
use serde_json::value::RawValue;

use super::client::DaemonClient;
use super::screen::Screen;
use super::text::Table;
use super::{CommandError, CommandOutcome, cluster};
use crate::cli::admin::{KeyArgs, PageArgs};

/// The largest `limit` of the API.
const MAX_PAGE: usize = 1000;

const DEFAULT_LIMIT: usize = 100;

/// Where a list was left.
struct ListEnd {
    /// The cursor of the rest.
    next: Option<String>,
    /// Partitions of a cluster that had no answer.
    incomplete: Vec<u16>,
}

/// A list and its filter.
pub(super) struct ListQuery<'a> {
    pub(super) path: &'a [&'a str],
    /// Its field in an answer.
    pub(super) field: &'a str,
    pub(super) filter: Vec<(&'static str, String)>,
    pub(super) page: &'a PageArgs,
}

impl ListQuery<'_> {
    /// Calls `each` for up to `--limit` entries and returns where the rest begins. Keeps one page
    /// in memory. A page may be empty without being the last.
    async fn read(
        &self,
        client: &DaemonClient,
        mut each: impl FnMut(&RawValue) -> Result<(), CommandError>,
    ) -> Result<ListEnd, CommandError> {
        let mut incomplete = BTreeSet::new();
        let mut left = self.page.limit.map_or(DEFAULT_LIMIT, NonZeroUsize::get);
        let mut cursor = self.page.cursor.clone();
        loop {
            let mut query = self.filter.clone();
            query.push(("limit", left.min(MAX_PAGE).to_string()));
            query.extend(cursor.take().map(|cursor| ("cursor", cursor)));
            let answer = client.get(self.path, &query).await?;
            let unparsable = |error| client.unparsable(&error);
            let items: Vec<&RawValue> = answer.field(self.field).map_err(unparsable)?;
            items.iter().try_for_each(|item| each(item))?;
            left = left.saturating_sub(items.len());
            cursor = answer.field("next_cursor").map_err(unparsable)?;
            let missing: Option<Vec<u16>> = answer.field("incomplete").map_err(unparsable)?;
            incomplete.extend(missing.into_iter().flatten());
            if cursor.is_none() || left == 0 {
                return Ok(ListEnd { next: cursor, incomplete: incomplete.into_iter().collect() });
            }
        }
    }

    /// Prints the list as JSON, page by page.
    pub(super) async fn print_json(
        &self,
        client: &DaemonClient,
        screen: &mut Screen,
    ) -> Result<CommandOutcome, CommandError> {
        // After the first answer, so that an error is not preceded by half a document.
        let mut before = format!("{{\"{}\":[", self.field);
        let ListEnd { next, incomplete } = self
            .read(client, |item| {
                screen.json_part(&before)?;
                before = ",".to_owned();
                Ok(screen.json_part(item.get())?)
            })
            .await?;
        if before != "," {
            screen.json_part(&before)?;
        }
        screen.json_part(&format!("],\"next_cursor\":{}", json!(next)))?;
        if !incomplete.is_empty() {
            screen.json_part(&format!(",\"incomplete\":{}", json!(incomplete)))?;
        }
        screen.json_part("}")?;
        screen.end_json()?;
        Ok(CommandOutcome::Done)
    }

    /// Prints the list as a table, or `none` if it is empty.
    pub(super) async fn print_table<T: DeserializeOwned>(
        &self,
        client: &DaemonClient,
        screen: &mut Screen,
        (mut table, none): (Table, &str),
        row: impl Fn(&T) -> Vec<String>,
    ) -> Result<CommandOutcome, CommandError> {
        let ListEnd { next, incomplete } = self
            .read(client, |item| {
                let item = serde_json::from_str(item.get());
                table.row(row(&item.map_err(|error| client.unparsable(&error))?));
                Ok(())
            })
            .await?;
        match &next {
            None if table.is_empty() => screen.print([none])?,
            _ => screen.print(table.render())?,
        }
        if let Some(next) = next {
            let more = "there are more: raise --limit, or continue with --cursor";
            screen.message(&format!("{more} {next}"));
        }
        cluster::incomplete(&incomplete).iter().for_each(|text| screen.message(text));
        Ok(CommandOutcome::Done)
    }
}

pub(super) fn key_filter(keys: &KeyArgs) -> Vec<(&'static str, String)> {
    let given = [("key", &keys.key), ("key_prefix", &keys.key_prefix), ("user_id", &keys.user_id)];
    given.into_iter().filter_map(|(name, value)| Some((name, value.clone()?))).collect()
}
