//! TLS of the daemon's port, with certificates that the tests create.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::{fs, io};

use rcgen::KeyPair;
use reqwest::{Certificate, Identity};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::support::daemon::command;
use crate::support::tls::{Authority, Issued};
use crate::support::{Daemon, wait_until};

fn authority() -> Authority {
    Authority::new("authority")
}

/// A client that trusts only this authority and presents this certificate.
fn client(authority: &Authority, shown: Option<&Issued>) -> reqwest::Client {
    replicator::testing::install_crypto();
    let trusted = Certificate::from_pem(authority.pem().as_bytes()).unwrap();
    let client = reqwest::Client::builder().no_proxy().tls_certs_only([trusted]);
    let client = match shown {
        Some(Issued { certificate, key }) => {
            client.identity(Identity::from_pem(format!("{certificate}{key}").as_bytes()).unwrap())
        }
        None => client,
    };
    client.build().unwrap()
}

fn write(dir: &Path, file: &str, text: &str) -> String {
    let path = dir.join(file);
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path.display().to_string()
}

fn tls_args(dir: &TempDir, authority: &Authority) -> [String; 4] {
    let Issued { certificate, key } = authority.issue("127.0.0.1");
    let certificate = write(dir.path(), "cert.pem", &certificate);
    let key = write(dir.path(), "key.pem", &key);
    ["--tls-cert".to_owned(), certificate, "--tls-key".to_owned(), key]
}

async fn start(args: &[String]) -> Daemon {
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    Daemon::start(&args).await
}

#[tokio::test]
async fn the_daemon_serves_only_tls_and_clients_check_its_certificate() {
    let (dir, authority) = (tempfile::tempdir().unwrap(), authority());
    let daemon = start(&tls_args(&dir, &authority)).await;
    let url = daemon.url("/health");
    assert!(url.starts_with("https://"));
    let answer = client(&authority, None).get(&url).send().await.unwrap();
    assert_eq!((answer.status().as_u16(), answer.version()), (200, reqwest::Version::HTTP_11));
    assert!(client(&self::authority(), None).get(&url).send().await.is_err());
    // A client without TLS gets no answer.
    let mut plain = TcpStream::connect(daemon.address()).await.unwrap();
    plain.write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    let mut printed = Vec::new();
    let _ = plain.read_to_end(&mut printed).await;
    assert!(!String::from_utf8_lossy(&printed).contains("HTTP"), "{printed:?}");
}

/// Connects without a client certificate, up to the end of the handshake.
async fn handshake(
    daemon: &Daemon,
    authority: &Authority,
    protocols: &[&str],
) -> io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.pem().as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
    let stream = TcpStream::connect(daemon.address()).await.unwrap();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

#[tokio::test]
async fn a_client_that_offers_http_2_gets_http_1_1_or_no_connection() {
    let (dir, authority) = (tempfile::tempdir().unwrap(), authority());
    let daemon = start(&tls_args(&dir, &authority)).await;
    for (offered, given) in [(vec!["h2", "http/1.1"], Some("http/1.1")), (vec!["h2"], None)] {
        let shaken = handshake(&daemon, &authority, &offered).await;
        let spoken = shaken.ok().map(|stream| stream.get_ref().1.alpn_protocol().unwrap().to_vec());
        assert_eq!(spoken.as_deref(), given.map(str::as_bytes), "{offered:?}");
    }
}

/// In TLS 1.3 a client finishes its part of the handshake before the daemon checks its certificate,
/// and sends its request. If the daemon answered that with a reset, the client could not read the
/// reason.
#[tokio::test]
async fn a_rejected_client_can_still_send_and_reads_the_reason() {
    let (dir, authority) = (tempfile::tempdir().unwrap(), authority());
    let ca = write(dir.path(), "ca.pem", &authority.pem());
    let mut args = tls_args(&dir, &authority).to_vec();
    args.extend(["--tls-client-ca".to_owned(), ca]);
    let daemon = start(&args).await;
    let mut stream = handshake(&daemon, &authority, &["http/1.1"]).await.unwrap();
    wait_until("the daemon has rejected the client and closed its side", || async {
        let ready = stream.get_ref().0.ready(Interest::READABLE).await.unwrap();
        ready.is_read_closed().then_some(())
    })
    .await;
    for _ in 0..10 {
        stream.write_all(b"GET /livez HTTP/1.1\r\n").await.unwrap();
        tokio::task::yield_now().await;
    }
    let why = stream.read(&mut [0]).await.unwrap_err();
    assert!(why.to_string().contains("CertificateRequired"), "{why}");
}

#[tokio::test]
async fn only_a_valid_certificate_of_the_authority_is_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let (authority, clients) = (authority(), authority());
    let client_ca = write(dir.path(), "ca.pem", &clients.pem());
    let mut args = tls_args(&dir, &authority).to_vec();
    args.extend([
        "--tls-client-ca".to_owned(),
        client_ca,
        "--bind".to_owned(),
        "0.0.0.0".to_owned(),
    ]);
    args.extend(["--log-format".to_owned(), "json".to_owned()]);
    let mut daemon = start(&args).await;
    let port = daemon.address().rsplit(':').next().unwrap().to_owned();
    let url = |path: &str| format!("https://127.0.0.1:{port}{path}");
    let good = client(&authority, Some(&clients.issue("ann.example")));
    assert_eq!(good.get(url("/health")).send().await.unwrap().status(), 200);
    assert_eq!(good.delete(url("/v1/tasks/1")).send().await.unwrap().status(), 404);
    for bad in [
        None,
        Some(clients.issue_expired("ann.example")),
        Some(self::authority().issue("ann.example")),
    ] {
        assert!(client(&authority, bad.as_ref()).get(url("/livez")).send().await.is_err());
    }
    // A browser would present the certificate for a page of any site.
    let post = good.post(url("/replicate")).header("origin", "http://evil.example");
    assert_eq!(post.body("{}").send().await.unwrap().status(), 403);
    assert!(daemon.terminate().await.success());
    daemon.until_logged(r#""certificate":"ann.example""#).await;
}

#[tokio::test]
async fn certificates_are_reloaded_on_sighup_and_invalid_ones_change_nothing() {
    let (dir, first, second) = (tempfile::tempdir().unwrap(), authority(), authority());
    let daemon = start(&tls_args(&dir, &first)).await;
    let url = daemon.url("/health");
    write(dir.path(), "key.pem", "nothing");
    daemon.signal("-HUP");
    daemon.until_logged("the certificates are not reloaded and stay as they were").await;
    assert!(client(&first, None).get(&url).send().await.is_ok());
    tls_args(&dir, &second);
    daemon.signal("-HUP");
    wait_until("the new certificate is served", || async {
        client(&second, None).get(&url).send().await.ok()
    })
    .await;
    assert!(client(&first, None).get(&url).send().await.is_err());
}

#[tokio::test]
async fn a_stalled_handshake_is_cut() {
    let (dir, authority) = (tempfile::tempdir().unwrap(), authority());
    let mut args = tls_args(&dir, &authority).to_vec();
    args.extend(["--client-timeout".to_owned(), "1s".to_owned()]);
    let daemon = start(&args).await;
    let mut silent = TcpStream::connect(daemon.address()).await.unwrap();
    assert_eq!(silent.read(&mut [0]).await.unwrap_or(0), 0);
}

#[tokio::test]
async fn a_key_of_another_certificate_prevents_the_start() {
    let (dir, authority) = (tempfile::tempdir().unwrap(), authority());
    let args = tls_args(&dir, &authority);
    write(dir.path(), "key.pem", &KeyPair::generate().unwrap().serialize_pem());
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let data = dir.path().join("data");
    let ended = Daemon::try_start_on(&data, &args, &[]).await.err().unwrap();
    assert_eq!(ended.code(), Some(1));
    let printed = crate::support::daemon::log(&data);
    assert!(printed.contains("cannot use the certificate"), "{printed}");
}

/// The output and the exit code of a command that connects to this daemon.
fn run(url: &str, args: &[&str]) -> (Option<i32>, String) {
    let ran = command().args(["replicas", "--url", url]).args(args).output().unwrap();
    let printed = [ran.stdout, ran.stderr].concat();
    (ran.status.code(), String::from_utf8(printed).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_commands_present_a_certificate_and_trust_only_their_authority() {
    let dir = tempfile::tempdir().unwrap();
    let (ours, clients) = (Authority::new("ours"), Authority::new("clients"));
    let ca = write(dir.path(), "ca.pem", &ours.pem());
    let client_ca = write(dir.path(), "client-ca.pem", &clients.pem());
    let Issued { certificate, key } = clients.issue("ann.example");
    let cert = write(dir.path(), "ann.pem", &certificate);
    let key = write(dir.path(), "ann-key.pem", &key);
    let mut args = tls_args(&dir, &ours).to_vec();
    args.extend(["--tls-client-ca".to_owned(), client_ca.clone()]);
    let daemon = start(&args).await;
    let url = daemon.url("");

    let shown = ["--ca-file", &ca, "--cert-file", &cert, "--key-file", &key];
    assert_eq!(
        run(&url, &shown),
        (Some(0), "no replica has had a delivery since the daemon started\n".to_owned())
    );
    let missing = dir.path().join("missing");
    let missing = missing.to_str().unwrap();
    let other = ["--ca-file", &client_ca, "--cert-file", &cert, "--key-file", &key];
    for (args, says) in [
        (&shown[..2], "requires a client certificate (--cert-file)"),
        (&shown[2..], "an authority that is not trusted (--ca-file)"),
        (&other[..], "an authority that is not trusted (--ca-file)"),
        (&shown[..4], "--cert-file needs --key-file"),
        (&shown[4..], "--key-file needs --cert-file"),
        (&["--ca-file", missing][..], &format!("cannot read {missing} (--ca-file)")),
        (&["--ca-file", &key][..], "contains no certificate"),
        (&["--cert-file", &cert, "--key-file", &cert][..], "contains no readable private key"),
    ] {
        let (code, printed) = run(&url, args);
        assert!(code == Some(1) && printed.contains(says), "{args:?}: {code:?} {printed}");
    }
}
