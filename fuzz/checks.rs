//! What holds for every input from outside, whatever it is: the fuzz targets throw bytes at these
//! functions, and the suite replays the corpus through the same ones (`tests/it/corpus.rs`).
//!
//! Each panics where a claim does not hold. They see the library from outside, as its callers do.
#![allow(dead_code, reason = "a target needs one of them; the suite needs all")]

use std::time::{Duration, SystemTime};

use agora_rtm_bridge::agora::event::read;
use agora_rtm_bridge::agora::{
    Answer, Contents, Ending, Flaw, LARGEST_BODY, Raw, Reply, Shape, TransportError, judge, split,
    token,
};
use agora_rtm_bridge::kafka::Batch;
use agora_rtm_bridge::memory::Fingerprint;
use agora_rtm_bridge::model::{AppId, Endpoint, Incarnation, PageId, Ticket, Wholeness};
use agora_rtm_bridge::records::public::{Source, write_event};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::value::RawValue;

/// Panics where its claim does not hold of the input.
type Check = fn(&[u8]);

/// Every check by its name, which is that of its target and of its folder in the corpus.
pub(crate) const CHECKS: [(&str, Check); 6] = [
    ("contents", contents),
    ("splitter", splitter),
    ("answer", answer),
    ("event", event),
    ("headers", headers),
    ("token", token),
];

/// What was compressed is what it was, a part of it is a part of the text, and nothing inflates
/// without a bound. Bytes that are not compressed are left as they are.
pub(crate) fn contents(input: &[u8]) {
    let stored = input.get(..0xffff).unwrap_or(input);
    for packed in [zlib(stored), gzip(stored)] {
        let whole = Contents::read(&packed, None, Wholeness::Whole);
        // What comes out may look compressed again.
        if whole.flaw().is_none() && whole.text() == stored {
            assert!(!whole.is_as_received());
            for cut in cuts(packed.len()).filter(|cut| *cut > 2) {
                let part = packed.get(..cut).expect("a cut is in the body");
                let part = Contents::read(part, None, Wholeness::Cut);
                assert_eq!(part.flaw(), Some(Flaw::Early));
                assert!(stored.starts_with(part.text()), "cut at {cut}");
            }
        } else {
            let first = stored.first().expect("nothing is what comes out of nothing");
            assert!(*first == 0x1f || first & 0x0f == 8, "it does not look compressed");
        }
    }
    let encodings =
        [None, Some("gzip"), Some("deflate"), Some("br"), Some("identity"), Some("gzip, br")];
    for encoding in encodings {
        for wholeness in [Wholeness::Whole, Wholeness::Cut] {
            let contents = Contents::read(input, encoding, wholeness);
            assert!(contents.text().len() <= LARGEST_BODY);
            assert!(!contents.is_as_received() || contents.text() == input);
            let (split, glance) = (contents.split(), contents.glance());
            let leftover = split.leftover(wholeness);
            assert_eq!(
                glance.received,
                split.elements.len() as u64 + u64::from(leftover.is_some())
            );
            assert!(
                glance.shape != Shape::Sound || leftover.is_none() && contents.flaw().is_none()
            );
            if let Some(Flaw::Foreign(named)) = contents.flaw() {
                let (reason, raw) = leftover.expect("it goes to a person");
                assert!(reason.contains(named) && raw == input && split.elements.is_empty());
            }
        }
    }
}

/// A body is split into what JSON says its elements are, and a part of it into the first of them.
pub(crate) fn splitter(body: &[u8]) {
    let whole = split(body);
    let mut end = 0;
    for element in &whole.elements {
        let place = place(body, element);
        assert!(!element.is_empty(), "an element is something");
        assert!(end <= place.start && place.end <= body.len(), "elements stand one after another");
        end = place.end;
    }
    match whole.ending {
        Ending::TornInEvents(torn) if !torn.is_empty() => {
            let place = place(body, torn);
            assert!(end <= place.start && place.end == body.len(), "what is torn is the end");
        }
        Ending::NotAnObject(all) => assert_eq!(all, body),
        _ => {}
    }
    for cut in cuts(body.len()) {
        let part = split(body.get(..cut).expect("a cut is in the body"));
        let same = whole.elements.get(..part.elements.len());
        assert_eq!(Some(&part.elements[..]), same, "cut at {cut}");
    }
    for wholeness in [Wholeness::Whole, Wholeness::Cut] {
        let contents = Contents::read(body, None, wholeness);
        if !contents.is_as_received() {
            continue;
        }
        let glance = contents.glance();
        let leftover = whole.leftover(wholeness).is_some();
        assert_eq!(glance.received, whole.elements.len() as u64 + u64::from(leftover));
        let sound = whole.ending == Ending::Closed && wholeness == Wholeness::Whole;
        assert_eq!(glance.shape == Shape::Sound, sound);
        assert!(glance.times.is_none_or(|(first, last)| first <= last));
    }
    let Some(fields) = json::object(body) else { return };
    let events = || fields.iter().filter(|(name, _)| name == "events").map(|(_, value)| *value);
    let listed: Vec<&[u8]> =
        events().filter_map(json::array).flatten().map(|it| it.get().as_bytes()).collect();
    assert_eq!(whole.elements, listed, "JSON says so");
    let odd = events().any(|it| it.get() != "null" && json::array(it).is_none());
    let elsewhere = fields.iter().any(|(name, value)| name != "events" && json::may_hold(value));
    let is_empty = says_empty(&fields);
    match whole.ending {
        Ending::Closed => {
            assert!(!odd, "`events` is no array, and nobody says so");
            assert!(!listed.is_empty() || is_empty, "nothing says that it is empty");
        }
        Ending::Failed | Ending::Unproven(_) => {
            assert!(!odd && listed.is_empty() && !elsewhere && !is_empty);
        }
        Ending::Elsewhere(_) => assert!(!odd && listed.is_empty() && elsewhere),
        Ending::NotAnArray(_) => assert!(odd, "`events` is an array"),
        ending => panic!("JSON says that the body is whole: {ending:?}"),
    }
}

/// An answer that is not kept had nothing to be kept.
pub(crate) fn answer(body: &[u8]) {
    for status in [200, 204, 206, 301, 400, 401, 403, 404, 408, 429, 500, 503] {
        for cut in [None, Some(TransportError("reset".to_owned()))] {
            let wholeness = if cut.is_some() { Wholeness::Cut } else { Wholeness::Whole };
            let raw = Raw { status, body: body.to_vec().into(), cut, ..Raw::default() };
            let answer = judge(Reply::Answered(raw), SystemTime::UNIX_EPOCH);
            let contents = Contents::read(body, None, wholeness);
            let split = contents.split();
            match answer {
                Answer::Page { body: kept, .. } => {
                    assert_eq!(kept, body);
                    continue;
                }
                Answer::Lost(_) | Answer::NotSent(_) => panic!("an answer came"),
                Answer::Empty | Answer::Nothing(_) => {}
            }
            assert!(split.elements.is_empty(), "{status}: elements are thrown away");
            if !(200..300).contains(&status) {
                continue;
            }
            let nothing = status == 204 && contents.text().is_empty();
            let whole = wholeness == Wholeness::Whole && contents.flaw().is_none();
            assert!(whole, "{status}: it may be the rest of a page");
            let fields = json::object(contents.text());
            let scalars = fields.as_ref().is_some_and(|fields| {
                !fields.iter().any(|(name, value)| name != "events" && json::may_hold(value))
            });
            assert!(nothing || scalars, "{status}: something may be an event");
            let empty = nothing || fields.is_some_and(|fields| says_empty(&fields));
            assert_eq!(matches!(answer, Answer::Empty), empty, "{status}");
        }
    }
}

/// Whether an object without events says itself that it is empty.
fn says_empty(fields: &[(String, &RawValue)]) -> bool {
    let of = |name: &'static str| {
        fields.iter().filter(move |(it, _)| it == name).map(|(_, value)| value.get())
    };
    let succeeded =
        |value: &str| serde_json::from_str::<String>(value).is_ok_and(|text| text == "success");
    let elsewhere = fields.iter().any(|(name, value)| name != "events" && json::may_hold(value));
    let failed = of("result").any(|it| !succeeded(it))
        || of("error").any(|it| !["false", "null", "0", "\"\""].contains(&it));
    let nothing = |value: &str| value == "null" || value.starts_with('[');
    let reports = of("result").any(succeeded) || of("events").any(nothing);
    !elsewhere && !failed && reports
}

/// What is read of an event is what its record says, and every other field is in it as it came.
pub(crate) fn event(element: &[u8]) {
    for endpoint in Endpoint::ALL {
        let event = match read(endpoint, element) {
            Ok(event) => event,
            Err(why) => {
                assert!(!why.to_string().is_empty());
                continue;
            }
        };
        let app = AppId::new("a1");
        let page = PageId { incarnation: Incarnation::from_u128(1), ticket: Ticket(1) };
        let mut batch = Batch::default();
        let id = Fingerprint::of(&app, endpoint, &event);
        write_event(&mut batch, &Source::new(&app, endpoint, page), &event, id, None);
        let record = batch.last().expect("it was written");
        let value = record.value().expect("an event has a value");
        assert!(!value.contains(&b'\n') && !value.contains(&b'\r'), "one line");
        let key = event.channel_id.as_ref().unwrap_or(&event.user_id);
        assert_eq!(record.key(), key.as_bytes());

        let written = json::object(value).expect("a record is JSON");
        let mut fields = written.iter().map(|(name, value)| (name.as_str(), value.get()));
        let mut text = |expected: &str, content: &str| {
            let (name, value) = fields.next().expect("it has its own fields");
            assert_eq!(name, expected);
            assert_eq!(serde_json::from_str::<String>(value).expect("a string"), content);
        };
        text("app_id", "a1");
        text("endpoint", endpoint.name());
        text("type", &event.kind);
        text("user_id", &event.user_id);
        if let Some(channel) = &event.channel_id {
            text("channel_id", channel);
        }
        let ms = event.time.as_millis().to_string();
        assert_eq!(fields.next(), Some(("ms", ms.as_str())));

        // The others follow in their order, those with a name of ours in `extra`.
        let extra = written.iter().rfind(|(name, _)| name == "extra");
        let extra = extra.and_then(|(_, value)| json::object(value.get().as_bytes()));
        let mut extra = extra.into_iter().flatten();
        for (name, value) in &event.others {
            let plain = fields.clone().next().is_some_and(|(it, raw)| {
                it == name && it != "extra" && on_one_line(raw) == on_one_line(value.get())
            });
            if plain {
                fields.next();
                continue;
            }
            let (it, raw) = extra.next().expect("a field that is not plain is extra");
            assert_eq!((it.as_str(), on_one_line(raw.get())), (&**name, on_one_line(value.get())));
        }
        assert!(extra.next().is_none(), "nothing else is extra");
        let rest: Vec<&str> = fields.map(|(name, _)| name).collect();
        assert!(rest.is_empty() || rest == ["extra"], "{rest:?} comes from nowhere");
    }
}

/// A header may say anything: a delay is one that can be borne.
pub(crate) fn headers(value: &[u8]) {
    let text = String::from_utf8_lossy(value).into_owned();
    for now in [0, 784_111_770, 253_402_300_799] {
        let raw = Raw {
            status: 429,
            retry_after: Some(text.clone()),
            request_id: Some(text.clone()),
            resource_id: Some(text.clone()),
            ..Raw::default()
        };
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(now);
        let Answer::Nothing(said) = judge(Reply::Answered(raw), now) else {
            panic!("a 429 without a body hands over nothing")
        };
        let longest = Duration::from_secs(60);
        assert!(said.retry_after.is_none_or(|it| it <= longest), "{:?}", said.retry_after);
    }
}

/// A token may say anything, as a text and below its packing: no life is longer than a token's.
pub(crate) fn token(input: &[u8]) {
    let app_id = "970CA35de60c44645bbae8a215061b33";
    for text in [
        String::from_utf8_lossy(input).into_owned(),
        format!("007{}", STANDARD.encode(zlib(input))),
        format!("006{app_id}{}", STANDARD.encode(input)),
    ] {
        let Some(token) = token::read(&text) else { continue };
        if text.starts_with("007") {
            let ends_at = token.ends_at.expect("it has an end of its own, or the longest life");
            assert!(ends_at.since(token.issued_at) <= token::LONGEST_LIFE);
        }
        token.lets_in(token.user_id().unwrap_or("somebody"));
        assert!(!token.is_signed_with("5CFd2fd1755d40ecb72977518be15d3c", "somebody"));
    }
}

/// The bytes as zlib packs them where it can't: so the fuzzer gets below the packing.
fn zlib(bytes: &[u8]) -> Vec<u8> {
    let bytes = bytes.get(..0xffff).unwrap_or(bytes);
    let length = u16::try_from(bytes.len()).expect("it was cut to fit");
    let (mut a, mut b) = (1_u32, 0_u32);
    for byte in bytes {
        a = (a + u32::from(*byte)) % 65_521;
        b = (b + a) % 65_521;
    }
    let mut packed = vec![0x78, 0x01, 0x01];
    packed.extend(length.to_le_bytes());
    packed.extend((!length).to_le_bytes());
    packed.extend(bytes);
    packed.extend((b << 16 | a).to_be_bytes());
    packed
}

/// The bytes as gzip packs them where it can't.
fn gzip(bytes: &[u8]) -> Vec<u8> {
    let zlib = zlib(bytes);
    let deflated = zlib.get(2..zlib.len() - 4).expect("it has a head and a checksum");
    let mut packed = b"\x1f\x8b\x08\0\0\0\0\0\0\xff".to_vec();
    packed.extend(deflated);
    packed.extend(crc_32(bytes).to_le_bytes());
    packed.extend(u32::try_from(bytes.len()).expect("it was cut to fit").to_le_bytes());
    packed
}

fn crc_32(bytes: &[u8]) -> u32 {
    let step = |sum: u32| (sum >> 1) ^ (0xedb8_8320 * (sum & 1));
    !bytes.iter().fold(!0, |sum, byte| (0..8).fold(sum ^ u32::from(*byte), |sum, _| step(sum)))
}

/// Where a part of the body stands in it.
fn place(body: &[u8], part: &[u8]) -> std::ops::Range<usize> {
    let start = part.as_ptr() as usize - body.as_ptr() as usize;
    start..start + part.len()
}

/// Where to cut: everywhere in what is short.
fn cuts(length: usize) -> impl Iterator<Item = usize> {
    (0..length).step_by(1 + length / 256)
}

fn on_one_line(json: &str) -> String {
    json.replace(['\n', '\r'], " ")
}

/// JSON as serde reads it, with the order and the raw values kept.
mod json {
    use std::fmt;

    use serde::de::{MapAccess, Visitor};
    use serde::{Deserialize, Deserializer};

    use super::RawValue;

    struct Fields<'a>(Vec<(String, &'a RawValue)>);

    /// The fields of an object; `None` where it is none.
    pub(super) fn object(bytes: &[u8]) -> Option<Vec<(String, &RawValue)>> {
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        let Fields(fields) = serde_json::from_slice(bytes).ok()?;
        Some(fields)
    }

    /// Whether there is a list or an object with something in it.
    pub(super) fn may_hold(value: &RawValue) -> bool {
        let inside = value.get().get(1..value.get().len() - 1).unwrap_or_default();
        value.get().starts_with(['[', '{']) && !inside.trim().is_empty()
    }

    /// The elements of an array; `None` where it is none.
    pub(super) fn array(value: &RawValue) -> Option<Vec<&RawValue>> {
        serde_json::from_str(value.get()).ok()
    }

    impl<'de: 'a, 'a> Deserialize<'de> for Fields<'a> {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            struct InOrder;

            impl<'de> Visitor<'de> for InOrder {
                type Value = Fields<'de>;

                fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                    f.write_str("an object")
                }

                fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                    let mut fields = Vec::new();
                    while let Some(field) = map.next_entry()? {
                        fields.push(field);
                    }
                    Ok(Fields(fields))
                }
            }

            deserializer.deserialize_map(InOrder)
        }
    }
}
