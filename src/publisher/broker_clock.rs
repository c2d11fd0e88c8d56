//! How far the brokers' clock and ours are apart, by the times at which pages were appended.
//!
//! A page that was waited for was appended a moment ago, so its time is what the brokers' clock
//! shows now. A single one may be wrong: a broker that hung tells late. So the difference is the
//! median of the latest [`SAMPLES`], taken a second apart. A clock that was set shows within three.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::kafka::BrokerTime;
use crate::model::Timestamp;

/// An odd number has a middle.
const SAMPLES: usize = 5;

/// So many samples are believed.
const TRUSTED: usize = 3;

/// Samples are taken no closer together than this.
const APART: Duration = Duration::from_secs(1);

/// A difference in milliseconds beyond which a person is needed …
const TOO_FAR: i64 = 60_000;

/// … until it is less than this again.
const NEAR_AGAIN: i64 = 50_000;

/// The brokers' clock, as all partitions together see it. Cheap to clone; clones share.
#[derive(Clone, Debug, Default)]
pub struct BrokerClock(Arc<Mutex<Observed>>);

#[derive(Debug, Default)]
struct Observed {
    /// The brokers' clock less ours, in milliseconds.
    samples: VecDeque<i64>,
    sampled_at: Option<Instant>,
    /// It was logged that the clocks are far apart.
    told: bool,
}

// === impl BrokerClock ===

impl BrokerClock {
    /// Notes that a page was appended just now.
    pub(super) fn observe(&self, appended: Timestamp, ours: Timestamp) {
        let told = self.lock().observe(appended, ours);
        match told {
            Some((true, difference)) => warn!(
                seconds = difference / 1_000,
                "Kafka's clock and ours are far apart: correct the clock of this machine (NTP); \
                 records are stamped by Kafka's clock meanwhile"
            ),
            Some((false, difference)) => {
                info!(seconds = difference / 1_000, "Kafka's clock and ours agree again");
            }
            None => {}
        }
    }

    /// What the brokers' clock shows, for a page that was appended then, when ours shows `ours`.
    pub(super) fn time(&self, appended: Option<Timestamp>, ours: Timestamp) -> BrokerTime {
        let difference = self.lock().difference().unwrap_or(0);
        let now = Timestamp::from_millis(ours.as_millis().saturating_add(difference));
        BrokerTime { appended, now: appended.map_or(now, |appended| now.max(appended)) }
    }

    fn lock(&self) -> MutexGuard<'_, Observed> {
        // It is whole after every step, also after one that panicked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Collector for BrokerClock {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let name = "kafka_clock_ahead_seconds";
        let help = "By how much the brokers' clock is ahead of ours.";
        let metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        match self.lock().difference() {
            Some(difference) => ConstGauge::new(difference as f64 / 1_000.0).encode(metric),
            // No series before it is known.
            None => Ok(()),
        }
    }
}

// === impl Seen ===

impl Observed {
    /// Whether the clocks begin or cease to be too far apart, and by how much.
    fn observe(&mut self, appended: Timestamp, ours: Timestamp) -> Option<(bool, i64)> {
        let now = Instant::now();
        if self.sampled_at.is_some_and(|at| now < at + APART) {
            return None;
        }
        self.sampled_at = Some(now);
        self.samples.push_back(appended.as_millis().saturating_sub(ours.as_millis()));
        while self.samples.len() > SAMPLES {
            self.samples.pop_front();
        }
        let difference = self.difference()?;
        let far = difference.saturating_abs();
        let tells = if self.told { far >= NEAR_AGAIN } else { far > TOO_FAR };
        (tells != self.told).then(|| {
            self.told = tells;
            (tells, difference)
        })
    }

    /// The middle of the samples, once they are believed.
    fn difference(&self) -> Option<i64> {
        if self.samples.len() < TRUSTED {
            return None;
        }
        let mut sorted: Vec<i64> = self.samples.iter().copied().collect();
        sorted.sort_unstable();
        sorted.get(sorted.len() / 2).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3_600_000;

    async fn observed(clock: &BrokerClock, ahead: &[i64]) -> Vec<Option<(bool, i64)>> {
        let mut told = Vec::new();
        for ahead in ahead {
            tokio::time::sleep(APART).await;
            let ours = Timestamp::from_millis(1_700_000_000_000);
            let appended = Timestamp::from_millis(ours.as_millis() + ahead);
            told.push(clock.lock().observe(appended, ours));
        }
        told
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_is_hours_off_is_told_once_and_so_is_its_end() {
        let clock = BrokerClock::default();
        let far = [-8 * HOUR; 4];
        let told = observed(&clock, &far).await;
        assert_eq!(told, [None, None, Some((true, -8 * HOUR)), None]);
        let ours = Timestamp::from_millis(1_700_000_000_000);
        assert_eq!(clock.time(None, ours).now, ours.before(Duration::from_secs(8 * 3_600)));
        assert_eq!(observed(&clock, &[0, 0, 0]).await, [None, None, Some((false, 0))]);
        assert_eq!(clock.time(None, ours).now, ours);
    }

    #[tokio::test(start_paused = true)]
    async fn a_broker_that_hung_tells_nothing() {
        let clock = BrokerClock::default();
        assert_eq!(observed(&clock, &[-3, -5 * HOUR, -2, -5 * HOUR, -4]).await, [None; 5]);
    }

    #[test]
    fn a_page_was_appended_in_the_past_whatever_our_clock_says() {
        let (early, late) = (Timestamp::from_millis(5), Timestamp::from_millis(9));
        let clock = BrokerClock::default();
        let of = |appended, ours| clock.time(Some(appended), ours).now;
        assert_eq!((of(late, early), of(early, late)), (late, late));
    }
}
