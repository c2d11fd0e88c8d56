//! Page records that may be in the pages topic although nothing confirmed them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use agora_rtm_bridge::journal::Journal;
use agora_rtm_bridge::model::Incarnation;
use rusqlite::Connection;
use tokio::time::sleep;

use super::super::kafka_model::Trouble;
use super::loops::{Loops, twice_each};
use super::{PAGES, SECOND};

/// Until something else is set.
const ALWAYS: Duration = Duration::from_secs(86_400);

fn trouble() -> Trouble {
    Trouble { until: ALWAYS, ..Trouble::default() }
}

/// How many names each page has in the pages topic.
fn most_names(loops: &Loops) -> usize {
    let mut names: BTreeMap<Vec<u8>, BTreeSet<Vec<u8>>> = BTreeMap::new();
    for record in loops.kafka.pages() {
        let name = record.headers.iter().find(|(header, _)| header == "page");
        let name = name.expect("each page has a name").1.clone();
        names.entry(record.value.to_vec()).or_default().insert(name);
    }
    names.values().map(BTreeSet::len).max().unwrap_or_default()
}

/// Waits until everything has left, and each page has one name.
async fn ends_well(loops: &Loops) {
    loops.kafka.heal();
    sleep(120 * SECOND).await;
    assert_eq!(most_names(loops), 1, "two copies of a page, under two tickets");
    let mut published = loops.published();
    published.sort();
    let mut expected = twice_each(0..PAGES, &[]);
    expected.sort();
    assert_eq!(published, expected);
    assert_eq!(loops.reasons(), Vec::<String>::new());
    assert_eq!(loops.journal.backlog().borrow().entries, 0);
    loops.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_page_whose_answer_was_lost_keeps_its_ticket_when_it_is_refused() {
    let loops = Loops::start(Trouble { unanswered_page: Some(b"u7."), ..trouble() }).await;
    loops.forward();
    loops.commit(0..PAGES).await;
    sleep(5 * SECOND).await;
    loops.kafka.turn_to(Trouble { refused_page: Some(b"u7."), ..trouble() });
    sleep(60 * SECOND).await;
    assert_eq!(loops.published(), twice_each(0..PAGES, &[]));
    let reasons = loops.reasons();
    assert!(reasons.len() == 1 && reasons[0].contains("refuses page"), "{reasons:?}");
    ends_well(&loops).await;
}

/// Those that were in flight behind a page that failed, some of which are stored.
#[tokio::test(start_paused = true)]
async fn pages_in_flight_behind_one_that_failed_keep_their_tickets_when_they_are_refused() {
    let loops = Loops::start(Trouble { unanswered_page: Some(b"u7."), ..trouble() }).await;
    loops.forward();
    loops.commit(0..PAGES).await;
    sleep(5 * SECOND).await;
    let stored = |number: u64| {
        let user = format!("\"u{number}.\"");
        let mut pages = loops.kafka.pages().into_iter();
        pages.any(|it| it.value.windows(user.len()).any(|part| part == user.as_bytes()))
    };
    assert!((8..12).any(stored) && !stored(20), "some of those in flight are stored");
    loops.kafka.turn_to(Trouble { refused_page: Some(b"\"u"), ..trouble() });
    sleep(300 * SECOND).await;
    ends_well(&loops).await;
}

#[tokio::test(start_paused = true)]
async fn a_page_that_a_killed_process_had_handed_over_keeps_its_ticket_when_it_is_refused() {
    let database =
        || Connection::open("file:/in-doubt-of-another?vfs=memdb").expect("it is in memory");
    let _open = database();
    let unanswered = Trouble { unanswered_page: Some(b"u7."), ..trouble() };
    let loops = Loops::start_on(database(), 1 << 30, unanswered, Duration::ZERO).await;
    loops.forward();
    loops.commit(0..PAGES).await;
    sleep(5 * SECOND).await;
    loops.end().await;

    let loops = loops.anew();
    let now = loops.clock.now();
    let (journal, _) = Journal::simulated(database(), 1 << 30, Incarnation::from_u128(2), now)
        .expect("the journal can be opened");
    let loops = Loops { journal, ..loops };
    loops.kafka.turn_to(Trouble { refused_page: Some(b"u7."), ..trouble() });
    loops.publish(&loops.health, &loops.stop);
    loops.forward();
    sleep(60 * SECOND).await;
    assert_eq!(loops.published(), twice_each(0..PAGES, &[]));
    ends_well(&loops).await;
}

/// A page that is refused alone was never stored: it moves, and holds nothing back.
#[tokio::test(start_paused = true)]
async fn a_page_that_was_never_stored_gets_a_new_ticket_when_it_is_refused() {
    let loops = Loops::start(Trouble { refused_page: Some(b"u7."), ..trouble() }).await;
    loops.forward();
    loops.commit(0..PAGES).await;
    sleep(60 * SECOND).await;
    let waiting = loops.journal.read(0, agora_rtm_bridge::journal::Sequence::START, 2).await;
    let waiting = waiting.expect("the database works");
    assert!(waiting.len() == 1 && waiting[0].entry.id.ticket.0 > PAGES, "{waiting:?}");
    ends_well(&loops).await;
}

/// Eleven pages are aside, and each try of them ends in a time-out.
#[tokio::test(start_paused = true)]
async fn pages_aside_whose_tries_fail_leave_the_others_their_turn() {
    let loops = Loops::start(Trouble { refused_page: Some(b"\"u1"), ..trouble() }).await;
    loops.forward();
    loops.commit(0..20).await;
    sleep(120 * SECOND).await;
    assert_eq!(
        loops.published(),
        twice_each(2..10, &[])
            .into_iter()
            .fold(twice_each(0..1, &[]), |all, user| all.into_iter().chain([user]).collect(),)
    );
    loops.kafka.turn_to(Trouble { failing_page: Some(b"\"u1"), ..trouble() });
    sleep(120 * SECOND).await;
    for number in 20..PAGES {
        loops.commit(number..number + 1).await;
        sleep(30 * SECOND).await;
        let published = loops.published();
        let user = format!("u{number}.");
        assert!(published.contains(&user), "{user} is not among {published:?}");
        let reasons = loops.reasons();
        assert!(reasons.iter().any(|it| it.contains("refuses page")), "{reasons:?}");
    }
    ends_well(&loops).await;
}
