//! The loop that forwards: journal → pages topic, in order.
//!
//! One task for each partition of the pages topic. It reads what waits behind the last entry that
//! it handed over, keeps a bounded number of pages on their way, and lets the journal forget an
//! entry when all in-sync replicas have it. What it had handed over when the process died is
//! forwarded again; the publisher recognises it.
//!
//! An error means a new attempt from the oldest entry that is not confirmed: order is kept, and a
//! page that arrives twice costs nothing.
//!
//! A page that the topic refuses for good, as one that is larger than its `max.message.bytes`, is
//! set aside: it stays in the journal with all its bytes, those behind it go on, and it is tried
//! again when it has waited. Each time it gets a new ticket, at the end of the journal. Under its
//! old one it would hold back the watermark of all later pages, and the publisher's memory of
//! tickets above the watermark would grow for as long as nobody helps.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::pin::Pin;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::debug;
use tracing::error;

use crate::error::Chain;
use crate::journal::Backlog;
use crate::journal::Journal;
use crate::journal::JournalError;
use crate::journal::Sequence;
use crate::kafka::Failure;
use crate::kafka::Kafka;
use crate::kafka::KafkaError;
use crate::kafka::Progress;
use crate::kafka::pages;
use crate::kafka::wait_to_try_again;
use crate::model::Clock;
use crate::model::Content;
use crate::model::PageId;
use crate::observe::health::Condition;
use crate::observe::health::Health;

/// Pages of a partition that are on their way at most: 24 MB and 2.2 µs of CPU a message were
/// measured with eight, 115 MB and up to 5.3 µs with as many as librdkafka takes.
const ON_THE_WAY: usize = 8;

/// The wait after a failure; doubled by each further one, up to [`LONGEST_WAIT`].
const SHORTEST_WAIT: Duration = Duration::from_millis(250);

/// The longest wait between two attempts.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// A page that is not confirmed so long after it was handed over is somebody's concern.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a page that was set aside waits until it is tried again.
const ASIDE: Duration = Duration::from_secs(30);

/// Forwards the entries of one partition.
#[derive(Debug)]
pub struct Forwarder<K> {
    /// The cluster.
    pub kafka: K,
    /// Where entries wait.
    pub journal: Journal,
    /// The partition.
    pub partition: i32,
    /// The wall clock.
    pub clock: Clock,
    /// How far the loops are.
    pub progress: Progress,
    /// Whether all is well.
    pub health: Health,
    /// Counters.
    pub metrics: ForwarderMetrics,
}

/// Counters of all partitions together. Cheap to clone; clones share.
#[derive(Clone, Debug, Default)]
pub struct ForwarderMetrics {
    /// Pages and gaps that are in the pages topic.
    pub forwarded: Counter,
    /// Pages that the pages topic refused.
    pub refused: Counter,
}

/// What outlives an attempt.
#[derive(Debug, Default)]
struct Course {
    /// Entries that were refused although they were alone, and when.
    aside: BTreeMap<Sequence, Instant>,
    /// Kafka refused something: entries up to this one are handed over one at a time.
    alone_until: Sequence,
}

/// Why forwarding begins anew.
#[derive(Debug, thiserror::Error)]
enum NotForwarded {
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error(transparent)]
    Kafka(#[from] KafkaError),
    #[error(
        "the topic refuses page {page}; it waits in the journal and is tried again, the others go on"
    )]
    Refused { page: PageId, source: KafkaError },
}

type Confirmation = Pin<Box<dyn Future<Output = Result<i64, KafkaError>> + Send>>;

/// Entries that were handed over, oldest first.
type OnTheWay = VecDeque<(Sequence, PageId, Confirmation)>;

// === impl Forwarder ===

impl<K: Kafka> Forwarder<K> {
    /// Forwards until `stop` has come and nothing waits any more, or `give_up`. The pollers have to
    /// be done when `stop` comes.
    pub async fn run(self, stop: CancellationToken, give_up: CancellationToken) {
        let condition =
            self.health.condition("forwarding", format!("partition {}", self.partition));
        let mut backlog = self.journal.backlog();
        let mut course = Course::default();
        let mut wait = SHORTEST_WAIT;
        loop {
            let attempt = self.forward(&condition, &mut course, &mut backlog, &mut wait, &stop);
            let forwarded = tokio::select! {
                biased;
                () = give_up.cancelled() => return,
                forwarded = attempt => forwarded,
            };
            let Err(error) = forwarded else { return };
            condition.failing_alike(Chain(&error));
            debug!(partition = self.partition, error = %Chain(&error), ?wait, "forwarding failed");
            tokio::select! {
                biased;
                () = give_up.cancelled() => return,
                () = wait_to_try_again(wait, &stop) => wait = (wait * 2).min(LONGEST_WAIT),
            }
        }
    }

    /// Forwards from the oldest entry on, until the stop (`Ok`) or a failure.
    async fn forward(
        &self,
        condition: &Condition,
        course: &mut Course,
        backlog: &mut watch::Receiver<Backlog>,
        wait: &mut Duration,
        stop: &CancellationToken,
    ) -> Result<(), NotForwarded> {
        let mut last = Sequence::START;
        let mut on_the_way = OnTheWay::new();
        let mut patience = Instant::now() + PATIENCE;
        loop {
            let newest = backlog.borrow_and_update().newest;
            let is_due = course.is_due();
            if is_due && on_the_way.is_empty() {
                last = Sequence::START;
            }
            let most = if is_due { 1 } else { course.most(last, &on_the_way) };
            let room = most.saturating_sub(on_the_way.len());
            let waiting = match room {
                0 => Vec::new(),
                _ => self.journal.read(self.partition, last, room).await?,
            };
            let are_there = !waiting.is_empty();
            if are_there {
                self.kafka.prepare().await?;
            }
            for entry in waiting {
                last = entry.sequence;
                if let Some(since) = course.aside.get(&entry.sequence) {
                    if since.elapsed() >= ASIDE {
                        self.put_behind(entry.sequence, entry.entry.content, course).await?;
                    }
                    continue;
                }
                if on_the_way.is_empty() {
                    patience = Instant::now() + PATIENCE;
                }
                let record = pages::encode(&entry.entry, entry.settled);
                let confirmation = Box::pin(self.kafka.append(self.partition, record));
                on_the_way.push_back((entry.sequence, entry.entry.id, confirmation));
            }
            if are_there && on_the_way.is_empty() {
                // All of them are aside; what waits behind them?
                continue;
            }
            if stop.is_cancelled() && on_the_way.is_empty() {
                return Ok(());
            }
            let may_take_more = on_the_way.len() < most;
            tokio::select! {
                biased;
                Some((sequence, page, outcome)) = oldest(&mut on_the_way) => {
                    let offset = match outcome {
                        Ok(offset) => offset,
                        Err(error) => {
                            self.metrics.refused.inc_by(u64::from(error.failure() == Failure::Unfit));
                            return Err(course.learn(error, sequence, page, last));
                        }
                    };
                    self.journal.forget(vec![sequence]).await;
                    self.metrics.forwarded.inc();
                    self.progress.note_forwarded(self.partition, offset + 1);
                    patience = Instant::now() + PATIENCE;
                    *wait = SHORTEST_WAIT;
                    if course.aside.is_empty() {
                        condition.ok();
                    }
                }
                () = more_than(newest, backlog), if may_take_more => {}
                () = stop.cancelled(), if on_the_way.is_empty() => {}
                () = tokio::time::sleep_until(patience) => {
                    if !on_the_way.is_empty() {
                        condition.failing_alike(format_args!(
                            "Kafka has confirmed no page for {PATIENCE:?}: it is away, or too few \
                             replicas are in sync; pages wait in the journal"
                        ));
                    }
                    patience = Instant::now() + PATIENCE;
                }
            }
        }
    }

    /// Gives an entry a new ticket and the last place. Where the process is killed between the two,
    /// there are two of it: its events are recognised as repeats.
    async fn put_behind(
        &self,
        sequence: Sequence,
        content: Content,
        course: &mut Course,
    ) -> Result<(), NotForwarded> {
        let Content::Page(page) = content else { return Ok(()) };
        let feed = page.feed.clone();
        let room = self.journal.reserve(&feed, self.partition, page.since, self.clock.now());
        room.await?.settle(Content::Page(page)).await?;
        self.journal.forget(vec![sequence]).await;
        course.aside.remove(&sequence);
        course.alone_until = self.journal.backlog().borrow().newest;
        Ok(())
    }
}

/// Waits for the oldest entry that is on its way, and takes it off; `None` where there is none.
async fn oldest(on_the_way: &mut OnTheWay) -> Option<(Sequence, PageId, Result<i64, KafkaError>)> {
    let (sequence, page, confirmation) = on_the_way.front_mut()?;
    let (sequence, page) = (*sequence, *page);
    let outcome = confirmation.await;
    on_the_way.pop_front();
    Some((sequence, page, outcome))
}

/// Waits until the journal has a newer entry, of whatever partition.
async fn more_than(newest: Sequence, backlog: &mut watch::Receiver<Backlog>) {
    let announced = backlog.wait_for(|it| it.newest > newest).await;
    announced.map(drop).expect("the journal announces as long as we hold it");
}

// === impl Course ===

impl Course {
    /// Whether an entry has been aside for long enough.
    fn is_due(&self) -> bool {
        self.aside.values().any(|since| since.elapsed() >= ASIDE)
    }

    /// How many entries may be on their way behind `last`.
    fn most(&self, last: Sequence, on_the_way: &OnTheWay) -> usize {
        let alone = match on_the_way.front() {
            Some((sequence, ..)) => *sequence <= self.alone_until,
            None => last < self.alone_until,
        };
        if alone { 1 } else { ON_THE_WAY }
    }

    /// Takes a lesson from an entry that failed. A batch is refused as a whole: who of the entries
    /// up to `last` is to blame shows when each is alone.
    fn learn(
        &mut self,
        error: KafkaError,
        sequence: Sequence,
        page: PageId,
        last: Sequence,
    ) -> NotForwarded {
        if error.failure() != Failure::Unfit {
            return NotForwarded::Kafka(error);
        }
        if sequence > self.alone_until {
            self.alone_until = last;
            return NotForwarded::Kafka(error);
        }
        if self.aside.insert(sequence, Instant::now()).is_none() {
            error!(%page, %error, "a page is set aside: its topic refuses it");
        }
        NotForwarded::Refused { page, source: error }
    }
}

// === impl ForwarderMetrics ===

impl ForwarderMetrics {
    /// Registers all of them.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "pages_forwarded",
            "Pages and gaps that all in-sync replicas of the pages topic have",
            self.forwarded.clone(),
        );
        registry.register(
            "pages_refused",
            "Times that the pages topic refused a page for what it is",
            self.refused.clone(),
        );
    }
}
