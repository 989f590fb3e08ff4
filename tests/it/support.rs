//! Shared by the tests: the daemon as a process, a replica that follows a script, a client.

use std::path::Path;
use std::time::{Duration, Instant};

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

pub mod browser;
pub mod daemon;
pub mod oracle;
pub mod ports;
pub mod replica;
pub mod servers;
pub mod tls;

pub use daemon::Daemon;
pub use replica::{Behaviour, Replica};

/// Limit of every wait. Long, because the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// The interval of polls.
const POLL: Duration = Duration::from_millis(5);

/// Waits until `done` returns a value; panics with `what` after [`PATIENCE`].
pub async fn wait_until<T, F>(what: &str, mut done: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    let value = within(PATIENCE, &mut done).await;
    value.unwrap_or_else(|| panic!("not within {PATIENCE:?}: {what}"))
}

/// Waits until `done` returns a value, at most for `patience`.
pub async fn within<T, F>(patience: Duration, mut done: impl FnMut() -> F) -> Option<T>
where
    F: Future<Output = Option<T>>,
{
    let deadline = Instant::now() + patience;
    loop {
        if let Some(value) = done().await {
            return Some(value);
        }
        if Instant::now() > deadline {
            return None;
        }
        tokio::time::sleep(POLL).await;
    }
}

/// A client without proxies and redirects, for plain HTTP: it does not load the certificates of the
/// system, which takes long.
pub fn client() -> reqwest::Client {
    replicator::testing::install_crypto();
    reqwest::Client::builder()
        .no_proxy()
        .tls_certs_only([])
        // Well before the daemon closes the connection: a request on a closing one gets no answer.
        .pool_idle_timeout(Duration::from_secs(5))
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .unwrap()
}

/// The body of a SET.
pub fn set(key: &str, value: &str, replicas: &[&Replica]) -> serde_json::Value {
    let nodes: Vec<_> = replicas.iter().map(|replica| replica.url()).collect();
    serde_json::json!({
        "key": key, "value": value, "value_encoding": "raw", "operation": "SET", "replica_nodes": nodes,
    })
}

/// The body of a strong SET.
pub fn strong(key: &str, value: &str, replicas: &[&Replica]) -> serde_json::Value {
    let mut body = set(key, value, replicas);
    body["consistency"] = "strong".into();
    body
}

/// The body of a DELETE.
pub fn delete(key: &str, replicas: &[&Replica]) -> serde_json::Value {
    let mut body = set(key, "", replicas);
    body["operation"] = "DELETE".into();
    body["value"] = serde_json::Value::Null;
    body
}

/// The path of a replica in the API.
pub fn path_of(replica: &Replica) -> String {
    format!("/v1/replicas/{}", encoded(&replica.url()))
}

/// Encodes a text as a path segment or as the value of a parameter.
pub fn encoded(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

/// Copies the content of a directory.
pub fn copy(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let to = to.join(path.file_name().unwrap());
        if path.is_dir() {
            std::fs::create_dir(&to).unwrap();
            copy(&path, &to);
        } else {
            std::fs::copy(&path, &to).unwrap();
        }
    }
}
