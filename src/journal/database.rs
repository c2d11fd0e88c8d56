//! The journal's database file: whether it can be trusted, and its replacement if it can't.
//!
//! A database that is corrupt, whose file is missing, or that failed to sync can't be trusted any
//! more: after a failed sync, the kernel may have dropped written data, and it reports that only
//! once. Then a new file is created, filled with everything that is readable in the old one or
//! still in memory, and put in its place. If that fails, it is tried again; until it succeeds, new
//! pages stay in memory and no request gets a reservation.
//!
//! A full disk is no reason for distrust. Then the database needs the room of the [`Ballast`].

mod log;
mod trust;

use std::fs;
use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, ffi};
use tokio::time::Instant;
use tracing::{error, info, warn};

use self::trust::{
    Unusable, file_error, is_full, open_no_link, open_untouched, proves_nothing, requests_in_doubt,
    usable,
};
use super::ballast::{BALLAST_BYTES, Ballast};
use super::files::Lock;
use super::salvage::{Carried, KnownInMemory};
use super::{OpenError, doubt, files, image, salvage, schema};
use crate::backoff::Backoff;
use crate::error::Chain;
use crate::model::Timestamp;

/// Pause after the first failed attempt to create a new file.
const SHORTEST_WAIT: Duration = Duration::from_millis(250);

/// Interval at which the reserve file is tried again.
const BALLAST_WAIT: Duration = Duration::from_secs(1);

/// Maximum pause between two attempts.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Duration from which a write is logged as slow.
const SLOW: Duration = Duration::from_secs(1);

/// Minimum time between two such log lines.
const SAY_SLOW_EVERY: Duration = Duration::from_secs(60);

/// Maximum age of the page counts. They are also counted after each transaction that stores
/// entries. Counting takes SQLite as long as a small write.
const COUNT_EVERY: Duration = Duration::from_millis(100);

/// Number of replaced databases that are kept: enough to investigate, without keeping everything
/// that a failing disk produces.
const KEPT_FILES: usize = 8;

/// A database, and whether it can be trusted.
#[derive(Debug)]
pub(super) struct Database {
    /// `None` while the file can't be opened.
    connection: Option<Connection>,
    /// `None` in simulated time.
    files: Option<Files>,
    syncing: bool,
    /// Size of the used part of the database and its log, in bytes.
    bytes: u64,
    /// The parts of that size, as last counted by SQLite.
    pages: Option<PageSizes>,
    distrust: Option<Distrust>,
    /// A new file that is complete but has not replaced the old one yet.
    declared: Option<Declared>,
    said_slow: Option<Instant>,
    /// Size of the log in use, in bytes, above which it is examined.
    look_at_log: u64,
    /// When emptying it last failed for another reason than a reader.
    log_failed: Option<Instant>,
}

/// The files of a database.
#[derive(Debug)]
struct Files {
    data_dir: PathBuf,
    path: PathBuf,
    log: PathBuf,
    lock: Lock,
    ballast: Ballast,
    ballast_asked: Option<Instant>,
    /// Device and inode of both files, to detect that another file has the name.
    identity: Option<(u64, u64)>,
    log_identity: Option<(u64, u64)>,
    /// Free disk space, in bytes.
    available: u64,
}

/// Sizes of all pages of a database, of its free pages, and of the page images in its log, in
/// bytes.
#[derive(Clone, Copy, Debug)]
struct PageSizes {
    all: u64,
    free: u64,
    log: u64,
    counted_at: Instant,
}

/// Why a database isn't used any more.
#[derive(Debug)]
struct Distrust {
    cause: ffi::Error,
    reason: String,
    backoff: Backoff,
    next_attempt: Instant,
}

#[derive(Debug)]
struct Declared {
    carried: Carried,
    keep: bool,
}

// === impl Database ===

impl Database {
    /// Uses a database without files.
    pub(super) fn without_files(connection: Connection) -> Result<Self, OpenError> {
        let mut database = Self::new(None);
        match usable(&connection) {
            Ok(()) => database.connection = Some(connection),
            Err(unusable) => return Err(unusable.into_error(Path::new(""))),
        }
        Ok(database)
    }

    /// Opens the database of a data directory; creates both if they are missing. Replaces a damaged
    /// one.
    pub(super) fn open(data_dir: &Path, now: Timestamp) -> Result<Self, OpenError> {
        let mut lock = files::lock(data_dir, now)?;
        let path = data_dir.join(files::DATABASE);
        let failed = |operation| {
            let path = path.clone();
            move |cause| OpenError::File { operation, path, cause }
        };
        if let Some(kept) = files::replace(data_dir, true, now).map_err(failed("replace"))? {
            warn!(kept = %kept.display(), "completed the replacement of the journal by a new file");
        }
        let log = files::log_of(&path);
        let in_doubt = requests_in_doubt(&lock, &path, &log);
        if in_doubt {
            lock.set_in_doubt();
        }
        files::make_private(&path).map_err(failed("open"))?;
        let ballast = Ballast::new(data_dir);
        let mut database = Self::new(Some(Files {
            data_dir: data_dir.to_owned(),
            path: path.clone(),
            log,
            lock,
            ballast,
            ballast_asked: None,
            identity: None,
            log_identity: None,
            available: 0,
        }));
        let mut connected = database.connect();
        if matches!(&connected, Err(Unusable::Refused(cause)) if is_full(cause))
            && database.give_up_ballast()
        {
            connected = database.connect();
        }
        let refused = |cause| Unusable::Refused(cause).into_error(&path);
        match connected {
            Ok(()) if in_doubt => {
                database.transact(true, |it| doubt::note(it, now)).map_err(refused)?;
            }
            Ok(()) => {}
            Err(Unusable::Damaged(reason)) => {
                database.lose_trust(ffi::Error::new(ffi::SQLITE_CORRUPT), reason);
                database.renew(None, now, |it, _| doubt::note(it, now)).map_err(refused)?;
            }
            Err(unusable) => return Err(unusable.into_error(&path)),
        }
        Ok(database)
    }

    /// Without a database.
    pub(super) fn none() -> Self {
        Self::new(None)
    }

    fn new(files: Option<Files>) -> Self {
        Self {
            connection: None,
            files,
            syncing: true,
            bytes: 0,
            pages: None,
            distrust: None,
            declared: None,
            said_slow: None,
            look_at_log: log::LARGE,
            log_failed: None,
        }
    }

    /// The connection, for reading. Errors while reading from it must be passed to [`Self::met`].
    pub(super) fn connection(&self) -> rusqlite::Result<&Connection> {
        self.connection.as_ref().ok_or_else(|| {
            let cause =
                self.distrust.as_ref().map_or(ffi::SQLITE_CANTOPEN, |it| it.cause.extended_code);
            rusqlite::Error::SqliteFailure(ffi::Error::new(cause), None)
        })
    }

    /// Size of the database, its log and the reserve file, in bytes.
    pub(super) fn bytes(&self) -> u64 {
        let ballast = self.files.as_ref().is_some_and(|files| files.ballast.is_there());
        self.bytes + if ballast { BALLAST_BYTES } else { 0 }
    }

    /// Checks that the disk has room for this many more bytes and for the reserve file. If not,
    /// returns the free space.
    pub(super) fn has_room_for(&mut self, bytes: u64) -> Result<(), u64> {
        let Some(files) = &mut self.files else { return Ok(()) };
        let due = files.ballast_asked.is_none_or(|asked| asked.elapsed() >= BALLAST_WAIT);
        if !files.ballast.is_there() && due {
            files.ballast_asked = Some(Instant::now());
            if files.ballast.take() {
                files.available = available(&files.data_dir);
                if files.available < bytes {
                    files.ballast.give_up();
                } else {
                    info!("the disk has room again: allocated the reserve, resuming polling");
                }
            }
        }
        let enough = files.ballast.is_there() && files.available >= bytes;
        if enough {
            return Ok(());
        }
        if due && files::remove_oldest(&files.data_dir) {
            files.ballast_asked = None;
        }
        Err(files.available)
    }

    /// Executes `work` in a transaction.
    pub(super) fn transact(
        &mut self,
        sync: bool,
        work: impl Fn(&Connection) -> rusqlite::Result<()>,
    ) -> rusqlite::Result<()> {
        if let Some(distrust) = &self.distrust {
            return Err(rusqlite::Error::SqliteFailure(
                distrust.cause,
                Some(distrust.reason.clone()),
            ));
        }
        let begun = Instant::now();
        let mut outcome = self.attempt(sync, &work);
        if outcome.as_ref().is_err_and(is_full) && self.give_up_ballast() {
            outcome = self.attempt(sync, &work);
        }
        self.say_slow(begun.elapsed());
        if let Err(cause) = &outcome {
            self.met(cause);
        }
        if sync {
            self.pages = None;
        }
        self.weigh();
        outcome
    }

    fn attempt(
        &mut self,
        sync: bool,
        work: &impl Fn(&Connection) -> rusqlite::Result<()>,
    ) -> rusqlite::Result<()> {
        if sync != self.syncing {
            let level = if sync { "FULL" } else { "NORMAL" };
            self.connection()?.pragma_update(None, "synchronous", level)?;
            self.syncing = sync;
        }
        let transaction = self.connection()?.unchecked_transaction()?;
        work(&transaction)?;
        transaction.commit()
    }

    /// Examines an error, which may mean that the file can't be trusted any more.
    pub(super) fn met(&mut self, cause: &rusqlite::Error) {
        if let (Some(_), Some(code)) = (&self.files, proves_nothing(cause)) {
            self.lose_trust(code, Chain(cause).to_string());
        }
    }

    /// Whether it is time to create a new file.
    pub(super) fn is_to_be_renewed(&self) -> bool {
        self.distrust.as_ref().is_some_and(|it| it.next_attempt <= Instant::now())
    }

    /// Whether the file can't be trusted.
    pub(super) fn is_distrusted(&self) -> bool {
        self.distrust.is_some()
    }

    /// Creates a new file with everything readable plus what `more` writes after it, in one
    /// transaction, and continues with that file.
    pub(super) fn renew(
        &mut self,
        known: Option<&KnownInMemory>,
        now: Timestamp,
        more: impl Fn(&Connection, &mut Carried) -> rusqlite::Result<()>,
    ) -> rusqlite::Result<Carried> {
        let outcome = self.try_to_renew(known, now, more);
        if let (Err(cause), Some(distrust)) = (&outcome, &mut self.distrust) {
            error!(
                error = %Chain(cause), again_in = ?distrust.backoff.wait(),
                "failed to create a new file for the journal; pages stay in memory, and polling \
                 pauses"
            );
            distrust.next_attempt = Instant::now() + distrust.backoff.wait();
            distrust.backoff.lengthen();
        }
        outcome
    }

    fn try_to_renew(
        &mut self,
        known: Option<&KnownInMemory>,
        now: Timestamp,
        more: impl Fn(&Connection, &mut Carried) -> rusqlite::Result<()>,
    ) -> rusqlite::Result<Carried> {
        if self.declared.is_none() {
            let mut made = self.make(known, &more);
            if made.as_ref().is_err_and(is_full) && self.give_up_ballast() {
                made = self.make(known, &more);
            }
            self.declared = Some(made?);
        }
        if let Some(old) = self.connection.take() {
            // Keep the file as it is, so that a later investigation sees what we saw.
            old.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).ok();
        }
        let files = self.files.as_ref().expect("only files are distrusted");
        let keep = self.declared.as_ref().is_some_and(|it| it.keep);
        let kept = files::replace(&files.data_dir, keep, now).map_err(|it| file_error(&it))?;
        self.connect().map_err(Unusable::into_cause)?;
        self.distrust = None;
        let Declared { carried, .. } = self.declared.take().expect("it was declared above");
        let files = self.files.as_ref().expect("only files are distrusted");
        files::remove_old(&files.data_dir, KEPT_FILES);
        warn!(
            entries = carried.rows.len(),
            kept = kept.map(|it| tracing::field::display(it.display().to_string())),
            "replaced the journal by a new file with everything that was readable"
        );
        if !carried.whole && known.is_none() {
            error!(
                "parts of the old file were unreadable: pages and records of requests may be \
                 missing, and a gap is published for each feed"
            );
        }
        Ok(carried)
    }

    /// Creates the new file, complete except for its name.
    fn make(
        &self,
        known: Option<&KnownInMemory>,
        more: &impl Fn(&Connection, &mut Carried) -> rusqlite::Result<()>,
    ) -> rusqlite::Result<Declared> {
        let files = self.files.as_ref().expect("only files are distrusted");
        let path = files.data_dir.join(files::MAKING);
        files::remove(&path).map_err(|it| file_error(&it))?;
        files::make_private(&path).map_err(|it| file_error(&it))?;
        let new = open_no_link(&path)?;
        // It is discarded if it does not become complete.
        new.pragma_update(None, "journal_mode", "MEMORY")?;
        schema::prepare(&new)?;
        let reopened;
        let old = match &self.connection {
            Some(connection) => Some(connection),
            // SQLite would delete the log of an empty database.
            None if length(&files.path) == 0 => None,
            None => {
                reopened = open_untouched(&files.path).ok();
                reopened.as_ref()
            }
        };
        let transaction = new.unchecked_transaction()?;
        let mut carried = salvage::carry(old, (&files.path, &files.log), &transaction, known)?;
        more(&transaction, &mut carried)?;
        transaction.commit()?;
        new.close().map_err(|(_, cause)| cause)?;
        File::open(&path).and_then(|file| file.sync_all()).map_err(|it| file_error(&it))?;
        files::declare_whole(&files.data_dir).map_err(|it| file_error(&it))?;
        // A file that only failed to sync contains nothing that the new one lacks.
        let failed =
            self.distrust.as_ref().is_some_and(|it| it.cause.code == ErrorCode::SystemIoFailure);
        Ok(Declared { keep: !(failed && carried.whole), carried })
    }

    fn connect(&mut self) -> Result<(), Unusable> {
        let files = self.files.as_mut().expect("there is something to connect to");
        if length(&files.path) == 0 && length(&files.log) > 0 {
            // SQLite would take such a log for a leftover and delete it.
            return Err(Unusable::Damaged("the database is empty, but its log is not".to_owned()));
        }
        let log_is_sound = image::is_sound_to_its_end(&files.log);
        if !log_is_sound.map_err(|cause| Unusable::Refused(file_error(&cause)))? {
            return Err(Unusable::Damaged("its log is damaged".to_owned()));
        }
        let in_file = image::version_and_mark(&files.path);
        let in_file = in_file.map_err(|cause| Unusable::Refused(file_error(&cause)))?;
        let connection = open_untouched(&files.path).map_err(Unusable::of)?;
        if let Some((version, mark)) = in_file {
            let read = schema::version(&connection).map_err(Unusable::of)?;
            let read_mark = schema::mark(&connection).map_err(Unusable::of)?;
            if read < version || mark != 0 && read_mark != mark {
                return Err(Unusable::Damaged("its log belongs to another database".to_owned()));
            }
        }
        usable(&connection)?;
        connection
            .set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false)
            .map_err(Unusable::of)?;
        files.identity = identity(&files.path);
        files.log_identity = None;
        self.connection = Some(connection);
        self.syncing = true;
        self.pages = None;
        self.weigh();
        Ok(())
    }

    fn lose_trust(&mut self, cause: ffi::Error, reason: String) {
        if self.distrust.is_none() {
            error!(
                reason,
                "the journal's file can't be trusted any more; replacing it by a new one"
            );
            let next_attempt = Instant::now();
            let backoff = Backoff::new(SHORTEST_WAIT, LONGEST_WAIT);
            let distrust = Distrust { cause, reason, backoff, next_attempt };
            self.distrust = Some(distrust);
        }
    }

    fn give_up_ballast(&mut self) -> bool {
        let gave = self.files.as_mut().is_some_and(|files| files.ballast.give_up());
        if gave {
            warn!(
                "the disk is full: released the journal's reserve; polling pauses until there is \
                 room for it again"
            );
        }
        gave
    }

    /// Measures the database and its log, and checks that the files are still there.
    pub(super) fn weigh(&mut self) {
        let Some(connection) = &self.connection else { return };
        let known = self.pages.filter(|it| it.counted_at.elapsed() < COUNT_EVERY);
        let pages = known.unwrap_or_else(|| PageSizes::count(connection));
        self.pages = Some(pages);
        self.bytes = pages.all - pages.free;
        let Some(files) = &mut self.files else { return };
        let log = fs::metadata(&files.log).ok();
        let log_bytes = log.as_ref().map_or(0, |file| file.len());
        // SQLite reuses the rest of a longer log, as it does free pages.
        let in_log = pages.log.min(log_bytes);
        self.bytes += in_log;
        files.available = available(&files.data_dir) + pages.free + (log_bytes - in_log);
        let log = log.map(|file| (file.dev(), file.ino()));
        let gone = files.identity != identity(&files.path)
            || files.log_identity.is_some() && files.log_identity != log;
        files.log_identity = log;
        if gone {
            let moved = ffi::Error::new(ffi::SQLITE_READONLY_DBMOVED);
            self.lose_trust(moved, "the file was deleted, moved or replaced".to_owned());
        } else {
            self.look_at_log(in_log);
        }
    }

    fn say_slow(&mut self, took: Duration) {
        let quiet = self.said_slow.is_some_and(|said| said.elapsed() < SAY_SLOW_EVERY);
        if took >= SLOW && !quiet {
            self.said_slow = Some(Instant::now());
            warn!(?took, "the journal's disk is slow and delays polling");
        }
    }

    /// Closes the file. `everything` says whether all that had to be kept is in it.
    pub(super) fn close(&mut self, everything: bool) {
        let closed = self.connection.take().is_some_and(|it| it.close().is_ok());
        self.set_stopped(closed && everything && !self.is_distrusted());
    }

    /// From now on, this process is responsible for missing records.
    pub(super) fn begin(&mut self) {
        if let Some(files) = &mut self.files {
            files.lock.begin();
        }
    }

    /// Records whether everything known is in the file.
    pub(super) fn set_stopped(&mut self, stopped: bool) {
        if let Some(files) = &mut self.files {
            files.lock.set_stopped(stopped);
        }
    }
}

// === impl Pages ===

impl PageSizes {
    fn count(connection: &Connection) -> Self {
        let pragma = |statement| {
            let asked = connection.query_row(statement, [], |row| row.get::<_, i64>(0));
            asked.unwrap_or(0).unsigned_abs()
        };
        let size = pragma("PRAGMA page_size");
        let (all, free) = (pragma("PRAGMA page_count"), pragma("PRAGMA freelist_count"));
        Self {
            all: all * size,
            free: free.min(all) * size,
            log: log::bytes_in_use(connection, size),
            counted_at: Instant::now(),
        }
    }
}

fn length(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |file| file.len())
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::metadata(path).ok().map(|file| (file.dev(), file.ino()))
}

/// Free space of a directory's file system, in bytes.
fn available(directory: &Path) -> u64 {
    rustix::fs::statvfs(directory)
        .map_or(0, |file_system| file_system.f_bavail.saturating_mul(file_system.f_frsize))
}
