//! The real Kafka, through librdkafka.
//!
//! librdkafka's waiting calls (transactions, metadata, polling) block a thread, so each claimed
//! partition has its own ([`owner`]), which receives commands over a channel. Pages go through one
//! shared idempotent producer ([`PageWriter`]). What the topics allow is read at the start and
//! again after a failure ([`topics`]): a topic may have been deleted, or its limits lowered.

mod clients;
mod coordinator;
mod failure;
mod history;
mod inspect;
mod memory;
mod noter;
mod owner;
mod page_writer;
mod reach;
mod reader;
mod replayer;
mod topics;

use std::sync::Arc;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tokio::sync::Mutex;
use tokio::time::Instant;

pub use self::clients::LARGEST_PAGE;
use self::clients::{Clients, Listener};
use self::failure::failure_of;
pub use self::inspect::{FoundTopic, Inspection, Right, TopicSettings};
use self::owner::OwnedPartition;
use self::page_writer::PageWriter;
pub use self::reader::{Reader, Spans, Stored};
pub use self::replayer::Replayer;
use self::topics::Facts;
pub use self::topics::Misfit;
use crate::config;
use crate::kafka::{Kafka, KafkaError, Look, PageRecord, StateRecords, Topic};

/// How long one question to a broker may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// A Kafka cluster. Cheap to clone; clones share.
#[derive(Clone, Debug)]
pub struct Cluster {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    clients: Clients,
    preparation: Mutex<Preparation>,
    page_writer: PageWriter,
    looking: Mutex<()>,
}

// === impl Cluster ===

impl Cluster {
    /// A cluster; connects later. `instance` is the name of this process for the brokers.
    pub fn new(settings: config::Kafka, instance: &str) -> Self {
        let clients = Clients::new(settings, instance);
        let page_writer = PageWriter::new(clients.clone());
        let shared =
            Shared { clients, preparation: Mutex::default(), page_writer, looking: Mutex::new(()) };
        Self { shared: Arc::new(shared) }
    }

    /// A cluster whose topics are there, with Kafka's defaults: neither is looked up. For a broker
    /// that can't be asked, as librdkafka's mock.
    pub fn prepared(settings: config::Kafka, instance: &str) -> Self {
        let cluster = Self::new(settings, instance);
        let mut preparation = cluster.shared.preparation.try_lock().expect("it was just created");
        preparation.facts = Some(Arc::default());
        preparation.is_given = true;
        drop(preparation);
        cluster
    }

    /// Whether librdkafka accepts the settings. Connects to no broker.
    pub fn check_settings(&self) -> Result<(), KafkaError> {
        let client = self.shared.clients.admin()?;
        // Its end waits up to 100 ms for its polling thread; the first request shall not.
        drop(tokio::task::spawn_blocking(move || drop(client)));
        Ok(())
    }

    /// What there is, and what this process may do with it. Nothing is written or created.
    pub async fn inspect(&self) -> Result<Inspection, KafkaError> {
        inspect::inspect(&self.shared.clients).await
    }

    /// The name of a topic.
    pub fn topic(&self, topic: Topic) -> &str {
        self.shared.clients.topic(topic)
    }

    /// Reads topics without affecting a running bridge.
    pub fn reader(&self) -> Result<Reader, KafkaError> {
        Reader::new(&self.shared.clients)
    }

    /// Publishes events again without affecting a running bridge.
    pub async fn replayer(&self) -> Result<Replayer, KafkaError> {
        Replayer::new(&self.shared.clients, self.facts().await?)
    }

    /// One attempt at a time, and its failure is the answer to all who waited for it: each partition
    /// asks, and an attempt takes as long as brokers that are away are waited for.
    async fn facts(&self) -> Result<Arc<Facts>, KafkaError> {
        let asked = Instant::now();
        let mut preparation = self.shared.preparation.lock().await;
        if self.shared.clients.take_doubt() && !preparation.is_given {
            preparation.facts = None;
        }
        if let Some(facts) = &preparation.facts {
            return Ok(Arc::clone(facts));
        }
        if let Some((at, error)) = &preparation.failed
            && *at >= asked
        {
            return Err(error.clone());
        }
        let prepared = topics::prepare(&self.shared.clients, &mut preparation.seen).await;
        match prepared {
            Ok(facts) => Ok(Arc::clone(preparation.facts.insert(Arc::new(facts)))),
            Err(error) => {
                preparation.failed = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }
}

impl Kafka for Cluster {
    type Owned = OwnedPartition;

    async fn prepare(&self) -> Result<(), KafkaError> {
        self.facts().await.map(drop)
    }

    fn append(
        &self,
        partition: i32,
        record: PageRecord,
    ) -> impl Future<Output = Result<i64, KafkaError>> + Send + 'static {
        self.shared.page_writer.append(partition, record)
    }

    async fn look(&self, partition: i32) -> Result<Look, KafkaError> {
        self.prepare().await?;
        // One at a time, and none is kept: a client costs a megabyte, this is asked seldom.
        let _turn = self.shared.looking.lock().await;
        let consumer = self.shared.clients.page_reader()?;
        let topic = self.topic(Topic::Pages).to_owned();
        blocking(move || look(&consumer, &topic, partition)).await
    }

    async fn claim<M: StateRecords>(
        &self,
        partition: i32,
        memory: M,
    ) -> Result<(OwnedPartition, M), KafkaError> {
        let facts = self.facts().await?;
        OwnedPartition::claim(self.shared.clients.clone(), facts, partition, memory).await
    }
}

/// What came of looking at the topics.
#[derive(Debug, Default)]
struct Preparation {
    facts: Option<Arc<Facts>>,
    /// The topics are not ours to look at.
    is_given: bool,
    seen: topics::TopicsSeen,
    /// The last failure, and when it came.
    failed: Option<(Instant, KafkaError)>,
}

fn look(
    consumer: &BaseConsumer<Listener>,
    topic: &str,
    partition: i32,
) -> Result<Look, KafkaError> {
    let failed = |error| KafkaError::new(failure_of(&error), "look for pages in", topic, error);
    let (begin, end) =
        consumer.fetch_watermarks(topic, partition, ANSWER_TIMEOUT).map_err(failed)?;
    if begin == end {
        return Ok(Look { begin, end, ..Look::default() });
    }
    let mut asked = TopicPartitionList::new();
    asked.add_partition(topic, partition);
    let noted = consumer.committed_offsets(asked, ANSWER_TIMEOUT).map_err(failed)?;
    let noted = noted.find_partition(topic, partition);
    let delivered = noted.as_ref().and_then(|found| match found.offset() {
        Offset::Offset(offset) => Some(offset),
        _ => None,
    });
    let owner = noted.map(|found| found.metadata().to_owned()).filter(|owner| !owner.is_empty());
    Ok(Look { begin, end, delivered, owner })
}

/// Runs what blocks where it may.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("what blocks does not panic")
}
