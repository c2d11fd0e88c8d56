//! What memory does for a database that fails: it keeps what could not be stored, and knows what a
//! new file has to hold.

use std::collections::BTreeMap;
use std::sync::Arc;

use rusqlite::Connection;
use tracing::error;

use super::{Place, Request, Sequence, Store, doubt, rows, tickets};
use crate::journal::salvage::Known;
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

    /// Goes on in a new file where the present one proves nothing any more. In its one transaction
    /// are what can be read, what memory holds, and a gap in the place of each entry that is lost.
    pub(super) fn mend(&mut self) {
        if !self.database.is_to_be_renewed() {
            return;
        }
        let known = self.known();
        let Self { database, places, in_memory, released, open, now, doubt, .. } = self;
        let renewed = database.renew(Some(&known), *now, |connection, carried| {
            for (place, Request { feed, since, asked_at, .. }) in open.iter() {
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
                "pages in the journal can't be read any more: a gap is published for each"
            );
        }
        if !carried.nameless.is_empty() {
            let entries = carried.nameless.len();
            error!(
                entries,
                "pages in the journal can't be read any more, nor whose they were: the next start \
                 publishes a gap for each feed"
            );
            (self.doubt, self.doubt_is_told) = (Some(self.now), false);
        }
        for sequence in carried.nameless {
            self.forget(sequence);
        }
        self.in_memory.retain(|row, _| !carried.rows.contains(row));
        self.released.retain(|sequence, _| !carried.rows.contains(sequence));
        // What was forgotten or moved while the new file waited for its name.
        let wanted = self.known().rows;
        self.forgotten = carried.rows.into_iter().filter(|row| !wanted.contains_key(row)).collect();
        self.recount();
    }

    /// Counts what is set aside.
    pub(super) fn recount(&mut self) {
        let counted = self.database.connection().and_then(rows::count_set_aside);
        self.set_aside = counted.unwrap_or(self.set_aside);
    }

    /// What is in the database, as far as memory knows.
    fn known(&self) -> Known {
        let mut known = Known::default();
        for (sequence, standing) in &self.places {
            if !self.in_memory.contains_key(sequence) {
                let row = self.released.get(sequence).unwrap_or(sequence);
                known.rows.insert(*row, standing.place.id());
                known.by_id.insert(standing.place.id(), *row);
            }
        }
        known
    }

    /// Whether every request has its end, and everything that is known is stored.
    pub(super) fn has_nothing_open(&self) -> bool {
        self.in_memory.is_empty() && !self.database.is_distrusted() && self.open.is_empty()
    }
}

/// Moves released entries to their places in the line.
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
        // It may be there: how a transaction ended that could not be synced nobody knows.
        rows::delete(connection, *row)?;
        rows::insert(connection, *row, *partition, entry)?;
    }
    Ok(())
}
