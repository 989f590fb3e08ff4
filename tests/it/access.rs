//! Who may ask: tokens, roles, replicas, rates, browsers; and what the audit log says of it.

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
struct List {
    dir: TempDir,
}

impl List {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path().join("tokens")
    }

    fn args(&self) -> [String; 2] {
        ["--auth-file".to_owned(), self.path().display().to_string()]
    }

    /// Makes a token as an operator would.
    fn add(&self, args: &[&str]) -> String {
        let made = command()
            .args(["token", "new", "--append"])
            .arg(self.path())
            .args(args)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&made.stderr);
        assert!(made.status.success(), "{said}");
        let token = String::from_utf8(made.stdout).unwrap().trim().to_owned();
        assert!(
            !said.contains(&token) && !fs::read_to_string(self.path()).unwrap().contains(&token)
        );
        token
    }

    async fn daemon(&self, more: &[&str]) -> Daemon {
        let args = self.args();
        let args: Vec<_> = args.iter().map(String::as_str).chain(more.iter().copied()).collect();
        Daemon::start(&args).await
    }
}

async fn ask(daemon: &Daemon, method: Method, path: &str, token: &str) -> Response {
    let request = client().request(method, daemon.url(path));
    request.header(AUTHORIZATION, format!("Bearer {token}")).send().await.unwrap()
}

async fn post(daemon: &Daemon, body: &Value, token: &str) -> Response {
    let request = client().post(daemon.url("/replicate")).json(body);
    request.header(AUTHORIZATION, format!("Bearer {token}")).send().await.unwrap()
}

#[track_caller]
fn is(answer: &Response, status: u16) {
    assert_eq!(answer.status(), status, "{answer:?}");
}

#[tokio::test]
async fn each_role_may_do_what_is_its_own_and_nothing_else() {
    let list = List::new();
    let gateway = list.add(&["--name", "gateway", "--role", "replicate"]);
    let grafana = list.add(&["--name", "grafana", "--role", "observe"]);
    let ann = list.add(&["--name", "ann", "--role", "operate"]);
    let both = list.add(&["--name", "both", "--role", "replicate,operate"]);
    let daemon = list.daemon(&[]).await;
    let replica = Replica::start().await;
    let body = set("k", "v", &[&replica]);
    for (token, status) in [(&gateway, 202), (&grafana, 403), (&ann, 403), (&both, 202)] {
        is(&post(&daemon, &body, token).await, status);
    }
    for path in ["/metrics", "/metrics/users", "/health"] {
        for (token, status) in [(&gateway, 403), (&grafana, 200), (&ann, 200), (&both, 200)] {
            is(&ask(&daemon, Method::GET, path, token).await, status);
        }
    }
    let there = "/v1/tasks/1";
    for (token, status) in [(&gateway, 403), (&grafana, 403), (&ann, 404), (&both, 404)] {
        is(&ask(&daemon, Method::DELETE, there, token).await, status);
    }
    replica.until_holds("k", "v").await;
    let metrics = ask(&daemon, Method::GET, "/metrics", &ann).await;
    let metrics: Value = metrics.json().await.unwrap();
    assert_eq!(metrics["total_replications"], 2);
}

#[tokio::test]
async fn the_idempotency_keys_of_a_token_are_its_own() {
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
        is(&answer, 202);
        let replayed = answer.headers().contains_key("Idempotency-Replayed");
        let body: Value = answer.json().await.unwrap();
        (body["task_id"].as_str().unwrap().to_owned(), replayed)
    };
    let (order, bill) = (set("order", "v", &[&replica]), set("bill", "v", &[&replica]));
    let (first, replayed) = write(&orders, &order).await;
    assert!(!replayed);
    // Neither another write under the same key nor the same bytes are the other client's task.
    let (second, replayed) = write(&billing, &order).await;
    assert!(!replayed && second != first, "{second}");
    assert_eq!(write(&orders, &order).await, (first, true));
    let (third, replayed) = write(&other, &bill).await;
    assert!(!replayed && third != second, "{third}");
}

#[tokio::test]
async fn without_a_good_token_there_is_nothing_but_the_probes() {
    let list = List::new();
    let token = list.add(&["--name", "a", "--role", "operate,replicate"]);
    let daemon = list.daemon(&[]).await;
    let replica = Replica::start().await;
    for path in ["/livez", "/readyz"] {
        is(&client().get(daemon.url(path)).send().await.unwrap(), 200);
    }
    let cut = &token[..token.len() - 1];
    let foreign = List::new().add(&["--name", "a", "--role", "operate,replicate"]);
    for wrong in ["", "x", cut, &foreign, &token.to_uppercase(), "rpl_"] {
        for path in ["/metrics", "/health", "/nothing", "/replicate"] {
            let answer = ask(&daemon, Method::GET, path, wrong).await;
            is(&answer, 401);
            assert_eq!(answer.headers()[WWW_AUTHENTICATE], "Bearer");
            assert!(answer.json::<Value>().await.unwrap()["error"].is_string());
        }
        is(&post(&daemon, &set("k", "v", &[&replica]), wrong).await, 401);
    }
    is(&client().get(daemon.url("/metrics")).send().await.unwrap(), 401);
    is(&client().get(daemon.url(&format!("/metrics?token={token}"))).send().await.unwrap(), 401);
    let basic = client().get(daemon.url("/metrics")).basic_auth("a", Some(&token));
    is(&basic.send().await.unwrap(), 401);
    let cookie = client().get(daemon.url("/metrics")).header("cookie", format!("token={token}"));
    is(&cookie.send().await.unwrap(), 401);
    let twice = client().get(daemon.url("/metrics")).bearer_auth(&token).bearer_auth(&token);
    is(&twice.send().await.unwrap(), 401);
    is(&ask(&daemon, Method::GET, "/metrics", &token).await, 200);
    assert_eq!(replica.seen().len(), 0);
}

#[tokio::test]
async fn a_token_for_some_replicas_names_no_others() {
    let (own, other) = (Replica::start().await, Replica::start().await);
    let list = List::new();
    let token = list.add(&["--name", "a", "--role", "replicate", "--replica", &own.url()]);
    let daemon = list.daemon(&[]).await;
    is(&post(&daemon, &set("k", "v", &[&own]), &token).await, 202);
    for replicas in [&[&other][..], &[&own, &other]] {
        let answer = post(&daemon, &set("k", "w", replicas), &token).await;
        is(&answer, 403);
        let answer: Value = answer.json().await.unwrap();
        assert!(answer["error"].as_str().unwrap().contains(&other.url()), "{answer}");
    }
    own.until_holds("k", "v").await;
    assert_eq!(other.seen().len(), 0);
}

#[tokio::test]
async fn a_token_with_a_rate_is_told_when_to_come_again() {
    let list = List::new();
    let slow = list.add(&["--name", "slow", "--role", "observe", "--rate", "1"]);
    let quick = list.add(&["--name", "quick", "--role", "observe"]);
    let daemon = list.daemon(&[]).await;
    let mut refused = None;
    for _ in 0..50 {
        let answer = ask(&daemon, Method::GET, "/health", &slow).await;
        if answer.status() == 429 {
            refused = Some(answer);
            break;
        }
        is(&answer, 200);
    }
    let refused = refused.expect("50 requests at once are more than one a second");
    assert!(refused.headers()[RETRY_AFTER].to_str().unwrap().parse::<u64>().unwrap() >= 1);
    is(&ask(&daemon, Method::GET, "/health", &quick).await, 200);
    wait_until("the token is good again", || async {
        let answer = ask(&daemon, Method::GET, "/health", &slow).await;
        (answer.status() == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_list_is_read_again_on_sighup_and_a_bad_one_changes_nothing() {
    let list = List::new();
    let first = list.add(&["--name", "first", "--role", "observe"]);
    let daemon = list.daemon(&[]).await;
    let status = async |token: &str| ask(&daemon, Method::GET, "/health", token).await.status();
    let good = fs::read_to_string(list.path()).unwrap();

    fs::write(list.path(), format!("{good}second observe\n")).unwrap();
    daemon.signal("-HUP");
    daemon.until_logged("the tokens are not reloaded and stay as they were").await;
    assert!(daemon.log().contains("line 2"), "{}", daemon.log());
    assert_eq!(status(&first).await, 200);

    fs::write(list.path(), "").unwrap();
    let second = list.add(&["--name", "second", "--role", "observe"]);
    daemon.signal("-HUP");
    wait_until("the new token is good", || async { (status(&second).await == 200).then_some(()) })
        .await;
    assert_eq!(status(&first).await, 401);

    fs::remove_file(list.path()).unwrap();
    daemon.signal("-HUP");
    daemon.until_logged("cannot read the token list").await;
    assert_eq!(status(&second).await, 200);
}

async fn does_not_start(args: &[&str]) -> (Option<i32>, String) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    let ended = Daemon::try_start_on(&path, args, &[]).await.err().expect("it should not start");
    (ended.code(), crate::support::daemon::log(&path))
}

#[tokio::test]
async fn others_are_let_in_only_where_someone_says_how() {
    let (code, said) = does_not_start(&["--bind", "0.0.0.0"]).await;
    assert_eq!(code, Some(2));
    assert!(said.contains("--auth-file") && said.contains("--insecure"), "{said}");
    let daemon = Daemon::start(&["--bind", "0.0.0.0", "--insecure"]).await;
    assert!(daemon.log().contains("authentication is disabled"));
    let list = List::new();
    list.add(&["--name", "a", "--role", "observe"]);
    let daemon = list.daemon(&["--bind", "0.0.0.0"]).await;
    assert!(!daemon.log().contains("authentication is disabled"));
    is(&client().get(daemon.url("/metrics")).send().await.unwrap(), 401);
}

#[tokio::test]
async fn a_list_that_cannot_be_trusted_is_a_reason_not_to_start() {
    use std::os::unix::fs::PermissionsExt;
    let list = List::new();
    let args = list.args();
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let (code, said) = does_not_start(&args).await;
    assert_eq!(code, Some(1));
    assert!(said.contains("cannot read the token list"), "{said}");
    fs::write(list.path(), "# empty\n").unwrap();
    assert!(does_not_start(&args).await.1.contains("contains no token"));
    let token = list.add(&["--name", "a", "--role", "observe"]);
    let mode = |mode| fs::set_permissions(list.path(), fs::Permissions::from_mode(mode)).unwrap();
    mode(0o666);
    assert!(does_not_start(&args).await.1.contains("must not be writable by everyone"));
    mode(0o600);
    fs::write(list.path(), format!("a observe {token}\n")).unwrap();
    let said = does_not_start(&args).await.1;
    assert!(said.contains("must contain only its hash") && !said.contains(&token), "{said}");
}

#[tokio::test]
async fn a_page_of_another_site_neither_writes_nor_reads_on_loopback() {
    let daemon = Daemon::start(&[]).await;
    let replica = Replica::start().await;
    let body = set("k", "v", &[&replica]).to_string();
    let port = daemon.address().rsplit(':').next().unwrap().to_owned();
    let post = |headers: &[(reqwest::header::HeaderName, &str)]| {
        let mut request = client().post(daemon.url("/replicate")).body(body.clone());
        // What a form can send without asking first.
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
        is(&answer, 403);
        assert!(answer.headers().keys().all(|name| !name.as_str().starts_with("access-control")));
    }
    let read = client().get(daemon.url("/metrics")).header(HOST, &rebound).send().await.unwrap();
    is(&read, 403);
    let preflight = client()
        .request(Method::OPTIONS, daemon.url("/replicate"))
        .header(ORIGIN, "http://evil.example")
        .header("access-control-request-method", "POST");
    let preflight = preflight.send().await.unwrap();
    is(&preflight, 403);
    assert!(preflight.headers().keys().all(|name| !name.as_str().starts_with("access-control")));
    assert_eq!(daemon.metrics().await["total_replications"], 0);
    let own = format!("http://{}", daemon.address());
    is(&post(&[(ORIGIN, &own)]).await.unwrap(), 202);
    is(&post(&[(HOST, &format!("localhost:{port}"))]).await.unwrap(), 202);
    is(&post(&[]).await.unwrap(), 202);

    let named = Daemon::start(&["--host-name", "a.internal,b.internal"]).await;
    let named_get =
        |host: &'static str| client().get(named.url("/metrics")).header(HOST, host).send();
    is(&named_get("b.internal:1").await.unwrap(), 200);
    is(&named_get("c.internal").await.unwrap(), 403);
}

#[tokio::test]
async fn a_page_of_another_site_has_no_token_to_show() {
    let list = List::new();
    let token = list.add(&["--name", "a", "--role", "replicate"]);
    let daemon = list.daemon(&[]).await;
    let replica = Replica::start().await;
    let body = set("k", "v", &[&replica]);
    let post = client().post(daemon.url("/replicate")).header(ORIGIN, "http://evil.example");
    let answer = post.json(&body).send().await.unwrap();
    is(&answer, 401);
    assert!(answer.headers().keys().all(|name| !name.as_str().starts_with("access-control")));
    // With a token it is no browser's doing, whatever it is called.
    let post =
        client().post(daemon.url("/replicate")).header(HOST, "some.name").bearer_auth(&token);
    is(&post.json(&body).send().await.unwrap(), 202);
}

fn audit(log: &str) -> Vec<Value> {
    let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).expect(line));
    lines.filter(|line| line["target"] == "audit").collect()
}

#[tokio::test]
async fn what_operators_do_is_in_the_audit_log_with_their_names() {
    let list = List::new();
    let ann = list.add(&["--name", "ann@desk", "--role", "operate"]);
    let bob = list.add(&["--name", "bob", "--role", "observe"]);
    let mut daemon = list.daemon(&["--log-format", "json"]).await;
    let path = "/v1/tasks/17";
    is(&ask(&daemon, Method::DELETE, path, &ann).await, 404);
    is(&ask(&daemon, Method::DELETE, path, &bob).await, 403);
    is(&ask(&daemon, Method::GET, "/health", &bob).await, 200);
    assert!(daemon.terminate().await.success());
    let lines = audit(&daemon.log());
    let [done, refused] = lines.as_slice() else { panic!("{lines:?}") };
    for (line, who, status) in [(done, "ann@desk", 404), (refused, "bob", 403)] {
        assert_eq!((&line["who"], &line["status"]), (&who.into(), &status.into()), "{line}");
        assert_eq!((&line["method"], &line["path"]), (&"DELETE".into(), &path.into()), "{line}");
        assert_eq!(line["peer"], "127.0.0.1");
    }
}

/// Everything that could hold a secret, and none of it comes out again.
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
    let mut said = String::new();
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
        said += &post(&daemon, body, &token).await.text().await.unwrap();
    }
    let refused = post(&daemon, &userinfo, &token).await;
    is(&refused, 400);
    let refused = refused.text().await.unwrap();
    for wrong in [format!("{token}{secret}"), secret.to_owned()] {
        said += &post(&daemon, &bodies[0], &wrong).await.text().await.unwrap();
    }
    for path in [format!("/v1/replicas/http%3A%2F%2Fu:{secret}%40h/pause"), format!("/{secret}@h")]
    {
        let answer = ask(&daemon, Method::POST, &path, &token).await;
        assert!(answer.status().is_client_error());
        said += &answer.text().await.unwrap();
    }
    for path in ["/metrics", "/metrics/users", "/health"] {
        let answer = ask(&daemon, Method::GET, path, &token).await;
        said += &answer.text().await.unwrap();
        let request = client().get(daemon.url(path)).bearer_auth(&token);
        let answer = request.header("accept", "text/plain").send().await.unwrap();
        said += &answer.text().await.unwrap();
    }
    wait_until("it is given up", || async {
        let figures: Value =
            ask(&daemon, Method::GET, "/metrics", &token).await.json().await.unwrap();
        (figures["permanent_failures"] == 1).then_some(())
    })
    .await;
    assert!(daemon.terminate().await.success());
    let log = daemon.log();
    assert!(log.contains("\"audit\""), "{log}");
    for (place, text) in [("an answer", &said), ("the log", &log), ("the 400", &refused)] {
        for hidden in [secret, &token, &token[17..81]] {
            assert!(!text.contains(hidden), "{hidden} in {place}: {text}");
        }
    }
    let kept = fs::read_to_string(list.path()).unwrap();
    assert!(!kept.contains(&token[17..81]), "{}", Path::new("tokens").display());
}

/// A wide comma in a host becomes a plain one, and the list would name other replicas, or be none.
#[test]
fn no_token_is_made_for_an_address_that_the_list_cannot_hold() {
    let dir = tempfile::tempdir().unwrap();
    let list = dir.path().join("tokens");
    let mut make = command();
    make.args(["token", "new", "--name", "gw", "--role", "replicate", "--append"]).arg(&list);
    let made = make.args(["--replica", "http://a，b"]).output().unwrap();
    let said = String::from_utf8_lossy(&made.stderr);
    assert!(!made.status.success() && said.contains("must not contain a comma"), "{said}");
    assert!(!list.exists() && made.stdout.is_empty());
}

#[test]
fn nothing_is_added_to_a_list_that_would_not_be_taken_with_it() {
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
        let said = String::from_utf8_lossy(&made.stderr);
        assert!(!made.status.success() && said.contains(why), "{said}");
        assert!(made.stdout.is_empty());
    };
    refused("gw", "the name \"gw\" is used twice");
    assert_eq!(fs::read_to_string(list.path()).unwrap(), before);

    // Nor to one that is not taken as it is: who is told of a token believes that it is good.
    let spoilt = format!("{before}a line written by hand");
    fs::write(list.path(), &spoilt).unwrap();
    refused("eye", "line 2");
    assert_eq!(fs::read_to_string(list.path()).unwrap(), spoilt);

    // A last line without its end is none of that.
    fs::write(list.path(), before.trim_end()).unwrap();
    list.add(&["--name", "eye", "--role", "observe"]);
    let lines = fs::read_to_string(list.path()).unwrap();
    assert!(lines.starts_with(&before) && lines.lines().count() == 2, "{lines}");
}
