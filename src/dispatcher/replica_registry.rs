//! The durable records of replicas: which were ever used, which are paused, limited or renamed.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};

use crate::store::ReplicaRow;
use crate::task::{Node, ReplicaLimits, ReplicaPause, Timestamp};

/// Beyond this many, the replica that was used first is forgotten, unless an operator has set something
/// for it: made-up names must not fill the disk.
const MAX_REPLICAS: usize = 65_536;

/// A row to write, or to remove.
pub(crate) type RegistryChange = (Node, Option<ReplicaRow>);

#[derive(Clone, Debug, Default)]
pub(crate) struct ReplicaRegistry {
    rows: HashMap<Node, ReplicaRow>,
    /// Rows with only the first use, by it.
    plain: BTreeSet<(Timestamp, Node)>,
    /// Former names, with the current one.
    renamed: HashMap<Node, Node>,
}

impl ReplicaRegistry {
    pub(crate) fn restore(&mut self, node: &Node, row: Option<ReplicaRow>) {
        match row {
            Some(row) => drop(self.set(node, row)),
            None => self.remove(node),
        }
    }

    fn remove(&mut self, node: &Node) {
        self.renamed.remove(node);
        if let Some(before) = self.rows.remove(node) {
            self.plain.remove(&(before.first_used, node.clone()));
        }
    }

    /// The current name of a replica.
    pub(crate) fn resolve<'a>(&'a self, node: &'a Node) -> &'a Node {
        self.renamed.get(node).unwrap_or(node)
    }

    /// [`Self::resolve`] for each.
    pub(crate) fn resolve_all<'a>(&self, nodes: &'a [Node]) -> Cow<'a, [Node]> {
        if self.renamed.is_empty() {
            return Cow::Borrowed(nodes);
        }
        nodes.iter().map(|node| self.resolve(node).clone()).collect()
    }

    pub(crate) fn knows(&self, node: &Node) -> bool {
        self.rows.contains_key(node)
    }

    pub(crate) fn has_renamed(&self) -> bool {
        !self.renamed.is_empty()
    }

    pub(crate) fn names_before(&self, node: &Node) -> Vec<String> {
        let before = self.renamed.iter().filter(|(_, to)| *to == node);
        let mut names: Vec<_> = before.map(|(from, _)| from.to_string()).collect();
        names.sort();
        names
    }

    /// The paused replicas, each with the start of its pause.
    pub(crate) fn paused(&self) -> impl Iterator<Item = (&Node, ReplicaPause)> {
        self.rows.iter().filter_map(|(node, row)| Some((node, row.pause?)))
    }

    pub(crate) fn pause_of(&self, node: &Node) -> Option<ReplicaPause> {
        self.rows.get(node)?.pause
    }

    /// Returns the changes to write before the first write to a replica.
    pub(crate) fn note_use(&mut self, node: &Node, now: Timestamp) -> Vec<RegistryChange> {
        if self.rows.contains_key(node) {
            return Vec::new();
        }
        let mut changes = Vec::new();
        if self.rows.len() >= MAX_REPLICAS
            && let Some((_, first)) = self.plain.pop_first()
        {
            self.rows.remove(&first);
            changes.push((first, None));
        }
        changes.push(self.set(node, ReplicaRow::new(now)));
        changes
    }

    /// Pauses a replica, or resumes it without a pause.
    pub(crate) fn pause(
        &mut self,
        node: &Node,
        pause: Option<ReplicaPause>,
        now: Timestamp,
    ) -> RegistryChange {
        let row = self.row(node, now);
        self.set(node, ReplicaRow { pause, ..row })
    }

    pub(crate) fn limits_of(&self, node: &Node) -> ReplicaLimits {
        self.rows.get(node).map(|row| row.limits).unwrap_or_default()
    }

    /// The replicas with limits.
    pub(crate) fn limited(&self) -> impl Iterator<Item = (&Node, ReplicaLimits)> {
        let limited = self.rows.iter().filter(|(_, row)| !row.limits.is_none());
        limited.map(|(node, row)| (node, row.limits))
    }

    pub(crate) fn limit(
        &mut self,
        node: &Node,
        limits: ReplicaLimits,
        now: Timestamp,
    ) -> RegistryChange {
        let row = self.row(node, now);
        self.set(node, ReplicaRow { limits, ..row })
    }

    /// Whether a replica may take this name with all its pending writes: it was never used, or only
    /// by the same replica.
    pub(crate) fn may_be_named(&self, node: &Node, to: &Node) -> bool {
        self.renamed.get(to) == Some(node) || !self.rows.contains_key(to)
    }

    /// Whether a replica without pending writes may take this name: it does not lead to another.
    pub(crate) fn is_free(&self, to: &Node) -> bool {
        !self.renamed.contains_key(to)
    }

    /// Renames a replica. Its former names lead to the new one.
    pub(crate) fn rename(&mut self, node: &Node, to: &Node, now: Timestamp) -> Vec<RegistryChange> {
        let row = self.row(node, now);
        let new = ReplicaRow { renamed_to: None, first_used: self.row(to, now).first_used, ..row };
        let mut changes = vec![self.set(to, new)];
        let before = self.renamed.iter().filter(|(_, known)| *known == node);
        let names: Vec<_> = before.map(|(from, _)| from.clone()).chain([node.clone()]).collect();
        for name in names.into_iter().filter(|name| name != to) {
            let row = ReplicaRow::new(self.row(&name, now).first_used);
            changes.push(self.set(&name, ReplicaRow { renamed_to: Some(to.clone()), ..row }));
        }
        changes
    }

    /// Ends the pause, the limits and the former names of a replica. The row stays: the name was used.
    pub(crate) fn forget(&mut self, node: &Node, now: Timestamp) -> Vec<RegistryChange> {
        let before = self.renamed.iter().filter(|(_, known)| *known == node);
        let names: Vec<_> = before.map(|(from, _)| from.clone()).chain([node.clone()]).collect();
        names
            .into_iter()
            .map(|name| {
                let row = self.row(&name, now);
                self.set(&name, ReplicaRow::new(row.first_used))
            })
            .collect()
    }

    fn row(&self, node: &Node, now: Timestamp) -> ReplicaRow {
        self.rows.get(node).cloned().unwrap_or_else(|| ReplicaRow::new(now))
    }

    fn set(&mut self, node: &Node, row: ReplicaRow) -> RegistryChange {
        match &row.renamed_to {
            Some(to) => self.renamed.insert(node.clone(), to.clone()),
            None => self.renamed.remove(node),
        };
        if let Some(before) = self.rows.insert(node.clone(), row.clone()) {
            self.plain.remove(&(before.first_used, node.clone()));
        }
        if row.is_plain() {
            self.plain.insert((row.first_used, node.clone()));
        }
        (node.clone(), Some(row))
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    const NOW: Timestamp = Timestamp(7);
    const PAUSE: Option<ReplicaPause> = Some(ReplicaPause { since: Timestamp(5), until: None });

    fn node(name: &str) -> Node {
        Node::parse(&format!("http://{name}")).unwrap()
    }

    /// The registry that a restart reads from these changes.
    fn reopened(changes: &[RegistryChange]) -> ReplicaRegistry {
        let mut registry = ReplicaRegistry::default();
        changes.iter().for_each(|(node, row)| registry.restore(node, row.clone()));
        registry
    }

    #[test]
    fn every_former_name_leads_to_the_last_one() {
        let (mut registry, [a, b, c]) = (ReplicaRegistry::default(), ["a", "b", "c"].map(node));
        let mut changes = registry.note_use(&a, NOW);
        changes.extend(registry.rename(&a, &b, NOW));
        changes.extend(registry.rename(&b, &c, NOW));
        for registry in [&registry, &reopened(&changes)] {
            assert_eq!([&a, &b, &c].map(|name| registry.resolve(name)), [&c; 3]);
            assert_eq!(registry.names_before(&c), ["http://a", "http://b"]);
        }
    }

    #[test]
    fn a_name_used_by_another_replica_is_refused_and_a_former_name_can_be_taken_back() {
        let (mut registry, [a, b, c]) = (ReplicaRegistry::default(), ["a", "b", "c"].map(node));
        registry.note_use(&a, NOW);
        registry.note_use(&c, NOW);
        assert!(registry.may_be_named(&a, &b));
        assert!(!registry.may_be_named(&a, &c));
        assert!(registry.is_free(&c));
        registry.rename(&a, &b, NOW);
        assert!(!registry.may_be_named(&c, &a) && !registry.is_free(&a), "it leads to another");
        assert!(registry.may_be_named(&b, &a));
        registry.rename(&b, &a, NOW);
        assert_eq!((registry.resolve(&a), registry.resolve(&b)), (&a, &a));
    }

    #[test]
    fn a_pause_and_limits_follow_a_rename_and_end_when_the_replica_is_forgotten() {
        let (mut registry, [a, b]) = (ReplicaRegistry::default(), ["a", "b"].map(node));
        let mut changes = registry.note_use(&a, NOW);
        let limits = ReplicaLimits { rate: NonZeroU32::new(5), ..ReplicaLimits::default() };
        changes.push(registry.limit(&a, limits, NOW));
        changes.push(registry.pause(&a, PAUSE, NOW));
        changes.extend(registry.rename(&a, &b, NOW));
        assert_eq!([&a, &b].map(|node| registry.pause_of(node).is_some()), [false, true]);
        assert_eq!(registry.limited().collect::<Vec<_>>(), [(&b, limits)]);
        changes.extend(registry.forget(&b, NOW));
        let registry = reopened(&changes);
        assert_eq!(registry.limited().count(), 0);
        assert_eq!([&a, &b].map(|node| registry.pause_of(node).is_some()), [false, false]);
        assert_eq!(registry.resolve(&a), &a);
        assert!(!registry.may_be_named(&a, &b) && registry.is_free(&b));
    }

    #[test]
    fn made_up_names_do_not_grow_without_limit() {
        let mut registry = ReplicaRegistry::default();
        let kept = node("kept");
        registry.pause(&kept, PAUSE, NOW);
        for n in 0..MAX_REPLICAS as u64 + 10 {
            registry.note_use(&node(&format!("n{n}")), Timestamp(n + 10));
        }
        assert_eq!(registry.rows.len(), MAX_REPLICAS);
        assert!(registry.rows.contains_key(&kept));
        assert!(registry.may_be_named(&kept, &node("n0")));
    }
}
