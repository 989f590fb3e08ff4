//! Puts the tasks of a claimed partition and the records of replicas into the engine, at the start or
//! later.

use crate::dispatcher::replica_registry::ReplicaRegistry;
use crate::engine::{Arrived, Engine, KeyHasher, Now, Origin};
use crate::store::{Recovered, ReplicaRow};
use crate::task::{Node, Partition};

/// Adds claimed tasks, in the order of their ids.
pub(crate) fn tasks(
    engine: &mut Engine,
    keys: &KeyHasher,
    registry: &ReplicaRegistry,
    now: Now,
    partition: Partition,
    tasks: Vec<Recovered>,
) {
    for Recovered { header, progress, is_awaited, .. } in tasks {
        let arrived = Arrived {
            id: header.id,
            partition,
            key: keys.id(&header.key),
            replicas: &registry.resolve_all(&header.replicas),
            // With the names of before.
            bytes: header.weight() as u64,
            client: header.client.as_ref(),
            accepted_at: header.accepted_at,
        };
        let origin = match is_awaited {
            true => Origin::RecoveredAwaited(progress),
            false => Origin::Recovered(progress),
        };
        engine.arrive(now, arrived, origin);
    }
}

pub(crate) fn replica(
    engine: &mut Engine,
    registry: &mut ReplicaRegistry,
    now: Now,
    node: &Node,
    row: Option<ReplicaRow>,
) {
    if let Some(to) = row.as_ref().and_then(|row| row.renamed_to.as_ref()) {
        // Fails for a replica without a lane, which needs no rename, and if the new address has
        // deliveries already: then the rename is not confirmed.
        let _ = engine.follow_rename(now, node, to);
        // The record of the new address has the pause and the limits.
        return registry.restore(node, row);
    }
    let pause = row.as_ref().and_then(|row| row.pause);
    if pause.is_some() || registry.pause_of(node).is_some() {
        engine.pause(now, node, pause);
    }
    let limits = row.as_ref().map(|row| row.limits).unwrap_or_default();
    if limits != registry.limits_of(node) {
        engine.limit(now, node, limits);
    }
    registry.restore(node, row);
}
