//! Simulated time that goes on while the bridge is dead.
//!
//! Each life of a bridge has a runtime of its own, whose paused clock begins anew. Agora and Kafka
//! live longer: they count from the beginning of the run.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::{Instant, advance, sleep, sleep_until};

/// The time since the run began, told by the clock of one life.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Now {
    born: Instant,
    born_at: Duration,
    /// For how many milliseconds the machine slept: nobody on it noticed, and the world went on.
    slept: &'static AtomicU64,
}

// === impl Now ===

impl Now {
    /// A life begins, so long after the run began. Has to be called inside its runtime.
    pub(crate) async fn born_at(born_at: Duration) -> Self {
        align().await;
        let slept = Box::leak(Box::new(AtomicU64::new(0)));
        Self { born: Instant::now(), born_at, slept }
    }

    /// The time since the run began.
    pub(crate) fn get(&self) -> Duration {
        self.born_at + self.born.elapsed() + self.slept()
    }

    /// The machine slept for so long.
    pub(crate) fn sleep(&self, lasts: Duration) {
        let millis = u64::try_from(lasts.as_millis()).expect("hours at the most");
        self.slept.fetch_add(millis, Ordering::Relaxed);
    }

    fn slept(&self) -> Duration {
        Duration::from_millis(self.slept.load(Ordering::Relaxed))
    }

    /// Waits until so long after the run began.
    pub(crate) async fn reaches(&self, at: Duration) {
        loop {
            let left = at.saturating_sub(self.born_at).saturating_sub(self.slept());
            if Instant::now() >= self.born + left {
                return;
            }
            sleep_until(self.born + left).await;
        }
    }
}

/// Puts the clock onto a tick of its timer, always the same one.
///
/// tokio's timers count milliseconds from the making of the runtime, and a clock that is paused
/// stands some microseconds behind that: how many, real time decides, and with it the rounding of
/// every wait. The number of ticks decides in which order timers of the same tick are found. A seed
/// would not be a seed.
async fn align() {
    const ALWAYS: Duration = Duration::from_millis(4_096);
    let tick = Duration::from_millis(1);
    let made = Instant::now();
    // The longest wait that takes one tick ends with it.
    let (mut short, mut long) = (Duration::ZERO, tick + Duration::from_nanos(1));
    while long - short > Duration::from_nanos(1) {
        let middle = (short + long) / 2;
        let begun = Instant::now();
        sleep(middle).await;
        if begun.elapsed() > tick {
            long = middle;
        } else {
            short = middle;
        }
    }
    advance(short).await;
    sleep_until(made + ALWAYS + short).await;
}
