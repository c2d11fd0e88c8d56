//! Where fingerprints lie while their windows rest: scratch files in the data directory.
//!
//! Each memory has a file of its own, which has no name: it goes with the memory, whatever ends the
//! process. It is never synced, since all that is in it stands in the state topic as well; what is
//! used often stays in the system's page cache, and what is not gives way there. The file has cells
//! of 4 KiB, one for a block.
//!
//! A file that can't be made or written leaves the events in memory, and that is said once. What
//! can't be read back, or is not what was written, ends the memory: it is read anew from Kafka, and
//! stays in memory from then on.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::{fs, io};

use tracing::warn;

use crate::dedupe::{BLOCK_EVENTS, Cell, Fingerprint, Shelf};
use crate::error::Chain;

/// Bytes of a fingerprint.
const EVENT_BYTES: usize = 16;

/// Bytes of a cell.
const CELL_BYTES: usize = BLOCK_EVENTS * EVENT_BYTES;

/// Nobody else reads the file.
const FILE_MODE: u32 = 0o600;

/// Where the files are made. Cheap to clone; clones share.
#[derive(Clone, Debug, Default)]
pub struct Attic(Option<Arc<CellPlace>>);

#[derive(Debug)]
struct CellPlace {
    folder: PathBuf,
    /// Something failed: everything stays in memory from now on.
    is_shut: AtomicBool,
}

/// The file of one memory.
#[derive(Debug)]
pub struct Cells {
    attic: Attic,
    partition: i32,
    /// Made when it is needed.
    file: Option<File>,
    /// The checksum of each cell: a file system may find out late that it could not write.
    checksums: Vec<u32>,
    free: Vec<Cell>,
    buffer: Vec<u8>,
}

/// What was stored can't be read back.
#[derive(Debug, thiserror::Error)]
#[error("read back the fingerprints that lay in the data directory")]
pub struct Unread(#[source] io::Error);

// === impl Attic ===

impl Attic {
    /// Files in this folder. [`Attic::default`] has none: everything stays in memory.
    pub fn in_folder(folder: &Path) -> Self {
        let is_shut = AtomicBool::new(false);
        Self(Some(Arc::new(CellPlace { folder: folder.to_owned(), is_shut })))
    }

    /// A file for the memory of this partition. Nothing is made before something is stored.
    pub fn cells(&self, partition: i32) -> Cells {
        Cells {
            attic: self.clone(),
            partition,
            file: None,
            checksums: Vec::new(),
            free: Vec::new(),
            buffer: Vec::new(),
        }
    }

    /// The folder, where it is of use.
    fn folder(&self) -> Option<&Path> {
        let place = self.0.as_ref()?;
        (!place.is_shut.load(Ordering::Relaxed)).then_some(&place.folder)
    }

    /// Lets nothing more in. False where that was so already.
    fn shut(&self) -> bool {
        self.0.as_ref().is_some_and(|place| !place.is_shut.swap(true, Ordering::Relaxed))
    }
}

// === impl Cells ===

impl Cells {
    /// As if the disk had lost the file.
    #[cfg(test)]
    pub(super) fn lose_everything(&mut self) {
        self.file = None;
    }

    fn write(&mut self, folder: &Path, cell: Cell) -> io::Result<()> {
        let file = match &self.file {
            Some(file) => file,
            None => self.file.insert(make(&folder.join(format!("attic-{}", self.partition)))?),
        };
        file.write_all_at(&self.buffer, offset(cell))
    }

    fn read(&mut self, cell: Cell, count: usize) -> io::Result<()> {
        let file = self.file.as_ref().ok_or(io::ErrorKind::NotFound)?;
        self.buffer.resize(count * EVENT_BYTES, 0);
        file.read_exact_at(&mut self.buffer, offset(cell))?;
        if self.checksum(cell).copied() != Some(crc32fast::hash(&self.buffer)) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a checksum is wrong"));
        }
        Ok(())
    }

    fn checksum(&mut self, cell: Cell) -> Option<&mut u32> {
        self.checksums.get_mut(usize::try_from(cell.0).ok()?)
    }
}

impl Shelf for Cells {
    type Error = Unread;

    fn put(&mut self, events: &[Fingerprint]) -> Option<Cell> {
        let attic = self.attic.clone();
        let folder = attic.folder().filter(|_| events.len() <= BLOCK_EVENTS)?;
        self.buffer.clear();
        self.buffer.extend(events.iter().flat_map(|event| event.to_bytes()));
        let next = Cell(u32::try_from(self.checksums.len()).ok()?);
        let cell = self.free.last().copied().unwrap_or(next);
        if let Err(error) = self.write(folder, cell) {
            if attic.shut() {
                warn!(
                    folder = %folder.display(), error = %Chain(&error),
                    "fingerprints of quiet apps can't be laid down in the data directory: they \
                     stay in memory until the next start, about 130 kB for each App ID and endpoint"
                );
            }
            return None;
        }
        if self.free.pop().is_none() {
            self.checksums.push(0);
        }
        let checksum = crc32fast::hash(&self.buffer);
        *self.checksum(cell)? = checksum;
        Some(cell)
    }

    fn get(&mut self, cell: Cell, count: usize) -> Result<Vec<Fingerprint>, Unread> {
        if let Err(error) = self.read(cell, count) {
            self.attic.shut();
            return Err(Unread(error));
        }
        let mut events = Vec::with_capacity(BLOCK_EVENTS);
        let (stored, _) = self.buffer.as_chunks();
        events.extend(stored.iter().copied().map(Fingerprint::from_bytes));
        Ok(events)
    }

    fn free(&mut self, cell: Cell) {
        self.free.push(cell);
    }
}

fn offset(cell: Cell) -> u64 {
    u64::from(cell.0) * CELL_BYTES as u64
}

/// Makes a file and takes its name away. One that a kill left between the two is removed, and so is a
/// link that somebody has put there: `create_new` follows none.
fn make(path: &Path) -> io::Result<File> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).create_new(true).mode(FILE_MODE).open(path)?;
    fs::remove_file(path)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(first: u128, count: u128) -> Vec<Fingerprint> {
        (first..first + count).map(|n| Fingerprint::from_bytes(n.to_be_bytes())).collect()
    }

    #[test]
    fn what_was_put_is_there_and_cells_are_used_again() {
        let folder = tempfile::tempdir().unwrap();
        let mut cells = Attic::in_folder(folder.path()).cells(3);
        let stored: Vec<_> =
            (0..5).map(|n| (cells.put(&events(n * 1_000, 256)).unwrap(), n * 1_000)).collect();
        for (cell, first) in &stored {
            assert_eq!(cells.get(*cell, 256).unwrap(), events(*first, 256));
        }
        cells.free(stored[2].0);
        assert_eq!(cells.put(&events(7, 1)), Some(stored[2].0));
        assert_eq!(cells.get(stored[2].0, 1).unwrap(), events(7, 1));
        let size = cells.file.as_ref().unwrap().metadata().unwrap().len();
        assert_eq!(size, 5 * 4_096);
    }

    #[test]
    fn the_file_has_no_name_and_is_nobody_elses() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let mut cells = Attic::in_folder(folder.path()).cells(0);
        cells.put(&events(0, 9)).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        let mode = cells.file.unwrap().metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, FILE_MODE);
    }

    #[test]
    fn a_link_in_the_place_of_the_file_leads_nowhere() {
        let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mine = other.path().join("mine");
        fs::write(&mine, "mine").unwrap();
        std::os::unix::fs::symlink(&mine, folder.path().join("attic-0")).unwrap();
        let mut cells = Attic::in_folder(folder.path()).cells(0);
        assert!(cells.put(&events(0, 9)).is_some());
        assert_eq!(fs::read_to_string(&mine).unwrap(), "mine");
        fs::remove_file(&mine).unwrap();
        std::os::unix::fs::symlink(&mine, folder.path().join("attic-1")).unwrap();
        assert!(Attic::in_folder(folder.path()).cells(1).put(&events(0, 9)).is_some());
        assert!(!mine.exists());
    }

    #[test]
    fn without_a_folder_that_takes_it_everything_stays_in_memory() {
        assert_eq!(Attic::default().cells(0).put(&events(0, 1)), None);
        let folder = tempfile::tempdir().unwrap();
        let attic = Attic::in_folder(&folder.path().join("not there"));
        assert_eq!(attic.cells(0).put(&events(0, 1)), None);
        fs::create_dir(folder.path().join("not there")).unwrap();
        assert_eq!(attic.cells(1).put(&events(0, 1)), None, "it failed once");
    }

    #[test]
    fn a_disk_that_is_full_keeps_what_it_has() {
        let folder = tempfile::tempdir().unwrap();
        let attic = Attic::in_folder(folder.path());
        let mut cells = attic.cells(0);
        let cell = cells.put(&events(0, 256)).unwrap();
        let kept = cells.file.replace(File::options().write(true).open("/dev/full").unwrap());
        assert_eq!(cells.put(&events(1_000, 256)), None);
        cells.file = kept;
        assert_eq!(cells.get(cell, 256).unwrap(), events(0, 256));
        assert_eq!(cells.put(&events(1_000, 256)), None);
    }

    #[test]
    fn what_is_not_what_was_written_is_an_error_and_the_next_memory_stays_in_memory() {
        let folder = tempfile::tempdir().unwrap();
        let harms: [fn(&File); 2] = [
            |file| file.set_len(100).unwrap(),
            |file| file.write_all_at(&[0xff], 4_096 + 4).unwrap(),
        ];
        for harm in harms {
            let attic = Attic::in_folder(folder.path());
            let mut cells = attic.cells(0);
            cells.put(&events(0, 256)).unwrap();
            let second = cells.put(&events(1_000, 256)).unwrap();
            harm(cells.file.as_ref().unwrap());
            cells.get(second, 256).unwrap_err();
            assert_eq!(attic.cells(0).put(&events(0, 1)), None);
        }
    }
}
