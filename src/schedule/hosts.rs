//! Which host of a feed to ask next, and how long to leave each alone after it turned requests
//! down.
//!
//! Every host has its own backoff, so a second host never makes things worse for a feed. Of the
//! hosts that may be asked soonest, the feed asks its current one, then the preferred one. A host
//! that *failed* is asked again after the shortest interval, because a busy buffer overflows within
//! a second or two, and then after growing waits up to 6 s, as Agora's documents advise. A host
//! that *refused* (400, 401, 403, 404) is left immediately for the next one, and its own waits grow
//! to a minute: it may need a person, and each request costs the app budget. `Retry-After` delays
//! only the host that sent it.
//!
//! A good answer from a host ends its wait immediately, so a stray refusal that an overlapping
//! request contradicts costs nothing. Requests that are in flight together and fail count as one
//! failure.
//!
//! A silent host is left for the next one long before its requests have failed ([`super::feed`]).

use std::cmp::Reverse;
use std::time::Duration;

use rand::RngExt as _;
use rand::rngs::StdRng;
use tokio::time::Instant;

use super::Limits;

/// Waits after the second and each further consecutive failure of a host.
const AFTER_FAILURES: [Duration; 5] = [
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(3),
    Duration::from_secs(6),
];

/// Waits after each consecutive refusal of a host.
const AFTER_REFUSALS: [Duration; 7] = [
    Duration::from_secs(1),
    Duration::from_secs(3),
    Duration::from_secs(6),
    Duration::from_secs(12),
    Duration::from_secs(24),
    Duration::from_secs(48),
    Duration::from_secs(60),
];

/// Maximum share by which waits are shortened, so that feeds that failed together don't all retry
/// at the same instant.
const JITTER: f64 = 0.2;

/// Time for which another host must have served before the preferred one is tried again: a minute
/// is too short for a host that comes and goes, and each move may bring repeats from another
/// region.
const RETURN_AFTER: Duration = Duration::from_secs(300);

/// The hosts of one feed, in failover order.
#[derive(Debug)]
pub(super) struct Hosts {
    hosts: Vec<HostState>,
    current: usize,
    /// Whether the current host has answered since the feed moved to it.
    proven: bool,
    /// When the current host began to serve, if it isn't the preferred one.
    away_since: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct HostState {
    verdict: LastOutcome,
    /// Number of consecutive requests turned down.
    strikes: usize,
    /// When it last turned one down.
    struck_at: Option<Instant>,
    /// No request to it before this moment.
    not_before: Instant,
}

/// Outcome of the last request to a host that ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LastOutcome {
    /// It answered, or hasn't been asked yet.
    Well,
    Failed,
    Refused(Refusal),
}

/// What a host refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The credentials: 401.
    Credentials,
    /// The App ID, the service or the path: 400, 403, 404.
    Request,
}

/// How a host turned a request down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TurnedDown {
    /// What it refuses; `None` if it failed and the next request may work.
    pub(super) refuses: Option<Refusal>,
    /// Its `Retry-After`.
    pub(super) retry_after: Option<Duration>,
}

// === impl Hosts ===

impl Hosts {
    /// Hosts that haven't been asked yet.
    pub(super) fn new(count: usize, now: Instant) -> Self {
        let host =
            HostState { verdict: LastOutcome::Well, strikes: 0, struck_at: None, not_before: now };
        Self { hosts: vec![host; count.max(1)], current: 0, proven: true, away_since: None }
    }

    /// The host to ask; 0 is the preferred one.
    pub(super) fn current(&self) -> usize {
        self.current
    }

    /// Another host that may be asked now, the preferred one first.
    pub(super) fn other(&self, now: Instant) -> Option<usize> {
        let others = self.hosts.iter().enumerate().filter(|(index, _)| *index != self.current);
        let mut free = others.filter(|(_, host)| host.not_before <= now);
        free.next().map(|(index, _)| index)
    }

    /// When another host may be asked; `None` where there is none.
    pub(super) fn other_from(&self) -> Option<Instant> {
        let hosts = self.hosts.iter().enumerate();
        let others = hosts.filter(|(index, _)| *index != self.current);
        others.map(|(_, host)| host.not_before).min()
    }

    /// When the current host may be asked.
    pub(super) fn not_before(&self) -> Instant {
        self.host().not_before
    }

    /// Whether the current host has answered since the feed moved to it.
    pub(super) fn is_proven(&self) -> bool {
        self.proven
    }

    /// Whether every host refuses the credentials, as far as is known.
    pub(super) fn refuse_credentials(&self) -> bool {
        let refused = LastOutcome::Refused(Refusal::Credentials);
        self.hosts.iter().all(|host| host.verdict == refused)
    }

    /// Records that a host turned down a request that left at `sent`, and chooses the next host.
    pub(super) fn turned_down(
        &mut self,
        sent: Instant,
        host: usize,
        how: TurnedDown,
        now: Instant,
        limits: &Limits,
        random: &mut StdRng,
    ) {
        let shortened = 1.0 - random.random_range(0.0..JITTER);
        let soon = limits.shortest_interval.mul_f64(shortened);
        let Some(of_host) = self.hosts.get_mut(host) else { return };
        // Requests in flight together are turned down together: that is one strike.
        if of_host.struck_at.is_none_or(|at| sent >= at) {
            of_host.strike(how, now, limits.shortest_interval, shortened);
        }
        if host != self.current {
            return;
        }
        let next_request = now + soon;
        let soonest = self.hosts.iter().enumerate().min_by_key(|(index, host)| {
            (host.not_before.max(next_request), Reverse(*index == self.current), *index)
        });
        let next = soonest.map_or(0, |(index, _)| index);
        if next != self.current {
            self.move_to(next);
        }
        let waits = &mut self.hosts.get_mut(next).expect("it was found there").not_before;
        *waits = (*waits).max(next_request);
    }

    /// Records that the current host is silent.
    pub(super) fn doubt(&mut self, now: Instant) {
        if let Some(other) = self.other(now) {
            self.move_to(other);
        }
    }

    /// Records a good answer from a host.
    pub(super) fn answered(&mut self, host: usize, now: Instant) {
        // The feed has moved on, but the new host hasn't proved to be better.
        if host != self.current && !self.proven {
            self.move_to(host);
        }
        if let Some(of_host) = self.hosts.get_mut(host) {
            of_host.verdict = LastOutcome::Well;
            of_host.strikes = 0;
            of_host.not_before = of_host.not_before.min(now);
        }
        if host != self.current {
            return;
        }
        self.proven = true;
        if self.current == 0 {
            return;
        }
        let since = *self.away_since.get_or_insert(now);
        let preferred_waits = self.hosts.first().is_some_and(|host| now < host.not_before);
        if now >= since + RETURN_AFTER && !preferred_waits {
            self.move_to(0);
        }
    }

    /// Clears refusals of the credentials: the bridge has new ones, or another host accepts them.
    pub(super) fn forgive_credentials(&mut self, now: Instant) {
        for host in &mut self.hosts {
            if host.verdict == LastOutcome::Refused(Refusal::Credentials) {
                // Requests that are still in flight carry the old ones.
                *host = HostState {
                    verdict: LastOutcome::Well,
                    strikes: 0,
                    struck_at: Some(now),
                    not_before: host.not_before.min(now),
                };
            }
        }
    }

    fn move_to(&mut self, host: usize) {
        self.current = host;
        self.proven = false;
        self.away_since = None;
    }

    fn host(&self) -> &HostState {
        self.hosts.get(self.current).expect("the current host is one of them")
    }
}

// === impl Host ===

impl HostState {
    fn strike(&mut self, how: TurnedDown, now: Instant, shortest: Duration, shortened: f64) {
        let verdict = how.refuses.map_or(LastOutcome::Failed, LastOutcome::Refused);
        if verdict != self.verdict {
            self.strikes = 0;
        }
        let wait = match (how.refuses, self.strikes.checked_sub(1)) {
            (None, None) => shortest,
            (None, Some(earlier)) => nth(&AFTER_FAILURES, earlier),
            (Some(_), _) => nth(&AFTER_REFUSALS, self.strikes),
        };
        let wait = wait.mul_f64(shortened);
        self.verdict = verdict;
        self.strikes += 1;
        self.struck_at = Some(now);
        self.not_before = now + how.retry_after.unwrap_or_default().max(wait);
    }
}

/// The wait at this index, or the longest.
fn nth(waits: &[Duration], place: usize) -> Duration {
    waits.get(place).or(waits.last()).copied().unwrap_or_default()
}
