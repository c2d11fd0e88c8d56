//! A disk that is small enough to be filled.

use std::fs;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// A tmpfs, gone when dropped.
pub(crate) struct SmallDisk {
    path: PathBuf,
}

/// What it holds: a journal with some seconds of pages, and one that a reader made grow.
const SIZE: &str = "size=192m,mode=0700";

// === impl SmallDisk ===

impl SmallDisk {
    /// Why this can't be done here, if it can't.
    pub(crate) fn try_out() -> Result<(), String> {
        let folder = TempDir::new().expect("the temporary folder can be written to");
        Self::mount(folder.path()).map(drop)
    }

    /// Mounts one on a folder, which is made where it is missing.
    pub(crate) fn mount(path: &Path) -> Result<Self, String> {
        fs::create_dir_all(path).expect("a fresh folder can be written to");
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", SIZE, "tmpfs"]).arg(path);
        let output = command.output().map_err(|error| format!("run mount: {error}"))?;
        match output.status.success() {
            true => Ok(Self { path: path.to_owned() }),
            false => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        }
    }

    /// Takes every byte that is left.
    pub(crate) fn fill(&self) {
        let mut file = File::create(self.filler()).expect("a disk that is full has inodes left");
        let zeros = vec![0; 64 * 1024];
        for piece in [&zeros[..], &[0]] {
            while file.write_all(piece).is_ok() {}
        }
    }

    /// Gives them back.
    pub(crate) fn free(&self) {
        // Freed twice, where two of a round overlap.
        fs::remove_file(self.filler()).ok();
    }

    fn filler(&self) -> PathBuf {
        self.path.join("filler")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: the bridge may still have its journal open.
        let gone = Command::new("umount").arg("-l").arg(&self.path).status();
        if !gone.is_ok_and(|status| status.success()) {
            eprintln!("left behind, a tmpfs: umount {}", self.path.display());
        }
    }
}
