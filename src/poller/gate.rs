//! The rate-limit guard: the last check before a request leaves.
//!
//! The schedule's own rule is stricter. This guard uses an independent implementation (`governor`),
//! in case ours is wrong. It is only the backstop behind the exact window: its algorithm lets a full
//! burst plus the refill through in one second. It is sized to allow everything that the rule allows,
//! so a refusal is a bug.

use std::num::NonZeroU32;

use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use tokio::time::Instant;

/// Lets one second's worth of requests pass at once, and then that many per second.
#[derive(Debug)]
pub(super) struct Gate {
    limiter: RateLimiter<NotKeyed, InMemoryState, TokioClock, NoOpMiddleware<Nanos>>,
}

/// tokio's clock. governor's own clocks keep running while a test has paused the time.
#[derive(Clone, Debug)]
struct TokioClock {
    origin: Instant,
}

// === impl Gate ===

impl Gate {
    pub(super) fn new(requests_per_second: NonZeroU32) -> Self {
        let clock = TokioClock { origin: Instant::now() };
        let quota = Quota::per_second(requests_per_second);
        Self { limiter: RateLimiter::direct_with_clock(quota, clock) }
    }

    /// Whether a request may pass now.
    pub(super) fn opens(&self) -> bool {
        self.limiter.check().is_ok()
    }
}

// === impl TokioClock ===

impl Clock for TokioClock {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        self.origin.elapsed().into()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_refuses_what_the_rule_never_allows() {
        let gate = Gate::new(NonZeroU32::new(10).unwrap());
        for _ in 0..5 {
            assert!((0..10).all(|_| gate.opens()));
            tokio::time::advance(Duration::from_millis(1_005)).await;
        }
        assert!((0..10).all(|_| gate.opens()));
        assert!(!gate.opens());
    }
}
