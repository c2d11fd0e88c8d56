//! Delivered positions as the group's committed offsets, for lag tools and for a second bridge.
//!
//! One client commits for all partitions, and no other one commits anything. librdkafka repeats an
//! `OffsetCommit` that it could not send for as long as the client lives (`rd_kafka_buf_retry` counts
//! only requests that were sent), and closing a consumer waits for its commits. A reader with a commit
//! under way would keep its thread and connect with outdated credentials until the process ends.

use std::collections::BTreeMap;
use std::mem;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use rdkafka::consumer::{CommitMode, Consumer as _};
use rdkafka::error::KafkaError as ClientError;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tokio::time::Instant;
use tracing::debug;

use super::clients::Clients;
use crate::error::Chain;
use crate::kafka::Topic;

/// Notes positions. A failure concerns lag tools only: the position that counts is in the memory.
#[derive(Debug, Default)]
pub(super) struct Noter {
    notes: Mutex<Notes>,
}

#[derive(Debug, Default)]
struct Notes {
    /// Positions that were not committed yet, by partition.
    positions: BTreeMap<i32, i64>,
    committer: Option<Committer>,
    committed_at: Option<Instant>,
}

/// A thread with a client that commits. Both end after the value was dropped, as soon as the commit
/// in progress returns.
#[derive(Debug)]
struct Committer {
    offsets: mpsc::Sender<TopicPartitionList>,
    is_busy: Arc<AtomicBool>,
}

/// Minimum interval between two commits.
const COMMIT_INTERVAL: Duration = Duration::from_secs(1);

/// A commit without an answer for this long, three times `socket.timeout.ms`, may never get one: a
/// new client, which reads the credentials again, takes over.
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
        // The holder of the lock does the same.
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
        if self.committer.as_ref().is_some_and(|it| it.is_busy.load(Ordering::Relaxed)) {
            if elapsed < ANSWER_LIMIT {
                return;
            }
            self.committer = None;
        }
        self.committed_at = Some(Instant::now());
        let offsets = match offsets(clients, &mem::take(&mut self.positions)) {
            Ok(offsets) => offsets,
            Err(error) => return debug!(%error, "positions can't be noted"),
        };
        let committer = self.committer.get_or_insert_with(|| Committer::start(clients.clone()));
        if !committer.commit(offsets) {
            self.committer = None;
        }
    }
}

fn offsets(
    clients: &Clients,
    positions: &BTreeMap<i32, i64>,
) -> Result<TopicPartitionList, ClientError> {
    let mut offsets = TopicPartitionList::new();
    for (&partition, &position) in positions {
        let mut noted = offsets.add_partition(clients.topic(Topic::Pages), partition);
        noted.set_metadata(clients.instance());
        noted.set_offset(Offset::Offset(position))?;
    }
    Ok(offsets)
}

// === impl Committer ===

impl Committer {
    fn start(clients: Clients) -> Self {
        let (offsets, received) = mpsc::channel();
        let is_busy = Arc::new(AtomicBool::new(false));
        let commits = Arc::clone(&is_busy);
        let started = thread::Builder::new()
            .name("note-positions".to_owned())
            .spawn(move || commit_all(&clients, &received, &commits));
        if let Err(error) = started {
            debug!(%error, "no thread to note positions on");
        }
        Self { offsets, is_busy }
    }

    /// Commits in the background. False if the thread has ended.
    fn commit(&self, offsets: TopicPartitionList) -> bool {
        self.is_busy.store(true, Ordering::Relaxed);
        self.offsets.send(offsets).is_ok()
    }
}

/// Commits synchronously: librdkafka's binding does not report the results of asynchronous commits.
fn commit_all(clients: &Clients, offsets: &mpsc::Receiver<TopicPartitionList>, busy: &AtomicBool) {
    let committer = match clients.committer() {
        Ok(committer) => committer,
        Err(error) => return debug!(error = %Chain(&error), "positions can't be noted"),
    };
    for offsets in offsets {
        if let Err(error) = committer.commit(&offsets, CommitMode::Sync) {
            debug!(%error, "positions were not noted");
        }
        busy.store(false, Ordering::Relaxed);
    }
}
