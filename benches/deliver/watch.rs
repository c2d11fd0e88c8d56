//! A plain consumer that records when it received each page's events.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::thread::JoinHandle;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::{Headers as _, Message as _};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use tokio::time::Instant;

use crate::steady::topics;
use crate::support::judge::Event;
use crate::support::names;

/// A page as the consumer saw it.
#[derive(Debug)]
pub(crate) struct Seen {
    /// One of its events; any of them identifies the answer.
    pub(crate) event: Event,
    pub(crate) events: usize,
    /// When the consumer received the last of them.
    pub(crate) visible: Instant,
    /// When the broker appended the last of them, in milliseconds since 1970.
    pub(crate) appended: i64,
}

/// A thread that consumes a topic.
pub(crate) struct Watch {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<HashMap<String, Seen>>,
}

// === impl Watch ===

impl Watch {
    /// Starts consuming, from the beginning.
    pub(crate) fn begin(bootstrap: &str, topic: &str) -> Self {
        // With the settings of an ordinary program.
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", bootstrap)
            .set("group.id", names::unique("watch"))
            .set("enable.auto.commit", "false")
            .set("isolation.level", "read_committed")
            .create()
            .expect("the settings are right");
        let mut partitions = TopicPartitionList::new();
        for partition in 0..topics::PARTITIONS {
            partitions
                .add_partition_offset(topic, partition, Offset::Beginning)
                .expect("the offset makes sense");
        }
        consumer.assign(&partitions).expect("the topic is there");
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = thread::spawn(move || consume(&consumer, &told));
        Self { stop, thread }
    }

    /// The pages seen, by name.
    pub(crate) fn end(self) -> HashMap<String, Seen> {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().expect("the consumer has not failed")
    }
}

fn consume(consumer: &BaseConsumer, stop: &AtomicBool) -> HashMap<String, Seen> {
    let mut pages: HashMap<String, Seen> = HashMap::new();
    while !stop.load(Ordering::SeqCst) {
        let Some(message) = consumer.poll(Duration::from_millis(100)) else { continue };
        let visible = Instant::now();
        let message = message.expect("the broker is well");
        let headers = message.headers().expect("each event has headers");
        let page = headers.iter().find(|header| header.key == "agora_page");
        let page = page.and_then(|header| header.value).expect("each event names its page");
        let page = String::from_utf8_lossy(page).into_owned();
        let appended = message.timestamp().to_millis().expect("the broker stamps");
        match pages.get_mut(&page) {
            Some(seen) => {
                (seen.visible, seen.appended) = (visible, seen.appended.max(appended));
                seen.events += 1;
            }
            None => {
                let value = message.payload().unwrap_or_default();
                let event = serde_json::from_slice(value).expect("records are JSON as agreed");
                pages.insert(page, Seen { event, events: 1, visible, appended });
            }
        }
    }
    pages
}
