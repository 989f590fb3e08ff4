//! Access control: tokens, roles, replicas, rates, browsers, and the audit log.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use reqwest::header::{AUTHORIZATION, HOST, ORIGIN, RETRY_AFTER, WWW_AUTHENTICATE};
use reqwest::{Method, Response};
use serde_json::Value;
use tempfile::TempDir;

use crate::support::daemon::command;
use crate::support::{Daemon, Replica, client, set, wait_until};

/// A directory with a list of tokens.
pub struct List {
    dir: TempDir,
}

impl List {
    pub fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path().join("tokens")
    }

    fn args(&self) -> [String; 2] {
        ["--auth-file".to_owned(), self.path().display().to_string()]
    }

    /// Creates a token with the command for operators.
    pub fn add(&self, args: &[&str]) -> String {
        let made = command()
            .args(["token", "new", "--append"])
            .arg(self.path())
            .args(args)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let printed = String::from_utf8_lossy(&made.stderr);
        assert!(made.status.success(), "{printed}");
        let token = String::from_utf8(made.stdout).unwrap().trim().to_owned();
        assert!(
            !printed.contains(&token) && !fs::read_to_string(self.path()).unwrap().contains(&token)
        );
        token
    }

    pub async fn daemon(&self, more: &[&str]) -> Daemon {
        let args = self.args();
        let args: Vec<_> = args.iter().map(String::as_str).chain(more.iter().copied()).collect();
        Daemon::start(&args).await
    }
}

pub async fn request(daemon: &Daemon, method: Method, path: &str, token: &str) -> Response {
    let request = client().request(method, daemon.url(path));
    request.header(AUTHORIZATION, format!("Bearer {token}")).send().await.unwrap()
}

pub async fn post(daemon: &Daemon, body: &Value, token: &str) -> Response {
    let request = client().post(daemon.url("/replicate")).json(body);
    request.header(AUTHORIZATION, format!("Bearer {token}")).send().await.unwrap()
}

#[track_caller]
pub fn assert_status(answer: &Response, status: u16) {
    assert_eq!(answer.status(), status, "{answer:?}");
}

#[tokio::test]
async fn each_role_permits_its_own_requests_and_nothing_else() {
    let list = List::new();
    let gateway = list.add(&["--name", "gateway", "--role", "replicate"]);
    let grafana = list.add(&["--name", "grafana", "--role", "observe"]);
    let ann = list.add(&["--name", "ann", "--role", "operate"]);
    let both = list.add(&["--name", "both", "--role", "replicate,operate"]);
    let daemon = list.daemon(&[]).await;
    let replica = Replica::start().await;
    let body = set("k", "v", &[&replica]);
    for (token, status) in [(&gateway, 202), (&grafana, 403), (&ann, 403), (&both, 202)] {
        assert_status(&post(&daemon, &body, token).await, status);
    }
    for path in ["/metrics", "/metrics/users", "/health"] {
        for (token, status) in [(&gateway, 403), (&grafana, 200), (&ann, 200), (&both, 200)] {
            assert_status(&request(&daemon, Method::GET, path, token).await, status);
        }
    }
    let there = "/v1/tasks/1";
    for (token, status) in [(&gateway, 403), (&grafana, 403), (&ann, 404), (&both, 404)] {
        assert_status(&request(&daemon, Method::DELETE, there, token).await, status);
    }
    replica.until_holds("k", "v").await;
    let metrics = request(&daemon, Method::GET, "/metrics", &ann).await;
    let metrics: Value = metrics.json().await.unwrap();
    assert_eq!(metrics["total_replications"], 2);
}

#[tokio::test]
async fn an_idempotency_key_belongs_to_its_token() {
    let list = List::new();
    let longest = "n".repeat(64);
    let [orders, billing, other] = ["orders", "billing", &longest]
        .map(|name| list.add(&["--name", name, "--role", "replicate"]));
    let daemon = list.daemon(&[]).await;
    let replica = Replica::start().await;
    let key = "k".repeat(255);
    let write = async |token: &str, body: &Value| {
        let request = client().post(daemon.url("/replicate")).json(body).bearer_auth(token);
        let answer = request.header("Idempotency-Key", &key).send().await.unwrap();
        assert_status(&answer, 202);
        let replayed = answer.headers().contains_key("Idempotency-Replayed");
        let body: Value = answer.json().await.unwrap();
        (body["task_id"].as_str().unwrap().to_owned(), replayed)
    };
    let (order, bill) = (set("order", "v", &[&replica]), set("bill", "v", &[&replica]));
    let (first, replayed) = write(&orders, &order).await;
    assert!(!replayed);
    // The same key of another client is another task, even for the same bytes.
    let (second, replayed) = write(&billing, &order).await;
    assert!(!replayed && second != first, "{second}");
    assert_eq!(write(&orders, &order).await, (first, true));
    let (third, replayed) = write(&other, &bill).await;
    assert!(!replayed && third != second, "{third}");
}

#[tokio::test]
async fn without_a_valid_token_only_the_health_probes_are_answered() {
    let list = List::new();
    let token = list.add(&["--name", "a", "--role", "operate,replicate"]);
    let daemon = list.daemon(&[]).await;
    let replica = Replica::start().await;
    for path in ["/livez", "/readyz"] {
        assert_status(&client().get(daemon.url(path)).send().await.unwrap(), 200);
    }
    let cut = &token[..token.len() - 1];
    let foreign = List::new().add(&["--name", "a", "--role", "operate,replicate"]);
    for wrong in ["", "x", cut, &foreign, &token.to_uppercase(), "rpl_"] {
        for path in ["/metrics", "/health", "/nothing", "/replicate"] {
            let answer = request(&daemon, Method::GET, path, wrong).await;
            assert_status(&answer, 401);
            assert_eq!(answer.headers()[WWW_AUTHENTICATE], "Bearer");
            assert!(answer.json::<Value>().await.unwrap()["error"].is_string());
        }
        assert_status(&post(&daemon, &set("k", "v", &[&replica]), wrong).await, 401);
    }
    assert_status(&client().get(daemon.url("/metrics")).send().await.unwrap(), 401);
    assert_status(
        &client().get(daemon.url(&format!("/metrics?token={token}"))).send().await.unwrap(),
        401,
    );
    let basic = client().get(daemon.url("/metrics")).basic_auth("a", Some(&token));
    assert_status(&basic.send().await.unwrap(), 401);
    let cookie = client().get(daemon.url("/metrics")).header("cookie", format!("token={token}"));
    assert_status(&cookie.send().await.unwrap(), 401);
    let twice = client().get(daemon.url("/metrics")).bearer_auth(&token).bearer_auth(&token);
    assert_status(&twice.send().await.unwrap(), 401);
    assert_status(&request(&daemon, Method::GET, "/metrics", &token).await, 200);
    assert_eq!(replica.seen().len(), 0);
}

#[tokio::test]
async fn a_token_that_is_limited_to_some_replicas_cannot_name_others() {
    let (own, other) = (Replica::start().await, Replica::start().await);
    let list = List::new();
    let token = list.add(&["--name", "a", "--role", "replicate", "--replica", &own.url()]);
    let daemon = list.daemon(&[]).await;
    assert_status(&post(&daemon, &set("k", "v", &[&own]), &token).await, 202);
    for replicas in [&[&other][..], &[&own, &other]] {
        let answer = post(&daemon, &set("k", "w", replicas), &token).await;
        assert_status(&answer, 403);
        let answer: Value = answer.json().await.unwrap();
        assert!(answer["error"].as_str().unwrap().contains(&other.url()), "{answer}");
    }
    own.until_holds("k", "v").await;
    assert_eq!(other.seen().len(), 0);
}

#[tokio::test]
async fn a_token_beyond_its_rate_gets_a_429_with_retry_after() {
    let list = List::new();
    let slow = list.add(&["--name", "slow", "--role", "observe", "--rate", "1"]);
    let quick = list.add(&["--name", "quick", "--role", "observe"]);
    let daemon = list.daemon(&[]).await;
    let mut refused = None;
    for _ in 0..50 {
        let answer = request(&daemon, Method::GET, "/health", &slow).await;
        if answer.status() == 429 {
            refused = Some(answer);
            break;
        }
        assert_status(&answer, 200);
    }
    let refused = refused.expect("50 requests at once are more than one a second");
    assert!(refused.headers()[RETRY_AFTER].to_str().unwrap().parse::<u64>().unwrap() >= 1);
    assert_status(&request(&daemon, Method::GET, "/health", &quick).await, 200);
    wait_until("the token is accepted again", || async {
        let answer = request(&daemon, Method::GET, "/health", &slow).await;
        (answer.status() == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_token_list_is_reloaded_on_sighup_and_an_invalid_one_changes_nothing() {
    let list = List::new();
    let first = list.add(&["--name", "first", "--role", "observe"]);
    let daemon = list.daemon(&[]).await;
    let status = async |token: &str| request(&daemon, Method::GET, "/health", token).await.status();
    let good = fs::read_to_string(list.path()).unwrap();

    fs::write(list.path(), format!("{good}second observe\n")).unwrap();
    daemon.signal("-HUP");
    daemon.until_logged("the tokens are not reloaded and stay as they were").await;
    daemon.until_logged("line 2").await;
    assert_eq!(status(&first).await, 200);

    fs::write(list.path(), "").unwrap();
    let second = list.add(&["--name", "second", "--role", "observe"]);
    daemon.signal("-HUP");
    wait_until("the new token is accepted", || async {
        (status(&second).await == 200).then_some(())
    })
    .await;
    assert_eq!(status(&first).await, 401);

    fs::remove_file(list.path()).unwrap();
    daemon.signal("-HUP");
    daemon.until_logged("cannot read the token list").await;
    assert_eq!(status(&second).await, 200);
}

#[tokio::test]
async fn the_event_stream_of_a_revoked_token_ends_at_the_reload() {
    let list = List::new();
    let kept = list.add(&["--name", "kept", "--role", "observe"]);
    let lines = fs::read_to_string(list.path()).unwrap();
    let first = list.add(&["--name", "first", "--role", "observe"]);
    let daemon = list.daemon(&[]).await;
    let mut stream = request(&daemon, Method::GET, "/v1/events", &first).await;
    let mut other = request(&daemon, Method::GET, "/v1/events?types=figures", &kept).await;
    assert_status(&stream, 200);
    fs::write(list.path(), lines).unwrap();
    daemon.signal("-HUP");
    // It would go on for ever.
    while let Ok(Some(_)) = stream.chunk().await {}
    assert_status(&request(&daemon, Method::GET, "/v1/events", &first).await, 401);
    for _ in 0..2 {
        assert!(other.chunk().await.unwrap().is_some(), "the other token is still valid");
    }
}

async fn does_not_start(args: &[&str]) -> (Option<i32>, String) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    let ended = Daemon::try_start_on(&path, args, &[]).await.err().expect("it should not start");
    (ended.code(), crate::support::daemon::log(&path))
}

#[tokio::test]
async fn a_non_loopback_address_needs_tokens_or_insecure() {
    let (code, printed) = does_not_start(&["--bind", "0.0.0.0"]).await;
    assert_eq!(code, Some(2));
    assert!(printed.contains("--auth-file") && printed.contains("--insecure"), "{printed}");
    let daemon = Daemon::start(&["--bind", "0.0.0.0", "--insecure"]).await;
    daemon.until_logged("authentication is disabled").await;
    let list = List::new();
    list.add(&["--name", "a", "--role", "observe"]);
    let daemon = list.daemon(&["--bind", "0.0.0.0"]).await;
    assert!(!daemon.log().contains("authentication is disabled"));
    assert_status(&client().get(daemon.url("/metrics")).send().await.unwrap(), 401);
}

#[tokio::test]
async fn a_token_list_that_cannot_be_trusted_prevents_the_start() {
    use std::os::unix::fs::PermissionsExt;
    let list = List::new();
    let args = list.args();
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let (code, printed) = does_not_start(&args).await;
    assert_eq!(code, Some(1));
    assert!(printed.contains("cannot read the token list"), "{printed}");
    fs::write(list.path(), "# empty\n").unwrap();
    assert!(does_not_start(&args).await.1.contains("contains no token"));
    let token = list.add(&["--name", "a", "--role", "observe"]);
    let mode = |mode| fs::set_permissions(list.path(), fs::Permissions::from_mode(mode)).unwrap();
    for open in [0o666, 0o620] {
        mode(open);
        let printed = does_not_start(&args).await.1;
        assert!(printed.contains("can be written by others than its owner"), "{printed}");
    }
    mode(0o600);
    fs::write(list.path(), format!("a observe {token}\n")).unwrap();
    let printed = does_not_start(&args).await.1;
    assert!(
        printed.contains("must contain only its hash") && !printed.contains(&token),
        "{printed}"
    );
}

#[tokio::test]
async fn a_page_of_another_site_can_neither_write_nor_read_on_loopback() {
    let daemon = Daemon::start(&[]).await;
    let replica = Replica::start().await;
    let body = set("k", "v", &[&replica]).to_string();
    let port = daemon.address().rsplit(':').next().unwrap().to_owned();
    let post = |headers: &[(reqwest::header::HeaderName, &str)]| {
        let mut request = client().post(daemon.url("/replicate")).body(body.clone());
        // A form can send this without a preflight request.
        request = request.header("content-type", "text/plain");
        for (name, value) in headers {
            request = request.header(name, *value);
        }
        request.send()
    };
    let rebound = format!("evil.example:{port}");
    let origin = format!("http://{rebound}");
    for headers in [
        &[(ORIGIN, "http://evil.example")][..],
        &[(ORIGIN, "null")],
        &[(ORIGIN, "http://127.0.0.1:1")],
        &[(HOST, rebound.as_str())],
        &[(HOST, rebound.as_str()), (ORIGIN, origin.as_str())],
    ] {
        let answer = post(headers).await.unwrap();
        assert_status(&answer, 403);
        assert!(answer.headers().keys().all(|name| !name.as_str().starts_with("access-control")));
    }
    let read = client().get(daemon.url("/metrics")).header(HOST, &rebound).send().await.unwrap();
    assert_status(&read, 403);
    let preflight = client()
        .request(Method::OPTIONS, daemon.url("/replicate"))
        .header(ORIGIN, "http://evil.example")
        .header("access-control-request-method", "POST");
    let preflight = preflight.send().await.unwrap();
    assert_status(&preflight, 403);
    assert!(preflight.headers().keys().all(|name| !name.as_str().starts_with("access-control")));
    assert_eq!(daemon.metrics().await["total_replications"], 0);
    let own = format!("http://{}", daemon.address());
    assert_status(&post(&[(ORIGIN, &own)]).await.unwrap(), 202);
    assert_status(&post(&[(HOST, &format!("localhost:{port}"))]).await.unwrap(), 202);
    assert_status(&post(&[]).await.unwrap(), 202);

    let named = Daemon::start(&["--host-name", "a.internal,b.internal"]).await;
    let named_get =
        |host: &'static str| client().get(named.url("/metrics")).header(HOST, host).send();
    assert_status(&named_get("b.internal:1").await.unwrap(), 200);
    assert_status(&named_get("c.internal").await.unwrap(), 403);
}

#[tokio::test]
async fn a_page_of_another_site_needs_a_token() {
    let list = List::new();
    let token = list.add(&["--name", "a", "--role", "replicate"]);
    let daemon = list.daemon(&[]).await;
    let replica = Replica::start().await;
    let body = set("k", "v", &[&replica]);
    let post = client().post(daemon.url("/replicate")).header(ORIGIN, "http://evil.example");
    let answer = post.json(&body).send().await.unwrap();
    assert_status(&answer, 401);
    assert!(answer.headers().keys().all(|name| !name.as_str().starts_with("access-control")));
    // A request with a token does not come from a foreign page, so any Host is accepted.
    let post =
        client().post(daemon.url("/replicate")).header(HOST, "some.name").bearer_auth(&token);
    assert_status(&post.json(&body).send().await.unwrap(), 202);
}

fn audit(log: &str) -> Vec<Value> {
    let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).expect(line));
    lines.filter(|line| line["target"] == "audit").collect()
}

#[tokio::test]
async fn the_actions_of_operators_are_in_the_audit_log_with_their_names() {
    let list = List::new();
    let ann = list.add(&["--name", "ann@desk", "--role", "operate"]);
    let bob = list.add(&["--name", "bob", "--role", "observe"]);
    let mut daemon = list.daemon(&["--log-format", "json"]).await;
    let path = "/v1/tasks/17";
    assert_status(&request(&daemon, Method::DELETE, path, &ann).await, 404);
    assert_status(&request(&daemon, Method::DELETE, path, &bob).await, 403);
    assert_status(&request(&daemon, Method::GET, "/health", &bob).await, 200);
    assert!(daemon.terminate().await.success());
    let lines = audit(&daemon.log());
    let [failed, refused] = lines.as_slice() else { panic!("{lines:?}") };
    for (line, who, status, message) in [
        (failed, "ann@desk", 404, "a request failed"),
        (refused, "bob", 403, "a request was refused"),
    ] {
        assert_eq!((&line["who"], &line["status"]), (&who.into(), &status.into()), "{line}");
        assert_eq!(line["message"], message);
        assert_eq!((&line["method"], &line["path"]), (&"DELETE".into(), &path.into()), "{line}");
        assert_eq!(line["peer"], "127.0.0.1");
    }
}

/// An anonymous 405 was "an operator's request", and there was no limit on such lines.
#[tokio::test]
async fn requests_that_fail_are_logged_as_failed_with_a_limit_and_with_short_fields() {
    let mut daemon = Daemon::start(&["--log-format", "json"]).await;
    let send = async |method: Method| {
        let answer = client().request(method, daemon.url("/metrics")).send().await.unwrap();
        assert_status(&answer, 405);
    };
    send(Method::from_bytes("M".repeat(10_000).as_bytes()).unwrap()).await;
    for _ in 0..200 {
        send(Method::POST).await;
    }
    assert!(daemon.terminate().await.success());
    let lines = audit(&daemon.log());
    assert!(lines.len() < 100, "{} lines", lines.len());
    assert_eq!(lines[0]["method"], "M".repeat(16));
    for line in &lines {
        assert_eq!((&line["message"], &line["who"]), (&"a request failed".into(), &"-".into()));
    }
}

/// Sends a secret in every field that could contain one.
#[tokio::test]
async fn no_secret_is_in_a_log_an_error_or_a_metric() {
    let list = List::new();
    let token = list.add(&["--name", "a", "--role", "replicate,operate"]);
    let args =
        ["--log", "trace,hyper=info,sled=info", "--log-format", "json", "--retry-base", "10ms"];
    let mut daemon = list.daemon(&args).await;
    let replica = Replica::start().await;
    replica.behave(|_| crate::support::Behaviour::Answer(500, "", "no"));
    let secret = "s3cr3t-s3cr3t";
    let mut printed = String::new();
    let mut bodies = vec![set(&format!("key-{secret}"), secret, &[&replica])];
    for field in
        ["key", "value", "value_encoding", "operation", "ttl", "consistency", "replica_nodes"]
    {
        let mut body = set("k", secret, &[&replica]);
        body[field] = serde_json::json!({ "object": secret });
        bodies.push(body);
    }
    let mut userinfo = set("k", secret, &[&replica]);
    userinfo["replica_nodes"] = serde_json::json!([format!("http://user:{secret}@h/")]);
    for body in &bodies {
        printed += &post(&daemon, body, &token).await.text().await.unwrap();
    }
    let refused = post(&daemon, &userinfo, &token).await;
    assert_status(&refused, 400);
    let refused = refused.text().await.unwrap();
    for wrong in [format!("{token}{secret}"), secret.to_owned()] {
        printed += &post(&daemon, &bodies[0], &wrong).await.text().await.unwrap();
    }
    for path in [format!("/v1/replicas/http%3A%2F%2Fu:{secret}%40h/pause"), format!("/{secret}@h")]
    {
        let answer = request(&daemon, Method::POST, &path, &token).await;
        assert!(answer.status().is_client_error());
        printed += &answer.text().await.unwrap();
    }
    for path in ["/metrics", "/metrics/users", "/health"] {
        let answer = request(&daemon, Method::GET, path, &token).await;
        printed += &answer.text().await.unwrap();
        let request = client().get(daemon.url(path)).bearer_auth(&token);
        let answer = request.header("accept", "text/plain").send().await.unwrap();
        printed += &answer.text().await.unwrap();
    }
    wait_until("the delivery is given up", || async {
        let figures: Value =
            request(&daemon, Method::GET, "/metrics", &token).await.json().await.unwrap();
        (figures["permanent_failures"] == 1).then_some(())
    })
    .await;
    assert!(daemon.terminate().await.success());
    let log = daemon.log();
    assert!(log.contains("\"audit\""), "{log}");
    for (place, text) in [("an answer", &printed), ("the log", &log), ("the 400", &refused)] {
        for hidden in [secret, &token, &token[17..81]] {
            assert!(!text.contains(hidden), "{hidden} in {place}: {text}");
        }
    }
    let kept = fs::read_to_string(list.path()).unwrap();
    assert!(!kept.contains(&token[17..81]), "{}", Path::new("tokens").display());
}

/// A wide comma in a host becomes a plain comma, which would change the list or make it invalid.
#[test]
fn no_token_is_created_for_an_address_that_the_list_cannot_contain() {
    let dir = tempfile::tempdir().unwrap();
    let list = dir.path().join("tokens");
    let mut make = command();
    make.args(["token", "new", "--name", "gw", "--role", "replicate", "--append"]).arg(&list);
    let made = make.args(["--replica", "http://a，b"]).output().unwrap();
    let printed = String::from_utf8_lossy(&made.stderr);
    assert!(!made.status.success() && printed.contains("must not contain a comma"), "{printed}");
    assert!(!list.exists() && made.stdout.is_empty());
}

#[test]
fn no_token_is_appended_that_would_make_the_list_invalid() {
    let list = List::new();
    list.add(&["--name", "gw", "--role", "replicate"]);
    let before = fs::read_to_string(list.path()).unwrap();
    let add = |name| {
        let mut make = command();
        make.args(["token", "new", "--role", "observe", "--name", name, "--append"]);
        make.arg(list.path()).output().unwrap()
    };
    let refused = |name, why: &str| {
        let made = add(name);
        let printed = String::from_utf8_lossy(&made.stderr);
        assert!(!made.status.success() && printed.contains(why), "{printed}");
        assert!(made.stdout.is_empty());
    };
    refused("gw", "the name \"gw\" is used twice");
    assert_eq!(fs::read_to_string(list.path()).unwrap(), before);

    // Nothing is appended to an invalid list either: the printed token would not work.
    let spoilt = format!("{before}a line written by hand");
    fs::write(list.path(), &spoilt).unwrap();
    refused("eye", "line 2");
    assert_eq!(fs::read_to_string(list.path()).unwrap(), spoilt);

    // A list without a line feed at its end is valid.
    fs::write(list.path(), before.trim_end()).unwrap();
    list.add(&["--name", "eye", "--role", "observe"]);
    let lines = fs::read_to_string(list.path()).unwrap();
    assert!(lines.starts_with(&before) && lines.lines().count() == 2, "{lines}");
}
