//! Redrives and discards of many dead letters. Each instance does its own; the operation has one id,
//! which all of them know, and each knows all who take part. So any instance can show it, also after
//! the death of the one that began it.

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use super::{ClusterAnswers, Question, unanswered};
use crate::api::{BulkOperation, OperationKind, OperationPage, OperationState, RedriveOutcomes};
use crate::dispatcher::Handle;
use crate::dispatcher::bulk::{BulkWork, OperationPart, Participant, SharedOperation};
use crate::dispatcher::messages::{AdminError, LetterFilter};
use crate::store::{Member, Peers};

impl Handle {
    /// Starts to redrive dead letters, at most `rate` per second. A letter with a newer write of its
    /// key on the way is left out. [`AdminError::TooMany`] at the limit of running operations.
    pub async fn redrive(
        &self,
        filter: LetterFilter,
        dry_run: bool,
        rate: Option<NonZeroU32>,
    ) -> Result<BulkOperation, AdminError> {
        let rate = Some(rate.unwrap_or_else(|| *self.operator.redrive_rate.borrow()));
        self.start(BulkWork { kind: OperationKind::Redrive, filter, dry_run, rate }).await
    }

    /// Starts to discard dead letters. [`AdminError::TooMany`] at the limit of running operations.
    pub async fn discard(
        &self,
        filter: LetterFilter,
        dry_run: bool,
    ) -> Result<BulkOperation, AdminError> {
        let kind = OperationKind::Discard;
        self.start(BulkWork { kind, filter, dry_run, rate: None }).await
    }

    async fn start(&self, mut work: BulkWork) -> Result<BulkOperation, AdminError> {
        let Some(peers) = &self.operator.peers else {
            return self.start_operation_here(work, None).await.map(|part| part.operation);
        };
        let (here, others): (Vec<_>, Vec<_>) =
            peers.members().into_iter().partition(|member| member.process == peers.this());
        let members = || here.iter().chain(&others);
        let instances = u32::try_from(members().count()).unwrap_or(u32::MAX).max(1);
        work.rate = work
            .rate
            .map(|rate| NonZeroU32::new(rate.get() / instances).unwrap_or(NonZeroU32::MIN));
        let participants = members().map(Participant::of).collect();
        let id = format!("{:016x}", fastrand::u64(..));
        let shared = SharedOperation { id, participants };
        let question = Question::StartOperation { work, shared };
        // What is refused here has begun nowhere.
        let first = self.ask_members::<OperationPart>(peers, here, &question).await?;
        let rest = self.ask_members::<OperationPart>(peers, others, &question).await?;
        let answers = first.answers.into_iter().chain(rest.answers);
        let answers = answers.map(|(member, part)| (member, vec![part])).collect();
        let ClusterAnswers { refused, silent, incomplete, .. } = rest;
        let gathered = ClusterAnswers { answers, refused, silent, incomplete };
        let mut begun = self.merged_operations(gathered);
        begun.pop().ok_or(AdminError::Stopped)
    }

    /// The operations that are remembered, newest first.
    pub async fn operations(&self) -> Result<OperationPage, AdminError> {
        let Some(peers) = &self.operator.peers else {
            let parts = self.operations_here(None).into_iter();
            let operations = parts.map(|part| part.operation).collect();
            return Ok(OperationPage { operations, incomplete: Vec::new() });
        };
        let gathered = self.ask_all(peers, &Question::Operations { id: None }).await?;
        let incomplete = gathered.incomplete.clone();
        Ok(OperationPage { operations: self.merged_operations(gathered), incomplete })
    }

    pub async fn operation(&self, id: &str) -> Result<Option<BulkOperation>, AdminError> {
        let Some(peers) = &self.operator.peers else {
            return Ok(self.operations_here(Some(id)).pop().map(|part| part.operation));
        };
        let gathered =
            self.ask_all(peers, &Question::Operations { id: Some(id.to_owned()) }).await?;
        let incomplete = gathered.incomplete.clone();
        match self.merged_operations(gathered).pop() {
            Some(operation) => Ok(Some(operation)),
            None if incomplete.is_empty() => Ok(None),
            None => Err(unanswered(&incomplete)),
        }
    }

    /// Cancels an operation if it still runs, and waits for its end: the letters that were already
    /// redriven or discarded are counted.
    pub async fn cancel(&self, id: &str) -> Result<Option<BulkOperation>, AdminError> {
        let Some(peers) = &self.operator.peers else {
            return Ok(self.cancel_here(id).await.map(|part| part.operation));
        };
        let question = Question::CancelOperation { id: id.to_owned() };
        let asked = self.ask_all::<Option<OperationPart>>(peers, &question).await?;
        drop(asked);
        self.operation(id).await
    }

    /// Newest first.
    fn merged_operations(
        &self,
        gathered: ClusterAnswers<Vec<OperationPart>>,
    ) -> Vec<BulkOperation> {
        let partitions = self.operator.peers.as_ref().map_or(0, Peers::partitions);
        let mut by_id = BTreeMap::<String, Vec<(Member, OperationPart)>>::new();
        let ClusterAnswers { answers, refused, silent, .. } = gathered;
        for (member, parts) in answers {
            for part in parts {
                let id = part.operation.operation_id.clone();
                by_id.entry(id).or_default().push((member.clone(), part));
            }
        }
        let merge = |parts: Vec<_>| merge(&parts, &refused, &silent, partitions);
        let mut merged: Vec<_> = by_id.into_values().filter_map(merge).collect();
        merged.sort_by(|a, b| b.started_at.cmp(&a.started_at));
        merged
    }
}

impl Participant {
    fn of(member: &Member) -> Self {
        Self { process: member.process, node: member.node.clone() }
    }
}

/// Merges what the instances did. One that takes part and has no answer may still work, if it is alive;
/// of one that ended, what it did is not known. One that refused has done nothing.
fn merge(
    parts: &[(Member, OperationPart)],
    refused: &[(Member, AdminError)],
    silent: &[Member],
    partitions: u16,
) -> Option<BulkOperation> {
    let participants = parts.first()?.1.participants.clone();
    let answered = |one: &Participant| parts.iter().any(|(of, _)| of.process == one.process);
    let missing: Vec<_> = participants.iter().filter(|one| !answered(one)).cloned().collect();
    let is_silent = |one: &&Participant| silent.iter().any(|of| of.process == one.process);
    let may_work = missing.iter().any(|one| is_silent(&one));
    let is_whole =
        |partition: &u16| parts.iter().any(|(_, part)| part.partitions.contains(partition));
    let incomplete: Vec<_> = (0..partitions).filter(|partition| !is_whole(partition)).collect();
    let mut operations = parts.iter().map(|(_, part)| &part.operation);
    let mut merged = operations.next()?.clone();
    let mut states = vec![merged.state];
    for one in operations {
        states.push(one.state);
        add(&mut merged, one);
    }
    let is = |state: OperationState| states.contains(&state);
    merged.state = match () {
        () if is(OperationState::Running) || may_work => OperationState::Running,
        () if is(OperationState::Failed) || !missing.is_empty() => OperationState::Failed,
        () if is(OperationState::Cancelled) => OperationState::Cancelled,
        () => OperationState::Done,
    };
    if merged.state == OperationState::Running {
        merged.ended_at = None;
    }
    let mut errors: Vec<_> = merged.error.take().into_iter().collect();
    let refusal = |one: &Participant| {
        let refused = refused.iter().find(|(of, _)| of.process == one.process);
        refused.map(|(of, why)| format!("{} has refused its part: {why}", of.node))
    };
    errors.extend(missing.iter().filter_map(refusal));
    let lost: Vec<_> = missing.iter().filter(|one| refusal(one).is_none()).collect();
    if !lost.is_empty() {
        let nodes: Vec<_> = lost.iter().map(|one| one.node.as_str()).collect();
        errors.push(format!(
            "there is no part of {}: the dead letters that it has not reached are unchanged",
            nodes.join(", ")
        ));
    }
    merged.error = (!errors.is_empty()).then(|| errors.join("; "));
    merged.incomplete = incomplete;
    Some(merged)
}

fn add(merged: &mut BulkOperation, one: &BulkOperation) {
    merged.examined += one.examined;
    merged.matched += one.matched;
    merged.done += one.done;
    merged.superseded += one.superseded;
    merged.held_back += one.held_back;
    merged.total += one.total;
    merged.rate = match (merged.rate, one.rate) {
        (Some(a), Some(b)) => Some(a.saturating_add(b)),
        (a, b) => a.or(b),
    };
    if let (Some(sum), Some(outcomes)) = (&mut merged.outcomes, &one.outcomes) {
        let RedriveOutcomes { delivered, failed, superseded, discarded, handed_over, waiting } =
            outcomes;
        sum.delivered += delivered;
        sum.failed += failed;
        sum.superseded += superseded;
        sum.discarded += discarded;
        sum.handed_over += handed_over;
        sum.waiting += waiting;
    }
    if one.started_at < merged.started_at {
        merged.started_at.clone_from(&one.started_at);
    }
    if one.ended_at > merged.ended_at {
        merged.ended_at.clone_from(&one.ended_at);
    }
    if merged.error.is_none() {
        merged.error.clone_from(&one.error);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn member(process: u64) -> Member {
        Member::for_tests(process, Duration::ZERO)
    }

    /// Instances 1 and 2 take part.
    fn part(process: u64, state: OperationState, partitions: &[u16]) -> (Member, OperationPart) {
        let waiting = RedriveOutcomes { delivered: 2, waiting: 1, ..RedriveOutcomes::default() };
        let operation = BulkOperation {
            operation_id: "x".to_owned(),
            kind: OperationKind::Redrive,
            state,
            dry_run: false,
            examined: 5,
            matched: 4,
            done: 3,
            superseded: 1,
            held_back: 0,
            outcomes: Some(waiting),
            total: 9,
            rate: Some(10),
            started_at: format!("2026-01-0{process}"),
            ended_at: (state != Running).then(|| format!("2026-01-1{process}")),
            error: None,
            incomplete: vec![],
        };
        let participants = [1, 2].map(|process| Participant::of(&member(process))).to_vec();
        (
            member(process),
            OperationPart { operation, participants, partitions: partitions.to_vec() },
        )
    }

    use OperationState::{Cancelled, Done, Failed, Running};

    #[test]
    fn the_parts_of_an_operation_are_added_and_it_runs_as_long_as_one_of_them() {
        let merged = merge(&[part(2, Done, &[0]), part(1, Running, &[1])], &[], &[], 2).unwrap();
        assert_eq!((merged.examined, merged.matched, merged.done, merged.total), (10, 8, 6, 18));
        assert_eq!((merged.rate, merged.outcomes.unwrap().waiting), (Some(20), 2));
        assert_eq!((merged.state, merged.ended_at.as_deref()), (Running, None));
        assert_eq!((merged.started_at.as_str(), &merged.incomplete[..]), ("2026-01-01", &[][..]));
        let merged = merge(&[part(1, Done, &[0]), part(2, Done, &[1])], &[], &[], 2).unwrap();
        assert_eq!((merged.state, merged.ended_at.as_deref()), (Done, Some("2026-01-12")));
        let merged = merge(&[part(1, Done, &[0]), part(2, Cancelled, &[1])], &[], &[], 2).unwrap();
        assert_eq!(merged.state, Cancelled);
    }

    #[test]
    fn an_operation_whose_instance_died_has_failed_and_names_it_and_its_partitions() {
        let merged = merge(&[part(1, Done, &[0])], &[], &[], 2).unwrap();
        assert_eq!((merged.state, &merged.incomplete[..]), (Failed, &[1][..]));
        assert!(merged.error.unwrap().contains("no part of n2"));
        let merged = merge(&[part(1, Done, &[0])], &[], &[member(2)], 2).unwrap();
        assert_eq!(merged.state, Running, "it may be late");
    }

    #[test]
    fn an_operation_that_an_instance_refuses_runs_in_the_others_and_names_it_with_its_reason() {
        let refused = [(member(2), AdminError::TooMany("the limit is 4".to_owned()))];
        let merged = merge(&[part(1, Running, &[0])], &refused, &[], 2).unwrap();
        assert_eq!((merged.state, &merged.incomplete[..]), (Running, &[1][..]));
        let error = "n2 has refused its part: the limit is 4";
        assert_eq!(merged.error.as_deref(), Some(error));
        let merged = merge(&[part(1, Done, &[0])], &refused, &[], 2).unwrap();
        assert_eq!((merged.state, merged.error.as_deref()), (Failed, Some(error)));
    }

    #[test]
    fn a_partition_that_changed_its_owner_meanwhile_is_named() {
        let merged = merge(&[part(1, Done, &[0]), part(2, Done, &[])], &[], &[], 3).unwrap();
        assert_eq!((merged.state, &merged.incomplete[..]), (Done, &[1, 2][..]));
    }
}
