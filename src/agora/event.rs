//! Reads one element of a page as an event.
//!
//! An event is a JSON object with a string `user_id`, a string `type`, a time (`ms` or `ts`: an
//! integer or a string of digits; below 100,000,000,000 it is in seconds) and, on the channel
//! endpoint, a string `group_id` or `channel_id`. Agora's documents of different years name the
//! fields differently. Both forms decode; if both are present, `ms` and `group_id` win. `type` is
//! an open set. Everything else is kept as received.
//!
//! An element that is not an event keeps its bytes and gets a reason: the caller makes a dead
//! letter of it.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::model::{Endpoint, Timestamp};

/// Times below this are in seconds (Agora's 2020 documents say seconds, their examples show
/// milliseconds); in milliseconds it would be March 1973.
const SECONDS_BELOW: i64 = 100_000_000_000;

/// An event of Agora.
#[derive(Debug)]
pub struct Event<'a> {
    /// The user who logged in or out, joined or left. Any string, including the empty one.
    pub user_id: Cow<'a, str>,
    /// What happened, as received: `Login`, `Logout`, `Join`, `Leave` or a future word.
    pub kind: Cow<'a, str>,
    /// The channel; only on the channel endpoint.
    pub channel_id: Option<Cow<'a, str>>,
    /// Time of the event, in milliseconds.
    pub time: Timestamp,
    /// Every other field, in its original order, as received.
    pub others: Vec<(Cow<'a, str>, &'a RawValue)>,
}

/// A time as an event states it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stated {
    pub(super) time: Timestamp,
    /// The time was stated in seconds: events within one second can't be ordered by it.
    pub(super) in_seconds: bool,
}

/// Why an element is not an event. Contains names of fields only, never their values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAnEvent {
    /// Some bytes are not UTF-8.
    #[error("not UTF-8")]
    NotUtf8,
    /// It is not JSON.
    #[error("not JSON")]
    NotJson,
    /// It is JSON, but not an object.
    #[error("not a JSON object")]
    NotAnObject,
    /// A required field is missing.
    #[error("no `{0}`")]
    Missing(&'static str),
    /// A field that must be a string is something else, or contains an invalid character.
    #[error("`{0}` is not a string")]
    NotAString(&'static str),
    /// The time is neither an integer nor a string of digits, or is out of range.
    #[error("`{0}` is not a time in whole milliseconds or seconds")]
    NotATime(&'static str),
}

/// Reads one element.
pub fn read(endpoint: Endpoint, element: &[u8]) -> Result<Event<'_>, NotAnEvent> {
    let text = std::str::from_utf8(element).map_err(|_| NotAnEvent::NotUtf8)?;
    if !text.trim_ascii_start().starts_with('{') {
        let json = serde_json::from_str::<&RawValue>(text).is_ok();
        return Err(if json { NotAnEvent::NotAnObject } else { NotAnEvent::NotJson });
    }
    let Fields(fields) = serde_json::from_str(text).map_err(|_| NotAnEvent::NotJson)?;
    let mut taken = KnownFields::default();
    let mut others = Vec::new();
    for (name, value) in fields {
        if let Some(left) = taken.take(endpoint, &name, value) {
            others.push((name, left));
        }
    }
    taken.give_back(&mut others);
    let user_id = string("user_id", taken.user_id)?;
    let kind = string("type", taken.kind)?;
    let channel_id = match endpoint {
        Endpoint::User => None,
        Endpoint::Channel => Some(match taken.channel_id {
            Some(_) if taken.group_id.is_none() => string("channel_id", taken.channel_id)?,
            _ => string("group_id", taken.group_id)?,
        }),
    };
    let time = match taken.ts {
        Some(_) if taken.ms.is_none() => time("ts", taken.ts)?,
        _ => time("ms", taken.ms)?,
    };
    Ok(Event { user_id, kind, channel_id, time: time.time, others })
}

/// Reads only the time of an element; `None` if it has no readable one.
pub(super) fn read_time(element: &[u8]) -> Option<Stated> {
    #[derive(Deserialize)]
    struct Times<'a> {
        #[serde(borrow)]
        ms: Option<&'a RawValue>,
        #[serde(borrow)]
        ts: Option<&'a RawValue>,
    }

    // serde would accept an array, too.
    if !element.trim_ascii_start().starts_with(b"{") {
        return None;
    }
    let Times { ms, ts } = serde_json::from_slice(element).ok()?;
    match ts {
        Some(_) if ms.is_none() => time("ts", ts),
        _ => time("ms", ms),
    }
    .ok()
}

/// The values of the known fields, the first of each.
#[derive(Default)]
struct KnownFields<'a> {
    user_id: Option<&'a RawValue>,
    kind: Option<&'a RawValue>,
    group_id: Option<&'a RawValue>,
    channel_id: Option<&'a RawValue>,
    ms: Option<&'a RawValue>,
    ts: Option<&'a RawValue>,
}

// === impl Taken ===

impl<'a> KnownFields<'a> {
    /// Takes the value of a known field; returns it if the field is unknown or a duplicate.
    fn take(
        &mut self,
        endpoint: Endpoint,
        name: &str,
        value: &'a RawValue,
    ) -> Option<&'a RawValue> {
        let place = match (name, endpoint) {
            ("user_id", _) => &mut self.user_id,
            ("type", _) => &mut self.kind,
            ("group_id", Endpoint::Channel) => &mut self.group_id,
            ("channel_id", Endpoint::Channel) => &mut self.channel_id,
            ("ms", _) => &mut self.ms,
            ("ts", _) => &mut self.ts,
            _ => return Some(value),
        };
        // `null` counts as missing, so that the other name of a pair can be used.
        if place.is_some() || value.get() == "null" {
            return Some(value);
        }
        *place = Some(value);
        None
    }

    /// If both names of a pair are present, the one that loses is an ordinary field.
    fn give_back(&mut self, others: &mut Vec<(Cow<'a, str>, &'a RawValue)>) {
        if self.group_id.is_some()
            && let Some(loser) = self.channel_id.take()
        {
            others.push((Cow::Borrowed("channel_id"), loser));
        }
        if self.ms.is_some()
            && let Some(loser) = self.ts.take()
        {
            others.push((Cow::Borrowed("ts"), loser));
        }
    }
}

fn string<'a>(name: &'static str, value: Option<&'a RawValue>) -> Result<Cow<'a, str>, NotAnEvent> {
    let raw = value.ok_or(NotAnEvent::Missing(name))?.get();
    let inner = raw
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'))
        .ok_or(NotAnEvent::NotAString(name))?;
    if !inner.contains('\\') {
        return Ok(Cow::Borrowed(inner));
    }
    serde_json::from_str(raw).map(Cow::Owned).map_err(|_| NotAnEvent::NotAString(name))
}

fn time(name: &'static str, value: Option<&RawValue>) -> Result<Stated, NotAnEvent> {
    let raw = value.ok_or(NotAnEvent::Missing(name))?.get();
    let digits = match raw.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
        Some(inner) if inner.bytes().all(|byte| byte.is_ascii_digit()) => inner,
        Some(_) => return Err(NotAnEvent::NotATime(name)),
        None => raw,
    };
    let number: i64 = digits.parse().map_err(|_| NotAnEvent::NotATime(name))?;
    let in_seconds = number < SECONDS_BELOW;
    let millis = if in_seconds { number.checked_mul(1_000) } else { Some(number) };
    let time = millis.map(Timestamp::from_millis).ok_or(NotAnEvent::NotATime(name))?;
    Ok(Stated { time, in_seconds })
}

/// The fields of an object in their order, with their values as received.
struct Fields<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

// === impl Fields ===

impl<'de: 'a, 'a> Deserialize<'de> for Fields<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;

        impl<'de> Visitor<'de> for InOrder {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = Vec::with_capacity(4);
                while let Some(Name(name)) = map.next_key()? {
                    fields.push((name, map.next_value()?));
                }
                Ok(Fields(fields))
            }
        }

        deserializer.deserialize_map(InOrder)
    }
}

/// A name, borrowed if it has no escapes.
#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

#[cfg(test)]
mod tests {
    use super::*;

    fn check(
        endpoint: Endpoint,
        element: &str,
        expected: Result<(&str, &str, Option<&str>, i64), NotAnEvent>,
    ) {
        let event = read(endpoint, element.as_bytes());
        let shown = event.as_ref().map_err(|reason| *reason).map(|event| {
            (
                event.user_id.as_ref(),
                event.kind.as_ref(),
                event.channel_id.as_deref(),
                event.time.as_millis(),
            )
        });
        assert_eq!(shown, expected, "{element}");
    }

    #[test]
    fn every_documented_form_is_read() {
        let ms = 1_578_027_418_981;
        for (name, time) in [("group_id", "ms"), ("channel_id", "ts"), ("group_id", "ts")] {
            check(
                Endpoint::Channel,
                &format!(r#"{{"{name}":"c","{time}":{ms},"type":"Join","user_id":"u"}}"#),
                Ok(("u", "Join", Some("c"), ms)),
            );
        }
        check(
            Endpoint::User,
            r#"{"user_id":"w7%","type":"Login","ms":"1578027418"}"#,
            Ok(("w7%", "Login", None, 1_578_027_418_000)),
        );
        check(
            Endpoint::User,
            r#"{"user_id":"\u0041\"\ud83d\ude00","type":"","ts":1578027418}"#,
            Ok(("A\"😀", "", None, 1_578_027_418_000)),
        );
    }

    #[test]
    fn of_two_names_the_current_one_wins_and_nothing_is_dropped() {
        let element = r#"{"ts":1,"channel_id":"old","x":[1, 2],"ms":1578027418981,
            "group_id":"new","type":"Join","user_id":"u","user_id":"again"}"#;
        let event = read(Endpoint::Channel, element.as_bytes()).unwrap();
        assert_eq!(event.channel_id.as_deref(), Some("new"));
        assert_eq!(event.time.as_millis(), 1_578_027_418_981);
        let others: Vec<(&str, &str)> =
            event.others.iter().map(|(name, raw)| (name.as_ref(), raw.get())).collect();
        assert_eq!(
            others,
            [("x", "[1, 2]"), ("user_id", "\"again\""), ("channel_id", "\"old\""), ("ts", "1")]
        );
    }

    #[test]
    fn a_name_that_is_null_leaves_its_place_to_the_other() {
        check(
            Endpoint::Channel,
            r#"{"group_id":null,"channel_id":"c","ms":null,"ts":200000000000,"type":"T","user_id":"u"}"#,
            Ok(("u", "T", Some("c"), 200_000_000_000)),
        );
    }

    #[test]
    fn what_is_no_event_says_why() {
        let user = Endpoint::User;
        check(user, "7", Err(NotAnEvent::NotAnObject));
        check(user, "{", Err(NotAnEvent::NotJson));
        check(user, "nonsense", Err(NotAnEvent::NotJson));
        check(user, r#"{"type":"Login","ms":1}"#, Err(NotAnEvent::Missing("user_id")));
        check(user, r#"{"user_id":"u","ms":1}"#, Err(NotAnEvent::Missing("type")));
        check(user, r#"{"user_id":"u","type":"T"}"#, Err(NotAnEvent::Missing("ms")));
        check(user, r#"{"user_id":5,"type":"T","ms":1}"#, Err(NotAnEvent::NotAString("user_id")));
        check(
            user,
            r#"{"user_id":"\ud800","type":"T","ms":1}"#,
            Err(NotAnEvent::NotAString("user_id")),
        );
        for time in ["1.5", "true", "\"-5\"", "\"1e3\"", "99999999999999999999", "\"\""] {
            check(
                user,
                &format!(r#"{{"user_id":"u","type":"T","ms":{time}}}"#),
                Err(NotAnEvent::NotATime("ms")),
            );
        }
        check(
            Endpoint::Channel,
            r#"{"user_id":"u","type":"T","ms":1}"#,
            Err(NotAnEvent::Missing("group_id")),
        );
        assert_eq!(read(user, b"{\"user_id\":\"\xff\"}").unwrap_err(), NotAnEvent::NotUtf8);
    }
}
