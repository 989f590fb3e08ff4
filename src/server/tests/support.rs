//! Test support: a server on its own port, a scripted daemon, and a raw client.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::dispatcher::{AcceptedWrite, Handle, Health, NewWrite, Refusal, Request};
use crate::metrics::Snapshot;
use crate::server::{ServerLimits, ServerSettings, serve};
use crate::task::{NewTask, ReplicaIndex, TaskId};
use crate::traces::Tracer;

/// Upper bound of every wait.
pub(super) const PATIENCE: Duration = Duration::from_secs(120);

/// A server and the daemon's side of its channels.
pub(super) struct Server {
    pub(super) address: SocketAddr,
    pub(super) handle: Handle,
    pub(super) requests: mpsc::UnboundedReceiver<Request>,
    pub(super) health: watch::Sender<Health>,
    pub(super) stop: oneshot::Sender<()>,
    pub(super) serving: JoinHandle<()>,
}

pub(super) fn settings() -> ServerSettings {
    ServerSettings {
        access: crate::server::Access::open(),
        tls: None,
        tracer: Tracer::off(),
        node_id: "node-7".to_owned(),
        policy: crate::policy::Policy::new(None, None),
        limits: ServerLimits {
            max_connections: 100,
            client_timeout: PATIENCE,
            max_body_bytes: 200_000,
            request_memory: 1_000_000,
            max_value_bytes: 150_000,
            max_key_bytes: 100,
            max_replicas: 8,
        },
    }
}

pub(super) fn limited(limits: ServerLimits) -> ServerSettings {
    ServerSettings { limits, ..settings() }
}

/// Settings with a short client timeout.
pub(super) fn impatient() -> ServerSettings {
    limited(ServerLimits { client_timeout: Duration::from_secs(3), ..settings().limits })
}

pub(super) async fn start(settings: ServerSettings) -> Server {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (handle, requests, health) = Handle::for_tests();
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = tokio::spawn(serve(listener, handle.clone(), settings, async {
        let _ = stopped.await;
    }));
    Server { address, handle, requests, health, stop, serving }
}

impl Server {
    /// Runs a daemon that accepts every write with these acknowledgements and returns this snapshot.
    pub(super) fn answer_all(mut self, acked: Vec<ReplicaIndex>, snapshot: Snapshot) -> SocketAddr {
        tokio::spawn(async move {
            while let Some(request) = self.requests.recv().await {
                match request {
                    Request::Replicate(writes) => {
                        for NewWrite { reply, .. } in writes {
                            let (id, acked) = (TaskId(42), acked.clone());
                            let _ = reply.send(Ok(AcceptedWrite { id, acked, replayed: false }));
                        }
                    }
                    Request::Snapshot { reply } => {
                        let _ = reply.send(Box::new(snapshot.clone()));
                    }
                    other => panic!("{other:?}"),
                }
            }
            drop((self.health, self.stop));
        });
        self.address
    }

    pub(super) async fn next_write(
        &mut self,
    ) -> (NewTask, oneshot::Sender<Result<AcceptedWrite, Refusal>>) {
        match timeout(PATIENCE, self.requests.recv()).await.unwrap() {
            Some(Request::Replicate(writes)) => {
                let NewWrite { new, reply, .. } = writes.into_iter().next().unwrap();
                (*new, reply)
            }
            other => panic!("{other:?}"),
        }
    }
}

/// A parsed response.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) head: String,
    pub(super) body: String,
}

impl Answer {
    pub(super) fn json(&self) -> Value {
        assert!(self.head.contains("content-type: application/json\r\n"));
        serde_json::from_str(&self.body).unwrap()
    }

    #[track_caller]
    pub(super) fn is_error(&self, status: u16, sentence: &str) {
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(self.json(), json!({ "error": sentence }));
    }
}

/// A client that sends raw text.
pub(super) struct Client(pub(super) TcpStream);

impl Client {
    pub(super) async fn connect(address: SocketAddr) -> Self {
        Self(TcpStream::connect(address).await.unwrap())
    }

    pub(super) async fn send(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).await.unwrap();
    }

    pub(super) async fn post(&mut self, body: &str) {
        let length = body.len();
        self.send(&format!(
            "POST /replicate HTTP/1.1\r\nhost: h\r\ncontent-length: {length}\r\n\r\n{body}"
        ))
        .await;
    }

    pub(super) async fn get(&mut self, path: &str, headers: &str) -> Answer {
        self.send(&format!("GET {path} HTTP/1.1\r\nhost: h\r\n{headers}\r\n")).await;
        self.answer().await
    }

    /// Reads exactly one response.
    pub(super) async fn answer(&mut self) -> Answer {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(timeout(PATIENCE, self.0.read_u8()).await.unwrap().unwrap());
        }
        let head = String::from_utf8(head).unwrap();
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "))
            .map_or(0, |length| length.parse().unwrap());
        let mut body = vec![0; length];
        timeout(PATIENCE, self.0.read_exact(&mut body)).await.unwrap().unwrap();
        Answer {
            status: head[9..12].parse().unwrap(),
            head,
            body: String::from_utf8(body).unwrap(),
        }
    }

    /// Waits until the server has closed the connection, and returns what it sent before.
    pub(super) async fn closed(mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        // A reset also counts as closed.
        let _ = timeout(PATIENCE, self.0.read_to_end(&mut rest))
            .await
            .expect("the server should have closed the connection");
        rest
    }
}

pub(super) async fn posted(address: SocketAddr, body: &str) -> Answer {
    let mut client = Client::connect(address).await;
    client.post(body).await;
    client.answer().await
}
