//! Feeds that may share a buffer.
//!
//! One version of Agora's documents can be read to mean that the 2,000 events are per App ID and
//! not per endpoint. Then a newer event of one endpoint replaces the oldest event of any endpoint,
//! and the sum over a region's endpoints must stay below 2,000.
//!
//! The pages show which reading is true. All events that happened before a request arrived, and
//! were returned by it or later, were in the buffers at that moment. If there are clearly more than
//! 2,000 of them, each endpoint has its own buffer, and nothing here applies any more. If there
//! are 2,000 and never more, the shared buffer was full, and each endpoint may have lost events:
//! which ones were the oldest is unknown.
//!
//! While a buffer overflows continuously, some of the events in it at a given moment are
//! overwritten before the next page. So events that are missing by the timestamps count as well.
//!
//! Feeds with a buffer each may hold 2,000 together by chance, too. So a hole in the timestamps
//! must precede the page of one of them, or the finding must repeat. It is then held back for
//! [`PROOF_WAIT`]: a sum near 2,000 soon exceeds it if the buffers are separate.
//!
//! This needs readable timestamps and a calibrated clock offset ([`super::skew`]). Without them a
//! feed is suspected only if its own buffer was full.

use std::collections::VecDeque;
use std::time::Duration;

use crate::model::{BUFFER_LIMIT, Timestamp};

/// How long a finding waits for proof of the contrary.
const PROOF_WAIT: Duration = Duration::from_secs(3);

/// Events beyond the size of a buffer that prove that there is more than one.
const CLEARLY: f64 = 50.0;

/// How many events below its size a buffer may seem to be while it is full: arrivals are known only
/// to milliseconds.
const NEARLY: f64 = 40.0;

/// A hole is longer than this and than [`SPACINGS_OF_A_HOLE`] mean spacings of events: too long for
/// chance.
const SHORTEST_HOLE: Duration = Duration::from_millis(3);
const SPACINGS_OF_A_HOLE: f64 = 8.0;

/// Maximum number of arrivals with an incomplete sum; no more requests arrive before it is
/// complete.
const MOST_ARRIVALS: usize = 32;

/// Watches the feeds of one region.
#[derive(Debug)]
pub(super) struct SharedBuffer {
    /// Indices of the feeds.
    feeds: Vec<usize>,
    arrivals: VecDeque<Arrival>,
    /// Each feed was proved to have its own buffer.
    separate: bool,
    /// When the buffer was found full; not reported yet.
    found: Option<FullBuffer>,
}

/// What a page showed about its feed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Emptied {
    /// Latest possible arrival of the request, by Agora's clock.
    pub(super) at: Timestamp,
    /// How much earlier it may have arrived.
    pub(super) uncertain: Duration,
    /// Whether the offset of the clocks is well known.
    pub(super) calibrated: bool,
    /// How many events the page held.
    pub(super) events: u64,
    /// Whether more may have been left behind.
    pub(super) full: bool,
    /// Times of the first and the last event.
    pub(super) times: Option<(Timestamp, Timestamp)>,
    /// Events that the feed lost before are no older than this.
    pub(super) floor: Option<Timestamp>,
    /// Whether the page before it was full, so that this one begins where that one ended.
    pub(super) follows: bool,
}

/// A request, and what is known about the buffers when it arrived.
#[derive(Debug)]
struct Arrival {
    /// Earliest, middle and latest possible arrival.
    moments: [Timestamp; 3],
    /// Number of events by each of these moments.
    events: [f64; 3],
    /// Further events that may have happened by then and were overwritten before the next page.
    missing: f64,
    /// What precedes the pages that count.
    before: Before,
    /// Whether the offset of the clocks is well known; otherwise the moments are too early.
    calibrated: bool,
    /// For each feed: whether all its events from before were returned, and where it may have lost
    /// events.
    complete: Vec<bool>,
    bounds: Vec<Option<LossBounds>>,
}

/// What lies between a page and the one before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Before {
    /// No event is missing.
    Nothing,
    /// Unknown: the page before it was not full, or the times don't tell.
    Unknown,
    /// Events are missing.
    Hole,
}

/// A buffer that was full.
#[derive(Debug)]
struct FullBuffer {
    at: Timestamp,
    /// Found more than once, or with a hole.
    sure: bool,
    bounds: Vec<Option<LossBounds>>,
}

/// No lost event is older, or newer. `from` is `None` if nothing is known from before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LossBounds {
    pub(super) from: Option<Timestamp>,
    pub(super) to: Timestamp,
}

// === impl Shared ===

impl SharedBuffer {
    /// Watches the feeds with these indices.
    pub(super) fn new(feeds: Vec<usize>) -> Self {
        Self { feeds, arrivals: VecDeque::new(), separate: false, found: None }
    }

    /// The feeds whose sum counts; none if each has its own buffer.
    pub(super) fn feeds(&self) -> &[usize] {
        if self.separate || self.feeds.len() < 2 { &[] } else { &self.feeds }
    }

    /// Learns from a page. Returns where each feed may have lost events, if it is time to report
    /// that.
    pub(super) fn observe(&mut self, feed: usize, page: Emptied) -> Vec<(usize, LossBounds)> {
        let Some(place) = self.feeds().iter().position(|it| *it == feed) else {
            return Vec::new();
        };
        for arrival in &mut self.arrivals {
            arrival.count(place, &page);
        }
        self.arrivals.push_back(Arrival::new(place, &page, self.feeds.len()));
        while self.arrivals.len() > MOST_ARRIVALS {
            self.arrivals.pop_front();
        }
        while self.arrivals.front().is_some_and(Arrival::is_complete) {
            self.arrivals.pop_front().into_iter().for_each(|it| self.judge(it));
        }
        match &self.found {
            Some(found) if page.at.since(found.at) >= PROOF_WAIT => self.rest(),
            _ => Vec::new(),
        }
    }

    /// Takes what is not reported yet.
    pub(super) fn rest(&mut self) -> Vec<(usize, LossBounds)> {
        let Some(found) = self.found.take().filter(|it| it.sure) else { return Vec::new() };
        let named = self.feeds.iter().zip(found.bounds);
        named.filter_map(|(feed, bounds)| Some((*feed, bounds?))).collect()
    }

    fn judge(&mut self, arrival: Arrival) {
        let holds = BUFFER_LIMIT as f64;
        let [early, likely, latest] = arrival.events;
        let most = holds + CLEARLY + (latest - early) / 2.0;
        if early > holds + CLEARLY {
            *self = Self { separate: true, ..Self::new(std::mem::take(&mut self.feeds)) };
        } else if arrival.is_telling()
            && likely + arrival.missing >= holds - NEARLY
            && likely <= most
        {
            let Arrival { moments: [_, at, _], bounds, before, .. } = arrival;
            match &mut self.found {
                None => self.found = Some(FullBuffer { at, sure: before == Before::Hole, bounds }),
                Some(found) => {
                    found.sure = true;
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
            moments: [latest.before(page.uncertain), latest.before(page.uncertain / 2), latest],
            events: [0.0; 3],
            missing: 0.0,
            before: Before::Nothing,
            calibrated: page.calibrated,
            complete: vec![false; feeds],
            bounds: vec![None; feeds],
        };
        arrival.count(place, page);
        arrival
    }

    /// Counts the events of a page that were there at that moment: its own page, or a later one.
    fn count(&mut self, place: usize, page: &Emptied) {
        let (Some(complete), Some(bounds)) =
            (self.complete.get_mut(place), self.bounds.get_mut(place))
        else {
            return;
        };
        let [.., latest] = self.moments;
        if page.at < latest || *complete {
            return;
        }
        for (events, moment) in self.events.iter_mut().zip(self.moments) {
            *events += page.until(moment);
        }
        if bounds.is_none() {
            let first = page.times.map_or(latest, |(first, _)| first);
            *bounds = Some(LossBounds { from: page.floor, to: first.min(latest) });
            self.before = self.before.max(page.before());
            if page.at > latest && page.before() == Before::Hole {
                self.missing += page.missing_by(latest);
            }
        }
        *complete = !page.full || page.times.is_some_and(|(_, last)| last >= latest);
    }

    /// Whether a full buffer would show in it.
    fn is_telling(&self) -> bool {
        self.calibrated && self.before > Before::Nothing
    }

    fn is_complete(&self) -> bool {
        self.complete.iter().all(|it| *it)
    }
}

// === impl Emptied ===

impl Emptied {
    /// How many events in the hole before it had happened by then.
    fn missing_by(&self, moment: Timestamp) -> f64 {
        let (Some(before), Some((first, last))) = (self.floor, self.times) else { return 0.0 };
        let rate = self.events as f64 / last.since(first).as_secs_f64().max(1e-3);
        first.min(moment).since(before).as_secs_f64() * rate
    }

    /// Whether events are missing before it.
    fn before(&self) -> Before {
        let (Some(before), Some((first, last)), true) = (self.floor, self.times, self.follows)
        else {
            return Before::Unknown;
        };
        let spacing = last.since(first).as_secs_f64() / self.events.max(1) as f64;
        let hole = first.since(before);
        let is_hole = hole >= SHORTEST_HOLE && hole.as_secs_f64() >= SPACINGS_OF_A_HOLE * spacing;
        if is_hole { Before::Hole } else { Before::Nothing }
    }

    /// How many of its events had happened by then.
    fn until(&self, moment: Timestamp) -> f64 {
        let events = self.events as f64;
        let Some((first, last)) = self.times else { return events };
        let (since, whole) = (moment.since(first).as_secs_f64(), last.since(first).as_secs_f64());
        if last <= moment { events } else { events * since / whole.max(1e-3) }
    }
}

// === impl Bounds ===

impl LossBounds {
    fn with(self, other: Option<Self>) -> Self {
        let Some(other) = other else { return self };
        // `None` sorts before every time: nothing is known from before.
        Self { from: self.from.min(other.from), to: self.to.max(other.to) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: u64 = 50;

    /// Polls two feeds in turn, at this interval in milliseconds. Events arrive evenly, this many
    /// per feed in each step of 50 ms. Returns what is suspected, and whether the buffers were
    /// proved to be separate.
    fn play(each: u64, every: u64, shared: bool) -> (Vec<(usize, LossBounds)>, bool) {
        let mut watch = SharedBuffer::new(vec![0, 1]);
        let (mut buffers, mut found) = ([const { VecDeque::new() }; 2], Vec::new());
        let mut floors = [None; 2];
        for step in 1..400_u64 {
            for event in 0..each {
                let at = STEP * (step - 1) + STEP * event / each;
                for buffer in 0..2 {
                    buffers[buffer].push_back(i64::try_from(at).unwrap());
                    let [users, channels] = &mut buffers;
                    let full = if shared { users.len() + channels.len() } else { 0 };
                    if full > 2_000 {
                        if users.front() <= channels.front() { users } else { channels }
                            .pop_front();
                    }
                }
            }
            buffers.iter_mut().for_each(|it| drop(it.drain(..it.len().saturating_sub(2_000))));
            if !(STEP * step).is_multiple_of(every) {
                continue;
            }
            let feed = usize::try_from(STEP * step / every).unwrap() % 2;
            let many = buffers[feed].len().min(1_000);
            let page: Vec<i64> = buffers[feed].drain(..many).collect();
            let times = page.first().zip(page.last());
            let times = times.map(|(first, last)| {
                (Timestamp::from_millis(*first), Timestamp::from_millis(*last))
            });
            let at = Timestamp::from_millis(i64::try_from(STEP * step).unwrap());
            found.extend(watch.observe(
                feed,
                Emptied {
                    at,
                    uncertain: Duration::ZERO,
                    calibrated: true,
                    events: page.len() as u64,
                    full: page.len() == 1_000,
                    times,
                    floor: floors[feed],
                    follows: floors[feed].is_some(),
                },
            ));
            floors[feed] = times.map(|it| it.1).filter(|_| page.len() == 1_000);
        }
        (found, watch.separate)
    }

    #[test]
    fn a_shared_buffer_that_runs_over_is_suspected_of_both_feeds() {
        let (found, separate) = play(250, 150, true);
        assert!(!separate);
        for feed in 0..2 {
            assert!(found.iter().any(|it| it.0 == feed), "{found:?}");
        }
    }

    #[test]
    fn more_than_a_buffer_holds_proves_that_there_are_two() {
        let (found, separate) = play(250, 150, false);
        assert!(separate && found.is_empty(), "{found:?}");
    }

    #[test]
    fn a_sum_that_stays_below_is_no_suspicion_and_no_proof() {
        for shared in [true, false] {
            let (found, separate) = play(150, 100, shared);
            assert!(!separate && found.is_empty(), "{shared}: {found:?}");
        }
    }
}
