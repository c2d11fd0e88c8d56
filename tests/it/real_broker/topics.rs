//! Topics that change under a running bridge: deleted, and with another limit.

use agora_rtm_bridge::simulator::{AppScript, Script};
use rdkafka::ClientConfig;
use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, GroupResult, NewPartitions, ResourceSpecifier,
};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::RDKafkaErrorCode;

use super::{LIMIT, stop};
use crate::support::agora::{Agora, Hosts};
use crate::support::consume::{Consumer, read_all};
use crate::support::judge::judge;
use crate::support::names::Names;
use crate::support::process::Bridge;
use crate::support::{broker, within};

/// Somebody who may do everything.
pub(super) struct Admin {
    client: AdminClient<DefaultClientContext>,
    reader: BaseConsumer,
}

// === impl Admin ===

impl Admin {
    pub(super) fn new(bootstrap: &str) -> Self {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", bootstrap);
        let client = config.create().expect("the settings are right");
        Self { client, reader: config.create().expect("the settings are right") }
    }

    /// How many partitions a topic has; none where it is not there.
    pub(super) fn partitions(&self, topic: &str) -> usize {
        let metadata = self.reader.fetch_metadata(None, LIMIT).expect("the broker answers");
        let found = metadata.topics().iter().find(|it| it.name() == topic);
        found.map_or(0, |it| it.partitions().len())
    }

    pub(super) fn wait_for_partitions(&self, topic: &str, partitions: usize) {
        within(LIMIT, || (self.partitions(topic) == partitions).then_some(()))
            .unwrap_or_else(|late| panic!("{topic} has {partitions} partitions: {late}"));
    }

    pub(super) fn add_partitions(&self, topic: &str, to: usize) {
        let new = [NewPartitions::new(topic, to)];
        let added = block_on(self.client.create_partitions(&new, &AdminOptions::new()));
        assert!(added.expect("the broker answers").iter().all(Result::is_ok), "{topic}");
        self.wait_for_partitions(topic, to);
    }

    /// What a topic is set to.
    pub(super) fn setting(&self, topic: &str, name: &str) -> String {
        let asked = [ResourceSpecifier::Topic(topic)];
        let described = block_on(self.client.describe_configs(&asked, &AdminOptions::new()));
        let resource = described.expect("the broker answers").remove(0).expect("it is there");
        resource.get(name).and_then(|entry| entry.value.clone()).unwrap_or_default()
    }

    pub(super) fn delete(&self, topic: &str) {
        let deleted = block_on(self.client.delete_topics(&[topic], &AdminOptions::new()));
        assert!(
            deleted.expect("the broker answers").iter().all(Result::is_ok),
            "{topic} is deleted"
        );
    }

    pub(super) fn set_largest(&self, topic: &str, bytes: &str) {
        // This request replaces all settings; whose clock stamps must stay, or the bridge would
        // mend it in the middle of the test.
        let stamped_by = self.setting(topic, "message.timestamp.type");
        let change = AlterConfig::new(ResourceSpecifier::Topic(topic))
            .set("max.message.bytes", bytes)
            .set("message.timestamp.type", &stamped_by);
        let changed = block_on(self.client.alter_configs([&change], &AdminOptions::new()));
        assert!(
            changed.expect("the broker answers").iter().all(Result::is_ok),
            "{topic} takes {bytes} bytes"
        );
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime.expect("a runtime needs nothing").block_on(future)
}

pub(super) fn wait_for(bridge: &Bridge, what: &str, is_there: impl Fn(&Bridge) -> bool) {
    within(LIMIT, || is_there(bridge).then_some(()))
        .unwrap_or_else(|late| panic!("{what}: {late}\n{}", bridge.get("/ready").body));
}

pub(super) fn busy() -> Agora {
    Agora::start(Script {
        apps: vec![AppScript::numbered(0).rates(200.0, 200.0)],
        ..Script::default()
    })
}

#[test]
fn topics_that_are_deleted_are_made_again_and_delivering_goes_on() {
    delete_topics(broker::shared());
}

/// Deletes topics under a running bridge, one after the other: they come back as they were.
pub(crate) fn delete_topics(bootstrap: &str) {
    let names = Names::unique("deleted");
    let (agora, admin) = (busy(), Admin::new(bootstrap));
    let mut bridge = Bridge::start(&agora.config(&names, bootstrap, Hosts::EachRegion));
    bridge.wait_ready();
    for topic in [&names.user_events, &names.state, &names.pages] {
        let before = bridge.metric("agora_rtm_bridge_events_delivered_total");
        wait_for(&bridge, "events are delivered", |bridge| {
            bridge.metric("agora_rtm_bridge_events_delivered_total") > before
        });
        admin.delete(topic);
        let created = format!("topic={topic}");
        wait_for(&bridge, "the topic is made again", |bridge| {
            bridge.log().matches(&created).count() > 1
        });
        let before = bridge.metric("agora_rtm_bridge_events_delivered_total");
        wait_for(&bridge, "events are delivered again", |bridge| {
            bridge.metric("agora_rtm_bridge_events_delivered_total") > before + 400.0
                && bridge.get("/ready").status == 200
        });
    }
    let partitions =
        [&names.user_events, &names.state, &names.pages].map(|it| admin.partitions(it));
    assert_eq!(partitions, [3, 4, 4]);
    agora.come_to_rest(&[0], LIMIT);
    stop(&mut bridge);
}

/// With the group goes the position that was noted for lag tools.
#[test]
fn a_memory_that_is_gone_with_its_group_is_rebuilt_and_nothing_is_published_twice() {
    let (bootstrap, names) = (broker::shared(), Names::unique("rebuilt"));
    let (agora, admin) = (busy(), Admin::new(bootstrap));
    let mut bridge = Bridge::start(&agora.config(&names, bootstrap, Hosts::EachRegion));
    let consumer = Consumer::start(bootstrap, &names.published());
    bridge.wait_ready();
    wait_for(&bridge, "events are delivered", |bridge| {
        bridge.metric("agora_rtm_bridge_events_delivered_total") > 1_000.0
    });
    stop(&mut bridge);
    admin.delete(&names.state);
    let deleted = block_on(admin.client.delete_groups(&[&names.group], &AdminOptions::new()));
    // A bridge that stops soon after its start may not have committed a position.
    let is_gone = |deleted: &GroupResult| match deleted {
        Ok(_) => true,
        Err((_, code)) => *code == RDKafkaErrorCode::GroupIdNotFound,
    };
    assert!(deleted.expect("the broker answers").iter().all(is_gone), "the group is deleted");

    bridge.start_again();
    bridge.wait_ready();
    wait_for(&bridge, "events are delivered again", |bridge| {
        bridge.metric("agora_rtm_bridge_events_delivered_total") > 400.0
    });
    assert!(bridge.log().contains("It is rebuilt from the event topics"), "{}", bridge.log());
    agora.come_to_rest(&[0], LIMIT);
    stop(&mut bridge);
    judge(&names, agora.events(), &consumer.finish()).assert_complete();
}

#[test]
fn limits_that_are_lowered_cost_nothing() {
    let (bootstrap, names) = (broker::shared(), Names::unique("lowered"));
    let (agora, admin) = (busy(), Admin::new(bootstrap));
    let mut bridge = Bridge::start(&agora.config(&names, bootstrap, Hosts::EachRegion));
    let consumer = Consumer::start(bootstrap, &names.published());
    bridge.wait_ready();

    // An event takes about 500 bytes, a transaction many events.
    admin.set_largest(&names.user_events, "2000");
    let before = bridge.metric("agora_rtm_bridge_transactions_total");
    wait_for(&bridge, "a transaction fails", |bridge| {
        bridge.metric("agora_rtm_bridge_publish_failures_total") >= 1.0
    });
    wait_for(&bridge, "transactions commit again", |bridge| {
        bridge.metric("agora_rtm_bridge_transactions_total") > before + 10.0
    });

    admin.set_largest(&names.pages, "300");
    wait_for(&bridge, "readiness tells of a refused page", |bridge| {
        bridge.get("/ready").body.contains("refuses page")
    });
    admin.set_largest(&names.pages, "1000000");
    wait_for(&bridge, "it is well again", |bridge| bridge.get("/ready").status == 200);

    agora.come_to_rest(&[0], LIMIT);
    stop(&mut bridge);
    let letters = read_all(bootstrap, &[&names.dead_letter]);
    assert!(letters.is_empty(), "every event fits: {letters:?}");
    // A page that was set aside was overtaken, so the order is not asserted.
    judge(&names, agora.events(), &consumer.finish()).assert_complete();
}
