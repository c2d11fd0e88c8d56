//! The order in which the pages of a feed are published: the order in which Agora handed them over.
//!
//! Several requests to a feed may be in flight at once, and their answers come in any order. Agora
//! hands a page over when a request *arrives*, and the answer does not say when that was. A request
//! sent at `s` whose answer's head was received at `h` arrived no earlier than `s` plus the time to
//! the server, and no later than `h` minus the time back. Subtracting the time to the server from
//! both ends gives a span from `s` to `h − fastest`, where `fastest` is the fastest round trip;
//! while the request is in flight, the span is open-ended. If the spans of two requests don't meet,
//! the earlier one arrived first. If they do, the two are *ambiguous*. Between requests to two
//! different hosts, `fastest` is taken as zero, because the difference in distance between the
//! hosts is unknown.
//!
//! Tickets grow in sending order, so they never contradict an order that is certain. Ambiguous
//! pages are ordered by the times of their events, since Agora hands a buffer over oldest first;
//! where the times don't decide (pages that overlap, no times, times that contradict a certain
//! order), the tickets do.
//!
//! A page is published at once if all other requests certainly arrived later. Otherwise it is held
//! until every request is settled that may have arrived before it, or before a page that it
//! precedes, but no longer than a request can be in flight. Pure: no I/O, no clock.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::model::{PageId, SETTLE_MARGIN, Ticket, Timestamp};

/// The times of the first and the last event of a page.
pub(super) type PageTimes = (Timestamp, Timestamp);

/// Orders the pages of one feed. `H` is the handle of a held page.
#[derive(Debug)]
pub(super) struct Order<H> {
    /// Requests that are not settled.
    out: BTreeMap<Ticket, ArrivalSpan>,
    /// Held pages, in publishing order as far as it is known.
    held: Vec<WaitingPage<H>>,
    /// Maximum time that a page is held.
    patience: Duration,
}

/// What to do with a page whose answer has arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(super) enum Turn {
    /// It is next in any case: it may become visible at once.
    Now,
    /// Others may precede it: hold it until [`Order::settled`] returns it.
    Later,
}

/// How a request ended.
#[derive(Debug)]
pub(super) enum Ended<H> {
    /// Nothing to put in order: no page, or one that became visible at once.
    Done,
    /// With a held page.
    Held {
        /// The handle of the page.
        held: H,
        /// The times of its first and last event, where they can be read.
        times: Option<PageTimes>,
    },
}

/// When a request may have arrived, shifted to the time of sending (see the module's
/// documentation).
#[derive(Clone, Copy, Debug)]
struct ArrivalSpan {
    sent: Instant,
    host: usize,
    /// `None` until the head of the answer has arrived.
    latest: Option<Instant>,
    /// When its page began to wait.
    waits_since: Instant,
}

#[derive(Debug)]
struct WaitingPage<H> {
    ticket: Ticket,
    span: ArrivalSpan,
    times: Option<PageTimes>,
    held: H,
}

// === impl Order ===

impl<H> Order<H> {
    /// Starts with nothing in flight. No request may be in flight for longer than `longest`:
    /// everything that a page waits for left before the head of its own answer came, so it has
    /// ended by then.
    pub(super) fn new(longest: Duration) -> Self {
        Self { out: BTreeMap::new(), held: Vec::new(), patience: longest + SETTLE_MARGIN }
    }

    /// A request is about to leave for a host. Tickets must grow in sending order.
    pub(super) fn begin(&mut self, ticket: Ticket, sent: Instant, host: usize) {
        self.out.insert(ticket, ArrivalSpan { sent, host, latest: None, waits_since: sent });
    }

    /// The answer to a request has arrived and nothing has looked into it yet. `fastest` is the
    /// fastest known round trip to its host, no longer than that of any request to it in flight.
    pub(super) fn arrived(&mut self, ticket: Ticket, head_at: Instant, fastest: Duration) -> Turn {
        let span = *self.out.get(&ticket).expect("a request begins before it is answered");
        let others = self.out.iter().filter(|(other, _)| **other != ticket).map(|(_, it)| it);
        let others = others.chain(self.held.iter().map(|it| &it.span));
        // A request that leaves from now on arrives later, at any host.
        let alone = others.clone().all(|other| other.host == span.host);
        let fastest = if alone { fastest } else { Duration::ZERO };
        let latest = head_at.checked_sub(fastest).map_or(span.sent, |it| it.max(span.sent));
        let is_next = others.clone().all(|other| latest < other.sent);
        self.out.insert(ticket, ArrivalSpan { latest: Some(latest), waits_since: head_at, ..span });
        if is_next { Turn::Now } else { Turn::Later }
    }

    /// A request has ended, and its page, if there is one, is durable. Returns the pages to
    /// release, in order, before anything else of this feed becomes visible.
    #[must_use]
    pub(super) fn settled(&mut self, ticket: Ticket, end: Ended<H>) -> Vec<H> {
        let span = self.out.remove(&ticket).expect("a request begins before it is settled");
        if let Ended::Held { held, times } = end {
            self.held.push(WaitingPage { ticket, span, times, held });
            arrange(&mut self.held);
        }
        let earliest = self.out.values().map(|it| it.sent).min();
        // A page precedes those behind it, so a request that arrived after one of them arrived
        // after it.
        self.release_up_to(|page| earliest.is_none_or(|earliest| page.span.is_before(earliest)))
    }

    /// When the first page will have waited too long.
    pub(super) fn overdue(&self) -> Option<Instant> {
        self.held.iter().map(|it| it.span.waits_since + self.patience).min()
    }

    /// Pages that have waited too long and those that precede them: to be released, in order,
    /// although pages that belong before them may still come.
    #[must_use]
    pub(super) fn give_up(&mut self, now: Instant) -> Vec<H> {
        let patience = self.patience;
        self.release_up_to(|page| page.span.waits_since + patience <= now)
    }

    /// Releases the last page that is `ready` and all pages before it.
    fn release_up_to(&mut self, ready: impl Fn(&WaitingPage<H>) -> bool) -> Vec<H> {
        let pages = self.held.iter().rposition(ready).map_or(0, |last| last + 1);
        self.held.drain(..pages).map(|it| it.held).collect()
    }
}

/// Orders pages of a previous process, which are given in settling order. Their arrival times are
/// unknown, so all pages of an incarnation are ambiguous.
pub(super) fn recovered<H>(mut pages: Vec<(PageId, Option<PageTimes>, H)>) -> Vec<H> {
    for pages in pages.chunk_by_mut(|(a, ..), (b, ..)| a.incarnation == b.incarnation) {
        pages.sort_by_key(|(id, times, _)| (*times, id.ticket));
        if !in_line(pages.iter().map(|(_, times, _)| *times)) {
            pages.sort_by_key(|(id, ..)| id.ticket);
        }
    }
    pages.into_iter().map(|(.., held)| held).collect()
}

/// Sorts pages into publishing order: first by certain arrival order.
fn arrange<H>(pages: &mut [WaitingPage<H>]) {
    pages.sort_by_key(|it| (it.span.sent, it.ticket));
    let mut latest = None;
    let groups = pages.chunk_by_mut(|page, next| {
        // The span of a page may overlap that of a page far behind it.
        latest = latest.max(page.span.latest);
        next.span.sent <= latest.expect("a page that is held was answered")
    });
    groups.for_each(arrange_group);
}

/// Sorts a group of pages that are linked by ambiguity: each is ambiguous with at least one other.
fn arrange_group<H>(pages: &mut [WaitingPage<H>]) {
    pages.sort_by_key(|it| (it.times, it.ticket));
    let mut latest_sent = None;
    let certain = pages.iter().all(|page| {
        latest_sent = latest_sent.max(Some(page.span.sent));
        !latest_sent.is_some_and(|sent| page.span.is_before(sent))
    });
    if !certain || !in_line(pages.iter().map(|it| it.times)) {
        pages.sort_by_key(|it| it.ticket);
    }
}

/// Whether all pages have times and none begins before the previous one ends.
fn in_line(pages: impl Iterator<Item = Option<PageTimes>>) -> bool {
    let mut end = None;
    let mut pages = pages;
    pages.all(|times| {
        let Some((first, last)) = times else { return false };
        let behind = end.is_none_or(|end| end <= first);
        end = Some(last);
        behind && first <= last
    })
}

// === impl Span ===

impl ArrivalSpan {
    /// Whether the request certainly arrived before one that was sent at `sent`.
    fn is_before(&self, sent: Instant) -> bool {
        self.latest.is_some_and(|latest| latest < sent)
    }
}

#[cfg(test)]
mod tests;
