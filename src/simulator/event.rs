//! One event and its encoding, written by hand into bytes, because the simulator shares the CPU
//! with the program under test.
//!
//! The encoding is a function of the event and the style of its App ID. So the ledger doesn't have
//! to store the bytes: it can write them again.

use std::io::Write;

use super::names;
use super::script::{AppScript, Dialect};
use crate::model::Endpoint;

/// Number of kinds of malformed elements.
pub(super) const MALFORMED_FORMS: u8 = 14;

/// An event of one user. Small, because a long run keeps ten million.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Event {
    /// Events are numbered in the order in which they happen.
    pub(super) seq: u64,
    /// As written, that is, with the dialect's precision.
    pub(super) ms: i64,
    pub(super) user: u32,
    /// Zero for user events.
    pub(super) channel: u32,
    pub(super) app: u16,
    pub(super) endpoint: Endpoint,
    /// Login or Join; otherwise Logout or Leave.
    pub(super) entering: bool,
    /// The kind of malformed element, if it is one.
    pub(super) malformed: Option<u8>,
}

/// How the events of an App ID are written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Style {
    pub(super) dialect: Dialect,
    pub(super) wild_names: bool,
    pub(super) unknown_fields: bool,
    pub(super) padding: u16,
}

// === impl Event ===

impl Event {
    /// Agora's `type`.
    pub(super) const fn kind(&self) -> &'static str {
        match (self.endpoint, self.entering) {
            (Endpoint::User, true) => "Login",
            (Endpoint::User, false) => "Logout",
            (Endpoint::Channel, true) => "Join",
            (Endpoint::Channel, false) => "Leave",
        }
    }

    /// Whether the end of the element can be found from the element alone. A bare number needs the
    /// byte that follows it.
    pub(super) const fn ends_by_itself(&self) -> bool {
        !matches!(self.malformed, Some(8))
    }
}

// === impl Style ===

impl Style {
    pub(super) fn of(app: &AppScript) -> Self {
        let AppScript { dialect, wild_names, unknown_fields, padding, .. } = *app;
        Self { dialect, wild_names, unknown_fields, padding }
    }

    /// Writes the element as it appears in an answer.
    pub(super) fn write(&self, event: &Event, out: &mut Vec<u8>) {
        if let Some(form) = event.malformed {
            return self.write_malformed(event, form, out);
        }
        out.extend_from_slice(b"{\"user_id\":");
        self.write_user(event, out);
        self.write_type(event, out);
        self.write_channel(event, out);
        self.write_time(event, out);
        if self.unknown_fields {
            self.write_unknown(event, out);
        }
        if self.padding > 0 {
            out.extend_from_slice(b",\"padding\":\"");
            out.extend(std::iter::repeat_n(b'x', usize::from(self.padding)));
            out.push(b'"');
        }
        out.push(b'}');
    }

    fn write_user(&self, event: &Event, out: &mut Vec<u8>) {
        if self.wild_names {
            write_text(&names::user(event.user, true), event.seq % 2 == 1, out);
        } else {
            names::write_plain(names::USER, event.user, out);
        }
    }

    fn write_type(&self, event: &Event, out: &mut Vec<u8>) {
        out.extend_from_slice(b",\"type\":\"");
        out.extend_from_slice(event.kind().as_bytes());
        out.push(b'"');
    }

    fn write_channel(&self, event: &Event, out: &mut Vec<u8>) {
        if event.endpoint == Endpoint::User {
            return;
        }
        let old = self.dialect.old_names;
        out.extend_from_slice(if old { b",\"channel_id\":" } else { b",\"group_id\":" });
        if self.wild_names {
            write_text(&names::channel(event.channel, true), event.seq % 2 == 1, out);
        } else {
            names::write_plain(names::CHANNEL, event.channel, out);
        }
    }

    fn write_time(&self, event: &Event, out: &mut Vec<u8>) {
        let Dialect { old_names, seconds, time_as_text, .. } = self.dialect;
        out.extend_from_slice(if old_names { b",\"ts\":" } else { b",\"ms\":" });
        let time = if seconds { event.ms.div_euclid(1_000) } else { event.ms };
        let quote: &[u8] = if time_as_text { b"\"" } else { b"" };
        out.extend_from_slice(quote);
        write_number(time, out);
        out.extend_from_slice(quote);
    }

    /// Undocumented fields: plain, nested, clashing with the bridge's own names, and the other name
    /// of a pair.
    fn write_unknown(&self, event: &Event, out: &mut Vec<u8>) {
        let both_names: &[u8] = match (self.dialect.old_names, event.endpoint) {
            (false, Endpoint::User) => b",\"ts\":7",
            (false, Endpoint::Channel) => b",\"ts\":7,\"channel_id\":\"other\"",
            (true, _) => b",\"extra\":{\"a\":1}",
        };
        out.extend_from_slice(match event.seq % 4 {
            0 => b",\"device\":\"web\",\"empty\":\"\"",
            1 => b",\"nested\":{\"a\":[1,{\"b\":\"}],\\\"\"}],\"c\":null},\"big\":123456789012345678901",
            2 => b",\"app_id\":\"clash\",\"endpoint\":1.50",
            _ => both_names,
        });
    }

    /// An element that is not an event, but whose end can be found.
    fn write_malformed(&self, event: &Event, form: u8, out: &mut Vec<u8>) {
        let Event { seq, ms, user, .. } = *event;
        let kind = event.kind();
        // The number makes nearly all of them distinct.
        let written = match form {
            0 => write!(out, "{{\"type\":\"{kind}\",\"ms\":{ms},\"n\":{seq}}}"),
            1 => write!(out, "{{\"user_id\":{user},\"type\":\"{kind}\",\"ms\":{ms},\"n\":{seq}}}"),
            2 => write!(out, "{{\"user_id\":\"{user}\",\"ms\":{ms},\"n\":{seq}}}"),
            3 => write!(out, "{{\"user_id\":\"{user}\",\"type\":null,\"ms\":{ms},\"n\":{seq}}}"),
            4 => write!(out, "{{\"user_id\":\"{user}\",\"type\":\"{kind}\",\"n\":{seq}}}"),
            5 => write!(out, "{{\"user_id\":\"{user}\",\"type\":\"{kind}\",\"ms\":{seq}.5}}"),
            6 => write!(out, "[\"{user}\",\"{kind}\",{{\"n\":{seq}}}]"),
            7 => write!(out, "\"not an event, \\\"}}] {seq}\""),
            8 => write!(out, "{seq}"),
            9 => out
                .write_all(b"{\"user_id\":\"\xff\xc3(\",\"type\":\"Login\",\"ms\":")
                .and_then(|()| write!(out, "{ms},\"n\":{seq}}}")),
            10 => {
                write!(out, "{{\"user_id\":\"{user}\",\"type\":\"{kind}\",\"ms\":\"soon {seq}\"}}")
            }
            11 => write!(out, "{{\"user_id\":\"{user}\" \"type\":\"{kind}\",\"ms\":{ms} {seq}}}"),
            12 => write!(out, "{{\"user_id\":\"\\q{user}\",\"type\":\"{kind}\",\"ms\":{seq}}}"),
            _ => write!(out, "{{}}"),
        };
        written.expect("writing into memory never fails");
    }
}

// === JSON by hand ===

/// Writes a whole number.
pub(super) fn write_number(number: i64, out: &mut Vec<u8>) {
    if number < 0 {
        out.push(b'-');
    }
    write_digits(number.unsigned_abs(), 1, out);
}

/// Writes a number with at least `at_least` digits (at most 20).
pub(super) fn write_digits(mut number: u64, at_least: usize, out: &mut Vec<u8>) {
    let mut digits = [b'0'; 20];
    let mut used = 0;
    for digit in digits.iter_mut().rev() {
        if number == 0 && used >= at_least {
            break;
        }
        *digit += (number % 10) as u8;
        number /= 10;
        used += 1;
    }
    out.extend_from_slice(digits.get(20 - used..).unwrap_or_default());
}

/// Writes a JSON string; with `escape_more`, also uses escapes that JSON allows but doesn't
/// require.
fn write_text(text: &str, escape_more: bool, out: &mut Vec<u8>) {
    out.push(b'"');
    for character in text.chars() {
        match character {
            '"' => out.extend_from_slice(b"\\\""),
            '\\' => out.extend_from_slice(b"\\\\"),
            '\n' => out.extend_from_slice(b"\\n"),
            '\r' => out.extend_from_slice(b"\\r"),
            '\t' => out.extend_from_slice(b"\\t"),
            '/' if escape_more => out.extend_from_slice(b"\\/"),
            _ if character < ' ' || (escape_more && !character.is_ascii()) => {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    write!(out, "\\u{unit:04x}").expect("writing into memory never fails");
                }
            }
            _ => out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    const STYLE: Style = Style {
        dialect: Dialect {
            old_names: false,
            seconds: false,
            time_as_text: false,
            empty: crate::simulator::script::Empty::List,
        },
        wild_names: false,
        unknown_fields: false,
        padding: 0,
    };
    const JOIN: Event = Event {
        seq: 4,
        ms: 1_578_027_418_981,
        user: 42,
        channel: 7,
        app: 0,
        endpoint: Endpoint::Channel,
        entering: true,
        malformed: None,
    };

    fn written(style: Style, event: Event) -> Vec<u8> {
        let mut out = Vec::new();
        style.write(&event, &mut out);
        out
    }

    #[test]
    fn the_current_documents_form_is_written() {
        let text = String::from_utf8(written(STYLE, JOIN)).unwrap();
        let expected = "{\"user_id\":\"user-000042\",\"type\":\"Join\",\
                        \"group_id\":\"channel-0007\",\"ms\":1578027418981}";
        assert_eq!(text, expected);
    }

    #[test]
    fn each_dialect_is_written() {
        let old = Dialect { old_names: true, ..Dialect::default() };
        for (dialect, endpoint, expected) in [
            (
                old,
                Endpoint::Channel,
                json!({"user_id": "user-000042", "type": "Join", "channel_id": "channel-0007", "ts": 1_578_027_418_981_u64}),
            ),
            (
                Dialect { seconds: true, ..old },
                Endpoint::User,
                json!({"user_id": "user-000042", "type": "Login", "ts": 1_578_027_418}),
            ),
            (
                Dialect { time_as_text: true, ..Dialect::default() },
                Endpoint::User,
                json!({"user_id": "user-000042", "type": "Login", "ms": "1578027418981"}),
            ),
        ] {
            let bytes = written(Style { dialect, ..STYLE }, Event { endpoint, ..JOIN });
            assert_eq!(serde_json::from_slice::<Value>(&bytes).unwrap(), expected);
        }
    }

    #[test]
    fn wild_names_survive_the_writing() {
        for number in 0..200 {
            for seq in [0, 1] {
                let style = Style { wild_names: true, unknown_fields: true, ..STYLE };
                let bytes = written(style, Event { user: number, channel: number, seq, ..JOIN });
                let value: Value = serde_json::from_slice(&bytes).unwrap();
                assert_eq!(value["user_id"], names::user(number, true));
                assert_eq!(value["group_id"], names::channel(number, true));
            }
        }
    }

    #[test]
    fn unknown_fields_are_still_json() {
        for (seq, old_names) in [(0, false), (1, false), (2, false), (3, false), (3, true)] {
            let dialect = Dialect { old_names, ..Dialect::default() };
            let style = Style { dialect, unknown_fields: true, padding: 600, ..STYLE };
            for endpoint in Endpoint::ALL {
                let bytes = written(style, Event { seq, endpoint, ..JOIN });
                let value: Value = serde_json::from_slice(&bytes).unwrap();
                let known = if endpoint == Endpoint::User { 3 } else { 4 };
                assert!(value.as_object().unwrap().len() > known, "{value}");
            }
        }
    }

    #[test]
    fn a_malformed_element_is_not_an_event() {
        for form in 0..MALFORMED_FORMS {
            let bytes = written(STYLE, Event { malformed: Some(form), ..JOIN });
            let Ok(value) = serde_json::from_slice::<Value>(&bytes) else { continue };
            let is_event = value["user_id"].is_string()
                && value["type"].is_string()
                && (value["ms"].is_i64() || value["ms"] == "1578027418981");
            assert!(!is_event, "{value}");
        }
    }

    proptest! {
        #[test]
        fn numbers_are_written_as_the_standard_library_does(number: i64) {
            let mut out = Vec::new();
            write_number(number, &mut out);
            prop_assert_eq!(String::from_utf8(out).unwrap(), number.to_string());
        }

        #[test]
        fn any_text_is_read_back(text: String, escape_more: bool) {
            let mut out = Vec::new();
            write_text(&text, escape_more, &mut out);
            prop_assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), text);
        }
    }
}
