//! What the topics say, held against each other. Pure: records go in, faults come out.
//!
//! The order of entry is part of the proof: dead letters and gaps first, then the pages of the
//! window, then the events. An event is known by its fingerprint, which is worked out anew from the
//! page, so a wrong `ce_id` shows as one event that is missing and one that its page does not hold.
//!
//! Three things happen at the edges of a window. An event may repeat one of before the window: then
//! the record in its topic names an older page, which is *delivered earlier*. A record may name a
//! page that is not in the window: it only has to be unique. A page of before the window may have
//! been forwarded again in it, where its ticket is settled already: its events are looked for like
//! all others, but their order, and dead letters and gaps of before the window, are not asked for.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::collections::HashSet;
use std::hash::DefaultHasher;
use std::hash::Hash as _;
use std::hash::Hasher as _;
use std::ops::Range;

use serde::Deserialize;

use crate::agora;
use crate::agora::Contents;
use crate::agora::event;
use crate::dedupe::Fingerprint;
use crate::kafka::Batch;
use crate::kafka::pages::Forwarded;
use crate::kafka::partition_of;
use crate::kafka::record;
use crate::kafka::record::Source;
use crate::model::AppId;
use crate::model::Content;
use crate::model::Endpoint;
use crate::model::Feed;
use crate::model::GapCause;
use crate::model::Incarnation;
use crate::model::Page;
use crate::model::PageId;
use crate::model::Ticket;
use crate::model::Timestamp;
use crate::publisher::torn;

/// What the topics say.
#[derive(Debug)]
pub(super) struct Ledger {
    partitions: u32,
    /// When the window begins.
    pub(super) since: Timestamp,
    letters: HashMap<(PageKey, Option<u64>), u64>,
    gaps: HashMap<(PageKey, GapCause), Told>,
    /// The pages and gaps of the window, with their numbers.
    numbers: HashMap<PageKey, u32>,
    pages: Vec<PageKey>,
    /// Those of them that stood before the window already.
    again: HashSet<u32>,
    /// Tickets that had their end, of each partition and journal.
    settled: HashMap<(i32, Incarnation), Ticket>,
    /// When the last page of a feed was asked for, of those that a journal has forwarded.
    asked: HashMap<(Feed, Incarnation), Timestamp>,
    events: HashMap<[u8; 16], Event>,
    /// The last event in each partition of an event topic, of an account: its page and place.
    last: HashMap<(i32, u16), (u32, u32)>,
    accounts: Vec<Account>,
    account_of: HashMap<(AppId, Endpoint), u16>,
    oldest: Option<Timestamp>,
    /// An event topic holds nothing older, since Kafka has deleted it.
    begins: BTreeMap<Endpoint, Timestamp>,
    /// The offset that has to come next in each partition of the pages topic.
    next: BTreeMap<i32, i64>,
    /// Offsets of the pages topic that are told to be lost, by partition.
    told_lost: Vec<(i32, Range<i64>)>,
    /// The gaps that tell of them.
    lost_told: Option<Told>,
    pub(super) tally: Tally,
    pub(super) faults: Faults,
    /// What could not be looked at, and how much of it.
    pub(super) not_covered: BTreeMap<Uncovered, u64>,
}

/// What can't be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Uncovered {
    /// Forwarded before the audit began, and not delivered.
    Waiting,
    /// Elements of which what was published is deleted.
    NotProvable,
    /// Partitions of the pages topic of which something was deleted that may belong to the window.
    BeforeTheTopic,
    /// Pages that a newer version of the bridge forwarded.
    NewerPages,
}

/// Tickets are numbered by partition, so a page is known by both.
type PageKey = (i32, PageId);

/// What became of the elements of one App ID's endpoint, in the pages of the window.
#[derive(Clone, Debug)]
pub(super) struct Account {
    pub(super) app: AppId,
    pub(super) endpoint: Endpoint,
    pub(super) counts: Counts,
}

/// Numbers of elements.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub(super) struct Counts {
    /// In the pages of the window.
    pub(super) received: u64,
    /// In their topic, out of a page of the window.
    pub(super) delivered: u64,
    /// In their topic, out of a page of before the window: here they were repeats.
    pub(super) delivered_earlier: u64,
    /// In several pages of the window, or in one several times, beyond the first.
    pub(super) repeats: u64,
    pub(super) dead_letters: u64,
    pub(super) set_aside: u64,
    /// Older than what their topic still holds, or of a page of before the window.
    pub(super) not_provable: u64,
    pub(super) missing: u64,
}

/// What is worth telling beside the accounts.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    /// Pages of the window that were forwarded more than once.
    pub(super) pages_again: u64,
    pub(super) unreadable_pages: u64,
    /// Events of pages outside of the window: only their uniqueness was looked at.
    pub(super) events_outside: u64,
    /// Published once more by `pages replay`.
    pub(super) replayed: u64,
}

/// Gaps of a kind, as their records tell them.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Told {
    pub(super) records: u64,
    pub(super) at_least: u64,
    /// `None` where one of them has no bound.
    pub(super) at_most: Option<u64>,
}

/// What is wrong: how much of each kind, and the first of it.
#[derive(Debug, Default)]
pub(super) struct Faults(pub(super) BTreeMap<Fault, (u64, Vec<String>)>);

/// What can be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fault {
    /// In a page, and nowhere else.
    Missing,
    /// More than once.
    Twice,
    /// Not in the page that it names.
    Unknown,
    /// Behind something that has to follow it.
    OutOfOrder,
    /// With another key or value than its page makes of it.
    Altered,
    /// Without what every record has.
    Misshapen,
}

/// A record that tells of an app's page.
pub(super) struct Letter {
    pub(super) app: AppId,
    pub(super) page: Option<PageId>,
}

/// A record of an event topic.
pub(super) struct Published {
    pub(super) endpoint: Endpoint,
    pub(super) partition: i32,
    pub(super) offset: i64,
    pub(super) app: Option<AppId>,
    pub(super) id: Option<[u8; 16]>,
    pub(super) page: Option<PageId>,
    /// Of its key and value.
    pub(super) digest: u64,
    pub(super) is_replayed: bool,
}

/// Sixteen bytes, since there are many.
#[derive(Clone, Copy, Debug)]
struct Event {
    /// Number of the page of the window that had it first; [`OUTSIDE`] if none has.
    page: u32,
    /// Its place in that page.
    index: u32,
    /// Its time in seconds since 1970.
    second: u32,
    /// Of the key and value that its page makes of it.
    digest: u64,
    account: u16,
    /// How often it was read.
    read: u8,
    fate: Fate,
}

/// What became of an event, as far as it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Unseen,
    Delivered,
    DeliveredEarlier,
    SetAside,
}

/// No page of the window.
const OUTSIDE: u32 = u32::MAX;

/// So many of each kind of fault are told.
const SHOWN: usize = 8;

// === impl Ledger ===

impl Ledger {
    pub(super) fn new(partitions: u32, since: Timestamp) -> Self {
        Self {
            partitions,
            since,
            letters: HashMap::new(),
            gaps: HashMap::new(),
            numbers: HashMap::new(),
            pages: Vec::new(),
            again: HashSet::new(),
            settled: HashMap::new(),
            asked: HashMap::new(),
            events: HashMap::new(),
            last: HashMap::new(),
            accounts: Vec::new(),
            account_of: HashMap::new(),
            oldest: None,
            begins: BTreeMap::new(),
            next: BTreeMap::new(),
            told_lost: Vec::new(),
            lost_told: None,
            tally: Tally::default(),
            faults: Faults::default(),
            not_covered: BTreeMap::new(),
        }
    }

    /// Notes something that can't be looked at.
    pub(super) fn uncovered(&mut self, what: Uncovered, count: u64) {
        if count > 0 {
            *self.not_covered.entry(what).or_default() += count;
        }
    }

    /// Notes where the window begins in a partition of the pages topic, of what that holds, and how
    /// far it is delivered.
    pub(super) fn begins(&mut self, partition: i32, all: &Range<i64>, start: i64, position: i64) {
        if position < all.start {
            self.lost(partition, position..all.start);
        }
        // The records before may be of the window, too. Of an empty partition nobody can say.
        if all.start > 0 && start == all.start && !all.is_empty() {
            self.uncovered(Uncovered::BeforeTheTopic, 1);
        }
        self.next.insert(partition, start);
    }

    /// Notes the offset of a record of the pages topic. One producer without transactions writes it,
    /// so offsets follow one another.
    pub(super) fn offset(&mut self, partition: i32, offset: i64) {
        let next = self.next.insert(partition, offset + 1).unwrap_or(offset);
        if next < offset {
            self.lost(partition, next..offset);
        }
    }

    /// Notes where the window ends in a partition of the pages topic.
    pub(super) fn ends(&mut self, partition: i32, end: i64) {
        let next = self.next.get(&partition).copied().unwrap_or(end);
        if next < end {
            self.lost(partition, next..end);
        }
    }

    /// Records of the pages topic are gone. A gap has to tell of it.
    fn lost(&mut self, partition: i32, offsets: Range<i64>) {
        let is_told = self.told_lost.iter().any(|(of, told)| {
            *of == partition && told.start <= offsets.start && offsets.end <= told.end
        });
        if !is_told {
            let records = offsets.end - offsets.start;
            self.faults.add(Fault::Missing, || {
                format!(
                    "{records} records of the pages topic, from offset {} of partition {partition}, \
                     and no gap tells of it",
                    offsets.start
                )
            });
        }
    }

    /// Enters a gap that tells of lost pages.
    pub(super) fn lost_pages(&mut self, partition: i32, offsets: Range<i64>) {
        self.told_lost.push((partition, offsets));
    }

    /// Enters a page that a newer version forwarded.
    pub(super) fn newer_page(&mut self) {
        self.uncovered(Uncovered::NewerPages, 1);
    }

    /// Enters a dead letter.
    pub(super) fn dead_letter(&mut self, letter: &Letter, index: Option<&[u8]>) {
        // Without a page it is a record of the pages topic that can't be read.
        let Some(key) = self.key(letter) else { return };
        let index = index.and_then(|text| std::str::from_utf8(text).ok()?.parse().ok());
        *self.letters.entry((key, index)).or_default() += 1;
    }

    /// Enters a record of the gaps topic.
    pub(super) fn gap(&mut self, letter: &Letter, value: &[u8]) {
        #[derive(Deserialize)]
        struct Value<'a> {
            cause: &'a str,
            at_least: u64,
            at_most: Option<u64>,
        }
        let read = serde_json::from_slice::<Value<'_>>(value).ok();
        let read = read.and_then(|it| Some((it.cause.parse().ok()?, it.at_least, it.at_most)));
        if let Some((GapCause::PagesLost, at_least, at_most)) = read {
            // It names no page, but offsets.
            self.lost_told.get_or_insert(Told { at_most: Some(0), ..Told::default() }).add(Told {
                records: 1,
                at_least,
                at_most,
            });
            return;
        }
        let (Some(key), Some((cause, at_least, at_most))) = (self.key(letter), read) else {
            self.faults.add(Fault::Misshapen, || "a record of the gaps topic".to_owned());
            return;
        };
        let told =
            self.gaps.entry((key, cause)).or_insert(Told { at_most: Some(0), ..Told::default() });
        told.add(Told { records: 1, at_least, at_most });
    }

    /// Enters a page or a gap of the window, in the order of its partition.
    pub(super) fn page(&mut self, partition: i32, forwarded: &Forwarded) {
        let id = forwarded.entry.id;
        let settled = self.settled.entry((partition, id.incarnation)).or_insert(Ticket(0));
        let is_settled = id.ticket <= *settled;
        *settled = forwarded.settled.max(*settled);
        let key = (partition, id);
        if self.numbers.contains_key(&key) {
            self.tally.pages_again += 1;
            return;
        }
        let number = u32::try_from(self.pages.len()).expect("fewer pages than events");
        if is_settled {
            // It stood before the window, too, and was delivered then: its events are looked for all
            // the same.
            self.tally.pages_again += 1;
            self.again.insert(number);
        }
        self.pages.push(key);
        self.numbers.insert(key, number);
        match &forwarded.entry.content {
            Content::Gap(gap) => {
                let is_before = is_settled || gap.to < self.since;
                self.expect_gap(key, &gap.feed.app, gap.cause, is_before);
            }
            Content::Page(page) => {
                if !is_settled {
                    self.compare_with_former(id, page);
                }
                self.read_page(key, number, page);
            }
        }
    }

    /// Enters a record of the pages topic that is none.
    pub(super) fn unreadable_page(&mut self) {
        self.tally.unreadable_pages += 1;
    }

    /// The time of the oldest event in the pages of the window.
    pub(super) fn oldest(&self) -> Option<Timestamp> {
        self.oldest
    }

    /// Notes that a partition of an event topic begins with a record of this time: Kafka has
    /// deleted what stood before.
    pub(super) fn topic_begins(&mut self, endpoint: Endpoint, stamped: Option<Timestamp>) {
        let begins = self.begins.entry(endpoint).or_default();
        *begins = stamped.unwrap_or_default().max(*begins);
    }

    /// Enters a record of an event topic, in the order of its partition.
    pub(super) fn event(&mut self, record: &Published) {
        if record.is_replayed {
            self.tally.replayed += 1;
            return;
        }
        let (Some(app), Some(id), Some(page)) = (&record.app, record.id, record.page) else {
            self.faults.add(Fault::Misshapen, || record.place());
            return;
        };
        let account = self.account(app, record.endpoint);
        let key = (partition_of(app.as_str().as_bytes(), self.partitions), page);
        let number = self.numbers.get(&key).copied().unwrap_or(OUTSIDE);
        let event = self.events.entry(id).or_insert(Event {
            page: OUTSIDE,
            index: 0,
            second: 0,
            digest: 0,
            account,
            read: 0,
            fate: Fate::Unseen,
        });
        event.read = event.read.saturating_add(1);
        let name = || format!("{} {}", record.place(), Fingerprint::from_bytes(id));
        if event.read > 1 {
            self.faults.add(Fault::Twice, name);
            return;
        }
        match (event.page, number) {
            (OUTSIDE, OUTSIDE) => self.tally.events_outside += 1,
            (OUTSIDE, _) => self.faults.add(Fault::Unknown, name),
            (_, OUTSIDE) => event.fate = Fate::DeliveredEarlier,
            (first, again) if first != again && self.again.contains(&again) => {
                event.fate = Fate::DeliveredEarlier;
            }
            (first, _) => {
                event.fate = Fate::Delivered;
                if first == number && event.digest != record.digest {
                    self.faults.add(Fault::Altered, name);
                }
                if self.again.contains(&first) {
                    // Where it stands was decided before the window.
                    return;
                }
                let place = (first, event.index);
                let last = self.last.entry((record.partition, account)).or_insert(place);
                // Numbers of pages grow along each partition, and an app has one.
                if place < *last || first != number {
                    self.faults.add(Fault::OutOfOrder, name);
                }
                *last = place.max(*last);
            }
        }
    }

    /// Draws the line: the accounts, and the gaps of the window by their causes.
    pub(super) fn close(&mut self) -> (Vec<Account>, BTreeMap<&'static str, Told>) {
        for event in self.events.values().filter(|event| event.page != OUTSIDE) {
            let Some(account) = self.accounts.get_mut(usize::from(event.account)) else { continue };
            let begins = self.begins.get(&account.endpoint);
            let counts = &mut account.counts;
            *match event.fate {
                Fate::Delivered => &mut counts.delivered,
                Fate::DeliveredEarlier => &mut counts.delivered_earlier,
                Fate::SetAside => &mut counts.set_aside,
                Fate::Unseen if begins.is_some_and(|begins| event.second <= second(*begins)) => {
                    &mut counts.not_provable
                }
                Fate::Unseen => {
                    counts.missing += 1;
                    let page = self.pages.get(event.page as usize);
                    self.faults.add(Fault::Missing, || element(page, Some(event.index.into())));
                    continue;
                }
            } += 1;
        }
        let mut causes: BTreeMap<&'static str, Told> = BTreeMap::new();
        causes.extend(self.lost_told.map(|told| (GapCause::PagesLost.name(), told)));
        for ((key, cause), told) in &self.gaps {
            if self.numbers.contains_key(key) {
                let empty = Told { at_most: Some(0), ..Told::default() };
                causes.entry(cause.name()).or_insert(empty).add(*told);
                if told.records > 1 {
                    self.faults.add(Fault::Twice, || format!("the gap of {}", name(Some(key))));
                }
            }
        }
        for ((key, index), times) in &self.letters {
            if self.numbers.contains_key(key) {
                // What was asked for has been taken out.
                if *times > 0 {
                    let fault = if *times > 1 { Fault::Twice } else { Fault::Unknown };
                    self.faults
                        .add(fault, || format!("dead letter of {}", element(Some(key), *index)));
                }
            }
        }
        (self.accounts.clone(), causes)
    }

    /// How many pages and gaps the window has.
    pub(super) fn page_count(&self) -> usize {
        self.pages.len() - self.again.len()
    }

    fn key(&self, letter: &Letter) -> Option<PageKey> {
        let partition = partition_of(letter.app.as_str().as_bytes(), self.partitions);
        Some((partition, letter.page?))
    }

    fn account(&mut self, app: &AppId, endpoint: Endpoint) -> u16 {
        let known = self.account_of.get(&(app.clone(), endpoint));
        if let Some(number) = known {
            return *number;
        }
        let number = u16::try_from(self.accounts.len()).unwrap_or(u16::MAX);
        self.accounts.push(Account { app: app.clone(), endpoint, counts: Counts::default() });
        self.account_of.insert((app.clone(), endpoint), number);
        number
    }

    fn read_page(&mut self, key: PageKey, number: u32, page: &Page) {
        let feed = &page.feed;
        let account = self.account(&feed.app, feed.endpoint);
        let contents = Contents::of(page);
        let split = contents.split();
        let leftover = split.leftover(page.wholeness).is_some();
        let is_before = page.answered_at < self.since || self.again.contains(&number);
        let source = Source::new(&feed.app, feed.endpoint, key.1);
        let mut counts = Counts { received: split.elements.len() as u64, ..Counts::default() };
        // Without an index, and with nothing left over that it could be: the page as a whole.
        let is_set_aside = !leftover && self.take_letter(key, None);
        for (index, raw) in (0_u32..).zip(&split.elements) {
            let Ok(event) = event::read(feed.endpoint, raw) else {
                let is_there = is_set_aside || self.take_letter(key, Some(index.into()));
                self.count_letter(&mut counts, key, Some(index.into()), is_there, is_before);
                continue;
            };
            let id = Fingerprint::of(&feed.app, feed.endpoint, &event).to_bytes();
            if self.events.contains_key(&id) {
                counts.repeats += 1;
                continue;
            }
            let is_aside = is_set_aside || self.take_letter(key, Some(index.into()));
            let fate = if is_aside { Fate::SetAside } else { Fate::Unseen };
            let second = second(event.time);
            let oldest = self.oldest.get_or_insert(event.time);
            *oldest = event.time.min(*oldest);
            let digest = expected(&source, &event);
            let event = Event { page: number, index, second, digest, account, read: 0, fate };
            self.events.insert(id, event);
        }
        if leftover {
            counts.received += 1;
            let is_there = self.take_letter(key, None);
            self.count_letter(&mut counts, key, None, is_there, is_before);
        }
        let complete = split.elements.len() as u64;
        if torn(page, complete, &split.ending).is_some() {
            self.expect_gap(key, &feed.app, GapCause::BodyCut, is_before);
        }
        if let Some(account) = self.accounts.get_mut(usize::from(account)) {
            account.counts.add(counts);
        }
    }

    /// Takes a dead letter out; those that stay were asked for by no page.
    fn take_letter(&mut self, key: PageKey, index: Option<u64>) -> bool {
        match self.letters.get_mut(&(key, index)) {
            Some(times) if *times == 1 => {
                *times = 0;
                true
            }
            // Twice: that it was asked for does not make it right.
            Some(times) => *times > 0,
            None => false,
        }
    }

    fn count_letter(
        &mut self,
        counts: &mut Counts,
        key: PageKey,
        index: Option<u64>,
        is_there: bool,
        is_before: bool,
    ) {
        if is_there {
            counts.dead_letters += 1;
        } else if is_before {
            counts.not_provable += 1;
        } else {
            counts.missing += 1;
            self.faults
                .add(Fault::Missing, || format!("dead letter of {}", element(Some(&key), index)));
        }
    }

    fn expect_gap(&mut self, key: PageKey, app: &AppId, cause: GapCause, is_before: bool) {
        if !self.gaps.contains_key(&(key, cause)) && !is_before {
            let what = || format!("the gap `{cause}` of {} ({app})", name(Some(&key)));
            self.faults.add(Fault::Missing, what);
        }
    }

    /// Of two pages of a feed of which one was answered before the other was asked for, that one
    /// has to stand first. Where they overlap, nothing can be said.
    fn compare_with_former(&mut self, id: PageId, page: &Page) {
        let of_feed = (page.feed.clone(), id.incarnation);
        let asked = self.asked.entry(of_feed).or_insert(page.asked_at);
        if page.answered_at < *asked {
            self.faults.add(Fault::OutOfOrder, || format!("page {id} of {}", page.feed));
        }
        *asked = page.asked_at.max(*asked);
    }
}

/// Of a key and a value.
pub(super) fn digest(key: &[u8], value: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    (key, value).hash(&mut hasher);
    hasher.finish()
}

/// The digest of the record that is written of an event.
fn expected(source: &Source, event: &agora::Event<'_>) -> u64 {
    let mut batch = Batch::default();
    let id = Fingerprint::from_bytes([0; 16]);
    record::write_event(&mut batch, source, event, id, None);
    let written = batch.last();
    written.map_or(0, |it| digest(it.key(), it.value().unwrap_or_default()))
}

fn second(time: Timestamp) -> u32 {
    u32::try_from(time.as_millis() / 1_000).unwrap_or(if time.as_millis() < 0 {
        0
    } else {
        u32::MAX
    })
}

/// How a page is named to a person, who goes on with `pages show`.
fn name(key: Option<&PageKey>) -> String {
    key.map_or_else(String::new, |(partition, page)| format!("page {page} (partition {partition})"))
}

fn element(key: Option<&PageKey>, index: Option<u64>) -> String {
    match index {
        Some(index) => format!("element {index} of {}", name(key)),
        None => name(key),
    }
}

// === impl Counts ===

impl Counts {
    pub(super) fn add(&mut self, other: Self) {
        self.received += other.received;
        self.delivered += other.delivered;
        self.delivered_earlier += other.delivered_earlier;
        self.repeats += other.repeats;
        self.dead_letters += other.dead_letters;
        self.set_aside += other.set_aside;
        self.not_provable += other.not_provable;
        self.missing += other.missing;
    }
}

// === impl Uncovered ===

impl Uncovered {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Waiting => "pages_waiting",
            Self::NotProvable => "not_provable",
            Self::BeforeTheTopic => "window_begins_before_the_topic",
            Self::NewerPages => "pages_of_a_newer_version",
        }
    }

    pub(super) const fn sentence(self) -> &'static str {
        match self {
            Self::Waiting => "pages that wait: is the bridge running? see its /ready",
            Self::NotProvable => "elements of which what was published may be deleted",
            Self::BeforeTheTopic => {
                "partitions of the pages topic begin later than the window: choose a shorter --since"
            }
            Self::NewerPages => "pages that a newer version forwarded: run that version's audit",
        }
    }
}

// === impl Told ===

impl Told {
    pub(super) fn add(&mut self, other: Self) {
        self.records += other.records;
        self.at_least += other.at_least;
        self.at_most = self.at_most.zip(other.at_most).map(|(one, two)| one + two);
    }
}

// === impl Faults ===

impl Faults {
    fn add(&mut self, fault: Fault, what: impl FnOnce() -> String) {
        let (count, first) = self.0.entry(fault).or_default();
        *count += 1;
        if first.len() < SHOWN {
            first.push(what());
        }
    }
}

// === impl Fault ===

impl Fault {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Twice => "twice",
            Self::Unknown => "unknown",
            Self::OutOfOrder => "out of order",
            Self::Altered => "altered",
            Self::Misshapen => "misshapen",
        }
    }
}

// === impl Published ===

impl Published {
    fn place(&self) -> String {
        let Self { endpoint, partition, offset, .. } = self;
        format!("{endpoint} {partition}@{offset}")
    }
}

#[cfg(test)]
mod tests;
