//! `journal list|show|verify`, beside the process that has the journal and after its end.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Output;

use agora_rtm_bridge::model::Content;
use serde_json::Value;

use super::{open, page, reserve};
use crate::support::names;
use crate::support::process::command;

pub(super) fn journal(data_dir: &Path, arguments: &[&str]) -> Output {
    let mut command = command();
    command.arg("journal").args(arguments).arg("--data-dir").arg(data_dir);
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

const BODY: &str = r#"{"events":[{"user_id":"somebody"}]}"#;

#[test]
fn pages_are_listed_shown_and_verified_beside_the_one_who_has_them_and_after_its_end() {
    let directory = names::folder();
    let data_dir = directory.path();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let (owner, _) = open(data_dir, 1);
    let reservation = reserve(&runtime, &owner);
    runtime.block_on(reservation.settle(Content::Page(page(BODY)))).unwrap();
    let out = reserve(&runtime, &owner);
    look(data_dir, "in use by process ");
    drop((out, owner));
    until_free(data_dir);
    let before = names_in(data_dir);
    assert!(!before.contains(&"journal.sqlite-wal".to_owned()), "{before:?}");
    look(data_dir, "in use by no process");
    assert_eq!(names_in(data_dir), before, "nothing was made beside it");
}

/// A page and a request that is out are there.
fn look(data_dir: &Path, holder: &str) {
    let name = format!("{:032x}/1", 1);
    let list = journal(data_dir, &["list"]);
    let (lines, summary) = (text(&list.stdout), text(&list.stderr));
    assert!(list.status.success(), "{summary}");
    assert!(lines.starts_with("waiting  2020-09-13T12:26:42.000Z     200  whole"), "{lines}");
    assert!(lines.contains(&name) && lines.contains("a/eu/user_events  request-1"), "{lines}");
    assert!(lines.contains("\nout      2020-09-13T12:26:41.000Z"), "{lines}");
    assert!(!lines.contains("somebody"), "no user ids: {lines}");
    let counts = "1 waiting, 0 held, 0 damaged, 0 set aside, 1 requests in flight";
    assert!(summary.contains(counts) && summary.contains(holder), "{summary}");

    let none = journal(data_dir, &["list", "--app", "another", "--json"]);
    assert!(none.status.success() && none.stdout.is_empty());
    let json = text(&journal(data_dir, &["list", "--page", &name, "--json"]).stdout);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json["state"], &json["page"]), (&"waiting".into(), &name.clone().into()));

    let show = journal(data_dir, &["show", &name]);
    assert_eq!(text(&show.stdout), BODY);
    assert!(text(&show.stderr).contains("request id   request-1"), "{}", text(&show.stderr));
    let envelope = text(&journal(data_dir, &["show", &name, "--json"]).stdout);
    let envelope: Value = serde_json::from_str(&envelope).unwrap();
    assert_eq!((&envelope["body"], &envelope["status"]), (&BODY.into(), &200.into()));

    let verify = journal(data_dir, &["verify"]);
    let said = text(&verify.stdout);
    assert!(verify.status.success(), "{said}");
    assert_eq!(said, "ok    the journal is sound: 1 sound entries, 1 requests in flight\n");
}

/// Its thread ends soon after its last handle is gone.
fn until_free(data_dir: &Path) {
    while agora_rtm_bridge::journal::is_in_use(data_dir).unwrap() {
        std::thread::yield_now();
    }
}

fn names_in(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn damage_is_found_and_named() {
    let directory = names::folder();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let (owner, _) = open(directory.path(), 1);
    let body = "x".repeat(9_000);
    let reservation = reserve(&runtime, &owner);
    runtime.block_on(reservation.settle(Content::Page(page(&body)))).unwrap();
    drop(owner);
    until_free(directory.path());
    let path = directory.path().join("journal.sqlite");
    let bytes = fs::read(&path).unwrap();
    let place = bytes.windows(500).position(|window| window.iter().all(|it| *it == b'x')).unwrap();
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(b"y", place as u64 + 100).unwrap();
    let verify = journal(directory.path(), &["verify"]);
    assert_eq!(verify.status.code(), Some(1));
    let name = format!("{:032x}/1", 1);
    assert!(text(&verify.stdout).contains(&format!("FAIL  damaged page: {name}")));
    let list = journal(directory.path(), &["list"]);
    assert!(text(&list.stdout).starts_with("damaged"), "{}", text(&list.stdout));
    assert_eq!(journal(directory.path(), &["show", &name]).stdout.len(), body.len());

    fs::write(&path, "no database".repeat(1_000)).unwrap();
    let verify = journal(directory.path(), &["verify"]);
    assert_eq!(verify.status.code(), Some(1));
    assert!(text(&verify.stdout).contains("file is not a database"), "{}", text(&verify.stdout));
    let missing = journal(&directory.path().join("nowhere"), &["list"]);
    assert!(text(&missing.stderr).contains("there is no journal in"));
}
