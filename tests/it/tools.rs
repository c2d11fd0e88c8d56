//! The tools that look into Kafka, as a person runs them: `pages` and `audit` over what a bridge left
//! there.

use std::fs;
use std::path::PathBuf;
use std::process::Output;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::real_broker::{stop, wait_for_balance};
use crate::support::consume::Record;
use crate::support::names::Names;
use crate::support::pages::Pages;
use crate::support::process::{Bridge, command};
use crate::support::{broker, consume, names};

/// What a bridge left in Kafka after it drained some pages and stopped, and its configuration.
struct Left {
    names: Names,
    config: PathBuf,
    _home: TempDir,
}

/// Two pages; the second repeats an event of the first and holds an element that is none.
const BODIES: [&str; 2] = [
    r#"{"result":"success","events":[{"user_id":"anna","type":"Login","ms":1578027420761},{"user_id":"bert","type":"Login","ms":1578027420762}]}"#,
    r#"{"result":"success","events":[ {"user_id":"bert","type":"Login","ms":1578027420762}, 17, {"user_id":"anna","type":"Logout","ms":1578027420763} ]}"#,
];

// === impl Left ===

impl Left {
    /// Lets a bridge drain [`BODIES`].
    fn by_a_bridge(test: &str) -> Self {
        let names = Names::unique(test);
        let pages = Pages::serve(BODIES.map(str::to_owned).to_vec());
        let config = format!(
            "{}\n[[apps]]\napp_id = \"a1\"\nhosts = [{:?}]\nendpoints = [\"user_events\"]\n\
             [apps.auth]\ncustomer_id = \"c\"\ncustomer_secret = \"s\"\n",
            names.kafka_tables(broker::shared()),
            pages.url(),
        );
        let mut bridge = Bridge::start(&config);
        wait_for_balance(&bridge, 5);
        stop(&mut bridge);
        let home = names::folder();
        let file = home.path().join("bridge.toml");
        fs::write(&file, config).expect("a fresh folder can be written to");
        Self { names, config: file, _home: home }
    }

    /// Runs a command of the program with this configuration.
    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = command();
        command.args(arguments).args(["--config", names::text(&self.config)]);
        command.output().expect("the program can be run")
    }

    fn events(&self) -> Vec<Record> {
        consume::read_all(broker::shared(), &[&self.names.user_events])
    }
}

#[track_caller]
fn text(output: &Output, code: i32) -> String {
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    String::from_utf8(output.stdout.clone()).expect("results are text")
}

fn ids(records: &[Record]) -> Vec<&str> {
    let mut ids: Vec<&str> = records.iter().filter_map(Record::event_id).collect();
    ids.sort_unstable();
    ids
}

#[test]
fn an_event_leads_to_the_answer_that_it_came_in() {
    let left = Left::by_a_bridge("pages-show");
    let events = left.events();
    let logout = events.iter().find(|it| it.value.as_ref().unwrap().ends_with(b"763}")).unwrap();
    let page = logout.header("agora_page").unwrap();

    let shown = left.run(&["pages", "show", page, "--app", "a1"]);
    assert_eq!(text(&shown, 0), BODIES[1], "byte for byte");
    let facts = String::from_utf8_lossy(&shown.stderr);
    assert!(facts.contains("made-up-id") && facts.contains("a1/default/user_events"), "{facts}");

    let envelope: Value =
        serde_json::from_str(&text(&left.run(&["pages", "show", page, "--json"]), 0)).unwrap();
    assert_eq!((&envelope["page"], &envelope["status"]), (&page.into(), &200.into()));
    assert_eq!(envelope["body"], BODIES[1]);

    let decoded = text(&left.run(&["pages", "show", page, "--events"]), 0);
    let [repeat, other, event] = decoded.lines().collect::<Vec<_>>()[..] else {
        panic!("{decoded}")
    };
    assert!(repeat.ends_with("762}"), "{repeat}");
    assert_eq!(other, "not an event (not a JSON object)  17");
    let value = str::from_utf8(logout.value.as_ref().unwrap()).unwrap();
    assert_eq!(event, format!("{}  {value}", logout.event_id().unwrap()));

    let list = |more: &[&str]| {
        let listed = text(&left.run(&[&["pages", "list", "--json"], more].concat()), 0);
        listed.lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<Value>>()
    };
    let elements: Vec<Value> =
        list(&["--since", "1h"]).iter().map(|it| it["elements"].clone()).collect();
    assert_eq!(elements, [2, 3]);
    assert_eq!(list(&["--page", page]).len(), 1);
    assert_eq!(list(&["--app", "another"]).len(), 0);
    assert_eq!(list(&["--to", "2020-01-01T00:00:00Z"]).len(), 0);

    let unknown = left.run(&["pages", "show", "00000000000000000000000000000000/1"]);
    text(&unknown, 1);
    let said = String::from_utf8_lossy(&unknown.stderr);
    assert!(said.contains("there is no page") && said.contains(&left.names.pages), "{said}");
}

#[test]
fn events_are_published_again_with_their_ids_and_only_after_asking() {
    let left = Left::by_a_bridge("pages-replay");
    let before = left.events();
    text(&left.run(&["pages", "replay", "--yes"]), 2);
    text(&left.run(&["pages", "replay", "--app", "a1"]), 2);
    assert_eq!(left.events().len(), before.len(), "nobody was asked");

    let replayed = left.run(&["pages", "replay", "--app", "a1", "--yes"]);
    assert_eq!(text(&replayed, 0), "published again: 3 events of 2 pages\n");
    let said = String::from_utf8_lossy(&replayed.stderr);
    assert!(said.contains(&format!("3 events for {}", left.names.user_events)), "{said}");

    let (again, first): (Vec<Record>, Vec<Record>) =
        left.events().into_iter().partition(|record| record.header("replayed").is_some());
    assert_eq!(first, before);
    assert_eq!(ids(&again), ids(&before));
    let values = |records: &[Record]| {
        let mut values: Vec<_> =
            records.iter().map(|it| (it.key.clone(), it.value.clone())).collect();
        values.sort_unstable();
        values
    };
    assert_eq!(values(&again), values(&before));
}

/// Publishes a record once more, as no bridge would.
fn publish_again(record: &Record) {
    let mut config = ClientConfig::new();
    let producer: BaseProducer =
        config.set("bootstrap.servers", broker::shared()).create().expect("the settings are right");
    let headers = record.headers.iter().fold(OwnedHeaders::new(), |headers, (key, value)| {
        headers.insert(Header { key, value: Some(value) })
    });
    let copy = BaseRecord::to(&record.topic)
        .partition(record.partition)
        .key(record.key.as_deref().expect("events have keys"))
        .payload(record.value.as_deref().expect("events have values"))
        .headers(headers);
    producer.send(copy).expect("its queue is empty");
    producer.flush(Duration::from_secs(30)).expect("the broker is there");
}

#[test]
fn an_audit_proves_what_a_bridge_delivered_and_finds_a_copy_among_it() {
    let left = Left::by_a_bridge("audit");
    let audit = |code| {
        let output = left.run(&["audit", "--json"]);
        serde_json::from_str::<Value>(&text(&output, code)).unwrap()
    };
    let verdict = audit(0);
    assert_eq!((&verdict["proved"], &verdict["pages"]), (&json!(true), &json!(2)));
    let account = json!({
        "app_id": "a1", "endpoint": "user_events", "received": 5, "delivered": 3,
        "delivered_earlier": 0, "repeats": 1, "dead_letters": 1, "set_aside": 0,
        "not_provable": 0, "missing": 0,
    });
    assert_eq!(verdict["accounts"], json!([account]));

    text(&left.run(&["pages", "replay", "--app", "a1", "--yes"]), 0);
    let verdict = audit(0);
    assert_eq!((&verdict["proved"], &verdict["replayed"]), (&json!(true), &json!(3)));

    publish_again(&left.events()[0]);
    let verdict = audit(1);
    assert_eq!(verdict["faults"]["twice"]["count"], 1, "{verdict:#}");
    assert_eq!(verdict["faults"].as_object().unwrap().len(), 1, "{verdict:#}");
    let said = text(&left.run(&["audit"]), 1);
    assert!(said.starts_with("DISPROVED: 1 twice.\n"), "{said}");
}
