//! Whoever decides when which feed is asked: the bridge's schedule, or a rival of it.

use tokio::time::Instant;

use crate::schedule::Answered;
use crate::schedule::Asked;
use crate::schedule::Decision;
use crate::schedule::FeedFacts;
use crate::schedule::Former;
use crate::schedule::Limits;
use crate::schedule::Outcome;
use crate::schedule::Schedule;

/// Decides for the two feeds of an App ID: 0 is that of the user events, 1 of the channel events.
pub trait Program {
    /// Names a request that is out.
    type Asked: Copy;

    /// What to do at `now`.
    fn next(&mut self, now: Instant) -> Decision;

    /// Notes that a request leaves.
    fn asked(&mut self, feed: usize, now: Instant) -> Self::Asked;

    /// Notes when the head of its answer was there, at that moment. Told only where the body takes
    /// time of its own.
    fn heard(&mut self, _asked: Self::Asked, _head_at: Instant) {}

    /// Notes what came of it, and when.
    fn answered(&mut self, asked: Self::Asked, when: Answered, outcome: Outcome);
}

/// The bridge, just started: it knows of no request before, and nothing of the feeds.
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
        // What was overwritten is known here, and need not be suspected.
        Schedule::answered(self, asked, when, outcome);
    }
}
