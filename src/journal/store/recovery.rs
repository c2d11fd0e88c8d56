//! What an earlier process left behind, read at the start.

use super::Held;
use super::Recovered;
use super::Store;
use super::rows;
use super::tickets;
use super::tickets::Killed;
use crate::model::CLOCK_MARGIN;
use crate::model::Content;
use crate::model::Gap;
use crate::model::GapCause;
use crate::model::PAGE_LIMIT;
use crate::model::Timestamp;

// === impl Store ===

impl Store {
    pub(super) fn recover(&mut self, now: Timestamp) -> rusqlite::Result<Recovered> {
        for (row, place) in rows::places(&self.connection)? {
            self.next_sequence = self.next_sequence.max(row.0 + 1);
            self.next_held = self.next_held.min(row.0 - 1);
            self.places.insert(row, place);
            if let Some(place) = place {
                self.track(place);
            }
        }
        let mut recovered = Recovered::default();
        self.next_request = tickets::recall(&self.connection, &mut recovered)?;
        self.recover_held(&mut recovered)?;
        self.recover_killed(&mut recovered, now)?;
        Ok(recovered)
    }

    /// Gives held pages back to be put in order. Gaps have no place in an order: they go on.
    fn recover_held(&mut self, recovered: &mut Recovered) -> rusqlite::Result<()> {
        for entry in rows::held(&self.connection)? {
            match entry {
                Ok((row, entry)) => {
                    let held = Held { row, id: entry.id };
                    match entry.content {
                        Content::Page(page) => recovered.held.push((held, page)),
                        Content::Gap(_) => self.release(held),
                    }
                }
                Err(damaged) => {
                    let transaction = self.connection.unchecked_transaction()?;
                    rows::set_aside(&transaction, damaged.row)?;
                    transaction.commit()?;
                    self.forget(damaged.row);
                }
            }
        }
        Ok(())
    }

    /// Requests that were out become gaps.
    fn recover_killed(
        &mut self,
        recovered: &mut Recovered,
        now: Timestamp,
    ) -> rusqlite::Result<()> {
        let killed = tickets::open(&self.connection)?;
        recovered.killed_in_flight = killed.len() as u64;
        let mut gaps = Vec::with_capacity(killed.len());
        for Killed { place, feed, since } in killed {
            let sequence = self.next_sequence();
            self.places.insert(sequence, Some(place));
            self.track(place);
            let gap = Gap {
                feed,
                cause: GapCause::ProcessKilled,
                from: since,
                to: now.after(CLOCK_MARGIN),
                at_least: 0,
                at_most: Some(PAGE_LIMIT),
            };
            gaps.push((sequence, place, gap));
        }
        let noted = self.take_noted(true);
        let transaction = self.connection.unchecked_transaction()?;
        for (sequence, place, gap) in gaps {
            let entry = place.entry(Content::Gap(gap));
            rows::insert(&transaction, sequence, place.partition, &entry)?;
        }
        noted.write(&transaction)?;
        transaction.execute("DELETE FROM open_tickets", [])?;
        transaction.commit()
    }
}
