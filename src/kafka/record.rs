//! What consumers read: events, dead letters and gaps as Kafka records.
//!
//! An event is one line of JSON with CloudEvents 1.0 attributes as headers (Kafka protocol binding,
//! binary content mode). The formats are a contract with programs outside this project; the tests
//! of this file hold them.

use std::io::Write as _;
use std::time::Duration;

use serde::Serialize;
use serde_json::value::RawValue;

use crate::agora::Event;
use crate::dedupe::Fingerprint;
use crate::kafka::Batch;
use crate::kafka::Draft;
use crate::kafka::PageRecord;
use crate::kafka::Topic;
use crate::kafka::pages::BadPageRecord;
use crate::model::AppId;
use crate::model::Endpoint;
use crate::model::Gap;
use crate::model::PageId;
use crate::model::Timestamp;

/// The page that a record comes from, as its headers name it.
#[derive(Clone, Debug)]
pub struct Source {
    app: AppId,
    endpoint: Endpoint,
    page: String,
    ce_source: String,
}

/// Which event times may stamp a record.
///
/// A record's timestamp decides when Kafka deletes it, and one outside of a topic's limits fails
/// its whole batch: 1,000 records stamped ten days ago in a topic with seven days' retention were
/// gone in four minutes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamping {
    /// An event older than this is stamped with the time of sending.
    pub oldest: Duration,
}

/// An event more than this ahead of our clock is stamped with the time of sending.
const NEWEST_AHEAD: Duration = Duration::from_secs(60);

/// Room that the headers of a dead letter take at most.
const DEAD_LETTER_HEADERS: usize = 1_024;

/// The names that the value has itself; an unknown field of the same name goes under `extra`.
const OWN_NAMES: [&str; 6] = ["app_id", "endpoint", "type", "user_id", "ms", "extra"];

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

// === impl Stamping ===

impl Stamping {
    /// The timestamp of a record; `None` is the time of sending.
    pub fn stamp(&self, event: Timestamp, now: Timestamp) -> Option<Timestamp> {
        let oldest = now.before(self.oldest);
        let newest = now.after(NEWEST_AHEAD);
        (oldest <= event && event <= newest && event.as_millis() >= 0).then_some(event)
    }
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

/// Writes what is not an event, with its bytes as received.
///
/// `index` is its place in the page, counted from 0; `None` where the whole body is meant. Of more
/// than `largest_record` bytes only the first are written, and the reason says so: all of them are
/// in the page.
pub fn write_dead_letter(
    batch: &mut Batch,
    source: &Source,
    index: Option<usize>,
    reason: &str,
    raw: &[u8],
    largest_record: usize,
) {
    let (raw, reason) = fitting(raw, reason, largest_record);
    let mut draft = batch
        .begin(Topic::DeadLetter)
        .key(source.app.as_str().as_bytes())
        .value(|bytes| bytes.extend_from_slice(raw))
        .header("app", source.app.as_str().as_bytes())
        .header("endpoint", source.endpoint.name().as_bytes())
        .header("agora_page", source.page.as_bytes());
    if let Some(index) = index {
        draft = draft.header_with("index", |bytes| print(bytes, format_args!("{index}")));
    }
    draft.header("reason", reason.as_bytes());
}

/// Writes a record of the pages topic that can't be read, as a dead letter.
pub fn write_bad_page(
    batch: &mut Batch,
    offset: i64,
    page: &PageRecord,
    reason: &BadPageRecord,
    largest_record: usize,
) {
    let reason = format!("the record at offset {offset} of the pages topic: {reason}");
    let (raw, reason) = fitting(&page.value, &reason, largest_record);
    batch
        .begin(Topic::DeadLetter)
        .key(&page.key)
        .value(|bytes| bytes.extend_from_slice(raw))
        .header("app", &page.key)
        .header("reason", reason.as_bytes());
}

/// As many of the bytes as fit, and a reason that says so where these are not all.
fn fitting<'a>(raw: &'a [u8], reason: &str, largest_record: usize) -> (&'a [u8], String) {
    let room = largest_record.saturating_sub(DEAD_LETTER_HEADERS);
    match raw.get(..room) {
        Some(first) if room < raw.len() => {
            (first, format!("{reason}; the first {room} of {} bytes", raw.len()))
        }
        _ => (raw, reason.to_owned()),
    }
}

/// Writes a gap.
pub fn write_gap(batch: &mut Batch, page: PageId, gap: &Gap) {
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
        .header_with("agora_page", |bytes| print(bytes, format_args!("{page}")))
        .header("content-type", b"application/json");
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
    use crate::model::Feed;
    use crate::model::GapCause;
    use crate::model::Incarnation;
    use crate::model::Region;
    use crate::model::Ticket;

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

    #[test]
    fn only_times_that_the_topic_keeps_stamp_a_record() {
        let stamping = Stamping { oldest: Duration::from_secs(100) };
        let now = Timestamp::from_millis(1_000_000);
        for (event, stamped) in [
            (1_000_000, true),
            (900_000, true),
            (899_999, false),
            (1_060_000, true),
            (1_060_001, false),
        ] {
            let event = Timestamp::from_millis(event);
            assert_eq!(stamping.stamp(event, now), stamped.then_some(event), "{event}");
        }
    }
}
