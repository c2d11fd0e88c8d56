//! Another region answers: a host fails, a name leads elsewhere, a region is away and comes back.
//! Whatever it hands over again is recognised, and what is new among it passes.

use std::time::Duration;

use agora_rtm_bridge::simulator::{AppScript, Burst, Fault, FaultKind, Load, Script};

use super::check;
use super::judge::Verdict;
use super::plan::{End, Hosts, Life, Plan, one_app, region, regions};
use super::run::{Outcome, sum};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(86_400);

/// When the first region goes away, and for how long.
const AWAY: Duration = Duration::from_secs(10);
const AWAY_FOR: Duration = Duration::from_secs(30);

const SEEDS: u64 = 12;

/// Two regions with 40 events a second; copies take 100 to 400 ms.
fn two_regions(seed: u64, faults: Vec<Fault>) -> Script {
    Script { seed, regions: regions(2), faults, ..one_app(25.0, 15.0) }
}

/// The first region refuses every connection for half a minute.
fn away() -> Fault {
    Fault::new(FaultKind::Refused).between(AWAY, AWAY + AWAY_FOR).region(region(0))
}

/// And it answers 503 for ten seconds.
fn unavailable(from: Duration) -> Fault {
    let fault = Fault::new(FaultKind::ServerError).status(503);
    fault.between(from, from + 10 * SECOND).region(region(0))
}

/// One region is away for half a minute and later unavailable.
fn first_away(seed: u64, hosts: Hosts) -> Plan {
    let script = two_regions(seed, vec![away(), unavailable(55 * SECOND)]);
    Plan { hosts, ..Plan::calm(script, 70 * SECOND) }
}

/// The same, and the process ends while the other region takes over.
fn ended_in_the_switch(seed: u64, hosts: Hosts, end: End) -> Plan {
    let at = AWAY + 290 * MS * u32::try_from(seed).expect("a few");
    let life = Life { lasts: at, end, pause: 400 * MS };
    Plan { lives: vec![life], ..first_away(seed, hosts) }
}

/// Both regions drained, and one after the other.
fn check_all(plan: impl Fn(u64, Hosts) -> Plan, look: impl Fn(&Plan, &Verdict, &Outcome)) {
    for hosts in [Hosts::ARegionEach, Hosts::OneRegion] {
        let mut most = 0;
        for seed in 0..SEEDS {
            let plan = plan(seed, hosts);
            let (verdict, outcome) = check(&plan);
            let asked = |region| outcome.agora.exchanges().iter().any(|it| it.region == region);
            assert!(asked(0) && asked(1), "{hosts:?}, seed {seed}: the test is about nothing");
            assert!(verdict.repeats > 100, "{hosts:?}, seed {seed}: {verdict}");
            most =
                outcome.agora.with(|world| world.ledger().requests(0).most_in_a_second).max(most);
            look(&plan, &verdict, &outcome);
        }
        // More is a fault. Two feeds want eight.
        let expected = if hosts == Hosts::ARegionEach { 10 } else { 8 };
        assert!(most >= expected, "{hosts:?}: the budget is never short");
    }
}

#[test]
fn a_region_that_is_away_and_comes_back_repeats_and_loses_nothing() {
    check_all(first_away, |plan, verdict, _| {
        assert_eq!(verdict.lost, 0, "{:?}, seed {}", plan.hosts, plan.seed);
    });
}

/// As it is asked again once the other one has served for five minutes.
#[test]
fn a_preferred_host_that_comes_back_and_fails_again_repeats_and_loses_nothing() {
    for seed in 0..2 {
        let script = two_regions(seed, vec![away(), unavailable(325 * SECOND)]);
        let plan = Plan { hosts: Hosts::OneRegion, ..Plan::calm(script, 340 * SECOND) };
        let (verdict, outcome) = check(&plan);
        assert_eq!(verdict.lost, 0, "seed {seed}");
        assert_eq!(sum(&outcome.metrics, "region_switches_total"), 6, "seed {seed}");
    }
}

#[test]
fn a_stop_in_the_switch_repeats_and_loses_nothing() {
    for end in [End::Stopped, End::StoppedAndMoved] {
        check_all(
            |seed, hosts| ended_in_the_switch(seed, hosts, end),
            |plan, verdict, _| {
                assert_eq!(verdict.lost, 0, "{end:?}, {:?}, seed {}", plan.hosts, plan.seed);
            },
        );
    }
}

/// What an answer in flight carried is told by a gap, which the judge looks for.
#[test]
fn a_kill_in_the_switch_repeats_nothing_and_loses_answers_in_flight_at_the_most() {
    for end in [End::Killed, End::KilledAndDiskLost] {
        check_all(
            |seed, hosts| ended_in_the_switch(seed, hosts, end),
            |plan, verdict, outcome| {
                let lost = verdict.lost;
                assert!(lost < 100, "{end:?}, {:?}, seed {}: {lost}", plan.hosts, plan.seed);
                assert!(outcome.lives[0].killed);
            },
        );
    }
}

/// 2,000 events of each endpoint, in two bursts that a page holds each.
fn bursts_on_both() -> AppScript {
    let burst = |at| Burst { at, events: 1_000, over: Duration::ZERO };
    let bursts = vec![burst(SECOND), burst(6 * SECOND)];
    let load = Load { bursts, ..Load::default() };
    AppScript { user_events: load.clone(), channel_events: load, ..AppScript::numbered(0) }
}

#[test]
fn a_name_that_leads_to_another_region_repeats_none_of_its_events_of_20_days_ago() {
    let mut regions = regions(2);
    regions[0] = regions[0].clone().detour(DAY, region(1));
    for end in [End::Stopped, End::StoppedAndMoved, End::Killed, End::KilledAndDiskLost] {
        let script =
            Script { regions: regions.clone(), apps: vec![bursts_on_both()], ..Script::default() };
        let life = Life { lasts: 20 * SECOND, end, pause: 20 * DAY };
        let plan = Plan {
            hosts: Hosts::OneRegion,
            lives: vec![life],
            ..Plan::calm(script, 20 * DAY + 30 * SECOND)
        };
        let (verdict, outcome) = check(&plan);
        let figures = (verdict.published, verdict.repeats, verdict.lost);
        assert_eq!(figures, (4_000, 4_000, 0), "{end:?}");
        assert_eq!(sum(&outcome.metrics, "feed_repeats_total"), 4_000, "{end:?}");
        assert_eq!(sum(&outcome.metrics, "region_switches_total"), 2, "{end:?}");
    }
}

/// A buffer that reaches behind what was handed over before may have run over: nobody cares.
#[test]
fn another_regions_full_buffer_is_told_once_and_is_no_gap() {
    let mut regions = regions(2);
    regions[0] = regions[0].clone().detour(30 * SECOND, region(1));
    let script = Script { regions, apps: vec![bursts_on_both()], ..Script::default() };
    let plan = Plan { hosts: Hosts::OneRegion, ..Plan::calm(script, 40 * SECOND) };
    let (verdict, outcome) = check(&plan);
    assert_eq!((verdict.published, verdict.repeats), (4_000, 4_000));
    assert_eq!(verdict.gaps, []);
    let ages = outcome.metrics.lines().filter(|line| line.contains("_oldest_repeat_seconds{"));
    let ages: Vec<f64> = ages
        .map(|line| line.rsplit(' ').next().expect("a value").parse().expect("a number"))
        .collect();
    assert_eq!(ages.len(), 2);
    assert!(ages.iter().all(|age| (28.0..33.0).contains(age)), "{ages:?}");
    assert_eq!(sum(&outcome.metrics, "region_switches_total"), 2);
}

/// A name that leads to another region every few seconds, under a load that goes on.
#[test]
fn a_name_that_leads_to_and_fro_loses_nothing_of_what_is_new() {
    for seed in 0..SEEDS {
        let mut regions = regions(2);
        for turn in 1..10 {
            let at = (3 * turn * SECOND) + 70 * MS * u32::try_from(seed).expect("a few");
            regions[0] = regions[0].clone().detour(at, region(turn as usize % 2));
        }
        let script = Script { seed, regions, ..one_app(300.0, 100.0) };
        let plan = Plan { hosts: Hosts::OneRegion, ..Plan::calm(script, 33 * SECOND) };
        let (verdict, outcome) = check(&plan);
        assert_eq!(verdict.lost, 0, "seed {seed}");
        let switches = sum(&outcome.metrics, "region_switches_total");
        assert!((16..=18).contains(&switches), "seed {seed}: {switches}");
    }
}
