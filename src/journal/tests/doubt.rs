//! The doubt after a power loss or a lost file: it lasts until its gaps are stored, however many
//! starts fail in between.

use std::fs;

use rusqlite::config::DbConfig;
use tempfile::TempDir;

use super::*;
use crate::journal::files;

/// A data directory after the machine lost power while a bridge ran: its log exists.
async fn after_a_loss_of_power() -> TempDir {
    let alive = tempfile::tempdir().unwrap();
    let (journal, _) = open(&alive, 1, at(9)).unwrap();
    store(&journal, "kept").await;
    let directory = tempfile::tempdir().unwrap();
    for name in [files::DATABASE, "journal.sqlite-wal"] {
        fs::copy(alive.path().join(name), directory.path().join(name)).unwrap();
    }
    let line = "running pid=1 host=elsewhere since=0 boot=another\n";
    fs::write(directory.path().join("lock"), line).unwrap();
    drop(journal);
    directory
}

fn open(directory: &TempDir, n: u128, now: Timestamp) -> Result<(Journal, Recovered), OpenError> {
    Journal::open(directory.path(), ROOM, incarnation(n), now)
}

fn gaps() -> Vec<(i32, Gap)> {
    Endpoint::ALL
        .map(|endpoint| (3, Gap { feed: feed(endpoint), ..gap(GapCause::ProcessKilled) }))
        .into()
}

async fn causes(journal: &Journal) -> Vec<String> {
    bodies(&read(journal).await).into_iter().map(str::to_owned).collect()
}

#[tokio::test]
async fn a_doubt_lasts_until_its_gaps_are_stored_and_its_moment_is_that_of_the_start_that_found_it()
{
    let directory = after_a_loss_of_power().await;
    for n in 3..6 {
        let now = at(10 * i64::try_from(n).unwrap());
        let (journal, recovered) = next_process(|| open(&directory, n, now));
        assert_eq!(recovered.in_doubt, Some(at(30)), "start {n} publishes nothing, and fails");
        reserve(&journal).await.close().await;
        journal.flush().await;
    }
    let (journal, recovered) = next_process(|| open(&directory, 7, at(70)));
    assert!(recovered.in_doubt.is_some());
    journal.settle_doubt(gaps()).await.unwrap();
    assert_eq!(causes(&journal).await, ["kept", "process_killed", "process_killed"]);
    drop(journal);
    let (journal, recovered) = next_process(|| open(&directory, 8, at(80)));
    assert_eq!(recovered.in_doubt, None);
    assert_eq!(causes(&journal).await, ["kept", "process_killed", "process_killed"]);
}

#[tokio::test]
async fn a_start_that_can_not_open_the_journal_leaves_the_doubt_to_the_next() {
    let database = |directory: &TempDir| directory.path().join(files::DATABASE);
    let set_version = |directory: &TempDir, version: i64| {
        let connection = Connection::open(database(directory)).unwrap();
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).unwrap();
        connection.pragma_update(None, "user_version", version).unwrap();
    };
    let directory = after_a_loss_of_power().await;
    set_version(&directory, 99);
    for n in 3..5 {
        let refused = open(&directory, n, at(9)).unwrap_err();
        assert!(matches!(refused, OpenError::Newer { .. }), "{refused}");
    }
    set_version(&directory, schema::VERSION);
    let (_, recovered) = next_process(|| open(&directory, 5, at(9)));
    assert_eq!(recovered.in_doubt, Some(at(9)));
}

#[tokio::test]
async fn a_journal_that_is_gone_is_in_doubt_although_a_start_failed_on_the_way() {
    let directory = after_a_loss_of_power().await;
    for suffix in ["", "-wal", "-shm"] {
        let name = format!("{}{suffix}", files::DATABASE);
        fs::remove_file(directory.path().join(name)).ok();
    }
    // A directory in its place can't be opened.
    let path = directory.path().join(files::DATABASE);
    fs::create_dir(&path).unwrap();
    open(&directory, 3, at(9)).unwrap_err();
    fs::remove_dir(&path).unwrap();
    // The file was created, but nothing was written to it.
    fs::write(&path, "").unwrap();
    let (_, recovered) = next_process(|| open(&directory, 4, at(9)));
    assert_eq!(recovered.in_doubt, Some(at(9)));
}

#[tokio::test]
async fn the_doubt_after_damage_is_in_the_new_file() {
    let directory = after_a_loss_of_power().await;
    fs::write(directory.path().join("lock"), "").unwrap();
    let log = directory.path().join("journal.sqlite-wal");
    let mut bytes = fs::read(&log).unwrap();
    bytes[8..16].fill(9);
    fs::write(&log, bytes).unwrap();
    for n in 3..6 {
        let (journal, recovered) = next_process(|| open(&directory, n, at(9)));
        assert_eq!(recovered.in_doubt, Some(at(9)), "start {n}");
        assert_eq!(causes(&journal).await, ["kept"]);
    }
}

#[tokio::test]
async fn gaps_that_can_not_be_stored_keep_the_doubt_until_they_are() {
    let directory = after_a_loss_of_power().await;
    let (journal, _) = next_process(|| open(&directory, 3, at(9)));
    let operator = Connection::open(directory.path().join(files::DATABASE)).unwrap();
    let in_doubt = || -> i64 {
        operator.query_row("SELECT count(*) FROM doubt", [], |row| row.get(0)).unwrap()
    };
    let refuse = "CREATE TRIGGER refuse BEFORE INSERT ON entries
                  BEGIN SELECT raise(ABORT, 'refused'); END";
    operator.execute_batch(refuse).unwrap();
    journal.settle_doubt(gaps()).await.unwrap_err();
    assert_eq!(causes(&journal).await, ["kept", "process_killed", "process_killed"]);
    journal.flush().await;
    assert_eq!(in_doubt(), 1);
    operator.execute_batch("DROP TRIGGER refuse").unwrap();
    reserve(&journal).await.close().await;
    assert_eq!(in_doubt(), 0);
    assert_eq!(rows(&operator).len(), 3);
}
