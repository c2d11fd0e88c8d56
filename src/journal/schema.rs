//! The tables of the journal, and how those of an older version become them.

use rusqlite::Connection;

/// The version of the tables; `PRAGMA user_version`.
pub(super) const VERSION: i64 = 2;

/// A held entry has a sequence below zero until it is released: nobody who reads forward finds it.
const TABLES: &str = "
CREATE TABLE entries (
    sequence INTEGER PRIMARY KEY, partition INTEGER NOT NULL,
    incarnation TEXT NOT NULL, ticket INTEGER NOT NULL,
    app TEXT NOT NULL, region TEXT NOT NULL, endpoint TEXT NOT NULL,
    head TEXT NOT NULL, body BLOB NOT NULL, checksum INTEGER NOT NULL
) STRICT;
CREATE INDEX entries_by_partition ON entries (partition, sequence);
CREATE TABLE open_tickets (
    incarnation TEXT NOT NULL, partition INTEGER NOT NULL, ticket INTEGER NOT NULL,
    app TEXT NOT NULL, region TEXT NOT NULL, endpoint TEXT NOT NULL,
    since INTEGER, asked_at INTEGER NOT NULL,
    PRIMARY KEY (incarnation, partition, ticket)
) STRICT, WITHOUT ROWID;
CREATE TABLE feeds (
    app TEXT NOT NULL, region TEXT NOT NULL, endpoint TEXT NOT NULL,
    empty_at INTEGER, events_per_second REAL, burst REAL, paced_at INTEGER,
    PRIMARY KEY (app, region, endpoint)
) STRICT, WITHOUT ROWID;
CREATE TABLE requests (
    app TEXT NOT NULL, slot INTEGER NOT NULL,
    number INTEGER NOT NULL, asked_at INTEGER NOT NULL, PRIMARY KEY (app, slot)
) STRICT, WITHOUT ROWID;
CREATE TABLE damaged AS SELECT * FROM entries WHERE false;
";

/// From version 1: a feed may have a pace before it was ever seen empty.
const FROM_1: &str = "
ALTER TABLE feeds RENAME TO feeds_1;
CREATE TABLE feeds (
    app TEXT NOT NULL, region TEXT NOT NULL, endpoint TEXT NOT NULL,
    empty_at INTEGER, events_per_second REAL, burst REAL, paced_at INTEGER,
    PRIMARY KEY (app, region, endpoint)
) STRICT, WITHOUT ROWID;
INSERT INTO feeds (app, region, endpoint, empty_at)
    SELECT app, region, endpoint, empty_at FROM feeds_1;
DROP TABLE feeds_1;
";

/// Sets the database up. Gives the version that it had, 0 where it was new; a newer one is left as
/// it is.
pub(super) fn prepare(connection: &Connection) -> rusqlite::Result<i64> {
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    // 16 MiB of log before it is copied into the database.
    connection.pragma_update(None, "wal_autocheckpoint", 4_096)?;
    let version = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let steps = match version {
        0 => TABLES,
        1 => FROM_1,
        _ => return Ok(version),
    };
    let transaction = connection.unchecked_transaction()?;
    transaction.execute_batch(steps)?;
    transaction.pragma_update(None, "user_version", VERSION)?;
    transaction.commit()?;
    Ok(version)
}
