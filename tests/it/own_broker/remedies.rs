//! What is said to do about a failure, where a broker really fails so.

use agora_rtm_bridge::simulator::{AppScript, Script};

use super::wait_for_reason;
use crate::check::check;
use crate::support::agora::{Agora, Hosts};
use crate::support::broker::{Broker, Extra, free_port};
use crate::support::names::Names;
use crate::support::process::Bridge;
use crate::support::secured;
use crate::support::secured::{PASSWORD, Proof};

fn agora() -> Agora {
    let apps = vec![AppScript::numbered(0).rates(50.0, 50.0)];
    Agora::start(Script { apps, ..Script::default() })
}

/// A broker with settings of its own, and the bridge's configuration for it.
fn broker_with(settings: &str, agora: &Agora) -> (Broker, String) {
    let broker =
        Broker::own_with_extra(|_| Extra { settings: settings.to_owned(), ..Extra::default() });
    let names = Names::unique("remedy");
    let config = agora.config(&names, &broker.bootstrap(), Hosts::EachRegion);
    (broker, config)
}

#[test]
fn too_few_brokers_for_the_log_of_transactions_are_named_with_the_setting() {
    const SETTING: &str = "transaction.state.log.replication.factor";
    let agora = agora();
    let (_broker, config) = broker_with(&format!("{SETTING}=3\n"), &agora);
    check(&config, &[]).assert_failed(&[SETTING]);
    let bridge = Bridge::start(&config);
    wait_for_reason(&bridge, "publishing", SETTING);
}

#[test]
fn too_few_brokers_for_the_log_of_groups_are_named_with_the_setting() {
    const SETTING: &str = "offsets.topic.replication.factor";
    let agora = agora();
    let (_broker, config) = broker_with(&format!("{SETTING}=3\n"), &agora);
    check(&config, &[]).assert_failed(&[SETTING]);
}

#[test]
fn each_wrong_port_protocol_and_mechanism_is_named_with_its_key() {
    let (agora, broker) = (agora(), secured::shared());
    let plain = Proof::Plain("plain-user");
    let at = |door: &str, options: &str| {
        agora.config(&Names::unique("door"), door, Hosts::EachRegion) + options
    };
    let sasl = broker.options(plain, PASSWORD);
    let tls = broker.options(Proof::Certificate, PASSWORD);
    let nowhere = format!("127.0.0.1:{}", free_port());
    for (config, words) in [
        (at(&broker.door(plain), ""), "\"security.protocol\""),
        (at(&broker.door(Proof::Certificate), ""), "\"security.protocol\""),
        (at(&broker.door(plain), &tls), "\"security.protocol\""),
        (at(&broker.bootstrap(), &sasl), "\"security.protocol\""),
        (at(&broker.door(plain), &sasl.replace("PLAIN", "SCRAM-SHA-256")), "\"sasl.mechanism\""),
        (at(&nowhere, ""), "whether a broker runs there"),
    ] {
        check(&config, &[]).assert_failed(&[words]);
    }
}
