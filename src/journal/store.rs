//! The database behind the journal, and the numbers that are kept beside it in memory.
//!
//! A *row* is where an entry lies, a *sequence* where it stands in the line. They are the same but
//! for an entry that was held: it lies below zero, where nobody who reads forward finds it. Its
//! release gives it the next sequence in memory, at once; the row moves there before a later entry
//! becomes durable, so that no crash lets that one overtake it. By then it is usually forwarded and
//! forgotten, and its body is not written a second time.

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
use self::standing::{Feeds, Request, Standing};
use super::database::Database;
use super::{
    Backlog, Command, Held, JournalError, OpenError, Place, RESERVED_BYTES, Recovered, Sequence,
    Settled, doubt, files, rows, tickets,
};
use crate::model::{AppId, Content, Entry, Feed, Gap, Incarnation, Pace, Ticket, Timestamp};

/// So many forwarded entries are deleted without waiting for something else to write.
const FORGET_AT_ONCE: usize = 64;

/// So many released entries move with whatever is written.
const MOVE_AT_ONCE: usize = 64;

/// The database and what is derived from it.
#[derive(Debug)]
pub(super) struct Store {
    database: Database,
    incarnation: Incarnation,
    max_size: u64,
    /// The newest moment that anybody named.
    now: Timestamp,
    next_sequence: i64,
    /// Below zero, and going down.
    next_held: i64,
    next_ticket: u64,
    /// Numbers the requests of each app, over all processes.
    next_request: HashMap<AppId, i64>,
    /// Requests that are out.
    open: HashMap<Place, Request>,
    /// Bytes that are reserved for their answers.
    reserved: u64,
    room: Room,
    feeds: Feeds,
    /// Tickets that are open, or whose entry waits: all below the first of them is settled.
    unsettled: HashMap<(Incarnation, i32), BTreeSet<u64>>,
    /// All entries; one that is held stands at its row.
    places: BTreeMap<Sequence, Standing>,
    /// Rows of released entries that have not moved yet, by the sequence that they move to.
    released: BTreeMap<Sequence, Sequence>,
    /// Rows that are forwarded and still stored: they go with the next transaction. A restart
    /// before that forwards them again, and the publisher recognises them.
    forgotten: Vec<Sequence>,
    /// The pace of feeds, to be written with the next transaction.
    paces: BTreeMap<Feed, (Pace, Timestamp)>,
    /// Entries that could not be stored.
    in_memory: BTreeMap<Sequence, (i32, Entry)>,
    /// Damaged entries that are kept in a table of their own.
    set_aside: u64,
    /// Requests up to this moment may be missing on record, and the file says so.
    doubt: Option<Timestamp>,
    /// The gaps for that are taken in: once all of them are stored the file need not say it.
    doubt_is_told: bool,
    backlog: watch::Sender<Backlog>,
}

// === impl Store ===

impl Store {
    /// Opens the journal of a data directory, or makes it.
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

    /// Goes on with what is in a database.
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

    /// What waits, and its changes.
    pub(super) fn subscribe(&self) -> watch::Receiver<Backlog> {
        self.backlog.subscribe()
    }

    /// Executes commands in one transaction and answers them.
    pub(super) fn execute(&mut self, commands: impl IntoIterator<Item = Command>) {
        let mut reads = Vec::new();
        let mut moves = Vec::new();
        let mut flushes = Vec::new();
        let mut group = Group::default();
        for command in commands {
            match command {
                Command::Open { feed, partition, since, now, reply } => {
                    self.now = self.now.max(now);
                    group.opened.push(Opening { feed, partition, since, now, reply });
                }
                Command::Settle { place, content, reply } => {
                    let row = self.next_sequence();
                    group.settled.push(Settling::new(place, row, content, Some(reply)));
                }
                Command::Close { place } => group.closed.push(place),
                Command::Hold { place, content, reply } => {
                    let row = self.next_row_of_held();
                    group.settled.push(Settling::new(place, row, content, Some(reply)));
                }
                Command::Note { partition, gap, reply } => {
                    group.settled.push(self.noting(partition, gap, Some(reply)));
                }
                Command::SettleDoubt { gaps, reply } => {
                    let gaps = gaps.into_iter().map(|(it, gap)| self.noting(it, gap, None));
                    group.settled.extend(gaps);
                    group.doubt = Some(reply);
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
                Command::MoveBehind { partition, sequence, reply } => {
                    moves.push((partition, sequence, reply));
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
        for (partition, sequence, reply) in moves {
            drop(reply.send(self.move_behind(partition, sequence)));
        }
        for (partition, after, limit, reply) in reads {
            // A caller that is gone wants no answer.
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
        // That may have been the one to find out.
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
        // What memory holds now may find its place in a new file at once.
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

    /// Takes in an entry, stored or not.
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

    /// A gap that belongs to no request.
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

    /// Takes an entry out of the line. Gives the row that may go.
    fn forget(&mut self, sequence: Sequence) -> Sequence {
        self.in_memory.remove(&sequence);
        if let Some(standing) = self.places.remove(&sequence) {
            self.settle(standing.place);
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
            in_memory: self.in_memory.len() as u64,
            set_aside: self.set_aside,
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

impl Drop for Store {
    fn drop(&mut self) {
        self.database.close(self.in_memory.is_empty());
    }
}

/// Commands that write, to be carried out together.
#[derive(Default)]
struct Group {
    opened: Vec<Opening>,
    /// Tickets whose requests brought nothing.
    closed: Vec<Place>,
    settled: Vec<Settling>,
    /// The gaps of the doubt are among them.
    doubt: Option<oneshot::Sender<Result<(), JournalError>>>,
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

/// A request that may leave once its ticket is on record.
struct Opened {
    opening: Opening,
    place: Place,
    /// Its number among those of the app.
    number: i64,
    /// Bytes that are reserved for its answer.
    room: u64,
}

struct Settling {
    place: Place,
    row: Sequence,
    entry: Entry,
    reply: Option<oneshot::Sender<Settled>>,
}

/// What needs no transaction of its own.
struct Noted {
    released: BTreeMap<Sequence, Sequence>,
    forgotten: Vec<Sequence>,
    paces: BTreeMap<Feed, (Pace, Timestamp)>,
    /// The gaps of the doubt are stored by then.
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
