//! Hosts and regions that refuse, fail for a moment, or answer slowly: what that costs, and whom.

use std::time::Duration;

use agora_rtm_bridge::model::Endpoint;
use agora_rtm_bridge::simulator::{
    AppScript, Fault, FaultKind, Load, Network, RampPoint, Script, Spread,
};

use super::check;
use super::plan::{Deed, Hosts, Plan, one_app, region, regions};
use super::run::Outcome;
use super::tokens::reasons;
use super::transport::Exchange;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// When something goes wrong: the bridge has long found its pace.
const TROUBLE: Duration = Duration::from_secs(20);

const REFUSALS: [u16; 4] = [400, 401, 403, 404];

/// An answer with this status and nothing in it.
fn answers(status: u16) -> Fault {
    let kind = if status < 500 { FaultKind::Denied } else { FaultKind::ServerError };
    Fault { status: Some(status), ..Fault::new(kind) }
}

fn of_feed(outcome: &Outcome, endpoint: Endpoint, region: usize) -> Vec<Exchange> {
    let mut exchanges = outcome.agora.exchanges();
    exchanges.retain(|it| it.endpoint == endpoint && it.region == region);
    exchanges
}

/// The longest pause between two requests to a region from `from` on.
fn longest_pause(exchanges: &[Exchange], from: Duration) -> Duration {
    let later = exchanges.iter().map(|it| it.left_at).filter(|at| *at >= from);
    let times: Vec<Duration> = std::iter::once(from).chain(later).collect();
    times.windows(2).map(|pair| pair[1] - pair[0]).max().expect("it is asked")
}

/// A hundred events a second on each endpoint, for a minute and a half.
fn two_hosts(faults: Vec<Fault>) -> Plan {
    let script = Script { regions: regions(2), faults, ..one_app(100.0, 100.0) };
    Plan { hosts: Hosts::OneRegion, ..Plan::calm(script, 65 * SECOND) }
}

#[test]
fn a_second_host_that_refuses_for_ever_does_not_keep_the_first_from_being_asked() {
    for status in REFUSALS {
        let well_again = TROUBLE + 2_500 * MS;
        let fails = answers(503).between(TROUBLE, well_again).region(region(0));
        let refuses = answers(status).region(region(1));
        let (verdict, outcome) = check(&two_hosts(vec![fails, refuses]));
        assert_eq!(verdict.published as u64, made(&outcome), "{status}");
        for endpoint in Endpoint::ALL {
            let asked = of_feed(&outcome, endpoint, 0);
            let pause = longest_pause(&asked, well_again);
            assert!(pause < 2 * SECOND, "{status}, {endpoint}: {pause:?}");
            assert!(of_feed(&outcome, endpoint, 1).len() <= 4, "{status}, {endpoint}");
        }
    }
}

#[test]
fn a_stray_refusal_silences_a_feed_for_a_second_at_most() {
    for status in REFUSALS {
        let stray = answers(status).between(TROUBLE, TROUBLE + 100 * MS).region(region(0));
        let plan = two_hosts(vec![stray]);
        for hosts in [1, 2] {
            let mut plan = plan.clone();
            plan.script.regions.truncate(hosts);
            let (verdict, outcome) = check(&plan);
            assert_eq!(verdict.published as u64, made(&outcome), "{status}, {hosts} hosts");
            for endpoint in Endpoint::ALL {
                let mut asked = outcome.agora.exchanges();
                asked.retain(|it| it.endpoint == endpoint);
                let pause = longest_pause(&asked, TROUBLE - SECOND);
                assert!(pause <= 1_100 * MS, "{status}, {hosts} hosts, {endpoint}: {pause:?}");
            }
        }
    }
}

#[test]
fn a_region_that_refuses_costs_only_itself_and_is_named() {
    for status in REFUSALS {
        let refuses = answers(status).region(region(0));
        let script = Script { regions: regions(2), faults: vec![refuses], ..one_app(100.0, 100.0) };
        let deeds = vec![(60 * SECOND, Deed::Look)];
        let plan = Plan { overloaded: true, deeds, ..Plan::calm(script, 65 * SECOND) };
        let (_, outcome) = check(&plan);
        for endpoint in Endpoint::ALL {
            let pause = longest_pause(&of_feed(&outcome, endpoint, 1), SECOND);
            assert!(pause < 600 * MS, "{status}, {endpoint}: {pause:?}");
            let wasted = of_feed(&outcome, endpoint, 0);
            let wasted = wasted.iter().filter(|it| it.left_at < 65 * SECOND).count();
            assert!(
                wasted <= 9,
                "{status}, {endpoint}: {wasted} requests to a region that refuses"
            );
        }
        let said = reasons(&outcome.looks[0]);
        assert_eq!(said.len(), 2, "{status}: {said:#?}");
        for reason in &said {
            assert!(reason.starts_with("agora "), "{reason}");
            assert!(reason.contains("r0.agora.test"), "{reason}");
            assert!(reason.contains(&format!("status {status}")), "{reason}");
        }
    }
}

#[test]
fn a_blip_with_a_dead_second_host_is_as_short_as_without_one() {
    for rate in [400.0, 600.0] {
        for kind in [FaultKind::Refused, FaultKind::BlackHole] {
            for phase in 0..5 {
                let from = TROUBLE + phase * 50 * MS;
                let blip = answers(503).between(from, from + 1_300 * MS).region(region(0));
                let dead = Fault::new(kind).region(region(1));
                let script =
                    Script { regions: regions(2), faults: vec![blip, dead], ..one_app(rate, rate) };
                let plan =
                    Plan { hosts: Hosts::OneRegion, ..Plan::calm(script, TROUBLE + 10 * SECOND) };
                let (verdict, outcome) = check(&plan);
                assert_eq!((verdict.lost, verdict.overwritten.len()), (0, 0), "{kind:?}, {phase}");
                assert_eq!(verdict.published as u64, made(&outcome), "{kind:?}, {phase}");
            }
        }
    }
}

/// Events that happened, as Agora counts them.
fn made(outcome: &Outcome) -> u64 {
    outcome.agora.with(|world| world.ledger().total().made)
}

/// A delay of an hour silences nobody for longer than a minute, and can be seen while it lasts.
#[test]
fn a_pause_of_an_hour_is_a_minute_and_a_reason_not_to_be_ready() {
    let throttled = Fault {
        retry_after: Some(Duration::from_secs(3_600)),
        ..Fault::new(FaultKind::Throttled).between(TROUBLE, TROUBLE + 300 * MS)
    };
    let script = Script { faults: vec![throttled], ..one_app(5.0, 5.0) };
    let deeds = vec![(TROUBLE + 30 * SECOND, Deed::Look), (TROUBLE + 70 * SECOND, Deed::Look)];
    let plan = Plan { deeds, ..Plan::calm(script, TROUBLE + 80 * SECOND) };
    let (_, outcome) = check(&plan);
    let mut asked = outcome.agora.exchanges();
    asked.retain(|it| it.left_at > TROUBLE - SECOND);
    let pause = longest_pause(&asked, TROUBLE);
    assert!((59 * SECOND..62 * SECOND).contains(&pause), "{pause:?}");
    let [during, after] = outcome.looks.as_slice() else { panic!("two looks") };
    let said = reasons(during);
    assert!(said.len() == 1 && said[0].starts_with("throttled "), "{said:#?}");
    assert!(said[0].contains("no request of this app before 20"), "{said:#?}");
    assert_eq!(reasons(after), [""; 0]);
}

/// A full page takes 700 ms behind a head that takes 100: six requests a second need five at a time.
#[test]
fn bodies_that_take_long_keep_no_feed_from_being_asked() {
    let load = |rate: f64| {
        let ramp = [(10 * SECOND, rate)];
        let points = ramp.map(|(at, rate)| RampPoint { at, rate });
        Load { ramp: points.into(), ..Load::default() }
    };
    let app = AppScript {
        user_events: load(4_800.0),
        channel_events: load(1_200.0),
        ..AppScript::numbered(0)
    };
    let slow = Fault { bytes_per_second: 140_000, ..Fault::new(FaultKind::Slow) };
    let script = Script {
        apps: vec![app],
        network: Network { rtt: Spread::always(100 * MS), ..Network::default() },
        faults: vec![slow],
        ..Script::default()
    };
    let plan = Plan { overloaded: true, ..Plan::calm(script, 30 * SECOND) };
    let (_, outcome) = check(&plan);
    let totals = outcome.agora.with(|world| world.ledger().total());
    assert!(totals.overwritten * 200 <= totals.made, "{totals:?}");
}
