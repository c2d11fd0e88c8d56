//! The journal: makes a page durable before anything reads it.
//!
//! Agora deletes what it hands over, so from the arrival of an answer until its commit here, no
//! other copy exists. The journal promises:
//!
//! * a ticket is on record before its request leaves, so that if the process dies with requests in
//!   flight, the next start finds them and publishes the gaps;
//! * room is reserved before a request leaves, so that its answer can be kept;
//! * when [`Reservation::settle`] returns `Ok`, its content survives a power loss;
//! * a page that can't be stored is kept in memory and can still be forwarded, and no further
//!   request gets a reservation until it is stored;
//! * a held entry ([`Reservation::hold`]) is as durable as a settled one and invisible to readers
//!   until it is released; entries are read in the order of settling and release, also by the next
//!   process.
//!   by the next process too.
//!
//! It is SQLite in WAL mode: reliable, precise in its errors, and accessible with an operator's
//! tools. All commands go through one queue to one thread, which combines all waiting commands into
//! one transaction; the ends of requests that brought nothing wait a moment for other commands. It
//! syncs only transactions that contain a page or a gap. Tickets, deletions and releases need no
//! sync: a page that reappears after a power loss is recognised by its [`PageId`], or is held again
//! ([`Recovered::held`]), and the next start draws a new [`Incarnation`] anyway. Tickets that a
//! power loss may have taken are reported ([`Recovered::in_doubt`]) by every start until the gaps
//! for them are stored.
//!
//! A damaged file is not used any further ([`database`]): if it is corrupt, missing, or failed to
//! sync, a new file replaces it, with everything that is readable in the old one ([`salvage`]) or
//! known in memory. `docs/journal.md` explains each kind of damage to the operator.

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
pub use self::reader::{EntryState, EntryView, JournalReader, Out, ReadError, Verification};

use self::database::Database;
use self::store::Store;
use crate::error::may_panic;
use crate::model::{
    AppId, Content, Entry, Feed, Gap, Incarnation, Pace, Page, PageId, Ticket, Timestamp,
};

/// Disk space reserved for the answer to a request, in bytes: four times the largest usual page. If
/// more requests are in flight than a few apps would have, the others get less, depending on the
/// size of recent answers ([`store`]).
pub const RESERVED_BYTES: u64 = 1024 * 1024;

/// Capacity of the queue to the journal's thread, in commands; senders wait while it is full.
const QUEUE: usize = 1_024;

/// Maximum number of commands per transaction.
const GROUP: usize = 256;

/// Time that the ends of requests that brought nothing wait for other commands to share a
/// transaction with. With many apps, this saves nearly half of the transactions; with one app,
/// there is no urgency about an empty feed.
const COMPANY: Duration = Duration::from_millis(2);

/// An open journal. Cheap to clone; clones share.
#[derive(Clone, Debug)]
pub struct Journal {
    incarnation: Incarnation,
    queue: Queue,
    stored: watch::Receiver<Backlog>,
}

/// The state that an earlier process left.
#[derive(Debug, Default)]
pub struct Recovered {
    /// Number of requests that were in flight when a process ended; each is a gap now.
    pub killed_in_flight: u64,
    /// When the last ten requests of each app were about to leave, in no particular order.
    pub last_requests: HashMap<AppId, Vec<Timestamp>>,
    /// When each feed was last known to be empty.
    pub empty_at: HashMap<Feed, Timestamp>,
    /// The pace of each feed, and when it was recorded.
    pub paces: HashMap<Feed, (Pace, Timestamp)>,
    /// Pages of all feeds that were held and not released, in the order of settling. The caller
    /// must release each of them, whether or not its feed is polled, before another page of the
    /// feed is settled; nothing else releases them.
    pub held: Vec<(Held, Page)>,
    /// Set if records of requests sent before this time may be missing, because of a power loss or
    /// a lost file. An answer of any feed may be missing without a record. The next start reports
    /// the same, until [`Journal::settle_doubt`].
    pub in_doubt: Option<Timestamp>,
}

/// The journal's backlog.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Pages and gaps that are not forwarded yet, including held ones.
    pub entries: u64,
    /// Space in use, in bytes: database, write-ahead log, reserve file, and reservations.
    pub bytes: u64,
    /// Number of the newest readable entry; grows with each entry.
    pub newest: Sequence,
    /// Entries that are only in memory, because they could not be stored.
    pub in_memory: u64,
    /// Damaged pages that are kept but not processed.
    pub set_aside: u64,
}

/// A ticket on record, with the room for its answer.
///
/// A request must not leave without one. If it is dropped without [`Self::settle`], [`Self::hold`]
/// or [`Self::close`], the ticket stays open, and the next start treats it as a request that was in
/// flight.
#[derive(Debug)]
#[must_use = "a ticket that is not settled becomes a gap at the next start"]
pub struct Reservation {
    journal: Journal,
    place: Place,
}

/// A durable entry that is invisible to readers until [`Journal::release`].
///
/// If it is dropped, the entry stays held until the next start.
#[derive(Debug)]
#[must_use = "an entry that is not released is not forwarded"]
pub struct Held {
    row: Sequence,
    id: PageId,
}

/// The place of an entry in the reading order, which is the order of settling and release.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Sequence(i64);

/// An entry that waits to be forwarded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Its place.
    pub sequence: Sequence,
    /// The entry.
    pub entry: Entry,
    /// All tickets of its incarnation and partition up to this one are settled and forwarded.
    pub settled: Ticket,
}

/// Identifies a ticket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Place {
    incarnation: Incarnation,
    partition: i32,
    ticket: Ticket,
}

/// The row of an entry, and whether it was stored.
type Settled = (Sequence, Result<(), JournalError>);

/// Why the journal can't carry out a command.
#[derive(Clone, Debug, thiserror::Error)]
pub enum JournalError {
    /// The journal is full. It has room again once entries are forwarded.
    #[error("the journal is full: {bytes} of at most {max_size} bytes (journal.max_size){}", because_of_log(*.in_log, *.max_size))]
    Full {
        /// Space in use, in bytes.
        bytes: u64,
        /// The limit, in bytes.
        max_size: u64,
        /// The part of it in the write-ahead log, in bytes.
        in_log: u64,
    },
    /// The disk is full; its remaining space is reserved for requests in flight.
    #[error(
        "the disk of the data directory is full: {available} bytes are free, and answers need {needed} bytes on top of the reserve; free some space"
    )]
    DiskFull {
        /// Free disk space, in bytes.
        available: u64,
        /// Required disk space, in bytes.
        needed: u64,
    },
    /// An error of the database.
    #[error("{operation} in the journal")]
    Database {
        /// The failed operation.
        operation: &'static str,
        /// The cause.
        #[source]
        cause: Arc<rusqlite::Error>,
    },
    /// Pages are only in memory, because they could not be stored.
    #[error("{pages} pages are only in memory until the journal can store them")]
    PagesInMemory {
        /// Their number.
        pages: usize,
    },
    /// The entry doesn't exist, or is damaged.
    #[error("the journal has no intact entry at this place")]
    NotThere,
}

/// Why a journal can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process uses the data directory.
    #[error("data directory `{}` is in use by {}; give each its own data_dir", .data_dir.display(), in_words(.holder.as_ref()))]
    InUse {
        /// The data directory.
        data_dir: PathBuf,
        /// The process, if known.
        holder: Option<Holder>,
    },
    /// A file can't be created or opened.
    #[error("{operation} `{}`", .path.display())]
    File {
        /// The failed operation.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        cause: io::Error,
    },
    /// The database can't be opened.
    #[error("open the journal `{}`", .path.display())]
    Database {
        /// The database.
        path: PathBuf,
        /// The cause.
        #[source]
        cause: rusqlite::Error,
    },
    /// The disk is full, and the reserve is used up.
    #[error("open the journal `{}`: the disk is full, and the journal's reserve is used up; free some space", .path.display())]
    DiskFull {
        /// The database.
        path: PathBuf,
    },
    /// A newer version of this program wrote it.
    #[error("journal `{}` has version {version}, newer than this program reads ({}); run at least the version that wrote it", .path.display(), schema::VERSION)]
    Newer {
        /// The database.
        path: PathBuf,
        /// Its version.
        version: i64,
    },
}

#[derive(Clone, Debug)]
enum Queue {
    /// Sends commands to a separate thread, which executes them in groups.
    Thread(mpsc::Sender<JournalCommand>),
    /// Executes commands at once on the caller's thread, because under a paused clock nothing may
    /// run concurrently.
    Inline(Arc<Mutex<Store>>),
}

#[derive(Debug)]
enum JournalCommand {
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
    /// Opens the journal of a data directory; creates both if they are missing.
    ///
    /// `incarnation` must be drawn at random for each opening. Requests that were in flight when
    /// the last process ended become gaps that end at `now`.
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
                    if group.iter().all(|it| matches!(it, JournalCommand::Close { .. })) {
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

    /// A journal for simulated time: the same code on `connection`, executed on the caller's
    /// thread.
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
    /// `since` is when the feed was last known to be empty, if known.
    pub async fn reserve(
        &self,
        feed: &Feed,
        partition: i32,
        since: Option<Timestamp>,
        now: Timestamp,
    ) -> Result<Reservation, JournalError> {
        let feed = feed.clone();
        let place =
            self.ask(|reply| JournalCommand::Open { feed, partition, since, now, reply }).await?;
        Ok(Reservation { journal: self.clone(), place })
    }

    /// Makes held entries readable, in the given order and after all entries that are readable
    /// already. Infallible: if it can't be written, it stays in memory until it can, as with
    /// [`Self::forget`].
    pub async fn release(&self, held: Vec<Held>) {
        self.send(JournalCommand::Release { held }).await;
    }

    /// Publishes a gap that belongs to no request, under its own ticket. On an error, it is kept in
    /// memory and forwarded from there. It needs no reservation: it takes a few bytes, and even a
    /// full journal accepts it.
    pub async fn note_gap(&self, partition: i32, gap: Gap) -> Result<(), JournalError> {
        self.ask(|reply| JournalCommand::Note { partition, gap, reply }).await.1
    }

    /// Publishes the gaps for [`Recovered::in_doubt`], each with its partition, in one transaction
    /// that also settles the doubt. On an error, they are kept in memory and forwarded from there.
    pub async fn settle_doubt(&self, gaps: Vec<(i32, Gap)>) -> Result<(), JournalError> {
        self.ask(|reply| JournalCommand::SettleDoubt { gaps, reply }).await
    }

    /// Records the pace of a feed for [`Recovered::paces`], together with the next write.
    pub async fn keep_pace(&self, feed: &Feed, pace: Pace, now: Timestamp) {
        self.send(JournalCommand::KeepPace { feed: feed.clone(), pace, now }).await;
    }

    /// The entries of a partition after `after`, oldest first, at most `limit`.
    pub async fn read(
        &self,
        partition: i32,
        after: Sequence,
        limit: usize,
    ) -> Result<Vec<Waiting>, JournalError> {
        self.ask(|reply| JournalCommand::Read { partition, after, limit, reply }).await
    }

    /// The entry at this place, if there is one.
    pub async fn read_one(
        &self,
        partition: i32,
        sequence: Sequence,
    ) -> Result<Option<Waiting>, JournalError> {
        let next = self.read(partition, Sequence(sequence.0 - 1), 1).await?.pop();
        Ok(next.filter(|it| it.sequence == sequence))
    }

    /// Gives an entry a new ticket of this incarnation and moves it to the last place, in one
    /// transaction. On an error, it keeps its place and ticket.
    ///
    /// Needs no reservation, so it works in a full journal. It fails on a full disk, whose
    /// remaining space is reserved for the answers in flight.
    pub async fn move_behind(
        &self,
        partition: i32,
        sequence: Sequence,
    ) -> Result<Waiting, JournalError> {
        self.ask(|reply| JournalCommand::MoveBehind { partition, sequence, reply }).await
    }

    /// Writes pending changes: deletions of forwarded entries, releases, paces.
    pub async fn flush(&self) {
        self.ask(|reply| JournalCommand::Flush { reply }).await;
    }

    /// Deletes entries that have been forwarded.
    pub async fn forget(&self, sequences: Vec<Sequence>) {
        self.send(JournalCommand::Forget { sequences }).await;
    }

    /// The backlog, and its changes.
    pub fn backlog(&self) -> watch::Receiver<Backlog> {
        self.stored.clone()
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> JournalCommand) -> T {
        let (reply, answer) = oneshot::channel();
        self.send(command(reply)).await;
        answer.await.expect("the journal answers every command")
    }

    async fn send(&self, command: JournalCommand) {
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

    /// Records the page that arrived, or the gap in its place. On an error, it is kept in memory
    /// and forwarded from there.
    pub async fn settle(self, content: Content) -> Result<(), JournalError> {
        let Self { journal, place } = self;
        journal.ask(|reply| JournalCommand::Settle { place, content, reply }).await.1
    }

    /// Closes the ticket of a request that brought nothing. Infallible: if it can't be written, the
    /// next process publishes a gap.
    pub async fn close(self) {
        let Self { journal, place } = self;
        journal.send(JournalCommand::Close { place }).await;
    }

    /// Records a page or gap that must wait for others: as durable as with [`Self::settle`], kept
    /// in memory on an error, and invisible to readers until its release.
    pub async fn hold(self, content: Content) -> (Held, Result<(), JournalError>) {
        let Self { journal, place } = self;
        let (row, stored) =
            journal.ask(|reply| JournalCommand::Hold { place, content, reply }).await;
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
    /// The place before all entries.
    pub const START: Self = Self(0);

    /// The place with this number.
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

/// Explains a full journal in which hardly anything waits.
fn because_of_log(in_log: u64, max_size: u64) -> String {
    if in_log < max_size / 4 {
        return String::new();
    }
    format!(
        "; {in_log} bytes are in its write-ahead log, because another program is reading the journal: stop it"
    )
}

fn in_words(holder: Option<&Holder>) -> String {
    holder.map_or_else(|| "another agora-rtm-bridge".to_owned(), Holder::to_string)
}

#[cfg(test)]
mod tests;
