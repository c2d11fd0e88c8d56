//! The loop that publishes: pages topic → events → one transaction.
//!
//! One task for each partition of the pages topic that this process owns and that has work. It
//! claims the partition, restores the memory, reads on where the memory says, and for a handful of
//! pages at a time ([`PAGES_A_TRANSACTION`]) builds everything in memory first: events, dead
//! letters, gaps, and the memory itself. Then one transaction takes all of it or nothing. Nothing
//! waits inside a transaction.
//!
//! After any failure the task discards its state and claims the partition again. It never gives up:
//! pages are safe in the pages topic, and readiness says why they stay there.
//!
//! Two failures are handled differently. If Kafka refuses the records of some pages for good
//! ([`Failure::Unfit`]), they are retried in other ways and finally one page at a time; a page that is
//! refused alone is set aside (`ladder`). If another bridge has claimed the partition
//! ([`Failure::Fenced`]), this one stays off as long as the other is alive: it publishes the backlog,
//! or there is none. So two bridges with one group never take a partition from each other in turn.

mod broker_clock;
mod claim;
mod decode;
mod ladder;
mod loss;
mod metrics;
mod pairs;
mod rebuild;
mod switches;
mod trail;

use std::collections::HashMap;
use std::ops::Range;
use std::time::Duration;

use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

pub use self::metrics::PublisherMetrics;

pub(crate) use self::decode::torn;

use self::claim::{Claim, UNKNOWN_POSITION_WAIT};
use self::decode::Draft;
use self::ladder::{Ladder, Lesson};
use self::loss::Work;
use self::pairs::{Pairs, Turn};
use self::switches::Switches;
use self::trail::Trail;
use crate::backoff::Backoff;
use crate::error::{Chain, may_panic};
use crate::kafka::{
    Elements, Failure, Kafka, KafkaError, Owned, PageRecord, Progress, wait_to_try_again,
};
use crate::memory::{BadMemory, Memory};
use crate::model::{AppId, Clock, Feed, Incarnation};
use crate::observe::accounts::{Accounts, Column};
use crate::observe::health::{Condition, Health};
use crate::records::pages;
use crate::records::pages::BadPageRecord;

/// Pages that share a transaction at most. More gain nothing (measured: ten pages a transaction
/// reach 300,000 events a second) and make a transaction longer.
const PAGES_A_TRANSACTION: usize = 10;

/// Interval of checking a partition without configured apps for pages that were left behind.
const LOOK_FOR_BACKLOG: Duration = Duration::from_secs(60);

/// Wait after a failure that follows a long success; the first one waits twice as long.
const SHORTEST_WAIT: Duration = Duration::from_millis(250);

/// The longest wait between two claims.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// A partition that another bridge owns is taken over if its pages wait this long and none is
/// published.
const SIGN_OF_LIFE: Duration = Duration::from_secs(30);

/// Between two looks at the partition that another bridge owns.
const LOOK_FOR_LIFE: Duration = Duration::from_secs(5);

/// Limits of topics that were read longer ago are read again before an event is set aside because it
/// seems too large: they may have been raised.
const OLD_LIMITS: Duration = Duration::from_secs(30);

/// Interval at which the range of the pages topic is checked while no page arrives: pages may have
/// been deleted.
const LOOK_INTERVAL: Duration = Duration::from_secs(60);

/// Publishes one partition.
#[derive(Debug)]
pub struct Publisher<K> {
    /// The cluster.
    pub kafka: K,
    /// The partition of the pages topic.
    pub partition: i32,
    /// Whether apps of this process belong to the partition.
    pub has_apps: bool,
    /// Bridges of this name share transactional ids and positions: only one of them publishes.
    pub group: String,
    /// Our own journal's; its pages are in the accounts already.
    pub incarnation: Incarnation,
    /// In how many regions each app is drained.
    pub regions: HashMap<AppId, usize>,
    /// Minimum time that an event is remembered: see [`crate::memory::hold`].
    pub hold: Duration,
    /// The feeds of the partition that are configured.
    pub feeds: Vec<Feed>,
    /// The wall clock.
    pub clock: Clock,
    /// How far the loops are.
    pub progress: Progress,
    /// What became of the events.
    pub accounts: Accounts,
    /// Whether all is well.
    pub health: Health,
    /// Counters.
    pub metrics: PublisherMetrics,
}

/// What pages tell of Agora besides their events.
struct Signs {
    pairs: Pairs,
    switches: Switches,
}

/// What outlives a claim.
struct Course {
    /// What the last transaction was about when its outcome was not known, and the position behind
    /// it: the position in the memory tells.
    pending: Option<Pending>,
    /// This process has had a memory of the partition.
    had_memory: bool,
    signs: Signs,
    /// What Kafka refused.
    ladder: Ladder,
}

/// A transaction that was begun.
struct Pending {
    /// The position behind it.
    position: i64,
    /// It begins a pages topic that was created again, so its position is below the one before.
    anew: bool,
    draft: Draft,
}

/// What came while pages were waited for.
enum Next {
    Pages(Vec<(i64, PageRecord)>),
    /// None for a while. What the pages topic holds.
    Quiet(Range<i64>),
}

/// Why a partition was let go.
#[derive(Debug, thiserror::Error)]
enum LetGo {
    #[error(transparent)]
    Kafka(#[from] KafkaError),
    #[error("read the memory of partition {partition}")]
    Memory { partition: i32, source: BadMemory },
    #[error("read the page at offset {offset} of partition {partition}")]
    Page { partition: i32, offset: i64, source: BadPageRecord },
    #[error("an event seems too large: the limits of the topics are read again")]
    OldLimits,
    #[error(
        "the memory of partition {partition} is gone (was the state topic deleted?); rebuild it from \
         what was published"
    )]
    NotRebuilt { partition: i32, source: KafkaError },
    #[error(
        "the memory of partition {partition} is gone (was the state topic deleted?), and neither a \
         noted offset nor the event topics tell how far the pages topic is delivered: nothing of \
         the partition is published. Decide where to continue, at worst with --to-earliest (events \
         are published twice) or --to-latest (what waits is never published): stop the bridge, and \
         kafka-consumer-groups.sh --group {group} --topic <pages topic>:{partition} \
         --reset-offsets --to-offset <offset> --execute"
    )]
    UnknownPosition { partition: i32, group: String },
}

// === impl Publisher ===

impl<K: Kafka> Publisher<K> {
    /// Publishes until `stop`, and then until everything that was forwarded is delivered, or
    /// `give_up`. The forwarder has to be done when `stop` comes.
    pub async fn run(self, stop: CancellationToken, give_up: CancellationToken) {
        let condition =
            self.health.condition("publishing", format!("partition {}", self.partition));
        if !self.has_apps && !self.wait_for_work(&stop).await {
            return;
        }
        condition.pending("not claimed yet");
        let mut course = Course::new(Signs {
            pairs: Pairs::new(self.regions.clone()),
            switches: Switches::new(self.regions.clone()),
        });
        let mut backoff =
            Backoff::new(SHORTEST_WAIT, LONGEST_WAIT).with_jitter(self.incarnation, self.partition);
        loop {
            let begun = Instant::now();
            let Err(cause) = self.own(&mut course, &condition, &stop, &give_up).await else {
                return;
            };
            if matches!(cause, LetGo::OldLimits) {
                continue;
            }
            self.metrics.failures.inc();
            condition.failing_alike(Chain(&cause));
            match begun.elapsed() > LONGEST_WAIT {
                true => backoff.reset(),
                false => backoff.lengthen(),
            }
            let wait = match cause {
                LetGo::UnknownPosition { .. } => UNKNOWN_POSITION_WAIT,
                _ => backoff.wait(),
            };
            debug!(partition = self.partition, error = %Chain(&cause), ?wait, "partition let go");
            let fenced = cause.failure() == Failure::Fenced;
            tokio::select! {
                biased;
                () = give_up.cancelled() => return,
                // The other one may have delivered what we forwarded.
                () = self.finished(&stop), if fenced => return,
                () = self.stand_off(&condition, &stop), if fenced => {}
                () = wait_to_try_again(wait, &stop), if !fenced => {}
            }
        }
    }

    /// Waits while another bridge owns the partition and shows life.
    async fn stand_off(&self, condition: &Condition, stop: &CancellationToken) {
        let mut seen = None;
        let mut alive_at = Instant::now();
        while alive_at.elapsed() < SIGN_OF_LIFE {
            wait_to_try_again(LOOK_FOR_LIFE, stop).await;
            // What can't be seen is no sign of life.
            let Ok(look) = self.kafka.look(self.partition).await else { continue };
            self.progress.note_delivered(self.partition, look.delivered.unwrap_or_default());
            if !look.has_backlog() || look.delivered != seen {
                alive_at = Instant::now();
            }
            let owner = look.owner.as_deref().unwrap_or("unknown");
            if seen.is_none() {
                warn!(partition = self.partition, owner, "another bridge publishes the partition");
            }
            seen = look.delivered;
            condition.failing(format_args!(
                "another bridge with kafka.group `{}` publishes this partition (instance \
                 `{owner}`). This one goes on draining and forwarding, and takes over when pages \
                 wait for {SIGN_OF_LIFE:?}. Is it meant to run twice? Stop one of them",
                self.group,
            ));
        }
        info!(partition = self.partition, "the other bridge shows no life");
    }

    /// Waits until pages are in a partition that no app of ours belongs to. False at the stop.
    async fn wait_for_work(&self, stop: &CancellationToken) -> bool {
        loop {
            let look = async {
                self.kafka.look(self.partition).await.is_ok_and(|look| look.has_backlog())
                    || timeout(LOOK_FOR_BACKLOG, self.progress.wait_for_pages(self.partition))
                        .await
                        .is_ok()
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => return self.progress.is_behind(self.partition),
                found = look => if found { return true },
            }
        }
    }

    /// Claims the partition and publishes until the stop (`Ok`) or a failure.
    async fn own(
        &self,
        course: &mut Course,
        condition: &Condition,
        stop: &CancellationToken,
        give_up: &CancellationToken,
    ) -> Result<(), LetGo> {
        let Claim { mut owned, mut memory, mut trail, span } = tokio::select! {
            biased;
            () = give_up.cancelled() => return Ok(()),
            // Nothing of ours waits for a partition that can't be had.
            () = self.finished(stop) => return Ok(()),
            claimed = self.claim(course.had_memory) => claimed?,
        };
        course.had_memory |= memory.position().is_some();
        if let Some(pending) = course.pending.take()
            && pending.is_committed(memory.position())
        {
            self.count(pending.draft, pending.position, &mut course.signs.switches);
        }
        condition.ok();
        let claimed_at = Instant::now();
        course.signs.pairs.forget_all_users();
        let mut looks = interval_at(Instant::now() + LOOK_INTERVAL, LOOK_INTERVAL);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut looked = Some(Next::Quiet(span));
        loop {
            may_panic("publisher");
            let limit = course.ladder.limit(memory.position(), PAGES_A_TRANSACTION);
            let is_idle = !self.progress.is_behind(self.partition);
            let next = tokio::select! {
                biased;
                () = give_up.cancelled() => return Ok(()),
                () = self.finished(stop), if looked.is_none() => return Ok(()),
                next = async {
                    match looked.take() {
                        Some(looked) => Ok(looked),
                        None => next(&mut owned, limit, &mut looks).await,
                    }
                } => next?,
            };
            let work = match next {
                Next::Pages(pages) => {
                    if is_idle {
                        self.observe_clock(&pages);
                    }
                    self.follow(&mut owned, &mut trail, pages).await?
                }
                Next::Quiet(span) => self.look(&mut trail, span)?,
            };
            let Some(position) = work.position() else { continue };
            let (alone, anew) = (work.pages.len() == 1, work.anew.clone());
            let mut draft = self.decode(&owned, &mut memory, course, work)?;
            if draft.has_too_large && claimed_at.elapsed() > OLD_LIMITS {
                owned.doubt_limits();
                return Err(LetGo::OldLimits);
            }
            let batch = std::mem::take(&mut draft.batch);
            course.pending = Some(Pending { position, anew: anew.is_some(), draft });
            let begun = Instant::now();
            let delivered = tokio::select! {
                biased;
                // The process ends; the next one finds the outcome in the memory.
                () = give_up.cancelled() => return Ok(()),
                delivered = owned.deliver(batch, position) => delivered,
            };
            delivered.inspect_err(|error| self.learn(course, error, position, alone))?;
            self.metrics.transaction_duration.observe(begun.elapsed().as_secs_f64());
            course.ladder.delivered();
            if let Some(span) = anew {
                // Its offsets start over.
                course.ladder.anew();
                trail = Trail::new(Some(span.start), None);
                self.progress.begin_anew(self.partition, span.end);
                owned.read_from(None).await?;
            }
            let delivered = course.pending.take().map(|it| it.draft).unwrap_or_default();
            course.had_memory = true;
            self.count(delivered, position, &mut course.signs.switches);
            self.progress.note_delivered(self.partition, position);
        }
    }

    fn decode(
        &self,
        owned: &K::Owned,
        memory: &mut Memory,
        course: &mut Course,
        work: Work,
    ) -> Result<Draft, LetGo> {
        let partition = self.partition;
        let mut draft = Draft::default();
        let context = decode::Context {
            limits: &|topic| owned.limits(topic),
            broker_time: &|appended| self.metrics.broker_clock.time(appended, self.clock.now()),
            partition,
            incarnation: self.incarnation,
            ladder: &course.ladder,
        };
        for loss in &work.losses {
            loss.write(&mut draft, memory, &self.feeds);
        }
        for stored in &work.pages {
            let offset = stored.0;
            decode::take_in(&mut draft, memory, &mut course.signs.pairs, &context, stored)
                .map_err(|source| LetGo::Page { partition, offset, source })?;
        }
        if let Some(position) = work.reads_on_at {
            memory.begin_at(position);
        }
        self.metrics.forgotten_early.inc_by(memory.take_dropped_too_early());
        self.tell(&mut draft);
        memory.write_changes(partition, &mut draft.batch);
        Ok(draft)
    }

    /// A page of ours that came while nothing of ours waited was appended a moment ago.
    fn observe_clock(&self, pages: &[(i64, PageRecord)]) {
        let Some((_, record)) = pages.last() else { return };
        let is_ours = pages::id(record).is_some_and(|id| id.incarnation == self.incarnation);
        if let Some(appended) = record.appended.filter(|_| is_ours) {
            self.metrics.broker_clock.observe(appended, self.clock.now());
        }
    }

    /// Takes a lesson from a transaction that failed, of pages before `position`.
    fn learn(&self, course: &mut Course, error: &KafkaError, position: i64, alone: bool) {
        if error.failure() != Failure::Unfit {
            return;
        }
        let reason = error.to_string();
        if let Lesson::OtherTimes(times) =
            course.ladder.refused(error.unfit(), &reason, position, alone)
        {
            warn!(
                partition = self.partition,
                %error,
                ?times,
                "a topic refuses the timestamps of records: others are used for a while"
            );
        }
    }

    /// Reports signs of a second consumer in logins and logouts. A hint, which need not wait for the
    /// transaction.
    fn tell(&self, draft: &mut Draft) {
        for (app, told) in draft.told.drain(..) {
            self.metrics.unpaired(&app, told.is_break);
            let Some(turn) = told.turn else { continue };
            self.metrics.suspect_second_consumer(&app, turn == Turn::Begins);
            match turn {
                Turn::Begins => {
                    warn!(%app, "logins lack their logouts: is there a second consumer?")
                }
                Turn::Ends => info!(%app, "logins and logouts come in pairs again"),
            }
        }
    }

    /// Enters a delivered transaction into accounts, metrics and progress.
    fn count(&self, draft: Draft, position: i64, switches: &mut Switches) {
        for loss in &draft.losses {
            self.tell_loss(loss);
        }
        let mut own = Elements::new();
        for ((app, endpoint), counts) in draft.counts {
            own.insert((app.clone(), endpoint), counts.own);
            let account = self.accounts.open(&app, endpoint);
            account.add(Column::Received, counts.received);
            account.add(Column::Delivered, counts.delivered);
            account.add(Column::Repeats, counts.repeats);
            account.add(Column::RepeatsInPage, counts.repeats_in_page);
            account.add(Column::DeadLetters, counts.dead_letters);
            account.add(Column::SetAside, counts.set_aside);
        }
        for ((app, endpoint), elements) in self.progress.settle(self.partition, position, own) {
            self.accounts.open(&app, endpoint).add(Column::Lost, elements);
        }
        for gap in draft.gaps {
            self.metrics.gap(&gap);
            let (from, to) = (gap.from.map(|from| from.to_string()), gap.to);
            error!(
                feed = %gap.feed, cause = %gap.cause, from, %to, at_least = gap.at_least,
                at_most = gap.at_most, "events may be missing"
            );
        }
        for held in draft.held {
            let switch = switches.observe(&held);
            let Some(oldest) = held.oldest_age() else { continue };
            self.metrics.repeated(&held.feed, held.repeats, oldest, switch.is_some());
            if switch.is_some_and(|switch| switch.begins) {
                let (feed, repeats) = (&held.feed, held.repeats);
                warn!(%feed, repeats, ?oldest, "another region of Agora answers; repeats are dropped");
            }
        }
        self.metrics.transactions.inc();
        self.metrics.pages_delivered.inc_by(draft.pages);
        self.metrics.pages_again.inc_by(draft.pages_again);
        for page in draft.set_aside {
            error!(
                %page,
                "Kafka refuses the events of a page: it is set aside, as a dead letter with the \
                 reason"
            );
        }
        if draft.bad_pages > 0 {
            error!(
                partition = self.partition,
                records = draft.bad_pages,
                "records of the pages topic are unreadable; they are in the dead-letter topic"
            );
        }
    }

    /// Ends when the stop was asked for and nothing that was forwarded waits any more.
    async fn finished(&self, stop: &CancellationToken) {
        stop.cancelled().await;
        self.progress.wait_until_delivered(self.partition).await;
    }
}

/// Waits for pages, or until it is time to check what the topic holds.
async fn next(
    owned: &mut impl Owned,
    limit: usize,
    looks: &mut Interval,
) -> Result<Next, KafkaError> {
    tokio::select! {
        biased;
        _ = looks.tick() => {}
        pages = owned.pages(limit) => return pages.map(Next::Pages),
    }
    owned.span().await.map(Next::Quiet)
}

// === impl Course ===

impl Course {
    fn new(signs: Signs) -> Self {
        Self { pending: None, had_memory: false, signs, ladder: Ladder::default() }
    }
}

// === impl Pending ===

impl Pending {
    /// Whether a memory with this position includes the transaction. Where offsets start over, only the
    /// exact position shows that, and no other transaction can have followed unnoticed.
    fn is_committed(&self, position: Option<i64>) -> bool {
        match self.anew {
            true => position == Some(self.position),
            false => position >= Some(self.position),
        }
    }
}

// === impl LetGo ===

impl LetGo {
    fn failure(&self) -> Failure {
        match self {
            Self::Kafka(error) => error.failure(),
            Self::Memory { .. }
            | Self::Page { .. }
            | Self::NotRebuilt { .. }
            | Self::UnknownPosition { .. } => Failure::Refused,
            Self::OldLimits => Failure::Broken,
        }
    }
}
