//! How much room is reserved for an answer before its request leaves.
//!
//! The first requests that are out get plenty each. With thousands of apps that would be more than
//! any journal has, though nearly all of their answers are empty: beyond the first ones a request
//! gets twice what answers to its feed took lately. An answer that is larger is stored all the same;
//! the plenty of the first ones and the ballast are for that, and memory keeps what the disk refuses.

use std::collections::HashMap;
use std::sync::Arc;

use super::RESERVED_BYTES;
use crate::model::Feed;

/// So many requests get [`RESERVED_BYTES`] each: more than a few apps have out at a time.
const WITH_PLENTY: usize = 32;

/// The least that a request gets: its record, and an answer of a few events.
const LEAST: u64 = 8 * 1024;

/// What a request gets to a feed that has not answered yet: a quarter of a full page.
const UNKNOWN: u64 = 64 * 1024;

/// What an entry takes beside its body.
const BESIDE_BODY: u64 = 1024;

/// Answers of all feeds that their usual size is the mean of.
const MEAN_OVER: u64 = 64;

/// What answers took lately.
#[derive(Debug, Default)]
pub(super) struct Room {
    /// The largest answer of each feed; an eighth of it fades with each further one.
    largest: HashMap<Arc<Feed>, u64>,
    /// Of all feeds.
    mean: u64,
}

// === impl Room ===

impl Room {
    /// Bytes for a request to this feed, while so many are `out`.
    pub(super) fn wanted(&self, feed: &Feed, out: usize) -> u64 {
        let expected = match self.largest.get(feed) {
            Some(largest) => (2 * largest).max(LEAST),
            None => (2 * self.mean).max(UNKNOWN),
        };
        if out < WITH_PLENTY { expected.max(RESERVED_BYTES) } else { expected }
    }

    /// Learns how long the body of an answer was.
    pub(super) fn learn(&mut self, feed: &Arc<Feed>, body: usize) {
        let bytes = if body == 0 { 0 } else { body as u64 + BESIDE_BODY };
        self.mean = self.mean - self.mean / MEAN_OVER + bytes / MEAN_OVER;
        let largest = self.largest.entry(Arc::clone(feed)).or_default();
        *largest = bytes.max(*largest - *largest / 8);
    }
}
