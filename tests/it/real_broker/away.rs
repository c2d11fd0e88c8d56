//! A start without Kafka, and with a journal full of pages: polling waits for neither.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use agora_rtm_bridge::journal::Journal;
use agora_rtm_bridge::model::{AppId, Clock, Content, Incarnation};
use agora_rtm_bridge::simulator::{AppScript, Script};
use tokio::task::JoinSet;

use super::LIMIT;
use crate::support::agora::{Agora, Hosts};
use crate::support::names::Names;
use crate::support::process::Bridge;
use crate::support::{pages, within};

/// Nobody listens there: the port is reserved and needs privileges.
const NO_KAFKA: &str = "127.0.0.1:1";

const PAGES: u64 = 10_000;

/// What the journal may take, in bytes.
const ROOM: u64 = 4 << 30;

/// Tickets that are out together while a journal is filled.
const AT_ONCE: usize = 200;

/// How many answers are waited for.
const ANSWERS: usize = 20;

#[test]
fn polling_begins_without_kafka_and_with_ten_thousand_pages_waiting() {
    let app = AppScript::numbered(0).rates(200.0, 200.0);
    let id = app.app_id.clone();
    let agora = Agora::start(Script { apps: vec![app], ..Script::default() });
    let config = agora.config(&Names::unique("away"), NO_KAFKA, Hosts::EachRegion);
    let mut begun = Duration::ZERO;
    let mut bridge = Bridge::start_on(&config, |data_dir| {
        fill_journal(data_dir, &id);
        begun = agora.now();
    });
    agora.wait_until("many answers", LIMIT, |world| world.ledger().answers().len() >= ANSWERS);

    let first = agora.world().ledger().answers()[0].at;
    eprintln!("first request {:?} after the start", first.saturating_sub(begun));
    let status = bridge.status();
    let waiting = status["journal"]["entries"].as_u64().unwrap();
    assert!(waiting > PAGES, "nothing is forwarded, and pages were added: {status:#}");
    assert_eq!(bridge.get("/live").status, 200);

    bridge.terminate();
    let stopping = within(LIMIT, || bridge.log().contains("stopping").then_some(()));
    stopping.unwrap_or_else(|late| panic!("the bridge was stopping {late}"));
    bridge.terminate();
    // What waits is safe, but not delivered.
    assert_eq!(bridge.wait(LIMIT).code(), Some(1));
}

/// Puts pages into a journal, as a process would have that found no Kafka.
fn fill_journal(data_dir: &Path, app: &AppId) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().build().expect("a runtime needs nothing");
    runtime.block_on(async {
        let now = Clock::system().now();
        let incarnation = Incarnation::from_u128(rand::random());
        let (journal, _) = Journal::open(data_dir, ROOM, incarnation, now)
            .expect("a fresh folder can be written to");
        let mut kept = JoinSet::new();
        for number in 0..PAGES {
            // Each that is out reserves room.
            if kept.len() >= AT_ONCE {
                kept.join_next().await;
            }
            let journal = journal.clone();
            let user = format!(r#"{{"user_id":"{number}","type":"Login","ms":1578027420761}}"#);
            let body = format!(r#"{{"result":"success","request_id":"1","events":[{user}]}}"#);
            let page = pages::of_users(app, now, body);
            kept.spawn(async move {
                let reservation =
                    journal.reserve(&page.feed, 0, None, now).await.expect("it has room");
                reservation.settle(Content::Page(page)).await.expect("the disk has room");
            });
        }
        kept.join_all().await;
    });
    // The journal's thread ends when its last handle is gone, and gives the lock back.
    let lock = File::open(data_dir.join("lock")).expect("an open journal is locked by it");
    within(LIMIT, || lock.try_lock().ok()).expect("the journal is closed");
}
