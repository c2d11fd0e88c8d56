//! The registry behind `/metrics`.
//!
//! Each room has a struct with its metrics and a method `register(&self, registry: &mut Registry)`,
//! called with [`Metrics::registry`], where every name gets the prefix `agora_rtm_bridge_`. Only
//! the metrics of the process keep the names that are usual in all Prometheus clients.
//! `docs/metrics.md` lists all metrics.

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::registry::Registry;

use crate::model::Feed;

/// Prefix of all names, without the underscore that follows it.
pub const PREFIX: &str = "agora_rtm_bridge";

/// The content type of [`Metrics::text`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// All metrics.
#[derive(Debug)]
pub struct Metrics {
    process: Registry,
    bridge: Registry,
}

/// Labels of metrics per feed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct FeedLabels {
    /// App ID.
    pub app_id: String,
    /// Region.
    pub region: String,
    /// Endpoint.
    pub endpoint: &'static str,
}

// === impl Metrics ===

impl Metrics {
    /// Without any metrics.
    pub fn new() -> Self {
        Self { process: Registry::default(), bridge: Registry::with_prefix(PREFIX) }
    }

    /// The registry for the metrics of a room; it adds the prefix.
    pub fn registry(&mut self) -> &mut Registry {
        &mut self.bridge
    }

    /// The registry that leaves names unchanged.
    pub(super) fn process_registry(&mut self) -> &mut Registry {
        &mut self.process
    }

    /// The current values, as OpenMetrics text.
    pub fn text(&self) -> String {
        let mut text = String::new();
        text::encode_registry(&mut text, &self.process)
            .and_then(|()| text::encode_registry(&mut text, &self.bridge))
            .and_then(|()| text::encode_eof(&mut text))
            .expect("a collector fails only where its writer does, and a String never does");
        text
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

// === impl FeedLabels ===

impl FeedLabels {
    /// The labels of this feed.
    pub fn of(feed: &Feed) -> Self {
        Self {
            app_id: feed.app.to_string(),
            region: feed.region.as_str().to_owned(),
            endpoint: feed.endpoint.name(),
        }
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;

    use super::*;

    #[test]
    fn a_metric_of_a_room_gets_the_prefix_and_the_text_ends() {
        let mut metrics = Metrics::new();
        let pages: Counter = Counter::default();
        metrics.registry().register("pages_committed", "Pages made durable", pages.clone());
        pages.inc();
        assert_eq!(
            metrics.text(),
            "# HELP agora_rtm_bridge_pages_committed Pages made durable.\n\
             # TYPE agora_rtm_bridge_pages_committed counter\n\
             agora_rtm_bridge_pages_committed_total 1\n\
             # EOF\n"
        );
    }
}
