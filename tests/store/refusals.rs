//! Credentials, certificates and servers that cannot be used: one sentence each.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use nkeys::KeyPair;

use super::*;

#[track_caller]
pub fn refused(dir: &Path, args: &[&str]) -> String {
    match Instance::try_start(dir, args) {
        Ok(_) => panic!("it starts with {args:?}"),
        Err(why) => why,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_the_servers_do_not_know_is_refused_with_a_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let (known, unknown) = (KeyPair::new_user(), KeyPair::new_user());
    let users = format!("authorization {{ users: [{{ nkey: {} }}] }}", known.public_key());
    let server = Server::start(&format!("{JETSTREAM}\n{users}")).await;
    let url = server.url();
    let seed = |name: &str, key: &KeyPair| server.secret(name, &key.seed().unwrap());
    let wrong = seed("wrong", &unknown);
    let why = refused(dir.path(), &["--store", &url, "--store-creds", &wrong]);
    assert!(why.contains("refuses this client") && why.contains("--store-creds"), "{why}");
    assert!(!why.contains(&unknown.seed().unwrap()), "{why}");
    let right = seed("right", &known);
    let instance = Instance::start(dir.path(), &["--store", &url, "--store-creds", &right]);
    assert!(!instance.log().contains(&known.seed().unwrap()));
    instance.stop();
}

/// As `nsc` makes one.
fn jwt(signer: &KeyPair, subject: &KeyPair, nats: &Value, expires: Option<u64>) -> String {
    let header = json!({ "typ": "JWT", "alg": "ed25519-nkey" });
    let mut claims = json!({ "jti": fastrand::u64(..).to_string(), "iat": 1_700_000_000,
        "iss": signer.public_key(), "sub": subject.public_key(), "name": "test", "nats": nats });
    if let Some(expires) = expires {
        claims["exp"] = expires.into();
    }
    let signed = [header, claims].map(|part| URL_SAFE_NO_PAD.encode(part.to_string())).join(".");
    let signature = URL_SAFE_NO_PAD.encode(signer.sign(signed.as_bytes()).unwrap());
    format!("{signed}.{signature}")
}

fn credentials(jwt: &str, key: &KeyPair) -> String {
    let seed = key.seed().unwrap();
    format!(
        "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n\
         -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_jwt_of_a_stranger_or_one_that_has_expired_is_refused_with_a_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let operator = KeyPair::new_operator();
    let [account, system, stranger] = [(); 3].map(|()| KeyPair::new_account());
    let of_account = |storage: i64| {
        json!({ "type": "account", "version": 2,
            "default_permissions": { "pub": {}, "sub": {} },
            "limits": { "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1,
                "wildcards": true, "conn": -1, "leaf": -1, "mem_storage": storage,
                "disk_storage": storage, "streams": -1, "consumer": -1 } })
    };
    let of_operator =
        json!({ "type": "operator", "version": 2, "system_account": system.public_key() });
    let config = format!(
        "{JETSTREAM}\noperator: {}\nsystem_account: {}\nresolver: MEMORY\n\
         resolver_preload: {{ {}: {}, {}: {} }}",
        jwt(&operator, &operator, &of_operator, None),
        system.public_key(),
        system.public_key(),
        jwt(&operator, &system, &of_account(0), None),
        account.public_key(),
        jwt(&operator, &account, &of_account(-1), None),
    );
    let server = Server::start(&config).await;
    let url = server.url();
    let user = KeyPair::new_user();
    let of_user = json!({ "type": "user", "version": 2, "pub": {}, "sub": {}, "subs": -1,
        "data": -1, "payload": -1 });
    let file = |name: &str, issuer: &KeyPair, expires| {
        server.secret(name, &credentials(&jwt(issuer, &user, &of_user, expires), &user))
    };
    for (name, file) in [
        ("of a stranger", file("strange", &stranger, None)),
        ("expired", file("expired", &account, Some(1_700_000_001))),
    ] {
        let why = refused(dir.path(), &["--store", &url, "--store-creds", &file]);
        assert!(why.contains("--store-creds"), "{name}: {why}");
        assert!(!why.contains(&user.seed().unwrap()), "{name}: {why}");
    }
    let whole = credentials("e30", &user);
    let (without_seed, _) = whole.split_once("-----BEGIN USER").unwrap();
    let cut = server.secret("cut", without_seed);
    let why = refused(dir.path(), &["--store", &url, "--store-creds", &cut]);
    assert!(why.contains("contains no valid JWT with its seed"), "{why}");
    let right = file("right", &account, None);
    Instance::start(dir.path(), &["--store", &url, "--store-creds", &right]).stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_another_name_is_refused_with_a_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new("ours");
    let issued = authority.issue("elsewhere.example");
    let write = |name: &str, text: &str| private_file(dir.path(), name, text);
    let ca = write("ca.pem", &authority.pem());
    let (cert, key) = (write("cert.pem", &issued.certificate), write("key.pem", &issued.key));
    let tls = format!("tls {{ cert_file: \"{cert}\", key_file: \"{key}\" }}");
    let server = Server::start(&format!("{JETSTREAM}\n{tls}")).await;
    let url = format!("tls://127.0.0.1:{}", server.port);
    let why = refused(dir.path(), &["--store", &url, "--store-ca", &ca]);
    assert!(why.contains("cannot be verified (--store-ca)"), "{why}");
    assert!(why.contains("not valid for name"), "{why}");
}

/// Debian 12 has nats-server 2.9. Only its greeting is needed here.
#[tokio::test(flavor = "multi_thread")]
async fn an_older_server_is_refused_with_a_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("nats://{}", listener.local_addr().unwrap());
    // Ends with the process.
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let info = json!({ "server_id": "N", "server_name": "old\u{1b}[31m", "version": "2.9.10",
                "go": "go1.19", "host": "0.0.0.0", "port": 4222, "headers": true, "proto": 1,
                "max_payload": 1 << 20, "jetstream": true, "client_id": 1 });
            // The client may be gone.
            let _ = write!(stream, "INFO {info}\r\n");
            for line in BufReader::new(stream.try_clone().unwrap()).lines() {
                if line.is_ok_and(|line| line == "PING") {
                    let _ = write!(stream, "PONG\r\n");
                }
            }
        }
    });
    let why = refused(dir.path(), &["--store", &url]);
    assert!(why.contains("has version \"2.9.10\": --store needs nats-server 2.15"), "{why}");
    assert!(!why.contains('\u{1b}'), "{why}");
}
