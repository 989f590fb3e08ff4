//! The network between one instance and the servers. A test cuts it off without closing anything.

use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::support::servers::urls;

/// Ports in front of the servers.
pub struct Proxy {
    ports: Vec<u16>,
    is_cut: Arc<watch::Sender<bool>>,
}

impl Proxy {
    pub async fn before(servers: &[u16]) -> Self {
        let is_cut = Arc::new(watch::Sender::new(false));
        let mut ports = Vec::new();
        for &server in servers {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            ports.push(listener.local_addr().unwrap().port());
            let is_cut = Arc::clone(&is_cut);
            tokio::spawn(async move {
                while let Ok((client, _)) = listener.accept().await {
                    tokio::spawn(connect(client, server, is_cut.subscribe()));
                }
            });
        }
        Self { ports, is_cut }
    }

    /// For `--store`.
    pub fn url(&self) -> String {
        urls(&self.ports)
    }

    /// Nothing passes while it is cut off. What was sent meanwhile passes later, as by a network that
    /// was interrupted.
    pub fn cut(&self, is_cut: bool) {
        self.is_cut.send_replace(is_cut);
    }
}

async fn connect(client: TcpStream, server: u16, is_cut: watch::Receiver<bool>) {
    let mut open = is_cut.clone();
    if open.wait_for(|is_cut| !is_cut).await.is_err() {
        return;
    }
    let Ok(server) = TcpStream::connect(("127.0.0.1", server)).await else { return };
    let ((from_client, to_client), (from_server, to_server)) =
        (client.into_split(), server.into_split());
    tokio::spawn(pass(from_client, to_server, is_cut.clone()));
    pass(from_server, to_client, is_cut).await;
}

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut is_cut: watch::Receiver<bool>) {
    let mut bytes = vec![0; 64 << 10];
    loop {
        let read = from.read(&mut bytes).await.unwrap_or(0);
        if is_cut.wait_for(|is_cut| !is_cut).await.is_err() {
            return;
        }
        if read == 0 || to.write_all(&bytes[..read]).await.is_err() {
            // Ends the other direction, too.
            let _ = to.shutdown().await;
            return;
        }
    }
}
