//! `check` before a broker that wants proof.

use agora_rtm_bridge::simulator::{AppScript, Script};

use super::LIMIT;
use crate::check::check;
use crate::support::agora::{Agora, Hosts};
use crate::support::names::Names;
use crate::support::secured::{Kind, Operation, PASSWORD, Proof};
use crate::support::{secured, within};

fn config(agora: &Agora, names: &Names, proof: Proof, password: &str) -> String {
    let broker = secured::shared();
    let config = agora.config(names, &broker.door(proof), Hosts::EachRegion);
    config + &broker.options(proof, password)
}

fn agora() -> Agora {
    Agora::start(Script { apps: vec![AppScript::numbered(0)], ..Script::default() })
}

/// A grant reaches the broker a moment after its controller.
fn wait_for(mut look: impl FnMut() -> Result<(), Vec<String>>) {
    let mut last = Vec::new();
    let seen = within(LIMIT, || look().map_err(|lines| last = lines).ok());
    seen.unwrap_or_else(|late| panic!("{late}: {last:#?}"));
}

#[test]
fn a_refused_proof_is_named_with_its_remedy() {
    let (agora, names) = (agora(), Names::unique("proof"));
    let with = |proof, password| config(&agora, &names, proof, password);
    check(&with(Proof::Plain("plain-user"), "wrong"), &[])
        .assert_failed(&["Authentication failed", "check \"sasl.mechanism\""]);
    check(&with(Proof::Scram("scram-user"), "wrong"), &[])
        .assert_failed(&["uthentication", "\"sasl.password\""]);
    let ca = with(Proof::Scram("scram-user"), PASSWORD).replace("broker.pem", "bridge.pem");
    check(&ca, &[]).assert_failed(&["certificate verify failed", "set \"ssl.ca.location\""]);
    let nobody = with(Proof::Certificate, PASSWORD);
    let nobody = nobody.replace("\"ssl.keystore", "#\"ssl.keystore");
    check(&nobody, &[]).assert_failed(&["alert", "set \"ssl.certificate.location\""]);
    check(&with(Proof::Certificate, "wrong"), &[]).assert_failed(&["ssl.keystore"]);
    // A host of Agora's that shows a certificate of nobody we know.
    let config = with(Proof::Plain("plain-user"), PASSWORD);
    let host = format!("https://{}", secured::shared().tls_address());
    let start = config.find("http://127.0.0.1").expect("the simulator is on loopback");
    let end = start + config[start..].find('"').expect("it is quoted");
    let config = config.replace(&config[start..end], &host);
    let checked = check(&config, &["--no-console"]);
    let failed = checked.lines("FAILED");
    assert!(failed[0].contains("not signed by a trusted authority"), "{}", checked.out);
    assert!(failed[0].contains("agora.ca_file"), "{}", checked.out);
}

#[test]
fn each_missing_right_is_named_and_the_documented_ones_suffice() {
    let (agora, names) = (agora(), Names::unique("rights"));
    let (broker, proof) = (secured::shared(), Proof::Plain("strict-user"));
    let config = config(&agora, &names, proof, PASSWORD);
    let failures = || {
        let checked = check(&config, &[]);
        let lines = checked.lines("FAILED");
        lines.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>()
    };
    let hidden = failures();
    assert_eq!(hidden.iter().filter(|line| line.contains("hidden")).count(), 6, "{hidden:#?}");
    assert!(hidden.iter().any(|line| line.contains("grant Write and Describe on the trans")));
    assert!(hidden.iter().any(|line| line.contains("grant Read on the group")), "{hidden:#?}");

    broker.grant(proof, Kind::Topic, &names.group, Operation::Describe);
    wait_for(|| {
        let uncreated = failures();
        let create = uncreated.iter().filter(|line| line.contains("create `"));
        if create.count() == 6 { Ok(()) } else { Err(uncreated) }
    });

    broker.grant_all(proof, &names);
    wait_for(|| {
        let left = failures();
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
}
