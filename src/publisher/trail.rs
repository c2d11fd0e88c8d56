//! Whether the pages topic is the one that the memory speaks of.
//!
//! Offsets are consecutive, and the memory names the last delivered page. So reading begins with that
//! page if it is known. The first records then show whether the topic continues, whether unpublished
//! pages are gone, or whether this is another topic, recreated or truncated at its end. Another topic is
//! read from its beginning: pages that were delivered before are recognised by their tickets.

use std::ops::Range;

use crate::kafka::PageRecord;
use crate::model::PageId;
use crate::records::pages;

/// Where reading is.
#[derive(Debug, Default)]
pub(super) struct Trail {
    /// The offset that has to come next; `None` where any may.
    next: Option<i64>,
    /// The page before, while it has not been seen again.
    last: Option<PageId>,
    /// Where records waited at the last look.
    waited_at: Option<i64>,
}

/// What a record is to the one who reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// The page that the memory knows to be delivered.
    Known,
    /// The next one.
    Next,
    /// The next remaining one; this many before it are gone.
    Missing(i64),
    /// No record of the topic that the memory speaks of.
    Another,
}

// === impl Trail ===

impl Trail {
    /// The trail that a memory left.
    pub(super) fn new(position: Option<i64>, last: Option<PageId>) -> Self {
        Self { next: position, last, waited_at: None }
    }

    /// Where to begin to read; `None` is the beginning.
    pub(super) fn start(&self) -> Option<i64> {
        let again = i64::from(self.last.is_some());
        self.next.map(|next| next - again)
    }

    /// The offset that has to come next; `None` where any may.
    pub(super) fn next(&self) -> Option<i64> {
        self.next
    }

    /// Whether records of the topic wait at the same place as at the last look: then its reader does not
    /// return them.
    pub(super) fn is_stuck(&mut self, span: &Range<i64>) -> bool {
        let next = self.next.unwrap_or(span.start);
        let waits_at = (next < span.end).then_some(next);
        let before = std::mem::replace(&mut self.waited_at, waits_at);
        waits_at.is_some() && before == waits_at
    }

    /// Looks at what the topic holds, while nothing comes.
    pub(super) fn look(&mut self, span: &Range<i64>) -> Step {
        let next = self.next.unwrap_or(span.start);
        if next > span.end {
            *self = Self::default();
            return Step::Another;
        }
        if next >= span.start {
            return Step::Known;
        }
        *self = Self { next: Some(span.start), ..Self::default() };
        Step::Missing(span.start - next)
    }

    /// Takes a step.
    pub(super) fn follow(&mut self, offset: i64, record: &PageRecord) -> Step {
        let next = self.next.unwrap_or(offset);
        let last = self.last.take();
        if offset == next - 1 && last.is_some() && last == pages::id(record) {
            return Step::Known;
        }
        if offset < next {
            *self = Self::default();
            return Step::Another;
        }
        self.next = Some(offset + 1);
        if offset == next { Step::Next } else { Step::Missing(offset - next) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Incarnation, Ticket};

    fn id(ticket: u64) -> PageId {
        PageId { incarnation: Incarnation::from_u128(7), ticket: Ticket(ticket) }
    }

    fn record(ticket: u64) -> PageRecord {
        let page = ("page".to_owned(), id(ticket).to_string().into_bytes());
        PageRecord { headers: vec![page], ..PageRecord::default() }
    }

    fn steps(position: Option<i64>, last: Option<PageId>, found: &[(i64, u64)]) -> Vec<Step> {
        let mut trail = Trail::new(position, last);
        found.iter().map(|(offset, ticket)| trail.follow(*offset, &record(*ticket))).collect()
    }

    #[test]
    fn what_is_read_is_held_against_the_memory() {
        use Step::{Another, Known, Missing, Next};
        for (position, last, found, expected) in [
            (None, None, &[(0, 1), (1, 2)][..], &[Next, Next][..]),
            (None, None, &[(40, 1), (41, 2)], &[Next, Next]),
            (Some(5), None, &[(5, 6)], &[Next]),
            (Some(5), Some(id(5)), &[(4, 5), (5, 6)], &[Known, Next]),
            // Retention took the page before, and nothing else.
            (Some(5), Some(id(5)), &[(5, 6), (6, 7)], &[Next, Next]),
            (Some(5), Some(id(5)), &[(9, 6), (10, 7)], &[Missing(4), Next]),
            (Some(5), None, &[(5, 6), (8, 7)], &[Next, Missing(2)]),
            // Made again, and longer than it was; shorter; and while it was read.
            (Some(5), Some(id(5)), &[(4, 99), (0, 95), (1, 96)], &[Another, Next, Next]),
            (Some(5), Some(id(5)), &[(0, 95), (0, 95)], &[Another, Next]),
            (Some(5), None, &[(5, 6), (0, 7), (0, 7)], &[Next, Another, Next]),
        ] {
            assert_eq!(steps(position, last, found), expected, "{position:?} {found:?}");
        }
    }

    #[test]
    fn what_is_gone_shows_without_a_page_that_follows() {
        for (position, span, expected) in [
            (None, 40..50, Step::Known),
            (Some(5), 0..5, Step::Known),
            (Some(5), 5..5, Step::Known),
            (Some(5), 3..9, Step::Known),
            (Some(5), 9..9, Step::Missing(4)),
            (Some(5), 9..12, Step::Missing(4)),
            (Some(5), 0..4, Step::Another),
            (Some(5), 0..0, Step::Another),
        ] {
            let mut trail = Trail::new(position, Some(id(5)));
            assert_eq!(trail.look(&span), expected, "{position:?} {span:?}");
            assert_eq!(trail.look(&span), Step::Known, "it is reported once");
        }
    }

    #[test]
    fn reading_begins_with_the_page_that_is_known() {
        assert_eq!(Trail::new(None, None).start(), None);
        assert_eq!(Trail::new(Some(5), None).start(), Some(5));
        assert_eq!(Trail::new(Some(5), Some(id(5))).start(), Some(4));
    }
}
