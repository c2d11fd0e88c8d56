//! Records that requests may be missing from the journal, until the gaps for them are durable.
//!
//! A start detects this after a power loss or a lost file. The evidence (the lock, and missing or
//! damaged files) is gone once that start has repaired it, and a start can fail for many reasons
//! before it publishes anything. So the doubt is a row of the journal, and the transaction that
//! stores the gaps deletes it.

use rusqlite::Connection;

use crate::model::Timestamp;

/// Records that requests sent before `until` may be missing.
pub(super) fn note(connection: &Connection, until: Timestamp) -> rusqlite::Result<()> {
    let until = read(connection)?.map_or(until, |known| known.max(until));
    settle(connection)?;
    connection.execute("INSERT INTO doubt (until) VALUES (?)", [until.as_millis()]).map(drop)
}

/// The time before which requests may have been sent without a record; `None` if there is no doubt.
pub(super) fn read(connection: &Connection) -> rusqlite::Result<Option<Timestamp>> {
    let query = "SELECT max(until) FROM doubt";
    let until = connection.query_row(query, [], |row| row.get::<_, Option<i64>>(0))?;
    Ok(until.map(Timestamp::from_millis))
}

/// Removes the doubt: its gaps are stored.
pub(super) fn settle(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute("DELETE FROM doubt", []).map(drop)
}
