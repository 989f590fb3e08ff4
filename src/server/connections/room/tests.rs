use futures_util::FutureExt;

use super::*;

const PAUSE: Duration = Duration::from_secs(2);

fn slots(limit: usize) -> Arc<ConnectionSlots> {
    ConnectionSlots::new(limit, PAUSE)
}

fn client(last: u8) -> Client {
    Client::at([10, 0, 0, last].into())
}

/// Connections of one client, a second apart.
async fn enter(slots: &Arc<ConnectionSlots>, from: u8, count: usize) -> Vec<ConnectionSlot> {
    let mut entered = Vec::new();
    for _ in 0..count {
        entered.push(slots.enter(client(from)).unwrap());
        tokio::time::advance(Duration::from_secs(1)).await;
    }
    entered
}

fn is_evicted(slot: &ConnectionSlot) -> bool {
    slot.evicted().now_or_never().is_some()
}

fn upload(slot: &ConnectionSlot) {
    slot.waits();
    slot.progresses();
}

#[tokio::test(start_paused = true)]
async fn the_connection_that_has_waited_longest_is_evicted() {
    let slots = slots(3);
    let held = enter(&slots, 1, 3).await;
    // The first has had a request since, the second has one now.
    held[0].busy();
    held[0].waits();
    held[1].busy();
    let next = slots.enter(client(1)).unwrap();
    assert!(is_evicted(&held[2]) && !next.is_for_probes());
    assert!(!is_evicted(&held[0]) && !is_evicted(&held[1]));
}

#[tokio::test(start_paused = true)]
async fn an_upload_that_makes_progress_is_evicted_last() {
    let slots = slots(3);
    let held = enter(&slots, 1, 3).await;
    upload(&held[0]);
    upload(&held[1]);
    let mut others = Vec::new();
    // Each new connection is idle, and younger than the uploads.
    for _ in 0..20 {
        tokio::time::advance(Duration::from_millis(10)).await;
        others.push(slots.enter(client(1)).unwrap());
    }
    assert!(!is_evicted(&held[0]) && !is_evicted(&held[1]));
    // One of them stops.
    tokio::time::advance(PAUSE - Duration::from_millis(300)).await;
    held[1].progresses();
    tokio::time::advance(Duration::from_millis(200)).await;
    others.push(slots.enter(client(1)).unwrap());
    assert!(is_evicted(&held[0]) && !is_evicted(&held[1]));
}

#[tokio::test(start_paused = true)]
async fn an_authenticated_connection_is_evicted_after_an_anonymous_one() {
    let slots = slots(2);
    let (known, stranger) = (enter(&slots, 1, 1).await, enter(&slots, 2, 1).await);
    known[0].authenticated();
    let _next = slots.enter(client(3)).unwrap();
    assert!(is_evicted(&stranger[0]) && !is_evicted(&known[0]));
}

#[tokio::test(start_paused = true)]
async fn a_client_with_many_idle_connections_loses_its_own_first() {
    let slots = slots(20);
    let honest = enter(&slots, 1, 2).await;
    let greedy = enter(&slots, 2, 18).await;
    greedy.iter().for_each(ConnectionSlot::authenticated);
    let mut others = Vec::new();
    for n in 0..16 {
        others.push(slots.enter(client(100 + n)).unwrap());
    }
    assert!(greedy[..16].iter().all(is_evicted) && !greedy[16..].iter().any(is_evicted));
    assert!(!honest.iter().any(is_evicted));
}

#[tokio::test(start_paused = true)]
async fn while_all_are_busy_new_connections_get_the_places_for_probes() {
    let slots = slots(2);
    let busy = enter(&slots, 1, 2).await;
    busy.iter().for_each(ConnectionSlot::busy);
    let probes = enter(&slots, 2, PROBE_PLACES).await;
    assert!(probes.iter().all(ConnectionSlot::is_for_probes));
    let next = slots.enter(client(2)).unwrap();
    assert!(next.is_for_probes() && is_evicted(&probes[0]) && !is_evicted(&probes[1]));
    // An ordinary place is free again.
    busy[0].waits();
    assert!(!slots.enter(client(2)).unwrap().is_for_probes());
    assert!(is_evicted(&busy[0]));
    probes[1..].iter().chain([&next]).for_each(ConnectionSlot::busy);
    let _last = slots.enter(client(3)).unwrap();
    _last.busy();
    assert!(slots.enter(client(3)).is_none(), "every place is busy");
}

#[tokio::test(start_paused = true)]
async fn one_client_whose_requests_all_wait_for_the_daemon_leaves_a_tenth_to_others() {
    let slots = slots(20);
    let honest = enter(&slots, 1, 2).await;
    let greedy = enter(&slots, 2, 18).await;
    greedy.iter().for_each(ConnectionSlot::busy);
    assert!(slots.enter(client(2)).unwrap().is_for_probes());
    assert!(!honest.iter().any(is_evicted));
    greedy[0].waits();
    assert!(!slots.enter(client(2)).unwrap().is_for_probes());
    assert!(is_evicted(&greedy[0]), "its own makes room");
    assert!(!slots.enter(client(3)).unwrap().is_for_probes());
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_its_response_is_evicted() {
    let slots = slots(2);
    let held = enter(&slots, 1, 2).await;
    held.iter().for_each(ConnectionSlot::busy);
    held[0].stalls();
    held[0].flows();
    held[1].stalls();
    let _next = slots.enter(client(1)).unwrap();
    assert!(!is_evicted(&held[0]) && is_evicted(&held[1]));
}

#[tokio::test(start_paused = true)]
async fn a_request_that_arrives_during_eviction_is_served_and_another_is_evicted() {
    let slots = slots(2);
    let held = enter(&slots, 1, 2).await;
    let _next = slots.enter(client(1)).unwrap();
    held[0].busy();
    assert!(!is_evicted(&held[0]) && is_evicted(&held[1]));
}

#[tokio::test(start_paused = true)]
async fn every_place_is_free_again_after_its_connection() {
    let slots = slots(3);
    for _ in 0..5 {
        let mut held = enter(&slots, 1, 6).await;
        held.truncate(4);
        drop(held);
        let room = slots.room();
        assert_eq!((room.ordinary, room.probes, room.clients.len()), (0, 0, 0));
        assert_eq!(room.free.len(), room.places.len());
    }
}
