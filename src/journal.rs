//! The journal: where a page is durable before anybody looks into it.
//!
//! Agora forgets what it hands over, so from the arrival of an answer to its commit here no other
//! copy exists. The journal promises:
//!
//! * a ticket is on record before its request leaves, so that a process which dies with requests
//!   out finds them at its next start and publishes the gap;
//! * room is reserved before a request leaves, so that its answer can be kept;
//! * when [`Reservation::settle`] returns `Ok`, what it was given survives a loss of power;
//! * a page that can't be stored is kept in memory, is read by the forwarder all the same, and no
//!   further request gets a reservation before it is stored;
//! * an entry that was held ([`Reservation::hold`]) is as durable as one that was settled, and is
//!   read by nobody before it is released; entries are read in the order of settling and release,
//!   by the next process too.
//!
//! It is SQLite (WAL): trusted with data, exact in its errors, and open to the tools of an
//! operator. All commands go through one queue to one thread, which takes whatever is waiting into
//! one transaction (the end of a request that brought nothing waits a moment for others); it syncs
//! only where the transaction holds a page or a gap. Tickets, deletions and releases need no sync:
//! after a loss of power a page that comes back is recognised by its [`PageId`] (or is held once
//! more: [`Recovered::held`]), and the next start draws a new [`Incarnation`] anyway. Tickets that
//! were lost with the power are told as such ([`Recovered::in_doubt`]), by each start until the gaps
//! for them are stored.
//!
//! No file is trusted longer than it deserves ([`database`]): one that is broken, gone or failed to
//! sync is replaced by a new one with everything that can be read ([`salvage`]) and that memory
//! holds. `docs/journal.md` tells the one on call what each kind of damage means.

mod ballast;
mod database;
mod doubt;
mod files;
mod image;
mod reader;
mod rows;
mod salvage;
mod schema;
mod store;
mod tickets;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use std::{io, thread};

use tokio::sync::{mpsc, oneshot, watch};

pub use self::files::{Holder, exposure, holder, is_in_use, kept};
pub use self::reader::{Out, ReadError, Reader, Seen, State, Verdict};

use self::database::Database;
use self::store::Store;
use crate::error::may_panic;
use crate::model::{
    AppId, Content, Entry, Feed, Gap, Incarnation, Pace, Page, PageId, Ticket, Timestamp,
};

/// Room that is reserved for the answer to a request: four times the largest usual page. With more
/// requests out than a few apps have, further ones get what answers take ([`store`]).
pub const RESERVED_BYTES: u64 = 1024 * 1024;

/// Commands that wait for the journal's thread at most; more senders wait.
const QUEUE: usize = 1_024;

/// Commands that share a transaction at most.
const GROUP: usize = 256;

/// How long the ends of requests that brought nothing wait for something else to write. With many
/// apps that saves nearly half of the transactions; with one, an empty feed is in no hurry.
const COMPANY: Duration = Duration::from_millis(2);

/// A journal that is open. Cheap to clone; clones share.
#[derive(Clone, Debug)]
pub struct Journal {
    incarnation: Incarnation,
    queue: Queue,
    stored: watch::Receiver<Backlog>,
}

/// What an earlier process left behind.
#[derive(Debug, Default)]
pub struct Recovered {
    /// Requests that were out when a process ended; each is a gap now.
    pub killed_in_flight: u64,
    /// When the last ten requests of each app were about to leave, in no order.
    pub last_requests: HashMap<AppId, Vec<Timestamp>>,
    /// When each feed was last known to hold nothing.
    pub empty_at: HashMap<Feed, Timestamp>,
    /// How fast each feed filled, and when that was known.
    pub paces: HashMap<Feed, (Pace, Timestamp)>,
    /// Pages that nobody released, of all feeds, in the order of settling. Each has to be released,
    /// its feed polled or not, before a page of its feed is settled: nobody else will.
    pub held: Vec<(Held, Page)>,
    /// Records of requests that left before this moment may be missing: the power was lost, or a
    /// file. Each feed may lack an answer that nobody knows of. The next start finds the same, until
    /// [`Journal::settle_doubt`].
    pub in_doubt: Option<Timestamp>,
}

/// What waits in the journal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Pages and gaps that are not forwarded yet, held ones included.
    pub entries: u64,
    /// Bytes in use: of the database and its write-ahead log, the ballast, reservations.
    pub bytes: u64,
    /// Number of the newest entry that can be read; grows with each.
    pub newest: Sequence,
    /// Entries that are in memory only, because they could not be stored.
    pub in_memory: u64,
    /// Damaged pages that are kept with their bytes, and not processed.
    pub set_aside: u64,
}

/// A ticket on record, and the room for its answer.
///
/// Without one no request may leave. Dropped without [`Self::settle`] or [`Self::hold`] the ticket
/// stays open, and the next start takes it for a request that was out.
#[derive(Debug)]
#[must_use = "a ticket that is not settled becomes a gap at the next start"]
pub struct Reservation {
    journal: Journal,
    place: Place,
}

/// An entry that is durable and that nobody reads before [`Journal::release`].
///
/// Dropped, it is held until the next start.
#[derive(Debug)]
#[must_use = "an entry that is not released is not forwarded"]
pub struct Held {
    row: Sequence,
    id: PageId,
}

/// The place of an entry in the journal; grows in the order of settling and release.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Sequence(i64);

/// An entry that waits to be forwarded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Its place.
    pub sequence: Sequence,
    /// What it is.
    pub entry: Entry,
    /// Every ticket up to this one, of its incarnation and partition, is settled and forwarded.
    pub settled: Ticket,
}

/// Where a ticket belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Place {
    incarnation: Incarnation,
    partition: i32,
    ticket: Ticket,
}

/// The row of an entry, and whether it is stored.
type Settled = (Sequence, Result<(), JournalError>);

/// Why the journal can't do what it was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum JournalError {
    /// It holds as much as it may; it has room again when something was forwarded.
    #[error("the journal is full: {bytes} of at most {max_size} bytes (journal.max_size){}", because_of_log(*.in_log, *.max_size))]
    Full {
        /// Bytes in use.
        bytes: u64,
        /// The bound.
        max_size: u64,
        /// Bytes of these that are in the write-ahead log.
        in_log: u64,
    },
    /// The disk holds as much as it can; requests that are out already have its last room.
    #[error(
        "the disk of the data directory is full: {available} bytes are left, {needed} are needed for answers, and the reserve has to be there; make room on it"
    )]
    DiskFull {
        /// Bytes that can be written.
        available: u64,
        /// Bytes that have to be there.
        needed: u64,
    },
    /// The database refuses.
    #[error("{operation} in the journal")]
    Database {
        /// What was tried.
        operation: &'static str,
        /// Why it failed.
        #[source]
        cause: Arc<rusqlite::Error>,
    },
    /// Pages wait in memory because they could not be stored.
    #[error("{pages} pages are kept in memory until the journal can store them")]
    PagesInMemory {
        /// How many.
        pages: usize,
    },
    /// There is no such entry, or it is damaged.
    #[error("the journal has no sound entry in this place")]
    NotThere,
}

/// Why a journal can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error("data directory `{}` is in use by {}; give each its own data_dir", .data_dir.display(), in_words(.holder.as_ref()))]
    InUse {
        /// Which.
        data_dir: PathBuf,
        /// By whom, where that is known.
        holder: Option<Holder>,
    },
    /// A file can't be made or opened.
    #[error("{operation} `{}`", .path.display())]
    File {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        cause: io::Error,
    },
    /// The database can't be opened.
    #[error("open the journal `{}`", .path.display())]
    Database {
        /// Which.
        path: PathBuf,
        /// Why it failed.
        #[source]
        cause: rusqlite::Error,
    },
    /// The disk is full, and the room that is kept for this day is used up.
    #[error("open the journal `{}`: the disk is full and its reserve is used up; make room on it", .path.display())]
    DiskFull {
        /// Which.
        path: PathBuf,
    },
    /// A newer version of this program wrote it.
    #[error("journal `{}` has version {version}, newer than this program reads ({}); run at least the version that wrote it", .path.display(), schema::VERSION)]
    Newer {
        /// Which.
        path: PathBuf,
        /// Its version.
        version: i64,
    },
}

#[derive(Clone, Debug)]
enum Queue {
    /// A thread of its own takes commands in groups.
    Thread(mpsc::Sender<Command>),
    /// The caller's thread, at once: under a paused clock nothing must happen beside it.
    Inline(Arc<Mutex<Store>>),
}

#[derive(Debug)]
enum Command {
    Open {
        feed: Feed,
        partition: i32,
        since: Option<Timestamp>,
        now: Timestamp,
        reply: oneshot::Sender<Result<Place, JournalError>>,
    },
    Settle {
        place: Place,
        content: Content,
        reply: oneshot::Sender<Settled>,
    },
    Close {
        place: Place,
    },
    Hold {
        place: Place,
        content: Content,
        reply: oneshot::Sender<Settled>,
    },
    Release {
        held: Vec<Held>,
    },
    Note {
        partition: i32,
        gap: Gap,
        reply: oneshot::Sender<Settled>,
    },
    SettleDoubt {
        gaps: Vec<(i32, Gap)>,
        reply: oneshot::Sender<Result<(), JournalError>>,
    },
    KeepPace {
        feed: Feed,
        pace: Pace,
        now: Timestamp,
    },
    Read {
        partition: i32,
        after: Sequence,
        limit: usize,
        reply: oneshot::Sender<Result<Vec<Waiting>, JournalError>>,
    },
    Forget {
        sequences: Vec<Sequence>,
    },
    MoveBehind {
        partition: i32,
        sequence: Sequence,
        reply: oneshot::Sender<Result<Waiting, JournalError>>,
    },
    Flush {
        reply: oneshot::Sender<()>,
    },
}

// === impl Journal ===

impl Journal {
    /// Opens the journal of a data directory, and makes both where they are missing.
    ///
    /// `incarnation` has to be drawn at random for each opening. What was out when the last process
    /// ended becomes gaps that end at `now`.
    pub fn open(
        data_dir: &Path,
        max_size: u64,
        incarnation: Incarnation,
        now: Timestamp,
    ) -> Result<(Self, Recovered), OpenError> {
        let (mut store, recovered) = Store::open(data_dir, max_size, incarnation, now)?;
        let stored = store.subscribe();
        let (sender, mut receiver) = mpsc::channel(QUEUE);
        thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || {
                let mut group = Vec::with_capacity(GROUP);
                while receiver.blocking_recv_many(&mut group, GROUP) > 0 {
                    if group.iter().all(|it| matches!(it, Command::Close { .. })) {
                        thread::sleep(COMPANY);
                        while group.len() < GROUP
                            && let Ok(command) = receiver.try_recv()
                        {
                            group.push(command);
                        }
                    }
                    may_panic("journal");
                    store.execute(group.drain(..));
                }
            })
            .map_err(|cause| OpenError::File {
                operation: "start the thread of",
                path: data_dir.to_owned(),
                cause,
            })?;
        Ok((Self { incarnation, queue: Queue::Thread(sender), stored }, recovered))
    }

    /// A journal for simulated time: the same code on `connection`, run on the caller's thread.
    pub fn simulated(
        connection: rusqlite::Connection,
        max_size: u64,
        incarnation: Incarnation,
        now: Timestamp,
    ) -> Result<(Self, Recovered), OpenError> {
        let database = Database::without_files(connection)?;
        let (store, recovered) = Store::on(database, max_size, incarnation, now)
            .map_err(|cause| OpenError::Database { path: PathBuf::new(), cause })?;
        let stored = store.subscribe();
        let queue = Queue::Inline(Arc::new(Mutex::new(store)));
        Ok((Self { incarnation, queue, stored }, recovered))
    }

    /// Its incarnation.
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// Puts the next ticket on record and reserves room for its answer.
    ///
    /// `since` is when the feed was last known to hold nothing, where that is known.
    pub async fn reserve(
        &self,
        feed: &Feed,
        partition: i32,
        since: Option<Timestamp>,
        now: Timestamp,
    ) -> Result<Reservation, JournalError> {
        let feed = feed.clone();
        let place = self.ask(|reply| Command::Open { feed, partition, since, now, reply }).await?;
        Ok(Reservation { journal: self.clone(), place })
    }

    /// Lets held entries be read, in the given order and behind all that can be read already. Can't
    /// fail: what can't be written is remembered, as with [`Self::forget`].
    pub async fn release(&self, held: Vec<Held>) {
        self.send(Command::Release { held }).await;
    }

    /// Publishes a gap that belongs to no request, under a ticket of its own. On an error it is
    /// kept in memory and goes on from there. Nothing was reserved for it: it is a few bytes, and a
    /// full journal takes it too.
    pub async fn note_gap(&self, partition: i32, gap: Gap) -> Result<(), JournalError> {
        self.ask(|reply| Command::Note { partition, gap, reply }).await.1
    }

    /// Publishes the gaps of [`Recovered::in_doubt`], each with its partition, in one transaction.
    /// From then on there is no doubt. On an error they are kept in memory and go on from there.
    pub async fn settle_doubt(&self, gaps: Vec<(i32, Gap)>) -> Result<(), JournalError> {
        self.ask(|reply| Command::SettleDoubt { gaps, reply }).await
    }

    /// Keeps how fast a feed fills, for [`Recovered::paces`]. Waits for something else to write.
    pub async fn keep_pace(&self, feed: &Feed, pace: Pace, now: Timestamp) {
        self.send(Command::KeepPace { feed: feed.clone(), pace, now }).await;
    }

    /// The entries of a partition behind `after`, oldest first, at most `limit`.
    pub async fn read(
        &self,
        partition: i32,
        after: Sequence,
        limit: usize,
    ) -> Result<Vec<Waiting>, JournalError> {
        self.ask(|reply| Command::Read { partition, after, limit, reply }).await
    }

    /// The entry in this place, where there is one.
    pub async fn read_one(
        &self,
        partition: i32,
        sequence: Sequence,
    ) -> Result<Option<Waiting>, JournalError> {
        let next = self.read(partition, Sequence(sequence.0 - 1), 1).await?.pop();
        Ok(next.filter(|it| it.sequence == sequence))
    }

    /// Gives an entry a new ticket, of this incarnation, and the last place, in one transaction. On
    /// an error it stays where it is and keeps its ticket.
    ///
    /// Nothing is reserved for it, so a full journal does it too. A full disk does not: what room it
    /// has left belongs to the answers that are out.
    pub async fn move_behind(
        &self,
        partition: i32,
        sequence: Sequence,
    ) -> Result<Waiting, JournalError> {
        self.ask(|reply| Command::MoveBehind { partition, sequence, reply }).await
    }

    /// Writes down what was only noted: forwarded entries to delete, releases, paces.
    pub async fn flush(&self) {
        self.ask(|reply| Command::Flush { reply }).await;
    }

    /// Forgets entries: they are forwarded.
    pub async fn forget(&self, sequences: Vec<Sequence>) {
        self.send(Command::Forget { sequences }).await;
    }

    /// What waits, and its changes.
    pub fn backlog(&self) -> watch::Receiver<Backlog> {
        self.stored.clone()
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> T {
        let (reply, answer) = oneshot::channel();
        self.send(command(reply)).await;
        answer.await.expect("the journal answers every command")
    }

    async fn send(&self, command: Command) {
        match &self.queue {
            Queue::Thread(sender) => {
                sender.send(command).await.expect("the journal's thread outlives its handles");
            }
            Queue::Inline(store) => {
                store.lock().unwrap_or_else(PoisonError::into_inner).execute([command]);
            }
        }
    }
}

// === impl Reservation ===

impl Reservation {
    /// The ticket.
    pub fn ticket(&self) -> Ticket {
        self.place.ticket
    }

    /// Records the page that came, or the gap that is left of it. On an error it is kept in memory
    /// and goes on from there.
    pub async fn settle(self, content: Content) -> Result<(), JournalError> {
        let Self { journal, place } = self;
        journal.ask(|reply| Command::Settle { place, content, reply }).await.1
    }

    /// Nothing was handed over. Can't fail: what can't be written is a gap to the next process.
    pub async fn close(self) {
        let Self { journal, place } = self;
        journal.send(Command::Close { place }).await;
    }

    /// Records a page or gap that has to wait for others: durable as with [`Self::settle`], also
    /// kept in memory on an error, and read by nobody before its release.
    pub async fn hold(self, content: Content) -> (Held, Result<(), JournalError>) {
        let Self { journal, place } = self;
        let (row, stored) = journal.ask(|reply| Command::Hold { place, content, reply }).await;
        (Held { row, id: place.id() }, stored)
    }
}

// === impl Held ===

impl Held {
    /// The identity of the entry.
    pub fn id(&self) -> PageId {
        self.id
    }
}

// === impl Sequence ===

impl Sequence {
    /// Before every entry.
    pub const START: Self = Self(0);

    /// The place of this number.
    #[cfg(test)]
    pub(crate) fn from_number(number: i64) -> Self {
        Self(number)
    }
}

// === impl Place ===

impl Place {
    fn id(&self) -> PageId {
        PageId { incarnation: self.incarnation, ticket: self.ticket }
    }

    fn entry(&self, content: Content) -> Entry {
        Entry { id: self.id(), content }
    }
}

/// What fills a journal in which hardly anything waits.
fn because_of_log(in_log: u64, max_size: u64) -> String {
    if in_log < max_size / 4 {
        return String::new();
    }
    format!(
        "; {in_log} bytes are in its write-ahead log, because a program is reading the journal: end it"
    )
}

fn in_words(holder: Option<&Holder>) -> String {
    holder.map_or_else(|| "another agora-rtm-bridge".to_owned(), Holder::to_string)
}

#[cfg(test)]
mod tests;
