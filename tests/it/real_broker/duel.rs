//! Two bridges with one group and the same App IDs, as if on two machines: by mistake.

use std::collections::BTreeSet;

use agora_rtm_bridge::simulator::{AppScript, RateLimit, Script};

use super::LIMIT;
use crate::support::agora::{Agora, Hosts};
use crate::support::consume::Consumer;
use crate::support::judge::judge;
use crate::support::names::Names;
use crate::support::process::Bridge;
use crate::support::{broker, within};

#[test]
fn of_two_bridges_by_mistake_one_publishes_and_the_other_says_who() {
    let (bootstrap, names) = (broker::shared(), Names::unique("duel"));
    let agora = Agora::start(Script {
        apps: vec![AppScript::numbered(0).rates(50.0, 50.0)],
        // Room for both.
        limit: RateLimit { requests_per_second: 30, ..RateLimit::default() },
        ..Script::default()
    });
    let config = agora.config(&names, bootstrap, Hosts::EachRegion);
    let consumer = Consumer::start(bootstrap, &names.published());
    let mut one = Bridge::start(&format!("instance = \"one\"\n{config}"));
    one.wait_ready();
    agora.wait_until("events are fetched", LIMIT, |world| world.ledger().total().delivered > 100);
    let mut two = Bridge::start(&format!("instance = \"two\"\n{config}"));

    // Whoever claimed last.
    let says = |bridge: &Bridge, who| bridge.get("/ready").body.contains(who);
    let loser_is_one = within(LIMIT, || {
        let (one_says, two_says) = (says(&one, "(instance `two`)"), says(&two, "(instance `one`)"));
        (one_says || two_says).then_some(one_says)
    });
    let loser_is_one = loser_is_one
        .unwrap_or_else(|late| panic!("the loser says who: {late} {}", one.get("/ready").body));
    // It was not taken from each other in turn. Once more may be: a commit that meets the claim of the
    // other bridge can fail without saying that this one is fenced.
    let claims = [&one, &two].map(|it| it.metric("agora_rtm_bridge_claims_total"));
    assert!(claims.iter().sum::<f64>() <= 3.0, "{claims:?}\n{}\n{}", one.log(), two.log());
    agora.come_to_rest(&[0], LIMIT);
    // The loser first: what it has forwarded is delivered by the other one.
    let in_order = if loser_is_one { [&mut one, &mut two] } else { [&mut two, &mut one] };
    let codes: BTreeSet<_> = in_order
        .map(|bridge| {
            bridge.terminate();
            bridge.wait(LIMIT).code()
        })
        .into();
    assert_eq!(codes, BTreeSet::from([Some(0)]), "{}\n{}", one.log(), two.log());
    judge(&names, agora.events(), &consumer.finish()).assert_complete();
}
