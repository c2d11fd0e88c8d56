//! Health: is somebody needed, and for what?
//!
//! A room that can get into trouble holds a [`Condition`] and says when it fails and when it is
//! well again. The bridge is *ready* once polling has begun and while no condition fails. It is
//! *live* as long as it answers: no condition, not Agora's, not Kafka's, not a full disk's, is ever
//! a reason to restart it, since its journal goes on holding what was drained.
//!
//! A condition is logged when it changes and not while it lasts. Names are constants and subjects
//! come from the configuration (a feed, a topic, a path), so that both can be labels of a metric.

use std::collections::BTreeMap;
use std::fmt;
use std::fmt::Display;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::encoding::EncodeMetric;
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use serde::Serialize;
use serde::Serializer;
use tracing::info;
use tracing::warn;

use crate::model::Clock;
use crate::model::Timestamp;

/// All conditions of this process. Cheap to clone; clones share.
#[derive(Clone, Debug)]
pub struct Health {
    clock: Clock,
    state: Arc<Mutex<State>>,
}

/// One thing that can be well or fail. Cheap to clone; clones share.
///
/// Dropped while failing, it goes on failing: nobody is left who could say that it is well.
#[derive(Clone, Debug)]
pub struct Condition {
    health: Health,
    key: Key,
    fails: Arc<AtomicBool>,
}

/// What `/ready` says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Readiness {
    /// Polling has begun and no condition fails.
    pub ready: bool,
    /// Why not.
    pub reasons: Vec<Reason>,
}

/// Why the bridge is not ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reason {
    /// The name of the condition.
    pub condition: &'static str,
    /// Which one of that name; may be empty.
    pub subject: String,
    /// What is wrong, the latest that was said.
    pub reason: String,
    /// Since when, as RFC 3339.
    #[serde(serialize_with = "as_text")]
    pub since: Timestamp,
}

#[derive(Debug)]
struct State {
    started_at: Timestamp,
    polling: bool,
    conditions: BTreeMap<Key, Kept>,
}

/// What is kept of a condition.
#[derive(Debug, Default)]
struct Kept {
    failure: Option<Failure>,
    /// Whether there is a failure, for a look without the lock: a thousand apps say after each
    /// answer that they are well. Written under the lock.
    fails: Arc<AtomicBool>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    name: &'static str,
    subject: Arc<str>,
}

#[derive(Clone, Debug)]
struct Failure {
    reason: String,
    since: Timestamp,
    /// Nothing failed: something has to come about first.
    pending: bool,
}

/// What of a failure is news.
#[derive(Clone, Copy, Debug)]
struct News {
    /// Nothing was failing before.
    begins: bool,
    /// Another condition fails for the same reason.
    told: bool,
}

// === impl Health ===

impl Health {
    /// Health of a process that starts now; `clock` stamps the changes.
    pub fn new(clock: Clock) -> Self {
        let started_at = clock.now();
        let state = State { started_at, polling: false, conditions: BTreeMap::new() };
        Self { clock, state: Arc::new(Mutex::new(state)) }
    }

    /// The condition of this name and subject; well, where it is new.
    pub fn condition(&self, name: &'static str, subject: impl Into<String>) -> Condition {
        let key = Key { name, subject: Arc::from(subject.into()) };
        let fails = Arc::clone(&self.lock().conditions.entry(key.clone()).or_default().fails);
        Condition { health: self.clone(), key, fails }
    }

    /// Says that the journal is open and feeds are being asked.
    pub fn polling_begun(&self) {
        self.lock().polling = true;
    }

    /// Whether the bridge is ready, and why not.
    pub fn readiness(&self) -> Readiness {
        let state = self.lock();
        let not_begun = (!state.polling).then(|| Reason {
            condition: "polling",
            subject: String::new(),
            reason: "polling has not begun".to_owned(),
            since: state.started_at,
        });
        let failing = state.conditions.iter().filter_map(|(key, kept)| {
            let failure = kept.failure.as_ref()?;
            Some(Reason {
                condition: key.name,
                subject: key.subject.to_string(),
                reason: failure.reason.clone(),
                since: failure.since,
            })
        });
        let reasons: Vec<Reason> = not_begun.into_iter().chain(failing).collect();
        Readiness { ready: reasons.is_empty(), reasons }
    }

    /// Shows readiness and every condition in `registry`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register_collector(Box::new(self.clone()));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is whole after every step, also after one that panicked.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Collector for Health {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let ready = i64::from(self.readiness().ready);
        let help = "1 when polling has begun and no condition fails, else 0.";
        let metric = encoder.encode_descriptor("ready", help, None, MetricType::Gauge)?;
        ConstGauge::new(ready).encode(metric)?;

        let help = "1 while the condition fails, else 0.";
        let mut family =
            encoder.encode_descriptor("condition_failing", help, None, MetricType::Gauge)?;
        for (key, kept) in &self.lock().conditions {
            let labels = [("condition", key.name), ("subject", &*key.subject)];
            let failing = i64::from(kept.failure.is_some());
            ConstGauge::new(failing).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

// === impl Condition ===

impl Condition {
    /// Says that all is well.
    pub fn ok(&self) {
        if !self.fails.load(Ordering::Acquire) {
            return;
        }
        let ended = {
            let mut state = self.health.lock();
            self.fails.store(false, Ordering::Release);
            state.conditions.get_mut(&self.key).and_then(|kept| kept.failure.take())
        };
        // Logged after the lock is given back: writing a log may block, and others report too.
        if let Some(failure) = ended.filter(|failure| !failure.pending) {
            let lasted = self.health.clock.now().since(failure.since);
            let Key { name, subject } = &self.key;
            let lasted = humantime::format_duration(lasted);
            info!(condition = name, %subject, %lasted, "condition recovered");
        }
    }

    /// Says what has to come about before all is well, as a start does. Not logged: nothing failed.
    pub fn pending(&self, reason: impl Display) {
        self.replace(reason.to_string(), true);
    }

    /// Says what is wrong. Said again while it lasts, only the reason is replaced.
    pub fn failing(&self, reason: impl Display) {
        let reason = reason.to_string();
        if self.replace(reason.clone(), false).begins {
            let Key { name, subject } = &self.key;
            warn!(condition = name, %subject, reason, "condition failing");
        }
    }

    /// The same where one cause makes many fail and the reason names it: one of them logs it.
    pub fn failing_alike(&self, reason: impl Display) {
        let reason = reason.to_string();
        if matches!(self.replace(reason.clone(), false), News { begins: true, told: false }) {
            let Key { name, subject } = &self.key;
            warn!(condition = name, %subject, reason, "condition failing");
        }
    }

    fn replace(&self, reason: String, pending: bool) -> News {
        let now = self.health.clock.now();
        let mut state = self.health.lock();
        let Kept { failure, .. } = state.conditions.entry(self.key.clone()).or_default();
        let failed = failure.as_ref().filter(|failure| !failure.pending);
        let (begins, since) = (failed.is_none(), failed.map_or(now, |failure| failure.since));
        *failure = Some(Failure { reason: reason.clone(), since, pending });
        self.fails.store(true, Ordering::Release);
        let same = |kept: &Kept| kept.failure.as_ref().is_some_and(|it| it.reason == reason);
        let told = state.conditions.iter().any(|(key, kept)| *key != self.key && same(kept));
        News { begins, told }
    }
}

fn as_text<S: Serializer>(value: &impl Display, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;
    use tokio::time::advance;

    use super::*;
    use crate::observe::logs::Format;
    use crate::observe::logs::captured;
    use crate::observe::metrics::Metrics;

    fn health() -> Health {
        Health::new(Clock::simulated(Timestamp::from_millis(0)))
    }

    #[tokio::test(start_paused = true)]
    async fn ready_means_that_polling_has_begun_and_no_condition_fails() {
        let health = health();
        let condition = health.condition("kafka", "pages");
        assert!(!health.readiness().ready);
        health.polling_begun();
        assert!(health.readiness().ready);
        condition.failing("no broker");
        assert!(!health.readiness().ready);
        condition.ok();
        assert!(health.readiness().ready);
    }

    #[tokio::test(start_paused = true)]
    async fn a_reason_is_the_latest_and_its_time_the_first() {
        let health = health();
        health.polling_begun();
        let condition = health.condition("kafka", "pages");
        advance(Duration::from_secs(1)).await;
        condition.failing("no broker");
        advance(Duration::from_secs(1)).await;
        condition.failing("not authorised");
        assert_eq!(
            serde_json::to_value(health.readiness()).unwrap(),
            json!({
                "ready": false,
                "reasons": [{
                    "condition": "kafka",
                    "subject": "pages",
                    "reason": "not authorised",
                    "since": "1970-01-01T00:00:01.000Z",
                }],
            })
        );
    }

    #[tokio::test(start_paused = true)]
    async fn handles_of_one_name_and_subject_are_one_condition() {
        let health = health();
        health.polling_begun();
        health.condition("kafka", "pages").failing("no broker");
        health.condition("kafka", "gaps").ok();
        health.condition("kafka", "pages");
        assert!(!health.readiness().ready);
        health.condition("kafka", "pages").ok();
        assert!(health.readiness().ready);
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_is_logged_once() {
        let condition = health().condition("kafka", "pages");
        let log = captured(Format::Text, "info", || {
            condition.ok();
            condition.failing("no broker");
            condition.failing("no broker");
            condition.failing("not authorised");
            condition.ok();
            condition.ok();
        });
        let lines: Vec<&str> = log.lines().map(|line| line.split_once(' ').unwrap().1).collect();
        assert_eq!(
            lines,
            [
                "WARN  condition failing condition=kafka subject=pages reason=\"no broker\"",
                "INFO  condition recovered condition=kafka subject=pages lasted=0s",
            ]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn what_one_cause_makes_fail_is_logged_once_and_all_of_it_is_a_reason() {
        let health = health();
        health.polling_begun();
        let log = captured(Format::Text, "info", || {
            for partition in ["partition 0", "partition 1", "partition 2"] {
                health.condition("publishing", partition).failing_alike("no broker");
            }
            health.condition("publishing", "partition 3").failing_alike("not authorised");
        });
        assert_eq!(log.lines().count(), 2, "{log}");
        assert_eq!(health.readiness().reasons.len(), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn conditions_can_be_read_from_the_metrics() {
        let health = health();
        health.polling_begun();
        health.condition("kafka", "pages").ok();
        health.condition("disk", "/a \"b\"").failing("full");
        let mut metrics = Metrics::new();
        health.register(metrics.registry());
        let text = metrics.text();
        for line in [
            "agora_rtm_bridge_ready 0\n",
            "agora_rtm_bridge_condition_failing{condition=\"kafka\",subject=\"pages\"} 0\n",
            "agora_rtm_bridge_condition_failing{condition=\"disk\",subject=\"/a \\\"b\\\"\"} 1\n",
        ] {
            assert!(text.contains(line), "no {line}in\n{text}");
        }
    }

    #[test]
    fn what_is_pending_is_a_reason_but_no_failure_and_failing_is_news_after_it() {
        let log = captured(Format::Text, "info", || {
            let health = Health::new(Clock::system());
            health.polling_begun();
            let condition = health.condition("publishing", "partition 1");
            condition.pending("not claimed yet");
            assert_eq!(health.readiness().reasons[0].reason, "not claimed yet");
            condition.ok();
            condition.pending("not claimed yet");
            condition.failing("no broker");
            condition.ok();
        });
        let lines: Vec<&str> = log.lines().collect();
        assert_eq!(lines.len(), 2, "{log}");
        assert!(lines[0].contains("failing") && lines[0].contains("no broker"), "{log}");
        assert!(lines[1].contains("recovered"), "{log}");
    }
}
