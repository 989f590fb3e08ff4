//! TLS and tokens toward replicas.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::support::tls::{Authority, Issued, front};
use crate::support::{Daemon, Replica, daemon, set};

/// Logs every attempt and retries long enough for a corrected file to take effect.
const ARGS: [&str; 6] = [
    "--log",
    "info,replicator::daemon::attempt=debug",
    "--retry-base",
    "20ms",
    "--max-retries",
    "100000",
];

/// The files for the flags of a daemon.
struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, text: &str, mode: u32) -> String {
        let path = self.path(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn data(&self) -> PathBuf {
        self.path("data")
    }

    fn identity(&self, issued: &Issued) -> (String, String) {
        (
            self.write("cert.pem", &issued.certificate, 0o644),
            self.write("key.pem", &issued.key, 0o600),
        )
    }
}

/// A replica behind TLS and its address.
async fn behind(server: &Issued, clients: Option<&Authority>) -> (Replica, String) {
    let replica = Replica::start().await;
    let to = replica.url().trim_start_matches("http://").parse().unwrap();
    let front = front(to, server, clients).await;
    (replica, format!("https://{front}"))
}

fn to(node: &str, value: &str) -> Value {
    json!({ "key": "k", "value": value, "value_encoding": "raw", "operation": "SET", "replica_nodes": [node] })
}

async fn start(data: &Path, args: &[&str]) -> Daemon {
    Daemon::start_on(data, &[&ARGS[..], args].concat()).await
}

/// Asserts that the start fails, and returns the error.
async fn refused(data: &Path, args: &[&str]) -> String {
    let status = Daemon::try_start_on(data, args, &[]).await.err().expect("it does not start");
    assert_eq!(status.code(), Some(1));
    daemon::log(data)
}

#[tokio::test]
async fn a_replica_with_a_certificate_of_the_given_authority_receives_writes() {
    let (files, ours) = (Files::new(), Authority::new("ours"));
    let ca = files.write("ca.pem", &ours.pem(), 0o644);
    let (replica, node) = behind(&ours.issue("127.0.0.1"), None).await;
    let daemon = start(&files.data(), &["--replica-ca", &ca]).await;
    daemon.accept(&to(&node, "v")).await;
    replica.until_holds("k", "v").await;
}

#[tokio::test]
async fn without_replica_ca_the_certificates_of_the_system_decide() {
    let (files, ours) = (Files::new(), Authority::new("ours"));
    let (replica, node) = behind(&ours.issue("127.0.0.1"), None).await;
    let daemon = start(&files.data(), &[]).await;
    daemon.accept(&to(&node, "v")).await;
    daemon.until_logged("attempt failed").await;
    assert!(replica.seen().is_empty());
}

#[tokio::test]
async fn invalid_certificates_are_distinguished_and_nothing_is_sent() {
    let (files, ours) = (Files::new(), Authority::new("ours"));
    let ca = files.write("ca.pem", &ours.pem(), 0o644);
    let daemon = start(&files.data(), &["--replica-ca", &ca]).await;
    for (server, clients, said) in [
        (ours.issue("other.example"), None, "certificate is for another name"),
        (ours.issue_expired("127.0.0.1"), None, "certificate has expired"),
        (Authority::new("x").issue("127.0.0.1"), None, "an authority that is not trusted"),
        (ours.issue_authority("127.0.0.1"), None, "is a CA certificate, not a server certificate"),
        (ours.issue("127.0.0.1"), Some(&ours), "requires a client certificate"),
    ] {
        let (replica, node) = behind(&server, clients).await;
        daemon.accept(&to(&node, "v")).await;
        daemon.until_logged(said).await;
        assert!(replica.seen().is_empty(), "{said}");
    }
    assert_eq!(daemon.metrics().await["permanent_failures"], 0, "every delivery is retried");
}

/// An operator sees the error, corrects the file and sends SIGHUP.
#[tokio::test]
async fn waiting_writes_are_delivered_after_corrected_certificates_are_reloaded() {
    let (files, ours, wrong) = (Files::new(), Authority::new("ours"), Authority::new("wrong"));
    let ca = files.write("ca.pem", &wrong.pem(), 0o644);
    let (cert, key) = files.identity(&wrong.issue("replicator"));
    let (replica, node) = behind(&ours.issue("127.0.0.1"), Some(&ours)).await;
    let args = ["--replica-ca", &ca, "--replica-cert", &cert, "--replica-key", &key];
    let daemon = start(&files.data(), &args).await;
    daemon.accept(&to(&node, "v")).await;
    daemon.until_logged("an authority that is not trusted").await;

    files.write("ca.pem", "no certificate", 0o644);
    daemon.signal("-HUP");
    daemon.until_logged("the previous content stays in force").await;

    files.write("ca.pem", &ours.pem(), 0o644);
    daemon.signal("-HUP");
    daemon.until_logged("client certificate (--replica-cert)").await;
    assert!(replica.seen().is_empty());

    files.identity(&ours.issue("replicator"));
    daemon.signal("-HUP");
    replica.until_holds("k", "v").await;
    let log = daemon.log();
    assert!(!log.contains("PRIVATE KEY"), "{log}");
}

#[tokio::test]
async fn tokens_are_sent_to_their_replicas_and_never_logged() {
    let files = Files::new();
    let (first, other, third) =
        (Replica::start().await, Replica::start().await, Replica::start().await);
    let text = format!("{} secret-one\n{} secret-two\n", first.url(), other.url());
    let tokens = files.write("tokens", &text, 0o600);
    let args = ["--replica-token-file", &tokens, "--log", "trace"];
    let daemon = Daemon::start_on(&files.data(), &args).await;
    daemon.accept(&set("k", "v", &[&first, &other, &third])).await;
    for (replica, token) in
        [(&first, Some("Bearer secret-one")), (&other, Some("Bearer secret-two")), (&third, None)]
    {
        replica.until_holds("k", "v").await;
        let seen = replica.seen();
        assert_eq!(seen[0].headers.get("authorization").map(String::as_str), token);
    }
    files.write("tokens", &text.replace("secret-one", "secret-three"), 0o400);
    daemon.signal("-HUP");
    daemon.until_logged("connections to replicas are renewed").await;
    daemon.accept(&set("k2", "v", &[&first])).await;
    first.until_holds("k2", "v").await;
    assert_eq!(first.seen().last().unwrap().headers["authorization"], "Bearer secret-three");
    assert!(!daemon.log().contains("secret-"), "{}", daemon.log());
}

#[tokio::test]
async fn a_token_for_all_replicas_needs_a_list_of_them() {
    let (files, replica) = (Files::new(), Replica::start().await);
    let tokens = files.write("tokens", "* secret\n", 0o600);
    let log = refused(&files.data(), &["--replica-token-file", &tokens]).await;
    assert!(log.contains("has a token for *") && log.contains("--allow-replica"), "{log}");

    let url = replica.url();
    let args = ["--replica-token-file", &tokens, "--allow-replica", &url];
    let daemon = Daemon::start_on(&files.data(), &args).await;
    daemon.accept(&set("k", "v", &[&replica])).await;
    replica.until_holds("k", "v").await;
    assert_eq!(replica.seen()[0].headers["authorization"], "Bearer secret");
}

#[tokio::test]
async fn readable_secrets_and_invalid_files_prevent_the_start_with_a_sentence() {
    let (files, ours) = (Files::new(), Authority::new("ours"));
    let issued = ours.issue("replicator");
    let (cert, _) = files.identity(&issued);
    let open_key = files.write("open.pem", &issued.key, 0o640);
    let other_key = files.write("other.pem", &ours.issue("other").key, 0o600);
    let open = files.write("open", "http://a secret", 0o644);
    let bad = files.write("bad", "http://a secret\nsecret bbb\n", 0o600);
    let shared = files.write("shared", &ours.pem(), 0o664);
    let missing = files.path("missing");
    let missing = missing.to_str().unwrap();
    let open_said = "is open to others than its owner (mode 0644): chmod 600 it";
    for (args, said) in [
        (vec!["--replica-token-file", &open], open_said),
        (
            vec!["--replica-token-file", &bad],
            "line 2: the address of the replica must begin with http",
        ),
        (vec!["--replica-token-file", missing], &format!("cannot read {missing}")),
        (vec!["--replica-cert", &cert, "--replica-key", &open_key], "(mode 0640)"),
        (vec!["--replica-cert", &cert, "--replica-key", &other_key], "cannot be used"),
        (vec!["--replica-cert", &cert, "--replica-key", &bad], "contains no readable private key"),
        (vec!["--replica-ca", &other_key], "contains no certificate"),
        (vec!["--replica-ca", &shared], "can be written by others than its owner (mode 0664)"),
        (vec!["--allow-replica-file", &shared], "can be written by others than its owner"),
        (vec!["--replica-cert", &shared, "--replica-key", &other_key], "can be written by others"),
        (vec!["--tls-cert", &cert, "--tls-key", &open_key], "(mode 0640)"),
        (vec!["--tls-cert", &shared, "--tls-key", &other_key], "can be written by others"),
    ] {
        let log = refused(&files.data(), &args).await;
        assert!(log.contains(said), "{args:?}: {log}");
        assert!(!log.contains("secret"), "{log}");
    }
}

#[tokio::test]
async fn a_systemd_credential_that_looks_group_readable_is_accepted() {
    let files = Files::new();
    let token = files.write("token", "http://a secret", 0o440);
    let dir = Path::new(&token).parent().unwrap().to_str().unwrap().to_owned();
    let args = ["--replica-token-file", &token];
    for (dir, taken) in [(dir.as_str(), true), ("/run/credentials", false), ("", false)] {
        let env = [("CREDENTIALS_DIRECTORY", dir)];
        let started = Daemon::try_start_on(&files.data(), &args, &env).await;
        assert_eq!(started.is_ok(), taken, "{dir:?}");
    }
    let open = files.write("open", "http://a secret", 0o444);
    let (args, env) = (["--replica-token-file", &open], [("CREDENTIALS_DIRECTORY", dir.as_str())]);
    assert!(Daemon::try_start_on(&files.data(), &args, &env).await.is_err());
}
