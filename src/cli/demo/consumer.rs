//! The verifying consumer: it reads the four topics for consumers from the beginning, as a user's
//! program would, and collects the evidence.
//!
//! librdkafka's consumer blocks, so it runs on its own thread. At the end it looks up where each
//! partition ends and reads up to there; an event not read by then counts as missing.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use std::{io, thread};

use rdkafka::Message as _;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Headers as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tokio::task::spawn_blocking;
use tokio::time::Instant;

use super::evidence::{Evidence, Read};
use crate::kafka::Topic;

/// Interval at which it checks whether to finish.
const POLL: Duration = Duration::from_millis(100);

/// Maximum time to read the remaining records.
const FINISH: Duration = Duration::from_secs(15);

/// Reads until [`Self::finish`].
#[derive(Debug)]
pub(super) struct Consumer {
    shared: Arc<SharedRecords>,
    thread: JoinHandle<Result<Evidence, ConsumerError>>,
}

/// Why there is no evidence.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConsumerError {
    #[error("create the verifying consumer")]
    Make(#[source] KafkaError),
    #[error("start the verifying consumer's thread")]
    Thread(#[source] io::Error),
    #[error("look up the end offsets of `{topic}`")]
    End {
        topic: String,
        #[source]
        cause: KafkaError,
    },
    #[error("read all records within {FINISH:?}: {partitions} partitions have more")]
    Late { partitions: usize },
    #[error("the verifying consumer has panicked")]
    Panicked,
}

/// A topic to read.
#[derive(Clone, Debug)]
pub(super) struct Subject {
    /// Its role.
    pub(super) topic: Topic,
    /// Its name.
    pub(super) name: String,
    /// Its number of partitions.
    pub(super) partitions: i32,
}

#[derive(Debug, Default)]
struct SharedRecords {
    verified: AtomicU64,
    finishing: AtomicBool,
}

struct TopicReader {
    consumer: BaseConsumer,
    subjects: Vec<Subject>,
    /// The next offset to read from each partition, by the index of its subject.
    next: HashMap<(usize, i32), i64>,
    evidence: Evidence,
    shared: Arc<SharedRecords>,
}

// === impl Consumer ===

impl Consumer {
    /// Starts reading at the beginning.
    pub(super) fn start(address: &str, subjects: Vec<Subject>) -> Result<Self, ConsumerError> {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", address)
            // librdkafka requires a group even where partitions are assigned manually.
            .set("group.id", "agora-rtm-bridge-demo")
            .set("enable.auto.commit", "false")
            .set("isolation.level", "read_committed")
            // The mock answers an empty fetch only after the full wait, even if records arrive
            // meanwhile.
            .set("fetch.wait.max.ms", "50")
            .set("reconnect.backoff.max.ms", "500")
            .create()
            .map_err(ConsumerError::Make)?;
        let mut assigned = TopicPartitionList::new();
        for Subject { name, partitions, .. } in &subjects {
            assigned.add_partition_range(name, 0, partitions - 1);
        }
        assigned.set_all_offsets(Offset::Beginning).map_err(ConsumerError::Make)?;
        consumer.assign(&assigned).map_err(ConsumerError::Make)?;
        let shared = Arc::new(SharedRecords::default());
        let (next, evidence) = (HashMap::new(), Evidence::default());
        let reader =
            TopicReader { consumer, subjects, next, evidence, shared: Arc::clone(&shared) };
        let thread = thread::Builder::new()
            .name("demo-consumer".to_owned())
            .spawn(move || reader.run())
            .map_err(ConsumerError::Thread)?;
        Ok(Self { shared, thread })
    }

    /// Number of distinct events read that passed all checks.
    pub(super) fn verified(&self) -> u64 {
        self.shared.verified.load(Ordering::Relaxed)
    }

    /// Reads all remaining records and returns the evidence. Nothing may be written any more.
    pub(super) async fn finish(self) -> Result<Evidence, ConsumerError> {
        self.shared.finishing.store(true, Ordering::Relaxed);
        let thread = self.thread;
        let joined = spawn_blocking(|| thread.join()).await;
        joined.ok().and_then(Result::ok).unwrap_or(Err(ConsumerError::Panicked))
    }
}

// === impl Reader ===

impl TopicReader {
    fn run(mut self) -> Result<Evidence, ConsumerError> {
        while !self.shared.finishing.load(Ordering::Relaxed) {
            self.read_one();
        }
        let ends = self.ends()?;
        let deadline = Instant::now() + FINISH;
        loop {
            let is_open = |(partition, end): &(&(usize, i32), &i64)| {
                self.next.get(*partition).copied().unwrap_or(0) < **end
            };
            let partitions = ends.iter().filter(is_open).count();
            if partitions == 0 {
                return Ok(self.evidence);
            }
            if Instant::now() > deadline {
                return Err(ConsumerError::Late { partitions });
            }
            self.read_one();
        }
    }

    /// The end offset of each partition. The mock writes no commit markers, so this is also where a
    /// consumer stops.
    fn ends(&self) -> Result<HashMap<(usize, i32), i64>, ConsumerError> {
        let mut ends = HashMap::new();
        for (index, Subject { name, partitions, .. }) in self.subjects.iter().enumerate() {
            for partition in 0..*partitions {
                let (_, end) = self
                    .consumer
                    .fetch_watermarks(name, partition, FINISH)
                    .map_err(|cause| ConsumerError::End { topic: name.clone(), cause })?;
                ends.insert((index, partition), end);
            }
        }
        Ok(ends)
    }

    fn read_one(&mut self) {
        // An unavailable broker shows up as an error here, a transient one.
        let Some(Ok(message)) = self.consumer.poll(POLL) else { return };
        let found = self.subjects.iter().position(|it| it.name == message.topic());
        let Some((index, subject)) = found.and_then(|at| Some((at, self.subjects.get(at)?))) else {
            return;
        };
        self.next.insert((index, message.partition()), message.offset() + 1);
        let is_new = self.evidence.take(Read {
            topic: subject.topic,
            key: message.key().unwrap_or_default(),
            value: message.payload().unwrap_or_default(),
            ce_id: header(&message, "ce_id"),
        });
        self.shared.verified.fetch_add(is_new.into(), Ordering::Relaxed);
    }
}

fn header<'a>(message: &'a BorrowedMessage<'_>, name: &str) -> Option<&'a [u8]> {
    message.headers()?.iter().find(|header| header.key == name)?.value
}
