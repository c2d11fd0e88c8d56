//! The selection of pages, and how to find them in the topic.

use std::ops::ControlFlow;
use std::time::Duration;

use clap::Args;

use super::Failure;
use crate::cli::progress::Progress;
use crate::kafka::{Reader, Topic, partition_of};
use crate::model::{CLOCK_MARGIN, Clock, Content, Endpoint, Entry, Feed, PageId, Timestamp};
use crate::records::pages;

/// Which pages to read.
#[derive(Debug, Args)]
pub(in crate::cli) struct Selection {
    /// Select pages of this App ID; may be repeated
    #[arg(long = "app", value_name = "APP_ID")]
    apps: Vec<String>,
    /// Select pages of this endpoint: user_events or channel_events
    #[arg(long, value_name = "NAME", value_parser = endpoint)]
    endpoint: Option<Endpoint>,
    /// Select this page by the `agora_page` header of an event; may be repeated
    #[arg(long = "page", value_name = "PAGE", value_parser = page_id)]
    pages: Vec<PageId>,
    #[command(flatten)]
    when: When,
}

/// A time range for the arrival of Agora's answer.
#[derive(Clone, Debug, Args)]
pub(in crate::cli) struct When {
    /// Select pages received within this time before now, as in 90s, 10m, 2h 30m
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    #[arg(conflicts_with = "from")]
    since: Option<Duration>,
    /// Select pages received at this time or later, as in 2026-03-01T08:00:00Z
    #[arg(long, value_name = "MOMENT", value_parser = moment)]
    from: Option<Timestamp>,
    /// Select pages received at this time or earlier. The topic is still read to its end, because a
    /// page may be forwarded long after it was received
    #[arg(long, value_name = "MOMENT", value_parser = moment)]
    to: Option<Timestamp>,
}

/// A page or a gap, and its place in the topic.
#[derive(Clone, Debug)]
pub(super) struct FoundEntry {
    pub(super) partition: i32,
    pub(super) offset: i64,
    /// When it was forwarded.
    pub(super) forwarded_at: Option<Timestamp>,
    pub(super) entry: Entry,
}

// === impl Selection ===

impl Selection {
    /// Selects one page, of the given apps if there are any.
    pub(super) fn of_page(page: PageId, apps: Vec<String>, when: When) -> Self {
        Self { apps, endpoint: None, pages: vec![page], when }
    }

    /// Whether it selects all pages.
    pub(in crate::cli) fn is_everything(&self) -> bool {
        let When { since, from, to } = self.when;
        self.apps.is_empty()
            && self.endpoint.is_none()
            && self.pages.is_empty()
            && (since.is_none() && from.is_none() && to.is_none())
    }

    /// Makes the selection independent of when it is read: converts `--since` to a fixed time,
    /// counted from now.
    pub(in crate::cli) fn fixed(mut self, clock: Clock) -> Self {
        if let Some(since) = self.when.since.take() {
            self.when.from = Some(clock.now().before(since));
        }
        self
    }

    /// Reads the pages, in order within each app, until `each` breaks. Skips records that are not
    /// pages and reports their number on stderr.
    pub(super) fn read(
        &self,
        reader: &Reader,
        mut each: impl FnMut(&FoundEntry) -> ControlFlow<()>,
    ) -> Result<(), Failure> {
        let failed = |error| Failure::of(&error);
        let from = self.when.beginning(Clock::system());
        // A page is forwarded after it was received, but Kafka's clock may differ from ours a
        // little.
        let forwarded = from.map(|from| from.before(CLOCK_MARGIN));
        let mut spans = reader.spans(Topic::Pages, forwarded).map_err(failed)?;
        if !self.apps.is_empty() {
            let partitions = u32::try_from(spans.len()).unwrap_or(u32::MAX);
            let meant: Vec<i32> =
                self.apps.iter().map(|app| partition_of(app.as_bytes(), partitions)).collect();
            spans.retain(|partition, _| meant.contains(partition));
        }
        let total = spans.values().map(|span| span.end.abs_diff(span.start)).sum();
        let mut progress = Progress::begin("records of the pages topic", total);
        let (mut unreadable, mut first) = (0_u64, None);
        let read = reader.read(Topic::Pages, &spans, |stored| {
            progress.step();
            match pages::decode(&stored.page_record()) {
                Ok(forwarded) => {
                    let found = FoundEntry {
                        partition: stored.partition(),
                        offset: stored.offset(),
                        forwarded_at: stored.stamped(),
                        entry: forwarded.entry,
                    };
                    if self.means(&found, from) { each(&found) } else { ControlFlow::Continue(()) }
                }
                Err(reason) => {
                    unreadable += 1;
                    first.get_or_insert((stored.partition(), stored.offset(), reason));
                    ControlFlow::Continue(())
                }
            }
        });
        drop(progress);
        if let Some((partition, offset, reason)) = first {
            eprintln!(
                "agora-rtm-bridge: {unreadable} unreadable records of the pages topic skipped; the \
                 first, at offset {offset} of partition {partition}: {reason}"
            );
        }
        read.map_err(failed)
    }

    fn means(&self, found: &FoundEntry, from: Option<Timestamp>) -> bool {
        let Entry { id, content } = &found.entry;
        self.meets(*id, content.feed(), found.came(), from)
    }

    /// Whether a page is selected, once the selection is [`Self::fixed`].
    pub(in crate::cli) fn includes(&self, id: PageId, feed: &Feed, came: Timestamp) -> bool {
        self.meets(id, feed, came, self.when.from)
    }

    /// Whether a page of which only the name is known is selected.
    pub(in crate::cli) fn names(&self, name: &str) -> bool {
        self.pages.iter().any(|page| page.to_string() == name)
    }

    fn meets(&self, id: PageId, feed: &Feed, came: Timestamp, from: Option<Timestamp>) -> bool {
        (self.apps.is_empty() || self.apps.iter().any(|app| app == feed.app.as_str()))
            && self.endpoint.is_none_or(|endpoint| endpoint == feed.endpoint)
            && (self.pages.is_empty() || self.pages.contains(&id))
            && from.is_none_or(|from| came >= from)
            && self.when.to.is_none_or(|to| came <= to)
    }
}

// === impl When ===

impl When {
    fn beginning(&self, clock: Clock) -> Option<Timestamp> {
        self.since.map(|since| clock.now().before(since)).or(self.from)
    }
}

// === impl Found ===

impl FoundEntry {
    /// When it was received; for a gap, when its end was known.
    pub(super) fn came(&self) -> Timestamp {
        match &self.entry.content {
            Content::Page(page) => page.answered_at,
            Content::Gap(gap) => self.forwarded_at.map_or(gap.to, |at| at.min(gap.to)),
        }
    }
}

/// Parses an `agora_page` header.
pub(in crate::cli) fn page_id(text: &str) -> Result<PageId, String> {
    text.trim().parse().map_err(|()| {
        "not the name of a page: 32 hex digits, a slash and a number, as in the \
         `agora_page` header of an event"
            .to_owned()
    })
}

fn endpoint(text: &str) -> Result<Endpoint, String> {
    text.parse().map_err(|()| "must be user_events or channel_events".to_owned())
}

/// Parses a time: RFC 3339, or milliseconds since 1970 as in events.
pub(super) fn moment(text: &str) -> Result<Timestamp, String> {
    if let Ok(millis) = text.parse() {
        return Ok(Timestamp::from_millis(millis));
    }
    let moment = humantime::parse_rfc3339_weak(text).map_err(|_| {
        "not a time such as 2026-03-01T08:00:00Z (UTC) or milliseconds since 1970".to_owned()
    })?;
    let since = moment.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Ok(Timestamp::default().after(since))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{AppId, Incarnation, Page, Region, Ticket, Wholeness};

    fn found(app: &str, ticket: u64, came: i64) -> FoundEntry {
        let page = Page {
            feed: Feed {
                app: AppId::new(app),
                region: Region::new("eu"),
                endpoint: Endpoint::User,
            },
            since: None,
            asked_at: Timestamp::from_millis(came - 5),
            answered_at: Timestamp::from_millis(came),
            status: 200,
            wholeness: Wholeness::Whole,
            request_id: None,
            resource_id: None,
            content_encoding: None,
            body: bytes::Bytes::new(),
        };
        let id = PageId { incarnation: Incarnation::from_u128(1), ticket: Ticket(ticket) };
        let entry = Entry { id, content: Content::Page(page) };
        FoundEntry { partition: 0, offset: 0, forwarded_at: None, entry }
    }

    fn all() -> Selection {
        let when = When { since: None, from: None, to: None };
        Selection { apps: Vec::new(), endpoint: None, pages: Vec::new(), when }
    }

    #[test]
    fn a_page_has_to_meet_every_condition() {
        let page = found("a", 7, 1_000);
        let meets = |selection: &Selection| selection.means(&page, selection.when.from);
        assert!(meets(&all()) && all().is_everything());
        let app = |name: &str| Selection { apps: vec!["x".to_owned(), name.to_owned()], ..all() };
        assert!(meets(&app("a")) && !meets(&app("b")) && !app("a").is_everything());
        let endpoint = |it| Selection { endpoint: Some(it), ..all() };
        assert!(meets(&endpoint(Endpoint::User)) && !meets(&endpoint(Endpoint::Channel)));
        let named = |ticket| Selection { pages: vec![found("a", ticket, 0).entry.id], ..all() };
        assert!(meets(&named(7)) && !meets(&named(8)));
        for (from, to, expected) in [(1_000, 1_000, true), (1_001, 2_000, false), (0, 999, false)] {
            let [from, to] = [from, to].map(|it| Some(Timestamp::from_millis(it)));
            let when = When { since: None, from, to };
            assert_eq!(meets(&Selection { when, ..all() }), expected, "{from:?} {to:?}");
        }
    }

    #[test]
    fn moments_are_read_as_people_and_as_events_write_them() {
        let expected = Ok(Timestamp::from_millis(1_772_352_000_000));
        for text in ["2026-03-01T08:00:00Z", "2026-03-01 08:00:00", "1772352000000"] {
            assert_eq!(moment(text), expected, "{text}");
        }
        assert!(moment("yesterday").unwrap_err().contains("2026-03-01T08:00:00Z"));
    }
}
