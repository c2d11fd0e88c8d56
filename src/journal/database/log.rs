//! The write-ahead log: how much of it is in use, and how its file becomes short again.
//!
//! SQLite writes a log from its beginning again once everything in it is in the database and no
//! reader needs it. Until then it grows, with every transaction, for as long as one reader lingers.
//! So what counts is how many page images are in use, not how long the file once became; and where
//! that leaves no room, the log is emptied as soon as nobody reads it any more.

use std::time::Duration;

use rusqlite::Connection;
use tokio::time::Instant;
use tracing::warn;

use super::{Database, is_full};
use crate::error::Chain;

/// A log with more bytes in use than this is not copied into the database as it should be.
pub(super) const LARGE: u64 = 64 * 1024 * 1024;

/// A log with fewer bytes in use is not worth being emptied.
const SMALL: u64 = 1024 * 1024;

/// A full disk refuses again and again: the log is left in peace for so long after each time.
const AFTER_FAILURE: Duration = Duration::from_secs(10);

/// How long SQLite waits for a lock that another process holds. Its own default in this binding.
const PATIENCE: Duration = Duration::from_secs(5);

/// Bytes in front of each page image.
const FRAME_HEADER: u64 = 24;

// === impl Database ===

impl Database {
    /// Bytes of the log that are in use, as counted last.
    pub(in crate::journal) fn bytes_in_log(&self) -> u64 {
        self.pages.map_or(0, |pages| pages.log)
    }

    /// Empties the log, at once or not at all: a reader that lingers is not waited for. Whether it
    /// is shorter now.
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
            connection.busy_timeout(PATIENCE)?;
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

    /// SQLite copies its log into the database by itself, and is silent where that fails.
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
        warn!(error = %Chain(cause), "the journal's log can't be copied into the database");
        if is_full(cause) {
            self.give_up_ballast();
        }
        self.met(cause);
    }
}

/// Bytes of the log that are in use: what is behind them is left over from a longer one. Pages of
/// the database have `page_size` bytes.
pub(super) fn bytes_in_use(connection: &Connection, page_size: u64) -> u64 {
    let frames = connection
        .query_row("PRAGMA wal_checkpoint(NOOP)", [], |row| row.get::<_, i64>(1))
        // Without a log it is -1.
        .map_or(0, |frames| u64::try_from(frames).unwrap_or(0));
    frames * (page_size + FRAME_HEADER)
}
