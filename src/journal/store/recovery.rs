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
        self.recall(now).inspect_err(|cause| self.database.met(cause))
    }

    fn recall(&mut self, now: Timestamp) -> rusqlite::Result<Recovered> {
        let mut unreadable = Vec::new();
        for (row, place) in rows::places(self.database.connection()?)? {
            if place.is_none() {
                unreadable.push(row);
            }
            self.next_sequence = self.next_sequence.max(row.0 + 1);
            self.next_held = self.next_held.min(row.0 - 1);
            self.places.insert(row, place);
            if let Some(place) = place {
                self.track(place);
            }
        }
        let mut recovered = Recovered::default();
        self.next_request = tickets::recall(self.database.connection()?, &mut recovered)?;
        self.set_aside = rows::count_set_aside(self.database.connection()?)?;
        // Nobody reads them forward: their partition may be gone.
        for row in unreadable {
            self.set_aside(row);
        }
        self.recover_held(&mut recovered)?;
        self.recover_killed(&mut recovered, now)?;
        Ok(recovered)
    }

    /// Gives held pages back to be put in order. Gaps have no place in an order: they go on.
    fn recover_held(&mut self, recovered: &mut Recovered) -> rusqlite::Result<()> {
        for entry in rows::held(self.database.connection()?)? {
            match entry {
                Ok((row, entry)) => {
                    let held = Held { row, id: entry.id };
                    match entry.content {
                        Content::Page(page) => recovered.held.push((held, page)),
                        Content::Gap(_) => self.release(held),
                    }
                }
                Err(damaged) => {
                    if let Some((row, gap)) = self.set_aside(damaged.row) {
                        self.release(Held { row, id: gap.id });
                    }
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
        let killed = tickets::open(self.database.connection()?)?;
        recovered.killed_in_flight = killed.len() as u64;
        let mut gaps = Vec::with_capacity(killed.len());
        for Killed { place, feed, since, .. } in killed {
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
            gaps.push((sequence, place, place.entry(Content::Gap(gap))));
        }
        let noted = self.take_noted(true);
        self.database.transact(true, |connection| {
            for (sequence, place, gap) in &gaps {
                rows::insert(connection, *sequence, place.partition, gap)?;
            }
            noted.write(connection)?;
            connection.execute("DELETE FROM open_tickets", [])?;
            Ok(())
        })
    }
}
