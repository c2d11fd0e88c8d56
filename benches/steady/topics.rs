//! The topics of one measurement: the broker stamps records when it appends them.

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;

use crate::support::names::Names;

/// The number of partitions that the bridge would create.
pub(crate) const PARTITIONS: i32 = 6;

/// Creates the two event topics. The bridge creates the others.
pub(crate) fn create(bootstrap: &str, names: &Names) {
    create_stamped(bootstrap, &[&names.user_events, &names.channel_events], PARTITIONS);
}

/// Creates these topics.
pub(crate) fn create_stamped(bootstrap: &str, names: &[&str], partitions: i32) {
    let admin: AdminClient<DefaultClientContext> = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .create()
        .expect("the settings are right");
    let topics = names.iter().map(|name| {
        NewTopic::new(name, partitions, TopicReplication::Fixed(-1))
            .set("message.timestamp.type", "LogAppendTime")
    });
    let topics: Vec<_> = topics.collect();
    let created = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime needs nothing")
        .block_on(admin.create_topics(&topics, &AdminOptions::new()));
    let created = created.expect("the broker answers");
    assert!(created.iter().all(Result::is_ok), "create {names:?}: {created:?}");
}
