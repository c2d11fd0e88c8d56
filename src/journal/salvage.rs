//! Copies everything readable from a database into a new one.
//!
//! First it copies everything that SQLite reads. Then, unless that is known to be complete, it
//! searches the bytes of the files for entries ([`Image`]). An entry that is copied twice is
//! forwarded twice, and recognised as a repeat; an entry that is not copied is lost. So in case of
//! doubt, it copies.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use rusqlite::types::ValueRef;
use rusqlite::{Connection, ErrorCode, Row, params_from_iter};

use super::image::{ColumnValue, Image, Record};
use super::rows::Raw;
use super::{Sequence, rows};
use crate::model::{Feed, PageId};

/// What memory knows about a database that was in use until now.
#[derive(Debug, Default)]
pub(super) struct KnownInMemory {
    /// Rows that are still needed, with the names of their entries.
    pub(super) rows: BTreeMap<Sequence, PageId>,
    /// The rows by name.
    pub(super) by_id: HashMap<PageId, Sequence>,
}

/// The result of copying.
#[derive(Debug)]
pub(super) struct Carried {
    /// Rows in the new database.
    pub(super) rows: BTreeSet<Sequence>,
    /// Whether everything in the old database was readable. If not, records of requests may be
    /// missing, too.
    pub(super) whole: bool,
    /// Number of entries per feed that memory knows but that were unreadable; gaps replace them.
    pub(super) lost: BTreeMap<Arc<Feed>, u64>,
    /// Unreadable entries whose feed is unknown, so that they can't be replaced by a gap.
    pub(super) nameless: Vec<Sequence>,
}

/// Copies entries into the new database.
struct Carrier<'a> {
    new: &'a Connection,
    known: Option<&'a KnownInMemory>,
    ids: HashSet<PageId>,
    carried: Carried,
}

/// Copies everything, or only the needed rows if `known` is given. Errors are those of `new`.
pub(super) fn carry(
    old: Option<&Connection>,
    (database, log): (&Path, &Path),
    new: &Connection,
    known: Option<&KnownInMemory>,
) -> rusqlite::Result<Carried> {
    let (rows, lost, nameless) = (BTreeSet::new(), BTreeMap::new(), Vec::new());
    let carried = Carried { rows, whole: true, lost, nameless };
    let mut carrier = Carrier { new, known, ids: HashSet::new(), carried };
    let entries_are_whole = match old {
        Some(old) => carrier.read_all(old)?,
        None => false,
    };
    carrier.carried.whole &= entries_are_whole;
    // At a start, the expected contents are unknown, and a damaged file may hide entries from
    // SQLite.
    if (!entries_are_whole || known.is_none())
        && let Ok(image) = Image::open(database, log)
    {
        carrier.search(&image)?;
    }
    Ok(carrier.carried)
}

// === impl Carrier ===

impl Carrier<'_> {
    /// Copies what SQLite reads. Returns whether it could read all entries.
    fn read_all(&mut self, old: &Connection) -> rusqlite::Result<bool> {
        let new = self.new;
        let entries =
            format!("SELECT {} FROM entries NOT INDEXED ORDER BY sequence", rows::COLUMNS);
        let entries_are_whole = each_row(old, &entries, |row| self.entry(row))?;
        let mut others_are_whole =
            each_row(old, "SELECT * FROM damaged", |row| set_aside(new, row))?;
        for table in ["open_tickets", "requests", "feeds"] {
            // The process that used the file knows better which requests are in flight.
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
            // The row's earlier content: the disk never stored the page that replaced it.
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
            // Two rows with the same number: the structure is corrupt.
            Err(error) if is_constraint(&error) => set_aside(self.new, row),
            Err(error) => Err(error),
        }
    }

    /// Searches the bytes for entries.
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

    /// Copies an entry found in the bytes, unless it was copied already.
    fn found(&mut self, mut raw: Raw) -> rusqlite::Result<()> {
        let Some(id) = raw.id().filter(|id| !self.ids.contains(id)) else { return Ok(()) };
        if let Some(known) = self.known {
            let Some(row) = known.by_id.get(&id) else { return Ok(()) };
            raw.row = *row;
            // SQLite read an entry with another name there: that one is damaged, this one is not.
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

/// Calls `take` for each readable row. Returns whether all rows were readable.
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

/// Copies a row to a table with the same columns. Skips it if the table refuses it.
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

/// Copies a row unchanged to the table of damaged entries, which is not forwarded.
fn set_aside(new: &Connection, row: &Row<'_>) -> rusqlite::Result<()> {
    copy(new, "damaged", row)
}

/// The values of all columns. Invalid UTF-8 text becomes a blob.
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

/// Converts a record to an entry, if it is an intact one.
fn entry_of(record: Record) -> Option<Raw> {
    let columns: [ColumnValue; 10] = record.values.try_into().ok()?;
    let [
        // The row id replaces the first column.
        ColumnValue::Null,
        ColumnValue::Integer(partition),
        ColumnValue::Text(incarnation),
        ColumnValue::Integer(ticket),
        ColumnValue::Text(app),
        ColumnValue::Text(region),
        ColumnValue::Text(endpoint),
        ColumnValue::Text(head),
        ColumnValue::Blob(body),
        ColumnValue::Integer(checksum),
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
