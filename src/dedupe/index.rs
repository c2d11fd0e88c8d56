//! Where in a window an event stands: a hash table of places, four bytes each.
//!
//! The events themselves stand in the blocks of the window, so an index costs a quarter of what a
//! set of them would. A block that is dropped costs nothing: its places lead nowhere from then on, and
//! are used again or left behind when the table is made anew.

use std::collections::VecDeque;
use std::num::NonZeroU32;

use super::{Block, Fingerprint};

/// Bits of a place that number an event in its block, from 1 on.
const BITS_IN_BLOCK: u32 = 9;

/// Blocks are numbered from the first that the index saw, and from 0 again after so many.
const NUMBERS: u32 = 1 << (u32::BITS - BITS_IN_BLOCK);

/// Finds events in the blocks of a window.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// A power of two, at most three quarters full; an event is looked for from its own place on.
    places: Vec<Option<NonZeroU32>>,
    taken: usize,
    /// The number of the oldest block.
    first: u32,
}

/// What was found where an event would be.
enum Found {
    Event(usize),
    /// Not there; it may take this place, which was taken before by an event of a dropped block.
    Left(usize),
    /// Not there; it may take this place.
    Free(usize),
}

// === impl Index ===

impl Index {
    /// The index of these blocks. Of an event that stands in two of them the later one counts.
    pub(super) fn of(blocks: &VecDeque<Block>) -> Self {
        let mut index = Self::default();
        index.make_anew(blocks);
        index
    }

    /// Whether one of the blocks has the event.
    pub(super) fn contains(&self, blocks: &VecDeque<Block>, event: Fingerprint) -> bool {
        matches!(self.find(blocks, event), Some(Found::Event(_)))
    }

    /// Notes that the event is about to be the next one of the last block. False where it is known.
    /// There has to be a last block with room for it.
    pub(super) fn insert(&mut self, blocks: &VecDeque<Block>, event: Fingerprint) -> bool {
        if (self.taken + 1) * 4 > self.places.len() * 3 {
            self.make_anew(blocks);
        }
        let (Some(found), Some(last)) = (self.find(blocks, event), blocks.back()) else {
            return false;
        };
        let at = match found {
            Found::Event(_) => return false,
            Found::Left(at) => at,
            Found::Free(at) => {
                self.taken += 1;
                at
            }
        };
        self.write(at, blocks.len() - 1, last.events.len());
        true
    }

    /// Notes that the oldest block is gone.
    pub(super) fn drop_oldest(&mut self) {
        self.first = (self.first + 1) % NUMBERS;
    }

    fn make_anew(&mut self, blocks: &VecDeque<Block>) {
        let events: usize = blocks.iter().map(|block| block.events.len()).sum();
        let size = ((events + super::BLOCK_EVENTS) * 3 / 2).next_power_of_two();
        self.places.clear();
        self.places.resize(size, None);
        self.taken = 0;
        for (number, block) in blocks.iter().enumerate() {
            for (place, event) in block.events.iter().enumerate() {
                match self.find(blocks, *event) {
                    Some(Found::Event(at) | Found::Left(at)) => self.write(at, number, place),
                    Some(Found::Free(at)) => {
                        self.taken += 1;
                        self.write(at, number, place);
                    }
                    None => {}
                }
            }
        }
    }

    /// `None` only where the table is empty.
    fn find(&self, blocks: &VecDeque<Block>, event: Fingerprint) -> Option<Found> {
        let mask = self.places.len().checked_sub(1)?;
        let mut at = event.spread() & mask;
        let mut left = None;
        loop {
            let Some(place) = *self.places.get(at)? else {
                return Some(left.map_or(Found::Free(at), Found::Left));
            };
            match self.event_at(blocks, place) {
                Some(there) if there == event => return Some(Found::Event(at)),
                Some(_) => {}
                None => left = left.or(Some(at)),
            }
            at = (at + 1) & mask;
        }
    }

    /// `None` where its block is gone.
    fn event_at(&self, blocks: &VecDeque<Block>, place: NonZeroU32) -> Option<Fingerprint> {
        let number = place.get() >> BITS_IN_BLOCK;
        let in_block = (place.get() & ((1 << BITS_IN_BLOCK) - 1)) - 1;
        let block = number.wrapping_sub(self.first) % NUMBERS;
        let block = blocks.get(usize::try_from(block).ok()?)?;
        block.events.get(usize::try_from(in_block).ok()?).copied()
    }

    fn write(&mut self, at: usize, block: usize, in_block: usize) {
        let [block, in_block] = [block, in_block]
            .map(|it| u32::try_from(it).expect("a window has less than 2^23 blocks of 256 events"));
        let number = self.first.wrapping_add(block) % NUMBERS;
        if let Some(place) = self.places.get_mut(at) {
            *place = NonZeroU32::new((number << BITS_IN_BLOCK) | (in_block + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::BLOCK_EVENTS;
    use super::*;
    use crate::model::Timestamp;

    fn event(n: u64) -> Fingerprint {
        Fingerprint::from_bytes((u128::from(n) * 0x9e37_79b9_7f4a_7c15).to_be_bytes())
    }

    #[test]
    fn the_numbers_of_blocks_begin_again_and_all_is_found() {
        let mut index = Index { first: NUMBERS - 3, ..Index::default() };
        let mut blocks = VecDeque::new();
        let (mut oldest, size) = (0, BLOCK_EVENTS as u64);
        for n in 0..8 * size {
            if n % size == 0 {
                blocks.push_back(Block::restored(0, n, Timestamp::default(), Vec::new()));
            }
            if blocks.len() > 3 {
                blocks.pop_front();
                index.drop_oldest();
                oldest += size;
            }
            assert!(index.insert(&blocks, event(n)));
            blocks.back_mut().unwrap().events.push(event(n));
            assert!(!index.insert(&blocks, event(n)));
        }
        assert!(index.first < 3);
        for n in 0..9 * size {
            let is_there = (oldest..8 * size).contains(&n);
            assert_eq!(index.contains(&blocks, event(n)), is_there, "{n}");
        }
    }
}
