//! The database behind the journal, and the numbers that are kept beside it in memory.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::HashMap;
use std::fs::File;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use rusqlite::Connection;
use tokio::sync::oneshot;
use tokio::sync::watch;
use tracing::error;

use super::Backlog;
use super::Command;
use super::JournalError;
use super::OpenError;
use super::Place;
use super::RESERVED_BYTES;
use super::Recovered;
use super::Sequence;
use super::Settlement;
use super::Waiting;
use super::files;
use super::rows;
use super::tickets;
use super::tickets::Killed;
use crate::model::AppId;
use crate::model::CLOCK_MARGIN;
use crate::model::Content;
use crate::model::Entry;
use crate::model::Feed;
use crate::model::Gap;
use crate::model::GapCause;
use crate::model::Incarnation;
use crate::model::PAGE_LIMIT;
use crate::model::PageId;
use crate::model::Ticket;
use crate::model::Timestamp;

/// The version of the tables; `PRAGMA user_version`.
pub(super) const VERSION: i64 = 1;

const SCHEMA: &str = "
CREATE TABLE entries (
    sequence INTEGER PRIMARY KEY, partition INTEGER NOT NULL,
    incarnation TEXT NOT NULL, ticket INTEGER NOT NULL,
    app TEXT NOT NULL, region TEXT NOT NULL, endpoint TEXT NOT NULL,
    head TEXT NOT NULL, body BLOB NOT NULL, checksum INTEGER NOT NULL
) STRICT;
CREATE INDEX entries_by_partition ON entries (partition, sequence);
CREATE TABLE open_tickets (
    incarnation TEXT NOT NULL, partition INTEGER NOT NULL, ticket INTEGER NOT NULL,
    app TEXT NOT NULL, region TEXT NOT NULL, endpoint TEXT NOT NULL,
    since INTEGER, asked_at INTEGER NOT NULL,
    PRIMARY KEY (incarnation, partition, ticket)
) STRICT, WITHOUT ROWID;
CREATE TABLE feeds (
    app TEXT NOT NULL, region TEXT NOT NULL, endpoint TEXT NOT NULL,
    empty_at INTEGER NOT NULL,
    PRIMARY KEY (app, region, endpoint)
) STRICT, WITHOUT ROWID;
CREATE TABLE requests (
    app TEXT NOT NULL, slot INTEGER NOT NULL,
    number INTEGER NOT NULL, asked_at INTEGER NOT NULL, PRIMARY KEY (app, slot)
) STRICT, WITHOUT ROWID;
CREATE TABLE damaged AS SELECT * FROM entries WHERE false;
PRAGMA user_version = 1;
";

/// So many forwarded entries are deleted without waiting for something else to write.
const FORGET_AT_ONCE: usize = 64;

/// The database and what is derived from it.
#[derive(Debug)]
pub(super) struct Store {
    connection: Connection,
    log: PathBuf,
    incarnation: Incarnation,
    max_size: u64,
    syncing: bool,
    next_sequence: i64,
    next_ticket: u64,
    /// Numbers the requests of each app, over all processes.
    next_request: HashMap<AppId, i64>,
    reserved: u64,
    /// Tickets that are open, or whose entry waits: all below the first of them is settled.
    unsettled: HashMap<(Incarnation, i32), BTreeSet<u64>>,
    places: BTreeMap<Sequence, Option<Place>>,
    /// Entries that are forwarded and still stored: they go with the next transaction. A restart
    /// before that forwards them again, and the publisher recognises them.
    forgotten: Vec<Sequence>,
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
        let version = prepare(&connection).map_err(failed)?;
        if version > VERSION {
            return Err(OpenError::Newer { path: path.to_owned(), version });
        }
        let mut store = Self {
            connection,
            log: path.with_extension("sqlite-wal"),
            incarnation,
            max_size,
            syncing: true,
            next_sequence: 1,
            next_ticket: 1,
            next_request: HashMap::new(),
            reserved: 0,
            unsettled: HashMap::new(),
            places: BTreeMap::new(),
            forgotten: Vec::new(),
            in_memory: BTreeMap::new(),
            backlog: watch::Sender::default(),
            _lock: None,
        };
        let recovered = store.recover(now).map_err(failed)?;
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
                    group.settled.push(Settling { place, settlement, reply });
                }
                Command::Forget { sequences } => {
                    for sequence in &sequences {
                        self.forget(*sequence);
                    }
                    self.forgotten.extend(sequences);
                }
                Command::Flush { reply } => flushes.push(reply),
                Command::Read { partition, after, limit, reply } => {
                    reads.push((partition, after, limit, reply));
                }
            }
        }
        let in_the_way =
            reads.iter().any(|(_, after, ..)| self.forgotten.iter().any(|it| it > after));
        let forget = in_the_way || !flushes.is_empty() || self.forgotten.len() >= FORGET_AT_ONCE;
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
        let entries: Vec<(Sequence, i32, Entry)> =
            group.settled.iter().filter_map(|it| self.entry_of(it)).collect();
        let forgotten = std::mem::take(&mut self.forgotten);
        let written = self.transact(!entries.is_empty(), |connection| {
            for (opening, (place, request)) in opened.iter().zip(&places) {
                let Opening { feed, since, now, .. } = opening;
                tickets::insert(connection, place, feed, *since, *now, *request)?;
            }
            for settling in &group.settled {
                tickets::settle(connection, &settling.place)?;
            }
            for (sequence, partition, entry) in &entries {
                rows::insert(connection, *sequence, *partition, entry)?;
            }
            for sequence in &forgotten {
                rows::delete(connection, *sequence)?;
            }
            Ok(())
        });
        if written.is_err() {
            self.forgotten = forgotten;
        }
        for (sequence, partition, entry) in entries {
            let id = entry.id;
            let place = Place { incarnation: id.incarnation, partition, ticket: id.ticket };
            self.places.insert(sequence, Some(place));
            if written.is_err() {
                self.in_memory.insert(sequence, (partition, entry));
            }
        }
        self.reserved -= RESERVED_BYTES * group.settled.len() as u64;
        for settling in group.settled {
            if settling.settlement == Settlement::Nothing {
                self.settle(settling.place);
            }
            drop(settling.reply.send(written.clone()));
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
                Err(damaged) => self.set_aside(damaged.sequence)?,
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

    /// Keeps a damaged row with its bytes, out of the way of the others.
    fn set_aside(&mut self, sequence: Sequence) -> Result<(), JournalError> {
        error!(
            sequence = sequence.0,
            "a page in the journal is damaged; it is set aside in the table `damaged`"
        );
        self.transact(true, |connection| {
            connection.execute(
                "INSERT INTO damaged SELECT * FROM entries WHERE sequence = ?",
                [sequence.0],
            )?;
            rows::delete(connection, sequence)
        })?;
        self.forget(sequence);
        Ok(())
    }

    fn recover(&mut self, now: Timestamp) -> rusqlite::Result<Recovered> {
        for (sequence, place) in rows::places(&self.connection)? {
            self.next_sequence = self.next_sequence.max(sequence.0 + 1);
            self.places.insert(sequence, place);
            if let Some(place) = place {
                self.track(place);
            }
        }
        let mut recovered = Recovered::default();
        self.next_request = tickets::recall(&self.connection, &mut recovered)?;
        let killed = tickets::open(&self.connection)?;
        let first = self.next_sequence;
        for request in &killed {
            self.places.insert(Sequence(self.next_sequence), Some(request.place));
            self.next_sequence += 1;
            self.track(request.place);
        }
        recovered.killed_in_flight = killed.len() as u64;
        let transaction = self.connection.unchecked_transaction()?;
        for (sequence, Killed { place, feed, since, .. }) in (first..).zip(killed) {
            let gap = Gap {
                feed,
                cause: GapCause::ProcessKilled,
                from: since,
                to: now.after(CLOCK_MARGIN),
                at_least: 0,
                at_most: Some(PAGE_LIMIT),
            };
            let id = PageId { incarnation: place.incarnation, ticket: place.ticket };
            let entry = Entry { id, content: Content::Gap(gap) };
            rows::insert(&transaction, Sequence(sequence), place.partition, &entry)?;
        }
        transaction.execute("DELETE FROM open_tickets", [])?;
        transaction.commit()?;
        Ok(recovered)
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
        let pragma = |name| {
            self.connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0)).unwrap_or(0)
        };
        let pages = pragma("page_count") - pragma("freelist_count");
        let database = (pages * pragma("page_size")).unsigned_abs();
        let log = std::fs::metadata(&self.log).map_or(0, |file| file.len());
        database + log + self.reserved
    }

    fn store_what_waits_in_memory(&mut self) {
        if self.in_memory.is_empty() {
            return;
        }
        let in_memory = std::mem::take(&mut self.in_memory);
        let stored = self.transact(true, |connection| {
            for (sequence, (partition, entry)) in &in_memory {
                let place = Place {
                    incarnation: entry.id.incarnation,
                    partition: *partition,
                    ticket: entry.id.ticket,
                };
                tickets::delete(connection, &place)?;
                rows::insert(connection, *sequence, *partition, entry)?;
            }
            Ok(())
        });
        if stored.is_err() {
            self.in_memory = in_memory;
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
        outcome.map_err(|cause| database("write", cause))
    }

    fn entry_of(&mut self, settling: &Settling) -> Option<(Sequence, i32, Entry)> {
        let content = match &settling.settlement {
            Settlement::Page(page) => Content::Page(page.clone()),
            Settlement::Gap(gap) => Content::Gap(gap.clone()),
            Settlement::Nothing => return None,
        };
        let place = settling.place;
        let id = PageId { incarnation: place.incarnation, ticket: place.ticket };
        let sequence = Sequence(self.next_sequence);
        self.next_sequence += 1;
        Some((sequence, place.partition, Entry { id, content }))
    }

    /// The next ticket, and the number of its request among those of the app.
    fn draw(&mut self, opening: &Opening) -> (Place, i64) {
        let place = Place {
            incarnation: self.incarnation,
            partition: opening.partition,
            ticket: Ticket(self.next_ticket),
        };
        self.next_ticket += 1;
        self.track(place);
        let next = self.next_request.entry(opening.feed.app.clone()).or_default();
        let request = *next;
        *next += 1;
        (place, request)
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

    fn forget(&mut self, sequence: Sequence) {
        self.in_memory.remove(&sequence);
        if let Some(Some(place)) = self.places.remove(&sequence) {
            self.settle(place);
        }
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
        self.backlog.send_if_modified(|known| {
            let changed = *known != backlog;
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
    settlement: Settlement,
    reply: oneshot::Sender<Result<(), JournalError>>,
}

// === impl Group ===

impl Group {
    fn is_empty(&self) -> bool {
        self.opened.is_empty() && self.settled.is_empty()
    }
}

/// Sets the database up; its version, 0 where it is new.
fn prepare(connection: &Connection) -> rusqlite::Result<i64> {
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    // 16 MiB of log before it is copied into the database.
    connection.pragma_update(None, "wal_autocheckpoint", 4_096)?;
    let version = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if version == 0 {
        connection.execute_batch(SCHEMA)?;
    }
    Ok(version)
}

fn database(operation: &'static str, cause: rusqlite::Error) -> JournalError {
    JournalError::Database { operation, cause: Arc::new(cause) }
}
