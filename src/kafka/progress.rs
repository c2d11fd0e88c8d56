//! How far the loops are in each partition of the pages topic.
//!
//! The forwarder says where the last page went, the publisher where it will read on. The stop waits
//! for the two to meet; a person reads the distance.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::kafka::KafkaError;
use crate::model::{AppId, Endpoint};

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
    balance: Mutex<Balance>,
}

/// Numbers of elements, by app and endpoint.
pub type Elements = BTreeMap<(AppId, Endpoint), u64>;

/// What became of the elements of pages that this process has received and forwarded. The two meet
/// whenever nothing waits, unless Kafka lost pages: then the difference is what was in them.
#[derive(Debug, Default)]
struct Balance {
    forwarded: Elements,
    delivered: Elements,
    /// Behind the last page that was forwarded.
    end: i64,
    /// Pages were lost.
    is_open: bool,
}

// === impl Progress ===

impl Progress {
    /// Nothing forwarded, nothing delivered.
    pub fn new(partitions: u32) -> Self {
        let partition = |_| Partition {
            forwarded: watch::Sender::new(0),
            delivered: watch::Sender::new(0),
            balance: Mutex::default(),
        };
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

    /// Notes that the pages topic was recreated: its offsets start over. It ends at `end` now.
    pub fn begin_anew(&self, partition: i32, end: i64) {
        let partition = self.of(partition);
        partition.forwarded.send_replace(0);
        partition.delivered.send_replace(0);
        let mut balance = partition.balance();
        balance.end = balance.end.min(end);
    }

    /// How many partitions the pages topic has.
    pub fn partitions(&self) -> u32 {
        u32::try_from(self.partitions.len()).unwrap_or(u32::MAX)
    }

    /// Waits until a page has arrived and notes its elements: those that the accounts of this process
    /// count as received.
    pub fn noting<F>(
        &self,
        partition: i32,
        name: (AppId, Endpoint),
        elements: u64,
        appended: F,
    ) -> impl Future<Output = Result<i64, KafkaError>> + Send + use<F>
    where
        F: Future<Output = Result<i64, KafkaError>> + Send,
    {
        let partitions = self.clone();
        async move {
            let offset = appended.await?;
            let mut balance = partitions.of(partition).balance();
            // Not the highest one: offsets start over when a topic is recreated.
            balance.end = offset + 1;
            *balance.forwarded.entry(name).or_default() += elements;
            Ok(offset)
        }
    }

    /// Notes that Kafka lost pages of the partition before they were published.
    pub fn note_loss(&self, partition: i32) {
        self.of(partition).balance().is_open = true;
    }

    /// Notes elements of such pages that are delivered, in a transaction that ends before `position`.
    /// Gives what turns out to have been in pages that were lost.
    pub fn settle(&self, partition: i32, position: i64, delivered: Elements) -> Elements {
        let mut balance = self.of(partition).balance();
        for (name, elements) in delivered {
            *balance.delivered.entry(name).or_default() += elements;
        }
        if position < balance.end {
            return Elements::new();
        }
        balance.close()
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

// === impl Partition ===

impl Partition {
    fn balance(&self) -> MutexGuard<'_, Balance> {
        // It is whole after every step, also after one that panicked.
        self.balance.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Balance ===

impl Balance {
    /// Nothing waits. Forwarded elements that did not arrive are gone if pages were lost; otherwise they
    /// are a defect, which the accounts must show. A page may be delivered before the forwarder has
    /// heard that it arrived: such elements stay until it has.
    fn close(&mut self) -> Elements {
        let mut gone = Elements::new();
        let is_open = self.is_open;
        let mut left = Elements::new();
        for (name, delivered) in std::mem::take(&mut self.delivered) {
            let forwarded = self.forwarded.entry(name.clone()).or_default();
            let both = delivered.min(*forwarded);
            *forwarded -= both;
            if delivered > both {
                left.insert(name, delivered - both);
            }
        }
        self.delivered = left;
        self.forwarded.retain(|_, elements| *elements > 0);
        // Whether pages are delivered whose arrival is not noted yet: then those that are noted may
        // be others than it seems, and the next time tells.
        if is_open && self.delivered.is_empty() {
            self.is_open = false;
            gone = std::mem::take(&mut self.forwarded);
        }
        gone
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

#[cfg(test)]
mod tests {
    use super::*;

    fn name() -> (AppId, Endpoint) {
        (AppId::new("a"), Endpoint::User)
    }

    async fn forward(progress: &Progress, offset: i64, elements: u64) {
        let noting = progress.noting(0, name(), elements, std::future::ready(Ok(offset)));
        noting.await.unwrap();
    }

    fn settle(progress: &Progress, position: i64, delivered: u64) -> u64 {
        let delivered = Elements::from([(name(), delivered)]);
        progress.settle(0, position, delivered).values().sum()
    }

    #[tokio::test]
    async fn what_was_forwarded_and_is_gone_is_known_once_nothing_waits() {
        let progress = Progress::new(1);
        for (offset, elements) in [(0, 3), (1, 4), (2, 5)] {
            forward(&progress, offset, elements).await;
        }
        assert_eq!(settle(&progress, 1, 3), 0);
        progress.note_loss(0);
        assert_eq!(settle(&progress, 2, 0), 0, "the last one may still come");
        assert_eq!(settle(&progress, 3, 5), 4);
        forward(&progress, 3, 7).await;
        assert_eq!(settle(&progress, 4, 7), 0, "it is reported once");
    }

    #[tokio::test]
    async fn without_a_loss_a_difference_is_a_defect_and_stays_to_be_seen() {
        let progress = Progress::new(1);
        forward(&progress, 0, 3).await;
        assert_eq!(settle(&progress, 1, 2), 0);
    }

    #[tokio::test]
    async fn a_page_that_is_delivered_before_its_arrival_is_noted_hides_nothing() {
        let progress = Progress::new(1);
        forward(&progress, 0, 3).await;
        progress.note_loss(0);
        assert_eq!(settle(&progress, 2, 4), 0, "of another page");
        forward(&progress, 1, 4).await;
        assert_eq!(settle(&progress, 2, 0), 3);
    }

    #[tokio::test]
    async fn offsets_that_begin_anew_do_not_hide_what_is_gone() {
        let progress = Progress::new(1);
        forward(&progress, 1_000, 3).await;
        progress.note_loss(0);
        progress.begin_anew(0, 0);
        assert_eq!(settle(&progress, 0, 0), 3);
        let progress = Progress::new(1);
        forward(&progress, 1_000, 3).await;
        progress.note_loss(0);
        forward(&progress, 0, 5).await;
        assert_eq!(settle(&progress, 1, 5), 3);
    }
}
