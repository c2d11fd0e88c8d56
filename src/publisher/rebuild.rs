//! A memory that is gone, put together again from what the other topics still tell.
//!
//! Nothing but the memory says how far the pages topic is delivered, and without it everything in it
//! would be published a second time. But what was published names its page (`agora_page`), and pages
//! are published in their order: the last page that anything names is delivered, and so are all
//! before it. Their records give the tickets back, and the events in their topics, by `ce_id`, the
//! windows.
//!
//! Pages behind the last that is named may be delivered too, if they brought nothing new. They are
//! read once more and bring nothing new again: the windows know their events.
//!
//! Where nothing names a page that the pages topic still holds, either none of them was delivered, or
//! what would name them was deleted meanwhile. Kafka deletes by the timestamp of a record, and those
//! of the bridge are never older than [`Stamping::oldest`](crate::kafka::Stamping) when they are
//! written, half of what a topic keeps: so within that time after a page was forwarded nothing that
//! names it can be gone.
//!
//! Pure: records go in, in the order of their partitions.

use std::collections::HashMap;
use std::time::Duration;

use crate::kafka::{HistoryRecords, PageRecord, Topic, partition_of};
use crate::memory::{Fingerprint, LEAST_REMEMBERED, Memory};
use crate::model::{AppId, Endpoint, PageId, Ticket, Timestamp};
use crate::records::pages;
use crate::records::public::app_of_source;

/// What is known of a partition whose memory is gone.
#[derive(Debug)]
pub(super) struct Rebuild {
    partition: i32,
    partitions: u32,
    pages: Vec<PageSeen>,
    /// Where each page stands first: what another journal forwarded again need not be delivered up
    /// to its second place.
    places: HashMap<PageId, usize>,
    /// The last of `pages` that something names.
    last: Option<usize>,
    /// The newest events of each app and endpoint, more than are remembered, in no order.
    newest: HashMap<(AppId, Endpoint), Vec<(Timestamp, Fingerprint)>>,
    /// Published records of apps of this partition.
    published: u64,
    /// Topics of which something was deleted.
    cut: Vec<Topic>,
}

/// How far the pages topic is delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Delivered {
    /// Up to the record at this offset.
    UpTo(i64),
    /// Nothing of what it holds.
    Nothing,
    /// What would tell was deleted.
    Unknown,
}

/// A record of the pages topic.
#[derive(Debug)]
struct PageSeen {
    offset: i64,
    id: PageId,
    settled: Ticket,
    at: Option<Timestamp>,
}

// === impl Rebuild ===

impl Rebuild {
    /// Knows nothing yet; the pages topic has `partitions` partitions.
    pub(super) fn new(partition: i32, partitions: u32) -> Self {
        Self {
            partition,
            partitions,
            pages: Vec::new(),
            places: HashMap::new(),
            last: None,
            newest: HashMap::new(),
            published: 0,
            cut: Vec::new(),
        }
    }

    /// Whether nothing was ever published for an app of this partition.
    pub(super) fn is_new(&self) -> bool {
        self.published == 0 && self.cut.is_empty()
    }

    /// How far the pages topic is delivered. `kept` tells for how long a topic keeps at least what is
    /// written to it.
    pub(super) fn delivered(&self, now: Timestamp, kept: impl Fn(Topic) -> Duration) -> Delivered {
        if let Some(last) = self.last.and_then(|last| self.pages.get(last)) {
            return Delivered::UpTo(last.offset);
        }
        let oldest = self.pages.iter().filter_map(|page| page.at).min();
        let Some(oldest) = oldest else { return Delivered::Nothing };
        let is_kept = |topic: &Topic| now.since(oldest) < kept(*topic);
        if self.cut.iter().all(is_kept) { Delivered::Nothing } else { Delivered::Unknown }
    }

    /// Gives a memory the tickets of all pages before this position. Their names stay known.
    pub(super) fn admit(&self, memory: &mut Memory, position: i64) {
        for page in self.pages.iter().take_while(|page| page.offset < position) {
            memory.admit(page.id, page.settled, page.offset);
        }
        let last = self.pages.iter().take_while(|page| page.offset < position).last();
        let last = last.filter(|page| page.offset == position - 1);
        memory.advance(position - 1, last.map(|page| page.id));
        if let Some(at) = last.and_then(|page| page.at) {
            memory.note_answer(at);
        }
    }

    /// The events that windows are made of, oldest first.
    pub(super) fn take_windows(
        &mut self,
    ) -> impl Iterator<Item = ((AppId, Endpoint), Vec<(Timestamp, Fingerprint)>)> + use<> {
        std::mem::take(&mut self.newest).into_iter().map(|(name, mut events)| {
            keep_newest(&mut events, LEAST_REMEMBERED);
            events.sort_by_key(|(at, _)| *at);
            (name, events)
        })
    }
}

impl HistoryRecords for Rebuild {
    fn take_page(&mut self, offset: i64, record: &PageRecord) {
        // One that can't be read has no name, and nothing but a dead letter comes of it.
        let Ok(forwarded) = pages::decode(record) else { return };
        let id = forwarded.entry.id;
        let at = record.appended.or(forwarded.entry.content.answered_at());
        self.places.entry(id).or_insert(self.pages.len());
        self.pages.push(PageSeen { offset, id, settled: forwarded.settled, at });
    }

    fn take_published<'a>(
        &mut self,
        topic: Topic,
        key: &[u8],
        stamped: Option<Timestamp>,
        header: impl Fn(&str) -> Option<&'a [u8]>,
    ) {
        let text = |name| header(name).and_then(|value| std::str::from_utf8(value).ok());
        // `pages replay` publishes what the memory need not know.
        if header("replayed").is_some() {
            return;
        }
        let of_event = text("ce_source").and_then(app_of_source);
        let app = match (topic, &of_event) {
            (Topic::UserEvents | Topic::ChannelEvents, Some((app, _))) => app.clone(),
            (Topic::DeadLetter | Topic::Gaps, _) => AppId::new(String::from_utf8_lossy(key)),
            _ => return,
        };
        if partition_of(app.as_str().as_bytes(), self.partitions) != self.partition {
            return;
        }
        self.published += 1;
        let page = text("agora_page").and_then(|page| page.parse().ok());
        let place = page.and_then(|page: PageId| self.places.get(&page).copied());
        self.last = self.last.max(place);
        let id = text("ce_id").and_then(|id| u128::from_str_radix(id, 16).ok());
        if let (Some(of_event), Some(id)) = (of_event, id) {
            let events = self.newest.entry(of_event).or_default();
            let id = Fingerprint::from_bytes(id.to_be_bytes());
            events.push((stamped.unwrap_or_default(), id));
            if events.len() > 2 * LEAST_REMEMBERED {
                keep_newest(events, LEAST_REMEMBERED);
            }
        }
    }

    fn is_cut(&mut self, topic: Topic) {
        self.cut.push(topic);
    }
}

fn keep_newest(events: &mut Vec<(Timestamp, Fingerprint)>, count: usize) {
    if let Some(surplus) = events.len().checked_sub(count)
        && surplus > 0
    {
        events.select_nth_unstable_by_key(surplus, |(at, _)| *at);
        events.drain(..surplus);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Recall;
    use crate::model::Incarnation;

    const HOUR: Duration = Duration::from_secs(3_600);

    fn id(ticket: u64) -> PageId {
        PageId { incarnation: Incarnation::from_u128(7), ticket: Ticket(ticket) }
    }

    fn page(ticket: u64) -> PageRecord {
        let header = |(name, value): (&str, String)| (name.to_owned(), value.into_bytes());
        let headers = [
            ("version", "1".to_owned()),
            ("page", id(ticket).to_string()),
            ("settled", ticket.saturating_sub(2).to_string()),
            ("region", "eu".to_owned()),
            ("endpoint", "user_events".to_owned()),
            ("asked_at", "1000".to_owned()),
            ("answered_at", "1000".to_owned()),
            ("status", "200".to_owned()),
            ("body", "whole".to_owned()),
        ];
        let headers = headers.map(header).into();
        PageRecord { key: b"a".to_vec(), headers, ..PageRecord::default() }
    }

    /// Of these pages, from offset 10 on.
    fn of_pages(tickets: &[u64]) -> Rebuild {
        let mut rebuild = Rebuild::new(0, 1);
        for (offset, ticket) in (10..).zip(tickets) {
            rebuild.take_page(offset, &page(*ticket));
        }
        rebuild
    }

    fn publish(rebuild: &mut Rebuild, event: u128, at: i64, ticket: u64) {
        let (event, ticket) = (format!("{event:032x}"), id(ticket).to_string());
        let header = |name: &str| match name {
            "ce_source" => Some(&b"/agora/a/rtm/user_events"[..]),
            "ce_id" => Some(event.as_bytes()),
            "agora_page" => Some(ticket.as_bytes()),
            _ => None,
        };
        let stamped = Some(Timestamp::from_millis(at));
        rebuild.take_published(Topic::UserEvents, b"u", stamped, header);
    }

    fn delivered(rebuild: &Rebuild, now: i64) -> Delivered {
        rebuild.delivered(Timestamp::from_millis(now), |_| HOUR)
    }

    #[test]
    fn the_last_page_that_is_named_and_all_before_it_are_delivered() {
        let mut rebuild = of_pages(&[1, 2, 3, 4]);
        publish(&mut rebuild, 1, 5, 3);
        publish(&mut rebuild, 2, 6, 1);
        publish(&mut rebuild, 3, 7, 99);
        assert_eq!(delivered(&rebuild, 0), Delivered::UpTo(12));
        let mut memory = Recall::default().finish().unwrap();
        rebuild.admit(&mut memory, 13);
        assert_eq!((memory.position(), memory.last_page()), (Some(13), Some(id(3))));
        assert!(!memory.admit(id(2), Ticket(0), 13), "it was delivered");
        assert!(memory.admit(id(4), Ticket(2), 13), "it was not");
    }

    #[test]
    fn of_a_page_that_was_forwarded_again_the_first_place_counts() {
        let mut rebuild = of_pages(&[1, 2, 1, 3]);
        publish(&mut rebuild, 1, 5, 1);
        assert_eq!(delivered(&rebuild, 0), Delivered::UpTo(10));
    }

    #[test]
    fn where_nothing_names_a_page_it_is_told_whether_that_proves_anything() {
        const DAY: i64 = 86_400_000;
        let rebuild = of_pages(&[1]);
        assert!(rebuild.is_new());
        assert_eq!(delivered(&rebuild, DAY), Delivered::Nothing, "the topics hold all there was");
        let mut rebuild = of_pages(&[1]);
        rebuild.is_cut(Topic::Gaps);
        assert!(!rebuild.is_new());
        assert_eq!(delivered(&rebuild, 60_000), Delivered::Nothing, "it would still be there");
        assert_eq!(delivered(&rebuild, DAY), Delivered::Unknown);
        let mut rebuild = of_pages(&[]);
        rebuild.is_cut(Topic::Gaps);
        assert_eq!(delivered(&rebuild, DAY), Delivered::Nothing, "there is nothing to deliver");
    }

    #[test]
    fn the_newest_events_are_remembered_whatever_the_order_of_partitions() {
        let mut rebuild = of_pages(&[]);
        for event in (0..40_000).rev() {
            publish(&mut rebuild, event, i64::try_from(event).unwrap(), 1);
        }
        let [(name, events)] = &rebuild.take_windows().collect::<Vec<_>>()[..] else {
            panic!("one window")
        };
        assert_eq!(*name, (AppId::new("a"), Endpoint::User));
        let numbers = events.iter().map(|(at, _)| at.as_millis());
        assert!(numbers.eq(40_000 - 8_192..40_000), "the newest, oldest first");
    }

    #[test]
    fn apps_of_other_partitions_and_replayed_events_say_nothing() {
        let mut rebuild = of_pages(&[1]);
        let page = id(1).to_string();
        let header = |name: &str| match name {
            "agora_page" => Some(page.as_bytes()),
            "replayed" => Some(&b"now"[..]),
            _ => None,
        };
        rebuild.take_published(Topic::Gaps, b"a", None, header);
        assert!(rebuild.is_new());
        let mut other = Rebuild::new(1 - partition_of(b"a", 2), 2);
        other.take_published(Topic::Gaps, b"a", None, |_| None);
        assert!(other.is_new());
    }
}
