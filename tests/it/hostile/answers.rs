//! Replicas that never stop answering.

use crate::support::{Behaviour, Daemon, Replica, path_of, set, wait_until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_that_send_interim_answers_for_ever_delay_neither_probes_nor_other_replicas() {
    const WRITES: usize = 50;
    let daemon = Daemon::start(&["--breaker-failures", "0"]).await;
    let honest = Replica::start().await;
    let mut hostile = Vec::new();
    for _ in 0..5 {
        hostile.push(Replica::with(|_| Behaviour::EndlessInterim).await);
    }
    for n in 0..WRITES {
        for replica in &hostile {
            daemon.accept(&set(&format!("key-{n}"), "v", &[replica])).await;
        }
        daemon.accept(&set(&format!("key-{n}"), "v", &[&honest])).await;
        assert_eq!(daemon.get("/livez").await.0, 200);
    }
    wait_until("the honest replica has every write", || async {
        (honest.data().len() == WRITES).then_some(())
    })
    .await;
    for replica in &hostile {
        wait_until("the failure is reported", || async {
            let view = daemon.show(&path_of(replica)).await;
            let error = view["last_error"]["error"].as_str()?.to_owned();
            (error == "the replica sent more than 64 KiB before the final answer").then_some(())
        })
        .await;
    }
}
