//! Promises about idempotency keys.

use super::*;

pub(super) fn a_repeat_gets_the_task_of_the_first_write_after_its_outcome(open: Open) {
    let (listener, _place) = Listener::new(open);
    // While the first is not durable, in one group with it, and after it.
    for _ in 0..2 {
        let group = ["first", "second"].map(|name| listener.keyed(name, ("k", 1)));
        listener.journal().append(group.into());
        listener.append_keyed("third", ("k", 1));
        listener.append_keyed("another", ("k", 2));
    }
    let mut outcomes = listener.outcomes(8);
    outcomes.retain(|(_, outcome)| *outcome != Err(AppendError::Mismatch));
    assert_eq!(outcomes.len(), 6);
    let (name, first) = outcomes.remove(0);
    assert_eq!(name, "first");
    let same = Ok(repeated(id(&first), Consistency::Eventual, None));
    assert!(outcomes.iter().all(|(_, outcome)| *outcome == same), "{outcomes:?}");
    listener.close().unwrap();
}

/// Fills the keys, which leave no room for one more.
fn fill_keys(listener: &Listener) {
    for key in ["a", "b", "c"] {
        listener.append_keyed("fits", (key, 1));
    }
    listener.append_keyed("does not", ("d", 1));
    let outcomes = listener.outcomes(4);
    assert!(outcomes.contains(&("does not", Err(AppendError::KeysFull))), "{outcomes:?}");
}

pub(super) fn a_key_beyond_the_limit_becomes_no_task(open: Open) {
    let (listener, _place) = Listener::new(open);
    fill_keys(&listener);
    listener.append_keyed("fits", ("a", 1));
    assert!(matches!(listener.outcomes(1)[0].1, Ok(Appended::Repeated(_))));
    listener.close().unwrap();
}

pub(super) fn an_expired_key_makes_room(open: Open) {
    let (listener, _place) = Listener::new(open);
    fill_keys(&listener);
    listener.journal().tick(Moment(0).after(LIMITS.window));
    listener.append_keyed("fits now", ("d", 1));
    assert!(matches!(listener.outcomes(1)[0].1, Ok(Appended::New(_))));
    listener.close().unwrap();
}

pub(super) fn the_state_of_a_key_can_be_queried(open: Open) {
    let (listener, _place) = Listener::new(open);
    let key = |key: &str, body| {
        listener.journal().key(&Idempotency { key: key.into(), fingerprint: [body; 16] })
    };
    assert_eq!(key("a", 1), KeyState::New);
    for name in ["a", "b", "c"] {
        listener.append("write", Some((name, 1)));
    }
    listener.outcomes(3);
    let repeated = Repeated { id: TaskId(FIRST), consistency: Consistency::Eventual, answer: None };
    assert_eq!(key("a", 1), KeyState::Known(repeated));
    assert_eq!(key("a", 2), KeyState::Mismatch);
    assert_eq!(key("d", 1), KeyState::NoRoom);
    listener.close().unwrap();
}

pub(super) fn the_answer_to_a_strong_write_is_remembered(open: Open) {
    let answer = IdempotencyAnswer { success: true, acked: vec![0], failed: vec![], needed: 1 };
    let (listener, _place) = Listener::new(open);
    let id = id(&strong(&listener));
    // Not decided: its answer is awaited.
    let is_open = |outcome: &Result<Appended, AppendError>| {
        *outcome == Ok(repeated(id, Consistency::Strong, None))
            || *outcome == Ok(Appended::Elsewhere(TaskId(id)))
    };
    assert!(is_open(&strong(&listener)));
    listener.journal().conclude(TaskId(id), answer.clone(), &[]);
    let with = Ok(repeated(id, Consistency::Strong, Some(answer)));
    // A journal may take its time.
    loop {
        let outcome = strong(&listener);
        if outcome == with {
            break;
        }
        assert!(is_open(&outcome), "{outcome:?}");
    }
    listener.close().unwrap();
}

pub(super) fn strong(listener: &Listener) -> Result<Appended, AppendError> {
    let write = listener.write("strong", Consistency::Strong, Some(("k", 1)));
    listener.journal().append(vec![write]);
    listener.outcomes(1).remove(0).1
}
