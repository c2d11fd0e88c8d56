//! Secrets that change while the bridge runs.

use std::fs;

use agora_rtm_bridge::simulator::{AppScript, Script};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::{ClientConfig, TopicPartitionList};

use super::{LIMIT, everything_is_delivered, wait_for_reason};
use crate::support::agora::{Agora, Hosts};
use crate::support::consume::Consumer;
use crate::support::names::Names;
use crate::support::process::Bridge;
use crate::support::secured::{PASSWORD, Proof, Secured};
use crate::support::{names, within};

fn agora() -> Agora {
    let apps = vec![AppScript::numbered(0).rates(50.0, 50.0)];
    Agora::start(Script { apps, ..Script::default() })
}

/// Waits until the bridge has delivered events in front of a broker that accepts it.
fn wait_until_it_delivers(agora: &Agora, bridge: &mut Bridge) {
    bridge.wait_ready();
    agora.wait_until("events are fetched", LIMIT, |world| world.ledger().total().delivered > 200);
}

/// The committed positions of all partitions, added up.
fn noted(bootstrap: &str, names: &Names) -> i64 {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", &names.group)
        .create()
        .expect("the settings are right");
    let mut partitions = TopicPartitionList::new();
    partitions.add_partition_range(&names.pages, 0, 7);
    let noted = consumer.committed_offsets(partitions, LIMIT).expect("the broker answers");
    noted.elements().iter().filter_map(|it| it.offset().to_raw()).filter(|it| *it > 0).sum()
}

/// Becomes ready again and delivers everything, without a restart.
fn recovers(agora: &Agora, names: &Names, bootstrap: &str, bridge: &mut Bridge) {
    let consumer = Consumer::start(bootstrap, &names.published());
    let ready = within(LIMIT, || (bridge.get("/ready").status == 200).then_some(()));
    ready.unwrap_or_else(|late| panic!("ready again: {late}; {}", bridge.get("/ready").body));
    // The client that commits positions has the old secrets, too.
    let before = noted(bootstrap, names);
    let goes_on = within(LIMIT, || (noted(bootstrap, names) > before).then_some(()));
    goes_on.unwrap_or_else(|late| panic!("positions are noted again: {late}; {before}"));
    everything_is_delivered(agora, names, bridge, consumer);
}

#[test]
fn a_rotated_password_is_named_and_its_file_ends_the_refusal_without_a_restart() {
    const NEW_PASSWORD: &str = "the-next-canary";
    let (mut broker, proof) = (Secured::own(), Proof::Plain("plain-user"));
    let (agora, names, home) = (agora(), Names::unique("rotated"), names::folder());
    broker.grant_all(proof, &names);
    let file = home.path().join("password");
    fs::write(&file, PASSWORD).unwrap();
    let options = broker.options(proof, PASSWORD).replace(
        &format!("\"sasl.password\" = \"{PASSWORD}\""),
        &format!("\"sasl.password_file\" = {file:?}"),
    );
    let config = agora.config(&names, &broker.door(proof), Hosts::EachRegion);
    let mut bridge = Bridge::start(&(config + &options));
    wait_until_it_delivers(&agora, &mut bridge);

    broker.rotate_password(NEW_PASSWORD);
    // The loop that forwards says it, not only those that publish.
    let reason = wait_for_reason(&bridge, "forwarding", "Authentication failed");
    assert!(reason.contains("sasl.password"), "{reason}");

    fs::write(&file, NEW_PASSWORD).unwrap();
    let renewed_at = agora.now();
    recovers(&agora, &names, &broker.bootstrap(), &mut bridge);
    eprintln!("all is delivered {:?} after the file was rewritten", agora.now() - renewed_at);
    assert!(!bridge.log().contains("canary"), "{}", bridge.log());
}

#[test]
fn a_renewed_certificate_is_read_from_its_file_without_a_restart() {
    let (mut broker, proof) = (Secured::own(), Proof::Certificate);
    let (agora, names) = (agora(), Names::unique("renewed"));
    broker.grant_all(proof, &names);
    let config = agora.config(&names, &broker.door(proof), Hosts::EachRegion);
    let mut bridge = Bridge::start(&(config + &broker.options(proof, PASSWORD)));
    wait_until_it_delivers(&agora, &mut bridge);

    broker.renew_certificate();
    let reason = wait_for_reason(&bridge, "forwarding", "alert");
    assert!(reason.contains("ssl.certificate.location"), "{reason}");

    broker.hand_out_certificate();
    let renewed_at = agora.now();
    recovers(&agora, &names, &broker.bootstrap(), &mut bridge);
    eprintln!("all is delivered {:?} after the file was replaced", agora.now() - renewed_at);
}
