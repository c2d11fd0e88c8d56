//! What the publisher of a partition knows, as records of the state topic.
//!
//! Written in the transaction of the events that it is about, so that it can neither run ahead of
//! them nor fall behind; read back by the next owner of the partition. Four kinds of record, told
//! apart by their keys:
//!
//! | key | value |
//! |---|---|
//! | `claim` | text: drawn by each owner; it reads the memory until it finds what it wrote |
//! | `position` | JSON: where to read on in the pages topic, the page before and its time, and the group that wrote it |
//! | `tickets/{incarnation}` | JSON: which pages of a journal were delivered |
//! | `window/{app}/{endpoint}/{slot}` | a block of fingerprints: version `u8`, sequence `u64`, newest `i64` (ms), then 16 bytes each; little-endian |
//!
//! Every value carries a version; a newer one than this program knows is refused.

mod fingerprint;
mod window;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use self::fingerprint::Fingerprint;
pub use self::window::{BLOCK_EVENTS, Block, KeptBlock, LEAST_REMEMBERED, Window, hold};
use crate::kafka::{Batch, CLAIM, StateRecords, Topic};
use crate::model::{AppId, Endpoint, Incarnation, PageId, Ticket, Timestamp};

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
    /// The highest [`Tickets::named`].
    named: u64,
    windows: HashMap<Name, Window>,
    /// Windows that were asked for since changes were last written.
    asked_for: BTreeSet<Name>,
    regions: HashMap<AppId, usize>,
    /// Minimum time that windows remember an event.
    hold: Duration,
}

/// A memory in the making, record by record.
#[derive(Debug)]
pub struct Recall {
    memory: Memory,
    /// The blocks of each window, by their slots.
    blocks: HashMap<Name, BTreeMap<u32, KeptBlock>>,
    /// What can't be read. It does not count where a later record replaces it.
    bad: BTreeMap<String, BadMemory>,
}

/// Whose a window is.
type Name = (AppId, Endpoint);

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
    /// When the newest page that was delivered had been answered, in milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    answered_at: Option<i64>,
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
    /// Grows with each record that names it or another one, also where offsets start over: the one
    /// with the lowest number was named longest ago.
    #[serde(default)]
    named: u64,
    #[serde(skip)]
    changed: bool,
}

// === impl Recall ===

impl Recall {
    /// Nothing yet.
    ///
    /// `regions` is the number of regions in which each app is drained: more regions need a larger
    /// window. A window remembers events for at least `hold`: see [`hold`].
    pub fn new(regions: HashMap<AppId, usize>, hold: Duration) -> Self {
        let memory = Memory {
            position: Position::default(),
            tickets: BTreeMap::new(),
            forgotten: Vec::new(),
            named: 0,
            windows: HashMap::new(),
            asked_for: BTreeSet::new(),
            regions,
            hold,
        };
        Self { memory, blocks: HashMap::new(), bad: BTreeMap::new() }
    }

    /// The memory that the records hold.
    pub fn finish(self) -> Result<Memory, BadMemory> {
        let Self { mut memory, blocks, bad } = self;
        if let Some(bad) = bad.into_values().next() {
            return Err(bad);
        }
        memory.named = memory.tickets.values().map(|it| it.named).max().unwrap_or(0);
        for (name, blocks) in blocks {
            let window = Window::new(memory.regions_of(&name.0), memory.hold);
            memory.windows.insert(name, window.with_blocks(blocks.into_values().collect()));
        }
        Ok(memory)
    }

    fn read(&mut self, key: &str, value: Option<&[u8]>) -> Result<(), BadMemory> {
        let memory = &mut self.memory;
        match (RecordKind::of(key), value) {
            (Some(RecordKind::Position), Some(value)) => memory.position = read_json(key, value)?,
            (Some(RecordKind::Position), None) => memory.position = Position::default(),
            (Some(RecordKind::Tickets(incarnation)), Some(value)) => {
                memory.tickets.insert(incarnation, read_json(key, value)?);
            }
            (Some(RecordKind::Tickets(incarnation)), None) => {
                memory.tickets.remove(&incarnation);
            }
            (Some(RecordKind::Window(app, endpoint, slot)), value) => {
                let block = value.map(|value| read_block(key, slot, value)).transpose()?;
                let blocks = self.blocks.entry((app, endpoint)).or_default();
                match block {
                    Some(block) => drop(blocks.insert(slot, KeptBlock::restored(block))),
                    None => drop(blocks.remove(&slot)),
                }
            }
            (Some(RecordKind::Claim), _) => {}
            (None, Some(_)) => return Err(BadMemory::Unreadable { key: key.to_owned() }),
            (None, None) => {}
        }
        Ok(())
    }
}

impl StateRecords for Recall {
    fn take(&mut self, key: &[u8], value: Option<&[u8]>) {
        let key = String::from_utf8_lossy(key);
        self.bad.remove(&*key);
        if let Err(bad) = self.read(&key, value) {
            self.bad.insert(key.into_owned(), bad);
        }
    }
}

impl Default for Recall {
    /// Of apps in one region, with no minimum time to remember an event.
    fn default() -> Self {
        Self::new(HashMap::new(), Duration::ZERO)
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

    /// When Agora had answered the newest page that was delivered, where that is known.
    pub fn last_answer(&self) -> Option<Timestamp> {
        self.position.answered_at.map(Timestamp::from_millis)
    }

    /// Notes when a page that is dealt with had been answered.
    pub fn note_answer(&mut self, at: Timestamp) {
        let last = self.position.answered_at.get_or_insert(at.as_millis());
        *last = at.as_millis().max(*last);
    }

    /// The App IDs and endpoints of which it remembers events, in their order.
    pub fn known(&self) -> BTreeSet<(AppId, Endpoint)> {
        self.windows.keys().cloned().collect()
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
        self.named += 1;
        tickets.named = self.named;
        tickets.changed = true;
        self.forget_oldest_incarnation();
        new
    }

    /// The window of an app's endpoint.
    pub fn window(&mut self, app: &AppId, endpoint: Endpoint) -> &mut Window {
        let name = (app.clone(), endpoint);
        self.asked_for.insert(name.clone());
        let (regions, hold) = (self.regions_of(app), self.hold);
        self.windows.entry(name).or_insert_with(|| Window::new(regions, hold))
    }

    /// Events that windows had to forget too early, since changes were last written or this was
    /// last asked.
    pub fn take_dropped_too_early(&mut self) -> u64 {
        let mut dropped = 0;
        for name in &self.asked_for {
            if let Some(window) = self.windows.get_mut(name) {
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
            let Some(window) = self.windows.get_mut(&name) else { continue };
            let (app, endpoint) = name;
            window.write_changes(|block| {
                put(batch, &format!("window/{app}/{endpoint}/{}", block.slot), &|bytes| {
                    write_block(bytes, block);
                });
            });
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
        // Those that an older version wrote have no number. Among them the offset tells.
        let age = |tickets: &Tickets| (tickets.named, tickets.last_offset);
        let oldest = self.tickets.iter().min_by_key(|(_, tickets)| age(tickets));
        if let Some((&incarnation, _)) = oldest {
            self.tickets.remove(&incarnation);
            self.forgotten.push(incarnation);
        }
    }
}

enum RecordKind {
    Claim,
    Position,
    Tickets(Incarnation),
    Window(AppId, Endpoint, u32),
}

// === impl Kind ===

impl RecordKind {
    fn of(key: &str) -> Option<Self> {
        match key {
            CLAIM => return Some(Self::Claim),
            "position" => return Some(Self::Position),
            _ => {}
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
    Ok(Block {
        slot,
        sequence: u64::from_le_bytes(*sequence),
        newest: Timestamp::from_millis(i64::from_le_bytes(*newest)),
        events: events.iter().copied().map(Fingerprint::from_bytes).collect(),
    })
}

#[cfg(test)]
mod tests;
