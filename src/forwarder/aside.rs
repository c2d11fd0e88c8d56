//! Entries that the pages topic refused: which of them is tried again, and when.
//!
//! Pure: no journal, no Kafka, the time is passed in. Each entry has its own retry time, with a wait
//! that doubles. An accepted entry shows that the topic accepts such entries again, so all others
//! become due, in their original order. After each refusal there is a pause, however many entries are
//! aside, because a retry delays the entries behind it.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::journal::Sequence;
use crate::model::PageId;

/// Wait before the first further try: a setting that was wrong for a moment is right again.
const SHORTEST_WAIT: Duration = Duration::from_secs(1);

/// The longest wait between two tries of an entry: so late it leaves when the topic takes it again.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// The pause after a refusal, for all of them.
const PAUSE: Duration = Duration::from_millis(250);

/// The entries of a partition that are aside, by their places.
#[derive(Debug, Default)]
pub(super) struct Aside {
    entries: BTreeMap<Sequence, Refused>,
    /// None is tried before this.
    not_before: Option<Instant>,
}

#[derive(Debug)]
struct Refused {
    page: PageId,
    /// The place that it had when it was first refused.
    first: Sequence,
    backoff: Backoff,
    next_try: Instant,
}

// === impl Aside ===

impl Aside {
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn holds(&self, sequence: Sequence) -> bool {
        self.entries.contains_key(&sequence)
    }

    /// The entry that is to be tried now: the one that has been due for longest, so that one that
    /// always fails keeps no other from its try. It is not due again before it has waited.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<Sequence> {
        if self.not_before.is_some_and(|at| now < at) {
            return None;
        }
        let due = self.entries.iter_mut().filter(|(_, it)| it.next_try <= now);
        let (sequence, refused) = due.min_by_key(|(_, it)| (it.next_try, it.first))?;
        refused.next_try = now + refused.backoff.wait();
        Some(*sequence)
    }

    /// When the next one is due.
    pub(super) fn next_try(&self) -> Option<Instant> {
        let first = self.entries.values().map(|it| it.next_try).min()?;
        Some(self.not_before.map_or(first, |at| first.max(at)))
    }

    /// An entry was refused. True where that is news.
    pub(super) fn refuse(&mut self, sequence: Sequence, page: PageId, now: Instant) -> bool {
        self.not_before = Some(now + PAUSE);
        let known = self.entries.get(&sequence).map(|it| (it.first, it.backoff));
        let (first, backoff) = match known {
            None => (sequence, Backoff::new(SHORTEST_WAIT, LONGEST_WAIT)),
            Some((first, mut backoff)) => {
                backoff.lengthen();
                (first, backoff)
            }
        };
        let refused = Refused { page, first, backoff, next_try: now + backoff.wait() };
        self.entries.insert(sequence, refused);
        known.is_none()
    }

    /// A try failed without a refusal: the entry waits twice as long, and all others as long as it,
    /// because the reason may concern them too.
    pub(super) fn postpone(&mut self, sequence: Sequence, now: Instant) {
        if let Some(refused) = self.entries.get_mut(&sequence) {
            refused.backoff.lengthen();
            refused.next_try = now + refused.backoff.wait();
            self.not_before = Some(refused.next_try);
        }
    }

    /// An entry has another place and name now.
    pub(super) fn rename(&mut self, from: Sequence, to: Sequence, page: PageId) {
        if let Some(refused) = self.entries.remove(&from) {
            self.entries.insert(to, Refused { page, ..refused });
        }
    }

    /// An entry was accepted: the others are due.
    pub(super) fn accept(&mut self, sequence: Sequence, now: Instant) {
        self.remove(sequence);
        self.not_before = None;
        self.entries.values_mut().for_each(|it| it.next_try = now);
    }

    /// An entry is not in the journal any more.
    pub(super) fn remove(&mut self, sequence: Sequence) {
        self.entries.remove(&sequence);
    }

    /// The entry that was refused first.
    pub(super) fn oldest(&self) -> Option<PageId> {
        self.entries.values().min_by_key(|it| it.first).map(|it| it.page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Incarnation, Ticket};

    fn place(number: i64) -> Sequence {
        Sequence::from_number(number)
    }

    fn page(ticket: u64) -> PageId {
        PageId { incarnation: Incarnation::from_u128(1), ticket: Ticket(ticket) }
    }

    /// When an entry is tried within five minutes, if each try is refused and moves it.
    fn tries(begun: Instant) -> Vec<Duration> {
        let mut aside = Aside::default();
        let (mut at, mut number) = (begun, 1);
        assert!(aside.refuse(place(number), page(1), at));
        let mut tries = Vec::new();
        while at < begun + Duration::from_secs(300) {
            let next = aside.next_try().unwrap();
            assert_eq!(aside.take_due(next - Duration::from_millis(1)), None);
            tries.push(next - at);
            at = next;
            assert_eq!(aside.take_due(at), Some(place(number)));
            assert!(!aside.refuse(place(number), page(1), at));
            aside.rename(place(number), place(number + 9), page(2));
            number += 9;
        }
        tries
    }

    #[test]
    fn an_entry_that_is_refused_again_waits_longer_up_to_half_a_minute() {
        let tries = tries(Instant::now());
        let seconds: Vec<u64> = tries.iter().take(7).map(Duration::as_secs).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 30, 30]);
        assert_eq!(tries.iter().max(), Some(&LONGEST_WAIT));
    }

    #[test]
    fn one_that_is_accepted_lets_all_others_go_in_their_first_order() {
        let (mut aside, mut now) = (Aside::default(), Instant::now());
        for number in 1..=4 {
            now += SHORTEST_WAIT;
            aside.refuse(place(number), page(1), now);
        }
        aside.rename(place(1), place(9), page(2));
        assert_eq!(aside.oldest(), Some(page(2)));
        now += LONGEST_WAIT;
        assert_eq!(aside.take_due(now), Some(place(9)));
        aside.accept(place(9), now);
        aside.rename(place(2), place(10), page(3));
        for number in [10, 3, 4] {
            assert_eq!(aside.take_due(now), Some(place(number)));
            aside.accept(place(number), now);
        }
        assert_eq!((aside.len(), aside.next_try()), (0, None));
    }

    #[test]
    fn many_that_are_refused_are_not_tried_one_right_after_the_other() {
        let (mut aside, now) = (Aside::default(), Instant::now());
        for number in 1..=1_000 {
            aside.refuse(place(number), page(1), now);
        }
        let (mut at, mut tries) = (now, 0);
        while let Some(next) = aside.next_try().filter(|it| *it < now + LONGEST_WAIT) {
            at = at.max(next);
            if let Some(sequence) = aside.take_due(at) {
                aside.refuse(sequence, page(1), at);
                tries += 1;
            }
        }
        assert_eq!(tries, (LONGEST_WAIT - SHORTEST_WAIT).as_millis() / PAUSE.as_millis());
    }

    #[test]
    fn tries_that_fail_are_postponed_up_to_half_a_minute_and_so_are_the_others() {
        let (mut aside, mut now) = (Aside::default(), Instant::now());
        aside.refuse(place(1), page(1), now);
        aside.refuse(place(2), page(1), now);
        let mut waits = Vec::new();
        for _ in 0..12 {
            let next = aside.next_try().unwrap();
            waits.push((next - now).as_secs());
            now = next;
            let due = aside.take_due(now).unwrap();
            aside.postpone(due, now);
            assert_eq!(aside.take_due(now), None);
        }
        assert_eq!(waits, [1, 2, 2, 4, 4, 8, 8, 16, 16, 30, 30, 30]);
    }

    #[test]
    fn a_try_without_an_outcome_is_not_due_again_at_once() {
        let (mut aside, now) = (Aside::default(), Instant::now());
        aside.refuse(place(1), page(1), now);
        aside.refuse(place(2), page(1), now);
        let later = now + LONGEST_WAIT;
        assert_eq!(aside.take_due(later), Some(place(1)));
        assert_eq!(aside.take_due(later), Some(place(2)));
        assert_eq!(aside.take_due(later), None);
    }
}
