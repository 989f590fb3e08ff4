//! The event stream, and readers that stall.

use super::*;
use crate::dispatcher::EventKind;

/// The share of one client.
const MOST: usize = 58;

async fn opened(address: std::net::SocketAddr, types: &str) -> Client {
    let mut client = Client::connect(address).await;
    let answer = client.get(&format!("/v1/events?types={types}"), "").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    client
}

#[tokio::test]
async fn a_stalled_reader_is_cut_and_its_slot_is_released() {
    let server = start(limited(ServerLimits { max_connections: 400, ..impatient().limits })).await;
    let _stalled = opened(server.address, "figures").await;
    // These receive nothing for longer than the client timeout, and stay connected.
    let mut idle = vec![];
    for _ in 1..MOST {
        idle.push(opened(server.address, "replica").await);
    }
    let full = Client::connect(server.address).await.get("/v1/events", "").await;
    full.is_error(
        503,
        "too many event streams are open, the limit is 64, of which each client has a share",
    );
    // More than the buffers of both ends hold.
    let large = "x".repeat(100_000);
    for _ in 0..300 {
        server.handle.publish(EventKind::Figures, &large);
    }
    let free = async {
        loop {
            let mut client = Client::connect(server.address).await;
            if client.get("/v1/events?types=replica", "").await.status == 200 {
                break client;
            }
        }
    };
    let _next = timeout(PATIENCE, free).await.unwrap();
    let full = Client::connect(server.address).await.get("/v1/events", "").await;
    assert_eq!(full.status, 503, "the other streams are still open");
    server.handle.publish(EventKind::Replica, &"late");
    let mut read = String::new();
    while !read.contains("data: \"late\"") {
        let mut piece = [0; 1024];
        let got = timeout(PATIENCE, idle[0].0.read(&mut piece)).await.unwrap().unwrap();
        assert!(got > 0, "{read}");
        read.push_str(std::str::from_utf8(&piece[..got]).unwrap());
    }
}

#[tokio::test]
async fn fast_events_are_batched_into_few_chunks() {
    let server = start(settings()).await;
    let mut client = opened(server.address, "task").await;
    for n in 0..500 {
        server.handle.publish(EventKind::Task, &n);
    }
    let mut read = String::new();
    while !read.contains("data: 499\n") {
        let mut piece = [0; 65_536];
        let got = timeout(PATIENCE, client.0.read(&mut piece)).await.unwrap().unwrap();
        assert!(got > 0, "{read}");
        read.push_str(std::str::from_utf8(&piece[..got]).unwrap());
    }
    // A chunk begins with a line of its length alone.
    let is_length = |line: &&str| {
        line.strip_suffix('\r').is_some_and(|text| usize::from_str_radix(text, 16).is_ok())
    };
    let chunks = read.split('\n').filter(is_length).count();
    assert!((2..10).contains(&chunks), "{chunks} chunks for 500 events");
    for n in 0..500 {
        assert!(read.contains(&format!("event: task\ndata: {n}\n\n")), "{n}");
    }
}

#[tokio::test]
async fn the_slot_of_a_disconnected_reader_is_released_before_the_next_event() {
    let server = start(limited(ServerLimits { max_connections: 400, ..settings().limits })).await;
    let mut readers = vec![];
    for _ in 0..MOST {
        readers.push(opened(server.address, "replica").await);
    }
    // The keep-alive of this stream would also reveal that the other reader is gone.
    let mut waiting = readers.remove(0);
    readers.pop();
    let free = async {
        loop {
            let mut client = Client::connect(server.address).await;
            if client.get("/v1/events?types=replica", "").await.status == 200 {
                break;
            }
        }
    };
    let kept_alive = async {
        let mut read = String::new();
        while !read.contains("\n:\n\n") {
            let mut piece = [0; 1024];
            let got = waiting.0.read(&mut piece).await.unwrap();
            assert!(got > 0, "{read}");
            read.push_str(std::str::from_utf8(&piece[..got]).unwrap());
        }
    };
    tokio::select! {
        () = free => {}
        () = kept_alive => panic!("its slot was not released"),
    }
}
