//! Delivered positions as the group's committed offsets, for lag tools and for a second bridge.
//!
//! One client commits for all partitions, and no other one commits anything. librdkafka repeats an
//! `OffsetCommit` that it could not send for as long as the client lives (`rd_kafka_buf_retry` counts
//! only requests that were sent), and closing a consumer waits for its commits. A reader with a commit
//! under way would keep its thread and connect with outdated credentials until the process ends.

use std::collections::BTreeMap;
use std::mem;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError as ClientError, KafkaResult};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tokio::time::Instant;
use tracing::debug;

use super::clients::Clients;
use super::failure::failure_of;
use crate::kafka::{KafkaError, Topic};

/// Notes positions. A failure concerns lag tools only: the position that counts is in the memory.
#[derive(Debug, Default)]
pub(super) struct Noter {
    notes: Mutex<Notes>,
}

#[derive(Debug, Default)]
struct Notes {
    /// Positions that were not committed yet, by partition.
    positions: BTreeMap<i32, i64>,
    client: Option<CommittingClient>,
    committed_at: Option<Instant>,
}

/// The client; dropping it closes it on another thread.
struct CommittingClient {
    /// `None` only while it is dropped.
    consumer: Option<BaseConsumer<Answers>>,
    answers: Answers,
}

/// Whether the last commit was answered. Clones share.
#[derive(Clone, Debug)]
pub(super) struct Answers {
    is_answered: Arc<AtomicBool>,
}

/// Minimum interval between two commits.
const COMMIT_INTERVAL: Duration = Duration::from_secs(1);

/// A commit without an answer for this long, three times `socket.timeout.ms`, will get none: the
/// client is replaced by one that reads the credentials again.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

// === impl Noter ===

impl Noter {
    /// Notes that everything before `position` is delivered. Does not wait for a broker.
    pub(super) fn note(&self, clients: &Clients, partition: i32, position: i64) {
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        notes.positions.insert(partition, position);
        notes.commit_if_due(clients);
    }

    /// Drops what was noted for a partition and not committed yet.
    pub(super) fn forget(&self, partition: i32) {
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        notes.positions.remove(&partition);
    }

    /// Commits what was noted, if it is due. Does not wait for a broker.
    pub(super) fn commit_if_due(&self, clients: &Clients) {
        // Whoever holds the lock does the same.
        if let Ok(mut notes) = self.notes.try_lock() {
            notes.commit_if_due(clients);
        }
    }
}

// === impl Notes ===

impl Notes {
    fn commit_if_due(&mut self, clients: &Clients) {
        let elapsed = self.committed_at.map_or(Duration::MAX, |at| at.elapsed());
        if self.positions.is_empty() || elapsed < COMMIT_INTERVAL {
            return;
        }
        if let Some(client) = &self.client
            && !client.is_answered()
        {
            if elapsed < ANSWER_LIMIT {
                return;
            }
            self.client = None;
        }
        self.committed_at = Some(Instant::now());
        if let Err(error) = self.commit(clients) {
            debug!(%error, "positions were not noted");
        }
    }

    fn commit(&mut self, clients: &Clients) -> Result<(), KafkaError> {
        let client = match &mut self.client {
            Some(client) => client,
            none => none.insert(CommittingClient::new(clients)?),
        };
        let topic = clients.topic(Topic::Pages);
        let committed = client.commit(topic, clients.instance(), &mem::take(&mut self.positions));
        committed
            .map_err(|error| KafkaError::new(failure_of(&error), "note positions in", topic, error))
    }
}

// === impl CommittingClient ===

impl CommittingClient {
    fn new(clients: &Clients) -> Result<Self, KafkaError> {
        let answers = Answers { is_answered: Arc::new(AtomicBool::new(true)) };
        Ok(Self { consumer: Some(clients.committer(answers.clone())?), answers })
    }

    fn is_answered(&self) -> bool {
        // The answer is noted while polling.
        self.consumer.as_ref().map(|consumer| consumer.poll(Duration::ZERO));
        self.answers.is_answered.load(Ordering::Relaxed)
    }

    fn commit(
        &self,
        topic: &str,
        instance: &str,
        positions: &BTreeMap<i32, i64>,
    ) -> Result<(), ClientError> {
        let Some(consumer) = &self.consumer else { return Ok(()) };
        let mut offsets = TopicPartitionList::new();
        for (&partition, &position) in positions {
            let mut noted = offsets.add_partition(topic, partition);
            noted.set_metadata(instance);
            noted.set_offset(Offset::Offset(position))?;
        }
        consumer.commit(&offsets, CommitMode::Async)?;
        self.answers.is_answered.store(false, Ordering::Relaxed);
        Ok(())
    }
}

impl Drop for CommittingClient {
    fn drop(&mut self) {
        let consumer = self.consumer.take();
        let closing = thread::Builder::new().name("close-noter".to_owned());
        if let Err(error) = closing.spawn(move || drop(consumer)) {
            debug!(%error, "no thread to close a client on");
        }
    }
}

impl std::fmt::Debug for CommittingClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CommittingClient").field("answers", &self.answers).finish_non_exhaustive()
    }
}

// === impl Answers ===

impl ClientContext for Answers {}

impl ConsumerContext for Answers {
    fn commit_callback(&self, result: KafkaResult<()>, _: &TopicPartitionList) {
        if let Err(error) = result {
            debug!(%error, "positions were not noted");
        }
        self.is_answered.store(true, Ordering::Relaxed);
    }
}
