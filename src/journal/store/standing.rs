//! What memory knows of requests and entries, whatever becomes of the file: enough to put them on
//! record in a new one, and to say what is missing where an entry can't be read any more.

use std::collections::HashSet;
use std::sync::Arc;

use super::Place;
use crate::model::{CLOCK_MARGIN, Content, Entry, Feed, Gap, GapCause, PAGE_LIMIT, Timestamp};

/// A request that is out.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) feed: Arc<Feed>,
    pub(super) since: Option<Timestamp>,
    pub(super) asked_at: Timestamp,
    /// Bytes that are reserved for its answer.
    pub(super) room: u64,
}

/// An entry that is in the line, or held.
#[derive(Clone, Debug)]
pub(super) struct Standing {
    pub(super) place: Place,
    /// `None` where the row of an earlier process does not tell.
    feed: Option<Arc<Feed>>,
    /// As of a gap, if this entry were lost.
    from: Option<Timestamp>,
    to: Timestamp,
    at_most: Option<u64>,
}

/// The names of feeds, each once however many entries have it.
#[derive(Debug, Default)]
pub(super) struct Feeds(HashSet<Arc<Feed>>);

// === impl Standing ===

impl Standing {
    /// Of an entry that this process takes in.
    pub(super) fn new(place: Place, content: &Content, feed: Arc<Feed>) -> Self {
        let (from, to, at_most) = match content {
            Content::Page(page) => {
                (page.since, page.answered_at.after(CLOCK_MARGIN), Some(PAGE_LIMIT))
            }
            Content::Gap(gap) => (gap.from, gap.to, gap.at_most),
        };
        Self { place, feed: Some(feed), from, to, at_most }
    }

    /// Of an entry of an earlier process, which ended before `now`.
    pub(super) fn found(place: Place, feed: Option<Arc<Feed>>, now: Timestamp) -> Self {
        Self { place, feed, from: None, to: now.after(CLOCK_MARGIN), at_most: None }
    }

    /// The feed, where it is known.
    pub(super) fn feed(&self) -> Option<&Arc<Feed>> {
        self.feed.as_ref()
    }

    /// What takes its place if it can't be read any more.
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
    /// The one name of a feed.
    pub(super) fn name(&mut self, feed: &Feed) -> Arc<Feed> {
        if let Some(known) = self.0.get(feed) {
            return Arc::clone(known);
        }
        let named = Arc::new(feed.clone());
        self.0.insert(Arc::clone(&named));
        named
    }
}
