//! What becomes of the errors that a broker answers with: librdkafka's mock says them on demand.
//!
//! Held here: which [`Failure`] comes out, that what passes by itself shows nowhere, and that
//! the partition can be claimed and written to afterwards. The mock keeps the records of aborted
//! transactions in sight, so that everything is delivered once is held by the simulated runs and by
//! those on a real broker.

use std::thread;
use std::time::Duration;

use agora_rtm_bridge::config;
use agora_rtm_bridge::kafka::{
    Batch, Cluster, Failure, Kafka as _, KafkaError, Owned as _, PageRecord, Topic,
};
use agora_rtm_bridge::memory::Recall;
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::RDKafkaErrorCode as Code;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::types::{RDKafkaApiKey as Api, RDKafkaRespErr};
use tokio::runtime::Runtime;
use tokio::time::sleep;

const LIMIT: Duration = Duration::from_secs(60);

/// More answers than anybody asks for.
const FOR_EVER: usize = 100_000;

/// A partition whose thread no other test has.
const RARE: i32 = 42;

/// A mock with the bridge's topics, of one partition each by default.
struct Mock {
    broker: MockCluster<'static, DefaultProducerContext>,
    settings: config::Kafka,
    runtime: Runtime,
}

// === impl Mock ===

impl Mock {
    fn start() -> Self {
        Self::with_partitions(1)
    }

    fn with_partitions(partitions: i32) -> Self {
        let broker = MockCluster::new(1).expect("loopback has free ports");
        let values = [
            ("KAFKA__BOOTSTRAP_SERVERS", broker.bootstrap_servers()),
            // The mock answers an empty fetch after the whole wait, whatever comes meanwhile.
            ("KAFKA__OPTIONS__FETCH_WAIT_MAX_MS", "20".to_owned()),
            ("APPS__0__APP_ID", "a".to_owned()),
            ("APPS__0__AUTH__TOKEN", "t".to_owned()),
        ];
        let values = values.map(|(name, value)| (format!("AGORA_RTM_BRIDGE__{name}"), value));
        let settings = config::load(None, values).expect("the settings are right").kafka;
        let cluster = Cluster::new(settings.clone(), "tests");
        for topic in Topic::ALL {
            broker.create_topic(cluster.topic(topic), partitions, 1).expect("the topic is new");
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime can be built");
        Self { broker, settings, runtime }
    }

    /// A way to it.
    fn connect(&self) -> Cluster {
        Cluster::prepared(self.settings.clone(), "tests")
    }

    /// Answers requests of this kind with these errors, one after the other.
    fn inject(&self, api: Api, errors: &[Code]) {
        let wire = |code: &Code| RDKafkaRespErr::try_from(*code as i32).expect("a known code");
        let errors: Vec<RDKafkaRespErr> = errors.iter().map(wire).collect();
        self.broker.request_errors(api, &errors);
    }

    /// How many records a topic holds.
    fn records(&self, topic: Topic) -> i64 {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", self.broker.bootstrap_servers())
            .create()
            .expect("the settings are right");
        let name = self.connect().topic(topic).to_owned();
        consumer.fetch_watermarks(&name, 0, LIMIT).expect("the mock answers").1
    }

    /// Claims and delivers until it succeeds, as a publisher does.
    async fn deliver_some_time(&self, kafka: &Cluster) {
        let deadline = tokio::time::Instant::now() + LIMIT;
        while let Err(error) = claim_and_deliver(kafka, 1, || {}).await {
            assert!(tokio::time::Instant::now() < deadline, "it stays so: {error}");
            sleep(Duration::from_millis(250)).await;
        }
    }
}

/// Claims the partition, lets something happen, and delivers events.
async fn claim_and_deliver(
    kafka: &Cluster,
    events: usize,
    then: impl FnOnce(),
) -> Result<(), KafkaError> {
    let (mut owned, _) = kafka.claim(0, Recall::default()).await?;
    then();
    let mut batch = Batch::default();
    for _ in 0..events {
        let event = batch.begin(Topic::UserEvents).partition(0);
        event.key(b"u").value(|it| it.extend_from_slice(b"{}"));
    }
    owned.deliver(batch, 1).await
}

/// Whether this process has a thread of that name.
fn has_thread(name: &str) -> bool {
    let tasks = std::fs::read_dir("/proc/self/task").expect("Linux has it");
    let names =
        tasks.flatten().filter_map(|it| std::fs::read_to_string(it.path().join("comm")).ok());
    names.into_iter().any(|it| it.trim_end() == name)
}

fn what(outcome: Result<(), KafkaError>) -> (Option<Failure>, String) {
    match outcome {
        Ok(()) => (None, String::new()),
        Err(error) => (Some(error.failure()), error.to_string()),
    }
}

/// Plays rows beside one another: most of them only wait.
fn check<T: Copy + Send + Sync + std::fmt::Debug>(rows: &[T], play: fn(T) -> Option<String>) {
    let wrong: Vec<String> = thread::scope(|scope| {
        let rows: Vec<_> = rows.iter().map(|row| scope.spawn(|| play(*row))).collect();
        rows.into_iter().filter_map(|row| row.join().expect("a row does not panic")).collect()
    });
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_error_of_a_transaction_has_its_class_and_the_next_claim_goes_on() {
    const ROWS: &[(Api, &[Code], Option<Failure>)] = &[
        // What passes by itself.
        (Api::Produce, &[Code::NotLeaderForPartition; 3], None),
        (Api::Produce, &[Code::NotEnoughReplicas, Code::NotEnoughReplicasAfterAppend], None),
        (Api::Produce, &[Code::RequestTimedOut, Code::BrokerTransportFailure], None),
        (Api::AddPartitionsToTxn, &[Code::CoordinatorLoadInProgress; 3], None),
        (Api::AddPartitionsToTxn, &[Code::ConcurrentTransactions, Code::NotCoordinator], None),
        (Api::AddPartitionsToTxn, &[Code::BrokerTransportFailure; 2], None),
        (Api::EndTxn, &[Code::CoordinatorLoadInProgress, Code::NotCoordinator], None),
        // The answer to the commit is lost: asked again, it is known.
        (Api::EndTxn, &[Code::BrokerTransportFailure; 2], None),
        // A right that was taken away.
        (Api::Produce, &[Code::TopicAuthorizationFailed], Some(Failure::Refused)),
        (Api::AddPartitionsToTxn, &[Code::TopicAuthorizationFailed], Some(Failure::Refused)),
        // Records that are refused for what they are.
        (Api::Produce, &[Code::MessageSizeTooLarge], Some(Failure::Unfit)),
        (Api::Produce, &[Code::InvalidTimestamp], Some(Failure::Unfit)),
        (Api::Produce, &[Code::PolicyViolation], Some(Failure::Unfit)),
        (Api::Produce, &[Code::InvalidRecord], Some(Failure::Unfit)),
        // Somebody else.
        (Api::AddPartitionsToTxn, &[Code::ProducerFenced], Some(Failure::Fenced)),
        (Api::AddPartitionsToTxn, &[Code::InvalidProducerEpoch], Some(Failure::Fenced)),
        (Api::EndTxn, &[Code::ProducerFenced], Some(Failure::Fenced)),
        (Api::EndTxn, &[Code::InvalidProducerEpoch], Some(Failure::Fenced)),
        // Only a new client helps.
        (Api::Produce, &[Code::OutOfOrderSequenceNumber], Some(Failure::Broken)),
        (Api::Produce, &[Code::UnknownProducerId], Some(Failure::Broken)),
        (Api::AddPartitionsToTxn, &[Code::InvalidProducerIdMapping], Some(Failure::Broken)),
        (Api::AddPartitionsToTxn, &[Code::InvalidTransactionalState], Some(Failure::Broken)),
        (Api::EndTxn, &[Code::InvalidProducerIdMapping], Some(Failure::Broken)),
        (Api::EndTxn, &[Code::InvalidTransactionalState], Some(Failure::Broken)),
    ];
    check(ROWS, |row @ (api, errors, expected)| {
        // The refusal of a transaction comes while the last of many records are not yet handed over.
        let events = if api == Api::AddPartitionsToTxn { 5_000 } else { 1 };
        let mock = Mock::start();
        let (failure, said, records) = mock.runtime.block_on(async {
            let kafka = mock.connect();
            let (failure, said) =
                what(claim_and_deliver(&kafka, events, || mock.inject(api, errors)).await);
            let records = mock.records(Topic::UserEvents);
            mock.broker.clear_request_errors(api);
            mock.deliver_some_time(&kafka).await;
            (failure, said, records)
        });
        let is_once = failure.is_some() || records == events as i64;
        (failure != expected || !is_once)
            .then(|| format!("{row:?}: {failure:?}, {records} records, {said}"))
    });
}

#[test]
fn every_error_of_a_claim_has_its_class_and_its_end() {
    const ROWS: &[(Api, Code, usize, Option<Failure>)] = &[
        (Api::InitProducerId, Code::CoordinatorLoadInProgress, 3, None),
        (Api::InitProducerId, Code::NotCoordinator, 3, None),
        (Api::InitProducerId, Code::ConcurrentTransactions, 3, None),
        (Api::InitProducerId, Code::BrokerTransportFailure, 3, None),
        (Api::InitProducerId, Code::ProducerFenced, 1, Some(Failure::Fenced)),
        (
            Api::InitProducerId,
            Code::TransactionalIdAuthorizationFailed,
            FOR_EVER,
            Some(Failure::Refused),
        ),
        (
            Api::InitProducerId,
            Code::CoordinatorLoadInProgress,
            FOR_EVER,
            Some(Failure::Unavailable),
        ),
        (Api::FindCoordinator, Code::CoordinatorNotAvailable, FOR_EVER, Some(Failure::Unavailable)),
        (Api::FindCoordinator, Code::BrokerTransportFailure, FOR_EVER, Some(Failure::Unavailable)),
    ];
    check(ROWS, |row @ (api, error, times, expected)| {
        let mock = Mock::start();
        let (failure, said) = mock.runtime.block_on(async {
            let kafka = mock.connect();
            mock.inject(api, &vec![error; times]);
            let claimed = what(kafka.claim(0, Recall::default()).await.map(drop));
            mock.broker.clear_request_errors(api);
            mock.deliver_some_time(&kafka).await;
            claimed
        });
        (failure != expected).then(|| format!("{row:?}: {said}"))
    });
}

#[test]
fn every_error_of_a_page_has_its_class_and_the_next_one_goes_on() {
    const ROWS: &[(&[Code], Option<Failure>)] = &[
        (&[Code::NotLeaderForPartition; 3], None),
        (&[Code::NotEnoughReplicas; 3], None),
        (&[Code::RequestTimedOut, Code::BrokerTransportFailure], None),
        (&[Code::UnknownProducerId], None),
        (&[Code::TopicAuthorizationFailed], Some(Failure::Refused)),
        (&[Code::MessageSizeTooLarge], Some(Failure::Unfit)),
        (&[Code::PolicyViolation], Some(Failure::Unfit)),
        (&[Code::OutOfOrderSequenceNumber], Some(Failure::Broken)),
        (&[Code::InvalidProducerEpoch], Some(Failure::Fenced)),
    ];
    check(ROWS, |row @ (errors, expected)| {
        let mock = Mock::start();
        let page = || PageRecord { value: "{}".into(), ..PageRecord::default() };
        let (failure, said, next) = mock.runtime.block_on(async {
            let kafka = mock.connect();
            mock.inject(Api::Produce, errors);
            let (failure, said) = what(kafka.append(0, page()).await.map(drop));
            mock.broker.clear_request_errors(Api::Produce);
            (failure, said, kafka.append(0, page()).await)
        });
        let is_well = failure == expected && next.is_ok() && mock.records(Topic::Pages) <= 2;
        (!is_well).then(|| format!("{row:?}: {said}; then {next:?}"))
    });
}

/// A position that could not be noted must not keep a client with outdated credentials alive.
#[test]
fn a_partition_that_is_let_go_while_its_broker_is_away_leaves_no_thread_behind() {
    let mock = Mock::with_partitions(RARE + 1);
    let name = format!("publish-{RARE}");
    mock.runtime.block_on(async {
        let kafka = mock.connect();
        let (mut owned, _) = kafka.claim(RARE, Recall::default()).await.expect("the mock is well");
        let mut batch = Batch::default();
        let event = batch.begin(Topic::UserEvents).partition(0);
        event.key(b"u").value(|it| it.extend_from_slice(b"{}"));
        owned.deliver(batch, 1).await.expect("the mock is well");
        assert!(has_thread(&name));
        mock.broker.broker_down(1).expect("it is the one");
        // The position is noted a second after the one before, or after the claim.
        let pages = tokio::time::timeout(Duration::from_secs(2), owned.pages(1)).await;
        assert!(pages.is_err(), "there are none");
    });
    // A commit that waits for its coordinator lasts for 45 s at least.
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while has_thread(&name) {
        assert!(tokio::time::Instant::now() < deadline, "`{name}` still runs");
        thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn delivered_positions_are_noted_for_lag_tools() {
    let mock = Mock::start();
    mock.runtime.block_on(async {
        let kafka = mock.connect();
        let (mut owned, _) = kafka.claim(0, Recall::default()).await.expect("the mock is well");
        // A commit that seems to be under way would hold up the next one for 30 s.
        let deadline = tokio::time::Instant::now() + Duration::from_secs(25);
        for position in [1, 2, 3] {
            // `look` asks for nothing where the topic is empty.
            kafka.append(0, PageRecord::default()).await.expect("the mock is well");
            owned.deliver(Batch::default(), position).await.expect("the mock is well");
            loop {
                let look = kafka.look(0).await.expect("the mock is well");
                if look.delivered == Some(position) && look.owner.as_deref() == Some("tests") {
                    break;
                }
                assert!(tokio::time::Instant::now() < deadline, "{position}: {look:?}");
                // What is due is committed while pages are waited for, too.
                drop(tokio::time::timeout(Duration::from_millis(300), owned.pages(1)).await);
            }
        }
    });
}
