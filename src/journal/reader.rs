//! A journal for one who only looks: beside the process that has it, or after its end.
//!
//! Nothing is written, nothing is locked, and the process that has the journal notices nothing: a
//! transaction of a reader keeps its log from becoming shorter, so each is over before anybody waits
//! for what was read to be taken. Between two of them entries come, move and go.

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags, Row};

use super::rows::{COLUMNS, Raw};
use super::{Recovered, files, image, schema, tickets};
use crate::model::{Entry, Feed, Pace, PageId, Timestamp};

/// Findings of SQLite about a broken structure that are told at most.
const FINDINGS: usize = 20;

/// Entries that are read in one transaction at most …
const BATCH: usize = 256;

/// … and bytes of their bodies, but for the last.
const BATCH_BYTES: u64 = 4 * 1024 * 1024;

/// A journal that is open for reading.
#[derive(Debug)]
pub struct Reader {
    connection: Connection,
    data_dir: PathBuf,
    path: PathBuf,
    version: i64,
}

/// An entry as it lies in the journal.
#[derive(Debug)]
pub struct Seen {
    /// What becomes of it.
    pub state: State,
    /// Its name, as far as it can be read.
    pub name: String,
    /// The size of its body.
    pub bytes: u64,
    /// What it says, where its checksum holds.
    pub entry: Option<Entry>,
}

/// What becomes of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It waits to be forwarded.
    Waiting,
    /// It waits for earlier pages of its feed.
    Held,
    /// Its checksum does not hold, and nobody has met it yet.
    Damaged,
    /// Its checksum does not hold; it is kept and not processed.
    SetAside,
}

/// A request that is out, or was when its process ended.
#[derive(Debug)]
pub struct Out {
    /// The name that its page will have.
    pub id: PageId,
    /// Who is asked.
    pub feed: Feed,
    /// Since when.
    pub asked_at: Timestamp,
}

/// What became of a verification.
#[derive(Debug, Default)]
pub struct Verdict {
    /// What SQLite finds wrong.
    pub structure: Vec<String>,
    /// Names of entries whose checksum does not hold.
    pub damaged: Vec<String>,
    /// Names that several entries have.
    pub twice: Vec<String>,
    /// Requests that have a page already and are still out.
    pub settled: Vec<String>,
    /// Entries that are as they were written.
    pub sound: u64,
    /// Requests that are out.
    pub out: u64,
    /// Entries that were found damaged earlier.
    pub set_aside: u64,
}

/// Why a journal can't be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// There is none.
    #[error("there is no journal in `{}`; name its data directory with --data-dir, or the configuration with --config", .0.display())]
    Missing(PathBuf),
    /// A newer version of this program wrote it.
    #[error("journal `{}` has version {version}, newer than this program reads ({}); use at least the version that wrote it", .path.display(), schema::VERSION)]
    Newer {
        /// Which.
        path: PathBuf,
        /// Its version.
        version: i64,
    },
    /// It can't be read.
    #[error("read the journal `{}`", .path.display())]
    Database {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        cause: rusqlite::Error,
    },
}

// === impl Reader ===

impl Reader {
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

    /// Gives every entry, in the order in which they are forwarded; what is held and what is set
    /// aside comes last. What is released meanwhile may be passed over.
    pub fn each(&self, mut take: impl FnMut(Seen) -> ControlFlow<()>) -> Result<(), ReadError> {
        for (place, condition, state) in [
            ("sequence", "FROM entries WHERE sequence > ? ORDER BY sequence", State::Waiting),
            ("-sequence", "FROM entries WHERE sequence < -? ORDER BY sequence DESC", State::Held),
            ("rowid", "FROM damaged WHERE rowid > ? ORDER BY rowid", State::SetAside),
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

    /// Entries behind `last`, which becomes the place of the last one: as many as a moment allows.
    fn batch(&self, select: &str, last: &mut i64, state: State) -> Result<Vec<Seen>, ReadError> {
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

    /// The entry of this name, and its body; where it is damaged, the page and not the gap in its
    /// place.
    pub fn find(&self, id: PageId) -> Result<Option<(Seen, Vec<u8>)>, ReadError> {
        let name = (id.incarnation.to_string(), id.ticket.0.cast_signed());
        let mut found = None;
        for (table, state) in [("entries", State::Waiting), ("damaged", State::SetAside)] {
            let select =
                format!("SELECT {COLUMNS} FROM {table} WHERE incarnation = ? AND ticket = ?");
            let mut statement = self.connection.prepare(&select).map_err(self.failed())?;
            let mut rows = statement.query((&name.0, name.1)).map_err(self.failed())?;
            while let Some(row) = rows.next().map_err(self.failed())? {
                let is_held = row.get::<_, i64>("sequence").is_ok_and(|sequence| sequence < 0);
                let held = is_held && state == State::Waiting;
                let seen = self.seen(row, if held { State::Held } else { state });
                found = Some((seen, row.get("body").map_err(self.failed())?));
            }
        }
        Ok(found)
    }

    /// Requests that are out, oldest first.
    pub fn out(&self) -> Result<Vec<Out>, ReadError> {
        let open = tickets::open(&self.connection).map_err(self.failed())?;
        let out =
            |it: tickets::Killed| Out { id: it.place.id(), feed: it.feed, asked_at: it.asked_at };
        Ok(open.into_iter().map(out).collect())
    }

    /// How fast feeds fill, and when that was known, in the order of their names.
    pub fn paces(&self) -> Result<Vec<(Feed, Pace, Timestamp)>, ReadError> {
        let mut recovered = Recovered::default();
        // Version 1 knew of no paces.
        if self.version > 1 {
            tickets::recall(&self.connection, &mut recovered).map_err(self.failed())?;
        }
        let mut paces: Vec<_> =
            recovered.paces.into_iter().map(|(feed, (pace, at))| (feed, pace, at)).collect();
        paces.sort_by(|one, other| one.0.cmp(&other.0));
        Ok(paces)
    }

    /// How many entries there are, those set aside included.
    pub fn count(&self) -> Result<u64, ReadError> {
        let count = "SELECT (SELECT count(*) FROM entries) + (SELECT count(*) FROM damaged)";
        let count = self.connection.query_row(count, [], |row| row.get::<_, i64>(0));
        count.map(i64::unsigned_abs).map_err(self.failed())
    }

    /// Its version, and bytes of its files.
    pub fn version_and_bytes(&self) -> (i64, u64) {
        let length = |path: &Path| fs::metadata(path).map_or(0, |file| file.len());
        (self.version, length(&self.path) + length(&files::log_of(&self.path)))
    }

    /// Databases that were replaced and are kept beside it.
    pub fn kept(&self) -> Vec<PathBuf> {
        files::kept(&self.data_dir)
    }

    /// Checks everything. `step` is called for each entry.
    pub fn verify(&self, mut step: impl FnMut()) -> Result<Verdict, ReadError> {
        let mut verdict = Verdict { structure: self.structure()?, ..Verdict::default() };
        let mut names = std::collections::HashSet::new();
        self.each(|seen| {
            step();
            match seen.state {
                State::SetAside => verdict.set_aside += 1,
                State::Damaged => verdict.damaged.push(seen.name),
                State::Waiting | State::Held => {
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
        // While somebody writes, its end is in motion.
        if files::holder(&self.data_dir).is_none()
            && !image::is_sound_to_its_end(&files::log_of(&self.path)).unwrap_or(false)
        {
            found.push("the write-ahead log is damaged: what follows is not read".to_owned());
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

    fn seen(&self, row: &Row<'_>, state: State) -> Seen {
        let text = |column| row.get::<_, String>(column).unwrap_or_else(|_| "?".to_owned());
        let ticket =
            row.get::<_, i64>("ticket").map_or_else(|_| "?".to_owned(), |it| it.to_string());
        let bytes = row.get_ref("body").ok().and_then(|body| body.as_bytes().ok().map(<[u8]>::len));
        let name = format!("{}/{ticket}", text("incarnation"));
        let raw =
            Raw::read(row).map(|raw| if self.version < 3 { raw.of_this_version() } else { raw });
        let entry = raw.filter(Raw::is_sound).and_then(Raw::entry);
        let state = match state {
            State::Waiting | State::Held if entry.is_none() => State::Damaged,
            state => state,
        };
        Seen { state, name, bytes: bytes.unwrap_or(0) as u64, entry }
    }

    fn failed(&self) -> impl Fn(rusqlite::Error) -> ReadError + use<> {
        let path = self.path.clone();
        move |cause| ReadError::Database { path: path.clone(), cause }
    }
}

// === impl State ===

impl State {
    /// In a word.
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

impl Verdict {
    /// Whether nothing is damaged but what is set aside already.
    pub fn is_sound(&self) -> bool {
        self.structure.is_empty()
            && self.damaged.is_empty()
            && self.twice.is_empty()
            && self.settled.is_empty()
    }
}

/// Without a log, and a process that may write one, nothing has to be made beside the database, which
/// may be somebody else's or on a medium that can't be written to.
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
