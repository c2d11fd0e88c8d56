//! What a real broker refuses, and what others do to topics: foreign records, clocks, partitions.

use std::collections::HashMap;
use std::time::Duration;

use agora_rtm_bridge::config;
use agora_rtm_bridge::kafka::{Cluster, Kafka as _, Progress, partition_of};
use agora_rtm_bridge::model::{
    AppId, Clock, Content, Entry, Incarnation, PageId, Ticket, Timestamp,
};
use agora_rtm_bridge::observe::accounts::Accounts;
use agora_rtm_bridge::observe::health::Health;
use agora_rtm_bridge::publisher::{Publisher, PublisherMetrics};
use agora_rtm_bridge::records::pages::encode;
use agora_rtm_bridge::simulator::AppScript;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _, ProducerContext};
use rdkafka::{ClientConfig, Message as _};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::topics::{Admin, busy, wait_for};
use super::{LIMIT, stop};
use crate::check::check;
use crate::support::agora::Hosts;
use crate::support::consume::Consumer;
use crate::support::names::Names;
use crate::support::process::Bridge;
use crate::support::{broker, names, pages};

const DELIVERED: &str = "agora_rtm_bridge_events_delivered_total";

fn wait_for_more(bridge: &Bridge) {
    let before = bridge.metric(DELIVERED);
    wait_for(bridge, "events are delivered", |bridge| {
        bridge.metric(DELIVERED) > before + 200.0 && bridge.get("/ready").status == 200
    });
}

#[test]
fn a_foreign_record_with_a_huge_key_costs_nothing_but_a_line() {
    let (bootstrap, names) = (broker::shared(), Names::unique("foreign"));
    let agora = busy();
    let mut bridge = Bridge::start(&agora.config(&names, bootstrap, Hosts::EachRegion));
    bridge.wait_ready();
    wait_for_more(&bridge);
    let producer: BaseProducer =
        ClientConfig::new().set("bootstrap.servers", bootstrap).create().unwrap();
    let (key, value) = (vec![b'k'; 600_000], vec![b'v'; 300_000]);
    for partition in 0..4 {
        let record = BaseRecord::to(&names.pages).partition(partition).key(&key).payload(&value);
        producer.send(record).unwrap();
    }
    producer.flush(LIMIT).unwrap();
    let consumer = Consumer::start(bootstrap, &[&names.dead_letter]);
    consumer.wait_until("all of them are dead letters", LIMIT, |records| records.len() == 4);
    wait_for_more(&bridge);
    stop(&mut bridge);
    for letter in consumer.finish() {
        let size: usize = letter.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
        assert!(size < 2_000 && letter.key.unwrap().len() <= 256, "{size}");
        assert_eq!(letter.value.unwrap(), value);
        let (_, reason) = letter.headers.iter().find(|(name, _)| name == "reason").unwrap();
        let reason = String::from_utf8_lossy(reason);
        assert!(reason.contains("a key of 600000 bytes"), "{reason}");
    }
}

#[test]
fn topics_that_came_back_with_one_partition_are_mended_and_partitions_that_were_added_are_left() {
    let (bootstrap, names) = (broker::shared(), Names::unique("spread"));
    let (agora, admin) = (busy(), Admin::new(bootstrap));
    let config = agora.config(&names, bootstrap, Hosts::EachRegion);
    let mut bridge = Bridge::start(&config);
    bridge.wait_ready();
    wait_for_more(&bridge);
    stop(&mut bridge);

    // As a broker makes them for whoever asks first.
    for topic in [&names.pages, &names.user_events] {
        admin.delete(topic);
        admin.wait_for_partitions(topic, 0);
        broker::create_topic(bootstrap, topic, 1);
    }
    let checked = check(&config, &[]);
    assert!(checked.out.contains("the start adds the others"), "{}", checked.out);
    bridge.start_again();
    bridge.wait_ready();
    wait_for_more(&bridge);
    assert_eq!(admin.partitions(&names.pages), 4, "{}", bridge.log());
    assert_eq!(admin.partitions(&names.user_events), 3, "{}", bridge.log());
    for topic in [&names.pages, &names.state, &names.gaps, &names.dead_letter] {
        assert_eq!(admin.setting(topic, "message.timestamp.type"), "LogAppendTime", "{topic}");
    }
    assert_eq!(admin.setting(&names.pages, "max.message.bytes"), "10485760");
    stop(&mut bridge);

    // An administrator means well.
    for topic in [&names.pages, &names.state] {
        admin.add_partitions(topic, 7);
    }
    let checked = check(&config, &[]);
    assert_eq!(checked.code, Some(0), "{}", checked.out);
    assert_eq!(checked.out.matches("the first 4 are used").count(), 2, "{}", checked.out);
    bridge.start_again();
    bridge.wait_ready();
    wait_for_more(&bridge);
    let said = bridge.log().matches("partitions were added; the first ones are used").count();
    assert_eq!(said, 2, "{}", bridge.log());
    stop(&mut bridge);

    // The key that follows them would lead apps away from their memory.
    let app = AppScript::numbered(0).app_id;
    let home = |partitions| partition_of(app.as_str().as_bytes(), partitions);
    let other = [5, 6].into_iter().find(|other| home(*other) != home(4)).expect("it moves");
    let wrong = config.replace("page_partitions = 4", &format!("page_partitions = {other}"));
    let mut bridge = Bridge::start(&wrong);
    wait_for(&bridge, "it is refused", |bridge| {
        bridge.get("/ready").body.contains("memory was written with another number")
    });
    bridge.kill_9();
}

/// What became of each record, by topic.
#[derive(Clone, Default)]
struct Outcomes(std::sync::Arc<std::sync::Mutex<HashMap<String, Option<String>>>>);

impl rdkafka::ClientContext for Outcomes {}

impl ProducerContext for Outcomes {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &rdkafka::producer::DeliveryResult<'_>, (): ()) {
        let (topic, error) = match result {
            Ok(record) => (record.topic().to_owned(), None),
            Err((error, record)) => (record.topic().to_owned(), Some(error.to_string())),
        };
        self.0.lock().expect("no holder panics").insert(topic, error);
    }
}

/// The broker refuses what is more than an hour ahead, as Kafka 4 does by default.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_is_eight_hours_ahead_delivers_and_is_named() {
    const AHEAD: Duration = Duration::from_secs(8 * 3_600);
    let (bootstrap, names) = (broker::shared(), Names::unique("ahead"));
    let real = Clock::system().now();
    let clock = Clock::simulated(real.after(AHEAD));
    let cluster = Cluster::new(kafka(bootstrap, &names), "ahead");
    cluster.prepare().await.unwrap();

    // Whatever stamps a record of our own topics: the broker takes it. Those of events it refuses.
    let outcomes = Outcomes::default();
    let mut client = ClientConfig::new();
    client.set("bootstrap.servers", bootstrap);
    let producer: BaseProducer<Outcomes> = client.create_with_context(outcomes.clone()).unwrap();
    let ours = [&names.state, &names.gaps, &names.dead_letter];
    for topic in ours.into_iter().chain([&names.user_events]) {
        let record: BaseRecord<'_, str, str> = BaseRecord::to(topic);
        producer
            .send(record.partition(0).key("tickets/").timestamp(clock.now().as_millis()))
            .unwrap();
    }
    producer.flush(LIMIT).unwrap();
    let outcomes = outcomes.0.lock().unwrap().clone();
    for topic in ours {
        assert_eq!(outcomes[topic], None, "{topic}");
    }
    let refused = outcomes[&names.user_events].clone().unwrap_or_default();
    assert!(refused.contains("InvalidTimestamp"), "the test is about nothing: {refused}");

    let (stop, metrics) = (CancellationToken::new(), PublisherMetrics::default());
    let publisher = Publisher {
        kafka: cluster.clone(),
        partition: 1,
        has_apps: true,
        group: names.group.clone(),
        incarnation: Incarnation::from_u128(1),
        regions: HashMap::from([(AppId::new("a"), 1)]),
        hold: Duration::from_secs(39),
        feeds: Vec::new(),
        clock,
        progress: Progress::new(4),
        accounts: Accounts::default(),
        health: Health::new(clock),
        metrics: metrics.clone(),
    };
    let published = TaskTracker::new().spawn(publisher.run(stop.clone(), stop.clone()));
    let old = real.before(Duration::from_secs(5 * 365 * 86_400));
    for ticket in 1..=6 {
        cluster.append(1, page(ticket, [old, real])).await.unwrap();
        tokio::time::sleep(Duration::from_millis(1_100)).await;
    }
    let topic = names.user_events.clone();
    let records = tokio::task::spawn_blocking(move || {
        let consumer = Consumer::start(broker::shared(), &[&topic]);
        consumer.wait_until("all events are there", LIMIT, |records| records.len() == 12);
        consumer.finish()
    });
    let records = records.await.unwrap();
    stop.cancel();
    published.await.unwrap();
    let minute = Duration::from_secs(60);
    let is_near = |stamp: i64| Timestamp::from_millis(stamp).since(real) < minute;
    let stamps: Vec<i64> = records.iter().filter_map(|record| record.timestamp).collect();
    assert!(stamps.iter().all(|stamp| is_near(*stamp)), "{stamps:?} {real:?}");
    assert_eq!(stamps.iter().filter(|stamp| **stamp == real.as_millis()).count(), 6);
    assert_eq!(metrics.failures.get(), 0);
    let mut registry = prometheus_client::registry::Registry::default();
    metrics.register(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    let ahead = text.lines().find_map(|line| line.strip_prefix("kafka_clock_ahead_seconds "));
    let ahead: f64 = ahead.expect("the difference is known").parse().unwrap();
    assert!((ahead + AHEAD.as_secs_f64()).abs() < 30.0, "{ahead}");
}

fn page(ticket: u64, times: [Timestamp; 2]) -> agora_rtm_bridge::kafka::PageRecord {
    let event = |kind, at: Timestamp| {
        let ms = at.as_millis();
        format!(r#"{{"user_id":"u{ticket}","type":"{kind}","ms":{ms}}}"#)
    };
    let (login, logout) = (event("Login", times[0]), event("Logout", times[1]));
    let body = format!(r#"{{"events":[{login},{logout}]}}"#);
    let page = pages::of_users(&AppId::new("a"), times[1], body);
    let id = PageId { incarnation: Incarnation::from_u128(1), ticket: Ticket(ticket) };
    encode(&Entry { id, content: Content::Page(page) }, Ticket(ticket - 1))
}

fn kafka(bootstrap: &str, names: &Names) -> config::Kafka {
    let app = "[[apps]]\napp_id = \"a\"\nhosts = [\"https://agora.invalid\"]\n\
               auth.customer_id = \"c\"\nauth.customer_secret = \"s\"\n";
    let tables = names.kafka_tables(bootstrap);
    let home = names::folder();
    let file = home.path().join("bridge.toml");
    std::fs::write(&file, format!("{tables}partitions = 3\npage_partitions = 4\n{app}"))
        .expect("a fresh folder can be written to");
    config::load(Some(&file), Vec::new()).expect("it is right").kafka
}
