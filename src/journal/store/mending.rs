//! What memory does for a database that fails: it keeps what could not be stored, and knows what a
//! new file has to hold.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::collections::HashSet;

use rusqlite::Connection;
use tracing::error;

use super::Place;
use super::Sequence;
use super::Store;
use super::rows;
use super::tickets;
use crate::journal::salvage::Known;
use crate::model::Entry;
use crate::model::PageId;
use crate::model::Ticket;

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
        if stored.is_err() {
            self.in_memory = in_memory;
            self.put_back(noted);
        }
    }

    /// Goes on in a new file where the present one proves nothing any more.
    pub(super) fn mend(&mut self) {
        if !self.database.is_to_be_renewed() {
            return;
        }
        let known = self.known();
        let (in_memory, released) = (&self.in_memory, &self.released);
        let renewed = self.database.renew(Some(&known), self.now, |connection| {
            store_from_memory(connection, in_memory)?;
            move_released(connection, released)?;
            Ok(in_memory.keys().chain(released.keys()).copied().collect())
        });
        let Ok(carried) = renewed else { return };
        self.in_memory.retain(|row, _| !carried.rows.contains(row));
        let lost: Vec<Sequence> =
            known.rows.keys().filter(|row| !carried.rows.contains(row)).copied().collect();
        if !lost.is_empty() {
            error!(entries = lost.len(), "pages can't be read any more; they are lost");
        }
        let by_row: HashMap<Sequence, Sequence> =
            self.released.iter().map(|(sequence, row)| (*row, *sequence)).collect();
        for row in lost {
            self.forget(by_row.get(&row).copied().unwrap_or(row));
        }
        self.released.retain(|sequence, _| !carried.rows.contains(sequence));
        // What was forgotten or moved while the new file waited for its name.
        let wanted = self.known().rows;
        self.forgotten = carried.rows.into_iter().filter(|row| !wanted.contains_key(row)).collect();
    }

    /// What is in the database, as far as memory knows.
    fn known(&self) -> Known {
        let mut open: HashSet<Place> = HashSet::new();
        for ((incarnation, partition), tickets) in &self.unsettled {
            let (incarnation, partition) = (*incarnation, *partition);
            let places =
                tickets.iter().map(|it| Place { incarnation, partition, ticket: Ticket(*it) });
            open.extend(places);
        }
        let mut rows = BTreeMap::new();
        for (sequence, place) in &self.places {
            if let Some(place) = place {
                open.remove(place);
            }
            if !self.in_memory.contains_key(sequence) {
                let row = self.released.get(sequence).unwrap_or(sequence);
                rows.insert(*row, place.map(|place| place.id()));
            }
        }
        Known { rows, open }
    }

    /// Whether every request has its end, and everything that is known is stored.
    pub(super) fn has_nothing_open(&self) -> bool {
        self.in_memory.is_empty() && !self.database.is_distrusted() && self.known().open.is_empty()
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
