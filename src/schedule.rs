//! Which feed of an App ID to poll next, and when. Decisions only.
//!
//! No I/O, no clock, no task: the time goes in, a decision comes out ("poll this feed now" or
//! "nothing before T"). One [`Schedule`] serves all feeds of an App ID, because Agora applies its
//! rate limit to the App ID as a whole.
//!
//! * [`budget`]: how many requests may leave. Never more than the limit arrive within any second,
//!   as the server counts them.
//! * [`feed`]: when a feed wants to be polled, for freshness or because it is in need.
//! * [`forecast`]: how many events a feed will hold when a request gets there.
//! * [`skew`]: the offset between Agora's clock and ours, and from it the age of a page.
//! * [`overflow`]: whether Agora's buffer was found full.
//! * [`shared`]: the same where the endpoints of a region may share one buffer.
//! * [`hosts`]: which host of a feed to ask next, and how long to leave a failing or refusing host
//!   alone.
//! * [`lockout`]: what to do when every host refuses the credentials.
//!
//! Of the feeds that are due, the one nearest to overflow goes first. When the budget is short, the
//! freshness intervals stretch so that need comes first: near the ceiling of ten full pages a
//! second every request has to bring a full page, and an idle endpoint leaves its share to a busy
//! one.

mod budget;
mod feed;
mod forecast;
mod hosts;
mod lockout;
mod overflow;
mod shared;
mod skew;
mod way;

use std::num::NonZeroU32;
use std::time::Duration;

use rand::SeedableRng as _;
use rand::rngs::StdRng;
use tokio::time::Instant;

use self::budget::Budget;
use self::feed::{Around, FeedPlan, Wish};
use self::forecast::gathering;
pub use self::hosts::Refusal;
use self::hosts::TurnedDown;
use self::lockout::Lockout;
pub use self::overflow::Suspected;
use self::shared::SharedBuffer;
use self::way::Way;
use crate::model::{BUFFER_LIMIT, PAGE_LIMIT, Pace, Timestamp};

/// Pause after a 429 without `Retry-After`. The app then continues with fewer requests a second; a
/// longer pause would overflow buffers that the slower pace alone can keep up with.
const WAIT_AFTER_THROTTLE: Duration = Duration::from_millis(250);

/// Share of the budget that is planned; the rest is for unplanned requests.
const PLANNED: f64 = 0.97;

/// The budget is short when need alone takes this share of it.
const SHORT: f64 = 0.9;

/// Freshness stretches to at most this many longest intervals …
const MOST_STRETCH: u32 = 5;

/// … or to this interval, if that is longer. With 2.5 s, an idle feed took enough requests from a
/// busy one at the ceiling to lose one event in a thousand.
const MOST_STRETCHED: Duration = Duration::from_secs(10);

/// A feed whose rate is below this share of another feed's recent growth delays its freshness …
const SMALL: f64 = 0.5;

/// … but to no longer an interval than this, because it may burst.
const IN_THE_SHADOW: Duration = Duration::from_secs(4);

/// When need takes this share of the budget, each request has to bring a full page.
const CROWDS: f64 = 0.95;

/// Total level, in events, from which feeds that may share a buffer are polled before it fills up.
const CROWDED: f64 = 0.75 * BUFFER_LIMIT as f64;

/// What the operator configured.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Maximum number of requests that arrive within a second.
    pub requests_per_second: NonZeroU32,
    /// Interval between two requests to an active feed.
    pub shortest_interval: Duration,
    /// Interval between two requests to an idle feed.
    pub longest_interval: Duration,
}

/// Requests of a previous process, as far as they are known. They still count.
#[derive(Clone, Debug)]
pub struct Former {
    /// When its last requests left, as far as that is known.
    pub sent: Vec<Instant>,
    /// Nothing is polled before this moment.
    pub not_before: Instant,
    /// Until this moment the server may be counting requests that we know nothing about: each feed
    /// is polled once and no more.
    pub unknown_until: Instant,
}

/// What to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Poll this feed through this one of its hosts.
    Ask {
        /// Index of the feed.
        feed: usize,
        /// Index of the host.
        host: usize,
    },
    /// Nothing before this moment, unless an answer arrives.
    Wait(Instant),
    /// Nothing before an answer arrives.
    WaitForAnswer,
}

/// What is known about a feed before its first request.
#[derive(Clone, Copy, Debug)]
pub struct FeedFacts {
    /// Number of its region. The feeds of a region have the same hosts, and may share a buffer.
    pub region: usize,
    /// Number of hosts that serve it, in failover order.
    pub hosts: usize,
    /// What a previous process knew about it, and how long ago that was.
    pub known: Option<(Pace, Duration)>,
}

/// Identifies an in-flight request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked(u64);

/// When a request ended.
#[derive(Clone, Copy, Debug)]
pub struct Answered {
    /// When the head of its answer arrived, if it did: the request had reached the server by then.
    pub head_at: Option<Instant>,
    /// When the request ended.
    pub now: Instant,
    /// The same moment by the wall clock.
    pub wall: Timestamp,
}

/// How a request ended, as far as the schedule is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A page, or an answer that says there is nothing.
    Events(Seen),
    /// The server says that we ask too often, and may name a delay.
    Throttled {
        /// `Retry-After`.
        retry_after: Option<Duration>,
    },
    /// The host failed; the next request may work.
    Failed {
        /// `Retry-After`.
        retry_after: Option<Duration>,
    },
    /// The host refused the request, and may keep doing so until a person intervenes.
    Refused {
        /// What the host refuses.
        refusal: Refusal,
        /// `Retry-After`.
        retry_after: Option<Duration>,
    },
    /// Refused for credentials that have been replaced since. This doesn't count against the host.
    Outdated,
}

/// What the schedule learns from a page. The default is an empty answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Number of events in the page.
    pub events: u64,
    /// Times of the first and the last event, as stated by Agora; `None` if they can't be read or
    /// are in whole seconds.
    pub times: Option<(Timestamp, Timestamp)>,
    /// The page was cut off: it may have held more.
    pub torn: bool,
}

/// The plan for one App ID.
#[derive(Debug)]
pub struct Schedule {
    limits: Limits,
    budget: Budget,
    feeds: Vec<FeedPlan>,
    /// For each feed, the index of the way to its first host; its other hosts follow.
    ways: Vec<usize>,
    lockout: Lockout,
    unknown_until: Instant,
    shared: Vec<SharedBuffer>,
    next: u64,
    random: StdRng,
}

// === impl Outcome ===

impl Outcome {
    /// Whether the host accepted the credentials, even if it then refused the request.
    pub fn accepts_credentials(&self) -> bool {
        match self {
            Self::Events(_) | Self::Throttled { .. } => true,
            Self::Refused { refusal, .. } => *refusal == Refusal::Request,
            Self::Failed { .. } | Self::Outdated => false,
        }
    }
}

// === impl Schedule ===

impl Schedule {
    /// Creates a plan for these feeds.
    pub fn new(
        limits: Limits,
        feeds: &[FeedFacts],
        now: Instant,
        former: Former,
        seed: u64,
    ) -> Self {
        let hosts = feeds.iter().map(|facts| facts.hosts).max().unwrap_or(0);
        let ways: Vec<usize> = feeds.iter().map(|facts| facts.region * hosts).collect();
        let most = ways.iter().max().map_or(0, |first| first + hosts);
        let Former { sent, not_before, unknown_until } = former;
        Self {
            limits,
            budget: Budget::new(limits.requests_per_second, most, not_before, sent),
            ways,
            lockout: Lockout::default(),
            unknown_until,
            feeds: feeds
                .iter()
                .map(|facts| FeedPlan::new(facts, feeds.len(), &limits, now))
                .collect(),
            shared: regions(feeds).map(SharedBuffer::new).collect(),
            next: 0,
            random: StdRng::seed_from_u64(seed),
        }
    }

    /// Decides what to do at `now`.
    pub fn next(&self, now: Instant) -> Decision {
        let nearest = self.nearest(now);
        let Some(free) = self.budget.free_at(nearest) else { return Decision::WaitForAnswer };
        if self.is_locked_out() {
            return self.probe(now, free);
        }
        let free = if self.is_short() { free.max(self.budget.next_in_step()) } else { free };
        let mut wishes = self.wishes(now);
        self.crowded(&mut wishes, now);
        let next_free = self.budget.free_after(now.max(free), nearest);
        // Don't spend the last free request on a wish that can wait if a more urgent feed will be
        // in need before the next request is free, and can't wait that long.
        let waits = |wish: &Wish| {
            let due = wish.due();
            let patience = wish.patience(now);
            let mut rivals = wishes.iter().filter(|(_, rival)| rival.compare_urgency(wish).is_lt());
            let hurts = rivals.any(|(_, rival)| rival.bears_until(patience) < next_free);
            if hurts { next_free.max(due) } else { due }
        };
        let due: Vec<(Instant, usize, Wish)> =
            wishes.iter().map(|(feed, wish)| (waits(wish), *feed, *wish)).collect();
        let Some(earliest) = due.iter().map(|it| it.0).min() else {
            return Decision::WaitForAnswer;
        };
        let at = earliest.max(free);
        if now < at {
            return Decision::Wait(at);
        }
        let due_now = due.iter().filter(|(at, ..)| *at <= now);
        let first = due_now.min_by(|one, other| one.2.compare_urgency(&other.2));
        // A feed that would overflow before the next request may leave goes first, due or not.
        let endangered = due.iter().filter(|(.., wish)| {
            wish.not_before <= now && wish.over.is_some_and(|at| at < next_free)
        });
        let first = endangered.chain(first).min_by(|one, other| one.2.compare_urgency(&other.2));
        let (_, feed, _) = first.expect("the earliest is due");
        let plan = self.feeds.get(*feed).expect("wishes are those of the feeds");
        Decision::Ask { feed: *feed, host: plan.host(now) }
    }

    /// Records that a request to a feed leaves now.
    pub fn asked(&mut self, feed: usize, now: Instant) -> Asked {
        let asked = Asked(self.next);
        self.next += 1;
        let unknown_until = self.unknown_until;
        let others = self.rate_of_others(feed);
        let plan = self.feed(feed);
        plan.asked(asked, others, now);
        if now < unknown_until {
            plan.postponed(unknown_until);
        }
        let way = self.way(feed, asked).expect("it was asked just now");
        self.budget.spend(asked, way, now);
        asked
    }

    /// Records that the head of an answer has arrived, while its body may still be on the way.
    pub fn heard(&mut self, asked: Asked, head_at: Instant) {
        self.budget.heard(asked, head_at);
        self.feeds.iter_mut().for_each(|plan| plan.heard(asked, head_at));
    }

    /// Records that we couldn't poll a feed, for a local reason. It is due again at `until`.
    pub fn postponed(&mut self, feed: usize, until: Instant) {
        self.feed(feed).postponed(until);
    }

    /// Records how a request ended. Returns where Agora's buffer may have overflowed before it.
    pub fn answered(
        &mut self,
        asked: Asked,
        when: Answered,
        outcome: Outcome,
    ) -> Option<Suspected> {
        if let Some(head_at) = when.head_at {
            self.heard(asked, head_at);
        }
        self.budget.ended(asked, when.now);
        let was_locked_out = self.is_locked_out();
        let asker = self.feeds.iter().position(|plan| plan.asks(asked).is_some());
        let feed = asker.expect("a request is answered once");
        let way = self.way(feed, asked).expect("the feed asked it");
        let Self { limits, random, budget, feeds, shared, .. } = self;
        let plan = feeds.get_mut(feed).expect("it was found there");
        let mut suspected = None;
        let turned_down = match outcome {
            Outcome::Events(seen) => {
                suspected = plan.answered(asked, when, seen, limits, budget.fastest(way));
                if let Some(emptied) = plan.emptied() {
                    let found = shared.iter_mut().map(|it| it.observe(feed, emptied));
                    found.for_each(|found| accuse(feeds, found));
                }
                None
            }
            Outcome::Throttled { retry_after } => {
                let sent = plan.turned_away(asked).expect("the feed asked it");
                let wait = retry_after.unwrap_or(WAIT_AFTER_THROTTLE);
                budget.throttled(sent, when.now, when.now + wait);
                return None;
            }
            Outcome::Outdated => {
                plan.turned_away(asked);
                None
            }
            Outcome::Failed { retry_after } => Some(TurnedDown { refuses: None, retry_after }),
            Outcome::Refused { refusal, retry_after } => {
                Some(TurnedDown { refuses: Some(refusal), retry_after })
            }
        };
        if let Some(how) = turned_down {
            let plan = feeds.get_mut(feed).expect("it was found there");
            plan.turned_down(asked, how, when.now, limits, random);
        }
        budget.admitted();
        if self.is_locked_out() {
            self.lockout.refused(when.now, &mut self.random);
        } else if was_locked_out && outcome.accepts_credentials() {
            // Give the other feeds their chance immediately.
            self.credentials_changed(when.now);
        }
        suspected
    }

    /// Records that the app has new credentials: refusals of the old ones no longer count.
    pub fn credentials_changed(&mut self, now: Instant) {
        self.lockout = Lockout::default();
        self.feeds.iter_mut().for_each(|plan| plan.forgive_credentials(now));
    }

    /// Whether every host of every feed refuses the credentials, as far as is known.
    pub fn is_locked_out(&self) -> bool {
        !self.feeds.is_empty() && self.feeds.iter().all(FeedPlan::refuses_credentials)
    }

    /// How long the feed is paused from `now` on, because its hosts asked for it or all turned it
    /// down.
    pub fn rests(&self, feed: usize, now: Instant) -> Duration {
        let plan = self.feeds.get(feed).expect("feeds are counted once, at the start");
        let probe = self.lockout.next_probe().filter(|_| self.is_locked_out());
        let until = probe.unwrap_or(plan.not_before()).max(self.budget.not_before());
        until.saturating_duration_since(now)
    }

    /// Takes the suspicion of a feed that is not reported yet; for the end of the process.
    pub fn suspicion(&mut self, feed: usize) -> Option<Suspected> {
        for shared in &mut self.shared {
            accuse(&mut self.feeds, shared.rest());
        }
        self.feed(feed).suspicion()
    }

    /// What is known about a feed's pace, for the next process.
    pub fn pace(&self, feed: usize, now: Instant) -> Pace {
        self.feeds.get(feed).expect("feeds are counted once, at the start").pace(now)
    }

    /// Expected level of a feed, in events; `None` before its first answer.
    pub fn level(&self, feed: usize, now: Instant) -> Option<f64> {
        self.feeds.get(feed).expect("feeds are counted once, at the start").level(now)
    }

    /// Fastest recent round trip to the host of this request; zero while it is not well known.
    pub fn fastest_round_trip(&self, asked: Asked) -> Duration {
        let way = (0..self.feeds.len()).find_map(|feed| self.way(feed, asked));
        way.map_or(Duration::ZERO, |way| self.budget.fastest(way))
    }

    /// The host that this request was sent to.
    pub fn host(&self, asked: Asked) -> usize {
        let host = self.feeds.iter().find_map(|plan| plan.asks(asked));
        host.expect("a request is out until it is answered")
    }

    /// What each feed wishes for itself; without the feeds that have to wait for an answer.
    fn wishes(&self, now: Instant) -> Vec<(usize, Wish)> {
        let intervals = self.fresh_intervals(now);
        let in_step = self.budget.in_step(self.planned(&intervals));
        let mut wishes = Vec::with_capacity(self.feeds.len());
        for ((feed, plan), fresh_interval) in self.feeds.iter().enumerate().zip(intervals) {
            let others = self.feeds.iter().enumerate().filter(|(other, _)| *other != feed);
            let burst = others.filter_map(|(_, other)| other.burst_found()).max();
            let others = self.rate_of_others(feed);
            let around = Around { fresh_interval, in_step, others, burst };
            wishes.extend(plan.wish(around, now).map(|wish| (feed, wish)));
        }
        wishes
    }

    /// Where feeds may share a buffer, puts the fullest one in need before their sum overflows,
    /// unless the budget only suffices for full pages.
    fn crowded(&self, wishes: &mut [(usize, Wish)], now: Instant) {
        // A request that brings this share of a full page is not wasted.
        let soon: f64 = self.feeds.iter().map(FeedPlan::pages_per_second_soon).sum();
        let fill = soon / (self.budget.sustained() * PLANNED);
        if fill >= CROWDS {
            return;
        }
        for shared in &self.shared {
            let plans = shared.feeds().iter().filter_map(|feed| self.feeds.get(*feed));
            if plans.clone().any(FeedPlan::is_unsure) {
                continue;
            }
            let (mut level, mut rate, mut error) = (0.0, 0.0, 0.0);
            for plan in plans {
                level += plan.level_on_arrival(now);
                rate += plan.rate();
                error += plan.error().powi(2);
            }
            let of_it = wishes.iter_mut().filter(|(feed, _)| shared.feeds().contains(feed));
            let levels = of_it.filter_map(|(feed, wish)| {
                Some((self.feeds.get(*feed)?.level_on_arrival(now), wish))
            });
            let Some((of_fullest, wish)) = levels.max_by(|one, other| one.0.total_cmp(&other.0))
            else {
                continue;
            };
            let reached =
                |events: f64, level: f64, rate: f64| now + gathering(events - level, rate);
            let is_worth_it = reached(fill * PAGE_LIMIT as f64, of_fullest, wish.rate);
            let needed = reached(CROWDED, level, rate).max(is_worth_it);
            let brim = BUFFER_LIMIT as f64 - feed::ERRORS_BELOW_THE_BUFFER * error.sqrt();
            wish.crowd(needed, reached(brim, level, rate));
        }
    }

    fn rate_of_others(&self, feed: usize) -> f64 {
        let others = self.feeds.iter().enumerate().filter(|(other, _)| *other != feed);
        others.map(|(_, plan)| plan.rate()).sum()
    }

    /// How many full pages a second all feeds fill together.
    fn needed(&self) -> f64 {
        self.feeds.iter().map(FeedPlan::pages_per_second).sum()
    }

    /// Whether need alone takes nearly all of the budget.
    fn is_short(&self) -> bool {
        self.needed() >= SHORT * self.budget.sustained()
    }

    /// For each feed, the interval after which freshness wants the next request.
    fn fresh_intervals(&self, now: Instant) -> Vec<Duration> {
        let stretch = self.stretch(FeedPlan::pages_per_second, now);
        // A feed that grew recently may keep growing; the others' freshness must not have spent the
        // requests that it will need.
        let surge = self.feeds.iter().map(FeedPlan::surge).fold(0.0, f64::max);
        let wary = self.stretch(FeedPlan::pages_per_second_soon, now);
        let most = (self.limits.longest_interval * MOST_STRETCH).max(MOST_STRETCHED);
        let interval = |plan: &FeedPlan| {
            let interval = plan.fresh_interval(&self.limits, now);
            let usual = interval.mul_f64(stretch).min(most);
            let in_the_shadow = plan.rate() < SMALL * surge && !plan.bursts(now);
            if !in_the_shadow {
                return usual;
            }
            usual.max(interval.mul_f64(wary).min(IN_THE_SHADOW))
        };
        self.feeds.iter().map(interval).collect()
    }

    /// The factor by which freshness has to stretch to fit into the budget that need leaves.
    fn stretch(&self, need: fn(&FeedPlan) -> f64, now: Instant) -> f64 {
        let mut left = self.budget.sustained() * PLANNED;
        let mut rest: Vec<(f64, f64)> = self
            .feeds
            .iter()
            .map(|plan| {
                let fresh = plan.fresh_interval(&self.limits, now).as_secs_f64().recip();
                (need(plan), fresh)
            })
            .collect();
        // Each feed gets what it needs and the others share the rest, until that changes nothing.
        let mut stretch: f64 = 1.0;
        loop {
            let needy: f64 =
                rest.iter().filter(|(need, fresh)| *need >= fresh / stretch).map(|it| it.0).sum();
            rest.retain(|(need, fresh)| *need < fresh / stretch);
            left -= needy;
            let wanted: f64 = rest.iter().map(|(_, fresh)| fresh).sum();
            if wanted <= left * stretch * (1.0 + f64::EPSILON) {
                return stretch;
            }
            let longest = f64::from(MOST_STRETCH) * 1_000.0;
            if left <= wanted / longest {
                return longest;
            }
            stretch = wanted / left;
        }
    }

    /// How many requests a second these intervals lead to.
    fn planned(&self, intervals: &[Duration]) -> f64 {
        let of = |(plan, interval): (&FeedPlan, &Duration)| {
            plan.pages_per_second().max(interval.as_secs_f64().recip())
        };
        self.feeds.iter().zip(intervals).map(of).sum()
    }

    /// While every host refuses the credentials: one request at a time, each feed in turn.
    fn probe(&self, now: Instant, free: Instant) -> Decision {
        if self.feeds.iter().any(FeedPlan::is_asking) {
            return Decision::WaitForAnswer;
        }
        let at = free.max(self.lockout.next_probe().unwrap_or(now));
        if now < at {
            return Decision::Wait(at);
        }
        let longest_ago = self.feeds.iter().enumerate().min_by_key(|(_, plan)| plan.last_sent());
        let (feed, plan) = longest_ago.expect("an app that is locked out has feeds");
        Decision::Ask { feed, host: plan.host(now) }
    }

    /// Fastest round trip to the nearest host that a feed would ask now; zero while one of them is
    /// not well known.
    fn nearest(&self, now: Instant) -> Duration {
        let ways = self.ways.iter().zip(&self.feeds);
        let ways = ways.map(|(first, plan)| Way(first + plan.host(now)));
        ways.map(|way| self.budget.fastest(way)).min().unwrap_or_default()
    }

    /// The way that a request to a feed takes; `None` if the request is not this feed's.
    fn way(&self, feed: usize, asked: Asked) -> Option<Way> {
        let host = self.feeds.get(feed)?.asks(asked)?;
        Some(Way(self.ways.get(feed)? + host))
    }

    fn feed(&mut self, feed: usize) -> &mut FeedPlan {
        self.feeds.get_mut(feed).expect("feeds are counted once, at the start")
    }
}

/// The feeds of each region.
fn regions(feeds: &[FeedFacts]) -> impl Iterator<Item = Vec<usize>> {
    let count = feeds.iter().map(|it| it.region + 1).max().unwrap_or(0);
    (0..count).map(move |region| {
        let feeds = feeds.iter().enumerate();
        feeds.filter(|(_, it)| it.region == region).map(|(feed, _)| feed).collect()
    })
}

/// Suspects these feeds of an overflow.
fn accuse(feeds: &mut [FeedPlan], found: Vec<(usize, shared::LossBounds)>) {
    for (feed, bounds) in found {
        if let Some(plan) = feeds.get_mut(feed) {
            plan.accuse(bounds);
        }
    }
}

#[cfg(test)]
mod tests;
