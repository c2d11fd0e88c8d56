//! The real process and a secret that is wrong: who says so, and what happens once it is corrected.
//!
//! Kafka is not there: draining goes on without it.

use std::fs;
use std::time::Duration;

use agora_rtm_bridge::simulator::{AppScript, Script, World};
use serde_json::Value;

use crate::support::agora::{Agora, Hosts};
use crate::support::names::Names;
use crate::support::process::Bridge;
use crate::support::{names, within};

const LIMIT: Duration = Duration::from_secs(30);

/// Nobody listens here.
const NO_KAFKA: &str = "127.0.0.1:1";

fn taken(world: &World, app: usize) -> u64 {
    let answers = world.ledger().answers().iter();
    answers.filter(|it| it.feed.is_some_and(|feed| feed.0 == app)).map(|it| it.taken).sum()
}

/// The reasons of this condition, with their subjects.
fn reasons(bridge: &Bridge, condition: &str) -> Vec<(String, String)> {
    let status = bridge.status();
    let reasons = status
        .pointer("/readiness/reasons")
        .and_then(serde_json::Value::as_array)
        .expect("a list")
        .clone();
    let text = |reason: &Value, field: &str| reason[field].as_str().expect("a text").to_owned();
    reasons
        .iter()
        .filter(|reason| reason["condition"] == condition)
        .map(|reason| (text(reason, "subject"), text(reason, "reason")))
        .collect()
}

#[test]
fn a_wrong_secret_of_one_app_recovers_when_its_file_is_corrected_and_the_others_go_on() {
    let agora = Agora::start(Script {
        apps: (0..3).map(|index| AppScript::numbered(index).rates(5.0, 5.0)).collect(),
        ..Script::default()
    });
    let apps: Vec<AppScript> = agora.world().script().apps.clone();
    let (folder, right) = (names::folder(), apps[1].customer_secret.clone());
    let file = folder.path().join("secret");
    fs::write(&file, "hunter2wrong\n").expect("a fresh folder can be written to");
    let config = agora.config(&Names::unique("tokens"), NO_KAFKA, Hosts::EachRegion);
    let by_value = format!("customer_secret = {right:?}");
    assert!(config.contains(&by_value), "{config}");
    let by_file = format!("customer_secret_file = {:?}", file.display().to_string());
    // The third makes its tokens itself.
    let third = format!(
        "customer_id = {:?}\ncustomer_secret = {:?}",
        apps[2].customer_id, apps[2].customer_secret
    );
    assert!(config.contains(&third), "{config}");
    let minted = format!("app_certificate = {:?}\nuser_id = \"bridge\"", apps[2].app_certificate);
    let config = config.replace(&by_value, &by_file).replace(&third, &minted);
    let bridge = Bridge::start(&config);

    let said = within(LIMIT, || reasons(&bridge, "credentials").pop())
        .unwrap_or_else(|late| panic!("the refusal was told {late}"));
    assert_eq!(said.0, apps[1].app_id.as_str());
    assert!(said.1.contains(&format!("customer_secret_file ({})", file.display())), "{said:?}");
    for other in [0, 2] {
        agora.wait_until("the others are drained", LIMIT, |world| taken(world, other) > 0);
    }
    assert_eq!(taken(&agora.world(), 1), 0);

    fs::write(&file, &right).expect("the folder can be written to");
    agora.wait_until("the corrected one is drained", LIMIT, |world| taken(world, 1) > 0);
    within(LIMIT, || reasons(&bridge, "credentials").is_empty().then_some(()))
        .unwrap_or_else(|late| panic!("the recovery was told {late}"));
    assert_eq!(bridge.status()["tokens"][0]["app_id"], apps[2].app_id.as_str());
    for secret in ["hunter2", &right, &apps[2].app_certificate, "agora token", "007eJ"] {
        assert!(!bridge.log().contains(secret), "`{secret}` is in the log");
    }
}

#[test]
fn a_secret_that_agora_never_handed_out_is_told_before_it_is_sent_and_used_once_corrected() {
    let agora = Agora::start(Script {
        apps: (0..3).map(|index| AppScript::numbered(index).rates(5.0, 5.0)).collect(),
        ..Script::default()
    });
    let apps: Vec<AppScript> = agora.world().script().apps.clone();
    let folder = names::folder();
    let files = [folder.path().join("two-lines"), folder.path().join("quoted")];
    let mut config = agora.config(&Names::unique("secrets"), NO_KAFKA, Hosts::EachRegion);
    for (app, file) in apps.iter().zip(&files) {
        let by_value = format!("customer_secret = {:?}", app.customer_secret);
        assert!(config.contains(&by_value), "{config}");
        let by_file = format!("customer_secret_file = {:?}", file.display().to_string());
        config = config.replace(&by_value, &by_file);
    }
    // As a console hands it out, and as a shell's variable may be written.
    let pair = format!("{}\r\n{}\r\n", apps[0].customer_id, apps[0].customer_secret);
    fs::write(&files[0], pair).expect("a fresh folder can be written to");
    let quoted = format!("\"{}\"", apps[1].customer_secret);
    fs::write(&files[1], quoted).expect("a fresh folder can be written to");
    let bridge = Bridge::start(&config);
    agora.wait_until("the others are drained", LIMIT, |world| taken(world, 2) > 0);

    let of = |app: usize| {
        let said = reasons(&bridge, "credentials");
        said.into_iter().find(|(subject, _)| subject == apps[app].app_id.as_str()).map(|it| it.1)
    };
    let said = within(LIMIT, || of(0)).unwrap_or_else(|late| panic!("it was told {late}"));
    assert!(said.contains(&format!("customer_secret_file ({})", files[0].display())), "{said}");
    assert!(said.contains("2 lines, and customer_id is in one of them"), "{said}");
    let refused = || of(1).filter(|said| said.contains("status 401"));
    let said = within(LIMIT, refused).unwrap_or_else(|late| panic!("it was told {late}"));
    assert!(said.contains("has quotes around it"), "{said}");
    let log = bridge.log();
    assert!(log.contains("has quotes around it"), "before the refusal: {log}");
    let asked = |world: &World, app: usize| {
        world
            .ledger()
            .answers()
            .iter()
            .filter(|it| it.feed.is_some_and(|feed| feed.0 == app))
            .count()
    };
    assert_eq!(asked(&agora.world(), 0), 0, "what can't be a secret is not sent");

    for (app, file) in apps.iter().zip(&files) {
        let corrected = format!("\u{feff}{}\r\n", app.customer_secret);
        fs::write(file, corrected).expect("the folder can be written to");
    }
    for app in [0, 1] {
        agora.wait_until("the corrected one is drained", LIMIT, |world| taken(world, app) > 0);
        within(LIMIT, || of(app).is_none().then_some(()))
            .unwrap_or_else(|late| panic!("the recovery was told {late}"));
    }
    for app in &apps {
        assert!(!bridge.log().contains(&app.customer_secret), "a secret is in the log");
    }
}
