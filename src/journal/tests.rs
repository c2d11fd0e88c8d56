mod damage;
mod doubt;
mod model;
mod moving;
mod room;

use bytes::Bytes;
use rusqlite::Connection;

use super::*;
use crate::model::{Endpoint, GapCause, Region, Wholeness};

const ROOM: u64 = 64 * 1024 * 1024;

fn incarnation(n: u128) -> Incarnation {
    Incarnation::from_u128(n)
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_millis(1_600_000_000_000 + 1_000 * second)
}

fn feed(endpoint: Endpoint) -> Feed {
    Feed { app: AppId::new("a"), region: Region::new("eu"), endpoint }
}

fn page(body: &str) -> Page {
    Page {
        feed: feed(Endpoint::User),
        since: None,
        asked_at: at(1),
        answered_at: at(2),
        status: 200,
        wholeness: Wholeness::Whole,
        request_id: Some("r".to_owned()),
        resource_id: None,
        content_encoding: None,
        body: Bytes::copy_from_slice(body.as_bytes()),
    }
}

fn simulated(connection: Connection, n: u128) -> (Journal, Recovered) {
    Journal::simulated(connection, ROOM, incarnation(n), at(9)).unwrap()
}

/// The lock is released by the previous journal's thread, which ends when its last handle is
/// dropped.
fn next_process(
    open: impl Fn() -> Result<(Journal, Recovered), OpenError>,
) -> (Journal, Recovered) {
    loop {
        match open() {
            Err(OpenError::InUse { .. }) => std::thread::yield_now(),
            opened => return opened.unwrap(),
        }
    }
}

async fn store(journal: &Journal, body: &str) -> Ticket {
    let feed = feed(Endpoint::User);
    let reservation = journal.reserve(&feed, 3, None, at(1)).await.unwrap();
    let ticket = reservation.ticket();
    reservation.settle(Content::Page(page(body))).await.unwrap();
    ticket
}

async fn reserve(journal: &Journal) -> Reservation {
    journal.reserve(&feed(Endpoint::User), 3, None, at(1)).await.unwrap()
}

async fn hold(journal: &Journal, body: &str) -> Held {
    let (held, stored) = reserve(journal).await.hold(Content::Page(page(body))).await;
    stored.unwrap();
    held
}

async fn read(journal: &Journal) -> Vec<Waiting> {
    journal.read(3, Sequence::START, 9).await.unwrap()
}

fn gap(cause: GapCause) -> Gap {
    let feed = feed(Endpoint::User);
    Gap { feed, cause, from: None, to: at(5), at_least: 1, at_most: None }
}

/// A database shared by several connections (consecutive processes, an operator). It exists as long
/// as one of them does.
fn shared(name: &str) -> Connection {
    Connection::open(format!("file:{name}?mode=memory&cache=shared")).unwrap()
}

fn rows(connection: &Connection) -> Vec<i64> {
    let mut statement = connection.prepare("SELECT sequence FROM entries ORDER BY 1").unwrap();
    statement.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap()
}

fn bodies(waiting: &[Waiting]) -> Vec<&str> {
    waiting
        .iter()
        .map(|it| match &it.entry.content {
            Content::Page(page) => std::str::from_utf8(&page.body).unwrap(),
            Content::Gap(gap) => gap.cause.name(),
        })
        .collect()
}

#[tokio::test]
async fn pages_are_read_in_order_until_they_are_forgotten() {
    let (journal, _) = simulated(Connection::open_in_memory().unwrap(), 1);
    for body in ["one", "two", "three"] {
        store(&journal, body).await;
    }
    let waiting = journal.read(3, Sequence::START, 2).await.unwrap();
    assert_eq!(bodies(&waiting), ["one", "two"]);
    assert_eq!(waiting[0].entry.content, Content::Page(page("one")));
    assert!(journal.read(4, Sequence::START, 9).await.unwrap().is_empty());

    journal.forget(vec![waiting[0].sequence]).await;
    let waiting = journal.read(3, Sequence::START, 9).await.unwrap();
    assert_eq!(bodies(&waiting), ["two", "three"]);
    let waiting = journal.read(3, waiting[0].sequence, 9).await.unwrap();
    assert_eq!(bodies(&waiting), ["three"]);
    assert_eq!(journal.backlog().borrow().entries, 2);
}

#[tokio::test]
async fn what_was_forgotten_is_not_read_by_one_who_begins_anew() {
    let (journal, _) = simulated(Connection::open_in_memory().unwrap(), 1);
    for body in ["one", "two", "three"] {
        store(&journal, body).await;
    }
    let waiting = journal.read(3, Sequence::START, 2).await.unwrap();
    journal.forget(waiting.iter().map(|it| it.sequence).collect()).await;
    let waiting = journal.read(3, Sequence::START, 2).await.unwrap();
    assert_eq!(bodies(&waiting), ["three"]);
}

#[tokio::test]
async fn settled_never_passes_what_is_open_or_waits() {
    let (journal, _) = simulated(Connection::open_in_memory().unwrap(), 1);
    let feed = feed(Endpoint::Channel);
    let empty = journal.reserve(&feed, 3, None, at(1)).await.unwrap();
    empty.close().await;
    let open = journal.reserve(&feed, 3, None, at(1)).await.unwrap();
    store(&journal, "three").await;
    store(&journal, "four").await;

    let waiting = journal.read(3, Sequence::START, 9).await.unwrap();
    assert_eq!(waiting.iter().map(|it| it.settled.0).collect::<Vec<_>>(), [1, 1]);
    open.close().await;
    let waiting = journal.read(3, Sequence::START, 9).await.unwrap();
    assert_eq!(waiting.iter().map(|it| it.settled.0).collect::<Vec<_>>(), [2, 2]);
    journal.forget(vec![waiting[0].sequence]).await;
    let waiting = journal.read(3, Sequence::START, 9).await.unwrap();
    assert_eq!(waiting[0].settled, Ticket(3));
}

#[tokio::test]
async fn the_next_process_finds_what_waits_and_what_was_out() {
    let directory = tempfile::tempdir().unwrap();
    let open = |n| {
        Journal::open(directory.path(), ROOM, incarnation(n), at(8 + i64::try_from(n).unwrap()))
    };
    let (journal, _) = open(1).unwrap();
    store(&journal, "kept").await;
    let channel = feed(Endpoint::Channel);
    let killed = journal.reserve(&channel, 3, Some(at(4)), at(5)).await.unwrap();
    drop(killed);
    let refused = open(2).unwrap_err().to_string();
    let holder = format!("in use by process {} on `", std::process::id());
    assert!(refused.contains(&holder), "{refused}");
    assert!(refused.contains("since 2020-09-13T12:26:49.000Z; give each its own"), "{refused}");
    drop(journal);
    let (journal, recovered) = next_process(|| open(2));
    assert_eq!(recovered.killed_in_flight, 1);
    assert!(recovered.last_requests[&channel.app].contains(&at(5)));
    let waiting = journal.read(3, Sequence::START, 9).await.unwrap();
    assert_eq!(bodies(&waiting), ["kept", "process_killed"]);
    let Content::Gap(gap) = &waiting[1].entry.content else { panic!("a gap") };
    assert_eq!((gap.cause, gap.from, gap.to), (GapCause::ProcessKilled, Some(at(4)), at(20)));
    assert_eq!(waiting[1].entry.id.incarnation, incarnation(1));
    assert_eq!(waiting[1].settled, Ticket(0), "the page before it is not forwarded yet");
}

#[tokio::test]
async fn what_a_feed_was_known_for_is_known_to_the_next_process() {
    let connection = || Connection::open("file:known?mode=memory&cache=shared").unwrap();
    let keep = connection();
    let (journal, _) = simulated(connection(), 1);
    let user = feed(Endpoint::User);
    for (since, asked_at) in [(Some(at(3)), at(4)), (None, at(5))] {
        let reservation = journal.reserve(&user, 3, since, asked_at).await.unwrap();
        reservation.close().await;
    }
    let (_, recovered) = simulated(connection(), 2);
    assert_eq!(recovered.empty_at[&user], at(3));
    assert_eq!(recovered.last_requests[&user.app], [at(4), at(5)]);
    drop(keep);
}

#[tokio::test]
async fn the_last_ten_requests_are_known_over_all_processes() {
    let connection = || Connection::open("file:requests?mode=memory&cache=shared").unwrap();
    let keep = connection();
    let user = feed(Endpoint::User);
    let mut asked_at = 0;
    for (process, requests) in [(1, 7), (2, 6), (3, 0)] {
        let (journal, recovered) = simulated(connection(), process);
        let mut known = recovered.last_requests.get(&user.app).cloned().unwrap_or_default();
        known.sort();
        assert_eq!(
            known,
            (asked_at - i64::try_from(known.len()).unwrap()..asked_at).map(at).collect::<Vec<_>>()
        );
        assert_eq!(i64::try_from(known.len()).unwrap(), asked_at.min(10));
        for _ in 0..requests {
            let reservation = journal.reserve(&user, 3, None, at(asked_at)).await.unwrap();
            reservation.close().await;
            asked_at += 1;
        }
    }
    drop(keep);
}

#[tokio::test]
async fn a_full_journal_refuses_before_the_request_and_not_after() {
    let connection = Connection::open_in_memory().unwrap();
    let (journal, _) =
        Journal::simulated(connection, 3 * RESERVED_BYTES, incarnation(1), at(9)).unwrap();
    let user = feed(Endpoint::User);
    let first = journal.reserve(&user, 3, None, at(1)).await.unwrap();
    let second = journal.reserve(&user, 3, None, at(1)).await.unwrap();
    let refused = journal.reserve(&user, 3, None, at(1)).await.unwrap_err();
    assert!(matches!(refused, JournalError::Full { .. }), "{refused}");
    second.close().await;
    let again = journal.reserve(&user, 3, None, at(1)).await.unwrap();
    first.settle(Content::Page(page("kept"))).await.unwrap();
    again.close().await;
}

#[tokio::test]
async fn a_page_that_can_not_be_stored_goes_on_from_memory() {
    let connection = || Connection::open("file:refusing?mode=memory&cache=shared").unwrap();
    let operator = connection();
    let (journal, _) = simulated(connection(), 1);
    let user = feed(Endpoint::User);
    let reservation = journal.reserve(&user, 3, None, at(1)).await.unwrap();
    operator.execute_batch("ALTER TABLE entries RENAME TO away").unwrap();
    reservation.settle(Content::Page(page("homeless"))).await.unwrap_err();
    operator.execute_batch("ALTER TABLE away RENAME TO entries").unwrap();
    let waiting = journal.read(3, Sequence::START, 9).await.unwrap();
    assert_eq!(bodies(&waiting), ["homeless"]);
    // The next command that writes finds the database working again and stores it.
    journal.reserve(&user, 3, None, at(1)).await.unwrap().close().await;
    let stored: i64 =
        operator.query_row("SELECT count(*) FROM entries", [], |row| row.get(0)).unwrap();
    assert_eq!(stored, 1);
}

#[tokio::test]
async fn a_damaged_page_is_set_aside_and_blocks_nobody() {
    let connection = || Connection::open("file:damaged?mode=memory&cache=shared").unwrap();
    let operator = connection();
    let (journal, _) = simulated(connection(), 1);
    for body in ["one", "two"] {
        store(&journal, body).await;
    }
    operator.execute("UPDATE entries SET body = x'00' WHERE sequence = 1", []).unwrap();
    for _ in 0..2 {
        let waiting = journal.read(3, Sequence::START, 9).await.unwrap();
        assert_eq!(bodies(&waiting), ["journal_damaged", "two"]);
        let Content::Gap(gap) = &waiting[0].entry.content else { panic!("a gap") };
        assert_eq!((gap.from, gap.to, gap.at_most), (None, at(12), Some(1_000)));
        assert_eq!(waiting[0].entry.id.ticket, Ticket(1), "the name of the page");
    }
    assert_eq!(journal.backlog().borrow().set_aside, 1);
    let aside: i64 =
        operator.query_row("SELECT count(*) FROM damaged", [], |row| row.get(0)).unwrap();
    assert_eq!(aside, 1);
}

#[test]
fn a_journal_of_a_newer_version_is_refused() {
    let connection = Connection::open_in_memory().unwrap();
    connection.execute_batch("PRAGMA user_version = 5").unwrap();
    let opened = Journal::simulated(connection, ROOM, incarnation(1), at(9));
    assert!(matches!(opened, Err(OpenError::Newer { version: 5, .. })));
}

#[tokio::test]
async fn what_is_held_is_read_after_its_release_and_in_its_order() {
    let (journal, _) = simulated(Connection::open_in_memory().unwrap(), 1);
    let backlog = journal.backlog();
    let one = hold(&journal, "one").await;
    let two = hold(&journal, "two").await;
    assert_eq!(one.id(), PageId { incarnation: incarnation(1), ticket: Ticket(1) });
    store(&journal, "visible at once").await;
    assert_eq!(bodies(&read(&journal).await), ["visible at once"]);
    let before = backlog.borrow().clone();
    assert_eq!((before.entries, before.newest), (3, Sequence(1)));

    journal.release(vec![two, one]).await;
    assert_eq!(backlog.borrow().newest, Sequence(3), "the forwarder wakes");
    let waiting = read(&journal).await;
    assert_eq!(bodies(&waiting), ["visible at once", "two", "one"]);
    store(&journal, "later").await;
    let waiting_later = read(&journal).await;
    assert_eq!(bodies(&waiting_later), ["visible at once", "two", "one", "later"]);
    assert_eq!(waiting_later[..3], waiting, "a row that moves keeps its sequence");
    let behind = journal.read(3, waiting[1].sequence, 1).await.unwrap();
    assert_eq!(bodies(&behind), ["one"]);
    assert!(journal.read(4, Sequence::START, 9).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_released_page_goes_when_it_is_forgotten_and_is_not_written_twice() {
    let operator = shared("released");
    let (journal, _) = simulated(shared("released"), 1);
    let held = hold(&journal, "held").await;
    journal.release(vec![held]).await;
    let waiting = read(&journal).await;
    assert_eq!(rows(&operator), [-1], "where it was held");
    journal.forget(vec![waiting[0].sequence]).await;
    assert!(read(&journal).await.is_empty());
    journal.flush().await;
    assert!(rows(&operator).is_empty());
    assert_eq!(journal.backlog().borrow().entries, 0);
}

#[tokio::test]
async fn settled_never_passes_what_is_held() {
    let (journal, _) = simulated(Connection::open_in_memory().unwrap(), 1);
    let held = hold(&journal, "one").await;
    store(&journal, "two").await;
    assert_eq!(read(&journal).await[0].settled, Ticket(0));
    journal.release(vec![held]).await;
    let waiting = read(&journal).await;
    assert_eq!(waiting[0].settled, Ticket(0));
    journal.forget(vec![waiting[1].sequence]).await;
    assert_eq!(read(&journal).await[0].settled, Ticket(1));
}

#[tokio::test]
async fn what_a_dead_process_held_comes_back_once_in_the_order_of_settling() {
    let _keep = shared("held");
    let (journal, _) = simulated(shared("held"), 1);
    let first = hold(&journal, "first").await;
    let second = hold(&journal, "second").await;
    let (lost, stored) = reserve(&journal).await.hold(Content::Gap(gap(GapCause::BodyCut))).await;
    stored.unwrap();
    drop((first, second, lost, journal));

    let (journal, mut recovered) = simulated(shared("held"), 2);
    let found: Vec<_> = recovered.held.iter().map(|(held, page)| (held.id(), page)).collect();
    let id = |ticket| PageId { incarnation: incarnation(1), ticket: Ticket(ticket) };
    assert_eq!(found, [(id(1), &page("first")), (id(2), &page("second"))]);
    assert_eq!(journal.backlog().borrow().entries, 3);
    let waiting = read(&journal).await;
    assert_eq!(bodies(&waiting), ["body_cut"], "a gap needs no order");
    assert_eq!(waiting[0].settled, Ticket(0), "the pages before it are held");

    let third = hold(&journal, "third").await;
    journal.release(vec![recovered.held.remove(1).0, third]).await;
    assert_eq!(bodies(&read(&journal).await), ["body_cut", "second", "third"]);
    journal.flush().await;
    drop(journal);
    let (journal, recovered) = simulated(shared("held"), 3);
    assert_eq!(recovered.held.len(), 1);
    assert_eq!(recovered.held[0].1, page("first"));
    assert_eq!(bodies(&read(&journal).await), ["body_cut", "second", "third"]);
}

#[tokio::test]
async fn no_later_page_overtakes_a_released_one_by_a_crash() {
    let _keep = shared("overtaken");
    let (journal, _) = simulated(shared("overtaken"), 1);
    let held = hold(&journal, "released").await;
    journal.release(vec![held]).await;
    store(&journal, "later").await;
    drop(journal);
    let (journal, recovered) = simulated(shared("overtaken"), 2);
    assert!(recovered.held.is_empty());
    assert_eq!(bodies(&read(&journal).await), ["released", "later"]);
}

#[tokio::test]
async fn a_held_page_that_can_not_be_stored_waits_in_memory_and_is_still_held() {
    let operator = shared("refusing-held");
    let (journal, _) = simulated(shared("refusing-held"), 1);
    let stored_before = hold(&journal, "stored").await;
    let [early, late] = [reserve(&journal).await, reserve(&journal).await];
    let visible = reserve(&journal).await;
    operator.execute_batch("ALTER TABLE entries RENAME TO away").unwrap();
    let (early, failed) = early.hold(Content::Page(page("early"))).await;
    failed.unwrap_err();
    let (late, failed) = late.hold(Content::Page(page("late"))).await;
    failed.unwrap_err();
    journal.release(vec![late, stored_before]).await;
    visible.settle(Content::Page(page("visible"))).await.unwrap_err();
    operator.execute_batch("ALTER TABLE away RENAME TO entries").unwrap();
    assert_eq!(bodies(&read(&journal).await), ["late", "stored", "visible"]);

    // The next command that writes finds the database working again and stores them.
    reserve(&journal).await.close().await;
    assert_eq!(rows(&operator), [-2, 1, 2, 3]);
    journal.release(vec![early]).await;
    assert_eq!(bodies(&read(&journal).await), ["late", "stored", "visible", "early"]);
}

#[tokio::test]
async fn a_damaged_page_is_set_aside_whether_held_or_released() {
    let operator = shared("damaged-held");
    let (journal, _) = simulated(shared("damaged-held"), 1);
    let released = hold(&journal, "released").await;
    drop(hold(&journal, "held").await);
    journal.release(vec![released]).await;
    operator.execute("UPDATE entries SET body = x'00'", []).unwrap();
    assert_eq!(bodies(&read(&journal).await), ["journal_damaged"]);
    journal.flush().await;
    assert_eq!(rows(&operator), [-2, 1]);
    drop(journal);
    let (journal, recovered) = simulated(shared("damaged-held"), 2);
    assert!(recovered.held.is_empty());
    assert_eq!(bodies(&read(&journal).await), ["journal_damaged", "journal_damaged"]);
    let aside: i64 =
        operator.query_row("SELECT count(*) FROM damaged", [], |row| row.get(0)).unwrap();
    assert_eq!(aside, 2);
}

#[tokio::test]
async fn a_gap_of_no_request_has_a_ticket_of_its_own() {
    let connection = Connection::open_in_memory().unwrap();
    // The journal is full, but accepts a gap all the same.
    let (journal, _) =
        Journal::simulated(connection, RESERVED_BYTES, incarnation(1), at(9)).unwrap();
    let before = journal.backlog().borrow().bytes;
    journal.note_gap(3, gap(GapCause::Overflow)).await.unwrap();
    journal.note_gap(3, gap(GapCause::Overflow)).await.unwrap();
    let waiting = read(&journal).await;
    assert_eq!(bodies(&waiting), ["overflow", "overflow"]);
    assert_eq!(waiting.iter().map(|it| it.entry.id.ticket.0).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(waiting[1].settled, Ticket(0));
    let bytes = journal.backlog().borrow().bytes;
    assert!((before..before + 65_536).contains(&bytes), "{before} {bytes}");
}

#[tokio::test]
async fn a_pace_is_written_with_something_else_or_by_a_flush() {
    let operator = shared("pace");
    let (journal, _) = simulated(shared("pace"), 1);
    let [user, channel] = [feed(Endpoint::User), feed(Endpoint::Channel)];
    let written = || -> i64 {
        let query = "SELECT count(*) FROM feeds WHERE paced_at IS NOT NULL";
        operator.query_row(query, [], |row| row.get(0)).unwrap()
    };
    let pace = |events_per_second| Pace { events_per_second, burst: 1_990.0 };
    journal.keep_pace(&user, pace(1.5), at(1)).await;
    journal.keep_pace(&user, pace(2.5), at(2)).await;
    assert_eq!(written(), 0);
    let reservation = journal.reserve(&user, 3, Some(at(3)), at(4)).await.unwrap();
    assert_eq!(written(), 1);
    reservation.close().await;
    journal.keep_pace(&channel, pace(f64::NAN), at(5)).await;
    journal.flush().await;
    assert_eq!(written(), 2);
    let (_, recovered) = simulated(shared("pace"), 2);
    assert_eq!(recovered.paces, HashMap::from([(user.clone(), (pace(2.5), at(2)))]));
    assert_eq!(recovered.empty_at, HashMap::from([(user, at(3))]));
}

#[tokio::test]
async fn a_journal_of_version_1_is_read_and_becomes_one_of_this_version() {
    let operator = shared("version-1");
    operator.execute_batch(include_str!("../../tests/fixtures/journal-version-1.sql")).unwrap();
    let (journal, recovered) = simulated(shared("version-1"), 2);
    assert_eq!(bodies(&read(&journal).await), ["kept by version 1", "process_killed"]);
    let user = feed(Endpoint::User);
    assert_eq!(recovered.empty_at, HashMap::from([(user.clone(), at(3))]));
    assert_eq!(recovered.last_requests[&user.app], [at(4)]);
    let pace = Pace { events_per_second: 7.0, burst: 0.0 };
    journal.keep_pace(&user, pace, at(6)).await;
    journal.flush().await;
    drop(journal);
    let (_, recovered) = simulated(shared("version-1"), 3);
    assert_eq!(recovered.paces[&user], (pace, at(6)));
    let version: i64 = operator.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
    assert_eq!(version, schema::VERSION);
}

#[tokio::test]
async fn a_journal_of_version_2_is_read_and_becomes_one_of_this_version() {
    let operator = shared("version-2");
    operator.execute_batch(include_str!("../../tests/fixtures/journal-version-2.sql")).unwrap();
    let (journal, recovered) = simulated(shared("version-2"), 2);
    let waiting = read(&journal).await;
    assert_eq!(bodies(&waiting), ["kept by version 2", "overflow", "process_killed"]);
    assert_eq!(&recovered.held[0].1.body[..], b"held by version 2");
    let pace = Pace { events_per_second: 2.5, burst: 1_990.0 };
    assert_eq!(recovered.paces[&feed(Endpoint::User)], (pace, at(2)));
    drop(journal);
    operator.execute("UPDATE entries SET partition = 4 WHERE sequence = 5", []).unwrap();
    let (journal, _) = simulated(shared("version-2"), 3);
    let waiting = journal.read(4, Sequence::START, 9).await.unwrap();
    assert_eq!(bodies(&waiting), ["journal_damaged"], "its checksum covers the partition now");
}

#[tokio::test]
async fn a_journal_of_version_3_is_read_and_becomes_one_of_this_version() {
    let operator = shared("version-3");
    operator.execute_batch(include_str!("../../tests/fixtures/journal-version-3.sql")).unwrap();
    let mark = schema::mark(&operator).unwrap();
    let (journal, recovered) = simulated(shared("version-3"), 2);
    let waiting = read(&journal).await;
    assert_eq!(bodies(&waiting), ["kept by version 3", "overflow", "process_killed"]);
    assert_eq!(&recovered.held[0].1.body[..], b"held by version 3");
    let pace = Pace { events_per_second: 2.5, burst: 1_990.0 };
    assert_eq!(recovered.paces[&feed(Endpoint::User)], (pace, at(2)));
    assert_eq!(recovered.in_doubt, None);
    assert_eq!(schema::version(&operator).unwrap(), schema::VERSION);
    assert_eq!(schema::mark(&operator).unwrap(), mark, "the file has it until it is copied there");
}

#[tokio::test]
async fn a_page_whose_feed_is_damaged_is_set_aside_and_its_gap_names_no_other() {
    let operator = shared("whose");
    let (journal, _) = simulated(shared("whose"), 1);
    store(&journal, "ours").await;
    store(&journal, "of the next process").await;
    operator.execute("UPDATE entries SET app = 'b' WHERE sequence = 1", []).unwrap();
    let waiting = read(&journal).await;
    assert_eq!(bodies(&waiting), ["journal_damaged", "of the next process"]);
    assert_eq!(waiting[0].entry.content.feed(), &feed(Endpoint::User), "memory knows it");
    journal.forget(vec![waiting[0].sequence]).await;
    journal.flush().await;
    drop(journal);

    operator.execute("UPDATE entries SET app = 'b'", []).unwrap();
    let (journal, _) = simulated(shared("whose"), 2);
    assert!(read(&journal).await.is_empty(), "nobody knows it");
    let backlog = journal.backlog().borrow().clone();
    assert_eq!((backlog.entries, backlog.set_aside), (0, 2));
}
