//! Pages, read one after the other.

use std::time::Duration;

use bytes::Bytes;

use super::*;
use crate::kafka::{Stamping, Unfit};
use crate::memory::Recall;
use crate::model::{Entry, Feed, Region, Ticket};

const LOGIN: &str = r#"{"user_id":"u","type":"Login","ms":1578027420761}"#;
const LOGOUT: &str = r#"{"user_id":"u","type":"Logout","ms":1578027420762}"#;

fn limits(_: Topic) -> Limits {
    let stamping = Stamping { oldest: Duration::from_secs(3_600), ahead: Stamping::AHEAD };
    Limits { stamping, largest_record: 2_000 }
}

fn page(ticket: u64, wholeness: Wholeness, body: &str) -> PageRecord {
    let feed =
        Feed { app: AppId::new("a"), region: Region::new("default"), endpoint: Endpoint::User };
    let page = Page {
        feed,
        since: Some(Timestamp::from_millis(1)),
        asked_at: Timestamp::from_millis(2),
        answered_at: Timestamp::from_millis(3),
        status: 200,
        wholeness,
        request_id: None,
        resource_id: None,
        content_encoding: None,
        body: Bytes::copy_from_slice(body.as_bytes()),
    };
    let id = PageId { incarnation: Incarnation::from_u128(1), ticket: Ticket(ticket) };
    pages::encode(&Entry { id, content: Content::Page(page) }, Ticket(ticket - 1))
}

fn broker_time(appended: Option<Timestamp>) -> BrokerTime {
    BrokerTime { appended, now: appended.unwrap_or_default() }
}

fn context(ladder: &Ladder) -> Context<'_> {
    Context {
        limits: &limits,
        broker_time: &broker_time,
        partition: 0,
        incarnation: Incarnation::from_u128(0),
        ladder,
    }
}

fn read(pages: impl IntoIterator<Item = PageRecord>) -> (Draft, ElementCounts) {
    read_after(&Ladder::default(), pages)
}

fn read_after(
    ladder: &Ladder,
    pages: impl IntoIterator<Item = PageRecord>,
) -> (Draft, ElementCounts) {
    let mut draft = Draft::default();
    let mut memory = Recall::default().finish().unwrap();
    let mut pairs = Pairs::new([(AppId::new("a"), 1)].into());
    let context = context(ladder);
    for stored in (0..).zip(pages) {
        take_in(&mut draft, &mut memory, &mut pairs, &context, &stored).unwrap();
    }
    let counts = draft.counts.values().next().copied().unwrap_or_default();
    (draft, counts)
}

fn dead_letters(draft: &Draft) -> Vec<String> {
    let records = draft.batch.iter().filter(|record| record.topic() == Topic::DeadLetter);
    records.map(|record| String::from_utf8(record.value().unwrap().to_vec()).unwrap()).collect()
}

#[test]
fn repeats_are_told_apart_by_where_they_stand() {
    let (draft, counts) = read([
        page(1, Wholeness::Whole, &format!(r#"{{"events":[{LOGIN},{LOGIN}]}}"#)),
        page(2, Wholeness::Whole, &format!(r#"{{"events":[{LOGIN},{LOGOUT}]}}"#)),
        page(2, Wholeness::Whole, &format!(r#"{{"events":[{LOGIN},{LOGOUT}]}}"#)),
    ]);
    assert_eq!(
        counts,
        ElementCounts {
            received: 4,
            delivered: 2,
            repeats: 1,
            repeats_in_page: 1,
            ..ElementCounts::default()
        }
    );
    assert_eq!(draft.pages_again, 1);
    assert_eq!(draft.batch.len(), 2);
    let of_pages = draft.held.iter().map(|held| (held.repeats, held.oldest_repeat));
    let login = Timestamp::from_millis(1_578_027_420_761);
    assert_eq!(of_pages.collect::<Vec<_>>(), [(0, None), (1, Some(login))]);
    assert_eq!(draft.held[1].newest, Timestamp::from_millis(1_578_027_420_762));
}

#[test]
fn what_is_no_event_is_a_dead_letter_and_its_neighbours_are_delivered() {
    let body = format!(r#"{{"events":[7,{LOGIN},{{"user_id":1}}]}}"#);
    let (draft, counts) = read([page(1, Wholeness::Whole, &body)]);
    assert_eq!(
        counts,
        ElementCounts { received: 3, delivered: 1, dead_letters: 2, ..ElementCounts::default() }
    );
    assert_eq!(dead_letters(&draft), ["7", r#"{"user_id":1}"#]);
    assert!(draft.gaps.is_empty());
}

#[test]
fn a_cut_body_delivers_what_is_complete_and_the_rest_is_a_gap() {
    let (draft, counts) = read([page(
        1,
        Wholeness::Cut,
        &format!(r#"{{"events":[{LOGIN},{}"#, LOGOUT.strip_suffix('}').unwrap()),
    )]);
    assert_eq!(counts, ElementCounts { received: 1, delivered: 1, ..ElementCounts::default() });
    assert!(dead_letters(&draft).is_empty());
    let [gap] = &draft.gaps[..] else { panic!("one gap") };
    assert_eq!(gap.cause, GapCause::BodyCut);
    assert_eq!((gap.at_least, gap.at_most), (1, Some(999)));
    assert_eq!(gap.from, Some(Timestamp::from_millis(1)));
}

#[test]
fn bodies_without_events_have_their_own_ends() {
    for (wholeness, body, letters, gaps) in [
        (Wholeness::Whole, "<html>sorry</html>", 1, 0),
        (Wholeness::Whole, r#"{"events":{"a":1}}"#, 1, 0),
        (Wholeness::Whole, r#"{"result":"failed"}"#, 0, 0),
        (Wholeness::Whole, "", 0, 1),
        (Wholeness::Whole, " \r\n", 0, 1),
        (Wholeness::Cut, "", 0, 1),
        (Wholeness::Cut, r#"{"resul"#, 0, 1),
        (Wholeness::Whole, r#"{"events":[{"a":1"#, 1, 1),
    ] {
        let (draft, _) = read([page(1, wholeness, body)]);
        assert_eq!(dead_letters(&draft).len(), letters, "{body}");
        assert_eq!(draft.gaps.len(), gaps, "{body}");
    }
}

/// What Agora may say in a page that was too large to be looked into before it was durable.
#[test]
fn an_object_that_does_not_say_that_it_is_empty_is_a_dead_letter() {
    let note = "x".repeat(600);
    for (body, letters) in [
        (format!(r#"{{"result":"success","data":{{"events":[{LOGIN}]}},"n":"{note}"}}"#), 1),
        (format!(r#"{{"Events":[{LOGIN}],"n":"{note}"}}"#), 1),
        (format!(r#"{{"user_events":[{LOGIN}],"events":[],"n":"{note}"}}"#), 1),
        (format!(r#"{{"data":null,"error":true,"errorCode":500,"message":"{note}"}}"#), 1),
        (format!(r#"{{"n":"{note}"}}"#), 1),
        (format!(r#"{{"result":"success","n":"{note}"}}"#), 0),
        (format!(r#"{{"events":null,"n":"{note}"}}"#), 0),
        (format!(r#"{{"events":[],"n":"{note}"}}"#), 0),
        (format!(r#"{{"events":[{LOGIN}],"more":{{"n":"{note}"}}}}"#), 0),
    ] {
        let (draft, counts) = read([page(1, Wholeness::Whole, &body)]);
        assert_eq!(counts.dead_letters, letters, "{body}");
        let expected: Vec<&String> = (0..letters).map(|_| &body).collect();
        assert_eq!(dead_letters(&draft).iter().collect::<Vec<_>>(), expected);
        assert!(draft.gaps.is_empty(), "{body}");
    }
}

#[test]
fn a_compressed_page_is_read_without_a_header_that_says_so() {
    let body = format!(r#"{{"events":[{LOGIN},{LOGOUT}]}}"#);
    let deflated = miniz_oxide::deflate::compress_to_vec(body.as_bytes(), 6);
    let trailer = [crc32fast::hash(body.as_bytes()), u32::try_from(body.len()).unwrap()]
        .map(u32::to_le_bytes);
    let head: &[u8] = b"\x1f\x8b\x08\0\0\0\0\0\0\xff";
    let gzip = [head, &deflated, trailer.as_flattened()].concat();
    let zlib = miniz_oxide::deflate::compress_to_vec_zlib(body.as_bytes(), 6);
    for packed in [gzip, zlib] {
        let mut record = page(1, Wholeness::Whole, "");
        record.value = Bytes::from(packed);
        let (draft, counts) = read([record]);
        assert_eq!(counts, ElementCounts { received: 2, delivered: 2, ..ElementCounts::default() });
        assert!(draft.gaps.is_empty());
    }
}

#[test]
fn a_record_that_is_not_a_page_is_set_aside_and_one_of_a_newer_version_is_refused() {
    let strange = PageRecord {
        key: b"who".to_vec(),
        value: Bytes::from_static(b"what"),
        ..PageRecord::default()
    };
    let body = format!(r#"{{"events":[{LOGIN}]}}"#);
    let (draft, counts) = read([strange, page(1, Wholeness::Whole, &body)]);
    assert_eq!(dead_letters(&draft), ["what"]);
    assert_eq!((draft.bad_pages, counts.delivered), (1, 1));

    let mut newer = page(1, Wholeness::Whole, &body);
    newer.headers[0].1 = b"3".to_vec();
    let mut memory = Recall::default().finish().unwrap();
    let mut pairs = Pairs::new([(AppId::new("a"), 1)].into());
    let (ladder, stored) = (Ladder::default(), (0, newer));
    let mut draft = Draft::default();
    let refused = take_in(&mut draft, &mut memory, &mut pairs, &context(&ladder), &stored);
    assert!(matches!(refused, Err(BadPageRecord::Newer(3))));
    assert_eq!(memory.position(), None);
}

/// The topic of events refuses a record for what it is.
const EVENTS: Option<Unfit> = Some(Unfit { topic: Topic::UserEvents, is_time: false });

/// The refusals that lead to the first page being set aside.
fn refused_alone(unfit: Option<Unfit>) -> Ladder {
    let mut ladder = Ladder::default();
    for _ in 0..2 {
        ladder.refused(unfit, "for a reason", 1, true);
    }
    ladder
}

#[tokio::test(start_paused = true)]
async fn a_cut_page_that_is_set_aside_leaves_its_gap_too() {
    let body = format!(r#"{{"events":[{LOGIN},{}"#, LOGOUT.strip_suffix('}').unwrap());
    let (draft, counts) = read_after(&refused_alone(EVENTS), [page(1, Wholeness::Cut, &body)]);
    assert_eq!(counts, ElementCounts { received: 1, set_aside: 1, ..ElementCounts::default() });
    assert_eq!(dead_letters(&draft), [body]);
    let [gap] = &draft.gaps[..] else { panic!("what was cut off is missing") };
    assert_eq!((gap.cause, gap.at_least), (GapCause::BodyCut, 1));
    assert_eq!(draft.batch.iter().filter(|it| it.topic() == Topic::Gaps).count(), 1);
}

/// Its events were not published, so another page that holds them brings them.
#[tokio::test(start_paused = true)]
async fn a_page_that_was_set_aside_is_recognised_and_its_events_are_new_in_another_page() {
    let body = format!(r#"{{"events":[{LOGIN},{LOGOUT}]}}"#);
    let pages = [1, 1, 2, 2].map(|ticket| page(ticket, Wholeness::Whole, &body));
    let (draft, counts) = read_after(&refused_alone(EVENTS), pages);
    assert_eq!(
        counts,
        ElementCounts { received: 4, delivered: 2, set_aside: 2, ..ElementCounts::default() }
    );
    assert_eq!((draft.pages, draft.pages_again, draft.set_aside.len()), (2, 2, 1));
    assert_eq!(dead_letters(&draft), [body]);
}

#[tokio::test(start_paused = true)]
async fn a_letter_of_a_whole_page_says_so_and_those_of_its_parts_do_not() {
    let body = format!(r#"{{"events":[7,{LOGIN}]}} and more"#);
    for (ladder, expected) in [
        (refused_alone(EVENTS), vec![[false, true]]),
        (Ladder::default(), vec![[true, false], [false, false]]),
    ] {
        let (draft, _) = read_after(&ladder, [page(1, Wholeness::Whole, &body)]);
        let letters = draft.batch.iter().filter(|record| record.topic() == Topic::DeadLetter);
        let headers = letters.map(|letter| {
            ["index", "whole_page"].map(|name| letter.headers().any(|(found, _)| found == name))
        });
        assert_eq!(headers.collect::<Vec<_>>(), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_that_was_refused_copies_nothing() {
    let unfit = Unfit { topic: Topic::DeadLetter, is_time: false };
    let strange = PageRecord {
        key: vec![b'k'; 600_000],
        value: Bytes::from_static(b"what"),
        ..PageRecord::default()
    };
    let (draft, _) = read_after(&refused_alone(Some(unfit)), [strange]);
    let letter = draft.batch.last().unwrap();
    assert!(letter.size() < 400 && letter.key().is_empty(), "{} bytes", letter.size());
    assert_eq!(dead_letters(&draft), [""]);
}

/// An event of years ago and one of now, by the broker's clock.
#[tokio::test(start_paused = true)]
async fn what_the_topic_does_not_keep_is_stamped_with_the_brokers_time() {
    let now = Timestamp::from_millis(1_700_000_000_000);
    let fresh = r#"{"user_id":"u","type":"Login","ms":1699999999000}"#;
    let body = format!(r#"{{"events":[{LOGIN},{fresh}]}}"#);
    let record = PageRecord { appended: Some(now), ..page(1, Wholeness::Whole, &body) };
    let time = Unfit { topic: Topic::UserEvents, is_time: true };
    let mut ladder = Ladder::default();
    for stamps in [[Some(now), Some(now.before(Duration::from_secs(1)))], [Some(now); 2], [None; 2]]
    {
        let (draft, _) = read_after(&ladder, [record.clone()]);
        let written: Vec<_> = draft.batch.iter().map(|record| record.timestamp()).collect();
        assert_eq!(written, stamps);
        ladder.refused(Some(time), "a time", 1, true);
        if ladder.times() == Times::Events {
            ladder.refused(Some(time), "a time", 1, true);
        }
    }
}

#[test]
fn an_event_that_no_record_can_hold_is_set_aside() {
    let large = "x".repeat(5_000);
    let body =
        format!(r#"{{"events":[{LOGIN},{{"user_id":"u","type":"T","ms":1,"note":"{large}"}}]}}"#);
    let (draft, counts) = read([page(1, Wholeness::Whole, &body)]);
    assert_eq!(
        counts,
        ElementCounts { received: 2, delivered: 1, set_aside: 1, ..ElementCounts::default() }
    );
    assert!(dead_letters(&draft)[0].len() < 2_000 && draft.has_too_large);
}
