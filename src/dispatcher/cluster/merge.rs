//! Merges the answers of several instances. Pure. The figures of past times are merged in `past.rs`.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use crate::api::{self, Convergence};
use crate::dispatcher::admin::keys::shown;
use crate::dispatcher::admin::{PAGE_BYTES, json_length};
use crate::dispatcher::messages::ListPage;
use crate::task::{Cause, ReplicaState};

mod past;

pub(super) use past::pasts;

/// Groups of dead letters in an answer.
const MAX_GROUPS: usize = 100;

/// Merges pages of the same list, which each have everything of their instance up to their end. What is
/// behind the first of these ends is left to the next page.
pub(super) fn pages<C: Copy + Ord, T: Serialize>(
    pages: Vec<ListPage<C, T>>,
    limit: usize,
) -> ListPage<C, T> {
    let end = pages.iter().filter_map(|page| page.next).min();
    let mut all: Vec<_> = pages.into_iter().flat_map(|page| page.items).collect();
    all.retain(|(place, _)| end.is_none_or(|end| *place <= end));
    all.sort_by_key(|(place, _)| *place);
    // While a partition changes its owner, two may have it.
    all.dedup_by_key(|(place, _)| *place);
    let (total, mut items, mut bytes) = (all.len(), Vec::new(), 0);
    for (place, item) in all {
        bytes += json_length(&item);
        items.push((place, item));
        if items.len() == limit || bytes >= PAGE_BYTES {
            break;
        }
    }
    let is_cut = items.len() < total;
    let next = if is_cut { items.last().map(|(place, _)| *place) } else { end };
    ListPage { items, next }
}

/// One task, as its owner knows it; otherwise as it was settled last.
pub(super) fn task(found: Vec<Option<api::TaskInfo>>) -> Option<api::TaskInfo> {
    // An unsettled one has no time, and is the greatest.
    let order = |task: &api::TaskInfo| (task.settled_at.is_none(), task.settled_at.clone());
    found.into_iter().flatten().max_by_key(order)
}

/// One key, as its owner knows it, with the writes that former owners have settled.
pub(super) fn key(key: String, found: Vec<api::KeyInfo>) -> api::KeyInfo {
    let id = |text: &str| text.parse::<u64>().ok();
    let (mut writes, mut replicas) = (Vec::new(), BTreeMap::<String, api::KeyReplica>::new());
    for of in found {
        writes.extend(of.writes);
        for replica in of.replicas {
            let name = replica.replica.clone();
            let known = replicas
                .entry(name.clone())
                .or_insert_with(|| api::KeyReplica { replica: name, ..Default::default() });
            known.pending += replica.pending;
            known.dead_letters += replica.dead_letters;
            let acknowledged = [known.acknowledged_sequence.take(), replica.acknowledged_sequence];
            known.acknowledged_sequence =
                acknowledged.into_iter().flatten().max_by_key(|text| id(text));
        }
    }
    // The owner knows an unsettled one, which has no time.
    writes.sort_by_key(|task: &api::TaskInfo| {
        (Reverse(id(&task.task_id)), task.settled_at.is_some())
    });
    writes.dedup_by(|later, first| later.task_id == first.task_id);
    let (writes, replicas) = (shown(writes.into_iter()), replicas.into_values().collect());
    api::KeyInfo { key, writes, replicas, incomplete: Vec::new() }
}

pub(super) fn summaries(summaries: Vec<api::LetterSummary>) -> api::LetterSummary {
    let mut groups = HashMap::<(String, Cause, String), api::LetterGroup>::new();
    let mut dead_letters = 0;
    for summary in summaries {
        dead_letters += summary.dead_letters;
        for group in summary.groups {
            let kind = (group.replica.clone(), group.cause, group.error.clone());
            match groups.get_mut(&kind) {
                None => drop(groups.insert(kind, group)),
                Some(known) => {
                    known.count += group.count;
                    // Times of one form are in the order of their texts.
                    if group.oldest < known.oldest {
                        known.oldest = group.oldest;
                    }
                    if group.newest > known.newest {
                        known.newest = group.newest;
                    }
                }
            }
        }
    }
    let mut groups: Vec<_> = groups.into_values().collect();
    groups.sort_by(|a, b| {
        let by_name = || (&a.replica, &a.error).cmp(&(&b.replica, &b.error));
        Reverse(a.count).cmp(&Reverse(b.count)).then_with(by_name)
    });
    groups.truncate(MAX_GROUPS);
    let shown: u64 = groups.iter().map(|group| group.count).sum();
    let other = dead_letters - shown;
    api::LetterSummary { dead_letters, groups, other, incomplete: Vec::new() }
}

/// All replicas, by address.
pub(super) fn replicas(lists: Vec<Vec<api::Replica>>) -> Vec<api::Replica> {
    let mut merged = BTreeMap::<String, api::Replica>::new();
    for replica in lists.into_iter().flatten() {
        match merged.get_mut(&replica.replica) {
            None => drop(merged.insert(replica.replica.clone(), replica)),
            Some(known) => add(known, replica),
        }
    }
    merged.into_values().collect()
}

/// Counts and rates are added, times and latencies are those of the worst.
fn add(known: &mut api::Replica, other: api::Replica) {
    known.renamed_from.extend(other.renamed_from.iter().cloned());
    known.renamed_from.sort();
    known.renamed_from.dedup();
    known.convergence = convergence(known, &other);
    // Each instance has its own limits, and a writer may use any.
    let headroom = |of: &api::Replica| of.outage_headroom_seconds.unwrap_or(f64::INFINITY);
    if headroom(&other) < headroom(known) {
        known.outage_headroom_seconds = other.outage_headroom_seconds;
        known.outage_limit.clone_from(&other.outage_limit);
    }
    known.drained_in_seconds = match known.convergence {
        Convergence::Draining => {
            // One that has nothing to send does not delay the others.
            let left = [(&*known, known.drained_in_seconds), (&other, other.drained_in_seconds)];
            let mut left = left.into_iter().filter(|(of, _)| of.backlog_tasks > 0);
            left.try_fold(0.0, |most: f64, (_, left)| left.map(|left| most.max(left)))
        }
        _ => None,
    };
    let (before, after) = (known.state, state(known.state, other.state));
    if other.state == after {
        known.state_since = match known.state_since.take() {
            Some(since) if before == after => {
                other.state_since.map_or(Some(since.clone()), |other| Some(since.min(other)))
            }
            _ => other.state_since,
        };
    }
    known.state = after;
    known.paused_until = known.paused_until.take().max(other.paused_until);
    known.next_probe_at = first(known.next_probe_at.take(), other.next_probe_at)
        .filter(|_| after == ReplicaState::Failing);
    known.backlog_tasks += other.backlog_tasks;
    known.backlog_bytes += other.backlog_bytes;
    known.oldest_accepted_at = first(known.oldest_accepted_at.take(), other.oldest_accepted_at);
    known.lag_seconds = known.lag_seconds.max(other.lag_seconds);
    known.in_flight += other.in_flight;
    known.retrying += other.retrying;
    known.parked += other.parked;
    known.dead_letters += other.dead_letters;
    known.refused_letters += other.refused_letters;
    known.dead_letter_bytes += other.dead_letter_bytes;
    known.workers += other.workers;
    if known.limits.is_none() {
        known.limits = other.limits;
    }
    known.rate_in += other.rate_in;
    known.rate_out += other.rate_out;
    known.latency_p50_seconds = most(known.latency_p50_seconds, other.latency_p50_seconds);
    known.latency_p99_seconds = most(known.latency_p99_seconds, other.latency_p99_seconds);
    let at = |error: &Option<api::LastError>| error.as_ref().map(|error| error.at.clone());
    if at(&other.last_error) > at(&known.last_error) {
        known.last_error = other.last_error;
    }
    known.books += other.books;
}

/// A pause is of the whole cluster. Of the breakers, each is of its instance: the worst is shown.
fn state(a: ReplicaState, b: ReplicaState) -> ReplicaState {
    if a == ReplicaState::Paused || b == ReplicaState::Paused {
        return ReplicaState::Paused;
    }
    a.min(b)
}

fn convergence(a: &api::Replica, b: &api::Replica) -> Convergence {
    use Convergence::{Drained, Draining, NotConverging, Paused, Steady};
    let worst = [Paused, NotConverging, Steady, Draining, Drained];
    let is_in = |one: &Convergence| a.convergence == *one || b.convergence == *one;
    worst.into_iter().find(is_in).unwrap_or(Steady)
}

/// The earlier one.
fn first(a: Option<String>, b: Option<String>) -> Option<String> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

fn most(a: Option<f64>, b: Option<f64>) -> Option<f64> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.max(b)),
        (a, b) => a.or(b),
    }
}

#[cfg(test)]
mod tests;
