//! The import rules between the parts, checked in the source.

use std::fs;
use std::path::{Path, PathBuf};

pub mod circles;

pub fn sources(dir: &str) -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = vec![];
    let mut folders = vec![root.join(dir)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                found.push((path.strip_prefix(root).unwrap().to_owned(), text));
            }
        }
    }
    assert!(!found.is_empty(), "{dir} has no sources");
    found
}

/// The code without comments.
fn code(text: &str) -> String {
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// The code without the tests at its end.
fn shipped(text: &str) -> String {
    let code = code(text);
    code.split("#[cfg(test)]\nmod tests {").next().unwrap().to_owned()
}

pub fn is_test(path: &Path) -> bool {
    let tests = path.components().any(|part| part.as_os_str() == "tests");
    tests || path.ends_with("tests.rs") || path.ends_with("fuzzing.rs")
}

#[track_caller]
fn only_under(words: &[&str], allowed: &[&str]) {
    for (path, text) in sources("src") {
        let inside = allowed.iter().any(|place| path.starts_with(place));
        if inside || is_test(&path) {
            continue;
        }
        for word in words {
            assert!(!shipped(&text).contains(word), "{word} in {}", path.display());
        }
    }
}

#[track_caller]
fn never_in(words: &[&str], places: &[&str]) {
    for (path, text) in sources("src") {
        if !places.iter().any(|place| path.starts_with(place)) || is_test(&path) {
            continue;
        }
        for word in words {
            assert!(!shipped(&text).contains(word), "{word} in {}", path.display());
        }
    }
}

#[test]
fn only_the_store_names_sled_and_bincode() {
    only_under(&["sled::"], &["src/store/local.rs", "src/store/local"]);
    let payload = ["src/store/payload.rs", "src/store/payload", "src/store/records.rs"];
    let stores = ["src/store/local.rs", "src/store/local", "src/store/jetstream"];
    only_under(&["bincode"], &[&payload[..], &stores].concat());
}

#[test]
fn only_the_cluster_store_names_async_nats() {
    only_under(&["async_nats"], &["src/store/jetstream.rs", "src/store/jetstream"]);
}

#[test]
fn only_the_replica_side_the_operators_client_and_the_notifications_name_reqwest() {
    let clients = ["src/commands/admin/client.rs", "src/notify/post.rs"];
    only_under(&["reqwest"], &[&["src/replica.rs", "src/replica"][..], &clients].concat());
}

#[test]
fn only_top_names_ratatui() {
    only_under(&["ratatui"], &["src/commands/admin/top.rs", "src/commands/admin/top"]);
}

#[test]
fn the_commands_for_operators_use_only_the_api_of_the_daemon() {
    let parts = ["crate::engine", "crate::store", "crate::server", "crate::replica::ReplicaClient"];
    let parts = [parts.as_slice(), &["crate::dispatcher", "crate::daemon"]].concat();
    never_in(&parts, &["src/commands/admin.rs", "src/commands/admin"]);
}

#[test]
fn only_the_server_names_axum_and_only_server_and_replica_side_name_hyper() {
    only_under(&["axum"], &["src/server.rs", "src/server"]);
    only_under(&["hyper"], &["src/server.rs", "src/server", "src/replica.rs", "src/replica"]);
    only_under(&["h2::"], &["src/replica.rs", "src/replica"]);
}

#[test]
fn only_the_traces_name_opentelemetry() {
    only_under(&["opentelemetry"], &["src/traces.rs", "src/traces"]);
}

#[test]
fn only_the_server_and_the_api_types_name_utoipa() {
    let shown = ["src/task.rs", "src/task/state.rs", "src/task/replica.rs"];
    let words = [["src/api.rs", "src/api"].as_slice(), &shown].concat();
    only_under(&["utoipa"], &[words.as_slice(), &["src/server.rs", "src/server"]].concat());
}

#[test]
fn the_engine_and_the_vocabulary_use_no_runtime_clock_or_io() {
    let words =
        ["tokio", "async ", "SystemTime", "Instant", "std::fs", "std::net", "std::io", "tracing"];
    never_in(&words, &["src/engine.rs", "src/engine", "src/task.rs", "src/task"]);
}

#[test]
fn the_policy_imports_only_the_vocabulary_and_uses_no_runtime_files_or_sockets() {
    let parts = ["crate::engine", "crate::store", "crate::replica", "crate::server"];
    let io = [
        "crate::dispatcher",
        "crate::daemon",
        "tokio",
        "async ",
        "std::fs",
        "std::io",
        "Socket::",
        "tracing",
    ];
    never_in(&[parts.as_slice(), &io].concat(), &["src/policy.rs", "src/policy"]);
}

#[test]
fn the_parts_import_the_vocabulary_and_not_each_other() {
    let engine =
        ["crate::store", "crate::replica", "crate::server", "crate::dispatcher", "crate::daemon"];
    never_in(&engine, &["src/engine.rs", "src/engine", "src/task.rs", "src/task"]);
    let store =
        ["crate::engine", "crate::replica", "crate::server", "crate::dispatcher", "crate::daemon"];
    never_in(&store, &["src/store.rs", "src/store"]);
    let replica =
        ["crate::engine", "crate::store", "crate::server", "crate::dispatcher", "crate::daemon"];
    never_in(&replica, &["src/replica.rs", "src/replica"]);
    let server = ["crate::engine", "crate::store", "crate::replica", "crate::daemon"];
    never_in(&server, &["src/server.rs", "src/server"]);
    let dispatcher = ["crate::server", "crate::daemon"];
    never_in(&dispatcher, &["src/dispatcher.rs", "src/dispatcher"]);
    let traces = [
        "crate::engine",
        "crate::store",
        "crate::replica",
        "crate::server",
        "crate::dispatcher",
        "crate::daemon",
    ];
    never_in(&traces, &["src/traces.rs", "src/traces"]);
    // It is handed its HTTP client.
    never_in(&traces, &["src/notify.rs", "src/notify"]);
}

#[test]
fn what_every_part_may_import_imports_nothing() {
    never_in(
        &["crate::"],
        &["src/text.rs", "src/share.rs", "src/trusted_file.rs", "src/faults.rs", "src/lease.rs"],
    );
}

#[test]
fn access_control_uses_neither_http_nor_a_runtime() {
    let parts = ["crate::engine", "crate::store", "crate::replica", "crate::server"];
    let io = ["crate::dispatcher", "crate::daemon", "tokio", "async ", "axum", "hyper", "tracing"];
    never_in(&[parts.as_slice(), &io].concat(), &["src/access.rs", "src/access"]);
}

#[test]
fn status_codes_are_chosen_in_one_file() {
    let allowed = ["src/server/errors.rs", "src/replica/verdict.rs", "src/replica/client.rs"];
    only_under(&["StatusCode"], &allowed);
}

#[test]
fn unsafe_code_is_in_one_file() {
    for (path, text) in sources("src") {
        let barrier = path.ends_with("store/local/fsync.rs");
        assert!(barrier || !code(&text).contains("unsafe "), "{}", path.display());
    }
}

#[test]
fn tests_wait_in_one_place() {
    for (path, text) in sources("tests") {
        let allowed = path.ends_with("support.rs")
            || path.ends_with("support/replica.rs")
            || path.ends_with("layering.rs");
        assert!(allowed || !code(&text).contains("sleep("), "sleep in {}", path.display());
    }
}

#[test]
fn no_file_is_longer_than_six_hundred_lines() {
    for dir in ["src", "tests", "benches", "migrations"] {
        for (path, text) in sources(dir) {
            let lines = text.lines().count();
            assert!(lines <= 600, "{} has {lines} lines", path.display());
        }
    }
    let main = sources("src").into_iter().find(|(path, _)| path.ends_with("src/main.rs")).unwrap();
    assert!(main.1.lines().count() < 80, "main.rs");
}
