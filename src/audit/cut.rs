//! What may be deleted from the event topics.
//!
//! Kafka deletes from the beginning of a partition, and the events of the pages of one partition of the
//! pages topic stand in the order of their pages. So the first that is left tells what may be gone: the
//! events of its own page and of those before it.

use std::collections::{BTreeMap, HashMap};

use crate::model::Endpoint;

/// The partitions of event topics that have lost something. For each partition of the pages topic: how
/// many pages of the window, from the first, may have lost events, by the first record that is left.
/// `None`: all of them, since its page can't be placed.
#[derive(Debug, Default)]
pub(super) struct Cut(BTreeMap<(Endpoint, i32), HashMap<i32, Option<u32>>>);

/// What Kafka may have deleted from a topic of what belongs to the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lack {
    Nothing,
    /// It begins within the window.
    Cut,
    /// It holds nothing, but did.
    Emptied,
}

// === impl Cut ===

impl Cut {
    /// Something was deleted from this partition of an event topic.
    pub(super) fn insert(&mut self, endpoint: Endpoint, partition: i32) {
        self.0.entry((endpoint, partition)).or_default();
    }

    /// A record of an event topic, in the order of its partition: the pages before it may have lost events,
    /// and its own.
    pub(super) fn see(
        &mut self,
        endpoint: Endpoint,
        partition: i32,
        pages_partition: i32,
        lost: Option<u32>,
    ) {
        if let Some(first) = self.0.get_mut(&(endpoint, partition)) {
            first.entry(pages_partition).or_insert(lost);
        }
    }

    /// Whether an event of this page may be deleted. Its key tells its partition only if that topic always
    /// had as many partitions as today, so each of them counts.
    pub(super) fn may_lack(&self, endpoint: Endpoint, pages_partition: i32, page: u32) -> bool {
        let of_topic = self.0.iter().filter(|((of, _), _)| *of == endpoint);
        let mut first = of_topic.map(|(_, first)| first.get(&pages_partition));
        first.any(|first| match first {
            Some(Some(lost)) => page < *lost,
            Some(None) | None => true,
        })
    }
}
