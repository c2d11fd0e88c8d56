//! The counts of one trial, or of many.

use std::time::Duration;

use crate::simulator::{Counts, Requests};

/// The outcome of events and requests.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Events of both feeds, from the start of the load.
    pub events: Counts,
    /// Requests, as counted by the server.
    pub requests: Requests,
    /// Events that arrived in an answer after newer events of their feed: a bridge has to put them
    /// back in order.
    pub out_of_order: u64,
    /// Ages of the measured events when their answer arrived.
    pub ages: Ages,
    /// Requests that arrived during the measurement.
    pub measured_requests: u64,
    /// Events that happened during the measurement.
    pub measured_events: u64,
    /// Events that were overwritten during the measurement.
    pub measured_overwritten: u64,
    /// Duration of the measurement.
    pub measured: Duration,
}

/// Distribution of the events' ages, in milliseconds.
#[derive(Clone, Debug, Default)]
pub struct Ages {
    /// Number of events by age in milliseconds.
    counts: Vec<u64>,
    total: u64,
}

// === impl Tally ===

impl Tally {
    /// The share of the measured events that were overwritten.
    pub fn measured_loss(&self) -> f64 {
        share(self.measured_overwritten, self.measured_events)
    }

    /// Mean number of requests per second that arrived during the measurement.
    pub fn requests_per_second(&self) -> f64 {
        self.measured_requests as f64 / self.measured.as_secs_f64().max(f64::MIN_POSITIVE)
    }

    /// Adds the counts of another one.
    pub fn add(&mut self, other: &Self) {
        self.events = self.events.plus(other.events);
        self.requests.asked += other.requests.asked;
        self.requests.over_limit += other.requests.over_limit;
        let most = &mut self.requests.most_in_a_second;
        *most = (*most).max(other.requests.most_in_a_second);
        self.out_of_order += other.out_of_order;
        self.ages.add(&other.ages);
        self.measured_requests += other.measured_requests;
        self.measured_events += other.measured_events;
        self.measured_overwritten += other.measured_overwritten;
        self.measured += other.measured;
    }
}

// === impl Ages ===

impl Ages {
    /// Adds one event of this age.
    pub fn note(&mut self, age: Duration) {
        let millis = usize::try_from(age.as_millis()).unwrap_or(usize::MAX).min(LONGEST);
        if millis >= self.counts.len() {
            self.counts.resize(millis + 1, 0);
        }
        if let Some(count) = self.counts.get_mut(millis) {
            *count += 1;
        }
        self.total += 1;
    }

    /// The age that this share of the events did not exceed; `None` if there were none.
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let wanted = (share * self.total as f64).max(1.0);
        let mut seen = 0;
        for (millis, count) in (0..).zip(&self.counts) {
            seen += count;
            if seen as f64 >= wanted {
                return Some(Duration::from_millis(millis));
            }
        }
        None
    }

    fn add(&mut self, other: &Self) {
        if self.counts.len() < other.counts.len() {
            self.counts.resize(other.counts.len(), 0);
        }
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
        self.total += other.total;
    }
}

/// Older events count as ten minutes old.
const LONGEST: usize = 600_000;

fn share(part: u64, whole: u64) -> f64 {
    part as f64 / whole.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_the_age_that_so_many_did_not_exceed() {
        let mut ages = Ages::default();
        assert_eq!(ages.quantile(0.5), None);
        for millis in 1..=100 {
            ages.note(Duration::from_millis(millis));
        }
        for (share, millis) in [(0.0, 1), (0.5, 50), (0.99, 99), (1.0, 100)] {
            assert_eq!(ages.quantile(share), Some(Duration::from_millis(millis)), "{share}");
        }
    }
}
