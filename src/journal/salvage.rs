//! Carries what can be read of a database into a new one.
//!
//! First everything that SQLite reads. Then, unless that was all that is known to be there, records
//! of entries are looked for in the bytes of the files ([`Image`]). An entry that is carried twice is
//! an entry that is forwarded twice, and recognised; an entry that is not carried is lost. So what
//! is in doubt is carried.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use rusqlite::types::ValueRef;
use rusqlite::{Connection, ErrorCode, Row, params_from_iter};

use super::image::{Image, Record, Value};
use super::rows::Raw;
use super::{Sequence, rows};
use crate::model::{Feed, PageId};

/// What memory knows of a database that it used until now.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// Rows that are still wanted, with the names of their entries.
    pub(super) rows: BTreeMap<Sequence, PageId>,
    /// The rows of these names.
    pub(super) by_id: HashMap<PageId, Sequence>,
}

/// What was carried.
#[derive(Debug)]
pub(super) struct Carried {
    /// Rows of the new database.
    pub(super) rows: BTreeSet<Sequence>,
    /// Everything in the old one could be read. If not, records of requests may be missing, too.
    pub(super) whole: bool,
    /// Entries that memory knows and that could not be read, by feed: a gap has taken their place.
    pub(super) lost: BTreeMap<Arc<Feed>, u64>,
    /// The same, where the feed is not known: no gap can be told.
    pub(super) nameless: Vec<Sequence>,
}

/// Where it is carried to.
struct Carrier<'a> {
    new: &'a Connection,
    known: Option<&'a Known>,
    ids: HashSet<PageId>,
    carried: Carried,
}

/// Carries everything, or what is wanted of it where that is known. Errors are those of `new`.
pub(super) fn carry(
    old: Option<&Connection>,
    (database, log): (&Path, &Path),
    new: &Connection,
    known: Option<&Known>,
) -> rusqlite::Result<Carried> {
    let (rows, lost, nameless) = (BTreeSet::new(), BTreeMap::new(), Vec::new());
    let carried = Carried { rows, whole: true, lost, nameless };
    let mut carrier = Carrier { new, known, ids: HashSet::new(), carried };
    let entries_are_whole = match old {
        Some(old) => carrier.read_all(old)?,
        None => false,
    };
    carrier.carried.whole &= entries_are_whole;
    // At a start nobody knows what should be there, and a damaged file may hide it from SQLite.
    if (!entries_are_whole || known.is_none())
        && let Ok(image) = Image::open(database, log)
    {
        carrier.search(&image)?;
    }
    Ok(carrier.carried)
}

// === impl Carrier ===

impl Carrier<'_> {
    /// Takes what SQLite reads; whether that was all entries.
    fn read_all(&mut self, old: &Connection) -> rusqlite::Result<bool> {
        let new = self.new;
        let entries =
            format!("SELECT {} FROM entries NOT INDEXED ORDER BY sequence", rows::COLUMNS);
        let entries_are_whole = each_row(old, &entries, |row| self.entry(row))?;
        let mut others_are_whole =
            each_row(old, "SELECT * FROM damaged", |row| set_aside(new, row))?;
        for table in ["open_tickets", "requests", "feeds"] {
            // Which requests are out, a process that used the file knows better.
            if table == "open_tickets" && self.known.is_some() {
                continue;
            }
            let select = format!("SELECT * FROM {table}");
            others_are_whole &= each_row(old, &select, |row| copy(new, table, row))?;
        }
        self.carried.whole &= others_are_whole;
        Ok(entries_are_whole)
    }

    fn entry(&mut self, row: &Row<'_>) -> rusqlite::Result<()> {
        let Some(raw) = Raw::read(row) else { return set_aside(self.new, row) };
        let raw = raw.of_this_version();
        if let Some(known) = self.known {
            let Some(id) = known.rows.get(&raw.row) else { return Ok(()) };
            // What was written there before, of a page that the disk never took.
            if raw.is_sound() && raw.id() != Some(*id) {
                return set_aside(self.new, row);
            }
        }
        match raw.store(self.new) {
            Ok(()) => {
                self.ids.extend(raw.id());
                self.carried.rows.insert(raw.row);
                Ok(())
            }
            // Two rows of one number: the structure above them is broken.
            Err(error) if is_constraint(&error) => set_aside(self.new, row),
            Err(error) => Err(error),
        }
    }

    /// Looks for entries in the bytes.
    fn search(&mut self, image: &Image) -> rusqlite::Result<()> {
        let mut outcome = Ok(());
        image.each_record(|record| {
            if outcome.is_ok()
                && let Some(raw) = entry_of(record)
            {
                outcome = self.found(raw);
            }
        });
        outcome
    }

    /// Takes an entry that was found in the bytes, unless it is here already.
    fn found(&mut self, mut raw: Raw) -> rusqlite::Result<()> {
        let Some(id) = raw.id().filter(|id| !self.ids.contains(id)) else { return Ok(()) };
        if let Some(known) = self.known {
            let Some(row) = known.by_id.get(&id) else { return Ok(()) };
            raw.row = *row;
            // What SQLite read there has another name: it is damaged, and this is not.
            rows::delete(self.new, raw.row)?;
        } else if self.carried.rows.contains(&raw.row) {
            let last = self.carried.rows.last().map_or(0, |last| last.0.max(0));
            raw.row = Sequence(last + 1);
        }
        raw.store(self.new)?;
        self.ids.insert(id);
        self.carried.rows.insert(raw.row);
        Ok(())
    }
}

/// Calls `take` for each row that can be read; whether it came to the end.
fn each_row(
    old: &Connection,
    select: &str,
    mut take: impl FnMut(&Row<'_>) -> rusqlite::Result<()>,
) -> rusqlite::Result<bool> {
    let Ok(mut statement) = old.prepare(select) else { return Ok(false) };
    let Ok(mut rows) = statement.query([]) else { return Ok(false) };
    loop {
        match rows.next() {
            Ok(Some(row)) => take(row)?,
            Ok(None) => return Ok(true),
            Err(_) => return Ok(false),
        }
    }
}

/// Copies a row of a table whose columns are the same. One that the table refuses is left out.
fn copy(new: &Connection, table: &str, row: &Row<'_>) -> rusqlite::Result<()> {
    let names = row.as_ref().column_names().join(", ");
    let values = values_of(row)?;
    let marks = vec!["?"; values.len()].join(", ");
    let insert = format!("INSERT INTO {table} ({names}) VALUES ({marks})");
    match new.prepare_cached(&insert)?.execute(params_from_iter(values)) {
        Err(error) if is_constraint(&error) => Ok(()),
        outcome => outcome.map(drop),
    }
}

/// Keeps a row as it is, where nobody reads forward.
fn set_aside(new: &Connection, row: &Row<'_>) -> rusqlite::Result<()> {
    copy(new, "damaged", row)
}

/// All columns, whatever they hold. Text that is none becomes bytes.
fn values_of(row: &Row<'_>) -> rusqlite::Result<Vec<rusqlite::types::Value>> {
    let columns = row.as_ref().column_count();
    (0..columns)
        .map(|column| {
            let value = row.get_ref(column)?;
            Ok(match value {
                ValueRef::Text(text) => match std::str::from_utf8(text) {
                    Ok(text) => text.to_owned().into(),
                    Err(_) => text.to_vec().into(),
                },
                ValueRef::Null => rusqlite::types::Value::Null,
                ValueRef::Integer(number) => number.into(),
                ValueRef::Real(number) => number.into(),
                ValueRef::Blob(bytes) => bytes.to_vec().into(),
            })
        })
        .collect()
}

/// The entry that a record is, if it is one and sound.
fn entry_of(record: Record) -> Option<Raw> {
    let columns: [Value; 10] = record.values.try_into().ok()?;
    let [
        // The row id stands for the first column.
        Value::Null,
        Value::Integer(partition),
        Value::Text(incarnation),
        Value::Integer(ticket),
        Value::Text(app),
        Value::Text(region),
        Value::Text(endpoint),
        Value::Text(head),
        Value::Blob(body),
        Value::Integer(checksum),
    ] = columns
    else {
        return None;
    };
    let text = |bytes| String::from_utf8(bytes).ok();
    let raw = Raw {
        row: Sequence(record.row),
        partition,
        incarnation: text(incarnation)?,
        ticket,
        app: text(app)?,
        region: text(region)?,
        endpoint: text(endpoint)?,
        head: text(head)?,
        body,
        checksum,
    };
    Some(raw.of_this_version()).filter(Raw::is_sound)
}

fn is_constraint(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(ErrorCode::ConstraintViolation)
}
