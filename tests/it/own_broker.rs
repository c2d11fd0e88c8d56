//! Tests that take their broker away. Each starts one of its own; where a Kafka is given,
//! `tests/run` leaves out this file, by its name.

mod campaign;
mod canaries;
mod check;
mod hanging;
mod remedies;
mod rotated;
mod secured;

use std::time::Duration;

use agora_rtm_bridge::simulator::{AppScript, Burst, Load, Script};
use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use serde_json::Value;

use crate::real_broker::topics::delete_topics;
use crate::support::agora::{Agora, Hosts};
use crate::support::broker::{Broker, Extra};
use crate::support::consume::Consumer;
use crate::support::judge::judge;
use crate::support::names::Names;
use crate::support::process::Bridge;
use crate::support::{broker, within};

const LIMIT: Duration = Duration::from_secs(120);
const MIB: f64 = 1024.0 * 1024.0;

/// What `/ready` says of a condition once it says this.
fn wait_for_reason(bridge: &Bridge, condition: &str, words: &str) -> String {
    let mut last = String::new();
    let told = within(LIMIT, || {
        last = bridge.get("/ready").body;
        let ready: Value = serde_json::from_str(&last).ok()?;
        let reasons = ready.get("reasons")?.as_array()?.clone();
        let is_meant = |it: &Value| it.get("condition").and_then(Value::as_str) == Some(condition);
        let texts = reasons.iter().filter(|it| is_meant(it)).filter_map(|it| it.get("reason"));
        texts.filter_map(Value::as_str).find(|text| text.contains(words)).map(str::to_owned)
    });
    told.unwrap_or_else(|late| panic!("{condition}: {words}: {late}; {last}\n{}", bridge.log()))
}

/// No event happens any more: all of them arrive, in order, and the bridge stops.
fn everything_is_delivered(agora: &Agora, names: &Names, bridge: &mut Bridge, consumer: Consumer) {
    agora.come_to_rest(&[0], LIMIT);
    wait_until_delivered(bridge);
    bridge.terminate();
    assert_eq!(bridge.wait(LIMIT).code(), Some(0), "{}", bridge.log());
    let verdict = judge(names, agora.events(), &consumer.finish());
    verdict.assert_complete();
    verdict.assert_in_order();
}

/// A stop does not wait for long where Kafka has only just come back.
fn wait_until_delivered(bridge: &Bridge) {
    let mut last = Value::Null;
    let delivered = within(LIMIT, || {
        last = bridge.status();
        let waits = ["/journal/entries", "/pages_topic/not_delivered"];
        waits.into_iter().all(|it| last.pointer(it) == Some(&Value::from(0))).then_some(())
    });
    delivered.unwrap_or_else(|late| panic!("nothing waits any more: {late}; {last:#}"));
}

#[test]
fn a_killed_broker_comes_back_with_its_records_and_its_address() {
    let mut broker = Broker::own();
    let bootstrap = broker.bootstrap();
    broker::create_topic(&bootstrap, "outage", 2);
    let consumer = Consumer::start(&bootstrap, &["outage"]);
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", &bootstrap)
        .set("enable.idempotence", "true")
        .set("reconnect.backoff.max.ms", "500")
        .create()
        .unwrap();
    let publish = |key: &str| producer.send(BaseRecord::to("outage").key(key).payload("")).unwrap();

    publish("before");
    producer.flush(LIMIT).unwrap();
    broker.kill_9();
    publish("while it is away");
    broker.start_again();
    producer.flush(LIMIT).unwrap();
    broker.freeze();
    publish("while it is frozen");
    broker.thaw();
    producer.flush(LIMIT).unwrap();

    consumer.wait_until("three records", LIMIT, |records| records.len() == 3);
    assert_eq!(consumer.finish().len(), 3);
}

/// Kafka's default: whoever asks for a topic makes it. We don't.
#[test]
fn topics_that_are_deleted_come_back_as_they_were_where_topics_come_about_by_themselves() {
    let broker = Broker::own();
    delete_topics(&broker.bootstrap());
}

#[test]
fn a_start_while_the_broker_is_away_drains_at_once_and_delivers_when_it_comes() {
    let mut broker = Broker::own();
    let (bootstrap, names) = (broker.bootstrap(), Names::unique("late-broker"));
    broker.kill_9();
    let agora = Agora::start(Script {
        apps: vec![AppScript::numbered(0).rates(300.0, 500.0)],
        ..Script::default()
    });
    let mut bridge = Bridge::start(&agora.config(&names, &bootstrap, Hosts::EachRegion));

    agora.wait_for_moment(Duration::from_secs(5));
    let early = bridge.metric("process_resident_memory_bytes");
    agora.wait_for_moment(Duration::from_secs(30));
    let late = bridge.metric("process_resident_memory_bytes");
    let delivered = agora.world().ledger().total().delivered;
    assert!(delivered > 30 * 800 / 2, "{delivered} were drained meanwhile");
    let answer = bridge.get("/ready");
    assert_eq!(answer.status, 503, "{}", answer.body);
    assert!(answer.body.contains(&bootstrap) || answer.body.contains("Kafka"), "{}", answer.body);
    // 24,000 events are 4 MB of pages; they are on disk.
    assert!(late - early < 64.0 * MIB && late < 256.0 * MIB, "from {early} to {late} bytes");

    broker.start_again();
    let consumer = Consumer::start(&bootstrap, &names.published());
    everything_is_delivered(&agora, &names, &mut bridge, consumer);
    eprintln!("{delivered} events drained without Kafka, memory from {early} to {late} bytes");
}

#[test]
fn a_stop_while_the_broker_does_not_answer_ends_before_its_grace_and_loses_nothing() {
    let mut broker = Broker::own();
    let (bootstrap, names) = (broker.bootstrap(), Names::unique("frozen"));
    let agora = Agora::start(Script {
        apps: vec![AppScript::numbered(0).rates(100.0, 100.0)],
        ..Script::default()
    });
    // With a grace that no test would wait for.
    let config = agora
        .config(&names, &bootstrap, Hosts::EachRegion)
        .replace("shutdown_grace = \"90s\"", "shutdown_grace = \"1h\"");
    let mut bridge = Bridge::start(&config);
    bridge.wait_ready();
    agora.wait_until("events are fetched", LIMIT, |world| world.ledger().total().delivered > 200);
    broker.freeze();
    let frozen_at = agora.now();
    agora.wait_for_moment(frozen_at + Duration::from_secs(1));
    bridge.terminate();
    // Something waits: that is said, and kept.
    assert_eq!(bridge.wait(LIMIT).code(), Some(1), "{}", bridge.log());
    assert!(bridge.log().contains("Kafka has confirmed nothing for 5s"), "{}", bridge.log());
    eprintln!("stopped {:?} after the broker froze", agora.now() - frozen_at);

    broker.thaw();
    bridge.start_again();
    let consumer = Consumer::start(&bootstrap, &names.published());
    agora.come_to_rest(&[0], LIMIT);
    wait_until_delivered(&bridge);
    bridge.terminate();
    assert_eq!(bridge.wait(LIMIT).code(), Some(0), "{}", bridge.log());
    let verdict = judge(&names, agora.events(), &consumer.finish());
    verdict.assert_complete();
}

/// Frozen for longer than a transaction lives and than librdkafka tries: whatever was open at that
/// instant fails in one way or another, a commit without an answer among them.
#[test]
fn a_broker_that_was_frozen_for_longer_than_a_transaction_lives_has_everything_once() {
    let mut broker = Broker::own();
    let (bootstrap, names) = (broker.bootstrap(), Names::unique("long-frozen"));
    let agora = Agora::start(Script {
        apps: vec![AppScript::numbered(0).rates(200.0, 200.0)],
        ..Script::default()
    });
    let mut bridge = Bridge::start(&agora.config(&names, &bootstrap, Hosts::EachRegion));
    let consumer = Consumer::start(&bootstrap, &names.published());
    bridge.wait_ready();
    agora.wait_until("events are fetched", LIMIT, |world| world.ledger().total().delivered > 400);
    broker.freeze();
    agora.wait_for_moment(agora.now() + Duration::from_secs(35));
    broker.thaw();
    agora.come_to_rest(&[0], LIMIT);
    wait_until_delivered(&bridge);
    let failures = bridge.metric("agora_rtm_bridge_publish_failures_total");
    bridge.terminate();
    assert_eq!(bridge.wait(LIMIT).code(), Some(0), "{}", bridge.log());
    // What was open, and so whether it failed, is chance.
    let was_noticed = bridge.log().contains("Kafka has confirmed no page for 10s");
    assert!(was_noticed, "the test is about nothing: {}", bridge.log());
    eprintln!("{failures} publications failed");
    let verdict = judge(&names, agora.events(), &consumer.finish());
    verdict.assert_complete();
    verdict.assert_in_order();
}

#[test]
fn a_transactional_id_that_the_broker_has_forgotten_loses_and_repeats_nothing() {
    let broker = Broker::own_with_extra(|_| Extra {
        settings: "transactional.id.expiration.ms=1000\n\
                   transaction.remove.expired.transaction.cleanup.interval.ms=500\n"
            .to_owned(),
        ..Extra::default()
    });
    let (bootstrap, names) = (broker.bootstrap(), Names::unique("expired"));
    let burst = |second| Burst {
        at: Duration::from_secs(second),
        events: 50,
        over: Duration::from_millis(300),
    };
    let load = Load { bursts: vec![burst(8), burst(20), burst(32)], ..Load::default() };
    let app = AppScript { user_events: load, ..AppScript::numbered(0) };
    let agora = Agora::start(Script { apps: vec![app], ..Script::default() });
    let mut bridge = Bridge::start(&agora.config(&names, &bootstrap, Hosts::EachRegion));
    let consumer = Consumer::start(&bootstrap, &names.published());
    bridge.wait_ready();
    agora.wait_until("all bursts are fetched", LIMIT, |world| {
        world.ledger().total().delivered == 150
    });
    wait_until_delivered(&bridge);
    let failures = bridge.metric("agora_rtm_bridge_publish_failures_total");
    bridge.terminate();
    assert_eq!(bridge.wait(LIMIT).code(), Some(0), "{}", bridge.log());
    assert!(failures >= 1.0, "the test is about nothing: it was not forgotten");
    let verdict = judge(&names, agora.events(), &consumer.finish());
    assert_eq!(verdict.published, 150, "{verdict}");
    verdict.assert_complete();
}
