//! The cost of tokens and TLS: a daemon with none, tokens, TLS and both, in turn.
//!
//! Measured over keep-alive connections, and over a new connection per write like the known gateway.
//! The client's part of TLS runs on the same machine.

use std::fs;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{CertificateParams, KeyPair};
use tempfile::TempDir;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::load::{Target, post, post_reconnecting};
use crate::parts::{WIDE, body, median};
use crate::roles::Process;

const ROUNDS: usize = 7;
const ROUND: Duration = Duration::from_secs(2);
const CONNECTIONS: usize = 64;

/// Name, tokens, TLS.
const GUARDS: [(&str, bool, bool); 4] =
    [("none", false, false), ("tokens", true, false), ("TLS", false, true), ("both", true, true)];

/// The files of the daemons, and the credentials of their clients.
struct Credentials {
    dir: TempDir,
    token: String,
    connector: TlsConnector,
}

impl Credentials {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let certificate = params.self_signed(&key).unwrap();
        fs::write(dir.path().join("cert.pem"), certificate.pem()).unwrap();
        fs::write(dir.path().join("key.pem"), key.serialize_pem()).unwrap();
        let made = Command::new(env!("CARGO_BIN_EXE_replicator"))
            .args(["token", "new", "--name", "bench", "--role", "replicate", "--append"])
            .arg(dir.path().join("tokens"))
            .output()
            .unwrap();
        let token = String::from_utf8(made.stdout).unwrap().trim().to_owned();
        let mut roots = RootCertStore::empty();
        roots.add(certificate.der().clone()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        Self { dir, token, connector: TlsConnector::from(Arc::new(config)) }
    }

    fn file(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    fn start(&self, tokens: bool, tls: bool) -> (Process, Target) {
        let mut args: Vec<String> = WIDE.iter().map(|&arg| arg.to_owned()).collect();
        if tokens {
            args.extend(["--auth-file".to_owned(), self.file("tokens")]);
        }
        if tls {
            args.extend(["--tls-cert".to_owned(), self.file("cert.pem")]);
            args.extend(["--tls-key".to_owned(), self.file("key.pem")]);
        }
        let daemon = Process::daemon(&args.iter().map(String::as_str).collect::<Vec<_>>());
        let target = Target {
            token: tokens.then(|| self.token.clone()),
            tls: tls.then(|| self.connector.clone()),
            ..Target::from(&daemon.address)
        };
        (daemon, target)
    }
}

/// The accept rate with each guard, and its ratio to none in the same round.
pub async fn auth() {
    println!("\nauth: accepts/s, two silent replicas, {ROUNDS} rounds of {ROUND:?} each");
    let credentials = Credentials::new();
    let silent = [Process::role("silent-replica"), Process::role("silent-replica")];
    let nodes: Vec<_> = silent.iter().map(|replica| replica.address.clone()).collect();
    for reconnect in [false, true] {
        let how = if reconnect { "a new one for each write" } else { "kept alive" };
        println!("  {CONNECTIONS} connections, {how}");
        let daemons = GUARDS.map(|(_, tokens, tls)| credentials.start(tokens, tls));
        let (mut rates, mut ratios) = ([const { vec![] }; 4], [const { vec![] }; 4]);
        for round in 0..=ROUNDS {
            let mut of_round = [0.0; 4];
            // The order rotates, because a run leaves writes for the next one to flush.
            for guard in (0..GUARDS.len()).map(|n| (n + round) % GUARDS.len()) {
                let nodes = nodes.clone();
                let make = move |connection: usize, n: u64| {
                    let nodes: Vec<_> = nodes.iter().map(String::as_str).collect();
                    body("eventual", &format!("k-{round}-{connection}-{n}"), &nodes)
                };
                let target = &daemons[guard].1;
                let seen = if reconnect {
                    post_reconnecting(target.clone(), CONNECTIONS, ROUND, make).await
                } else {
                    post(target.clone(), CONNECTIONS, ROUND, make).await
                };
                assert_eq!(seen.refused, 0);
                of_round[guard] = seen.rate;
            }
            // The first round is the warm-up.
            if round > 0 {
                for guard in 0..GUARDS.len() {
                    rates[guard].push(of_round[guard]);
                    ratios[guard].push(of_round[guard] / of_round[0]);
                }
            }
        }
        for ((name, ..), (rates, ratios)) in GUARDS.iter().zip(rates.into_iter().zip(ratios)) {
            println!("    {name:<8} {:>8.0}/s  ratio {:.3}", median(rates), median(ratios));
        }
    }
}
