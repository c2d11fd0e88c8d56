//! The body of an answer, and where in it each event ends.

use rand::RngExt;
use rand::rngs::StdRng;

use super::event::{Event, Style};
use super::script::Empty;

/// A body and, for each of its elements, how many of its bytes a reader needs to have the whole
/// element.
#[derive(Debug)]
pub(super) struct Body {
    pub(super) bytes: Vec<u8>,
    pub(super) ends: Vec<usize>,
}

/// Freedoms of the encoder: the order of keys and white space carry no meaning.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    order: [Part; 3],
    space: &'static str,
}

#[derive(Clone, Copy, Debug)]
enum Part {
    Result,
    RequestId,
    Events,
}

/// The body of an answer that hands over no events because something failed. The number of the
/// answer selects one of the ways to say so, in turn.
pub(super) fn failed(number: u64, request_id: &str) -> Vec<u8> {
    match number % 4 {
        0 => format!(r#"{{"result":"failed","request_id":"{request_id}"}}"#),
        1 => format!(r#"{{"result":"failed","request_id":"{request_id}","events":[]}}"#),
        2 => r#"{"data":null,"error":true,"errorCode":500,"message":"server error"}"#.to_owned(),
        _ => "{}".to_owned(),
    }
    .into_bytes()
}

/// An error page from a proxy instead of an answer.
pub(super) fn html(title: &str) -> Vec<u8> {
    format!(
        "<html>\r\n<head><title>{title}</title></head>\r\n<body>\r\n<center><h1>{title}</h1>\
         </center>\r\n<hr><center>simulator</center>\r\n</body>\r\n</html>\r\n"
    )
    .into_bytes()
}

// === impl Body ===

impl Body {
    pub(super) fn new<'a>(
        style: &Style,
        layout: Layout,
        request_id: &str,
        events: impl ExactSizeIterator<Item = &'a Event>,
    ) -> Self {
        let (mut bytes, mut ends) = (Vec::with_capacity(100 + 100 * events.len()), Vec::new());
        let space = layout.space.as_bytes();
        let mut events = Some(events);
        let mut separator: &[u8] = b"{";
        for part in layout.order {
            let is_absent = style.dialect.empty == Empty::Absent
                && matches!(part, Part::Events)
                && events.as_ref().is_some_and(|it| it.len() == 0);
            if is_absent {
                continue;
            }
            bytes.extend_from_slice(separator);
            bytes.extend_from_slice(space);
            separator = b",";
            match part {
                Part::Result => write_pair("result", "success", space, &mut bytes),
                Part::RequestId => write_pair("request_id", request_id, space, &mut bytes),
                Part::Events => {
                    bytes.extend_from_slice(b"\"events\":");
                    bytes.extend_from_slice(space);
                    match events.take() {
                        Some(events) if events.len() > 0 || style.dialect.empty == Empty::List => {
                            ends = write_list(style, space, events, &mut bytes);
                        }
                        _ => bytes.extend_from_slice(b"null"),
                    }
                }
            }
        }
        bytes.extend_from_slice(space);
        bytes.push(b'}');
        Self { bytes, ends }
    }
}

fn write_pair(key: &str, value: &str, space: &[u8], out: &mut Vec<u8>) {
    for piece in ["\"", key, "\":"] {
        out.extend_from_slice(piece.as_bytes());
    }
    out.extend_from_slice(space);
    for piece in ["\"", value, "\""] {
        out.extend_from_slice(piece.as_bytes());
    }
}

fn write_list<'a>(
    style: &Style,
    space: &[u8],
    events: impl Iterator<Item = &'a Event>,
    out: &mut Vec<u8>,
) -> Vec<usize> {
    let mut ends = Vec::new();
    let mut separator: &[u8] = b"";
    out.push(b'[');
    for event in events {
        out.extend_from_slice(separator);
        out.extend_from_slice(space);
        separator = b",";
        style.write(event, out);
        ends.push(out.len() + usize::from(!event.ends_by_itself()));
    }
    out.extend_from_slice(space);
    out.push(b']');
    ends
}

// === impl Layout ===

impl Layout {
    /// As the documentation prints it, without white space.
    pub(super) const PLAIN: Self =
        Self { order: [Part::Result, Part::RequestId, Part::Events], space: "" };

    /// In any other form.
    pub(super) fn drawn(rng: &mut StdRng) -> Self {
        use Part::{Events, RequestId, Result};
        const ORDERS: [[Part; 3]; 4] = [
            [Result, RequestId, Events],
            [Events, Result, RequestId],
            [RequestId, Events, Result],
            [Result, Events, RequestId],
        ];
        const SPACES: [&str; 4] = ["", " ", "\r\n\t", "\n  "];
        let order = ORDERS.get(rng.random_range(0..ORDERS.len())).unwrap_or(&Self::PLAIN.order);
        let space = SPACES.get(rng.random_range(0..SPACES.len())).unwrap_or(&"");
        Self { order: *order, space }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::model::Endpoint;
    use crate::simulator::clock::randomness;
    use crate::simulator::script::{AppScript, Dialect};

    fn event(seq: u64, malformed: Option<u8>) -> Event {
        let (app, endpoint, entering) = (0, Endpoint::User, true);
        Event { seq, ms: 1, user: 0, channel: 0, app, endpoint, entering, malformed }
    }

    fn written(empty: Empty, layout: Layout, events: &[Event]) -> Body {
        let dialect = Dialect { empty, ..Dialect::default() };
        let style = Style::of(&AppScript { dialect, ..AppScript::default() });
        Body::new(&style, layout, "7", events.iter())
    }

    #[test]
    fn an_empty_buffer_is_written_in_one_of_three_ways() {
        for (empty, expected) in [
            (Empty::List, "{\"result\":\"success\",\"request_id\":\"7\",\"events\":[]}"),
            (Empty::Null, "{\"result\":\"success\",\"request_id\":\"7\",\"events\":null}"),
            (Empty::Absent, "{\"result\":\"success\",\"request_id\":\"7\"}"),
        ] {
            let body = written(empty, Layout::PLAIN, &[]);
            assert_eq!(String::from_utf8(body.bytes).unwrap(), expected);
            assert_eq!(body.ends, Vec::<usize>::new());
        }
    }

    #[test]
    fn every_layout_says_the_same() {
        let mut rng = randomness(1, 0);
        let events = [event(0, None), event(1, None)];
        let plain: Value =
            serde_json::from_slice(&written(Empty::List, Layout::PLAIN, &events).bytes).unwrap();
        for _ in 0..50 {
            let bytes = written(Empty::Absent, Layout::drawn(&mut rng), &events).bytes;
            assert_eq!(serde_json::from_slice::<Value>(&bytes).unwrap(), plain);
            let none = written(Empty::Absent, Layout::drawn(&mut rng), &[]).bytes;
            assert_eq!(serde_json::from_slice::<Value>(&none).unwrap()["result"], "success");
        }
    }

    #[test]
    fn an_element_ends_where_its_end_can_be_seen() {
        let body = written(Empty::List, Layout::PLAIN, &[event(5, None), event(6, Some(8))]);
        let [object, number] = body.ends[..] else { panic!("two elements") };
        assert_eq!(body.bytes[object - 1], b'}');
        assert_eq!(&body.bytes[object..number], b",6]", "a number needs what follows it");
    }
}
