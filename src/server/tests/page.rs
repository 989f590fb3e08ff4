//! The page: complete, with correct types and strict headers.

use std::path::{Path, PathBuf};

use super::support::{Answer, Client, settings, start};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/server/page")
}

/// The files of the page and their texts.
fn files() -> Vec<(String, String)> {
    let entries = std::fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path());
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    entries.map(|path| (name(&path), std::fs::read_to_string(path).unwrap())).collect()
}

async fn get(path: &str, headers: &str) -> Answer {
    let server = start(settings()).await;
    Client::connect(server.address).await.get(path, headers).await
}

#[tokio::test]
async fn every_file_of_the_page_is_served_with_its_type_and_strict_headers() {
    let server = start(settings()).await;
    let mut client = Client::connect(server.address).await;
    let files = files();
    assert!(files.len() > 10);
    for (name, text) in files {
        let path = if name == "index.html" { "/".to_owned() } else { format!("/assets/{name}") };
        let answer = client.get(&path, "").await;
        assert_eq!((answer.status, answer.body), (200, text), "{name}");
        let content_type = match name.rsplit_once('.').unwrap().1 {
            "html" => "text/html; charset=utf-8",
            "js" => "text/javascript; charset=utf-8",
            "css" => "text/css; charset=utf-8",
            "svg" => "image/svg+xml",
            other => panic!("unknown file type {other}"),
        };
        for header in [
            &format!("content-type: {content_type}"),
            "content-security-policy: default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
             img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
            "x-content-type-options: nosniff",
            "referrer-policy: no-referrer",
            "cache-control: no-cache",
        ] {
            assert!(answer.head.contains(&format!("{header}\r\n")), "{name}: {}", answer.head);
        }
    }
}

#[tokio::test]
async fn a_cached_file_is_not_sent_again() {
    let first = get("/assets/main.js", "").await;
    let tag = first.head.lines().find_map(|line| line.strip_prefix("etag: ")).unwrap();
    let server = start(settings()).await;
    let mut client = Client::connect(server.address).await;
    client.send(&format!("GET /assets/main.js HTTP/1.1\r\nhost: h\r\nif-none-match: {tag}\r\nconnection: close\r\n\r\n")).await;
    let second = String::from_utf8(client.closed().await).unwrap();
    assert!(second.starts_with("HTTP/1.1 304 "), "{second}");
    assert!(
        second.contains(&format!("etag: {tag}\r\n")) && second.ends_with("\r\n\r\n"),
        "{second}"
    );
    let other = get("/assets/style.css", &format!("if-none-match: {tag}\r\n")).await;
    assert_eq!(other.status, 200);
}

#[tokio::test]
async fn there_is_nothing_else_under_assets() {
    for name in ["index.html", "nothing.js", "..%2Fpage.rs", "%2e%2e%2fpage.rs"] {
        get(&format!("/assets/{name}"), "").await.is_error(404, "this path does not exist");
    }
}

/// The Content-Security-Policy would block it. This test reports it before a browser does.
#[test]
fn nothing_is_inline_and_nothing_is_loaded_from_elsewhere() {
    for (name, text) in files() {
        for word in ["<style", " style=", "javascript:", "innerHTML", "eval(", "https://"] {
            assert!(!text.contains(word), "{word} in {name}");
        }
        let local = text.replace("http://www.w3.org/", "").replace("http:\\/\\/", "");
        assert!(!local.contains("http://"), "an address in {name}");
        assert!(text.lines().count() <= 600, "{name} is too long");
    }
    let index = files().into_iter().find(|(name, _)| name == "index.html").unwrap().1;
    for tag in index.split('<').filter(|tag| tag.starts_with("script")) {
        assert!(tag.contains("src=\"assets/") && tag.ends_with('>'), "{tag}");
    }
}

#[test]
fn every_referenced_file_exists() {
    let files = files();
    let exists = |name: &str| files.iter().any(|(file, _)| file == name);
    let mut named = 0;
    for (file, text) in &files {
        let modules = text.split(" from './").skip(1).map(|rest| rest.split('\'').next().unwrap());
        let parts = text.split("\"assets/").skip(1).map(|rest| rest.split('"').next().unwrap());
        for name in modules.chain(parts) {
            assert!(exists(name), "{name} in {file}");
            named += 1;
        }
    }
    assert!(named > 20);
}
