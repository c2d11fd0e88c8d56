//! A start after a loss of power: nobody knows which requests were out, and the gaps topic says so.

use std::collections::BTreeSet;
use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use agora_rtm_bridge::model::CLOCK_MARGIN;
use agora_rtm_bridge::simulator::{AppScript, Script};

use super::{LIMIT, stop};
use crate::support::agora::{Agora, Hosts};
use crate::support::broker;
use crate::support::consume::Consumer;
use crate::support::judge::judge;
use crate::support::names::Names;
use crate::support::process::Bridge;

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970");
    i64::try_from(since.as_millis()).expect("not yet")
}

#[test]
fn a_loss_of_power_is_a_gap_for_each_feed_once_from_when_it_was_empty_to_the_start() {
    let (bootstrap, names) = (broker::shared(), Names::unique("power"));
    let agora = Agora::start(Script {
        apps: vec![AppScript::numbered(0).rates(50.0, 50.0)],
        ..Script::default()
    });
    let began = now();
    let mut bridge = Bridge::start(&agora.config(&names, bootstrap, Hosts::EachRegion));
    let consumer = Consumer::start(bootstrap, &names.published());
    bridge.wait_ready();
    agora.wait_until("events are fetched", LIMIT, |world| world.ledger().total().delivered > 100);
    stop(&mut bridge);
    let stopped = now();

    // As a machine finds it that lost its power while the process ran.
    let lock = bridge.data_dir().join("lock");
    let line = fs::read_to_string(&lock).unwrap();
    let (_, holder) = line.split_once(' ').unwrap();
    let (holder, _) = holder.split_once(" boot=").unwrap();
    fs::write(&lock, format!("running {holder} boot=another\n")).unwrap();
    let again = now();
    bridge.start_again();
    bridge.wait_ready();
    let started = now();
    stop(&mut bridge);
    // The next start knows what became of every request.
    bridge.start_again();
    bridge.wait_ready();
    agora.come_to_rest(&[0], LIMIT);
    stop(&mut bridge);

    let verdict = judge(&names, agora.events(), &consumer.finish());
    verdict.assert_complete();
    let feeds: BTreeSet<&str> = verdict.gaps.iter().map(|gap| &gap.endpoint[..]).collect();
    assert_eq!((verdict.gaps.len(), feeds.len()), (2, 2), "{verdict}");
    let margin = i64::try_from(CLOCK_MARGIN.as_millis()).unwrap();
    for gap in &verdict.gaps {
        let from = gap.from.expect("the feed was empty once");
        assert_eq!((gap.cause.as_str(), gap.at_least, gap.at_most), ("process_killed", 0, None));
        assert!((began - margin..=stopped).contains(&from), "{began} {from} {stopped}");
        assert!((again..=started + margin).contains(&gap.to), "{again} {} {started}", gap.to);
    }
}
