//! The threads for outbound work: attempts, their connections, and the sending of spans.
//!
//! They are apart from those of the server, so that bytes from replicas, however many, never delay a
//! probe, a write or an accepted connection.

use std::io;
use std::num::NonZeroUsize;
use std::thread;

use tokio::runtime::{Builder, Handle, Runtime};

/// One thread sends some 10,000 writes a second. A second one is for machines with a core to spare.
pub(crate) fn outbound_threads() -> usize {
    let cores = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    (cores / 2).clamp(1, 2)
}

/// Dropping it cancels its tasks and waits for nothing.
#[derive(Debug)]
pub(super) struct OutboundRuntime {
    handle: Handle,
    /// Taken when it is dropped.
    runtime: Option<Runtime>,
}

impl OutboundRuntime {
    pub(super) fn start() -> io::Result<Self> {
        let mut builder = Builder::new_multi_thread();
        builder.worker_threads(outbound_threads()).thread_name("outbound").enable_all();
        let runtime = builder.build()?;
        Ok(Self { handle: runtime.handle().clone(), runtime: Some(runtime) })
    }

    pub(super) fn handle(&self) -> &Handle {
        &self.handle
    }
}

impl Drop for OutboundRuntime {
    fn drop(&mut self) {
        // A runtime that is just dropped waits for its blocking tasks, and panics in a task.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
