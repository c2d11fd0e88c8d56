//! How long a connection to a host may have been idle and still be reused.
//!
//! Servers close idle connections after a timeout of their own. A request that is written at that
//! moment gets no answer, and nothing shows whether it was served: that is a gap. So our limit
//! stays below the server's timeout, which we learn in two ways: from `Keep-Alive: timeout=N`, and
//! from connections that died when they were reused.
//!
//! Pure: time is passed in.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::Instant;

/// Limit for a host that nothing is known about: idle connections are closed before a load balancer
/// does it (60 s and more are usual).
pub(super) const LONGEST: Duration = Duration::from_secs(15);

/// Limit below which no connection is kept: hardly any request would find one.
pub(super) const SHORTEST: Duration = Duration::from_millis(50);

/// A connection that dies after less idle time than this wasn't idle for too long: the server
/// restarts, or a load balancer drops it. Without reuse, a load with requests this frequent would
/// pay two more round trips per request.
const SOONEST: Duration = Duration::from_millis(200);

/// Share of the server's timeout that is used: its timer started with the last byte it wrote, a
/// round trip before ours.
const SHARE: f64 = 0.75;

/// Time for which an announcement holds if it isn't repeated. Any answer may come from another
/// server behind the same name, so the shortest announcement counts.
const HOLDS: Duration = Duration::from_secs(300);

/// Time after which a limit learned from a death is doubled. Each further death doubles this time,
/// because each may be a gap …
const FIRST_WAIT: Duration = Duration::from_secs(600);

/// … up to this.
const LONGEST_WAIT: Duration = Duration::from_secs(24 * 3_600);

/// What is known about one host.
#[derive(Debug, Default)]
pub(super) struct IdleLimit {
    /// The announced limit, and how long it holds.
    announced: Option<(Duration, Instant)>,
    /// The limit learned from deaths, and when it is doubled.
    learned: Option<(Duration, Instant)>,
    /// Number of deaths since the limit was last at its longest.
    deaths: u32,
}

/// When the connections of a host were last used, by their local addresses.
#[derive(Debug, Default)]
pub(super) struct Used {
    at: HashMap<SocketAddr, Instant>,
    /// The number of entries at which old ones are removed.
    trim_at: usize,
}

// === impl IdleLimit ===

impl IdleLimit {
    /// Maximum idle time of a connection that is reused.
    pub(super) fn limit(&mut self, now: Instant) -> Duration {
        while let Some((limit, due)) = self.learned.filter(|(_, due)| *due <= now) {
            if limit >= LONGEST {
                self.learned = None;
                self.deaths = 0;
            } else {
                let longer = (limit.max(SHORTEST) * 2).min(LONGEST);
                self.learned = Some((longer, due + self.wait()));
            }
        }
        self.announced = self.announced.filter(|(_, until)| now < *until);
        let known = [self.announced, self.learned].into_iter().flatten();
        known.map(|(limit, _)| limit).min().unwrap_or(LONGEST).min(LONGEST)
    }

    /// Records the idle timeout that the server announces in an answer.
    pub(super) fn announce(&mut self, timeout: Duration, now: Instant) {
        let limit = timeout.mul_f64(SHARE);
        let shortest = match self.announced {
            Some((known, until)) if now < until && known < limit => return,
            _ => limit,
        };
        self.announced = Some((shortest, now + HOLDS));
    }

    /// Records that a connection died on reuse after it had been idle this long.
    pub(super) fn died(&mut self, idle: Duration, now: Instant) {
        if idle < SOONEST {
            return;
        }
        let limit = idle.mul_f64(SHARE).min(self.limit(now));
        self.deaths = self.deaths.saturating_add(1);
        self.learned = Some((limit, now + self.wait()));
    }

    fn wait(&self) -> Duration {
        let doubled = 2_u32.saturating_pow(self.deaths.saturating_sub(1));
        FIRST_WAIT.saturating_mul(doubled).min(LONGEST_WAIT)
    }
}

/// The timeout in a `Keep-Alive` header (RFC 2068, section 19.7.1): `timeout=5, max=100`.
pub(super) fn announced(header: &str) -> Option<Duration> {
    header.split(',').find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        let seconds: u32 = value.trim().trim_matches('"').parse().ok()?;
        let is_it = name.trim().eq_ignore_ascii_case("timeout");
        is_it.then(|| Duration::from_secs(seconds.into()))
    })
}

// === impl Used ===

impl Used {
    /// Records that a connection is idle from now on.
    pub(super) fn note(&mut self, connection: SocketAddr, now: Instant) {
        if self.at.len() >= self.trim_at {
            // No pool keeps a connection this long; the factor of two allows for clocks and
            // schedulers.
            self.at.retain(|_, at| now.saturating_duration_since(*at) < LONGEST * 2);
            self.trim_at = 64 + self.at.len() * 2;
        }
        self.at.insert(connection, now);
    }

    /// How long a connection that died had been idle at `asked`; `None` if it was a new one.
    pub(super) fn forget(&mut self, connection: SocketAddr, asked: Instant) -> Option<Duration> {
        self.at.remove(&connection).map(|at| asked.saturating_duration_since(at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn minutes(count: u32) -> Duration {
        Duration::from_secs(60) * count
    }

    #[test]
    fn an_announced_time_is_kept_below_for_as_long_as_it_is_announced() {
        let (mut idle, begin) = (IdleLimit::default(), Instant::now());
        assert_eq!(idle.limit(begin), LONGEST);
        idle.announce(2 * SECOND, begin);
        assert_eq!(idle.limit(begin), SECOND.mul_f64(1.5));
        // Another server behind the same name has a longer timeout.
        idle.announce(60 * SECOND, begin + SECOND);
        assert_eq!(idle.limit(begin + SECOND), SECOND.mul_f64(1.5));
        idle.announce(2 * SECOND, begin + minutes(4));
        assert_eq!(idle.limit(begin + minutes(8)), SECOND.mul_f64(1.5), "it was repeated");
        assert_eq!(idle.limit(begin + minutes(9)), LONGEST, "no longer announced");
        idle.announce(60 * SECOND, begin + minutes(9));
        assert_eq!(idle.limit(begin + minutes(9)), LONGEST, "ours is shorter");
    }

    #[test]
    fn a_death_shrinks_the_limit_at_once_and_it_recovers_more_slowly_each_time() {
        let (mut idle, begin) = (IdleLimit::default(), Instant::now());
        idle.died(2 * SECOND, begin);
        let learned = SECOND.mul_f64(1.5);
        assert_eq!(idle.limit(begin), learned);
        assert_eq!(idle.limit(begin + minutes(9)), learned);
        let second = begin + minutes(10);
        assert_eq!(idle.limit(second), learned * 2);
        idle.died(2 * SECOND, second);
        assert_eq!(idle.limit(second + minutes(19)), learned);
        assert_eq!(idle.limit(second + minutes(20)), learned * 2);
        // A day with a server timeout of 2 s and requests at the same interval.
        let (mut deaths, mut now) = (2, second + minutes(20));
        while now < begin + minutes(24 * 60) {
            if idle.limit(now) > 2 * SECOND {
                idle.died(2 * SECOND, now);
                deaths += 1;
            }
            now += minutes(1);
        }
        assert!(deaths <= 8, "{deaths} in a day");
    }

    #[test]
    fn a_host_without_further_deaths_is_as_new_after_a_while() {
        let (mut idle, begin) = (IdleLimit::default(), Instant::now());
        for _ in 0..40 {
            idle.died(SECOND, begin);
        }
        assert_eq!(idle.limit(begin), SECOND.mul_f64(0.75));
        assert_eq!(idle.limit(begin + minutes(24 * 60)), SECOND.mul_f64(1.5));
        let healed = begin + minutes(7 * 24 * 60);
        assert_eq!(idle.limit(healed), LONGEST);
        idle.died(SECOND, healed);
        assert_eq!(
            idle.limit(healed + minutes(10)),
            SECOND.mul_f64(1.5),
            "the wait is short again"
        );
    }

    #[test]
    fn a_connection_that_dies_in_the_midst_of_work_was_not_idle_for_too_long() {
        let (mut idle, now) = (IdleLimit::default(), Instant::now());
        idle.died(SOONEST - Duration::from_millis(1), now);
        assert_eq!(idle.limit(now), LONGEST);
        idle.died(SOONEST, now);
        assert_eq!(idle.limit(now), Duration::from_millis(150));
    }

    #[test]
    fn a_keep_alive_header_is_read_as_servers_write_it() {
        for (header, seconds) in [
            ("timeout=5", Some(5)),
            ("timeout=5, max=100", Some(5)),
            ("max=100, Timeout = \"2\"", Some(2)),
            ("timeout=0", Some(0)),
            ("max=100", None),
            ("timeout=soon", None),
            ("", None),
        ] {
            assert_eq!(announced(header), seconds.map(Duration::from_secs), "{header}");
        }
    }

    #[test]
    fn what_is_noted_of_connections_stays_small_however_many_there_were() {
        let (mut used, begin) = (Used::default(), Instant::now());
        for number in 0..60_000_u16 {
            let now = begin + Duration::from_millis(100) * u32::from(number);
            used.note(SocketAddr::from(([127, 0, 0, 1], number)), now);
            assert!(used.at.len() <= 64 + 2 * 300, "{}", used.at.len());
        }
        let last = SocketAddr::from(([127, 0, 0, 1], 59_999));
        let later = begin + Duration::from_millis(100) * 60_009;
        assert_eq!(used.forget(last, later), Some(SECOND));
        assert_eq!(used.forget(last, later), None, "it is gone");
    }
}
