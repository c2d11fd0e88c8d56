//! Moves entries to the last place under a new ticket.

use std::cell::RefCell;

use super::{JournalError, Sequence, Standing, Store, rows};
use crate::journal::Waiting;

// === impl Store ===

impl Store {
    /// Moves an entry behind all others, in one transaction: a crash leaves it either in the old
    /// place or in the new one. The transaction is synced, because the entry may be forwarded under
    /// its new name right after it, and a copy that reappeared under the old name would not be
    /// recognised.
    pub(super) fn move_behind(
        &mut self,
        partition: i32,
        from: Sequence,
    ) -> Result<Waiting, JournalError> {
        self.mend();
        self.store_what_waits_in_memory();
        self.mend();
        if !self.in_memory.is_empty() {
            return Err(JournalError::PagesInMemory { pages: self.in_memory.len() });
        }
        let needed = self.reserved;
        self.database
            .has_room_for(needed)
            .map_err(|available| JournalError::DiskFull { available, needed })?;
        let (place, to) = (self.next_place(partition), Sequence(self.next_sequence));
        // Released entries are moved first, because this entry becomes durable after them.
        let noted = self.take_noted(true);
        let moved = RefCell::new(None);
        let written = self.transact(true, |connection| {
            noted.write(connection)?;
            *moved.borrow_mut() = rows::rename(connection, from, to, place)?;
            Ok(())
        });
        match &written {
            Ok(()) => self.doubt = self.doubt.filter(|_| !noted.settles_doubt),
            Err(_) => self.put_back(noted),
        }
        let moved = written.and_then(|()| moved.take().ok_or(JournalError::NotThere));
        // The ticket is used up, whether or not the transaction has left a trace.
        let entry = moved.inspect_err(|_| self.settle(place))?;
        self.next_sequence += 1;
        if let Some(standing) = self.places.remove(&from) {
            self.settle(standing.place);
        }
        let feed = self.feeds.name(entry.content.feed());
        self.places.insert(to, Standing::new(place, &entry.content, feed));
        let settled = self.settled(place.incarnation, partition);
        Ok(Waiting { sequence: to, entry, settled })
    }
}
