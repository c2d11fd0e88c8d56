//! The events that one region keeps for one endpoint of one App ID: the newest 2,000, or fewer
//! where both endpoints share a buffer of 2,000.

use std::collections::VecDeque;

use crate::model::{BUFFER_LIMIT, PAGE_LIMIT};

#[expect(clippy::cast_possible_truncation, reason = "2,000 fits everywhere")]
const KEEPS: usize = BUFFER_LIMIT as usize;
#[expect(clippy::cast_possible_truncation, reason = "1,000 fits everywhere")]
const HANDS_OVER: usize = PAGE_LIMIT as usize;

/// Events in the order in which they happened, oldest first.
#[derive(Debug, Default)]
pub(super) struct Buffer {
    waiting: VecDeque<Copied>,
}

/// One region's copy of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Copied {
    /// The number of the event. Events are numbered in the order in which they happen.
    pub(super) seq: u64,
    /// Index of its line in the ledger.
    pub(super) line: u32,
}

// === impl Buffer ===

impl Buffer {
    /// Adds an event; the caller must call [`make_room`] next.
    ///
    /// A copy may arrive after newer events; it is inserted in order.
    pub(super) fn put(&mut self, event: Copied) {
        let newer = self.waiting.iter().rev().take_while(|it| it.seq > event.seq).count();
        self.waiting.insert(self.waiting.len() - newer, event);
    }

    /// Hands over the oldest events, as many as fit into an answer, and removes them.
    pub(super) fn take(&mut self) -> impl Iterator<Item = Copied> {
        self.waiting.drain(..self.waiting.len().min(HANDS_OVER))
    }

    /// Number of waiting events.
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }
}

/// Removes the oldest event if these buffers, which share the capacity of one, are over it. A copy
/// that arrives late into a buffer full of newer events is itself the one removed.
pub(super) fn make_room(buffers: &mut [Buffer]) -> Option<Copied> {
    if buffers.iter().map(Buffer::len).sum::<usize>() <= KEEPS {
        return None;
    }
    let filled = buffers.iter_mut().filter(|it| !it.waiting.is_empty());
    filled.min_by_key(|it| it.waiting.front().map(|it| it.seq))?.waiting.pop_front()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn event(seq: u64) -> Copied {
        Copied { seq, line: 0 }
    }

    /// Adds an event to a buffer that is not shared.
    fn put(buffer: &mut Buffer, event: Copied) -> Option<Copied> {
        buffer.put(event);
        make_room(std::slice::from_mut(buffer))
    }

    fn numbers(taken: impl Iterator<Item = Copied>) -> Vec<u64> {
        taken.map(|it| it.seq).collect()
    }

    #[test]
    fn a_newer_event_replaces_the_oldest() {
        let mut buffer = Buffer::default();
        for seq in 0..2_000 {
            assert_eq!(put(&mut buffer, event(seq)), None);
        }
        assert_eq!(put(&mut buffer, event(2_000)), Some(event(0)));
        assert_eq!(buffer.len(), 2_000);
    }

    #[test]
    fn an_answer_takes_the_oldest_thousand() {
        let mut buffer = Buffer::default();
        for seq in 0..1_500 {
            put(&mut buffer, event(seq));
        }
        assert_eq!(numbers(buffer.take()), (0..1_000).collect::<Vec<_>>());
        assert_eq!(numbers(buffer.take()), (1_000..1_500).collect::<Vec<_>>());
        assert_eq!(numbers(buffer.take()), Vec::<u64>::new());
    }

    #[test]
    fn a_copy_too_old_for_a_full_buffer_leaves_at_once() {
        let mut buffer = Buffer::default();
        for seq in 1..=2_000 {
            put(&mut buffer, event(seq));
        }
        assert_eq!(put(&mut buffer, event(0)), Some(event(0)));
    }

    #[test]
    fn of_buffers_that_share_their_room_the_oldest_event_leaves() {
        let mut buffers = [Buffer::default(), Buffer::default()];
        for seq in 0..2_000 {
            buffers[usize::from(seq >= 500)].put(event(seq));
            assert_eq!(make_room(&mut buffers), None);
        }
        for seq in 2_000..2_600 {
            buffers[1].put(event(seq));
            assert_eq!(make_room(&mut buffers), Some(event(seq - 2_000)));
        }
        assert_eq!(buffers.map(|it| it.len()), [0, 2_000]);
    }

    proptest! {
        #[test]
        fn whatever_arrives_how_late_it_is_handed_over_in_order(
            arrivals in Just((0..100_u64).collect::<Vec<_>>()).prop_shuffle(),
        ) {
            let mut buffer = Buffer::default();
            for seq in arrivals {
                buffer.put(event(seq));
            }
            prop_assert_eq!(numbers(buffer.take()), (0..100).collect::<Vec<_>>());
        }
    }
}
