//! The names of streams and subjects. A cluster `C` uses only streams `C-*` and subjects `C.>`.

use std::fmt;
use std::str::FromStr;

use crate::task::{Partition, TaskId};

/// The partition of an id is its remainder.
pub const MAX_PARTITIONS: u16 = 1024;

/// A name that is one token of a subject: letters, digits, `-` and `_`, at most 32.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterName(String);

impl FromStr for ClusterName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        if (1..=32).contains(&text.len()) && text.bytes().all(allowed) {
            Ok(Self(text.to_owned()))
        } else {
            Err("must be 1 to 32 letters, digits, - or _".to_owned())
        }
    }
}

impl fmt::Display for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[derive(Clone, Debug)]
pub struct StreamNames(ClusterName);

impl StreamNames {
    #[must_use]
    pub const fn new(cluster: ClusterName) -> Self {
        Self(cluster)
    }

    #[must_use]
    pub fn meta_stream(&self) -> String {
        format!("{}-meta", self.0)
    }

    /// A subject of the stream of [`Self::meta_stream`].
    #[must_use]
    pub fn meta(&self, kind: &str, name: &str) -> String {
        format!("{}.m.{kind}.{name}", self.0)
    }

    /// The row with the record of the cluster.
    #[must_use]
    pub fn record(&self) -> String {
        self.meta("format", "1")
    }

    #[must_use]
    pub fn meta_subjects(&self) -> String {
        format!("{}.m.>", self.0)
    }

    #[must_use]
    pub fn key_stream(&self) -> String {
        format!("{}-keys", self.0)
    }

    /// An idempotency key, by its hash. `*` stands for all.
    #[must_use]
    pub fn key(&self, hash: &str) -> String {
        format!("{}.idem.{hash}", self.0)
    }

    #[must_use]
    pub fn stream(&self, partition: Partition) -> String {
        format!("{}-p{}", self.0, partition.0)
    }

    /// All subjects of the stream of a partition.
    #[must_use]
    pub fn stream_subjects(&self, partition: Partition) -> Vec<String> {
        ["t", "v", "c", "g.*", "k.*"].map(|kind| self.of(partition, kind)).into()
    }

    #[must_use]
    pub fn task(&self, partition: Partition) -> String {
        self.of(partition, "t")
    }

    /// Chunks of a large value, before their task.
    #[must_use]
    pub fn chunk(&self, partition: Partition) -> String {
        self.of(partition, "v")
    }

    #[must_use]
    pub fn progress(&self, partition: Partition, sequence: u64) -> String {
        self.of(partition, &format!("g.{sequence}"))
    }

    /// The sequence of the task that a progress is of.
    #[must_use]
    pub fn task_of_progress(&self, partition: Partition, subject: &str) -> Option<u64> {
        sequence(subject.strip_prefix(&self.of(partition, "g."))?)
    }

    /// The copy of a task, by the sequence of its first message.
    #[must_use]
    pub fn copy(&self, partition: Partition, sequence: u64) -> String {
        self.of(partition, &format!("k.{sequence}"))
    }

    #[must_use]
    pub fn task_of_copy(&self, partition: Partition, subject: &str) -> Option<u64> {
        sequence(subject.strip_prefix(&self.of(partition, "k."))?)
    }

    #[must_use]
    pub fn checkpoint(&self, partition: Partition) -> String {
        self.of(partition, "c")
    }

    /// Not stored: tells the owner that a task is durable.
    #[must_use]
    pub fn hint(&self, partition: Partition) -> String {
        self.of(partition, "h")
    }

    /// Not stored: its last owner has given the partition up.
    #[must_use]
    pub fn released(&self, partition: Partition) -> String {
        self.of(partition, "o")
    }

    /// Not stored: answers to the strong writes that a process has accepted.
    #[must_use]
    pub fn answers(&self, process: u64) -> String {
        format!("{}.a.{process:016x}", self.0)
    }

    /// Not stored: stored tasks, to the process that owns their partitions.
    #[must_use]
    pub fn pushed(&self, process: u64) -> String {
        format!("{}.s.{process:016x}", self.0)
    }

    /// Not stored: the requests of other instances to a process.
    #[must_use]
    pub fn questions(&self, process: u64) -> String {
        format!("{}.q.{process:016x}", self.0)
    }

    /// Not stored: the answer to one request of a process. `*` stands for all.
    #[must_use]
    pub fn answer(&self, process: u64, request: &str) -> String {
        format!("{}.r.{process:016x}.{request}", self.0)
    }

    /// Whether an answer may be sent there.
    #[must_use]
    pub fn is_answer(&self, subject: &str) -> bool {
        let rest = subject.strip_prefix(&self.0.0).and_then(|rest| rest.strip_prefix(".r."));
        rest.is_some_and(|rest| !rest.contains(['*', '>']))
    }

    /// Not stored: the instances announce themselves.
    #[must_use]
    pub fn alive(&self) -> String {
        format!("{}.alive", self.0)
    }

    fn of(&self, partition: Partition, kind: &str) -> String {
        format!("{}.p{}.{kind}", self.0, partition.0)
    }
}

/// A sequence that a task can have. Anyone may have written the subject.
fn sequence(text: &str) -> Option<u64> {
    const MAX: u64 = u64::MAX / MAX_PARTITIONS as u64 - 1;
    text.parse().ok().filter(|sequence| (1..=MAX).contains(sequence))
}

/// The id of a task: a sequence of its stream and its partition.
#[must_use]
pub const fn task_id(sequence: u64, partition: Partition) -> TaskId {
    TaskId(sequence * MAX_PARTITIONS as u64 + partition.0 as u64)
}

/// The partition and the sequence of a task.
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "a remainder below 1024")]
pub const fn place_of(id: TaskId) -> (Partition, u64) {
    (Partition((id.0 % MAX_PARTITIONS as u64) as u16), id.0 / MAX_PARTITIONS as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_name_is_one_token_of_a_subject() {
        for name in ["", "a.b", "a b", "*", ">", "ä", &"a".repeat(33)] {
            assert!(name.parse::<ClusterName>().is_err(), "{name}");
        }
        assert!("replicator-2_b".parse::<ClusterName>().is_ok());
    }

    #[test]
    fn an_answer_is_sent_only_to_an_instance() {
        let names = StreamNames::new("c".parse().unwrap());
        assert!(names.is_answer(&names.answer(7, "1")));
        for subject in ["c.p0.t", "c.m.replica.x", "d.r.7.1", "c.r.>", "$JS.API.STREAM.DELETE.c-p0"]
        {
            assert!(!names.is_answer(subject), "{subject}");
        }
    }

    #[test]
    fn an_id_has_its_sequence_and_its_partition() {
        let id = task_id(7, Partition(1023));
        assert_eq!(place_of(id), (Partition(1023), 7));
        assert!(id < task_id(8, Partition(0)));
        let names = StreamNames::new("c".parse().unwrap());
        let subject = |text: &str| names.copy(Partition(1), 7).replace("k.7", text);
        assert_eq!(names.task_of_copy(Partition(1), &subject("k.7")), Some(7));
        assert_eq!(names.task_of_progress(Partition(1), &subject("g.7")), Some(7));
        for forged in ["0", "18446744073709551615", "-1", ""] {
            assert_eq!(names.task_of_copy(Partition(1), &subject(&format!("k.{forged}"))), None);
            assert_eq!(
                names.task_of_progress(Partition(1), &subject(&format!("g.{forged}"))),
                None
            );
        }
    }
}
