//! The elements of a body, found without the bridge's help.
//!
//! Simpler than the bridge's own way, since the judge always has the whole body: brackets match,
//! strings end.

use agora_rtm_bridge::model::Endpoint;
use serde_json::Value;

/// An element of a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Element<'a> {
    /// Its bytes.
    pub(crate) raw: &'a [u8],
    /// Where in the body it begins.
    pub(crate) from: usize,
    /// How much of the body a reader needs to know that it has all of it.
    pub(crate) needs: usize,
}

/// Everything that identifies an event.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Identity {
    pub(crate) app: usize,
    pub(crate) endpoint: Endpoint,
    pub(crate) kind: String,
    pub(crate) user: String,
    pub(crate) channel: Option<String>,
    pub(crate) ms: i64,
}

/// The elements of the array `events`; `None` where the body is no JSON object.
pub(crate) fn elements(body: &[u8]) -> Option<Vec<Element<'_>>> {
    if body.first() != Some(&b'{') {
        return None;
    }
    let mut found = Vec::new();
    let Some(start) = array(body) else { return Some(found) };
    let (mut depth, mut from) = (0_usize, None);
    let mut at = start;
    loop {
        let byte = body[at];
        let ends = depth == 0 && matches!(byte, b',' | b']');
        if ends && let Some(from) = from.take() {
            let raw = body[from..at].trim_ascii_end();
            let open_ended = !matches!(raw.last(), Some(b'}' | b']' | b'"'));
            let needs = if open_ended { at + 1 } else { from + raw.len() };
            found.push(Element { raw, from, needs });
        }
        if depth == 0 && byte == b']' {
            return Some(found);
        }
        if !ends && !byte.is_ascii_whitespace() {
            from.get_or_insert(at);
        }
        match byte {
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth -= 1,
            b'"' => at = end_of_string(body, at),
            _ => {}
        }
        at += 1;
    }
}

/// Where the array `events` begins, behind its bracket. Its name stands outside of it only as the
/// key: all other strings of the envelope are numbers and `success`.
fn array(body: &[u8]) -> Option<usize> {
    const KEY: &[u8] = b"\"events\":";
    let key = body.windows(KEY.len()).position(|window| window == KEY)? + KEY.len();
    let blank = body[key..].iter().take_while(|byte| byte.is_ascii_whitespace()).count();
    (body[key + blank] == b'[').then_some(key + blank + 1)
}

/// The closing quote of the string that begins at `at`.
fn end_of_string(body: &[u8], at: usize) -> usize {
    let mut end = at + 1;
    while body[end] != b'"' {
        end += if body[end] == b'\\' { 2 } else { 1 };
    }
    end
}

/// What an element says, if it is an event.
pub(crate) fn identity(app: usize, endpoint: Endpoint, raw: &[u8]) -> Option<Identity> {
    let value: Value = serde_json::from_slice(raw).ok()?;
    let text = |name: &str| value.get(name)?.as_str().map(str::to_owned);
    let number = |name: &str| match value.get(name)? {
        Value::String(digits) => digits.parse().ok(),
        number => number.as_i64(),
    };
    let time = number(if value.get("ms").is_some() { "ms" } else { "ts" })?;
    let channel = match endpoint {
        Endpoint::User => None,
        Endpoint::Channel => {
            let name = if value.get("group_id").is_some() { "group_id" } else { "channel_id" };
            Some(text(name)?)
        }
    };
    Some(Identity {
        app,
        endpoint,
        kind: text("type")?,
        user: text("user_id")?,
        channel,
        ms: if time < 100_000_000_000 { time * 1_000 } else { time },
    })
}

#[test]
fn the_elements_of_a_body_are_found_with_their_ends() {
    let body = b"{\"result\":\"success\", \"events\": [ {\"a\":\"]}\\\"\"} ,17, \"x\" ], \"z\":1}";
    let found = elements(body).expect("an object");
    let shown: Vec<_> =
        found.iter().map(|it| (it.raw.escape_ascii().to_string(), it.needs)).collect();
    let at = |text: &[u8]| body.windows(text.len()).position(|it| it == text).expect("it is there");
    assert_eq!(
        shown,
        [
            (r#"{\"a\":\"]}\\\"\"}"#.to_owned(), at(b"} ,17") + 1),
            ("17".to_owned(), at(b",17,") + 4),
            (r#"\"x\""#.to_owned(), at(b" ], ")),
        ]
    );
    assert_eq!(elements(b"{\"events\":null}"), Some(Vec::new()));
    assert_eq!(elements(b"{\"events\":[]}"), Some(Vec::new()));
    assert_eq!(elements(b"<html>"), None);
}
