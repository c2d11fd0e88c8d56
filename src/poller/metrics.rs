//! Metrics of the poller.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use super::clocks::Clocks;
use super::request::outcome;
use super::tokens::Tokens;
use crate::agora::Answer;
use crate::model::{BUFFER_LIMIT, Feed};
use crate::observe::metrics::FeedLabels;
use crate::schedule::Outcome;

/// Metrics of all apps together. Cheap to clone; clones share.
#[derive(Clone, Debug)]
pub struct PollerMetrics {
    /// Completed requests, by outcome.
    pub requests: Family<RequestLabels, Counter>,
    /// From sending the request to the last byte of its answer.
    pub request_duration: Histogram,
    /// Pages that are durable in the journal.
    pub pages_committed: Counter,
    /// Bytes of pages.
    pub page_bytes: Counter,
    /// Requests that the rate-limit guard blocked; each is a bug.
    pub gate_refusals: Counter,
    /// Pages that had to wait for others of their feed before they became readable.
    pub pages_held: Counter,
    /// Pages that were released although an earlier request had not ended.
    pub pages_released_late: Counter,
    /// Fill level of Agora's buffer at the last request.
    pub buffer_fill: Family<FeedLabels, Gauge<f64, AtomicU64>>,
    /// Forecast events per second.
    pub feed_rate: Family<FeedLabels, Gauge<f64, AtomicU64>>,
    /// Index of the host that served a feed last, in failover order.
    pub failover_host: Family<FeedLabels, Gauge>,
    /// Gaps that were published because a buffer was full.
    pub overflows_suspected: Family<FeedLabels, Counter>,
    /// When tokens expire.
    pub tokens: Tokens,
    /// How far the clocks are apart.
    pub clocks: Clocks,
}

/// Labels of [`PollerMetrics::requests`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    /// The feed.
    #[prometheus(flatten)]
    pub feed: FeedLabels,
    /// What the request returned.
    pub outcome: &'static str,
}

// === impl PollerMetrics ===

impl PollerMetrics {
    /// Counts an answer.
    pub fn answer(&self, feed: &Feed, answer: &Answer) {
        let outcome = match answer {
            Answer::Page { cut: None, .. } => "page",
            Answer::Page { cut: Some(_), .. } => "cut",
            Answer::Empty => "empty",
            Answer::NotSent(_) => "not_sent",
            Answer::Nothing(said) => match outcome(said) {
                Outcome::Throttled { .. } => "throttled",
                Outcome::Refused { .. } => "refused",
                _ => "failed",
            },
            Answer::Lost(_) => "lost",
        };
        let labels = RequestLabels { feed: FeedLabels::of(feed), outcome };
        self.requests.get_or_create(&labels).inc();
        if let Answer::Page { body, .. } = answer {
            self.page_bytes.inc_by(body.len() as u64);
        }
    }

    /// Records how many events the last request found in a buffer, and how fast it fills.
    pub fn show_feed(&self, feed: &Feed, found: f64, rate: f64) {
        let labels = FeedLabels::of(feed);
        let fill = (found / BUFFER_LIMIT as f64).min(1.0);
        self.buffer_fill.get_or_create(&labels).set(fill);
        self.feed_rate.get_or_create(&labels).set(rate);
    }

    /// Records which host serves a feed.
    pub fn failover(&self, feed: &Feed, place: usize) {
        let place = i64::try_from(place).unwrap_or(i64::MAX);
        self.failover_host.get_or_create(&FeedLabels::of(feed)).set(place);
    }

    /// Counts a suspected overflow.
    pub fn overflow(&self, feed: &Feed) {
        self.overflows_suspected.get_or_create(&FeedLabels::of(feed)).inc();
    }

    /// Registers all of them.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "requests",
            "Completed requests to Agora, by outcome",
            self.requests.clone(),
        );
        registry.register_with_unit(
            "request_duration",
            "From sending a request to the last byte of its answer",
            Unit::Seconds,
            self.request_duration.clone(),
        );
        registry.register(
            "pages_committed",
            "Pages that are durable in the journal",
            self.pages_committed.clone(),
        );
        registry.register_with_unit(
            "pages",
            "Bodies of pages",
            Unit::Bytes,
            self.page_bytes.clone(),
        );
        registry.register(
            "gate_refusals",
            "Requests that the rate-limit guard blocked; each is a bug in the schedule",
            self.gate_refusals.clone(),
        );
        registry.register(
            "pages_held",
            "Pages that had to wait for others of their feed before they became readable",
            self.pages_held.clone(),
        );
        registry.register(
            "pages_released_late",
            "Pages that were released although an earlier request had not ended",
            self.pages_released_late.clone(),
        );
        registry.register_with_unit(
            "buffer_fill",
            "Fill level of Agora's buffer of 2,000 events at the last request",
            Unit::Other("ratio".to_owned()),
            self.buffer_fill.clone(),
        );
        registry.register(
            "feed_events_per_second",
            "Forecast rate at which Agora's buffer fills",
            self.feed_rate.clone(),
        );
        registry.register(
            "failover_host",
            "Index of the host that served the feed last, in failover order; 0 is the \
             preferred host",
            self.failover_host.clone(),
        );
        registry.register(
            "overflows_suspected",
            "Gaps that were published because Agora's buffer was full",
            self.overflows_suspected.clone(),
        );
        registry.register_collector(Box::new(self.tokens.clone()));
        registry.register_collector(Box::new(self.clocks.clone()));
    }
}

impl Default for PollerMetrics {
    fn default() -> Self {
        Self {
            requests: Family::default(),
            request_duration: Histogram::new(exponential_buckets(0.005, 2.0, 13)),
            pages_committed: Counter::default(),
            page_bytes: Counter::default(),
            gate_refusals: Counter::default(),
            pages_held: Counter::default(),
            pages_released_late: Counter::default(),
            buffer_fill: Family::default(),
            feed_rate: Family::default(),
            failover_host: Family::default(),
            overflows_suspected: Family::default(),
            tokens: Tokens::default(),
            clocks: Clocks::default(),
        }
    }
}
