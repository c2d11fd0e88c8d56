//! Reads the memory of a partition to its end.
//!
//! The end is not where a `read_committed` client thinks it is: an open transaction holds that back,
//! and commit markers are never delivered. So the high watermark is taken first, as a
//! `read_uncommitted` client sees it, after `init_transactions` has ended what a former owner left
//! open; then the last stable offset has to reach it; then everything up to there is read.

use std::thread::sleep;
use std::time::Duration;

use rdkafka::Message as _;
use rdkafka::consumer::BaseConsumer;
use rdkafka::consumer::Consumer as _;
use rdkafka::error::KafkaError as ClientError;
use rdkafka::topic_partition_list::Offset;
use rdkafka::topic_partition_list::TopicPartitionList;
use tokio::time::Instant;

use super::ANSWER_TIMEOUT;
use super::clients::Clients;
use super::clients::Listener;
use crate::kafka::Failure;
use crate::kafka::KafkaError;
use crate::kafka::Recall;
use crate::kafka::Topic;

/// How long the last stable offset may lag behind: a transaction of a dead owner that nobody ended
/// is ended by the broker within this.
pub(super) const STABLE_TIMEOUT: Duration = Duration::from_secs(30);

/// Between two looks at the last stable offset.
pub(super) const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Reads the records into `recall`; blocks. `uncommitted` is a `read_uncommitted` client.
pub(super) fn read(
    clients: &Clients,
    uncommitted: &BaseConsumer<Listener>,
    partition: i32,
    recall: &mut Recall,
) -> Result<(), KafkaError> {
    let topic = clients.topic(Topic::State);
    let failed = |error: ClientError| {
        KafkaError::new(Failure::Unavailable, "read the memory in", topic, error)
    };
    let (low, high) =
        uncommitted.fetch_watermarks(topic, partition, ANSWER_TIMEOUT).map_err(failed)?;
    if low >= high {
        return Ok(());
    }
    let reader = clients.memory_reader()?;
    let deadline = Instant::now() + STABLE_TIMEOUT;
    while reader.fetch_watermarks(topic, partition, ANSWER_TIMEOUT).map_err(failed)?.1 < high {
        if Instant::now() > deadline {
            let reason = "a transaction on it stays open";
            return Err(KafkaError::new(Failure::Unavailable, "read the memory in", topic, reason));
        }
        sleep(LOOK_AGAIN);
    }
    let mut start = TopicPartitionList::new();
    start.add_partition_offset(topic, partition, Offset::Beginning).map_err(failed)?;
    reader.assign(&start).map_err(failed)?;
    loop {
        match reader.poll(ANSWER_TIMEOUT) {
            Some(Ok(message)) => {
                recall.take(message.key().unwrap_or_default(), message.payload());
            }
            Some(Err(ClientError::PartitionEOF(_))) => return Ok(()),
            Some(Err(error)) => return Err(failed(error)),
            None => {
                let reason = "no answer";
                let failure = Failure::Unavailable;
                return Err(KafkaError::new(failure, "read the memory in", topic, reason));
            }
        }
    }
}
