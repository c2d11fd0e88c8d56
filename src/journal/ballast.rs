//! Disk space reserved for the case that the disk becomes full.
//!
//! On a full file system even a deletion fails, because the database's log has to grow for it. So a
//! file of 32 MiB is allocated next to the database, and deleted when the disk is full. In that
//! space, answers that are on their way are stored and forwarded entries are deleted; no further
//! request leaves until the file is allocated again.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::{fs, io};

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::files;

/// Size of the reserve file, in bytes.
pub(super) const BALLAST_BYTES: u64 = 32 * 1024 * 1024;

/// The reserve file, and whether it is allocated.
#[derive(Debug)]
pub(super) struct Ballast {
    path: PathBuf,
    there: bool,
}

// === impl Ballast ===

impl Ballast {
    /// The reserve of a data directory. Allocates the file if there is room.
    pub(super) fn new(data_dir: &Path) -> Self {
        let mut ballast = Self { path: data_dir.join("ballast"), there: false };
        ballast.take();
        ballast
    }

    /// Whether the file is allocated.
    pub(super) fn is_there(&self) -> bool {
        self.there
    }

    /// Deletes the file, so that the database can use its space. Returns false if there was no
    /// file.
    pub(super) fn give_up(&mut self) -> bool {
        std::mem::take(&mut self.there) && fs::remove_file(&self.path).is_ok()
    }

    /// Allocates the file if it is not there and there is room.
    pub(super) fn take(&mut self) -> bool {
        if !self.there {
            self.there = allocate(&self.path).is_ok();
            if !self.there {
                // Release the part that was allocated: the database needs it.
                fs::remove_file(&self.path).ok();
            }
        }
        self.there
    }
}

fn allocate(path: &Path) -> io::Result<()> {
    let mut file = files::open_private(path)?;
    match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, BALLAST_BYTES) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => fill(&mut file),
        outcome => Ok(outcome?),
    }
}

/// For file systems that can't allocate space without writing.
fn fill(file: &mut File) -> io::Result<()> {
    let block = vec![0; 1024 * 1024];
    for _ in 0..BALLAST_BYTES / block.len() as u64 {
        file.write_all(&block)?;
    }
    file.sync_data()
}
