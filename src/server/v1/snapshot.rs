//! `POST /v1/snapshot`: a copy of the store, streamed.
//!
//! A thread reads the store and waits for the reader: at most [`CHUNKS`] chunks are in memory. A reader
//! that stalls is cut by its connection, which ends the thread. A copy that ends early has no last
//! line, and its connection is cut.

use std::io::{self, Write};
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use tokio::sync::mpsc;
use tracing::warn;

use super::extract::NoParameters;
use super::{CommonErrors, Problem, ServerState};
use crate::api;
use crate::server::access::Caller;

const CHUNK_BYTES: usize = 64 * 1024;

/// Chunks that wait for the reader.
const CHUNKS: usize = 4;

#[utoipa::path(
    post, path = "/v1/snapshot", tag = "service",
    operation_id = "createSnapshot",
    summary = "A copy of the store, while the daemon runs",
    description = "The unsettled tasks with their values and progress, the dead letters, the records \
        of replicas and the idempotency keys, as they are at one instant after the request: what a \
        kill of the daemon would have left then. One JSON object per line, for `replicator import`. \
        The copy is complete if its last line begins with `{\"end\"`. One copy at a time.",
    responses(
        (status = 200, body = String, content_type = "application/x-ndjson", description = "The copy."),
        (status = 409, body = api::Error, description = "The store is in a cluster."),
        CommonErrors,
    ),
)]
pub(super) async fn create(
    State(server): State<Arc<ServerState>>,
    caller: Caller,
    _: NoParameters,
) -> Result<Response, Problem> {
    let snapshot = server.operated(server.handle.store_snapshot().await)?;
    let (sender, chunks) = mpsc::channel(CHUNKS);
    let write = move || {
        let mut out = ChunkWriter { sender, chunk: Vec::with_capacity(CHUNK_BYTES) };
        if let Err(error) = snapshot.write(&mut out) {
            // Otherwise the reader is gone.
            if error.kind() != io::ErrorKind::BrokenPipe {
                warn!(%error, "a snapshot has ended early");
                let _ = out.sender.blocking_send(Err(error));
            }
        }
    };
    tokio::task::spawn_blocking(write);
    let ended = async move {
        tokio::select! {
            () = server.closing() => {}
            () = caller.revoked(&server.settings.access) => {}
        }
    };
    let body = stream::unfold(Some((chunks, Box::pin(ended))), async |state| {
        let (mut chunks, mut ended) = state?;
        tokio::select! {
            chunk = chunks.recv() => {
                let chunk: io::Result<Bytes> = chunk?;
                let rest = chunk.is_ok().then_some((chunks, ended));
                Some((chunk, rest))
            }
            () = &mut ended => {
                let why = io::Error::other("the server stops, or the token is no longer valid");
                Some((Err(why), None))
            }
        }
    });
    let head = [(CONTENT_TYPE, "application/x-ndjson"), (CACHE_CONTROL, "no-store")];
    Ok((head, Body::from_stream(body)).into_response())
}

/// Sends chunks, and waits while [`CHUNKS`] are not read.
struct ChunkWriter {
    sender: mpsc::Sender<io::Result<Bytes>>,
    chunk: Vec<u8>,
}

impl Write for ChunkWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = CHUNK_BYTES.saturating_sub(self.chunk.len());
        let taken = room.min(bytes.len());
        self.chunk.extend_from_slice(bytes.get(..taken).unwrap_or_default());
        if self.chunk.len() >= CHUNK_BYTES {
            self.flush()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        let chunk = std::mem::replace(&mut self.chunk, Vec::with_capacity(CHUNK_BYTES));
        let sent = self.sender.blocking_send(Ok(chunk.into()));
        sent.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}
