//! Detects that Agora's buffer was full, so that events may have been overwritten.
//!
//! Between two requests the buffer's level only grows. So events were overwritten before a request
//! arrived only if the buffer held 2,000 events at that moment. The next page is then what was
//! left: it is full too, and every event in it is older than that arrival. The lost events lie
//! between the last event of the page before (or the moment when the feed was last empty) and the
//! first event of this page.
//!
//! One case hides this: further events were overwritten *after* the arrival. Then the next page
//! reaches beyond the arrival, by as many events as are missing between the two pages. But the last
//! arrival of such a row shows an overflow, and it also convicts the full pages of the second
//! before it. A row that lasts a second, with a hole before each page comparable to the part that
//! reaches beyond, is treated as an overflow without further proof.
//!
//! All this needs a calibrated [`Skew`] and readable times. Without them, two full pages in a row
//! are suspected if the rate before them can't have filled the second one in the time between them,
//! and so is a row of [`LONG_ROW`] full pages, however high the rate. This errs on the side of
//! suspicion. It does miss an overload that begins slowly and ends before that row.
//!
//! The arrival time of a request is uncertain. If the buffer was full at the likely arrival, it is
//! suspected; if it was full only at an earlier possible arrival, a hole in the times or a burst
//! has to confirm it. So a healthy feed near the ceiling is not suspected, and a loss of no more
//! events than happen within that uncertainty can be missed.
//!
//! A buffer that held exactly 2,000 events lost nothing and is suspected all the same. The loss of
//! one event leaves no hole that could be distinguished from chance, so the absence of a hole
//! proves nothing. Pages that arrive out of order are skipped: an overflow that shows only in them
//! is missed.

use std::collections::VecDeque;
use std::time::Duration;

use super::skew::Skew;
use crate::model::{CLOCK_MARGIN, PAGE_LIMIT, Timestamp};

/// Maximum error of the skew apart from the arrivals, in milliseconds. It costs false suspicions of
/// buffers that were less than this much time away from being full.
const MARGIN: i64 = 10;

/// How much earlier a feed may have been empty than we assume: requests arrive no later than
/// assumed, and an event may get into the buffer late. Bounds are widened by this.
const LATE: Duration = Duration::from_millis(500);

/// How long a row of doubtful pages is watched before it counts as an overflow, how far back a full
/// buffer convicts pages that look fine, and how often a long overflow is reported; in
/// milliseconds.
const PROOF_WAIT_MS: i64 = 1_000;

/// How far back a full buffer convicts pages that are doubtful or behind a hole, in milliseconds:
/// within a burst a hole shows nothing, so a row of full buffers can seem to end.
const LONG_PROOF_WAIT_MS: i64 = 5_000;

/// Maximum factor by which the part beyond an arrival may exceed the hole before it and still be
/// comparable.
const COMPARABLE: i64 = 8;

/// Minimum length of a hole, in mean spacings of events.
const SPACINGS_OF_A_HOLE: i64 = 3;

/// Factor by which a measured rate may have grown and still explain a page, without times.
const GROWTH: f64 = 1.5;

/// Period, in milliseconds, over which the rate that explains a page is averaged.
const LATELY: f64 = 2_000.0;

/// Number of full pages in a row that are suspected when there are no usable times.
const LONG_ROW: u32 = 20;

/// Maximum number of doubtful pages remembered: no more requests than this arrive in a second.
const MOST_DOUBTS: usize = 32;

/// Watches one feed.
#[derive(Debug, Default)]
pub(super) struct Overflow {
    former: Option<Former>,
    /// Full pages in a row.
    row: u32,
    /// Full pages that a later page can convict.
    doubts: VecDeque<Doubt>,
    /// When a row of doubtful pages began.
    doubtful_since: Option<i64>,
    /// What was found and is not reported yet.
    found: Option<ArrivalBounds>,
    /// Last report of an overflow that hasn't ended.
    spoken_at: Option<i64>,
}

/// A request that was answered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Emptying {
    /// Its latest possible arrival, by the clock given to [`Skew`].
    pub(super) arrived: i64,
    /// How much earlier than `arrived` requests usually arrive, at most; in milliseconds. The skew
    /// may be off by the same amount.
    pub(super) uncertain: i64,
    /// `arrived` by the wall clock; for bounds while the skew is not known.
    pub(super) wall: Timestamp,
    /// Number of events in the page, or the most it may have held if it was torn.
    pub(super) events: u64,
    /// Times of the first and the last event, by Agora's clock.
    pub(super) times: Option<(Timestamp, Timestamp)>,
}

/// Events may have been overwritten. Their number is unknown, and may be zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Suspected {
    /// No lost event is older. `None` if nothing is known from before.
    pub from: Option<Timestamp>,
    /// No lost event is newer.
    pub to: Timestamp,
    /// Whether this is the first report of an overflow. Reports that follow before a page that is
    /// not full belong to the same overflow.
    pub begins: bool,
}

/// A page, and what was known when it arrived.
#[derive(Clone, Copy, Debug)]
struct Former {
    page: Emptying,
    /// Events overwritten before it arrived are no older than this.
    floor: Option<Timestamp>,
    /// Whether a hole in the times precedes it …
    hole: bool,
    /// … or may precede it, because the page before it emptied the feed.
    behind_a_hole: bool,
    /// Whether the page before it was full.
    follows: bool,
    /// Recent events a millisecond, without this page and with it.
    rate_before: f64,
    rate: f64,
}

/// A full page behind which the buffer may have been full.
#[derive(Clone, Copy, Debug)]
struct Doubt {
    floor: Option<Timestamp>,
    forget_at: i64,
}

#[derive(Clone, Copy, Debug)]
struct ArrivalBounds {
    from: Option<Timestamp>,
    to: Timestamp,
}

/// What two consecutive full pages say about the buffer at the arrival of the first request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Suspicion {
    Full,
    /// Full, if it was full again when the second request arrived.
    Doubtful,
    NotFull,
}

// === impl Overflow ===

impl Overflow {
    /// Learns from the next page of the feed, or an empty answer, after `skew` has.
    pub(super) fn observe(&mut self, page: Emptying, skew: &Skew) -> Option<Suspected> {
        let former = self.former;
        if former.is_some_and(|former| page.precedes(&former.page)) {
            return None;
        }
        self.row = if page.is_full() { self.row.saturating_add(1) } else { 0 };
        match &former {
            Some(former) if self.row > 1 => self.judge(former, &page, skew),
            _ => self.acquit(),
        }
        self.former = Some(Former::new(page, former.as_ref(), skew));
        self.hand_out(&page)
    }

    /// Takes what is not reported yet; for the end of the process.
    pub(super) fn rest(&mut self) -> Option<Suspected> {
        let ArrivalBounds { from, to } = self.found.take()?;
        Some(Suspected { from, to, begins: self.spoken_at.is_none() })
    }

    /// Events overwritten before the last page arrived are no older than this.
    pub(super) fn floor(&self) -> Option<Timestamp> {
        self.former.and_then(|former| former.floor)
    }

    /// Whether the page before the last one was full.
    pub(super) fn follows(&self) -> bool {
        self.former.is_some_and(|former| former.follows)
    }

    /// Records that the buffer was full, as found elsewhere; reported with the next page.
    pub(super) fn accuse(&mut self, from: Option<Timestamp>, to: Timestamp) {
        if from.is_some_and(|from| to < from.before(LATE)) {
            return;
        }
        self.found = Some(match self.found {
            // `None` sorts before every time.
            Some(found) => ArrivalBounds { from: found.from.min(from), to: found.to.max(to) },
            None => ArrivalBounds { from, to },
        });
    }

    fn judge(&mut self, former: &Former, page: &Emptying, skew: &Skew) {
        let verdict = by_times(former, page, skew).unwrap_or_else(|| self.by_rate(former, page));
        let acquitted = verdict == Suspicion::NotFull && !former.behind_a_hole;
        let remember = if acquitted { PROOF_WAIT_MS } else { LONG_PROOF_WAIT_MS };
        let arrived = former.page.arrived;
        self.doubts.retain(|it| it.forget_at >= page.arrived);
        if self.doubts.len() == MOST_DOUBTS {
            self.doubts.pop_front();
        }
        let forget_at = arrived.saturating_add(remember);
        self.doubts.push_back(Doubt { floor: former.floor, forget_at });
        match verdict {
            Suspicion::Full => self.convict(former),
            Suspicion::Doubtful => {
                let began = *self.doubtful_since.get_or_insert(arrived);
                if page.arrived.saturating_sub(began) >= PROOF_WAIT_MS {
                    self.convict(former);
                }
            }
            Suspicion::NotFull => self.doubtful_since = None,
        }
    }

    fn by_rate(&self, former: &Former, page: &Emptying) -> Suspicion {
        let between = page.arrived.saturating_sub(former.page.arrived);
        let came = former.rate_before * between as f64 * GROWTH;
        let explained = came >= PAGE_LIMIT as f64 && self.row < LONG_ROW;
        if explained { Suspicion::NotFull } else { Suspicion::Full }
    }

    /// Records that the buffer was full when `last` arrived, and perhaps at the arrivals before it.
    fn convict(&mut self, last: &Former) {
        let doubts = self.doubts.iter().map(|doubt| doubt.floor);
        let found = self.found.map(|found| found.from);
        // `None` sorts before every time: nothing is known from before.
        let from = doubts.chain(found).min().flatten();
        let to = match last.page.times {
            Some((first, _)) => first,
            None => last.page.wall.after(CLOCK_MARGIN),
        };
        self.acquit();
        if from.is_some_and(|from| to < from.before(LATE)) {
            // Another region answers: its buffer overlaps the events that the former one returned,
            // so the events it lost are already in our hands.
            return;
        }
        let to = self.found.map_or(to, |found| found.to.max(to));
        self.found = Some(ArrivalBounds { from, to });
    }

    fn acquit(&mut self) {
        self.doubts.clear();
        self.doubtful_since = None;
    }

    /// At most once in [`PROOF_WAIT_MS`], and at the end of an overflow.
    fn hand_out(&mut self, page: &Emptying) -> Option<Suspected> {
        let waited = self.spoken_at.map(|at| page.arrived.saturating_sub(at));
        let due = !page.is_full() || waited.is_none_or(|waited| waited >= PROOF_WAIT_MS);
        let suspected = if due { self.rest() } else { None };
        if !page.is_full() {
            self.spoken_at = None;
        } else if suspected.is_some() {
            self.spoken_at = Some(page.arrived);
        }
        suspected
    }
}

/// `None` if the times don't decide it.
fn by_times(former: &Former, page: &Emptying, skew: &Skew) -> Option<Suspicion> {
    let (_, former_last) = former.page.times?;
    let (first, last) = page.times?;
    let arrived = skew.at_agora(former.page.arrived).filter(|_| skew.calibrated())?;
    let beyond = between(arrived, last);
    let margin = former.page.uncertain.saturating_add(MARGIN);
    // It more likely than not arrived half of the uncertainty earlier. All of it counts only if
    // there is also a hole, or if the page is a single burst.
    let likely = beyond.saturating_add(former.page.uncertain / 2) <= MARGIN;
    let burst = between(first, last) <= former.page.uncertain;
    if likely || beyond <= margin && (former.hole || burst) {
        return Some(Suspicion::Full);
    }
    let hole = between(former_last, first);
    let comparable = beyond <= hole.saturating_mul(COMPARABLE).saturating_add(margin);
    let doubtful = comparable && page.is_behind_a_hole(&former.page);
    Some(if doubtful { Suspicion::Doubtful } else { Suspicion::NotFull })
}

/// Milliseconds; negative if time runs backwards.
fn between(from: Timestamp, to: Timestamp) -> i64 {
    to.as_millis().saturating_sub(from.as_millis())
}

// === impl Emptying ===

impl Emptying {
    fn is_full(&self) -> bool {
        self.events >= PAGE_LIMIT
    }

    /// Whether it was taken before a page that reached us earlier.
    fn precedes(&self, other: &Self) -> bool {
        match (self.times, other.times) {
            (Some((_, last)), Some((first, _))) => {
                last < first && self.arrived.saturating_sub(other.arrived) <= LONG_PROOF_WAIT_MS
            }
            _ => self.arrived < other.arrived,
        }
    }

    /// Whether events may be missing between a page and this next one, because events were closer
    /// together within the pages. A hole of less than a millisecond doesn't count.
    fn is_behind_a_hole(&self, former: &Self) -> bool {
        let (Some((first, last)), Some((former_first, former_last))) = (self.times, former.times)
        else {
            return false;
        };
        let hole = between(former_last, first);
        // A page is about a thousand spacings long.
        let page = between(former_first, former_last).min(between(first, last));
        hole >= 1 && hole.saturating_mul(1_000) >= page.saturating_mul(SPACINGS_OF_A_HOLE)
    }

    /// Events missing from the next request are no older than this.
    fn floor(&self, floor: Option<Timestamp>, skew: &Skew) -> Option<Timestamp> {
        if self.is_full() {
            return self.times.map(|(_, last)| last).or(floor);
        }
        // An uncalibrated skew errs on the safe side here: it gives too early a moment.
        let emptied = skew.at_agora(self.arrived).map(|moment| moment.before(LATE));
        Some(emptied.unwrap_or_else(|| self.wall.before(CLOCK_MARGIN)))
    }
}

// === impl Former ===

impl Former {
    fn new(page: Emptying, former: Option<&Self>, skew: &Skew) -> Self {
        let Some(former) = former else {
            return Self {
                page,
                floor: None,
                hole: false,
                behind_a_hole: false,
                follows: false,
                rate_before: 0.0,
                rate: 0.0,
            };
        };
        let took = page.arrived.saturating_sub(former.page.arrived).max(1) as f64;
        let weight = 1.0 - (-took / LATELY).exp();
        let rate = former.rate + weight * (page.events as f64 / took - former.rate);
        let floor = former.page.floor(former.floor, skew);
        let hole = page.is_behind_a_hole(&former.page);
        let follows = former.page.is_full();
        let behind_a_hole = !follows || hole;
        Self { page, floor, hole, behind_a_hole, follows, rate_before: former.rate, rate }
    }
}

#[cfg(test)]
mod tests;
