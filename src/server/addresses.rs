//! Replica addresses by their spelling, parsed once.
//!
//! Nearly all writes name the same few replicas, and parsing an address takes microseconds.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::RwLock;

use crate::policy::{Forbidden, Policy, Target};
use crate::task::{MAX_NODE_BYTES, Node, NodeError};

/// Above the default limit of known replicas. With the longest addresses it is 4 MiB.
const MAX_KNOWN: usize = 2048;

/// A valid address, as the client spelled it.
#[derive(Clone, Debug)]
pub(super) struct Address {
    pub(super) spelled: Arc<str>,
    pub(super) node: Node,
    /// Of `node`, for the policy.
    target: Result<Arc<Target>, Forbidden>,
}

impl Address {
    fn parse(text: &str) -> Result<Self, NodeError> {
        let node = Node::parse(text)?;
        let target = Target::of(&node).map(Arc::new);
        Ok(Self { spelled: text.into(), node, target })
    }

    /// [`Policy::admit`], without parsing.
    pub(super) fn admit(&self, policy: &Policy) -> Result<(), Forbidden> {
        policy.admit_target(self.target.as_ref().map_err(Clone::clone)?)
    }
}

#[derive(Debug, Default)]
pub(super) struct Addresses(RwLock<HashMap<Arc<str>, Address>>);

impl Addresses {
    pub(super) fn parse(&self, text: &str) -> Result<Address, NodeError> {
        let known = self.0.read();
        if let Some(address) = known.get(text) {
            return Ok(address.clone());
        }
        drop(known);
        let address = Address::parse(text)?;
        if text.len() <= MAX_NODE_BYTES {
            let mut known = self.0.write();
            // A client that fills it makes the others parse theirs again.
            if known.len() >= MAX_KNOWN {
                known.clear();
            }
            known.insert(Arc::clone(&address.spelled), address.clone());
        }
        Ok(address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_one_node_are_kept_apart_and_lead_to_it() {
        let addresses = Addresses::default();
        for _ in 0..2 {
            for text in ["http://A/", "http://a"] {
                let address = addresses.parse(text).unwrap();
                assert_eq!((&*address.spelled, address.node.as_str()), (text, "http://a"));
            }
            assert!(addresses.parse("a:1").is_err());
        }
        assert_eq!(addresses.0.read().len(), 2);
    }

    #[test]
    fn the_rules_of_now_decide_about_an_address_that_was_admitted_before() {
        let policy = Policy::new(None, None);
        let address = Addresses::default().parse("http://10.0.0.1").unwrap();
        assert_eq!(address.admit(&policy), Ok(()));
        policy.replace(Some(Vec::new()));
        assert_eq!(address.admit(&policy), Err(Forbidden::NotListed));
    }

    #[test]
    fn a_client_that_names_ever_new_replicas_fills_no_memory() {
        let addresses = Addresses::default();
        for number in 0..3 * MAX_KNOWN {
            addresses.parse(&format!("http://h{number}")).unwrap();
            assert!(addresses.0.read().len() <= MAX_KNOWN);
        }
    }
}
