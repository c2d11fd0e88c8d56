//! The tables of the journal, and the migration from older versions.
//!
//! If you change the tables, raise [`VERSION`], add the migration from the previous version to
//! [`prepare`], and add a dump of a journal written by the previous version as
//! `tests/fixtures/journal-version-N.sql`, with a waiting page, a request that was in flight, and
//! recorded feeds. A test opens each of them.
//!
//! | version | change |
//! |---|---|
//! | 2 | a feed has a pace, a page may be held |
//! | 3 | the checksum of an entry covers its partition, too |
//! | 4 | a doubt stays on record until the gaps for it are stored; a page may be encoded |

use rusqlite::Connection;

use super::rows;

/// The version of the tables; stored as `PRAGMA user_version`.
pub(super) const VERSION: i64 = 4;

/// Length in bytes to which the log's file is cut when SQLite restarts it: twice its length when
/// nothing delays copying it into the database.
const LONG_LOG: i64 = 32 * 1024 * 1024;

/// A held entry has a negative sequence until it is released, so readers don't find it.
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

/// One row if records of requests sent before its time may be missing.
const DOUBT: &str = "CREATE TABLE doubt (until INTEGER NOT NULL) STRICT;";

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

/// Configures a connection. Required for each connection that writes.
pub(super) fn configure(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    // The log grows to 16 MiB before it is copied into the database.
    connection.pragma_update(None, "wal_autocheckpoint", 4_096)?;
    // A log that grew because of a reader is cut when SQLite restarts it.
    connection.pragma_update(None, "journal_size_limit", LONG_LOG)
}

/// The version of the tables; 0 if there are none.
pub(super) fn version(connection: &Connection) -> rusqlite::Result<i64> {
    connection.pragma_query_value(None, "user_version", |row| row.get(0))
}

/// A random number that distinguishes the database from others; 0 if it was never set.
pub(super) fn mark(connection: &Connection) -> rusqlite::Result<i64> {
    connection.pragma_query_value(None, "application_id", |row| row.get(0))
}

/// Creates the tables, or migrates those of an older version, in one transaction. Must not be
/// called for a newer version.
pub(super) fn prepare(connection: &Connection) -> rusqlite::Result<()> {
    let version = version(connection)?;
    if version == VERSION {
        return Ok(());
    }
    let transaction = connection.unchecked_transaction()?;
    match version {
        0 => transaction.execute_batch(TABLES)?,
        1 => transaction.execute_batch(FROM_1)?,
        _ => {}
    }
    if (1..3).contains(&version) {
        rows::renew_checksums(&transaction)?;
    }
    transaction.execute_batch(DOUBT)?;
    transaction.pragma_update(None, "user_version", VERSION)?;
    // The mark identifies a log of another database, which SQLite would not notice. An existing
    // mark stays: until this transaction is copied from the log into the file, the file contains
    // the old one.
    if mark(&transaction)? == 0 {
        transaction.pragma_update(None, "application_id", rand::random::<i32>())?;
    }
    transaction.commit()
}
