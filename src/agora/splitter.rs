//! Finds the elements of the `events` array in a body, complete or cut off, without parsing them.
//!
//! One pass over the bytes that knows only strings and nesting: an element is anything between two
//! commas of the array. Whether it is JSON, UTF-8 or an event is decided for each element
//! separately ([`super::event`]), so one bad byte costs one element, and a body that was cut off
//! costs only its last one.
//!
//! It accepts more than JSON and never fails. An object without elements must say that it is empty:
//! `result` is `success`, or `events` is `[]` or `null`, and there is no list or object elsewhere
//! that could hold an event. Otherwise its ending says what is wrong.

use std::borrow::Cow;

use serde::de::IgnoredAny;

use super::contents::Flaw;
use super::event;
use crate::model::{Timestamp, Wholeness};

/// The content of a body.
#[derive(Debug, PartialEq, Eq)]
pub struct Split<'a> {
    /// The complete elements of every top-level `events` array, as received.
    pub elements: Vec<&'a [u8]>,
    /// How the body ends.
    pub ending: Ending<'a>,
    /// The text of the top-level `result`, if it is a string.
    pub result: Option<&'a [u8]>,
    /// Why the body may hold more than this text, and the body as received.
    pub flaw: Option<(Flaw<'a>, &'a [u8])>,
}

/// How a body ends, as far as its events are concerned.
#[derive(Debug, PartialEq, Eq)]
pub enum Ending<'a> {
    /// The object was closed: all elements are there, or the object says that there are none.
    Closed,
    /// The object was closed, holds no list and no object, and `result` reports a failure.
    Failed,
    /// The object was closed, holds no list and no object, and nothing says that it is empty.
    /// Contains the whole body.
    Unproven(&'a [u8]),
    /// The object was closed and holds no element, but a list or an object in a place other than
    /// `events`. Contains the whole body.
    Elsewhere(&'a [u8]),
    /// The body ends inside the `events` array. Contains the bytes of the incomplete element; empty
    /// if the body ends between two elements.
    TornInEvents(&'a [u8]),
    /// The body ends outside of `events` before the object was closed.
    Torn,
    /// `events` is neither an array nor `null`. Contains its bytes.
    NotAnArray(&'a [u8]),
    /// Not a JSON object, or something follows it. Contains the whole body.
    NotAnObject(&'a [u8]),
}

/// Splits a body.
pub fn split(body: &[u8]) -> Split<'_> {
    let mut reader = Scanner { body, at: 0 };
    let ending = Ending::NotAnObject(body);
    let mut split = Split { elements: Vec::new(), ending, result: None, flaw: None };
    reader.skip_byte_order_mark();
    if reader.next_token() != Some(b'{') {
        return split;
    }
    reader.at += 1;
    split.ending = read_object(&mut reader, &mut split);
    split
}

/// What the poller needs to know about a committed page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Glance {
    /// Number of elements, including the leftover; the accounts' *received*.
    pub received: u64,
    /// Whether it looks like a page from Agora.
    pub shape: Shape,
    /// Times of its first and its last complete event, as stated by Agora. `None` if they can't be
    /// read, run backwards, or are in whole seconds.
    pub times: Option<(Timestamp, Timestamp)>,
}

/// Whether a page looks like one from Agora.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A whole object.
    Sound,
    /// The beginning of one.
    Torn,
    /// A complete object that reports success, and holds something in an unknown place.
    Strange,
    /// Something else: a proxy's page, or nothing at all.
    Alien,
}

/// Inspects the text of a durable page.
pub(super) fn glance(split: &Split<'_>, wholeness: Wholeness, is_all: bool) -> Glance {
    let leftover = split.leftover(wholeness).is_some();
    let shape = match split.ending {
        _ if wholeness == Wholeness::Cut => Shape::Torn,
        Ending::Closed if is_all => Shape::Sound,
        Ending::Closed | Ending::TornInEvents(_) | Ending::Torn => Shape::Torn,
        Ending::Elsewhere(_) if split.result == Some(b"success") => Shape::Strange,
        Ending::Failed
        | Ending::Unproven(_)
        | Ending::Elsewhere(_)
        | Ending::NotAnArray(_)
        | Ending::NotAnObject(_) => Shape::Alien,
    };
    Glance {
        received: split.elements.len() as u64 + u64::from(leftover),
        shape,
        times: times(&split.elements),
    }
}

fn times(elements: &[&[u8]]) -> Option<(Timestamp, Timestamp)> {
    let first = event::read_time(elements.first()?)?;
    let last = event::read_time(elements.last()?)?;
    let coarse = first.in_seconds && last.in_seconds;
    (!coarse && first.time <= last.time).then_some((first.time, last.time))
}

// === impl Split ===

impl<'a> Split<'a> {
    /// Bytes that should have been an element but aren't, with the reason: one dead letter.
    pub fn leftover(&self, wholeness: Wholeness) -> Option<(Cow<'static, str>, &'a [u8])> {
        if let Some((flaw, received)) = self.flaw {
            return Some((flaw.to_string().into(), received));
        }
        let whole = wholeness == Wholeness::Whole;
        let (reason, raw) = match self.ending {
            Ending::NotAnObject(body) if whole && !body.trim_ascii().is_empty() => {
                ("the body is not a JSON object", body)
            }
            Ending::NotAnArray(raw) => ("`events` is not an array", raw),
            Ending::TornInEvents(raw) if whole && !raw.is_empty() => {
                ("the body was received in full, but ends inside this element", raw)
            }
            Ending::Unproven(body) => ("the body holds no event and does not report success", body),
            Ending::Elsewhere(body) => ("the body holds data, but not in `events`", body),
            _ => return None,
        };
        Some((Cow::Borrowed(reason), raw))
    }
}

/// What the fields of an object say apart from the elements.
#[derive(Default)]
struct ObjectFields<'a> {
    /// The value of `events`, if it is neither an array nor `null`.
    odd: Option<&'a [u8]>,
    /// `events` is an array or `null`.
    has_events: bool,
    /// `result` is `success`.
    succeeded: bool,
    /// `result` is something else.
    failed: bool,
    /// `error` is set.
    has_error: bool,
    /// A field other than `events` may hold an event.
    elsewhere: bool,
}

// === impl Said ===

impl<'a> ObjectFields<'a> {
    fn take(&mut self, key: &[u8], value: &'a [u8]) {
        if means(key, "events") {
            self.has_events |= value == b"null";
            self.odd = if value == b"null" { self.odd } else { Some(value) };
            return;
        }
        self.elsewhere |= may_hold_an_event(value);
        if means(key, "result") {
            let succeeded = unquoted(value).is_some_and(|text| means(text, "success"));
            self.succeeded |= succeeded;
            self.failed |= !succeeded;
        } else if means(key, "error") {
            self.has_error |= ![&b"false"[..], b"null", b"0", b"\"\""].contains(&value);
        }
    }

    /// The ending of a closed object.
    fn ending(&self, body: &'a [u8], has_elements: bool) -> Ending<'a> {
        match self.odd {
            Some(odd) => Ending::NotAnArray(odd),
            None if has_elements => Ending::Closed,
            None if self.elsewhere => Ending::Elsewhere(body),
            None if self.failed => Ending::Failed,
            None if self.has_error => Ending::Unproven(body),
            None if self.succeeded || self.has_events => Ending::Closed,
            None => Ending::Unproven(body),
        }
    }
}

/// Whether a value is a nonempty list or object, or not JSON.
fn may_hold_an_event(value: &[u8]) -> bool {
    let within = |open: &[u8], close: &[u8]| value.strip_prefix(open)?.strip_suffix(close);
    match within(b"[", b"]").or_else(|| within(b"{", b"}")) {
        Some(inside) => !inside.iter().all(|byte| is_blank(*byte)),
        None => serde_json::from_slice::<IgnoredAny>(value).is_err(),
    }
}

fn read_object<'a>(reader: &mut Scanner<'a>, split: &mut Split<'a>) -> Ending<'a> {
    let mut said = ObjectFields::default();
    loop {
        match reader.next_token() {
            None => return Ending::Torn,
            Some(b'}') => {
                reader.at += 1;
                // Nothing looks for events behind the object.
                return match reader.next_token() {
                    Some(_) => Ending::NotAnObject(reader.body),
                    None => said.ending(reader.body, !split.elements.is_empty()),
                };
            }
            Some(b',') => {
                reader.at += 1;
                continue;
            }
            Some(b'"') => {}
            Some(_) => return Ending::NotAnObject(reader.body),
        }
        let Some(key) = reader.string() else { return Ending::Torn };
        match reader.next_token() {
            None => return Ending::Torn,
            Some(b':') => reader.at += 1,
            Some(_) => return Ending::NotAnObject(reader.body),
        }
        if reader.next_token() == Some(b'[') && means(key, "events") {
            reader.at += 1;
            said.has_events = true;
            if let Some(torn) = read_elements(reader, &mut split.elements) {
                return Ending::TornInEvents(torn);
            }
            continue;
        }
        let (value, complete) = reader.value();
        if !complete {
            return Ending::Torn;
        }
        said.take(key, value);
        if means(key, "result") {
            split.result = unquoted(value).or(split.result);
        }
    }
}

/// Reads to the end of the array. Returns the incomplete bytes if the body ends first.
fn read_elements<'a>(reader: &mut Scanner<'a>, elements: &mut Vec<&'a [u8]>) -> Option<&'a [u8]> {
    loop {
        match reader.next_token() {
            None => return Some(b""),
            Some(b']') => {
                reader.at += 1;
                return None;
            }
            Some(b',') => reader.at += 1,
            // It closes nothing. If it isn't consumed, the reader stays in front of it forever.
            Some(b'}') => {
                elements.push(reader.rest().get(..1).unwrap_or_default());
                reader.at += 1;
            }
            Some(_) => {
                let (element, complete) = reader.value();
                if !complete {
                    return Some(element);
                }
                elements.push(element);
            }
        }
    }
}

/// Whether a key as written is this name; JSON allows escapes in it.
fn means(key: &[u8], name: &str) -> bool {
    let unescaped = || serde_json::from_slice(&[b"\"", key, b"\""].concat()).ok();
    key == name.as_bytes()
        || key.contains(&b'\\') && unescaped().is_some_and(|it: String| it == name)
}

fn unquoted(value: &[u8]) -> Option<&[u8]> {
    value.strip_prefix(b"\"")?.strip_suffix(b"\"")
}

struct Scanner<'a> {
    body: &'a [u8],
    at: usize,
}

// === impl Reader ===

impl<'a> Scanner<'a> {
    fn skip_byte_order_mark(&mut self) {
        if self.body.starts_with(b"\xef\xbb\xbf") {
            self.at = 3;
        }
    }

    /// The next byte that isn't whitespace, without consuming it.
    fn next_token(&mut self) -> Option<u8> {
        let rest = self.rest();
        self.at += rest.iter().position(|byte| !is_blank(*byte))?;
        self.body.get(self.at).copied()
    }

    fn rest(&self) -> &'a [u8] {
        self.body.get(self.at..).unwrap_or_default()
    }

    /// The content of a string as written, including escapes; `None` if the body ends inside it.
    fn string(&mut self) -> Option<&'a [u8]> {
        let start = self.at + 1;
        let end = end_of_string(self.body, start)?;
        self.at = end + 1;
        self.body.get(start..end)
    }

    /// The bytes of a value, and whether it is complete.
    ///
    /// An object, an array and a string end with their own last byte, regardless of what follows:
    /// Agora's documents have an example without the comma between two. Anything else extends to
    /// the next comma or bracket, and is complete only if there is one: a number may have more
    /// digits.
    fn value(&mut self) -> (&'a [u8], bool) {
        let start = self.at;
        let mut depth = 0_usize;
        while let Some(&byte) = self.body.get(self.at) {
            let mut ends_here = false;
            match byte {
                b'"' => match end_of_string(self.body, self.at + 1) {
                    Some(end) => {
                        ends_here = depth == 0 && self.at == start;
                        self.at = end;
                    }
                    None => break,
                },
                b'{' | b'[' => depth += 1,
                b'}' | b']' if depth > 0 => {
                    depth -= 1;
                    ends_here = depth == 0;
                }
                b'}' | b']' | b',' if depth == 0 => {
                    let value = self.body.get(start..self.at).unwrap_or_default();
                    return (trim_end(value), true);
                }
                _ => {}
            }
            self.at += 1;
            if ends_here {
                return (self.body.get(start..self.at).unwrap_or_default(), true);
            }
        }
        self.at = self.body.len();
        (self.body.get(start..).unwrap_or_default(), false)
    }
}

/// Whitespace as JSON defines it. Rust's definition includes the form feed, which would then make
/// an empty element.
fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

fn trim_end(value: &[u8]) -> &[u8] {
    let end = value.iter().rposition(|byte| !is_blank(*byte)).map_or(0, |last| last + 1);
    value.get(..end).unwrap_or_default()
}

/// The position of the closing quote of the string whose opening quote precedes `from`.
fn end_of_string(body: &[u8], from: usize) -> Option<usize> {
    let mut at = from;
    loop {
        match body.get(at)? {
            b'"' => return Some(at),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::agora::Contents;

    fn check(body: &str, elements: &[&str], ending: Ending<'_>) {
        let split = split(body.as_bytes());
        let found: Vec<&str> =
            split.elements.iter().map(|raw| std::str::from_utf8(raw).unwrap()).collect();
        assert_eq!(found, elements, "{body}");
        assert_eq!(split.ending, ending, "{body}");
    }

    #[test]
    fn elements_are_found_whatever_stands_around_them() {
        check(r#"{"result":"success","events":[]}"#, &[], Ending::Closed);
        check(r#"{"events":null,"request_id":"1"}"#, &[], Ending::Closed);
        check(r#"{"result":"success"}"#, &[], Ending::Closed);
        check(r#"{"error":true,"more":[1],"events":[2]}"#, &["2"], Ending::Closed);
        check("\u{feff}{\"events\" : [ {} , 1\n] } ", &["{}", "1"], Ending::Closed);
        check(
            r#"{"x":{"events":[9]},"events":[{"a":[1,{}]}]}"#,
            &[r#"{"a":[1,{}]}"#],
            Ending::Closed,
        );
        check(r#"{"events":[{"a":"],}\""},"b"]}"#, &[r#"{"a":"],}\""}"#, "\"b\""], Ending::Closed);
        check(r#"{"events":[1],"events":[2]}"#, &["1", "2"], Ending::Closed);
        check(r#"{"events":[1,]}"#, &["1"], Ending::Closed);
        check(r#"{"\u0065vents":[1],"ev\u0065nts":[2]}"#, &["1", "2"], Ending::Closed);
        check(
            r#"{"events":[{"a":1}{"b":2} {"c":3}]}"#,
            &[r#"{"a":1}"#, r#"{"b":2}"#, r#"{"c":3}"#],
            Ending::Closed,
        );
    }

    #[test]
    fn a_body_that_ends_early_says_where() {
        check(r#"{"events":[{"a":1},{"b":"#, &[r#"{"a":1}"#], Ending::TornInEvents(br#"{"b":"#));
        check(r#"{"events":[{"a":1},"#, &[r#"{"a":1}"#], Ending::TornInEvents(b""));
        check(r#"{"events":[{"a":1}"#, &[r#"{"a":1}"#], Ending::TornInEvents(b""));
        check(r#"{"events":"#, &[], Ending::Torn);
        check(r#"{"events":nul"#, &[], Ending::Torn);
        check(r#"{"events":[1]"#, &["1"], Ending::Torn);
        check(r#"{"resu"#, &[], Ending::Torn);
        // A bare number may have more digits: it is complete only if something follows.
        check(r#"{"events":[12"#, &[], Ending::TornInEvents(b"12"));
    }

    #[test]
    fn what_is_no_page_is_named() {
        check("<html>", &[], Ending::NotAnObject(b"<html>"));
        check("", &[], Ending::NotAnObject(b""));
        check(r#"{"events":{"a":1}}"#, &[], Ending::NotAnArray(br#"{"a":1}"#));
    }

    #[test]
    fn an_object_without_elements_has_to_say_that_it_is_empty() {
        for (body, ending) in [
            (r#"{"result":"success","more":[ ],"x":{}}"#, "closed"),
            (r#"{"events":[],"error":false,"x":"{1}"}"#, "closed"),
            (r#"{"events":null,"error":null}"#, "closed"),
            (r#"{"result":"failed"}"#, "failed"),
            (r#"{"result":"failed","result":"success","events":[]}"#, "failed"),
            (r#"{"result":"success","result":[],"events":[]}"#, "failed"),
            (r#"{"error":true,"events":[]}"#, "unproven"),
            (r#"{"\u0065rror":"no","result":"success"}"#, "unproven"),
            (r#"{"request_id":"1"}"#, "unproven"),
            ("{}", "unproven"),
            (r#"{"result":"success","data":{"events":[]}}"#, "elsewhere"),
            (r#"{"events":[],"Events":[1]}"#, "elsewhere"),
            (r#"{"events":null,"x":[[]]}"#, "elsewhere"),
            (r#"{"result":"failed","x":{"a":1}}"#, "elsewhere"),
            // This is not JSON.
            (r#"{"events":[],"x":1{"a":1}}"#, "elsewhere"),
            (r#"{"events":[],"x":[}}"#, "elsewhere"),
        ] {
            let named = match split(body.as_bytes()).ending {
                Ending::Closed => "closed",
                Ending::Failed => "failed",
                Ending::Unproven(raw) if raw == body.as_bytes() => "unproven",
                Ending::Elsewhere(raw) if raw == body.as_bytes() => "elsewhere",
                other => panic!("{body}: {other:?}"),
            };
            assert_eq!(named, ending, "{body}");
        }
    }

    #[test]
    fn a_bracket_that_closes_nothing_is_an_element_of_its_own() {
        check(r#"{"events":[1},{"a":2}}]}"#, &["1", "}", r#"{"a":2}"#, "}"], Ending::Closed);
        check(r#"{"events":[}"#, &["}"], Ending::TornInEvents(b""));
    }

    #[test]
    fn an_element_is_never_empty() {
        check("{\"events\":[\u{c}, 1\u{c} ,\t]}", &["\u{c}", "1\u{c}"], Ending::Closed);
    }

    #[test]
    fn what_stands_behind_the_object_is_not_dropped() {
        for body in [r#"{"events":[1]}{"events":[2]}"#, r#"{"events":[1]} and more"#] {
            check(body, &["1"], Ending::NotAnObject(body.as_bytes()));
            assert!(split(body.as_bytes()).leftover(Wholeness::Whole).is_some(), "{body}");
        }
    }

    #[test]
    fn a_glance_tells_what_agora_sends_from_what_a_proxy_does() {
        let (whole, cut) = (Wholeness::Whole, Wholeness::Cut);
        for (body, wholeness, received, shape) in [
            (r#"{"events":[1,2]}"#, whole, 2, Shape::Sound),
            (r#"{"events":[1,2]}"#, cut, 2, Shape::Torn),
            (r#"{"events":[1,{"#, cut, 1, Shape::Torn),
            (r#"{"events":[1,{"#, whole, 2, Shape::Torn),
            (r#"{"result":"success","data":[1]}"#, whole, 1, Shape::Strange),
            (r#"{"result":"success","data":[1]}"#, cut, 1, Shape::Torn),
            (r#"{"data":[1]}"#, whole, 1, Shape::Alien),
            (r#"{"error":true,"errorCode":500}"#, whole, 1, Shape::Alien),
            (r#"{"result":"failed"}"#, whole, 0, Shape::Alien),
            ("<html>", whole, 1, Shape::Alien),
            ("", whole, 0, Shape::Alien),
            ("", cut, 0, Shape::Torn),
        ] {
            let glance = Contents::read(body.as_bytes(), None, wholeness).glance();
            assert_eq!((glance.received, glance.shape), (received, shape), "{body}");
        }
    }

    #[test]
    fn a_glance_tells_when_the_first_and_the_last_event_happened() {
        let check = |elements: &str, expected: Option<(i64, i64)>| {
            let body = format!(r#"{{"events":[{elements}]}}"#);
            let times = Contents::read(body.as_bytes(), None, Wholeness::Whole).glance().times;
            let millis = times.map(|(first, last)| (first.as_millis(), last.as_millis()));
            assert_eq!(millis, expected, "{elements}");
        };
        let (early, late) = (1_578_027_420_761, 1_578_027_420_762);
        check(r#"{"ms":1578027420761}"#, Some((early, early)));
        check(r#"{"ms":1578027420761},7,{"ts":"1578027420762"}"#, Some((early, late)));
        check(r#"{"ms":null,"ts":1578027420761},{"ms":1578027420762,"ts":5}"#, Some((early, late)));
        // Whole seconds are fine if they are stated in milliseconds.
        check(
            r#"{"ms":1578027420000},{"ms":1578027421000}"#,
            Some((1_578_027_420_000, 1_578_027_421_000)),
        );
        check(r#"{"ms":1578027420},{"ms":1578027420762}"#, Some((1_578_027_420_000, late)));
        check(r#"{"ms":1578027420},{"ms":"1578027421"}"#, None);
        check(r#"{"ms":1578027420762},{"ms":1578027420761}"#, None);
        check(r#"{"ms":1578027420761},{"ms":1.5}"#, None);
        check(r#"{"ms":1578027420761},[1578027420762,null]"#, None);
        check("7", None);
        check("", None);
        let torn = br#"{"events":[{"ms":1578027420761},{"ms":1578027420762},{"ms":15780"#;
        let times = Contents::read(torn, None, Wholeness::Cut).glance().times.unwrap();
        assert_eq!(times.1.as_millis(), late);
    }

    #[test]
    fn the_result_is_read_wherever_it_stands() {
        assert_eq!(split(br#"{"events":[1],"result":"failed"}"#).result, Some(&b"failed"[..]));
        assert_eq!(split(br#"{"result":7}"#).result, None);
    }

    proptest! {
        #[test]
        fn a_cut_keeps_every_element_that_is_complete(
            names in prop::collection::vec("[a-z\"\\\\\\]}{,é]{0,12}", 0..12),
            cut in any::<prop::sample::Index>(),
        ) {
            let elements: Vec<String> = names
                .iter()
                .map(|name| serde_json::json!({ "user_id": name, "n": [1, {}] }).to_string())
                .collect();
            let body = format!(r#"{{"result":"success","events":[{}]}}"#, elements.join(","));
            let cut = cut.index(body.len() + 1);
            let split = split(&body.as_bytes()[..cut]);

            let mut end = body.find('[').unwrap() + 1;
            let mut complete = 0;
            for element in &elements {
                end += element.len();
                if end > cut {
                    break;
                }
                complete += 1;
                end += 1;
            }
            let found: Vec<&[u8]> = elements[..complete].iter().map(String::as_bytes).collect();
            prop_assert_eq!(split.elements, found);
            prop_assert_eq!(split.ending == Ending::Closed, cut == body.len());
        }

        #[test]
        fn no_bytes_make_it_panic(body: Vec<u8>) {
            split(&body);
        }
    }
}
