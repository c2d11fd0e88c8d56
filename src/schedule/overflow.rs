//! Notices that Agora's buffer was found full, so that events may have been overwritten.
//!
//! Between two requests the level of the buffer only grows. So events were overwritten before a
//! request arrived only if the buffer held 2,000 at that moment, and then the next page is what was
//! left: full too, and every event in it older than that arrival. The lost ones lie between the
//! last event of the page before (or the moment when the feed was last empty) and the first of this
//! page.
//!
//! One case hides this: events overwritten *after* the arrival as well. Then the next page reaches
//! beyond it, by as many events as are missing between the two pages. But the last arrival of such
//! a row shows, so it answers for the full pages of the second before it; and a row that goes on for
//! a second, with a hole before each page that is comparable to what reaches beyond, is believed as
//! it is.
//!
//! That needs [`Skew`], calibrated, and readable times. Without them two full pages in a row are
//! suspected where the rate before them can't have filled the second within the time between them,
//! and so is a row of [`LONG_ROW`] full pages, whatever the rate. This rather suspects than misses;
//! what it does miss is an overload that begins slowly and stays shorter than that row.
//!
//! When a request arrived is known only so far. A buffer that was full if it arrived when it likely
//! did is suspected; one that was full only if it arrived earlier, only if a hole in the times or a
//! burst says so, too. So a healthy feed near the ceiling is left in peace, and a loss of no more events than
//! happen within that time can be missed.
//!
//! A buffer that held exactly 2,000 lost nothing and is suspected all the same; a loss of one event
//! leaves no hole that could be told from chance, so holes acquit nobody. Pages that come out of
//! order are passed over: an overflow that shows only in them is missed.

use std::collections::VecDeque;
use std::time::Duration;

use super::skew::Skew;
use crate::model::CLOCK_MARGIN;
use crate::model::PAGE_LIMIT;
use crate::model::Timestamp;

/// What the skew may be wrong by beside the arrivals, in milliseconds. It costs suspicions of buffers
/// that were full but for so many milliseconds of events.
const MARGIN: i64 = 10;

/// By how much a feed may have been empty earlier than we believe: a request arrives at the latest
/// when we say it did, and an event may get into the buffer late. Bounds are wider by it.
const LATE: Duration = Duration::from_millis(500);

/// How long a row of doubtful pages is watched before it is believed, how far back a full buffer
/// accuses pages that look well, and how often a long overflow is spoken of; in milliseconds.
const PATIENCE: i64 = 1_000;

/// How far back a full buffer accuses pages that are doubtful or behind a hole, in milliseconds: in
/// a burst a hole shows nothing, so that a row of full buffers can seem to end.
const LONG_PATIENCE: i64 = 5_000;

/// What reaches beyond an arrival is compared to the hole before it no more exactly than this.
const COMPARABLE: i64 = 8;

/// A hole has so many mean spacings at least.
const SPACINGS_OF_A_HOLE: i64 = 3;

/// A rate that was seen may grow by this factor and still explain a page, without times.
const GROWTH: f64 = 1.5;

/// Over how long the rate is averaged that explains a page, in milliseconds.
const LATELY: f64 = 2_000.0;

/// Full pages in a row that are suspected where times don't tell.
const LONG_ROW: u32 = 20;

/// Doubtful pages that are remembered at most: more requests than this don't arrive in a second.
const MOST_DOUBTS: usize = 32;

/// Watches one feed.
#[derive(Debug, Default)]
pub(super) struct Overflow {
    former: Option<Former>,
    /// Full pages in a row.
    row: u32,
    /// Full pages that a later one can convict.
    doubts: VecDeque<Doubt>,
    /// When a row of doubtful pages began.
    doubtful_since: Option<i64>,
    /// What was found and not handed out.
    found: Option<Bounds>,
    /// An overflow goes on; when it was spoken of last.
    spoken_at: Option<i64>,
}

/// A request that was answered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Emptying {
    /// When it arrived at the latest, by the clock that [`Skew`] is given.
    pub(super) arrived: i64,
    /// By how much earlier requests usually arrive than is said of them, at the most; in
    /// milliseconds. The skew may be wrong by it, too.
    pub(super) uncertain: i64,
    /// The same as `arrived` by the wall clock; for bounds where the skew is not known.
    pub(super) wall: Timestamp,
    /// How many events the page held, or may have held where it was torn.
    pub(super) events: u64,
    /// Times of the first and the last event, by Agora's clock.
    pub(super) times: Option<(Timestamp, Timestamp)>,
}

/// Events may have been overwritten. How many is not known, and none at all is possible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Suspected {
    /// No lost event is older. `None` where nothing is known from before.
    pub from: Option<Timestamp>,
    /// No lost event is newer.
    pub to: Timestamp,
    /// This is the first word about an overflow; what follows before a page is not full belongs to
    /// it.
    pub begins: bool,
}

/// A page, and what was known when it came.
#[derive(Clone, Copy, Debug)]
struct Former {
    page: Emptying,
    /// What was overwritten before it came is no older than this.
    floor: Option<Timestamp>,
    /// Whether a hole in the times lies before it …
    hole: bool,
    /// … or might, since the page before it emptied the feed.
    behind_a_hole: bool,
    /// The page before it was full.
    follows: bool,
    /// Events a millisecond, lately, without this page and with it.
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
struct Bounds {
    from: Option<Timestamp>,
    to: Timestamp,
}

/// What two full pages in a row say about the buffer at the arrival of the first request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Full,
    /// Full, if it was full again at the arrival of the second.
    Doubtful,
    NotFull,
}

// === impl Overflow ===

impl Overflow {
    /// Takes in the next page of the feed, or an empty answer, after `skew` has.
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

    /// What was found and not handed out yet: for the end of the process.
    pub(super) fn rest(&mut self) -> Option<Suspected> {
        let Bounds { from, to } = self.found.take()?;
        Some(Suspected { from, to, begins: self.spoken_at.is_none() })
    }

    /// What was overwritten before the last page came is no older than this.
    pub(super) fn floor(&self) -> Option<Timestamp> {
        self.former.and_then(|former| former.floor)
    }

    /// Whether the page before the last one was full.
    pub(super) fn follows(&self) -> bool {
        self.former.is_some_and(|former| former.follows)
    }

    /// The buffer was full, as it turned out elsewhere; told with the next page.
    pub(super) fn accuse(&mut self, from: Option<Timestamp>, to: Timestamp) {
        if from.is_some_and(|from| to < from.before(LATE)) {
            return;
        }
        self.found = Some(match self.found {
            // `None` is less than every time.
            Some(found) => Bounds { from: found.from.min(from), to: found.to.max(to) },
            None => Bounds { from, to },
        });
    }

    fn judge(&mut self, former: &Former, page: &Emptying, skew: &Skew) {
        let verdict = by_times(former, page, skew).unwrap_or_else(|| self.by_rate(former, page));
        let acquitted = verdict == Verdict::NotFull && !former.behind_a_hole;
        let remember = if acquitted { PATIENCE } else { LONG_PATIENCE };
        let arrived = former.page.arrived;
        self.doubts.retain(|it| it.forget_at >= page.arrived);
        if self.doubts.len() == MOST_DOUBTS {
            self.doubts.pop_front();
        }
        let forget_at = arrived.saturating_add(remember);
        self.doubts.push_back(Doubt { floor: former.floor, forget_at });
        match verdict {
            Verdict::Full => self.convict(former),
            Verdict::Doubtful => {
                let began = *self.doubtful_since.get_or_insert(arrived);
                if page.arrived.saturating_sub(began) >= PATIENCE {
                    self.convict(former);
                }
            }
            Verdict::NotFull => self.doubtful_since = None,
        }
    }

    fn by_rate(&self, former: &Former, page: &Emptying) -> Verdict {
        let between = page.arrived.saturating_sub(former.page.arrived);
        let came = former.rate_before * between as f64 * GROWTH;
        let explained = came >= PAGE_LIMIT as f64 && self.row < LONG_ROW;
        if explained { Verdict::NotFull } else { Verdict::Full }
    }

    /// The buffer was full at the arrival of `last`, and perhaps at those before it.
    fn convict(&mut self, last: &Former) {
        let doubts = self.doubts.iter().map(|doubt| doubt.floor);
        let found = self.found.map(|found| found.from);
        // `None` is less than every time: nothing is known from before.
        let from = doubts.chain(found).min().flatten();
        let to = match last.page.times {
            Some((first, _)) => first,
            None => last.page.wall.after(CLOCK_MARGIN),
        };
        self.acquit();
        if from.is_some_and(|from| to < from.before(LATE)) {
            // Another region answers: its buffer reaches behind what the former one handed over, so
            // what it lost had been handed over before.
            return;
        }
        let to = self.found.map_or(to, |found| found.to.max(to));
        self.found = Some(Bounds { from, to });
    }

    fn acquit(&mut self) {
        self.doubts.clear();
        self.doubtful_since = None;
    }

    /// At most once in [`PATIENCE`], and at the end of an overflow.
    fn hand_out(&mut self, page: &Emptying) -> Option<Suspected> {
        let waited = self.spoken_at.map(|at| page.arrived.saturating_sub(at));
        let due = !page.is_full() || waited.is_none_or(|waited| waited >= PATIENCE);
        let suspected = if due { self.rest() } else { None };
        if !page.is_full() {
            self.spoken_at = None;
        } else if suspected.is_some() {
            self.spoken_at = Some(page.arrived);
        }
        suspected
    }
}

/// `None` where times don't tell.
fn by_times(former: &Former, page: &Emptying, skew: &Skew) -> Option<Verdict> {
    let (_, former_last) = former.page.times?;
    let (first, last) = page.times?;
    let arrived = skew.at_agora(former.page.arrived).filter(|_| skew.calibrated())?;
    let beyond = between(arrived, last);
    let margin = former.page.uncertain.saturating_add(MARGIN);
    // It arrived half of that earlier, more likely than not; all of it only if a hole says so, too,
    // or if the page is the work of an instant.
    let likely = beyond.saturating_add(former.page.uncertain / 2) <= MARGIN;
    let burst = between(first, last) <= former.page.uncertain;
    if likely || beyond <= margin && (former.hole || burst) {
        return Some(Verdict::Full);
    }
    let hole = between(former_last, first);
    let comparable = beyond <= hole.saturating_mul(COMPARABLE).saturating_add(margin);
    let doubtful = comparable && page.is_behind_a_hole(&former.page);
    Some(if doubtful { Verdict::Doubtful } else { Verdict::NotFull })
}

/// Milliseconds; negative where time runs backwards.
fn between(from: Timestamp, to: Timestamp) -> i64 {
    to.as_millis().saturating_sub(from.as_millis())
}

// === impl Emptying ===

impl Emptying {
    fn is_full(&self) -> bool {
        self.events >= PAGE_LIMIT
    }

    /// Whether it was taken before a page that came to us earlier.
    fn precedes(&self, other: &Self) -> bool {
        match (self.times, other.times) {
            (Some((_, last)), Some((first, _))) => {
                last < first && self.arrived.saturating_sub(other.arrived) <= LONG_PATIENCE
            }
            _ => self.arrived < other.arrived,
        }
    }

    /// Whether events may be missing between a page and this next one: events were closer in the
    /// pages. A hole of less than a millisecond is none.
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

    /// What the next request does not find any more is no older than this.
    fn floor(&self, floor: Option<Timestamp>, skew: &Skew) -> Option<Timestamp> {
        if self.is_full() {
            return self.times.map(|(_, last)| last).or(floor);
        }
        // An uncalibrated skew errs to the safe side here: it names too early a moment.
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
