//! Recent round trips between us and a host.
//!
//! They have two users. The budget asks what a request to a host takes *at least*, over all feeds
//! of an App ID ([`Fastest`]): it must never assume a path to be slower than it is. A feed asks
//! what its requests to a host *usually* take and how much that varies ([`RoundTrip`]), as TCP does
//! for its retransmission timer (RFC 6298).

use std::time::Duration;

use tokio::time::Instant;

/// Number of answers before the fastest round trip is trusted: the first ones include connecting.
const ANSWERS_TO_TRUST: u32 = 20;

/// Number of fastest round trips from which we estimate how much faster one could be.
///
/// If the two halves of a round trip vary independently, the number of round trips below some time
/// grows as the square of its distance from the fastest possible. The fastest of a hundred is then
/// as far from it as a seventh of the distance between the fastest and the 48th, give or take half
/// of that. The distance to the 8th itself varies enough to require twice the margin (measured).
const FEW: usize = 48;

/// Assumed margin below the fastest round trip seen, as a share of the distance between the fastest
/// [`FEW`]: nearly three times the expected value. With 0.35, the server counted eleven requests
/// once in 3,000 runs of half a minute at the ceiling; with 0.4, never.
const UNSEEN: f64 = 0.4;

/// Time for which the fastest round trip is trusted, at least; up to twice that. Routes change.
const MEMORY: Duration = Duration::from_secs(60);

/// A request is silent after this many usual round trips without an answer.
const ROUND_TRIPS_TO_SILENCE: u32 = 3;

/// Minimum time until a request is silent: a lost packet is retransmitted after 200 ms.
const LEAST_SILENCE: Duration = Duration::from_millis(250);

/// Assumed round trip before the first one is measured.
const UNKNOWN: Duration = Duration::from_millis(300);

/// Number of the path to one host of one region.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Way(pub(super) usize);

/// Fastest round trip of an App ID to one host.
#[derive(Clone, Debug)]
pub(super) struct Fastest {
    answers: u32,
    current: Span,
    before: Span,
    since: Instant,
    /// Over both spans. Cached, because every decision needs it and only an answer changes it.
    least: Duration,
}

/// Answers within a span of time.
#[derive(Clone, Debug, Default)]
struct Span {
    /// The fastest round trips, in ascending order.
    fastest: Vec<Duration>,
}

/// Usual round trip of a feed to a host.
#[derive(Clone, Debug, Default)]
pub(super) struct RoundTrip {
    /// The mean, and the mean deviation from it; `None` before the first answer.
    usual: Option<(Duration, Duration)>,
}

// === impl Fastest ===

impl Fastest {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            answers: 0,
            current: Span::default(),
            before: Span::default(),
            since: now,
            least: Duration::ZERO,
        }
    }

    /// Records how long an answer took.
    pub(super) fn learn(&mut self, took: Duration, now: Instant) {
        if now > self.since + MEMORY {
            self.before = std::mem::take(&mut self.current);
            self.since = now;
        }
        self.current.insert(took);
        self.answers = self.answers.saturating_add(1);
        if self.answers >= ANSWERS_TO_TRUST {
            self.least = self.current.least_with(&self.before);
        }
    }

    /// Number of answers so far.
    pub(super) fn answers(&self) -> u32 {
        self.answers
    }

    /// Fastest round trip to be expected; zero while it is not well known.
    ///
    /// This is less than the fastest one seen: if the fastest few lie far apart, even faster ones
    /// are possible.
    pub(super) fn get(&self) -> Duration {
        self.least
    }
}

// === impl Span ===

impl Span {
    fn insert(&mut self, took: Duration) {
        let at = self.fastest.partition_point(|it| *it <= took);
        self.fastest.insert(at, took);
        self.fastest.truncate(FEW);
    }

    /// Fastest possible round trip, estimated from the answers of this span and another.
    fn least_with(&self, other: &Self) -> Duration {
        let mut both: Vec<Duration> = [&*self.fastest, &*other.fastest].concat();
        both.sort_unstable();
        both.truncate(FEW);
        let (Some(first), Some(last)) = (both.first(), both.last()) else {
            return Duration::ZERO;
        };
        first.saturating_sub((*last - *first).mul_f64(UNSEEN))
    }
}

// === impl RoundTrip ===

impl RoundTrip {
    /// Records how long an answer took. One that took far too long (a new connection, a lost
    /// packet) counts only for the longest plausible time.
    pub(super) fn learn(&mut self, took: Duration) {
        self.usual = Some(match self.usual {
            None => (took, took / 8),
            Some((usual, deviation)) => {
                let took = took.min(usual + 4 * deviation + Duration::from_millis(5));
                let deviates = took.abs_diff(usual);
                ((usual * 7 + took) / 8, (deviation * 7 + deviates) / 8)
            }
        });
    }

    /// Time that a request needs to get there.
    pub(super) fn there(&self) -> Duration {
        self.usual.map_or(UNKNOWN, |(usual, _)| usual) / 2
    }

    /// Requests that leave this far apart hardly ever overtake each other.
    pub(super) fn apart(&self) -> Duration {
        self.usual.map_or(Duration::ZERO, |(_, deviation)| deviation * 3)
    }

    /// Time after which a request without an answer is silent.
    pub(super) fn silence(&self) -> Duration {
        let (usual, deviation) = self.usual.unwrap_or((UNKNOWN, Duration::ZERO));
        (usual * ROUND_TRIPS_TO_SILENCE).max(usual + 4 * deviation).max(LEAST_SILENCE)
    }
}
