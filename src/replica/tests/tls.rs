//! Valid and invalid certificates against a real TLS server.

use super::secure::{Authority, Issued, front};
use super::*;

fn tls(trusted: &Authority, shown: Option<&Issued>) -> ClientTls {
    let tls = ClientTls::default().trusting(trusted.pem().as_bytes()).unwrap();
    match shown {
        Some(shown) => tls.showing(shown.certificate.as_bytes(), shown.key.as_bytes()).unwrap(),
        None => tls,
    }
}

fn client_with(tls: ClientTls) -> ReplicaClient {
    let settings = settings(Duration::from_secs(120));
    ReplicaClient::new(&settings, Policy::new(None, None), tls, ReplicaTokens::default()).unwrap()
}

/// The verdict of an attempt to a replica with this certificate, and whether the replica received it.
async fn attempt(
    client: &ReplicaClient,
    server: &Issued,
    clients: Option<&Authority>,
) -> (Verdict, bool) {
    let mut peer = Peer::answering(OK).await;
    let to = peer.node.as_str().trim_start_matches("http://").parse().unwrap();
    let front = front(to, server, clients).await;
    let node = Node::parse(&format!("https://{front}")).unwrap();
    let outcome = client.send(&node, &set("private-key", b"v"), None, NOW, &Fence::Open).await;
    assert!(!outcome.ambiguous || outcome.verdict == Verdict::Delivered, "{outcome:?}");
    (outcome.verdict, peer.requests.try_recv().is_ok())
}

/// A retry, because an operator can fix it, of a write that the replica has not received.
#[track_caller]
fn failed_with((verdict, received): (Verdict, bool), expected: &str) {
    assert!(!received);
    let error = retry_text(verdict);
    assert!(error.contains(expected) && !error.contains("private-key"), "{error}");
}

#[tokio::test]
async fn a_valid_certificate_of_a_trusted_authority_is_accepted() {
    let ours = Authority::new("ours");
    let client = client_with(tls(&ours, None));
    let got = attempt(&client, &ours.issue("127.0.0.1"), None).await;
    assert_eq!(got, (Verdict::Delivered, true));
}

#[tokio::test]
async fn a_certificate_for_another_name_is_rejected_and_retried() {
    let ours = Authority::new("ours");
    let client = client_with(tls(&ours, None));
    let got = attempt(&client, &ours.issue("other.example"), None).await;
    failed_with(got, "the replica's certificate is for another name");
}

#[tokio::test]
async fn an_expired_certificate_is_rejected_and_retried() {
    let ours = Authority::new("ours");
    let client = client_with(tls(&ours, None));
    let got = attempt(&client, &ours.issue_expired("127.0.0.1"), None).await;
    failed_with(got, "the replica's certificate has expired");
}

#[tokio::test]
async fn a_certificate_of_an_unknown_authority_is_rejected_and_retried() {
    let client = client_with(tls(&Authority::new("ours"), None));
    let theirs = Authority::new("theirs").issue("127.0.0.1");
    let got = attempt(&client, &theirs, None).await;
    failed_with(got, "signed by an authority that is not trusted (--replica-ca)");
}

#[tokio::test]
async fn a_ca_certificate_is_rejected_and_retried() {
    let ours = Authority::new("ours");
    let client = client_with(tls(&ours, None));
    let got = attempt(&client, &ours.issue_authority("127.0.0.1"), None).await;
    failed_with(got, "the replica's certificate is a CA certificate, not a server certificate");
}

#[tokio::test]
async fn a_missing_client_certificate_is_reported_and_retried() {
    let ours = Authority::new("ours");
    let client = client_with(tls(&ours, None));
    let got = attempt(&client, &ours.issue("127.0.0.1"), Some(&ours)).await;
    failed_with(got, "the replica requires a client certificate (--replica-cert)");
}

#[tokio::test]
async fn a_client_certificate_of_another_authority_is_reported_and_retried() {
    let ours = Authority::new("ours");
    let theirs = Authority::new("theirs").issue("replicator");
    let client = client_with(tls(&ours, Some(&theirs)));
    let got = attempt(&client, &ours.issue("127.0.0.1"), Some(&ours)).await;
    failed_with(got, "client certificate (--replica-cert)");
}

#[tokio::test]
async fn a_client_certificate_is_presented_and_replaced_at_runtime() {
    let (ours, new) = (Authority::new("ours"), Authority::new("new"));
    let client = client_with(tls(&ours, Some(&ours.issue("replicator"))));
    let server = ours.issue("127.0.0.1");
    assert_eq!(attempt(&client, &server, Some(&ours)).await, (Verdict::Delivered, true));
    let renewed = new.issue("127.0.0.1");
    let refused = attempt(&client, &renewed, Some(&new)).await;
    failed_with(refused, "not trusted");
    client.renew(Some(tls(&new, Some(&new.issue("replicator")))), None);
    assert_eq!(attempt(&client, &renewed, Some(&new)).await, (Verdict::Delivered, true));
}

#[test]
fn wrong_certificate_and_key_files_are_reported() {
    let ours = Authority::new("ours");
    let (one, other) = (ours.issue("a"), ours.issue("b"));
    let trusting =
        |pem: &str| ClientTls::default().trusting(pem.as_bytes()).unwrap_err().to_string();
    assert_eq!(trusting(""), "contains no certificate");
    assert_eq!(trusting(&one.key), "contains no certificate");
    assert!(trusting("-----BEGIN CERTIFICATE-----\n!\n").contains("not a valid PEM file"));
    let empty = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    assert!(trusting(empty).starts_with("cannot be used: "), "{}", trusting(empty));
    let showing = |certificate: &str, key: &str| {
        let shown = ClientTls::default().showing(certificate.as_bytes(), key.as_bytes());
        shown.unwrap_err().to_string()
    };
    assert!(
        showing(&one.certificate, &one.certificate).contains("contains no readable private key")
    );
    assert!(showing(&one.certificate, &other.key).starts_with("cannot be used: "));
    let debug = format!("{:?}", tls(&ours, Some(&one)));
    assert!(!debug.contains("PRIVATE") && debug.len() < 500, "{debug}");
}
