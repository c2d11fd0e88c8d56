//! A pages topic that refuses records for a while, here because of their size.

use agora_rtm_bridge::simulator::{AppScript, Network, Script, Spread};

use super::topics::{Admin, wait_for};
use super::{LIMIT, stop};
use crate::support::agora::{Agora, Hosts};
use crate::support::broker;
use crate::support::consume::Consumer;
use crate::support::judge::judge;
use crate::support::names::Names;
use crate::support::process::Bridge;

#[test]
fn gaps_that_the_pages_topic_refuses_hold_up_nothing_and_leave_when_it_takes_them() {
    let (bootstrap, names) = (broker::shared(), Names::unique("refused"));
    let admin = Admin::new(bootstrap);
    let rtt = Spread::always(std::time::Duration::from_millis(400));
    let agora = Agora::start(Script {
        apps: vec![AppScript::numbered(0).rates(50.0, 50.0)],
        network: Network { rtt, ..Network::default() },
        ..Script::default()
    });
    let mut bridge = Bridge::start(&agora.config(&names, bootstrap, Hosts::EachRegion));
    let consumer = Consumer::start(bootstrap, &names.published());
    bridge.wait_ready();
    agora.wait_until("events are fetched", LIMIT, |world| world.ledger().total().delivered > 100);
    // Requests are nearly always out, so that gaps are what the next start has first.
    bridge.kill_9();
    bridge.wait(LIMIT);
    // No batch of one record is as small as this.
    admin.set_largest(&names.pages, "100");
    bridge.start_again();
    wait_for(&bridge, "readiness names what is refused", |bridge| {
        bridge.address().is_some() && bridge.get("/ready").body.contains("refuses page")
    });
    wait_for(&bridge, "several are refused", |bridge| {
        bridge.metric("agora_rtm_bridge_pages_refused_total") >= 4.0
    });
    admin.set_largest(&names.pages, "10485760");
    wait_for(&bridge, "it is well again", |bridge| bridge.get("/ready").status == 200);

    // What is refused now and then wakes the loop up a few times, and nothing else does.
    let figure = |name: &str| bridge.metric(&format!("agora_rtm_bridge_{name}_total"));
    let of_all = || [figure("journal_reads"), figure("pages_forwarded"), figure("pages_committed")];
    let before = of_all();
    wait_for(&bridge, "forwarding goes on", |_| of_all()[1] > before[1] + 50.0);
    let [reads, forwarded, committed] = {
        let after = of_all();
        [after[0] - before[0], after[1] - before[1], after[2] - before[2]]
    };
    // A partition reads once for what is new anywhere, and once when a page is confirmed.
    let partitions = 8.0;
    let most = (partitions + 2.0) * (forwarded + committed + 10.0);
    assert!(reads <= most, "{reads} reads for {forwarded} forwarded and {committed} committed");

    agora.come_to_rest(&[0], LIMIT);
    stop(&mut bridge);
    judge(&names, agora.events(), &consumer.finish()).assert_exactly_once();
}
