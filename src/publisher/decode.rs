//! From a page record to the records of a transaction. No I/O: its inputs are parameters, its results
//! go into a [`Draft`].

use std::collections::BTreeMap;

use super::ladder::{Ladder, Times};
use super::loss::Loss;
use super::pairs::{Pairs, Told};
use super::switches::HeldEvents;
use crate::agora::{Contents, Ending, event};
use crate::kafka::{Batch, BrokerTime, Limits, PageRecord, Topic};
use crate::memory::{Fingerprint, Memory, Window};
use crate::model::{
    AppId, CLOCK_MARGIN, Content, Endpoint, Gap, GapCause, Incarnation, PAGE_LIMIT, Page, PageId,
    Timestamp, Wholeness,
};
use crate::records::pages::BadPageRecord;
use crate::records::public::{Part, Room, Source};
use crate::records::{pages, public};

/// A transaction in the making: its records, and what to count when it is delivered.
#[derive(Debug, Default)]
pub(super) struct Draft {
    pub(super) batch: Batch,
    pub(super) counts: BTreeMap<(AppId, Endpoint), ElementCounts>,
    pub(super) gaps: Vec<Gap>,
    /// Pages that Kafka lost.
    pub(super) losses: Vec<Loss>,
    pub(super) pages: u64,
    pub(super) pages_again: u64,
    pub(super) bad_pages: u64,
    /// Pages that went to the dead-letter topic as they are.
    pub(super) set_aside: Vec<PageId>,
    /// An event was larger than its topic was known to take.
    pub(super) has_too_large: bool,
    /// Signs of a second consumer in users' logins and logouts.
    pub(super) told: Vec<(AppId, Told)>,
    /// What each page held.
    pub(super) held: Vec<HeldEvents>,
}

/// What became of the elements of one app's endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ElementCounts {
    pub(super) received: u64,
    pub(super) delivered: u64,
    pub(super) repeats: u64,
    pub(super) repeats_in_page: u64,
    pub(super) dead_letters: u64,
    pub(super) set_aside: u64,
    /// How many of them are in the accounts as received since their page was committed.
    pub(super) own: u64,
}

/// What decoding has to know.
pub(super) struct Context<'a> {
    /// What each topic takes.
    pub(super) limits: &'a dyn Fn(Topic) -> Limits,
    /// What is known of the brokers' clock, for a page that was appended then.
    pub(super) broker_time: &'a dyn Fn(Option<Timestamp>) -> BrokerTime,
    /// The partition that is read.
    pub(super) partition: i32,
    /// Our own journal: the poller has entered its pages as received, all others are entered here.
    pub(super) incarnation: Incarnation,
    /// What Kafka refused.
    pub(super) ladder: &'a Ladder,
}

/// Takes one record of the pages topic in.
pub(super) fn take_in(
    draft: &mut Draft,
    memory: &mut Memory,
    pairs: &mut Pairs,
    context: &Context<'_>,
    (offset, record): &(i64, PageRecord),
) -> Result<(), BadPageRecord> {
    let broker = (context.broker_time)(record.appended);
    draft.batch.stamp_rest(context.rest(Topic::Gaps, broker));
    let forwarded = match pages::decode(record) {
        Ok(forwarded) => forwarded,
        Err(newer @ BadPageRecord::Newer(_)) => return Err(newer),
        // Not ours, or damaged: it must not block later records.
        Err(bad) => {
            let place = (context.partition, *offset);
            public::write_bad_page(&mut draft.batch, place, record, &bad, context.room(*offset));
            draft.bad_pages += 1;
            memory.advance(*offset, None);
            return Ok(());
        }
    };
    let id = forwarded.entry.id;
    let new = memory.admit(id, forwarded.settled, *offset);
    memory.advance(*offset, Some(id));
    if let Some(at) = forwarded.entry.content.answered_at() {
        memory.note_answer(at);
    }
    if !new {
        draft.pages_again += 1;
        return Ok(());
    }
    draft.pages += 1;
    match forwarded.entry.content {
        Content::Gap(gap) => draft.gap(id, gap, pairs),
        Content::Page(page) => {
            let window = memory.window(&page.feed.app, page.feed.endpoint);
            let room = context.room(*offset);
            let reader =
                PageReader { draft, window, pairs, context, broker, room, id, page: &page };
            match context.ladder.refusal(*offset) {
                Some(reason) => reader.set_aside(reason),
                None => reader.read(),
            }
        }
    }
    Ok(())
}

struct PageReader<'a> {
    draft: &'a mut Draft,
    window: &'a mut Window,
    pairs: &'a mut Pairs,
    context: &'a Context<'a>,
    broker: BrokerTime,
    /// What a dead letter may take.
    room: Room,
    id: PageId,
    page: &'a Page,
}

/// What has been taken from a page until now.
#[derive(Default)]
struct PageTally {
    counts: ElementCounts,
    /// Its events that are new.
    new: Vec<Fingerprint>,
    newest: Option<Timestamp>,
    oldest_repeat: Option<Timestamp>,
}

// === impl Draft ===

impl Draft {
    fn gap(&mut self, id: PageId, gap: Gap, pairs: &mut Pairs) {
        pairs.forget_users(&gap.feed.app);
        public::write_gap(&mut self.batch, id, &gap);
        self.gaps.push(gap);
    }
}

// === impl PageReader ===

impl PageReader<'_> {
    fn read(mut self) {
        let page = self.page;
        let feed = &page.feed;
        let source = Source::new(&feed.app, feed.endpoint, self.id);
        let contents = Contents::of(page);
        let split = contents.split();
        let mut taken =
            PageTally { new: Vec::with_capacity(split.elements.len()), ..PageTally::default() };
        taken.counts.received = split.elements.len() as u64;
        for (index, element) in split.elements.iter().enumerate() {
            self.take_element(&source, index, element, &mut taken);
        }
        self.draft.held.extend(taken.held(page));
        let mut counts = taken.counts;
        if let Some((reason, raw)) = split.leftover(page.wholeness) {
            counts.received += 1;
            counts.dead_letters += 1;
            self.dead_letter(&source, Part::Rest, &reason, raw);
        }
        if let Some(gap) = torn(page, split.elements.len() as u64, &split.ending) {
            self.draft.gap(self.id, gap, self.pairs);
        }
        self.count(counts);
    }

    /// Writes the whole page as a dead letter instead of its events. The cut part of a page remains a
    /// gap.
    fn set_aside(mut self, reason: &str) {
        let feed = &self.page.feed;
        let source = Source::new(&feed.app, feed.endpoint, self.id);
        let contents = Contents::of(self.page);
        let split = contents.split();
        let leftover = split.leftover(self.page.wholeness).is_some();
        let elements = split.elements.len() as u64 + u64::from(leftover);
        let reason = format!("Kafka refuses the events of this page: {reason}");
        self.dead_letter(&source, Part::Page, &reason, &self.page.body);
        self.pairs.forget_users(&feed.app);
        if let Some(gap) = torn(self.page, split.elements.len() as u64, &split.ending) {
            self.draft.gap(self.id, gap, self.pairs);
        }
        self.draft.set_aside.push(self.id);
        self.count(ElementCounts {
            received: elements,
            set_aside: elements,
            ..ElementCounts::default()
        });
    }

    fn count(&mut self, mut counts: ElementCounts) {
        if self.id.incarnation == self.context.incarnation {
            counts.own = std::mem::take(&mut counts.received);
        }
        let feed = &self.page.feed;
        let total = self.draft.counts.entry((feed.app.clone(), feed.endpoint)).or_default();
        total.add(counts);
    }

    fn take_element(
        &mut self,
        source: &Source,
        index: usize,
        element: &[u8],
        taken: &mut PageTally,
    ) {
        let feed = &self.page.feed;
        let counts = &mut taken.counts;
        let event = match event::read(feed.endpoint, element) {
            Ok(event) => event,
            Err(reason) => {
                counts.dead_letters += 1;
                self.dead_letter(source, Part::Element(index), &reason.to_string(), element);
                return;
            }
        };
        taken.newest = taken.newest.max(Some(event.time));
        let id = Fingerprint::of(&feed.app, feed.endpoint, &event);
        if !self.window.insert(id, self.page.answered_at) {
            if taken.new.contains(&id) {
                counts.repeats_in_page += 1;
            } else {
                counts.repeats += 1;
                let oldest = taken.oldest_repeat.get_or_insert(event.time);
                *oldest = event.time.min(*oldest);
            }
            return;
        }
        taken.new.push(id);
        if feed.endpoint == Endpoint::User {
            let told = self.pairs.observe(&feed.app, &event.user_id, &event.kind, event.time);
            if told != Told::default() {
                self.draft.told.push((feed.app.clone(), told));
            }
        }
        let topic = Topic::of_events(feed.endpoint);
        let limits = (self.context.limits)(topic);
        let timestamp = self.context.stamp(topic, event.time, self.broker);
        let Draft { batch, has_too_large, .. } = &mut *self.draft;
        public::write_event(batch, source, &event, id, timestamp);
        if batch.last().is_some_and(|record| record.size() > limits.largest_record) {
            batch.remove_last();
            *has_too_large = true;
            counts.set_aside += 1;
            let reason = "an event larger than its topic's max.message.bytes";
            self.dead_letter(source, Part::Element(index), reason, element);
        } else {
            counts.delivered += 1;
        }
    }

    fn dead_letter(&mut self, source: &Source, part: Part, reason: &str, raw: &[u8]) {
        public::write_dead_letter(&mut self.draft.batch, source, part, reason, raw, self.room);
    }
}

// === impl Context ===

impl Context<'_> {
    /// What stamps the record of an event.
    fn stamp(&self, topic: Topic, event: Timestamp, broker: BrokerTime) -> Option<Timestamp> {
        let stamping = (self.limits)(topic).stamping;
        let own = (self.ladder.times() == Times::Events).then(|| stamping.stamp(event, broker));
        own.flatten().or_else(|| self.rest(topic, broker))
    }

    /// What stamps the other records; `None` is the time of sending.
    fn rest(&self, topic: Topic, broker: BrokerTime) -> Option<Timestamp> {
        match self.ladder.times() {
            Times::Events | Times::Broker => Some((self.limits)(topic).stamping.rest(broker)),
            Times::Sending => None,
        }
    }

    /// What a dead letter of the page at `offset` may take.
    fn room(&self, offset: i64) -> Room {
        match self.ladder.bare_letters(offset) {
            true => Room::Nothing,
            false => Room::Bytes((self.limits)(Topic::DeadLetter).largest_record),
        }
    }
}

// === impl Taken ===

impl PageTally {
    /// Nothing where the page held no event.
    fn held(&self, page: &Page) -> Option<HeldEvents> {
        Some(HeldEvents {
            feed: page.feed.clone(),
            answered_at: page.answered_at,
            newest: self.newest?,
            repeats: self.counts.repeats,
            oldest_repeat: self.oldest_repeat,
        })
    }
}

// === impl Counts ===

impl ElementCounts {
    fn add(&mut self, other: Self) {
        self.received += other.received;
        self.delivered += other.delivered;
        self.repeats += other.repeats;
        self.repeats_in_page += other.repeats_in_page;
        self.dead_letters += other.dead_letters;
        self.set_aside += other.set_aside;
        self.own += other.own;
    }
}

/// The gap of a body that ends too early, after `complete` complete elements.
pub(crate) fn torn(page: &Page, complete: u64, ending: &Ending<'_>) -> Option<Gap> {
    let at_least = match ending {
        Ending::TornInEvents(raw) => u64::from(!raw.is_empty()),
        // The array of events was closed; the cut is after it.
        Ending::Torn if complete > 0 => return None,
        Ending::Torn => 0,
        // A blank body that looks whole: its framing can't show that it was cut.
        Ending::NotAnObject(body)
            if page.wholeness == Wholeness::Cut || body.trim_ascii().is_empty() =>
        {
            0
        }
        Ending::Closed
        | Ending::Failed
        | Ending::Unproven(_)
        | Ending::Elsewhere(_)
        | Ending::NotAnArray(_)
        | Ending::NotAnObject(_) => return None,
    };
    Some(Gap {
        feed: page.feed.clone(),
        cause: GapCause::BodyCut,
        from: page.since,
        to: page.answered_at.after(CLOCK_MARGIN),
        at_least,
        at_most: Some(PAGE_LIMIT.saturating_sub(complete).max(at_least)),
    })
}

#[cfg(test)]
mod tests;
