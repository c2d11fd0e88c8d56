//! An app whose credentials every host refuses: one request at a time, at growing intervals.
//!
//! Only a new secret or a change at Agora ends this, and probing one feed is enough to notice it.
//! So the feeds take turns, each with its next host, until one of them is let in; once the waits
//! have grown, that is at most one request a minute.

use std::time::Duration;

use rand::RngExt as _;
use rand::rngs::StdRng;
use tokio::time::Instant;

/// Waits between two requests.
const WAITS: [Duration; 6] = [
    Duration::from_secs(1),
    Duration::from_secs(3),
    Duration::from_secs(6),
    Duration::from_secs(15),
    Duration::from_secs(30),
    LONGEST,
];

/// At most one request a minute, [`JITTER`] included.
const LONGEST: Duration = Duration::from_secs(67);

/// Maximum share by which waits are shortened, so that apps with the same secret don't probe in
/// lockstep.
const JITTER: f64 = 0.1;

/// The requests of an app while every host refuses its credentials.
#[derive(Debug, Default)]
pub(super) struct Lockout {
    probes: usize,
    /// When the next request may leave.
    next_probe: Option<Instant>,
}

// === impl Lockout ===

impl Lockout {
    /// When the next request may leave; `None` if the app was never locked out.
    pub(super) fn next_probe(&self) -> Option<Instant> {
        self.next_probe
    }

    /// Records that a host refused the credentials and no other host is left.
    pub(super) fn refused(&mut self, now: Instant, random: &mut StdRng) {
        let wait = WAITS.get(self.probes).copied().unwrap_or(LONGEST);
        self.probes += 1;
        self.next_probe = Some(now + wait.mul_f64(1.0 - random.random_range(0.0..JITTER)));
    }
}
