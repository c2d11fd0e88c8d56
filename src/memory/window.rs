//! Recognises an event that was delivered before.
//!
//! Agora stores events by region and does not synchronise their removal. So a second region returns
//! again what a first one already returned: up to the last 2,000 events of an endpoint, however old. A
//! window bounded by time would forget them in a quiet app and publish 2,000 repeats. The window is
//! therefore bounded by *count*, per app and endpoint, and holds more than a buffer can repeat.
//!
//! Count alone fails at high rates: at 10,000 events a second, 8,192 events span less than a second,
//! while an answer that was requested before they were delivered may still be in flight. So a block is
//! also kept while its newest event is younger than [`hold`], measured in the pages' own times (the
//! outcome does not depend on when a page is processed), up to [`MOST_HELD`] events. Events dropped
//! because of that limit are counted.
//!
//! Events are kept in blocks of [`BLOCK_EVENTS`]. A block is the unit that is written to Kafka: the
//! newest is rewritten until it is full, and full blocks never change. A block keeps whole fingerprints
//! only until it is full and written. After that 64 bits of each are enough: they are keyed with a
//! secret of the process, so two events with equal keys can't be chosen on purpose, and the probability that a
//! new event matches one of 8,192 others is 8,192 / 2^64 = 4.4 × 10^-16.
//!
//! Pure: no I/O, no clock.

use std::collections::{HashSet, VecDeque};
use std::hash::{BuildHasher as _, RandomState};
use std::sync::LazyLock;
use std::time::Duration;

use hashbrown::HashTable;

use super::Fingerprint;
use crate::model::{SETTLE_MARGIN, Timestamp};

/// Events of a block: 4 KiB in a record of the state topic. Divides 2^32, so that places can wrap around.
pub const BLOCK_EVENTS: usize = 256;

/// Minimum number of events that a full window remembers.
pub const LEAST_REMEMBERED: usize = 8_192;

/// Minimum number of events that a full window remembers for each region that is drained: twice
/// Agora's buffer.
const REMEMBERED_PER_REGION: usize = 4_096;

/// Maximum number of events that a window remembers because of their age.
///
/// The time to hold is covered up to `MOST_HELD / hold` events per second of one app and endpoint:
/// 3,360 with the default `silence_timeout` of 15 s (39 s), 1,016 with 60 s (129 s). Faster feeds
/// are covered for a shorter time, and the events dropped too early are counted.
const MOST_HELD: usize = 131_072;

/// A table with more than this many times the buckets it needs is made smaller.
const SHRINK_FACTOR: usize = 4;

/// Minimum time that an event is remembered, however many follow it.
///
/// A request in flight when the event was handed over may end `longest_request` later, and its page
/// may then be held for `longest_request` and [`SETTLE_MARGIN`] until its order is known. Pages
/// answered up to that moment are published before it.
pub fn hold(longest_request: Duration) -> Duration {
    longest_request.saturating_mul(2).saturating_add(SETTLE_MARGIN)
}

/// The events of one app and endpoint that are known to be delivered.
#[derive(Debug)]
pub struct Window {
    remember: usize,
    /// Minimum time that an event is remembered; see [`hold`].
    hold: Duration,
    /// Oldest first. All but the last are full.
    blocks: VecDeque<KeptBlock>,
    /// Where each key is, counted from `first` in steps of [`BLOCK_EVENTS`] per block.
    places: HashTable<u32>,
    /// The place of the first event of the oldest block; wraps around.
    first: u32,
    /// Slots of dropped blocks, to be reused.
    free_slots: Vec<u32>,
    next_sequence: u64,
    dropped_too_early: u64,
}

/// A part of a window, as it is written to Kafka.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// Its place: the record of an older block with the same slot is replaced.
    pub slot: u32,
    /// Grows with each block of the window.
    pub sequence: u64,
    /// When Agora handed over the newest of its events.
    pub newest: Timestamp,
    /// Its events, in the order of delivery.
    pub events: Vec<Fingerprint>,
}

/// A block in memory.
#[derive(Debug)]
pub struct KeptBlock {
    /// Without its events once it is full and written.
    block: Block,
    /// One of each event.
    keys: Vec<u64>,
    changed: bool,
}

// === impl Window ===

impl Window {
    /// An empty window for an endpoint drained in `regions` regions, which remembers events for at
    /// least `hold`.
    pub fn new(regions: usize, hold: Duration) -> Self {
        Self {
            remember: LEAST_REMEMBERED.max(REMEMBERED_PER_REGION * regions),
            hold,
            blocks: VecDeque::new(),
            places: HashTable::new(),
            first: 0,
            free_slots: Vec::new(),
            next_sequence: 0,
            dropped_too_early: 0,
        }
    }

    /// The same window with blocks that were read back, in any order.
    #[must_use]
    pub fn with_blocks(mut self, mut blocks: Vec<KeptBlock>) -> Self {
        blocks.sort_by_key(|kept| kept.block.sequence);
        let used: HashSet<u32> = blocks.iter().map(|kept| kept.block.slot).collect();
        let slots = used.iter().max().map_or(0, |slot| slot + 1);
        self.free_slots = (0..slots).rev().filter(|slot| !used.contains(slot)).collect();
        self.next_sequence = blocks.last().map_or(0, |kept| kept.block.sequence + 1);
        self.blocks = blocks.into();
        self.places = HashTable::with_capacity(self.len());
        self.enter_all();
        self
    }

    /// Remembers an event from a page that was handed over at `handed_over`. False if the event is
    /// already known.
    pub fn insert(&mut self, event: Fingerprint, handed_over: Timestamp) -> bool {
        let key = key_of(event);
        if self.find(key).is_some() {
            return false;
        }
        if self.blocks.back().is_none_or(|last| last.keys.len() >= BLOCK_EVENTS) {
            self.begin_block(handed_over);
        }
        let block = self.blocks.len() - 1;
        let last = self.blocks.back_mut().expect("a block was begun");
        last.block.events.push(event);
        last.block.newest = last.block.newest.max(handed_over);
        last.changed = true;
        let place = place_of(self.first, block, last.keys.len());
        last.keys.push(key);
        let keys = Keys { blocks: &self.blocks, first: self.first };
        self.places.insert_unique(key, place, |at| keys.hash_at(*at));
        true
    }

    /// Whether an event is remembered.
    pub fn contains(&self, event: Fingerprint) -> bool {
        self.find(key_of(event)).is_some()
    }

    /// Gives each block that changed since the last call to `write`, newest first.
    pub fn write_changes(&mut self, mut write: impl FnMut(&Block)) {
        for kept in self.blocks.iter_mut().rev().take_while(|kept| kept.changed) {
            write(&kept.block);
            kept.changed = false;
            kept.drop_written();
        }
    }

    /// How many events it remembers.
    pub fn len(&self) -> usize {
        self.blocks.iter().map(|kept| kept.keys.len()).sum()
    }

    /// Whether it remembers nothing.
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// Events dropped because of [`MOST_HELD`] that [`hold`] would have kept, since the last call.
    pub fn take_dropped_too_early(&mut self) -> u64 {
        std::mem::take(&mut self.dropped_too_early)
    }

    fn begin_block(&mut self, now: Timestamp) {
        while self.blocks.len() * BLOCK_EVENTS >= self.remember && self.drop_oldest(now) {}
        self.fit_table();
        let slot = self.free_slots.pop().unwrap_or_else(|| {
            u32::try_from(self.blocks.len()).expect("a window has less than 2^32 blocks")
        });
        self.blocks.push_back(KeptBlock {
            block: Block { slot, sequence: self.next_sequence, newest: now, events: Vec::new() },
            keys: Vec::with_capacity(BLOCK_EVENTS),
            changed: true,
        });
        self.next_sequence += 1;
    }

    /// Forgets the oldest block, unless it must be held.
    fn drop_oldest(&mut self, now: Timestamp) -> bool {
        let held =
            self.blocks.front().is_some_and(|oldest| now.since(oldest.block.newest) < self.hold);
        let most = self.remember.max(MOST_HELD);
        if held && self.blocks.len() * BLOCK_EVENTS < most {
            return false;
        }
        let Some(oldest) = self.blocks.pop_front() else { return false };
        for (index, &key) in oldest.keys.iter().enumerate() {
            let place = place_of(self.first, 0, index);
            // A block that was read back may repeat an event of a later one, which has the place.
            if let Ok(entry) = self.places.find_entry(key, |at| *at == place) {
                entry.remove();
            }
        }
        self.first = place_of(self.first, 1, 0);
        if held {
            self.dropped_too_early += oldest.keys.len() as u64;
        }
        self.free_slots.push(oldest.block.slot);
        true
    }

    /// Makes the table fit for another block. Removed places leave marks behind that count against
    /// its capacity, so it would grow although it never holds more.
    fn fit_table(&mut self) {
        let needed = self.places.len() + BLOCK_EVENTS;
        let is_large = self.places.num_buckets() > SHRINK_FACTOR * needed;
        if is_large {
            self.blocks.shrink_to(2 * self.blocks.len());
            self.free_slots.shrink_to_fit();
        }
        if is_large || self.places.capacity() < needed {
            self.places = HashTable::with_capacity(needed);
            self.enter_all();
        }
    }

    /// Enters all keys into the table. Of one that is in two blocks the later place counts.
    fn enter_all(&mut self) {
        let keys = Keys { blocks: &self.blocks, first: self.first };
        for (block, kept) in self.blocks.iter().enumerate() {
            for (index, &key) in kept.keys.iter().enumerate() {
                let place = place_of(self.first, block, index);
                self.places
                    .entry(key, |at| keys.at(*at) == Some(key), |at| keys.hash_at(*at))
                    .and_modify(|at| *at = place)
                    .or_insert(place);
            }
        }
    }

    fn find(&self, key: u64) -> Option<&u32> {
        let keys = Keys { blocks: &self.blocks, first: self.first };
        self.places.find(key, |at| keys.at(*at) == Some(key))
    }
}

/// The place of an event, by the index of its block and its index in there.
fn place_of(first: u32, block: usize, index: usize) -> u32 {
    let place = u32::try_from(block * BLOCK_EVENTS + index).expect("fewer than 2^32 events");
    first.wrapping_add(place)
}

/// Finds the key at a place.
struct Keys<'a> {
    blocks: &'a VecDeque<KeptBlock>,
    first: u32,
}

impl Keys<'_> {
    fn at(&self, place: u32) -> Option<u64> {
        let place = usize::try_from(place.wrapping_sub(self.first)).ok()?;
        self.blocks.get(place / BLOCK_EVENTS)?.keys.get(place % BLOCK_EVENTS).copied()
    }

    /// A key is its own hash.
    fn hash_at(&self, place: u32) -> u64 {
        self.at(place).unwrap_or_default()
    }
}

/// SipHash with a random key that this process draws at its start.
fn key_of(event: Fingerprint) -> u64 {
    static SECRET: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    SECRET.hash_one(event)
}

// === impl KeptBlock ===

impl KeptBlock {
    /// A block that was read back.
    pub fn restored(block: Block) -> Self {
        let mut keys = Vec::with_capacity(BLOCK_EVENTS);
        keys.extend(block.events.iter().copied().map(key_of));
        let mut kept = Self { block, keys, changed: false };
        kept.drop_written();
        kept
    }

    /// A full block is not written again.
    fn drop_written(&mut self) {
        if self.keys.len() >= BLOCK_EVENTS {
            self.block.events = Vec::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// With the default settings: 15 s of silence and 4 s for the body.
    const LONGEST_REQUEST: Duration = Duration::from_secs(19);

    fn number(n: u64) -> Fingerprint {
        // Spread over both halves, as a digest is.
        let spread = u128::from(n).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
        Fingerprint::from_bytes(spread.to_be_bytes())
    }

    fn at(second: u64) -> Timestamp {
        Timestamp::from_millis(1_600_000_000_000).after(Duration::from_secs(second))
    }

    fn small() -> Window {
        Window { remember: 1_024, ..Window::new(1, hold(LONGEST_REQUEST)) }
    }

    /// Bytes that a window has allocated.
    fn bytes(window: &Window) -> usize {
        let blocks = window.blocks.iter().map(|kept| {
            kept.keys.capacity() * size_of::<u64>()
                + kept.block.events.capacity() * size_of::<Fingerprint>()
        });
        blocks.sum::<usize>()
            + window.blocks.capacity() * size_of::<KeptBlock>()
            + window.places.allocation_size()
            + window.free_slots.capacity() * size_of::<u32>()
    }

    #[test]
    fn a_buffer_of_any_age_is_recognised() {
        let mut window = Window::new(1, hold(LONGEST_REQUEST));
        for n in 0..2_000 {
            assert!(window.insert(number(n), at(0)));
        }
        let twenty_days = 20 * 86_400;
        for n in 0..2_000 {
            assert!(!window.insert(number(n), at(twenty_days)), "{n}");
        }
        assert!(window.insert(number(2_000), at(twenty_days)));
    }

    #[test]
    fn it_forgets_the_oldest_beyond_its_count_and_its_time() {
        let mut window = Window::new(3, hold(LONGEST_REQUEST));
        for n in 0..20_000 {
            window.insert(number(n), at(n));
        }
        assert!(window.len() >= 3 * REMEMBERED_PER_REGION - BLOCK_EVENTS);
        assert!(window.len() <= 3 * REMEMBERED_PER_REGION + BLOCK_EVENTS);
        assert!(!window.contains(number(0)));
        assert!(window.contains(number(19_999)));
        assert_eq!(window.take_dropped_too_early(), 0);
    }

    #[test]
    fn at_a_high_rate_it_remembers_for_the_whole_time_that_an_answer_can_be_out() {
        let mut window = Window::new(1, hold(LONGEST_REQUEST));
        for n in 0..60_000 {
            window.insert(number(n), at(n / 3_000));
        }
        assert!(window.contains(number(0)), "20 s ago");
        for n in 60_000..300_000 {
            window.insert(number(n), at(n / 10_000));
        }
        assert!(window.len() <= MOST_HELD);
        assert!(window.take_dropped_too_early() > 0);
    }

    #[test]
    fn a_longer_request_holds_events_for_longer() {
        let minutes = Duration::from_secs(184);
        assert_eq!(hold(LONGEST_REQUEST), Duration::from_secs(39));
        assert_eq!(hold(minutes), Duration::from_secs(369));
        for longest in [LONGEST_REQUEST, minutes] {
            let mut window = Window::new(1, hold(longest));
            // At 100 events a second the count alone forgets the first one after 82 s.
            let last = hold(longest).as_secs() - 1;
            for n in 0..100 * last {
                window.insert(number(n), at(n / 100));
            }
            // One burst, so that age alone decides.
            for n in 0..10_000 {
                window.insert(number(1_000_000 + n), at(last));
            }
            assert!(!window.insert(number(0), at(last)), "{longest:?}");
            assert_eq!(window.take_dropped_too_early(), 0);
            for n in 0..10_000 {
                window.insert(number(2_000_000 + n), at(last + 3));
            }
            assert!(!window.contains(number(0)), "{longest:?}");
        }
    }

    #[test]
    fn the_most_held_cover_the_stated_rates() {
        for (longest, rate) in [(19, 3_360), (64, 1_016)] {
            let hold = hold(Duration::from_secs(longest)).as_secs();
            assert_eq!(MOST_HELD as u64 / hold, rate);
        }
    }

    #[test]
    fn a_full_window_is_small_and_stays_so() {
        assert_eq!(bytes(&Window::new(1, hold(LONGEST_REQUEST))), 0, "before the first event");
        let mut window = Window::new(1, Duration::ZERO);
        let mut full = None;
        for n in 0..1_000_000 {
            window.insert(number(n), at(0));
            if n % 1_000 == 0 {
                window.write_changes(|_| {});
            }
            if n == 100_000 {
                full = Some(bytes(&window));
            }
        }
        window.write_changes(|_| {});
        assert!(window.len() > LEAST_REMEMBERED - BLOCK_EVENTS);
        let full = full.expect("there were more");
        assert!(full <= 160_000, "{full} bytes");
        assert!(bytes(&window) <= full, "{} bytes, {full} before", bytes(&window));
    }

    #[test]
    fn what_a_burst_took_is_given_back() {
        let mut window = Window::new(1, hold(LONGEST_REQUEST));
        for n in 0..200_000 {
            window.insert(number(n), at(n / 10_000));
        }
        window.write_changes(|_| {});
        assert!(bytes(&window) > 1_000_000);
        for n in 200_000..220_000 {
            window.insert(number(n), at(n));
        }
        window.write_changes(|_| {});
        assert!(bytes(&window) <= 320_000, "{} bytes", bytes(&window));
    }

    #[test]
    fn places_wrap_around_and_every_event_is_found() {
        let mut window = small();
        window.first = 0_u32.wrapping_sub(3 * 256);
        for n in 0..3_000 {
            assert!(window.insert(number(n), at(n)));
        }
        assert!(window.first < u32::MAX / 2, "it has wrapped around");
        let oldest = 3_000 - window.len() as u64;
        for n in 0..3_000 {
            assert_eq!(window.contains(number(n)), n >= oldest, "{n}");
        }
    }

    proptest! {
        #[test]
        fn what_was_written_restores_the_window(
            inserts in prop::collection::vec((0_u64..3_000, 0_u64..100), 0..3_000),
            write_every in 1_usize..500,
        ) {
            let mut window = small();
            let mut stored = BTreeMap::new();
            for chunk in inserts.chunks(write_every) {
                for (n, second) in chunk {
                    window.insert(number(*n), at(*second));
                }
                window.write_changes(|block| drop(stored.insert(block.slot, block.clone())));
            }
            let blocks = stored.into_values().map(KeptBlock::restored).collect();
            let mut restored = small().with_blocks(blocks);
            for n in 0..3_000 {
                prop_assert!(!window.contains(number(n)) || restored.contains(number(n)), "{}", n);
            }
            prop_assert!(restored.blocks.len() <= window.blocks.len() + window.free_slots.len());
            // It still knows of each event whether it is new.
            for n in 3_000..6_000 {
                prop_assert!(restored.insert(number(n), at(n)));
                prop_assert!(!restored.insert(number(n), at(n)));
            }
            prop_assert!(!restored.contains(number(3_000)));
            prop_assert!(restored.len() <= 1_024);
        }

        #[test]
        fn a_window_knows_the_events_of_its_blocks_and_no_others(
            inserts in prop::collection::vec(0_u64..4_000, 0..3_000),
        ) {
            let mut window = small();
            for (n, second) in inserts.into_iter().zip(0..) {
                let key = key_of(number(n));
                let known = window.blocks.iter().any(|kept| kept.keys.contains(&key));
                prop_assert_eq!(window.insert(number(n), at(second)), !known);
                prop_assert_eq!(window.places.len(), window.len());
            }
        }
    }
}
