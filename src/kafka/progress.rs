//! How far the loops are in each partition of the pages topic.
//!
//! The forwarder says where the last page went, the publisher where it will read on. The stop waits
//! for the two to meet; a person reads the distance.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// A stop that sees no progress gives up, so meanwhile no attempt waits for longer.
const WAIT_AT_A_STOP: Duration = Duration::from_millis(500);

/// Offsets of the pages topic, by partition. Cheap to clone; clones share.
#[derive(Clone, Debug)]
pub struct Progress {
    partitions: Arc<[Partition]>,
}

#[derive(Debug)]
struct Partition {
    forwarded: watch::Sender<i64>,
    delivered: watch::Sender<i64>,
}

// === impl Progress ===

impl Progress {
    /// Nothing forwarded, nothing delivered.
    pub fn new(partitions: u32) -> Self {
        let partition =
            |_| Partition { forwarded: watch::Sender::new(0), delivered: watch::Sender::new(0) };
        Self { partitions: (0..partitions).map(partition).collect() }
    }

    /// Notes that the pages topic ends, as far as we wrote it, before this offset.
    pub fn note_forwarded(&self, partition: i32, end: i64) {
        self.of(partition).forwarded.send_if_modified(|known| raise(known, end));
    }

    /// Notes that everything before this offset is delivered.
    pub fn note_delivered(&self, partition: i32, position: i64) {
        self.of(partition).delivered.send_if_modified(|known| raise(known, position));
    }

    /// Notes that the pages topic was made again: its offsets begin anew.
    pub fn begin_anew(&self, partition: i32) {
        let partition = self.of(partition);
        partition.forwarded.send_replace(0);
        partition.delivered.send_replace(0);
    }

    /// Whether something that this process forwarded is not delivered yet.
    pub fn is_behind(&self, partition: i32) -> bool {
        self.pages_behind(partition) > 0
    }

    /// How many records of the pages topic that this process forwarded are not delivered yet.
    pub fn pages_behind(&self, partition: i32) -> i64 {
        let partition = self.of(partition);
        (*partition.forwarded.borrow() - *partition.delivered.borrow()).max(0)
    }

    /// Ends when this process has forwarded something to the partition.
    pub async fn wait_for_pages(&self, partition: i32) {
        let mut forwarded = self.of(partition).forwarded.subscribe();
        forwarded.wait_for(|end| *end > 0).await.expect("we hold the sender");
    }

    /// Ends when everything that this process forwarded is delivered.
    pub async fn wait_until_delivered(&self, partition: i32) {
        let mut delivered = self.of(partition).delivered.subscribe();
        while self.is_behind(partition) {
            delivered.changed().await.expect("we hold the sender");
        }
    }

    fn of(&self, partition: i32) -> &Partition {
        usize::try_from(partition)
            .ok()
            .and_then(|index| self.partitions.get(index))
            .expect("partitions are counted once, at the start")
    }
}

/// Waits for the next attempt after a failure; not for long once `stop` has come.
pub async fn wait_to_try_again(wait: Duration, stop: &CancellationToken) {
    let until_stop = async {
        stop.cancelled().await;
        sleep(WAIT_AT_A_STOP).await;
    };
    tokio::select! {
        biased;
        () = sleep(wait) => {}
        () = until_stop => {}
    }
}

fn raise(known: &mut i64, value: i64) -> bool {
    let higher = value > *known;
    *known = value.max(*known);
    higher
}
