//! What a program could do that knows everything: the buffers, the future, and how long each
//! request will be on its way. Nobody can; it is what is left to gain.
//!
//! It decides at Agora itself: a request arrives just when it shall, never more than the limit
//! within a second. Whenever a request is free:
//!
//! 1. A feed that holds a full page is asked, the one that runs over soonest first: a full page is
//!    the most that a request can fetch, so nothing is wasted. So is one that the next event would
//!    make run over, which is how a burst looks just before it comes.
//! 2. Otherwise the feed whose oldest event is oldest is asked, so that events get fresh, at even
//!    distances, and only if this loses nothing: what rule 1 alone would lose until the end is
//!    played through with this request spent and with it saved, and it is spent where that is no
//!    more.
//!
//! Rule 2 empties a feed ahead of a burst just as well as it keeps requests for one. So no more is
//! lost than rule 1 alone would lose. Where it loses nothing it is the best there is; where it loses,
//! some other plan may lose less, and its ages are good ones, not the best.

use std::collections::VecDeque;
use std::time::Duration;

use agora_rtm_bridge::model::BUFFER_LIMIT;
use agora_rtm_bridge::model::Endpoint;
use agora_rtm_bridge::model::PAGE_LIMIT;
use agora_rtm_bridge::plan::Tally;
use agora_rtm_bridge::plan::Trial;
use agora_rtm_bridge::simulator::Counted;

const SECOND: Duration = Duration::from_secs(1);

/// How often it thinks again while nothing is worth a request.
const STEP: Duration = Duration::from_millis(20);

/// How things stand at a moment.
#[derive(Clone)]
struct State<'a> {
    feeds: [Feed<'a>; 2],
    /// When the requests that still count arrived.
    arrivals: VecDeque<Duration>,
    limit: usize,
    end: Duration,
}

/// A buffer, with all that will ever happen to it.
#[derive(Clone)]
struct Feed<'a> {
    happens: &'a [Duration],
    /// How many have happened.
    made: usize,
    /// How many of them are gone, handed over or overwritten.
    gone: usize,
    overwritten: u64,
    /// How many had happened when it was first asked, and how many later ones were overwritten.
    before: usize,
    overwritten_of_later: usize,
    fullest: usize,
}

/// Plays the trial.
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

    /// Notes that it is asked for the first time; how much is lost already.
    fn begin(&mut self) -> u64 {
        self.feeds.iter_mut().for_each(|feed| feed.before = feed.made);
        self.feeds.iter().map(|feed| feed.overwritten).sum()
    }

    /// The first moment from `now` on at which a request may arrive.
    fn free_at(&self, now: Duration) -> Duration {
        match self.arrivals.len().checked_sub(self.limit) {
            Some(over) => self.arrivals.get(over).map_or(now, |counts| now.max(*counts + SECOND)),
            None => now,
        }
    }

    /// Whom to ask at `now`, if anybody.
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

    /// Whether the last request is long enough ago that they come at even distances.
    fn is_rested(&self, now: Duration) -> bool {
        let distance = SECOND.checked_div(u32::try_from(self.limit).unwrap_or(u32::MAX));
        self.arrivals.back().is_none_or(|last| *last + distance.unwrap_or_default() <= now)
    }

    /// When rule 1 wants to ask next, if ever.
    fn wanted_at(&self) -> Option<Duration> {
        self.feeds.iter().filter_map(Feed::wanted_at).min()
    }

    /// Of the feeds that rule 1 wants to ask the one that runs over soonest.
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

    /// What is lost from `now` on until the end by rule 1.
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

    /// When the first event is overwritten if nobody asks; `None` is later than any.
    fn runs_over_at(&self) -> (bool, Option<&Duration>) {
        let at = self.happens.get(self.gone + buffer());
        (at.is_none(), at)
    }

    /// When rule 1 wants to ask it.
    fn wanted_at(&self) -> Option<Duration> {
        let full = *self.happens.get(self.gone + page() - 1)?;
        let just_before = full.saturating_sub(Duration::from_nanos(1));
        // What makes the page full makes the buffer run over: the last chance is just before.
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
