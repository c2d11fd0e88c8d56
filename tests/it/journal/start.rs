//! Starts that fail, after a loss of power: what the process before left in doubt is published by
//! the first one that succeeds.

use std::fs;
use std::path::Path;
use std::time::Duration;

use agora_rtm_bridge::journal::Journal;
use agora_rtm_bridge::model::Incarnation;
use serde_json::Value;

use super::command::journal;
use super::{ROOM, at};
use crate::support::process::Bridge;
use crate::support::{names, within};

/// On a machine that compiles at the same time a start takes long.
const LIMIT: Duration = Duration::from_secs(60);

/// Neither Agora nor Kafka is there.
const CONFIG: &str = r#"
shutdown_grace = "6s"
[agora]
silence_timeout = "1s"
[kafka]
bootstrap_servers = "127.0.0.1:1"
[[apps]]
app_id = "a1"
hosts = ["http://127.0.0.1:1"]
[apps.auth]
customer_id = "c"
customer_secret = "s"
"#;

const LOCK: &str = "running pid=1 host=elsewhere since=0 boot=another\n";

/// A journal whose machine lost its power.
fn lose_power(data_dir: &Path) {
    let opened = Journal::open(data_dir, ROOM, Incarnation::from_u128(1), at(9)).unwrap();
    drop(opened);
    while agora_rtm_bridge::journal::is_in_use(data_dir).unwrap() {
        std::thread::yield_now();
    }
    // As a kill leaves it: SQLite would have removed its log.
    fs::write(data_dir.join("journal.sqlite-wal"), "").unwrap();
    fs::write(data_dir.join("lock"), LOCK).unwrap();
}

/// Feeds of gaps that wait in a journal.
fn gaps(data_dir: &Path) -> Vec<String> {
    let list = journal(data_dir, &["list", "--json"]);
    let lines = String::from_utf8(list.stdout).unwrap();
    let lines = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let gaps = lines.filter(|it| it["gap"] == "process_killed");
    gaps.map(|it| it["endpoint"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_start_without_certificates_changes_nothing_and_the_next_one_publishes_the_gaps() {
    let home = names::folder();
    let file = home.path().join("ca.pem");
    let config = CONFIG.replace("[agora]", &format!("[agora]\nca_file = {file:?}"));
    fs::write(&file, "no certificate\n").unwrap();
    let mut bridge = Bridge::start_on(&config, lose_power);
    let data_dir = bridge.data_dir();
    for _ in 0..2 {
        assert!(!bridge.wait(LIMIT).success());
        assert!(bridge.log().contains("ca.pem"), "{}", bridge.log());
        assert_eq!(fs::read_to_string(data_dir.join("lock")).unwrap(), LOCK);
        bridge.start_again();
    }
    assert!(!bridge.wait(LIMIT).success());
    let authority = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    fs::write(&file, authority.cert.pem()).unwrap();
    bridge.start_again();
    let found = within(LIMIT, || {
        let found = gaps(&data_dir);
        (!found.is_empty()).then_some(found)
    });
    let mut found = found.unwrap_or_else(|late| panic!("a gap {late}: {}", bridge.log()));
    found.sort();
    assert_eq!(found, ["channel_events", "user_events"], "both in one transaction");
    bridge.terminate();
    bridge.wait(LIMIT);
}
