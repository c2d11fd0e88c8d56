//! Progress of a long operation, on stderr: only on a terminal, and only after two seconds.

use std::io;
use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use indicatif::HumanCount;
use tokio::time::Instant;

/// Time after which progress is shown.
const SHOWN_AFTER: Duration = Duration::from_secs(2);

/// Number of steps between two looks at the clock.
const STEPS: u64 = 256;

/// Progress of an operation.
#[derive(Debug)]
pub(super) struct Progress {
    what: &'static str,
    begun: Instant,
    is_watched: bool,
    done: u64,
    total: u64,
    is_told: bool,
}

// === impl Progress ===

impl Progress {
    /// Starts an operation with this many steps.
    pub(super) fn begin(what: &'static str, total: u64) -> Self {
        let is_watched = io::stderr().is_terminal();
        Self { what, begun: Instant::now(), is_watched, done: 0, total, is_told: false }
    }

    /// One more step is done.
    pub(super) fn step(&mut self) {
        self.done += 1;
        if self.is_watched && self.done.is_multiple_of(STEPS) && self.begun.elapsed() > SHOWN_AFTER
        {
            let (what, done, total) = (self.what, HumanCount(self.done), HumanCount(self.total));
            // Failing to print must not stop the work.
            write!(io::stderr(), "\r{what}: {done} of {total} …").ok();
            self.is_told = true;
        }
    }
}

impl Drop for Progress {
    /// Clears the line.
    fn drop(&mut self) {
        if self.is_told {
            write!(io::stderr(), "\r\x1b[K").ok();
        }
    }
}
