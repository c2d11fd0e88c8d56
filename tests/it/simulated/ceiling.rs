//! Loads near the most that Agora allows, bursts that fill a buffer, and loads that nobody can save.
//!
//! `cargo bench --bench ceiling` plays many more seeds of these, but only the schedule's decisions;
//! here every event is written, kept and published, and compared with Agora's own ledger.

use std::time::Duration;

use agora_rtm_bridge::model::CLOCK_MARGIN;
use agora_rtm_bridge::simulator::{
    AppScript, Burst, Fault, FaultKind, Load, Network, RampPoint, Script, Spread,
};

use super::check;
use super::judge::{Gap, Verdict};
use super::plan::{Plan, one_app};
use super::run::{Outcome, sum};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// User and channel events of one app, over such round trips.
fn script(seed: u64, user_events: Load, channel_events: Load, rtt: Spread) -> Script {
    Script {
        seed,
        apps: vec![AppScript { user_events, channel_events, ..AppScript::default() }],
        network: Network { rtt, ..Network::default() },
        ..Script::default()
    }
}

/// A load that goes in straight lines from one rate to the next.
fn ramped(points: &[(Duration, f64)]) -> Load {
    let point = |&(at, rate): &(Duration, f64)| RampPoint { at, rate };
    Load { ramp: points.iter().map(point).collect(), ..Load::default() }
}

/// Half of five events a second, and bursts.
fn quiet(bursts: &[(Duration, u32)]) -> Load {
    let burst = |&(at, events): &(Duration, u32)| Burst { at, events, over: Duration::ZERO };
    Load { rate: 2.5, bursts: bursts.iter().map(burst).collect(), ..Load::default() }
}

/// A moment within the longest interval, another one for each seed.
fn phase(seed: u64) -> Duration {
    // The golden ratio's fraction fills a span evenly, however many seeds there are.
    2 * SECOND.mul_f64((seed as f64 * 0.618_033_988_749_895).fract())
}

/// Everything that happened is published once; the server never counted eleven.
#[track_caller]
fn check_saved(plan: &Plan) -> (Verdict, Outcome) {
    let (verdict, outcome) = check(plan);
    let (totals, requests) =
        outcome.agora.with(|world| (world.ledger().total(), world.ledger().requests(0)));
    assert_eq!(totals.overwritten, 0, "seed {}: {totals:?}", plan.seed);
    assert_eq!(verdict.published as u64, totals.made, "seed {}: {totals:?}", plan.seed);
    assert!(requests.most_in_a_second <= 10, "seed {}: {requests:?}", plan.seed);
    (verdict, outcome)
}

/// Rates near the ceiling, three quarters of them users'.
fn near_the_ceiling(seed: u64, rate: f64, grows_for: Duration, rtt: Spread) -> Plan {
    let [users, channels] = [0.76, 0.24].map(|share| ramped(&[(grows_for, rate * share)]));
    Plan::calm(script(seed, users, channels, rtt), grows_for + 6 * SECOND)
}

#[test]
fn at_9500_a_second_over_a_way_that_jitters_nothing_runs_over() {
    for seed in 1..=2 {
        let plan = near_the_ceiling(seed, 9_500.0, 5 * SECOND, Spread::millis(60, 120));
        let (_, outcome) = check_saved(&plan);
        let requests = outcome.agora.with(|world| world.ledger().requests(0));
        assert_eq!(requests.most_in_a_second, 10, "the test comes close to nothing");
    }
}

#[test]
fn at_9700_a_second_over_a_long_way_nothing_runs_over_or_seems_to() {
    for seed in 1..=2 {
        let plan = near_the_ceiling(seed, 9_700.0, 10 * SECOND, Spread::always(300 * MS));
        let (verdict, _) = check_saved(&plan);
        assert!(verdict.gaps.is_empty(), "seed {seed}: {:?}", verdict.gaps);
    }
}

const WAYS: [Spread; 3] = [
    Spread { from: Duration::from_millis(60), to: Duration::from_millis(60) },
    Spread { from: Duration::from_millis(60), to: Duration::from_millis(120) },
    Spread { from: Duration::from_millis(300), to: Duration::from_millis(300) },
];

#[test]
fn bursts_of_1990_on_both_endpoints_fit_whenever_they_come() {
    for rtt in WAYS {
        for seed in 0..6 {
            let load = quiet(&[(12 * SECOND + phase(seed), 1_990)]);
            let plan = Plan::calm(script(seed, load.clone(), load, rtt), 18 * SECOND);
            let (verdict, _) = check_saved(&plan);
            assert!(verdict.gaps.is_empty(), "{rtt:?}, seed {seed}: {:?}", verdict.gaps);
        }
    }
}

#[test]
fn a_second_burst_soon_after_the_first_fits_where_the_feed_has_burst_before() {
    for rtt in WAYS {
        for seed in 0..6 {
            let again = 40 * SECOND + phase(seed);
            let load = quiet(&[
                (10 * SECOND + phase(seed + 1), 1_990),
                (again, 1_990),
                (again + 500 * MS, 910),
            ]);
            let plan = Plan::calm(script(seed, load.clone(), load, rtt), 44 * SECOND);
            check_saved(&plan);
        }
    }
}

/// Plays more than anybody can fetch, from a moment to another. Every overwritten event lies within
/// a gap of that cause, even without the margin for clocks that differ; and none of them reaches far
/// beyond what happened.
#[track_caller]
fn check_overload(plan: &Plan, from: Duration, until: Duration) -> Verdict {
    // A buffer that is full accuses pages of the five seconds before it, where those are in doubt.
    const EARLIER: i64 = 5_500;
    const LATER: i64 = 1_000;
    let (verdict, outcome) = check(plan);
    let margin = i64::try_from(CLOCK_MARGIN.as_millis()).expect("seconds");
    let since_epoch = |ms: i64| ms - plan.script.epoch.as_millis();
    let [from, until] = [from, until].map(|it| i64::try_from(it.as_millis()).expect("seconds"));
    let bounds = |gap: &Gap| {
        let from = gap.from.expect("the feed was asked before");
        (since_epoch(from) + margin, since_epoch(gap.to) - margin)
    };
    for gap in &verdict.gaps {
        let (begins, ends) = bounds(gap);
        assert_eq!(gap.cause, "overflow", "{gap:?}");
        let outside = begins < from - EARLIER || ends > until + LATER;
        assert!(!outside, "{begins} to {ends} is outside of {from} to {until}: {gap:?}");
    }
    for event in &verdict.overwritten {
        let at = since_epoch(event.ms);
        let is_close = |gap: &Gap| {
            let (begins, ends) = bounds(gap);
            gap.endpoint == event.endpoint.name() && (begins..=ends).contains(&at)
        };
        assert!(verdict.gaps.iter().any(is_close), "{at}: {event:?}");
    }
    let suspected = sum(&outcome.metrics, "overflows_suspected_total");
    assert_eq!(suspected, verdict.gaps.len() as u64);
    verdict
}

#[test]
fn what_runs_over_at_12000_a_second_lies_within_gaps() {
    let (from, until) = (8 * SECOND, 12 * SECOND);
    let load = |share: f64| {
        let [usual, much] = [6_000.0, 12_000.0].map(|rate| rate * share);
        let grown = from + 300 * MS;
        ramped(&[(5 * SECOND, usual), (from, usual), (grown, much), (until, much), (until, usual)])
    };
    for seed in 1..=2 {
        let script = script(seed, load(0.75), load(0.25), Spread::always(60 * MS));
        let plan = Plan { overloaded: true, ..Plan::calm(script, until + 3 * SECOND) };
        let verdict = check_overload(&plan, from, until);
        assert!(verdict.overwritten.len() > 3_000, "{verdict}");
    }
}

#[test]
fn what_a_burst_of_2600_pushes_out_lies_within_a_gap() {
    for rtt in WAYS {
        for seed in 0..6 {
            let at = 12 * SECOND + phase(seed);
            let script = script(seed, quiet(&[(at, 2_600)]), quiet(&[]), rtt);
            let plan = Plan { overloaded: true, ..Plan::calm(script, 18 * SECOND) };
            let verdict = check_overload(&plan, at, at);
            assert!(verdict.overwritten.len() >= 600, "{verdict}");
        }
    }
}

/// Both endpoints of an app have one buffer of 2,000 events.
fn in_one_buffer(seed: u64, users: Load, channels: Load) -> Script {
    Script { shared_buffer: true, ..script(seed, users, channels, Spread::always(60 * MS)) }
}

#[test]
fn a_buffer_that_both_endpoints_share_keeps_4000_and_4000_a_second() {
    let load = ramped(&[(10 * SECOND, 4_000.0)]);
    let plan = Plan::calm(in_one_buffer(1, load.clone(), load), 20 * SECOND);
    let (verdict, outcome) = check(&Plan { overloaded: true, ..plan });
    let totals = outcome.agora.with(|world| world.ledger().total());
    assert!(totals.overwritten * 1_000 <= totals.made * 5, "{totals:?}");
    assert!(verdict.gaps.len() <= 2, "{:?}", verdict.gaps);
}

#[test]
fn where_a_shared_buffer_runs_over_both_endpoints_are_named() {
    let (from, until) = (8 * SECOND, 12 * SECOND);
    let load = |share: f64| {
        let [usual, much] = [6_000.0, 12_000.0].map(|rate| rate * share);
        let grown = from + 300 * MS;
        ramped(&[(5 * SECOND, usual), (from, usual), (grown, much), (until, much), (until, usual)])
    };
    for seed in 1..=2 {
        let script = in_one_buffer(seed, load(0.6), load(0.4));
        let plan = Plan { overloaded: true, ..Plan::calm(script, until + 3 * SECOND) };
        let (verdict, outcome) = check(&plan);
        let totals = outcome.agora.with(|world| world.ledger().total());
        assert!(totals.overwritten > 3_000, "{totals:?}");
        for endpoint in ["user_events", "channel_events"] {
            let mut gaps = verdict.gaps.iter().filter(|gap| gap.cause == "overflow");
            assert!(gaps.any(|gap| gap.endpoint == endpoint), "{endpoint}: {:?}", verdict.gaps);
        }
        let covers = |ms: i64, endpoint: &str| {
            let mut gaps = verdict.gaps.iter().filter(|gap| gap.endpoint == endpoint);
            gaps.any(|gap| gap.from.is_none_or(|from| from <= ms) && ms <= gap.to)
        };
        let overwritten = verdict.overwritten.iter();
        let missed = overwritten.filter(|it| !covers(it.ms, it.endpoint.name())).count();
        assert!(missed * 100 <= verdict.overwritten.len(), "{missed} of {}", totals.overwritten);
    }
}

/// A suspicion costs an operator a look, and says that events may be gone.
#[test]
fn hardly_anything_is_suspected_where_nothing_ran_over() {
    let again = 40 * SECOND + phase(3);
    let bursts = quiet(&[(10 * SECOND + phase(4), 1_990), (again, 1_990), (again + 500 * MS, 910)]);
    let far = Spread::always(300 * MS);
    let plans = [
        near_the_ceiling(1, 9_500.0, 5 * SECOND, Spread::millis(60, 120)),
        near_the_ceiling(1, 9_700.0, 7 * SECOND, far),
        Plan::calm(script(3, bursts.clone(), bursts, far), 44 * SECOND),
    ];
    let gaps = plans.map(|plan| check_saved(&plan).0.gaps);
    assert!(gaps.iter().all(|gaps| gaps.len() <= 1), "{gaps:?}");
}

/// What broke off may have been a full page; at ten events a second it was none.
#[test]
fn pages_that_broke_off_are_not_taken_for_a_full_buffer() {
    let cut = Fault::new(FaultKind::Cut).between(5 * SECOND, 8 * SECOND);
    let plan = Plan::calm(Script { faults: vec![cut], ..one_app(5.0, 5.0) }, 12 * SECOND);
    let (verdict, _) = check(&plan);
    let mut gaps = verdict.gaps.iter();
    assert!(gaps.all(|gap| gap.cause == "body_cut"), "{:?}", verdict.gaps);
}
