//! Which space counts as used, and what must be freed automatically.

use std::ops::ControlFlow;
use std::path::Path;

use tempfile::TempDir;

use super::*;
use crate::journal::files;

/// The smallest journal that can be configured, in bytes; the reserve file takes half of it.
const SMALL: u64 = 64 * 1024 * 1024;

fn open(directory: &TempDir, n: u128) -> Journal {
    let open = || Journal::open(directory.path(), SMALL, incarnation(n), at(9));
    next_process(open).0
}

/// A connection that reads the database of a running journal.
fn onlooker(data_dir: &Path) -> Connection {
    let connection = Connection::open(data_dir.join(files::DATABASE)).unwrap();
    connection.busy_timeout(std::time::Duration::ZERO).unwrap();
    connection
}

/// Whether the log has no reader.
fn nobody_reads(onlooker: &Connection) -> bool {
    let busy = onlooker.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0));
    !busy.unwrap_or(true)
}

/// Pages are stored and forwarded at once, until the journal is full.
async fn fill_the_log(journal: &Journal) -> JournalError {
    let body = "x".repeat(200_000);
    for _ in 0..500 {
        let reservation = match journal.reserve(&feed(Endpoint::User), 3, None, at(1)).await {
            Ok(reservation) => reservation,
            Err(refused) => return refused,
        };
        reservation.settle(Content::Page(page(&body))).await.unwrap();
        let waiting = read(journal).await;
        journal.forget(waiting.iter().map(|it| it.sequence).collect()).await;
    }
    panic!("the log has 100 MB, and the journal takes more");
}

#[tokio::test]
async fn a_reader_that_lingers_fills_the_journal_for_as_long_as_it_reads_and_no_longer() {
    let directory = tempfile::tempdir().unwrap();
    let journal = open(&directory, 1);
    for _ in 0..2 {
        let reader = onlooker(directory.path());
        reader.execute_batch("BEGIN; SELECT * FROM entries").unwrap();
        let refused = fill_the_log(&journal).await;
        assert!(matches!(refused, JournalError::Full { .. }), "{refused}");
        let why = refused.to_string();
        assert!(why.contains("because another program is reading the journal: stop it"), "{why}");
        assert!(read(&journal).await.is_empty(), "nothing waits");
        let again = journal.reserve(&feed(Endpoint::User), 3, None, at(1)).await;
        assert!(again.is_err(), "the reader is still there");

        reader.execute_batch("COMMIT").unwrap();
        reserve(&journal).await.close().await;
        store(&journal, "and goes on").await;
        let log = std::fs::metadata(directory.path().join("journal.sqlite-wal")).unwrap().len();
        assert!(log < 4 * 1024 * 1024, "{log}");
        let waiting = read(&journal).await;
        journal.forget(waiting.iter().map(|it| it.sequence).collect()).await;
    }
}

#[tokio::test]
async fn the_next_process_is_not_full_of_what_a_reader_left_behind() {
    let directory = tempfile::tempdir().unwrap();
    let journal = open(&directory, 1);
    let reader = onlooker(directory.path());
    reader.execute_batch("BEGIN; SELECT * FROM entries").unwrap();
    fill_the_log(&journal).await;
    drop(journal);
    let journal = open(&directory, 2);
    reader.execute_batch("COMMIT").unwrap();
    reserve(&journal).await.close().await;
}

#[tokio::test]
async fn the_log_is_cut_by_itself_once_a_reader_is_gone() {
    let directory = tempfile::tempdir().unwrap();
    let (journal, _) =
        next_process(|| Journal::open(directory.path(), 4 * ROOM, incarnation(1), at(9)));
    let length = || {
        let log = directory.path().join("journal.sqlite-wal");
        std::fs::metadata(log).unwrap().len()
    };
    let reader = onlooker(directory.path());
    reader.execute_batch("BEGIN; SELECT * FROM entries").unwrap();
    let body = "x".repeat(1_000_000);
    while length() < 40 * 1024 * 1024 {
        store(&journal, &body).await;
        let waiting = read(&journal).await;
        journal.forget(waiting.iter().map(|it| it.sequence).collect()).await;
    }
    reader.execute_batch("COMMIT").unwrap();
    for _ in 0..3 {
        store(&journal, "small").await;
    }
    assert!(length() <= 32 * 1024 * 1024, "{}", length());
}

#[tokio::test]
async fn what_was_deleted_does_not_count() {
    let (journal, _) = simulated(Connection::open_in_memory().unwrap(), 1);
    let before = journal.backlog().borrow().bytes;
    for _ in 0..9 {
        store(&journal, &"x".repeat(1_000_000)).await;
    }
    let full = journal.backlog().borrow().bytes;
    assert!(full > before + 9_000_000, "{before} {full}");
    let waiting = read(&journal).await;
    journal.forget(waiting.iter().map(|it| it.sequence).collect()).await;
    journal.flush().await;
    store(&journal, "small").await;
    let after = journal.backlog().borrow().bytes;
    assert!(after < before + 100_000, "{before} {after}");
}

#[tokio::test]
async fn a_reader_is_in_nobodys_way_while_its_output_waits() {
    let directory = tempfile::tempdir().unwrap();
    let journal = open(&directory, 1);
    for number in 0..300 {
        store(&journal, &format!("page {number}")).await;
    }
    let held = hold(&journal, "held").await;
    let other = onlooker(directory.path());
    let reader = JournalReader::open(directory.path()).unwrap();
    let mut seen = Vec::new();
    reader
        .each(|it| {
            assert!(nobody_reads(&other), "{}", seen.len());
            seen.push((it.state, it.name));
            ControlFlow::Continue(())
        })
        .unwrap();
    let name = |ticket| format!("{:032x}/{ticket}", 1);
    let mut expected: Vec<_> = (1..=300).map(|it| (EntryState::Waiting, name(it))).collect();
    expected.push((EntryState::Held, name(301)));
    assert_eq!(seen, expected);
    reader.out().unwrap();
    reader.paces().unwrap();
    assert!(nobody_reads(&other));
    drop(held);
}

#[tokio::test]
async fn a_reader_sees_what_comes_after_the_log_was_emptied() {
    let directory = tempfile::tempdir().unwrap();
    let journal = open(&directory, 1);
    store(&journal, "one").await;
    assert!(nobody_reads(&onlooker(directory.path())));
    let reader = JournalReader::open(directory.path()).unwrap();
    store(&journal, "two").await;
    let mut bytes = Vec::new();
    reader
        .each(|it| {
            bytes.push(it.bytes);
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(bytes, [3, 3]);
}

/// A feed of one of very many apps.
fn of_app(number: usize, endpoint: Endpoint) -> Feed {
    Feed { app: AppId::new(format!("app-{number}")), ..feed(endpoint) }
}

#[tokio::test]
async fn ten_thousand_apps_can_all_ask_at_once_and_again() {
    let connection = Connection::open_in_memory().unwrap();
    let (journal, _) = Journal::simulated(connection, 4 << 30, incarnation(1), at(9)).unwrap();
    for _ in 0..2 {
        let mut out = Vec::new();
        for number in 0..10_000 {
            for endpoint in Endpoint::ALL {
                let feed = of_app(number, endpoint);
                let reserved = journal.reserve(&feed, 3, None, at(1)).await;
                out.push(reserved.unwrap_or_else(|why| panic!("{}: {why}", out.len())));
            }
        }
        for reservation in out {
            reservation.close().await;
        }
        assert!(journal.backlog().borrow().bytes < 100_000_000);
    }
}

#[tokio::test]
async fn what_is_reserved_follows_the_answers_of_a_feed() {
    let connection = Connection::open_in_memory().unwrap();
    let (journal, _) = Journal::simulated(connection, 4 << 30, incarnation(1), at(9)).unwrap();
    let mut out = Vec::new();
    for number in 0..32 {
        let feed = of_app(number, Endpoint::User);
        out.push(journal.reserve(&feed, 3, None, at(1)).await.unwrap());
    }
    let bytes = || journal.backlog().borrow().bytes;
    assert!(bytes() >= 32 * RESERVED_BYTES, "the first ones get plenty");
    let [quiet, busy] = [Endpoint::User, Endpoint::Channel].map(|it| of_app(99, it));
    let reserved = async |feed: &Feed| {
        let before = bytes();
        let reservation = journal.reserve(feed, 3, None, at(1)).await.unwrap();
        (reservation, bytes() - before)
    };
    for body in ["".to_owned(), "x".repeat(300_000)] {
        let (first, _) = reserved(&quiet).await;
        first.close().await;
        let (second, _) = reserved(&busy).await;
        second.settle(Content::Page(Page { feed: busy.clone(), ..page(&body) })).await.unwrap();
    }
    let (quiet_out, for_quiet) = reserved(&quiet).await;
    let (busy_out, for_busy) = reserved(&busy).await;
    assert!(for_quiet < 100_000, "{for_quiet}");
    assert!((600_000..700_000).contains(&for_busy), "{for_busy}");
    busy_out.close().await;
    for _ in 0..40 {
        reserved(&busy).await.0.close().await;
    }
    let (faded, for_faded) = reserved(&busy).await;
    assert!(for_faded < 100_000, "{for_faded}");

    // An unexpectedly large answer is stored all the same.
    let body = "y".repeat(3_000_000);
    let surprise = Content::Page(Page { feed: busy.clone(), ..page(&body) });
    faded.settle(surprise).await.unwrap();
    assert_eq!(bodies(&read(&journal).await).last(), Some(&&body[..]));
    quiet_out.close().await;
    for reservation in out {
        reservation.close().await;
    }
    let waiting = read(&journal).await;
    journal.forget(waiting.iter().map(|it| it.sequence).collect()).await;
    journal.flush().await;
    store(&journal, "one").await;
    assert!(bytes() < 1_000_000, "all is given back: {}", bytes());
}

#[tokio::test]
async fn of_requests_that_ask_together_those_leave_that_there_is_room_for() {
    let connection = Connection::open_in_memory().unwrap();
    let (mut store, _) = store::Store::on(
        Database::without_files(connection).unwrap(),
        4 * RESERVED_BYTES,
        incarnation(1),
        at(9),
    )
    .unwrap();
    let (commands, answers): (Vec<_>, Vec<_>) = (0..9)
        .map(|_| {
            let (reply, answer) = oneshot::channel();
            let (feed, since, now) = (feed(Endpoint::User), None, at(1));
            (JournalCommand::Open { feed, partition: 3, since, now, reply }, answer)
        })
        .unzip();
    store.execute(commands);
    let mut answers = answers.into_iter();
    let granted = answers.by_ref().filter_map(|mut it| it.try_recv().unwrap().ok()).count();
    assert_eq!(granted, 3);
}

#[tokio::test]
async fn damaged_pages_that_are_kept_never_fill_the_journal() {
    let operator = shared("kept-for-ever");
    let (journal, _) =
        Journal::simulated(shared("kept-for-ever"), SMALL, incarnation(1), at(9)).unwrap();
    for _ in 0..20 {
        store(&journal, &"x".repeat(1_000_000)).await;
        operator.execute("UPDATE entries SET body = substr(body, 2)", []).unwrap();
        let waiting = read(&journal).await;
        assert_eq!(bodies(&waiting), ["journal_damaged"]);
        journal.forget(vec![waiting[0].sequence]).await;
        journal.flush().await;
    }
    let (count, newest): (u64, i64) = operator
        .query_row("SELECT count(*), max(ticket) FROM damaged", [], |row| {
            Ok((row.get::<_, i64>(0)?.unsigned_abs(), row.get(1)?))
        })
        .unwrap();
    assert_eq!((count, newest), (8, 20), "an eighth of the journal, the newest of them");
    assert_eq!(journal.backlog().borrow().set_aside, count);
}

#[tokio::test]
async fn apps_that_are_not_asked_any_more_are_forgotten_some_day() {
    let operator = shared("gone");
    let day = |day: i64| at(86_400 * day);
    let process = |n, now| Journal::simulated(shared("gone"), ROOM, incarnation(n), now).unwrap();
    let (journal, _) = process(1, day(0));
    for app in ["gone", "waiting", "polled"] {
        let feed = Feed { app: AppId::new(app), ..feed(Endpoint::User) };
        let asked = journal.reserve(&feed, 3, Some(day(0)), day(0)).await.unwrap();
        match app {
            "waiting" => {
                asked.settle(Content::Page(Page { feed, ..page("waits") })).await.unwrap();
            }
            _ => asked.close().await,
        }
    }
    drop(journal);
    let (journal, recovered) = process(2, day(80));
    assert_eq!(recovered.last_requests.len(), 3);
    let polled = Feed { app: AppId::new("polled"), ..feed(Endpoint::User) };
    journal.reserve(&polled, 3, Some(day(80)), day(80)).await.unwrap().close().await;
    drop(journal);
    let (_, recovered) = process(3, day(100));
    let mut apps: Vec<&str> = recovered.last_requests.keys().map(AppId::as_str).collect();
    apps.sort_unstable();
    assert_eq!(apps, ["polled", "waiting"]);
    assert_eq!(recovered.empty_at.len(), 2);
    drop(operator);
}

#[test]
fn of_databases_that_were_replaced_the_last_eight_are_kept() {
    let directory = tempfile::tempdir().unwrap();
    for number in 10..30 {
        for suffix in ["", "-wal"] {
            let name = format!("damaged-2026-01-{number}T00-00-00.000Z.sqlite{suffix}");
            std::fs::write(directory.path().join(name), "old").unwrap();
        }
    }
    files::remove_old(directory.path(), 8);
    let kept = kept(directory.path());
    assert_eq!(kept.len(), 8);
    assert!(kept[0].ends_with("damaged-2026-01-22T00-00-00.000Z.sqlite"), "{kept:?}");
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 16, "with their logs");
}
