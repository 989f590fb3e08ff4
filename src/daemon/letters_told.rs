//! What the log has been told of dead letters: an outage has thousands, and a line each would bury
//! everything else.

use std::collections::HashMap;
use std::time::Duration;

use crate::engine::Moment;
use crate::task::{Cause, Node};

/// How often the letters of one replica and cause are told of at the most.
const INTERVAL: Duration = Duration::from_secs(10);

/// Replicas and causes that are remembered; beyond, those not heard of for long are forgotten.
const REMEMBERED: usize = 4096;

/// When each replica was last told of, and how many letters there have been since.
#[derive(Debug, Default)]
pub(super) struct LettersTold {
    told: HashMap<(Node, Option<Cause>), Told>,
}

#[derive(Debug)]
struct Told {
    until: Moment,
    untold: u64,
}

impl LettersTold {
    /// There is another one; discarded ones have no cause. Gives how many are to be told of now, if
    /// it is time.
    pub(super) fn entry(&mut self, now: Moment, node: &Node, cause: Option<Cause>) -> Option<u64> {
        if self.told.len() >= REMEMBERED {
            self.told.retain(|_, told| told.until > now);
        }
        let new = Told { until: now, untold: 0 };
        let told = self.told.entry((node.clone(), cause)).or_insert(new);
        told.untold += 1;
        if told.until > now {
            return None;
        }
        told.until = now.after(INTERVAL);
        Some(std::mem::take(&mut told.untold))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_of_letters_are_a_line_each_ten_seconds_with_their_number() {
        let mut letters = LettersTold::default();
        let [a, b] = ["http://a", "http://b"].map(|node| Node::parse(node).unwrap());
        let second = |n| Moment(0).after(Duration::from_secs(n));
        let mut told = |n, node, cause| letters.entry(second(n), node, Some(cause));
        assert_eq!(told(1, &a, Cause::GaveUp), Some(1));
        (0..1000).for_each(|_| assert_eq!(told(2, &a, Cause::GaveUp), None));
        assert_eq!(told(2, &a, Cause::Rejected), Some(1), "another cause");
        assert_eq!(told(2, &b, Cause::GaveUp), Some(1), "another replica");
        assert_eq!(told(11, &a, Cause::GaveUp), Some(1001));
    }
}
