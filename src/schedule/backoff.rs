//! How long a feed that fails is left alone, and which of its hosts is asked next.
//!
//! Agora documents the order: the same host again, then the other one, waiting 1 s, 3 s, 6 s. A
//! single failure (a connection that died in the pool, one 503) is tried again after the shortest
//! interval, because a busy buffer runs over within a second.

use std::time::Duration;

use rand::RngExt as _;
use rand::rngs::StdRng;
use tokio::time::Instant;

/// The waits after the second, third and every further failure in a row.
const WAITS: [Duration; 3] =
    [Duration::from_secs(1), Duration::from_secs(3), Duration::from_secs(6)];

/// Failures in a row from which on each one moves to the next host.
const FAILURES_TO_MOVE: u32 = 2;

/// How long another host must have served before the preferred one is tried again.
const RETURN_AFTER: Duration = Duration::from_secs(300);

/// The failures of one feed.
#[derive(Debug)]
pub(super) struct Backoff {
    hosts: usize,
    host: usize,
    failures: u32,
    away_since: Option<Instant>,
}

// === impl Backoff ===

impl Backoff {
    /// A feed that has not failed yet.
    pub(super) fn new(hosts: usize) -> Self {
        Self { hosts, host: 0, failures: 0, away_since: None }
    }

    /// The host to ask; 0 is the preferred one.
    pub(super) fn host(&self) -> usize {
        self.host
    }

    /// Notes a failure; how long to wait.
    pub(super) fn failed(&mut self, shortest: Duration, random: &mut StdRng) -> Duration {
        self.failures += 1;
        if self.failures >= FAILURES_TO_MOVE {
            self.host = (self.host + 1) % self.hosts;
            self.away_since = None;
        }
        let wait = match usize::try_from(self.failures).unwrap_or(usize::MAX) {
            1 => shortest,
            failures => *WAITS.get(failures - 2).unwrap_or(&WAITS[2]),
        };
        wait.mul_f64(random.random_range(0.8..1.2))
    }

    /// Notes an answer.
    pub(super) fn succeeded(&mut self, now: Instant) {
        self.failures = 0;
        if self.host == 0 {
            return;
        }
        let since = *self.away_since.get_or_insert(now);
        if now >= since + RETURN_AFTER {
            self.host = 0;
            self.away_since = None;
        }
    }
}
