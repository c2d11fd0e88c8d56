//! Page records: what the forwarder writes into the pages topic and the publisher reads.
//!
//! Key = App ID, value = the body as received, headers = everything else. Who polled a page and who
//! publishes it need not be the same process, nor the same version: the record carries its own, and
//! a newer one than this program knows is refused rather than misread. A record carries the lowest
//! version that can say what it says, so that the release before this one reads all others.

use bytes::Bytes;

use crate::agora::Contents;
use crate::kafka::PageRecord;
use crate::model::{AppId, Content, Entry, Feed, Gap, Page, PageId, Region, Ticket, Timestamp};

/// The highest version that this program writes; it reads this one and all before.
///
/// Version 2 adds the header `content_encoding` of a page whose answer had one.
pub const VERSION: u32 = 2;

/// The longest name of an app or region in a record, in bytes: the configuration takes 64. What
/// is longer was written by something else, and would be copied into keys, values and logs.
const LONGEST_NAME: usize = 256;

/// The header of a record that the pages topic refused before. Readers of version 1 pass over it.
const LATE: &str = "late";

/// What a record of the pages topic says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forwarded {
    /// The page or gap.
    pub entry: Entry,
    /// Every ticket up to this one, of the same incarnation and partition, is settled, and what
    /// it left behind stands before this record.
    pub settled: Ticket,
    /// The pages topic refused it for a while, so it may come after entries that it should precede.
    pub late: bool,
}

/// Why a record of the pages topic can't be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadPageRecord {
    /// A newer version of this program wrote it.
    #[error(
        "version {0} is newer than this program reads ({VERSION}); run at least the version that wrote it"
    )]
    Newer(u32),
    /// A header is missing or says nothing that makes sense.
    #[error("header `{0}` is missing or unreadable")]
    Header(&'static str),
}

/// Writes a record.
pub fn encode(entry: &Entry, settled: Ticket) -> PageRecord {
    let mut headers = Headers(Vec::with_capacity(14));
    headers.put("version", version(&entry.content));
    headers.put("page", entry.id);
    headers.put("settled", settled);
    let feed = entry.content.feed();
    headers.put("region", &feed.region);
    headers.put("endpoint", feed.endpoint);
    let value = match &entry.content {
        Content::Page(page) => {
            headers.put_some("since", page.since.map(Timestamp::as_millis));
            headers.put("asked_at", page.asked_at.as_millis());
            headers.put("answered_at", page.answered_at.as_millis());
            headers.put("status", page.status);
            headers.put("body", page.wholeness.name());
            headers.put_some("request_id", page.request_id.as_ref());
            headers.put_some("resource_id", page.resource_id.as_ref());
            headers.put_some("content_encoding", page.content_encoding.as_ref());
            page.body.clone()
        }
        Content::Gap(gap) => {
            headers.put("gap", gap.cause);
            headers.put_some("from", gap.from.map(Timestamp::as_millis));
            headers.put("to", gap.to.as_millis());
            headers.put("at_least", gap.at_least);
            headers.put_some("at_most", gap.at_most);
            Bytes::new()
        }
    };
    let key = feed.app.as_str().as_bytes().to_vec();
    PageRecord { key, value, headers: headers.0, appended: None }
}

impl PageRecord {
    /// The same, marked as refused before.
    #[must_use]
    pub fn late(mut self) -> Self {
        self.headers.push((LATE.to_owned(), b"true".to_vec()));
        self
    }
}

/// The lowest version that can say this.
fn version(content: &Content) -> u32 {
    match content {
        Content::Page(Page { content_encoding: Some(_), .. }) => 2,
        Content::Page(_) | Content::Gap(_) => 1,
    }
}

/// Reads a record.
pub fn decode(record: &PageRecord) -> Result<Forwarded, BadPageRecord> {
    let headers = &record.headers;
    let version = required(headers, "version")?;
    if version > VERSION {
        return Err(BadPageRecord::Newer(version));
    }
    let app = std::str::from_utf8(&record.key).ok().filter(|app| app.len() <= LONGEST_NAME);
    let app = app.ok_or(BadPageRecord::Header("key"))?;
    let region: String = required(headers, "region")?;
    if region.len() > LONGEST_NAME {
        return Err(BadPageRecord::Header("region"));
    }
    let feed = Feed {
        app: AppId::new(app),
        region: Region::new(region),
        endpoint: required(headers, "endpoint")?,
    };
    let moment = |name| required(headers, name).map(Timestamp::from_millis);
    let content = match optional(headers, "gap")? {
        Some(cause) => Content::Gap(Gap {
            feed,
            cause,
            from: optional(headers, "from")?.map(Timestamp::from_millis),
            to: moment("to")?,
            at_least: required(headers, "at_least")?,
            at_most: optional(headers, "at_most")?,
        }),
        None => Content::Page(Page {
            feed,
            since: optional(headers, "since")?.map(Timestamp::from_millis),
            asked_at: moment("asked_at")?,
            answered_at: moment("answered_at")?,
            status: required(headers, "status")?,
            wholeness: required(headers, "body")?,
            request_id: optional(headers, "request_id")?,
            resource_id: optional(headers, "resource_id")?,
            content_encoding: optional(headers, "content_encoding")?,
            body: record.value.clone(),
        }),
    };
    let id: PageId = required(headers, "page")?;
    let settled = Ticket(required(headers, "settled")?);
    let late = headers.iter().any(|(name, _)| name == LATE);
    Ok(Forwarded { entry: Entry { id, content }, settled, late })
}

/// How many elements of this entry the accounts call received.
pub fn elements(content: &Content) -> u64 {
    match content {
        Content::Page(page) => Contents::of(page).glance().received,
        Content::Gap(_) => 0,
    }
}

/// The page that a record says it is.
pub fn id(record: &PageRecord) -> Option<PageId> {
    optional(&record.headers, "page").ok().flatten()
}

fn required<T: std::str::FromStr>(
    headers: &[(String, Vec<u8>)],
    name: &'static str,
) -> Result<T, BadPageRecord> {
    optional(headers, name)?.ok_or(BadPageRecord::Header(name))
}

fn optional<T: std::str::FromStr>(
    headers: &[(String, Vec<u8>)],
    name: &'static str,
) -> Result<Option<T>, BadPageRecord> {
    let Some((_, value)) = headers.iter().find(|(found, _)| found == name) else {
        return Ok(None);
    };
    std::str::from_utf8(value)
        .ok()
        .and_then(|text| text.parse().ok())
        .map(Some)
        .ok_or(BadPageRecord::Header(name))
}

struct Headers(Vec<(String, Vec<u8>)>);

// === impl Headers ===

impl Headers {
    fn put(&mut self, name: &str, value: impl ToString) {
        self.0.push((name.to_owned(), value.to_string().into_bytes()));
    }

    fn put_some(&mut self, name: &str, value: Option<impl ToString>) {
        if let Some(value) = value {
            self.put(name, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Endpoint, GapCause, Incarnation, Wholeness};

    fn feed() -> Feed {
        Feed { app: AppId::new("a1"), region: Region::new("eu"), endpoint: Endpoint::Channel }
    }

    fn page() -> Content {
        Content::Page(Page {
            feed: feed(),
            since: Some(Timestamp::from_millis(4)),
            asked_at: Timestamp::from_millis(5),
            answered_at: Timestamp::from_millis(6),
            status: 200,
            wholeness: Wholeness::Cut,
            request_id: Some("r".to_owned()),
            resource_id: None,
            content_encoding: None,
            body: Bytes::from_static(b"{\"events\":["),
        })
    }

    fn entry(content: Content) -> Entry {
        let incarnation = Incarnation::from_u128(0xfe);
        Entry { id: PageId { incarnation, ticket: Ticket(12) }, content }
    }

    #[test]
    fn a_record_reads_as_it_was_written() {
        let gap = Content::Gap(Gap {
            feed: feed(),
            cause: GapCause::ProcessKilled,
            from: Some(Timestamp::from_millis(-3)),
            to: Timestamp::from_millis(9),
            at_least: 0,
            at_most: None,
        });
        let Content::Page(plain) = page() else { panic!("a page") };
        let content_encoding = Some("gzip".to_owned());
        let encoded = Content::Page(Page { content_encoding, ..plain });
        for content in [page(), encoded, gap] {
            let entry = entry(content);
            let record = encode(&entry, Ticket(11));
            assert_eq!(record.key, b"a1");
            let forwarded = Forwarded { entry, settled: Ticket(11), late: false };
            assert_eq!(decode(&record), Ok(forwarded.clone()));
            assert_eq!(decode(&record.late()), Ok(Forwarded { late: true, ..forwarded }));
        }
    }

    #[test]
    fn a_damaged_record_names_its_header() {
        let record = encode(&entry(page()), Ticket(11));
        for name in ["version", "page", "settled", "region", "endpoint", "status", "body"] {
            let name: &'static str = name;
            let mut without = record.clone();
            without.headers.retain(|(found, _)| found != name);
            assert_eq!(decode(&without), Err(BadPageRecord::Header(name)));
            let mut damaged = record.clone();
            for (found, value) in &mut damaged.headers {
                if found == name {
                    *value = vec![0xff];
                }
            }
            if name != "region" {
                assert_eq!(decode(&damaged), Err(BadPageRecord::Header(name)));
            }
        }
    }

    fn kept(file: &str) -> Vec<Forwarded> {
        #[derive(serde::Deserialize)]
        struct KeptRecord {
            key: String,
            value: String,
            headers: Vec<(String, String)>,
        }
        let kept: Vec<KeptRecord> = serde_json::from_str(file).unwrap();
        let read = kept.into_iter().map(|KeptRecord { key, value, headers }| {
            let headers = headers.into_iter().map(|(name, value)| (name, value.into_bytes()));
            let headers = headers.collect();
            let (key, value) = (key.into_bytes(), value.into());
            decode(&PageRecord { key, value, headers, appended: None }).unwrap()
        });
        read.collect()
    }

    /// A record of a version that was written once is read for ever: a new version adds a file.
    #[test]
    fn version_1_is_read() {
        let kept = kept(include_str!("../../tests/fixtures/page-records-version-1.json"));
        let [page, gap] = &kept[..] else { panic!("a page and a gap") };
        assert_eq!((page.entry.id.ticket, page.settled), (Ticket(7), Ticket(6)));
        let Content::Page(content) = &page.entry.content else { panic!("a page") };
        assert_eq!((content.status, &content.body[..]), (200, &br#"{"events":[]}"#[..]));
        assert_eq!(content.request_id.as_deref(), Some("r"));
        assert_eq!(content.content_encoding, None);
        let Content::Gap(content) = &gap.entry.content else { panic!("a gap") };
        assert_eq!((content.at_least, content.at_most), (1, Some(999)));
    }

    #[test]
    fn version_2_is_read() {
        let kept = kept(include_str!("../../tests/fixtures/page-records-version-2.json"));
        let [page] = &kept[..] else { panic!("a page") };
        let Content::Page(content) = &page.entry.content else { panic!("a page") };
        assert_eq!(content.content_encoding.as_deref(), Some("gzip"));
        assert_eq!(&content.body[..], br#"{"events":[]}"#);
    }

    #[test]
    fn a_record_carries_the_lowest_version_that_can_say_it() {
        let version = |content| encode(&entry(content), Ticket(11)).headers[0].1.clone();
        assert_eq!(version(page()), b"1");
        let Content::Page(plain) = page() else { panic!("a page") };
        let content_encoding = Some("gzip".to_owned());
        assert_eq!(version(Content::Page(Page { content_encoding, ..plain })), b"2");
    }

    #[test]
    fn names_that_no_bridge_writes_are_not_copied() {
        let long = "x".repeat(LONGEST_NAME + 1);
        let mut record = encode(&entry(page()), Ticket(11));
        record.key = long.clone().into_bytes();
        assert_eq!(decode(&record), Err(BadPageRecord::Header("key")));
        let mut record = encode(&entry(page()), Ticket(11));
        let region = record.headers.iter_mut().find(|(name, _)| name == "region").unwrap();
        region.1 = long.into_bytes();
        assert_eq!(decode(&record), Err(BadPageRecord::Header("region")));
    }

    #[test]
    fn a_newer_record_is_refused() {
        let mut record = encode(&entry(page()), Ticket(11));
        record.headers[0].1 = b"3".to_vec();
        assert_eq!(decode(&record), Err(BadPageRecord::Newer(3)));
    }
}
