//! Answers that are not as documented, before the running bridge: each has a defined outcome, and
//! `docs/answers.md` tells it. One App ID for each kind of answer, all in one process: the first
//! request gets the odd answer, every later one an empty page, so nothing comes twice.

#![expect(clippy::indexing_slicing, reason = "a test may panic where it stands")]

mod cases;
mod server;

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::Value;

use super::{LIMIT, stop};
use crate::support::consume::{Consumer, Record};
use crate::support::names::Names;
use crate::support::process::Bridge;
use crate::support::{broker, within};
use cases::{Case, STATUSES, cases};
use server::Server;

const MIB: f64 = 1024.0 * 1024.0;

/// What became of an answer: events, dead letters, gaps.
#[derive(Debug, Default, PartialEq, Eq)]
struct Outcome {
    events: usize,
    dead_letters: Vec<Vec<u8>>,
    gaps: usize,
}

#[test]
fn every_odd_answer_has_the_outcome_that_is_written_down() {
    let cases = cases();
    documented(&cases);
    let (bootstrap, names) = (broker::shared(), Names::unique("odd-bodies"));
    let server = Server::start(&cases);
    let mut bridge = Bridge::start(&config(&names, bootstrap, &server, &cases));
    let consumer = Consumer::start(bootstrap, &names.published());

    let expected: BTreeMap<String, Outcome> = cases.iter().map(Case::expected).collect();
    let count = |of: &BTreeMap<String, Outcome>| -> usize {
        of.values().map(|it| it.events + it.dead_letters.len() + it.gaps).sum()
    };
    let all = count(&expected);
    consumer.wait_until("all that is to come", LIMIT, |records| {
        count(&outcomes(&names, records)) >= all
    });
    // What comes to nothing has come to it when the next page was asked for.
    let silent = || expected.iter().filter(|(_, it)| **it == NOTHING).map(|(app, _)| app);
    within(LIMIT, || server.have_asked_again(silent()).then_some(())).expect("each asks again");
    statuses_are_explained(&bridge);
    let memory = bridge.metric("process_resident_memory_bytes");
    assert!(memory < 400.0 * MIB, "{} MiB", memory / MIB);
    stop(&mut bridge);

    let found = outcomes(&names, &consumer.finish());
    let mut wrong = String::new();
    for case in &cases {
        let (app, expected) = case.expected();
        let found = found.get(&app).unwrap_or(&NOTHING);
        if *found != expected {
            let letters = |it: &Outcome| {
                it.dead_letters.iter().map(|raw| excerpt(raw)).collect::<Vec<_>>().join(" · ")
            };
            let shown =
                |it: &Outcome| format!("{} events, {} gaps, {}", it.events, it.gaps, letters(it));
            writeln!(wrong, "{}: {}; expected: {}", case.name, shown(found), shown(&expected))
                .expect("memory takes every write");
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}");
    let log = bridge.log();
    assert!(!log.contains("panicked"), "{log}");
    eprintln!("{} cases, {:.0} MiB", cases.len(), memory / MIB);
}

static NOTHING: Outcome = Outcome { events: 0, dead_letters: Vec::new(), gaps: 0 };

fn excerpt(raw: &[u8]) -> String {
    format!("{} bytes {:.80?}", raw.len(), String::from_utf8_lossy(&raw[..raw.len().min(80)]))
}

fn config(names: &Names, bootstrap: &str, server: &Server, cases: &[Case]) -> String {
    let mut config = format!(
        "shutdown_grace = \"90s\"\n{}partitions = 3\npage_partitions = 4\n\
         [agora]\nsilence_timeout = \"5s\"\n",
        names.kafka_tables(bootstrap)
    );
    let apps = cases.iter().map(|case| case.app()).chain(STATUSES.map(cases::app_of_status));
    for app in apps {
        write!(
            config,
            "[[apps]]\napp_id = \"{app}\"\nhosts = [\"http://{}\"]\nendpoints = [\"user_events\"]\n\
             auth = {{ customer_id = \"me\", customer_secret = \"x\" }}\n",
            server.address()
        )
        .expect("memory takes every write");
    }
    config
}

/// What was published of each App ID. Suspected overflows are not looked at: a page of 100,000
/// events is full.
fn outcomes(names: &Names, records: &[Record]) -> BTreeMap<String, Outcome> {
    let mut outcomes: BTreeMap<String, Outcome> = BTreeMap::new();
    for record in records {
        let value = record.value.as_deref().expect("nothing that is published is a tombstone");
        if record.topic == names.dead_letter {
            let app = record.headers.iter().find(|(name, _)| name == "app").expect("it is named");
            let app = String::from_utf8(app.1.clone()).expect("it is text");
            outcomes.entry(app).or_default().dead_letters.push(value.to_vec());
            continue;
        }
        let json: Value = serde_json::from_slice(&shallow(value)).expect("a record is JSON");
        let outcome = outcomes.entry(json["app_id"].as_str().expect("a text").to_owned());
        if record.topic == names.gaps {
            outcome.or_default().gaps += usize::from(json["cause"] != "overflow");
        } else {
            outcome.or_default().events += 1;
        }
    }
    for outcome in outcomes.values_mut() {
        outcome.dead_letters.sort();
    }
    outcomes
}

/// The fields before the unknown ones, which hold what serde_json's `Value` does not take.
fn shallow(value: &[u8]) -> Vec<u8> {
    match value.windows(7).position(|it| it == b",\"odd\":") {
        Some(end) => [&value[..end], b"}"].concat(),
        None => value.to_vec(),
    }
}

/// Readiness names each refusal and failure, what it means, and the ids that support asks for.
fn statuses_are_explained(bridge: &Bridge) {
    let mut last = String::new();
    for status in STATUSES {
        let subject = format!("{}/", cases::app_of_status(status));
        let explained = within(LIMIT, || {
            last = bridge.get("/ready").body;
            let ready: Value = serde_json::from_str(&last).expect("it is JSON");
            let reasons = ready["reasons"].as_array().expect("there are some").iter();
            let ours = reasons.filter(|it| {
                it["subject"].as_str().is_some_and(|it| format!("{it}/").starts_with(&subject))
            });
            let told = ours.filter_map(|it| it["reason"].as_str()).any(|reason| {
                let ids = format!("request id r{status}, resource id o{status}: ");
                reason.contains(&format!("status {status}, "))
                    && reason.split_once(&ids).is_some_and(|(_, meaning)| meaning.len() > 20)
            });
            told.then_some(())
        });
        explained.unwrap_or_else(|late| panic!("{status} explained {late}: {last}"));
    }
}

/// The table of the documents has a row for each case, with its outcome.
fn documented(cases: &[Case]) {
    let table = include_str!("../../../docs/answers.md");
    for case in cases {
        let (_, Outcome { events, dead_letters, gaps }) = case.expected();
        let row = table.lines().find(|line| line.starts_with(&format!("| {} |", case.name)));
        let row = row.unwrap_or_else(|| panic!("docs/answers.md has no row for {}", case.name));
        let end = format!("| {events} | {} | {gaps} |", dead_letters.len());
        assert!(row.replace(',', "").ends_with(&end), "{row}\nshould end with {end}");
    }
}
