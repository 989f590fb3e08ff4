//! Requests and bytes per user, in bounded memory.

use std::collections::HashMap;

use serde::Serialize;

const MAX_USERS: usize = 1000;

/// The busiest users, by the space-saving algorithm (Metwally, Agrawal, El Abbadi 2005): a new user
/// replaces the least busy one and inherits its counts. So no truly busy user is missing, and a
/// count is too high by at most the inherited part, reported as `requests_over_by`.
#[derive(Clone, Debug, Default)]
pub struct Users {
    figures: HashMap<String, UserCounts>,
}

#[derive(Clone, Copy, Debug, Default)]
struct UserCounts {
    requests: u64,
    bytes: u64,
    inherited: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct UserFigures {
    pub user_id: String,
    /// Valid requests.
    pub requests: u64,
    /// Bytes of keys and values.
    pub bytes: u64,
    /// Upper bound of the error of `requests`; 0 until there are more than 1000 users.
    pub requests_over_by: u64,
}

impl Users {
    pub fn record(&mut self, user: &str, bytes: u64) {
        if !self.figures.contains_key(user) {
            let initial = self.make_room();
            self.figures.insert(user.to_owned(), initial);
        }
        if let Some(figures) = self.figures.get_mut(user) {
            figures.requests += 1;
            figures.bytes += bytes;
        }
    }

    /// Returns the initial counts of a new user.
    fn make_room(&mut self) -> UserCounts {
        if self.figures.len() < MAX_USERS {
            return UserCounts::default();
        }
        let least = self.figures.iter().min_by_key(|(_, figures)| figures.requests);
        let least = least.map(|(user, _)| user.clone()).unwrap_or_default();
        let left = self.figures.remove(&least).unwrap_or_default();
        UserCounts { inherited: left.requests, ..left }
    }

    #[must_use]
    pub fn busiest(&self) -> Vec<UserFigures> {
        let all = self.figures.iter().map(|(user_id, figures)| UserFigures {
            user_id: user_id.clone(),
            requests: figures.requests,
            bytes: figures.bytes,
            requests_over_by: figures.inherited,
        });
        let mut all: Vec<_> = all.collect();
        all.sort_by(|a, b| b.requests.cmp(&a.requests).then_with(|| a.user_id.cmp(&b.user_id)));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_busiest_come_first() {
        let mut users = Users::default();
        for (user, bytes) in [("a", 1), ("b", 2), ("b", 3)] {
            users.record(user, bytes);
        }
        let busiest = users.busiest();
        assert_eq!(
            (busiest[0].user_id.as_str(), busiest[0].requests, busiest[0].bytes),
            ("b", 2, 5)
        );
        assert_eq!(busiest[1].requests_over_by, 0);
    }

    #[test]
    fn beyond_a_thousand_users_the_busy_ones_are_kept() {
        let mut users = Users::default();
        for _ in 0..50 {
            users.record("busy", 1);
        }
        for n in 0..5_000 {
            users.record(&format!("guest {n}"), 1);
        }
        let busiest = users.busiest();
        assert_eq!(busiest.len(), MAX_USERS);
        assert_eq!((busiest[0].user_id.as_str(), busiest[0].requests), ("busy", 50));
        assert!(busiest[1].requests <= 6, "{:?}", busiest[1]);
    }
}
