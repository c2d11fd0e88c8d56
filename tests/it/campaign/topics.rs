//! What a person does to topics while the bridge runs: other limits, records deleted.
//!
//! The broker may be away just then, so a thread of its own asks until it is done.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, ConfigSource, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use tokio::runtime::Runtime;

/// Who does it.
pub(super) struct Administrator {
    errands: Sender<Errand>,
    left: Arc<AtomicUsize>,
}

#[derive(Clone, Debug)]
pub(super) enum Errand {
    /// `max.message.bytes` of a topic; `None` is the broker's default again.
    Limit { topic: String, bytes: Option<u32> },
    /// Deletes everything that these partitions hold.
    DeleteRecords { topic: String, partitions: i32 },
}

/// A request is given up after this, and sent again.
const TRY_FOR: Duration = Duration::from_secs(2);

const TRY_AGAIN: Duration = Duration::from_millis(100);

// === impl Administrator ===

impl Administrator {
    pub(super) fn new(bootstrap: &str) -> Self {
        let client = ClientConfig::new().set("bootstrap.servers", bootstrap).create();
        let client: AdminClient<_> = client.expect("the settings are right");
        let (errands, orders) = mpsc::channel::<Errand>();
        let left = Arc::new(AtomicUsize::new(0));
        let remaining = Arc::clone(&left);
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
            let runtime = runtime.expect("a runtime needs nothing");
            for errand in orders {
                while !errand.is_done(&runtime, &client) {
                    thread::sleep(TRY_AGAIN);
                }
                remaining.fetch_sub(1, Ordering::AcqRel);
            }
        });
        Self { errands, left }
    }

    /// Does it as soon as the broker lets it.
    pub(super) fn ask(&self, errand: Errand) {
        self.left.fetch_add(1, Ordering::AcqRel);
        self.errands.send(errand).expect("the thread lives as long as this");
    }

    /// Whether all is done.
    pub(super) fn is_idle(&self) -> bool {
        self.left.load(Ordering::Acquire) == 0
    }
}

// === impl Errand ===

impl Errand {
    fn is_done(&self, runtime: &Runtime, client: &AdminClient<DefaultClientContext>) -> bool {
        match self {
            Self::Limit { topic, bytes } => {
                runtime.block_on(limit(client, topic, *bytes)).is_some()
            }
            Self::DeleteRecords { topic, partitions } => {
                runtime.block_on(delete(client, topic, *partitions)).is_some()
            }
        }
    }
}

fn options() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(TRY_FOR))
}

/// Settings are replaced all at once, so those that the topic has of its own are set again.
async fn limit(
    client: &AdminClient<DefaultClientContext>,
    topic: &str,
    bytes: Option<u32>,
) -> Option<()> {
    const LIMIT: &str = "max.message.bytes";
    let topic = ResourceSpecifier::Topic(topic);
    let described = client.describe_configs([&topic], &options()).await.ok()?;
    let mut entries = described.into_iter().next()?.ok()?.entries;
    entries.retain(|it| it.source == ConfigSource::DynamicTopic && it.name != LIMIT);
    let bytes = bytes.map(|bytes| bytes.to_string());
    let limit = bytes.as_deref().map(|bytes| (LIMIT, bytes));
    let kept = entries.iter().filter_map(|it| Some((it.name.as_str(), it.value.as_deref()?)));
    let change =
        kept.chain(limit).fold(AlterConfig::new(topic), |all, (name, value)| all.set(name, value));
    client.alter_configs([&change], &options()).await.ok()?.into_iter().next()?.ok()?;
    Some(())
}

async fn delete(
    client: &AdminClient<DefaultClientContext>,
    topic: &str,
    partitions: i32,
) -> Option<()> {
    let mut all = TopicPartitionList::new();
    for partition in 0..partitions {
        all.add_partition_offset(topic, partition, Offset::End).ok()?;
    }
    let deleted = client.delete_records(&all, &options()).await.ok()?;
    deleted.elements().iter().all(|it| it.error().is_ok()).then_some(())
}
