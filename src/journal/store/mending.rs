//! What memory does for a database that fails: it keeps entries that could not be stored, and knows
//! the required contents of a new file.

use std::collections::BTreeMap;
use std::sync::Arc;

use rusqlite::Connection;
use tracing::error;

use super::{OpenRequest, Place, Sequence, Store, doubt, rows, tickets};
use crate::journal::salvage::KnownInMemory;
use crate::model::{Entry, PageId};

// === impl Store ===

impl Store {
    pub(super) fn store_what_waits_in_memory(&mut self) {
        if self.in_memory.is_empty() {
            return;
        }
        let in_memory = std::mem::take(&mut self.in_memory);
        let noted = self.take_noted(true);
        let stored = self.transact(true, |connection| {
            store_from_memory(connection, &in_memory)?;
            noted.write(connection)
        });
        match stored {
            Ok(()) => self.doubt = self.doubt.filter(|_| !noted.settles_doubt),
            Err(_) => {
                self.in_memory = in_memory;
                self.put_back(noted);
            }
        }
    }

    /// Replaces the file by a new one if it can't be trusted any more. The new file is written in
    /// one transaction, with everything readable, everything in memory, and a gap in place of each
    /// lost entry.
    pub(super) fn mend(&mut self) {
        if !self.database.is_to_be_renewed() {
            return;
        }
        let known = self.known();
        let Self { database, places, in_memory, released, open, now, doubt, .. } = self;
        let renewed = database.renew(Some(&known), *now, |connection, carried| {
            for (place, OpenRequest { feed, since, asked_at, .. }) in open.iter() {
                tickets::insert(connection, place, feed, *since, *asked_at)?;
            }
            if let Some(until) = *doubt {
                doubt::note(connection, until)?;
            }
            for (sequence, standing) in places.iter() {
                let row = *released.get(sequence).unwrap_or(sequence);
                if in_memory.contains_key(sequence) || carried.rows.contains(&row) {
                    continue;
                }
                let (Some(feed), Some(gap)) = (standing.feed(), standing.gap()) else {
                    // The next start publishes a gap for each feed.
                    doubt::note(connection, *now)?;
                    carried.nameless.push(*sequence);
                    continue;
                };
                rows::insert(connection, row, standing.place.partition, &gap)?;
                carried.rows.insert(row);
                *carried.lost.entry(Arc::clone(feed)).or_default() += 1;
            }
            store_from_memory(connection, in_memory)?;
            move_released(connection, released)?;
            carried.rows.extend(in_memory.keys().chain(released.keys()));
            Ok(())
        });
        let Ok(carried) = renewed else { return };
        for (feed, entries) in carried.lost {
            error!(
                %feed, entries,
                "pages in the journal have become unreadable: a gap is published for each"
            );
        }
        if !carried.nameless.is_empty() {
            let entries = carried.nameless.len();
            error!(
                entries,
                "pages in the journal have become unreadable, and their feeds are unknown: the \
                 next start publishes a gap for each feed"
            );
            (self.doubt, self.doubt_is_told) = (Some(self.now), false);
        }
        for sequence in carried.nameless {
            self.forget(sequence);
        }
        self.in_memory.retain(|row, _| !carried.rows.contains(row));
        self.released.retain(|sequence, _| !carried.rows.contains(sequence));
        // Entries forgotten or moved since the new file was written.
        let wanted = self.known().rows;
        self.forgotten = carried.rows.into_iter().filter(|row| !wanted.contains_key(row)).collect();
        self.recount();
    }

    /// Counts the entries that are set aside.
    pub(super) fn recount(&mut self) {
        let counted = self.database.connection().and_then(rows::count_set_aside);
        self.set_aside = counted.unwrap_or(self.set_aside);
    }

    /// The expected contents of the database, as far as memory knows.
    fn known(&self) -> KnownInMemory {
        let mut known = KnownInMemory::default();
        for (sequence, standing) in &self.places {
            if !self.in_memory.contains_key(sequence) {
                let row = self.released.get(sequence).unwrap_or(sequence);
                known.rows.insert(*row, standing.place.id());
                known.by_id.insert(standing.place.id(), *row);
            }
        }
        known
    }

    /// Whether no request is in flight and everything known is stored.
    pub(super) fn has_nothing_open(&self) -> bool {
        self.in_memory.is_empty() && !self.database.is_distrusted() && self.open.is_empty()
    }
}

/// Moves the rows of released entries to their sequences.
pub(super) fn move_released(
    connection: &Connection,
    released: &BTreeMap<Sequence, Sequence>,
) -> rusqlite::Result<()> {
    released.iter().try_for_each(|(sequence, row)| rows::shift(connection, *row, *sequence))
}

fn store_from_memory(
    connection: &Connection,
    in_memory: &BTreeMap<Sequence, (i32, Entry)>,
) -> rusqlite::Result<()> {
    for (row, (partition, entry)) in in_memory {
        let PageId { incarnation, ticket } = entry.id;
        tickets::delete(connection, &Place { incarnation, partition: *partition, ticket })?;
        // The row may exist: the outcome of a transaction that failed to sync is unknown.
        rows::delete(connection, *row)?;
        rows::insert(connection, *row, *partition, entry)?;
    }
    Ok(())
}
