//! Hosts that hang or turn us away: whom that holds up, for how long, and what comes afterwards.

use std::collections::BTreeSet;
use std::time::Duration;

use agora_rtm_bridge::kafka::Topic;
use agora_rtm_bridge::model::Endpoint;
use agora_rtm_bridge::simulator::{AppScript, Fault, FaultKind, Network, Script, Spread};
use serde_json::Value;

use super::check;
use super::plan::{Hosts, Plan, one_app, region, regions};
use super::run::{Outcome, sum};
use super::transport::{Exchange, SILENCE_TIMEOUT};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// How long another host serves before the preferred one is asked again.
const HYSTERESIS: Duration = Duration::from_secs(300);

/// When something goes wrong: the bridge has long found its pace.
const TROUBLE: Duration = Duration::from_secs(20);

/// The requests of an app, in the order of leaving.
fn requests(outcome: &Outcome, app: usize) -> Vec<Exchange> {
    let mut exchanges = outcome.agora.exchanges();
    exchanges.retain(|it| it.app == app);
    exchanges
}

fn left_within(exchanges: &[Exchange], from: Duration, until: Duration) -> usize {
    exchanges.iter().filter(|it| (from..until).contains(&it.left_at)).count()
}

/// The most time that an event took from happening to being shown to consumers.
fn oldest(plan: &Plan, outcome: &Outcome) -> Duration {
    let topics = [Topic::UserEvents, Topic::ChannelEvents];
    let records = topics.into_iter().flat_map(|topic| outcome.kafka.records(topic));
    let ages = records.map(|record| {
        let value = record.value.expect("an event has a value");
        let value: Value = serde_json::from_slice(&value).expect("an event is JSON");
        let ms = value["ms"].as_i64().expect("an event has a time");
        let since_start = ms - plan.script.epoch.as_millis();
        let happened = Duration::from_millis(since_start.try_into().expect("none is older"));
        record.shown_at.saturating_sub(happened)
    });
    ages.max().expect("events were published")
}

/// Two apps, of which the first loses its preferred host for half a minute.
fn one_of_two_hangs(kind: FaultKind, rate: f64, busy: Duration) -> Plan {
    let fault = Fault::new(kind).between(TROUBLE, TROUBLE + 30 * SECOND).region(region(0));
    let app = |index| AppScript::numbered(index).rates(rate / 2.0, rate / 2.0);
    let script = Script {
        apps: vec![app(0), app(1)],
        regions: regions(4),
        faults: vec![fault],
        ..Script::default()
    };
    Plan { hosts: Hosts::TwoForEachApp, ..Plan::calm(script, busy) }
}

#[test]
fn a_host_that_hangs_is_left_long_before_its_requests_fail() {
    for kind in [FaultKind::Ignored, FaultKind::Silent, FaultKind::BlackHole] {
        let plan = one_of_two_hangs(kind, 400.0, TROUBLE + 35 * SECOND);
        let (verdict, outcome) = check(&plan);
        assert_eq!(verdict.lost, 0, "{kind:?}");
        let requests = requests(&outcome, 0);
        for endpoint in Endpoint::ALL {
            let mut elsewhere =
                requests.iter().filter(|it| it.endpoint == endpoint && it.region == 1);
            let moved = elsewhere.next().expect("it moves").left_at - TROUBLE;
            assert!(moved < 4 * SECOND, "{kind:?}, {endpoint}: {moved:?}");
        }
        let age = oldest(&plan, &outcome);
        assert!(age < SILENCE_TIMEOUT + 2 * SECOND, "{kind:?}: {age:?}");
    }
}

#[test]
fn while_a_host_hangs_another_app_keeps_its_pace() {
    let busy = TROUBLE + 35 * SECOND;
    let plan = one_of_two_hangs(FaultKind::Ignored, 20.0, busy);
    let mut healthy = plan.clone();
    healthy.script.faults.clear();
    let [usual, while_hanging] = [healthy, plan].map(|plan| {
        let (_, outcome) = check(&plan);
        left_within(&requests(&outcome, 1), TROUBLE, TROUBLE + 30 * SECOND)
    });
    assert!(usual > 100, "{usual}");
    assert!(while_hanging.abs_diff(usual) <= usual / 50, "{while_hanging}, usually {usual}");
}

#[test]
fn the_preferred_host_is_asked_again_once_the_other_has_served_for_long() {
    let plan = one_of_two_hangs(FaultKind::Ignored, 4.0, TROUBLE + HYSTERESIS + 30 * SECOND);
    let (_, outcome) = check(&plan);
    for endpoint in Endpoint::ALL {
        let mut of_feed = requests(&outcome, 0);
        of_feed.retain(|it| it.endpoint == endpoint);
        let moves: Vec<_> = of_feed
            .windows(2)
            .filter(|pair| pair[0].region != pair[1].region)
            .map(|pair| (pair[1].left_at, pair[1].region))
            .collect();
        let [(left, 1), (returned, 0)] = moves[..] else { panic!("{endpoint}: {moves:?}") };
        let served = returned - left;
        assert!((HYSTERESIS..HYSTERESIS + 5 * SECOND).contains(&served), "{endpoint}: {served:?}");
    }
}

#[test]
fn of_two_regions_the_one_whose_host_is_gone_moves_to_its_other_host_and_the_other_stays() {
    let gone = Fault::new(FaultKind::Refused).between(TROUBLE, TROUBLE + 10 * SECOND);
    let script =
        Script { regions: regions(4), faults: vec![gone.region(region(0))], ..one_app(20.0, 20.0) };
    let plan = Plan { hosts: Hosts::TwoForEachRegion, ..Plan::calm(script, TROUBLE + 20 * SECOND) };
    let (_, outcome) = check(&plan);
    let asked: BTreeSet<usize> = requests(&outcome, 0).iter().map(|it| it.region).collect();
    assert_eq!(asked, BTreeSet::from([0, 1, 2]));
}

/// The pages behind it wait for it, since what it was handed, if anything, happened before.
#[test]
fn a_silent_request_stalls_neither_its_feed_nor_what_was_fetched_behind_it() {
    let silent = Fault {
        endpoint: Some(Endpoint::User),
        ..Fault::new(FaultKind::Ignored).between(TROUBLE, TROUBLE + 250 * MS)
    };
    let script = Script { faults: vec![silent], ..one_app(300.0, 20.0) };
    let plan = Plan::calm(script, TROUBLE + 25 * SECOND);
    let (verdict, outcome) = check(&plan);
    assert_eq!(verdict.lost, 0);
    let mut of_feed = requests(&outcome, 0);
    of_feed.retain(|it| it.endpoint == Endpoint::User && it.left_at > TROUBLE - SECOND);
    let silent = outcome
        .agora
        .with(|world| world.ledger().answers().iter().filter(|it| it.fault.is_some()).count());
    assert!(silent > 0, "the test is about nothing");
    let pauses = of_feed.windows(2).map(|pair| pair[1].left_at - pair[0].left_at);
    let longest = pauses.max().expect("the feed is asked on");
    let age = oldest(&plan, &outcome);
    let held = sum(&outcome.metrics, "pages_held_total");
    assert!(longest < 600 * MS, "{longest:?}");
    assert!(held > 10, "{held}");
    assert_eq!(sum(&outcome.metrics, "pages_released_late_total"), 0);
    assert!((SILENCE_TIMEOUT..SILENCE_TIMEOUT + SECOND).contains(&age), "{age:?}");
}

#[test]
fn a_429_with_retry_after_silences_the_whole_app_and_slows_it_for_a_while() {
    const RETRY_AFTER: Duration = Duration::from_secs(5);
    const RTT: Duration = Duration::from_millis(40);
    for as_date in [false, true] {
        let throttled = Fault {
            app_id: Some(AppScript::numbered(0).app_id.to_string()),
            retry_after: Some(RETRY_AFTER),
            retry_after_as_date: as_date,
            ..Fault::new(FaultKind::Throttled).between(TROUBLE, TROUBLE + 300 * MS)
        };
        let app = |index| AppScript::numbered(index).rates(5.0, 5.0);
        let script = Script {
            // Six feeds in which something happens want more than ten requests a second.
            regions: regions(3),
            apps: vec![app(0), app(1)],
            network: Network { rtt: Spread::always(RTT), ..Network::default() },
            faults: vec![throttled],
            ..Script::default()
        };
        let plan = Plan::calm(script, 100 * SECOND);
        let (_, outcome) = check(&plan);
        let [of_app, of_other] = [0, 1].map(|app| requests(&outcome, app));
        let refused_at = outcome.agora.with(|world| {
            let answers = world.ledger().answers().iter();
            let refused: Vec<_> = answers.filter(|it| it.status == 429).map(|it| it.at).collect();
            refused[0]
        });
        let until = match as_date {
            // A date has whole seconds.
            true => Duration::from_secs((refused_at + RETRY_AFTER).as_secs()),
            false => refused_at + RTT / 2 + RETRY_AFTER,
        };
        let told_at = refused_at + RTT / 2 + MS;
        assert_eq!(left_within(&of_app, told_at, until), 0, "as a date: {as_date}");
        let pace = |exchanges: &[Exchange], from| left_within(exchanges, from, from + 10 * SECOND);
        let usual = pace(&of_app, 10 * SECOND);
        let (careful, recovered) = (pace(&of_app, until), pace(&of_app, 90 * SECOND));
        let [other, usual_other] = [TROUBLE, 10 * SECOND].map(|from| pace(&of_other, from));
        assert!(left_within(&of_app, until, until + SECOND) > 0, "as a date: {as_date}");
        assert!(careful < usual - 5, "{careful}, usually {usual}");
        assert!(recovered >= usual - 2, "{recovered}, usually {usual}");
        assert!(other >= usual_other - 5, "{other}, usually {usual_other}");
    }
}
