//! Entries that are moved behind all others.

use super::*;

/// Rows with the names of their entries, as an operator sees them.
fn names(connection: &Connection) -> Vec<(i64, String)> {
    let query = "SELECT sequence, incarnation || '/' || ticket FROM entries ORDER BY 1";
    let mut statement = connection.prepare(query).unwrap();
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    rows.collect::<Result<_, _>>().unwrap()
}

fn refuse(connection: &Connection) {
    let trigger = "CREATE TRIGGER refuse BEFORE INSERT ON entries
                   BEGIN SELECT raise(ABORT, 'refused'); END";
    connection.execute_batch(trigger).unwrap();
}

#[tokio::test]
async fn an_entry_that_moves_behind_has_a_new_ticket_and_holds_back_no_watermark() {
    let (journal, _) = simulated(Connection::open_in_memory().unwrap(), 1);
    store(&journal, "one").await;
    let second = store(&journal, "two").await;
    journal.note_gap(3, gap(GapCause::Overflow)).await.unwrap();
    let first = read(&journal).await.remove(0);
    let moved = journal.move_behind(3, first.sequence).await.unwrap();
    assert!(moved.entry.id.ticket > second && moved.entry.content == first.entry.content);
    let waiting = read(&journal).await;
    assert_eq!(bodies(&waiting), ["two", "overflow", "one"]);
    assert_eq!(waiting[2], moved);
    assert_eq!(waiting[0].settled, first.entry.id.ticket, "the first ticket is settled");

    let moved = journal.move_behind(3, waiting[1].sequence).await.unwrap();
    assert_eq!(bodies(&read(&journal).await), ["two", "one", "overflow"]);
    journal.forget(vec![moved.sequence]).await;
    assert_eq!(bodies(&read(&journal).await), ["two", "one"]);
    assert_eq!(journal.backlog().borrow().entries, 2);
}

#[tokio::test]
async fn an_entry_of_an_earlier_process_is_one_of_this_process_after_it_has_moved() {
    let database = || shared("moved-of-another");
    let _operator = database();
    let (journal, _) = simulated(database(), 1);
    store(&journal, "one").await;
    store(&journal, "two").await;
    drop(journal);
    let (journal, _) = simulated(database(), 2);
    let first = read(&journal).await.remove(0);
    let moved = journal.move_behind(3, first.sequence).await.unwrap();
    assert_eq!(moved.entry.id.incarnation, incarnation(2));
    drop(journal);
    let (journal, _) = simulated(database(), 3);
    let waiting = read(&journal).await;
    assert_eq!(bodies(&waiting), ["two", "one"]);
    assert_eq!(waiting[1].entry.id, moved.entry.id);
}

/// Whichever step fails, there is one copy, under one name, in one place.
#[tokio::test]
async fn a_move_that_fails_leaves_the_entry_where_it_is() {
    let database = || shared("move-fails");
    let operator = database();
    let (journal, _) = simulated(database(), 1);
    let first = store(&journal, "one").await;
    store(&journal, "two").await;
    let before = (names(&operator), read(&journal).await);
    refuse(&operator);
    let place = before.1[0].sequence;
    let refused = journal.move_behind(3, place).await;
    assert!(matches!(refused, Err(JournalError::Database { .. })), "{refused:?}");
    assert_eq!((names(&operator), read(&journal).await), before);

    operator.execute_batch("DROP TRIGGER refuse").unwrap();
    let moved = journal.move_behind(3, place).await.unwrap();
    assert!(moved.entry.id.ticket > first);
    assert_eq!(bodies(&read(&journal).await), ["two", "one"]);
    let gone = journal.move_behind(3, place).await;
    assert!(matches!(gone, Err(JournalError::NotThere)), "{gone:?}");
    assert_eq!(names(&operator).len(), 2);
}

#[tokio::test]
async fn an_entry_does_not_move_while_pages_wait_in_memory() {
    let database = || shared("move-in-memory");
    let operator = database();
    let (journal, _) = simulated(database(), 1);
    store(&journal, "one").await;
    let reservation = reserve(&journal).await;
    refuse(&operator);
    reservation.settle(Content::Page(page("two"))).await.unwrap_err();
    for waiting in read(&journal).await {
        let refused = journal.move_behind(3, waiting.sequence).await;
        assert!(matches!(refused, Err(JournalError::PagesInMemory { pages: 1 })), "{refused:?}");
    }
    assert_eq!(bodies(&read(&journal).await), ["one", "two"]);
}

#[tokio::test]
async fn a_full_journal_moves_entries_all_the_same() {
    let connection = Connection::open_in_memory().unwrap();
    let opened = Journal::simulated(connection, 2 * RESERVED_BYTES, incarnation(1), at(9));
    let (journal, _) = opened.unwrap();
    store(&journal, "one").await;
    store(&journal, "two").await;
    let _out = reserve(&journal).await;
    let full = journal.reserve(&feed(Endpoint::User), 3, None, at(1)).await;
    assert!(matches!(full, Err(JournalError::Full { .. })), "{full:?}");
    let first = read(&journal).await[0].sequence;
    journal.move_behind(3, first).await.unwrap();
    assert_eq!(bodies(&read(&journal).await), ["two", "one"]);
}

/// The row of a released entry stays negative until something else is written.
#[tokio::test]
async fn an_entry_that_was_just_released_can_move() {
    let database = || shared("move-released");
    let operator = database();
    let (journal, _) = simulated(database(), 1);
    let held = [hold(&journal, "one").await, hold(&journal, "two").await];
    journal.release(held.into()).await;
    let first = read(&journal).await[0].sequence;
    journal.move_behind(3, first).await.unwrap();
    assert_eq!(bodies(&read(&journal).await), ["two", "one"]);
    assert_eq!(rows(&operator), [2, 3]);
}
