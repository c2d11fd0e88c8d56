//! What really happened to each event, to judge a consumer by.
//!
//! An event counts once, no matter how many regions hold a copy of it. It is *delivered* when some
//! region handed it over and sent all of its bytes; *buffered* while none did and a copy still
//! waits; *torn* when no copy is left and some copy was handed over in an answer that broke off
//! before the end of the event; *overwritten* when newer events pushed out every copy. For each
//! endpoint made = delivered + buffered + torn + overwritten, always.
//!
//! "Sent" means that the simulator wrote the bytes. The ledger can't know whether the client was
//! still there to read them; the times in [`AnswerRecord`] help to judge that.

use std::time::Duration;

use serde::Serialize;

use super::buffer::Copied;
use super::event::{Event, Style};
use super::names;
use super::script::{FaultKind, Script};
use crate::model::{AppId, Endpoint};

/// All events and all requests, with what happened to them.
#[derive(Debug)]
pub struct Ledger {
    keeps_records: bool,
    accounts: Vec<AppLedger>,
    lines: Vec<EndpointLedger>,
    /// Free lines, whose events are finished; used where records are not kept.
    free: Vec<u32>,
    answers: Vec<AnswerRecord>,
    answered: u64,
    connections: u64,
}

/// An event and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// Events are numbered in the order in which they happen.
    pub seq: u64,
    /// Its App ID.
    pub app: AppId,
    /// Its endpoint.
    pub endpoint: Endpoint,
    /// Agora's `type`: `Login`, `Logout`, `Join` or `Leave`.
    pub kind: &'static str,
    /// The user.
    pub user: String,
    /// The channel, for channel events.
    pub channel: Option<String>,
    /// The time, in milliseconds since 1970. A multiple of 1,000 where the dialect writes seconds.
    pub ms: i64,
    /// What became of it.
    pub fate: Fate,
    /// The bytes of an element that is not an event, exactly as sent. The other fields then have no
    /// meaning.
    pub malformed: Option<Vec<u8>>,
}

/// What became of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It waits in a region, or is on its way to one.
    Buffered,
    /// All of it was sent.
    Delivered {
        /// The number of the first answer that contained it.
        answer: u64,
    },
    /// It was handed over in an answer that broke off before the event's last byte.
    Torn {
        /// The number of the last such answer.
        answer: u64,
    },
    /// Newer events replaced it.
    Overwritten,
}

/// An answer, or what was sent instead of one. Its number is its index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnswerRecord {
    /// When the request arrived.
    pub at: Duration,
    /// When the last byte to be sent was passed to the network, if it was.
    pub sent_at: Option<Duration>,
    /// The region that was asked.
    pub region: usize,
    /// The App ID, by its index in the script, and the endpoint, where the path named known ones.
    pub feed: Option<(usize, Endpoint)>,
    /// The status, even if the client never received it.
    pub status: u16,
    /// The fault that hit it.
    pub fault: Option<FaultKind>,
    /// How many elements were taken from the buffer.
    pub taken: u64,
    /// How many of them were sent in full, and so are delivered.
    pub complete: u64,
}

/// Events of one endpoint or several, by what became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// All events that happened.
    pub made: u64,
    /// Sent in full, each counted once.
    pub delivered: u64,
    /// Replaced by newer ones.
    pub overwritten: u64,
    /// Handed over in an answer that broke off.
    pub torn: u64,
    /// Still waiting.
    pub buffered: u64,
    /// How many of the events made are malformed elements instead of events.
    pub malformed: u64,
    /// How often an event already delivered was sent in full again, by another region.
    pub repeats: u64,
}

/// The requests for one App ID or several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Requests {
    /// All requests that named the App ID, regardless of the answer.
    pub asked: u64,
    /// Requests that were answered 429 because the limit was reached.
    pub over_limit: u64,
    /// The highest number of authorised requests that arrived in any one second.
    pub most_in_a_second: u64,
}

/// Summary of the ledger, as returned by `GET /simulator/ledger`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// In script order.
    pub apps: Vec<AppSummary>,
}

/// One App ID's part of a [`Summary`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AppSummary {
    /// The App ID.
    pub app_id: String,
    /// Its requests.
    pub requests: Requests,
    /// Its user events.
    pub user_events: Totals,
    /// Its channel events.
    pub channel_events: Totals,
}

#[derive(Debug)]
struct AppLedger {
    app: AppId,
    style: Style,
    requests: Requests,
    user_events: Totals,
    channel_events: Totals,
}

#[derive(Clone, Copy, Debug)]
struct EndpointLedger {
    event: Event,
    /// Copies waiting in a region or on their way to one.
    copies: u8,
    sent: Sent,
    answer: u64,
}

/// The best result of any answer for an event so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    No,
    InPart,
    Whole,
}

// === impl Ledger ===

impl Ledger {
    pub(super) fn new(script: &Script) -> Self {
        let accounts = script.apps.iter().map(|app| AppLedger {
            app: app.app_id.clone(),
            style: Style::of(app),
            requests: Requests::default(),
            user_events: Totals::default(),
            channel_events: Totals::default(),
        });
        Self {
            keeps_records: script.keep_records,
            accounts: accounts.collect(),
            lines: Vec::new(),
            free: Vec::new(),
            answers: Vec::new(),
            answered: 0,
            connections: 0,
        }
    }

    /// All events in the order in which they happened; without `keep_records` only those that still
    /// wait, in no particular order.
    pub fn events(&self) -> impl Iterator<Item = Recorded> + '_ {
        self.events_from(0)
    }

    /// The same without the first `skipped` events, to judge incrementally.
    pub fn events_from(&self, skipped: usize) -> impl Iterator<Item = Recorded> + '_ {
        let is_in_use = |line: &&EndpointLedger| self.keeps_records || line.copies > 0;
        let lines = self.lines.iter().skip(skipped).filter(is_in_use);
        lines.map(|line| self.recorded(line))
    }

    /// All answers, by number; none without `keep_records`.
    pub fn answers(&self) -> &[AnswerRecord] {
        &self.answers
    }

    /// Events of one endpoint of an App ID, given by its index in the script.
    pub fn totals(&self, app: usize, endpoint: Endpoint) -> Totals {
        self.accounts.get(app).map_or_else(Totals::default, |it| *it.totals(endpoint))
    }

    /// All events.
    pub fn total(&self) -> Totals {
        self.accounts
            .iter()
            .fold(Totals::default(), |sum, it| sum.plus(&it.user_events).plus(&it.channel_events))
    }

    /// The requests for an App ID, given by its index in the script.
    pub fn requests(&self, app: usize) -> Requests {
        self.accounts.get(app).map_or_else(Requests::default, |it| it.requests)
    }

    /// All requests. `most_in_a_second` is that of the busiest App ID.
    pub fn all_requests(&self) -> Requests {
        self.accounts.iter().fold(Requests::default(), |sum, it| Requests {
            asked: sum.asked + it.requests.asked,
            over_limit: sum.over_limit + it.requests.over_limit,
            most_in_a_second: sum.most_in_a_second.max(it.requests.most_in_a_second),
        })
    }

    /// Connections that were accepted.
    pub fn connections(&self) -> u64 {
        self.connections
    }

    /// The summary of the ledger.
    pub fn summary(&self) -> Summary {
        let apps = self.accounts.iter().map(|it| AppSummary {
            app_id: it.app.as_str().to_owned(),
            requests: it.requests,
            user_events: it.user_events,
            channel_events: it.channel_events,
        });
        Summary { apps: apps.collect() }
    }

    /// Records a new event, which has `copies` copies.
    pub(super) fn made(&mut self, event: Event, copies: u8) -> Copied {
        let line = EndpointLedger { event, copies, sent: Sent::No, answer: 0 };
        if let Some(totals) = self.totals_mut(&event) {
            totals.made += 1;
            totals.buffered += 1;
            totals.malformed += u64::from(event.malformed.is_some());
        }
        let free =
            self.free.pop().and_then(|index| Some((index, self.lines.get_mut(index as usize)?)));
        let index = match free {
            Some((index, unused)) => {
                *unused = line;
                index
            }
            None => {
                let index = u32::try_from(self.lines.len()).expect("four billion events are kept");
                self.lines.push(line);
                index
            }
        };
        Copied { seq: event.seq, line: index }
    }

    /// The event as recorded.
    pub(super) fn event(&self, copied: Copied) -> Option<&Event> {
        self.lines.get(copied.line as usize).map(|line| &line.event)
    }

    /// A copy was removed to make room for a newer event.
    pub(super) fn overwritten(&mut self, copied: Copied) {
        self.lose_copy(copied, Sent::No, 0);
    }

    /// A copy was handed over in the answer with this number.
    pub(super) fn handed_over(&mut self, copied: Copied, answer: u64, is_whole: bool) {
        self.lose_copy(copied, if is_whole { Sent::Whole } else { Sent::InPart }, answer);
    }

    fn lose_copy(&mut self, copied: Copied, sent: Sent, answer: u64) {
        let Some(line) = self.lines.get_mut(copied.line as usize) else { return };
        assert!(line.copies > 0, "event {} was removed more often than it was copied", copied.seq);
        let before = line.fate();
        let is_repeat = line.sent == Sent::Whole && sent == Sent::Whole;
        line.copies -= 1;
        if line.sent != Sent::Whole && sent != Sent::No {
            (line.sent, line.answer) = (sent, answer);
        }
        let (event, after, is_over) = (line.event, line.fate(), line.copies == 0);
        if let Some(totals) = self.totals_mut(&event) {
            *totals.of(before) -= 1;
            *totals.of(after) += 1;
            totals.repeats += u64::from(is_repeat);
        }
        if is_over && !self.keeps_records {
            self.free.push(copied.line);
        }
    }

    /// The number of the next answer.
    pub(super) fn next_answer(&self) -> u64 {
        self.answered
    }

    /// Records an answer, and counts the request for its App ID.
    pub(super) fn answered(&mut self, record: AnswerRecord) {
        self.answered += 1;
        if self.keeps_records {
            self.answers.push(record);
        }
    }

    pub(super) fn connected(&mut self) {
        self.connections += 1;
    }

    pub(super) fn sent(&mut self, answer: u64, now: Duration) {
        let index = usize::try_from(answer).unwrap_or(usize::MAX);
        if let Some(record) = self.answers.get_mut(index) {
            record.sent_at = Some(now);
        }
    }

    pub(super) fn requests_mut(&mut self, app: usize) -> Option<&mut Requests> {
        self.accounts.get_mut(app).map(|it| &mut it.requests)
    }

    pub(super) fn style(&self, app: usize) -> Option<&Style> {
        self.accounts.get(app).map(|it| &it.style)
    }

    fn totals_mut(&mut self, event: &Event) -> Option<&mut Totals> {
        let account = self.accounts.get_mut(usize::from(event.app))?;
        Some(match event.endpoint {
            Endpoint::User => &mut account.user_events,
            Endpoint::Channel => &mut account.channel_events,
        })
    }

    fn recorded(&self, line: &EndpointLedger) -> Recorded {
        let Event { seq, ms, user, channel, endpoint, .. } = line.event;
        let account = self.accounts.get(usize::from(line.event.app)).expect("one for each app");
        let wild = account.style.wild_names;
        let malformed = line.event.malformed.map(|_| {
            let mut bytes = Vec::new();
            account.style.write(&line.event, &mut bytes);
            bytes
        });
        Recorded {
            seq,
            app: account.app.clone(),
            endpoint,
            kind: line.event.kind(),
            user: names::user(user, wild),
            channel: (endpoint == Endpoint::Channel).then(|| names::channel(channel, wild)),
            ms,
            fate: line.fate(),
            malformed,
        }
    }
}

// === impl Totals ===

impl Totals {
    /// The sum of both.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        Self {
            made: self.made + other.made,
            delivered: self.delivered + other.delivered,
            overwritten: self.overwritten + other.overwritten,
            torn: self.torn + other.torn,
            buffered: self.buffered + other.buffered,
            malformed: self.malformed + other.malformed,
            repeats: self.repeats + other.repeats,
        }
    }

    /// Whether the counts by outcome add up to the number of events made.
    pub fn balance(&self) -> bool {
        self.made == self.delivered + self.overwritten + self.torn + self.buffered
    }

    fn of(&mut self, fate: Fate) -> &mut u64 {
        match fate {
            Fate::Buffered => &mut self.buffered,
            Fate::Delivered { .. } => &mut self.delivered,
            Fate::Torn { .. } => &mut self.torn,
            Fate::Overwritten => &mut self.overwritten,
        }
    }
}

// === impl Account ===

impl AppLedger {
    fn totals(&self, endpoint: Endpoint) -> &Totals {
        match endpoint {
            Endpoint::User => &self.user_events,
            Endpoint::Channel => &self.channel_events,
        }
    }
}

// === impl Line ===

impl EndpointLedger {
    fn fate(&self) -> Fate {
        let answer = self.answer;
        match (self.sent, self.copies) {
            (Sent::Whole, _) => Fate::Delivered { answer },
            (Sent::No | Sent::InPart, 1..) => Fate::Buffered,
            (Sent::InPart, 0) => Fate::Torn { answer },
            (Sent::No, 0) => Fate::Overwritten,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVENT: Event = Event {
        seq: 0,
        ms: 1,
        user: 0,
        channel: 0,
        app: 0,
        endpoint: Endpoint::User,
        entering: true,
        malformed: None,
    };

    /// What happens to the copies of one event, and the expected outcome.
    fn check(copies: u8, ends: &[Option<bool>], expected: Fate) {
        for keep_records in [true, false] {
            let mut ledger = Ledger::new(&Script { keep_records, ..Script::default() });
            let copied = ledger.made(EVENT, copies);
            for (answer, end) in (0..).zip(ends) {
                match end {
                    Some(is_whole) => ledger.handed_over(copied, answer, *is_whole),
                    None => ledger.overwritten(copied),
                }
            }
            let mut totals = ledger.total();
            assert!(totals.balance(), "{totals:?}");
            assert_eq!(*totals.of(expected), 1, "{ends:?}");
            if keep_records {
                assert_eq!(ledger.events().next().unwrap().fate, expected, "{ends:?}");
            }
        }
    }

    #[test]
    fn an_event_has_the_best_fate_of_its_copies() {
        const WHOLE: Option<bool> = Some(true);
        const IN_PART: Option<bool> = Some(false);
        check(1, &[], Fate::Buffered);
        check(1, &[WHOLE], Fate::Delivered { answer: 0 });
        check(1, &[IN_PART], Fate::Torn { answer: 0 });
        check(1, &[None], Fate::Overwritten);
        check(2, &[None], Fate::Buffered);
        check(2, &[IN_PART], Fate::Buffered);
        check(2, &[None, IN_PART], Fate::Torn { answer: 1 });
        check(2, &[IN_PART, None], Fate::Torn { answer: 0 });
        check(2, &[IN_PART, WHOLE], Fate::Delivered { answer: 1 });
        check(2, &[WHOLE, IN_PART], Fate::Delivered { answer: 0 });
        check(2, &[WHOLE, WHOLE], Fate::Delivered { answer: 0 });
        check(3, &[None, WHOLE], Fate::Delivered { answer: 1 });
    }

    #[test]
    fn what_another_region_sends_again_is_a_repeat() {
        let mut ledger = Ledger::new(&Script::default());
        let copied = ledger.made(EVENT, 2);
        ledger.handed_over(copied, 0, true);
        assert_eq!(ledger.total().repeats, 0);
        ledger.handed_over(copied, 1, true);
        assert_eq!(ledger.total().repeats, 1);
        assert_eq!(ledger.total().delivered, 1);
    }

    #[test]
    fn without_records_memory_is_used_again() {
        let mut ledger = Ledger::new(&Script { keep_records: false, ..Script::default() });
        for seq in 0..1_000 {
            let copied = ledger.made(Event { seq, ..EVENT }, 1);
            ledger.handed_over(copied, seq, true);
        }
        assert_eq!(ledger.lines.len(), 1);
        assert_eq!(ledger.events().count(), 0);
        assert_eq!(ledger.total().delivered, 1_000);
    }

    #[test]
    fn an_event_is_small_to_remember() {
        assert!(size_of::<EndpointLedger>() <= 48, "{}", size_of::<EndpointLedger>());
    }
}
