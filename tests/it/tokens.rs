//! Tokens that expire, are revoked, or have a quota of the queue.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Output;

use reqwest::Method;
use serde_json::Value;

use crate::access::{List, assert_status, post, request};
use crate::support::daemon::command;
use crate::support::{Behaviour, Replica, set, wait_until};

fn token(args: &[&str]) -> Output {
    command().arg("token").args(args).output().unwrap()
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The tokens of a file, as `token list --json` shows them.
fn listed(path: &Path) -> Vec<Value> {
    let output = token(&["list", "--json", "--auth-file", path.to_str().unwrap()]);
    assert!(output.status.success(), "{}", err(&output));
    let list: Value = serde_json::from_slice(&output.stdout).unwrap();
    list["tokens"].as_array().unwrap().clone()
}

#[tokio::test]
async fn a_token_is_valid_until_it_expires_and_its_event_stream_ends_then() {
    // On a busy machine a token may have expired before its first request.
    for seconds in [2, 8, 60] {
        let list = List::new();
        let valid_for = format!("{seconds}s");
        let short = list.add(&["--name", "short", "--role", "observe", "--expires-in", &valid_for]);
        let other = list.add(&["--name", "other", "--role", "observe", "--expires", "2099-12-31"]);
        let daemon = list.daemon(&[]).await;
        let mut stream = request(&daemon, Method::GET, "/v1/events", &short).await;
        if stream.status() != 200 {
            continue;
        }
        daemon.until_logged("a token in use expires within 7 days").await;
        // It would continue for ever.
        while let Ok(Some(_)) = stream.chunk().await {}
        let answer = request(&daemon, Method::GET, "/health", &short).await;
        assert_status(&answer, 401);
        assert_eq!(answer.headers()["www-authenticate"], "Bearer");
        assert_eq!(answer.json::<Value>().await.unwrap()["error"], "this token has expired");
        assert_status(&request(&daemon, Method::GET, "/health", &other).await, 200);
        assert_eq!(daemon.log().matches("expires within 7 days").count(), 1);

        let tokens = listed(&list.path());
        let expired: Vec<_> = tokens.iter().map(|token| &token["expired"]).collect();
        assert_eq!(expired, [false, true], "{tokens:?}");
        assert_eq!(tokens[0]["expires"], "2099-12-31");
        let table = token(&["list", "--auth-file", list.path().to_str().unwrap()]);
        assert_eq!(String::from_utf8_lossy(&table.stdout).matches("(expired)").count(), 1);
        return;
    }
    panic!("a token that is valid for a minute was refused at once");
}

#[test]
fn a_new_token_must_expire_in_the_future() {
    for (args, why) in [
        (["--expires", "2001-01-01"], "--expires 2001-01-01 must be in the future"),
        (["--expires", "tomorrow"], "must be a date such as 2027-01-31"),
        (["--expires-in", "0s"], "must be longer than zero"),
        (["--bytes", "0B"], "--bytes must be at least 1B"),
    ] {
        let made = token(&[&["new", "--name", "a", "--role", "observe"], &args[..]].concat());
        assert!(!made.status.success() && made.stdout.is_empty());
        assert!(err(&made).contains(why), "{}", err(&made));
    }
}

#[tokio::test]
async fn a_revoked_token_is_removed_from_its_file_and_refused_after_sighup() {
    let list = List::new();
    let kept = list.add(&["--name", "kept", "--role", "observe"]);
    let lines = fs::read_to_string(list.path()).unwrap();
    fs::write(list.path(), format!("# first, the dashboards\n{lines}\n  # gone soon\n")).unwrap();
    let before = fs::read_to_string(list.path()).unwrap();
    let gone = list.add(&["--name", "gone", "--role", "observe"]);
    fs::set_permissions(list.path(), fs::Permissions::from_mode(0o640)).unwrap();
    let link = list.path().with_file_name("link");
    std::os::unix::fs::symlink(list.path(), &link).unwrap();
    let daemon = list.daemon(&[]).await;

    let revoke = |name: &str| token(&["revoke", name, "--auth-file", link.to_str().unwrap()]);
    let unknown = revoke("first,");
    assert!(err(&unknown).contains("has no token with the name \"first,\""), "{}", err(&unknown));
    let revoked = revoke("gone");
    assert!(revoked.status.success() && err(&revoked).contains("SIGHUP"), "{}", err(&revoked));
    assert_eq!(fs::read_to_string(list.path()).unwrap(), before);
    assert_eq!(fs::metadata(list.path()).unwrap().permissions().mode() & 0o777, 0o640);
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    let dir = list.path().parent().unwrap().to_owned();
    assert_eq!(fs::read_dir(dir).unwrap().count(), 2, "no temporary file is left");

    assert_status(&request(&daemon, Method::GET, "/health", &gone).await, 200);
    daemon.signal("-HUP");
    wait_until("the token is refused", || async {
        let answer = request(&daemon, Method::GET, "/health", &gone).await;
        (answer.status() == 401).then_some(())
    })
    .await;
    assert_status(&request(&daemon, Method::GET, "/health", &kept).await, 200);

    // The daemon refuses an empty list, and the token would stay valid.
    let last = revoke("kept");
    assert!(!last.status.success() && err(&last).contains("nothing was revoked"), "{}", err(&last));
    assert_eq!(fs::read_to_string(list.path()).unwrap(), before);
}

#[tokio::test]
async fn a_quota_limits_what_a_token_takes_of_the_queue_and_is_reloaded() {
    let list = List::new();
    let free = list.add(&["--name", "free", "--role", "replicate"]);
    let role = ["--role", "replicate"];
    let few = list.add(&[&["--name", "few", "--places", "3"], &role[..]].concat());
    let small = list.add(&[&["--name", "small", "--bytes", "4KiB"], &role[..]].concat());
    let daemon = list.daemon(&["--queue-wait", "0s", "--request-timeout", "1h"]).await;
    let replica = Replica::start().await;
    replica.behave(|_| Behaviour::Hang);
    let fill = async |token: &str, value: &str| {
        for accepted in 0..100 {
            let body = set(&format!("k{accepted}"), value, &[&replica]);
            let answer = post(&daemon, &body, token).await;
            if answer.status() != 202 {
                assert_status(&answer, 503);
                assert!(answer.headers().contains_key("retry-after"));
                let body: Value = answer.json().await.unwrap();
                return (accepted, body["error"].as_str().unwrap().to_owned());
            }
        }
        (100, String::new())
    };
    let (accepted, error) = fill(&few, "v").await;
    assert_eq!(accepted, 3);
    let text = "this token has used up its quota (places=3; queued for it: 3); try again later";
    assert_eq!(error, text);
    let (accepted, error) = fill(&small, &"v".repeat(1000)).await;
    assert!((1..=2).contains(&accepted), "{accepted}");
    assert!(error.contains("its quota (bytes=4096; bytes queued for it: "), "{error}");
    assert_eq!(fill(&free, "v").await.0, 100);

    let tokens = listed(&list.path());
    assert_eq!((&tokens[0]["places"], &tokens[2]["bytes"]), (&3.into(), &4096.into()));

    let lines = fs::read_to_string(list.path()).unwrap();
    fs::write(list.path(), lines.replace("places=3", "places=5")).unwrap();
    daemon.signal("-HUP");
    wait_until("two more writes are accepted", || async {
        let (accepted, error) = fill(&few, "v").await;
        (accepted == 2 && error.contains("places=5")).then_some(())
    })
    .await;
}
