//! SIGTERM under load: an orderly stop loses nothing, not even the answer that is on its way.

use agora_rtm_bridge::simulator::{AppScript, Network, Script, Spread, World};

use super::{LIMIT, stop};
use crate::support::agora::{Agora, Hosts};
use crate::support::broker;
use crate::support::consume::Consumer;
use crate::support::judge::judge;
use crate::support::names::Names;
use crate::support::process::Bridge;

const ROUNDS: usize = 6;

#[test]
fn a_stop_under_load_loses_nothing_and_repeats_nothing() {
    let (bootstrap, names) = (broker::shared(), Names::unique("stops"));
    let agora = Agora::start(Script {
        apps: vec![
            AppScript::numbered(0).rates(150.0, 150.0),
            AppScript::numbered(1).rates(20.0, 20.0),
        ],
        // Long ways, so that a stop often finds answers on theirs.
        network: Network { rtt: Spread::millis(100, 300), ..Network::default() },
        ..Script::default()
    });
    let delivered = |world: &World| world.ledger().total().delivered;
    let mut bridge = Bridge::start(&agora.config(&names, bootstrap, Hosts::EachRegion));
    let consumer = Consumer::start(bootstrap, &names.published());

    for round in 0..ROUNDS {
        let before = delivered(&agora.world());
        // No matter where it stands in its work: each round a little more of it.
        let more = 100 * (u64::try_from(round).unwrap() + 1);
        agora.wait_until("events are fetched", LIMIT, |world| delivered(world) > before + more);
        stop(&mut bridge);
        bridge.start_again();
    }
    agora.come_to_rest(&[0], LIMIT);
    stop(&mut bridge);

    assert_eq!(agora.world().ledger().total().overwritten, 0, "the load suits the test");
    let verdict = judge(&names, agora.events(), &consumer.finish());
    verdict.assert_complete();
    verdict.assert_in_order();
    assert!(verdict.gaps.is_empty(), "{verdict}");
}
