//! The bridge before a broker that wants proof and grants nothing more than what is documented.

use std::fs;
use std::time::Duration;

use agora_rtm_bridge::simulator::{AppScript, Script};

use super::LIMIT;
use crate::support::agora::{Agora, Hosts};
use crate::support::consume::Consumer;
use crate::support::judge::judge;
use crate::support::names::Names;
use crate::support::process::Bridge;
use crate::support::secured::{PASSWORD, Proof};
use crate::support::{names, secured, within};

fn agora() -> Agora {
    let apps = vec![AppScript::numbered(0).rates(50.0, 50.0)];
    Agora::start(Script { apps, ..Script::default() })
}

fn delivers_everything(agora: &Agora, names: &Names, bridge: &mut Bridge) {
    let consumer = Consumer::start(&secured::shared().bootstrap(), &names.published());
    agora.come_to_rest(&[0], LIMIT);
    bridge.terminate();
    assert_eq!(bridge.wait(LIMIT).code(), Some(0), "{}", bridge.log());
    let verdict = judge(names, agora.events(), &consumer.finish());
    verdict.assert_complete();
    verdict.assert_in_order();
}

/// What `/ready` says once it says this.
fn wait_for_reason(bridge: &Bridge, words: &str) -> String {
    let mut last = String::new();
    let told = within(LIMIT, || {
        last = bridge.get("/ready").body;
        last.contains(words).then_some(())
    });
    told.unwrap_or_else(|late| panic!("{words}: {late}; {last}\n{}", bridge.log()));
    last
}

fn told(bridge: &Bridge, words: &str) -> usize {
    bridge.log().lines().filter(|line| line.contains(words)).count()
}

#[test]
fn the_documented_rights_suffice_with_plain_with_scram_within_tls_and_with_a_certificate() {
    let broker = secured::shared();
    let proofs = [Proof::Plain("plain-user"), Proof::Scram("scram-user"), Proof::Certificate];
    let running = proofs.map(|proof| {
        let (agora, names) = (agora(), Names::unique("secured"));
        broker.grant_all(proof, &names);
        let config = agora.config(&names, &broker.door(proof), Hosts::EachRegion);
        let bridge = Bridge::start(&(config + &broker.options(proof, PASSWORD)));
        (agora, names, bridge)
    });
    for (agora, names, mut bridge) in running {
        bridge.wait_ready();
        agora.wait_for_moment(Duration::from_secs(2));
        delivers_everything(&agora, &names, &mut bridge);
    }
}

#[test]
fn a_refused_password_is_told_once_with_what_to_do_and_a_corrected_file_ends_it() {
    let (broker, proof) = (secured::shared(), Proof::Plain("plain-user"));
    let (agora, names, home) = (agora(), Names::unique("password"), names::folder());
    broker.grant_all(proof, &names);
    let file = home.path().join("password");
    fs::write(&file, "a-canary-that-is-wrong").unwrap();
    let options = broker.options(proof, PASSWORD).replace(
        &format!("\"sasl.password\" = \"{PASSWORD}\""),
        &format!("\"sasl.password_file\" = {file:?}"),
    );
    let config = agora.config(&names, &broker.door(proof), Hosts::EachRegion);
    let mut bridge = Bridge::start(&(config + &options));

    let ready = wait_for_reason(&bridge, "Authentication failed");
    assert!(ready.contains("sasl.password"), "{ready}");
    // By then every partition has tried, most of them again.
    agora.wait_for_moment(Duration::from_secs(6));
    assert_eq!(told(&bridge, "Authentication failed"), 1, "{}", bridge.log());
    assert!(!bridge.log().contains("canary"), "{}", bridge.log());

    fs::write(&file, PASSWORD).unwrap();
    bridge.wait_ready();
    delivers_everything(&agora, &names, &mut bridge);
}

#[test]
fn a_missing_right_is_named_while_it_is_missing_and_a_grant_ends_it() {
    let (broker, proof) = (secured::shared(), Proof::Scram("strict-user"));
    let (agora, names) = (agora(), Names::unique("right"));
    use crate::support::secured::Kind;
    use crate::support::secured::Operation::{Create, Describe, Read, Write};
    // Without DescribeConfigs: it goes on with Kafka's defaults.
    for operation in [Describe, Write, Create, Read] {
        broker.grant(proof, Kind::Topic, &names.group, operation);
    }
    broker.grant(proof, Kind::Group, &names.group, Read);
    let config = agora.config(&names, &broker.door(proof), Hosts::EachRegion);
    let mut bridge = Bridge::start(&(config + &broker.options(proof, PASSWORD)));

    let ready = wait_for_reason(&bridge, "ransactional");
    assert!(ready.contains("kafka.group"), "{ready}");

    broker.grant_transactions(proof, &names);
    bridge.wait_ready();
    delivers_everything(&agora, &names, &mut bridge);
}
