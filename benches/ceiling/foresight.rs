//! A program with perfect knowledge: of the buffers, the future, and the delay of each request. No
//! real program can have that; it shows how much there is left to gain.
//!
//! It decides at Agora itself: a request arrives exactly when wanted, but never more than the limit
//! within a second. Whenever a request is available:
//!
//! 1. A feed with a full page is polled, the one that overflows soonest first: a request can't
//!    fetch more than a full page, so nothing is wasted. The same holds for a feed that the next event
//!    would make overflow, which is how a burst looks just before it happens.
//! 2. Otherwise the feed with the oldest event is polled, to keep events fresh, evenly spaced, and
//!    only if this loses nothing. To find out, the losses by rule 1 alone until the end are simulated
//!    with this request spent and with it saved; it is spent if that loses no more.
//!
//! Rule 2 can empty a feed ahead of a burst as well as save requests for one. So it never loses
//! more than rule 1 alone. Where it loses nothing, its loss is optimal; where it loses, another
//! plan may lose less. Its ages are good ones, not the best possible.

use std::collections::VecDeque;
use std::time::Duration;

use agora_rtm_bridge::model::{BUFFER_LIMIT, Endpoint, PAGE_LIMIT};
use agora_rtm_bridge::plan::{Tally, Trial};
use agora_rtm_bridge::simulator::Counted;

const SECOND: Duration = Duration::from_secs(1);

/// Interval between decisions while no request is worthwhile.
const STEP: Duration = Duration::from_millis(20);

/// The state at a moment.
#[derive(Clone)]
struct State<'a> {
    feeds: [Feed<'a>; 2],
    /// Arrival times of the requests that still count.
    arrivals: VecDeque<Duration>,
    limit: usize,
    end: Duration,
}

/// A buffer with all its events, future ones included.
#[derive(Clone)]
struct Feed<'a> {
    happens: &'a [Duration],
    /// Number of events that have happened.
    made: usize,
    /// Number of events that are gone, handed over or overwritten.
    gone: usize,
    overwritten: u64,
    /// Number of events before the first request, and number of later ones that were overwritten.
    before: usize,
    overwritten_of_later: usize,
    fullest: usize,
}

/// Runs the trial.
pub(crate) fn play(trial: &Trial) -> Tally {
    let script = &trial.script;
    let end = trial.ends_at;
    let happens = Endpoint::ALL.map(|it| Counted::foresee(script, 0, it, end));
    let mut ways = Counted::new(script, 0);
    let limit = usize::try_from(script.limit.requests_per_second).expect("a small limit");
    let feeds = happens.each_ref().map(|it| Feed::new(it));
    let mut state = State { feeds, arrivals: VecDeque::new(), limit, end };
    let mut tally = Tally::default();
    let mut way = ways.round_trip();
    let mut now = trial.starts_at + way.0;
    let mut lost_before = None;
    while now < trial.ends_at {
        state.advance(now);
        lost_before.get_or_insert_with(|| state.begin());
        let Some(feed) = state.choose(now) else {
            now = state.free_at(state.wanted_at().map_or(now + STEP, |at| at.min(now + STEP)));
            continue;
        };
        let taken = state.ask(feed, now);
        tally.requests.asked += 1;
        tally.requests.most_in_a_second =
            tally.requests.most_in_a_second.max(state.arrivals.len() as u64);
        if now >= trial.measured_from {
            tally.measured_requests += 1;
            taken.iter().for_each(|at| tally.ages.note(now + way.1 - *at));
        }
        tally.events.taken += taken.len() as u64;
        way = ways.round_trip();
        now = state.free_at(now);
    }
    state.advance(trial.ends_at);
    for feed in &state.feeds {
        tally.events.made += feed.made as u64;
        tally.events.overwritten += feed.overwritten;
        tally.events.overwritten_of_later += feed.overwritten_of_later as u64;
        tally.events.fullest = tally.events.fullest.max(feed.fullest as u64);
    }
    tally.events.overwritten_once_asked = tally.events.overwritten - lost_before.unwrap_or(0);
    tally.measured = trial.ends_at.saturating_sub(trial.measured_from);
    tally
}

// === impl State ===

impl<'a> State<'a> {
    fn advance(&mut self, now: Duration) {
        self.feeds.iter_mut().for_each(|feed| feed.advance(now));
        while self.arrivals.front().is_some_and(|at| *at + SECOND <= now) {
            self.arrivals.pop_front();
        }
    }

    /// Marks the first request; returns the number of events lost before it.
    fn begin(&mut self) -> u64 {
        self.feeds.iter_mut().for_each(|feed| feed.before = feed.made);
        self.feeds.iter().map(|feed| feed.overwritten).sum()
    }

    /// The earliest time, `now` or later, at which a request may arrive.
    fn free_at(&self, now: Duration) -> Duration {
        match self.arrivals.len().checked_sub(self.limit) {
            Some(over) => self.arrivals.get(over).map_or(now, |counts| now.max(*counts + SECOND)),
            None => now,
        }
    }

    /// The feed to poll at `now`, if any.
    fn choose(&self, now: Duration) -> Option<usize> {
        if self.free_at(now) > now {
            return None;
        }
        self.most_urgent(now).or_else(|| {
            let feed = self.oldest_event().filter(|_| self.is_rested(now))?;
            let mut spent = self.clone();
            spent.ask(feed, now);
            (spent.would_lose(now) <= self.clone().would_lose(now)).then_some(feed)
        })
    }

    /// Whether the last request is long enough ago for even spacing.
    fn is_rested(&self, now: Duration) -> bool {
        let distance = SECOND.checked_div(u32::try_from(self.limit).unwrap_or(u32::MAX));
        self.arrivals.back().is_none_or(|last| *last + distance.unwrap_or_default() <= now)
    }

    /// When rule 1 next wants a request, if ever.
    fn wanted_at(&self) -> Option<Duration> {
        self.feeds.iter().filter_map(Feed::wanted_at).min()
    }

    /// Of the feeds that rule 1 wants to poll, the one that overflows soonest.
    fn most_urgent(&self, now: Duration) -> Option<usize> {
        let is_wanted = |feed: &Feed| feed.wanted_at().is_some_and(|at| at <= now);
        let full = self.feeds.iter().enumerate().filter(|(_, feed)| is_wanted(feed));
        full.min_by_key(|(_, feed)| feed.runs_over_at()).map(|it| it.0)
    }

    fn oldest_event(&self) -> Option<usize> {
        let waiting = self.feeds.iter().enumerate().filter(|(_, feed)| feed.waits() > 0);
        waiting.min_by_key(|(_, feed)| feed.happens.get(feed.gone)).map(|it| it.0)
    }

    fn ask(&mut self, feed: usize, now: Duration) -> &'a [Duration] {
        self.arrivals.push_back(now);
        self.feeds.get_mut(feed).expect("an App ID has two feeds").take()
    }

    /// The number of events lost from `now` until the end by rule 1.
    fn would_lose(mut self, mut now: Duration) -> u64 {
        let lost = |state: &Self| state.feeds.iter().map(|it| it.overwritten).sum::<u64>();
        let before = lost(&self);
        let end = self.end;
        loop {
            now = self.free_at(now);
            now = now.max(self.wanted_at().unwrap_or(end));
            if now >= end {
                self.advance(end);
                return lost(&self) - before;
            }
            self.advance(now);
            if let Some(feed) = self.most_urgent(now) {
                self.ask(feed, now);
            }
        }
    }
}

// === impl Feed ===

impl<'a> Feed<'a> {
    fn new(happens: &'a [Duration]) -> Self {
        Self {
            happens,
            made: 0,
            gone: 0,
            overwritten: 0,
            before: usize::MAX,
            overwritten_of_later: 0,
            fullest: 0,
        }
    }

    fn advance(&mut self, now: Duration) {
        let rest = self.happens.get(self.made..).unwrap_or_default();
        self.made += rest.partition_point(|at| *at <= now);
        let over = self.waits().saturating_sub(buffer());
        let later = (self.gone + over).saturating_sub(self.gone.max(self.before));
        self.overwritten_of_later += later;
        self.gone += over;
        self.overwritten += over as u64;
    }

    fn waits(&self) -> usize {
        self.made - self.gone
    }

    /// When the first event is overwritten without a request; `None` is later than any time.
    fn runs_over_at(&self) -> (bool, Option<&Duration>) {
        let at = self.happens.get(self.gone + buffer());
        (at.is_none(), at)
    }

    /// When rule 1 wants to poll it.
    fn wanted_at(&self) -> Option<Duration> {
        let full = *self.happens.get(self.gone + page() - 1)?;
        let just_before = full.saturating_sub(Duration::from_nanos(1));
        // The event that fills the page also overflows the buffer: the last chance is just before
        // it.
        let is_burst = self.happens.get(self.gone + buffer()) == Some(&full);
        let waits_before = self.happens.get(self.gone).is_some_and(|at| *at <= just_before);
        Some(if is_burst && waits_before { just_before } else { full })
    }

    fn take(&mut self) -> &'a [Duration] {
        self.fullest = self.fullest.max(self.waits());
        let end = self.made.min(self.gone + page());
        let taken = self.happens.get(self.gone..end).unwrap_or_default();
        self.gone = end;
        taken
    }
}

fn page() -> usize {
    usize::try_from(PAGE_LIMIT).expect("1,000 fits everywhere")
}

fn buffer() -> usize {
    usize::try_from(BUFFER_LIMIT).expect("2,000 fits everywhere")
}
