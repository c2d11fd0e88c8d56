//! How long a feed that fails is left alone, and which of its hosts is asked next.
//!
//! Agora documents the order: the same host again, then the other one, waiting 1 s, 3 s, 6 s. A
//! single failure (a connection that died in the pool, one 503) is tried again after the shortest
//! interval, because a busy buffer runs over within a second. Requests that fail together (several
//! may be out) are one failure. A host that is only silent is doubted: the next request goes to the
//! next host, long before the silent ones have failed.

use std::time::Duration;

use rand::RngExt as _;
use rand::rngs::StdRng;
use tokio::time::Instant;

use super::Limits;

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
    failed_at: Option<Instant>,
    /// Since when the host that is not the preferred one serves.
    away_since: Option<Instant>,
}

// === impl Backoff ===

impl Backoff {
    /// A feed that has not failed yet.
    pub(super) fn new(hosts: usize) -> Self {
        Self { hosts, host: 0, failures: 0, failed_at: None, away_since: None }
    }

    /// The host to ask; 0 is the preferred one.
    pub(super) fn host(&self) -> usize {
        self.host
    }

    /// The host behind it.
    pub(super) fn next_host(&self) -> usize {
        (self.host + 1) % self.hosts
    }

    /// Notes that a request failed that left for a host then. How long to wait; `None` where the
    /// failure is part of one that is known.
    pub(super) fn failed(
        &mut self,
        sent: Instant,
        host: usize,
        now: Instant,
        limits: &Limits,
        random: &mut StdRng,
    ) -> Option<Duration> {
        if host != self.host || self.failed_at.is_some_and(|at| sent < at) {
            return None;
        }
        self.failures += 1;
        self.failed_at = Some(now);
        if self.failures >= FAILURES_TO_MOVE {
            self.move_on();
        }
        let wait = match usize::try_from(self.failures).unwrap_or(usize::MAX) {
            1 => limits.shortest_interval,
            failures => *WAITS.get(failures - 2).unwrap_or(&WAITS[2]),
        };
        Some(wait.mul_f64(random.random_range(0.8..1.2)))
    }

    /// Notes that the host is silent.
    pub(super) fn doubt(&mut self, now: Instant) {
        self.failed_at = Some(now);
        self.move_on();
    }

    /// Notes an answer of a host.
    pub(super) fn succeeded(&mut self, host: usize, now: Instant) {
        if host != self.host {
            return;
        }
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

    fn move_on(&mut self) {
        self.host = self.next_host();
        self.away_since = None;
    }
}
