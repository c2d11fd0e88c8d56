//! What became of every event, and how long each took.
//!
//! Events are identified by their fields, not by an id from the publisher, so that the bridge and
//! the naive poller are judged alike.

use std::collections::HashMap;
use std::ops::Range;

use agora_rtm_bridge::simulator::{Fate, Recorded};
use hdrhistogram::Histogram;

use crate::support::consume::Record;
use crate::support::judge::Event;

/// The result.
#[derive(Debug)]
pub(crate) struct Score {
    pub(crate) made: usize,
    pub(crate) delivered: usize,
    /// Made but not delivered.
    pub(crate) lost: usize,
    /// Overwritten before they were fetched.
    pub(crate) overwritten: usize,
    pub(crate) twice: usize,
    /// Published after a later event of the same App ID and key.
    pub(crate) out_of_order: usize,
    /// From the time of the event to the time when the broker appended it, in milliseconds.
    pub(crate) latency: Histogram<u64>,
}

/// Compares all events that happened with all records read, by topic, partition and offset.
/// Latencies cover the events whose time is in `measured` (milliseconds since 1970).
pub(crate) fn score(
    happened: impl Iterator<Item = Recorded>,
    records: &[Record],
    measured: Range<i64>,
) -> Score {
    let mut latency = Histogram::new(3).expect("three digits are allowed");
    let mut read: HashMap<Event, usize> = HashMap::new();
    let mut last_of_key: HashMap<(&str, String, &[u8]), i64> = HashMap::new();
    let mut out_of_order = 0;
    for record in records {
        let value = record.value.as_deref().unwrap_or_default();
        let event: Event = serde_json::from_slice(value).expect("records are JSON as agreed");
        let key = record.key.as_deref().expect("records have keys");
        // App IDs share keys: the same user id in another App ID is a different user.
        let of_key = (&*record.topic, event.app_id.clone(), key);
        let last = last_of_key.entry(of_key).or_insert(event.ms);
        out_of_order += usize::from(event.ms < *last);
        *last = event.ms.max(*last);
        if measured.contains(&event.ms) {
            let appended = record.timestamp.expect("the broker stamps");
            // Both times come from the same clock, read at different moments.
            latency.saturating_record((appended - event.ms).max(0).unsigned_abs());
        }
        *read.entry(event).or_default() += 1;
    }
    let delivered = read.len();
    let twice = read.values().filter(|times| **times > 1).count();
    let (mut made, mut lost, mut overwritten) = (0, 0, 0);
    for recorded in happened {
        made += 1;
        let is_overwritten = recorded.fate == Fate::Overwritten;
        if read.remove(&Event::from(recorded)).is_none() {
            lost += 1;
            overwritten += usize::from(is_overwritten);
        }
    }
    assert!(read.is_empty(), "{} events were read that never happened", read.len());
    Score { made, delivered, lost, overwritten, twice, out_of_order, latency }
}
