//! Read-only access to a journal, while a process uses it or after that process has ended.
//!
//! It writes nothing and takes no lock that the process using the journal would notice. A reader's
//! open transaction would prevent SQLite from shortening the log, so each transaction ends before
//! the caller consumes what was read. Between two of them, entries may appear, move and disappear.

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags, Row};

use super::rows::{COLUMNS, Raw};
use super::{Recovered, files, image, schema, tickets};
use crate::model::{Entry, Feed, Pace, PageId, Timestamp};

/// Maximum number of findings about a corrupt structure.
const FINDINGS: usize = 20;

/// Maximum number of entries per transaction …
const BATCH: usize = 256;

/// … and of bytes of their bodies, which the last one may exceed.
const BATCH_BYTES: u64 = 4 * 1024 * 1024;

/// A journal opened for reading.
#[derive(Debug)]
pub struct JournalReader {
    connection: Connection,
    data_dir: PathBuf,
    path: PathBuf,
    version: i64,
}

/// An entry in the journal.
#[derive(Debug)]
pub struct EntryView {
    /// Its state.
    pub state: EntryState,
    /// Its name, as far as it is readable.
    pub name: String,
    /// Size of its body, in bytes.
    pub bytes: u64,
    /// The entry, if its checksum is correct.
    pub entry: Option<Entry>,
}

/// The state of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryState {
    /// Waits to be forwarded.
    Waiting,
    /// Waits for earlier pages of its feed.
    Held,
    /// Its checksum is wrong, and the bridge has not read it yet.
    Damaged,
    /// Its checksum is wrong; it is kept but not processed.
    SetAside,
}

/// A request that is in flight, or was when its process ended.
#[derive(Debug)]
pub struct Out {
    /// The name that its page will have.
    pub id: PageId,
    /// The feed that is polled.
    pub feed: Feed,
    /// When it was sent.
    pub asked_at: Timestamp,
}

/// The result of a verification.
#[derive(Debug, Default)]
pub struct Verification {
    /// Errors that SQLite reports.
    pub structure: Vec<String>,
    /// Names of entries whose checksum is wrong.
    pub damaged: Vec<String>,
    /// Names that several entries have.
    pub twice: Vec<String>,
    /// Requests that are in flight although they have a page.
    pub settled: Vec<String>,
    /// Number of intact entries.
    pub sound: u64,
    /// Number of requests in flight.
    pub out: u64,
    /// Number of entries that were set aside earlier, because they were damaged.
    pub set_aside: u64,
}

/// Why a journal can't be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// There is no journal.
    #[error("there is no journal in `{}`; specify the data directory with --data-dir, or the configuration with --config", .0.display())]
    Missing(PathBuf),
    /// A newer version of this program wrote it.
    #[error("journal `{}` has version {version}, newer than this program reads ({}); use at least the version that wrote it", .path.display(), schema::VERSION)]
    Newer {
        /// The database.
        path: PathBuf,
        /// Its version.
        version: i64,
    },
    /// An error of the database.
    #[error("read the journal `{}`", .path.display())]
    Database {
        /// The database.
        path: PathBuf,
        /// The cause.
        #[source]
        cause: rusqlite::Error,
    },
}

// === impl JournalReader ===

impl JournalReader {
    /// Opens the journal of a data directory.
    pub fn open(data_dir: &Path) -> Result<Self, ReadError> {
        let path = data_dir.join(files::DATABASE);
        if !path.is_file() {
            return Err(ReadError::Missing(data_dir.to_owned()));
        }
        let failed = |cause| ReadError::Database { path: path.clone(), cause };
        let connection = connect(data_dir, &path).map_err(failed)?;
        let version = schema::version(&connection).map_err(failed)?;
        if version > schema::VERSION {
            return Err(ReadError::Newer { path, version });
        }
        Ok(Self { connection, data_dir: data_dir.to_owned(), path, version })
    }

    /// Calls `take` with each entry, in the order in which they are forwarded; held entries and
    /// those set aside come last. An entry that is released meanwhile may be missed.
    pub fn each(
        &self,
        mut take: impl FnMut(EntryView) -> ControlFlow<()>,
    ) -> Result<(), ReadError> {
        for (place, condition, state) in [
            ("sequence", "FROM entries WHERE sequence > ? ORDER BY sequence", EntryState::Waiting),
            (
                "-sequence",
                "FROM entries WHERE sequence < -? ORDER BY sequence DESC",
                EntryState::Held,
            ),
            ("rowid", "FROM damaged WHERE rowid > ? ORDER BY rowid", EntryState::SetAside),
        ] {
            let select = format!("SELECT {place} AS place, {COLUMNS} {condition}");
            let mut last = 0;
            loop {
                let batch = self.batch(&select, &mut last, state)?;
                if batch.is_empty() {
                    break;
                }
                for seen in batch {
                    if take(seen).is_break() {
                        return Ok(());
                    }
                }
            }
        }
        Ok(())
    }

    /// Reads entries after `last`, as many as one transaction may have, and updates `last`.
    fn batch(
        &self,
        select: &str,
        last: &mut i64,
        state: EntryState,
    ) -> Result<Vec<EntryView>, ReadError> {
        let mut statement = self.connection.prepare_cached(select).map_err(self.failed())?;
        let mut rows = statement.query([*last]).map_err(self.failed())?;
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while batch.len() < BATCH
            && bytes < BATCH_BYTES
            && let Some(row) = rows.next().map_err(self.failed())?
        {
            *last = row.get("place").map_err(self.failed())?;
            let seen = self.seen(row, state);
            bytes += seen.bytes;
            batch.push(seen);
        }
        Ok(batch)
    }

    /// Finds the entry with this name, and its body. If it is damaged, returns the page and not the
    /// gap that replaced it.
    pub fn find(&self, id: PageId) -> Result<Option<(EntryView, Vec<u8>)>, ReadError> {
        let name = (id.incarnation.to_string(), id.ticket.0.cast_signed());
        let mut found = None;
        for (table, state) in [("entries", EntryState::Waiting), ("damaged", EntryState::SetAside)]
        {
            let select =
                format!("SELECT {COLUMNS} FROM {table} WHERE incarnation = ? AND ticket = ?");
            let mut statement = self.connection.prepare(&select).map_err(self.failed())?;
            let mut rows = statement.query((&name.0, name.1)).map_err(self.failed())?;
            while let Some(row) = rows.next().map_err(self.failed())? {
                let is_held = row.get::<_, i64>("sequence").is_ok_and(|sequence| sequence < 0);
                let held = is_held && state == EntryState::Waiting;
                let seen = self.seen(row, if held { EntryState::Held } else { state });
                found = Some((seen, row.get("body").map_err(self.failed())?));
            }
        }
        Ok(found)
    }

    /// The requests in flight, oldest first.
    pub fn out(&self) -> Result<Vec<Out>, ReadError> {
        let open = tickets::open(&self.connection).map_err(self.failed())?;
        let out =
            |it: tickets::Killed| Out { id: it.place.id(), feed: it.feed, asked_at: it.asked_at };
        Ok(open.into_iter().map(out).collect())
    }

    /// The pace of each feed and when it was recorded, ordered by feed.
    pub fn paces(&self) -> Result<Vec<(Feed, Pace, Timestamp)>, ReadError> {
        let mut recovered = Recovered::default();
        // Version 1 had no paces.
        if self.version > 1 {
            tickets::recall(&self.connection, &mut recovered).map_err(self.failed())?;
        }
        let mut paces: Vec<_> =
            recovered.paces.into_iter().map(|(feed, (pace, at))| (feed, pace, at)).collect();
        paces.sort_by(|one, other| one.0.cmp(&other.0));
        Ok(paces)
    }

    /// Number of entries, including those set aside.
    pub fn count(&self) -> Result<u64, ReadError> {
        let count = "SELECT (SELECT count(*) FROM entries) + (SELECT count(*) FROM damaged)";
        let count = self.connection.query_row(count, [], |row| row.get::<_, i64>(0));
        count.map(i64::unsigned_abs).map_err(self.failed())
    }

    /// The version, and the size of the files in bytes.
    pub fn version_and_bytes(&self) -> (i64, u64) {
        let length = |path: &Path| fs::metadata(path).map_or(0, |file| file.len());
        (self.version, length(&self.path) + length(&files::log_of(&self.path)))
    }

    /// The replaced databases that are kept in the same directory.
    pub fn kept(&self) -> Vec<PathBuf> {
        files::kept(&self.data_dir)
    }

    /// Verifies everything. Calls `step` for each entry.
    pub fn verify(&self, mut step: impl FnMut()) -> Result<Verification, ReadError> {
        let mut verdict = Verification { structure: self.structure()?, ..Verification::default() };
        let mut names = std::collections::HashSet::new();
        self.each(|seen| {
            step();
            match seen.state {
                EntryState::SetAside => verdict.set_aside += 1,
                EntryState::Damaged => verdict.damaged.push(seen.name),
                EntryState::Waiting | EntryState::Held => {
                    verdict.sound += 1;
                    if let Some(Entry { id, .. }) = seen.entry
                        && !names.insert(id)
                    {
                        verdict.twice.push(seen.name);
                    }
                }
            }
            ControlFlow::Continue(())
        })?;
        for Out { id, .. } in self.out()? {
            verdict.out += 1;
            if names.contains(&id) {
                verdict.settled.push(id.to_string());
            }
        }
        Ok(verdict)
    }

    fn structure(&self) -> Result<Vec<String>, ReadError> {
        let mut found = Vec::new();
        // While a process writes, the end of the log changes.
        if files::holder(&self.data_dir).is_none()
            && !image::is_sound_to_its_end(&files::log_of(&self.path)).unwrap_or(false)
        {
            found.push(
                "the write-ahead log is damaged: SQLite ignores everything after that".to_owned(),
            );
        }
        let check = format!("PRAGMA integrity_check({FINDINGS})");
        let mut statement = self.connection.prepare(&check).map_err(self.failed())?;
        let lines =
            statement.query_map([], |row| row.get::<_, String>(0)).map_err(self.failed())?;
        for line in lines {
            let line = line.map_err(self.failed())?;
            if line != "ok" {
                found.push(line);
            }
        }
        Ok(found)
    }

    fn seen(&self, row: &Row<'_>, state: EntryState) -> EntryView {
        let text = |column| row.get::<_, String>(column).unwrap_or_else(|_| "?".to_owned());
        let ticket =
            row.get::<_, i64>("ticket").map_or_else(|_| "?".to_owned(), |it| it.to_string());
        let bytes = row.get_ref("body").ok().and_then(|body| body.as_bytes().ok().map(<[u8]>::len));
        let name = format!("{}/{ticket}", text("incarnation"));
        let raw =
            Raw::read(row).map(|raw| if self.version < 3 { raw.of_this_version() } else { raw });
        let entry = raw.filter(Raw::is_sound).and_then(Raw::entry);
        let state = match state {
            EntryState::Waiting | EntryState::Held if entry.is_none() => EntryState::Damaged,
            state => state,
        };
        EntryView { state, name, bytes: bytes.unwrap_or(0) as u64, entry }
    }

    fn failed(&self) -> impl Fn(rusqlite::Error) -> ReadError + use<> {
        let path = self.path.clone();
        move |cause| ReadError::Database { path: path.clone(), cause }
    }
}

// === impl State ===

impl EntryState {
    /// The state as a word.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Held => "held",
            Self::Damaged => "damaged",
            Self::SetAside => "aside",
        }
    }
}

// === impl Verdict ===

impl Verification {
    /// Whether nothing is damaged except what is already set aside.
    pub fn is_sound(&self) -> bool {
        self.structure.is_empty()
            && self.damaged.is_empty()
            && self.twice.is_empty()
            && self.settled.is_empty()
    }
}

/// If there is no log, and no process that may write one, SQLite must not create files next to the
/// database, which may belong to another user or be on a read-only medium.
fn connect(data_dir: &Path, path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let has_log = fs::metadata(files::log_of(path)).is_ok_and(|log| log.len() > 0);
    if has_log || files::is_in_use(data_dir).unwrap_or(false) {
        return Connection::open_with_flags(path, flags);
    }
    let mut url = "file:".to_owned();
    for byte in path.as_os_str().as_encoded_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'-' | b'_' => {
                url.push(char::from(*byte));
            }
            byte => url.push_str(&format!("%{byte:02x}")),
        }
    }
    Connection::open_with_flags(url + "?immutable=1", flags | OpenFlags::SQLITE_OPEN_URI)
}
