//! The queue of lines for a reader that may be slow, stalled or gone.
//!
//! Logging adds a whole line to the queue and never waits; one thread writes, and only that thread
//! waits for the reader. Memory is bounded: a line that finds no room is dropped and counted. Once
//! a line is dropped, all further lines except errors are dropped until the queue has been written
//! out. Then one line reports, in their place, how many are missing. So lines stay in order, and a
//! slow reader gets long contiguous pieces instead of every second line.
//!
//! Errors have extra room, since the README promises an ERROR line for each possible loss.
//!
//! tracing-appender's `non_blocking` limits lines and not bytes, reserves no room for errors, and
//! doesn't report where lines are missing.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{io, mem};

use prometheus_client::metrics::counter::Counter;
use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

use crate::error::may_panic;
use crate::model::{Clock, Timestamp};

/// Maximum size of a write in bytes, except for a longer line. A pipe accepts this much atomically
/// (`PIPE_BUF`), so processes that share one don't split each other's lines.
const LARGEST_WRITE: usize = 4_096;

/// Lines waiting for the reader of stderr. Cheap to clone; clones share.
#[derive(Clone, Debug)]
pub(super) struct Queue {
    shared: Arc<Shared>,
}

/// Limits on the queued lines, and the pauses after a failed write.
#[derive(Clone, Copy, Debug)]
pub(super) struct QueueLimits {
    /// Room for lines of all levels, in bytes.
    pub(super) room: usize,
    /// Additional room for errors, in bytes.
    pub(super) room_for_errors: usize,
    /// Pause between attempts while the reader is gone or the disk is full.
    pub(super) retry: Duration,
    /// Pause between attempts while the reader is slow and stderr is non-blocking, because a
    /// process that shares it made it so.
    pub(super) retry_full: Duration,
}

/// A contiguous sequence of dropped lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Dropped {
    /// Their number.
    pub(super) lines: u64,
    /// The number of ERROR lines among them.
    pub(super) errors: u64,
    /// When the first of them was dropped.
    pub(super) since: Timestamp,
}

/// Writes one line for `tracing_subscriber`.
#[derive(Debug)]
pub(super) struct Entry<'q> {
    queue: &'q Queue,
    level: Level,
}

#[derive(Debug)]
struct Shared {
    limits: QueueLimits,
    dropped: Counter,
    state: Mutex<State>,
    /// Notified when there is something to write.
    filled: Condvar,
    /// Notified when something was written or a write failed.
    written: Condvar,
}

#[derive(Debug, Default)]
struct State {
    lines: VecDeque<Box<[u8]>>,
    /// Total size of the lines that are not written yet, in bytes.
    bytes: usize,
    /// Dropped lines that are not reported yet.
    dropped: Dropped,
    /// Dropped lines in the report that is being written.
    reported: Dropped,
    is_writing: bool,
    /// Whether the last write failed for another reason than a slow reader.
    is_broken: bool,
    is_closed: bool,
}

/// The content of one write.
enum Batch {
    Lines(Vec<u8>),
    Report(Dropped),
}

// === impl Queue ===

impl Queue {
    pub(super) fn new(limits: QueueLimits) -> Self {
        let shared = Shared {
            limits,
            dropped: Counter::default(),
            state: Mutex::default(),
            filled: Condvar::new(),
            written: Condvar::new(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Adds a whole line, or drops it. Never waits for the reader.
    pub(super) fn push(&self, level: Level, line: &[u8]) {
        let QueueLimits { room, room_for_errors, .. } = self.shared.limits;
        let line = Box::from(line);
        let is_error = level == Level::ERROR;
        let mut state = self.lock();
        let has_place = if is_error {
            state.has_room(&line, room.saturating_add(room_for_errors))
        } else {
            state.dropped.lines == 0 && state.has_room(&line, room)
        };
        if has_place {
            state.bytes += line.len();
            state.lines.push_back(line);
            drop(state);
            self.shared.filled.notify_one();
        } else {
            state.dropped.add(is_error);
            drop(state);
            self.shared.dropped.inc();
        }
    }

    /// Writes to `out` until the queue is closed; `report` formats the line about dropped lines.
    ///
    /// After a failed write, the rest is tried again: a disk may have room again later, and a named
    /// pipe may get another reader.
    pub(super) fn write_to(&self, mut out: impl io::Write, report: impl Fn(Dropped) -> Vec<u8>) {
        while let Some(batch) = self.next() {
            may_panic("log");
            let (bytes, room) = match batch {
                Batch::Lines(bytes) => {
                    let room = bytes.len();
                    (bytes, room)
                }
                Batch::Report(dropped) => (report(dropped), 0),
            };
            if !self.write(&mut out, &bytes) {
                return;
            }
            let mut state = self.lock();
            state.bytes -= room;
            state.reported = Dropped::default();
            state.is_writing = false;
            drop(state);
            self.shared.written.notify_all();
        }
    }

    /// Waits until everything is written, for at most `limit`; doesn't wait while writing fails.
    pub(super) fn flush(&self, limit: Duration) {
        let is_open = |state: &mut State| !state.is_broken && !state.is_written();
        // Complete or not, there is nothing more to do.
        drop(self.shared.written.wait_timeout_while(self.lock(), limit, is_open));
    }

    /// Dropped lines that no written line has reported; `None` if there are none.
    pub(super) fn missing(&self) -> Option<Dropped> {
        let state = self.lock();
        let missing = state.reported.and(state.dropped);
        (missing.lines > 0).then_some(missing)
    }

    /// The number of lines dropped since the start.
    pub(super) fn dropped(&self) -> &Counter {
        &self.shared.dropped
    }

    /// Lets the writer return once everything is written.
    #[cfg(test)]
    pub(super) fn close(&self) {
        self.lock().is_closed = true;
        self.shared.filled.notify_all();
    }

    /// Waits for something to write; `None` once the queue is closed.
    fn next(&self) -> Option<Batch> {
        let mut state = self.lock();
        loop {
            let batch = state.lines_at_once().map(Batch::Lines);
            if let Some(batch) = batch.or_else(|| state.begin_report().map(Batch::Report)) {
                state.is_writing = true;
                return Some(batch);
            }
            if state.is_closed {
                return None;
            }
            state = self.shared.filled.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Writes all of it. Returns false if the queue was closed first.
    fn write(&self, out: &mut impl io::Write, mut bytes: &[u8]) -> bool {
        let QueueLimits { retry, retry_full, .. } = self.shared.limits;
        while !bytes.is_empty() {
            #[expect(clippy::disallowed_methods, reason = "the rest is tried again, not the whole")]
            let pause = match out.write(bytes) {
                Ok(0) => retry,
                Ok(count) => {
                    bytes = bytes.get(count..).unwrap_or_default();
                    self.lock().is_broken = false;
                    continue;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == ErrorKind::WouldBlock => retry_full,
                Err(_) => retry,
            };
            if !self.pause(pause, pause == retry) {
                return false;
            }
        }
        true
    }

    /// Waits for `time` after a failed write. Returns false if the queue was closed.
    fn pause(&self, time: Duration, is_broken: bool) -> bool {
        let mut state = self.lock();
        state.is_broken = is_broken;
        self.shared.written.notify_all();
        let is_open = |state: &mut State| !state.is_closed;
        let waited = self.shared.filled.wait_timeout_while(state, time, is_open);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        !state.is_closed
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is consistent at any time, even after a panic.
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<'q> MakeWriter<'q> for Queue {
    type Writer = Entry<'q>;

    fn make_writer(&'q self) -> Entry<'q> {
        Entry { queue: self, level: Level::INFO }
    }

    fn make_writer_for(&'q self, metadata: &Metadata<'_>) -> Entry<'q> {
        Entry { queue: self, level: *metadata.level() }
    }
}

// === impl Entry ===

impl io::Write for Entry<'_> {
    /// Expects whole lines, as the layer writes them.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.queue.push(self.level, line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

// === impl State ===

impl State {
    fn has_room(&self, line: &[u8], room: usize) -> bool {
        self.bytes.saturating_add(line.len()) <= room
    }

    /// Takes as many lines as fit into one write, but at least one.
    fn lines_at_once(&mut self) -> Option<Vec<u8>> {
        let mut bytes = self.lines.pop_front()?.into_vec();
        while let Some(next) = self.lines.front()
            && bytes.len() + next.len() <= LARGEST_WRITE
        {
            bytes.extend_from_slice(next);
            self.lines.pop_front();
        }
        Some(bytes)
    }

    /// Takes the dropped lines to report, now that all lines before them are written.
    fn begin_report(&mut self) -> Option<Dropped> {
        if self.dropped.lines == 0 {
            return None;
        }
        self.reported = mem::take(&mut self.dropped);
        Some(self.reported)
    }

    fn is_written(&self) -> bool {
        self.lines.is_empty() && !self.is_writing && self.dropped.lines == 0
    }
}

// === impl Dropped ===

impl Dropped {
    fn add(&mut self, is_error: bool) {
        if self.lines == 0 {
            self.since = Clock::system().now();
        }
        self.lines += 1;
        self.errors += u64::from(is_error);
    }

    fn and(self, later: Self) -> Self {
        let since = if self.lines > 0 { self.since } else { later.since };
        let (lines, errors) = (self.lines + later.lines, self.errors + later.errors);
        Self { lines, errors, since }
    }
}

#[cfg(test)]
mod tests;
