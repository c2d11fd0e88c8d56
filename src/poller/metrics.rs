//! What the poller counts.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::histogram::exponential_buckets;
use prometheus_client::registry::Registry;
use prometheus_client::registry::Unit;

use crate::agora::Answer;
use crate::agora::answer::Trouble;
use crate::model::Feed;
use crate::model::Wholeness;

/// Counters of all apps together. Cheap to clone; clones share.
#[derive(Clone, Debug)]
pub struct PollerMetrics {
    /// Requests that have come to their end, by what came.
    pub requests: Family<RequestLabels, Counter>,
    /// From sending to the last byte.
    pub request_duration: Histogram,
    /// Pages that are durable in the journal.
    pub pages_committed: Counter,
    /// Bytes of pages.
    pub page_bytes: Counter,
    /// Requests that the last gate held back: defects.
    pub gate_refusals: Counter,
}

/// Labels of [`PollerMetrics::requests`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    /// App ID.
    pub app_id: String,
    /// Region.
    pub region: String,
    /// Endpoint.
    pub endpoint: &'static str,
    /// What came.
    pub outcome: &'static str,
}

// === impl PollerMetrics ===

impl PollerMetrics {
    /// Counts an answer.
    pub fn answer(&self, feed: &Feed, answer: &Answer) {
        let outcome = match answer {
            Answer::Page { wholeness: Wholeness::Whole, .. } => "page",
            Answer::Page { wholeness: Wholeness::Cut, .. } => "cut",
            Answer::Empty => "empty",
            Answer::Nothing(Trouble::NotSent(_)) => "not_sent",
            Answer::Nothing(Trouble::Throttled { .. }) => "throttled",
            Answer::Nothing(Trouble::Failed(_)) => "failed",
            Answer::Nothing(Trouble::Refused(_)) => "refused",
            Answer::Lost(_) => "lost",
        };
        let labels = RequestLabels {
            app_id: feed.app.to_string(),
            region: feed.region.as_str().to_owned(),
            endpoint: feed.endpoint.name(),
            outcome,
        };
        self.requests.get_or_create(&labels).inc();
        if let Answer::Page { body, .. } = answer {
            self.page_bytes.inc_by(body.len() as u64);
        }
    }

    /// Registers all of them.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "requests",
            "Requests to Agora that have come to their end, by what came",
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
            "Requests that the last gate held back; each is a defect of the schedule",
            self.gate_refusals.clone(),
        );
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
        }
    }
}
