use bytes::Bytes;
use rusqlite::Connection;

use super::*;
use crate::model::Content;
use crate::model::Endpoint;
use crate::model::GapCause;
use crate::model::Region;
use crate::model::Wholeness;

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
        body: Bytes::copy_from_slice(body.as_bytes()),
    }
}

fn simulated(connection: Connection, n: u128) -> (Journal, Recovered) {
    Journal::simulated(connection, ROOM, incarnation(n), at(9)).unwrap()
}

async fn store(journal: &Journal, body: &str) -> Ticket {
    let feed = feed(Endpoint::User);
    let reservation = journal.reserve(&feed, 3, None, at(1)).await.unwrap();
    let ticket = reservation.ticket();
    reservation.settle(Settlement::Page(page(body))).await.unwrap();
    ticket
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
    empty.settle(Settlement::Nothing).await.unwrap();
    let open = journal.reserve(&feed, 3, None, at(1)).await.unwrap();
    store(&journal, "three").await;
    store(&journal, "four").await;

    let waiting = journal.read(3, Sequence::START, 9).await.unwrap();
    assert_eq!(waiting.iter().map(|it| it.settled.0).collect::<Vec<_>>(), [1, 1]);
    open.settle(Settlement::Nothing).await.unwrap();
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
    assert!(matches!(open(2), Err(OpenError::InUse(_))));
    // The lock goes with the thread, which ends when the last handle is gone.
    drop(journal);
    let (journal, recovered) = loop {
        match open(2) {
            Err(OpenError::InUse(_)) => std::thread::yield_now(),
            opened => break opened.unwrap(),
        }
    };
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
        reservation.settle(Settlement::Nothing).await.unwrap();
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
            reservation.settle(Settlement::Nothing).await.unwrap();
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
    second.settle(Settlement::Nothing).await.unwrap();
    let again = journal.reserve(&user, 3, None, at(1)).await.unwrap();
    first.settle(Settlement::Page(page("kept"))).await.unwrap();
    again.settle(Settlement::Nothing).await.unwrap();
}

#[tokio::test]
async fn a_page_that_can_not_be_stored_goes_on_from_memory() {
    let connection = || Connection::open("file:refusing?mode=memory&cache=shared").unwrap();
    let operator = connection();
    let (journal, _) = simulated(connection(), 1);
    let user = feed(Endpoint::User);
    let reservation = journal.reserve(&user, 3, None, at(1)).await.unwrap();
    operator.execute_batch("ALTER TABLE entries RENAME TO away").unwrap();
    reservation.settle(Settlement::Page(page("homeless"))).await.unwrap_err();
    operator.execute_batch("ALTER TABLE away RENAME TO entries").unwrap();
    let waiting = journal.read(3, Sequence::START, 9).await.unwrap();
    assert_eq!(bodies(&waiting), ["homeless"]);
    // The next command that writes finds the database well again and stores it.
    journal
        .reserve(&user, 3, None, at(1))
        .await
        .unwrap()
        .settle(Settlement::Nothing)
        .await
        .unwrap();
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
    let waiting = journal.read(3, Sequence::START, 9).await.unwrap();
    assert_eq!(bodies(&waiting), ["two"]);
    let aside: i64 =
        operator.query_row("SELECT count(*) FROM damaged", [], |row| row.get(0)).unwrap();
    assert_eq!(aside, 1);
}

#[test]
fn a_journal_of_a_newer_version_is_refused() {
    let connection = Connection::open_in_memory().unwrap();
    connection.execute_batch("PRAGMA user_version = 2").unwrap();
    let opened = Journal::simulated(connection, ROOM, incarnation(1), at(9));
    assert!(matches!(opened, Err(OpenError::Newer { version: 2, .. })));
}
