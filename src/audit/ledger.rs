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

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::time::Duration;

use serde::Deserialize;

use super::cut::{Cut, Lack};
use super::findings::{AuditFault, AuditFaults, Counts, GapTotals, Tally, Uncovered};
use super::written::{Letter, Published, expected};
use crate::agora::{Contents, event};
use crate::kafka::partition_of;
use crate::memory::Fingerprint;
use crate::model::{
    AppId, Content, Endpoint, Feed, GapCause, Incarnation, Page, PageId, Ticket, Timestamp,
};
use crate::publisher::torn;
use crate::records::pages::Forwarded;
use crate::records::public::Source;

/// What the topics say.
#[derive(Debug)]
pub(super) struct Ledger {
    partitions: u32,
    /// When the window begins.
    pub(super) since: Timestamp,
    letters: HashMap<(PageKey, Option<u64>), u64>,
    gaps: HashMap<(PageKey, GapCause), GapTotals>,
    /// The pages and gaps of the window, with their numbers.
    numbers: HashMap<PageKey, u32>,
    pages: Vec<PageKey>,
    /// Those of them that stood before the window already.
    again: HashSet<u32>,
    /// The lowest ticket in the window, of each partition and journal.
    first: HashMap<(i32, Incarnation), Ticket>,
    /// Settled tickets, by partition and journal.
    settled: HashMap<(i32, Incarnation), Ticket>,
    /// The newest page of each feed and journal: its ticket, and when it was requested.
    newest: HashMap<(Feed, Incarnation), (Ticket, Timestamp)>,
    events: HashMap<[u8; 16], KnownEvent>,
    /// The last event in each partition of an event topic, of an account: its page and place.
    last: HashMap<(i32, u16), (u32, u32)>,
    accounts: Vec<Account>,
    account_of: HashMap<(AppId, Endpoint), u16>,
    oldest: Option<Timestamp>,
    /// Records of events with times before this were not looked for.
    pub(super) looked_from: Timestamp,
    /// What may be deleted from the event topics.
    cut: Cut,
    /// What may be deleted from the dead-letter topic, and from the gaps topic.
    pub(super) letters_lack: Lack,
    pub(super) gaps_lack: Lack,
    /// The offset that has to come next in each partition of the pages topic.
    next: BTreeMap<i32, i64>,
    /// Offsets of the pages topic that gaps report as lost, by partition.
    told_lost: Vec<(i32, Range<i64>)>,
    /// The gaps that report them.
    lost_told: Option<GapTotals>,
    pub(super) tally: Tally,
    pub(super) faults: AuditFaults,
    /// What could not be looked at, and how much of it.
    pub(super) not_covered: BTreeMap<Uncovered, u64>,
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

/// Sixteen bytes, since there are many.
#[derive(Clone, Copy, Debug)]
struct KnownEvent {
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

/// Corrections of a clock up to this make no page precede another.
const CLOCK_STEP: Duration = Duration::from_secs(1);

/// No page of the window.
const OUTSIDE: u32 = u32::MAX;

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
            first: HashMap::new(),
            settled: HashMap::new(),
            newest: HashMap::new(),
            events: HashMap::new(),
            last: HashMap::new(),
            accounts: Vec::new(),
            account_of: HashMap::new(),
            oldest: None,
            looked_from: Timestamp::from_millis(i64::MIN),
            cut: Cut::default(),
            letters_lack: Lack::Nothing,
            gaps_lack: Lack::Nothing,
            next: BTreeMap::new(),
            told_lost: Vec::new(),
            lost_told: None,
            tally: Tally::default(),
            faults: AuditFaults::default(),
            not_covered: BTreeMap::new(),
        }
    }

    /// Notes something that can't be looked at.
    pub(super) fn uncovered(&mut self, what: Uncovered, count: u64) {
        if count > 0 {
            *self.not_covered.entry(what).or_default() += count;
        }
    }

    /// Notes where the window begins in a partition of the pages topic, of what that holds, how far it
    /// is delivered, and when the newest delivered page was answered.
    pub(super) fn begins(
        &mut self,
        partition: i32,
        all: &Range<i64>,
        start: i64,
        position: Option<i64>,
        answered: Option<Timestamp>,
    ) {
        match position {
            None => self.uncovered(Uncovered::NoMemory, u64::from(all.end > 0)),
            Some(position) if position < all.start => self.lost(partition, position..all.start),
            Some(position) if position > all.end => self.created_again(),
            // The records before may be of the window, too; if none is left, the memory tells.
            Some(_) if all.start > 0 && start == all.start => {
                let is_of_window = !all.is_empty() || answered.is_some_and(|at| at >= self.since);
                self.uncovered(Uncovered::BeforeTheTopic, is_of_window.into());
            }
            Some(_) => {}
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

    /// Records of the pages topic are gone. A gap must report them.
    fn lost(&mut self, partition: i32, offsets: Range<i64>) {
        let is_told = self.told_lost.iter().any(|(of, told)| {
            *of == partition && told.start <= offsets.start && offsets.end <= told.end
        });
        if !is_told {
            let records = offsets.end - offsets.start;
            self.faults.add(AuditFault::Missing, || {
                format!(
                    "{records} records of the pages topic, from offset {} of partition {partition}, \
                     and no gap tells of it",
                    offsets.start
                )
            });
        }
    }

    /// Notes that a partition of the pages topic was deleted and created again.
    pub(super) fn created_again(&mut self) {
        self.uncovered(Uncovered::CreatedAgain, 1);
    }

    /// Enters a gap of lost pages.
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
        struct GapValue<'a> {
            cause: &'a str,
            at_least: u64,
            at_most: Option<u64>,
        }
        let read = serde_json::from_slice::<GapValue<'_>>(value).ok();
        let read = read.and_then(|it| Some((it.cause.parse().ok()?, it.at_least, it.at_most)));
        if let Some((GapCause::PagesLost, at_least, at_most)) = read {
            // It names no page, but offsets.
            self.lost_told
                .get_or_insert(GapTotals { at_most: Some(0), ..GapTotals::default() })
                .add(GapTotals { records: 1, at_least, at_most });
            return;
        }
        let (Some(key), Some((cause, at_least, at_most))) = (self.key(letter), read) else {
            self.faults.add(AuditFault::Misshapen, || "a record of the gaps topic".to_owned());
            return;
        };
        let told = self
            .gaps
            .entry((key, cause))
            .or_insert(GapTotals { at_most: Some(0), ..GapTotals::default() });
        told.add(GapTotals { records: 1, at_least, at_most });
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
        self.tally.pages_late += u64::from(forwarded.late);
        self.pages.push(key);
        self.numbers.insert(key, number);
        let first = self.first.entry((partition, id.incarnation)).or_insert(id.ticket);
        *first = id.ticket.min(*first);
        match &forwarded.entry.content {
            Content::Gap(gap) => {
                let is_before = is_settled || gap.to < self.since;
                self.expect_gap(key, &gap.feed.app, gap.cause, is_before);
            }
            Content::Page(page) => {
                if !is_settled {
                    self.compare_with_newest(id, page, forwarded.late);
                }
                self.read_page(key, number, page);
            }
        }
    }

    /// Enters a record of the pages topic that is none.
    pub(super) fn unreadable_page(&mut self) {
        self.tally.unreadable_pages += 1;
        self.uncovered(Uncovered::UnreadablePages, 1);
    }

    /// The time of the oldest event in the pages of the window.
    pub(super) fn oldest(&self) -> Option<Timestamp> {
        self.oldest
    }

    /// Notes that Kafka has deleted something from this partition of an event topic, and that what may
    /// be deleted belongs to the window.
    pub(super) fn is_cut(&mut self, endpoint: Endpoint, partition: i32) {
        self.cut.insert(endpoint, partition);
    }

    /// Enters a record of an event topic, in the order of its partition.
    pub(super) fn event(&mut self, record: &Published) {
        if record.is_replayed {
            self.tally.replayed += 1;
            return;
        }
        let (Some(app), Some(id), Some(page)) = (&record.app, record.id, record.page) else {
            self.faults.add(AuditFault::Misshapen, || record.place());
            return;
        };
        let account = self.account(app, record.endpoint);
        let key = (partition_of(app.as_str().as_bytes(), self.partitions), page);
        let number = self.numbers.get(&key).copied().unwrap_or(OUTSIDE);
        let lost = match number {
            OUTSIDE if self.is_before(key) => Some(0),
            OUTSIDE => None,
            _ => Some(number + 1),
        };
        self.cut.see(record.endpoint, record.partition, key.0, lost);
        let event = self.events.entry(id).or_insert(KnownEvent {
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
            self.faults.add(AuditFault::Twice, name);
            return;
        }
        match (event.page, number) {
            (OUTSIDE, OUTSIDE) => self.tally.events_outside += 1,
            (OUTSIDE, _) => self.faults.add(AuditFault::Unknown, name),
            (_, OUTSIDE) => event.fate = Fate::DeliveredEarlier,
            (first, again) if first != again && self.again.contains(&again) => {
                event.fate = Fate::DeliveredEarlier;
            }
            (first, _) => {
                event.fate = Fate::Delivered;
                if first == number && event.digest != record.digest {
                    self.faults.add(AuditFault::Altered, name);
                }
                if self.again.contains(&first) {
                    // Where it stands was decided before the window.
                    return;
                }
                let place = (first, event.index);
                let last = self.last.entry((record.partition, account)).or_insert(place);
                // Numbers of pages grow along each partition, and an app has one.
                if place < *last || first != number {
                    self.faults.add(AuditFault::OutOfOrder, name);
                }
                *last = place.max(*last);
            }
        }
    }

    /// Draws the line: the accounts, and the gaps of the window by their causes.
    pub(super) fn close(&mut self) -> (Vec<Account>, BTreeMap<&'static str, GapTotals>) {
        let events = std::mem::take(&mut self.events);
        for event in events.values().filter(|event| event.page != OUTSIDE) {
            let account = usize::from(event.account);
            let endpoint = self.accounts.get(account).map(|account| account.endpoint);
            let may_be_deleted = event.fate == Fate::Unseen
                && endpoint.is_some_and(|endpoint| self.may_be_deleted(endpoint, event));
            let Some(Account { counts, .. }) = self.accounts.get_mut(account) else { continue };
            *match event.fate {
                Fate::Delivered => &mut counts.delivered,
                Fate::DeliveredEarlier => &mut counts.delivered_earlier,
                Fate::SetAside => &mut counts.set_aside,
                Fate::Unseen if may_be_deleted => &mut counts.not_provable,
                Fate::Unseen => {
                    counts.missing += 1;
                    let page = self.pages.get(event.page as usize);
                    self.faults
                        .add(AuditFault::Missing, || element(page, Some(event.index.into())));
                    continue;
                }
            } += 1;
        }
        let mut causes: BTreeMap<&'static str, GapTotals> = BTreeMap::new();
        causes.extend(self.lost_told.map(|told| (GapCause::PagesLost.name(), told)));
        for ((key, cause), told) in &self.gaps {
            if self.numbers.contains_key(key) {
                let empty = GapTotals { at_most: Some(0), ..GapTotals::default() };
                causes.entry(cause.name()).or_insert(empty).add(*told);
                if told.records > 1 {
                    self.faults
                        .add(AuditFault::Twice, || format!("the gap of {}", name(Some(key))));
                }
            }
        }
        for ((key, index), times) in &self.letters {
            if self.numbers.contains_key(key) {
                // What was asked for has been taken out.
                if *times > 0 {
                    let fault = if *times > 1 { AuditFault::Twice } else { AuditFault::Unknown };
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

    /// Whether a page outside of the window is certainly of before it.
    fn is_before(&self, (partition, page): PageKey) -> bool {
        self.first.get(&(partition, page.incarnation)).is_some_and(|first| page.ticket < *first)
    }

    /// Whether the record of an event may have been in its topic.
    fn may_be_deleted(&self, endpoint: Endpoint, event: &KnownEvent) -> bool {
        let page = self.pages.get(event.page as usize);
        event.second < second(self.looked_from)
            // Its dead letter may be deleted. A topic that is empty is mostly one that had none for
            // long: it excuses no event.
            || self.letters_lack == Lack::Cut
            || page.is_some_and(|(partition, _)| {
                self.cut.may_lack(endpoint, *partition, event.page)
            })
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
            let event = KnownEvent { page: number, index, second, digest, account, read: 0, fate };
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
        } else if is_before || self.letters_lack != Lack::Nothing {
            counts.not_provable += 1;
        } else {
            counts.missing += 1;
            self.faults.add(AuditFault::Missing, || {
                format!("dead letter of {}", element(Some(&key), index))
            });
        }
    }

    fn expect_gap(&mut self, key: PageKey, app: &AppId, cause: GapCause, is_before: bool) {
        if self.gaps.contains_key(&(key, cause)) || is_before {
            return;
        }
        if self.gaps_lack != Lack::Nothing {
            self.uncovered(Uncovered::Gaps, 1);
        } else {
            let what = || format!("the gap `{cause}` of {} ({app})", name(Some(&key)));
            self.faults.add(AuditFault::Missing, what);
        }
    }

    /// Of two pages of a feed of which one was asked for after the other was answered, the other has to
    /// stand first, unless the pages topic refused it for a while. Their order of asking is that of their
    /// tickets, since a clock may be set. Where they overlap, nothing can be said.
    fn compare_with_newest(&mut self, id: PageId, page: &Page, late: bool) {
        let of_feed = (page.feed.clone(), id.incarnation);
        let this = (id.ticket, page.asked_at);
        let newest = self.newest.entry(of_feed).or_insert(this);
        if !late && id.ticket < newest.0 && page.answered_at.after(CLOCK_STEP) < newest.1 {
            self.faults.add(AuditFault::OutOfOrder, || format!("page {id} of {}", page.feed));
        }
        if id.ticket > newest.0 {
            *newest = this;
        }
    }
}

fn second(time: Timestamp) -> u32 {
    u32::try_from(time.as_millis() / 1_000).unwrap_or(if time.as_millis() < 0 {
        0
    } else {
        u32::MAX
    })
}

/// The name of a page for a person, to be used with `pages show`.
fn name(key: Option<&PageKey>) -> String {
    key.map_or_else(String::new, |(partition, page)| format!("page {page} (partition {partition})"))
}

fn element(key: Option<&PageKey>, index: Option<u64>) -> String {
    match index {
        Some(index) => format!("element {index} of {}", name(key)),
        None => name(key),
    }
}

#[cfg(test)]
mod tests;
