//! Reads entries, and sets damaged ones aside.

use std::cell::{Cell, RefCell};
use std::ops::Bound;

use tracing::{error, warn};

use super::{JournalError, Sequence, Standing, Store, database, rows};
use crate::journal::Waiting;
use crate::journal::rows::Damaged;
use crate::model::{Content, Entry};

/// Damaged pages take at most one part in this many of the journal's maximum size; the oldest are
/// deleted first.
const SET_ASIDE_SHARE: u64 = 8;

// === impl Store ===

impl Store {
    pub(super) fn read(
        &mut self,
        partition: i32,
        after: Sequence,
        limit: usize,
    ) -> Result<Vec<Waiting>, JournalError> {
        let mut found = self.find(partition, after, limit);
        if let Err(cause) = &found {
            self.database.met(cause);
            if self.database.is_to_be_renewed() {
                self.mend();
                found = self.find(partition, after, limit);
            }
        }
        let mut found = found.map_err(|cause| database("read", cause))?;
        let in_memory = self
            .in_memory
            .range(after..)
            .filter(|(sequence, (its, _))| **sequence > after && *its == partition);
        found.extend(in_memory.map(|(sequence, (_, entry))| (*sequence, entry.clone())));
        found.sort_by_key(|(sequence, _)| *sequence);
        found.truncate(limit);
        let waiting = found.into_iter().map(|(sequence, entry)| Waiting {
            sequence,
            settled: self.settled(entry.id.incarnation, partition),
            entry,
        });
        Ok(waiting.collect())
    }

    /// The entries of a partition after `after` that are in the database.
    fn find(
        &mut self,
        partition: i32,
        after: Sequence,
        limit: usize,
    ) -> rusqlite::Result<Vec<(Sequence, Entry)>> {
        let mut rows = rows::select(self.database.connection()?, partition, after, limit)?;
        for (sequence, row) in self.not_moved(partition, after, limit) {
            match rows::one(self.database.connection()?, row)? {
                Some(Ok((_, entry))) => rows.push(Ok((sequence, entry))),
                Some(Err(_)) => rows.push(Err(Damaged { row: sequence })),
                None => {}
            }
        }
        let entries = rows.into_iter().filter_map(|row| match row {
            Ok(entry) => Some(entry),
            Err(damaged) => self.set_aside(damaged.row),
        });
        Ok(entries.collect())
    }

    /// Released entries of a partition after `after` whose rows are not moved yet, at most `limit`.
    fn not_moved(
        &self,
        partition: i32,
        after: Sequence,
        limit: usize,
    ) -> Vec<(Sequence, Sequence)> {
        let behind = self.released.range((Bound::Excluded(after), Bound::Unbounded));
        let its =
            |sequence| self.places.get(sequence).is_some_and(|it| it.place.partition == partition);
        behind
            .filter(|(sequence, _)| its(*sequence))
            .map(|(sequence, row)| (*sequence, *row))
            .take(limit)
            .collect()
    }

    /// Moves a damaged entry with its bytes to the table of damaged ones. Returns the gap that
    /// takes its place, if its feed is known.
    pub(super) fn set_aside(&mut self, sequence: Sequence) -> Option<(Sequence, Entry)> {
        let row = self.released.get(&sequence).copied().unwrap_or(sequence);
        let standing = self.places.get(&sequence).cloned();
        let place = standing.as_ref().map(|it| it.place);
        let (now, most) = (self.now, self.max_size / SET_ASIDE_SHARE);
        let ours = self.incarnation;
        let (set_aside, removed) = (RefCell::new(None), Cell::new(0));
        let written = self.transact(true, |connection| {
            let gap = match &standing {
                // For entries of this process, memory is more reliable than a damaged row.
                Some(standing) if standing.place.incarnation == ours => standing.gap(),
                Some(Standing { place, .. }) => {
                    rows::gap_for(connection, row, now)?.map(|gap| place.entry(Content::Gap(gap)))
                }
                None => None,
            };
            let in_place = gap.as_ref().zip(place).map(|(gap, place)| (place.partition, gap));
            rows::set_aside(connection, row, in_place)?;
            removed.set(rows::limit_set_aside(connection, most)?);
            *set_aside.borrow_mut() = gap;
            Ok(())
        });
        // If that failed, the entry stays where it is, and the next process will find it.
        written.ok()?;
        self.recount();
        let gap = set_aside.take();
        error!(
            page = place.map(|it| tracing::field::display(it.id())),
            feed = gap.as_ref().map(|it| tracing::field::display(it.content.feed())),
            gap = gap.is_some(),
            "a page in the journal is damaged: set aside with its bytes; a gap is published if its \
             feed is known; see `agora-rtm-bridge journal list`"
        );
        if removed.get() > 0 {
            let pages = removed.get();
            warn!(
                pages,
                "deleted the oldest damaged pages that were set aside, to limit their size"
            );
        }
        if gap.is_none() {
            self.forget(sequence);
        }
        gap.map(|entry| (sequence, entry))
    }
}
