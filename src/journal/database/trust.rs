//! Whether a file can be trusted: before it is used, and after an error.

use std::path::Path;
use std::{fs, io};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, ffi};
use tracing::{error, warn};

use super::OpenError;
use crate::error::Chain;
use crate::journal::files::Lock;
use crate::journal::schema;

/// Maximum size of a database that is checked completely before it is used, in bytes; that takes
/// about a second. In a larger one, damage is detected when it is read.
const CHECKED_AT_START: u64 = 256 * 1024 * 1024;

/// Why a file can't be used as it is.
pub(super) enum Unusable {
    Newer(i64),
    Damaged(String),
    Refused(rusqlite::Error),
}

// === impl Unusable ===

impl Unusable {
    pub(super) fn of(cause: rusqlite::Error) -> Self {
        match cause.sqlite_error_code() {
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
                Self::Damaged(Chain(&cause).to_string())
            }
            _ => Self::Refused(cause),
        }
    }

    pub(super) fn into_error(self, path: &Path) -> OpenError {
        let path = path.to_owned();
        match self {
            Self::Newer(version) => OpenError::Newer { path, version },
            Self::Refused(cause) if is_full(&cause) => OpenError::DiskFull { path },
            other => OpenError::Database { path, cause: other.into_cause() },
        }
    }

    pub(super) fn into_cause(self) -> rusqlite::Error {
        let failure =
            |code, text| rusqlite::Error::SqliteFailure(ffi::Error::new(code), Some(text));
        match self {
            Self::Refused(cause) => cause,
            Self::Damaged(reason) => failure(ffi::SQLITE_CORRUPT, reason),
            Self::Newer(version) => failure(ffi::SQLITE_ERROR, format!("it has version {version}")),
        }
    }
}

/// Whether records of requests by the previous process may be missing; logs the reason.
pub(super) fn requests_in_doubt(lock: &Lock, path: &Path, log: &Path) -> bool {
    let Some(before) = &lock.before else { return false };
    if before.in_doubt {
        warn!(%before, "the last start failed before it recorded that requests may be missing");
        return true;
    }
    // A start that failed may have left an empty file.
    let is_empty = |path: &Path| fs::metadata(path).map_or(0, |file| file.len()) == 0;
    if is_empty(path) && is_empty(log) {
        if before.stopped {
            warn!(%before, "the journal is missing; creating a new one");
        } else {
            error!(
                %before,
                "the journal is missing after an unclean shutdown: pages that were not forwarded \
                 are lost"
            );
        }
        return !before.stopped;
    }
    // SQLite deletes its log only at a clean close.
    if !before.stopped && !log.exists() {
        error!(
            %before,
            "the journal's write-ahead log is missing after an unclean shutdown: pages that were \
             only there are lost"
        );
        return true;
    }
    if lock.power_was_lost() {
        warn!(
            %before,
            "unclean shutdown, and the machine has rebooted since: the last records of requests \
             may be missing"
        );
        return true;
    }
    false
}

/// Opens a database such that closing it changes nothing.
pub(super) fn open_untouched(path: &Path) -> rusqlite::Result<Connection> {
    let connection = open_no_link(path)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    connection.pragma_update(None, "cell_size_check", true)?;
    Ok(connection)
}

/// Configures and migrates a database, if it is intact.
pub(super) fn usable(connection: &Connection) -> Result<(), Unusable> {
    let version = schema::version(connection).map_err(Unusable::of)?;
    if version > schema::VERSION {
        return Err(Unusable::Newer(version));
    }
    check(connection)?;
    schema::configure(connection).map_err(Unusable::of)?;
    schema::prepare(connection).map_err(Unusable::of)
}

fn check(connection: &Connection) -> Result<(), Unusable> {
    let ask = |pragma| connection.query_row(pragma, [], |row| row.get::<_, i64>(0));
    let pages = ask("PRAGMA page_count").map_err(Unusable::of)?;
    let size = pages * ask("PRAGMA page_size").map_err(Unusable::of)?;
    if size.unsigned_abs() > CHECKED_AT_START {
        return Ok(());
    }
    let found: String = connection
        .query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))
        .map_err(Unusable::of)?;
    if found == "ok" { Ok(()) } else { Err(Unusable::Damaged(found)) }
}

/// Whether the error means that the disk is full.
pub(super) fn is_full(cause: &rusqlite::Error) -> bool {
    cause.sqlite_error().is_some_and(|code| {
        // SQLite has another code if the index of its log can't grow; the index contains no data.
        code.code == ErrorCode::DiskFull || code.extended_code == ffi::SQLITE_IOERR_SHMSIZE
    })
}

/// The code of an error after which the file can't be trusted.
pub(super) fn proves_nothing(cause: &rusqlite::Error) -> Option<ffi::Error> {
    let code = *cause.sqlite_error().filter(|_| !is_full(cause))?;
    let is_fatal = matches!(
        code.code,
        ErrorCode::SystemIoFailure | ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase
    ) || code.extended_code == ffi::SQLITE_READONLY_DBMOVED;
    is_fatal.then_some(code)
}

/// Converts an I/O error to a database error.
pub(super) fn file_error(cause: &io::Error) -> rusqlite::Error {
    let code = match cause.kind() {
        io::ErrorKind::StorageFull => ffi::SQLITE_FULL,
        _ => ffi::SQLITE_IOERR,
    };
    rusqlite::Error::SqliteFailure(ffi::Error::new(code), Some(cause.to_string()))
}

/// Opens a database; creates it if it is missing. The path to its directory may contain a link, but
/// the file itself must not be one, so that nobody who can create names there can redirect our
/// writes.
pub(super) fn open_no_link(path: &Path) -> rusqlite::Result<Connection> {
    let folder = path.parent().and_then(|folder| fs::canonicalize(folder).ok());
    let real = folder.zip(path.file_name()).map(|(folder, name)| folder.join(name));
    let flags = OpenFlags::default() | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    Connection::open_with_flags(real.as_deref().unwrap_or(path), flags)
}
