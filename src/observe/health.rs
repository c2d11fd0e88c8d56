//! Health: whether a person is needed, and why.
//!
//! A component that can fail holds a [`Condition`] and reports when it fails and when it has
//! recovered. The bridge is *ready* once polling has begun and while no condition fails. It is
//! *live* as long as it answers: no condition, be it of Agora, Kafka or a full disk, is a reason to
//! restart it, since the journal keeps the drained pages meanwhile.
//!
//! A condition is logged when it changes, not while it lasts. Names are constants, and subjects
//! come from the configuration (a feed, a topic, a path), so both can be labels of a metric.
//!
//! Each condition has its own lock. A report costs the same with one condition as with 40,000, and
//! doesn't wait while another thread reads all of them.

mod condition;

use std::collections::BTreeMap;
use std::fmt;
use std::fmt::Display;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use serde::{Serialize, Serializer};

pub use self::condition::Condition;

use self::condition::{Causes, Slot};
use crate::model::{Clock, Timestamp};

/// The conditions of this process. Cheap to clone; clones share.
#[derive(Clone, Debug)]
pub struct Health {
    clock: Clock,
    state: Arc<HealthState>,
}

/// The content of `/ready`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Readiness {
    /// Polling has begun and no condition fails.
    pub ready: bool,
    /// The reasons if it is not ready.
    pub reasons: Vec<Reason>,
}

/// Why the bridge is not ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reason {
    /// The name of the condition.
    pub condition: &'static str,
    /// The subject, if several conditions have this name; may be empty.
    pub subject: String,
    /// The latest reported reason.
    pub reason: String,
    /// The start of the failure, as RFC 3339.
    #[serde(serialize_with = "as_text")]
    pub since: Timestamp,
}

#[derive(Debug)]
struct HealthState {
    started_at: Timestamp,
    polling: AtomicBool,
    /// Locked to add a condition and to read all of them, not to report on one.
    conditions: Mutex<Conditions>,
    causes: Causes,
}

#[derive(Debug, Default)]
struct Conditions {
    reported: BTreeMap<Key, Arc<Slot>>,
    watched: Vec<Watched>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    name: &'static str,
    subject: Arc<str>,
}

/// A condition that is evaluated on demand.
struct Watched {
    name: &'static str,
    look: Box<dyn Fn() -> Option<Trouble> + Send + Sync>,
}

/// A failure of a condition added by [`Health::watch`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// The reason, in words.
    pub reason: String,
    /// The start of the failure.
    pub since: Timestamp,
}

// === impl Health ===

impl Health {
    /// The health of a process that starts now. `clock` timestamps the changes.
    pub fn new(clock: Clock) -> Self {
        let state = HealthState {
            started_at: clock.now(),
            polling: AtomicBool::new(false),
            conditions: Mutex::default(),
            causes: Causes::default(),
        };
        Self { clock, state: Arc::new(state) }
    }

    /// Adds a holder to the condition with this name and subject; creates the condition, without
    /// failure, if it is new.
    ///
    /// The condition fails while at least one of its holders fails.
    pub fn condition(&self, name: &'static str, subject: impl Into<String>) -> Condition {
        let key = Key { name, subject: Arc::from(subject.into()) };
        let slot = Arc::clone(self.conditions().reported.entry(key.clone()).or_default());
        Condition::new(self.clone(), key, slot)
    }

    /// Adds a condition that is evaluated on demand: `look` is called whenever health is read. It
    /// must not block or read health itself. Its changes are not logged.
    pub fn watch(
        &self,
        name: &'static str,
        look: impl Fn() -> Option<Trouble> + Send + Sync + 'static,
    ) {
        self.conditions().watched.push(Watched { name, look: Box::new(look) });
    }

    /// Reports that the journal is open and feeds are polled.
    pub fn polling_begun(&self) {
        self.state.polling.store(true, Ordering::Release);
    }

    /// Whether the bridge is ready, with the reasons if not.
    pub fn readiness(&self) -> Readiness {
        let not_begun = (!self.state.polling.load(Ordering::Acquire)).then(|| Reason {
            condition: "polling",
            subject: String::new(),
            reason: "polling has not begun".to_owned(),
            since: self.state.started_at,
        });
        let conditions = self.conditions();
        let reported = conditions.reported.iter().filter_map(|(key, slot)| {
            let (reason, since) = slot.trouble()?;
            let (condition, subject) = (key.name, key.subject.to_string());
            Some(Reason { condition, subject, reason: reason.to_string(), since })
        });
        let watched = conditions.watched.iter().filter_map(|Watched { name, look }| {
            let Trouble { reason, since } = look()?;
            Some(Reason { condition: name, subject: String::new(), reason, since })
        });
        let reasons: Vec<Reason> = not_begun.into_iter().chain(reported).chain(watched).collect();
        Readiness { ready: reasons.is_empty(), reasons }
    }

    /// Registers readiness and all conditions as metrics.
    pub fn register(&self, registry: &mut Registry) {
        registry.register_collector(Box::new(self.clone()));
    }

    fn conditions(&self) -> MutexGuard<'_, Conditions> {
        // The maps are consistent at any time, even after a panic.
        self.state.conditions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Collector for Health {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let conditions = self.conditions();
        let reported = conditions.reported.iter().map(|(key, slot)| (key, slot.fails()));
        let reported: Vec<(&Key, bool)> = reported.collect();
        let watched = conditions.watched.iter().map(|it| (it.name, (it.look)().is_some()));
        let watched: Vec<(&str, bool)> = watched.collect();
        let ready = self.state.polling.load(Ordering::Acquire)
            && !reported.iter().any(|(_, fails)| *fails)
            && !watched.iter().any(|(_, fails)| *fails);
        let help = "1 when polling has begun and no condition fails, else 0.";
        let metric = encoder.encode_descriptor("ready", help, None, MetricType::Gauge)?;
        ConstGauge::new(i64::from(ready)).encode(metric)?;

        let help = "1 while the condition fails, else 0.";
        let mut family =
            encoder.encode_descriptor("condition_failing", help, None, MetricType::Gauge)?;
        let reported = reported.into_iter().map(|(key, fails)| (key.name, &*key.subject, fails));
        let watched = watched.into_iter().map(|(name, fails)| (name, "", fails));
        for (name, subject, fails) in reported.chain(watched) {
            let labels = [("condition", name), ("subject", subject)];
            ConstGauge::new(i64::from(fails)).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

// === impl Watched ===

impl fmt::Debug for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watched").field("name", &self.name).finish_non_exhaustive()
    }
}

fn as_text<S: Serializer>(value: &impl Display, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

#[cfg(test)]
mod tests;
