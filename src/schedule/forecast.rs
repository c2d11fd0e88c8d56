//! How much a feed holds, and will hold when a request gets there.
//!
//! Agora tells neither. What is known comes from the pages: how many events each held, whether it
//! was full, how long after the one before it was asked for, and the times that stand in its events.
//! From these follow a rate (a mean that is quick to believe what can't be chance), the level behind
//! the last page, and by how much such forecasts were wrong lately.
//!
//! * A page that is not full left nothing behind: the level is known exactly.
//! * Behind a full page wait the events that happened since its last one. How long ago that was, the
//!   times tell ([`Skew`]); where they can't (or where a burst may stand in a single millisecond),
//!   the level is taken for another whole page: then the feed is *unsure*, and asked at once.
//!
//! What can be followed, and what nobody could:
//!
//! * A load that changes over seconds is followed: each page corrects the rate, and one that can't be
//!   chance corrects it within a page or two. Over a round trip of 300 ms a feed may grow by 1,500
//!   events a second each second up to the ceiling; by 1,900 it runs over before that is known.
//! * A burst fits while it and what has gathered since the last request stay within the 2,000
//!   events of the buffer. A second one on the same feed is saved if it comes later than the
//!   shortest interval plus a round trip; sooner, if the two together stay within 2,000 and what a
//!   page took in between.
//! * A feed that has brought a burst of more than [`BURST`] events is asked at the shortest interval
//!   until the memory of it has faded ([`HALF_LIFE`]: a burst of 2,000 for three minutes); a feed
//!   without such a memory may be asked only every longest interval. Nobody can foresee the first
//!   burst of a quiet feed, nor a jump from rest to more than 2,000 events within that interval.
//!
//! What that costs: a feed in which something happens, or that has burst lately, four requests a second
//! at a shortest interval of 250 ms; a feed at rest two requests a second at a longest interval of
//! 500 ms. Halving an interval doubles that, and halves how long a burst waits or what a jump from rest may
//! bring. Where need takes the budget, both give way.

use std::time::Duration;

use tokio::time::Instant;

use super::Seen;
use super::skew::Skew;
use super::skew::millis;
use crate::model::BUFFER_LIMIT;
use crate::model::PAGE_LIMIT;
use crate::model::Pace;

/// So many events more than the rate explains, between two requests, are a burst.
const BURST: f64 = 250.0;

/// The time in which the memory of a burst loses half of its height.
const HALF_LIFE: Duration = Duration::from_secs(60);

/// The rate is a mean over about so long …
const STEADY: Duration = Duration::from_millis(700);

/// … but over so many events at least, where that takes longer …
const EVENTS_FOR_A_MEAN: f64 = 100.0;

/// … and over so long at most.
const LONGEST_MEAN: Duration = Duration::from_secs(30);

/// A trend is believed to go on for so long.
const FORESEEN: Duration = Duration::from_millis(600);

/// The rate has grown where it is above a mean over about so long …
const USUAL: Duration = Duration::from_secs(1);

/// … and may go on to grow by so many times as much.
const SURGE: f64 = 3.0;

/// What can't be chance is believed within about so long.
const SURPRISED: Duration = Duration::from_millis(300);

/// A surprise is more than so many times what chance does.
const CHANCE: f64 = 3.0;

/// A full page whose events lie so far apart tells a rate by itself.
const TELLING_SPAN: Duration = Duration::from_millis(50);

/// A page is believed more than the mean where its events are so many times denser.
const DENSER: f64 = 1.3;

/// The last event of a page that emptied its feed happened just before the request arrived.
const PROMPT: Duration = Duration::from_millis(20);

/// An arrival is guessed too early by no more than this.
const EARLY: Duration = Duration::from_millis(100);

/// The fastest that is believed, in events a second: ten full pages.
const FASTEST: f64 = 10_000.0;

/// The error of forecasts before any was checked, in events.
const FIRST_ERROR: f64 = 60.0;

/// A longer time than anybody plans for.
const LONG: Duration = Duration::from_secs(3_600);

/// What is known of a feed's events.
#[derive(Debug)]
pub(super) struct Forecast {
    /// Events a second, as of the last measurement …
    rate: f64,
    /// … and by how much that changes in a second.
    trend: f64,
    /// Events a second, over a longer time.
    usual: f64,
    /// When a request arrived that found a burst, the last time.
    burst_found: Option<Instant>,
    /// The largest burst, in events, as of then.
    burst: (f64, Instant),
    /// What the last page left behind; `None` before the first.
    left: Option<Left>,
    /// Since when the rate is being measured: when, at which level, and what was taken since.
    measured: Option<(Instant, f64, u64)>,
    /// The mean square of the errors of forecasts.
    error: f64,
    skew: Skew,
    /// The zero of the times that `skew` is given.
    origin: Instant,
}

/// What a page left behind in the buffer.
#[derive(Clone, Copy, Debug)]
struct Left {
    /// Its level is known as of then …
    at: Instant,
    /// … and all that was in the buffer until then was taken by a request that arrived then.
    arrived: Instant,
    events: f64,
    sure: bool,
}

/// A page, with what is known of its request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Observation {
    /// When the request arrived, as far as that can be told.
    pub(super) arrived: Instant,
    /// What the page told.
    pub(super) seen: Seen,
    /// What it was expected to find in the buffer.
    pub(super) expected: Option<f64>,
    /// An earlier request has no answer yet: what it took is missing in the sum.
    pub(super) overtook: bool,
}

// === impl Forecast ===

impl Forecast {
    /// Knows what a former process knew, `age` ago.
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

    /// What is worth to be known by the next process.
    pub(super) fn pace(&self, now: Instant) -> Pace {
        Pace { events_per_second: self.rate, burst: self.burst_at(now) }
    }

    /// Events a second.
    pub(super) fn rate(&self) -> f64 {
        self.rate
    }

    /// When a request arrived that found a burst, the last time.
    pub(super) fn burst_found(&self) -> Option<Instant> {
        self.burst_found
    }

    /// By how many events a second it grew lately, beyond chance.
    pub(super) fn surge(&self) -> f64 {
        let grown = self.rate - self.usual;
        if grown > CHANCE * self.rate.sqrt() { grown } else { 0.0 }
    }

    /// The rate that it may have soon, in events a second: what grew lately may go on to grow.
    pub(super) fn soon(&self) -> f64 {
        (self.rate + SURGE * self.surge()).min(FASTEST)
    }

    /// Whether another whole page may wait behind the last one.
    pub(super) fn is_unsure(&self) -> bool {
        self.left.is_some_and(|left| !left.sure)
    }

    /// Whether a burst came lately.
    pub(super) fn bursts(&self, now: Instant) -> bool {
        self.burst_at(now) >= BURST
    }

    /// By how many events a forecast was usually wrong lately.
    pub(super) fn error(&self) -> f64 {
        self.error.sqrt()
    }

    /// How much a request finds that arrives then; `takes` are the arrivals of those that are out,
    /// in order. `None` before the first page.
    pub(super) fn level(&self, at: Instant, takes: impl Iterator<Item = Instant>) -> Option<f64> {
        let left = self.after(takes.take_while(|take| *take < at))?;
        Some(self.grown(left, at))
    }

    /// When the feed holds so many events, counted from the last of `takes` on.
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

    /// Takes a page in.
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

    /// What the last page left, grown and taken from until the last of `takes`.
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

    /// The rate so long after the last page.
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
        // An event of the future, or a clock that jumped, says nothing of the level.
        let lag = lag.max(-EARLY.as_secs_f64());
        let span = seen.times.map_or(Duration::ZERO, |(first, last)| last.since(first));
        let of_page = seen.events as f64 / span.as_secs_f64();
        if full && of_page > DENSER * self.rate {
            // A burst, or the first news of a higher rate: the page is believed.
            let events = of_page * lag.max(0.0);
            return Left { at: arrived, arrived, events: events.min(page), sure: events < page };
        }
        // What happened until the last event was taken: its time is known better than the arrival.
        let longest = if full { page / self.rate } else { PROMPT.as_secs_f64() };
        match lag > longest {
            true if full => Left { at: arrived, arrived, events: page, sure: false },
            true => Left { at: arrived, arrived, events: 0.0, sure: true },
            false => Left { at: shifted(arrived, -lag), arrived, events: 0.0, sure: true },
        }
    }

    /// A full page that is not the work of an instant tells a rate by itself.
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
            // What waits behind an unsure page is a guess: it proves no slower rate.
            return;
        }
        let excess = gathered - explained;
        let chance = CHANCE * (explained.sqrt() + 2.0);
        // A load that grows over a second at least doubles in no page.
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
            // Critically damped, as a filter of this kind (alpha and beta) should be.
            false => self.trend + usual * usual / (2.0 - usual) * error / seconds,
        };
    }

    /// Over how long the rate is a mean.
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

/// How much is left of a memory.
fn faded(age: Duration) -> f64 {
    0.5_f64.powf(age.as_secs_f64() / HALF_LIFE.as_secs_f64())
}

/// How long so many events take, an hour at most.
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

    /// Asked every 250 ms; what the 100th page says of its last event is off by so much, or what all
    /// from then on say.
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
