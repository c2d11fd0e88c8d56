//! What memory knows about requests and entries, independently of the file: enough to record them
//! in a new file, and to describe the gap if an entry becomes unreadable.

use std::collections::HashSet;
use std::sync::Arc;

use super::Place;
use crate::model::{CLOCK_MARGIN, Content, Entry, Feed, Gap, GapCause, PAGE_LIMIT, Timestamp};

/// A request in flight.
#[derive(Debug)]
pub(super) struct OpenRequest {
    pub(super) feed: Arc<Feed>,
    pub(super) since: Option<Timestamp>,
    pub(super) asked_at: Timestamp,
    /// Space reserved for its answer, in bytes.
    pub(super) room: u64,
}

/// An entry that waits, or is held.
#[derive(Clone, Debug)]
pub(super) struct Standing {
    pub(super) place: Place,
    /// `None` if the row of an earlier process contains no valid feed.
    feed: Option<Arc<Feed>>,
    /// The bounds of the gap if this entry were lost.
    from: Option<Timestamp>,
    to: Timestamp,
    at_most: Option<u64>,
}

/// The names of feeds, each stored once for all its entries.
#[derive(Debug, Default)]
pub(super) struct Feeds(HashSet<Arc<Feed>>);

// === impl Standing ===

impl Standing {
    /// For an entry of this process.
    pub(super) fn new(place: Place, content: &Content, feed: Arc<Feed>) -> Self {
        let (from, to, at_most) = match content {
            Content::Page(page) => {
                (page.since, page.answered_at.after(CLOCK_MARGIN), Some(PAGE_LIMIT))
            }
            Content::Gap(gap) => (gap.from, gap.to, gap.at_most),
        };
        Self { place, feed: Some(feed), from, to, at_most }
    }

    /// For an entry of an earlier process, which ended before `now`.
    pub(super) fn found(place: Place, feed: Option<Arc<Feed>>, now: Timestamp) -> Self {
        Self { place, feed, from: None, to: now.after(CLOCK_MARGIN), at_most: None }
    }

    /// The feed, if known.
    pub(super) fn feed(&self) -> Option<&Arc<Feed>> {
        self.feed.as_ref()
    }

    /// The gap that replaces the entry if it becomes unreadable.
    pub(super) fn gap(&self) -> Option<Entry> {
        let gap = Gap {
            feed: Feed::clone(self.feed.as_ref()?),
            cause: GapCause::JournalDamaged,
            from: self.from,
            to: self.to,
            at_least: 0,
            at_most: self.at_most,
        };
        Some(self.place.entry(Content::Gap(gap)))
    }
}

// === impl Feeds ===

impl Feeds {
    /// The shared name of a feed.
    pub(super) fn name(&mut self, feed: &Feed) -> Arc<Feed> {
        if let Some(known) = self.0.get(feed) {
            return Arc::clone(known);
        }
        let named = Arc::new(feed.clone());
        self.0.insert(Arc::clone(&named));
        named
    }
}
