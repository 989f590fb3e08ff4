//! The deliveries of a lane that are in flight, within the `workers` limit and outside of it.

use crate::engine::table::Priority;

/// Maximum urgent deliveries in flight. They are outside the `workers` limit, and without a limit
/// of their own a replica that hangs would use up the connections of this process.
const MAX_EXPRESS: u32 = 128;

#[derive(Debug, Default)]
pub(in crate::engine) struct InFlight {
    /// Within the `workers` limit.
    workers: u32,
    /// Urgent, outside of it.
    express: u32,
}

impl InFlight {
    pub(in crate::engine) fn start(&mut self, priority: Priority) {
        *self.count(priority) += 1;
    }

    pub(in crate::engine) fn end(&mut self, priority: Priority) {
        *self.count(priority) -= 1;
    }

    pub(in crate::engine) fn workers(&self) -> u32 {
        self.workers
    }

    pub(in crate::engine) fn total(&self) -> u32 {
        self.workers + self.express
    }

    /// Whether another urgent delivery may be sent outside the `workers` limit.
    pub(in crate::engine) fn has_express_room(&self) -> bool {
        self.express < MAX_EXPRESS
    }

    fn count(&mut self, priority: Priority) -> &mut u32 {
        if priority == Priority::Urgent { &mut self.express } else { &mut self.workers }
    }
}
