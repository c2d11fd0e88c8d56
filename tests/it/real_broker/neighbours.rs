//! Two installations that share a group, as the default is, and nothing else.

use agora_rtm_bridge::simulator::{AppScript, Script};
use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};

use super::{LIMIT, stop};
use crate::support::agora::{Agora, Hosts};
use crate::support::broker;
use crate::support::consume::Consumer;
use crate::support::judge::judge;
use crate::support::names::Names;
use crate::support::process::Bridge;

fn agora() -> Agora {
    let apps = vec![AppScript::numbered(0).rates(50.0, 50.0)];
    Agora::start(Script { apps, ..Script::default() })
}

#[test]
fn installations_with_one_group_and_topics_of_their_own_do_not_fence_each_other() {
    let bootstrap = broker::shared();
    let one = Names::unique("neighbour");
    let two = Names { group: one.group.clone(), ..Names::unique("other-neighbour") };
    let mut running = [one, two].map(|names| {
        let agora = agora();
        let mut bridge = Bridge::start(&agora.config(&names, bootstrap, Hosts::EachRegion));
        let consumer = Consumer::start(bootstrap, &names.published());
        bridge.wait_ready();
        consumer.wait_until("events", LIMIT, |records| records.len() > 100);
        (agora, names, bridge, consumer)
    });
    // Both have claimed by now; who was fenced by the other one fails at its next transaction.
    for (_, _, _, consumer) in &running {
        let mut known = None;
        consumer.wait_until("more events", LIMIT, |records| {
            records.len() > *known.get_or_insert(records.len()) + 100
        });
    }
    for (agora, _, bridge, _) in &mut running {
        agora.come_to_rest(&[0], LIMIT);
        assert_eq!(bridge.metric("agora_rtm_bridge_claims_total"), 1.0, "{}", bridge.log());
        stop(bridge);
    }
    for (agora, names, _, consumer) in running {
        judge(&names, agora.events(), &consumer.finish()).assert_complete();
    }
}

/// A bridge of a version before had ids without the topic's name.
#[test]
fn a_publisher_with_an_id_of_the_version_before_is_fenced_by_the_first_claim() {
    let (bootstrap, names) = (broker::shared(), Names::unique("former"));
    // Not one of the bridge's own: a bridge without a memory waits for what is open in those.
    let topic = format!("{}.other", names.group);
    broker::create_topic(bootstrap, &topic, 1);
    let former: Vec<BaseProducer> = (0..4).map(|it| producer(bootstrap, &names, it)).collect();
    for producer in &former {
        producer.begin_transaction().unwrap();
        producer.send(BaseRecord::to(&topic).key("former").payload("")).unwrap();
        producer.flush(LIMIT).unwrap();
    }
    let agora = agora();
    let mut bridge = Bridge::start(&agora.config(&names, bootstrap, Hosts::EachRegion));
    let consumer = Consumer::start(bootstrap, &names.published());
    bridge.wait_ready();
    consumer.wait_until("events", LIMIT, |records| records.len() > 100);

    let fenced = former.iter().filter(|it| it.commit_transaction(LIMIT).is_err()).count();
    // The one partition that the app belongs to was claimed.
    assert_eq!(fenced, 1, "{}", bridge.log());
    agora.come_to_rest(&[0], LIMIT);
    stop(&mut bridge);
}

fn producer(bootstrap: &str, names: &Names, partition: i32) -> BaseProducer {
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("transactional.id", format!("{}.{partition}", names.group))
        .set("transaction.timeout.ms", "300000")
        .create()
        .expect("the settings are right");
    producer.init_transactions(LIMIT).expect("the broker answers");
    producer
}
