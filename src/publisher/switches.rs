//! Notices that another region of Agora answers, by the repeats it returns.
//!
//! The region behind a host changes when the schedule moves to another host and, invisibly, when a name
//! resolves to another address. The new region's buffer holds up to the last 2,000 events of each
//! endpoint, most of them delivered long ago. A buffer returns the oldest first, so its repeats are
//! *old*: older than the newest event that the feed has returned before.
//!
//! An app that is drained in one region has no other repeats, except a true second event that is equal
//! to the first in everything that identifies an event. With several regions, each returns the others'
//! events until copies have been removed; there only repeats older by [`COPIES_TAKE`] count. Not
//! noticed: a region whose buffer holds nothing old and, with several regions, the first page of a
//! process. Nothing depends on it: each repeat is recognised individually.
//!
//! Pure: what a page held goes in when its transaction has committed, with the pages' own times.

use std::collections::HashMap;
use std::time::Duration;

use crate::model::{AppId, Feed, Timestamp};

/// Equal events are no further apart: times may be whole seconds.
const EQUALS_LIE_APART: Duration = Duration::from_secs(2);

/// From this number on, repeats of one region in a page can't be true second events.
const NO_CHANCE: u64 = 20;

/// Copies from one region to another are seldom longer on their way.
const COPIES_TAKE: Duration = Duration::from_secs(30);

/// Old repeats so soon after others are of the same switch, unless a page without any lay between.
const SAME_SWITCH: Duration = Duration::from_secs(60);

/// Switches so soon after others are not spoken of again.
const EPISODE: Duration = Duration::from_secs(600);

/// All feeds of a partition.
#[derive(Debug)]
pub(super) struct Switches {
    /// In how many regions each app is drained.
    regions: HashMap<AppId, usize>,
    feeds: HashMap<Feed, Known>,
}

/// What a page held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HeldEvents {
    pub(super) feed: Feed,
    pub(super) answered_at: Timestamp,
    /// The newest of its events.
    pub(super) newest: Timestamp,
    /// How many were delivered before …
    pub(super) repeats: u64,
    /// … and the oldest of these.
    pub(super) oldest_repeat: Option<Timestamp>,
}

/// Another region answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Switch {
    /// It is the first of an episode.
    pub(super) begins: bool,
}

/// What is known of a feed.
#[derive(Debug, Default)]
struct Known {
    /// The newest event that it handed over.
    newest: Option<Timestamp>,
    /// When a page with old repeats came last, while no other has come since.
    switching: Option<Timestamp>,
    /// When an old repeat came last.
    told: Option<Timestamp>,
}

// === impl Held ===

impl HeldEvents {
    /// The age of its oldest repeat.
    pub(super) fn oldest_age(&self) -> Option<Duration> {
        self.oldest_repeat.map(|oldest| self.answered_at.since(oldest))
    }
}

// === impl Switches ===

impl Switches {
    /// Nothing is known.
    pub(super) fn new(regions: HashMap<AppId, usize>) -> Self {
        Self { regions, feeds: HashMap::new() }
    }

    /// Takes in what the next page of a feed held. A switch, if it shows first in this one.
    pub(super) fn observe(&mut self, held: &HeldEvents) -> Option<Switch> {
        let one_region = self.regions.get(&held.feed.app) == Some(&1);
        let known = self.feeds.entry(held.feed.clone()).or_default();
        let is_old = held.is_old(known.newest, one_region);
        let now = held.answered_at;
        // One wrong time in the future would make all that follows old.
        known.newest = known.newest.max(Some(held.newest.min(now)));
        let before = known.switching.take();
        if !is_old {
            return None;
        }
        known.switching = Some(now);
        let told = known.told.replace(now);
        if before.is_some_and(|before| now.since(before) < SAME_SWITCH) {
            return None;
        }
        Some(Switch { begins: told.is_none_or(|told| now.since(told) >= EPISODE) })
    }
}

impl HeldEvents {
    /// Whether it repeats what the feed's own buffer can't.
    fn is_old(&self, newest: Option<Timestamp>, one_region: bool) -> bool {
        let Some(oldest) = self.oldest_repeat else { return false };
        let older_by = |apart| newest.is_some_and(|newest| oldest.after(apart) < newest);
        if one_region {
            newest.is_none() || self.repeats >= NO_CHANCE || older_by(EQUALS_LIE_APART)
        } else {
            older_by(COPIES_TAKE)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Endpoint, Region};

    const BEGINS: Option<Switch> = Some(Switch { begins: true });
    const GOES_ON: Option<Switch> = Some(Switch { begins: false });

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_millis(1_600_000_000_000 + 1_000 * seconds)
    }

    /// The switches of an app with `regions` regions, page by page: when it was answered, the newest
    /// event, repeats, and the oldest of these, each in seconds.
    fn story(regions: usize, pages: &[(i64, i64, u64, i64)]) -> Vec<Option<Switch>> {
        let app = AppId::new("a");
        let mut switches = Switches::new([(app.clone(), regions)].into());
        let feed = Feed { app, region: Region::new("eu"), endpoint: Endpoint::User };
        let held = pages.iter().map(|&(answered, newest, repeats, oldest)| HeldEvents {
            feed: feed.clone(),
            answered_at: at(answered),
            newest: at(newest),
            repeats,
            oldest_repeat: (repeats > 0).then(|| at(oldest)),
        });
        held.map(|held| switches.observe(&held)).collect()
    }

    #[test]
    fn another_regions_buffer_is_one_switch_however_many_pages_it_fills() {
        let days = 86_400;
        let pages = [
            (20 * days, 5_000, 0, 0),
            (20 * days + 1, 2_500, 1_000, 1),
            (20 * days + 1, 5_000, 1_000, 2_500),
            (20 * days + 2, 20 * days + 2, 1, 5_000),
            (20 * days + 3, 20 * days + 3, 0, 0),
        ];
        for regions in [1, 2] {
            assert_eq!(story(regions, &pages), [None, BEGINS, None, None, None], "{regions}");
        }
    }

    #[test]
    fn regions_in_turn_are_an_episode_and_each_turn_is_counted() {
        let pages = [
            (100, 100, 0, 0),
            (101, 100, 50, 60),
            (102, 102, 0, 0),
            (103, 103, 50, 60),
            (400, 104, 50, 60),
            (1_100, 105, 50, 60),
        ];
        let told = [None, BEGINS, None, GOES_ON, GOES_ON, BEGINS];
        assert_eq!(story(1, &pages), told);
        assert_eq!(story(2, &pages), told);
    }

    #[test]
    fn a_true_second_event_and_a_late_copy_are_no_switch() {
        let pages = [(100, 100, 0, 0), (101, 101, 1, 100), (102, 102, 2, 100)];
        assert_eq!(story(1, &pages), [None; 3]);
        let pages = [(100, 100, 900, 99), (130, 130, 900, 100), (160, 160, 900, 131)];
        assert_eq!(story(2, &pages), [None; 3]);
    }

    #[test]
    fn an_event_from_the_future_makes_nothing_old() {
        let pages = [(100, 9_000_000, 0, 0), (101, 101, 900, 100), (102, 102, 900, 101)];
        assert_eq!(story(2, &pages), [None; 3]);
    }

    #[test]
    fn many_repeats_of_a_busy_moment_are_a_switch() {
        let pages = [(100, 100, 0, 0), (101, 100, NO_CHANCE, 99)];
        assert_eq!(story(1, &pages), [None, BEGINS]);
    }

    #[test]
    fn a_process_that_begins_with_repeats_has_come_to_another_region() {
        let pages = [(100, 50, 1, 50), (200, 200, 0, 0)];
        assert_eq!(story(1, &pages), [BEGINS, None]);
        assert_eq!(story(2, &pages), [None, None], "the others may have given it");
    }
}
