//! What is known of replicas beyond their deliveries: which were ever used, which are paused, and
//! which go by another name by now.

use std::collections::{BTreeSet, HashMap};

use crate::store::ReplicaRow;
use crate::task::{Node, Timestamp};

/// Replicas that are remembered. Beyond, the one that was used first is forgotten, unless an
/// operator has said something of it: names that someone made up must not fill the disk.
const REMEMBERED: usize = 65_536;

/// A row to be written, or to be removed.
pub(crate) type RegistryChange = (Node, Option<ReplicaRow>);

/// The rows, as they are on disk.
#[derive(Clone, Debug, Default)]
pub(crate) struct ReplicaRegistry {
    rows: HashMap<Node, ReplicaRow>,
    /// Of the rows, those of which an operator has said nothing, the one used first first.
    plain: BTreeSet<(Timestamp, Node)>,
    /// Of the rows, those with another name.
    renamed: HashMap<Node, Node>,
}

impl ReplicaRegistry {
    /// Takes on a record as it is on disk; `None` if there is none any more.
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

    /// Under which name a replica is to be found now.
    pub(crate) fn resolve<'a>(&'a self, node: &'a Node) -> &'a Node {
        self.renamed.get(node).unwrap_or(node)
    }

    /// Whether anything was ever accepted or said of it.
    pub(crate) fn knows(&self, node: &Node) -> bool {
        self.rows.contains_key(node)
    }

    /// Whether any goes by another name.
    pub(crate) fn has_renamed(&self) -> bool {
        !self.renamed.is_empty()
    }

    /// The names that a replica had before.
    pub(crate) fn names_before(&self, node: &Node) -> Vec<String> {
        let before = self.renamed.iter().filter(|(_, to)| *to == node);
        let mut names: Vec<_> = before.map(|(from, _)| from.to_string()).collect();
        names.sort();
        names
    }

    pub(crate) fn is_paused(&self, node: &Node) -> bool {
        self.rows.get(node).is_some_and(|row| row.paused_since.is_some())
    }

    /// A write for a replica is accepted: what has to be written before it, if it is the first.
    pub(crate) fn note_use(&mut self, node: &Node, now: Timestamp) -> Vec<RegistryChange> {
        if self.rows.contains_key(node) {
            return Vec::new();
        }
        let mut changes = Vec::new();
        if self.rows.len() >= REMEMBERED
            && let Some((_, first)) = self.plain.pop_first()
        {
            self.rows.remove(&first);
            changes.push((first, None));
        }
        changes.push(self.set(node, unused(now)));
        changes
    }

    /// Pauses a replica, or lets it go on.
    pub(crate) fn pause(
        &mut self,
        node: &Node,
        since: Option<Timestamp>,
        now: Timestamp,
    ) -> RegistryChange {
        let mut row = self.row(node, now);
        row.paused_since = since;
        self.set(node, row)
    }

    /// Whether a replica may go by this name: nothing was ever sent to it, or only to this very
    /// replica.
    pub(crate) fn may_be_named(&self, node: &Node, to: &Node) -> bool {
        self.renamed.get(to) == Some(node) || !self.rows.contains_key(to)
    }

    /// A replica goes by another name from now on, and so does whatever went by its former one.
    pub(crate) fn rename(&mut self, node: &Node, to: &Node, now: Timestamp) -> Vec<RegistryChange> {
        let row = self.row(node, now);
        let mut new = self.row(to, now);
        (new.renamed_to, new.paused_since) = (None, row.paused_since);
        let mut changes = vec![self.set(to, new)];
        let before = self.renamed.iter().filter(|(_, known)| *known == node);
        let names: Vec<_> = before.map(|(from, _)| from.clone()).chain([node.clone()]).collect();
        for name in names.into_iter().filter(|name| name != to) {
            let mut row = self.row(&name, now);
            (row.renamed_to, row.paused_since) = (Some(to.clone()), None);
            changes.push(self.set(&name, row));
        }
        changes
    }

    /// A replica is gone: it is not paused any more, and no name leads to it. That it was used is
    /// remembered.
    pub(crate) fn forget(&mut self, node: &Node, now: Timestamp) -> Vec<RegistryChange> {
        let before = self.renamed.iter().filter(|(_, known)| *known == node);
        let names: Vec<_> = before.map(|(from, _)| from.clone()).chain([node.clone()]).collect();
        names
            .into_iter()
            .map(|name| {
                let row = self.row(&name, now);
                self.set(&name, ReplicaRow { paused_since: None, renamed_to: None, ..row })
            })
            .collect()
    }

    fn row(&self, node: &Node, now: Timestamp) -> ReplicaRow {
        self.rows.get(node).cloned().unwrap_or_else(|| unused(now))
    }

    fn set(&mut self, node: &Node, row: ReplicaRow) -> RegistryChange {
        match &row.renamed_to {
            Some(to) => self.renamed.insert(node.clone(), to.clone()),
            None => self.renamed.remove(node),
        };
        if let Some(before) = self.rows.insert(node.clone(), row.clone()) {
            self.plain.remove(&(before.first_used, node.clone()));
        }
        if is_plain(&row) {
            self.plain.insert((row.first_used, node.clone()));
        }
        (node.clone(), Some(row))
    }
}

fn is_plain(row: &ReplicaRow) -> bool {
    row.paused_since.is_none() && row.renamed_to.is_none()
}

fn unused(now: Timestamp) -> ReplicaRow {
    ReplicaRow { paused_since: None, renamed_to: None, first_used: now }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(7);

    fn node(name: &str) -> Node {
        Node::parse(&format!("http://{name}")).unwrap()
    }

    /// What a restart makes of the changes so far.
    fn reopened(changes: &[RegistryChange]) -> ReplicaRegistry {
        let mut registry = ReplicaRegistry::default();
        changes.iter().for_each(|(node, row)| registry.restore(node, row.clone()));
        registry
    }

    #[test]
    fn a_replica_is_found_under_its_last_name_by_all_it_ever_had() {
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
    fn a_name_that_was_used_by_another_is_not_given_and_a_former_one_is_given_back() {
        let (mut registry, [a, b, c]) = (ReplicaRegistry::default(), ["a", "b", "c"].map(node));
        registry.note_use(&a, NOW);
        registry.note_use(&c, NOW);
        assert!(registry.may_be_named(&a, &b));
        assert!(!registry.may_be_named(&a, &c));
        registry.rename(&a, &b, NOW);
        assert!(!registry.may_be_named(&c, &a), "it leads to another");
        assert!(registry.may_be_named(&b, &a));
        registry.rename(&b, &a, NOW);
        assert_eq!((registry.resolve(&a), registry.resolve(&b)), (&a, &a));
    }

    #[test]
    fn a_pause_goes_with_the_replica_and_ends_when_it_is_forgotten() {
        let (mut registry, [a, b]) = (ReplicaRegistry::default(), ["a", "b"].map(node));
        let mut changes = registry.note_use(&a, NOW);
        changes.push(registry.pause(&a, Some(Timestamp(5)), NOW));
        changes.extend(registry.rename(&a, &b, NOW));
        assert_eq!([&a, &b].map(|node| registry.is_paused(node)), [false, true]);
        changes.extend(registry.forget(&b, NOW));
        let registry = reopened(&changes);
        assert_eq!([&a, &b].map(|node| registry.is_paused(node)), [false, false]);
        assert_eq!(registry.resolve(&a), &a);
        assert!(!registry.may_be_named(&a, &b));
    }

    #[test]
    fn made_up_names_do_not_grow_without_end() {
        let mut registry = ReplicaRegistry::default();
        let kept = node("kept");
        registry.pause(&kept, Some(NOW), NOW);
        for n in 0..REMEMBERED as u64 + 10 {
            registry.note_use(&node(&format!("n{n}")), Timestamp(n + 10));
        }
        assert_eq!(registry.rows.len(), REMEMBERED);
        assert!(registry.rows.contains_key(&kept));
        assert!(registry.may_be_named(&kept, &node("n0")));
    }
}
