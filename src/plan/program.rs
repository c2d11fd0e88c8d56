//! What decides when to poll which feed: the bridge's schedule, or an alternative to it.

use tokio::time::Instant;

use crate::schedule::{Answered, Asked, Decision, FeedFacts, Former, Limits, Outcome, Schedule};

/// Decides for the two feeds of an App ID: 0 has the user events, 1 the channel events.
pub trait Program {
    /// Identifies an in-flight request.
    type Asked: Copy;

    /// Decides what to do at `now`.
    fn next(&mut self, now: Instant) -> Decision;

    /// Records that a request leaves.
    fn asked(&mut self, feed: usize, now: Instant) -> Self::Asked;

    /// Records that the head of its answer arrived. Called only if the body takes extra time.
    fn heard(&mut self, _asked: Self::Asked, _head_at: Instant) {}

    /// Records the outcome of a request, and when it ended.
    fn answered(&mut self, asked: Self::Asked, when: Answered, outcome: Outcome);
}

/// The bridge just after its start, with no earlier requests and no knowledge of the feeds.
pub fn bridge(limits: Limits, now: Instant, seed: u64) -> Schedule {
    let former = Former { sent: Vec::new(), not_before: now, unknown_until: now };
    Schedule::new(limits, &[FeedFacts { region: 0, hosts: 1, known: None }; 2], now, former, seed)
}

// === impl Schedule ===

impl Program for Schedule {
    type Asked = Asked;

    fn next(&mut self, now: Instant) -> Decision {
        Schedule::next(self, now)
    }

    fn asked(&mut self, feed: usize, now: Instant) -> Asked {
        Schedule::asked(self, feed, now)
    }

    fn heard(&mut self, asked: Asked, head_at: Instant) {
        Schedule::heard(self, asked, head_at);
    }

    fn answered(&mut self, asked: Asked, when: Answered, outcome: Outcome) {
        // The trial knows which events were overwritten, so suspicions are ignored.
        Schedule::answered(self, asked, when, outcome);
    }
}
