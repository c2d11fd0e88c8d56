//! What consumers read: events, dead letters and gaps as Kafka records.
//!
//! An event is one line of JSON with CloudEvents 1.0 attributes as headers (Kafka protocol binding,
//! binary content mode). The formats are a contract with programs outside this project; the tests
//! of this file hold them.

use std::io::Write as _;

use serde::Serialize;
use serde_json::value::RawValue;

use crate::agora::Event;
use crate::error::shortened;
use crate::kafka::{Batch, Draft, PageRecord, Topic};
use crate::memory::Fingerprint;
use crate::model::{AppId, Endpoint, Gap, PageId, Timestamp};
use crate::records::pages::BadPageRecord;

/// The page that a record comes from, as its headers name it.
#[derive(Clone, Debug)]
pub struct Source {
    app: AppId,
    endpoint: Endpoint,
    page: String,
    ce_source: String,
}

/// The longest reason in a dead letter, in bytes: some quote what others wrote.
const LONGEST_REASON: usize = 512;

/// As much of a foreign key as a dead letter repeats, in bytes.
const LONGEST_KEY: usize = 256;

/// The names that the value has itself; an unknown field of the same name goes under `extra`.
const OWN_NAMES: [&str; 6] = ["app_id", "endpoint", "type", "user_id", "ms", "extra"];

/// How many bytes a dead letter may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// Key, value and headers together.
    Bytes(usize),
    /// Even that was refused: nothing of the bytes that it is about, only where they are.
    Nothing,
}

// === impl Source ===

impl Source {
    /// Names the page.
    pub fn new(app: &AppId, endpoint: Endpoint, page: PageId) -> Self {
        Self {
            app: app.clone(),
            endpoint,
            page: page.to_string(),
            ce_source: format!("/agora/{app}/rtm/{endpoint}"),
        }
    }
}

/// The app and endpoint that a `ce_source` names.
pub fn app_of_source(source: &str) -> Option<(AppId, Endpoint)> {
    let (app, endpoint) = source.strip_prefix("/agora/")?.rsplit_once("/rtm/")?;
    Some((AppId::new(app), endpoint.parse().ok()?))
}

/// Writes an event; more headers may follow.
pub fn write_event<'a>(
    batch: &'a mut Batch,
    source: &Source,
    event: &Event<'_>,
    id: Fingerprint,
    timestamp: Option<Timestamp>,
) -> Draft<'a> {
    let (topic, family) = match source.endpoint {
        Endpoint::User => (Topic::UserEvents, "user"),
        Endpoint::Channel => (Topic::ChannelEvents, "channel"),
    };
    let key = event.channel_id.as_ref().unwrap_or(&event.user_id).as_bytes();
    let mut draft = batch
        .begin(topic)
        .timestamp(timestamp)
        .key(key)
        .value(|bytes| write_value(bytes, source, event))
        .header("ce_specversion", b"1.0")
        .header_with("ce_id", |bytes| print(bytes, format_args!("{id}")))
        .header("ce_source", source.ce_source.as_bytes())
        .header_with("ce_type", |bytes| {
            print(bytes, format_args!("io.agora.rtm.{family}.{}", event.kind.to_lowercase()));
        });
    // CloudEvents asks for RFC 3339 or nothing. The value has the number in any case.
    if let Some(time) = event.time.rfc_3339() {
        draft = draft.header_with("ce_time", |bytes| print(bytes, format_args!("{time}")));
    }
    draft
        .header("ce_subject", key)
        .header("content-type", b"application/json")
        .header("agora_page", source.page.as_bytes())
}

/// The part of a page that a dead letter holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// One element, by its index in the page from 0: header `index`.
    Element(usize),
    /// What the body holds besides its elements, or instead of them: neither header.
    Rest,
    /// The whole page, in the place of all its elements, because Kafka refuses them: header
    /// `whole_page`.
    Page,
}

/// Writes what is not an event, with its bytes as received.
///
/// Of more than `room` bytes only the first are written, and the reason says so: all of them are in
/// the page.
pub fn write_dead_letter(
    batch: &mut Batch,
    source: &Source,
    part: Part,
    reason: &str,
    raw: &[u8],
    room: Room,
) {
    let app = source.app.as_str().as_bytes();
    let draft = batch
        .begin(Topic::DeadLetter)
        .key(app)
        .header("app", app)
        .header("endpoint", source.endpoint.name().as_bytes())
        .header("agora_page", source.page.as_bytes());
    match part {
        Part::Element(index) => {
            draft.header_with("index", |bytes| print(bytes, format_args!("{index}")));
        }
        Part::Rest => {}
        Part::Page => {
            draft.header("whole_page", b"true");
        }
    }
    end_dead_letter(batch, reason, raw, room);
}

/// Writes a record of the pages topic that can't be read, as a dead letter. Nothing in it is larger
/// than what a bridge writes: of a long key only the beginning is kept.
pub fn write_bad_page(
    batch: &mut Batch,
    (partition, offset): (i32, i64),
    page: &PageRecord,
    reason: &BadPageRecord,
    room: Room,
) {
    let headers: usize = page.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
    let reason = format!(
        "the record at offset {offset} of partition {partition} of the pages topic: {reason}; it \
         has a key of {} bytes, a value of {} bytes and {} headers of {headers} bytes",
        page.key.len(),
        page.value.len(),
        page.headers.len(),
    );
    let key = match room {
        Room::Bytes(_) => page.key.get(..LONGEST_KEY).unwrap_or(&page.key),
        Room::Nothing => &[],
    };
    batch.begin(Topic::DeadLetter).key(key).header("app", key);
    end_dead_letter(batch, &reason, &page.value, room);
}

/// Writes the value and the reason, the last header, of the dead letter that was begun: as many of
/// the bytes as fit, and where these are not all, the reason says so.
fn end_dead_letter(batch: &mut Batch, reason: &str, raw: &[u8], room: Room) {
    // The name of the header, and "; the first … of … bytes" with two numbers.
    const NOTE: usize = 80;
    let taken = batch.last().map_or(0, |record| record.size());
    let reason = shortened(reason, LONGEST_REASON);
    let free = match room {
        Room::Bytes(most) => most.saturating_sub(taken + reason.len() + NOTE),
        Room::Nothing => 0,
    };
    let first = raw.get(..free).unwrap_or(raw);
    let Some(draft) = batch.resume_last() else { return };
    draft.value(|bytes| bytes.extend_from_slice(first)).header_with("reason", |bytes| {
        bytes.extend_from_slice(reason.as_bytes());
        if first.len() < raw.len() {
            let (first, all) = (first.len(), raw.len());
            print(bytes, format_args!("; the first {first} of {all} bytes"));
        }
    });
}

/// Records of the pages topic that are gone and were not published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LostPages {
    /// The partition.
    pub partition: i32,
    /// The first offset that was not published.
    pub first: i64,
    /// The first that is left; `None` where the whole topic is gone.
    pub end: Option<i64>,
}

/// Writes a gap, in the place of what was left behind by one request.
pub fn write_gap(batch: &mut Batch, page: PageId, gap: &Gap) {
    begin_gap(batch, gap)
        .header_with("agora_page", |bytes| print(bytes, format_args!("{page}")))
        .header("content-type", b"application/json");
}

/// Writes a gap of pages that are gone. It has no `agora_page`: what they were called is gone, too.
pub fn write_lost_pages(batch: &mut Batch, lost: &LostPages, gap: &Gap) {
    let LostPages { partition, first, end } = lost;
    let draft = begin_gap(batch, gap)
        .header("content-type", b"application/json")
        .header_with("pages_partition", |bytes| print(bytes, format_args!("{partition}")))
        .header_with("pages_first", |bytes| print(bytes, format_args!("{first}")));
    if let Some(end) = end {
        draft.header_with("pages_end", |bytes| print(bytes, format_args!("{end}")));
    }
}

fn begin_gap<'a>(batch: &'a mut Batch, gap: &Gap) -> Draft<'a> {
    #[derive(Serialize)]
    struct Value<'a> {
        app_id: &'a str,
        region: &'a str,
        endpoint: &'a str,
        cause: &'a str,
        /// Milliseconds; `null` where it is not known.
        from: Option<i64>,
        to: i64,
        at_least: u64,
        /// `null` where there is no bound.
        at_most: Option<u64>,
    }
    let value = Value {
        app_id: gap.feed.app.as_str(),
        region: gap.feed.region.as_str(),
        endpoint: gap.feed.endpoint.name(),
        cause: gap.cause.name(),
        from: gap.from.map(Timestamp::as_millis),
        to: gap.to.as_millis(),
        at_least: gap.at_least,
        at_most: gap.at_most,
    };
    batch
        .begin(Topic::Gaps)
        .key(gap.feed.app.as_str().as_bytes())
        .value(|bytes| write_json(bytes, &value))
}

fn write_value(bytes: &mut Vec<u8>, source: &Source, event: &Event<'_>) {
    let clashes = |name: &str| {
        OWN_NAMES.contains(&name) || (name == "channel_id" && event.channel_id.is_some())
    };
    bytes.extend_from_slice(b"{\"app_id\":");
    write_json(bytes, source.app.as_str());
    print(bytes, format_args!(",\"endpoint\":\"{}\",\"type\":", source.endpoint));
    write_json(bytes, event.kind.as_ref());
    bytes.extend_from_slice(b",\"user_id\":");
    write_json(bytes, event.user_id.as_ref());
    if let Some(channel) = &event.channel_id {
        bytes.extend_from_slice(b",\"channel_id\":");
        write_json(bytes, channel.as_ref());
    }
    print(bytes, format_args!(",\"ms\":{}", event.time.as_millis()));
    let mut extra = Vec::new();
    for (name, value) in &event.others {
        // `ts` and `ms` that lost against the other, and second copies of a field, are extra too.
        if clashes(name) || name == "ts" || (name == "group_id" && event.channel_id.is_some()) {
            extra.push((name.as_ref(), *value));
        } else {
            write_field(bytes, name, value);
        }
    }
    if !extra.is_empty() {
        bytes.extend_from_slice(b",\"extra\":{");
        let start = bytes.len();
        for (name, value) in extra {
            write_field(bytes, name, value);
        }
        bytes.remove(start);
        bytes.push(b'}');
    }
    bytes.push(b'}');
}

fn write_field(bytes: &mut Vec<u8>, name: &str, value: &RawValue) {
    bytes.push(b',');
    write_json(bytes, name);
    bytes.push(b':');
    write_on_one_line(bytes, value.get());
}

/// White space between the tokens of a value may hold line ends; inside a string none can stand.
fn write_on_one_line(bytes: &mut Vec<u8>, json: &str) {
    bytes.extend(json.bytes().map(|byte| if matches!(byte, b'\n' | b'\r') { b' ' } else { byte }));
}

fn write_json(bytes: &mut Vec<u8>, value: &(impl Serialize + ?Sized)) {
    serde_json::to_writer(bytes, value).expect("strings and numbers are always JSON");
}

fn print(bytes: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    bytes.write_fmt(text).expect("memory takes every write");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agora::event;
    use crate::model::{Feed, GapCause, Incarnation, Region, Ticket};

    const PAGE: PageId = PageId { incarnation: Incarnation::from_u128(0x1f), ticket: Ticket(7) };

    fn written(endpoint: Endpoint, element: &str) -> Batch {
        let app = AppId::new("a1");
        let source = Source::new(&app, endpoint, PAGE);
        let event = event::read(endpoint, element.as_bytes()).unwrap();
        let id = Fingerprint::from_bytes([0xab; 16]);
        let mut batch = Batch::default();
        write_event(&mut batch, &source, &event, id, None);
        batch
    }

    fn check_value(endpoint: Endpoint, element: &str, value: &str) {
        let batch = written(endpoint, element);
        let record = batch.iter().next().unwrap();
        assert_eq!(std::str::from_utf8(record.value().unwrap()).unwrap(), value);
        serde_json::from_str::<&RawValue>(value).unwrap();
    }

    #[test]
    fn the_value_is_one_line_in_the_promised_order() {
        check_value(
            Endpoint::Channel,
            r#"{"ms":1578027418981,"group_id":"c d","type":"Join","user_id":"u\"1"}"#,
            r#"{"app_id":"a1","endpoint":"channel_events","type":"Join","user_id":"u\"1","channel_id":"c d","ms":1578027418981}"#,
        );
        check_value(
            Endpoint::User,
            r#"{"user_id":"u","type":"Login","ts":1578027418}"#,
            r#"{"app_id":"a1","endpoint":"user_events","type":"Login","user_id":"u","ms":1578027418000}"#,
        );
    }

    #[test]
    fn unknown_fields_are_kept_as_received() {
        check_value(
            Endpoint::User,
            "{\"n\":1.50,\"user_id\":\"u\",\"o\":{\"a\":\n[]},\"type\":\"Login\",\"ms\":200000000000,\"channel_id\":7}",
            r#"{"app_id":"a1","endpoint":"user_events","type":"Login","user_id":"u","ms":200000000000,"n":1.50,"o":{"a": []},"channel_id":7}"#,
        );
        check_value(
            Endpoint::Channel,
            r#"{"app_id":9,"user_id":"u","type":"Join","ms":200000000000,"ts":1,"group_id":"g","channel_id":"c","extra":null,"z":0}"#,
            r#"{"app_id":"a1","endpoint":"channel_events","type":"Join","user_id":"u","channel_id":"g","ms":200000000000,"z":0,"extra":{"app_id":9,"extra":null,"channel_id":"c","ts":1}}"#,
        );
    }

    #[test]
    fn headers_are_those_of_cloudevents() {
        let batch = written(
            Endpoint::Channel,
            r#"{"ms":1578027418981,"group_id":"c","type":"Join","user_id":"u"}"#,
        );
        let record = batch.iter().next().unwrap();
        assert_eq!(record.key(), b"c");
        let headers: Vec<(&str, &str)> = record
            .headers()
            .map(|(name, value)| (name, std::str::from_utf8(value).unwrap()))
            .collect();
        assert_eq!(
            headers,
            [
                ("ce_specversion", "1.0"),
                ("ce_id", "abababababababababababababababab"),
                ("ce_source", "/agora/a1/rtm/channel_events"),
                ("ce_type", "io.agora.rtm.channel.join"),
                ("ce_time", "2020-01-03T04:56:58.981Z"),
                ("ce_subject", "c"),
                ("content-type", "application/json"),
                ("agora_page", "0000000000000000000000000000001f/7"),
            ]
        );
    }

    #[test]
    fn a_time_that_rfc_3339_can_not_state_is_left_out_and_the_value_keeps_it() {
        for (ms, kept) in [
            ("1578027418981000", "1578027418981000"),
            ("1578027418981000000", "1578027418981000000"),
            ("253402300800000", "253402300800000"),
            // Small numbers count seconds.
            ("-1", "-1000"),
        ] {
            let element = format!(r#"{{"user_id":"u","type":"Login","ms":{ms}}}"#);
            let batch = written(Endpoint::User, &element);
            let record = batch.iter().next().unwrap();
            let names: Vec<&str> = record.headers().map(|(name, _)| name).collect();
            let others = [
                "ce_specversion",
                "ce_id",
                "ce_source",
                "ce_type",
                "ce_subject",
                "content-type",
                "agora_page",
            ];
            assert_eq!(names, others, "{ms}");
            let value: serde_json::Value = serde_json::from_slice(record.value().unwrap()).unwrap();
            assert_eq!(value["ms"].to_string(), kept);
        }
        for (ms, time) in
            [("\"0\"", "1970-01-01T00:00:00.000Z"), ("253402300799999", "9999-12-31T23:59:59.999Z")]
        {
            let element = format!(r#"{{"user_id":"u","type":"Login","ms":{ms}}}"#);
            let batch = written(Endpoint::User, &element);
            let record = batch.iter().next().unwrap();
            let mut headers = record.headers();
            let found = headers.find(|(name, _)| *name == "ce_time");
            assert_eq!(found, Some(("ce_time", time.as_bytes())), "{ms}");
        }
    }

    #[test]
    fn a_gap_says_what_it_knows() {
        let gap = Gap {
            feed: Feed {
                app: AppId::new("a1"),
                region: Region::new("eu"),
                endpoint: Endpoint::User,
            },
            cause: GapCause::AnswerLost,
            from: None,
            to: Timestamp::from_millis(9),
            at_least: 0,
            at_most: Some(1_000),
        };
        let mut batch = Batch::default();
        write_gap(&mut batch, PAGE, &gap);
        let record = batch.iter().next().unwrap();
        assert_eq!(
            std::str::from_utf8(record.value().unwrap()).unwrap(),
            r#"{"app_id":"a1","region":"eu","endpoint":"user_events","cause":"answer_lost","from":null,"to":9,"at_least":0,"at_most":1000}"#
        );
    }

    fn letter(batch: &Batch) -> (usize, &[u8], String) {
        let record = batch.last().unwrap();
        let (name, reason) = record.headers().last().unwrap();
        assert_eq!(name, "reason");
        let reason = String::from_utf8(reason.to_vec()).unwrap();
        (record.size(), record.value().unwrap(), reason)
    }

    #[test]
    fn a_dead_letter_has_room_in_its_topic_whatever_it_is_about() {
        let source = Source::new(&AppId::new("a".repeat(64)), Endpoint::User, PAGE);
        let (raw, said) = (vec![b'x'; 5_000], "because ".repeat(1_000));
        for most in [900, 1_000, 2_000, 5_500, 1_000_000] {
            for reason in ["short", &said] {
                let mut batch = Batch::default();
                write_dead_letter(
                    &mut batch,
                    &source,
                    Part::Element(3),
                    reason,
                    &raw,
                    Room::Bytes(most),
                );
                let (size, value, written) = letter(&batch);
                assert!(size <= most, "{size} bytes where {most} fit");
                let is_whole = value.len() == raw.len();
                assert_eq!(is_whole, most > 5_500 || (most == 5_500 && reason.len() < 512));
                assert_eq!(is_whole, !written.contains("of 5000 bytes"), "{written}");
            }
        }
    }

    #[test]
    fn a_foreign_record_is_copied_within_bounds_and_its_sizes_are_told() {
        let page = PageRecord {
            key: vec![b'k'; 600_000],
            value: vec![b'v'; 600_000].into(),
            headers: vec![("h".repeat(300_000), vec![b'w'; 300_000])],
            appended: None,
        };
        let bad = BadPageRecord::Header("version");
        for (room, kept) in [(Room::Bytes(10_000), 256), (Room::Nothing, 0)] {
            let mut batch = Batch::default();
            write_bad_page(&mut batch, (3, 17), &page, &bad, room);
            let (size, value, reason) = letter(&batch);
            assert!(size <= 10_000, "{size} bytes");
            assert_eq!(batch.last().unwrap().key().len(), kept);
            assert_eq!(value.is_empty(), room == Room::Nothing);
            for words in ["offset 17 of partition 3", "key of 600000 bytes", "1 headers of 600000"]
            {
                assert!(reason.contains(words), "{reason}");
            }
        }
    }
}
