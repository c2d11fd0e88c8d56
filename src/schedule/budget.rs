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
//! that becomes faster from one request to the next: the first request on it may be one too many. Its
//! answer corrects the fastest round trip. Until that is there, requests that rely on the old one leave
//! apart ([`Budget::free_at`]), so that the server counts eleven at most, once. The fastest is taken for
//! zero until it can be believed: the first answers are slow, they wait for connections.
//!
//! Each host has a way of its own, of which nothing is known before it was asked. What counts between
//! two ways are the way back from the one and the way there to the other. Each is taken for half of the
//! fastest round trip: on one way alone that assumes nothing, since the two halves add up again.
//!
//! When an answer's head is there, its request has arrived: that counts, and not the body's end.

use std::num::NonZeroU32;
use std::time::Duration;

use tokio::time::Instant;

use super::Asked;
use super::way::Fastest;
use super::way::Way;

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

/// A pause this long that a 429 asks for ends with one request alone, whose answer shows whether the
/// others may follow. Agora counts over a second, so a longer pause is not about the rate.
const LONG_PAUSE: Duration = Duration::from_secs(10);

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
    /// One request at a time, until the server no longer counts too many.
    probing: bool,
    spent: Vec<Spent>,
    /// The way to each host that may be asked.
    ways: Vec<Fastest>,
    /// How long a request counts, in the mean.
    counts_for: Duration,
}

/// A request that counts.
#[derive(Debug)]
struct Spent {
    /// `None` where a former process sent it.
    asked: Option<Asked>,
    sent: Instant,
    way: Way,
    /// When it had arrived for certain; `None` while nothing was heard of it.
    there_by: Option<Instant>,
}

// === impl Budget ===

impl Budget {
    /// A budget for requests to hosts on so many ways. These requests of a former process count, and
    /// nothing may leave before `not_before`.
    pub(super) fn new(
        limit: NonZeroU32,
        ways: usize,
        not_before: Instant,
        sent: Vec<Instant>,
    ) -> Self {
        let limit = usize::try_from(limit.get()).expect("a limit of a few requests");
        let former = |sent| Spent { asked: None, sent, way: Way::default(), there_by: Some(sent) };
        let spent = sent.into_iter().map(former);
        Self {
            limit,
            dared: limit,
            dared_since: not_before,
            refused_at: None,
            not_before,
            probing: false,
            spent: spent.collect(),
            ways: vec![Fastest::new(not_before); ways.max(1)],
            counts_for: WINDOW + FIRST_SLACK,
        }
    }

    /// The moment from which on the next request may leave for a host that is no nearer than
    /// `nearest`, as a round trip; `None` where an answer has to come first.
    pub(super) fn free_at(&self, nearest: Duration) -> Option<Instant> {
        if self.probing && self.spent.iter().any(|it| it.there_by.is_none()) {
            return None;
        }
        let Some(too_many) = self.spent.len().checked_sub(self.dared) else {
            return Some(self.not_before);
        };
        let mut ends: Vec<Instant> =
            self.spent.iter().filter_map(|it| self.counts_until(it, nearest)).collect();
        ends.sort();
        let end = self.not_before.max(*ends.get(too_many)?);
        Some(end.max(self.apart_from_last(too_many, nearest)))
    }

    /// When a request leaves that relies on the fastest round trip, if the way has become faster
    /// meanwhile: late enough that it can't be one too many together with the last one. Such a request
    /// arrives early by half of what the round trip lost, so half of a fastest round trip lies between
    /// two of them; no more than [`STEP`] of the mean distance, or a far host would get fewer requests.
    fn apart_from_last(&self, too_many: usize, nearest: Duration) -> Instant {
        let Some(last) = self.spent.iter().max_by_key(|it| it.sent) else { return self.not_before };
        let most = Duration::from_secs_f64(STEP / self.dared as f64);
        let apart = last.sent + ((self.fastest(last.way) + nearest) / 4).min(most);
        let mut unbelieving: Vec<Instant> = self
            .spent
            .iter()
            .filter_map(|it| Some(it.there_by? + WINDOW + self.slack(it.way)))
            .collect();
        unbelieving.sort();
        unbelieving.get(too_many).map_or(apart, |certain| apart.min(*certain))
    }

    /// When the next request leaves that keeps in step: where every request counts, those of a second
    /// come again a second later as they came, close together and far apart for ever. So they are
    /// kept from coming too close.
    pub(super) fn next_in_step(&self) -> Instant {
        let last = self.spent.iter().map(|it| it.sent).max().unwrap_or(self.not_before);
        last + self.counts_for.mul_f64(STEP / self.dared as f64)
    }

    /// When the next request leaves that keeps in step with so many a second.
    pub(super) fn in_step(&self, per_second: f64) -> Instant {
        let last = self.spent.iter().map(|it| it.sent).max().unwrap_or(self.not_before);
        last + Duration::from_secs_f64(STEP / per_second.max(0.1))
    }

    /// If a request leaves now: when the one after it may, at the latest. One that is out is taken
    /// to count as long as they do in the mean.
    pub(super) fn free_after(&self, now: Instant, nearest: Duration) -> Instant {
        let Some(too_many) = (self.spent.len() + 1).checked_sub(self.dared) else { return now };
        let mut ends: Vec<Instant> = self
            .spent
            .iter()
            .map(|it| self.counts_until(it, nearest).unwrap_or(it.sent + self.counts_for))
            .collect();
        ends.sort();
        ends.get(too_many).map_or(now + self.counts_for, |end| now.max(*end))
    }

    /// Notes that a request leaves.
    pub(super) fn spend(&mut self, asked: Asked, way: Way, now: Instant) {
        while self.dared < self.limit && now >= self.dared_since + RECOVERY {
            self.dared += 1;
            self.dared_since += RECOVERY;
        }
        let mut spent = std::mem::take(&mut self.spent);
        spent.retain(|it| self.counts_until(it, Duration::ZERO).is_none_or(|end| end > now));
        spent.push(Spent { asked: Some(asked), sent: now, way, there_by: None });
        self.spent = spent;
    }

    /// Notes that the head of an answer was there at `head_at`: its request has arrived.
    pub(super) fn heard(&mut self, asked: Asked, head_at: Instant) {
        let Some(Spent { sent, way, .. }) = self.out(asked) else { return };
        let (sent, way) = (*sent, *way);
        let fastest = self.ways.get_mut(way.0).expect("ways are counted once, at the start");
        fastest.learn(head_at.duration_since(sent), head_at);
        self.arrived(asked, head_at);
    }

    /// Notes that a request came to its end: by now it has arrived, if it ever did.
    pub(super) fn ended(&mut self, asked: Asked, now: Instant) {
        self.arrived(asked, now);
    }

    fn arrived(&mut self, asked: Asked, there_by: Instant) {
        let Some(Spent { sent, way, .. }) = self.out(asked) else { return };
        let (sent, way) = (*sent, *way);
        let took = there_by.duration_since(sent);
        let counts_for = took - self.fastest(way).min(took) + WINDOW + self.slack(way);
        self.counts_for = (self.counts_for * 15 + counts_for) / 16;
        if let Some(request) = self.out(asked) {
            request.there_by = Some(there_by);
        }
    }

    /// The request of this name, while nothing was heard of it.
    fn out(&mut self, asked: Asked) -> Option<&mut Spent> {
        self.spent.iter_mut().find(|it| it.asked == Some(asked) && it.there_by.is_none())
    }

    /// When the pause ends that the server asked for.
    pub(super) fn not_before(&self) -> Instant {
        self.not_before
    }

    /// How many requests a second can leave in the long run.
    pub(super) fn sustained(&self) -> f64 {
        self.dared as f64 / self.counts_for.as_secs_f64()
    }

    /// The fastest round trip to a host; zero where it is not known well. It tells which of two
    /// requests arrived first.
    pub(super) fn fastest(&self, way: Way) -> Duration {
        self.ways.get(way.0).map_or(Duration::ZERO, Fastest::get)
    }

    /// The server counts more than we do: slower at once, and nothing before `until`. A single
    /// refusal costs one request a second, one after another more.
    pub(super) fn throttled(&mut self, sent: Instant, now: Instant, until: Instant) {
        self.not_before = self.not_before.max(until);
        self.probing |= until >= now + LONG_PAUSE;
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

    /// The server took a request, or refused it for another reason than its number.
    pub(super) fn admitted(&mut self) {
        self.probing = false;
    }

    /// Until when a request counts for one to a host no nearer than `nearest`, in units of sending;
    /// `None` while nothing was heard of it.
    fn counts_until(&self, spent: &Spent, nearest: Duration) -> Option<Instant> {
        let there_by = spent.there_by?;
        let halves = (self.fastest(spent.way) + nearest) / 2;
        let arrived = there_by - halves.min(there_by.duration_since(spent.sent));
        Some(arrived + WINDOW + self.slack(spent.way))
    }

    fn slack(&self, way: Way) -> Duration {
        let answers = self.ways.get(way.0).map_or(0, Fastest::answers);
        let share =
            f64::from(ANSWERS_TO_QUARTER) / f64::from(ANSWERS_TO_QUARTER.saturating_add(answers));
        FIRST_SLACK.mul_f64(share * share).max(LEAST_SLACK)
    }
}
