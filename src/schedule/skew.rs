//! How the clock of the events relates to ours.
//!
//! An event carries the time of Agora's clock, a page arrives by ours. What lies between the last
//! event of a page and the moment the page was taken is the difference of the clocks, the time that
//! an event needs into the buffer, the error of our estimate of that moment, and the time the event
//! waited. Only the last of them changes from page to page, and where nothing waits it is nearly
//! nothing: so the least difference of the last one to two minutes stands for the other three, and
//! what a page has more than that is the length of the backlog behind it.
//!
//! The least difference is too large by as much as waited even behind the freshest page. A feed
//! that was never emptied, or whose events are rare, does not tell: [`Skew::calibrated`] says
//! whether a page was among them of which it is known that next to nothing waited. One event with a
//! time far in the future makes every page look old until it is forgotten.
//!
//! Pure: our clock is any count of milliseconds that only grows.

use std::time::Duration;

use crate::model::PAGE_LIMIT;
use crate::model::Timestamp;

/// How long a difference is believed at least, in milliseconds; twice that at most. Clocks drift.
const SPAN: i64 = 60_000;

/// Events a second from which on the last one before the request is fresh: 20 ms on the average.
const DENSE: i64 = 50;

/// What is shorter is a burst, in milliseconds: its density says nothing about the time after it.
const LONGER_THAN_A_BURST: i64 = 40;

/// The difference between our clock and that of the events of an App ID.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Skew {
    current: Span,
    before: Span,
    since: i64,
    /// The mean difference of pages behind which next to nothing waited, lately: the least one
    /// alone would be that of the page whose arrival was guessed worst.
    fresh: f64,
}

/// What the pages of a span of time told.
#[derive(Clone, Copy, Debug, Default)]
struct Span {
    /// The least difference, our clock less theirs, in milliseconds.
    least: Option<i64>,
    /// There was a page behind which next to nothing waited.
    dense: bool,
}

// === impl Skew ===

impl Skew {
    /// Takes in a page: when its request arrived by our clock, how many events it brought, and when
    /// the first and the last of them happened by theirs.
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

    /// How long after the last event of a page the request that took it arrived, in seconds, less
    /// what lies between the clocks: the length of the backlog behind the page, a little below zero
    /// where the arrival was guessed too early. `None` where the clocks are not known.
    pub(super) fn lag(&self, arrived: i64, last: Timestamp) -> Option<f64> {
        let difference = arrived.saturating_sub(last.as_millis());
        self.calibrated().then(|| (difference as f64 - self.fresh) / 1e3)
    }

    /// A moment of our clock as the events state it: what happened until then was in the buffer.
    /// `None` before the first page.
    pub(super) fn at_agora(&self, moment: i64) -> Option<Timestamp> {
        let least = [self.current.least, self.before.least].into_iter().flatten().min()?;
        Some(Timestamp::from_millis(moment.saturating_sub(least)))
    }

    /// Whether the difference is that of the clocks: some feed was emptied in these minutes while
    /// events came densely. Otherwise ages are too short by what waited always.
    pub(super) fn calibrated(&self) -> bool {
        self.current.dense || self.before.dense
    }
}

fn is_dense(events: u64, first: Timestamp, last: Timestamp) -> bool {
    let took = last.as_millis().saturating_sub(first.as_millis());
    let spacings = i64::try_from(events.saturating_sub(1)).unwrap_or(i64::MAX);
    took >= LONGER_THAN_A_BURST && spacings.saturating_mul(1_000) >= took.saturating_mul(DENSE)
}

/// What a [`Skew`] counts in.
pub(super) fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What our clock is ahead of theirs in these tests.
    const AHEAD: i64 = -1_700_000_000_000;

    /// A page of so many events within `took`, taken `waited` after the last of them.
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
            // Arrivals are guessed up to 10 ms too late.
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
