//! A disk that is really full: a file system in memory with a bound.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::{fs, thread};

use agora_rtm_bridge::journal::{Journal, JournalError, OpenError, Sequence};
use agora_rtm_bridge::model::{Content, Incarnation};
use tempfile::TempDir;

use super::{ATTEMPTS, PAUSE, ROOM, at, feed, open, page, reserve};
use crate::support::names;

/// A file system of its own, unmounted when dropped.
struct Small {
    folder: TempDir,
}

impl Small {
    /// `None` where this process may not mount.
    fn mount(size: &str) -> Option<Self> {
        let folder = names::folder();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={size}"), "none"]).arg(folder.path());
        let mounted = mount.output().is_ok_and(|output| output.status.success());
        mounted.then_some(Self { folder })
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(self.path()).status().ok();
    }
}

/// Writes until there is no room.
fn fill(path: &Path) {
    let mut file = OpenOptions::new().create(true).append(true).open(path).unwrap();
    for size in [1024 * 1024, 4_096, 1] {
        while file.write_all(&vec![1; size]).is_ok() {}
    }
}

#[test]
fn on_a_full_disk_answers_are_kept_and_polling_waits_for_room() {
    let Some(disk) = Small::mount("80m") else {
        eprintln!("SKIPPED: this process may not mount a file system");
        return;
    };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let data_dir = disk.path().join("data");
    let (journal, _) = open(&data_dir, 1);
    let out: Vec<_> = (0..4).map(|_| reserve(&runtime, &journal)).collect();
    let everything_else = disk.path().join("else");
    fill(&everything_else);

    // What was out comes back: the reserve makes room for it.
    let body = "x".repeat(1024 * 1024);
    for reservation in out {
        runtime.block_on(reservation.settle(Content::Page(page(&body)))).unwrap();
    }
    assert!(!data_dir.join("ballast").exists(), "it was given up");
    fill(&everything_else);
    let refused = runtime.block_on(journal.reserve(&feed(), 3, None, at(1))).unwrap_err();
    assert!(matches!(refused, JournalError::DiskFull { .. }), "{refused}");

    // Delivering goes on.
    let waiting = runtime.block_on(journal.read(3, Sequence::START, 9)).unwrap();
    assert_eq!(waiting.len(), 4);
    runtime.block_on(journal.forget(waiting.iter().map(|it| it.sequence).collect()));
    runtime.block_on(journal.flush());

    fs::remove_file(&everything_else).unwrap();
    let resumed = (0..ATTEMPTS).find_map(|_| {
        thread::sleep(PAUSE);
        runtime.block_on(journal.reserve(&feed(), 3, None, at(1))).ok()
    });
    assert!(data_dir.join("ballast").exists(), "it is taken back first");
    let resumed = resumed.expect("polling resumes by itself");
    runtime.block_on(resumed.settle(Content::Page(page("after")))).unwrap();
    let waiting = runtime.block_on(journal.read(3, Sequence::START, 9)).unwrap();
    assert_eq!(waiting.len(), 1);
}

#[test]
fn a_start_on_a_full_disk_has_the_reserve_and_says_so_where_that_is_gone() {
    let Some(disk) = Small::mount("80m") else {
        eprintln!("SKIPPED: this process may not mount a file system");
        return;
    };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let data_dir = disk.path().join("data");
    let everything_else = disk.path().join("else");
    let (journal, _) = open(&data_dir, 1);
    let out = reserve(&runtime, &journal);
    runtime.block_on(out.settle(Content::Page(page("before")))).unwrap();
    drop(journal);
    fill(&everything_else);

    let (journal, _) = open(&data_dir, 2);
    let waiting = runtime.block_on(journal.read(3, Sequence::START, 9)).unwrap();
    assert_eq!(waiting.len(), 1);
    assert!(!data_dir.join("ballast").exists(), "it made the room");
    drop(journal);
    fill(&everything_else);

    let refused = Journal::open(&data_dir, ROOM, Incarnation::from_u128(3), at(9)).unwrap_err();
    assert!(matches!(refused, OpenError::DiskFull { .. }), "{refused}");
    fs::remove_file(&everything_else).unwrap();
    let (journal, _) = open(&data_dir, 4);
    let waiting = runtime.block_on(journal.read(3, Sequence::START, 9)).unwrap();
    assert_eq!(waiting.len(), 1, "nothing was lost on the way");
}
