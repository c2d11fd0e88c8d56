//! Which room may know which: a table, and the test that holds it.
//!
//! A room is a module right below the crate, `foo.rs` with what lies in `foo/`. The table is the
//! short form of what `ARCHITECTURE.md` tells; an edge that is not in it is a design decision.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Each room with the rooms it may name.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    // The words everybody shares.
    ("model", &[]),
    ("error", &[]),
    ("backoff", &["model"]),
    // What is pure, or knows one side only.
    ("config", &["model"]),
    ("schedule", &["model"]),
    ("agora", &["model", "error", "config"]),
    ("journal", &["model", "error", "backoff"]),
    ("kafka", &["model", "error", "config"]),
    ("observe", &["model", "error"]),
    // It verifies tokens by the layout that the bridge makes them by; Agora's samples hold it.
    ("simulator", &["model", "agora"]),
    ("plan", &["model", "schedule", "simulator"]),
    // What the bytes in Kafka mean: what was delivered, and what others read.
    ("memory", &["model", "agora", "kafka"]),
    ("records", &["model", "error", "agora", "kafka", "memory"]),
    // The three loops. None knows another.
    ("poller", &["model", "error", "schedule", "agora", "journal", "observe"]),
    ("forwarder", &["model", "error", "backoff", "journal", "kafka", "records", "observe"]),
    ("publisher", &["model", "error", "backoff", "agora", "kafka", "memory", "records", "observe"]),
    // Looks at everything before a start.
    ("check", &["model", "error", "config", "agora", "journal", "kafka"]),
    // Holds the topics to the pages, by a judgement of its own.
    ("audit", &["model", "agora", "kafka", "memory", "records", "publisher"]),
    // Where it all comes together.
    (
        "daemon",
        &[
            "model",
            "error",
            "config",
            "schedule",
            "agora",
            "journal",
            "kafka",
            "memory",
            "records",
            "observe",
            "poller",
            "forwarder",
            "publisher",
        ],
    ),
    (
        "cli",
        &[
            "model",
            "error",
            "config",
            "schedule",
            "agora",
            "journal",
            "kafka",
            "memory",
            "records",
            "observe",
            "simulator",
            "plan",
            "poller",
            "forwarder",
            "publisher",
            "daemon",
            "check",
            "audit",
        ],
    ),
    // The doors: `lib.rs` lists the rooms, `main.rs` calls one.
    ("lib", &[]),
    ("main", &["cli"]),
];

/// A file below `src`.
struct Source {
    path: PathBuf,
    room: String,
    text: String,
}

#[test]
fn no_room_names_a_room_that_it_must_not_know() {
    let strays: Vec<String> = sources().iter().flat_map(strays).collect();
    assert!(strays.is_empty(), "\n{}", strays.join("\n"));
}

#[test]
fn the_table_and_the_source_have_the_same_rooms() {
    let in_table: BTreeSet<String> = MAY_IMPORT.iter().map(|&(room, _)| room.to_owned()).collect();
    let in_source: BTreeSet<String> = sources().into_iter().map(|source| source.room).collect();
    assert_eq!(in_table, in_source, "left: the table, right: the files under src/");
}

#[test]
fn every_file_says_first_what_it_is_for() {
    for Source { path, text, .. } in sources() {
        // What a file of tests is for is told by the file that it tests.
        if path.ends_with("tests.rs") {
            continue;
        }
        assert!(text.starts_with("//! "), "{}: begins without `//!`", path.display());
    }
}

#[test]
fn the_check_sees_what_it_is_for() {
    let cases = [
        // What a file of `journal` may write …
        ("journal.rs", "use crate::model::Page;", &[][..]),
        ("journal.rs", "use crate::journal::file::File;", &[]),
        ("journal.rs", "//! As [`crate::kafka::Topic`] does.", &[]),
        ("journal.rs", "    use super::*;", &[]),
        ("journal/file.rs", "use super::Entry;", &[]),
        ("journal/file.rs", "    use super::super::Entry;", &[]),
        ("journal/file.rs", "pub(crate) fn now() {}", &[]),
        ("journal.rs", r#"filter("agora_rtm_bridge::kafka=debug")"#, &[]),
        // … and what it may not, by whatever road.
        ("journal.rs", "use crate::kafka::Topic;", &["kafka"]),
        (
            "journal/file.rs",
            "let topic = crate::kafka::Topic::new(crate::agora::X);",
            &["kafka", "agora"],
        ),
        ("kafka/progress.rs", "use crate::memory::Memory;", &["memory"]),
        ("kafka/progress.rs", "use crate::records::pages;", &["records"]),
        ("journal.rs", "use crate::{model, kafka};", &[""]),
        ("journal.rs", "use super::kafka::Topic;", &["kafka"]),
        ("journal/file.rs", "use super::super::kafka::Topic;", &["kafka"]),
        ("journal.rs", "    use super::super::*;", &[""]),
        ("main.rs", "fn main() { agora_rtm_bridge::daemon::run() }", &["daemon"]),
    ];
    for (path, line, expected) in cases {
        let source = Source::new(path.into(), line.to_owned());
        assert_eq!(source.named_wrongly(line), expected, "{path}: {line}");
    }
}

fn strays(source: &Source) -> Vec<String> {
    let Source { path, room, text } = source;
    let lines = text.lines().zip(1..);
    lines
        .flat_map(|(line, number)| {
            source.named_wrongly(line).into_iter().map(move |named| {
                format!("{}:{number}: `{room}` must not import `{named}`", path.display())
            })
        })
        .collect()
}

// === impl Source ===

impl Source {
    /// A file by its path below `src`.
    fn new(path: PathBuf, text: String) -> Self {
        let first = path.iter().next().expect("a file has a name");
        let room = Path::new(first).with_extension("").to_string_lossy().into_owned();
        Self { path, room, text }
    }

    /// The rooms that a line names and must not. A grouped `use crate::{…}` names the empty one:
    /// each edge stands on its own line.
    fn named_wrongly<'a>(&self, line: &'a str) -> Vec<&'a str> {
        // A comment may speak of any room.
        if line.trim_start().starts_with("//") {
            return Vec::new();
        }
        let own = self.room.as_str();
        let allowed = MAY_IMPORT.iter().find(|row| row.0 == own).map_or(&[][..], |row| row.1);
        line.split(|c: char| !c.is_alphanumeric() && c != '_' && c != ':')
            .filter_map(|path| self.room_of(path))
            .filter(|named| *named != own && !allowed.contains(named))
            .collect()
    }

    /// The room that a path leads to, if it leads to the crate's root first.
    fn room_of<'a>(&self, path: &'a str) -> Option<&'a str> {
        let depth = self.path.iter().count();
        let supers = path.split("::").take_while(|segment| *segment == "super").count();
        let mut rest = path.split("::").skip(supers);
        let next = rest.next();
        // The library can't call itself by its name; `main.rs` knows it by no other.
        if next == Some("crate") || next == Some("agora_rtm_bridge") && self.room == "main" {
            return rest.next();
        }
        // A file of depth one is left by one `super`, unless that stands in a module inside the
        // file, as tests do: the name behind it tells.
        let is_room = MAY_IMPORT.iter().any(|&(room, _)| Some(room) == next);
        if supers > depth || supers == depth && is_room { next } else { None }
    }
}

/// Every file below `src`, in the order of their paths.
fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut paths = vec![root.clone()];
    let mut sources = Vec::new();
    while let Some(path) = paths.pop() {
        if path.is_dir() {
            let entries = fs::read_dir(path).expect("the source can be read");
            paths.extend(entries.map(|entry| entry.expect("the source can be read").path()));
        } else {
            let text = fs::read_to_string(&path).expect("the source is UTF-8");
            let below = path.strip_prefix(&root).expect("it was found there");
            sources.push(Source::new(below.to_owned(), text));
        }
    }
    sources.sort_by(|a, b| a.path.cmp(&b.path));
    sources
}
