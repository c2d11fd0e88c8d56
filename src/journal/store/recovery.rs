//! Reads what an earlier process left, at the start.

use std::time::Duration;

use tracing::error;

use super::tickets::Killed;
use super::{Held, Recovered, Standing, Store, doubt, rows, tickets};
use crate::model::{CLOCK_MARGIN, Content, Gap, GapCause, PAGE_LIMIT, Timestamp};

/// Time after which an app that was not polled is forgotten: 90 days. By then it is considered
/// removed.
const APPS_REMEMBERED: Duration = Duration::from_secs(90 * 86_400);

// === impl Store ===

impl Store {
    pub(super) fn recover(&mut self, now: Timestamp) -> rusqlite::Result<Recovered> {
        self.recall(now).inspect_err(|cause| self.database.met(cause))
    }

    fn recall(&mut self, now: Timestamp) -> rusqlite::Result<Recovered> {
        let before = now.before(APPS_REMEMBERED);
        self.database.transact(false, |connection| tickets::forget_apps(connection, before))?;
        let mut recovered = Recovered::default();
        self.next_request = tickets::recall(self.database.connection()?, &mut recovered)?;
        let mut unreadable = Vec::new();
        for (row, place) in rows::places(self.database.connection()?)? {
            self.next_sequence = self.next_sequence.max(row.0 + 1);
            self.next_held = self.next_held.min(row.0 - 1);
            let Some((place, feed)) = place else {
                unreadable.push(row);
                continue;
            };
            // The row may be damaged, so the feed is trusted only if its app was polled.
            let feed = feed.filter(|it| recovered.last_requests.contains_key(&it.app));
            let feed = feed.map(|it| self.feeds.name(&it));
            self.places.insert(row, Standing::found(place, feed, now));
            self.track(place);
        }
        self.doubt = doubt::read(self.database.connection()?)?;
        recovered.in_doubt = self.doubt;
        self.recount();
        // No reader would find them, because their partition is unknown.
        for row in unreadable {
            self.set_aside(row);
        }
        self.recover_held(&mut recovered)?;
        self.recover_killed(&mut recovered, now)?;
        Ok(recovered)
    }

    /// Returns held pages so that they can be put in order. Gaps have no place in that order and
    /// are released.
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

    /// Turns requests that were in flight into gaps.
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
            self.track(place);
            let name = self.feeds.name(&feed);
            let gap = Gap {
                feed,
                cause: GapCause::ProcessKilled,
                from: since,
                to: now.after(CLOCK_MARGIN),
                at_least: 0,
                at_most: Some(PAGE_LIMIT),
            };
            let gap = place.entry(Content::Gap(gap));
            self.places.insert(sequence, Standing::new(place, &gap.content, name));
            gaps.push((sequence, place, gap));
        }
        let noted = self.take_noted(true);
        self.database.transact(true, |connection| {
            for (sequence, place, gap) in &gaps {
                rows::insert(connection, *sequence, place.partition, gap)?;
            }
            noted.write(connection)?;
            connection.execute("DELETE FROM open_tickets", [])?;
            Ok(())
        })?;
        if recovered.killed_in_flight > 0 {
            error!(
                requests = recovered.killed_in_flight,
                "the last process ended while requests were in flight; their answers may be lost, \
                 and a gap is published for each"
            );
        }
        Ok(())
    }
}
