//! The observable state of a running daemon: for people, for programs, and for the stop.

use std::fmt;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::Parts;
use crate::forwarder::ForwarderMetrics;
use crate::journal::Backlog;
use crate::kafka::Progress;
use crate::model::Incarnation;
use crate::observe::accounts::Accounts;
use crate::observe::health::Health;
use crate::poller::PollerMetrics;
use crate::publisher::PublisherMetrics;

/// The state of a daemon. Cheap to clone; clones share.
#[derive(Clone, Debug)]
pub struct Report {
    instance: String,
    incarnation: Incarnation,
    started: Instant,
    apps: usize,
    partitions: i32,
    health: Health,
    accounts: Accounts,
    progress: Progress,
    backlog: watch::Receiver<Backlog>,
    poller: PollerMetrics,
    forwarder: ForwarderMetrics,
    publisher: PublisherMetrics,
}

/// The backlogs between the loops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Pages and gaps in the journal that are not forwarded yet.
    pub in_journal: u64,
    /// Pages and gaps in the pages topic that this process forwarded and that are not delivered
    /// yet.
    pub in_pages_topic: u64,
}

// === impl Report ===

impl Report {
    pub(super) fn new<T, K>(
        parts: &Parts<T, K>,
        health: &Health,
        accounts: &Accounts,
        progress: &Progress,
    ) -> Self {
        let partitions = parts.settings.kafka.topics.page_partitions.get();
        Self {
            instance: parts.settings.instance.clone(),
            incarnation: parts.journal.incarnation(),
            started: Instant::now(),
            apps: parts.settings.apps.len(),
            partitions: i32::try_from(partitions).unwrap_or(i32::MAX),
            health: health.clone(),
            accounts: accounts.clone(),
            progress: progress.clone(),
            backlog: parts.journal.backlog(),
            poller: PollerMetrics::default(),
            forwarder: ForwarderMetrics::default(),
            publisher: PublisherMetrics::default(),
        }
    }

    /// Metrics of the pollers.
    pub fn poller(&self) -> &PollerMetrics {
        &self.poller
    }

    /// Metrics of the forwarders.
    pub fn forwarder(&self) -> &ForwarderMetrics {
        &self.forwarder
    }

    /// Metrics of the publishers.
    pub fn publisher(&self) -> &PublisherMetrics {
        &self.publisher
    }

    /// The health of the daemon.
    pub fn health(&self) -> &Health {
        &self.health
    }

    /// The accounts of the events.
    pub fn accounts(&self) -> &Accounts {
        &self.accounts
    }

    /// The current backlogs.
    pub fn waiting(&self) -> Waiting {
        let behind = (0..self.partitions).map(|partition| self.progress.pages_behind(partition));
        Waiting {
            in_journal: self.backlog.borrow().entries,
            in_pages_topic: behind.sum::<i64>().unsigned_abs(),
        }
    }

    /// Completes once the backlogs haven't changed for `lasts`, checked at the interval `every`.
    /// Never completes while a page is only in memory, because it would be lost.
    pub(super) async fn stalled(&self, lasts: Duration, every: Duration) {
        let mut known = (self.waiting(), Instant::now());
        while known.1.elapsed() < lasts {
            sleep(every).await;
            let waiting = self.waiting();
            if waiting != known.0 || self.backlog.borrow().in_memory > 0 {
                known = (waiting, Instant::now());
            }
        }
    }

    /// The answer to `/status.json`.
    pub fn status(&self) -> serde_json::Value {
        let waiting = self.waiting();
        let total = self.accounts.total();
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "instance": self.instance,
            "incarnation": self.incarnation.to_string(),
            "uptime_seconds": self.started.elapsed().as_secs(),
            "apps": self.apps,
            "readiness": self.health.readiness(),
            "journal": {
                "entries": waiting.in_journal,
                "bytes": self.backlog.borrow().bytes,
            },
            "pages_topic": { "not_delivered": waiting.in_pages_topic },
            "tokens": self.poller.tokens.snapshot(),
            "agora_clock_ahead_seconds": self.poller.clocks.snapshot(),
            "accounts": self.accounts.snapshot(),
            "summary": total.to_string(),
        })
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        self.health.register(registry);
        self.accounts.register(registry);
        self.poller.register(registry);
        self.forwarder.register(registry);
        self.publisher.register(registry);
        registry.register_collector(Box::new(self.clone()));
    }
}

impl Collector for Report {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let waiting = self.waiting();
        let Backlog { bytes, in_memory, set_aside, .. } = self.backlog.borrow().clone();
        for (name, help, value) in [
            (
                "journal_entries",
                "Pages and gaps in the journal that are not forwarded yet.",
                waiting.in_journal,
            ),
            ("journal_size_bytes", "Database, write-ahead log, reserve and reservations.", bytes),
            (
                "journal_pages_in_memory",
                "Pages and gaps that are only in memory, because the journal can't store them.",
                in_memory,
            ),
            ("journal_pages_set_aside", "Damaged pages whose bytes the journal keeps.", set_aside),
            (
                "pages_waiting",
                "Pages and gaps that this process forwarded and that are not delivered yet.",
                waiting.in_pages_topic,
            ),
        ] {
            let metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)).encode(metric)?;
        }
        Ok(())
    }
}

// === impl Waiting ===

impl Waiting {
    /// Whether nothing waits.
    pub fn is_nothing(self) -> bool {
        self.in_journal == 0 && self.in_pages_topic == 0
    }
}

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} pages in the journal, {} in the pages topic",
            self.in_journal, self.in_pages_topic
        )
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::config;
    use crate::journal::Journal;
    use crate::model::{AppId, Clock, Endpoint, Feed, Gap, GapCause, Region, Timestamp};
    use crate::observe::metrics::Metrics;
    use crate::observe::{logs, process};

    fn report() -> Report {
        let variables = [
            ("KAFKA__BOOTSTRAP_SERVERS", "127.0.0.1:9092"),
            ("APPS__0__APP_ID", "a"),
            ("APPS__0__AUTH__TOKEN", "t"),
        ];
        let variables =
            variables.map(|(name, value)| (format!("AGORA_RTM_BRIDGE__{name}"), value.to_owned()));
        let settings = config::load(None, variables).unwrap();
        let clock = Clock::system();
        let connection = rusqlite::Connection::open_in_memory().unwrap();
        let (journal, recovered) = Journal::simulated(
            connection,
            settings.journal.max_size,
            Incarnation::from_u128(1),
            clock.now(),
        )
        .unwrap();
        let parts =
            Parts { settings, transport: (), kafka: (), journal, recovered, clock, seed: 1 };
        Report::new(&parts, &Health::new(clock), &Accounts::default(), &Progress::new(8))
    }

    /// The metrics of a scrape after everything has happened at least once.
    fn shown() -> BTreeSet<String> {
        let report = report();
        let mut metrics = Metrics::new();
        report.register(metrics.registry());
        process::register(&mut metrics, "2");
        logs::register(&mut metrics);
        let feed =
            Feed { app: AppId::new("a"), region: Region::new("default"), endpoint: Endpoint::User };
        report.poller().answer(&feed, &crate::agora::Answer::Empty);
        report.poller().show_feed(&feed, 1.0, 1.0);
        report.poller().overflow(&feed);
        report.poller().failover(&feed, 0);
        report.publisher().repeated(&feed, 1, Duration::ZERO, true);
        report.publisher().unpaired(&feed.app, true);
        report.publisher().suspect_second_consumer(&feed.app, true);
        report.publisher().gap(&Gap {
            feed,
            cause: GapCause::Overflow,
            from: None,
            to: Timestamp::default(),
            at_least: 0,
            at_most: None,
        });
        let text = metrics.text();
        let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        types
            .map(|line| match line.split_once(' ').unwrap() {
                (name, "counter") => format!("{name}_total"),
                (name, "info") => format!("{name}_info"),
                (name, _) => name.to_owned(),
            })
            .collect()
    }

    #[test]
    fn the_table_of_metrics_names_all_and_no_others() {
        let documented: BTreeSet<String> = include_str!("../../docs/metrics.md")
            .lines()
            .filter_map(|line| Some(line.strip_prefix("| `")?.split_once('`')?.0.to_owned()))
            .collect();
        assert_eq!(shown(), documented);
    }

    #[tokio::test]
    async fn the_status_says_what_waits_and_balances() {
        let status = report().status();
        assert_eq!(status["journal"]["entries"], 0);
        assert_eq!(status["pages_topic"]["not_delivered"], 0);
        assert_eq!(status["readiness"]["ready"], false);
        assert_eq!(status["readiness"]["reasons"][0]["condition"], "polling");
    }
}
