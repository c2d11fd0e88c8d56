//! Who is asked next, and when: pure decisions of one App ID.
//!
//! No I/O, no clock, no task: the time goes in, an answer comes out ("ask this feed now", "nothing
//! before T"). One [`Schedule`] serves all feeds of an App ID, because Agora counts the requests of
//! an App ID together.
//!
//! * [`budget`]: how many requests may leave. Never more than the limit in any second, as the
//!   server counts them.
//! * [`forecast`]: how soon a feed could overflow. It only ever shortens the wait.
//! * [`skew`]: how Agora's clock relates to ours, and so how old a page is.
//! * [`overflow`]: whether Agora's buffer was found full.
//! * [`backoff`]: how long a feed that fails is left alone, and which host is asked next.
//!
//! A full page means that more is waiting: the feed is due at once. A page with events makes it due
//! after the shortest interval; an empty answer doubles the interval up to the longest. Of the feeds
//! that are due the one nearest to overflow goes first.

mod backoff;
mod budget;
mod forecast;
mod overflow;
mod skew;

use std::num::NonZeroU32;
use std::time::Duration;

use rand::SeedableRng as _;
use rand::rngs::StdRng;
use tokio::time::Instant;

use self::backoff::Backoff;
use self::budget::Budget;
use self::forecast::Forecast;
pub use self::overflow::Emptying;
pub use self::overflow::Overflow;
pub use self::overflow::Suspected;
pub use self::skew::Skew;
use crate::model::PAGE_LIMIT;

/// How long an app is left alone after a refusal that only a person can end: wrong credentials, a
/// wrong App ID, a service that is not enabled.
const WAIT_AFTER_REFUSAL: Duration = Duration::from_secs(60);

/// How long an app is left alone after a 429 without `Retry-After`: what the server counts is over
/// then.
const WAIT_AFTER_THROTTLE: Duration = Duration::from_secs(1);

/// What the operator decided.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Requests that may arrive within a second.
    pub requests_per_second: NonZeroU32,
    /// Between two requests to a feed in which something happens.
    pub shortest_interval: Duration,
    /// Between two requests to a feed in which nothing happens.
    pub longest_interval: Duration,
}

/// What is known of requests that a former process sent: they still count.
#[derive(Clone, Debug)]
pub struct Former {
    /// When its last requests left, as far as that is known.
    pub sent: Vec<Instant>,
    /// Nothing is asked before.
    pub not_before: Instant,
}

/// What to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Ask this feed, on this one of its hosts.
    Ask {
        /// Index of the feed.
        feed: usize,
        /// Index of the host.
        host: usize,
    },
    /// Nothing before this moment, unless an answer comes.
    Wait(Instant),
    /// Nothing before an answer comes.
    WaitForAnswer,
}

/// How a request ended, as far as the schedule is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// So many events came; 0 where the buffer was empty.
    Events(u64),
    /// The server says that we ask too often. With the delay that it names.
    Throttled {
        /// `Retry-After`.
        retry_after: Option<Duration>,
    },
    /// It failed, and may work the next time.
    Failed,
    /// It was refused, and will be until a person does something.
    Refused,
}

/// The plan for one App ID.
#[derive(Debug)]
pub struct Schedule {
    limits: Limits,
    budget: Budget,
    feeds: Vec<FeedPlan>,
    random: StdRng,
}

#[derive(Debug)]
struct FeedPlan {
    due: Instant,
    interval: Duration,
    asked_at: Option<Instant>,
    forecast: Forecast,
    backoff: Backoff,
}

// === impl Schedule ===

impl Schedule {
    /// A plan for feeds with so many hosts each.
    pub fn new(limits: Limits, hosts: &[usize], now: Instant, former: Former, seed: u64) -> Self {
        let feed = |hosts: &usize| FeedPlan {
            due: now,
            interval: limits.shortest_interval,
            asked_at: None,
            forecast: Forecast::new(now),
            backoff: Backoff::new(*hosts),
        };
        Self {
            limits,
            budget: Budget::new(limits.requests_per_second, former.not_before, former.sent),
            feeds: hosts.iter().map(feed).collect(),
            random: StdRng::seed_from_u64(seed),
        }
    }

    /// What to do at `now`.
    pub fn next(&self, now: Instant) -> Decision {
        let idle = || self.feeds.iter().enumerate().filter(|(_, feed)| feed.asked_at.is_none());
        let Some(earliest) = idle().map(|(_, feed)| feed.due).min() else {
            return Decision::WaitForAnswer;
        };
        let Some(free) = self.budget.free_at() else { return Decision::WaitForAnswer };
        let free = free.max(earliest);
        if now < free {
            return Decision::Wait(free);
        }
        let most_urgent = idle()
            .filter(|(_, feed)| feed.due <= now)
            .min_by_key(|(_, feed)| feed.overflows_at(self.limits.longest_interval));
        let (feed, plan) = most_urgent.expect("the earliest is due");
        Decision::Ask { feed, host: plan.backoff.host() }
    }

    /// Notes that a request to a feed leaves now.
    pub fn asked(&mut self, feed: usize, now: Instant) {
        self.budget.spend(now);
        self.feed(feed).asked_at = Some(now);
    }

    /// Notes that a feed could not be asked, for a reason that is ours: it is due again then.
    pub fn postponed(&mut self, feed: usize, until: Instant) {
        self.feed(feed).due = until;
    }

    /// Notes how a request ended.
    pub fn answered(&mut self, feed: usize, now: Instant, outcome: Outcome) {
        let limits = self.limits;
        let plan = self.feeds.get_mut(feed).expect("feeds are counted once, at the start");
        let asked_at = plan.asked_at.take().expect("an answer follows a request");
        self.budget.ended(asked_at, now, matches!(outcome, Outcome::Events(_)));
        match outcome {
            Outcome::Events(events) => {
                plan.backoff.succeeded(now);
                plan.forecast.observe(asked_at, events);
                plan.plan_next(asked_at, events, limits);
            }
            Outcome::Throttled { retry_after } => {
                plan.due = now;
                self.budget.throttled(now + retry_after.unwrap_or(WAIT_AFTER_THROTTLE));
            }
            Outcome::Failed => {
                plan.due = now + plan.backoff.failed(limits.shortest_interval, &mut self.random);
            }
            Outcome::Refused => plan.due = now + WAIT_AFTER_REFUSAL,
        }
    }

    fn feed(&mut self, feed: usize) -> &mut FeedPlan {
        self.feeds.get_mut(feed).expect("feeds are counted once, at the start")
    }
}

// === impl FeedPlan ===

impl FeedPlan {
    fn plan_next(&mut self, asked_at: Instant, events: u64, limits: Limits) {
        if events >= PAGE_LIMIT {
            self.interval = limits.shortest_interval;
            self.due = asked_at;
            return;
        }
        self.interval = if events > 0 {
            limits.shortest_interval
        } else {
            (self.interval * 2).min(limits.longest_interval)
        };
        let safe = self.forecast.safe_interval(asked_at).max(limits.shortest_interval);
        self.due = asked_at + self.interval.min(safe);
    }

    /// When the feed could overflow; a feed that waits too long comes to the front by itself.
    fn overflows_at(&self, longest_interval: Duration) -> Instant {
        (self.due + longest_interval).min(self.forecast.overflows_at())
    }
}

#[cfg(test)]
mod tests;
