//! How pages are printed: as a line, as metadata, and element by element.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde_json::value::RawValue;

use super::selection::FoundEntry;
use crate::agora::{Contents, event};
use crate::kafka::{Batch, Reader, Topic};
use crate::memory::Fingerprint;
use crate::model::{Content, Gap, Page, PageId, Timestamp};
use crate::records::public;
use crate::records::public::Source;

/// Column headings of a list.
pub(super) const HEAD: &str = "came                      app/region/endpoint  status  body  elements  bytes  page  Agora's request id";

/// Metadata of a page or a gap, for programs. Times are in milliseconds since 1970.
#[derive(Serialize)]
struct Envelope<'a> {
    page: String,
    partition: i32,
    offset: i64,
    forwarded_at: Option<i64>,
    app_id: &'a str,
    region: &'a str,
    endpoint: &'a str,
    #[serde(flatten)]
    what: What<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum What<'a> {
    Page(AnswerJson<'a>),
    Gap(Missing),
}

#[derive(Serialize)]
struct AnswerJson<'a> {
    since: Option<i64>,
    asked_at: i64,
    answered_at: i64,
    status: u16,
    wholeness: &'static str,
    request_id: Option<&'a str>,
    resource_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_encoding: Option<&'a str>,
    bytes: usize,
    elements: usize,
    /// The body as received, if it is text.
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<&'a str>,
    /// The body, if it is not text.
    #[serde(skip_serializing_if = "Option::is_none")]
    body_base64: Option<String>,
}

#[derive(Serialize)]
struct Missing {
    gap: &'static str,
    from: Option<i64>,
    to: i64,
    at_least: u64,
    at_most: Option<u64>,
}

/// An element of a page, for programs.
#[derive(Serialize)]
#[serde(untagged)]
enum Element<'a> {
    Event { index: usize, ce_id: String, topic: &'a str, key: String, value: &'a RawValue },
    Other { index: Option<usize>, dead_letter: String, raw: String },
}

/// A page or a gap as one line.
pub(super) fn line(found: &FoundEntry) -> String {
    let (id, feed, came) = (found.entry.id, found.entry.content.feed(), found.came());
    match &found.entry.content {
        Content::Page(page) => format!(
            "{came}  {feed}  {}  {:<5}  {:>5}  {:>7}  {id}  {}",
            page.status,
            page.wholeness.name(),
            Contents::of(page).split().elements.len(),
            page.body.len(),
            page.request_id.as_deref().unwrap_or("-"),
        ),
        Content::Gap(gap) => {
            format!("{came}  {feed}  gap {}  {}  {id}", gap.cause, bounds(gap))
        }
    }
}

/// A page or a gap as a JSON object, without the body.
pub(super) fn json(found: &FoundEntry) -> String {
    text(&Envelope::new(found, false))
}

/// The same with the body.
pub(super) fn envelope(found: &FoundEntry) -> String {
    text(&Envelope::new(found, true))
}

/// Metadata of a page, for people.
pub(super) fn facts(found: &FoundEntry) -> String {
    let (id, feed) = (found.entry.id, found.entry.content.feed());
    let mut rows = vec![("page", id.to_string()), ("feed", feed.to_string())];
    match &found.entry.content {
        Content::Page(page) => {
            rows.push(("asked", page.asked_at.to_string()));
            rows.push(("answered", page.answered_at.to_string()));
            rows.push(("status", page.status.to_string()));
            let ids = [("request id", &page.request_id), ("resource id", &page.resource_id)];
            rows.extend(ids.map(|(name, id)| (name, id.clone().unwrap_or_else(|| "-".to_owned()))));
            if let Some(encoding) = &page.content_encoding {
                rows.push(("encoding", encoding.clone()));
            }
            let contents = Contents::of(page);
            let elements = contents.split().elements.len();
            let (bytes, wholeness) = (page.body.len(), page.wholeness.name());
            let inflated = if contents.is_as_received() {
                String::new()
            } else {
                format!(", {} decompressed", contents.text().len())
            };
            rows.push((
                "body",
                format!("{bytes} bytes{inflated}, {wholeness}, {elements} elements"),
            ));
        }
        Content::Gap(gap) => {
            rows.push(("gap", gap.cause.to_string()));
            rows.push(("missing", bounds(gap)));
        }
    }
    if let Some(at) = found.forwarded_at {
        rows.push(("forwarded", at.to_string()));
    }
    rows.push(("stored at", format!("offset {} of partition {}", found.offset, found.partition)));
    rows.iter().map(|(name, value)| format!("{name:<12}{value}\n")).collect()
}

/// The decoded elements of a page, in the form in which the bridge publishes them, whether or not
/// it has.
pub(super) fn elements(reader: &Reader, id: PageId, page: &Page, json: bool) -> Vec<String> {
    let feed = &page.feed;
    let source = Source::new(&feed.app, feed.endpoint, id);
    let topic = reader.name(Topic::of_events(feed.endpoint));
    let contents = Contents::of(page);
    let split = contents.split();
    let mut lines = Vec::with_capacity(split.elements.len());
    for (index, raw) in split.elements.iter().enumerate() {
        let event = match event::read(feed.endpoint, raw) {
            Ok(event) => event,
            Err(reason) => {
                lines.push(dead_letter(Some(index), &reason.to_string(), raw, json));
                continue;
            }
        };
        let fingerprint = Fingerprint::of(&feed.app, feed.endpoint, &event);
        let mut batch = Batch::default();
        public::write_event(&mut batch, &source, &event, fingerprint, None);
        let record = batch.last().expect("it was just written");
        let value = record.value().and_then(|value| std::str::from_utf8(value).ok());
        let value = value.expect("the value of an event is JSON");
        let ce_id = fingerprint.to_string();
        lines.push(if json {
            let key = String::from_utf8_lossy(record.key()).into_owned();
            let value = serde_json::from_str(value).expect("the value of an event is JSON");
            text(&Element::Event { index, ce_id, topic, key, value })
        } else {
            format!("{ce_id}  {value}")
        });
    }
    if let Some((reason, raw)) = split.leftover(page.wholeness) {
        lines.push(dead_letter(None, &reason, raw, json));
    }
    lines
}

fn dead_letter(index: Option<usize>, reason: &str, raw: &[u8], json: bool) -> String {
    if json {
        let raw = String::from_utf8_lossy(raw).into_owned();
        return text(&Element::Other { index, dead_letter: reason.to_owned(), raw });
    }
    format!("not an event ({reason})  {}", raw.escape_ascii())
}

fn bounds(gap: &Gap) -> String {
    let from = gap.from.map_or("unknown".to_owned(), |from| from.to_string());
    let at_most = gap.at_most.map_or("unknown".to_owned(), |at_most| at_most.to_string());
    format!("from {from} to {}, at least {}, at most {at_most}", gap.to, gap.at_least)
}

fn text(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("numbers and texts are JSON")
}

// === impl Envelope ===

impl<'a> Envelope<'a> {
    fn new(found: &'a FoundEntry, with_body: bool) -> Self {
        let feed = found.entry.content.feed();
        let what = match &found.entry.content {
            Content::Page(page) => What::Page(AnswerJson::new(page, with_body)),
            Content::Gap(gap) => What::Gap(Missing {
                gap: gap.cause.name(),
                from: gap.from.map(Timestamp::as_millis),
                to: gap.to.as_millis(),
                at_least: gap.at_least,
                at_most: gap.at_most,
            }),
        };
        Self {
            page: found.entry.id.to_string(),
            partition: found.partition,
            offset: found.offset,
            forwarded_at: found.forwarded_at.map(Timestamp::as_millis),
            app_id: feed.app.as_str(),
            region: feed.region.as_str(),
            endpoint: feed.endpoint.name(),
            what,
        }
    }
}

// === impl Answer ===

impl<'a> AnswerJson<'a> {
    fn new(page: &'a Page, with_body: bool) -> Self {
        let body = std::str::from_utf8(&page.body).ok().filter(|_| with_body);
        let encoded = (with_body && body.is_none()).then(|| STANDARD.encode(&page.body));
        Self {
            since: page.since.map(Timestamp::as_millis),
            asked_at: page.asked_at.as_millis(),
            answered_at: page.answered_at.as_millis(),
            status: page.status,
            wholeness: page.wholeness.name(),
            request_id: page.request_id.as_deref(),
            resource_id: page.resource_id.as_deref(),
            content_encoding: page.content_encoding.as_deref(),
            bytes: page.body.len(),
            elements: Contents::of(page).split().elements.len(),
            body,
            body_base64: encoded,
        }
    }
}
