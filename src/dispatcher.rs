//! The loop around the engine, and the way into it.
//!
//! Everything that changes the engine happens in `core.rs`, one event at a time. The server and
//! the commands hold a [`Handle`]: it sends requests to the loop and waits for the answers. The
//! dispatcher does not know who listens, nor how it is started and stopped: `daemon` does that.
//!
//! To read on: `core.rs` for the loop, `handle.rs` for the way in, `attempt.rs` for a delivery on
//! the wire.

mod admin;
mod admission;
mod attempt;
mod bulk;
pub(crate) mod claim;
mod core;
mod event_bus;
mod handle;
mod history;
mod log_throttle;
pub(crate) mod messages;
mod rates;
mod read_memory;
mod replica_registry;
mod shortages;
mod task_cache;
mod times;
mod uptime;
mod view;

pub(crate) use attempt::Attempts;
pub(crate) use bulk::Operations;
pub(crate) use core::{Core, Parts};
pub(crate) use event_bus::Bus;
#[cfg(test)]
pub(crate) use event_bus::EventKind;
pub use event_bus::{Event, EventKinds, Events};
pub use handle::Handle;
pub(crate) use handle::Operator;
pub(crate) use history::History;
pub use messages::{Accepted, AdminError, Health, LetterFilter, Refusal, TaskFilter};
#[cfg(test)]
pub(crate) use messages::{Request, Write};
pub(crate) use read_memory::ReadMemory;
pub(crate) use replica_registry::ReplicaRegistry;
pub(crate) use uptime::UptimeRecorder;
