//! The write-ahead log: how much of it is in use, and how its file is shortened.
//!
//! SQLite restarts a log from its beginning once the whole log is copied into the database and no
//! reader needs it. Until then, every transaction makes it grow, as long as a single reader has an
//! open transaction. So the size that counts is that of the page images in use, not the length of
//! the file. If that leaves no room, the log is emptied as soon as it has no reader.

use std::time::Duration;

use rusqlite::Connection;
use tokio::time::Instant;
use tracing::warn;

use super::{Database, is_full};
use crate::error::Chain;

/// Size in use, in bytes, above which the log isn't copied into the database as it should be.
pub(super) const LARGE: u64 = 64 * 1024 * 1024;

/// Size in use, in bytes, below which emptying the log is not worthwhile.
const SMALL: u64 = 1024 * 1024;

/// Pause after the log could not be emptied: a full disk would make every attempt fail.
const AFTER_FAILURE: Duration = Duration::from_secs(10);

/// Time that SQLite waits for a lock held by another process; the default of rusqlite.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);

/// Size of the header of each page image, in bytes.
const FRAME_HEADER: u64 = 24;

// === impl Database ===

impl Database {
    /// Size of the log in use, in bytes, as last counted.
    pub(in crate::journal) fn bytes_in_log(&self) -> u64 {
        self.pages.map_or(0, |pages| pages.log)
    }

    /// Empties the log if that is possible at once; doesn't wait for readers. Returns whether it is
    /// shorter now.
    pub(in crate::journal) fn shorten_log(&mut self) -> bool {
        let failed = self.log_failed.is_some_and(|failed| failed.elapsed() < AFTER_FAILURE);
        let is_small = self.bytes_in_log() < SMALL;
        if self.files.is_none() || self.is_distrusted() || is_small || failed {
            return false;
        }
        let before = self.bytes_in_log();
        let emptied = self.connection().and_then(|connection| {
            connection.busy_timeout(Duration::ZERO)?;
            let emptied = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
            connection.busy_timeout(LOCK_TIMEOUT)?;
            emptied
        });
        if let Err(cause) = emptied {
            self.log_failed = Some(Instant::now());
            self.not_copied(&cause);
        }
        self.pages = None;
        self.weigh();
        self.bytes_in_log() < before
    }

    /// SQLite copies its log into the database on its own, but reports no failure.
    pub(super) fn look_at_log(&mut self, in_use: u64) {
        if in_use <= self.look_at_log {
            if in_use <= LARGE {
                self.look_at_log = LARGE;
            }
            return;
        }
        self.look_at_log = in_use + LARGE / 4;
        let copied = self.connection().and_then(|connection| {
            connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))
        });
        if let Err(cause) = copied {
            self.not_copied(&cause);
        }
    }

    fn not_copied(&mut self, cause: &rusqlite::Error) {
        warn!(error = %Chain(cause), "failed to copy the journal's log into the database");
        if is_full(cause) {
            self.give_up_ballast();
        }
        self.met(cause);
    }
}

/// Size of the log in use, in bytes; anything behind it is left over from a longer log. The pages
/// of the database have `page_size` bytes.
pub(super) fn bytes_in_use(connection: &Connection, page_size: u64) -> u64 {
    let frames = connection
        .query_row("PRAGMA wal_checkpoint(NOOP)", [], |row| row.get::<_, i64>(1))
        // Without a log, it is -1.
        .map_or(0, |frames| u64::try_from(frames).unwrap_or(0));
    frames * (page_size + FRAME_HEADER)
}
