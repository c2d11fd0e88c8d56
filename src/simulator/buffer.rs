//! What one region keeps of one endpoint of one App ID: the newest 2,000 events, or its share of them
//! where the endpoints have 2,000 together.

use std::collections::VecDeque;

use crate::model::BUFFER_LIMIT;
use crate::model::PAGE_LIMIT;

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
    /// Where the ledger wrote it down.
    pub(super) line: u32,
}

// === impl Buffer ===

impl Buffer {
    /// Takes an event in; [`make_room`] has to follow.
    ///
    /// A copy may arrive after newer events; it is put where it belongs.
    pub(super) fn put(&mut self, event: Copied) {
        let newer = self.waiting.iter().rev().take_while(|it| it.seq > event.seq).count();
        self.waiting.insert(self.waiting.len() - newer, event);
    }

    /// Hands over the oldest events, as many as fit an answer, and forgets them.
    pub(super) fn take(&mut self) -> impl Iterator<Item = Copied> {
        self.waiting.drain(..self.waiting.len().min(HANDS_OVER))
    }

    /// How many events wait.
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }
}

/// Says which event has to leave after another was put into one of these buffers, which have the room
/// of one together. A copy that comes too late into a full buffer of newer events leaves itself.
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

    /// Puts it into a buffer of its own.
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
