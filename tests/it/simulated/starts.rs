//! The first seconds of a process: what it knows from the one before, and many apps at once.

use std::collections::BTreeMap;
use std::time::Duration;

use agora_rtm_bridge::simulator::{AppScript, Burst, Load, Network, RampPoint, Script, Spread};

use super::check;
use super::plan::{End, Life, Plan};
use super::run::Outcome;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// Half of five events a second, and bursts.
fn quiet(bursts: &[(Duration, u32)]) -> Load {
    let burst = |&(at, events): &(Duration, u32)| Burst { at, events, over: Duration::ZERO };
    Load { rate: 2.5, bursts: bursts.iter().map(burst).collect(), ..Load::default() }
}

/// A restart in the middle of a load, over a round trip that is always the same.
fn restarted(seed: u64, app: AppScript, rtt: Duration, life: Life, busy: Duration) -> Plan {
    let network = Network { rtt: Spread::always(rtt), ..Network::default() };
    let script = Script { seed, apps: vec![app], network, ..Script::default() };
    Plan { lives: vec![life], ..Plan::calm(script, busy) }
}

/// The same, and the second process knows nothing of the first. How many events are overwritten.
fn overwritten_without_a_memory(plan: &Plan) -> usize {
    let forgotten = Life { end: End::KilledAndDiskLost, pause: 350 * MS, ..plan.lives[0] };
    let plan = Plan { overloaded: true, lives: vec![forgotten], ..plan.clone() };
    check(&plan).0.overwritten.len()
}

#[test]
fn a_restart_at_6000_a_second_loses_nothing() {
    let ramped = |rate| Load { ramp: vec![RampPoint { at: 5 * SECOND, rate }], ..Load::default() };
    let app = AppScript {
        user_events: ramped(4_500.0),
        channel_events: ramped(1_500.0),
        ..AppScript::default()
    };
    for seed in 1..=2 {
        for rtt in [40 * MS, 100 * MS] {
            let lasts = 8 * SECOND + rtt * u32::try_from(seed).expect("a few");
            let life = Life { lasts, end: End::Stopped, pause: MS };
            let plan = restarted(seed, app.clone(), rtt, life, 11 * SECOND);
            let (verdict, _) = check(&plan);
            assert!(verdict.gaps.is_empty(), "{rtt:?}, seed {seed}: {:?}", verdict.gaps);
        }
    }
    let life = Life { lasts: 8 * SECOND, end: End::Stopped, pause: MS };
    let lost = overwritten_without_a_memory(&restarted(1, app, 40 * MS, life, 11 * SECOND));
    assert!(lost > 1_000, "the test is about nothing: {lost}");
}

#[test]
fn a_feed_that_has_burst_is_watched_after_a_restart_too() {
    let plan = |seed: u64| {
        let again = (20_000 + 230 * u32::try_from(seed).expect("a few")) * MS;
        // Nothing happens between the bursts, so that a feed without a past is asked rarely.
        let load = quiet(&[(5 * SECOND, 1_990), (again, 1_990), (again + 500 * MS, 910)]);
        let load = Load { rate: 0.02, ..load };
        let channel_events = Load { rate: 0.02, ..Load::default() };
        let app = AppScript { user_events: load, channel_events, ..AppScript::default() };
        let life = Life { lasts: 10 * SECOND, end: End::Stopped, pause: MS };
        restarted(seed, app, 60 * MS, life, again + 3 * SECOND)
    };
    let mut lost = 0;
    for seed in 0..6 {
        let plan = plan(seed);
        check(&plan);
        lost += overwritten_without_a_memory(&plan);
    }
    assert!(lost > 500, "the test is about nothing: {lost}");
}

/// When each feed was asked for the first time in a life, as the time since its start, and its app.
fn first_requests(outcome: &Outcome, life: usize) -> Vec<(Duration, usize)> {
    let mut firsts = BTreeMap::new();
    for exchange in outcome.agora.exchanges().iter().filter(|it| it.life == life) {
        let at = exchange.left_at - outcome.lives[life].began_at;
        firsts.entry((exchange.app, exchange.endpoint)).or_insert(at);
    }
    let mut firsts: Vec<_> = firsts.into_iter().map(|((app, _), at)| (at, app)).collect();
    firsts.sort();
    firsts
}

#[test]
fn many_apps_are_all_asked_soon_the_busiest_first_and_not_all_at_once() {
    const APPS: usize = 200;
    const RATES: [f64; 4] = [0.0, 2.0, 8.0, 32.0];
    let app = |index: usize| {
        let load = Load { rate: RATES[index % RATES.len()], even: true, ..Load::default() };
        AppScript { user_events: load.clone(), channel_events: load, ..AppScript::numbered(index) }
    };
    let script = Script { apps: (0..APPS).map(app).collect(), ..Script::default() };
    let life = Life { lasts: 9 * SECOND, end: End::Stopped, pause: MS };
    let plan = Plan { lives: vec![life], ..Plan::calm(script, 13 * SECOND) };
    let (_, outcome) = check(&plan);
    for life in [0, 1] {
        let firsts = first_requests(&outcome, life);
        assert_eq!(firsts.len(), 2 * APPS, "life {life}: some feed was never asked");
        let (last, _) = firsts[firsts.len() - 1];
        assert!(last < 2 * SECOND, "life {life}: {last:?}");
        // An even share is two feeds in a millisecond.
        let within = |from: Duration| {
            firsts.iter().filter(|(at, _)| (from..from + 10 * MS).contains(at)).count()
        };
        let most = firsts.iter().map(|(at, _)| within(*at)).max().expect("there are some");
        assert!(most <= 40, "life {life}: {most} within 10 ms");
    }
    let classes: Vec<usize> =
        first_requests(&outcome, 1).iter().map(|(_, app)| app % RATES.len()).collect();
    assert!(classes.is_sorted_by(|one, other| one >= other), "{classes:?}");
}
