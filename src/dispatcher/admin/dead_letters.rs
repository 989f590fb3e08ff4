//! Dead letters: list, redrive, discard. Operations on many of them are in `bulk.rs`.

use std::sync::Arc;

use super::{PAGE_BYTES, READS, TextFilter, answer_in_background, headers, json_length, page};
use crate::api;
use crate::dispatcher::messages::{
    AdminError, AdminReply, DeadLetterRequest, FoundLetter, LetterAction, LetterCursor,
    LetterFilter, ListPage, ListPart, Request,
};
use crate::dispatcher::{Core, Handle, view};
use crate::engine::{AdminOutcome, DeliveryFilter, Now};
use crate::task::{Cause, DeliveryId, DeliveryState, Node, TaskId};

impl Handle {
    /// Dead letters, oldest task first. The page may be short and still not be the last.
    pub(in crate::dispatcher) async fn dead_letters_here(
        &self,
        filter: LetterFilter,
        limit: usize,
        after: Option<LetterCursor>,
    ) -> Result<ListPage<LetterCursor, api::DeadLetterInfo>, AdminError> {
        let part = |limit, after| self.letters(filter.clone(), limit, after);
        let (letters, next) = page(limit, after, part).await?;
        let items = letters.into_iter().map(|FoundLetter { delivery, shown }| {
            (LetterCursor(delivery.task, delivery.replica), shown)
        });
        Ok(ListPage { items: items.collect(), next })
    }

    pub(in crate::dispatcher) async fn letters(
        &self,
        filter: LetterFilter,
        limit: usize,
        after: Option<LetterCursor>,
    ) -> Result<ListPart<FoundLetter, LetterCursor>, AdminError> {
        self.ask(|reply| {
            Request::DeadLetters(DeadLetterRequest::List { filter, limit, after, reply })
        })
        .await
    }

    pub(in crate::dispatcher) async fn apply(
        &self,
        letters: Vec<DeliveryId>,
        action: LetterAction,
    ) -> Result<Vec<AdminOutcome>, AdminError> {
        self.ask(|reply| Request::DeadLetters(DeadLetterRequest::Apply { letters, action, reply }))
            .await
    }
}

impl Core {
    pub(in crate::dispatcher) fn serve_dead_letters(
        &mut self,
        now: Now,
        request: DeadLetterRequest,
    ) {
        match request {
            DeadLetterRequest::List { filter, limit, after, reply } => {
                self.list_letters(filter, limit, after, reply);
            }
            DeadLetterRequest::Scan { after, reply } => self.scan_letters(after, reply),
            DeadLetterRequest::Apply { letters, action, reply } => {
                let engine = &mut self.engine;
                let apply = |letter| match action {
                    LetterAction::Redrive(operation) => {
                        engine.redrive_letter(now, letter, Some(operation))
                    }
                    LetterAction::Discard => engine.discard_letter(now, letter),
                    LetterAction::DryRedrive => engine.would_redrive(letter),
                };
                let outcomes = letters.into_iter().map(apply).collect();
                self.act(now);
                if action == LetterAction::DryRedrive {
                    let _ = reply.send(Ok(outcomes));
                } else {
                    self.answer_when_durable(reply, outcomes);
                }
            }
        }
    }

    fn list_letters(
        &self,
        filter: LetterFilter,
        limit: usize,
        after: Option<LetterCursor>,
        reply: AdminReply<ListPart<FoundLetter, LetterCursor>>,
    ) {
        let cause = filter.cause;
        let of_delivery = DeliveryFilter {
            state: cause.map(|cause| match cause {
                Cause::RetryOverflow => DeliveryState::Parked,
                Cause::Rejected | Cause::Refused | Cause::GaveUp => DeliveryState::Dead,
            }),
            ..self.delivery_filter(filter.replica.as_ref(), filter.key.as_ref())
        };
        let text =
            TextFilter { key: filter.key, key_prefix: filter.key_prefix, user_id: filter.user_id };
        let (found, limit) = match &filter.ids {
            None => {
                let most = if text.is_empty() && cause.is_none() { limit } else { READS };
                let after = after.map(|after| (after.0, after.1));
                (self.engine.find_letters(&of_delivery, after, most), limit)
            }
            // All at once: the number of ids in a request is limited.
            Some(ids) => {
                let resolve = |(id, node): &(TaskId, Option<Node>)| {
                    (*id, node.as_ref().map(|node| self.registry.resolve(node).clone()))
                };
                let ids: Vec<_> = ids.iter().map(resolve).collect();
                (self.engine.letters_of(&ids, &of_delivery), usize::MAX)
            }
        };
        let all_at_once = filter.ids.is_some();
        let journal = Arc::clone(&self.journal);
        answer_in_background(reply, async move {
            let ids: Vec<_> = found.items.iter().map(|letter| letter.task).collect();
            let examined = ids.len();
            let is_last = found.next.is_none();
            let mut next = found.next.map(|(task, replica)| LetterCursor(task, replica));
            let (mut items, mut bytes) = (Vec::new(), 0);
            let letters = found.items.into_iter().zip(headers(&*journal, ids).await?);
            let mut letters = letters.peekable();
            while let Some((letter, header)) = letters.next() {
                let Some(header) = header.filter(|header| text.matches(header)) else { continue };
                let delivery = DeliveryId { task: letter.task, replica: letter.replica };
                let Some(shown) = view::dead_letter(letter, header) else { continue };
                if cause.is_some_and(|cause| cause != shown.cause) {
                    continue;
                }
                bytes += json_length(&shown);
                items.push(FoundLetter { delivery, shown });
                if items.len() == limit || (bytes >= PAGE_BYTES && !all_at_once) {
                    if letters.peek().is_some() || !is_last {
                        next = Some(LetterCursor(delivery.task, delivery.replica));
                    }
                    break;
                }
            }
            Ok(ListPart { items, bytes, examined, next })
        });
    }
}
