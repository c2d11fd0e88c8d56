//! Named runs: each is about one thing, and looks closer than a seed does.

use std::time::Duration;

use agora_rtm_bridge::model::Endpoint;
use agora_rtm_bridge::simulator::{
    AppScript, Burst, Dialect, Empty, Fault, FaultKind, FramingChoice, Load, Network, Script,
    Spread,
};

use super::check;
use super::judge::judge;
use super::kafka_model::Trouble;
use super::plan::{Deed, End, Hosts, Life, Plan, one_app, region, regions};
use super::run::{Outcome, run};
use super::tokens::reasons;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

/// So many user events in one instant, in the first second.
fn one_burst(events: u32) -> Script {
    let bursts = vec![Burst { at: SECOND, events, over: Duration::ZERO }];
    let app =
        AppScript { user_events: Load { bursts, ..Load::default() }, ..AppScript::numbered(0) };
    Script { apps: vec![app], ..Script::default() }
}

fn killed(lasts: Duration, pause: Duration) -> Life {
    Life { lasts, end: End::Killed, pause }
}

#[test]
fn what_comes_after_the_whole_grace_of_a_stop_is_delivered_all_the_same() {
    // 100 KB and more, on their way for longer than the grace.
    let slow = Fault { bytes_per_second: 5_000, ..Fault::new(FaultKind::Slow) };
    let script = Script { faults: vec![slow.between(SECOND, 3 * SECOND)], ..one_burst(1_000) };
    let stopped = Life { lasts: 4 * SECOND, end: End::Stopped, pause: SECOND };
    let plan = Plan { grace: SECOND, lives: vec![stopped], ..Plan::calm(script, 30 * SECOND) };
    let (verdict, outcome) = check(&plan);
    assert_eq!(verdict.published, 1_000);
    let stop = outcome.lives[1].began_at - plan.lives[0].lasts;
    assert!(stop > 6 * SECOND, "the answer was not slow: {stop:?}");
    let left = outcome.lives[0].left.expect("it was stopped");
    assert!(left.is_nothing(), "{left}");
}

/// How long the stop of the first life took.
fn stop_of_first_life(plan: &Plan, outcome: &Outcome) -> Duration {
    outcome.lives[1].began_at - plan.lives[0].lasts - plan.lives[0].pause
}

#[test]
fn a_stop_while_kafka_is_away_ends_before_its_grace_and_the_next_start_goes_on() {
    let stopped = Life { lasts: 30 * SECOND, end: End::Stopped, pause: SECOND };
    let trouble = Trouble { away: vec![(10 * SECOND, 5 * MINUTE)], ..Trouble::default() };
    for stopped in [stopped, Life { lasts: 12 * SECOND, ..stopped }] {
        let calm = Plan::calm(one_app(20.0, 20.0), 6 * MINUTE);
        let plan = Plan { trouble: trouble.clone(), lives: vec![stopped], ..calm };
        let (verdict, outcome) = check(&plan);
        assert_eq!((verdict.lost, verdict.gaps.len()), (0, 0));
        let left = outcome.lives[0].left.expect("it was stopped");
        assert!(left.in_journal > 0, "{left}");
        let stop = stop_of_first_life(&plan, &outcome);
        assert!((5 * SECOND..7 * SECOND).contains(&stop), "of a grace of two minutes: {stop:?}");
    }
}

#[test]
fn a_full_journal_is_a_reason_not_to_be_ready_until_it_has_room_again() {
    let trouble = Trouble { away: vec![(5 * SECOND, 30 * SECOND)], ..Trouble::default() };
    let calm = Plan::calm(one_app(300.0, 300.0), MINUTE);
    // It is full of pages for some seconds before Kafka comes back.
    let looks = (100..300).map(|look| (look * 100 * MS, Deed::Look));
    let deeds = looks.chain([(50 * SECOND, Deed::Look)]).collect();
    let plan = Plan { trouble, journal_size: 2_100_000, deeds, ..calm };
    let (verdict, outcome) = check(&plan);
    assert_eq!((verdict.lost, verdict.gaps.len()), (0, 0));
    let is_told = |status| reasons(status).iter().any(|it| it.contains("the journal is full"));
    let (after, meanwhile) = outcome.looks.split_last().expect("it was looked at");
    let told = meanwhile.iter().filter(|it| is_told(it)).count();
    assert!(told > 20, "{told} of {}", meanwhile.len());
    assert!(!is_told(after), "{after:#}");
}

#[test]
fn a_stop_with_nothing_on_its_way_does_not_wait_for_kafka() {
    let stopped = Life { lasts: 12 * SECOND, end: End::Stopped, pause: SECOND };
    let trouble = Trouble { away: vec![(Duration::ZERO, MINUTE)], ..Trouble::default() };
    let calm = Plan::calm(one_app(0.0, 0.0), 2 * MINUTE);
    let plan = Plan { trouble, lives: vec![stopped], ..calm };
    let (_, outcome) = check(&plan);
    let left = outcome.lives[0].left.expect("it was stopped");
    assert!(left.is_nothing(), "{left}");
    let stop = stop_of_first_life(&plan, &outcome);
    assert!(stop < 3 * SECOND, "{stop:?}");
}

#[test]
fn a_stop_that_gets_on_slowly_keeps_its_grace() {
    // Once a second a few answers come through.
    let slow = (25..200).map(|second| (second * SECOND, second * SECOND + 999 * MS));
    let away = std::iter::once((SECOND, 25 * SECOND)).chain(slow).collect();
    let stopped = Life { lasts: 25 * SECOND, end: End::Stopped, pause: SECOND };
    let calm = Plan::calm(one_app(5.0, 5.0), 4 * MINUTE);
    let trouble = Trouble { away, ..Trouble::default() };
    let plan = Plan { trouble, lives: vec![stopped], ..calm };
    let (_, outcome) = check(&plan);
    let left = outcome.lives[0].left.expect("it was stopped");
    assert!(left.is_nothing(), "{left}");
    let stop = stop_of_first_life(&plan, &outcome);
    assert!(stop > 15 * SECOND, "the test is about nothing: {stop:?}");
}

#[test]
fn a_move_to_another_region_repeats_none_of_its_2000_old_events() {
    let script = Script {
        regions: regions(2),
        faults: vec![
            Fault::new(FaultKind::Refused).between(60 * MINUTE, 65 * MINUTE).region(region(0)),
        ],
        ..one_burst(2_000)
    };
    let plan = Plan { hosts: Hosts::OneRegion, ..Plan::calm(script, 64 * MINUTE) };
    let (verdict, _) = check(&plan);
    assert_eq!((verdict.published, verdict.repeats), (2_000, 2_000));
}

#[test]
fn an_empty_data_directory_makes_no_repeats() {
    let script = Script {
        regions: regions(2),
        faults: vec![Fault::new(FaultKind::Refused).between(10 * SECOND, MINUTE).region(region(0))],
        ..one_burst(1_500)
    };
    let life = Life { lasts: 10 * SECOND, end: End::KilledAndDiskLost, pause: SECOND };
    let plan =
        Plan { hosts: Hosts::OneRegion, lives: vec![life], ..Plan::calm(script, 50 * SECOND) };
    let (verdict, _) = check(&plan);
    assert_eq!((verdict.published, verdict.repeats, verdict.lost), (1_500, 1_500, 0));
}

#[test]
fn a_data_directory_from_a_backup_makes_no_repeats() {
    let lives = [End::Killed, End::KilledAndRestored, End::Killed].map(|end| Life {
        lasts: 4_210 * SECOND / 1_000,
        end,
        pause: 2 * SECOND,
    });
    // Everything still waits in the journal when the backup is made, and again when it comes back.
    let trouble = Trouble { away: vec![(3 * SECOND, 9 * SECOND)], ..Trouble::default() };
    for seed in 0..20 {
        let mut script = Script { seed, ..one_app(20.0, 20.0) };
        // Nothing else tells a page that is delivered again from one that is new.
        script.apps[0].malformed = 0.3;
        let plan = Plan {
            lives: lives.to_vec(),
            trouble: trouble.clone(),
            ..Plan::calm(script, 20 * SECOND)
        };
        check(&plan);
    }
}

#[test]
fn a_body_cut_anywhere_yields_what_is_complete_and_a_gap() {
    for framing in [FramingChoice::Length, FramingChoice::UntilClose] {
        for (empty, wild_layout) in [(Empty::List, false), (Empty::Null, true)] {
            let app = AppScript {
                malformed: 0.3,
                wild_names: true,
                wild_layout,
                dialect: Dialect { empty, ..Dialect::default() },
                ..one_burst(6).apps.remove(0)
            };
            let network = Network { framing, ..Network::default() };
            let script = Script { apps: vec![app], network, ..Script::default() };
            let whole = Plan::calm(script, 2 * SECOND);
            let longest = longest_body(&check(&whole).1);
            assert!(longest > 300);
            for bytes in 0..longest {
                let plan = Plan { cut_first_page_at: Some(bytes), ..whole.clone() };
                let outcome = run(&plan);
                let verdict = judge(&plan, &outcome);
                assert!(verdict.faults.is_empty(), "{framing:?} {empty:?} {bytes}: {verdict}");
            }
        }
    }
}

fn longest_body(outcome: &Outcome) -> usize {
    let exchanges = outcome.agora.exchanges();
    let bodies = exchanges.iter().filter_map(|it| it.answer.as_ref());
    bodies.map(|answer| answer.body.len()).max().unwrap_or(0)
}

#[test]
fn ten_minutes_without_kafka_slow_nothing_down_and_lose_nothing() {
    let calm = Plan::calm(one_app(5.0, 5.0), 12 * MINUTE);
    let away = (MINUTE, 11 * MINUTE);
    let trouble = Trouble { away: vec![away], ..Trouble::default() };
    let requests = |plan: &Plan| {
        let (verdict, outcome) = check(plan);
        assert_eq!((verdict.lost, verdict.gaps.len()), (0, 0));
        let exchanges = outcome.agora.exchanges();
        exchanges.iter().filter(|it| (away.0..away.1).contains(&it.left_at)).count()
    };
    let usual = requests(&calm);
    let without = requests(&Plan { trouble, ..calm });
    assert!(usual > 3_000, "{usual}");
    assert_eq!(without, usual);
}

#[test]
fn no_restart_lets_the_server_count_more_than_ten() {
    let mut most = 0;
    for (end, pause) in [(End::Stopped, 1), (End::Killed, 150), (End::KilledAndRestored, 1_100)] {
        for seed in 0..16 {
            let script = Script { seed, regions: regions(3), ..one_app(30.0, 30.0) };
            let life = |index: u64| Life {
                // Short ones ask a few times only, within the second of the one before.
                lasts: Duration::from_millis(if index.is_multiple_of(2) {
                    2_000 + 37 * seed
                } else {
                    250 + 30 * index
                }),
                end,
                pause: Duration::from_millis(pause),
            };
            let plan =
                Plan { lives: (0..12).map(life).collect(), ..Plan::calm(script, 40 * SECOND) };
            let (_, outcome) = check(&plan);
            most =
                most.max(outcome.agora.with(|world| world.ledger().requests(0).most_in_a_second));
        }
    }
    assert_eq!(most, 10, "the test comes close to nothing");
}

#[test]
fn a_life_too_short_to_ask_does_not_hide_the_one_before() {
    for lasts in [1, 300, 700] {
        let script = Script { regions: regions(3), ..one_app(30.0, 30.0) };
        let lost =
            Life { lasts: 3_300 * SECOND / 1_000, end: End::KilledAndDiskLost, pause: SECOND / 2 };
        let short = killed(Duration::from_millis(lasts), Duration::from_millis(1));
        let plan = Plan { lives: vec![lost, short], ..Plan::calm(script, 10 * SECOND) };
        check(&plan);
    }
}

/// A connection takes round trips to come about; the requests that wait for it arrive late, all
/// together, and right before those that find it there.
#[test]
fn new_connections_do_not_let_the_server_count_more_than_ten() {
    for rtt in [30, 100, 300] {
        for connecting in [1, 2, 3] {
            let network =
                Network { rtt: Spread::always(Duration::from_millis(rtt)), ..Network::default() };
            let script = Script { regions: regions(3), network, ..one_app(30.0, 30.0) };
            let plan = Plan { connecting, ..Plan::calm(script, 10 * SECOND) };
            let outcome = run(&plan);
            let verdict = judge(&plan, &outcome);
            assert!(verdict.faults.is_empty(), "{rtt} ms, {connecting} more: {verdict}");
        }
    }
}

#[test]
fn a_transaction_of_unknown_outcome_publishes_nothing_twice() {
    let trouble = Trouble { deliver: 0.8, slow: 0.1, until: 60 * SECOND, ..Trouble::default() };
    let (mut told_wrong, mut aborted) = (0, 0);
    for seed in 0..20 {
        let script = Script { seed, regions: regions(2), ..one_app(15.0, 15.0) };
        let plan = Plan { trouble: trouble.clone(), ..Plan::calm(script, 60 * SECOND) };
        let (_, outcome) = check(&plan);
        let of_run = outcome.kafka.transactions();
        told_wrong += of_run.told_wrong;
        aborted += of_run.aborted;
    }
    assert!(told_wrong > 50 && aborted > 50, "{told_wrong} told wrong, {aborted} aborted");
}

#[test]
fn two_bridges_by_mistake_publish_nothing_twice() {
    let mut repeats = 0;
    for seed in 0..10 {
        let script = Script { seed, regions: regions(2), ..one_app(10.0, 10.0) };
        let plan = Plan { twin: true, ..Plan::calm(script, 3 * MINUTE) };
        let (verdict, outcome) = check(&plan);
        assert_eq!(verdict.lost, 0);
        assert!(outcome.kafka.transactions().fenced > 0, "neither fenced the other");
        repeats += verdict.repeats;
    }
    assert!(repeats > 10_000, "{repeats}");
}

/// Agora's clock and ours differ by some seconds.
#[test]
fn a_gap_covers_what_is_lost_whichever_clock_is_ahead() {
    for clock_ahead_ms in [-8_000, -500, 0, 500, 8_000] {
        let faults =
            vec![Fault::new(FaultKind::NoAnswer).share(0.2), Fault::new(FaultKind::Cut).share(0.2)];
        let script = Script { faults, ..one_app(10.0, 10.0) };
        let plan = Plan {
            clock_ahead_ms,
            lives: vec![killed(7 * SECOND, SECOND), killed(6_020 * SECOND / 1_000, SECOND)],
            ..Plan::calm(script, 30 * SECOND)
        };
        let outcome = run(&plan);
        let verdict = judge(&plan, &outcome);
        assert!(verdict.faults.is_empty(), "{clock_ahead_ms} ms ahead: {verdict}");
        assert!(verdict.lost > 20);
    }
}

/// A page that is no JSON has handed over nothing: what waited goes on waiting, and is lost later.
#[test]
fn a_page_of_another_kind_does_not_count_as_emptying_the_buffer() {
    let strike = |kind, from: u32, until: u32| Fault {
        endpoint: Some(Endpoint::User),
        ..Fault::new(kind).between(from * SECOND, until * SECOND)
    };
    let faults = vec![strike(FaultKind::NotJson, 5, 35), strike(FaultKind::NoAnswer, 35, 45)];
    let plan = Plan::calm(Script { faults, ..one_app(3.0, 3.0) }, 50 * SECOND);
    let (verdict, _) = check(&plan);
    assert!(verdict.lost > 60, "{}", verdict.lost);
}

/// Nor does a failure, be it as small as an empty page and with status 200.
#[test]
fn a_failure_with_status_200_does_not_count_as_emptying_the_buffer() {
    for seed in 0..8 {
        let strike = |kind, from: u32, until: u32| Fault {
            endpoint: Some(Endpoint::User),
            ..Fault::new(kind).between(from * SECOND, until * SECOND)
        };
        let faults = vec![strike(FaultKind::Failed, 5, 35), strike(FaultKind::NoAnswer, 35, 45)];
        let script = Script { seed, faults, ..one_app(3.0, 3.0) };
        let (verdict, _) = check(&Plan::calm(script, 50 * SECOND));
        assert!(verdict.lost > 60, "{}", verdict.lost);
    }
}

#[test]
fn each_answer_has_a_page_name_of_its_own() {
    let apps = (0..6).map(|index| AppScript::numbered(index).rates(5.0, 5.0)).collect();
    let script = Script { apps, ..Script::default() };
    let plan = Plan { page_partitions: 8, ..Plan::calm(script, 5 * SECOND) };
    let (_, outcome) = check(&plan);
    let mut names: Vec<Vec<u8>> = outcome
        .kafka
        .pages()
        .into_iter()
        .filter_map(|page| page.headers.into_iter().find(|(name, _)| name == "page"))
        .map(|(_, name)| name)
        .collect();
    let pages = names.len();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), pages);
}

#[test]
fn of_bodies_cut_in_chunks_in_the_old_dialect_every_complete_event_is_published() {
    for seed in 0..4 {
        let app = AppScript {
            dialect: Dialect { old_names: true, empty: Empty::Null, ..Dialect::default() },
            ..one_app(50.0, 50.0).apps.remove(0)
        };
        let script = Script {
            seed,
            apps: vec![app],
            faults: vec![Fault::new(FaultKind::Cut).share(0.15)],
            network: Network { framing: FramingChoice::Chunked, ..Network::default() },
            ..Script::default()
        };
        let (verdict, _) = check(&Plan::calm(script, MINUTE));
        let cut = verdict.gaps.iter().filter(|gap| gap.cause == "body_cut").count();
        assert!(
            verdict.published > 4_000 && cut > 20,
            "{} published, {cut} cut",
            verdict.published
        );
    }
}

#[test]
fn every_fault_at_once_costs_no_complete_event_and_no_byte_of_a_malformed_one() {
    let kinds = FaultKind::ALL;
    for seed in 0..4 {
        let app = AppScript {
            malformed: 0.1,
            wild_names: true,
            unknown_fields: true,
            wild_layout: true,
            ..one_app(30.0, 30.0).apps.remove(0)
        };
        let faults = kinds.map(|kind| Fault::new(kind).share(0.04)).into();
        let script = Script { seed, apps: vec![app], faults, ..Script::default() };
        let (verdict, outcome) = check(&Plan::calm(script, 4 * MINUTE));
        assert!(verdict.published > 2_000 && verdict.dead_letters > 200, "{verdict}");
        outcome.agora.with(|world| {
            let answers = world.ledger().answers();
            for kind in kinds.into_iter().filter(|kind| !kind.strikes_connections()) {
                assert!(answers.iter().any(|it| it.fault == Some(kind)), "{kind:?} never struck");
            }
        });
    }
}
