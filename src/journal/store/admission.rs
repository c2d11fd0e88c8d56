//! Admits requests, reserves room for their answers, and releases it.

use super::JournalError::{DiskFull, Full};
use super::{JournalError, OpenRequest, Opened, Opening, Place, Store};

// === impl Store ===

impl Store {
    /// Gives tickets to the requests for which there is room, and refuses the others.
    pub(super) fn admit(&mut self, openings: Vec<Opening>) -> Vec<Opened> {
        let (mut opened, mut asked) = (Vec::with_capacity(openings.len()), 0);
        let mut may_be_shortened = true;
        for opening in openings {
            let out = self.open.len() + opened.len();
            let room = self.room.wanted(&opening.feed, out);
            let mut has_room = self.has_room_for(asked + room);
            // A reader that kept the log long may be gone by now.
            let refused = matches!(has_room, Err(Full { .. } | DiskFull { .. }));
            if refused && std::mem::take(&mut may_be_shortened) && self.database.shorten_log() {
                has_room = self.has_room_for(asked + room);
            }
            match has_room {
                Ok(()) => {
                    asked += room;
                    let place = self.next_place(opening.partition);
                    let next = self.next_request.entry(opening.feed.app.clone()).or_default();
                    let number = *next;
                    *next += 1;
                    opened.push(Opened { opening, place, number, room });
                }
                // A caller that is gone needs no reply.
                Err(error) => drop(opening.reply.send(Err(error))),
            }
        }
        opened
    }

    /// Registers a request whose ticket is on record. If it isn't, the request must not leave.
    pub(super) fn begin(&mut self, opened: Opened, written: &Result<(), JournalError>) {
        let Opened { opening: Opening { feed, since, now, reply, .. }, place, room, .. } = opened;
        match written {
            Ok(()) => {
                let feed = self.feeds.name(&feed);
                self.open.insert(place, OpenRequest { feed, since, asked_at: now, room });
                self.reserved += room;
            }
            Err(_) => self.settle(place),
        }
        drop(reply.send(written.clone().map(|()| place)));
    }

    /// Releases the reservation of a request, and learns from the length of its answer if there was
    /// one.
    pub(super) fn end(&mut self, place: &Place, body: Option<usize>) {
        let Some(request) = self.open.remove(place) else { return };
        self.reserved -= request.room;
        if let Some(body) = body {
            self.room.learn(&request.feed, body);
        }
    }

    /// Space that counts against the limit, in bytes: files in use, and reservations.
    pub(super) fn used_bytes(&self) -> u64 {
        self.database.bytes() + self.reserved
    }

    fn has_room_for(&mut self, asked: u64) -> Result<(), JournalError> {
        if !self.in_memory.is_empty() {
            return Err(JournalError::PagesInMemory { pages: self.in_memory.len() });
        }
        let bytes = self.used_bytes() + asked;
        if bytes > self.max_size {
            let in_log = self.database.bytes_in_log();
            return Err(JournalError::Full { bytes, max_size: self.max_size, in_log });
        }
        let needed = self.reserved + asked;
        self.database
            .has_room_for(needed)
            .map_err(|available| JournalError::DiskFull { available, needed })
    }
}
