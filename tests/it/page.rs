//! The web page in a browser: what an operator sees and does.
//!
//! Needs `chromium` and `chromedriver`, which `tests/run` installs.

use serde_json::json;
use thirtyfour::Key;

use crate::support::browser::Browser;
use crate::support::{Behaviour, Daemon, Replica, set, wait_until};

/// Short waits, so that deliveries fail quickly.
const QUICK: [&str; 2] = ["--retry-base", "20ms"];

const ROWS: &str = "document.querySelectorAll('#replicas tbody tr').length";

/// The row of a replica.
fn row(replica: &Replica) -> String {
    format!("#replicas tr[data-key=\"{}\"]", replica.url())
}

#[tokio::test]
async fn a_failing_replica_and_its_recovery_are_shown() {
    let daemon = Daemon::start(&QUICK).await;
    let browser = Browser::open(&daemon.url("/")).await;
    browser.until_says("#link", "Live").await;
    browser.until_says("#summary", "Nothing to do yet").await;

    let (one, two) = (Replica::start().await, Replica::start().await);
    daemon.accept(&set("k", "v", &[&one, &two])).await;
    browser.until(&format!("{ROWS} === 2")).await;
    browser.until_says("#summary", "All 2 replicas are healthy").await;
    browser.until_says(&row(&one), "healthy").await;

    two.stop();
    for n in 0..20 {
        daemon.accept(&set(&format!("k{n}"), "v", &[&one, &two])).await;
    }
    browser.until_says("#summary[data-level=bad]", "1 of 2 replicas is failing").await;
    browser.until_says(&format!("{}[data-state=failing]", row(&two)), "failing").await;
    browser.until_says(&row(&two), "refused").await;
    browser.until_says("#events", "is failing").await;
    browser.until_says(&format!("{}[data-state=healthy]", row(&one)), "healthy").await;
    browser.until("document.title.includes('1 failing')").await;

    two.come_back().await;
    browser.until_says("#events", "is healthy again").await;
    browser.until_says("#summary[data-level=good]", "All 2 replicas are healthy").await;
    browser.until_says("#summary", "No backlog").await;
    // Both plots of the outage show it.
    browser.until("[...document.querySelectorAll('.plot path')].every((p) => p.getAttribute('d').includes('L'))").await;
    assert_eq!(browser.complaints().await, [""; 0]);
}

#[tokio::test]
async fn a_page_that_is_opened_after_an_outage_shows_it_and_names_the_instance() {
    let daemon = Daemon::start(&[&QUICK[..], &["--node-id", "east-1"]].concat()).await;
    let (well, strict) = (Replica::start().await, Replica::start().await);
    let (paused, dead) = (Replica::start().await, Replica::start().await);
    daemon.accept(&set("k", "v", &[&well, &strict, &paused, &dead])).await;
    daemon.until_drained().await;
    strict.behave(|_| Behaviour::Answer(400, "", "no bucket k1234"));
    daemon.accept(&set("rejected", "v", &[&strict])).await;
    dead.stop();
    daemon.accept(&set("lost", "v", &[&dead])).await;
    daemon.until_metric("dead_letters", 2).await;
    let node = paused.url().replace("http://", "");
    let pause = daemon.url(&format!("/v1/replicas/{node}/pause"));
    assert_eq!(daemon.client().post(pause).send().await.unwrap().status(), 200);
    // In the figures that the daemon keeps, before any page is open.
    wait_until("the outage is in the history", || async {
        let (_, past) = daemon.get("/v1/history").await;
        let dead = past["dead_letters"].as_array()?.clone();
        (dead.contains(&json!(0)) && dead.last() == Some(&json!(2))).then_some(())
    })
    .await;

    let browser = Browser::open(&daemon.url("/")).await;
    browser.until_says("#instance-name", "east-1").await;
    browser.until_says("#instance", env!("CARGO_PKG_VERSION")).await;
    browser.until_says("#instance", "0 / 1,000").await;
    let order = [&dead, &paused, &strict, &well].map(Replica::url);
    browser
        .until(&format!(
            "JSON.stringify([...document.querySelectorAll('#replicas tbody tr')].map((row) => row.dataset.key)) === {}",
            json!(json!(order).to_string())
        ))
        .await;
    browser.until_says(&format!("{}[data-letters]", row(&strict)), "lacks writes").await;
    // The plot of the backlog has the dead letters from before the page.
    browser
        .until("(document.querySelectorAll('.plot')[1]?.querySelector('path.three')?.getAttribute('d')?.match(/L/g) ?? []).length >= 2")
        .await;

    browser.goto(&daemon.url("/#/dead-letters")).await;
    browser.until_says("#letter-groups", "no bucket #").await;
    browser
        .click(&format!("#letter-groups a[href*='{}']", strict.url().rsplit(':').next().unwrap()))
        .await;
    browser.until_says("#letters-note", "1 in total").await;
    browser.click("#letters a[href^='#/task/']").await;
    browser.until_says("#attempts", "no bucket k1234").await;
    browser.click("#deliveries button[aria-label^=Redrive]").await;
    browser.until_says(".notice", "1 failed again").await;
    assert_eq!(browser.complaints().await, [""; 0]);
}

#[tokio::test]
async fn a_dead_letter_is_redriven_by_a_click_and_others_are_discarded_by_typing() {
    let daemon = Daemon::start(&QUICK).await;
    let replica = Replica::with(|_| Behaviour::Answer(400, "", "<b>no</b>")).await;
    for key in ["<i>first</i>", "second", "third"] {
        daemon.accept(&set(key, "v", &[&replica])).await;
    }
    daemon.until_metric("dead_letters", 3).await;
    let browser = Browser::open(&daemon.url("/#/dead-letters")).await;
    browser.until_says("#letters-note", "3 in total").await;
    browser.until_says("#letters td", "<i>first</i>").await;

    replica.behave(|_| Behaviour::Apply);
    browser.click("#letters button[aria-label^='Redrive <i>first</i>']").await;
    browser.until_says(".notice", "1 dead letter redriven").await;
    replica.until_holds("<i>first</i>", "v").await;
    browser.until_says("#letters-note", "2 in total").await;

    browser.fill("#letter-filter [name=key_prefix]", "sec").await;
    browser.click("#letter-filter [type=submit]").await;
    browser.until_says("#letters-note", "1 in total").await;
    browser.click("#discard-all").await;
    browser.until_says("#confirm-text", "1 dead letter would be discarded").await;
    assert_eq!(browser.eval("document.querySelector('#confirm-yes').disabled").await, true);
    browser.fill("#confirm-word input", "discard").await;
    browser.click("#confirm-yes").await;
    browser.until_says(".notice", "1 dead letter discarded").await;
    browser.until_says("#letters-note", "No dead letter matches this filter").await;
    browser.click("#letter-filter [type=reset]").await;
    browser.until_says("#letters-note", "1 in total").await;
    daemon.until_metric("dead_letters", 1).await;
    assert!(replica.get("second").is_none());

    // The remaining ones by the keyboard: the dialog first focuses its harmless button.
    browser.until("(document.querySelector('#redrive-all').focus(), true)").await;
    browser.press(Key::Enter).await;
    browser.until_says("#confirm-text", "1 dead letter would be redriven").await;
    assert_eq!(browser.eval("document.activeElement.id").await, "confirm-no");
    browser.press(Key::Tab).await;
    browser.press(Key::Enter).await;
    replica.until_holds("third", "v").await;
    browser.until_says("#letters-note", "No dead letters").await;
    assert_eq!(browser.complaints().await, [""; 0]);
}

#[tokio::test]
async fn a_replica_is_paused_and_a_waiting_task_shows_its_history() {
    let daemon = Daemon::start(&QUICK).await;
    let replica = Replica::start().await;
    daemon.accept(&set("before", "v", &[&replica])).await;
    let browser = Browser::open(&daemon.url("/")).await;
    let pause = format!("{} button[data-verb=pause]", row(&replica));
    browser.click(&pause).await;
    browser.until_says(&format!("{}[data-state=paused]", row(&replica)), "paused").await;

    let task = daemon.accept(&set("while", "v", &[&replica])).await;
    browser.click(&format!("{} a[href^='#/tasks']", row(&replica))).await;
    browser.click(&format!("#tasks a[href='#/task/{task}']")).await;
    browser.until_says("#story-facts", "while").await;
    browser.until_says("#deliveries", "queued").await;
    assert!(replica.get("while").is_none());

    let node = replica.url().replace("://", "%3A%2F%2F").replace("127.0.0.1:", "127.0.0.1%3A");
    let resume = daemon.url(&format!("/v1/replicas/{node}/resume"));
    assert_eq!(daemon.client().post(resume).send().await.unwrap().status(), 200);
    replica.until_holds("while", "v").await;
    browser.until_says("#story-events", "delivered").await;
    browser.until("!document.querySelector('#story-discard').checkVisibility() || document.querySelector('#story-note').innerText !== ''").await;
}

#[tokio::test]
async fn a_replica_that_is_gone_is_renamed_or_forgotten() {
    let daemon = Daemon::start(&QUICK).await;
    let (old, new, gone) = (Replica::start().await, Replica::start().await, Replica::start().await);
    old.stop();
    gone.stop();
    daemon.accept(&set("k", "v", &[&old, &gone])).await;
    let browser = Browser::open(&daemon.url("/")).await;
    browser.until_says(&format!("{}[data-state=failing]", row(&old)), "failing").await;
    browser.click(&format!("{} button[aria-label^=Rename]", row(&old))).await;
    assert_eq!(browser.eval("document.querySelector('#confirm-yes').disabled").await, true);
    browser.fill("#confirm-to input", &new.url()).await;
    browser.click("#confirm-yes").await;
    browser.until_says(".notice", "now").await;
    new.until_holds("k", "v").await;
    browser.until_says(&row(&new), "formerly").await;
    let hidden =
        |row: String| format!("document.querySelector('{row} button[aria-label^=Forget]').hidden");
    browser.until(&hidden(row(&new))).await;

    let forget = format!("{} button[aria-label^=Forget]", row(&gone));
    // Behind the bar. A click, as the Tab key, scrolls it to where it can be seen.
    let behind =
        format!("document.querySelector({}).getBoundingClientRect().top - 4", json!(forget));
    browser.eval(&format!("scrollBy({{ top: {behind}, behavior: 'instant' }})")).await;
    browser.until(&format!("{behind} < 1")).await;
    browser.click(&forget).await;
    browser.until_says("#confirm-text", "would be discarded").await;
    browser.fill("#confirm-word input", "forget").await;
    browser.click("#confirm-yes").await;
    browser.until_says(".notice", "is forgotten: 1 delivery discarded").await;
    daemon.until_metric("dead_letters", 0).await;
    assert_eq!(browser.complaints().await, [""; 0]);
}

#[tokio::test]
async fn the_page_fits_both_themes_and_a_phone() {
    let daemon = Daemon::start(&QUICK).await;
    let replica = Replica::with(|_| Behaviour::Answer(400, "", "")).await;
    let long = format!("a/{}", "very-long-key-".repeat(20));
    daemon.accept(&set(&long, "v", &[&replica])).await;
    let task = daemon.accept(&set("short", "v", &[&replica])).await;
    let mut elsewhere = set("short", "v", &[&replica]);
    elsewhere["replica_nodes"][0] =
        json!(format!("{}/{}", replica.url(), "very-long-name-".repeat(10)));
    daemon.accept(&elsewhere).await;
    daemon.until_metric("dead_letters", 3).await;
    let browser = Browser::open(&daemon.url("/")).await;
    browser.until(&format!("{ROWS} === 2")).await;

    let ground = "getComputedStyle(document.body).backgroundColor";
    let (light, dark) = (json!("rgb(246, 247, 248)"), json!("rgb(19, 22, 26)"));
    for (system, colour) in [("light", &light), ("dark", &dark)] {
        browser.prefer(system).await;
        assert_eq!(&browser.eval(ground).await, colour);
    }
    for colour in [&light, &dark, &dark] {
        browser.click("#theme").await;
        assert_eq!(&browser.eval(ground).await, colour, "light, dark, as the system");
    }

    for width in [320, 375, 768, 1201, 1280] {
        browser.be_wide(width).await;
        for view in [
            "/#/".to_owned(),
            "/#/tasks".into(),
            "/#/dead-letters".into(),
            format!("/#/task/{task}"),
        ] {
            browser.goto(&daemon.url(&view)).await;
            browser.until("[...document.querySelectorAll('main tbody tr')].some((row) => row.checkVisibility())").await;
            let seen = browser.eval("document.documentElement.scrollWidth").await;
            assert!(seen.as_u64().unwrap() <= u64::from(width), "{view} at {width}: {seen}");
        }
    }
    assert_eq!(browser.complaints().await, [""; 0]);
}

/// Lets the answers of the daemon lack partitions, as in a cluster with a silent instance.
const LACKING: &str = "(() => {
    const real = window.fetch;
    window.fetch = async (url, options) => {
        const response = await real(url, options);
        if (!/\\/v1\\/(replicas|tasks|dead-letters|operations|history)/.test(url)) return response;
        const answer = await response.json();
        answer.incomplete = [0, 1, 4];
        if (/(pause|resume)$/.test(url)) answer.unconfirmed = ['<b>east</b>'];
        return new Response(JSON.stringify(answer), { status: response.status });
    };
    return true;
})()";

#[tokio::test]
async fn what_lacks_partitions_or_is_not_confirmed_says_so() {
    let daemon = Daemon::start(&QUICK).await;
    let replica = Replica::with(|_| Behaviour::Answer(400, "", "no")).await;
    let task = daemon.accept(&set("k", "v", &[&replica])).await;
    daemon.until_metric("dead_letters", 1).await;
    let browser = Browser::open(&daemon.url("/")).await;
    browser.until(&format!("{ROWS} === 1")).await;
    assert_eq!(browser.eval("document.querySelector('#replicas-lack').hidden").await, true);
    browser.until(LACKING).await;
    let lack = "there is no answer for the partitions 0–1, 4";
    browser.click(&format!("{} button[data-verb=pause]", row(&replica))).await;
    browser.until_says(".notice[data-level=bad]", "Not confirmed by <b>east</b>").await;
    browser.until_says(".notice[data-level=bad]", lack).await;
    // It can cover what is clicked below.
    browser.click(".notice button").await;
    browser.until_says("#replicas-lack", lack).await;
    browser.goto(&daemon.url("/#/tasks")).await;
    browser.until_says("#tasks-note", lack).await;
    browser.goto(&daemon.url(&format!("/#/task/{task}"))).await;
    browser.until_says("#story-note", lack).await;
    browser.goto(&daemon.url("/#/dead-letters")).await;
    browser.until_says("#letters-note", lack).await;
    browser.until_says("#letter-groups-other", lack).await;
    browser.click("#discard-all").await;
    browser.until_says("#confirm-text", lack).await;
    assert_eq!(browser.complaints().await, [""; 0]);
}

#[tokio::test]
async fn a_stopped_daemon_is_reported_and_the_page_reconnects() {
    let mut daemon = Daemon::start(&QUICK).await;
    let port = daemon.address().rsplit(':').next().unwrap().to_owned();
    let browser = Browser::open(&daemon.url("/")).await;
    browser.until_says("#link", "Live").await;
    daemon.kill();
    browser.until_says("#link", "Disconnected").await;
    browser.until_says("#stale", "does not answer").await;
    // Another test may have got its port meanwhile.
    let again = wait_until("the daemon has its port again", || async {
        Daemon::try_start_on(daemon.dir(), &["--port", &port], &[]).await.ok()
    })
    .await;
    assert_eq!(again.address(), daemon.address());
    browser.until_says("#link", "Live").await;
    browser.until("document.querySelector('#stale').hidden").await;
}

#[tokio::test]
async fn limits_and_the_end_of_a_pause_and_what_an_outage_costs_are_shown() {
    let replica = Replica::start().await;
    let daemon = Daemon::start(&["--queue-capacity", "1000000"]).await;
    let path = format!("/v1/replicas/{}", replica.url().replace("http://", ""));
    let (status, answer) =
        daemon.post_to(&format!("{path}/pause"), &json!({ "for_seconds": 3600 })).await;
    assert_eq!(status, 200, "{answer}");
    let limit = daemon.client().patch(daemon.url(&path)).json(&json!({ "rate": 50 }));
    assert_eq!(limit.send().await.unwrap().status(), 200);
    let browser = Browser::open(&daemon.url("/")).await;
    browser.until_says(&row(&replica), "limit 50/s").await;
    browser.until_says(&row(&replica), "ends in").await;
    // The estimate is of the present rate.
    let writes = async {
        for number in 0.. {
            daemon.accept(&set(&format!("key/{number}"), "v", &[&replica])).await;
        }
    };
    let row = row(&replica);
    tokio::select! {
        () = writes => {}
        () = browser.until_says(&row, "writes refused in") => {}
    }
    assert_eq!(browser.complaints().await, [""; 0]);
}
