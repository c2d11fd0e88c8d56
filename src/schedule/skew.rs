//! The offset between the clock of the events and ours.
//!
//! An event carries the time of Agora's clock; a page arrives by ours. Four things lie between the
//! last event of a page and the moment when the page was taken: the offset of the clocks, the time
//! an event takes to get into the buffer, the error of our estimate of that moment, and the time
//! the event waited. Only the last one changes from page to page, and it is close to zero where
//! nothing waits. So the smallest difference of the last one to two minutes represents the other
//! three, and any excess over it is the length of the backlog behind a page.
//!
//! The smallest difference is too large by the time that events waited even behind the freshest
//! page. A feed that was never emptied, or whose events are rare, doesn't reveal the offset:
//! [`Skew::calibrated`] says whether there was a page behind which next to nothing waited. A single
//! event with a time far in the future makes every page look old until it is forgotten.
//!
//! Pure: our clock is any count of milliseconds that only grows.

use std::time::Duration;

use crate::model::{PAGE_LIMIT, Timestamp};

/// Minimum time for which a difference is trusted, in milliseconds; the maximum is twice that.
/// Clocks drift.
const SPAN: i64 = 60_000;

/// Rate, in events a second, at which the last event before a request is fresh: 20 ms old on
/// average.
const DENSE: i64 = 50;

/// A page that spans less than this, in milliseconds, is a burst: its density says nothing about
/// the time after it.
const LONGER_THAN_A_BURST: i64 = 40;

/// The offset between our clock and that of an App ID's events.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Skew {
    current: Span,
    before: Span,
    since: i64,
    /// Mean difference of recent pages behind which next to nothing waited. The smallest one alone
    /// would belong to the page whose arrival estimate was furthest off.
    fresh: f64,
}

/// What the pages of a span of time showed.
#[derive(Clone, Copy, Debug, Default)]
struct Span {
    /// Smallest difference, our clock minus theirs, in milliseconds.
    least: Option<i64>,
    /// Whether there was a page behind which next to nothing waited.
    dense: bool,
}

// === impl Skew ===

impl Skew {
    /// Learns from a page: when its request arrived by our clock, how many events it brought, and
    /// the times of the first and the last of them by Agora's clock.
    pub(super) fn observe(
        &mut self,
        arrived: i64,
        events: u64,
        (first, last): (Timestamp, Timestamp),
    ) {
        if self.current.least.is_none() {
            self.since = arrived;
        }
        let age = arrived.saturating_sub(self.since);
        if age > SPAN {
            self.before = if age > 2 * SPAN { Span::default() } else { self.current };
            self.current = Span::default();
            self.since = arrived;
        }
        let difference = arrived.saturating_sub(last.as_millis());
        let least = self.current.least.map_or(difference, |least| least.min(difference));
        self.current.least = Some(least);
        if events < PAGE_LIMIT && is_dense(events, first, last) {
            let weight = if self.calibrated() { 1.0 / 8.0 } else { 1.0 };
            self.fresh += (difference as f64 - self.fresh) * weight;
            self.current.dense = true;
        }
    }

    /// Time between the last event of a page and the arrival of the request that took it, in
    /// seconds, corrected for the clocks. This is the length of the backlog behind the page; a
    /// little below zero if the arrival was estimated too early. `None` if the offset is not known.
    pub(super) fn lag(&self, arrived: i64, last: Timestamp) -> Option<f64> {
        let difference = arrived.saturating_sub(last.as_millis());
        self.calibrated().then(|| (difference as f64 - self.fresh) / 1e3)
    }

    /// Converts a moment of our clock to Agora's: events up to then were in the buffer. `None`
    /// before the first page.
    pub(super) fn at_agora(&self, moment: i64) -> Option<Timestamp> {
        let least = [self.current.least, self.before.least].into_iter().flatten().min()?;
        Some(Timestamp::from_millis(moment.saturating_sub(least)))
    }

    /// Whether the difference is that of the clocks: some feed was emptied in these minutes while
    /// events arrived densely. Otherwise ages are too short by the time that even the freshest
    /// events waited.
    pub(super) fn calibrated(&self) -> bool {
        self.current.dense || self.before.dense
    }
}

fn is_dense(events: u64, first: Timestamp, last: Timestamp) -> bool {
    let took = last.as_millis().saturating_sub(first.as_millis());
    let spacings = i64::try_from(events.saturating_sub(1)).unwrap_or(i64::MAX);
    took >= LONGER_THAN_A_BURST && spacings.saturating_mul(1_000) >= took.saturating_mul(DENSE)
}

/// Converts to the unit of [`Skew`].
pub(super) fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How far our clock is ahead of Agora's in these tests.
    const AHEAD: i64 = -1_700_000_000_000;

    /// A page of this many events within `took`, taken `waited` after the last of them.
    fn observe(skew: &mut Skew, arrived: i64, waited: i64, events: u64, took: i64) {
        let last = arrived - AHEAD - waited;
        let times = (Timestamp::from_millis(last - took), Timestamp::from_millis(last));
        skew.observe(arrived, events, times);
    }

    fn age(skew: &Skew, waited: i64) -> Option<i64> {
        let last = 500_000 - AHEAD - waited;
        Some(skew.at_agora(500_000)?.as_millis() - last)
    }

    #[test]
    fn an_age_is_what_a_page_has_more_than_the_freshest() {
        let mut skew = Skew::default();
        assert_eq!(age(&skew, 0), None);
        for (arrived, waited) in [(0, 70), (100, 20), (50, 90)] {
            observe(&mut skew, arrived, waited, 10, 100);
        }
        assert_eq!(age(&skew, 120), Some(100));
        assert_eq!(age(&skew, 20), Some(0));
        assert_eq!(age(&skew, 5), Some(-15), "fresher than the freshest");
        assert_eq!(skew.at_agora(500), Some(Timestamp::from_millis(480 - AHEAD)));
    }

    #[test]
    fn a_lag_is_measured_from_the_mean_of_the_fresh_pages() {
        let mut skew = Skew::default();
        let lag = |skew: &Skew, waited| {
            skew.lag(500_000, Timestamp::from_millis(500_000 - AHEAD - waited))
        };
        assert_eq!(lag(&skew, 0), None);
        for turn in 0..100 {
            // Arrivals are estimated up to 10 ms too late.
            observe(&mut skew, turn, 10 * (turn % 2), 500, 100);
        }
        observe(&mut skew, 100, 300, 1_000, 100);
        let backlog = lag(&skew, 105).expect("it is calibrated");
        assert!((backlog - 0.1).abs() < 0.003, "{backlog}");
        assert!(lag(&skew, 0).is_some_and(|lag| lag < 0.0), "guessed too early");
    }

    #[test]
    fn a_difference_is_forgotten_after_one_to_two_minutes() {
        for (pages, expected) in [
            (&[(0, 20), (60_000, 70)][..], 20),
            (&[(0, 20), (60_001, 70), (120_001, 80)], 20),
            (&[(0, 20), (60_001, 70), (120_002, 80)], 70),
            (&[(0, 20), (120_001, 70)], 70),
        ] {
            let mut skew = Skew::default();
            for (arrived, waited) in pages {
                observe(&mut skew, *arrived, *waited, 10, 100);
            }
            assert_eq!(age(&skew, 100), Some(100 - expected), "{pages:?}");
        }
    }

    #[test]
    fn only_a_dense_page_that_emptied_its_feed_calibrates() {
        for (events, took, expected) in [
            (999, 100, true),
            (13, 240, true),
            (12, 240, false),
            (1_000, 100, false),
            (990, 39, false),
            (1, 0, false),
            (0, 0, false),
        ] {
            let mut skew = Skew::default();
            observe(&mut skew, 0, 0, events, took);
            assert_eq!(skew.calibrated(), expected, "{events} events in {took} ms");
        }
    }

    #[test]
    fn a_calibration_is_forgotten_with_its_page() {
        let mut skew = Skew::default();
        observe(&mut skew, 0, 0, 500, 100);
        observe(&mut skew, 60_001, 0, 1_000, 100);
        assert!(skew.calibrated());
        observe(&mut skew, 120_002, 0, 1_000, 100);
        assert!(!skew.calibrated());
    }

    #[test]
    fn no_times_make_it_panic() {
        let mut skew = Skew::default();
        let (least, most) = (Timestamp::from_millis(i64::MIN), Timestamp::from_millis(i64::MAX));
        for arrived in [i64::MIN, 0, i64::MAX] {
            skew.observe(arrived, u64::MAX, (least, most));
            skew.observe(arrived, 5, (most, least));
            assert!(skew.at_agora(arrived).is_some());
            assert!(skew.lag(arrived, least).is_none_or(f64::is_finite));
            assert!(skew.lag(arrived, most).is_none_or(f64::is_finite));
        }
    }
}
