//! From a page record to the records of a transaction. No I/O: what it needs to know it is told,
//! what it finds out goes into a [`Draft`].

use std::collections::BTreeMap;

use super::ladder::Ladder;
use super::ladder::Times;
use super::loss::Loss;
use super::pairs::Pairs;
use super::pairs::Told;
use super::switches::Held;
use crate::agora::Contents;
use crate::agora::Ending;
use crate::agora::event;
use crate::dedupe::Fingerprint;
use crate::dedupe::Window;
use crate::kafka::Batch;
use crate::kafka::Limits;
use crate::kafka::Memory;
use crate::kafka::PageRecord;
use crate::kafka::Topic;
use crate::kafka::Unread;
use crate::kafka::pages;
use crate::kafka::pages::BadPageRecord;
use crate::kafka::record;
use crate::kafka::record::BrokerTime;
use crate::kafka::record::Room;
use crate::kafka::record::Source;
use crate::model::AppId;
use crate::model::CLOCK_MARGIN;
use crate::model::Content;
use crate::model::Endpoint;
use crate::model::Gap;
use crate::model::GapCause;
use crate::model::Incarnation;
use crate::model::PAGE_LIMIT;
use crate::model::Page;
use crate::model::PageId;
use crate::model::Timestamp;
use crate::model::Wholeness;

/// A transaction in the making: its records, and what to count when it is delivered.
#[derive(Debug, Default)]
pub(super) struct Draft {
    pub(super) batch: Batch,
    pub(super) counts: BTreeMap<(AppId, Endpoint), Counts>,
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
    /// What users' logins and logouts tell of a second consumer.
    pub(super) told: Vec<(AppId, Told)>,
    /// What each page held.
    pub(super) held: Vec<Held>,
}

/// What became of the elements of one app's endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
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

/// Why a record can't be taken in.
#[derive(Debug)]
pub(super) enum Stuck {
    Page(BadPageRecord),
    /// The memory is of no more use.
    Memory(Unread),
}

/// Takes one record of the pages topic in.
pub(super) fn take_in(
    draft: &mut Draft,
    memory: &mut Memory,
    pairs: &mut Pairs,
    context: &Context<'_>,
    (offset, record): &(i64, PageRecord),
) -> Result<(), Stuck> {
    let broker = (context.broker_time)(record.appended);
    draft.batch.stamp_rest(context.rest(Topic::Gaps, broker));
    let forwarded = match pages::decode(record) {
        Ok(forwarded) => forwarded,
        Err(newer @ BadPageRecord::Newer(_)) => return Err(Stuck::Page(newer)),
        // Not ours, or damaged: it must not stand in the way of those behind it.
        Err(bad) => {
            let place = (context.partition, *offset);
            record::write_bad_page(&mut draft.batch, place, record, &bad, context.room(*offset));
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
            let window =
                memory.window(&page.feed.app, page.feed.endpoint).map_err(Stuck::Memory)?;
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

/// What was taken from a page so far.
#[derive(Default)]
struct Taken {
    counts: Counts,
    /// Its events that are new.
    new: Vec<Fingerprint>,
    newest: Option<Timestamp>,
    oldest_repeat: Option<Timestamp>,
}

// === impl Draft ===

impl Draft {
    fn gap(&mut self, id: PageId, gap: Gap, pairs: &mut Pairs) {
        pairs.forget_users(&gap.feed.app);
        record::write_gap(&mut self.batch, id, &gap);
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
        let mut taken = Taken { new: Vec::with_capacity(split.elements.len()), ..Taken::default() };
        taken.counts.received = split.elements.len() as u64;
        for (index, element) in split.elements.iter().enumerate() {
            self.take_element(&source, index, element, &mut taken);
        }
        self.draft.held.extend(taken.held(page));
        let mut counts = taken.counts;
        if let Some((reason, raw)) = split.leftover(page.wholeness) {
            counts.received += 1;
            counts.dead_letters += 1;
            self.dead_letter(&source, None, &reason, raw);
        }
        if let Some(gap) = torn(page, split.elements.len() as u64, &split.ending) {
            self.draft.gap(self.id, gap, self.pairs);
        }
        self.count(counts);
    }

    /// Writes the whole page as a dead letter, in the place of its events. What was cut off is
    /// missing all the same.
    fn set_aside(mut self, reason: &str) {
        let feed = &self.page.feed;
        let source = Source::new(&feed.app, feed.endpoint, self.id);
        let contents = Contents::of(self.page);
        let split = contents.split();
        let leftover = split.leftover(self.page.wholeness).is_some();
        let elements = split.elements.len() as u64 + u64::from(leftover);
        let reason = format!("Kafka refuses the events of this page: {reason}");
        self.dead_letter(&source, None, &reason, &self.page.body);
        self.pairs.forget_users(&feed.app);
        if let Some(gap) = torn(self.page, split.elements.len() as u64, &split.ending) {
            self.draft.gap(self.id, gap, self.pairs);
        }
        self.draft.set_aside.push(self.id);
        self.count(Counts { received: elements, set_aside: elements, ..Counts::default() });
    }

    fn count(&mut self, mut counts: Counts) {
        if self.id.incarnation == self.context.incarnation {
            counts.own = std::mem::take(&mut counts.received);
        }
        let feed = &self.page.feed;
        let total = self.draft.counts.entry((feed.app.clone(), feed.endpoint)).or_default();
        total.add(counts);
    }

    fn take_element(&mut self, source: &Source, index: usize, element: &[u8], taken: &mut Taken) {
        let feed = &self.page.feed;
        let counts = &mut taken.counts;
        let event = match event::read(feed.endpoint, element) {
            Ok(event) => event,
            Err(reason) => {
                counts.dead_letters += 1;
                self.dead_letter(source, Some(index), &reason.to_string(), element);
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
        record::write_event(batch, source, &event, id, timestamp);
        if batch.last().is_some_and(|record| record.size() > limits.largest_record) {
            batch.remove_last();
            *has_too_large = true;
            counts.set_aside += 1;
            let reason = "an event larger than its topic's max.message.bytes";
            self.dead_letter(source, Some(index), reason, element);
        } else {
            counts.delivered += 1;
        }
    }

    fn dead_letter(&mut self, source: &Source, index: Option<usize>, reason: &str, raw: &[u8]) {
        record::write_dead_letter(&mut self.draft.batch, source, index, reason, raw, self.room);
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
            Times::Events => Some((self.limits)(topic).stamping.rest(broker)),
            Times::Broker => broker.appended,
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

impl Taken {
    /// Nothing where the page held no event.
    fn held(&self, page: &Page) -> Option<Held> {
        Some(Held {
            feed: page.feed.clone(),
            answered_at: page.answered_at,
            newest: self.newest?,
            repeats: self.counts.repeats,
            oldest_repeat: self.oldest_repeat,
        })
    }
}

// === impl Counts ===

impl Counts {
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

/// The gap of a body that ends too early, behind so many complete elements.
pub(crate) fn torn(page: &Page, complete: u64, ending: &Ending<'_>) -> Option<Gap> {
    let at_least = match ending {
        Ending::TornInEvents(raw) => u64::from(!raw.is_empty()),
        // The array of events was closed; what broke off stood behind it.
        Ending::Torn if complete > 0 => return None,
        Ending::Torn => 0,
        // A blank body that looks whole: its framing can't tell that it was cut.
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
mod tests {
    use std::time::Duration;

    use bytes::Bytes;

    use super::*;
    use crate::kafka::Recall;
    use crate::kafka::Stamping;
    use crate::kafka::Unfit;
    use crate::model::Entry;
    use crate::model::Feed;
    use crate::model::Region;
    use crate::model::Ticket;

    const LOGIN: &str = r#"{"user_id":"u","type":"Login","ms":1578027420761}"#;
    const LOGOUT: &str = r#"{"user_id":"u","type":"Logout","ms":1578027420762}"#;

    fn limits(_: Topic) -> Limits {
        let stamping = Stamping { oldest: Duration::from_secs(3_600), ahead: Stamping::AHEAD };
        Limits { stamping, largest_record: 2_000 }
    }

    fn page(ticket: u64, wholeness: Wholeness, body: &str) -> PageRecord {
        let feed =
            Feed { app: AppId::new("a"), region: Region::new("default"), endpoint: Endpoint::User };
        let page = Page {
            feed,
            since: Some(Timestamp::from_millis(1)),
            asked_at: Timestamp::from_millis(2),
            answered_at: Timestamp::from_millis(3),
            status: 200,
            wholeness,
            request_id: None,
            resource_id: None,
            content_encoding: None,
            body: Bytes::copy_from_slice(body.as_bytes()),
        };
        let id = PageId { incarnation: Incarnation::from_u128(1), ticket: Ticket(ticket) };
        pages::encode(&Entry { id, content: Content::Page(page) }, Ticket(ticket - 1))
    }

    fn broker_time(appended: Option<Timestamp>) -> BrokerTime {
        BrokerTime { appended, now: appended.unwrap_or_default() }
    }

    fn context(ladder: &Ladder) -> Context<'_> {
        Context {
            limits: &limits,
            broker_time: &broker_time,
            partition: 0,
            incarnation: Incarnation::from_u128(0),
            ladder,
        }
    }

    fn read(pages: impl IntoIterator<Item = PageRecord>) -> (Draft, Counts) {
        read_after(&Ladder::default(), pages)
    }

    fn read_after(ladder: &Ladder, pages: impl IntoIterator<Item = PageRecord>) -> (Draft, Counts) {
        let mut draft = Draft::default();
        let mut memory = Recall::default().finish().unwrap();
        let mut pairs = Pairs::new([(AppId::new("a"), 1)].into());
        let context = context(ladder);
        for stored in (0..).zip(pages) {
            take_in(&mut draft, &mut memory, &mut pairs, &context, &stored).unwrap();
        }
        let counts = draft.counts.values().next().copied().unwrap_or_default();
        (draft, counts)
    }

    fn dead_letters(draft: &Draft) -> Vec<String> {
        let records = draft.batch.iter().filter(|record| record.topic() == Topic::DeadLetter);
        records.map(|record| String::from_utf8(record.value().unwrap().to_vec()).unwrap()).collect()
    }

    #[test]
    fn repeats_are_told_apart_by_where_they_stand() {
        let (draft, counts) = read([
            page(1, Wholeness::Whole, &format!(r#"{{"events":[{LOGIN},{LOGIN}]}}"#)),
            page(2, Wholeness::Whole, &format!(r#"{{"events":[{LOGIN},{LOGOUT}]}}"#)),
            page(2, Wholeness::Whole, &format!(r#"{{"events":[{LOGIN},{LOGOUT}]}}"#)),
        ]);
        assert_eq!(
            counts,
            Counts {
                received: 4,
                delivered: 2,
                repeats: 1,
                repeats_in_page: 1,
                ..Counts::default()
            }
        );
        assert_eq!(draft.pages_again, 1);
        assert_eq!(draft.batch.len(), 2);
        let of_pages = draft.held.iter().map(|held| (held.repeats, held.oldest_repeat));
        let login = Timestamp::from_millis(1_578_027_420_761);
        assert_eq!(of_pages.collect::<Vec<_>>(), [(0, None), (1, Some(login))]);
        assert_eq!(draft.held[1].newest, Timestamp::from_millis(1_578_027_420_762));
    }

    #[test]
    fn what_is_no_event_is_a_dead_letter_and_its_neighbours_are_delivered() {
        let body = format!(r#"{{"events":[7,{LOGIN},{{"user_id":1}}]}}"#);
        let (draft, counts) = read([page(1, Wholeness::Whole, &body)]);
        assert_eq!(
            counts,
            Counts { received: 3, delivered: 1, dead_letters: 2, ..Counts::default() }
        );
        assert_eq!(dead_letters(&draft), ["7", r#"{"user_id":1}"#]);
        assert!(draft.gaps.is_empty());
    }

    #[test]
    fn a_cut_body_delivers_what_is_complete_and_the_rest_is_a_gap() {
        let (draft, counts) = read([page(
            1,
            Wholeness::Cut,
            &format!(r#"{{"events":[{LOGIN},{}"#, LOGOUT.strip_suffix('}').unwrap()),
        )]);
        assert_eq!(counts, Counts { received: 1, delivered: 1, ..Counts::default() });
        assert!(dead_letters(&draft).is_empty());
        let [gap] = &draft.gaps[..] else { panic!("one gap") };
        assert_eq!(gap.cause, GapCause::BodyCut);
        assert_eq!((gap.at_least, gap.at_most), (1, Some(999)));
        assert_eq!(gap.from, Some(Timestamp::from_millis(1)));
    }

    #[test]
    fn bodies_without_events_have_their_own_ends() {
        for (wholeness, body, letters, gaps) in [
            (Wholeness::Whole, "<html>sorry</html>", 1, 0),
            (Wholeness::Whole, r#"{"events":{"a":1}}"#, 1, 0),
            (Wholeness::Whole, r#"{"result":"failed"}"#, 0, 0),
            (Wholeness::Whole, "", 0, 1),
            (Wholeness::Whole, " \r\n", 0, 1),
            (Wholeness::Cut, "", 0, 1),
            (Wholeness::Cut, r#"{"resul"#, 0, 1),
            (Wholeness::Whole, r#"{"events":[{"a":1"#, 1, 1),
        ] {
            let (draft, _) = read([page(1, wholeness, body)]);
            assert_eq!(dead_letters(&draft).len(), letters, "{body}");
            assert_eq!(draft.gaps.len(), gaps, "{body}");
        }
    }

    /// What Agora may say in a page that was too large to be looked into before it was durable.
    #[test]
    fn an_object_that_does_not_say_that_it_is_empty_is_a_dead_letter() {
        let note = "x".repeat(600);
        for (body, letters) in [
            (format!(r#"{{"result":"success","data":{{"events":[{LOGIN}]}},"n":"{note}"}}"#), 1),
            (format!(r#"{{"Events":[{LOGIN}],"n":"{note}"}}"#), 1),
            (format!(r#"{{"user_events":[{LOGIN}],"events":[],"n":"{note}"}}"#), 1),
            (format!(r#"{{"data":null,"error":true,"errorCode":500,"message":"{note}"}}"#), 1),
            (format!(r#"{{"n":"{note}"}}"#), 1),
            (format!(r#"{{"result":"success","n":"{note}"}}"#), 0),
            (format!(r#"{{"events":null,"n":"{note}"}}"#), 0),
            (format!(r#"{{"events":[],"n":"{note}"}}"#), 0),
            (format!(r#"{{"events":[{LOGIN}],"more":{{"n":"{note}"}}}}"#), 0),
        ] {
            let (draft, counts) = read([page(1, Wholeness::Whole, &body)]);
            assert_eq!(counts.dead_letters, letters, "{body}");
            let expected: Vec<&String> = (0..letters).map(|_| &body).collect();
            assert_eq!(dead_letters(&draft).iter().collect::<Vec<_>>(), expected);
            assert!(draft.gaps.is_empty(), "{body}");
        }
    }

    #[test]
    fn a_compressed_page_is_read_without_a_header_that_says_so() {
        let body = format!(r#"{{"events":[{LOGIN},{LOGOUT}]}}"#);
        let deflated = miniz_oxide::deflate::compress_to_vec(body.as_bytes(), 6);
        let trailer = [crc32fast::hash(body.as_bytes()), u32::try_from(body.len()).unwrap()]
            .map(u32::to_le_bytes);
        let head: &[u8] = b"\x1f\x8b\x08\0\0\0\0\0\0\xff";
        let gzip = [head, &deflated, trailer.as_flattened()].concat();
        let zlib = miniz_oxide::deflate::compress_to_vec_zlib(body.as_bytes(), 6);
        for packed in [gzip, zlib] {
            let mut record = page(1, Wholeness::Whole, "");
            record.value = Bytes::from(packed);
            let (draft, counts) = read([record]);
            assert_eq!(counts, Counts { received: 2, delivered: 2, ..Counts::default() });
            assert!(draft.gaps.is_empty());
        }
    }

    #[test]
    fn a_record_that_is_not_a_page_is_set_aside_and_one_of_a_newer_version_is_refused() {
        let strange = PageRecord {
            key: b"who".to_vec(),
            value: Bytes::from_static(b"what"),
            ..PageRecord::default()
        };
        let body = format!(r#"{{"events":[{LOGIN}]}}"#);
        let (draft, counts) = read([strange, page(1, Wholeness::Whole, &body)]);
        assert_eq!(dead_letters(&draft), ["what"]);
        assert_eq!((draft.bad_pages, counts.delivered), (1, 1));

        let mut newer = page(1, Wholeness::Whole, &body);
        newer.headers[0].1 = b"3".to_vec();
        let mut memory = Recall::default().finish().unwrap();
        let mut pairs = Pairs::new([(AppId::new("a"), 1)].into());
        let (ladder, stored) = (Ladder::default(), (0, newer));
        let mut draft = Draft::default();
        let refused = take_in(&mut draft, &mut memory, &mut pairs, &context(&ladder), &stored);
        assert!(matches!(refused, Err(Stuck::Page(BadPageRecord::Newer(3)))));
        assert_eq!(memory.position(), None);
    }

    /// The refusals that lead to the first page being set aside.
    fn refused_alone(unfit: Option<Unfit>) -> Ladder {
        let mut ladder = Ladder::default();
        for _ in 0..2 {
            ladder.refused(unfit, "for a reason", 1, true);
        }
        ladder
    }

    #[tokio::test(start_paused = true)]
    async fn a_cut_page_that_is_set_aside_leaves_its_gap_too() {
        let body = format!(r#"{{"events":[{LOGIN},{}"#, LOGOUT.strip_suffix('}').unwrap());
        let (draft, counts) = read_after(&refused_alone(None), [page(1, Wholeness::Cut, &body)]);
        assert_eq!(counts, Counts { received: 1, set_aside: 1, ..Counts::default() });
        assert_eq!(dead_letters(&draft), [body]);
        let [gap] = &draft.gaps[..] else { panic!("what was cut off is missing") };
        assert_eq!((gap.cause, gap.at_least), (GapCause::BodyCut, 1));
        assert_eq!(draft.batch.iter().filter(|it| it.topic() == Topic::Gaps).count(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_dead_letter_that_was_refused_copies_nothing() {
        let unfit = Unfit { topic: Topic::DeadLetter, is_time: false };
        let strange = PageRecord {
            key: vec![b'k'; 600_000],
            value: Bytes::from_static(b"what"),
            ..PageRecord::default()
        };
        let (draft, _) = read_after(&refused_alone(Some(unfit)), [strange]);
        let letter = draft.batch.last().unwrap();
        assert!(letter.size() < 400 && letter.key().is_empty(), "{} bytes", letter.size());
        assert_eq!(dead_letters(&draft), [""]);
    }

    /// An event of years ago and one of now, by the broker's clock.
    #[tokio::test(start_paused = true)]
    async fn what_the_topic_does_not_keep_is_stamped_with_the_brokers_time() {
        let now = Timestamp::from_millis(1_700_000_000_000);
        let fresh = r#"{"user_id":"u","type":"Login","ms":1699999999000}"#;
        let body = format!(r#"{{"events":[{LOGIN},{fresh}]}}"#);
        let record = PageRecord { appended: Some(now), ..page(1, Wholeness::Whole, &body) };
        let time = Unfit { topic: Topic::UserEvents, is_time: true };
        let mut ladder = Ladder::default();
        for stamps in
            [[Some(now), Some(now.before(Duration::from_secs(1)))], [Some(now); 2], [None; 2]]
        {
            let (draft, _) = read_after(&ladder, [record.clone()]);
            let written: Vec<_> = draft.batch.iter().map(|record| record.timestamp()).collect();
            assert_eq!(written, stamps);
            ladder.refused(Some(time), "a time", 1, true);
            if ladder.times() == Times::Events {
                ladder.refused(Some(time), "a time", 1, true);
            }
        }
    }

    #[test]
    fn an_event_that_no_record_can_hold_is_set_aside() {
        let large = "x".repeat(5_000);
        let body = format!(
            r#"{{"events":[{LOGIN},{{"user_id":"u","type":"T","ms":1,"note":"{large}"}}]}}"#
        );
        let (draft, counts) = read([page(1, Wholeness::Whole, &body)]);
        assert_eq!(counts, Counts { received: 2, delivered: 1, set_aside: 1, ..Counts::default() });
        assert!(dead_letters(&draft)[0].len() < 2_000 && draft.has_too_large);
    }
}
