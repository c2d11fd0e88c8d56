//! The campaign: rounds of trouble for the bridge as a process, on a real broker, each judged by
//! the simulator's ledger.
//!
//! A round lets events happen, does the harm that its kinds tell ([`kind`]), takes it back, and
//! waits until everything that Agora handed over is published, or told by a gap that the harm
//! excuses. What is wrong ends the campaign. Topics are read once: each round judges what came
//! since the round before, and an event of an earlier one must not come again.
//!
//! `tests/campaign` runs it for hours; the suite runs a short form of it.

mod audit;
mod clock;
pub(crate) mod disk;
mod hosts;
pub(crate) mod kind;
mod load;
mod reader;
mod round;
mod secrets;
mod stage;
#[path = "../../benches/steady/table.rs"]
mod table;
pub(crate) mod tally;
mod topics;

use std::ops::Range;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use tokio::time::Instant;

use self::clock::WrongClock;
use self::disk::SmallDisk;
use self::kind::{Act, Kind};
use self::stage::Stage;
use self::tally::Tally;

/// What is to be done.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// Decides what is done when. What the processes do with it is theirs.
    pub(crate) seed: u64,
    pub(crate) rounds: Range<u64>,
    pub(crate) kinds: Vec<Kind>,
    /// So many kinds at most in one round.
    pub(crate) at_once: usize,
    /// Events a second, on four feeds.
    pub(crate) rate: f64,
    /// How long an outage of the broker lasts ([`Kind::Outage`]).
    pub(crate) away: Duration,
}

/// What a round is about.
#[derive(Clone, Debug)]
struct Order {
    kinds: Vec<Kind>,
    /// In the order of their times since the round began.
    acts: Vec<(Duration, Act)>,
}

/// Plays the plan, and tells after each round how many are done and how long the others will take
/// if it goes on like this. The tally is what there is of it when something is wrong; then the text
/// tells.
pub(crate) fn run(plan: &Plan, mut tell: impl FnMut(u64, Duration)) -> (Tally, Option<String>) {
    let mut tally = Tally::default();
    let mut stage = Stage::set(plan);
    let begun = Instant::now();
    let rounds = plan.rounds.end - plan.rounds.start;
    for (number, done) in plan.rounds.clone().zip(1..) {
        let order = plan.order(number);
        match round::play(&mut stage, &order) {
            Ok(report) => tally.add(&order, report),
            Err(wrong) => {
                let seed = plan.seed;
                let wrong = format!("round {number} of seed {seed}: {order}\n{wrong}");
                return (tally, Some(wrong));
            }
        }
        let left = begun.elapsed().div_f64(done as f64).mul_f64((rounds - done) as f64);
        tell(done, left);
    }
    let wrong = stage.strike();
    (tally, wrong.err())
}

// === impl Plan ===

impl Plan {
    /// Kinds that can't be done here, with the reason; the others stay.
    pub(crate) fn leave_out_what_cannot_be(&mut self) -> Vec<(Kind, String)> {
        let needs = [
            (Kind::DiskFull, SmallDisk::try_out as fn() -> Result<(), String>),
            (Kind::ClockAhead, WrongClock::try_out),
        ];
        let mut left_out = Vec::new();
        for (kind, try_out) in needs {
            if self.kinds.contains(&kind)
                && let Err(why) = try_out()
            {
                self.kinds.retain(|it| *it != kind);
                left_out.push((kind, why));
            }
        }
        left_out
    }

    /// Whether a round may do one of these.
    pub(crate) fn has(&self, kinds: &[Kind]) -> bool {
        self.kinds.iter().any(|kind| kinds.contains(kind))
    }

    /// The round of that number: always the same.
    fn order(&self, number: u64) -> Order {
        let mut random = StdRng::seed_from_u64(self.seed.wrapping_mul(1_000_003) ^ number);
        let count = random.random_range(1..=self.at_once.clamp(1, self.kinds.len()));
        let mut kinds: Vec<Kind> = self.kinds.sample(&mut random, count).copied().collect();
        if let Some(alone) = kinds.iter().copied().find(|it| it.is_played_alone()) {
            kinds = vec![alone];
        }
        kinds.sort_unstable();
        let mut acts = Vec::new();
        for kind in &kinds {
            acts.extend(kind.acts(&mut random, self));
        }
        if random.random_bool(0.3) {
            let at = Duration::from_millis(random.random_range(0..1_000));
            acts.push((at, Act::Burst(random.random_range(100..1_000))));
        }
        acts.sort_by_key(|(at, _)| *at);
        Order { kinds, acts }
    }
}

// === impl Order ===

impl std::fmt::Display for Order {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kinds: Vec<_> = self.kinds.iter().map(|kind| kind.name()).collect();
        write!(f, "{}", kinds.join(" + "))?;
        self.acts.iter().try_for_each(|(at, act)| write!(f, ", {} ms {act:?}", at.as_millis()))
    }
}
