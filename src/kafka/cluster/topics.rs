//! Whether the topics are as they have to be, and what they allow.

mod settings;
mod spread;

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use rdkafka::admin::{
    AdminClient, AdminOptions, ConfigResource, NewTopic, TopicReplication, TopicResult,
};
use rdkafka::error::RDKafkaErrorCode;
use tracing::info;

use super::clients::{Clients, Listener};
use super::reach::reach;
use super::{ANSWER_TIMEOUT, blocking};
use crate::kafka::{Failure, KafkaError, Limits, Stamping, Topic};

pub use self::spread::Misfit;
pub(super) use self::spread::misfits;

/// Bytes of a batch in addition to its records: 61 for the batch, and up to about 100 of numbers for a
/// record.
const BATCH_OVERHEAD: usize = 256;

/// What this process has seen of topics, over all looks at them.
#[derive(Debug, Default)]
pub(super) struct TopicsSeen {
    /// Numbers of partitions that the memory was found to fit, though they are not the
    /// configuration's.
    spread: Option<Vec<usize>>,
    /// What was logged, so that each is logged once.
    told: HashSet<(Topic, &'static str)>,
}

/// What the topics allow.
#[derive(Debug, Default)]
pub(super) struct Facts {
    limits: HashMap<Topic, Limits>,
}

/// Kafka's defaults, where a broker does not tell: seven days, and its 1 MiB less librdkafka's own
/// bound of a batch.
const DEFAULT_LIMITS: Limits = Limits {
    stamping: Stamping { oldest: Duration::from_secs(7 * 86_400 / 2), ahead: Stamping::AHEAD },
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

// === impl Seen ===

impl TopicsSeen {
    /// True the first time.
    fn tell(&mut self, topic: Topic, what: &'static str) -> bool {
        self.told.insert((topic, what))
    }

    fn has_told(&self, topic: Topic, what: &'static str) -> bool {
        self.told.contains(&(topic, what))
    }
}

/// Finds the topics or makes them, and reads their settings.
pub(super) async fn prepare(clients: &Clients, seen: &mut TopicsSeen) -> Result<Facts, KafkaError> {
    let admin = clients.admin()?;
    let found = partitions(clients).await?;
    let missing: Vec<Topic> =
        Topic::ALL.into_iter().filter(|topic| !found.contains_key(topic)).collect();
    if !missing.is_empty() {
        make(clients, &admin, &missing).await?;
    }
    let misfits = misfits(clients, &found, seen).await?;
    spread::settle(clients, &admin, &misfits, seen).await?;
    let described = settings::describe(clients, &admin).await?;
    let described = settings::mend(clients, &admin, described, &misfits, seen).await?;
    let limits = described.iter().map(|(topic, resource)| (*topic, limits(resource)));
    Ok(Facts { limits: limits.collect() })
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
    let wanted = |topic: &Topic| (*topic, settings::wanted(*topic, topics));
    let wanted: Vec<_> = missing.iter().map(wanted).collect();
    let new: Vec<NewTopic<'_>> = wanted
        .iter()
        .map(|(topic, settings)| {
            let partitions = match topic {
                Topic::UserEvents | Topic::ChannelEvents => topics.partitions.get(),
                Topic::Pages | Topic::State => topics.page_partitions.get(),
                Topic::DeadLetter | Topic::Gaps => 1,
            };
            let partitions = i32::try_from(partitions).unwrap_or(i32::MAX);
            let replication = TopicReplication::Fixed(topics.replication_factor.into());
            let new = NewTopic::new(clients.topic(*topic), partitions, replication);
            settings.iter().fold(new, |new, (name, value)| new.set(name, value))
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

/// What a topic with these settings allows. Half of each limit on times: pages wait, and clocks of
/// brokers differ.
fn limits(settings: &ConfigResource) -> Limits {
    let number = |name: &str| settings.get(name)?.value.as_ref()?.parse::<u64>().ok();
    let half = |names: &[&str]| {
        let limit = names.iter().filter_map(|name| number(name)).min()?;
        Some(Duration::from_millis(limit / 2))
    };
    // Brokers before 3.6 have one limit for both directions, and later ones obey it where it is set.
    let both = "message.timestamp.difference.max.ms";
    let oldest = half(&["retention.ms", "message.timestamp.before.max.ms", both, "segment.ms"]);
    let ahead = half(&["message.timestamp.after.max.ms", both]);
    let stamping = Stamping {
        oldest: oldest.unwrap_or(DEFAULT_LIMITS.stamping.oldest),
        ahead: ahead.unwrap_or(Stamping::AHEAD).min(Stamping::AHEAD),
    };
    let largest_record = number("max.message.bytes")
        .and_then(|bytes| usize::try_from(bytes).ok())
        .map_or(DEFAULT_LIMITS.largest_record, |bytes| {
            bytes.saturating_sub(BATCH_OVERHEAD).min(DEFAULT_LIMITS.largest_record)
        });
    Limits { stamping, largest_record }
}

#[cfg(test)]
mod tests {
    use rdkafka::admin::{ConfigEntry, ConfigSource, OwnedResourceSpecifier};

    use super::*;

    fn of(settings: &[(&str, &str)]) -> Limits {
        let entry = |(name, value): &(&str, &str)| ConfigEntry {
            name: (*name).to_owned(),
            value: Some((*value).to_owned()),
            source: ConfigSource::Default,
            is_read_only: false,
            is_default: true,
            is_sensitive: false,
        };
        let entries = settings.iter().map(entry).collect();
        limits(&ConfigResource {
            specifier: OwnedResourceSpecifier::Topic("t".to_owned()),
            entries,
        })
    }

    #[test]
    fn every_limit_on_times_is_looked_up() {
        let (none, week) = (("retention.ms", "-1"), ("retention.ms", "604800000"));
        let after = "message.timestamp.after.max.ms";
        let both = "message.timestamp.difference.max.ms";
        let forever = "9223372036854775807";
        for (settings, oldest, ahead) in [
            (&[week, (after, forever), (both, forever)][..], 302_400_000, 60_000),
            (&[week, ("message.timestamp.before.max.ms", "1000")], 500, 60_000),
            (&[week, (after, "3600000")], 302_400_000, 60_000),
            (&[week, (after, "5000")], 302_400_000, 2_500),
            // An older broker.
            (&[week, (both, "10000")], 5_000, 5_000),
            (&[none], 302_400_000, 60_000),
        ] {
            let [oldest, ahead] = [oldest, ahead].map(Duration::from_millis);
            assert_eq!(of(settings).stamping, Stamping { oldest, ahead }, "{settings:?}");
        }
    }
}
