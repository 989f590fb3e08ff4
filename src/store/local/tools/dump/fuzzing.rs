//! Any text as the lines of an import.

#![allow(clippy::panic, reason = "that is how a target says what does not hold")]

use serde::{Deserialize, Serialize};

use super::lines;
use crate::task::Operation;

/// What is taken from a line keeps the rules of what is stored, and is written as a line that is
/// taken for the same.
pub(crate) fn import(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    for line in text.lines().take(16) {
        if let Some(read) = taken(line, lines::task) {
            let (task, progress) = &read;
            assert!(!matches!(&*task.key, "" | "." | ".."));
            assert!(!task.replicas.is_empty() && task.replicas.len() == progress.len());
            for (at, node) in task.replicas.iter().enumerate() {
                assert!(task.replicas.iter().take(at).all(|other| other != node), "{node} twice");
            }
            assert!(task.operation == Operation::Set || task.value.is_empty());
            if let Some(trace) = &task.trace {
                // What a request for it carries.
                let sent = trace.parent.bytes().chain(trace.state.iter().flat_map(|s| s.bytes()));
                assert!(sent.into_iter().all(|byte| (0x20..0x7f).contains(&byte)), "{trace:?}");
            }
            assert_eq!(again(&lines::line(task, progress), lines::task), read);
        }
        if let Some(read) = taken(line, lines::replica) {
            assert_eq!(again(&lines::replica_line(&read.0, &read.1), lines::replica), read);
        }
        if let Some(read) = taken(line, lines::key) {
            assert!((1..=255).contains(&read.0.len()));
            assert_eq!(again(&lines::key_line(&read.0, &read.1), lines::key), read);
        }
    }
}

fn taken<'a, L: Deserialize<'a>, T>(line: &'a str, read: fn(L) -> Result<T, String>) -> Option<T> {
    match read(serde_json::from_str(line).ok()?) {
        Ok(read) => Some(read),
        Err(why) => {
            assert!(!why.is_empty() && !why.contains(char::is_control), "{why:?}");
            None
        }
    }
}

fn again<L: Serialize + for<'a> Deserialize<'a>, T>(
    line: &L,
    read: fn(L) -> Result<T, String>,
) -> T {
    let Ok(text) = serde_json::to_string(line) else { panic!("a line cannot be written") };
    match serde_json::from_str(&text).map_err(|why| why.to_string()).and_then(read) {
        Ok(read) => read,
        Err(why) => panic!("{text}: {why}"),
    }
}
