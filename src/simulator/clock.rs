//! When the events of one endpoint of one App ID happen: its rate, its ramp, its bursts.
//!
//! Each clock has its own random generator, so that its times depend only on the script, not on
//! which users act (`load.rs`) or on the requests. This lets `counted.rs` count exactly the events
//! that the [`World`](super::World) writes out.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::script::{Burst, Load, RandomBursts, Script};
use crate::model::Endpoint;

/// Generates the times of events.
#[derive(Debug)]
pub(super) struct Clock {
    rng: StdRng,
    pace: Pace,
    /// When the rate produces its next event.
    regular: Duration,
    /// When the next event of a burst is due, or the start of a random burst.
    irregular: Duration,
    bursts: Vec<Running>,
    random_bursts: Option<(Duration, RandomBursts)>,
}

/// A rate that changes linearly between points.
#[derive(Debug)]
struct Pace {
    even: bool,
    /// (seconds, events per second), in order of time; never empty.
    points: Vec<(f64, f64)>,
}

/// A burst, running or scheduled.
#[derive(Debug)]
struct Running {
    next: Duration,
    gap: Duration,
    left: u32,
}

/// A random generator for one purpose, so that draws for one purpose never affect another's.
pub(super) fn randomness(seed: u64, purpose: u64) -> StdRng {
    // The bits of the golden ratio keep neighbouring purposes of neighbouring seeds apart.
    StdRng::seed_from_u64(seed ^ purpose.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

// === impl Clock ===

impl Clock {
    /// The clock of one endpoint of the App ID with this index in the script.
    pub(super) fn new(script: &Script, app: usize, endpoint: Endpoint) -> Self {
        let purpose = 1_000 + 2 * app as u64 + u64::from(endpoint == Endpoint::Channel);
        let mut rng = randomness(script.seed, purpose);
        let nothing = Load::default();
        let load = script.apps.get(app).map_or(&nothing, |app| app.load(endpoint));
        let pace = Pace::new(load);
        let regular = pace.next(Duration::ZERO, &mut rng);
        let random_bursts =
            load.random_bursts.map(|bursts| (bursts.next(Duration::ZERO, &mut rng), bursts));
        let bursts = load.bursts.iter().filter_map(Running::new).collect();
        let irregular = Duration::ZERO;
        let mut clock = Self { rng, pace, regular, irregular, bursts, random_bursts };
        clock.irregular = clock.next_irregular();
        clock
    }

    /// When the next step is due: an event, or the start of a random burst.
    pub(super) fn due(&self) -> Duration {
        self.regular.min(self.irregular)
    }

    /// Performs the step that is due and returns whether an event happens; the start of a random
    /// burst is not an event yet.
    pub(super) fn step(&mut self) -> bool {
        if self.regular <= self.irregular {
            self.regular = self.pace.next(self.regular, &mut self.rng);
            return true;
        }
        let happens = self.step_irregular(self.irregular);
        self.irregular = self.next_irregular();
        happens
    }

    /// The next event no later than `now`.
    pub(super) fn next_until(&mut self, now: Duration) -> Option<Duration> {
        loop {
            let at = self.due();
            if at > now {
                return None;
            }
            if self.step() {
                return Some(at);
            }
        }
    }

    /// Adds a burst of `events` at `now`, on top of the script.
    pub(super) fn burst(&mut self, now: Duration, events: u32) {
        self.bursts.push(Running { next: now, gap: Duration::ZERO, left: events });
        self.irregular = self.next_irregular();
    }

    fn next_irregular(&self) -> Duration {
        let bursts = self.bursts.iter().map(|it| it.next);
        let begins = self.random_bursts.map(|(at, _)| at);
        bursts.chain(begins).min().unwrap_or(Duration::MAX)
    }

    fn step_irregular(&mut self, at: Duration) -> bool {
        if let Some(index) = self.bursts.iter().position(|burst| burst.next == at) {
            let burst = self.bursts.get_mut(index).expect("the burst that is due");
            burst.left -= 1;
            burst.next += burst.gap;
            if burst.left == 0 {
                self.bursts.swap_remove(index);
            }
            return true;
        }
        let (next, bursts) = self.random_bursts.as_mut().expect("the bursts that are due");
        *next = bursts.next(at, &mut self.rng);
        let burst = Burst { at, events: bursts.events, over: Duration::ZERO };
        self.bursts.extend(Running::new(&burst));
        false
    }
}

// === impl Pace ===

impl Pace {
    fn new(load: &Load) -> Self {
        let ramp = load.ramp.iter().map(|point| (point.at.as_secs_f64(), point.rate));
        Self { even: load.even, points: std::iter::once((0.0, load.rate)).chain(ramp).collect() }
    }

    /// When the next event happens after the one at `after`.
    fn next(&self, after: Duration, rng: &mut StdRng) -> Duration {
        let work = if self.even { 1.0 } else { exponential(rng) };
        seconds(self.reach(after.as_secs_f64(), work))
    }

    /// When the integral of the rate from `at` on reaches `work`; infinity if it never does.
    fn reach(&self, mut at: f64, mut work: f64) -> f64 {
        for (start, end) in self.points.iter().zip(self.points.iter().skip(1)) {
            if end.0 <= at {
                continue;
            }
            let slope = (end.1 - start.1) / (end.0 - start.0);
            let rate = start.1 + slope * (at - start.0);
            let whole = (rate + end.1) / 2.0 * (end.0 - at);
            if work < whole {
                // The root of rate·x + slope·x²/2 = work, in the form that is stable at slope = 0.
                return at
                    + 2.0 * work / (rate + (rate * rate + 2.0 * slope * work).max(0.0).sqrt());
            }
            work -= whole;
            at = end.0;
        }
        at + work / self.points.last().map_or(0.0, |last| last.1)
    }
}

// === impl Running ===

impl Running {
    fn new(burst: &Burst) -> Option<Self> {
        let gap = burst.over.checked_div(burst.events)?;
        Some(Self { next: burst.at, gap, left: burst.events })
    }
}

// === impl RandomBursts ===

impl RandomBursts {
    fn next(&self, after: Duration, rng: &mut StdRng) -> Duration {
        after.saturating_add(seconds(exponential(rng) * 60.0 / self.per_minute))
    }
}

fn exponential(rng: &mut StdRng) -> f64 {
    -(1.0 - rng.random::<f64>()).ln()
}

/// Seconds as a duration; values that don't fit become the maximum.
fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulator::script::{AppScript, RampPoint};

    fn clock(load: Load) -> Clock {
        let app = AppScript { user_events: load, ..AppScript::default() };
        Clock::new(&Script { apps: vec![app], ..Script::default() }, 0, Endpoint::User)
    }

    /// Number of events until `end`.
    fn count(clock: &mut Clock, end: Duration) -> usize {
        std::iter::from_fn(|| clock.next_until(end)).count()
    }

    #[test]
    fn an_even_rate_is_even() {
        let mut clock = clock(Load { rate: 4.0, even: true, ..Load::default() });
        let events = std::iter::from_fn(|| clock.next_until(Duration::from_millis(1_100)));
        let times: Vec<u128> = events.map(|at| at.as_millis()).collect();
        assert_eq!(times, [250, 500, 750, 1_000]);
    }

    #[test]
    fn a_ramp_adds_up_to_the_area_under_it() {
        let at = Duration::from_secs;
        let ramp = vec![
            RampPoint { at: at(2), rate: 0.0 },
            RampPoint { at: at(4), rate: 100.0 },
            RampPoint { at: at(6), rate: 100.0 },
            RampPoint { at: at(8), rate: 0.0 },
        ];
        let load = Load { even: true, ramp, ..Load::default() };
        for (seconds, expected) in [(2, 0_usize), (3, 25), (4, 100), (6, 300), (8, 400), (99, 400)]
        {
            let count = count(&mut clock(load.clone()), at(seconds));
            assert!(count.abs_diff(expected) <= 1, "{count} until {seconds} s");
        }
    }

    #[test]
    fn a_burst_happens_in_an_instant_or_over_a_time() {
        let (at, over) = (Duration::from_secs(1), Duration::from_secs(2));
        let bursts = vec![
            Burst { at, events: 5_000, over: Duration::ZERO },
            Burst { at, events: 100, over },
        ];
        let mut clock = clock(Load { bursts, ..Load::default() });
        assert_eq!(count(&mut clock, at - Duration::from_nanos(1)), 0);
        assert_eq!(count(&mut clock, at), 5_001);
        assert_eq!(count(&mut clock, at + over), 99);
    }

    #[test]
    fn a_burst_from_outside_comes_on_top() {
        let mut clock = clock(Load { rate: 10.0, even: true, ..Load::default() });
        let millis = Duration::from_millis;
        assert_eq!(count(&mut clock, millis(1_050)), 10);
        clock.burst(millis(1_050), 3);
        assert_eq!(count(&mut clock, millis(1_050)), 3);
        assert_eq!(count(&mut clock, millis(2_050)), 10, "the rate continues unchanged");
    }
}
