//! What the publisher of a partition knows, as records of the state topic.
//!
//! Written in the transaction of the events that it is about, so that it can neither run ahead of
//! them nor fall behind; read back by whoever owns the partition next. Three kinds of record, told
//! apart by their keys:
//!
//! | key | value |
//! |---|---|
//! | `position` | JSON: where to read on in the pages topic, the page before, and the group that wrote it |
//! | `tickets/{incarnation}` | JSON: which pages of a journal were delivered |
//! | `window/{app}/{endpoint}/{slot}` | a block of fingerprints: version `u8`, sequence `u64`, newest `i64` (ms), then 16 bytes each; little-endian |
//!
//! Every value carries a version; a newer one than this program knows is refused.
//!
//! A window that nothing happens in rests: its events lie in the [`Attic`](crate::kafka::Attic), or
//! closely packed in memory where there is none. It wakes up when it is asked for. All of them rest
//! after a start, so records are taken in one by one ([`Recall`]) and nothing grows with their
//! number but what is remembered of each block.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::HashMap;

use serde::Deserialize;
use serde::Serialize;

use crate::dedupe::BLOCK_EVENTS;
use crate::dedupe::Block;
use crate::dedupe::Fingerprint;
use crate::dedupe::Resting;
use crate::dedupe::Shelved;
use crate::dedupe::Window;
use crate::kafka::Attic;
use crate::kafka::Batch;
use crate::kafka::Topic;
use crate::kafka::attic::Cells;
use crate::kafka::attic::Unread;
use crate::model::AppId;
use crate::model::Endpoint;
use crate::model::Incarnation;
use crate::model::PageId;
use crate::model::Ticket;
use crate::model::Timestamp;

/// The version that this program writes; it reads this one and all before.
pub(crate) const VERSION: u8 = 1;

/// Journals whose tickets are remembered. A journal draws a new incarnation each time it is opened;
/// the ones whose pages were forwarded longest ago are forgotten.
const INCARNATIONS: usize = 256;

/// The memory of one partition of the pages topic.
#[derive(Debug)]
pub struct Memory {
    position: Position,
    tickets: BTreeMap<Incarnation, Tickets>,
    forgotten: Vec<Incarnation>,
    windows: HashMap<Name, Kept>,
    /// Windows that were asked for since changes were last written.
    asked_for: BTreeSet<Name>,
    regions: HashMap<AppId, usize>,
    cells: Cells,
}

/// A memory in the making, record by record.
#[derive(Debug)]
pub struct Recall {
    memory: Memory,
    /// The blocks of each window, in the order of their slots.
    blocks: HashMap<Name, Vec<Shelved>>,
    /// What can't be read. It does not count where a later record replaces it.
    bad: BTreeMap<String, BadMemory>,
}

/// Whose a window is.
type Name = (AppId, Endpoint);

#[derive(Debug)]
enum Kept {
    Awake {
        window: Window,
        /// Since [`Memory::rest_idle`] was last called.
        was_asked_for: bool,
    },
    AtRest(Resting),
}

/// Why a memory can't be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadMemory {
    /// A newer version of this program wrote it.
    #[error(
        "state record `{key}` has version {version}, newer than this program reads ({VERSION}); run at least the version that wrote it"
    )]
    Newer {
        /// Key of the record.
        key: String,
        /// Its version.
        version: u8,
    },
    /// A record says nothing that makes sense.
    #[error("state record `{key}` is unreadable")]
    Unreadable {
        /// Key of the record.
        key: String,
    },
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Position {
    version: u8,
    next_offset: i64,
    /// The page before, where it had a name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    page: Option<String>,
    /// Who wrote this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    group: Option<String>,
}

/// The delivered tickets of an incarnation: all up to `settled`, and those of `above`.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Tickets {
    version: u8,
    settled: u64,
    above: BTreeSet<u64>,
    /// Offset in the pages topic of the last record that named it.
    last_offset: i64,
    #[serde(skip)]
    changed: bool,
}

// === impl Recall ===

impl Recall {
    /// Nothing yet; windows are to rest in `attic`.
    ///
    /// `regions` tells for each app in how many regions it is drained: a window is larger for more.
    pub fn new(regions: HashMap<AppId, usize>, attic: &Attic, partition: i32) -> Self {
        let memory = Memory {
            position: Position::default(),
            tickets: BTreeMap::new(),
            forgotten: Vec::new(),
            windows: HashMap::new(),
            asked_for: BTreeSet::new(),
            regions,
            cells: attic.cells(partition),
        };
        Self { memory, blocks: HashMap::new(), bad: BTreeMap::new() }
    }

    /// Takes in the next record of the topic; without a value it is a tombstone. Of records with
    /// the same key the last counts.
    pub fn take(&mut self, key: &[u8], value: Option<&[u8]>) {
        let key = String::from_utf8_lossy(key);
        self.bad.remove(&*key);
        if let Err(bad) = self.read(&key, value) {
            self.bad.insert(key.into_owned(), bad);
        }
    }

    /// The memory that the records hold.
    pub fn finish(self) -> Result<Memory, BadMemory> {
        let Self { mut memory, blocks, bad } = self;
        if let Some(bad) = bad.into_values().next() {
            return Err(bad);
        }
        for (name, blocks) in blocks {
            let window = Resting::restore(memory.regions_of(&name.0), blocks);
            memory.windows.insert(name, Kept::AtRest(window));
        }
        Ok(memory)
    }

    fn read(&mut self, key: &str, value: Option<&[u8]>) -> Result<(), BadMemory> {
        let memory = &mut self.memory;
        match (Kind::of(key), value) {
            (Some(Kind::Position), Some(value)) => memory.position = read_json(key, value)?,
            (Some(Kind::Position), None) => memory.position = Position::default(),
            (Some(Kind::Tickets(incarnation)), Some(value)) => {
                memory.tickets.insert(incarnation, read_json(key, value)?);
            }
            (Some(Kind::Tickets(incarnation)), None) => {
                memory.tickets.remove(&incarnation);
            }
            (Some(Kind::Window(app, endpoint, slot)), value) => {
                let block = value.map(|value| read_block(key, slot, value)).transpose()?;
                let blocks = self.blocks.entry((app, endpoint)).or_default();
                let at = blocks.binary_search_by_key(&slot, Shelved::slot);
                if let Ok(at) = at {
                    blocks.remove(at).discard(&mut memory.cells);
                }
                if let Some(block) = block {
                    let (Ok(at) | Err(at)) = at;
                    blocks.insert(at, block.lay(&mut memory.cells));
                }
            }
            (None, Some(_)) => return Err(BadMemory::Unreadable { key: key.to_owned() }),
            (None, None) => {}
        }
        Ok(())
    }
}

impl Default for Recall {
    /// Of apps in one region, without an attic.
    fn default() -> Self {
        Self::new(HashMap::new(), &Attic::default(), 0)
    }
}

// === impl Memory ===

impl Memory {
    /// The first offset of the pages topic that was not delivered; `None` where none was.
    pub fn position(&self) -> Option<i64> {
        (self.position.version > 0).then_some(self.position.next_offset)
    }

    /// The page before that position.
    pub fn last_page(&self) -> Option<PageId> {
        self.position.page.as_ref()?.parse().ok()
    }

    /// Notes that the record at `offset` of the pages topic is dealt with, and which page it was.
    pub fn advance(&mut self, offset: i64, page: Option<PageId>) {
        self.position.version = VERSION;
        self.position.next_offset = offset + 1;
        self.position.page = page.map(|page| page.to_string());
    }

    /// Reads on at this offset of a topic that the memory does not know.
    pub fn begin_at(&mut self, offset: i64) {
        self.advance(offset - 1, None);
    }

    /// Writes in the name of this group from now on. Gives that of another one, which wrote last.
    pub fn sign(&mut self, group: &str) -> Option<String> {
        let before = self.position.group.replace(group.to_owned());
        before.filter(|before| before != group)
    }

    /// Takes a page in. False where it was delivered before: its journal forwarded it again.
    pub fn admit(&mut self, page: PageId, settled: Ticket, offset: i64) -> bool {
        let tickets = self.tickets.entry(page.incarnation).or_default();
        let ticket = page.ticket.0;
        let new = ticket > tickets.settled && !tickets.above.contains(&ticket);
        tickets.settled = tickets.settled.max(settled.0);
        if ticket > tickets.settled {
            tickets.above.insert(ticket);
        }
        tickets.above = tickets.above.split_off(&(tickets.settled + 1));
        tickets.version = VERSION;
        tickets.last_offset = offset;
        tickets.changed = true;
        self.forget_oldest_incarnation();
        new
    }

    /// The window of an app's endpoint. It wakes up for that: an error is one of the attic, and this
    /// memory is of no more use.
    pub fn window(&mut self, app: &AppId, endpoint: Endpoint) -> Result<&mut Window, Unread> {
        let name = (app.clone(), endpoint);
        if !matches!(self.windows.get(&name), Some(Kept::Awake { .. })) {
            let window = match self.windows.remove(&name) {
                Some(Kept::AtRest(window)) => window.wake(&mut self.cells)?,
                Some(Kept::Awake { window, .. }) => window,
                None => Window::new(self.regions_of(app)),
            };
            self.windows.insert(name.clone(), Kept::Awake { window, was_asked_for: true });
        }
        self.asked_for.insert(name.clone());
        match self.windows.get_mut(&name) {
            Some(Kept::Awake { window, was_asked_for }) => {
                *was_asked_for = true;
                Ok(window)
            }
            _ => unreachable!("it was woken up"),
        }
    }

    /// Lets those windows rest that nobody has asked for since this was last called.
    pub fn rest_idle(&mut self) {
        let mut idle = Vec::new();
        for (name, kept) in &mut self.windows {
            if let Kept::Awake { window, was_asked_for } = kept
                && !std::mem::take(was_asked_for)
                && !window.has_changes()
            {
                idle.push(name.clone());
            }
        }
        for name in idle {
            if let Some(Kept::Awake { window, .. }) = self.windows.remove(&name) {
                let window = window.rest(&mut self.cells);
                self.windows.insert(name, Kept::AtRest(window));
            }
        }
    }

    /// Events that windows had to forget too early, since changes were last written or this was
    /// last asked.
    pub fn take_dropped_too_early(&mut self) -> u64 {
        let mut dropped = 0;
        for name in &self.asked_for {
            if let Some(Kept::Awake { window, .. }) = self.windows.get_mut(name) {
                dropped += window.take_dropped_too_early();
            }
        }
        dropped
    }

    /// Writes what changed since this was last called.
    pub fn write_changes(&mut self, partition: i32, batch: &mut Batch) {
        let put = |batch: &mut Batch, key: &str, write: &dyn Fn(&mut Vec<u8>)| {
            batch.begin(Topic::State).partition(partition).key(key.as_bytes()).value(write);
        };
        for name in std::mem::take(&mut self.asked_for) {
            let Some(Kept::Awake { window, .. }) = self.windows.get_mut(&name) else { continue };
            let (app, endpoint) = name;
            for block in window.take_changes() {
                put(batch, &format!("window/{app}/{endpoint}/{}", block.slot), &|bytes| {
                    write_block(bytes, block);
                });
            }
        }
        for (incarnation, tickets) in self.tickets.iter_mut().filter(|(_, it)| it.changed) {
            tickets.changed = false;
            put(batch, &format!("tickets/{incarnation}"), &|bytes| write_json(bytes, tickets));
        }
        for incarnation in self.forgotten.drain(..) {
            let key = format!("tickets/{incarnation}");
            batch.begin(Topic::State).partition(partition).key(key.as_bytes());
        }
        put(batch, "position", &|bytes| write_json(bytes, &self.position));
    }

    fn regions_of(&self, app: &AppId) -> usize {
        self.regions.get(app).copied().unwrap_or(1)
    }

    fn forget_oldest_incarnation(&mut self) {
        if self.tickets.len() <= INCARNATIONS {
            return;
        }
        let oldest = self.tickets.iter().min_by_key(|(_, tickets)| tickets.last_offset);
        if let Some((&incarnation, _)) = oldest {
            self.tickets.remove(&incarnation);
            self.forgotten.push(incarnation);
        }
    }
}

enum Kind {
    Position,
    Tickets(Incarnation),
    Window(AppId, Endpoint, u32),
}

// === impl Kind ===

impl Kind {
    fn of(key: &str) -> Option<Self> {
        if key == "position" {
            return Some(Self::Position);
        }
        if let Some(incarnation) = key.strip_prefix("tickets/") {
            return incarnation.parse().ok().map(Self::Tickets);
        }
        // From the right: an App ID may hold anything.
        let (rest, slot) = key.strip_prefix("window/")?.rsplit_once('/')?;
        let (app, endpoint) = rest.rsplit_once('/')?;
        Some(Self::Window(AppId::new(app), endpoint.parse().ok()?, slot.parse().ok()?))
    }
}

fn read_json<T: for<'de> Deserialize<'de>>(key: &str, value: &[u8]) -> Result<T, BadMemory> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u8,
    }
    let unreadable = |_| BadMemory::Unreadable { key: key.to_owned() };
    let Versioned { version } = serde_json::from_slice(value).map_err(unreadable)?;
    refuse_newer(key, version)?;
    serde_json::from_slice(value).map_err(unreadable)
}

fn refuse_newer(key: &str, version: u8) -> Result<(), BadMemory> {
    if version > VERSION {
        return Err(BadMemory::Newer { key: key.to_owned(), version });
    }
    Ok(())
}

fn write_json(bytes: &mut Vec<u8>, value: &impl Serialize) {
    serde_json::to_writer(bytes, value).expect("numbers are always JSON");
}

fn write_block(bytes: &mut Vec<u8>, block: &Block) {
    bytes.push(VERSION);
    bytes.extend_from_slice(&block.sequence.to_le_bytes());
    bytes.extend_from_slice(&block.newest.as_millis().to_le_bytes());
    bytes.extend(block.events.iter().flat_map(|event| event.to_bytes()));
}

fn read_block(key: &str, slot: u32, value: &[u8]) -> Result<Block, BadMemory> {
    let unreadable = || BadMemory::Unreadable { key: key.to_owned() };
    let (&version, rest) = value.split_first().ok_or_else(unreadable)?;
    refuse_newer(key, version)?;
    let (sequence, rest) = rest.split_first_chunk().ok_or_else(unreadable)?;
    let (newest, rest) = rest.split_first_chunk().ok_or_else(unreadable)?;
    let (events, odd) = rest.as_chunks();
    if !odd.is_empty() || events.len() > BLOCK_EVENTS {
        return Err(unreadable());
    }
    Ok(Block::restored(
        slot,
        u64::from_le_bytes(*sequence),
        Timestamp::from_millis(i64::from_le_bytes(*newest)),
        events.iter().copied().map(Fingerprint::from_bytes).collect(),
    ))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn page(incarnation: u128, ticket: u64) -> PageId {
        PageId { incarnation: Incarnation::from_u128(incarnation), ticket: Ticket(ticket) }
    }

    fn event(n: u128) -> Fingerprint {
        Fingerprint::from_bytes(
            n.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835).to_be_bytes(),
        )
    }

    /// A record of the state topic; without a value it is a tombstone.
    type StateRecord = (Vec<u8>, Option<Vec<u8>>);

    fn fresh() -> Memory {
        Recall::default().finish().unwrap()
    }

    fn recalled(
        mut recall: Recall,
        records: impl IntoIterator<Item = StateRecord>,
    ) -> Result<Memory, BadMemory> {
        for (key, value) in records {
            recall.take(&key, value.as_deref());
        }
        recall.finish()
    }

    fn restored(records: impl IntoIterator<Item = StateRecord>) -> Memory {
        recalled(Recall::default(), records).unwrap()
    }

    fn written(memory: &mut Memory) -> Vec<StateRecord> {
        let mut batch = Batch::default();
        memory.write_changes(0, &mut batch);
        batch
            .iter()
            .map(|record| (record.key().to_vec(), record.value().map(<[u8]>::to_vec)))
            .collect()
    }

    fn is_at_rest(memory: &Memory) -> bool {
        memory.windows.values().all(|kept| matches!(kept, Kept::AtRest(_)))
    }

    #[test]
    fn a_page_is_admitted_once() {
        let mut memory = fresh();
        assert!(memory.admit(page(1, 3), Ticket(1), 0));
        assert!(!memory.admit(page(1, 3), Ticket(1), 1));
        assert!(memory.admit(page(1, 2), Ticket(1), 2), "overtaken, not delivered");
        assert!(memory.admit(page(1, 4), Ticket(3), 3));
        assert!(!memory.admit(page(1, 2), Ticket(1), 4), "settled");
        assert!(memory.admit(page(2, 3), Ticket(0), 5), "another journal");
    }

    #[test]
    fn what_was_written_is_known_to_the_next_owner() {
        let app = AppId::new("a/1");
        let mut memory = fresh();
        assert_eq!(memory.position(), None);
        assert!(memory.admit(page(1, 3), Ticket(1), 40));
        memory.advance(40, Some(page(1, 3)));
        assert_eq!(memory.sign("group"), None);
        for n in 0..1_000 {
            let window = memory.window(&app, Endpoint::Channel).unwrap();
            window.insert(event(n), Timestamp::from_millis(9));
        }
        let mut records = written(&mut memory);
        assert!(memory.admit(page(1, 5), Ticket(4), 41));
        memory.advance(41, Some(page(1, 5)));
        let later = written(&mut memory);
        assert_eq!(later.len(), 2, "unchanged blocks are not written again");
        records.extend(later);

        let mut next = restored(records);
        assert_eq!((next.position(), next.last_page()), (Some(42), Some(page(1, 5))));
        assert_eq!(next.sign("group"), None);
        assert_eq!(next.sign("another"), Some("group".to_owned()));
        assert!(!next.admit(page(1, 3), Ticket(4), 42));
        assert!(!next.admit(page(1, 5), Ticket(4), 43));
        assert!(next.admit(page(1, 6), Ticket(4), 44));
        let window = next.window(&app, Endpoint::Channel).unwrap();
        assert!((0..1_000).all(|n| window.contains(event(n))));
        assert_eq!(window.len(), 1_000);
    }

    /// A record of a version that was written once is read for ever: a new version adds a file.
    #[test]
    fn version_1_is_read() {
        #[derive(Deserialize)]
        struct Kept {
            key: String,
            value: String,
        }
        let kept = include_str!("../../tests/fixtures/memory-version-1.json");
        let kept: Vec<Kept> = serde_json::from_str(kept).unwrap();
        let records = kept.into_iter().map(|Kept { key, value }| {
            let byte = |at: usize| u8::from_str_radix(&value[at..at + 2], 16).unwrap();
            let value = (0..value.len()).step_by(2).map(byte).collect();
            (key.into_bytes(), Some(value))
        });
        let mut memory = restored(records);
        assert_eq!((memory.position(), memory.last_page()), (Some(42), Some(page(0x1f, 5))));
        assert!(!memory.admit(page(0x1f, 5), Ticket(3), 42));
        assert!(memory.admit(page(0x1f, 4), Ticket(3), 43));
        let window = memory.window(&AppId::new("a1"), Endpoint::User).unwrap();
        let known = 0xf107_2b06_9b8d_79b9_cc26_8173_ffe9_7bc6_u128;
        assert!(window.contains(Fingerprint::from_bytes(known.to_be_bytes())));
        assert_eq!(window.len(), 2);

        // As it was before the page and the group stood in it.
        let early = (b"position".to_vec(), Some(br#"{"version":1,"next_offset":42}"#.to_vec()));
        let memory = restored([early]);
        assert_eq!((memory.position(), memory.last_page()), (Some(42), None));
    }

    #[test]
    fn journals_beyond_a_bound_are_forgotten_oldest_first() {
        let mut memory = fresh();
        let mut records = Vec::new();
        for n in 0..=INCARNATIONS {
            let offset = i64::try_from(n).unwrap();
            memory.admit(page(n as u128 + 1, 1), Ticket(0), offset);
            records.extend(written(&mut memory));
        }
        let next = restored(records);
        assert_eq!(next.tickets.len(), INCARNATIONS);
        assert!(!next.tickets.contains_key(&Incarnation::from_u128(1)));
    }

    #[test]
    fn what_it_can_not_read_is_refused_by_name() {
        let record = |key: &str, value: &[u8]| (key.as_bytes().to_vec(), Some(value.to_vec()));
        let newer = |key: &str| BadMemory::Newer { key: key.to_owned(), version: 2 };
        let unreadable = |key: &str| BadMemory::Unreadable { key: key.to_owned() };
        let block = "window/a/user_events/0";
        for (record, expected) in [
            (record("position", br#"{"version":2}"#), newer("position")),
            (record("position", b"{"), unreadable("position")),
            (record(block, &[2]), newer(block)),
            (record(block, &[1, 0]), unreadable(block)),
            (record(block, &[1; 18]), unreadable(block)),
            (record(block, &[1; 17 + 257 * 16]), unreadable(block)),
            (record("else", b""), unreadable("else")),
        ] {
            let key = record.0.clone();
            let refused = recalled(Recall::default(), [record.clone()]);
            assert_eq!(refused.unwrap_err(), expected);
            restored([record, (key, None)]);
        }
    }

    #[test]
    fn a_quiet_window_rests_and_knows_all_when_it_wakes() {
        let folder = tempfile::tempdir().unwrap();
        for attic in [Attic::in_folder(folder.path()), Attic::default()] {
            let app = AppId::new("a");
            let mut memory = Recall::new(HashMap::new(), &attic, 0).finish().unwrap();
            let mut records = Vec::new();
            for round in 0..40 {
                let window = memory.window(&app, Endpoint::User).unwrap();
                for n in round * 300..(round + 1) * 300 {
                    assert!(window.insert(event(n), Timestamp::from_millis(1)));
                }
                memory.rest_idle();
                memory.rest_idle();
                assert!(!is_at_rest(&memory), "changes are not written yet");
                records.extend(written(&mut memory));
                memory.rest_idle();
                assert!(is_at_rest(&memory));
            }
            let mut next = recalled(Recall::new(HashMap::new(), &attic, 1), records).unwrap();
            assert!(is_at_rest(&next));
            for memory in [&mut memory, &mut next] {
                let window = memory.window(&app, Endpoint::User).unwrap();
                assert!((0..12_000).all(|n| window.contains(event(n))));
                memory.rest_idle();
                assert!(!is_at_rest(memory), "somebody has just asked for it");
            }
        }
    }

    #[test]
    fn what_can_not_be_read_back_ends_the_memory_and_the_next_one_stays_in_memory() {
        let folder = tempfile::tempdir().unwrap();
        let attic = Attic::in_folder(folder.path());
        let app = AppId::new("a");
        let recall = || Recall::new(HashMap::new(), &attic, 0);
        let mut memory = recall().finish().unwrap();
        for n in 0..1_000 {
            let window = memory.window(&app, Endpoint::User).unwrap();
            window.insert(event(n), Timestamp::from_millis(1));
        }
        let records = written(&mut memory);
        let mut memory = recalled(recall(), records.clone()).unwrap();
        memory.cells.lose_everything();
        memory.window(&app, Endpoint::User).unwrap_err();

        let mut memory = recalled(recall(), records).unwrap();
        memory.cells.lose_everything();
        let window = memory.window(&app, Endpoint::User).unwrap();
        assert!((0..1_000).all(|n| window.contains(event(n))));
    }

    /// The topic is compacted, so its size is that of the last record of each key.
    #[test]
    fn an_hour_of_traffic_needs_no_more_keys_than_the_window_has_blocks() {
        let app = AppId::new("a");
        // Events a second, transactions a second, and the most keys: 8,192 events, or those of 30 s
        // as far as they are held, and a block that is begun.
        let cases: [(u32, u32, usize); 4] =
            [(1, 1, 33), (100, 1, 33), (3_000, 3, 353), (9_000, 9, 513)];
        for (rate, transactions, most) in cases {
            let mut memory = fresh();
            let mut sizes: HashMap<Vec<u8>, usize> = HashMap::new();
            let mut next = 0;
            for transaction in 0..3_600 * transactions {
                let now = Timestamp::from_millis(i64::from(transaction * 1_000 / transactions));
                let window = memory.window(&app, Endpoint::User).unwrap();
                for _ in 0..rate / transactions {
                    window.insert(event(next), now);
                    next += 1;
                }
                let mut batch = Batch::default();
                memory.write_changes(0, &mut batch);
                for record in batch.iter() {
                    let size = record.value().unwrap_or_default().len();
                    sizes.insert(record.key().to_vec(), size);
                }
            }
            let keys = sizes.len() - 1;
            let least = next.min(8_192) / 256;
            assert!((least..=most as u128).contains(&(keys as u128)), "{keys} keys at {rate}/s");
            assert!(sizes.values().all(|size| *size <= 17 + 256 * 16), "a block is 4 KiB");
        }
    }

    proptest! {
        #[test]
        fn record_by_record_is_as_the_last_of_each_key(
            steps in prop::collection::vec((0_usize..9, 0_u64..40, any::<bool>()), 0..200),
        ) {
            let key = |key: usize| match key {
                0 => "position".to_owned(),
                1 | 2 => format!("tickets/{}", Incarnation::from_u128(key as u128)),
                3 => "strange".to_owned(),
                slot => format!("window/a/user_events/{}", slot - 4),
            };
            let value = |key: usize, n: u64| match key {
                0 => format!(r#"{{"version":1,"next_offset":{n}}}"#).into_bytes(),
                1 | 2 => {
                    let head = r#"{"version":1,"above":[],"last_offset":1,"settled":"#;
                    format!("{head}{n}}}").into_bytes()
                }
                3 => vec![0],
                slot => {
                    let first = slot as u128 * 1_000 + u128::from(n);
                    let events = (first..first + u128::from(n)).map(event).collect();
                    let mut bytes = Vec::new();
                    write_block(&mut bytes, &Block::restored(0, n, Timestamp::default(), events));
                    bytes
                }
            };
            let records: Vec<StateRecord> = steps.into_iter().map(|(at, n, is_there)| {
                (key(at).into_bytes(), is_there.then(|| value(at, n)))
            }).collect();
            let last: BTreeMap<_, _> = records.iter().cloned().collect();
            let folder = tempfile::tempdir().unwrap();
            let attic = Attic::in_folder(folder.path());
            let one = recalled(Recall::new(HashMap::new(), &attic, 0), records);
            let other = recalled(Recall::default(), last);
            let (mut one, mut other) = match (one, other) {
                (Ok(one), Ok(other)) => (one, other),
                (one, other) => {
                    prop_assert_eq!(one.err(), other.err());
                    return Ok(());
                }
            };
            prop_assert_eq!(one.position(), other.position());
            prop_assert_eq!(format!("{:?}", one.tickets), format!("{:?}", other.tickets));
            let app = AppId::new("a");
            let one = one.window(&app, Endpoint::User).unwrap();
            let other = other.window(&app, Endpoint::User).unwrap();
            prop_assert_eq!(one.len(), other.len());
            for n in 0..10_000 {
                prop_assert_eq!(one.contains(event(n)), other.contains(event(n)));
            }
            prop_assert_eq!(one.insert(event(10_000), Timestamp::default()), true);
            other.insert(event(10_000), Timestamp::default());
            let slot = |window: &mut Window| window.take_changes().next().map(|it| (it.slot, it.sequence));
            prop_assert_eq!(slot(one), slot(other));
        }
    }
}
