//! Whether the topics are as they have to be, and what they allow.

use std::collections::HashMap;
use std::time::Duration;

use rdkafka::admin::AdminClient;
use rdkafka::admin::AdminOptions;
use rdkafka::admin::ConfigResource;
use rdkafka::admin::NewTopic;
use rdkafka::admin::ResourceSpecifier;
use rdkafka::admin::TopicReplication;
use rdkafka::admin::TopicResult;
use rdkafka::error::RDKafkaErrorCode;
use tracing::info;
use tracing::warn;

use super::ANSWER_TIMEOUT;
use super::blocking;
use super::clients::Clients;
use super::clients::LARGEST_PAGE;
use super::clients::Listener;
use super::reach::reach;
use crate::kafka::Failure;
use crate::kafka::KafkaError;
use crate::kafka::Limits;
use crate::kafka::Stamping;
use crate::kafka::Topic;

/// Room in a batch beside its records.
const BATCH_OVERHEAD: usize = 1_024;

/// What the topics allow.
#[derive(Debug, Default)]
pub(super) struct Facts {
    limits: HashMap<Topic, Limits>,
}

/// Kafka's defaults, where a broker does not tell: seven days, and its 1 MiB less librdkafka's own
/// bound of a batch.
const DEFAULT_LIMITS: Limits = Limits {
    stamping: Stamping { oldest: Duration::from_secs(7 * 86_400 / 2) },
    largest_record: 1_000_000 - BATCH_OVERHEAD,
};

// === impl Facts ===

impl Facts {
    pub(super) fn limits(&self, topic: Topic) -> Limits {
        self.limits.get(&topic).copied().unwrap_or(DEFAULT_LIMITS)
    }

    /// The largest batch that every topic takes.
    pub(super) fn largest_batch(&self) -> usize {
        Topic::ALL.map(|topic| self.limits(topic).largest_record).into_iter().min().unwrap_or(1)
    }
}

/// Finds the topics or makes them, and reads their settings.
pub(super) async fn prepare(clients: &Clients) -> Result<Facts, KafkaError> {
    let admin = clients.admin()?;
    let found = partitions(clients).await?;
    let missing: Vec<Topic> =
        Topic::ALL.into_iter().filter(|topic| !found.contains_key(topic)).collect();
    if !missing.is_empty() {
        make(clients, &admin, &missing).await?;
    }
    let expected = clients.settings().topics.page_partitions.get();
    for topic in [Topic::Pages, Topic::State] {
        match found.get(&topic) {
            Some(&partitions) if partitions != expected as usize => {
                let reason = format!(
                    "it has {partitions} partitions and kafka.topics.page_partitions is {expected}; \
                     the number is fixed for the life of the topic: an app's pages would go to \
                     another partition than its memory. Set the key to {partitions}"
                );
                return Err(KafkaError::new(Failure::Refused, "use", clients.topic(topic), reason));
            }
            _ => {}
        }
    }
    Ok(Facts { limits: limits(clients, &admin).await? })
}

/// The number of partitions of each topic that is there.
async fn partitions(clients: &Clients) -> Result<HashMap<Topic, usize>, KafkaError> {
    // What an older client says of its secrets must not count against those of now.
    let reader = clients.probing_reader()?;
    let names: Vec<(Topic, String)> =
        Topic::ALL.iter().map(|topic| (*topic, clients.topic(*topic).to_owned())).collect();
    let servers = clients.settings().bootstrap_servers.clone();
    blocking(move || {
        let metadata = reach(&reader, &servers, None)?;
        let partitions = |name: &str| {
            let topic = metadata.topics().iter().find(|topic| topic.name() == name)?;
            Some(topic.partitions().len()).filter(|count| *count > 0)
        };
        Ok(names.iter().filter_map(|(topic, name)| Some((*topic, partitions(name)?))).collect())
    })
    .await
}

async fn make(
    clients: &Clients,
    admin: &AdminClient<Listener>,
    missing: &[Topic],
) -> Result<(), KafkaError> {
    let topics = &clients.settings().topics;
    if !topics.create {
        let names: Vec<&str> = missing.iter().map(|topic| clients.topic(*topic)).collect();
        let reason = "missing, or hidden from this user (who needs the right Describe), and \
                      kafka.topics.create is false; create it or set the key to true";
        return Err(KafkaError::new(Failure::Refused, "use", names.join("`, `"), reason));
    }
    let results = create(clients, admin, missing, false).await?;
    for result in results {
        match result {
            Ok(name) => info!(topic = name, "topic created"),
            // Another bridge was faster.
            Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((name, error)) => {
                return Err(KafkaError::new(Failure::Refused, "create", name, error));
            }
        }
    }
    Ok(())
}

/// Creates topics as they have to be, or only asks whether the brokers would.
pub(super) async fn create(
    clients: &Clients,
    admin: &AdminClient<Listener>,
    missing: &[Topic],
    only_ask: bool,
) -> Result<Vec<TopicResult>, KafkaError> {
    let topics = &clients.settings().topics;
    let retention = topics.page_retention.as_millis().to_string();
    let largest_page = LARGEST_PAGE.to_string();
    let new: Vec<NewTopic<'_>> = missing
        .iter()
        .map(|topic| {
            let partitions = match topic {
                Topic::UserEvents | Topic::ChannelEvents => topics.partitions.get(),
                Topic::Pages | Topic::State => topics.page_partitions.get(),
                Topic::DeadLetter | Topic::Gaps => 1,
            };
            let partitions = i32::try_from(partitions).unwrap_or(i32::MAX);
            let replication = TopicReplication::Fixed(topics.replication_factor.into());
            let new = NewTopic::new(clients.topic(*topic), partitions, replication);
            match topic {
                Topic::Pages => {
                    new.set("retention.ms", &retention).set("max.message.bytes", &largest_page)
                }
                Topic::State => new
                    .set("cleanup.policy", "compact")
                    .set("segment.bytes", "33554432")
                    .set("min.cleanable.dirty.ratio", "0.1")
                    .set("delete.retention.ms", "600000"),
                _ => new,
            }
        })
        .collect();
    let options = AdminOptions::new()
        .validate_only(only_ask)
        .operation_timeout(Some(ANSWER_TIMEOUT))
        .request_timeout(Some(ANSWER_TIMEOUT));
    admin.create_topics(&new, &options).await.map_err(|error| {
        KafkaError::new(Failure::Unavailable, "create", "the missing topics", error)
    })
}

/// What the topics allow; the defaults where we may not know.
async fn limits(
    clients: &Clients,
    admin: &AdminClient<Listener>,
) -> Result<HashMap<Topic, Limits>, KafkaError> {
    let resources: Vec<ResourceSpecifier<'_>> =
        Topic::ALL.iter().map(|topic| ResourceSpecifier::Topic(clients.topic(*topic))).collect();
    let options = AdminOptions::new().request_timeout(Some(ANSWER_TIMEOUT));
    let described = match admin.describe_configs(&resources, &options).await {
        Ok(described) => described,
        Err(error) => {
            let what = "the settings of the topics";
            return Err(KafkaError::new(Failure::Unavailable, "read", what, error));
        }
    };
    let limits = |resource: ConfigResource| {
        let topic = Topic::ALL.into_iter().find(|topic| {
            matches!(&resource.specifier, rdkafka::admin::OwnedResourceSpecifier::Topic(name)
                if name == clients.topic(*topic))
        })?;
        let number = |name: &str| resource.get(name)?.value.as_ref()?.parse::<u64>().ok();
        let oldest = ["retention.ms", "message.timestamp.before.max.ms", "segment.ms"]
            .into_iter()
            .filter_map(number)
            .min()
            .map_or(DEFAULT_LIMITS.stamping.oldest, |oldest| Duration::from_millis(oldest / 2));
        let largest_record = number("max.message.bytes")
            .and_then(|bytes| usize::try_from(bytes).ok())
            .map_or(DEFAULT_LIMITS.largest_record, |bytes| {
                bytes.saturating_sub(BATCH_OVERHEAD).min(DEFAULT_LIMITS.largest_record)
            });
        Some((topic, Limits { stamping: Stamping { oldest }, largest_record }))
    };
    let described = described.into_iter().filter_map(|resource| match resource {
        Ok(resource) => limits(resource),
        Err(error) => {
            warn!(%error, "a topic's settings are not ours to read; Kafka's defaults are assumed");
            None
        }
    });
    Ok(described.collect())
}
