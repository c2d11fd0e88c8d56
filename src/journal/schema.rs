//! The tables of the journal, and how those of an older version become them.
//!
//! Whoever changes them raises [`VERSION`], adds the step from the version before to [`prepare`], and
//! keeps a dump of a journal that the version before wrote as
//! `tests/fixtures/journal-version-N.sql`: with a page that waits, a request that was out, and what
//! is known of feeds. A test opens each of them.
//!
//! | version | what changed |
//! |---|---|
//! | 2 | a feed has a pace, a page may be held |
//! | 3 | the checksum of an entry covers its partition, too |
//! | 4 | a doubt stays on record until its gaps are; a page may be encoded |

use rusqlite::Connection;

use super::rows;

/// The version of the tables; `PRAGMA user_version`.
pub(super) const VERSION: i64 = 4;

/// The log's file is cut to this length in bytes when it begins anew: twice what it grows to where
/// nobody hinders its copying into the database.
const LONG_LOG: i64 = 32 * 1024 * 1024;

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

/// One row where records of requests may be missing: of requests that left before its moment.
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

/// Says how the database is to be used. Has to be said on each connection that writes.
pub(super) fn configure(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    // 16 MiB of log before it is copied into the database.
    connection.pragma_update(None, "wal_autocheckpoint", 4_096)?;
    // A log that grew while somebody read it is cut when it begins anew.
    connection.pragma_update(None, "journal_size_limit", LONG_LOG)
}

/// The version of the tables; 0 where there are none.
pub(super) fn version(connection: &Connection) -> rusqlite::Result<i64> {
    connection.pragma_query_value(None, "user_version", |row| row.get(0))
}

/// What tells the database from every other one; 0 where it was never marked.
pub(super) fn mark(connection: &Connection) -> rusqlite::Result<i64> {
    connection.pragma_query_value(None, "application_id", |row| row.get(0))
}

/// Makes the tables, or makes those of an older version ours, in one transaction. A newer version
/// must not come here.
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
    // A log of another database shows by its mark: SQLite would not know. One that is there stays:
    // until this is copied into the file, the file has the old one.
    if mark(&transaction)? == 0 {
        transaction.pragma_update(None, "application_id", rand::random::<i32>())?;
    }
    transaction.commit()
}
