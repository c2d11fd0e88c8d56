//! Reads topics for `pages` and `audit`, without affecting a running bridge.
//!
//! A reader joins no group, commits no offset and creates nothing. It reads committed records up to an
//! end that was read first, and ignores later ones.

use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};
use std::thread::sleep;
use std::time::Duration;

use rdkafka::Message as _;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError as ClientError;
use rdkafka::message::{BorrowedMessage, Headers as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tokio::time::Instant;

use super::clients::{Clients, Listener};
use super::failure::{failure_of, is_passing};
use super::memory::{LOOK_AGAIN, STABLE_TIMEOUT, Until};
use super::{ANSWER_TIMEOUT, memory, owner};
use crate::kafka::{Failure, KafkaError, PageRecord, StateRecords, Topic};
use crate::model::Timestamp;

/// Reads topics; blocks.
pub struct Reader {
    clients: Clients,
    /// Sees the end of a topic where an open transaction hides it from those that read.
    uncommitted: BaseConsumer<Listener>,
}

/// The offsets of a topic that are to be read, by partition.
pub type Spans = BTreeMap<i32, Range<i64>>;

/// A record as it is stored, where it lies in librdkafka's memory.
#[derive(Debug)]
pub struct Stored<'a>(&'a BorrowedMessage<'a>);

// === impl Reader ===

impl Reader {
    /// A reader that has not spoken to Kafka yet.
    pub(super) fn new(clients: &Clients) -> Result<Self, KafkaError> {
        Ok(Self { clients: clients.clone(), uncommitted: clients.page_reader()? })
    }

    /// The name of a topic.
    pub fn name(&self, topic: Topic) -> &str {
        self.clients.topic(topic)
    }

    /// How many partitions of a topic are used: of pages and memory the first ones, should others
    /// have been added.
    pub fn partitions(&self, topic: Topic) -> Result<u32, KafkaError> {
        let used = self.clients.settings().topics.page_partitions.get();
        let partitions = self.count(topic)?;
        match topic {
            Topic::Pages | Topic::State => Ok(partitions.min(used)),
            _ => Ok(partitions),
        }
    }

    /// How many partitions a topic has.
    pub(super) fn count(&self, topic: Topic) -> Result<u32, KafkaError> {
        let name = self.name(topic);
        let metadata = self.uncommitted.fetch_metadata(Some(name), ANSWER_TIMEOUT);
        let metadata = metadata.map_err(|error| {
            let servers = &self.clients.settings().bootstrap_servers;
            let said = self.said().unwrap_or_else(|| error.to_string());
            let reason = format!("{said} (kafka.bootstrap_servers, kafka.options)");
            KafkaError::new(Failure::Unavailable, "reach Kafka at", servers, reason)
        })?;
        let partitions = metadata.topics().first().map_or(0, |topic| topic.partitions().len());
        match u32::try_from(partitions) {
            Ok(partitions @ 1..) => Ok(partitions),
            _ => {
                let reason = "it is not there; has a bridge with this configuration been running?";
                Err(KafkaError::new(Failure::Refused, "read", name, reason))
            }
        }
    }

    /// What a topic holds now. With `since` no more than from the first record of each partition
    /// that is stamped with that time or a later one.
    pub fn spans(&self, topic: Topic, since: Option<Timestamp>) -> Result<Spans, KafkaError> {
        let mut spans = self.all_spans(topic, self.partitions(topic)? as usize)?;
        if let Some(since) = since {
            self.begin_at(topic, &mut spans, since)?;
        }
        Ok(spans)
    }

    /// The offset ranges of the first `partitions` partitions of a topic.
    pub(super) fn all_spans(&self, topic: Topic, partitions: usize) -> Result<Spans, KafkaError> {
        let mut spans = Spans::new();
        for partition in 0..i32::try_from(partitions).unwrap_or(i32::MAX) {
            let (low, high) = self
                .uncommitted
                .fetch_watermarks(self.name(topic), partition, ANSWER_TIMEOUT)
                .map_err(|error| self.failed(topic, error))?;
            spans.insert(partition, low..high);
        }
        Ok(spans)
    }

    /// Reads these offsets, partition by partition in order, until `each` breaks off.
    pub fn read(
        &self,
        topic: Topic,
        spans: &Spans,
        mut each: impl FnMut(Stored<'_>) -> ControlFlow<()>,
    ) -> Result<(), KafkaError> {
        let mut open = spans.clone();
        open.retain(|_, span| !span.is_empty());
        // A new client each time: paused partitions stay paused even if they are assigned again.
        let committed = self.clients.end_reader()?;
        self.wait_until_stable(&committed, topic, &open)?;
        self.assign(&committed, topic, &open)?;
        let mut heard = Instant::now();
        while !open.is_empty() {
            let ended = match committed.poll(ANSWER_TIMEOUT) {
                Some(Ok(message)) => {
                    heard = Instant::now();
                    let (partition, offset) = (message.partition(), message.offset());
                    // What was fetched ahead of a partition's end arrives after it.
                    let Some(span) = open.get(&partition) else { continue };
                    if offset < span.end && each(Stored(&message)).is_break() {
                        break;
                    }
                    (offset + 1 >= span.end).then_some(partition)
                }
                // After the last record there may be transaction markers, which are never delivered.
                Some(Err(ClientError::PartitionEOF(partition))) => Some(partition),
                Some(Err(error)) if !is_passing(&error) => {
                    return Err(self.failed(topic, error));
                }
                Some(Err(_)) | None if heard.elapsed() > STABLE_TIMEOUT => {
                    let (said, name) = (self.said(), self.name(topic));
                    let reason = said.unwrap_or_else(|| "no answer".to_owned());
                    return Err(KafkaError::new(Failure::Unavailable, "read", name, reason));
                }
                Some(Err(_)) | None => None,
            };
            if let Some(partition) = ended {
                open.remove(&partition);
                self.pause(&committed, topic, partition)?;
            }
        }
        Ok(())
    }

    /// What the publisher of a partition of the pages topic remembers, as it is committed now.
    pub fn memory<M: StateRecords>(&self, partition: i32, mut records: M) -> Result<M, KafkaError> {
        memory::read(&self.clients, &self.uncommitted, partition, &mut records, Until::End)?;
        Ok(records)
    }

    fn begin_at(
        &self,
        topic: Topic,
        spans: &mut Spans,
        since: Timestamp,
    ) -> Result<(), KafkaError> {
        let failed = |error| self.failed(topic, error);
        let mut asked = TopicPartitionList::new();
        for partition in spans.keys() {
            let time = Offset::Offset(since.as_millis().max(0));
            asked.add_partition_offset(self.name(topic), *partition, time).map_err(failed)?;
        }
        let found = self.uncommitted.offsets_for_times(asked, ANSWER_TIMEOUT).map_err(failed)?;
        for element in found.elements() {
            let Some(span) = spans.get_mut(&element.partition()) else { continue };
            span.start = match element.offset() {
                Offset::Offset(offset) => offset.clamp(span.start, span.end),
                // Nothing is as young as that.
                _ => span.end,
            };
        }
        Ok(())
    }

    /// An open transaction hides all records after its beginning; it ends, or the broker ends it.
    fn wait_until_stable(
        &self,
        committed: &BaseConsumer<Listener>,
        topic: Topic,
        spans: &Spans,
    ) -> Result<(), KafkaError> {
        let deadline = Instant::now() + STABLE_TIMEOUT;
        let name = self.name(topic);
        for (partition, span) in spans {
            loop {
                let (_, stable) = committed
                    .fetch_watermarks(name, *partition, ANSWER_TIMEOUT)
                    .map_err(|error| self.failed(topic, error))?;
                if stable >= span.end {
                    break;
                }
                if Instant::now() > deadline {
                    let reason = "a transaction on it stays open";
                    return Err(KafkaError::new(Failure::Unavailable, "read", name, reason));
                }
                sleep(LOOK_AGAIN);
            }
        }
        Ok(())
    }

    fn assign(
        &self,
        committed: &BaseConsumer<Listener>,
        topic: Topic,
        spans: &Spans,
    ) -> Result<(), KafkaError> {
        let failed = |error| self.failed(topic, error);
        let mut start = TopicPartitionList::new();
        for (partition, span) in spans {
            start
                .add_partition_offset(self.name(topic), *partition, Offset::Offset(span.start))
                .map_err(failed)?;
        }
        committed.assign(&start).map_err(failed)
    }

    /// What was read to its end is fetched no further.
    fn pause(
        &self,
        committed: &BaseConsumer<Listener>,
        topic: Topic,
        partition: i32,
    ) -> Result<(), KafkaError> {
        let mut ended = TopicPartitionList::new();
        ended.add_partition(self.name(topic), partition);
        committed.pause(&ended).map_err(|error| self.failed(topic, error))
    }

    /// librdkafka's last error event; a client must be polled to receive it.
    fn said(&self) -> Option<String> {
        let polled = self.uncommitted.poll(Duration::ZERO);
        let said = self.clients.listener().take_said();
        said.or_else(|| polled?.err().map(|error| error.to_string()))
    }

    fn failed(&self, topic: Topic, error: ClientError) -> KafkaError {
        let said = self.said().map(|said| format!("; {said}"));
        let reason = format!("{error}{}", said.unwrap_or_default());
        let failure = match failure_of(&error) {
            Failure::Refused => Failure::Refused,
            _ => Failure::Unavailable,
        };
        KafkaError::new(failure, "read", self.name(topic), reason)
    }
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").finish_non_exhaustive()
    }
}

// === impl Stored ===

impl Stored<'_> {
    /// Its partition.
    pub fn partition(&self) -> i32 {
        self.0.partition()
    }

    /// Its offset.
    pub fn offset(&self) -> i64 {
        self.0.offset()
    }

    /// Its timestamp.
    pub fn stamped(&self) -> Option<Timestamp> {
        self.0.timestamp().to_millis().map(Timestamp::from_millis)
    }

    /// Its key.
    pub fn key(&self) -> &[u8] {
        self.0.key().unwrap_or_default()
    }

    /// Its value; a tombstone's is empty.
    pub fn value(&self) -> &[u8] {
        self.0.payload().unwrap_or_default()
    }

    /// The first header of this name.
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        self.0.headers()?.iter().find(|header| header.key == name)?.value
    }

    /// A record of the pages topic.
    pub fn page_record(&self) -> PageRecord {
        owner::page_record(self.0)
    }
}
