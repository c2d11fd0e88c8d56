//! The two loops behind the poller, when Kafka is not as it was: it refuses pages or events for good,
//! topics were deleted, somebody else owns the partition. And when what the memory laid down is gone.

mod in_doubt;
mod loops;

use std::time::Duration;

use agora_rtm_bridge::kafka::Topic;
use agora_rtm_bridge::model::{AppId, Content, Endpoint, Timestamp};
use agora_rtm_bridge::observe::accounts::Column;
use agora_rtm_bridge::observe::health::Health;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use rusqlite::Connection;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::kafka_model::{Cluster, Trouble};
use crate::support::pages;

use self::loops::{Loops, twice_each};

const SECOND: Duration = Duration::from_secs(1);
const PAGES: u64 = 30;

/// When everything begins, by the cluster's clock.
const EPOCH: Timestamp = Timestamp::from_millis(1_700_000_000_000);

#[tokio::test(start_paused = true)]
async fn a_page_that_the_pages_topic_refuses_waits_in_the_journal_and_the_others_go_on() {
    let trouble = Trouble { refused_page: Some(b"u7."), until: 600 * SECOND, ..Trouble::default() };
    let loops = Loops::start(trouble).await;
    loops.commit(0..PAGES).await;
    loops.forward();
    sleep(20 * SECOND).await;
    assert_eq!(loops.published(), twice_each(0..PAGES, &[7]));
    let reasons = loops.reasons();
    assert!(reasons.len() == 1 && reasons[0].contains("refuses page"), "{reasons:?}");
    assert_eq!(loops.journal.backlog().borrow().entries, 1);

    // It is tried again and again, and others pass it each time.
    loops.commit(PAGES..2 * PAGES).await;
    sleep(200 * SECOND).await;
    assert_eq!(loops.published(), twice_each(0..2 * PAGES, &[7]));
    loops.kafka.heal();
    sleep(60 * SECOND).await;
    let published = loops.published();
    assert_eq!(published.len() as u64, 4 * PAGES);
    assert!(published.ends_with(&["u7.", "u7."].map(str::to_owned)), "{published:?}");
    assert_eq!(loops.reasons(), Vec::<String>::new());
    assert_eq!(loops.journal.backlog().borrow().entries, 0);
    loops.end().await;
}

/// A busy loop would read the journal without end, and simulated time would stand still.
#[tokio::test(start_paused = true)]
async fn a_gap_that_the_pages_topic_refuses_leaves_when_it_is_taken_and_the_others_go_on() {
    let trouble = Trouble { refused_gaps: true, until: 600 * SECOND, ..Trouble::default() };
    let loops = Loops::start(trouble).await;
    for number in 0..5 {
        loops.commit(6 * number..6 * number + 6).await;
        loops.journal.note_gap(0, pages::gap(&AppId::new("a"))).await.expect("it is stored");
    }
    loops.forward();
    sleep(120 * SECOND).await;
    assert_eq!(loops.published(), twice_each(0..PAGES, &[]));
    let reasons = loops.reasons();
    assert!(reasons.len() == 1 && reasons[0].contains("and 4 more"), "{reasons:?}");

    let reads = loops.forwarder.reads.get();
    loops.commit(PAGES..2 * PAGES).await;
    sleep(3_600 * SECOND).await;
    assert_eq!(loops.published(), twice_each(0..2 * PAGES, &[]));
    // Each of five is tried every 30 s. That is three reads: of it, of its new place, and behind it.
    let reads = loops.forwarder.reads.get() - reads;
    assert!((1_200..2 * PAGES + 3 * 5 * 121 + 20).contains(&reads), "{reads} reads in an hour");

    loops.kafka.heal();
    sleep(31 * SECOND).await;
    assert_eq!(loops.kafka.records(Topic::Gaps).len(), 5);
    assert_eq!(loops.reasons(), Vec::<String>::new());
    assert_eq!(loops.journal.backlog().borrow().entries, 0);
    loops.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_full_journal_with_a_page_that_is_refused_forwards_all_others() {
    let trouble = Trouble { refused_page: Some(b"u7."), until: 600 * SECOND, ..Trouble::default() };
    let database = Connection::open_in_memory().expect("SQLite has databases in memory");
    let loops = Loops::start_on(database, 4 << 20, trouble, Duration::ZERO).await;
    loops.commit(0..PAGES).await;
    // Requests that are out have all the room that there is.
    let feed = pages::of_users(&AppId::new("a"), loops.clock.now(), String::new()).feed;
    let mut out = Vec::new();
    while let Ok(room) = loops.journal.reserve(&feed, 0, None, loops.clock.now()).await {
        out.push(room);
    }
    loops.forward();
    sleep(120 * SECOND).await;
    assert_eq!(loops.published(), twice_each(0..PAGES, &[7]));
    let reasons = loops.reasons();
    assert!(reasons.len() == 1 && reasons[0].contains("refuses page"), "{reasons:?}");

    loops.kafka.heal();
    sleep(31 * SECOND).await;
    assert_eq!(loops.published().len() as u64, 2 * PAGES);
    assert_eq!(loops.reasons(), Vec::<String>::new());
    assert_eq!(loops.journal.backlog().borrow().entries, 0);
    for room in out {
        room.close().await;
    }
    loops.end().await;
}

/// The database takes no more, and so pages wait in memory: the one that is refused can't be moved.
#[tokio::test(start_paused = true)]
async fn a_full_disk_with_a_page_that_is_refused_forwards_all_others() {
    let trouble = Trouble { refused_page: Some(b"u7."), until: 600 * SECOND, ..Trouble::default() };
    let name = "file:/refused-on-a-full-disk?vfs=memdb";
    let database = Connection::open(name).expect("SQLite has databases in memory");
    let operator = Connection::open(name).expect("it is there");
    let loops = Loops::start_on(database, 1 << 30, trouble, Duration::ZERO).await;
    loops.commit(0..PAGES - 3).await;
    let feed = pages::of_users(&AppId::new("a"), loops.clock.now(), String::new()).feed;
    let mut out = Vec::new();
    for _ in 0..3 {
        let now = loops.clock.now();
        out.push(loops.journal.reserve(&feed, 0, None, now).await.expect("it has room"));
    }
    let full = "CREATE TRIGGER full BEFORE INSERT ON entries
                BEGIN SELECT raise(ABORT, 'no room'); END";
    operator.execute_batch(full).expect("the operator may do that");
    for (room, number) in out.into_iter().zip(PAGES - 3..) {
        let page = loops.page(number);
        room.settle(Content::Page(page)).await.expect_err("the disk is full");
    }
    assert_eq!(loops.journal.backlog().borrow().in_memory, 3);
    loops.forward();
    sleep(120 * SECOND).await;
    assert_eq!(loops.published(), twice_each(0..PAGES, &[7]));
    let reasons = loops.reasons();
    assert!(reasons.len() == 1 && reasons[0].contains("refuses page"), "{reasons:?}");

    loops.kafka.heal();
    sleep(31 * SECOND).await;
    assert_eq!(loops.published().len() as u64, 2 * PAGES);
    assert_eq!(loops.reasons(), Vec::<String>::new());
    assert_eq!(loops.journal.backlog().borrow().entries, 0);
    loops.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_page_whose_events_kafka_refuses_is_set_aside_with_its_bytes_and_the_others_go_on() {
    let trouble =
        Trouble { refused_event: Some(b"\"u7.\""), until: 600 * SECOND, ..Trouble::default() };
    let loops = Loops::start(trouble).await;
    loops.commit(0..PAGES).await;
    loops.forward();
    sleep(60 * SECOND).await;
    assert_eq!(loops.published(), twice_each(0..PAGES, &[7]));
    let [letter] = &loops.kafka.records(Topic::DeadLetter)[..] else { panic!("one page") };
    let body = String::from_utf8(letter.value.clone().unwrap()).unwrap();
    assert!(body.starts_with("{\"events\":[") && body.contains("u7."), "{body}");
    assert!(letter.header("reason").unwrap().contains("refuses the events of this page"));
    assert_eq!(loops.reasons(), Vec::<String>::new());
    let figures = loops.accounts.total().to_string();
    assert!(figures.contains("set aside 2 "), "{figures}");
    loops.end().await;
}

/// All events fit into what the topic takes now: only what was believed of it was wrong.
#[tokio::test(start_paused = true)]
async fn limits_that_are_lowered_set_nothing_aside_that_still_fits() {
    let loops = Loops::start(Trouble::default()).await;
    loops.forward();
    loops.commit(0..PAGES).await;
    sleep(5 * SECOND).await;
    loops.kafka.set_largest(2_500);
    for number in PAGES..2 * PAGES {
        // Each page alone in its transaction.
        loops.commit(number..number + 1).await;
        sleep(SECOND).await;
    }
    sleep(20 * SECOND).await;
    assert_eq!(loops.published(), twice_each(0..2 * PAGES, &[]));
    assert_eq!(loops.kafka.records(Topic::DeadLetter), []);
    assert_eq!(loops.reasons(), Vec::<String>::new());
    loops.end().await;
}

#[tokio::test(start_paused = true)]
async fn limits_that_were_raised_are_noticed_before_an_event_is_set_aside() {
    let loops = Loops::start(Trouble::default()).await;
    loops.kafka.set_largest(300);
    loops.forward();
    loops.commit(0..5).await;
    sleep(20 * SECOND).await;
    assert_eq!(loops.published(), Vec::<String>::new());
    assert_eq!(loops.kafka.records(Topic::DeadLetter).len(), 10, "each event for itself");
    loops.kafka.set_largest(1_000_000);
    sleep(60 * SECOND).await;
    loops.commit(5..10).await;
    sleep(20 * SECOND).await;
    assert_eq!(loops.published(), twice_each(5..10, &[]));
    assert_eq!(loops.reasons(), Vec::<String>::new());
    loops.end().await;
}

/// Events of years ago among those of now, and a machine whose clock is eight hours ahead: what was
/// stamped by it would be refused.
#[tokio::test(start_paused = true)]
async fn a_clock_that_is_hours_ahead_stamps_nothing_and_is_named() {
    let hours = 3_600 * SECOND;
    let trouble = Trouble { refused_ahead: Some(hours), until: 600 * SECOND, ..Trouble::default() };
    let loops = Loops::start_ahead(trouble, 8 * hours).await;
    loops.forward();
    let old = EPOCH.before(5 * 365 * 24 * hours);
    for number in 0..PAGES {
        loops.commit_of(number..number + 1, [old, EPOCH]).await;
        sleep(2 * SECOND).await;
    }
    assert_eq!(loops.published(), twice_each(0..PAGES, &[]));
    assert_eq!(loops.kafka.records(Topic::DeadLetter), []);
    assert_eq!(loops.publishing.failures.get(), 0, "nothing was refused");
    let mut registry = Registry::default();
    loops.publishing.register(&mut registry);
    let mut metrics = String::new();
    encode(&mut metrics, &registry).unwrap();
    let ahead = metrics.lines().find_map(|line| line.strip_prefix("kafka_clock_ahead_seconds "));
    let ahead: f64 = ahead.expect("the difference is known").parse().unwrap();
    assert!((ahead + 8.0 * 3_600.0).abs() < 1.0, "{ahead}");
    loops.end().await;
}

/// Agora's clock is half a minute ahead, and the topic takes five seconds; with the right to know
/// that, and without.
#[tokio::test(start_paused = true)]
async fn events_that_are_ahead_of_the_cluster_are_delivered_at_any_load() {
    for told_ahead in [Some(2 * SECOND), None] {
        let (refused_ahead, until) = (Some(5 * SECOND), 600 * SECOND);
        let trouble = Trouble { refused_ahead, told_ahead, until, ..Trouble::default() };
        let loops = Loops::start(trouble).await;
        loops.forward();
        for number in 0..4 * PAGES {
            let now = loops.clock.now().after(30 * SECOND);
            loops.commit_of(number..number + 1, [now, now]).await;
            sleep(SECOND / 4).await;
        }
        sleep(5 * SECOND).await;
        assert_eq!(loops.published(), twice_each(0..4 * PAGES, &[]));
        assert_eq!(loops.kafka.records(Topic::DeadLetter), []);
        let failures = loops.publishing.failures.get();
        assert_eq!(failures, if told_ahead.is_some() { 0 } else { 2 });
        loops.end().await;
    }
}

/// Half of the pages stand at the beginning of a new topic, which then grows beyond where the old
/// one ended. They are recognised, and those that are new are published.
#[tokio::test(start_paused = true)]
async fn a_pages_topic_that_was_made_again_is_read_from_its_beginning() {
    for more in [1, PAGES] {
        let loops = Loops::start(Trouble::default()).await;
        loops.commit(0..PAGES).await;
        loops.forward();
        sleep(5 * SECOND).await;
        loops.end().await;
        loops.kafka.recreate_pages();

        let loops = loops.anew();
        loops.commit(PAGES..PAGES + more).await;
        loops.forward();
        sleep(5 * SECOND).await;
        loops.publish(&loops.health, &loops.stop);
        sleep(20 * SECOND).await;
        assert_eq!(loops.published(), twice_each(0..PAGES + more, &[]));
        loops.end().await;
    }
}

/// Nothing but the position that was noted for lag tools is left.
#[tokio::test(start_paused = true)]
async fn a_memory_that_was_deleted_repeats_nothing_that_was_noted_as_delivered() {
    let loops = Loops::start(Trouble::default()).await;
    loops.commit(0..PAGES).await;
    loops.forward();
    sleep(5 * SECOND).await;
    loops.end().await;
    loops.kafka.forget_memory();
    loops.kafka.forget_published();

    let loops = loops.anew();
    loops.commit(PAGES..2 * PAGES).await;
    loops.forward();
    loops.publish(&loops.health, &loops.stop);
    sleep(20 * SECOND).await;
    assert_eq!(loops.published(), twice_each(PAGES..2 * PAGES, &[]));
    loops.end().await;
}

/// The bridge is down meanwhile, so nothing tells how far it was but what was published.
async fn without_memory(note: impl FnOnce(&Cluster)) -> Loops {
    let loops = Loops::start(Trouble::default()).await;
    loops.commit(0..PAGES).await;
    loops.forward();
    sleep(5 * SECOND).await;
    loops.end().await;
    loops.kafka.forget_memory();
    loops.kafka.forget_noted();
    note(&loops.kafka);
    let loops = loops.anew();
    loops.forward();
    loops
}

#[tokio::test(start_paused = true)]
async fn a_memory_that_is_gone_with_the_noted_position_is_rebuilt_from_what_was_published() {
    let loops = without_memory(|_| {}).await;
    // Another region hands over the last ten pages again.
    loops.commit(PAGES - 10..2 * PAGES).await;
    loops.publish(&loops.health, &loops.stop);
    sleep(20 * SECOND).await;
    assert_eq!(loops.published(), twice_each(0..2 * PAGES, &[]));
    assert_eq!(loops.reasons(), Vec::<String>::new());
    loops.end().await;
    // The next owner finds a memory.
    loops.kafka.forget_published();
    let loops = loops.anew();
    loops.publish(&loops.health, &loops.stop);
    sleep(20 * SECOND).await;
    assert_eq!(loops.published(), Vec::<String>::new());
    loops.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_error_while_the_position_is_looked_for_publishes_nothing_and_is_tried_again() {
    let loops = without_memory(|kafka| {
        kafka.note(usize::try_from(PAGES).expect("few"));
        kafka.forget_published();
        kafka.fail_looks(3);
    })
    .await;
    loops.publish(&loops.health, &loops.stop);
    sleep(SECOND / 10).await;
    let reasons = loops.reasons();
    assert!(reasons.len() == 1 && reasons[0].contains("look at"), "{reasons:?}");
    loops.commit(PAGES..2 * PAGES).await;
    sleep(60 * SECOND).await;
    assert_eq!(loops.published(), twice_each(PAGES..2 * PAGES, &[]));
    assert_eq!(loops.reasons(), Vec::<String>::new());
    loops.end().await;
}

/// Everything that was published is deleted, and the pages are older than that proves anything. A
/// person notes where to continue.
#[tokio::test(start_paused = true)]
async fn where_nothing_tells_the_position_nothing_is_published_until_a_person_notes_one() {
    let loops = without_memory(Cluster::forget_published).await;
    sleep(4 * 86_400 * SECOND).await;
    loops.publish(&loops.health, &loops.stop);
    loops.commit(PAGES..2 * PAGES).await;
    sleep(300 * SECOND).await;
    assert_eq!(loops.published(), Vec::<String>::new());
    let reasons = loops.reasons();
    assert!(reasons.len() == 1 && reasons[0].contains("--to-offset"), "{reasons:?}");
    loops.kafka.note(usize::try_from(PAGES).expect("few"));
    sleep(120 * SECOND).await;
    assert_eq!(loops.published(), twice_each(PAGES..2 * PAGES, &[]));
    assert_eq!(loops.reasons(), Vec::<String>::new());
    loops.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_new_installation_begins_at_the_beginning_of_what_was_forwarded_before_it_published() {
    let loops = Loops::start(Trouble::default()).await;
    loops.end().await;
    let loops = loops.anew();
    loops.kafka.forget_memory();
    loops.commit(0..PAGES).await;
    loops.forward();
    sleep(5 * SECOND).await;
    loops.publish(&loops.health, &loops.stop);
    sleep(20 * SECOND).await;
    assert_eq!(loops.published(), twice_each(0..PAGES, &[]));
    loops.end().await;
}

/// An App ID is new on its partition, and its first pages are forwarded before the partition is claimed.
#[tokio::test(start_paused = true)]
async fn the_first_pages_of_a_partition_need_nothing_of_what_was_published() {
    let loops = Loops::start(Trouble::default()).await;
    loops.end().await;
    let loops = Loops { process: 1, ..loops.anew() };
    loops.kafka.forget_memory();
    loops.kafka.refuse_history();
    loops.commit(0..PAGES).await;
    loops.forward();
    sleep(5 * SECOND).await;
    loops.publish(&loops.health, &loops.stop);
    sleep(20 * SECOND).await;
    assert_eq!(loops.published(), twice_each(0..PAGES, &[]));
    assert_eq!(loops.reasons(), Vec::<String>::new());
    loops.end().await;
}

/// With pages that follow and without: then the next look finds it.
#[tokio::test(start_paused = true)]
async fn pages_that_are_deleted_before_they_are_published_become_a_gap_and_the_accounts_balance() {
    for more in [0, PAGES] {
        let loops = Loops::start(Trouble::default()).await;
        loops.commit(0..PAGES).await;
        loops.forward();
        sleep(5 * SECOND).await;
        loops.end().await;
        let loops = Loops { process: 1, ..loops.anew() };
        loops.forward();
        loops.commit(PAGES..2 * PAGES).await;
        // As the poller enters them: two events of each page.
        let account = loops.accounts.open(&AppId::new("a"), Endpoint::User);
        account.add(Column::Received, 2 * 2 * PAGES);
        sleep(5 * SECOND).await;
        assert_eq!(loops.kafka.delete_pages(loops.client.now()), usize::try_from(PAGES).unwrap());
        loops.publish(&loops.health, &loops.stop);
        loops.commit(2 * PAGES..2 * PAGES + more).await;
        account.add(Column::Received, 2 * more);
        sleep(20 * SECOND).await;
        let lost: Vec<u64> = (PAGES..2 * PAGES).collect();
        assert_eq!(loops.published(), twice_each(0..2 * PAGES + more, &lost));
        let [gap] = &loops.kafka.records(Topic::Gaps)[..] else { panic!("one feed") };
        let value = String::from_utf8(gap.value.clone().unwrap()).unwrap();
        assert!(value.contains(r#""cause":"pages_lost""#), "{value}");
        assert!(value.contains(r#""at_least":0,"at_most":30000"#), "{value}");
        assert_eq!((gap.header("pages_first"), gap.header("pages_end")), (Some("30"), Some("60")));
        let figures = loops.accounts.total().to_string();
        assert!(figures.contains("lost 60 + waiting 0"), "{figures}");
        loops.end().await;
    }
}

#[tokio::test(start_paused = true)]
async fn of_two_owners_one_stays_off_as_long_as_the_other_shows_life() {
    let loops = Loops::start(Trouble::default()).await;
    loops.forward();
    loops.commit(0..5).await;
    sleep(5 * SECOND).await;
    let other = CancellationToken::new();
    loops.publish(&Health::new(loops.clock), &other);
    for round in 1..=60 {
        loops.commit(5 * round..5 * round + 5).await;
        sleep(10 * SECOND).await;
    }
    // What the first one had open was aborted, or what it tried next was refused.
    let of_run = loops.kafka.transactions();
    assert_eq!(of_run.fenced + of_run.aborted, 1, "they took it from each other in turn");
    let reasons = loops.reasons();
    assert!(reasons.len() == 1 && reasons[0].contains("another bridge"), "{reasons:?}");

    other.cancel();
    loops.commit(305..310).await;
    sleep(60 * SECOND).await;
    assert_eq!(loops.published(), twice_each(0..310, &[]));
    assert_eq!(loops.reasons(), Vec::<String>::new());
    loops.end().await;
}

/// Its client believes that all is well and waits.
#[tokio::test(start_paused = true)]
async fn a_reader_that_returns_no_pages_although_some_wait_is_replaced() {
    let loops = Loops::start(Trouble::default()).await;
    loops.forward();
    loops.commit(0..PAGES).await;
    sleep(5 * SECOND).await;
    assert_eq!(loops.published(), twice_each(0..PAGES, &[]));
    loops.kafka.stick_readers();
    loops.commit(PAGES..2 * PAGES).await;
    sleep(30 * SECOND).await;
    assert_eq!(loops.published(), twice_each(0..PAGES, &[]), "they wait");
    sleep(120 * SECOND).await;
    assert_eq!(loops.published(), twice_each(0..2 * PAGES, &[]));
    assert_eq!(loops.reasons(), Vec::<String>::new());
    loops.end().await;
}
