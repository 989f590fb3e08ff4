//! The figures of the last hour.

use crate::api;
use crate::dispatcher::messages::{AdminError, AdminReply, Request};
use crate::dispatcher::{Core, Handle};
use crate::task::Node;

impl Handle {
    /// Of the daemon, or of one replica.
    pub(in crate::dispatcher) async fn past_figures_here(
        &self,
        node: Option<Node>,
    ) -> Result<Option<api::PastFigures>, AdminError> {
        self.ask(|reply| Request::Past { node, reply }).await
    }
}

impl Core {
    pub(in crate::dispatcher) fn show_past(
        &self,
        node: Option<&Node>,
        reply: AdminReply<Option<api::PastFigures>>,
    ) {
        let node = node.map(|node| self.registry.resolve(node));
        // The operator may be gone.
        let _ = reply.send(Ok(self.observed.past.shown(node)));
    }
}
