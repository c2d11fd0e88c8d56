//! How long a start reads the memory of very many apps, and what it takes; how large the topic of a
//! memory becomes. Measurements, told in `docs/benchmarks.md`; too long for the suite.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use agora_rtm_bridge::config;
use agora_rtm_bridge::kafka::{Batch, Cluster, Kafka as _, partition_of};
use agora_rtm_bridge::memory::{Fingerprint, Memory, Recall};
use agora_rtm_bridge::model::{AppId, Endpoint, Timestamp};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::{ClientConfig, Message as _};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::LIMIT;
use crate::support::broker;
use crate::support::names::Names;

const APPS: u32 = 1_000;
const PARTITIONS: u32 = 8;
const EVENTS: u128 = 8_192;

#[test]
#[ignore = "a measurement of a minute and 260 MB; see docs/benchmarks.md"]
fn the_memory_of_a_thousand_apps_is_read_at_a_start() {
    let (bootstrap, names) = (broker::shared(), Names::unique("memory"));
    let home = crate::support::names::folder();
    let runtime = Runtime::new().expect("a runtime needs nothing");
    let cluster = prepared(bootstrap, &names, home.path(), &runtime);
    let bytes = fill(bootstrap, &names);

    forget_peak();
    let (before, begun) = (resident(), Instant::now());
    let mut memories: HashMap<i32, Memory> = runtime.block_on(async {
        let mut claims = JoinSet::new();
        for partition in 0..i32::try_from(PARTITIONS).unwrap() {
            let recall = Recall::default();
            let cluster = cluster.clone();
            claims.spawn(async move {
                let (_owned, recall) = cluster.claim(partition, recall).await.expect("it is ours");
                (partition, recall.finish().expect("it is readable"))
            });
        }
        claims.join_all().await.into_iter().collect()
    });
    let took = begun.elapsed();
    eprintln!(
        "{} MB read in {took:?}; resident {} MB before, {} MB at the most",
        bytes / 1_000_000,
        before / 1_000_000,
        peak() / 1_000_000
    );
    eprintln!("resident {} MB with all windows", resident() / 1_000_000);
    let known = known(&mut memories);
    assert_eq!(known, APPS as usize * 2 * EVENTS as usize, "all of it is known");
}

/// The broker compacts the topic meanwhile and afterwards, as it is set up.
#[test]
#[ignore = "a measurement of a minute and 600 MB; see docs/benchmarks.md"]
fn the_memory_of_an_hour_at_9000_events_a_second_is_compacted() {
    const TRANSACTIONS: u32 = 9;
    let (bootstrap, names) = (broker::shared(), Names::unique("hour"));
    let home = crate::support::names::folder();
    let runtime = Runtime::new().expect("a runtime needs nothing");
    drop(prepared(bootstrap, &names, home.path(), &runtime));
    let producer = producer(bootstrap);
    let mut memory = Recall::default().finish().expect("nothing is readable");
    let (mut events, mut written) = ((0..).map(fingerprint), 0);
    for transaction in 0..3_600 * TRANSACTIONS {
        let now = Timestamp::from_millis(i64::from(transaction * 1_000 / TRANSACTIONS));
        let window = memory.window(&id(0), Endpoint::User);
        for event in events.by_ref().take(1_000) {
            window.insert(event, now);
        }
        written += write_changes(&mut memory, &producer, &names, 0);
    }
    producer.flush(LIMIT).expect("the broker takes it");
    eprintln!("{} MB written", written / 1_000_000);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(45) {
        let (records, bytes) = stored(bootstrap, &names.state);
        eprintln!("{records} records of {} MB after {:?}", bytes / 1_000_000, begun.elapsed());
        std::thread::sleep(Duration::from_secs(15));
    }
}

/// What a reader of partition 0 has to read.
fn stored(bootstrap: &str, topic: &str) -> (usize, usize) {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", "stored")
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .create()
        .expect("it is right");
    let mut start = TopicPartitionList::new();
    start.add_partition_offset(topic, 0, Offset::Beginning).expect("it is right");
    consumer.assign(&start).expect("it is right");
    let (mut records, mut bytes) = (0, 0);
    while let Some(Ok(message)) = consumer.poll(LIMIT) {
        records += 1;
        bytes += message.payload().unwrap_or_default().len();
    }
    (records, bytes)
}

/// A cluster with its topics, for the settings of which `home` is.
fn prepared(bootstrap: &str, names: &Names, home: &Path, runtime: &Runtime) -> Cluster {
    let text = names.kafka_tables(bootstrap)
        + "page_partitions = 8\n[[apps]]\napp_id = \"a\"\n[apps.auth]\ncustomer_id = \"c\"\ncustomer_secret = \"s\"\n";
    let file = home.join("bridge.toml");
    fs::write(&file, text).expect("a fresh folder can be written to");
    let settings = config::load(Some(&file), std::iter::empty()).expect("the settings are right");
    let cluster = Cluster::new(settings.kafka, "memory");
    runtime.block_on(cluster.prepare()).expect("the broker makes topics");
    cluster
}

/// How many events the windows of all apps know.
fn known(memories: &mut HashMap<i32, Memory>) -> usize {
    let mut known = 0;
    for app in 0..APPS {
        let partition = partition_of(id(app).as_str().as_bytes(), PARTITIONS);
        let memory = memories.get_mut(&partition).expect("each was claimed");
        for endpoint in Endpoint::ALL {
            known += memory.window(&id(app), endpoint).len();
        }
    }
    known
}

/// Writes full windows, as publishers would leave them. How many bytes.
fn fill(bootstrap: &str, names: &Names) -> usize {
    let producer = producer(bootstrap);
    let mut bytes = 0;
    for app in 0..APPS {
        let id = id(app);
        let partition = partition_of(id.as_str().as_bytes(), PARTITIONS);
        let mut memory = Recall::default().finish().expect("nothing is readable");
        for endpoint in Endpoint::ALL {
            let first = (u128::from(app) * 2 + endpoint as u128) * EVENTS;
            for number in first..first + EVENTS {
                let window = memory.window(&id, endpoint);
                window.insert(fingerprint(number), Timestamp::from_millis(1));
            }
        }
        bytes += write_changes(&mut memory, &producer, names, partition);
    }
    producer.flush(LIMIT).expect("the broker takes it");
    bytes
}

/// Writes what changed as a publisher would, but in no transaction. How many bytes.
fn write_changes(
    memory: &mut Memory,
    producer: &BaseProducer,
    names: &Names,
    partition: i32,
) -> usize {
    let mut batch = Batch::default();
    memory.write_changes(partition, &mut batch);
    let mut bytes = 0;
    for record in batch.iter() {
        let value = record.value().unwrap_or_default();
        bytes += value.len();
        let mut next =
            BaseRecord::to(&names.state).partition(partition).key(record.key()).payload(value);
        while let Err((_, back)) = producer.send(next) {
            producer.poll(Duration::from_millis(10));
            next = back;
        }
    }
    producer.poll(Duration::ZERO);
    bytes
}

fn producer(bootstrap: &str) -> BaseProducer {
    ClientConfig::new().set("bootstrap.servers", bootstrap).create().expect("it is right")
}

fn fingerprint(number: u128) -> Fingerprint {
    let spread = number.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
    Fingerprint::from_bytes(spread.to_be_bytes())
}

fn id(app: u32) -> AppId {
    AppId::new(format!("{app:032x}"))
}

fn resident() -> u64 {
    status("VmRSS:")
}

/// What was the most so far is not about what comes.
fn forget_peak() {
    fs::write("/proc/self/clear_refs", "5").expect("Linux takes it of its own processes");
}

fn peak() -> u64 {
    status("VmHWM:")
}

/// A figure of this process, in bytes.
fn status(name: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("Linux has it");
    let line = status.lines().find(|line| line.starts_with(name)).expect("it has that line");
    line.split_whitespace().nth(1).and_then(|figure| figure.parse::<u64>().ok()).expect("a number")
        * 1_024
}
