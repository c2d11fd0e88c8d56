//! Repeats, wherever they come from: none is published.

use std::fs;
use std::time::Duration;

use agora_rtm_bridge::model::Endpoint;
use agora_rtm_bridge::simulator::{AppScript, Fault, FaultKind, RegionScript, Script};

use super::{LIMIT, stop, total, wait_for_balance};
use crate::support::agora::{Agora, Hosts, backlog};
use crate::support::judge::judge;
use crate::support::names::Names;
use crate::support::pages::Pages;
use crate::support::process::Bridge;
use crate::support::{broker, consume};

/// More than a buffer holds, so that the second region has all that it can have.
const EVENTS: u32 = 3_000;

/// Two regions, `a` and `b`, with the same events.
fn two_regions(faults: Vec<Fault>) -> Script {
    Script {
        apps: vec![AppScript::numbered(0).rates(400.0, 100.0)],
        regions: vec![RegionScript::new("a"), RegionScript::new("b")],
        faults,
        ..Script::default()
    }
}

fn unavailable(region: &str) -> Vec<Fault> {
    vec![Fault::new(FaultKind::ServerError).status(503).region(region)]
}

/// Lets the first region be drained of [`EVENTS`] events and more.
fn drain_the_first(agora: &Agora) {
    agora.wait_until("enough events", LIMIT, |world| {
        world.ledger().total().made >= u64::from(EVENTS)
    });
    agora.come_to_rest(&[0], LIMIT);
    let left = backlog(&agora.world(), 1);
    assert!(left > 2_000, "a full buffer of user events, and channel events: {left}");
}

/// Judges all that was published: everything once, although the second region repeated so much.
#[track_caller]
fn assert_no_repeat(agora: &Agora, names: &Names, repeats: u64) {
    let made = agora.world().ledger().total();
    assert!(made.repeats >= repeats, "{made:?}");
    let records = consume::read_all(broker::shared(), &names.published());
    let verdict = judge(names, agora.events(), &records);
    verdict.assert_complete();
    verdict.assert_in_order();
}

fn restart(test: &str, between: impl FnOnce(&Bridge)) {
    let (bootstrap, names) = (broker::shared(), Names::unique(test));
    let agora = Agora::start(two_regions(unavailable("b")));
    let config = agora.config(&names, bootstrap, Hosts::EachRegion);
    let mut bridge = Bridge::start(&config);
    drain_the_first(&agora);
    stop(&mut bridge);

    between(&bridge);
    let old = backlog(&agora.world(), 1) as u64;
    agora.set_faults(Vec::new());
    bridge.start_again();
    agora.come_to_rest(&[0, 1], LIMIT);
    let status = wait_for_balance(&bridge, old);
    stop(&mut bridge);

    assert_eq!(total(&status, "repeats").cast_unsigned(), old, "{status:#}");
    assert_eq!(total(&status, "delivered"), 0, "{status:#}");
    assert_no_repeat(&agora, &names, old);
}

#[test]
fn a_region_that_repeats_after_a_restart_is_recognised() {
    restart("restart", |_| {});
}

#[test]
fn a_region_that_repeats_after_a_restart_on_an_empty_data_directory_is_recognised() {
    restart("empty-directory", |bridge| {
        fs::remove_dir_all(bridge.data_dir()).unwrap();
    });
}

#[test]
fn a_host_that_takes_over_and_repeats_old_events_is_recognised() {
    let (bootstrap, names) = (broker::shared(), Names::unique("failover"));
    let agora = Agora::start(two_regions(Vec::new()));
    let config = agora.config(&names, bootstrap, Hosts::InOrder(&[0, 1]));
    let mut bridge = Bridge::start(&config);
    drain_the_first(&agora);
    let old = backlog(&agora.world(), 1) as u64;
    agora.set_faults(unavailable("a"));
    agora.wait_until("the second host is drained", LIMIT, |world| backlog(world, 1) == 0);
    let received = received(&agora);
    let status = wait_for_balance(&bridge, received);
    stop(&mut bridge);

    assert_eq!(total(&status, "repeats").cast_unsigned(), old, "{status:#}");
    assert_no_repeat(&agora, &names, old);
}

#[test]
fn a_host_that_takes_over_under_load_repeats_nothing_and_loses_nothing() {
    let (bootstrap, names) = (broker::shared(), Names::unique("failover-load"));
    let refused =
        Fault { from: Duration::from_secs(8), ..Fault::new(FaultKind::Refused).region("a") };
    let agora = Agora::start(Script {
        apps: vec![AppScript::numbered(0).rates(150.0, 100.0)],
        ..two_regions(vec![refused])
    });
    let config = agora.config(&names, bootstrap, Hosts::InOrder(&[0, 1]));
    let mut bridge = Bridge::start(&config);
    agora.wait_until("the second host is asked for both endpoints", LIMIT, |world| {
        let answers = world.ledger().answers().iter().filter(|answer| answer.region == 1);
        let mut feeds: Vec<_> = answers.filter_map(|answer| answer.feed).collect();
        feeds.dedup();
        Endpoint::ALL.into_iter().all(|endpoint| feeds.contains(&(0, endpoint)))
    });
    agora.come_to_rest(&[1], LIMIT);
    stop(&mut bridge);

    assert_no_repeat(&agora, &names, 300);
}

/// What an answer in flight carried may be lost with the process; then a gap says so.
#[test]
fn a_kill_while_a_name_begins_to_lead_to_another_region_repeats_nothing() {
    let (bootstrap, names) = (broker::shared(), Names::unique("detour"));
    let away = Duration::from_secs(6);
    let agora = Agora::start(Script {
        regions: vec![RegionScript::new("a").detour(away, "b"), RegionScript::new("b")],
        ..two_regions(Vec::new())
    });
    let config = agora.config(&names, bootstrap, Hosts::InOrder(&[0]));
    let mut bridge = Bridge::start(&config);
    agora.wait_until("the other region answers", LIMIT, |world| {
        world.ledger().answers().iter().any(|answer| answer.region == 1)
    });
    bridge.kill_9();
    bridge.start_again();
    agora.come_to_rest(&[1], LIMIT);
    stop(&mut bridge);

    let made = agora.world().ledger().total();
    assert!(made.repeats > 1_000, "{made:?}");
    let records = consume::read_all(broker::shared(), &names.published());
    let verdict = judge(&names, agora.events(), &records);
    verdict.assert_exactly_once();
    verdict.assert_in_order();
}

fn received(agora: &Agora) -> u64 {
    agora.world().ledger().answers().iter().map(|answer| answer.complete).sum()
}

#[test]
fn events_that_are_repeated_between_pages_and_within_one_are_published_once() {
    let event = |user: &str| format!(r#"{{"user_id":"{user}","type":"Login","ms":1578027420761}}"#);
    let page = |users: &[&str]| {
        let events: Vec<String> = users.iter().map(|user| event(user)).collect();
        format!(r#"{{"result":"success","request_id":"1","events":[{}]}}"#, events.join(","))
    };
    let pages = Pages::serve(vec![
        page(&["anna", "bert", "anna"]),
        page(&["bert", "carl"]),
        page(&["anna", "bert", "carl", "dora", "dora"]),
    ]);
    let (bootstrap, names) = (broker::shared(), Names::unique("repeats"));
    let config = format!(
        "{}\n[[apps]]\napp_id = \"a1\"\nhosts = [{:?}]\nendpoints = [\"user_events\"]\n\
         [apps.auth]\ncustomer_id = \"c\"\ncustomer_secret = \"s\"\n",
        names.kafka_tables(bootstrap),
        pages.url(),
    );
    let mut bridge = Bridge::start(&config);
    let status = wait_for_balance(&bridge, 10);
    stop(&mut bridge);

    let figures = ["delivered", "repeats", "repeats_in_page"];
    assert_eq!(figures.map(|column| total(&status, column)), [4, 4, 2], "{status:#}");
    let records = consume::read_all(bootstrap, &names.published());
    let mut keys: Vec<&str> = records
        .iter()
        .map(|record| str::from_utf8(record.key.as_deref().unwrap()).unwrap())
        .collect();
    keys.sort_unstable();
    assert_eq!(keys, ["anna", "bert", "carl", "dora"]);
}
