//! Two typical scripts, for comparison with the bridge.

use std::time::Duration;

use agora_rtm_bridge::model::PAGE_LIMIT;
use agora_rtm_bridge::plan::Program;
use agora_rtm_bridge::schedule::{Answered, Decision, Outcome};
use tokio::time::Instant;

const SECOND: Duration = Duration::from_secs(1);

/// Each feed has half of the ten requests of a second.
const SPACING: Duration = Duration::from_millis(200);

/// Polls a feed, waits for its answer, and polls it again after an interval.
#[derive(Debug)]
pub(crate) struct Script {
    feeds: [Feed; 2],
    habit: Habit,
}

/// When a script polls again.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Habit {
    /// A second after its last request, regardless of the answer.
    EverySecond,
    /// After a full page as soon as its half of the rate limit allows, otherwise a second after its
    /// last request.
    WhileFull,
}

#[derive(Clone, Copy, Debug)]
struct Feed {
    asked_at: Instant,
    due: Instant,
    is_out: bool,
}

// === impl Script ===

impl Script {
    /// It polls both feeds immediately at the start.
    pub(crate) fn new(habit: Habit, now: Instant) -> Self {
        Self { feeds: [Feed { asked_at: now, due: now, is_out: false }; 2], habit }
    }

    fn feed(&mut self, feed: usize) -> &mut Feed {
        self.feeds.get_mut(feed).expect("an App ID has two feeds")
    }
}

impl Program for Script {
    type Asked = usize;

    fn next(&mut self, now: Instant) -> Decision {
        let idle = self.feeds.iter().enumerate().filter(|(_, feed)| !feed.is_out);
        match idle.min_by_key(|(_, feed)| feed.due) {
            Some((feed, plan)) if plan.due <= now => Decision::Ask { feed, host: 0 },
            Some((_, plan)) => Decision::Wait(plan.due),
            None => Decision::WaitForAnswer,
        }
    }

    fn asked(&mut self, feed: usize, now: Instant) -> usize {
        *self.feed(feed) = Feed { asked_at: now, due: now, is_out: true };
        feed
    }

    fn answered(&mut self, feed: usize, when: Answered, outcome: Outcome) {
        let habit = self.habit;
        let plan = self.feed(feed);
        plan.is_out = false;
        plan.due = match (habit, outcome) {
            (_, Outcome::Throttled { .. }) => when.now + SECOND,
            (Habit::WhileFull, Outcome::Events(page)) if page.events >= PAGE_LIMIT => {
                plan.asked_at + SPACING
            }
            _ => plan.asked_at + SECOND,
        };
    }
}
