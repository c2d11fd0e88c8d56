//! How far the clocks of Agora's hosts are from ours, by the `Date` header of their answers.
//!
//! A `Date` has a resolution of one second, and any single one may be wrong: it may come from a
//! cache or from an unmaintained machine behind a load balancer. So the difference is the median of
//! the latest [`SAMPLES`], taken a second apart: a wrong result takes several seconds in which most
//! answers are wrong by the same amount. If our wall clock jumps relative to the monotonic one (it
//! was set, or the machine slept), all samples are obsolete and discarded.
//!
//! Tokens are issued by Agora's clock, and times that are compared with those of events are stated
//! in it. A difference of at most [`NOTHING`] is ignored: the bounds of gaps allow for it anyway.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::agora::Moment;
use crate::model::Timestamp;

/// Number of samples per host; odd, so that there is a middle one.
const SAMPLES: usize = 9;

/// Number of samples from which a difference is trusted enough to be reported.
const TRUSTED: usize = 3;

/// Interval between samples, once there are [`TRUSTED`].
const APART: Duration = Duration::from_secs(1);

/// Milliseconds by which our wall clock and the monotonic one may drift apart between two samples;
/// more is a jump.
const JUMP: i64 = 1_000;

/// Milliseconds within which a difference counts as none: the resolution of `Date` and the network
/// delay.
const NOTHING: i64 = 2_500;

/// Milliseconds of difference from which a warning is logged …
const TOO_FAR: i64 = 60_000;

/// … until it drops below this again.
const NEAR_AGAIN: i64 = 50_000;

/// The clocks of all hosts. Cheap to clone; clones share.
#[derive(Clone, Debug, Default)]
pub struct Clocks(Arc<Mutex<BTreeMap<String, HostClock>>>);

/// One of Agora's hosts.
#[derive(Debug, Default)]
struct HostClock {
    /// Its clock minus ours, in milliseconds.
    samples: VecDeque<i64>,
    seen: Option<Moment>,
    sampled_at: Option<Instant>,
    told: bool,
}

// === impl Clocks ===

impl Clocks {
    /// Records what a host's clock showed when ours showed `now`.
    pub(super) fn observe(&self, host: &str, date: Timestamp, now: Moment) {
        let mut hosts = self.lock();
        if !hosts.contains_key(host) {
            hosts.insert(host.to_owned(), HostClock::default());
        }
        let told = hosts.get_mut(host).and_then(|it| it.observe(date, now));
        drop(hosts);
        let seconds = |difference: i64| difference / 1_000;
        match told {
            Some((true, difference)) => warn!(
                host,
                seconds = seconds(difference),
                "Agora's clock and ours are far apart: correct the clock of this machine (NTP)"
            ),
            Some((false, difference)) => {
                info!(host, seconds = seconds(difference), "Agora's clock and ours agree again");
            }
            None => {}
        }
    }

    /// Converts a time of our clock to the host's, as far as the difference is known.
    pub(super) fn by_host(&self, host: &str, ours: Timestamp) -> Timestamp {
        let difference = self.difference(host);
        Timestamp::from_millis(ours.as_millis().saturating_add(difference))
    }

    /// Converts a time of the host's clock to ours.
    pub(super) fn by_us(&self, host: &str, theirs: Timestamp) -> Timestamp {
        let difference = self.difference(host);
        Timestamp::from_millis(theirs.as_millis().saturating_sub(difference))
    }

    fn difference(&self, host: &str) -> i64 {
        self.lock().get(host).map_or(0, HostClock::difference)
    }

    /// Seconds by which each host is ahead of us, where that is known.
    pub fn snapshot(&self) -> BTreeMap<String, f64> {
        let hosts = self.lock();
        let known = hosts.iter().filter(|(_, it)| it.is_trusted());
        known.map(|(host, it)| (host.clone(), it.median() as f64 / 1_000.0)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, HostClock>> {
        // The map is consistent after every step, even one that panicked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Collector for Clocks {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let name = "agora_clock_ahead_seconds";
        let help = "How far the clock of an Agora host is ahead of ours.";
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (host, seconds) in self.snapshot() {
            ConstGauge::new(seconds).encode(family.encode_family(&[("host", host.as_str())])?)?;
        }
        Ok(())
    }
}

// === impl Host ===

impl HostClock {
    /// Returns whether the clocks are too far apart, and by how much, when that changes.
    fn observe(&mut self, date: Timestamp, now: Moment) -> Option<(bool, i64)> {
        if self.seen.replace(now).is_some_and(|before| jumped(before, now)) {
            self.samples.clear();
        }
        let soon = self.sampled_at.is_some_and(|at| now.monotonic < at + APART);
        if soon && self.is_trusted() {
            return None;
        }
        self.sampled_at = Some(now.monotonic);
        // The middle of the second that it names.
        let date = date.as_millis().saturating_add(500);
        self.samples.push_back(date.saturating_sub(now.wall.as_millis()));
        while self.samples.len() > SAMPLES {
            self.samples.pop_front();
        }
        let far = self.median().saturating_abs();
        let tells = match self.told {
            false => self.is_trusted() && far > TOO_FAR,
            true => !(self.is_trusted() && far < NEAR_AGAIN),
        };
        (tells != self.told).then(|| {
            self.told = tells;
            (tells, self.median())
        })
    }

    fn is_trusted(&self) -> bool {
        self.samples.len() >= TRUSTED
    }

    /// The difference to apply. Even a single sample after a jump counts: it is more likely to be
    /// right than assuming none, and the next ones correct it.
    fn difference(&self) -> i64 {
        let median = self.median();
        if median.saturating_abs() <= NOTHING { 0 } else { median }
    }

    /// The median; with an even number of samples, the smaller difference of the middle two.
    fn median(&self) -> i64 {
        let mut sorted: Vec<i64> = self.samples.iter().copied().collect();
        sorted.sort_unstable();
        let Some(last) = sorted.len().checked_sub(1) else { return 0 };
        let middle = sorted.get(last / 2..=last.div_ceil(2)).unwrap_or_default();
        middle.iter().copied().min_by_key(|it| it.saturating_abs()).unwrap_or(0)
    }
}

/// Whether the wall clock moved differently from the monotonic one.
fn jumped(before: Moment, now: Moment) -> bool {
    let monotonic = now.monotonic.saturating_duration_since(before.monotonic);
    let monotonic = i64::try_from(monotonic.as_millis()).unwrap_or(i64::MAX);
    let wall = now.wall.as_millis().saturating_sub(before.wall.as_millis());
    wall.saturating_sub(monotonic).saturating_abs() > JUMP
}

/// The scheme and host of a URL, as configured.
pub(super) fn host_of(url: &str) -> &str {
    let behind_scheme = url.find("://").map_or(0, |at| at + 3);
    let end = url.get(behind_scheme..).and_then(|rest| rest.find('/'));
    end.and_then(|end| url.get(..behind_scheme + end)).unwrap_or(url)
}

#[cfg(test)]
mod tests;
