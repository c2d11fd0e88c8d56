//! What goes wrong with Kafka, and how long everything takes.

use std::time::Duration;

use agora_rtm_bridge::kafka::{Failure, PageRecord, Topic};
use rand::RngExt as _;
use rand::rngs::StdRng;

/// How long a producer tries to get its records to a broker, and one question waits for an answer.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// What goes wrong: shares of calls, until it is over.
#[derive(Clone, Debug, Default)]
pub(crate) struct Trouble {
    /// Of the looks at topics before anything else works.
    pub(crate) prepare: f64,
    /// Of the claims; half of them have raised the epoch all the same.
    pub(crate) claim: f64,
    /// Of the page records handed over; half of them are stored all the same.
    pub(crate) append: f64,
    /// Of the transactions; half of them are committed all the same.
    pub(crate) deliver: f64,
    /// Of the reads of pages.
    pub(crate) pages: f64,
    /// Of all answers: they take from a tenth of a second to three.
    pub(crate) slow: f64,
    /// When no broker can be reached.
    pub(crate) away: Vec<(Duration, Duration)>,
    /// Page records that hold this are refused for what they are.
    pub(crate) refused_page: Option<&'static [u8]>,
    /// Page records that hold this are not stored, and fail as if no broker could be reached.
    pub(crate) failing_page: Option<&'static [u8]>,
    /// Page records that hold this are stored, and the answer is lost.
    pub(crate) unanswered_page: Option<&'static [u8]>,
    /// Gaps are refused by the pages topic.
    pub(crate) refused_gaps: bool,
    /// Transactions in which an event holds this are refused for what they are.
    pub(crate) refused_event: Option<&'static [u8]>,
    /// Events that are further ahead of the cluster's clock are refused for their time.
    pub(crate) refused_ahead: Option<Duration>,
    /// What the cluster says that this limit is; by default what a bridge assumes without.
    pub(crate) told_ahead: Option<Duration>,
    /// When all of it but `away` is over.
    pub(crate) until: Duration,
}

/// Decides what goes wrong.
pub(super) struct Dice<'a> {
    pub(super) rng: &'a mut StdRng,
    pub(super) trouble: &'a Trouble,
}

/// How a call ends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Told {
    pub(super) at: Duration,
    pub(super) failure: Option<Failure>,
}

// === impl Trouble ===

impl Trouble {
    /// Whether a page record is refused, always.
    pub(super) fn refuses_page(&self, record: &PageRecord) -> bool {
        let is_gap = record.headers.iter().any(|(name, _)| name == "gap");
        self.refused_page.is_some_and(|refused| holds(&record.value, refused))
            || self.refused_gaps && is_gap
    }

    /// Whether a page record fails and is not stored.
    pub(super) fn fails_page(&self, record: &PageRecord) -> bool {
        self.failing_page.is_some_and(|failing| holds(&record.value, failing))
    }

    /// Whether a page record is stored and its answer lost.
    pub(super) fn leaves_unanswered(&self, record: &PageRecord) -> bool {
        self.unanswered_page.is_some_and(|unanswered| holds(&record.value, unanswered))
    }

    /// Whether a transaction with this record is refused, always.
    pub(super) fn refuses_event(&self, topic: Topic, value: &[u8]) -> bool {
        let is_event = [Topic::UserEvents, Topic::ChannelEvents].contains(&topic);
        is_event && self.refused_event.is_some_and(|refused| holds(value, refused))
    }
}

fn holds(value: &[u8], part: &[u8]) -> bool {
    value.windows(part.len()).any(|window| window == part)
}

// === impl Dice ===

impl Dice<'_> {
    /// One way or the other.
    pub(super) fn latency(&mut self, now: Duration) -> Duration {
        let slow = now < self.trouble.until && self.rng.random_bool(self.trouble.slow);
        let range = if slow { 100..3_000 } else { 1..8 };
        Duration::from_millis(self.rng.random_range(range))
    }

    pub(super) fn strikes(&mut self, now: Duration, share: f64) -> bool {
        now < self.trouble.until && self.rng.random_bool(share)
    }

    /// When something gets through that would arrive then.
    pub(super) fn through(&mut self, at: Duration) -> Duration {
        let away = self.trouble.away.iter().find(|(from, until)| (*from..*until).contains(&at));
        match away.copied() {
            Some((_, until)) => until + Duration::from_millis(self.rng.random_range(0..500)),
            None => at,
        }
    }

    /// A question and its answer.
    pub(super) fn question(&mut self, now: Duration, share: f64) -> Told {
        let strikes = self.strikes(now, share);
        let trip = self.latency(now) + self.latency(now);
        let at = self.through(now + trip);
        if at > now + PATIENCE {
            return Told { at: now + PATIENCE, failure: Some(Failure::Unavailable) };
        }
        Told { at, failure: strikes.then_some(Failure::Unavailable) }
    }

    /// A reader waits for its broker as long as it takes.
    pub(super) fn read(&mut self, now: Duration) -> Told {
        let failure = self.strikes(now, self.trouble.pages).then_some(Failure::Broken);
        let trip = self.latency(now);
        Told { at: self.through(now + trip), failure }
    }
}
