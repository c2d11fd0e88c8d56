//! The order in which the pages of a feed are published: that in which Agora handed them over.
//!
//! Several requests to a feed may be out at the same time, and answers come in any order. Agora
//! hands over when a request *arrives*, and nobody tells us when that was: a request that was sent
//! at `s`, with the head of its answer here at `h`, arrived no earlier than `s` and the way there,
//! and no later than `h` less the way back. With the way there taken from both ends that is the
//! span from `s` to `h − fastest`, where `fastest` is the fastest round trip; as long as the request
//! is out, the span has no end. If the spans of two requests do not meet, the earlier one arrived
//! first. If they do, the two are *ambiguous*. Between requests to two hosts the fastest way is taken
//! for zero: how much nearer one of them is, either way, is not known.
//!
//! Tickets grow in the order of sending, so they never contradict what is certain. Among ambiguous
//! pages the times of their events decide, since a buffer is handed over oldest first; where times
//! do not tell (pages that overlap, no times, times against what is certain), the tickets do.
//!
//! A page is published at once if every other request arrived later for certain. Else it is held
//! until all are settled that may have arrived before it, or before a page that it precedes; but
//! not longer than a request can be out. Pure: no I/O, no clock.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::model::PageId;
use crate::model::Ticket;
use crate::model::Timestamp;

/// A request that has come to its end has to be settled, too.
const MARGIN: Duration = Duration::from_secs(1);

/// The times of the first and the last event of a page.
pub(super) type Times = (Timestamp, Timestamp);

/// Puts the pages of one feed in order. `H` is what is held: it stands for a page.
#[derive(Debug)]
pub(super) struct Order<H> {
    /// Requests that are not settled.
    out: BTreeMap<Ticket, Span>,
    /// Pages that wait, in the order of publishing as far as it is known.
    held: Vec<Waiting<H>>,
    /// A page waits no longer.
    patience: Duration,
}

/// What to do with a page whose answer has arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(super) enum Turn {
    /// It is next, whatever it holds: it may be visible at once.
    Now,
    /// Others may precede it: it has to be held, and [`Order::settled`] tells when its turn is.
    Later,
}

/// How a request ended.
#[derive(Debug)]
pub(super) enum Ended<H> {
    /// Nothing is to be put in order: no page, or one that was visible at once.
    Done,
    /// With a page that is held.
    Held {
        /// What stands for it.
        held: H,
        /// Its times, where they can be read.
        times: Option<Times>,
    },
}

/// When a request may have arrived, in units of sending.
#[derive(Clone, Copy, Debug)]
struct Span {
    sent: Instant,
    host: usize,
    /// `None` while nothing is known.
    latest: Option<Instant>,
    /// When its page began to wait.
    waits_since: Instant,
}

#[derive(Debug)]
struct Waiting<H> {
    ticket: Ticket,
    span: Span,
    times: Option<Times>,
    held: H,
}

// === impl Order ===

impl<H> Order<H> {
    /// Nothing is out. No request may be out for longer than `longest`: whatever a page waits for
    /// has left before the head of its own answer came, so it has come to its end by then.
    pub(super) fn new(longest: Duration) -> Self {
        Self { out: BTreeMap::new(), held: Vec::new(), patience: longest + MARGIN }
    }

    /// A request is about to leave for a host. Tickets have to grow in the order of sending.
    pub(super) fn begin(&mut self, ticket: Ticket, sent: Instant, host: usize) {
        self.out.insert(ticket, Span { sent, host, latest: None, waits_since: sent });
    }

    /// The answer to a request is there, and nobody has looked into it. `fastest` is the fastest
    /// round trip to its host that is known: not longer than that of any request to it that is out.
    pub(super) fn arrived(&mut self, ticket: Ticket, head_at: Instant, fastest: Duration) -> Turn {
        let span = *self.out.get(&ticket).expect("a request begins before it is answered");
        let others = self.out.iter().filter(|(other, _)| **other != ticket).map(|(_, it)| it);
        let others = others.chain(self.held.iter().map(|it| &it.span));
        // A request that leaves from now on arrives later, whichever host it asks.
        let alone = others.clone().all(|other| other.host == span.host);
        let fastest = if alone { fastest } else { Duration::ZERO };
        let latest = head_at.checked_sub(fastest).map_or(span.sent, |it| it.max(span.sent));
        let is_next = others.clone().all(|other| latest < other.sent);
        self.out.insert(ticket, Span { latest: Some(latest), waits_since: head_at, ..span });
        if is_next { Turn::Now } else { Turn::Later }
    }

    /// A request has its end, and its page, if there is one, is durable. Gives what is to be
    /// released, in order, and before anything else of this feed becomes visible.
    #[must_use]
    pub(super) fn settled(&mut self, ticket: Ticket, end: Ended<H>) -> Vec<H> {
        let span = self.out.remove(&ticket).expect("a request begins before it is settled");
        if let Ended::Held { held, times } = end {
            self.held.push(Waiting { ticket, span, times, held });
            arrange(&mut self.held);
        }
        let earliest = self.out.values().map(|it| it.sent).min();
        // A page precedes those behind it, so what arrived after one of them arrived after it.
        self.release_up_to(|page| earliest.is_none_or(|earliest| page.span.is_before(earliest)))
    }

    /// When a page will have waited too long.
    pub(super) fn overdue(&self) -> Option<Instant> {
        self.held.iter().map(|it| it.span.waits_since + self.patience).min()
    }

    /// What has waited too long, and what precedes that: to be released, in order, although others
    /// may still come that belong before it.
    #[must_use]
    pub(super) fn give_up(&mut self, now: Instant) -> Vec<H> {
        let patience = self.patience;
        self.release_up_to(|page| page.span.waits_since + patience <= now)
    }

    /// Releases the last page that is `ready`, and all before it.
    fn release_up_to(&mut self, ready: impl Fn(&Waiting<H>) -> bool) -> Vec<H> {
        let pages = self.held.iter().rposition(ready).map_or(0, |last| last + 1);
        self.held.drain(..pages).map(|it| it.held).collect()
    }
}

/// Puts pages of a former process in order; they are given in the order of settling. Nothing is
/// known of their arrivals, so all of an incarnation are taken as ambiguous.
pub(super) fn recovered<H>(mut pages: Vec<(PageId, Option<Times>, H)>) -> Vec<H> {
    for pages in pages.chunk_by_mut(|(a, ..), (b, ..)| a.incarnation == b.incarnation) {
        pages.sort_by_key(|(id, times, _)| (*times, id.ticket));
        if !in_line(pages.iter().map(|(_, times, _)| *times)) {
            pages.sort_by_key(|(id, ..)| id.ticket);
        }
    }
    pages.into_iter().map(|(.., held)| held).collect()
}

/// Brings pages into the order of publishing: what is certain first of all.
fn arrange<H>(pages: &mut [Waiting<H>]) {
    pages.sort_by_key(|it| (it.span.sent, it.ticket));
    let mut latest = None;
    let groups = pages.chunk_by_mut(|page, next| {
        // The span of a page may meet that of one far behind it.
        latest = latest.max(page.span.latest);
        next.span.sent <= latest.expect("a page that is held was answered")
    });
    groups.for_each(arrange_group);
}

/// Brings pages into order of which each is ambiguous with another.
fn arrange_group<H>(pages: &mut [Waiting<H>]) {
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

/// Whether all have times, and none begins before the one before it ends.
fn in_line(pages: impl Iterator<Item = Option<Times>>) -> bool {
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

impl Span {
    /// Whether the request arrived before one that was sent at `sent`, for certain.
    fn is_before(&self, sent: Instant) -> bool {
        self.latest.is_some_and(|latest| latest < sent)
    }
}

#[cfg(test)]
mod tests;
