//! Credentials that are wrong, that end, and that change; and clocks that do.

use std::fs;
use std::time::Duration;

use agora_rtm_bridge::agora::token;
use agora_rtm_bridge::agora::token::TokenForm;
use agora_rtm_bridge::config::{Auth, Secret};
use agora_rtm_bridge::model::Timestamp;
use agora_rtm_bridge::simulator::{AppScript, DEFAULT_EPOCH, Fault, FaultKind, Script};
use serde_json::Value;
use tempfile::TempDir;

use super::check;
use super::plan::{Deed, Plan, one_app};
use super::run::{Outcome, sum};
use super::transport::Exchange;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);
const HOUR_MS: i64 = 3_600_000;

const FORMS: [TokenForm; 2] = [TokenForm::AccessToken2, TokenForm::AccessToken];

/// Tokens for an app, made by the bridge.
fn minted(app: &AppScript, form: TokenForm, life: Duration) -> Auth {
    let certificate = Secret::from_value(app.app_certificate.as_str());
    Auth::Minted { certificate, user_id: "bridge".to_owned(), form, life }
}

/// A plan for one app whose tokens the bridge makes.
fn minting(script: Script, form: TokenForm, life: Duration, busy: Duration) -> Plan {
    let auth = [(0, minted(&script.apps[0], form, life))].into();
    Plan { auth, ..Plan::calm(script, busy) }
}

fn basic(app: &AppScript, secret: Secret) -> Auth {
    Auth::Basic { customer_id: app.customer_id.clone(), customer_secret: secret }
}

fn is_refused(exchange: &Exchange) -> bool {
    exchange.answer.as_ref().is_some_and(|answer| answer.status == 401)
}

fn refused(outcome: &Outcome) -> usize {
    outcome.agora.exchanges().iter().filter(|it| is_refused(it)).count()
}

/// When the requests of an app left.
fn left(outcome: &Outcome, app: usize) -> Vec<Duration> {
    let exchanges = outcome.agora.exchanges();
    exchanges.iter().filter(|it| it.app == app).map(|it| it.left_at).collect()
}

/// Why the bridge was not ready, as `condition subject: reason`.
pub(super) fn reasons(status: &Value) -> Vec<String> {
    let reasons = status["readiness"]["reasons"].as_array().expect("a list of reasons");
    let text = |reason: &Value, field: &str| reason[field].as_str().expect("a text").to_owned();
    reasons
        .iter()
        .map(|it| [text(it, "condition"), text(it, "subject"), text(it, "reason")].join(" "))
        .collect()
}

#[test]
fn tokens_that_live_five_seconds_lose_nothing_and_cost_one_refusal_a_renewal_at_most() {
    for form in FORMS {
        let mut script = one_app(900.0, 300.0);
        script.apps[0].token_life = Some(5 * SECOND);
        // The bridge believes in an hour, and learns.
        let (verdict, outcome) = check(&minting(script.clone(), form, HOUR, MINUTE));
        assert_eq!((verdict.lost, verdict.gaps.len()), (0, 0), "{form:?}");
        let renewals = sum(&outcome.metrics, "token_renewals_total");
        let refusals = refused(&outcome);
        assert!((12..=40).contains(&renewals), "{form:?}: {renewals} renewals");
        assert!((1..=2).contains(&refusals), "{form:?}: {refusals} refusals");
        // It knows.
        let (verdict, outcome) = check(&minting(script, form, 5 * SECOND, MINUTE));
        assert_eq!((verdict.lost, refused(&outcome)), (0, 0), "{form:?}");
    }
}

#[test]
fn a_refused_app_asks_once_a_minute_until_its_file_changes_and_no_other_app_notices() {
    let dir = TempDir::new().expect("a folder can be made");
    let file = dir.path().join("secret");
    fs::write(&file, "wrong\n").expect("a fresh folder can be written to");
    let apps: Vec<_> = (0..3).map(|index| AppScript::numbered(index).rates(2.0, 2.0)).collect();
    let right = apps[1].customer_secret.clone();
    let corrected = 220 * SECOND;
    let plan = Plan {
        auth: [(1, basic(&apps[1], Secret::from_file(&file)))].into(),
        deeds: vec![
            (corrected - SECOND, Deed::Look),
            (corrected, Deed::Write(file.clone(), right)),
            (corrected + 3 * SECOND, Deed::Look),
        ],
        ..Plan::calm(Script { apps: apps.clone(), ..Script::default() }, 300 * SECOND)
    };
    let (verdict, outcome) = check(&plan);
    assert_eq!((verdict.lost, verdict.gaps.len()), (0, 0));

    let asked = left(&outcome, 1);
    let (before, after): (Vec<_>, Vec<_>) = asked.iter().copied().partition(|at| *at < corrected);
    // Its two feeds begin together, and the waits grow to a minute.
    assert_eq!(before.len(), 9, "{before:?}");
    let grown = before.iter().filter(|at| **at > 45 * SECOND).collect::<Vec<_>>();
    assert!(grown.windows(2).all(|two| *two[1] - *two[0] >= MINUTE), "{before:?}");
    assert!(after[0] <= corrected + 1_100 * SECOND / 1_000, "{after:?}");
    for other in [0, 2] {
        let asked = left(&outcome, other);
        let longest = asked.windows(2).map(|two| two[1] - two[0]).max();
        assert!(longest < Some(3 * SECOND), "{longest:?}");
    }

    let [refused, recovered] = outcome.looks.as_slice() else { panic!("two looks") };
    let said = reasons(refused);
    assert_eq!(said.len(), 1, "{said:#?}");
    let start = format!("credentials {} Agora refuses the credentials", apps[1].app_id);
    assert!(said[0].starts_with(&start) && said[0].contains("status 401"), "{said:#?}");
    let remedy = format!("correct apps.auth.customer_secret_file ({})", file.display());
    assert!(said[0].contains(&remedy), "{said:#?}");
    assert_eq!(reasons(recovered), [""; 0]);
}

#[test]
fn a_file_that_is_gone_is_named_and_its_last_content_goes_on_being_used() {
    let dir = TempDir::new().expect("a folder can be made");
    let [present, absent] = ["present", "absent"].map(|name| dir.path().join(name));
    let apps: Vec<_> = (0..2).map(|index| AppScript::numbered(index).rates(2.0, 2.0)).collect();
    let secret = |app: usize| apps[app].customer_secret.clone();
    fs::write(&present, secret(0)).expect("a fresh folder can be written to");
    let auth = [(0, &present), (1, &absent)];
    let plan = Plan {
        auth: auth.map(|(app, file)| (app, basic(&apps[app], Secret::from_file(file)))).into(),
        deeds: vec![
            (10 * SECOND, Deed::Remove(present.clone())),
            (19 * SECOND, Deed::Look),
            (20 * SECOND, Deed::Write(present, secret(0))),
            (20 * SECOND, Deed::Write(absent, secret(1))),
            (24 * SECOND, Deed::Look),
        ],
        ..Plan::calm(Script { apps: apps.clone(), ..Script::default() }, 30 * SECOND)
    };
    let (verdict, outcome) = check(&plan);
    assert_eq!((verdict.lost, refused(&outcome)), (0, 0));
    let within = |app, from, until| {
        left(&outcome, app).iter().filter(|at| (from..until).contains(*at)).count()
    };
    assert!(within(0, 11 * SECOND, 20 * SECOND) > 5, "it goes on");
    assert_eq!(within(1, Duration::ZERO, 20 * SECOND), 0, "it can't begin");
    assert!(within(1, 20 * SECOND, 22 * SECOND) > 0);
    let [gone, back] = outcome.looks.as_slice() else { panic!("two looks") };
    let said = reasons(gone);
    assert_eq!(said.len(), 2, "{said:#?}");
    assert!(said.iter().all(|it| it.contains("No such file")), "{said:#?}");
    assert!(said.iter().any(|it| it.contains("what was read last is used")), "{said:#?}");
    assert_eq!(reasons(back), [""; 0]);
}

#[test]
fn the_end_of_a_token_is_a_reason_an_hour_before_until_its_file_is_rewritten() {
    for form in FORMS {
        let dir = TempDir::new().expect("a folder can be made");
        let file = dir.path().join("token");
        let script = one_app(2.0, 1.0);
        let app = &script.apps[0];
        let made = |issued_at: Timestamp| {
            token::mint(token::Order {
                form,
                app_id: app.app_id.as_str(),
                certificate: &app.app_certificate,
                user_id: "somebody",
                issued_at,
                life: 24 * HOUR,
                salt: 1,
            })
        };
        let day = 24 * HOUR;
        let first_ends = DEFAULT_EPOCH.after(HOUR + 10 * MINUTE);
        fs::write(&file, made(first_ends.before(day))).expect("a folder can be written to");
        let token = Secret::from_file(&file);
        let next = made(DEFAULT_EPOCH);
        let plan = Plan {
            auth: [(0, Auth::Token { token, user_id: Some("somebody".to_owned()) })].into(),
            deeds: vec![
                (9 * MINUTE, Deed::Look),
                (11 * MINUTE, Deed::Look),
                (12 * MINUTE, Deed::Write(file.clone(), next)),
                (12 * MINUTE + 5 * SECOND, Deed::Look),
            ],
            ..Plan::calm(script.clone(), 13 * MINUTE)
        };
        let (_, outcome) = check(&plan);
        assert_eq!(refused(&outcome), 0, "{form:?}");
        let [early, soon, renewed] = outcome.looks.as_slice() else { panic!("three looks") };
        assert_eq!(reasons(early), [""; 0], "{form:?}");
        assert_eq!(early["tokens"][0]["ends_at"], first_ends.to_string(), "{form:?}");
        let expected = format!(
            "token {} the token of apps.auth.token_file ({}) ends at {first_ends}: renew it",
            app.app_id,
            file.display()
        );
        assert_eq!(reasons(soon), [expected], "{form:?}");
        assert_eq!(reasons(renewed), [""; 0], "{form:?}");
        let ends = sum(&outcome.metrics, "token_end_timestamp_seconds");
        assert_eq!(ends, u64::try_from(DEFAULT_EPOCH.after(day).as_millis()).unwrap() / 1_000);
    }
}

#[test]
fn tokens_are_made_by_agoras_clock() {
    for ahead in [HOUR_MS, -HOUR_MS, 3 * HOUR_MS] {
        for form in FORMS {
            let plan = Plan {
                clock_ahead_ms: ahead,
                ..minting(one_app(20.0, 20.0), form, HOUR, 30 * SECOND)
            };
            let (verdict, outcome) = check(&plan);
            assert_eq!(verdict.lost, 0, "{ahead} {form:?}");
            // The two feeds begin together, when nothing is known of Agora's clock.
            assert_eq!(refused(&outcome), 2, "{ahead} {form:?}");
        }
    }
}

/// Answers that get lost or break off, all the time: what they cost has to be told, with bounds.
fn lossy(user_events: f64, channel_events: f64) -> Script {
    let faults = [FaultKind::NoAnswer, FaultKind::Cut, FaultKind::Reset];
    let faults = faults.map(|kind| Fault::new(kind).share(0.05));
    Script { faults: faults.to_vec(), ..one_app(user_events, channel_events) }
}

#[test]
fn a_wall_clock_that_steps_an_hour_either_way_harms_nothing() {
    for step in [HOUR_MS, -HOUR_MS] {
        for seed in 1..=10 {
            let script = Script { seed, ..lossy(40.0, 20.0) };
            let plan = Plan {
                deeds: vec![
                    (20 * SECOND, Deed::SetClock(step)),
                    (40 * SECOND, Deed::SetClock(-step)),
                ],
                ..minting(script, TokenForm::AccessToken2, HOUR, MINUTE)
            };
            let (verdict, outcome) = check(&plan);
            assert!(verdict.lost > 0, "the test is about losses and their bounds");
            for gap in &verdict.gaps {
                assert!(gap.from.is_none_or(|from| from < gap.to), "{gap:?}");
            }
            assert!(refused(&outcome) <= 2 * 2, "{step}, seed {seed}: {}", refused(&outcome));
            let asked = left(&outcome, 0);
            let longest = asked.windows(2).map(|two| two[1] - two[0]).max();
            assert!(longest < Some(10 * SECOND), "{step}, seed {seed}: {longest:?}");
        }
    }
}

#[test]
fn a_machine_that_slept_tells_what_it_missed() {
    // Agora keeps 2,000.
    for (rate, sleep, overwrites) in [
        (60.0, MINUTE, true),
        (60.0, MINUTE / 2, false),
        (4.0, 10 * MINUTE, true),
        (1.0, 10 * MINUTE, false),
    ] {
        for seed in 1..=10 {
            let script = Script { seed, ..one_app(rate, rate / 10.0) };
            let busy = sleep + MINUTE;
            let plan = Plan {
                overloaded: overwrites,
                deeds: vec![(20 * SECOND, Deed::Sleep(sleep))],
                ..minting(script, TokenForm::AccessToken2, 5 * MINUTE, busy)
            };
            let (verdict, outcome) = check(&plan);
            let case = format!("{rate}, {sleep:?}, seed {seed}");
            assert_eq!(!verdict.overwritten.is_empty(), overwrites, "{case}");
            assert_eq!(verdict.lost, 0, "{case}");
            // What was out when it fell asleep may have carried a token that ended meanwhile.
            assert!(refused(&outcome) <= 2, "{case}: {}", refused(&outcome));
        }
    }
}
