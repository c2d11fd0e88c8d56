//! A consumer as a careful user would write it: `read_committed`, from the beginning, all
//! partitions, and nothing skipped silently.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;
use std::{mem, thread};

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Headers as _, Message as _};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use tokio::time::Instant;

use super::{names, within};

/// Reads topics in the background, each on its own thread, for as long as the test needs. It waits
/// for an unavailable broker.
pub(crate) struct Consumer {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// A record as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    /// Its topic.
    pub(crate) topic: String,
    /// Its partition.
    pub(crate) partition: i32,
    /// Its offset.
    pub(crate) offset: i64,
    /// Its timestamp in milliseconds since 1970.
    pub(crate) timestamp: Option<i64>,
    /// Its key.
    pub(crate) key: Option<Vec<u8>>,
    /// Its value.
    pub(crate) value: Option<Vec<u8>>,
    /// Its headers, in their order.
    pub(crate) headers: Vec<(String, Vec<u8>)>,
}

struct Shared {
    bootstrap: String,
    records: Mutex<Vec<Record>>,
    /// The first unread offset of each partition that a record was read from.
    next: Mutex<BTreeMap<(String, i32), i64>>,
    finishing: AtomicBool,
}

/// One topic, read by one thread.
struct Reader {
    topic: String,
    shared: Arc<Shared>,
    consumer: BaseConsumer,
    /// The next offset of each partition.
    next: BTreeMap<i32, i64>,
}

/// Maximum time for [`Consumer::finish`], even if the broker has just restarted.
const FINISH_LIMIT: Duration = Duration::from_secs(60);
/// Maximum time for one answer of the broker in [`Consumer::progress`].
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(50);

/// All records committed in `topics` so far.
pub(crate) fn read_all(bootstrap: &str, topics: &[&str]) -> Vec<Record> {
    Consumer::start(bootstrap, topics).finish()
}

// === impl Consumer ===

impl Consumer {
    /// Starts reading. Waits for topics that don't exist yet.
    pub(crate) fn start(bootstrap: &str, topics: &[&str]) -> Self {
        let shared = Arc::new(Shared {
            bootstrap: bootstrap.to_owned(),
            records: Mutex::default(),
            next: Mutex::default(),
            finishing: AtomicBool::new(false),
        });
        let read = |topic: &&str| {
            let mut reader = Reader::new(topic, Arc::clone(&shared));
            thread::Builder::new()
                .name(format!("read {topic}"))
                .spawn(move || reader.run())
                .expect("a thread can be started")
        };
        Self { threads: topics.iter().map(read).collect(), shared }
    }

    /// Waits until `enough` returns true for the records read so far, in the order of reading.
    ///
    /// # Panics
    ///
    /// After `limit`, with `what` and the number of records.
    pub(crate) fn wait_until(
        &self,
        what: &str,
        limit: Duration,
        mut enough: impl FnMut(&[Record]) -> bool,
    ) {
        let mut judged = None;
        let outcome = within(limit, || {
            let records = self.shared.records.lock().expect("no reader panics holding it");
            // Calling `enough` is expensive, and useless without new records.
            let news = judged.replace(records.len()) != Some(records.len());
            (news && enough(&records)).then_some(())
        });
        if let Err(late) = outcome {
            let count = self.shared.records.lock().expect("no reader panics holding it").len();
            panic!("{what}: {late}; {count} records were read");
        }
    }

    /// The records read since the last call, in the order of reading.
    pub(crate) fn take(&self) -> Vec<Record> {
        mem::take(&mut *self.shared.records.lock().expect("no reader panics holding it"))
    }

    /// Each partition's first unread offset next to its last stable offset and high watermark, for
    /// the message of a test that waits for records in vain.
    pub(crate) fn progress(&self) -> String {
        let next = self.shared.next.lock().expect("no reader panics holding it").clone();
        let end = |isolation, topic: &str, partition| {
            let consumer = consumer(&self.shared.bootstrap, isolation);
            let watermarks = consumer.fetch_watermarks(topic, partition, ANSWER_LIMIT);
            watermarks.map_or_else(|error| error.to_string(), |(_, end)| end.to_string())
        };
        let lines = next.iter().map(|((topic, partition), next)| {
            let stable = end("read_committed", topic, *partition);
            let all = end("read_uncommitted", topic, *partition);
            format!("{topic}/{partition}: read to {next}, stable {stable}, end {all}")
        });
        let dead = self.threads.iter().filter(|thread| thread.is_finished());
        let dead =
            dead.map(|thread| format!("`{}` has ended", thread.thread().name().unwrap_or("")));
        lines.chain(dead).collect::<Vec<_>>().join("\n")
    }

    /// Reads up to the current end of every partition, as seen by a `read_committed` consumer, and
    /// returns all records ordered by topic, partition and offset.
    ///
    /// # Panics
    ///
    /// If an end is not reached within a minute, or a record could not be read.
    pub(crate) fn finish(self) -> Vec<Record> {
        self.shared.finishing.store(true, Ordering::SeqCst);
        for thread in self.threads {
            let name = thread.thread().name().unwrap_or_default().to_owned();
            thread.join().unwrap_or_else(|_| panic!("`{name}` has failed, see above"));
        }
        let mut records =
            mem::take(&mut *self.shared.records.lock().expect("the readers are gone"));
        records.sort_by(|a, b| {
            (&a.topic, a.partition, a.offset).cmp(&(&b.topic, b.partition, b.offset))
        });
        records
    }
}

// === impl Record ===

impl Record {
    /// The first header of this name, as text.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().find(|(header, _)| header == name)?;
        str::from_utf8(value).ok()
    }

    /// The identity of an event: the header `ce_id`.
    pub(crate) fn event_id(&self) -> Option<&str> {
        self.header("ce_id")
    }

    fn from_message(message: &BorrowedMessage<'_>) -> Self {
        let headers = message.headers().into_iter().flat_map(|headers| headers.iter());
        Self {
            topic: message.topic().to_owned(),
            partition: message.partition(),
            offset: message.offset(),
            timestamp: message.timestamp().to_millis(),
            key: message.key().map(<[u8]>::to_vec),
            value: message.payload().map(<[u8]>::to_vec),
            headers: headers
                .map(|header| (header.key.to_owned(), header.value.unwrap_or_default().to_vec()))
                .collect(),
        }
    }
}

// === impl Reader ===

impl Reader {
    fn new(topic: &str, shared: Arc<Shared>) -> Self {
        let consumer = consumer(&shared.bootstrap, "read_committed");
        Self { topic: topic.to_owned(), shared, consumer, next: BTreeMap::new() }
    }

    fn run(&mut self) {
        if !self.find_topic() {
            return;
        }
        self.assign();
        while !self.finishing() {
            self.read_one();
        }
        self.read_to_end();
    }

    /// Whether the topic was created before the test called [`Consumer::finish`].
    fn find_topic(&mut self) -> bool {
        loop {
            // Read before the lookup, so that there is one lookup after the call of `finish`.
            let last_look = self.finishing();
            let metadata = self.consumer.fetch_metadata(Some(&self.topic), Duration::from_secs(5));
            let partitions = metadata.iter().flat_map(|metadata| metadata.topics());
            let partitions = partitions.flat_map(|topic| topic.partitions());
            self.next = partitions.map(|partition| (partition.id(), 0)).collect();
            if !self.next.is_empty() || last_look {
                return !self.next.is_empty();
            }
            thread::sleep(POLL);
        }
    }

    fn assign(&self) {
        let mut partitions = TopicPartitionList::new();
        for (&partition, &next) in &self.next {
            let from = if next == 0 { Offset::Beginning } else { Offset::Offset(next) };
            partitions
                .add_partition_offset(&self.topic, partition, from)
                .expect("offsets are not negative");
        }
        self.consumer.assign(&partitions).expect("the partitions exist");
    }

    /// Partition ends seen earlier are outdated. A new consumer reports each end again.
    fn read_to_end(&mut self) {
        self.consumer = consumer(&self.shared.bootstrap, "read_committed");
        self.wait_until_stable();
        self.assign();
        let deadline = Instant::now() + FINISH_LIMIT;
        let mut open: BTreeSet<i32> = self.next.keys().copied().collect();
        while !open.is_empty() {
            if let Some(ended) = self.read_one() {
                open.remove(&ended);
            }
            assert!(
                Instant::now() < deadline,
                "{}: no end of the partitions {open:?} in {FINISH_LIMIT:?}",
                self.topic
            );
        }
    }

    /// A producer's commit returns once the coordinator has decided it. The markers that make its
    /// records visible are written to each partition a moment later.
    fn wait_until_stable(&self) {
        let uncommitted = consumer(&self.shared.bootstrap, "read_uncommitted");
        let end = |consumer: &BaseConsumer, partition| {
            let watermarks = consumer.fetch_watermarks(&self.topic, partition, FINISH_LIMIT);
            watermarks.ok().map(|(_, end)| end)
        };
        for &partition in self.next.keys() {
            let stable = within(FINISH_LIMIT, || {
                let all = end(&uncommitted, partition)?;
                (end(&self.consumer, partition)? >= all).then_some(())
            });
            stable.unwrap_or_else(|late| panic!("{}/{partition}: stable {late}", self.topic));
        }
    }

    /// Stores one record, if one arrives soon. Otherwise returns the partition whose end was
    /// reached, if one was reported.
    fn read_one(&mut self) -> Option<i32> {
        match self.consumer.poll(POLL)? {
            Ok(message) => {
                let record = Record::from_message(&message);
                let expected = self.next.insert(record.partition, record.offset + 1);
                assert!(
                    expected.is_some_and(|expected| expected <= record.offset),
                    "{}/{}: offset {} came where {expected:?} was next",
                    record.topic,
                    record.partition,
                    record.offset
                );
                let at = (record.topic.clone(), record.partition);
                let next = record.offset + 1;
                self.shared.next.lock().expect("no test panics holding it").insert(at, next);
                self.shared.records.lock().expect("no test panics holding it").push(record);
                None
            }
            Err(KafkaError::PartitionEOF(partition)) => Some(partition),
            Err(error) if passes(&error) => None,
            Err(error) => panic!("{}: {error}", self.topic),
        }
    }

    fn finishing(&self) -> bool {
        self.shared.finishing.load(Ordering::SeqCst)
    }
}

/// Errors of an unavailable broker, and of the moments after a topic is created.
fn passes(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::AllBrokersDown
                | RDKafkaErrorCode::BrokerTransportFailure
                | RDKafkaErrorCode::LeaderNotAvailable
                | RDKafkaErrorCode::NotLeaderForPartition
                | RDKafkaErrorCode::OperationTimedOut
                | RDKafkaErrorCode::Resolve
                | RDKafkaErrorCode::UnknownTopicOrPartition
        )
    )
}

fn consumer(bootstrap: &str, isolation: &str) -> BaseConsumer {
    ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        // librdkafka requires a group even if partitions are assigned manually.
        .set("group.id", names::unique("verifier"))
        .set("enable.auto.commit", "false")
        .set("isolation.level", isolation)
        .set("enable.partition.eof", "true")
        // A missing record must be reported as an error, not skipped.
        .set("auto.offset.reset", "error")
        .set("check.crcs", "true")
        // The end of a partition is reported after one such wait.
        .set("fetch.wait.max.ms", "50")
        .set("reconnect.backoff.max.ms", "500")
        .create()
        .expect("the settings are right")
}

#[cfg(test)]
mod tests {
    use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};

    use super::*;
    use crate::support::broker;

    const SECONDS: Duration = Duration::from_secs(30);

    #[test]
    fn what_was_committed_is_read_and_nothing_else() {
        let bootstrap = broker::shared();
        let topic = names::unique("consume");
        broker::create_topic(bootstrap, &topic, 3);
        let live = Consumer::start(bootstrap, &[&topic]);

        let producer: BaseProducer = ClientConfig::new()
            .set("bootstrap.servers", bootstrap)
            .set("transactional.id", &topic)
            .create()
            .unwrap();
        producer.init_transactions(SECONDS).unwrap();
        let send = |key: &str| {
            let record = BaseRecord::to(&topic).key(key).payload("value");
            producer.send(record).unwrap();
        };
        producer.begin_transaction().unwrap();
        send("aborted");
        producer.flush(SECONDS).unwrap();
        producer.abort_transaction(SECONDS).unwrap();
        producer.begin_transaction().unwrap();
        ["a", "b", "c", "d"].into_iter().for_each(send);
        producer.commit_transaction(SECONDS).unwrap();

        live.wait_until("four records", SECONDS, |records| records.len() == 4);
        let records = live.finish();
        let mut keys: Vec<_> =
            records.iter().map(|record| record.key.as_deref().unwrap()).collect();
        keys.sort_unstable();
        assert_eq!(keys, [b"a", b"b", b"c", b"d"]);
        assert_eq!(read_all(bootstrap, &[&topic]), records);
    }

    #[test]
    fn a_topic_that_never_came_holds_nothing() {
        assert_eq!(read_all(broker::shared(), &[&names::unique("absent")]), []);
    }
}
