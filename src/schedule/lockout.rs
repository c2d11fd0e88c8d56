//! An app whose credentials every host refuses: one request at a time, at longer and longer waits.
//!
//! Nothing but a new secret, or a change at Agora, ends this, and a request costs each of the app's
//! feeds nothing. So the feeds take turns, each at its next host, until one of them is let in: at most
//! one request a minute once the waits have grown.

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

/// With [`JITTER`], at most one request a minute.
const LONGEST: Duration = Duration::from_secs(67);

/// Waits are shortened by up to this share, so that apps with one secret don't stay together.
const JITTER: f64 = 0.1;

/// The requests of an app while it is locked out.
#[derive(Debug, Default)]
pub(super) struct Lockout {
    probes: usize,
    /// When the next request may leave.
    next_probe: Option<Instant>,
}

// === impl Lockout ===

impl Lockout {
    /// When the next request may leave; `None` where the app was never locked out.
    pub(super) fn next_probe(&self) -> Option<Instant> {
        self.next_probe
    }

    /// Notes that a host refused the credentials and no other one is left.
    pub(super) fn refused(&mut self, now: Instant, random: &mut StdRng) {
        let wait = WAITS.get(self.probes).copied().unwrap_or(LONGEST);
        self.probes += 1;
        self.next_probe = Some(now + wait.mul_f64(1.0 - random.random_range(0.0..JITTER)));
    }
}
