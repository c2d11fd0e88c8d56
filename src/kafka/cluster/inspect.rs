//! What there is in the cluster, and what this process may do with it.
//!
//! Nothing is changed by asking, and a bridge that runs meanwhile does not notice. Kafka has a
//! request for one's own rights, and librdkafka's binding does not reach it, so each right is found
//! by asking for something that is refused later than for lack of it: a write confirmed by a number
//! of replicas that no broker confirms by, a topic to be created that is only looked at, an offset
//! noted for a topic that does not exist. The exception is the transactional id: one is opened that no
//! publisher uses, and brokers forget it after a week.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::sleep;
use std::time::Duration;

use rdkafka::admin::{
    AdminClient, AdminOptions, ConfigResource, OwnedResourceSpecifier, ResourceSpecifier,
};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::error::{KafkaError as ClientError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer as _, ProducerContext};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::{ClientContext, Message as _};
use tokio::time::Instant;

use super::clients::{Clients, Listener};
use super::coordinator::{Log, explained, missing};
use super::failure::is_passing;
use super::reach::reach;
use super::topics::Misfit;
use super::{ANSWER_TIMEOUT, blocking, topics};
use crate::config::Delivery;
use crate::kafka::{Failure, KafkaError, Topic};

/// How long one call of several may wait.
const STEP: Duration = Duration::from_secs(1);

/// What was found out.
#[derive(Debug)]
pub struct Inspection {
    /// How many brokers there are.
    pub brokers: usize,
    /// Every topic, in the order of [`Topic::ALL`].
    pub topics: Vec<(Topic, FoundTopic)>,
    /// The settings of the topics that may be looked at.
    pub settings: HashMap<Topic, TopicSettings>,
    /// Topics with another number of partitions than the configuration's, where that can be lived
    /// with or mended; or why it can't.
    pub spread: Result<Vec<Misfit>, KafkaError>,
    /// Whether the brokers create topics on request; `None` without permission to read that.
    pub makes_topics: Option<bool>,
    /// Every right that was tried.
    pub rights: Vec<(Right, Result<(), KafkaError>)>,
}

/// A topic as it was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FoundTopic {
    /// It is there.
    There {
        /// How many partitions it has.
        partitions: usize,
        /// In how many copies, the fewest of its partitions.
        replicas: usize,
    },
    /// It is not.
    Missing,
    /// This user may not know.
    Hidden,
}

/// What a topic is set to.
#[derive(Clone, Debug, Default)]
pub struct TopicSettings(HashMap<String, String>);

/// Something that the bridge has to be allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    /// To write into a topic.
    Write(Topic),
    /// To read from a topic.
    Read(Topic),
    /// To look at a topic's settings. It works without, with Kafka's defaults.
    Look(Topic),
    /// To create a topic that is missing.
    Create(Topic),
    /// To open transactions.
    Transact,
    /// To note positions for the group.
    Note,
}

/// Asks for everything; ends within some ten seconds each of three rounds of questions.
pub(super) async fn inspect(clients: &Clients) -> Result<Inspection, KafkaError> {
    let admin = clients.admin()?;
    let (brokers, topics) = found(clients).await?;
    let counts = topics.iter().filter_map(|(topic, found)| match found {
        FoundTopic::There { partitions, .. } => Some((*topic, *partitions)),
        FoundTopic::Missing | FoundTopic::Hidden => None,
    });
    let counts: HashMap<Topic, usize> = counts.collect();
    let mut seen = topics::TopicsSeen::default();
    let of = |wanted: fn(&FoundTopic) -> bool| -> Vec<Topic> {
        topics.iter().filter(|(_, found)| wanted(found)).map(|(topic, _)| *topic).collect()
    };
    let there = of(|found| matches!(found, FoundTopic::There { .. }));
    let missing = of(|found| *found == FoundTopic::Missing);
    let readable = there.iter().filter(|topic| matches!(topic, Topic::Pages | Topic::State));
    let readable: Vec<Topic> = readable.copied().collect();
    let trying = |work: fn(&Clients, &[Topic]) -> Rights, topics: &[Topic]| {
        let (clients, topics) = (clients.clone(), topics.to_owned());
        blocking(move || work(&clients, &topics))
    };
    let (looked, created, written, read, transacted, noted, spread, makes_topics) = tokio::join!(
        look(clients, &admin, &there),
        create(clients, &admin, &missing),
        trying(write, &there),
        trying(read, &readable),
        trying(transact, &[]),
        trying(note, &[]),
        topics::misfits(clients, &counts, &mut seen),
        makes_topics(&admin, brokers.first().copied()),
    );
    let (settings, looked) = looked?;
    let rights = [looked, created, written, read, transacted, noted].concat();
    let brokers = brokers.len();
    Ok(Inspection { brokers, topics, settings, spread, makes_topics, rights })
}

type Rights = Vec<(Right, Result<(), KafkaError>)>;

async fn found(clients: &Clients) -> Result<(Vec<i32>, Vec<(Topic, FoundTopic)>), KafkaError> {
    let reader = clients.probing_reader()?;
    let clients = clients.clone();
    blocking(move || {
        let servers = clients.settings().bootstrap_servers.as_str();
        let mut brokers = Vec::new();
        let mut topics = Vec::new();
        for topic in Topic::ALL {
            let name = clients.topic(topic);
            // Asked by its name: in a list, one that is hidden is not there.
            let metadata = reach(&reader, servers, Some(name))?;
            brokers = metadata.brokers().iter().map(|broker| broker.id()).collect();
            let found = metadata.topics().iter().find(|it| it.name() == name);
            topics.push((topic, found.map_or(FoundTopic::Missing, found_as)));
        }
        Ok((brokers, topics))
    })
    .await
}

fn found_as(topic: &rdkafka::metadata::MetadataTopic) -> FoundTopic {
    let code = topic.error().map(RDKafkaErrorCode::from);
    let replicas = topic.partitions().iter().map(|partition| partition.replicas().len()).min();
    match (code, replicas) {
        (Some(RDKafkaErrorCode::TopicAuthorizationFailed), _) => FoundTopic::Hidden,
        (_, Some(replicas)) => FoundTopic::There { partitions: topic.partitions().len(), replicas },
        (_, None) => FoundTopic::Missing,
    }
}

async fn look(
    clients: &Clients,
    admin: &AdminClient<Listener>,
    topics: &[Topic],
) -> Result<(HashMap<Topic, TopicSettings>, Rights), KafkaError> {
    if topics.is_empty() {
        return Ok((HashMap::new(), Vec::new()));
    }
    let names: Vec<_> =
        topics.iter().map(|topic| ResourceSpecifier::Topic(clients.topic(*topic))).collect();
    let options = AdminOptions::new().request_timeout(Some(ANSWER_TIMEOUT));
    let described = admin.describe_configs(&names, &options).await.map_err(|error| {
        KafkaError::new(Failure::Unavailable, "read", "the settings of the topics", error)
    })?;
    let (mut settings, mut rights) = (HashMap::new(), Vec::new());
    // The brokers name the topic of a refusal nowhere but in the order of the answers.
    for (topic, described) in topics.iter().zip(described) {
        let looked = match described {
            Ok(resource) => {
                let named = topic_of(clients, &resource).unwrap_or(*topic);
                settings.insert(named, TopicSettings::of(resource));
                Ok(())
            }
            Err(code) => Err(refused("look at", clients.topic(*topic), code)),
        };
        rights.push((Right::Look(*topic), looked));
    }
    Ok((settings, rights))
}

/// Asks one of the brokers; they are set alike.
async fn makes_topics(admin: &AdminClient<Listener>, broker: Option<i32>) -> Option<bool> {
    let options = AdminOptions::new().request_timeout(Some(ANSWER_TIMEOUT));
    let broker = ResourceSpecifier::Broker(broker?);
    let settings =
        admin.describe_configs([&broker], &options).await.ok()?.into_iter().next()?.ok()?;
    settings.get("auto.create.topics.enable")?.value.as_ref()?.parse().ok()
}

fn topic_of(clients: &Clients, resource: &ConfigResource) -> Option<Topic> {
    let OwnedResourceSpecifier::Topic(name) = &resource.specifier else { return None };
    clients.topic_named(name)
}

async fn create(clients: &Clients, admin: &AdminClient<Listener>, missing: &[Topic]) -> Rights {
    if missing.is_empty() || !clients.settings().topics.create {
        return Vec::new();
    }
    let results = match topics::create(clients, admin, missing, true).await {
        Ok(results) => results,
        Err(error) => {
            return missing
                .iter()
                .map(|topic| (Right::Create(*topic), Err(error.clone())))
                .collect();
        }
    };
    let named = |name: &str| missing.iter().find(|topic| clients.topic(**topic) == name).copied();
    let right = |result: rdkafka::admin::TopicResult| match result {
        Ok(name) => Some((Right::Create(named(&name)?), Ok(()))),
        // Somebody was quicker: a bridge that has just started.
        Err((name, RDKafkaErrorCode::TopicAlreadyExists)) => {
            Some((Right::Create(named(&name)?), Ok(())))
        }
        Err((name, code)) => {
            Some((Right::Create(named(&name)?), Err(refused("create", name, code))))
        }
    };
    results.into_iter().filter_map(right).collect()
}

fn write(clients: &Clients, topics: &[Topic]) -> Rights {
    let answers = Answers::default();
    let producer = match clients.probing_producer(answers.clone()) {
        Ok(producer) => producer,
        Err(error) => return vec![(Right::Write(Topic::Pages), Err(error))],
    };
    for topic in topics {
        let record = BaseRecord::<(), ()>::to(clients.topic(*topic)).partition(0);
        if let Err((error, _)) = producer.send(record) {
            answers.note(clients.topic(*topic), Some(error));
        }
    }
    serve(&producer, topics.len(), &answers);
    let right = |topic: &Topic| {
        let name = clients.topic(*topic);
        let written = match answers.take(name) {
            // The answer of a broker who would have written.
            Some(Some(error))
                if error.rdkafka_error_code() == Some(RDKafkaErrorCode::InvalidRequiredAcks) =>
            {
                Ok(())
            }
            Some(None) => Ok(()),
            Some(Some(error)) => Err(refused("write to", name, error)),
            None => Err(refused("write to", name, "no answer; it timed out")),
        };
        (Right::Write(*topic), written)
    };
    topics.iter().map(right).collect()
}

fn serve(producer: &BaseProducer<Answers>, expected: usize, answers: &Answers) {
    let deadline = Instant::now() + ANSWER_TIMEOUT;
    while answers.count() < expected && Instant::now() < deadline {
        producer.poll(Duration::from_millis(50));
    }
}

fn read(clients: &Clients, topics: &[Topic]) -> Rights {
    let right = |topic: &Topic| (Right::Read(*topic), read_end(clients, clients.topic(*topic)));
    topics.iter().map(right).collect()
}

/// Reads from the end of a topic's first partition, where there is nothing but the report of the end.
fn read_end(clients: &Clients, topic: &str) -> Result<(), KafkaError> {
    let failed = |error: ClientError| refused("read from", topic, error);
    let reader = clients.end_reader()?;
    let mut end = TopicPartitionList::new();
    end.add_partition_offset(topic, 0, Offset::End).map_err(failed)?;
    reader.assign(&end).map_err(failed)?;
    let deadline = Instant::now() + ANSWER_TIMEOUT;
    while Instant::now() < deadline {
        match reader.poll(Duration::from_millis(500)) {
            Some(Ok(_) | Err(ClientError::PartitionEOF(_))) => return Ok(()),
            Some(Err(error)) if is_refusal(&error) => return Err(failed(error)),
            Some(Err(_)) | None => {}
        }
    }
    Err(refused("read from", topic, "no answer; it timed out"))
}

fn transact(clients: &Clients, _: &[Topic]) -> Rights {
    if clients.settings().delivery != Delivery::ExactlyOnce {
        return Vec::new();
    }
    let id = format!("{}.check", clients.settings().group);
    let opened = clients.probing_transactions().and_then(|producer| {
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        loop {
            // In short steps: a refusal looks like a timeout.
            match producer.init_transactions(STEP) {
                Ok(()) => return Ok(()),
                Err(ClientError::Transaction(error))
                    if error.is_retriable()
                        && !error.to_string().contains("authorization")
                        && Instant::now() < deadline => {}
                Err(error) => return Err(refused("open transactions as", &id, error)),
            }
        }
    });
    let opened = opened.map_err(|error| explained(error, lacking(clients, Log::Transactions)));
    vec![(Right::Transact, opened)]
}

/// Notes a position in a topic that is not there. The group's right is asked for first.
fn note(clients: &Clients, _: &[Topic]) -> Rights {
    let noted = clients.page_reader().and_then(|reader| {
        let group = clients.settings().group.as_str();
        let failed = |error: &ClientError| {
            let said = heard(&reader).map(|said| format!("; {said}")).unwrap_or_default();
            refused("note a position for the group", group, format!("{error}{said}"))
        };
        let nowhere = format!("{}.check", clients.topic(Topic::Pages));
        let mut position = TopicPartitionList::new();
        position
            .add_partition_offset(&nowhere, 0, Offset::Offset(0))
            .map_err(|error| failed(&error))?;
        // First a question that ends in time: noting waits for as long as the group is out of reach.
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        while let Err(error) = reader.committed_offsets(position.clone(), ANSWER_TIMEOUT / 2) {
            // The first group of a new cluster waits for the topic of all groups to be made.
            if !is_passing(&error) || Instant::now() > deadline {
                return Err(failed(&error));
            }
            sleep(STEP);
        }
        match reader.commit(&position, CommitMode::Sync) {
            Err(error)
                if error.rdkafka_error_code()
                    == Some(RDKafkaErrorCode::GroupAuthorizationFailed) =>
            {
                Err(failed(&error))
            }
            // Whatever else is refused, the topic for one, is refused later than the group.
            Ok(()) | Err(_) => Ok(()),
        }
    });
    let noted = noted.map_err(|error| explained(error, lacking(clients, Log::Groups)));
    vec![(Right::Note, noted)]
}

/// What keeps the brokers from having a coordinator.
fn lacking(clients: &Clients, log: Log) -> Option<String> {
    missing(&clients.probing_reader().ok()?, log)
}

/// What librdkafka has to say to a client that is polled.
fn heard(reader: &BaseConsumer<Listener>) -> Option<String> {
    for _ in 0..16 {
        drop(reader.poll(Duration::ZERO));
    }
    reader.context().take_said()
}

fn refused(
    operation: &'static str,
    subject: impl Into<String>,
    reason: impl std::fmt::Display,
) -> KafkaError {
    KafkaError::new(Failure::Refused, operation, subject, reason)
}

fn is_refusal(error: &ClientError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::TopicAuthorizationFailed
                | RDKafkaErrorCode::GroupAuthorizationFailed
                | RDKafkaErrorCode::ClusterAuthorizationFailed
        )
    )
}

// === impl TopicSettings ===

impl TopicSettings {
    fn of(resource: ConfigResource) -> Self {
        let value = |entry: rdkafka::admin::ConfigEntry| Some((entry.name, entry.value?));
        Self(resource.entries.into_iter().filter_map(value).collect())
    }

    /// A setting by its name in Kafka.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// A setting that is a number; none where it means "without bound".
    pub fn number(&self, name: &str) -> Option<u64> {
        self.get(name)?.parse().ok()
    }
}

impl FromIterator<(String, String)> for TopicSettings {
    fn from_iter<T: IntoIterator<Item = (String, String)>>(settings: T) -> Self {
        Self(settings.into_iter().collect())
    }
}

/// What became of the record for each topic; `None` is a record that was written.
#[derive(Clone, Debug, Default)]
struct Answers(Arc<Mutex<HashMap<String, Option<ClientError>>>>);

// === impl Answers ===

impl Answers {
    fn note(&self, topic: &str, error: Option<ClientError>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(topic.to_owned(), error);
    }

    fn take(&self, topic: &str) -> Option<Option<ClientError>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(topic)
    }

    fn count(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

impl ClientContext for Answers {
    fn error(&self, error: ClientError, reason: &str) {
        Listener::default().error(error, reason);
    }

    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        Listener::default().log(level, facility, text);
    }
}

impl ProducerContext for Answers {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        match result {
            Ok(record) => self.note(record.topic(), None),
            Err((error, record)) => self.note(record.topic(), Some(error.clone())),
        }
    }
}
