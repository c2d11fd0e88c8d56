//! Feeds that may share a buffer.
//!
//! One version of Agora's documents can be read so that the 2,000 events are those of an App ID, and
//! not of each endpoint. Then a newer event of one endpoint replaces the oldest of any, and what must
//! stay below 2,000 is the sum over the endpoints of a region.
//!
//! Which reading holds shows in the pages. All that happened before a request arrived, and was handed
//! over by it or later, was in the buffers at that moment. If that is clearly more than 2,000 events,
//! the endpoints have a buffer each, and nothing here matters any more. If it is 2,000 and never
//! more, the shared buffer was full, and each endpoint may have lost events: which ones were the
//! oldest nobody knows.
//!
//! A feed with a buffer of its own may hold 2,000 by chance, too. So such a find is kept back for
//! [`PATIENCE`]: where the sum is near 2,000 it is soon beyond, if it can be.
//!
//! Needs times that can be read and clocks that are known ([`super::skew`]); without them only a
//! feed that is full by itself is suspected.

use std::collections::VecDeque;
use std::time::Duration;

use crate::model::BUFFER_LIMIT;
use crate::model::Timestamp;

/// How long a find waits for a proof that it is none.
const PATIENCE: Duration = Duration::from_secs(1);

/// So many events more than a buffer holds prove that there is more than one.
const CLEARLY: f64 = 50.0;

/// So many events fewer than a buffer holds may be a full one: arrivals are known to milliseconds.
const NEARLY: f64 = 40.0;

/// Arrivals whose sum is not complete yet; more requests don't arrive in the time that it takes.
const MOST_ARRIVALS: usize = 32;

/// Watches the feeds of one region.
#[derive(Debug)]
pub(super) struct Shared {
    /// Indices of the feeds.
    feeds: Vec<usize>,
    arrivals: VecDeque<Arrival>,
    /// It was proved that each feed has a buffer of its own.
    separate: bool,
    /// The buffer was found full; not told yet.
    found: Option<Found>,
}

/// What a page told of its feed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Emptied {
    /// Agora's clock when the request arrived, at the latest.
    pub(super) at: Timestamp,
    /// By how much earlier it may have arrived.
    pub(super) uncertain: Duration,
    /// The clocks are known well.
    pub(super) calibrated: bool,
    /// How many events the page held.
    pub(super) events: u64,
    /// More may have been left behind.
    pub(super) full: bool,
    /// The times of the first and the last of them.
    pub(super) times: Option<(Timestamp, Timestamp)>,
    /// What the feed lost before is no older than this.
    pub(super) floor: Option<Timestamp>,
}

/// A request, and what is known of the buffers when it arrived.
#[derive(Debug)]
struct Arrival {
    /// At the earliest, and in between.
    early: Timestamp,
    likely: Timestamp,
    latest: Timestamp,
    /// How many events had happened by then.
    by_early: f64,
    by_likely: f64,
    /// Of each feed: nothing of before is left, and where it may have lost events.
    complete: Vec<bool>,
    bounds: Vec<Option<Bounds>>,
}

/// A buffer that was full.
#[derive(Debug)]
struct Found {
    at: Timestamp,
    bounds: Vec<Option<Bounds>>,
}

/// No lost event is older, or newer. Nothing is known from before where `from` is `None`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bounds {
    pub(super) from: Option<Timestamp>,
    pub(super) to: Timestamp,
}

// === impl Shared ===

impl Shared {
    /// Feeds with these indices.
    pub(super) fn new(feeds: Vec<usize>) -> Self {
        Self { feeds, arrivals: VecDeque::new(), separate: false, found: None }
    }

    /// The feeds whose sum counts; none where each has a buffer of its own.
    pub(super) fn feeds(&self) -> &[usize] {
        if self.separate || self.feeds.len() < 2 { &[] } else { &self.feeds }
    }

    /// Takes in a page. Tells where each feed may have lost events, if it is to be told now.
    pub(super) fn observe(&mut self, feed: usize, page: Emptied) -> Vec<(usize, Bounds)> {
        let Some(place) = self.feeds().iter().position(|it| *it == feed) else {
            return Vec::new();
        };
        for arrival in &mut self.arrivals {
            arrival.count(place, &page);
        }
        if page.calibrated {
            self.arrivals.push_back(Arrival::new(place, &page, self.feeds.len()));
        }
        while self.arrivals.len() > MOST_ARRIVALS {
            self.arrivals.pop_front();
        }
        while self.arrivals.front().is_some_and(Arrival::is_complete) {
            self.arrivals.pop_front().into_iter().for_each(|it| self.judge(it));
        }
        match &self.found {
            Some(found) if page.at.since(found.at) >= PATIENCE => self.rest(),
            _ => Vec::new(),
        }
    }

    /// What was found and not told yet.
    pub(super) fn rest(&mut self) -> Vec<(usize, Bounds)> {
        let Some(found) = self.found.take() else { return Vec::new() };
        let named = self.feeds.iter().zip(found.bounds);
        named.filter_map(|(feed, bounds)| Some((*feed, bounds?))).collect()
    }

    fn judge(&mut self, arrival: Arrival) {
        let holds = BUFFER_LIMIT as f64;
        if arrival.by_early > holds + CLEARLY {
            *self = Self { separate: true, ..Self::new(std::mem::take(&mut self.feeds)) };
        } else if arrival.by_likely >= holds - NEARLY {
            let Arrival { likely: at, bounds, .. } = arrival;
            match &mut self.found {
                None => self.found = Some(Found { at, bounds }),
                Some(found) => {
                    for (known, new) in found.bounds.iter_mut().zip(bounds) {
                        *known = known.map_or(new, |known| Some(known.with(new)));
                    }
                }
            }
        }
    }
}

// === impl Arrival ===

impl Arrival {
    fn new(place: usize, page: &Emptied, feeds: usize) -> Self {
        let latest = page.at;
        let mut arrival = Self {
            early: latest.before(page.uncertain),
            likely: latest.before(page.uncertain / 2),
            latest,
            by_early: 0.0,
            by_likely: 0.0,
            complete: vec![false; feeds],
            bounds: vec![None; feeds],
        };
        arrival.count(place, page);
        arrival
    }

    /// Counts what a page held of then: its own one, or a later one.
    fn count(&mut self, place: usize, page: &Emptied) {
        let (Some(complete), Some(bounds)) =
            (self.complete.get_mut(place), self.bounds.get_mut(place))
        else {
            return;
        };
        if page.at < self.latest || *complete {
            return;
        }
        self.by_early += page.until(self.early);
        self.by_likely += page.until(self.likely);
        let first = page.times.map_or(self.latest, |(first, _)| first);
        bounds.get_or_insert(Bounds { from: page.floor, to: first.min(self.latest) });
        *complete = !page.full || page.times.is_some_and(|(_, last)| last >= self.latest);
    }

    fn is_complete(&self) -> bool {
        self.complete.iter().all(|it| *it)
    }
}

// === impl Emptied ===

impl Emptied {
    /// How many of its events had happened by then.
    fn until(&self, moment: Timestamp) -> f64 {
        let events = self.events as f64;
        let Some((first, last)) = self.times else { return events };
        let (since, whole) = (moment.since(first).as_secs_f64(), last.since(first).as_secs_f64());
        if last <= moment { events } else { events * since / whole.max(1e-3) }
    }
}

// === impl Bounds ===

impl Bounds {
    fn with(self, other: Option<Self>) -> Self {
        let Some(other) = other else { return self };
        // `None` is less than every time: nothing is known from before.
        Self { from: self.from.min(other.from), to: self.to.max(other.to) }
    }
}
