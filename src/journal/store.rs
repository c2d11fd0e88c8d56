//! The database of the journal, and the state that is kept for it in memory.
//!
//! A *row* is where an entry is stored, its *sequence* is its place in the reading order. They are
//! equal except for entries that were held: a held entry has a negative row, which readers don't
//! find. Its release gives it the next sequence in memory at once. The row is moved there before a
//! later entry becomes durable, so that no crash can change the order. By then the entry has
//! usually been forwarded and forgotten, so its body isn't written a second time.

mod admission;
mod mending;
mod moving;
mod reading;
mod recovery;
mod room;
mod standing;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;

use rusqlite::Connection;
use tokio::sync::{oneshot, watch};

use self::room::Room;
use self::standing::{Feeds, OpenRequest, Standing};
use super::database::Database;
use super::{
    Backlog, Held, JournalCommand, JournalError, OpenError, Place, RESERVED_BYTES, Recovered,
    Sequence, Settled, doubt, files, rows, tickets,
};
use crate::model::{AppId, Content, Entry, Feed, Gap, Incarnation, Pace, Ticket, Timestamp};

/// Number of forwarded entries from which they are deleted without waiting for another write.
const FORGET_AT_ONCE: usize = 64;

/// Number of released entries from which their rows are moved by any write, not only by one that
/// stores entries.
const MOVE_AT_ONCE: usize = 64;

/// The database, and the state derived from it.
#[derive(Debug)]
pub(super) struct Store {
    database: Database,
    incarnation: Incarnation,
    max_size: u64,
    /// The latest time in any command.
    now: Timestamp,
    next_sequence: i64,
    /// Negative and decreasing.
    next_held: i64,
    next_ticket: u64,
    /// The number of the next request of each app, counted over all processes.
    next_request: HashMap<AppId, i64>,
    /// Requests in flight.
    open: HashMap<Place, OpenRequest>,
    /// Space reserved for their answers, in bytes.
    reserved: u64,
    room: Room,
    feeds: Feeds,
    /// Tickets that are open or whose entry waits. All tickets below the first of them are settled.
    unsettled: HashMap<(Incarnation, i32), BTreeSet<u64>>,
    /// All entries; held ones under their row.
    places: BTreeMap<Sequence, Standing>,
    /// Rows of released entries that are not moved yet, by their new sequence.
    released: BTreeMap<Sequence, Sequence>,
    /// Rows that are forwarded but still stored; the next transaction deletes them. After a restart
    /// before that, they are forwarded again, and the publisher recognises them.
    forgotten: Vec<Sequence>,
    /// Paces to be written in the next transaction.
    paces: BTreeMap<Feed, (Pace, Timestamp)>,
    /// Entries that could not be stored.
    in_memory: BTreeMap<Sequence, (i32, Entry)>,
    /// Number of damaged entries, which are kept in their own table.
    set_aside: u64,
    /// Records of requests up to this time may be missing, as recorded in the file.
    doubt: Option<Timestamp>,
    /// Whether the gaps for that are accepted. Once all of them are stored, the record is removed.
    doubt_is_told: bool,
    backlog: watch::Sender<Backlog>,
}

// === impl Store ===

impl Store {
    /// Opens the journal of a data directory; creates it if it is missing.
    pub(super) fn open(
        data_dir: &Path,
        max_size: u64,
        incarnation: Incarnation,
        now: Timestamp,
    ) -> Result<(Self, Recovered), OpenError> {
        let database = Database::open(data_dir, now)?;
        let path = data_dir.join(files::DATABASE);
        let (mut store, recovered) = Self::on(database, max_size, incarnation, now)
            .map_err(|cause| OpenError::Database { path, cause })?;
        store.database.begin();
        Ok((store, recovered))
    }

    /// Continues with the contents of a database.
    pub(super) fn on(
        database: Database,
        max_size: u64,
        incarnation: Incarnation,
        now: Timestamp,
    ) -> rusqlite::Result<(Self, Recovered)> {
        let mut store = Self::new(database, max_size, incarnation, now);
        let mut recovered = store.recover(now);
        if recovered.is_err() && store.database.is_distrusted() {
            store.database.renew(None, now, |connection, _| doubt::note(connection, now))?;
            let database = std::mem::replace(&mut store.database, Database::none());
            store = Self::new(database, max_size, incarnation, now);
            recovered = store.recover(now);
        }
        store.database.weigh();
        store.announce();
        Ok((store, recovered?))
    }

    fn new(database: Database, max_size: u64, incarnation: Incarnation, now: Timestamp) -> Self {
        Self {
            database,
            incarnation,
            max_size,
            now,
            next_sequence: 1,
            next_held: -1,
            next_ticket: 1,
            next_request: HashMap::new(),
            open: HashMap::new(),
            reserved: 0,
            room: Room::default(),
            feeds: Feeds::default(),
            unsettled: HashMap::new(),
            places: BTreeMap::new(),
            released: BTreeMap::new(),
            forgotten: Vec::new(),
            paces: BTreeMap::new(),
            in_memory: BTreeMap::new(),
            set_aside: 0,
            doubt: None,
            doubt_is_told: false,
            backlog: watch::Sender::default(),
        }
    }

    /// The backlog, and its changes.
    pub(super) fn subscribe(&self) -> watch::Receiver<Backlog> {
        self.backlog.subscribe()
    }

    /// Executes commands in one transaction and replies to them.
    pub(super) fn execute(&mut self, commands: impl IntoIterator<Item = JournalCommand>) {
        let mut reads = Vec::new();
        let mut moves = Vec::new();
        let mut flushes = Vec::new();
        let mut group = Group::default();
        for command in commands {
            match command {
                JournalCommand::Open { feed, partition, since, now, reply } => {
                    self.now = self.now.max(now);
                    group.opened.push(Opening { feed, partition, since, now, reply });
                }
                JournalCommand::Settle { place, content, reply } => {
                    let row = self.next_sequence();
                    group.settled.push(Settling::new(place, row, content, Some(reply)));
                }
                JournalCommand::Close { place } => group.closed.push(place),
                JournalCommand::Hold { place, content, reply } => {
                    let row = self.next_row_of_held();
                    group.settled.push(Settling::new(place, row, content, Some(reply)));
                }
                JournalCommand::Note { partition, gap, reply } => {
                    group.settled.push(self.noting(partition, gap, Some(reply)));
                }
                JournalCommand::SettleDoubt { gaps, reply } => {
                    let gaps = gaps.into_iter().map(|(it, gap)| self.noting(it, gap, None));
                    group.settled.extend(gaps);
                    group.doubt = Some(reply);
                }
                JournalCommand::Release { held } => {
                    held.into_iter().for_each(|it| self.release(it))
                }
                JournalCommand::KeepPace { feed, pace, now } => {
                    self.paces.insert(feed, (pace, now));
                }
                JournalCommand::Forget { sequences } => {
                    let rows = sequences.into_iter().map(|it| self.forget(it));
                    let rows: Vec<Sequence> = rows.collect();
                    self.forgotten.extend(rows);
                }
                JournalCommand::MoveBehind { partition, sequence, reply } => {
                    moves.push((partition, sequence, reply));
                }
                JournalCommand::Flush { reply } => flushes.push(reply),
                JournalCommand::Read { partition, after, limit, reply } => {
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
        for (partition, sequence, reply) in moves {
            drop(reply.send(self.move_behind(partition, sequence)));
        }
        for (partition, after, limit, reply) in reads {
            // A caller that is gone needs no reply.
            drop(reply.send(self.read(partition, after, limit)));
        }
        if !flushes.is_empty() {
            self.database.set_stopped(self.has_nothing_open());
        }
        for reply in flushes {
            reply.send(()).ok();
        }
        self.announce();
    }

    fn write(&mut self, mut group: Group) {
        self.mend();
        self.store_what_waits_in_memory();
        // Storing may have revealed that the file can't be trusted.
        self.mend();
        let opened = self.admit(std::mem::take(&mut group.opened));
        if !opened.is_empty() {
            self.database.set_stopped(false);
        }
        let has_entries = !group.settled.is_empty();
        self.doubt_is_told |= group.doubt.is_some();
        let noted = self.take_noted(has_entries || group.flush);
        let written = self.transact(has_entries, |connection| {
            for Opened { opening: Opening { feed, since, now, .. }, place, number, .. } in &opened {
                tickets::insert(connection, place, feed, *since, *now)?;
                tickets::remember(connection, &feed.app, *number, *now)?;
            }
            for place in &group.closed {
                tickets::settle(connection, place)?;
            }
            for Settling { place, row, entry, .. } in &group.settled {
                tickets::settle(connection, place)?;
                rows::insert(connection, *row, place.partition, entry)?;
            }
            noted.write(connection)
        });
        match &written {
            Ok(()) => self.doubt = self.doubt.filter(|_| !noted.settles_doubt),
            Err(_) => self.put_back(noted),
        }
        for opened in opened {
            self.begin(opened, &written);
        }
        for place in group.closed {
            self.end(&place, Some(0));
            self.settle(place);
        }
        let settled: Vec<_> =
            group.settled.into_iter().map(|it| self.take_in(it, written.is_ok())).collect();
        // The entries in memory can be stored at once if a new file is due.
        self.mend();
        for (row, reply) in settled {
            let is_stored = !self.in_memory.contains_key(&row);
            let Some(reply) = reply else { continue };
            drop(reply.send((row, if is_stored { Ok(()) } else { written.clone() })));
        }
        if let Some(reply) = group.doubt {
            drop(reply.send(if self.in_memory.is_empty() { Ok(()) } else { written }));
        }
    }

    /// Adds an entry, stored or not, to the state in memory.
    fn take_in(
        &mut self,
        settling: Settling,
        is_stored: bool,
    ) -> (Sequence, Option<oneshot::Sender<Settled>>) {
        let Settling { place, row, entry, reply } = settling;
        let body = match &entry.content {
            Content::Page(page) => Some(page.body.len()),
            Content::Gap(_) => None,
        };
        self.end(&place, body);
        let feed = self.feeds.name(entry.content.feed());
        self.places.insert(row, Standing::new(place, &entry.content, feed));
        if !is_stored {
            self.in_memory.insert(row, (place.partition, entry));
        }
        (row, reply)
    }

    /// Creates the entry for a gap that belongs to no request.
    fn noting(
        &mut self,
        partition: i32,
        gap: Gap,
        reply: Option<oneshot::Sender<Settled>>,
    ) -> Settling {
        let (place, row) = (self.next_place(partition), self.next_sequence());
        Settling::new(place, row, Content::Gap(gap), reply)
    }

    fn transact(
        &mut self,
        sync: bool,
        work: impl Fn(&Connection) -> rusqlite::Result<()>,
    ) -> Result<(), JournalError> {
        self.database.transact(sync, work).map_err(|cause| database("write", cause))
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

    /// Moves a held entry to the end of the reading order.
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

    /// Takes the pending changes that can be written now. Released entries must be moved before a
    /// later one becomes durable; otherwise they may wait.
    fn take_noted(&mut self, moving: bool) -> Noted {
        let moving = moving || self.released.len() >= MOVE_AT_ONCE;
        Noted {
            released: if moving { std::mem::take(&mut self.released) } else { BTreeMap::new() },
            forgotten: std::mem::take(&mut self.forgotten),
            paces: std::mem::take(&mut self.paces),
            settles_doubt: self.doubt.is_some() && self.doubt_is_told && self.in_memory.is_empty(),
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

    /// Removes an entry from the reading order. Returns the row to delete.
    fn forget(&mut self, sequence: Sequence) -> Sequence {
        self.in_memory.remove(&sequence);
        if let Some(standing) = self.places.remove(&sequence) {
            self.settle(standing.place);
        }
        self.released.remove(&sequence).unwrap_or(sequence)
    }

    /// The last ticket up to which all tickets are settled and forwarded.
    fn settled(&self, incarnation: Incarnation, partition: i32) -> Ticket {
        let first = self.unsettled.get(&(incarnation, partition)).and_then(BTreeSet::first);
        // An entry that is being read waits itself, so there is a first one.
        Ticket(first.map_or(0, |first| first - 1))
    }

    fn announce(&self) {
        let backlog = Backlog {
            entries: self.places.len() as u64,
            bytes: self.used_bytes(),
            newest: Sequence(self.next_sequence - 1),
            in_memory: self.in_memory.len() as u64,
            set_aside: self.set_aside,
        };
        // Receivers wait for entries only. Bytes change with each request's reservation, and would
        // wake all forwarders each time.
        self.backlog.send_if_modified(|known| {
            let changed = (known.entries, known.newest) != (backlog.entries, backlog.newest);
            *known = backlog;
            changed
        });
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.database.close(self.in_memory.is_empty());
    }
}

/// Commands that write, to be executed in one transaction.
#[derive(Default)]
struct Group {
    opened: Vec<Opening>,
    /// Tickets of requests that brought nothing.
    closed: Vec<Place>,
    settled: Vec<Settling>,
    /// Set if the gaps of the doubt are in `settled`.
    doubt: Option<oneshot::Sender<Result<(), JournalError>>>,
    /// Whether to write all pending changes.
    flush: bool,
}

struct Opening {
    feed: Feed,
    partition: i32,
    since: Option<Timestamp>,
    now: Timestamp,
    reply: oneshot::Sender<Result<Place, JournalError>>,
}

/// A request that may leave once its ticket is on record.
struct Opened {
    opening: Opening,
    place: Place,
    /// Its number among the requests of the app.
    number: i64,
    /// Space reserved for its answer, in bytes.
    room: u64,
}

struct Settling {
    place: Place,
    row: Sequence,
    entry: Entry,
    reply: Option<oneshot::Sender<Settled>>,
}

/// Pending changes that need no transaction of their own.
struct Noted {
    released: BTreeMap<Sequence, Sequence>,
    forgotten: Vec<Sequence>,
    paces: BTreeMap<Feed, (Pace, Timestamp)>,
    /// Whether all gaps of the doubt are stored by then.
    settles_doubt: bool,
}

// === impl Group ===

impl Group {
    fn is_empty(&self) -> bool {
        self.opened.is_empty()
            && self.closed.is_empty()
            && self.settled.is_empty()
            && self.doubt.is_none()
            && !self.flush
    }
}

// === impl Settling ===

impl Settling {
    fn new(
        place: Place,
        row: Sequence,
        content: Content,
        reply: Option<oneshot::Sender<Settled>>,
    ) -> Self {
        Self { place, row, entry: place.entry(content), reply }
    }
}

// === impl Noted ===

impl Noted {
    fn write(&self, connection: &Connection) -> rusqlite::Result<()> {
        mending::move_released(connection, &self.released)?;
        for row in &self.forgotten {
            rows::delete(connection, *row)?;
        }
        for (feed, (pace, now)) in &self.paces {
            tickets::keep_pace(connection, feed, *pace, *now)?;
        }
        if self.settles_doubt {
            doubt::settle(connection)?;
        }
        Ok(())
    }
}

fn database(operation: &'static str, cause: rusqlite::Error) -> JournalError {
    JournalError::Database { operation, cause: Arc::new(cause) }
}
