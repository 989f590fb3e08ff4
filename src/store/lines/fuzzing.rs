//! Fuzz target: arbitrary text as the lines of an import.

#![allow(clippy::panic, reason = "a target reports a violation by a panic")]

use serde::{Deserialize, Serialize};

use super::format;
use crate::store::records::MAX_IDEMPOTENCY_KEY_BYTES;
use crate::task::Operation;

/// An accepted line obeys the rules of the store, and exports to a line that imports to the same.
pub(crate) fn import(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    for line in text.lines().take(16) {
        if let Some(read) = accepted(line, format::task) {
            let (task, progress) = &read;
            assert!(!matches!(&*task.key, "" | "." | ".."));
            assert!(!task.replicas.is_empty() && task.replicas.len() == progress.len());
            for (at, node) in task.replicas.iter().enumerate() {
                assert!(task.replicas.iter().take(at).all(|other| other != node), "{node} twice");
            }
            assert!(task.operation == Operation::Set || task.value.is_empty());
            if let Some(trace) = &task.trace {
                // These become headers of the request.
                let sent = trace.parent.bytes().chain(trace.state.iter().flat_map(|s| s.bytes()));
                assert!(sent.into_iter().all(|byte| (0x20..0x7f).contains(&byte)), "{trace:?}");
            }
            assert_eq!(reimported(&format::line(task, progress), format::task), read);
        }
        if let Some(read) = accepted(line, format::replica) {
            assert_eq!(reimported(&format::replica_line(&read.0, &read.1), format::replica), read);
        }
        if let Some(read) = accepted(line, format::key) {
            assert!((1..=MAX_IDEMPOTENCY_KEY_BYTES).contains(&read.0.len()));
            assert_eq!(reimported(&format::key_line(&read.0, &read.1), format::key), read);
        }
    }
}

fn accepted<'a, L: Deserialize<'a>, T>(
    line: &'a str,
    read: fn(L) -> Result<T, String>,
) -> Option<T> {
    match read(serde_json::from_str(line).ok()?) {
        Ok(read) => Some(read),
        Err(why) => {
            assert!(!why.is_empty() && !why.contains(char::is_control), "{why:?}");
            None
        }
    }
}

fn reimported<L: Serialize + for<'a> Deserialize<'a>, T>(
    line: &L,
    read: fn(L) -> Result<T, String>,
) -> T {
    let Ok(text) = serde_json::to_string(line) else { panic!("a line cannot be written") };
    match serde_json::from_str(&text).map_err(|why| why.to_string()).and_then(read) {
        Ok(read) => read,
        Err(why) => panic!("{text}: {why}"),
    }
}
