//! Compares what a primary and a replica returned for a key. Pure.
//!
//! A difference counts only if it was seen twice, with a pause in between, while the primary kept its
//! value and no newer write of the key was accepted: a write that was on its way during the first look
//! has arrived by then.

use crate::api::VerifyResult;
use crate::engine::KeyStanding;

/// What a node returned for a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    Value { digest: [u8; 32] },
    Missing,
    Unreadable(String),
}

/// What is known of a replica after one look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum SeenReplica {
    Read(Reading),
    /// It was not read, or a write was on its way at the end.
    Unsettled(KeyStanding),
}

/// A result, with the reason if there is one.
pub(super) type Judged = (VerifyResult, Option<String>);

/// The result after the first look; `None` if a second one is needed.
pub(super) fn after_first(primary: &Reading, replica: &SeenReplica) -> Option<Judged> {
    match replica {
        SeenReplica::Unsettled(standing) => Some(unsettled(*standing)),
        SeenReplica::Read(reading) if is_equal(primary, reading) => {
            Some((VerifyResult::Equal, None))
        }
        SeenReplica::Read(_) => None,
    }
}

/// The result after the second look. `before` is what the primary returned at the first one.
pub(super) fn after_second(before: &Reading, primary: &Reading, replica: &SeenReplica) -> Judged {
    if let Some(judged) = after_first(primary, replica) {
        return judged;
    }
    match (primary, replica) {
        (Reading::Unreadable(why), _) => {
            (VerifyResult::Unreadable, Some(format!("the primary: {why}")))
        }
        (_, SeenReplica::Read(Reading::Unreadable(why))) => {
            (VerifyResult::Unreadable, Some(format!("the replica: {why}")))
        }
        _ if before != primary => {
            (VerifyResult::Pending, Some("the value of the primary changes".to_owned()))
        }
        (Reading::Missing, _) => (VerifyResult::Extra, None),
        (_, SeenReplica::Read(Reading::Missing)) => (VerifyResult::Missing, None),
        _ => (VerifyResult::Different, None),
    }
}

fn is_equal(primary: &Reading, replica: &Reading) -> bool {
    primary == replica && !matches!(primary, Reading::Unreadable(_))
}

fn unsettled(standing: KeyStanding) -> Judged {
    let why = match standing {
        KeyStanding::Dead => "the write is a dead letter",
        KeyStanding::Paused => "the replica is paused",
        KeyStanding::Unknown => "the replica was forgotten",
        KeyStanding::Dropped => "too many keys were written meanwhile",
        KeyStanding::Pending | KeyStanding::Settled => "a write of the key is on its way",
    };
    (VerifyResult::Pending, Some(why.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(byte: u8) -> Reading {
        Reading::Value { digest: [byte; 32] }
    }

    fn second(before: &Reading, primary: &Reading, replica: Reading) -> VerifyResult {
        after_second(before, primary, &SeenReplica::Read(replica)).0
    }

    #[test]
    fn equal_values_and_two_that_are_missing_are_equal_at_once() {
        for reading in [value(1), Reading::Missing] {
            let judged = after_first(&reading, &SeenReplica::Read(reading.clone()));
            assert_eq!(judged, Some((VerifyResult::Equal, None)));
        }
    }

    #[test]
    fn a_difference_is_looked_at_again() {
        let lost = || Reading::Unreadable("no answer".to_owned());
        for replica in [value(2), Reading::Missing, lost()] {
            assert_eq!(after_first(&value(1), &SeenReplica::Read(replica)), None);
        }
        assert_eq!(
            after_first(&lost(), &SeenReplica::Read(lost())),
            None,
            "nothing is known of either"
        );
    }

    #[test]
    fn a_difference_that_lasts_is_named_from_the_side_of_the_replica() {
        let one = value(1);
        assert_eq!(second(&one, &one, value(2)), VerifyResult::Different);
        assert_eq!(second(&one, &one, Reading::Missing), VerifyResult::Missing);
        let none = Reading::Missing;
        assert_eq!(second(&none, &none, value(2)), VerifyResult::Extra);
        assert_eq!(second(&one, &one, value(1)), VerifyResult::Equal, "it has caught up");
    }

    #[test]
    fn a_primary_whose_value_changes_proves_no_difference() {
        assert_eq!(second(&value(1), &value(3), value(2)), VerifyResult::Pending);
        assert_eq!(second(&value(1), &Reading::Missing, value(1)), VerifyResult::Pending);
        let lost = Reading::Unreadable("no answer".to_owned());
        assert_eq!(second(&lost, &value(3), value(2)), VerifyResult::Pending);
        assert_eq!(second(&value(1), &lost, value(2)), VerifyResult::Unreadable);
        assert_eq!(second(&value(1), &value(1), lost), VerifyResult::Unreadable);
    }

    #[test]
    fn a_replica_that_still_lacks_a_write_is_no_difference() {
        for standing in [KeyStanding::Pending, KeyStanding::Dead, KeyStanding::Unknown] {
            let judged = after_first(&value(1), &SeenReplica::Unsettled(standing));
            assert_eq!(judged.unwrap().0, VerifyResult::Pending);
        }
    }
}
