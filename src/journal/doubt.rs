//! The doubt whether every request is on record, until its gaps are durable.
//!
//! Found by a start, after a loss of power or of a file. What tells of it (the lock, files that are
//! missing or damaged) is gone once that start has mended it, and a start may fail for many reasons
//! before anything is published. So the doubt is a row of the journal; the transaction that stores
//! its gaps deletes it.

use rusqlite::Connection;

use crate::model::Timestamp;

/// Puts on record that requests which left before `until` may be missing.
pub(super) fn note(connection: &Connection, until: Timestamp) -> rusqlite::Result<()> {
    let until = read(connection)?.map_or(until, |known| known.max(until));
    settle(connection)?;
    connection.execute("INSERT INTO doubt (until) VALUES (?)", [until.as_millis()]).map(drop)
}

/// Until when requests may have left that are not on record; `None` without a doubt.
pub(super) fn read(connection: &Connection) -> rusqlite::Result<Option<Timestamp>> {
    let query = "SELECT max(until) FROM doubt";
    let until = connection.query_row(query, [], |row| row.get::<_, Option<i64>>(0))?;
    Ok(until.map(Timestamp::from_millis))
}

/// Its gaps are stored.
pub(super) fn settle(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute("DELETE FROM doubt", []).map(drop)
}
