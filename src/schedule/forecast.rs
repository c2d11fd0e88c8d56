//! How many events a feed holds, and how many it will hold when a request gets there.
//!
//! Agora reports neither. We learn it from the pages: how many events each held, whether it was
//! full, how long after the previous request it was requested, and the timestamps of its events.
//! From these follow a rate (a mean that quickly accepts a change too large for chance), the level
//! behind the last page, and the recent error of such forecasts.
//!
//! * A page that is not full emptied the buffer: the level is known exactly.
//! * Behind a full page wait the events that happened since its last one. The timestamps show how
//!   long ago that was ([`Skew`]). Where they don't (or where a burst may lie within a single
//!   millisecond), the level is taken to be another full page: the feed is then *unsure*, and
//!   polled immediately.
//!
//! Which loads the forecast can follow, and which nothing could:
//!
//! * It follows a load that changes over seconds: each page corrects the rate, and a change too
//!   large for chance corrects it within a page or two. Over a round trip of 300 ms a feed may grow
//!   by 1,500 events a second each second up to the ceiling; at 1,900 it overflows before the
//!   growth is known.
//! * A burst fits if it and the events gathered since the last request stay within the buffer's
//!   2,000 events. A second burst on the same feed is saved if it comes later than the shortest
//!   interval plus a round trip; if it comes sooner, the two together must stay within 2,000 plus
//!   what a page took in between.
//! * A feed that had a burst of more than [`BURST`] events is polled at the shortest interval until
//!   that memory has faded ([`HALF_LIFE`]: three minutes for a burst of 2,000). A feed without such
//!   a memory may be polled only every longest interval. The first burst of a quiet feed can't be
//!   foreseen, nor can a jump from idle to more than 2,000 events within that interval.
//!
//! The cost: a feed that is active, or had a burst recently, takes four requests a second at a
//! shortest interval of 250 ms; an idle feed takes two at a longest interval of 500 ms. Halving an
//! interval doubles that, and halves how long a burst waits or how large a jump from idle may be.
//! Both give way when need takes the budget.

use std::time::Duration;

use tokio::time::Instant;

use super::Seen;
use super::skew::{Skew, millis};
use crate::model::{BUFFER_LIMIT, PAGE_LIMIT, Pace};

/// Number of events between two requests, beyond what the rate explains, that make a burst.
const BURST: f64 = 250.0;

/// Time in which a remembered burst loses half of its height.
const HALF_LIFE: Duration = Duration::from_secs(60);

/// The rate is a mean over about this time …
const STEADY: Duration = Duration::from_millis(700);

/// … but over at least this many events, where that takes longer …
const EVENTS_FOR_A_MEAN: f64 = 100.0;

/// … and over at most this time.
const LONGEST_MEAN: Duration = Duration::from_secs(30);

/// Time for which a trend is assumed to continue.
const FORESEEN: Duration = Duration::from_millis(600);

/// The rate has grown if it is above a mean over about this time …
const USUAL: Duration = Duration::from_secs(1);

/// … and may keep growing by this multiple of that growth.
const SURGE: f64 = 3.0;

/// A change too large for chance is accepted within about this time.
const SURPRISED: Duration = Duration::from_millis(300);

/// A deviation of more than this many times what chance explains is a surprise.
const CHANCE: f64 = 3.0;

/// A full page whose first and last events are this far apart is enough to measure a rate.
const TELLING_SPAN: Duration = Duration::from_millis(50);

/// A page overrides the mean if its events are this many times denser.
const DENSER: f64 = 1.3;

/// The last event of a page that emptied its feed happened at most this long before the request
/// arrived.
const PROMPT: Duration = Duration::from_millis(20);

/// Maximum error of an arrival that is estimated too early.
const EARLY: Duration = Duration::from_millis(100);

/// Maximum plausible rate, in events a second: ten full pages.
const FASTEST: f64 = 10_000.0;

/// Forecast error, in events, before any forecast was checked.
const FIRST_ERROR: f64 = 60.0;

/// Longer than any time that is planned for.
const LONG: Duration = Duration::from_secs(3_600);

/// What is known about a feed's events.
#[derive(Debug)]
pub(super) struct Forecast {
    /// Events a second, as of the last measurement …
    rate: f64,
    /// … and the change in that per second.
    trend: f64,
    /// Events a second, over a longer time.
    usual: f64,
    /// Arrival of the last request that found a burst.
    burst_found: Option<Instant>,
    /// The largest burst, in events, and when it was found; fades.
    burst: (f64, Instant),
    /// What the last page left behind; `None` before the first page.
    left: Option<Left>,
    /// Start of the current rate measurement: when, at which level, and how many events were taken
    /// since.
    measured: Option<(Instant, f64, u64)>,
    /// Mean square of the forecast errors.
    error: f64,
    skew: Skew,
    /// Origin of the times given to `skew`.
    origin: Instant,
}

/// What a page left behind in the buffer.
#[derive(Clone, Copy, Debug)]
struct Left {
    /// When the level is known …
    at: Instant,
    /// … and when the request arrived that took everything older.
    arrived: Instant,
    events: f64,
    sure: bool,
}

/// A page, with what is known about its request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Observation {
    /// When the request arrived, as far as that is known.
    pub(super) arrived: Instant,
    /// What the page showed.
    pub(super) seen: Seen,
    /// The level that the request was expected to find.
    pub(super) expected: Option<f64>,
    /// An earlier request has no answer yet, so the events it took are missing from the sum.
    pub(super) overtook: bool,
}

// === impl Forecast ===

impl Forecast {
    /// Starts with what a previous process knew `age` ago.
    pub(super) fn new(now: Instant, known: Option<(Pace, Duration)>) -> Self {
        let (rate, burst) = known.map_or((0.0, 0.0), |(pace, age)| {
            (pace.events_per_second * faded(age / 10), pace.burst * faded(age))
        });
        Self {
            rate,
            trend: 0.0,
            usual: rate,
            burst_found: None,
            burst: (burst, now),
            left: None,
            measured: None,
            error: FIRST_ERROR * FIRST_ERROR,
            skew: Skew::default(),
            origin: now,
        }
    }

    /// What the next process should know.
    pub(super) fn pace(&self, now: Instant) -> Pace {
        Pace { events_per_second: self.rate, burst: self.burst_at(now) }
    }

    /// Events a second.
    pub(super) fn rate(&self) -> f64 {
        self.rate
    }

    /// Arrival of the last request that found a burst.
    pub(super) fn burst_found(&self) -> Option<Instant> {
        self.burst_found
    }

    /// How much the rate grew recently beyond chance, in events a second.
    pub(super) fn surge(&self) -> f64 {
        let grown = self.rate - self.usual;
        if grown > CHANCE * self.rate.sqrt() { grown } else { 0.0 }
    }

    /// The rate that the feed may have soon, in events a second, if recent growth continues.
    pub(super) fn soon(&self) -> f64 {
        (self.rate + SURGE * self.surge()).min(FASTEST)
    }

    /// Whether another full page may wait behind the last one.
    pub(super) fn is_unsure(&self) -> bool {
        self.left.is_some_and(|left| !left.sure)
    }

    /// Whether a burst came recently.
    pub(super) fn bursts(&self, now: Instant) -> bool {
        self.burst_at(now) >= BURST
    }

    /// Usual recent forecast error, in events.
    pub(super) fn error(&self) -> f64 {
        self.error.sqrt()
    }

    /// The level that a request arriving at `at` finds; `takes` are the arrivals of the in-flight
    /// requests, in order. `None` before the first page.
    pub(super) fn level(&self, at: Instant, takes: impl Iterator<Item = Instant>) -> Option<f64> {
        let left = self.after(takes.take_while(|take| *take < at))?;
        Some(self.grown(left, at))
    }

    /// When the feed reaches this many events after the last of `takes`.
    pub(super) fn reaches(
        &self,
        events: f64,
        takes: impl Iterator<Item = Instant>,
    ) -> Option<Instant> {
        let last = self.left?.at;
        let left = self.after(takes)?;
        let about = gathering(events - left.events, self.rate).min(FORESEEN);
        let rate = self.rate_at(left.at.saturating_duration_since(last) + about / 2);
        Some(left.at + gathering(events - left.events, rate))
    }

    /// Learns from a page.
    pub(super) fn observe(&mut self, page: Observation) {
        let Observation { arrived, seen, expected, overtook } = page;
        if let Some(times) = seen.times {
            self.skew.observe(self.millis(arrived), seen.events, times);
        }
        if self.left.is_some_and(|left| left.arrived >= arrived) {
            // A later request was answered sooner and knows more.
            self.count(seen.events);
            return;
        }
        let left = self.behind(arrived, seen);
        if let (Some(expected), true) = (expected, left.sure) {
            let found = seen.events as f64 + self.grown(left, arrived);
            let error = expected - found.min(BUFFER_LIMIT as f64);
            self.error += (error * error - self.error) / 16.0;
        }
        self.left = Some(left);
        self.count(seen.events);
        if !overtook {
            self.measure(left);
        }
        if !left.sure {
            self.believe_the_page(seen);
        }
    }

    /// What the last page left, with growth added and the requests in `takes` subtracted.
    fn after(&self, takes: impl Iterator<Item = Instant>) -> Option<Left> {
        let left = self.left?;
        Some(takes.filter(|take| *take > left.arrived).fold(left, |left, take| {
            let events = (self.grown(left, take) - PAGE_LIMIT as f64).max(0.0);
            Left { at: take, events, ..left }
        }))
    }

    /// The level at a moment after `left`.
    fn grown(&self, left: Left, at: Instant) -> f64 {
        let since = self.left.map_or(left.at, |last| last.at);
        let elapsed = at.saturating_duration_since(left.at);
        let middle = left.at.saturating_duration_since(since) + elapsed / 2;
        let gathered = elapsed.as_secs_f64() * self.rate_at(middle);
        (left.events + gathered).min(BUFFER_LIMIT as f64)
    }

    /// The rate this long after the last page.
    fn rate_at(&self, later: Duration) -> f64 {
        (self.rate + self.trend * later.min(FORESEEN).as_secs_f64()).clamp(0.0, FASTEST)
    }

    /// What a page left behind.
    fn behind(&self, arrived: Instant, seen: Seen) -> Left {
        let page = PAGE_LIMIT as f64;
        let full = seen.events >= PAGE_LIMIT;
        let lag = seen.times.and_then(|(_, last)| self.skew.lag(self.millis(arrived), last));
        let Some(lag) = lag else {
            let events = if full { page } else { 0.0 };
            return Left { at: arrived, arrived, events, sure: !full };
        };
        // An event from the future, or a clock that jumped, says nothing about the level.
        let lag = lag.max(-EARLY.as_secs_f64());
        let span = seen.times.map_or(Duration::ZERO, |(first, last)| last.since(first));
        let of_page = seen.events as f64 / span.as_secs_f64();
        if full && of_page > DENSER * self.rate {
            // A burst, or the first sign of a higher rate: the page overrides the mean.
            let events = of_page * lag.max(0.0);
            return Left { at: arrived, arrived, events: events.min(page), sure: events < page };
        }
        // Everything up to the last event was taken, and its time is known better than the arrival.
        let longest = if full { page / self.rate } else { PROMPT.as_secs_f64() };
        match lag > longest {
            true if full => Left { at: arrived, arrived, events: page, sure: false },
            true => Left { at: arrived, arrived, events: 0.0, sure: true },
            false => Left { at: shifted(arrived, -lag), arrived, events: 0.0, sure: true },
        }
    }

    /// A full page that spans more than an instant is enough to measure a rate.
    fn believe_the_page(&mut self, seen: Seen) {
        let span = seen.times.map_or(Duration::ZERO, |(first, last)| last.since(first));
        if span >= TELLING_SPAN {
            let of_page = PAGE_LIMIT as f64 / span.as_secs_f64();
            self.rate = self.rate.max(of_page.min(FASTEST));
        }
    }

    fn count(&mut self, events: u64) {
        if let Some((_, _, taken)) = &mut self.measured {
            *taken += events;
        }
    }

    fn measure(&mut self, left: Left) {
        let Some((since, level, taken)) = self.measured else {
            self.measured = left.sure.then_some((left.at, left.events, 0));
            return;
        };
        let elapsed = left.at.saturating_duration_since(since);
        if elapsed.is_zero() {
            return;
        }
        let gathered = (taken as f64 + left.events - level).max(0.0);
        let seconds = elapsed.as_secs_f64();
        let explained = (self.rate + self.trend * seconds.min(1.0) / 2.0).max(0.0) * seconds;
        if left.sure {
            self.measured = Some((left.at, left.events, 0));
        } else if gathered <= explained {
            // What waits behind an unsure page is a guess: it can't prove a lower rate.
            return;
        }
        let excess = gathered - explained;
        let chance = CHANCE * (explained.sqrt() + 2.0);
        // A load that takes a second or more to grow doesn't double within a page.
        if excess > explained.max(2.0 * BURST) {
            self.burst_found = Some(left.arrived);
        }
        if excess > chance.max(BURST) && excess > self.burst_at(left.at) {
            self.burst = (excess, left.at);
        }
        let surprise = excess.abs() > chance;
        let weight = |mean: Duration| 1.0 - (-seconds / mean.as_secs_f64()).exp();
        let (usual, error) = (weight(self.mean()), excess / seconds);
        let believed = if surprise { weight(SURPRISED) } else { usual };
        self.rate += self.trend * seconds.min(1.0) + believed * error;
        self.rate = self.rate.clamp(0.0, FASTEST);
        self.usual += weight(USUAL) * (self.rate - self.usual);
        self.trend = match excess.abs() > chance.max(BURST) {
            true => 0.0,
            // Critically damped, as an alpha-beta filter should be.
            false => self.trend + usual * usual / (2.0 - usual) * error / seconds,
        };
    }

    /// The time over which the rate is a mean.
    fn mean(&self) -> Duration {
        gathering(EVENTS_FOR_A_MEAN, self.rate).clamp(STEADY, LONGEST_MEAN)
    }

    fn burst_at(&self, now: Instant) -> f64 {
        let (burst, at) = self.burst;
        burst * faded(now.saturating_duration_since(at))
    }

    fn millis(&self, at: Instant) -> i64 {
        millis(at.saturating_duration_since(self.origin))
    }
}

/// How much is left of a memory of this age.
fn faded(age: Duration) -> f64 {
    0.5_f64.powf(age.as_secs_f64() / HALF_LIFE.as_secs_f64())
}

/// How long this many events take, at most an hour.
pub(super) fn gathering(events: f64, rate: f64) -> Duration {
    if events <= 0.0 {
        return Duration::ZERO;
    }
    if rate <= 0.0 {
        return LONG;
    }
    Duration::try_from_secs_f64(events / rate).unwrap_or(LONG).min(LONG)
}

fn shifted(at: Instant, seconds: f64) -> Instant {
    let by = Duration::try_from_secs_f64(seconds.abs()).unwrap_or_default();
    let earlier = || at.checked_sub(by).unwrap_or(at);
    if seconds < 0.0 { earlier() } else { at + by }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Timestamp;

    /// Polls every 250 ms. The time of the last event is off by this much in the 100th page, or in
    /// all pages from then on.
    fn rate_after(off: i64, from_then_on: bool) -> f64 {
        let start = Instant::now();
        let mut forecast = Forecast::new(start, None);
        for page in 1_u32..300 {
            let last = 1_700_000_000_000 + 250 * i64::from(page);
            let events = if page < 200 { 250 } else { 750 };
            let off = if page == 100 || page > 100 && from_then_on { off } else { 0 };
            let [first, last] = [last - 250, last + off].map(Timestamp::from_millis);
            let seen = Seen { events, times: Some((first, last)), torn: false };
            let arrived = start + Duration::from_millis(250) * page;
            forecast.observe(Observation { arrived, seen, expected: None, overtook: false });
        }
        forecast.rate()
    }

    #[test]
    fn no_time_in_an_event_stops_the_measuring() {
        for off in [0, 3_600_000, -3_600_000] {
            for from_then_on in [false, true] {
                let rate = rate_after(off, from_then_on);
                assert!((2_800.0..3_200.0).contains(&rate), "{off} {from_then_on}: {rate}");
            }
        }
    }
}
