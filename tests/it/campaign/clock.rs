//! The wall clock of the bridge's process, which can be set while it runs.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use crate::support::names;
use crate::support::process::Environment;

/// A clock that is as far ahead as its file says.
pub(crate) struct WrongClock {
    folder: TempDir,
    file: File,
}

// === impl WrongClock ===

impl WrongClock {
    /// Why there can be none here.
    pub(crate) fn try_out() -> Result<(), String> {
        Self::new().map(drop)
    }

    /// A clock that is right at first.
    pub(crate) fn new() -> Result<Self, String> {
        let folder = names::folder();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/campaign/clock.c");
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-O1", "-o"]).args([&library(&folder), &source]);
        let output = compiler.arg("-ldl").output().map_err(|error| format!("run cc: {error}"))?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned());
        }
        let mut file = File::create(seconds(&folder)).expect("a fresh folder can be written to");
        file.write_all(&[0; 8]).expect("a fresh file can be written to");
        Ok(Self { folder, file })
    }

    /// What the process needs to see it.
    pub(crate) fn environment(&self) -> Environment {
        let text = |path: &Path| names::text(path).to_owned();
        vec![
            ("LD_PRELOAD", text(&library(&self.folder))),
            ("CLOCK_FILE", text(&seconds(&self.folder))),
        ]
    }

    /// Sets it so far ahead of the machine's.
    pub(crate) fn set_ahead(&self, ahead: Duration) {
        let seconds = ahead.as_secs().cast_signed().to_ne_bytes();
        self.file.write_all_at(&seconds, 0).expect("the file is there");
    }
}

fn library(folder: &TempDir) -> PathBuf {
    folder.path().join("clock.so")
}

fn seconds(folder: &TempDir) -> PathBuf {
    folder.path().join("seconds")
}
