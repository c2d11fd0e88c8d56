//! What the publisher counts.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use super::broker_clock::BrokerClock;
use crate::model::{AppId, Feed, Gap};
use crate::observe::metrics::FeedLabels;

/// Counters of all partitions together. Cheap to clone; clones share.
#[derive(Clone, Debug)]
pub struct PublisherMetrics {
    /// Partitions claimed.
    pub claims: Counter,
    /// Partitions let go because of a failure.
    pub failures: Counter,
    /// Transactions that committed.
    pub transactions: Counter,
    /// From the first record of a transaction to the end of its commit.
    pub transaction_duration: Histogram,
    /// Pages and gaps whose transaction committed.
    pub pages_delivered: Counter,
    /// Pages that their journal had forwarded before.
    pub pages_again: Counter,
    /// Records that were deleted from the pages topic before they were published.
    pub pages_missing: Counter,
    /// Gaps delivered, by cause.
    pub gaps: Family<GapLabels, Counter>,
    /// Events that a window had to forget while an answer that could repeat them was possible.
    pub forgotten_early: Counter,
    /// Logins that follow a login of their user, and logouts that follow a logout.
    pub unpaired_events: Family<AppLabels, Counter>,
    /// Whether another consumer seems to drain the app.
    pub second_consumer_suspected: Family<AppLabels, Gauge>,
    /// Events that a feed handed over although they were delivered before.
    pub feed_repeats: Family<FeedLabels, Counter>,
    /// The age of the oldest of them.
    pub oldest_repeat: Family<FeedLabels, Gauge<f64, AtomicU64>>,
    /// How often another region of Agora began to answer.
    pub region_switches: Family<FeedLabels, Counter>,
    /// How far the brokers' clock and ours are apart.
    pub broker_clock: BrokerClock,
}

/// Labels of what is counted for an app.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct AppLabels {
    /// App ID.
    pub app_id: String,
}

/// Labels of [`PublisherMetrics::gaps`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct GapLabels {
    /// App ID.
    pub app_id: String,
    /// Endpoint.
    pub endpoint: &'static str,
    /// Cause.
    pub cause: &'static str,
}

// === impl PublisherMetrics ===

impl PublisherMetrics {
    /// Counts a gap.
    pub fn gap(&self, gap: &Gap) {
        let labels = GapLabels {
            app_id: gap.feed.app.to_string(),
            endpoint: gap.feed.endpoint.name(),
            cause: gap.cause.name(),
        };
        self.gaps.get_or_create(&labels).inc();
    }

    /// Counts what a page repeated, with the age of the oldest, and whether a switch shows in it.
    pub fn repeated(&self, feed: &Feed, events: u64, oldest: Duration, switched: bool) {
        let labels = FeedLabels::of(feed);
        self.feed_repeats.get_or_create(&labels).inc_by(events);
        self.region_switches.get_or_create(&labels).inc_by(u64::from(switched));
        let gauge = self.oldest_repeat.get_or_create(&labels);
        gauge.set(gauge.get().max(oldest.as_secs_f64()));
    }

    /// Counts an event that may have broken a pair.
    pub fn unpaired(&self, app: &AppId, is_break: bool) {
        let labels = AppLabels { app_id: app.to_string() };
        self.unpaired_events.get_or_create(&labels).inc_by(u64::from(is_break));
    }

    /// Notes that a second consumer is suspected, or no longer.
    pub fn suspect_second_consumer(&self, app: &AppId, suspected: bool) {
        let labels = AppLabels { app_id: app.to_string() };
        self.second_consumer_suspected.get_or_create(&labels).set(i64::from(suspected));
    }

    /// Registers all of them.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("claims", "Partitions claimed", self.claims.clone());
        registry.register(
            "publish_failures",
            "Partitions let go after a failure and claimed again",
            self.failures.clone(),
        );
        registry.register("transactions", "Transactions that committed", self.transactions.clone());
        registry.register_with_unit(
            "transaction_duration",
            "From the first record of a transaction to the end of its commit",
            Unit::Seconds,
            self.transaction_duration.clone(),
        );
        registry.register(
            "pages_delivered",
            "Pages and gaps whose transaction committed",
            self.pages_delivered.clone(),
        );
        registry.register(
            "pages_forwarded_again",
            "Pages that their journal had forwarded before, dropped",
            self.pages_again.clone(),
        );
        registry.register(
            "pages_missing",
            "Pages and gaps deleted from the pages topic before they were published",
            self.pages_missing.clone(),
        );
        registry.register("gaps", "Gaps published", self.gaps.clone());
        registry.register(
            "events_forgotten_early",
            "Events that a window forgot while an answer could still repeat them",
            self.forgotten_early.clone(),
        );
        registry.register(
            "unpaired_events",
            "Logins after a login of the same user, and logouts after a logout",
            self.unpaired_events.clone(),
        );
        registry.register(
            "second_consumer_suspected",
            "Whether another consumer seems to drain the app",
            self.second_consumer_suspected.clone(),
        );
        registry.register(
            "feed_repeats",
            "Events that a feed handed over although they were delivered before",
            self.feed_repeats.clone(),
        );
        registry.register_with_unit(
            "feed_oldest_repeat",
            "Age of the oldest event that a feed handed over again",
            Unit::Seconds,
            self.oldest_repeat.clone(),
        );
        registry.register(
            "region_switches",
            "How often another region of Agora began to answer, as far as repeats tell",
            self.region_switches.clone(),
        );
        registry.register_collector(Box::new(self.broker_clock.clone()));
    }
}

impl Default for PublisherMetrics {
    fn default() -> Self {
        Self {
            claims: Counter::default(),
            failures: Counter::default(),
            transactions: Counter::default(),
            transaction_duration: Histogram::new(exponential_buckets(0.001, 2.0, 14)),
            pages_delivered: Counter::default(),
            pages_again: Counter::default(),
            pages_missing: Counter::default(),
            gaps: Family::default(),
            forgotten_early: Counter::default(),
            unpaired_events: Family::default(),
            second_consumer_suspected: Family::default(),
            feed_repeats: Family::default(),
            oldest_repeat: Family::default(),
            region_switches: Family::default(),
            broker_clock: BrokerClock::default(),
        }
    }
}
