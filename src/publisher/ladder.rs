//! What is tried with records that Kafka refuses, before a page is set aside.
//!
//! A batch is refused as a whole, by limits that may have changed since they were read, for a time
//! that is our choice, or because of a dead letter. So the steps are, each in a transaction of its
//! own after the limits were read again:
//!
//! 1. the same pages, encoded under the limits of now;
//! 2. where a timestamp is the reason: with other timestamps, see [`Times`];
//! 3. where the dead-letter topic refuses: with dead letters that copy nothing;
//! 4. each page alone;
//! 5. the page that was refused alone as a dead letter.
//!
//! If that is refused as well, or if it isn't an event topic that refuses, everything starts again: the
//! cause may have ended.

use std::time::Duration;

use tokio::time::Instant;

use crate::kafka::{Topic, Unfit};

/// How long a refusal of timestamps is remembered. Where limits can't be read, each attempt with
/// the times of events costs a claim.
const REMEMBERED: Duration = Duration::from_secs(600);

/// What stamps the records of a transaction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Times {
    /// Each event's own time, as far as its topic is known to keep it.
    #[default]
    Events,
    /// When the broker appended the page, by its clock.
    Broker,
    /// The time of sending, by the clock of this machine.
    Sending,
}

/// Where a partition is with pages that were refused.
#[derive(Debug, Default)]
pub(super) struct Ladder {
    /// Pages before this offset were refused.
    before: i64,
    /// They are delivered one at a time.
    alone: bool,
    /// Their dead letters copy nothing.
    bare_letters: bool,
    /// The page that was refused alone, by its offset, and why.
    refused: Option<(i64, String)>,
    times: Times,
    /// Until when others than the times of events are used.
    times_until: Option<Instant>,
}

/// What comes of a refusal that is worth a line in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lesson {
    /// The same again, or one by one.
    Again,
    /// The records get other timestamps for a while.
    OtherTimes(Times),
}

// === impl Ladder ===

impl Ladder {
    /// How many of `most` pages from `position` on may share the next transaction.
    pub(super) fn limit(&self, position: Option<i64>, most: usize) -> usize {
        let left = self.before - position.unwrap_or(0);
        match usize::try_from(left) {
            Ok(1..) if self.alone => 1,
            Ok(left @ 1..) => left.min(most),
            _ => most,
        }
    }

    /// What stamps the records of the next transaction.
    pub(super) fn times(&self) -> Times {
        match self.times_until {
            Some(until) if Instant::now() < until => self.times,
            _ => Times::Events,
        }
    }

    /// Whether the dead letters of a page at `offset` copy nothing.
    pub(super) fn bare_letters(&self, offset: i64) -> bool {
        self.bare_letters && offset < self.before
    }

    /// Why the page at `offset` is to be set aside.
    pub(super) fn refusal(&self, offset: i64) -> Option<&str> {
        let (refused, why) = self.refused.as_ref()?;
        (*refused == offset).then_some(why)
    }

    /// Takes a step, after a transaction was refused whose pages end before `position`.
    pub(super) fn refused(
        &mut self,
        unfit: Option<Unfit>,
        why: &str,
        position: i64,
        alone: bool,
    ) -> Lesson {
        if position > self.before {
            let (times, times_until) = (self.times, self.times_until);
            *self = Self { before: position, times, times_until, ..Self::default() };
            return Lesson::Again;
        }
        let times = self.times();
        if unfit.is_some_and(|unfit| unfit.is_time) && times < Times::Sending {
            self.times = if times == Times::Events { Times::Broker } else { Times::Sending };
            self.times_until = Some(Instant::now() + REMEMBERED);
            return Lesson::OtherTimes(self.times);
        }
        let topic = unfit.map(|unfit| unfit.topic);
        // A refusal by the state topic, or by an unknown one, is not the page's fault.
        let of_events = matches!(topic, Some(Topic::UserEvents | Topic::ChannelEvents));
        if topic == Some(Topic::DeadLetter) && !self.bare_letters {
            self.bare_letters = true;
        } else if !alone {
            self.alone = true;
        } else if self.refused.is_none() && of_events {
            self.refused = Some((position - 1, why.to_owned()));
        } else {
            self.anew();
        }
        Lesson::Again
    }

    /// A transaction was delivered.
    pub(super) fn delivered(&mut self) {
        self.refused = None;
    }

    /// Forgets everything: offsets start over.
    pub(super) fn anew(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unfit(topic: Topic, is_time: bool) -> Option<Unfit> {
        Some(Unfit { topic, is_time })
    }

    /// Pages up to 10 are refused, then page 4 alone.
    #[tokio::test(start_paused = true)]
    async fn a_page_is_set_aside_after_a_refusal_alone_and_under_fresh_limits() {
        let mut ladder = Ladder::default();
        let size = unfit(Topic::UserEvents, false);
        assert_eq!(ladder.limit(Some(3), 10), 10);
        ladder.refused(size, "large", 11, false);
        assert_eq!(ladder.limit(Some(3), 10), 8, "the same pages under the limits of now");
        assert_eq!(ladder.limit(Some(11), 10), 10);
        ladder.refused(size, "large", 11, false);
        assert_eq!((ladder.limit(Some(3), 10), ladder.limit(Some(11), 10)), (1, 10));
        ladder.delivered();
        assert_eq!(ladder.refusal(4), None);
        ladder.refused(size, "large", 5, true);
        assert_eq!((ladder.refusal(3), ladder.refusal(4)), (None, Some("large")));
        ladder.delivered();
        assert_eq!((ladder.refusal(4), ladder.limit(Some(5), 10)), (None, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn no_page_is_set_aside_for_a_refusal_that_is_not_of_its_events() {
        let times = unfit(Topic::State, true);
        for cause in [None, times, unfit(Topic::Gaps, true), unfit(Topic::DeadLetter, false)] {
            let mut ladder = Ladder::default();
            for _ in 0..12 {
                ladder.refused(cause, "refused", 5, true);
                assert_eq!(ladder.refusal(4), None, "{cause:?}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_page_that_was_alone_by_chance_is_tried_again_first() {
        let mut ladder = Ladder::default();
        ladder.refused(unfit(Topic::UserEvents, false), "large", 5, true);
        assert_eq!(ladder.refusal(4), None);
        ladder.refused(unfit(Topic::UserEvents, false), "large", 5, true);
        assert_eq!(ladder.refusal(4), Some("large"));
        // Even that is refused: from the beginning.
        ladder.refused(unfit(Topic::UserEvents, false), "large", 5, true);
        assert_eq!((ladder.refusal(4), ladder.limit(Some(4), 10)), (None, 10));
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_time_is_replaced_before_anything_is_set_aside() {
        let mut ladder = Ladder::default();
        let time = unfit(Topic::UserEvents, true);
        for times in [Times::Events, Times::Events, Times::Broker, Times::Sending] {
            assert_eq!(ladder.times(), times);
            if times == Times::Sending {
                break;
            }
            ladder.refused(time, "time", 11, false);
            assert_eq!((ladder.refusal(10), ladder.limit(Some(3), 10)), (None, 8));
        }
        ladder.refused(time, "time", 11, false);
        ladder.refused(time, "time", 4, true);
        assert_eq!(ladder.refusal(3), Some("time"));

        // Those behind them need not try it again, for a while.
        ladder.delivered();
        ladder.refused(unfit(Topic::UserEvents, false), "large", 30, false);
        assert_eq!(ladder.times(), Times::Sending);
        tokio::time::sleep(REMEMBERED).await;
        assert_eq!(ladder.times(), Times::Events);
    }

    #[tokio::test(start_paused = true)]
    async fn refused_dead_letters_are_made_smaller_and_no_page_is_set_aside_for_them() {
        let mut ladder = Ladder::default();
        let letter = unfit(Topic::DeadLetter, false);
        ladder.refused(letter, "large", 11, false);
        assert!(!ladder.bare_letters(5));
        ladder.refused(letter, "large", 11, false);
        assert!(ladder.bare_letters(5) && !ladder.bare_letters(11));
        ladder.refused(letter, "large", 11, false);
        ladder.refused(letter, "large", 5, true);
        assert_eq!((ladder.refusal(4), ladder.bare_letters(4)), (None, false), "anew");
    }
}
