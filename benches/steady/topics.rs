//! The topics of one measurement: the broker stamps when it appends.

use rdkafka::ClientConfig;
use rdkafka::admin::AdminClient;
use rdkafka::admin::AdminOptions;
use rdkafka::admin::NewTopic;
use rdkafka::admin::TopicReplication;
use rdkafka::client::DefaultClientContext;

use crate::support::names::Names;

/// As many as the bridge would make.
const PARTITIONS: i32 = 6;

/// Creates the two event topics. The bridge creates the others.
pub(crate) fn create(bootstrap: &str, names: &Names) {
    let admin: AdminClient<DefaultClientContext> = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .create()
        .expect("the settings are right");
    let topics = [&names.user_events, &names.channel_events].map(|name| {
        NewTopic::new(name, PARTITIONS, TopicReplication::Fixed(-1))
            .set("message.timestamp.type", "LogAppendTime")
    });
    let created = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime needs nothing")
        .block_on(admin.create_topics(&topics, &AdminOptions::new()));
    match created.as_deref() {
        Ok([Ok(_), Ok(_)]) => {}
        refused => panic!("create the event topics: {refused:?}"),
    }
}
