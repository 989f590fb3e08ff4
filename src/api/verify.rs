//! Comparisons of replicas with the primary.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Request to compare replicas with the primary.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewVerification {
    /// Compare this replica only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replica: Option<String>,
    /// Keys to compare, from 1 to 1000; 100 if missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample: Option<u32>,
    /// Write the value of the primary to the replicas that differ.
    #[serde(default)]
    pub repair: bool,
}

/// Result of a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum VerifyResult {
    /// The replica has the value of the primary, or neither has one.
    Equal,
    /// The replica has another value.
    Different,
    /// The replica has no value, and the primary has one.
    Missing,
    /// The replica has a value, and the primary has none.
    Extra,
    /// The primary or the replica did not return the value.
    Unreadable,
    /// A write of the key is on its way to the replica, or is a dead letter.
    Pending,
    /// The key was written again meanwhile.
    Rewritten,
}

/// Number of comparisons by result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VerifyCounts {
    pub equal: u64,
    pub different: u64,
    pub missing: u64,
    pub extra: u64,
    pub unreadable: u64,
    pub pending: u64,
    pub rewritten: u64,
    /// Comparisons whose difference is being repaired: a write of the value of the primary was
    /// accepted for the replica.
    pub repaired: u64,
}

/// The comparisons of one replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VerifiedReplica {
    pub replica: String,
    pub counts: VerifyCounts,
}

/// A comparison that did not find equal values.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VerifyFinding {
    pub key: String,
    /// The newest write of the key, which is its `task_id`.
    pub sequence: String,
    pub primary: String,
    pub replica: String,
    pub result: VerifyResult,
    /// Why the result is so, or why it was not repaired; `null` without a reason.
    pub detail: Option<String>,
    /// `task_id` of the write that repairs it.
    pub repaired_by: Option<String>,
}

/// Outcome of a verification.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Verification {
    /// Keys that were compared.
    pub keys: u64,
    /// Keys that were chosen and not compared within 45 s.
    pub unchecked: u64,
    pub counts: VerifyCounts,
    /// Sorted by address.
    pub replicas: Vec<VerifiedReplica>,
    /// What is different, missing, extra, unreadable or pending, at most 100.
    pub findings: Vec<VerifyFinding>,
}
