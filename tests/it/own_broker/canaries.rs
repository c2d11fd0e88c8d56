//! Secrets that can be recognised, led through everything that fails: none comes out anywhere.

use std::fs;

use agora_rtm_bridge::simulator::AppScript;
use agora_rtm_bridge::simulator::Script;

use super::LIMIT;
use crate::check::check;
use crate::support::agora::Agora;
use crate::support::agora::Hosts;
use crate::support::names;
use crate::support::names::Names;
use crate::support::process::Bridge;
use crate::support::secured;
use crate::support::secured::Proof;
use crate::support::within;

/// Every secret holds this word.
const CANARY: &str = "kanarienvogel";

/// Pieces of base64 that hold it, one for each place at which it can begin.
const CODED: [&str; 3] = ["a2FuYXJpZW52b2dlb", "thbmFyaWVudm9nZW", "rYW5hcmllbnZvZ2Vs"];

fn assert_silent(what: &str, text: &str) {
    for word in [CANARY].iter().chain(&CODED) {
        let line = text.lines().find(|line| line.contains(word));
        assert_eq!(line, None, "{what} holds {word}");
    }
}

/// Two apps that are refused, by Agora and by a proxy, and a Kafka that refuses: every secret is a
/// canary, in the file or in files beside it.
fn config(agora: &Agora, names: &Names, key: &std::path::Path) -> String {
    let (broker, proof) = (secured::shared(), Proof::Plain("plain-user"));
    let secret = agora.world().script().apps[0].customer_secret.clone();
    let config = agora
        .config(names, &broker.door(proof), Hosts::EachRegion)
        .replace(&secret, &format!("{CANARY}-secret"));
    let proxy = agora.apps(Hosts::InOrder(&[0]));
    let proxy = proxy.split("http://").nth(1).and_then(|it| it.split('"').next()).unwrap();
    format!(
        "agora.proxy = \"http://me:{CANARY}-proxy@{proxy}\"\nlog.level = \"trace\"\n{config}\n\
         [[apps]]\napp_id = \"0123\"\nhosts = [\"https://agora.invalid\"]\n\
         auth.token_file = {key:?}\n{}\"debug\" = \"all\"\n",
        broker.options(proof, &format!("{CANARY}-password"))
    )
}

#[test]
fn no_secret_comes_out_of_what_is_refused_nor_out_of_what_is_shown() {
    let apps = vec![AppScript::numbered(0).rates(50.0, 50.0)];
    let agora = Agora::start(Script { apps, ..Script::default() });
    let (names, home) = (Names::unique("canaries"), names::folder());
    let key = home.path().join("token");
    fs::write(&key, format!("007{CANARY}-token")).unwrap();
    let config = config(&agora, &names, &key);

    let mut bridge = Bridge::start(&config);
    let refusals = ["Authentication failed", "401", "agora.invalid\\|proxy\\|tunnel"];
    let ready = within(LIMIT, || {
        let ready = bridge.get("/ready").body;
        refusals
            .iter()
            .all(|words| words.split("\\|").any(|word| ready.contains(word)))
            .then_some(ready)
    });
    let ready = ready.unwrap_or_else(|late| panic!("{late}: {}", bridge.get("/ready").body));
    assert_silent("/ready", &ready);
    assert_silent("/status.json", &bridge.status().to_string());
    assert_silent("/metrics", &bridge.metrics());
    bridge.terminate();
    bridge.terminate();
    bridge.wait(LIMIT);
    assert!(bridge.log().contains("librdkafka"), "the log tells what it can");
    assert_silent("the log", &bridge.log());

    for args in [&[][..], &["--json"], &["--print-config"]] {
        let checked = check(&config, args);
        assert_silent("check", &format!("{}{}", checked.out, checked.err));
    }
}
