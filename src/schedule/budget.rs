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
//! the jitter that happened. How much faster than the fastest one could be, [`Fastest`] tells. The slack
//! on top shrinks from [`FIRST_SLACK`] to [`LEAST_SLACK`] as answers come. What it can't cover is a way
//! that becomes faster from one request to the next; then the server may count one too many, once. And the fastest is taken for
//! zero until it can be believed: the first answers are slow, they wait for connections.
//!
//! When an answer's head is there, its request has arrived: that counts, and not the body's end.

use std::num::NonZeroU32;
use std::time::Duration;

use tokio::time::Instant;

use super::way::Fastest;

/// What the server counts over.
const WINDOW: Duration = Duration::from_secs(1);

/// Slack before anything was learned.
const FIRST_SLACK: Duration = Duration::from_millis(40);

/// Slack when the way is known well.
const LEAST_SLACK: Duration = Duration::from_millis(2);

/// After so many answers the slack is a quarter of the first one.
const ANSWERS_TO_QUARTER: u32 = 20;

/// After a 429, how long until one more request a second is dared again.
const RECOVERY: Duration = Duration::from_secs(10);

/// How close two requests may come where the budget is short, as a share of the mean distance.
const STEP: f64 = 0.75;

/// The requests of an App ID.
#[derive(Debug)]
pub(super) struct Budget {
    limit: usize,
    /// What is dared after a 429; otherwise the limit.
    dared: usize,
    dared_since: Instant,
    refused_at: Option<Instant>,
    not_before: Instant,
    spent: Vec<Spent>,
    fastest: Fastest,
    /// How long a request counts, in the mean.
    counts_for: Duration,
}

/// A request that counts.
#[derive(Debug)]
struct Spent {
    sent: Instant,
    /// When it has arrived for certain; `None` while it is out.
    arrived: Option<Instant>,
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
            refused_at: None,
            not_before,
            spent: spent.collect(),
            fastest: Fastest::new(not_before),
            counts_for: WINDOW + FIRST_SLACK,
        }
    }

    /// The moment from which on the next request may leave; `None` where an answer has to come
    /// first.
    pub(super) fn free_at(&self) -> Option<Instant> {
        let Some(too_many) = self.spent.len().checked_sub(self.dared) else {
            return Some(self.not_before);
        };
        let slack = self.slack();
        let mut ends: Vec<Instant> =
            self.spent.iter().filter_map(|it| it.counts_until(slack)).collect();
        ends.sort();
        ends.get(too_many).map(|end| self.not_before.max(*end))
    }

    /// When the next request leaves that keeps in step: where every request counts, those of a second
    /// come again a second later as they came, close together and far apart for ever. So they are
    /// kept from coming too close.
    pub(super) fn next_in_step(&self) -> Instant {
        let last = self.spent.iter().map(|it| it.sent).max().unwrap_or(self.not_before);
        last + self.counts_for.mul_f64(STEP / self.dared as f64)
    }

    /// If a request leaves now: when the one after it may, at the latest. One that is out is taken
    /// to count as long as they do in the mean.
    pub(super) fn free_after(&self, now: Instant) -> Instant {
        let Some(too_many) = (self.spent.len() + 1).checked_sub(self.dared) else { return now };
        let slack = self.slack();
        let mut ends: Vec<Instant> = self
            .spent
            .iter()
            .map(|it| it.counts_until(slack).unwrap_or(it.sent + self.counts_for))
            .collect();
        ends.sort();
        ends.get(too_many).map_or(now + self.counts_for, |end| now.max(*end))
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
        let slack = self.slack();
        self.spent.retain(|it| it.counts_until(slack).is_none_or(|end| end > now));
        self.spent.push(Spent { sent: now, arrived: None });
    }

    /// Notes that the request of `asked_at` has its end. `head_at` is when the head of an answer was
    /// there; without one the request arrived until `now`, if it did.
    pub(super) fn ended(&mut self, asked_at: Instant, head_at: Option<Instant>, now: Instant) {
        if let Some(head_at) = head_at {
            self.fastest.learn(head_at.duration_since(asked_at), now);
        }
        let there_by = head_at.unwrap_or(now);
        let took = there_by.duration_since(asked_at);
        let arrived = there_by - self.fastest.get().min(took);
        let slack = self.slack();
        let request = self.spent.iter_mut().find(|it| it.sent == asked_at && it.arrived.is_none());
        let Some(request) = request else { return };
        request.arrived = Some(arrived);
        let counts_for = (arrived + WINDOW + slack).duration_since(asked_at);
        self.counts_for = (self.counts_for * 15 + counts_for) / 16;
    }

    /// How many requests a second can leave in the long run.
    pub(super) fn sustained(&self) -> f64 {
        self.dared as f64 / self.counts_for.as_secs_f64()
    }

    /// The fastest round trip, for whoever wants to know which of two requests arrived first.
    pub(super) fn fastest(&self) -> Duration {
        self.fastest.get()
    }

    /// The server counts more than we do: slower at once, and nothing before `until`. A single
    /// refusal costs one request a second, one after another more.
    pub(super) fn throttled(&mut self, sent: Instant, now: Instant, until: Instant) {
        self.not_before = self.not_before.max(until);
        // What was out together is refused together: that is one refusal.
        if self.refused_at.is_some_and(|at| sent < at) {
            return;
        }
        self.refused_at = Some(now);
        let calm = self.dared == self.limit || now >= self.dared_since + RECOVERY;
        let fewer = if calm { self.dared - 1 } else { self.dared * 7 / 10 };
        self.dared = fewer.max(1);
        self.dared_since = until;
    }

    fn slack(&self) -> Duration {
        let answers = self.fastest.answers();
        let share =
            f64::from(ANSWERS_TO_QUARTER) / f64::from(ANSWERS_TO_QUARTER.saturating_add(answers));
        FIRST_SLACK.mul_f64(share * share).max(LEAST_SLACK)
    }
}

// === impl Spent ===

impl Spent {
    /// Until when it counts; `None` while it is out.
    fn counts_until(&self, slack: Duration) -> Option<Instant> {
        self.arrived.map(|arrived| arrived + WINDOW + slack)
    }
}
