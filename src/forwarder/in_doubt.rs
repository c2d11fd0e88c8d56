//! Entries that may be in the pages topic although their append was not confirmed.
//!
//! Pure: no journal, no Kafka. The publisher recognises a second copy of an entry by its ticket, so
//! such an entry must keep its ticket until it is confirmed.

use std::collections::BTreeSet;

use crate::journal::Sequence;
use crate::model::{Incarnation, PageId, Ticket};

/// How many tickets an entry in doubt may hold back. The publisher stores each page above the
/// settled ticket in one record of the state topic, at up to 20 bytes: 600 kB, which brokers accept by
/// default.
const HELD_BACK: u64 = 30_000;

/// The entries of a partition whose append has an unknown outcome. At most those that were in flight
/// at the last failure, and those aside.
#[derive(Debug)]
pub(super) struct InDoubt {
    own: Incarnation,
    entries: BTreeSet<Sequence>,
    /// The newest ticket of this process that was handed over.
    newest: Ticket,
}

/// Whether an entry that was refused can have a new ticket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NewTicket {
    /// It is not in the topic.
    Harmless,
    /// A copy under the old ticket may be in the topic: its events would be published twice.
    Harmful,
    /// The same, but the publisher's record of tickets would outgrow the state topic, and the partition
    /// would stop.
    Needed {
        /// How many tickets it holds back.
        held_back: u64,
    },
}

// === impl InDoubt ===

impl InDoubt {
    /// None, for a process with this incarnation.
    pub(super) fn new(own: Incarnation) -> Self {
        Self { own, entries: BTreeSet::new(), newest: Ticket(0) }
    }

    /// An entry is handed over.
    pub(super) fn hand_over(&mut self, page: PageId) {
        if page.incarnation == self.own {
            self.newest = self.newest.max(page.ticket);
        }
    }

    /// An append failed without a refusal, or its outcome did not arrive.
    pub(super) fn insert(&mut self, sequence: Sequence) {
        self.entries.insert(sequence);
    }

    /// An entry is confirmed, has a new ticket, or is not in the journal any more.
    pub(super) fn remove(&mut self, sequence: Sequence) {
        self.entries.remove(&sequence);
    }

    /// Whether this entry can have a new ticket.
    pub(super) fn new_ticket(&self, sequence: Sequence, page: PageId) -> NewTicket {
        if page.incarnation != self.own {
            // An earlier process may have stored it. Its ticket holds back no page of this process.
            return NewTicket::Harmful;
        }
        if !self.entries.contains(&sequence) {
            return NewTicket::Harmless;
        }
        let held_back = self.newest.0.saturating_sub(page.ticket.0);
        if held_back > HELD_BACK { NewTicket::Needed { held_back } } else { NewTicket::Harmful }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Incarnation = Incarnation::from_u128(1);

    fn page(ticket: u64) -> PageId {
        PageId { incarnation: OWN, ticket: Ticket(ticket) }
    }

    #[test]
    fn an_entry_in_doubt_keeps_its_ticket_until_it_is_confirmed() {
        let mut in_doubt = InDoubt::new(OWN);
        let [first, second] = [1, 2].map(Sequence::from_number);
        assert_eq!(in_doubt.new_ticket(first, page(1)), NewTicket::Harmless);
        in_doubt.insert(first);
        assert_eq!(in_doubt.new_ticket(first, page(1)), NewTicket::Harmful);
        assert_eq!(in_doubt.new_ticket(second, page(2)), NewTicket::Harmless);
        in_doubt.remove(first);
        assert_eq!(in_doubt.new_ticket(first, page(1)), NewTicket::Harmless);
    }

    #[test]
    fn an_entry_of_an_earlier_process_keeps_its_ticket() {
        let mut in_doubt = InDoubt::new(OWN);
        let earlier = PageId { incarnation: Incarnation::from_u128(2), ticket: Ticket(1) };
        in_doubt.hand_over(page(3 * HELD_BACK));
        assert_eq!(in_doubt.new_ticket(Sequence::from_number(1), earlier), NewTicket::Harmful);
    }

    #[test]
    fn an_entry_in_doubt_does_not_hold_back_tickets_without_bounds() {
        let mut in_doubt = InDoubt::new(OWN);
        let sequence = Sequence::from_number(1);
        in_doubt.insert(sequence);
        in_doubt.hand_over(page(7 + HELD_BACK));
        in_doubt.hand_over(page(9));
        assert_eq!(in_doubt.new_ticket(sequence, page(7)), NewTicket::Harmful);
        in_doubt.hand_over(page(8 + HELD_BACK));
        let held_back = HELD_BACK + 1;
        assert_eq!(in_doubt.new_ticket(sequence, page(7)), NewTicket::Needed { held_back });
    }
}
