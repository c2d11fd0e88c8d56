//! Time from the start of the process until its first request reaches Agora.
//!
//! The network takes no time here, so the request arrives when it is sent.

use std::fs;
use std::path::Path;
use std::time::Duration;

use agora_rtm_bridge::journal::Journal;
use agora_rtm_bridge::kafka::partition_of;
use agora_rtm_bridge::model::{
    AppId, Clock, Content, Endpoint, Feed, Incarnation, Page, Region, Wholeness,
};
use agora_rtm_bridge::simulator::Spread;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use super::agora::Agora;
use super::{say, topics};
use crate::support::names::Names;
use crate::support::process::Bridge;
use crate::support::within;

/// One start.
pub(crate) struct Outcome {
    pub(crate) what: &'static str,
    /// From just before the process is started to the request's arrival; `None` if it took longer
    /// than [`LIMIT`].
    pub(crate) after: Option<Duration>,
}

/// Upper limit; beyond it the exact time doesn't matter.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

/// An address where no server listens.
const NO_KAFKA: &str = "127.0.0.1:1";

/// Pages in the journal, about twenty minutes of 3,000 events a second.
const PAGES: usize = 10_000;
const EVENTS_A_PAGE: usize = 400;

/// The bridge's default of `kafka.topics.page_partitions`.
const PARTITIONS: u32 = 8;

/// After this, requests of a previous process no longer count; an immediate restart has its own
/// row.
const LONG_AGO: Duration = Duration::from_millis(1_500);

/// Measures each kind of start.
pub(crate) fn run(bootstrap: &str) -> Vec<Outcome> {
    say::progress("first request after the start");
    let mut outcomes = vec![
        Outcome { what: "empty data directory", after: fresh(bootstrap) },
        Outcome { what: "empty data directory, Kafka down", after: fresh(NO_KAFKA) },
        Outcome { what: "at once after kill -9", after: after_kill(bootstrap) },
    ];
    say::progress(format_args!("filling a journal with {PAGES} pages, twice"));
    for (what, kafka) in [
        ("10,000 pages in the journal", bootstrap),
        ("10,000 pages in the journal, Kafka down", NO_KAFKA),
    ] {
        outcomes.push(Outcome { what, after: with_pages(kafka) });
    }
    outcomes
}

fn fresh(kafka: &str) -> Option<Duration> {
    let (agora, config) = stage(kafka);
    let begun = agora.now();
    let _bridge = Bridge::start(&config);
    first_request(&agora, begun)
}

fn after_kill(kafka: &str) -> Option<Duration> {
    let (agora, config) = stage(kafka);
    let mut bridge = Bridge::start(&config);
    bridge.wait_ready();
    // The worst moment: a request has just left and counts for a second.
    let ready = agora.now();
    first_request(&agora, ready)?;
    bridge.kill_9();
    let begun = agora.now();
    bridge.start_again();
    first_request(&agora, begun)
}

fn with_pages(kafka: &str) -> Option<Duration> {
    let (agora, config) = stage(kafka);
    // It creates its directory and leaves it for us.
    let mut bridge = Bridge::start(&config);
    bridge.kill_9();
    fill(&bridge.data_dir(), &agora.app().app_id);
    std::thread::sleep(LONG_AGO);
    let begun = agora.now();
    bridge.start_again();
    first_request(&agora, begun)
}

/// An Agora without load and a configuration for it.
fn stage(kafka: &str) -> (Agora, String) {
    let agora = Agora::start(0, Spread::always(Duration::ZERO));
    let names = Names::unique("start");
    if kafka != NO_KAFKA {
        topics::create(kafka, &names);
    }
    let config = names.kafka_tables(kafka) + &agora.app_tables();
    (agora, config)
}

fn first_request(agora: &Agora, begun: Duration) -> Option<Duration> {
    let arrived = || {
        agora
            .ledger(|ledger| ledger.answers().iter().map(|answer| answer.at).find(|at| *at > begun))
    };
    within(LIMIT, arrived).ok().map(|at| at - begun)
}

/// Creates a journal with waiting pages, as an outage of Kafka leaves it.
fn fill(data_dir: &Path, app: &AppId) {
    if data_dir.exists() {
        fs::remove_dir_all(data_dir).expect("its owner is gone");
    }
    fs::create_dir_all(data_dir).expect("the temporary folder can be written to");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime needs nothing");
    let incarnation = Incarnation::from_u128(rand::random());
    let now = Clock::system().now();
    let (journal, _) = Journal::open(data_dir, u64::MAX / 2, incarnation, now)
        .expect("a fresh folder can be written to");
    runtime.block_on(async {
        let tracker = TaskTracker::new();
        for number in 0..PAGES {
            tracker.spawn(keep(journal.clone(), page(app, number)));
            // At most as many at once as fit into one transaction of the journal.
            if number % 250 == 249 {
                tracker.close();
                tracker.wait().await;
                tracker.reopen();
            }
        }
        tracker.close();
        tracker.wait().await;
        // The journal answers a moment before it updates its backlog.
        let mut backlog = journal.backlog();
        let all = backlog.wait_for(|it| it.entries == PAGES as u64);
        let all = timeout(LIMIT, all).await.expect("all pages are in the journal");
        all.map(drop).expect("the journal is open");
    });
}

async fn keep(journal: Journal, page: Page) {
    let partition = partition_of(page.feed.app.as_str().as_bytes(), PARTITIONS);
    let reservation = journal
        .reserve(&page.feed, partition, None, page.asked_at)
        .await
        .expect("the journal has room");
    reservation.settle(Content::Page(page)).await.expect("the disk takes it");
}

fn page(app: &AppId, number: usize) -> Page {
    let now = Clock::system().now();
    let ms = now.as_millis();
    let events: Vec<String> = (0..EVENTS_A_PAGE)
        .map(|at| {
            let user = number * EVENTS_A_PAGE + at;
            format!(r#"{{"user_id":"user-{user:08}","type":"Login","ms":{ms}}}"#)
        })
        .collect();
    let body = format!(
        r#"{{"result":"success","request_id":"{number:032x}","events":[{}]}}"#,
        events.join(",")
    );
    Page {
        feed: Feed { app: app.clone(), region: Region::new("default"), endpoint: Endpoint::User },
        since: None,
        asked_at: now,
        answered_at: now,
        status: 200,
        wholeness: Wholeness::Whole,
        request_id: None,
        resource_id: None,
        content_encoding: None,
        body: body.into(),
    }
}
