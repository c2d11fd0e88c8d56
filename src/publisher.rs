//! The loop that publishes: pages topic → events → one transaction.
//!
//! One task for each partition of the pages topic that this process owns and that has work. It
//! claims the partition, restores the memory, reads on where the memory says, and for a handful of
//! pages at a time ([`PAGES_A_TRANSACTION`]) builds everything in memory first: events, dead
//! letters, gaps, and the memory itself. Then one transaction takes all of it or nothing. Nothing
//! waits inside a transaction.
//!
//! Whatever fails, the task drops what it has and claims anew. It never gives up: pages are safe in
//! the pages topic, and readiness says why they stay there.

mod decode;
mod metrics;
mod pairs;
mod switches;

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::debug;
use tracing::error;
use tracing::info;
use tracing::warn;

pub use self::metrics::PublisherMetrics;

use self::decode::Draft;
use self::pairs::Pairs;
use self::pairs::Turn;
use self::switches::Switches;
use crate::error::Chain;
use crate::kafka::BadMemory;
use crate::kafka::Failure;
use crate::kafka::Kafka;
use crate::kafka::KafkaError;
use crate::kafka::Memory;
use crate::kafka::Owned;
use crate::kafka::PageRecord;
use crate::kafka::Progress;
use crate::kafka::pages::BadPageRecord;
use crate::model::AppId;
use crate::model::Clock;
use crate::model::Incarnation;
use crate::observe::accounts::Accounts;
use crate::observe::accounts::Column;
use crate::observe::health::Condition;
use crate::observe::health::Health;

/// Pages that share a transaction at most. More gain nothing (measured: ten pages a transaction
/// reach 300,000 events a second) and make a transaction longer.
const PAGES_A_TRANSACTION: usize = 10;

/// How often a partition without apps of ours is looked at for pages that somebody left.
const LOOK_FOR_BACKLOG: Duration = Duration::from_secs(60);

/// The wait after a failure; doubled by each further one, up to [`LONGEST_WAIT`].
const SHORTEST_WAIT: Duration = Duration::from_millis(250);

/// The longest wait between two claims.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// The wait after the partition was taken away: two bridges that take it from each other in turn
/// must not do so often.
const WAIT_AFTER_FENCED: Duration = Duration::from_secs(30);

/// Publishes one partition.
#[derive(Debug)]
pub struct Publisher<K> {
    /// The cluster.
    pub kafka: K,
    /// The partition of the pages topic.
    pub partition: i32,
    /// Whether apps of this process belong to the partition.
    pub has_apps: bool,
    /// Our own journal's; its pages are in the accounts already.
    pub incarnation: Incarnation,
    /// In how many regions each app is drained.
    pub regions: HashMap<AppId, usize>,
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

/// Why a partition was let go.
#[derive(Debug, thiserror::Error)]
enum LetGo {
    #[error(transparent)]
    Kafka(#[from] KafkaError),
    #[error("read the memory of partition {partition}")]
    Memory { partition: i32, source: BadMemory },
    #[error("read the page at offset {offset} of partition {partition}")]
    Page { partition: i32, offset: i64, source: BadPageRecord },
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
        let mut pending = None;
        let mut signs = Signs {
            pairs: Pairs::new(self.regions.clone()),
            switches: Switches::new(self.regions.clone()),
        };
        let mut wait = SHORTEST_WAIT;
        loop {
            let begun = Instant::now();
            let Err(cause) = self.own(&mut pending, &mut signs, &condition, &stop, &give_up).await
            else {
                return;
            };
            self.metrics.failures.inc();
            wait = match cause.failure() {
                Failure::Fenced => WAIT_AFTER_FENCED,
                _ if begun.elapsed() > LONGEST_WAIT => SHORTEST_WAIT,
                _ => (wait * 2).min(LONGEST_WAIT),
            };
            condition.failing_alike(Chain(&cause));
            debug!(partition = self.partition, error = %Chain(&cause), ?wait, "partition let go");
            tokio::select! {
                biased;
                () = give_up.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Waits until pages are in a partition that no app of ours belongs to. False at the stop.
    async fn wait_for_work(&self, stop: &CancellationToken) -> bool {
        loop {
            let look = async {
                matches!(self.kafka.has_backlog(self.partition).await, Ok(true))
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
    ///
    /// `pending` is what the last transaction was about when its outcome was not known: the
    /// position in the memory tells it.
    async fn own(
        &self,
        pending: &mut Option<(i64, Draft)>,
        signs: &mut Signs,
        condition: &Condition,
        stop: &CancellationToken,
        give_up: &CancellationToken,
    ) -> Result<(), LetGo> {
        let (mut owned, mut memory) = tokio::select! {
            biased;
            () = give_up.cancelled() => return Ok(()),
            claimed = self.claim() => claimed?,
        };
        if let Some((position, draft)) = pending.take()
            && memory.position() >= Some(position)
        {
            self.count(draft, &mut signs.switches);
        }
        condition.ok();
        signs.pairs.forget_all_users();
        loop {
            let pages = tokio::select! {
                biased;
                () = give_up.cancelled() => return Ok(()),
                () = self.finished(stop) => return Ok(()),
                pages = owned.pages(PAGES_A_TRANSACTION) => pages?,
            };
            let Some((last, _)) = pages.last() else { continue };
            let position = last + 1;
            let mut draft = self.decode(&owned, &mut memory, &mut signs.pairs, pages)?;
            let batch = std::mem::take(&mut draft.batch);
            let (_, draft) = pending.insert((position, draft));
            let begun = Instant::now();
            tokio::select! {
                biased;
                // The process ends; the memory will tell the next one what became of it.
                () = give_up.cancelled() => return Ok(()),
                delivered = owned.deliver(batch, position) => delivered?,
            }
            self.metrics.transaction_duration.observe(begun.elapsed().as_secs_f64());
            self.count(std::mem::take(draft), &mut signs.switches);
            *pending = None;
            self.progress.note_delivered(self.partition, position);
        }
    }

    fn decode(
        &self,
        owned: &K::Owned,
        memory: &mut Memory,
        pairs: &mut Pairs,
        pages: Vec<(i64, PageRecord)>,
    ) -> Result<Draft, LetGo> {
        let partition = self.partition;
        let mut draft = Draft::default();
        let context = decode::Context {
            limits: &|topic| owned.limits(topic),
            now: self.clock.now(),
            incarnation: self.incarnation,
        };
        for stored in &pages {
            let offset = stored.0;
            decode::take_in(&mut draft, memory, pairs, &context, stored)
                .map_err(|source| LetGo::Page { partition, offset, source })?;
        }
        self.metrics.forgotten_early.inc_by(memory.take_dropped_too_early());
        self.tell(&mut draft);
        memory.write_changes(partition, &mut draft.batch);
        Ok(draft)
    }

    /// Says what logins and logouts tell of a second consumer. A hint, which need not wait for the
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

    /// Enters a delivered transaction everywhere where somebody counts.
    fn count(&self, draft: Draft, switches: &mut Switches) {
        for ((app, endpoint), counts) in draft.counts {
            let account = self.accounts.open(&app, endpoint);
            account.add(Column::Received, counts.received);
            account.add(Column::Delivered, counts.delivered);
            account.add(Column::Repeats, counts.repeats);
            account.add(Column::RepeatsInPage, counts.repeats_in_page);
            account.add(Column::DeadLetters, counts.dead_letters);
            account.add(Column::SetAside, counts.set_aside);
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
        if draft.bad_pages > 0 {
            error!(
                partition = self.partition,
                records = draft.bad_pages,
                "records of the pages topic are unreadable; they are in the dead-letter topic"
            );
        }
    }

    async fn claim(&self) -> Result<(K::Owned, Memory), LetGo> {
        let partition = self.partition;
        self.kafka.prepare().await?;
        let (mut owned, records) = self.kafka.claim(partition).await?;
        let memory = Memory::restore(self.regions.clone(), records)
            .map_err(|source| LetGo::Memory { partition, source })?;
        let position = memory.position();
        owned.read_from(position).await?;
        self.metrics.claims.inc();
        self.progress.note_delivered(partition, position.unwrap_or(0));
        info!(partition, position, "partition claimed");
        Ok((owned, memory))
    }

    /// Ends when the stop was asked for and nothing that was forwarded waits any more.
    async fn finished(&self, stop: &CancellationToken) {
        stop.cancelled().await;
        self.progress.wait_until_delivered(self.partition).await;
    }
}

// === impl LetGo ===

impl LetGo {
    fn failure(&self) -> Failure {
        match self {
            Self::Kafka(error) => error.failure(),
            Self::Memory { .. } | Self::Page { .. } => Failure::Refused,
        }
    }
}
