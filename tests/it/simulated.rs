//! The whole daemon in simulated time: minutes of traffic in milliseconds, thousands of seeds.
//!
//! Three seams are replaced and nothing else: the way to Agora leads to the simulator's pure world
//! ([`transport`]), Kafka is a model ([`kafka_model`]), and the journal's database is in memory.
//! [`plan`] draws what happens, [`run`] plays it, [`judge`] compares what was published with what
//! was handed over.
//!
//! A seed that fails names itself. `AGORA_TEST_SEED=17 cargo test --test it seeds -- --nocapture`
//! plays it alone and shows the bridge's log.

#![expect(
    clippy::indexing_slicing,
    reason = "what is not there is a fault of the test, and ends it"
)]

mod ceiling;
mod elements;
mod hosts;
mod judge;
mod kafka_model;
mod plan;
mod refused;
mod refusing;
mod regions;
mod run;
mod scenarios;
mod starts;
mod time;
mod tokens;
mod transport;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use self::judge::{Verdict, judge};
use self::plan::Plan;
use self::run::{Outcome, run};

/// The name of the variable that picks one seed.
const SEED: &str = "AGORA_TEST_SEED";

const SEEDS: u64 = 1_000;

#[test]
fn a_thousand_seeds_lose_nothing_and_repeat_nothing() {
    if let Ok(seed) = std::env::var(SEED) {
        return play_alone(seed.parse().expect("a seed is a number"));
    }
    let next = AtomicU64::new(1);
    let failed = Mutex::new(Vec::new());
    let total = Mutex::new(Verdict::default());
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed > SEEDS {
                        return;
                    }
                    let verdict = play(&Plan::drawn(seed));
                    if !verdict.faults.is_empty() {
                        lock(&failed).push((seed, verdict.to_string()));
                    }
                    lock(&total).add(&verdict);
                }
            });
        }
    });
    let mut failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
    failed.sort();
    for (seed, verdict) in failed.iter().take(20) {
        eprintln!("seed {seed} ({SEED}={seed} plays it alone): {verdict}");
    }
    eprintln!("{}", lock(&total));
    assert!(failed.is_empty(), "{} of {SEEDS} seeds failed", failed.len());
}

#[test]
fn a_seed_is_a_seed() {
    for seed in (1..=SEEDS).step_by(50) {
        let [one, other] = [(), ()].map(|()| {
            let outcome = run(&Plan::drawn(seed));
            (format!("{:#?}", outcome.agora.exchanges()), outcome.kafka.pages())
        });
        for (one, other) in one.0.lines().zip(other.0.lines()) {
            assert_eq!(one, other, "seed {seed}");
        }
        for (one, other) in one.1.iter().zip(&other.1) {
            assert_eq!(one.headers, other.headers, "seed {seed}");
        }
        assert!(one == other, "seed {seed}");
    }
}

fn play(plan: &Plan) -> Verdict {
    judge(plan, &run(plan))
}

/// Plays a plan; whatever is wrong with it fails the test.
#[track_caller]
fn check(plan: &Plan) -> (Verdict, Outcome) {
    let outcome = run(plan);
    let verdict = judge(plan, &outcome);
    assert!(verdict.faults.is_empty(), "seed {}: {verdict}", plan.seed);
    (verdict, outcome)
}

fn play_alone(seed: u64) {
    tracing_subscriber::fmt().with_env_filter("agora_rtm_bridge=debug").with_ansi(false).init();
    let plan = Plan::drawn(seed);
    eprintln!("{plan:#?}");
    let verdict = play(&plan);
    eprintln!("{verdict}");
    assert!(verdict.faults.is_empty());
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
