//! The journal as a process of its own, on files whose calls fail.
//!
//! A child process (this very binary, once more) commits, holds, releases and forgets pages while
//! `faults.c` lets chosen calls fail. Whatever fails, what the child was told and what the next
//! process finds are the same.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test may panic where it stands"
)]

mod command;
mod disk;
mod start;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;
use std::{env, fs, thread};

use agora_rtm_bridge::journal::{
    Journal, JournalError, JournalReader, Recovered, Reservation, Sequence,
};
use agora_rtm_bridge::model::{
    AppId, Content, Endpoint, Feed, Incarnation, Page, Region, Timestamp, Wholeness,
};
use bytes::Bytes;
use tempfile::TempDir;

use crate::support::names;

/// Pages that a child commits.
const PAGES: usize = 14;

const ROOM: u64 = 256 * 1024 * 1024;

/// How often the poller would have tried again.
const ATTEMPTS: usize = 500;

const PAUSE: Duration = Duration::from_millis(10);

/// The variable that makes this binary the child.
const CHILD: &str = "AGORA_TEST_JOURNAL_CHILD";

pub(crate) fn at(second: i64) -> Timestamp {
    Timestamp::from_millis(1_600_000_000_000 + 1_000 * second)
}

pub(crate) fn feed() -> Feed {
    Feed { app: AppId::new("a"), region: Region::new("eu"), endpoint: Endpoint::User }
}

pub(crate) fn page(body: &str) -> Page {
    Page {
        feed: feed(),
        since: None,
        asked_at: at(1),
        answered_at: at(2),
        status: 200,
        wholeness: Wholeness::Whole,
        request_id: Some("request-1".to_owned()),
        resource_id: None,
        content_encoding: None,
        body: Bytes::copy_from_slice(body.as_bytes()),
    }
}

pub(crate) fn open(directory: &Path, n: u128) -> (Journal, Recovered) {
    Journal::open(directory, ROOM, Incarnation::from_u128(n), at(9)).unwrap()
}

/// Asks as the poller and the forwarder do: again and again.
fn insist<T>(ask: impl Fn() -> Result<T, JournalError>) -> T {
    let mut last: Option<JournalError> = None;
    for _ in 0..ATTEMPTS {
        match ask() {
            Ok(answer) => return answer,
            Err(error) => last = Some(error),
        }
        thread::sleep(PAUSE);
    }
    panic!("refused to the last: {last:?}");
}

fn reserve(runtime: &tokio::runtime::Runtime, journal: &Journal) -> Reservation {
    insist(|| runtime.block_on(journal.reserve(&feed(), 3, None, at(1))))
}

/// What the child does. It tells each page, and those that it forgot.
#[test]
#[ignore = "run as a child of the tests beside it"]
fn child() {
    let Some(directory) = env::var_os(CHILD) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let opened = Journal::open(Path::new(&directory), ROOM, Incarnation::from_u128(1), at(9));
    let Ok((journal, _)) = opened else {
        eprintln!("\nnot opened");
        return;
    };
    for number in 0..PAGES {
        let body = format!("page {number} {}", "x".repeat(3_000 * (number % 4)));
        let reservation = reserve(&runtime, &journal);
        eprintln!("\npage {}", reservation.ticket());
        if number % 3 == 2 {
            let (held, _) = runtime.block_on(reservation.hold(Content::Page(page(&body))));
            runtime.block_on(journal.release(vec![held]));
        } else {
            drop(runtime.block_on(reservation.settle(Content::Page(page(&body)))));
        }
        if number % 5 == 4 {
            let read = insist(|| runtime.block_on(journal.read(3, Sequence::START, 2)));
            for waiting in &read {
                eprintln!("\nforgot {}", waiting.entry.id.ticket);
            }
            let sequences = read.into_iter().map(|it| it.sequence).collect();
            runtime.block_on(journal.forget(sequences));
        }
    }
    while journal.backlog().borrow().in_memory > 0 {
        let reservation = reserve(&runtime, &journal);
        runtime.block_on(reservation.close());
    }
    runtime.block_on(journal.flush());
    eprintln!("\nall");
}

/// Runs a child with these faults; what it said.
fn run_child(directory: &TempDir, faults: &[(&str, String)]) -> String {
    let output = Command::new(env::current_exe().unwrap())
        .args(["--exact", "journal::child", "--ignored", "--nocapture", "--test-threads=1"])
        .env(CHILD, directory.path())
        .env("LD_PRELOAD", shim())
        .env("FAULT_DIR", directory.path())
        .envs(faults.iter().map(|(name, value)| (*name, value.as_str())))
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{faults:?}\n{said}");
    said
}

/// The library that fails calls, compiled once.
fn shim() -> &'static Path {
    static SHIM: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    let (_, shim) = SHIM.get_or_init(|| {
        let folder = names::folder();
        let library = folder.path().join("faults.so");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/journal/faults.c");
        let compiled = Command::new("cc")
            .args(["-shared", "-fPIC", "-w", "-O1", "-o"])
            .args([&library, &source])
            .arg("-ldl")
            .status()
            .unwrap();
        assert!(compiled.success());
        (folder, library)
    });
    shim
}

/// What the child said is what the next process finds.
fn compare(directory: &TempDir, said: &str, what: &str) {
    let tickets = |word: &str| -> Vec<u64> {
        let lines = said.lines().filter_map(|line| line.strip_prefix(word));
        lines.map(|ticket| ticket.trim().parse().unwrap()).collect()
    };
    if said.contains("not opened") {
        return;
    }
    assert!(said.contains("\nall"), "{what}: {said}");
    let forgotten = tickets("forgot ");
    let verdict = JournalReader::open(directory.path()).unwrap().verify(|| {}).unwrap();
    assert!(verdict.is_sound(), "{what}: {verdict:?}");
    let (journal, recovered) = open(directory.path(), 2);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let waiting = runtime.block_on(journal.read(3, Sequence::START, 99)).unwrap();
    let mut bodies = BTreeMap::new();
    for (index, waiting) in waiting.iter().enumerate() {
        let Content::Page(page) = &waiting.entry.content else {
            panic!("{what}: {:?}", waiting.entry)
        };
        let body = String::from_utf8(page.body.to_vec()).unwrap();
        let number: usize = body.split(' ').nth(1).unwrap().parse().unwrap();
        let before = bodies.insert(number, index);
        assert_eq!(before, None, "{what}: page {number} is there twice");
        let ticket = waiting.entry.id.ticket.0;
        assert_eq!(tickets("page ").iter().position(|it| *it == ticket), Some(number), "{what}");
    }
    assert!(bodies.values().is_sorted(), "{what}: {bodies:?}");
    // What was forwarded may be here still: nothing says that it is not.
    for (number, ticket) in tickets("page ").iter().enumerate() {
        let is_here = bodies.contains_key(&number);
        assert!(is_here || forgotten.contains(ticket), "{what}: page {number} is gone");
    }
    assert_eq!(recovered.killed_in_flight, 0, "{what}");
}

/// As many calls as the child makes without a fault.
fn calls() -> u64 {
    let directory = names::folder();
    let tally = directory.path().with_extension("tally");
    let faults = [("FAULT_TALLY", names::text(&tally).to_owned())];
    let said = run_child(&directory, &faults);
    compare(&directory, &said, "no fault");
    let calls = fs::read_to_string(&tally).unwrap();
    fs::remove_file(tally).unwrap();
    calls.parse().unwrap()
}

/// One child for each of about so many calls.
fn each_call_fails(times: u64, faults: &[(&str, String)]) {
    let calls = calls();
    assert!(calls > 100, "{calls} calls: are they intercepted?");
    let (mut children, mut opened, step) = (0, 0, (calls / times).max(1));
    for call in (1..=calls).step_by(usize::try_from(step).unwrap()) {
        let directory = names::folder();
        let mut faults = faults.to_vec();
        faults.push(("FAULT_AT", call.to_string()));
        let said = run_child(&directory, &faults);
        children += 1;
        opened += u64::from(!said.contains("not opened"));
        compare(&directory, &said, &format!("{faults:?} of {calls}"));
    }
    assert!(opened > children / 2, "{opened} of {children} opened");
}

#[test]
fn an_error_at_any_call_costs_no_page_and_repeats_none() {
    each_call_fails(50, &[]);
}

#[test]
fn a_disk_that_fails_for_a_while_costs_no_page_and_repeats_none() {
    // Each attempt to make a new file meets one of them.
    each_call_fails(5, &[("FAULT_COUNT", "4".to_owned())]);
}

#[test]
fn a_disk_without_room_at_any_call_costs_no_page_and_repeats_none() {
    let no_room = rustix::io::Errno::NOSPC.raw_os_error().to_string();
    each_call_fails(25, &[("FAULT_ERRNO", no_room)]);
}

#[test]
fn a_slow_disk_costs_time_and_no_page() {
    let directory = names::folder();
    let said = run_child(&directory, &[("FAULT_SLOW", "100".to_owned())]);
    compare(&directory, &said, "slow");
}
