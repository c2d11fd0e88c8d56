//! Determines the room reserved for an answer before its request leaves.
//!
//! The first requests in flight get ample room. With thousands of apps, that would exceed any
//! journal, although nearly all of their answers are empty. So further requests get twice the size
//! of recent answers to their feed. A larger answer is stored all the same: the ample room of the
//! first requests and the reserve file allow for it, and memory keeps what the disk refuses.

use std::collections::HashMap;
use std::sync::Arc;

use super::RESERVED_BYTES;
use crate::model::Feed;

/// Number of requests in flight that get [`RESERVED_BYTES`] each: more than a few apps send at a
/// time.
const WITH_PLENTY: usize = 32;

/// Minimum for a request, in bytes: its record, and an answer of a few events.
const LEAST: u64 = 8 * 1024;

/// Minimum for a request to a feed that has not answered yet, in bytes: a quarter of a full page.
const UNKNOWN: u64 = 64 * 1024;

/// Size of an entry without its body, in bytes.
const BESIDE_BODY: u64 = 1024;

/// Number of recent answers, over all feeds, in the mean.
const MEAN_OVER: u64 = 64;

/// The sizes of recent answers.
#[derive(Debug, Default)]
pub(super) struct Room {
    /// The largest answer of each feed, in bytes; reduced by an eighth with each further answer.
    largest: HashMap<Arc<Feed>, u64>,
    /// The mean over all feeds, in bytes.
    mean: u64,
}

// === impl Room ===

impl Room {
    /// Bytes to reserve for a request to this feed while `out` others are in flight.
    pub(super) fn wanted(&self, feed: &Feed, out: usize) -> u64 {
        let expected = match self.largest.get(feed) {
            Some(largest) => (2 * largest).max(LEAST),
            None => (2 * self.mean).max(UNKNOWN),
        };
        if out < WITH_PLENTY { expected.max(RESERVED_BYTES) } else { expected }
    }

    /// Learns from the length of an answer's body.
    pub(super) fn learn(&mut self, feed: &Arc<Feed>, body: usize) {
        let bytes = if body == 0 { 0 } else { body as u64 + BESIDE_BODY };
        self.mean = self.mean - self.mean / MEAN_OVER + bytes / MEAN_OVER;
        let largest = self.largest.entry(Arc::clone(feed)).or_default();
        *largest = bytes.max(*largest - *largest / 8);
    }
}
