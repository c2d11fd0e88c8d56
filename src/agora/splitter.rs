//! Finds the elements of the `events` array in a body, whole or cut, without parsing them.
//!
//! One pass over bytes, aware of strings and nesting and of nothing else: an element is what
//! stands between two commas of the array. Whether it is JSON, UTF-8 or an event is decided for
//! each element alone ([`super::event`]), so that one bad byte costs one element and a body that
//! broke off costs only its last one.
//!
//! It accepts more than JSON does and never fails: a body in which it finds no `events` array is
//! the caller's to judge.

use super::event;
use crate::model::Timestamp;
use crate::model::Wholeness;

/// What stands in a body.
#[derive(Debug, PartialEq, Eq)]
pub struct Split<'a> {
    /// The complete elements of every top-level `events` array, as received.
    pub elements: Vec<&'a [u8]>,
    /// How the body ends.
    pub ending: Ending<'a>,
    /// The text of the top-level `result`, where it is a string.
    pub result: Option<&'a [u8]>,
}

/// How a body ends, as far as its events are concerned.
#[derive(Debug, PartialEq, Eq)]
pub enum Ending<'a> {
    /// The object was closed: all elements are there.
    Closed,
    /// The body ends inside the `events` array. The bytes of the element that broke off; empty
    /// where it broke off between two elements.
    TornInEvents(&'a [u8]),
    /// The body ends before the object was closed, outside of `events`.
    Torn,
    /// `events` is there and neither an array nor `null`: its bytes.
    NotAnArray(&'a [u8]),
    /// This is no JSON object, or something stands behind it: the whole body.
    NotAnObject(&'a [u8]),
}

/// Splits a body.
pub fn split(body: &[u8]) -> Split<'_> {
    let mut reader = Reader { body, at: 0 };
    let mut split = Split { elements: Vec::new(), ending: Ending::NotAnObject(body), result: None };
    reader.skip_byte_order_mark();
    if reader.next_token() != Some(b'{') {
        return split;
    }
    reader.at += 1;
    split.ending = read_object(&mut reader, &mut split.elements, &mut split.result);
    split
}

/// What a committed page tells the poller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Glance {
    /// How many elements it hands over, its leftover included: what the accounts call received.
    pub received: u64,
    /// Whether it is what Agora sends.
    pub shape: Shape,
    /// When its first and its last complete event happened, as Agora states it. `None` where that
    /// can't be read, runs backwards, or is known to the second only.
    pub times: Option<(Timestamp, Timestamp)>,
}

/// Whether a page is what Agora sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A whole object.
    Sound,
    /// The beginning of one.
    Torn,
    /// Something else: a proxy's page, nothing at all.
    Alien,
}

/// Looks at a page that is durable.
pub fn glance(body: &[u8], wholeness: Wholeness) -> Glance {
    let split = split(body);
    let leftover = split.leftover(wholeness).is_some();
    let shape = match split.ending {
        Ending::Closed if wholeness == Wholeness::Whole => Shape::Sound,
        Ending::NotAnObject(_) | Ending::NotAnArray(_) if wholeness == Wholeness::Whole => {
            Shape::Alien
        }
        _ => Shape::Torn,
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
    /// Bytes that are no element and should have been, with the reason: one dead letter.
    pub fn leftover(&self, wholeness: Wholeness) -> Option<(&'static str, &'a [u8])> {
        let whole = wholeness == Wholeness::Whole;
        match self.ending {
            Ending::NotAnObject(body) if whole && !body.trim_ascii().is_empty() => {
                Some(("the body is not a JSON object", body))
            }
            Ending::NotAnArray(raw) => Some(("`events` is not an array", raw)),
            Ending::TornInEvents(raw) if whole && !raw.is_empty() => {
                Some(("the body ends inside this element, although it came whole", raw))
            }
            _ => None,
        }
    }
}

fn read_object<'a>(
    reader: &mut Reader<'a>,
    elements: &mut Vec<&'a [u8]>,
    result: &mut Option<&'a [u8]>,
) -> Ending<'a> {
    let mut odd = None;
    loop {
        match reader.next_token() {
            None => return Ending::Torn,
            Some(b'}') => {
                reader.at += 1;
                // What stands behind the object is in no place where it would be looked for.
                return match (reader.next_token(), odd) {
                    (Some(_), _) => Ending::NotAnObject(reader.body),
                    (None, Some(odd)) => Ending::NotAnArray(odd),
                    (None, None) => Ending::Closed,
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
        let first = reader.next_token();
        let is_events = means(key, "events");
        if is_events && first == Some(b'[') {
            reader.at += 1;
            if let Some(torn) = read_elements(reader, elements) {
                return Ending::TornInEvents(torn);
            }
            continue;
        }
        let (value, complete) = reader.value();
        if !complete {
            return Ending::Torn;
        }
        if is_events && value != b"null" {
            odd = Some(value);
        }
        if means(key, "result") {
            *result = unquoted(value).or(*result);
        }
    }
}

/// Reads to the end of the array; the torn bytes where the body ends before it does.
fn read_elements<'a>(reader: &mut Reader<'a>, elements: &mut Vec<&'a [u8]>) -> Option<&'a [u8]> {
    loop {
        match reader.next_token() {
            None => return Some(b""),
            Some(b']') => {
                reader.at += 1;
                return None;
            }
            Some(b',') => reader.at += 1,
            // It closes nothing. Left where it is, the reader would stand before it for ever.
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

/// Whether a key as written is this name: JSON may spell it with escapes.
fn means(key: &[u8], name: &str) -> bool {
    let unescaped = || serde_json::from_slice(&[b"\"", key, b"\""].concat()).ok();
    key == name.as_bytes()
        || key.contains(&b'\\') && unescaped().is_some_and(|it: String| it == name)
}

fn unquoted(value: &[u8]) -> Option<&[u8]> {
    value.strip_prefix(b"\"")?.strip_suffix(b"\"")
}

struct Reader<'a> {
    body: &'a [u8],
    at: usize,
}

// === impl Reader ===

impl<'a> Reader<'a> {
    fn skip_byte_order_mark(&mut self) {
        if self.body.starts_with(b"\xef\xbb\xbf") {
            self.at = 3;
        }
    }

    /// The next byte that is not white space; it is not consumed.
    fn next_token(&mut self) -> Option<u8> {
        let rest = self.rest();
        self.at += rest.iter().position(|byte| !is_blank(*byte))?;
        self.body.get(self.at).copied()
    }

    fn rest(&self) -> &'a [u8] {
        self.body.get(self.at..).unwrap_or_default()
    }

    /// A string's content as written, escapes and all; `None` where the body ends inside it.
    fn string(&mut self) -> Option<&'a [u8]> {
        let start = self.at + 1;
        let end = end_of_string(self.body, start)?;
        self.at = end + 1;
        self.body.get(start..end)
    }

    /// The bytes of a value, and whether it is complete.
    ///
    /// An object, an array and a string end with their own last byte, whatever follows: Agora's
    /// documents have an example without the comma between two. Anything else goes on up to the
    /// next comma or bracket, and is complete only when one follows: a number may have more digits.
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

/// White space as JSON has it. Rust's has the form feed, too: as an element, it would be empty.
fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

fn trim_end(value: &[u8]) -> &[u8] {
    let end = value.iter().rposition(|byte| !is_blank(*byte)).map_or(0, |last| last + 1);
    value.get(..end).unwrap_or_default()
}

/// Where the string that began before `from` has its closing quote.
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
        // A bare number may have more digits to come: it is complete only when something follows.
        check(r#"{"events":[12"#, &[], Ending::TornInEvents(b"12"));
    }

    #[test]
    fn what_is_no_page_is_named() {
        check("<html>", &[], Ending::NotAnObject(b"<html>"));
        check("", &[], Ending::NotAnObject(b""));
        check(r#"{"events":{"a":1}}"#, &[], Ending::NotAnArray(br#"{"a":1}"#));
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
            ("<html>", whole, 1, Shape::Alien),
            ("", whole, 0, Shape::Alien),
            ("", cut, 0, Shape::Torn),
        ] {
            let glance = glance(body.as_bytes(), wholeness);
            assert_eq!((glance.received, glance.shape), (received, shape), "{body}");
        }
    }

    #[test]
    fn a_glance_tells_when_the_first_and_the_last_event_happened() {
        let check = |elements: &str, expected: Option<(i64, i64)>| {
            let body = format!(r#"{{"events":[{elements}]}}"#);
            let times = glance(body.as_bytes(), Wholeness::Whole).times;
            let millis = times.map(|(first, last)| (first.as_millis(), last.as_millis()));
            assert_eq!(millis, expected, "{elements}");
        };
        let (early, late) = (1_578_027_420_761, 1_578_027_420_762);
        check(r#"{"ms":1578027420761}"#, Some((early, early)));
        check(r#"{"ms":1578027420761},7,{"ts":"1578027420762"}"#, Some((early, late)));
        check(r#"{"ms":null,"ts":1578027420761},{"ms":1578027420762,"ts":5}"#, Some((early, late)));
        // Whole seconds are times as good as any where they are stated in milliseconds.
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
        let times = glance(torn, Wholeness::Cut).times.unwrap();
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
