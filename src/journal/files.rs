//! The files of a data directory: the lock that makes it one process's, and their rights.

use std::fs::DirBuilder;
use std::fs::File;
use std::fs::OpenOptions;
use std::fs::TryLockError;
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use super::OpenError;

/// Pages are personal data: nobody but the owner reads them.
const FILE_MODE: u32 = 0o600;

/// As [`FILE_MODE`], for the directory.
const DIRECTORY_MODE: u32 = 0o700;

/// Makes the directory where it is missing, and locks it until the file is dropped.
pub(super) fn lock(data_dir: &Path) -> Result<File, OpenError> {
    let failed =
        |operation, path: &Path, cause| OpenError::File { operation, path: path.to_owned(), cause };
    DirBuilder::new()
        .recursive(true)
        .mode(DIRECTORY_MODE)
        .create(data_dir)
        .map_err(|cause| failed("make the data directory", data_dir, cause))?;
    let path = data_dir.join("lock");
    let file = open_private(&path).map_err(|cause| failed("open", &path, cause))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse(data_dir.to_owned())),
        Err(TryLockError::Error(cause)) => Err(failed("lock", &path, cause)),
    }
}

/// Whether a process has the data directory. Looking takes the lock for a moment.
///
/// # Errors
///
/// The lock can't be opened; as `NotFound` where nobody has ever had the directory.
pub fn is_in_use(data_dir: &Path) -> std::io::Result<bool> {
    let file = File::open(data_dir.join("lock"))?;
    match file.try_lock_shared() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(cause)) => Err(cause),
    }
}

/// Makes sure that the database and what SQLite puts beside it is made with our rights: SQLite
/// gives its other files those of the database.
pub(super) fn make_private(database: &Path) -> Result<(), OpenError> {
    open_private(database).map(drop).map_err(|cause| OpenError::File {
        operation: "open",
        path: database.to_owned(),
        cause,
    })
}

fn open_private(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().create(true).truncate(false).write(true).mode(FILE_MODE).open(path)
}
