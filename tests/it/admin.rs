//! The operators' API under `/v1`, against the real daemon.

use serde_json::Value;

use crate::support::{Daemon, encoded, path_of, wait_until};

mod barriers;
mod events;
mod letters;
mod limits;
mod replicas;
mod tasks;
mod verify;
mod writes;

/// One field of every entry of a list.
fn each(list: &Value, field: &str) -> Vec<String> {
    let entries = list.as_array().unwrap().iter();
    entries.map(|entry| entry[field].as_str().unwrap().to_owned()).collect()
}

/// Every entry of the list `name`, in pages of `limit` entries.
async fn all_of(daemon: &Daemon, path: &str, name: &str, limit: usize) -> Vec<Value> {
    let mut all = vec![];
    let mut cursor = String::new();
    loop {
        let and = if path.contains('?') { '&' } else { '?' };
        let page = daemon.show(&format!("{path}{and}limit={limit}{cursor}")).await;
        let entries = page[name].as_array().unwrap();
        assert!(entries.len() <= limit, "{page}");
        all.extend(entries.iter().cloned());
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={}", encoded(next)),
            None => return all,
        }
    }
}

/// Waits until the answer of a path satisfies `right` and returns it.
async fn until(daemon: &Daemon, path: &str, right: impl Fn(&Value) -> bool) -> Value {
    let right = &right;
    wait_until(&format!("{path} is as it should be"), || async move {
        let (_, answer) = daemon.get(path).await;
        right(&answer).then_some(answer)
    })
    .await
}
