//! `delivery = "at-least-once"`: nothing is missing, and what a kill repeats is bounded by what one
//! transaction would have held.

use std::time::Duration;

use agora_rtm_bridge::simulator::{AppScript, Script};

use super::{LIMIT, stop};
use crate::support::agora::{Agora, Hosts};
use crate::support::broker;
use crate::support::consume::Consumer;
use crate::support::judge::judge;
use crate::support::names::Names;
use crate::support::process::Bridge;

const KILLS: usize = 8;

#[test]
fn at_least_once_repeats_no_more_than_what_a_kill_found_on_its_way() {
    let (bootstrap, names) = (broker::shared(), Names::unique("at-least-once"));
    let agora = Agora::start(Script {
        apps: vec![AppScript::numbered(0).rates(400.0, 400.0)],
        ..Script::default()
    });
    let config = agora
        .config(&names, bootstrap, Hosts::EachRegion)
        .replace("[kafka]\n", "[kafka]\ndelivery = \"at-least-once\"\n");
    let mut bridge = Bridge::start(&config);
    let consumer = Consumer::start(bootstrap, &names.published());
    bridge.wait_ready();
    for kill in 0..KILLS {
        let life = Duration::from_millis(900 + 37 * u64::try_from(kill).unwrap());
        agora.wait_for_moment(agora.now() + life);
        bridge.kill_9();
        bridge.start_again();
    }
    agora.come_to_rest(&[0], LIMIT);
    stop(&mut bridge);
    let verdict = judge(&names, agora.events(), &consumer.finish());
    assert!(verdict.missing.is_empty() && verdict.unknown.is_empty(), "{verdict}");
    // Ten pages for each kill, of the one partition that has an app.
    assert!(verdict.twice.len() <= KILLS * 10 * 1_000, "{verdict}");
    eprintln!("{KILLS} kills, {} published, {} twice", verdict.published, verdict.twice.len());
}
