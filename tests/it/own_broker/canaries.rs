//! Secrets that can be recognised, led through everything that fails: none comes out anywhere.

use std::fs;

use agora_rtm_bridge::simulator::{AppScript, Script};

use super::LIMIT;
use crate::check::check;
use crate::support::agora::{Agora, Hosts};
use crate::support::names::Names;
use crate::support::process::Bridge;
use crate::support::secured::Proof;
use crate::support::{names, secured, within};

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
    let secret = AppScript::numbered(0).customer_secret;
    let config = agora
        .config(names, &broker.door(proof), Hosts::EachRegion)
        .replace(&secret, &format!("{CANARY}-secret"));
    let proxy = agora.apps(Hosts::InOrder(&[0]));
    let proxy = proxy.split("http://").nth(1).and_then(|it| it.split('"').next());
    let proxy = proxy.expect("the simulator is asked over HTTP");
    format!(
        "agora.proxy = \"http://me:{CANARY}-proxy@{proxy}\"\nlog.level = \"trace\"\n{config}\n\
         [[apps]]\napp_id = \"0123\"\nhosts = [\"https://agora.invalid\"]\n\
         auth.token_file = {key:?}\n{}\"debug\" = \"all\"\n",
        broker.options(proof, &format!("{CANARY}-password"))
    )
}

/// A core file would hold every secret.
fn assert_no_core_file(bridge: &Bridge) {
    let limits = fs::read_to_string(format!("/proc/{}/limits", bridge.id())).unwrap_or_default();
    let core = limits.lines().find_map(|line| line.strip_prefix("Max core file size"));
    let figures: Vec<&str> = core.unwrap_or_default().split_whitespace().take(2).collect();
    assert_eq!(figures, ["0", "0"], "{limits}");
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
    assert_no_core_file(&bridge);
    bridge.kill_9();
    assert!(bridge.log().contains("librdkafka"), "the log tells what it can");
    assert_silent("the log", &bridge.log());

    for args in [&[][..], &["--json"], &["--print-config"]] {
        let checked = check(&config, args);
        assert_silent("check", &format!("{}{}", checked.out, checked.err));
    }
}

#[test]
fn no_secret_comes_out_of_a_configuration_that_is_refused() {
    let apps = vec![AppScript::numbered(0)];
    let agora = Agora::start(Script { apps, ..Script::default() });
    let (names, home) = (Names::unique("canaries"), names::folder());
    let key = home.path().join("token");
    fs::write(&key, format!("007{CANARY}-token")).unwrap();
    let config = config(&agora, &names, &key);
    // Its certificates are looked at where it speaks TLS only.
    let tls = config.replace("sasl_plaintext", "sasl_ssl");
    let password = format!("\"sasl.password\" = \"{CANARY}-password\"");
    let wrong = [
        // Names that librdkafka does not know, and values that it does not take.
        config.replace("\"sasl.password\"", "\"sasl.pasword\""),
        tls.replace(&password, &format!("{password}\n\"ssl.key.pem\" = \"{CANARY}\"")),
        tls.replace(&password, &format!("{password}\n\"ssl.ca.pem\" = \"{CANARY}\"")),
        config.replace("\"debug\" = \"all\"", &format!("\"sasl_password\" = \"{CANARY}\"")),
        // What the configuration refuses by itself.
        config.replace("customer_secret = ", "customer_secrt = "),
        config.replace("auth.token_file", &format!("auth.tokn = \"{CANARY}\"\nauth.token_file")),
        config.replace("http://me", "ftp://me"),
    ];
    for (number, config) in wrong.iter().enumerate() {
        let mut bridge = Bridge::start(config);
        let status = bridge.wait(LIMIT);
        let (code, log) = (status.code(), bridge.log());
        assert_silent(&format!("the refusal of configuration {number}"), &log);
        assert!(log.lines().count() < 60, "{number}: {code:?} {log}");
        let checked = check(config, &[]);
        assert_ne!(checked.code, Some(0), "{number}: {}", checked.out);
        assert_silent(&format!("check of {number}"), &format!("{}{}", checked.out, checked.err));
    }
}
