//! How many requests of an App ID may leave.
//!
//! What must hold is what the server counts: no more than the limit *arrive* in any second. When a
//! request arrives we don't know; but it has arrived when its answer is there, and the answer took
//! its own way back. So of a request that was answered at `a` it is known that it arrived no later
//! than `a` less the way back, and a new one arrives no earlier than now plus the way there: with
//! the fastest round trip that was seen, it counts until `a` − fastest + one second. A request that
//! is still out may arrive at any moment (a connection takes round trips to come about, a packet is
//! sent again), so it counts until it is answered.
//!
//! On a steady way this is the log of the last ten send times; on one that jitters it costs just
//! the jitter that happened. The slack on top is for what the fastest round trip is not known to be:
//! it shrinks from [`FIRST_SLACK`] to [`LEAST_SLACK`] as answers come. And it is taken for zero
//! until [`ANSWERS_TO_TRUST`] have come: the first answers are slow, they wait for connections.

use std::num::NonZeroU32;
use std::time::Duration;

use tokio::time::Instant;

/// What the server counts over.
const WINDOW: Duration = Duration::from_secs(1);

/// Slack before anything was learned.
const FIRST_SLACK: Duration = Duration::from_millis(40);

/// Slack when the way is known well.
const LEAST_SLACK: Duration = Duration::from_millis(5);

/// After so many answers the slack is half of the first one.
const ANSWERS_TO_HALF: u32 = 20;

/// So many answers make the fastest of them believable.
const ANSWERS_TO_TRUST: u32 = 20;

/// How long the fastest round trip is believed: routes change.
const MEMORY: Duration = Duration::from_secs(60);

/// After a 429, how long until one more request a second is dared again.
const RECOVERY: Duration = Duration::from_secs(10);

/// The requests of an App ID.
#[derive(Debug)]
pub(super) struct Budget {
    limit: usize,
    /// What is dared after a 429; otherwise the limit.
    dared: usize,
    dared_since: Instant,
    not_before: Instant,
    spent: Vec<Spent>,
    way: Way,
}

/// A request that counts.
#[derive(Debug)]
struct Spent {
    sent: Instant,
    /// When it has arrived for certain; `None` while it is out.
    arrived: Option<Instant>,
}

/// What is known of the way to the server.
#[derive(Debug)]
struct Way {
    answers: u32,
    /// The fastest round trip of this span of time, and of the one before.
    fastest: [Duration; 2],
    since: Instant,
}

// === impl Budget ===

impl Budget {
    /// A budget of which these requests are spent, and nothing may be before `not_before`.
    pub(super) fn new(limit: NonZeroU32, not_before: Instant, sent: Vec<Instant>) -> Self {
        let limit = usize::try_from(limit.get()).expect("a limit of a few requests");
        let spent = sent.into_iter().map(|sent| Spent { sent, arrived: Some(sent) });
        Self {
            limit,
            dared: limit,
            dared_since: not_before,
            not_before,
            spent: spent.collect(),
            way: Way::new(not_before),
        }
    }

    /// The moment from which on the next request may leave; `None` where an answer has to come
    /// first.
    pub(super) fn free_at(&self) -> Option<Instant> {
        let Some(too_many) = self.spent.len().checked_sub(self.dared) else {
            return Some(self.not_before);
        };
        let mut ends: Vec<Instant> =
            self.spent.iter().filter_map(|it| it.counts_until(self.way.slack())).collect();
        ends.sort();
        ends.get(too_many).map(|end| self.not_before.max(*end))
    }

    /// Notes that a request leaves.
    pub(super) fn spend(&mut self, now: Instant) {
        debug_assert!(
            self.free_at().is_some_and(|free| free <= now),
            "a request left before the budget allowed it"
        );
        while self.dared < self.limit && now >= self.dared_since + RECOVERY {
            self.dared += 1;
            self.dared_since += RECOVERY;
        }
        let slack = self.way.slack();
        self.spent.retain(|it| it.counts_until(slack).is_none_or(|end| end > now));
        self.spent.push(Spent { sent: now, arrived: None });
    }

    /// Notes that the request of `asked_at` has its end. `answered` where an answer came: only then
    /// its time tells something about the way.
    pub(super) fn ended(&mut self, asked_at: Instant, now: Instant, answered: bool) {
        let took = now.duration_since(asked_at);
        if answered {
            self.way.learn(took, now);
        }
        let request = self.spent.iter_mut().find(|it| it.sent == asked_at && it.arrived.is_none());
        if let Some(request) = request {
            request.arrived = Some(now - self.way.fastest().min(took));
        }
    }

    /// The server counts more than we do: slower at once, and nothing before `until`.
    pub(super) fn throttled(&mut self, until: Instant) {
        self.dared = (self.dared / 2).max(1);
        self.dared_since = until;
        self.not_before = self.not_before.max(until);
    }
}

// === impl Spent ===

impl Spent {
    /// Until when it counts; `None` while it is out.
    fn counts_until(&self, slack: Duration) -> Option<Instant> {
        self.arrived.map(|arrived| arrived + WINDOW + slack)
    }
}

// === impl Way ===

impl Way {
    fn new(now: Instant) -> Self {
        Self { answers: 0, fastest: [Duration::MAX; 2], since: now }
    }

    fn learn(&mut self, took: Duration, now: Instant) {
        let [current, before] = self.fastest;
        if now > self.since + MEMORY {
            self.fastest = [took, current];
            self.since = now;
        } else {
            self.fastest = [current.min(took), before];
        }
        self.answers = self.answers.saturating_add(1);
    }

    /// The fastest round trip; zero where it is not known well.
    fn fastest(&self) -> Duration {
        let [current, before] = self.fastest;
        if self.answers < ANSWERS_TO_TRUST { Duration::ZERO } else { current.min(before) }
    }

    fn slack(&self) -> Duration {
        let share =
            f64::from(ANSWERS_TO_HALF) / f64::from(ANSWERS_TO_HALF.saturating_add(self.answers));
        FIRST_SLACK.mul_f64(share).max(LEAST_SLACK)
    }
}
