//! What the bridge's own topics are set to, and how that comes about.
//!
//! All topics but those of events are stamped by the broker (`LogAppendTime`): nothing in them
//! depends on this machine's clock, and each page brings the broker's along. Existing
//! topics are altered if `kafka.topics.create` is true.

use std::collections::{BTreeMap, HashMap};

use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, ConfigResource, ConfigSource, OwnedResourceSpecifier,
    ResourceSpecifier,
};
use tracing::{info, warn};

use super::super::ANSWER_TIMEOUT;
use super::super::clients::{Clients, LARGEST_PAGE, Listener};
use super::TopicsSeen;
use super::spread::{Misfit, is_empty};
use crate::config;
use crate::kafka::{Failure, KafkaError, Topic};

/// The setting by which a topic keeps its broker's time.
pub(super) const STAMPED_BY: &str = "message.timestamp.type";

/// Its value.
pub(super) const BROKER: &str = "LogAppendTime";

/// What a topic is made with.
pub(super) fn wanted(topic: Topic, topics: &config::Topics) -> Vec<(&'static str, String)> {
    let text = |text: &str| text.to_owned();
    let mut wanted = match topic {
        Topic::UserEvents | Topic::ChannelEvents => return Vec::new(),
        Topic::DeadLetter | Topic::Gaps => Vec::new(),
        Topic::Pages => vec![
            ("retention.ms", topics.page_retention.as_millis().to_string()),
            ("max.message.bytes", LARGEST_PAGE.to_string()),
        ],
        Topic::State => vec![
            ("cleanup.policy", text("compact")),
            ("segment.bytes", text("33554432")),
            ("min.cleanable.dirty.ratio", text("0.1")),
            ("delete.retention.ms", text("600000")),
        ],
    };
    wanted.push((STAMPED_BY, text(BROKER)));
    wanted
}

/// The settings of the topics, by topic; those that we may not read are missing.
pub(super) async fn describe(
    clients: &Clients,
    admin: &AdminClient<Listener>,
) -> Result<HashMap<Topic, ConfigResource>, KafkaError> {
    let resources: Vec<ResourceSpecifier<'_>> =
        Topic::ALL.iter().map(|topic| ResourceSpecifier::Topic(clients.topic(*topic))).collect();
    let options = AdminOptions::new().request_timeout(Some(ANSWER_TIMEOUT));
    let described = admin.describe_configs(&resources, &options).await.map_err(|error| {
        KafkaError::new(Failure::Unavailable, "read", "the settings of the topics", error)
    })?;
    let named = described.into_iter().filter_map(|resource| match resource {
        Ok(resource) => {
            let OwnedResourceSpecifier::Topic(name) = &resource.specifier else { return None };
            Some((clients.topic_named(name)?, resource))
        }
        Err(error) => {
            warn!(%error, "a topic's settings are not ours to read; Kafka's defaults are assumed");
            None
        }
    });
    Ok(named.collect())
}

/// Alters what is not as it has to be, where that may be done, and gives the settings as they are
/// then. `misfits` are topics that were found with a wrong number of partitions.
pub(super) async fn mend(
    clients: &Clients,
    admin: &AdminClient<Listener>,
    described: HashMap<Topic, ConfigResource>,
    misfits: &[Misfit],
    seen: &mut TopicsSeen,
) -> Result<HashMap<Topic, ConfigResource>, KafkaError> {
    let topics = &clients.settings().topics;
    if !topics.create {
        return Ok(described);
    }
    let mut changed = BTreeMap::new();
    for (topic, resource) in &described {
        let mut missing = missing(&wanted(*topic, topics), resource);
        if missing.iter().any(|(name, _)| *name != STAMPED_BY)
            && !is_new(clients, *topic, misfits).await?
        {
            // Somebody uses it as it is: `check` tells.
            missing.retain(|(name, _)| *name == STAMPED_BY);
        }
        if !missing.is_empty() && !seen.has_told(*topic, "settings") {
            changed.insert(*topic, missing);
        }
    }
    if changed.is_empty() {
        return Ok(described);
    }
    alter(clients, admin, &described, &changed).await?;
    // Refusals of single topics reach nobody: librdkafka's binding drops them.
    let altered = describe(clients, admin).await?;
    for (topic, changes) in &changed {
        let name = clients.topic(*topic);
        let is = |(setting, value): &&(&str, String)| {
            altered.get(topic).is_some_and(|it| value_of(it, setting) == Some(value))
        };
        for (setting, value) in changes.iter().filter(is) {
            info!(topic = name, setting, value, "topic altered");
        }
        for (setting, value) in changes.iter().filter(|change| !is(change)) {
            seen.tell(*topic, "settings");
            warn!(
                topic = name,
                "{setting} is not ours to set (that takes the right AlterConfigs); set it to {value}"
            );
        }
    }
    Ok(altered)
}

/// What is wanted and was set neither so nor on purpose, but for whose clock stamps: only the
/// broker's does.
fn missing(
    wanted: &[(&'static str, String)],
    resource: &ConfigResource,
) -> Vec<(&'static str, String)> {
    let is_missing = |(name, value): &&(&'static str, String)| {
        let entry = resource.entries.iter().find(|entry| entry.name == *name);
        entry.is_some_and(|entry| {
            let by_hand = entry.source == ConfigSource::DynamicTopic && *name != STAMPED_BY;
            !by_hand && entry.value.as_ref() != Some(value)
        })
    };
    wanted.iter().filter(is_missing).cloned().collect()
}

fn value_of<'a>(resource: &'a ConfigResource, name: &str) -> Option<&'a String> {
    resource.entries.iter().find(|entry| entry.name == name)?.value.as_ref()
}

/// Whether a topic was made again behind our back, or nothing was ever in it.
async fn is_new(clients: &Clients, topic: Topic, misfits: &[Misfit]) -> Result<bool, KafkaError> {
    if misfits.iter().any(|misfit| misfit.topic == topic && misfit.lacks()) {
        return Ok(true);
    }
    let partitions = clients.settings().topics.page_partitions.get() as usize;
    is_empty(clients, topic, partitions).await
}

/// librdkafka's binding has only the request that replaces all settings of a topic, so existing ones are
/// sent along.
async fn alter(
    clients: &Clients,
    admin: &AdminClient<Listener>,
    described: &HashMap<Topic, ConfigResource>,
    changed: &BTreeMap<Topic, Vec<(&'static str, String)>>,
) -> Result<(), KafkaError> {
    let mut requests = Vec::new();
    for (topic, changes) in changed {
        let entries = described.get(topic).map_or(&[][..], |it| it.entries.as_slice());
        let by_hand = entries.iter().filter(|entry| entry.source == ConfigSource::DynamicTopic);
        let kept = by_hand.filter_map(|entry| Some((entry.name.as_str(), entry.value.as_deref()?)));
        let request = AlterConfig::new(ResourceSpecifier::Topic(clients.topic(*topic)));
        let request = kept.fold(request, |request, (name, value)| request.set(name, value));
        let changes = changes.iter();
        requests.push(changes.fold(request, |request, (name, value)| request.set(name, value)));
    }
    let options = AdminOptions::new().request_timeout(Some(ANSWER_TIMEOUT));
    let altered = admin.alter_configs(requests.iter(), &options).await;
    altered.map(drop).map_err(|error| {
        KafkaError::new(Failure::Unavailable, "alter", "the settings of the topics", error)
    })
}

#[cfg(test)]
mod tests {
    use rdkafka::admin::ConfigEntry;

    use super::*;

    /// Settings by name and value, and whether they were set for this topic.
    fn set(entries: &[(&str, &str, bool)]) -> ConfigResource {
        let entry = |(name, value, by_hand): &(&str, &str, bool)| ConfigEntry {
            name: (*name).to_owned(),
            value: Some((*value).to_owned()),
            source: if *by_hand { ConfigSource::DynamicTopic } else { ConfigSource::Default },
            is_read_only: false,
            is_default: false,
            is_sensitive: false,
        };
        let entries = entries.iter().map(entry).collect();
        ConfigResource { specifier: OwnedResourceSpecifier::Topic("t".to_owned()), entries }
    }

    #[test]
    fn what_somebody_set_stays_but_for_whose_clock_stamps() {
        let wanted = [("cleanup.policy", "compact".to_owned()), (STAMPED_BY, BROKER.to_owned())];
        for (policy, stamped_by, expected) in [
            (("delete", false), ("CreateTime", false), &["cleanup.policy", STAMPED_BY][..]),
            (("delete", true), ("CreateTime", true), &[STAMPED_BY]),
            (("compact", true), (BROKER, false), &[]),
        ] {
            let resource = set(&[
                ("cleanup.policy", policy.0, policy.1),
                (STAMPED_BY, stamped_by.0, stamped_by.1),
            ]);
            let missing = missing(&wanted, &resource);
            let names: Vec<_> = missing.iter().map(|(name, _)| *name).collect();
            assert_eq!(names, expected);
        }
        // What a broker does not have is not asked of it.
        assert_eq!(missing(&wanted, &set(&[])), []);
    }
}
