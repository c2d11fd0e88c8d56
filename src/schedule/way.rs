//! The way to the server and back, as it was lately.
//!
//! Two users with two questions. The budget asks what a request to a host takes *at least*, over all
//! feeds of an App ID ([`Fastest`]): it must never believe a way to be slower than it is. A feed asks
//! what its requests to a host *usually* take and how much that varies ([`RoundTrip`]), as TCP does for
//! its retransmission timer (RFC 6298).

use std::time::Duration;

use tokio::time::Instant;

/// So many answers make the fastest of them believable: the first ones wait for connections.
const ANSWERS_TO_TRUST: u32 = 20;

/// So many of the fastest tell how much faster one could be.
///
/// Where the two halves of a round trip vary for themselves, the number of round trips below some
/// time grows as the square of its distance from the fastest possible. The fastest of a hundred is
/// then as far from it as a seventh of what lies between the fastest and the 48th, give or take half
/// of that; the distance of eight varies so much itself that twice the margin is
/// needed (measured).
const FEW: usize = 48;

/// One may be faster than the fastest seen by such a share of the distance between the fastest few:
/// nearly three times what is to be expected. With 0.35, the server counted eleven once in 3,000 runs
/// of half a minute at the ceiling; with 0.4, never.
const UNSEEN: f64 = 0.4;

/// How long the fastest round trip is believed: routes change.
const MEMORY: Duration = Duration::from_secs(60);

/// After so many usual round trips without an answer a request is silent.
const ROUND_TRIPS_TO_SILENCE: u32 = 3;

/// A request is silent no sooner than this: a packet that was lost is sent again after 200 ms.
const LEAST_SILENCE: Duration = Duration::from_millis(250);

/// What is taken for a round trip before one was seen.
const UNKNOWN: Duration = Duration::from_millis(300);

/// The way to one host of one region, as a number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Way(pub(super) usize);

/// The fastest round trip of an App ID to one host.
#[derive(Clone, Debug)]
pub(super) struct Fastest {
    answers: u32,
    current: Span,
    before: Span,
    since: Instant,
    /// Out of both spans. Every decision asks for it, and only an answer changes it.
    least: Duration,
}

/// The answers of a span of time.
#[derive(Clone, Debug, Default)]
struct Span {
    /// The fastest ones, in order.
    fastest: Vec<Duration>,
}

/// What a feed's round trips to a host usually take.
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

    /// Takes in how long an answer took.
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

    /// How many answers came.
    pub(super) fn answers(&self) -> u32 {
        self.answers
    }

    /// The fastest round trip there can be; zero where it is not known well.
    ///
    /// The fastest one seen is not the fastest possible: where the fastest few lie apart, there are
    /// faster ones still.
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

    /// The fastest possible, from the answers of this span and another.
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
    /// Takes in how long an answer took. One that took far too long (a new connection, a lost
    /// packet) counts for what is just plausible.
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

    /// How long a request is on its way there.
    pub(super) fn there(&self) -> Duration {
        self.usual.map_or(UNKNOWN, |(usual, _)| usual) / 2
    }

    /// Two requests that leave so far apart hardly ever overtake each other.
    pub(super) fn apart(&self) -> Duration {
        self.usual.map_or(Duration::ZERO, |(_, deviation)| deviation * 3)
    }

    /// How long a request may be out before it is silent.
    pub(super) fn silence(&self) -> Duration {
        let (usual, deviation) = self.usual.unwrap_or((UNKNOWN, Duration::ZERO));
        (usual * ROUND_TRIPS_TO_SILENCE).max(usual + 4 * deviation).max(LEAST_SILENCE)
    }
}
