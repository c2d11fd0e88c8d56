//! The database behind the journal, and the numbers that are kept beside it in memory.
//!
//! A *row* is where an entry lies, a *sequence* where it stands in the line. They are the same but
//! for an entry that was held: it lies below zero, where nobody who reads forward finds it. Its
//! release gives it the next sequence in memory, at once; the row moves there before a later entry
//! becomes durable, so that no crash lets that one overtake it. By then it is usually forwarded and
//! forgotten, and its body is not written a second time.

mod recovery;

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::HashMap;
use std::fs::File;
use std::ops::Bound;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use rusqlite::Connection;
use tokio::sync::oneshot;
use tokio::sync::watch;

use super::Backlog;
use super::Command;
use super::Held;
use super::JournalError;
use super::OpenError;
use super::Place;
use super::RESERVED_BYTES;
use super::Recovered;
use super::Sequence;
use super::Settled;
use super::Settlement;
use super::Waiting;
use super::files;
use super::rows;
use super::schema;
use super::tickets;
use crate::model::AppId;
use crate::model::Content;
use crate::model::Entry;
use crate::model::Feed;
use crate::model::Incarnation;
use crate::model::Pace;
use crate::model::Ticket;
use crate::model::Timestamp;

/// So many forwarded entries are deleted without waiting for something else to write.
const FORGET_AT_ONCE: usize = 64;

/// So many released entries move with whatever is written.
const MOVE_AT_ONCE: usize = 64;

/// The database and what is derived from it.
#[derive(Debug)]
pub(super) struct Store {
    connection: Connection,
    log: PathBuf,
    incarnation: Incarnation,
    max_size: u64,
    syncing: bool,
    next_sequence: i64,
    /// Below zero, and going down.
    next_held: i64,
    next_ticket: u64,
    /// Numbers the requests of each app, over all processes.
    next_request: HashMap<AppId, i64>,
    reserved: u64,
    /// Bytes of the database and its log after the last transaction: asked once for each, because
    /// asking takes as long as a small write.
    stored: u64,
    /// Tickets that are open, or whose entry waits: all below the first of them is settled.
    unsettled: HashMap<(Incarnation, i32), BTreeSet<u64>>,
    /// All entries; one that is held stands at its row.
    places: BTreeMap<Sequence, Option<Place>>,
    /// Rows of released entries that have not moved yet, by the sequence that they move to.
    released: BTreeMap<Sequence, Sequence>,
    /// Rows that are forwarded and still stored: they go with the next transaction. A restart
    /// before that forwards them again, and the publisher recognises them.
    forgotten: Vec<Sequence>,
    /// The pace of feeds, to be written with the next transaction.
    paces: BTreeMap<Feed, (Pace, Timestamp)>,
    /// Entries that could not be stored.
    in_memory: BTreeMap<Sequence, (i32, Entry)>,
    backlog: watch::Sender<Backlog>,
    /// Keeps the data directory ours; `None` in simulated time.
    _lock: Option<File>,
}

// === impl Store ===

impl Store {
    /// Opens or makes the journal of a data directory.
    pub(super) fn open(
        data_dir: &Path,
        max_size: u64,
        incarnation: Incarnation,
        now: Timestamp,
    ) -> Result<(Self, Recovered), OpenError> {
        let lock = files::lock(data_dir)?;
        let path = data_dir.join("journal.sqlite");
        files::make_private(&path)?;
        let failed = |cause| OpenError::Database { path: path.clone(), cause };
        let connection = Connection::open(&path).map_err(failed)?;
        let (mut store, recovered) = Self::on(connection, &path, max_size, incarnation, now)?;
        store._lock = Some(lock);
        Ok((store, recovered))
    }

    /// Uses a database, and makes the tables where they are missing.
    pub(super) fn on(
        connection: Connection,
        path: &Path,
        max_size: u64,
        incarnation: Incarnation,
        now: Timestamp,
    ) -> Result<(Self, Recovered), OpenError> {
        let failed = |cause| OpenError::Database { path: path.to_owned(), cause };
        let version = schema::prepare(&connection).map_err(failed)?;
        if version > schema::VERSION {
            return Err(OpenError::Newer { path: path.to_owned(), version });
        }
        let mut store = Self {
            connection,
            log: path.with_extension("sqlite-wal"),
            incarnation,
            max_size,
            syncing: true,
            next_sequence: 1,
            next_held: -1,
            next_ticket: 1,
            next_request: HashMap::new(),
            reserved: 0,
            stored: 0,
            unsettled: HashMap::new(),
            places: BTreeMap::new(),
            released: BTreeMap::new(),
            forgotten: Vec::new(),
            paces: BTreeMap::new(),
            in_memory: BTreeMap::new(),
            backlog: watch::Sender::default(),
            _lock: None,
        };
        let recovered = store.recover(now).map_err(failed)?;
        store.weigh();
        store.announce();
        Ok((store, recovered))
    }

    /// What waits, and its changes.
    pub(super) fn subscribe(&self) -> watch::Receiver<Backlog> {
        self.backlog.subscribe()
    }

    /// Executes commands in one transaction and answers them.
    pub(super) fn execute(&mut self, commands: impl IntoIterator<Item = Command>) {
        let mut reads = Vec::new();
        let mut flushes = Vec::new();
        let mut group = Group::default();
        for command in commands {
            match command {
                Command::Open { feed, partition, since, now, reply } => {
                    group.opened.push(Opening { feed, partition, since, now, reply });
                }
                Command::Settle { place, settlement, reply } => {
                    let entry = content_of(settlement)
                        .map(|content| (self.next_sequence(), place.entry(content)));
                    group.settled.push(Settling { place, entry, room: RESERVED_BYTES, reply });
                }
                Command::Hold { place, content, reply } => {
                    let entry = Some((self.next_row_of_held(), place.entry(content)));
                    group.settled.push(Settling { place, entry, room: RESERVED_BYTES, reply });
                }
                Command::Note { partition, gap, reply } => {
                    let place = self.next_place(partition);
                    let entry = Some((self.next_sequence(), place.entry(Content::Gap(gap))));
                    group.settled.push(Settling { place, entry, room: 0, reply });
                }
                Command::Release { held } => held.into_iter().for_each(|it| self.release(it)),
                Command::KeepPace { feed, pace, now } => {
                    self.paces.insert(feed, (pace, now));
                }
                Command::Forget { sequences } => {
                    let rows = sequences.into_iter().map(|it| self.forget(it));
                    let rows: Vec<Sequence> = rows.collect();
                    self.forgotten.extend(rows);
                }
                Command::Flush { reply } => flushes.push(reply),
                Command::Read { partition, after, limit, reply } => {
                    reads.push((partition, after, limit, reply));
                }
            }
        }
        group.flush = !flushes.is_empty();
        let in_the_way =
            reads.iter().any(|(_, after, ..)| self.forgotten.iter().any(|it| it > after));
        let forget = in_the_way || self.forgotten.len() >= FORGET_AT_ONCE;
        if !group.is_empty() || forget {
            self.write(group);
        }
        for (partition, after, limit, reply) in reads {
            // A caller that is gone wants no answer.
            drop(reply.send(self.read(partition, after, limit)));
        }
        for reply in flushes {
            reply.send(()).ok();
        }
        self.announce();
    }

    fn write(&mut self, mut group: Group) {
        self.store_what_waits_in_memory();
        let openings = std::mem::take(&mut group.opened);
        let (opened, refused): (Vec<_>, Vec<_>) = match self.room_for(openings.len()) {
            Ok(()) => (openings, Vec::new()),
            Err(error) => {
                (Vec::new(), openings.into_iter().map(|it| (it, error.clone())).collect())
            }
        };
        for (opening, error) in refused {
            drop(opening.reply.send(Err(error)));
        }
        let places: Vec<(Place, i64)> = opened.iter().map(|it| self.draw(it)).collect();
        let has_entries = group.settled.iter().any(|it| it.entry.is_some());
        let noted = self.take_noted(has_entries || group.flush);
        let written = self.transact(has_entries, |connection| {
            for (opening, (place, request)) in opened.iter().zip(&places) {
                let Opening { feed, since, now, .. } = opening;
                tickets::insert(connection, place, feed, *since, *now, *request)?;
            }
            for Settling { place, entry, .. } in &group.settled {
                tickets::settle(connection, place)?;
                if let Some((row, entry)) = entry {
                    rows::insert(connection, *row, place.partition, entry)?;
                }
            }
            noted.write(connection)
        });
        if written.is_err() {
            self.put_back(noted);
        }
        for Settling { place, entry, room, reply } in group.settled {
            self.reserved -= room;
            let row = entry.as_ref().map(|(row, _)| *row);
            match entry {
                None => self.settle(place),
                Some((row, entry)) => {
                    self.places.insert(row, Some(place));
                    if written.is_err() {
                        self.in_memory.insert(row, (place.partition, entry));
                    }
                }
            }
            drop(reply.send((row, written.clone())));
        }
        for (opening, (place, _)) in opened.into_iter().zip(places) {
            match &written {
                Ok(()) => self.reserved += RESERVED_BYTES,
                Err(_) => self.settle(place),
            }
            drop(opening.reply.send(written.clone().map(|()| place)));
        }
    }

    fn read(
        &mut self,
        partition: i32,
        after: Sequence,
        limit: usize,
    ) -> Result<Vec<Waiting>, JournalError> {
        let rows = rows::select(&self.connection, partition, after, limit)
            .map_err(|cause| database("read", cause))?;
        let mut found = Vec::with_capacity(rows.len());
        for row in rows {
            match row {
                Ok(entry) => found.push(entry),
                Err(damaged) => self.set_aside(damaged.row)?,
            }
        }
        for (sequence, row) in self.not_moved(partition, after, limit) {
            let read = rows::one(&self.connection, row).map_err(|cause| database("read", cause))?;
            match read {
                Some(Ok((_, entry))) => found.push((sequence, entry)),
                Some(Err(_)) => self.set_aside(sequence)?,
                None => {}
            }
        }
        let in_memory = self
            .in_memory
            .range(after..)
            .filter(|(sequence, (its, _))| **sequence > after && *its == partition);
        found.extend(in_memory.map(|(sequence, (_, entry))| (*sequence, entry.clone())));
        found.sort_by_key(|(sequence, _)| *sequence);
        found.truncate(limit);
        let waiting = found.into_iter().map(|(sequence, entry)| Waiting {
            sequence,
            settled: self.settled(entry.id.incarnation, partition),
            entry,
        });
        Ok(waiting.collect())
    }

    /// Released entries of a partition behind `after` whose rows have not moved: at most `limit`.
    fn not_moved(
        &self,
        partition: i32,
        after: Sequence,
        limit: usize,
    ) -> Vec<(Sequence, Sequence)> {
        let behind = self.released.range((Bound::Excluded(after), Bound::Unbounded));
        let its = |sequence| {
            self.places.get(sequence).copied().flatten().is_some_and(|it| it.partition == partition)
        };
        behind
            .filter(|(sequence, _)| its(*sequence))
            .map(|(sequence, row)| (*sequence, *row))
            .take(limit)
            .collect()
    }

    /// Keeps a damaged entry with its bytes, out of the way of the others.
    fn set_aside(&mut self, sequence: Sequence) -> Result<(), JournalError> {
        let row = self.released.get(&sequence).copied().unwrap_or(sequence);
        self.transact(true, |connection| rows::set_aside(connection, row))?;
        self.forget(sequence);
        Ok(())
    }

    fn room_for(&self, requests: usize) -> Result<(), JournalError> {
        if !self.in_memory.is_empty() {
            return Err(JournalError::PagesInMemory { pages: self.in_memory.len() });
        }
        let bytes = self.used_bytes() + RESERVED_BYTES * requests as u64;
        if bytes > self.max_size {
            return Err(JournalError::Full { bytes, max_size: self.max_size });
        }
        Ok(())
    }

    fn used_bytes(&self) -> u64 {
        self.stored + self.reserved
    }

    /// Looks how large the database and its log are now.
    fn weigh(&mut self) {
        let pragma = |statement| {
            let asked = self.connection.prepare_cached(statement);
            asked.and_then(|mut it| it.query_row([], |row| row.get::<_, i64>(0))).unwrap_or(0)
        };
        let pages = pragma("PRAGMA page_count") - pragma("PRAGMA freelist_count");
        let database = (pages * pragma("PRAGMA page_size")).unsigned_abs();
        let log = std::fs::metadata(&self.log).map_or(0, |file| file.len());
        self.stored = database + log;
    }

    fn store_what_waits_in_memory(&mut self) {
        if self.in_memory.is_empty() {
            return;
        }
        let in_memory = std::mem::take(&mut self.in_memory);
        let noted = self.take_noted(true);
        let stored = self.transact(true, |connection| {
            for (row, (partition, entry)) in &in_memory {
                let place = Place {
                    incarnation: entry.id.incarnation,
                    partition: *partition,
                    ticket: entry.id.ticket,
                };
                tickets::delete(connection, &place)?;
                rows::insert(connection, *row, *partition, entry)?;
            }
            noted.write(connection)
        });
        if stored.is_err() {
            self.in_memory = in_memory;
            self.put_back(noted);
        }
    }

    fn transact(
        &mut self,
        sync: bool,
        work: impl FnOnce(&Connection) -> rusqlite::Result<()>,
    ) -> Result<(), JournalError> {
        let outcome = (|| {
            if sync != self.syncing {
                let level = if sync { "FULL" } else { "NORMAL" };
                self.connection.pragma_update(None, "synchronous", level)?;
                self.syncing = sync;
            }
            let transaction = self.connection.unchecked_transaction()?;
            work(&transaction)?;
            transaction.commit()
        })();
        self.weigh();
        outcome.map_err(|cause| database("write", cause))
    }

    fn next_sequence(&mut self) -> Sequence {
        let sequence = Sequence(self.next_sequence);
        self.next_sequence += 1;
        sequence
    }

    fn next_row_of_held(&mut self) -> Sequence {
        let row = Sequence(self.next_held);
        self.next_held -= 1;
        row
    }

    fn next_place(&mut self, partition: i32) -> Place {
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        let place = Place { incarnation: self.incarnation, partition, ticket };
        self.track(place);
        place
    }

    /// The next ticket, and the number of its request among those of the app.
    fn draw(&mut self, opening: &Opening) -> (Place, i64) {
        let place = self.next_place(opening.partition);
        let next = self.next_request.entry(opening.feed.app.clone()).or_default();
        let request = *next;
        *next += 1;
        (place, request)
    }

    /// Puts a held entry at the end of the line.
    fn release(&mut self, held: Held) {
        let row = held.row;
        let sequence = self.next_sequence();
        if let Some(place) = self.places.remove(&row) {
            self.places.insert(sequence, place);
        }
        match self.in_memory.remove(&row) {
            Some(entry) => drop(self.in_memory.insert(sequence, entry)),
            None => drop(self.released.insert(sequence, row)),
        }
    }

    /// What was noted and can be written now. Released entries move before a later one becomes
    /// durable; else they may wait.
    fn take_noted(&mut self, moving: bool) -> Noted {
        let moving = moving || self.released.len() >= MOVE_AT_ONCE;
        Noted {
            released: if moving { std::mem::take(&mut self.released) } else { BTreeMap::new() },
            forgotten: std::mem::take(&mut self.forgotten),
            paces: std::mem::take(&mut self.paces),
        }
    }

    fn put_back(&mut self, mut noted: Noted) {
        self.released.append(&mut noted.released);
        self.forgotten.append(&mut noted.forgotten);
        self.paces.append(&mut noted.paces);
    }

    fn track(&mut self, place: Place) {
        let of = (place.incarnation, place.partition);
        self.unsettled.entry(of).or_default().insert(place.ticket.0);
    }

    fn settle(&mut self, place: Place) {
        let of = (place.incarnation, place.partition);
        if let Some(tickets) = self.unsettled.get_mut(&of) {
            tickets.remove(&place.ticket.0);
        }
    }

    /// Takes an entry out of the line. Gives the row that may go.
    fn forget(&mut self, sequence: Sequence) -> Sequence {
        self.in_memory.remove(&sequence);
        if let Some(Some(place)) = self.places.remove(&sequence) {
            self.settle(place);
        }
        self.released.remove(&sequence).unwrap_or(sequence)
    }

    /// The last ticket of which all before and itself are settled and forwarded.
    fn settled(&self, incarnation: Incarnation, partition: i32) -> Ticket {
        let first = self.unsettled.get(&(incarnation, partition)).and_then(BTreeSet::first);
        // An entry that is being read waits itself, so there is a first.
        Ticket(first.map_or(0, |first| first - 1))
    }

    fn announce(&self) {
        let backlog = Backlog {
            entries: self.places.len() as u64,
            bytes: self.used_bytes(),
            newest: Sequence(self.next_sequence - 1),
        };
        // Who waits, waits for entries. Bytes are reserved and given back with every request, and
        // each time all forwarders would wake.
        self.backlog.send_if_modified(|known| {
            let changed = (known.entries, known.newest) != (backlog.entries, backlog.newest);
            *known = backlog;
            changed
        });
    }
}

/// Commands that write, to be carried out together.
#[derive(Default)]
struct Group {
    opened: Vec<Opening>,
    settled: Vec<Settling>,
    /// What was only noted is written too.
    flush: bool,
}

struct Opening {
    feed: Feed,
    partition: i32,
    since: Option<Timestamp>,
    now: Timestamp,
    reply: oneshot::Sender<Result<Place, JournalError>>,
}

struct Settling {
    place: Place,
    /// With its row.
    entry: Option<(Sequence, Entry)>,
    /// Bytes that were reserved for it.
    room: u64,
    reply: oneshot::Sender<Settled>,
}

/// What needs no transaction of its own.
struct Noted {
    released: BTreeMap<Sequence, Sequence>,
    forgotten: Vec<Sequence>,
    paces: BTreeMap<Feed, (Pace, Timestamp)>,
}

// === impl Group ===

impl Group {
    fn is_empty(&self) -> bool {
        self.opened.is_empty() && self.settled.is_empty() && !self.flush
    }
}

// === impl Noted ===

impl Noted {
    fn write(&self, connection: &Connection) -> rusqlite::Result<()> {
        for (sequence, row) in &self.released {
            rows::shift(connection, *row, *sequence)?;
        }
        for row in &self.forgotten {
            rows::delete(connection, *row)?;
        }
        for (feed, (pace, now)) in &self.paces {
            tickets::keep_pace(connection, feed, *pace, *now)?;
        }
        Ok(())
    }
}

fn content_of(settlement: Settlement) -> Option<Content> {
    match settlement {
        Settlement::Page(page) => Some(Content::Page(page)),
        Settlement::Gap(gap) => Some(Content::Gap(gap)),
        Settlement::Nothing => None,
    }
}

fn database(operation: &'static str, cause: rusqlite::Error) -> JournalError {
    JournalError::Database { operation, cause: Arc::new(cause) }
}
