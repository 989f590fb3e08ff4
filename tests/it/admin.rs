//! What operators see and say, by `/v1`, against the real daemon.

use serde_json::Value;

use crate::support::{Daemon, encoded, path_of, wait_until};

mod barriers;
mod events;
mod letters;
mod replicas;
mod tasks;
mod writes;

/// One field of every entry of a list.
fn each(list: &Value, field: &str) -> Vec<String> {
    let entries = list.as_array().unwrap().iter();
    entries.map(|entry| entry[field].as_str().unwrap().to_owned()).collect()
}

/// Everything in a list, page by page, `limit` at a time; the name of the list is `name`.
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

/// Waits until what a path answers is as it should be, and gives it.
async fn until(daemon: &Daemon, path: &str, right: impl Fn(&Value) -> bool) -> Value {
    let right = &right;
    wait_until(&format!("{path} is as it should be"), || async move {
        let (_, answer) = daemon.get(path).await;
        right(&answer).then_some(answer)
    })
    .await
}
