//! Recognises an event that was delivered before.
//!
//! Agora stores events by region and does not synchronise their removal, so a second region hands
//! over again what a first one gave: up to the last 2,000 events of an endpoint, however old. A
//! window by time would forget them in a quiet app and publish 2,000 repeats; so the window is
//! bounded by *count*, per app and endpoint, larger than what a buffer can repeat.
//!
//! Count alone is not enough in the other direction: at 10,000 events a second 8,192 events are
//! gone in a second, while an answer that was asked for before they were delivered may still be on
//! its way. So a block also stays while its newest event is younger than [`hold`], measured in the
//! pages' own times (the outcome does not depend on when a page is processed), up to
//! [`MOST_HELD`] events; events dropped because of that limit are counted.
//!
//! Events are kept in blocks of [`BLOCK_EVENTS`]. A block is the unit that is written to Kafka: the
//! newest is written again until it is full, the others never change.
//!
//! Most windows of very many apps have nothing to do for most of the time. They are [`Resting`]: the
//! events of each block lie on a [`Shelf`], 4 KiB each, and what stays in memory is what the blocks
//! are. A [`Window`] is awake, with all its events and an index of them. What a block had on the
//! shelf stays there while its window is awake, as long as the block does not change. Pure: no I/O,
//! no clock; the shelf is somebody else's.

mod index;

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::time::Duration;

use ring::digest::{Context, SHA256};

use self::index::Index;
use crate::agora::Event;
use crate::model::{AppId, Endpoint, SETTLE_MARGIN, Timestamp};

/// Events of a block: 4 KiB in a record of the state topic.
pub const BLOCK_EVENTS: usize = 256;

/// The smallest number of events that a window remembers.
pub const LEAST_REMEMBERED: usize = 8_192;

/// For each region that is drained, a window remembers at least so many events: twice Agora's
/// buffer.
pub const REMEMBERED_PER_REGION: usize = 4_096;

/// Maximum number of events that a window remembers because of their age.
///
/// The time to hold is covered up to `MOST_HELD / hold` events per second of one app and endpoint:
/// 3,360 with the default `silence_timeout` of 15 s (39 s), 1,016 with 60 s (129 s). Faster feeds
/// are covered for a shorter time, and the events dropped too early are counted.
pub const MOST_HELD: usize = 131_072;

/// Minimum time that an event is remembered, however many follow it.
///
/// A request in flight when the event was handed over may end `longest_request` later, and its page
/// may then be held for `longest_request` and [`SETTLE_MARGIN`] until its order is known. Pages
/// answered up to that moment are published before it.
pub fn hold(longest_request: Duration) -> Duration {
    longest_request.saturating_mul(2).saturating_add(SETTLE_MARGIN)
}

/// The identity of an event: 128 bits of SHA-256.
///
/// The encoding never changes between versions; its test vectors stand in this file. Each of app
/// id, endpoint name, channel (empty for user events), user id and type as a little-endian u32
/// length and its UTF-8 bytes; then the time in milliseconds as a little-endian i64. The first 16
/// bytes of the digest are the fingerprint, shown as 32 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fingerprint(u128);

/// The events of one app and endpoint that are known to be delivered.
#[derive(Debug)]
pub struct Window {
    ring: Ring,
    /// Oldest first. All but the last are full.
    blocks: VecDeque<Block>,
    index: Index,
    /// What nobody needs any more on the shelf.
    loose: Vec<Cell>,
    /// Room for what the blocks are at rest. Were it made anew each time, it would lie between what
    /// is given back, and little of that would leave the process.
    at_rest: Vec<Shelved>,
    dropped_too_early: u64,
}

/// A window without its events, which lie on a shelf.
#[derive(Debug)]
pub struct Resting {
    ring: Ring,
    blocks: Vec<Shelved>,
}

/// What a window is, whether it rests or not.
#[derive(Debug)]
struct Ring {
    remember: usize,
    /// Minimum time that an event is remembered; see [`hold`].
    hold: Duration,
    /// Places of dropped blocks, to be written over.
    free_slots: Vec<u32>,
    next_sequence: u64,
}

/// A part of a window, as it is written to Kafka.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// Its place: the record of an older block with the same slot is replaced.
    pub slot: u32,
    /// Grows with each block of the window.
    pub sequence: u64,
    /// When the newest of its events was handed over by Agora.
    pub newest: Timestamp,
    /// Its events, in the order of delivery.
    pub events: Vec<Fingerprint>,
    changed: bool,
    /// Where on the shelf the same events lie.
    cell: Option<Cell>,
}

/// A block whose events lie on a shelf, or in memory where the shelf took none.
#[derive(Debug)]
pub struct Shelved {
    slot: u32,
    sequence: u64,
    newest: Timestamp,
    events: BlockPlace,
}

#[derive(Debug)]
enum BlockPlace {
    Shelf(Cell, u16),
    Memory(Box<[Fingerprint]>),
}

/// A place on a shelf, for the events of one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell(pub u32);

/// Where the events of blocks lie while their window rests.
pub trait Shelf {
    /// Why something can't be read back.
    type Error;

    /// Stores up to [`BLOCK_EVENTS`] events. `None` where that can't be done: they stay in memory.
    fn put(&mut self, events: &[Fingerprint]) -> Option<Cell>;

    /// Reads back so many events, as many as were stored there.
    fn get(&mut self, cell: Cell, count: usize) -> Result<Vec<Fingerprint>, Self::Error>;

    /// Nobody needs what is stored there any more.
    fn free(&mut self, cell: Cell);
}

// === impl Fingerprint ===

impl Fingerprint {
    /// The fingerprint of an event.
    pub fn of(app: &AppId, endpoint: Endpoint, event: &Event<'_>) -> Self {
        let mut digest = Context::new(&SHA256);
        let channel = event.channel_id.as_deref().unwrap_or_default();
        for part in [app.as_str(), endpoint.name(), channel, &event.user_id, &event.kind] {
            let length = u32::try_from(part.len()).expect("a part of a page is shorter than 4 GiB");
            digest.update(&length.to_le_bytes());
            digest.update(part.as_bytes());
        }
        digest.update(&event.time.as_millis().to_le_bytes());
        let digest = digest.finish();
        let half = digest.as_ref().first_chunk().expect("SHA-256 has 32 bytes");
        Self(u128::from_be_bytes(*half))
    }

    /// Its 16 bytes.
    pub const fn to_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }

    /// The fingerprint with these bytes.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(u128::from_be_bytes(bytes))
    }

    /// Some of its bits: a fingerprint is a hash already.
    fn spread(self) -> usize {
        let [.., a, b, c, d] = self.to_bytes();
        usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX)
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

// === impl Window ===

impl Window {
    /// An empty window for an endpoint drained in `regions` regions, which remembers events for at
    /// least `hold`.
    pub fn new(regions: usize, hold: Duration) -> Self {
        let ring = Ring {
            hold,
            remember: LEAST_REMEMBERED.max(REMEMBERED_PER_REGION * regions),
            free_slots: Vec::new(),
            next_sequence: 0,
        };
        Self::of(ring, VecDeque::new(), Vec::new())
    }

    fn of(ring: Ring, blocks: VecDeque<Block>, at_rest: Vec<Shelved>) -> Self {
        let index = Index::of(&blocks);
        Self { ring, blocks, index, loose: Vec::new(), at_rest, dropped_too_early: 0 }
    }

    /// Remembers an event that a page of `handed_over` brought. False where it is known already.
    pub fn insert(&mut self, event: Fingerprint, handed_over: Timestamp) -> bool {
        if self.blocks.back().is_none_or(|block| block.events.len() >= BLOCK_EVENTS) {
            if self.contains(event) {
                return false;
            }
            self.begin_block(handed_over);
        }
        if !self.index.insert(&self.blocks, event) {
            return false;
        }
        let block = self.blocks.back_mut().expect("a block was begun");
        block.events.push(event);
        block.newest = block.newest.max(handed_over);
        block.changed = true;
        self.loose.extend(block.cell.take());
        true
    }

    /// Whether an event is remembered.
    pub fn contains(&self, event: Fingerprint) -> bool {
        self.index.contains(&self.blocks, event)
    }

    /// The blocks that changed since they were last asked for.
    pub fn take_changes(&mut self) -> impl Iterator<Item = &Block> {
        let changed = self.blocks.iter_mut().rev().take_while(|block| block.changed);
        changed.map(|block| {
            block.changed = false;
            &*block
        })
    }

    /// Whether [`Self::take_changes`] would give a block.
    pub fn has_changes(&self) -> bool {
        self.blocks.back().is_some_and(|block| block.changed)
    }

    /// How many events it remembers.
    pub fn len(&self) -> usize {
        self.blocks.iter().map(|block| block.events.len()).sum()
    }

    /// Whether it remembers nothing.
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// Events that [`hold`] would have kept and [`MOST_HELD`] did not, since this was last asked.
    pub fn take_dropped_too_early(&mut self) -> u64 {
        std::mem::take(&mut self.dropped_too_early)
    }

    /// Lays the events of all blocks on the shelf. Changes that were not taken are forgotten as
    /// changes: see [`Self::has_changes`].
    pub fn rest(mut self, shelf: &mut impl Shelf) -> Resting {
        for cell in self.loose {
            shelf.free(cell);
        }
        self.at_rest.extend(self.blocks.into_iter().map(|block| block.lay(shelf)));
        Resting { ring: self.ring, blocks: self.at_rest }
    }

    fn begin_block(&mut self, now: Timestamp) {
        while self.blocks.len() * BLOCK_EVENTS >= self.ring.remember && self.drop_oldest(now) {}
        let slot = self.ring.free_slots.pop().unwrap_or_else(|| {
            u32::try_from(self.blocks.len()).expect("a window has less than 2^32 blocks")
        });
        self.blocks.push_back(Block {
            slot,
            sequence: self.ring.next_sequence,
            newest: now,
            events: Vec::with_capacity(BLOCK_EVENTS),
            changed: true,
            cell: None,
        });
        self.ring.next_sequence += 1;
    }

    /// Forgets the oldest block, unless it must be held.
    fn drop_oldest(&mut self, now: Timestamp) -> bool {
        let held =
            self.blocks.front().is_some_and(|oldest| now.since(oldest.newest) < self.ring.hold);
        let most = self.ring.remember.max(MOST_HELD);
        if held && self.blocks.len() * BLOCK_EVENTS < most {
            return false;
        }
        let Some(oldest) = self.blocks.pop_front() else { return false };
        self.index.drop_oldest();
        if held {
            self.dropped_too_early += oldest.events.len() as u64;
        }
        self.ring.free_slots.push(oldest.slot);
        self.loose.extend(oldest.cell);
        true
    }
}

// === impl Resting ===

impl Resting {
    /// The window whose blocks were read back, for an endpoint drained in `regions` regions,
    /// which remembers events for at least `hold`.
    pub fn restore(regions: usize, hold: Duration, mut blocks: Vec<Shelved>) -> Self {
        blocks.sort_by_key(|block| block.sequence);
        let used: HashSet<u32> = blocks.iter().map(|block| block.slot).collect();
        let slots = used.iter().max().map_or(0, |slot| slot + 1);
        let ring = Ring {
            hold,
            remember: LEAST_REMEMBERED.max(REMEMBERED_PER_REGION * regions),
            next_sequence: blocks.last().map_or(0, |block| block.sequence + 1),
            free_slots: (0..slots).rev().filter(|slot| !used.contains(slot)).collect(),
        };
        Self { ring, blocks }
    }

    /// Reads the events back.
    pub fn wake<S: Shelf>(mut self, shelf: &mut S) -> Result<Window, S::Error> {
        let blocks = self.blocks.drain(..).map(|block| block.fetch(shelf));
        let blocks = blocks.collect::<Result<_, _>>()?;
        Ok(Window::of(self.ring, blocks, self.blocks))
    }
}

// === impl Block ===

impl Block {
    /// A block that was read back.
    pub fn restored(slot: u32, sequence: u64, newest: Timestamp, events: Vec<Fingerprint>) -> Self {
        Self { slot, sequence, newest, events, changed: false, cell: None }
    }

    /// Lays its events on the shelf.
    pub fn lay(self, shelf: &mut impl Shelf) -> Shelved {
        let count = u16::try_from(self.events.len()).ok();
        let cell = count.and_then(|count| {
            let cell = self.cell.or_else(|| shelf.put(&self.events))?;
            Some((cell, count))
        });
        let events = match cell {
            Some((cell, count)) => BlockPlace::Shelf(cell, count),
            None => BlockPlace::Memory(self.events.into_boxed_slice()),
        };
        Shelved { slot: self.slot, sequence: self.sequence, newest: self.newest, events }
    }
}

// === impl Shelved ===

impl Shelved {
    /// As [`Block::slot`].
    pub fn slot(&self) -> u32 {
        self.slot
    }

    /// Nobody needs it any more.
    pub fn discard(self, shelf: &mut impl Shelf) {
        if let BlockPlace::Shelf(cell, _) = self.events {
            shelf.free(cell);
        }
    }

    fn fetch<S: Shelf>(self, shelf: &mut S) -> Result<Block, S::Error> {
        let (mut events, cell) = match self.events {
            BlockPlace::Shelf(cell, count) => (shelf.get(cell, count.into())?, Some(cell)),
            BlockPlace::Memory(events) => (events.into_vec(), None),
        };
        events.reserve_exact(BLOCK_EVENTS.saturating_sub(events.len()));
        let Self { slot, sequence, newest, .. } = self;
        Ok(Block { slot, sequence, newest, events, changed: false, cell })
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// With the default settings: 15 s of silence and 4 s for the body.
    const LONGEST_REQUEST: Duration = Duration::from_secs(19);

    fn event(user: &str, kind: &str, channel: Option<&str>, ms: i64) -> Event<'static> {
        Event {
            user_id: Cow::Owned(user.to_owned()),
            kind: Cow::Owned(kind.to_owned()),
            channel_id: channel.map(|channel| Cow::Owned(channel.to_owned())),
            time: Timestamp::from_millis(ms),
            others: Vec::new(),
        }
    }

    fn number(n: u64) -> Fingerprint {
        // Spread over both halves, as a digest is.
        Fingerprint(u128::from(n).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835))
    }

    fn at(second: u64) -> Timestamp {
        Timestamp::from_millis(1_600_000_000_000).after(Duration::from_secs(second))
    }

    fn small() -> Window {
        let mut window = Window::new(1, hold(LONGEST_REQUEST));
        window.ring.remember = 1_024;
        window
    }

    /// A shelf in memory, for so many blocks.
    #[derive(Debug)]
    struct Shelves {
        room: usize,
        cells: BTreeMap<u32, Vec<Fingerprint>>,
        next: u32,
    }

    impl Default for Shelves {
        fn default() -> Self {
            Self { room: usize::MAX, cells: BTreeMap::new(), next: 0 }
        }
    }

    impl Shelf for Shelves {
        type Error = Cell;

        fn put(&mut self, events: &[Fingerprint]) -> Option<Cell> {
            if self.cells.len() >= self.room {
                return None;
            }
            self.next += 1;
            self.cells.insert(self.next, events.to_vec());
            Some(Cell(self.next))
        }

        fn get(&mut self, cell: Cell, count: usize) -> Result<Vec<Fingerprint>, Cell> {
            let stored = self.cells.get(&cell.0).filter(|events| events.len() == count);
            stored.cloned().ok_or(cell)
        }

        fn free(&mut self, cell: Cell) {
            assert!(self.cells.remove(&cell.0).is_some(), "freed twice: {cell:?}");
        }
    }

    /// Other programs compute the same: computed with Python's `struct` and `hashlib`.
    #[test]
    fn the_published_vectors_hold() {
        let app = AppId::new("876922cbca0098dff4323566daa89675");
        let login = event("rtmtest_RTM_4852_4857w7%", "Login", None, 1_578_027_420_761);
        let join = event(
            "rtmtest_RTM_4852_4857w7%",
            "Join",
            Some("example_channel_id"),
            1_578_027_418_981,
        );
        let of_login = Fingerprint::of(&app, Endpoint::User, &login);
        let of_join = Fingerprint::of(&app, Endpoint::Channel, &join);
        assert_eq!(of_login.to_string(), "f1072b069b8d79b9cc268173ffe97bc6");
        assert_eq!(of_join.to_string(), "b62e13db5bf2b146f7282393d3e8c721");
        assert_eq!(Fingerprint::from_bytes(of_login.to_bytes()), of_login);
    }

    #[test]
    fn parts_do_not_run_into_each_other() {
        let app = AppId::new("a");
        let one = event("ab", "c", Some(""), 1);
        let two = event("a", "bc", Some(""), 1);
        assert_ne!(
            Fingerprint::of(&app, Endpoint::Channel, &one),
            Fingerprint::of(&app, Endpoint::Channel, &two)
        );
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
                for block in window.take_changes() {
                    stored.insert(block.slot, block.clone());
                }
            }
            let shelf = &mut Shelves::default();
            let blocks = stored.into_values().map(|block| block.lay(shelf)).collect();
            let restored = Resting::restore(1, hold(LONGEST_REQUEST), blocks).wake(shelf).unwrap();
            let events = window.blocks.iter().flat_map(|block| &block.events);
            prop_assert!(events.into_iter().all(|event| restored.contains(*event)));
            prop_assert!(restored.blocks.len() <= window.blocks.len() + window.ring.free_slots.len());
        }

        #[test]
        fn a_window_that_rests_now_and_then_is_as_one_that_never_does(
            steps in prop::collection::vec(
                (prop::collection::vec((0_u64..3_000, 0_u64..40), 0..400), any::<bool>()),
                0..20,
            ),
            room in 0_usize..40,
        ) {
            let (mut never, mut rests) = (small(), small());
            let mut shelf = Shelves { room, ..Shelves::default() };
            for ((inserts, is_rest), minute) in steps.into_iter().zip(0..) {
                for (n, second) in inserts {
                    let (event, at) = (number(n), at(minute * 60 + second));
                    prop_assert_eq!(never.insert(event, at), rests.insert(event, at));
                }
                let of = |window: &mut Window| -> Vec<_> {
                    window.take_changes().map(|it| (it.slot, it.sequence, it.events.clone())).collect()
                };
                prop_assert_eq!(of(&mut never), of(&mut rests));
                prop_assert_eq!(never.take_dropped_too_early(), rests.take_dropped_too_early());
                if is_rest {
                    rests = rests.rest(&mut shelf).wake(&mut shelf).unwrap();
                    let held = rests.blocks.iter().filter(|block| block.cell.is_some()).count();
                    prop_assert_eq!(shelf.cells.len(), held, "a cell for each block, and no other");
                }
                prop_assert_eq!(never.len(), rests.len());
                for n in 0..3_000 {
                    prop_assert_eq!(never.contains(number(n)), rests.contains(number(n)));
                }
            }
        }

        #[test]
        fn the_index_knows_what_stands_in_the_blocks(
            inserts in prop::collection::vec(0_u64..4_000, 0..3_000),
        ) {
            let mut window = small();
            for (n, second) in inserts.into_iter().zip(0..) {
                let known = window.blocks.iter().any(|block| block.events.contains(&number(n)));
                prop_assert_eq!(window.insert(number(n), at(second)), !known);
            }
        }
    }
}
