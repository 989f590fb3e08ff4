//! What an operator sets for one replica.

use std::fmt;
use std::num::{NonZeroU32, NonZeroU64};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Timestamp;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplicaPause {
    pub since: Timestamp,
    /// When it ends by itself; `None` if it lasts until an operator ends it.
    pub until: Option<Timestamp>,
}

/// Without an end.
impl From<Timestamp> for ReplicaPause {
    fn from(since: Timestamp) -> Self {
        Self { since, until: None }
    }
}

impl ReplicaPause {
    /// The longest pause that ends by itself.
    pub const LONGEST: Duration = Duration::from_secs(366 * 24 * 3600);

    /// How much of it is left by the wall clock, `None` if it has no end. At most its whole length,
    /// so that a clock that was set back does not prolong it.
    #[must_use]
    pub fn left(self, now: Timestamp) -> Option<Duration> {
        let until = self.until?;
        Some(until.saturating_since(now).min(until.saturating_since(self.since)))
    }
}

/// Limits of what is sent to a replica. `null`: the daemon's flag applies, or there is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReplicaLimits {
    /// Concurrent deliveries, of each instance; instead of `--workers`, or of its maximum if that
    /// is `auto`.
    #[schema(value_type = Option<u32>, minimum = 1, maximum = 1024)]
    pub workers: Option<NonZeroU32>,
    /// Requests per second.
    #[schema(value_type = Option<u32>, minimum = 1, maximum = 1_000_000)]
    pub rate: Option<NonZeroU32>,
    /// Bytes per second. A write counts with its key, its value, its addresses and 512 bytes.
    #[schema(value_type = Option<u64>, minimum = 1, maximum = 1_000_000_000_000_u64)]
    pub bandwidth: Option<NonZeroU64>,
    /// Redriven dead letters per second, instead of `--redrive-rate`.
    #[schema(value_type = Option<u32>, minimum = 1, maximum = 1_000_000)]
    pub redrive_rate: Option<NonZeroU32>,
}

/// As `workers 2, rate 50/s`, or `none`.
impl fmt::Display for ReplicaLimits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |name: &str, number: Option<NonZeroU32>, unit: &str| {
            number.map(|number| format!("{name} {number}{unit}"))
        };
        let limits = [
            text("workers", self.workers, ""),
            text("rate", self.rate, "/s"),
            self.bandwidth.map(|bytes| format!("bandwidth {bytes} bytes/s")),
            text("redrive rate", self.redrive_rate, "/s"),
        ];
        let limits: Vec<_> = limits.into_iter().flatten().collect();
        f.write_str(if limits.is_empty() { "none" } else { "" })?;
        f.write_str(&limits.join(", "))
    }
}

impl ReplicaLimits {
    pub const MOST_WORKERS: u64 = 1024;
    pub const MOST_RATE: u64 = 1_000_000;
    pub const MOST_BANDWIDTH: u64 = 1_000_000_000_000;

    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// The first field that is above its maximum, and the maximum.
    #[must_use]
    pub fn excess(&self) -> Option<(&'static str, u64)> {
        let wide = |number: Option<NonZeroU32>| number.map_or(0, |number| number.get().into());
        [
            ("workers", wide(self.workers), Self::MOST_WORKERS),
            ("rate", wide(self.rate), Self::MOST_RATE),
            ("bandwidth", self.bandwidth.map_or(0, NonZeroU64::get), Self::MOST_BANDWIDTH),
            ("redrive_rate", wide(self.redrive_rate), Self::MOST_RATE),
        ]
        .into_iter()
        .find_map(|(field, value, most)| (value > most).then_some((field, most)))
    }
}
