//! Room that is kept for the day when the disk is full.
//!
//! On a full file system even a deletion fails, since the log of the database has to grow for it. So
//! a file of 32 MiB is allocated beside the database and given up when the disk refuses: what is on
//! its way from Agora is stored, what is forwarded is deleted, and no further request leaves before
//! the file is there again.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::{fs, io};

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::files;

/// Its size.
pub(super) const BALLAST_BYTES: u64 = 32 * 1024 * 1024;

/// The file and whether it is there.
#[derive(Debug)]
pub(super) struct Ballast {
    path: PathBuf,
    there: bool,
}

// === impl Ballast ===

impl Ballast {
    /// The ballast of a data directory. It is taken if there is room.
    pub(super) fn new(data_dir: &Path) -> Self {
        let mut ballast = Self { path: data_dir.join("ballast"), there: false };
        ballast.take();
        ballast
    }

    /// Whether it is there.
    pub(super) fn is_there(&self) -> bool {
        self.there
    }

    /// Gives its room to the database. `false` where there was nothing to give.
    pub(super) fn give_up(&mut self) -> bool {
        std::mem::take(&mut self.there) && fs::remove_file(&self.path).is_ok()
    }

    /// Takes it (back), if there is room.
    pub(super) fn take(&mut self) -> bool {
        if !self.there {
            self.there = allocate(&self.path).is_ok();
            if !self.there {
                // What was allocated of it would be missed by the database.
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

/// For file systems that can't allocate without writing.
fn fill(file: &mut File) -> io::Result<()> {
    let block = vec![0; 1024 * 1024];
    for _ in 0..BALLAST_BYTES / block.len() as u64 {
        file.write_all(&block)?;
    }
    file.sync_data()
}
