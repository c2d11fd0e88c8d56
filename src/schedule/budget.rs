//! How many requests of an App ID may leave.
//!
//! The limit applies to arrivals, as the server counts them: no more requests than that may
//! *arrive* within any second. We don't know when a request arrives, but it has arrived when its
//! answer is here, and the answer took time to travel back. A request that was answered at `a`
//! arrived no later than `a` minus the way back, and a new one arrives no earlier than now plus the
//! way there. With the fastest round trip seen, a request therefore counts until `a` − fastest +
//! one second. An in-flight request may arrive at any moment (connecting takes round trips, a
//! packet is retransmitted), so it counts until it is answered.
//!
//! On a path with constant latency this is the log of the last ten send times; on one with jitter
//! it costs just the jitter that occurred. [`Fastest`] estimates how much faster than the fastest
//! one seen a round trip could be. The slack on top shrinks from [`FIRST_SLACK`] to [`LEAST_SLACK`]
//! as answers arrive. It can't cover a path that becomes faster from one request to the next: the
//! first request on it may be one too many. Its answer corrects the fastest round trip. Until then,
//! requests that rely on the old one leave spaced apart ([`Budget::free_at`]), so that the server
//! counts at most eleven, once. The fastest round trip is taken as zero until it can be trusted:
//! the first answers are slow because they include connecting.
//!
//! Each host has its own path, of which nothing is known before the first request. Between two
//! paths, the way back from one host and the way there to the other count. Each is taken as half of
//! the fastest round trip. Within one path this assumes nothing, since the two halves add up again.
//!
//! The moment that counts is when the head of an answer arrives, not the end of its body: the
//! request has reached the server by then.

use std::num::NonZeroU32;
use std::time::Duration;

use tokio::time::Instant;

use super::Asked;
use super::way::{Fastest, Way};

/// Period over which the server counts.
const WINDOW: Duration = Duration::from_secs(1);

/// Slack before anything is known about the path.
const FIRST_SLACK: Duration = Duration::from_millis(40);

/// Slack once the path is well known.
const LEAST_SLACK: Duration = Duration::from_millis(2);

/// Number of answers after which the slack is a quarter of the first one.
const ANSWERS_TO_QUARTER: u32 = 20;

/// Time after a 429 before the rate is raised again by one request a second.
const RECOVERY: Duration = Duration::from_secs(10);

/// A pause of at least this length that a 429 asks for ends with a single request, whose answer
/// shows whether the others may follow. Agora counts over a second, so a longer pause is not about
/// the rate.
const LONG_PAUSE: Duration = Duration::from_secs(10);

/// Minimum distance between two requests when the budget is short, as a share of the mean distance.
const STEP: f64 = 0.75;

/// The requests of an App ID.
#[derive(Debug)]
pub(super) struct Budget {
    limit: usize,
    /// Reduced limit after a 429; otherwise the limit.
    dared: usize,
    dared_since: Instant,
    refused_at: Option<Instant>,
    not_before: Instant,
    /// One request at a time, until the server no longer refuses for the rate.
    probing: bool,
    spent: Vec<Spent>,
    /// The path to each host that may be asked.
    ways: Vec<Fastest>,
    /// Mean time for which a request counts.
    counts_for: Duration,
}

/// A request that counts.
#[derive(Debug)]
struct Spent {
    /// `None` if a previous process sent it.
    asked: Option<Asked>,
    sent: Instant,
    way: Way,
    /// When it had certainly arrived; `None` until some answer to it is seen.
    there_by: Option<Instant>,
}

// === impl Budget ===

impl Budget {
    /// Creates a budget for requests to hosts on this many paths. The requests in `sent`, of a
    /// previous process, count, and nothing may leave before `not_before`.
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

    /// Earliest time at which the next request may leave for a host whose round trip is no shorter
    /// than `nearest`; `None` if an answer has to arrive first.
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

    /// Earliest time for a request that relies on the fastest round trip, in case the path has
    /// become faster since: late enough that it and the last one can't both be too many. Such a
    /// request arrives early by half of the reduction in the round trip, so two of them are spaced
    /// by half of a fastest round trip, but by no more than [`STEP`] of the mean distance, or a
    /// distant host would get fewer requests.
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

    /// Earliest time for a next request that keeps in step. If the budget is used up, the requests
    /// of one second repeat a second later with the same spacing, so bunches would persist forever.
    /// Keeping in step stops them from bunching.
    pub(super) fn next_in_step(&self) -> Instant {
        let last = self.spent.iter().map(|it| it.sent).max().unwrap_or(self.not_before);
        last + self.counts_for.mul_f64(STEP / self.dared as f64)
    }

    /// Earliest time for a next request that keeps in step at this many requests a second.
    pub(super) fn in_step(&self, per_second: f64) -> Instant {
        let last = self.spent.iter().map(|it| it.sent).max().unwrap_or(self.not_before);
        last + Duration::from_secs_f64(STEP / per_second.max(0.1))
    }

    /// If a request leaves now, the latest time at which the next one may leave. An in-flight
    /// request is assumed to count for the mean time.
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

    /// Records that a request leaves.
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

    /// Records that the head of an answer arrived at `head_at`: its request had reached the server.
    pub(super) fn heard(&mut self, asked: Asked, head_at: Instant) {
        let Some(Spent { sent, way, .. }) = self.out(asked) else { return };
        let (sent, way) = (*sent, *way);
        let fastest = self.ways.get_mut(way.0).expect("ways are counted once, at the start");
        fastest.learn(head_at.duration_since(sent), head_at);
        self.arrived(asked, head_at);
    }

    /// Records that a request ended: it has arrived by now, if it ever did.
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

    /// The request with this id, while there is no answer to it.
    fn out(&mut self, asked: Asked) -> Option<&mut Spent> {
        self.spent.iter_mut().find(|it| it.asked == Some(asked) && it.there_by.is_none())
    }

    /// End of the pause that the server asked for.
    pub(super) fn not_before(&self) -> Instant {
        self.not_before
    }

    /// How many requests a second can leave in the long run.
    pub(super) fn sustained(&self) -> f64 {
        self.dared as f64 / self.counts_for.as_secs_f64()
    }

    /// Fastest round trip to a host; zero while it is not well known. It decides which of two
    /// requests arrived first.
    pub(super) fn fastest(&self, way: Way) -> Duration {
        self.ways.get(way.0).map_or(Duration::ZERO, Fastest::get)
    }

    /// The server counts more than we do: slow down now, and send nothing before `until`. A single
    /// refusal costs one request a second; another one soon after costs more.
    pub(super) fn throttled(&mut self, sent: Instant, now: Instant, until: Instant) {
        self.not_before = self.not_before.max(until);
        self.probing |= until >= now + LONG_PAUSE;
        // Requests in flight together are refused together: that is one refusal.
        if self.refused_at.is_some_and(|at| sent < at) {
            return;
        }
        self.refused_at = Some(now);
        let calm = self.dared == self.limit || now >= self.dared_since + RECOVERY;
        let fewer = if calm { self.dared - 1 } else { self.dared * 7 / 10 };
        self.dared = fewer.max(1);
        self.dared_since = until;
    }

    /// The server accepted a request, or refused it for another reason than the rate.
    pub(super) fn admitted(&mut self) {
        self.probing = false;
    }

    /// How long a request counts against one to a host no nearer than `nearest`, in terms of send
    /// times; `None` while there is no answer to it.
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
