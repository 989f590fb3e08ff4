//! The loop around the engine, and its entry point.
//!
//! Only `core.rs` changes the engine, one event at a time. The server and the commands hold a
//! [`Handle`], which sends requests to the loop and waits for the answers. Start and stop are in
//! `daemon`.
//!
//! Read on with `core.rs` for the loop, `core/accept.rs` for the path of a write, `handle.rs` for the
//! entry point, `attempt.rs` for a delivery in flight.

mod admin;
mod admission;
mod alarms;
mod attempt;
mod bulk;
pub(crate) mod claim;
mod cluster;
mod core;
mod event_bus;
mod handle;
mod history;
mod latency;
mod log_throttle;
pub(crate) mod messages;
mod past_figures;
mod read_memory;
mod replica_registry;
mod task_cache;
mod uptime;
mod verify;
mod view;

pub(crate) use admin::PendingAdmin;
pub(crate) use attempt::Attempts;
pub(crate) use bulk::Operations;
pub(crate) use core::{Core, Intake, Observability};
pub(crate) use event_bus::EventBus;
#[cfg(test)]
pub(crate) use event_bus::EventKind;
pub use event_bus::{EventKinds, EventSubscription, StreamEvent};
pub use handle::Handle;
pub(crate) use handle::Operator;
pub(crate) use history::TaskHistory;
pub use messages::{
    AcceptedWrite, AdminError, Health, LetterFilter, LimitChange, LimitsChange, PauseEnd, Refusal,
    TaskFilter,
};
#[cfg(test)]
pub(crate) use messages::{NewWrite, Request};
pub(crate) use read_memory::ReadMemory;
pub(crate) use replica_registry::ReplicaRegistry;
pub(crate) use task_cache::TaskCache;
pub(crate) use uptime::UptimeRecorder;
pub use verify::VerifyOptions;
pub(crate) use verify::{NodeReader, RecentWrites, VerifiedBoard, verify_in_background};
