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
//! An entry that the topic refuses because of its content (a page larger than `max.message.bytes`, or a
//! timestamp that the topic does not accept) is set aside: it stays in the journal, later entries
//! overtake it, and it is retried where it is ([`aside`]). At each refusal the journal gives it a new
//! ticket and the last place. Under its old ticket it would hold back the settled ticket of all later
//! pages, and the publisher's memory of the tickets above that would grow while it waits. If the journal
//! can't do that, the entry waits in its old place, and nothing waits for it.
//!
//! An entry keeps its ticket if an earlier attempt may have stored it: the attempt failed without a
//! refusal, or another process made it ([`in_doubt`]). The publisher recognises a second
//! copy only by its ticket.

mod aside;
mod in_doubt;

use std::collections::VecDeque;
use std::pin::Pin;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use self::aside::Aside;
use self::in_doubt::{InDoubt, NewTicket};
use crate::backoff::Backoff;
use crate::error::{Chain, may_panic};
use crate::journal::{Backlog, Journal, JournalError, Sequence, Waiting};
use crate::kafka::{Failure, Kafka, KafkaError, Progress, wait_to_try_again};
use crate::model::{Entry, Incarnation, PageId};
use crate::observe::health::{Condition, Health};
use crate::records::pages;

/// Pages of a partition that are on their way at most: as many as an idempotent producer has in flight
/// for a partition. More would wait in librdkafka, whose thread spins while a broker that hangs does
/// not confirm those in flight.
const ON_THE_WAY: usize = 5;

/// Wait after a first failure.
const SHORTEST_WAIT: Duration = Duration::from_millis(250);

/// Maximum wait between two attempts.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// A page without a confirmation for this long shows in readiness.
const UNCONFIRMED_TIMEOUT: Duration = Duration::from_secs(10);

/// Maximum time to wait, after a failure, for the outcome of the other entries in flight. A producer
/// that failed is dropped and purges them within milliseconds.
const LAST_OUTCOMES: Duration = Duration::from_secs(1);

/// Forwards the entries of one partition.
#[derive(Debug)]
pub struct Forwarder<K> {
    /// The cluster.
    pub kafka: K,
    /// Where entries wait.
    pub journal: Journal,
    /// The partition.
    pub partition: i32,
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
    /// Pages and gaps that the pages topic refused.
    pub refused: Counter,
    /// Reads of the journal.
    pub reads: Counter,
}

/// What outlives an attempt.
#[derive(Debug)]
struct Course {
    /// Whether Kafka confirms.
    forwarding: Condition,
    /// Whether entries are aside.
    refused: Condition,
    backlog: watch::Receiver<Backlog>,
    aside: Aside,
    /// Kafka refused something: entries up to this one are handed over one at a time.
    alone_until: Sequence,
    /// Before the next attempt.
    backoff: Backoff,
    in_doubt: InDoubt,
    /// A try of an entry that is aside has failed: other entries have their turn before the next try.
    line_is_next: bool,
}

/// What an attempt has handed over.
#[derive(Default)]
struct Attempt {
    /// The newest entry of it.
    last: Sequence,
    on_the_way: OnTheWay,
    /// When to report that nothing was confirmed.
    patience: Option<Instant>,
}

/// Why forwarding starts over.
#[derive(Debug, thiserror::Error)]
enum NotForwarded {
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error(transparent)]
    Kafka(#[from] KafkaError),
    /// An entry was set aside. Those that were handed over behind it failed with it.
    #[error("an entry is set aside")]
    SetAside,
}

type Confirmation = Pin<Box<dyn Future<Output = Result<i64, KafkaError>> + Send>>;

/// Entries that were handed over, oldest first.
type OnTheWay = VecDeque<(Sequence, PageId, Confirmation)>;

// === impl Forwarder ===

impl<K: Kafka> Forwarder<K> {
    /// Forwards until `stop` has come and nothing waits any more, or `give_up`. The pollers have to
    /// be done when `stop` comes.
    pub async fn run(self, stop: CancellationToken, give_up: CancellationToken) {
        let condition = |name| self.health.condition(name, format!("partition {}", self.partition));
        let mut course = Course {
            forwarding: condition("forwarding"),
            refused: condition("refused"),
            backlog: self.journal.backlog(),
            aside: Aside::default(),
            alone_until: Sequence::START,
            backoff: Backoff::new(SHORTEST_WAIT, LONGEST_WAIT)
                .with_jitter(self.journal.incarnation(), self.partition),
            in_doubt: InDoubt::new(self.journal.incarnation()),
            line_is_next: false,
        };
        loop {
            let forwarded = tokio::select! {
                biased;
                () = give_up.cancelled() => return,
                forwarded = self.forward(&mut course, &stop) => forwarded,
            };
            let wait = course.backoff.wait();
            match forwarded {
                Ok(()) => return,
                Err(NotForwarded::SetAside) => {}
                Err(error) => {
                    course.forwarding.failing_alike(Chain(&error));
                    debug!(
                        partition = self.partition, error = %Chain(&error), ?wait,
                        "forwarding failed"
                    );
                }
            }
            tokio::select! {
                biased;
                () = give_up.cancelled() => return,
                () = wait_to_try_again(wait, &stop) => course.backoff.lengthen(),
            }
        }
    }

    /// Forwards from the oldest entry on, until the stop (`Ok`) or a failure.
    async fn forward(
        &self,
        course: &mut Course,
        stop: &CancellationToken,
    ) -> Result<(), NotForwarded> {
        let mut line = Attempt::default();
        let ended = self.follow(&mut line, course, stop).await;
        self.take_last_outcomes(line, course).await;
        ended
    }

    async fn follow(
        &self,
        line: &mut Attempt,
        course: &mut Course,
        stop: &CancellationToken,
    ) -> Result<(), NotForwarded> {
        loop {
            may_panic("forwarder");
            let newest = course.backlog.borrow_and_update().newest;
            let is_due = course.next_try().is_some_and(|at| at <= Instant::now());
            if is_due && line.on_the_way.is_empty() {
                self.try_one_again(course).await?;
                continue;
            }
            let most = if is_due { 0 } else { course.most(line) };
            let handed_over = self.hand_over(line, most, course).await;
            let are_there = handed_over.inspect_err(|_| course.line_is_next = false)?;
            if line.on_the_way.is_empty() {
                if are_there {
                    // All of them are aside; look for entries behind them.
                    continue;
                }
                course.line_is_next = false;
                if stop.is_cancelled() {
                    return Ok(());
                }
            }
            let next_try = course.next_try();
            let may_take_more = line.on_the_way.len() < most;
            let is_idle = line.on_the_way.is_empty();
            tokio::select! {
                biased;
                Some((sequence, page, outcome)) = oldest(&mut line.on_the_way) => {
                    course.line_is_next = false;
                    match outcome {
                        Ok(offset) => self.confirm(sequence, offset, course).await,
                        Err(error) => {
                            return Err(self.learn(error, sequence, page, line.last, course).await);
                        }
                    }
                    line.patience = None;
                }
                () = more_than(newest, &mut course.backlog), if may_take_more => {}
                () = stop.cancelled(), if is_idle => {}
                () = at(next_try), if is_idle => {}
                () = at(line.patience), if !is_idle => {
                    course.say_unconfirmed();
                    line.patience = None;
                }
            }
        }
    }

    /// Hands over what waits behind the line, up to `most` on their way. Whether something waits.
    async fn hand_over(
        &self,
        line: &mut Attempt,
        most: usize,
        course: &mut Course,
    ) -> Result<bool, NotForwarded> {
        if line.on_the_way.is_empty() {
            line.patience = None;
        }
        line.patience.get_or_insert_with(|| Instant::now() + UNCONFIRMED_TIMEOUT);
        let room = most.saturating_sub(line.on_the_way.len());
        if room == 0 {
            return Ok(false);
        }
        self.metrics.reads.inc();
        let waiting = self.journal.read(self.partition, line.last, room).await?;
        let are_there = !waiting.is_empty();
        if are_there {
            self.kafka.prepare().await?;
        }
        for entry in waiting {
            line.last = entry.sequence;
            course.in_doubt.hand_over(entry.entry.id);
            if !course.aside.holds(entry.sequence) {
                let confirmation = self.append(&entry, false);
                line.on_the_way.push_back((entry.sequence, entry.entry.id, confirmation));
            }
        }
        Ok(are_there)
    }

    /// Tries an entry again that is aside. A failure that does not refuse it postpones it, so that
    /// it does not keep the others waiting.
    async fn try_one_again(&self, course: &mut Course) -> Result<(), NotForwarded> {
        let Some(sequence) = course.aside.take_due(Instant::now()) else { return Ok(()) };
        let tried = self.try_aside(sequence, course).await;
        if tried.is_err() {
            course.aside.postpone(sequence, Instant::now());
            course.line_is_next = true;
        }
        tried
    }

    /// Tries an entry that is aside, alone, where it lies.
    async fn try_aside(&self, sequence: Sequence, course: &mut Course) -> Result<(), NotForwarded> {
        self.metrics.reads.inc();
        let Some(entry) = self.journal.read_one(self.partition, sequence).await? else {
            course.aside.remove(sequence);
            course.in_doubt.remove(sequence);
            course.say_refused(None);
            return Ok(());
        };
        self.kafka.prepare().await?;
        let mut confirmation = self.append(&entry, true);
        let outcome = loop {
            tokio::select! {
                biased;
                outcome = &mut confirmation => break outcome,
                () = tokio::time::sleep(UNCONFIRMED_TIMEOUT) => course.say_unconfirmed(),
            }
        };
        match outcome {
            Ok(offset) => {
                course.aside.accept(sequence, Instant::now());
                course.say_refused(None);
                self.confirm(sequence, offset, course).await;
                Ok(())
            }
            Err(error) if error.failure() == Failure::Unfit => {
                self.metrics.refused.inc();
                self.set_aside(sequence, entry.entry.id, &error, course).await;
                Ok(())
            }
            Err(error) => {
                course.in_doubt.insert(sequence);
                Err(error.into())
            }
        }
    }

    fn append(&self, entry: &Waiting, was_refused: bool) -> Confirmation {
        let mut record = pages::encode(&entry.entry, entry.settled);
        // An earlier process may have met a refusal, and forwarded others meanwhile.
        if was_refused || entry.entry.id.incarnation != self.journal.incarnation() {
            record = record.late();
        }
        let appended = self.kafka.append(self.partition, record);
        let elements = received_elements(&entry.entry, self.journal.incarnation());
        let feed = entry.entry.content.feed();
        let name = (feed.app.clone(), feed.endpoint);
        Box::pin(self.progress.noting(self.partition, name, elements, appended))
    }

    /// All in-sync replicas have an entry, and Kafka is well.
    async fn confirm(&self, sequence: Sequence, offset: i64, course: &mut Course) {
        self.forget(sequence, offset, course).await;
        course.backoff.reset();
        course.forwarding.ok();
    }

    /// All in-sync replicas have an entry.
    async fn forget(&self, sequence: Sequence, offset: i64, course: &mut Course) {
        self.journal.forget(vec![sequence]).await;
        self.metrics.forwarded.inc();
        self.progress.note_forwarded(self.partition, offset + 1);
        course.in_doubt.remove(sequence);
    }

    /// Waits for the outcome of entries that are still in flight after a failure, for a bounded time.
    /// They may be in the topic, unless they were refused.
    async fn take_last_outcomes(&self, line: Attempt, course: &mut Course) {
        let until = Instant::now() + LAST_OUTCOMES;
        for (sequence, _, confirmation) in line.on_the_way {
            match timeout_at(until, confirmation).await {
                Ok(Ok(offset)) => self.forget(sequence, offset, course).await,
                Ok(Err(error)) if error.failure() == Failure::Unfit => {}
                Ok(Err(_)) | Err(_) => {
                    course.in_doubt.insert(sequence);
                }
            }
        }
    }

    /// Takes a lesson from an entry that failed. A batch is refused as a whole: who of the entries
    /// up to `last` is to blame shows when each is alone.
    async fn learn(
        &self,
        error: KafkaError,
        sequence: Sequence,
        page: PageId,
        last: Sequence,
        course: &mut Course,
    ) -> NotForwarded {
        if error.failure() != Failure::Unfit {
            course.in_doubt.insert(sequence);
            return NotForwarded::Kafka(error);
        }
        self.metrics.refused.inc();
        if sequence > course.alone_until {
            course.alone_until = last;
            return NotForwarded::Kafka(error);
        }
        self.set_aside(sequence, page, &error, course).await;
        NotForwarded::SetAside
    }

    /// Lets an entry wait that is refused although it was alone. What can't be moved behind others
    /// waits where it lies.
    async fn set_aside(
        &self,
        sequence: Sequence,
        page: PageId,
        error: &KafkaError,
        course: &mut Course,
    ) {
        if course.aside.refuse(sequence, page, Instant::now()) {
            error!(%page, %error, "a page or gap is set aside: its topic refuses it");
        }
        // Behind the newest entry it holds nothing back.
        let holds_back = course.backlog.borrow().newest > sequence;
        if holds_back && Self::may_move(sequence, page, course) {
            match self.journal.move_behind(self.partition, sequence).await {
                Ok(Waiting { sequence: to, entry, .. }) => {
                    course.aside.rename(sequence, to, entry.id);
                    course.in_doubt.remove(sequence);
                    debug!(%page, now = %entry.id, "an entry that is aside has a new ticket");
                }
                Err(error) => debug!(
                    %page, error = %Chain(&error), "an entry that is aside keeps its ticket"
                ),
            }
        }
        // Kafka answers: that is not what is wrong.
        course.forwarding.ok();
        course.say_refused(Some(error));
    }

    /// Whether an entry that was refused is moved, with a new ticket.
    fn may_move(sequence: Sequence, page: PageId, course: &Course) -> bool {
        match course.in_doubt.new_ticket(sequence, page) {
            NewTicket::Harmless => true,
            NewTicket::Harmful => false,
            NewTicket::Needed { held_back } => {
                warn!(
                    %page, held_back,
                    "a page or gap that is aside gets a new ticket although an earlier attempt may \
                     have stored it; its events may be published twice"
                );
                true
            }
        }
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

/// Waits until the journal has a newer entry, of any partition.
async fn more_than(newest: Sequence, backlog: &mut watch::Receiver<Backlog>) {
    let announced = backlog.wait_for(|it| it.newest > newest).await;
    announced.map(drop).expect("the journal announces as long as we hold it");
}

/// Waits until then, or for ever.
async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

// === impl Course ===

impl Course {
    /// How many entries of a line may be on their way.
    fn most(&self, Attempt { last, on_the_way, .. }: &Attempt) -> usize {
        let alone = match on_the_way.front() {
            Some((sequence, ..)) => *sequence <= self.alone_until,
            None => *last < self.alone_until,
        };
        if alone { 1 } else { ON_THE_WAY }
    }

    /// When the next entry that is aside may be tried.
    fn next_try(&self) -> Option<Instant> {
        if self.line_is_next { None } else { self.aside.next_try() }
    }

    fn say_unconfirmed(&self) {
        self.forwarding.failing_alike(format_args!(
            "Kafka has confirmed no page for {UNCONFIRMED_TIMEOUT:?}: it is away, or too few replicas are in \
             sync; pages wait in the journal"
        ));
    }

    /// Says what is aside, and why the latest of it was refused, where that is new.
    fn say_refused(&self, error: Option<&KafkaError>) {
        let Some(page) = self.aside.oldest() else { return self.refused.ok() };
        let Some(error) = error else { return };
        let others = match self.aside.len() {
            0 | 1 => String::new(),
            more => format!(" and {} more", more - 1),
        };
        self.refused.failing(format_args!(
            "the topic refuses page {page}{others}: {error}; it waits in the journal and is tried \
             again, the others are forwarded"
        ));
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
            "Times that the pages topic refused a page or gap for what it is",
            self.refused.clone(),
        );
        registry.register(
            "journal_reads",
            "Times that the journal was read in order to forward",
            self.reads.clone(),
        );
    }
}

/// The elements of an entry that the accounts of this process count as received: none of a page that
/// an earlier process received.
fn received_elements(entry: &Entry, own: Incarnation) -> u64 {
    if entry.id.incarnation == own { pages::elements(&entry.content) } else { 0 }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::model::{
        AppId, Content, Endpoint, Feed, Page, Region, Ticket, Timestamp, Wholeness,
    };

    #[test]
    fn pages_of_an_earlier_process_are_not_its_own() {
        let own = Incarnation::from_u128(1);
        let feed =
            Feed { app: AppId::new("a"), region: Region::new("eu"), endpoint: Endpoint::User };
        let page = Page {
            feed,
            since: None,
            asked_at: Timestamp::default(),
            answered_at: Timestamp::default(),
            status: 200,
            wholeness: Wholeness::Whole,
            request_id: None,
            resource_id: None,
            content_encoding: None,
            body: Bytes::from_static(br#"{"events":[1,1,1]}"#),
        };
        for (incarnation, elements) in [(own, 3), (Incarnation::from_u128(2), 0)] {
            let id = PageId { incarnation, ticket: Ticket(1) };
            let entry = Entry { id, content: Content::Page(page.clone()) };
            assert_eq!(received_elements(&entry, own), elements);
        }
    }
}
