//! Kafka: whether it is reachable, its topics and their settings, and the ACLs.

use super::{Finding, InProgress, Severity};
use crate::config::{Settings, Topics};
use crate::kafka::{
    Cluster, FoundTopic, Inspection, KafkaError, LARGEST_PAGE, Misfit, Right, Topic, TopicSettings,
};

/// Events up to this age, in milliseconds, should keep their own time as record timestamp. An
/// outage may go unnoticed for a day.
const OLD_EVENT_MS: u64 = 24 * 3_600_000;

/// Judges topics by their settings.
struct Judge<'a> {
    cluster: &'a Cluster,
    topics: &'a Topics,
    brokers: usize,
    spread: &'a Result<Vec<Misfit>, KafkaError>,
}

/// A problem of a topic: the verdict, a description, and the setting or action that fixes it.
type TopicFault = (Severity, String, String);

/// Inspects the cluster and judges the result.
pub(super) async fn look(
    cluster: &Cluster,
    settings: &Settings,
    waiting: &InProgress,
) -> Vec<Finding> {
    let servers = &settings.kafka.bootstrap_servers;
    let subject = format!("kafka {servers}");
    match waiting.during(&*subject, cluster.inspect()).await {
        Ok(inspection) => judged(cluster, settings, subject, &inspection),
        Err(error) => vec![failed(subject, &error)],
    }
}

fn judged(
    cluster: &Cluster,
    settings: &Settings,
    subject: String,
    inspection: &Inspection,
) -> Vec<Finding> {
    let brokers = inspection.brokers;
    let plural = if brokers == 1 { "" } else { "s" };
    let reached = Finding::ok(subject, format!("connected; {brokers} broker{plural}"));
    let spread = &inspection.spread;
    let judge = Judge { cluster, topics: &settings.kafka.topics, brokers, spread };
    let topics = inspection.topics.iter().map(|(topic, found)| {
        let may_create = inspection.rights.iter().find(|(it, _)| *it == Right::Create(*topic));
        judge.topic(*topic, *found, inspection.settings.get(topic), may_create)
    });
    let others = inspection.rights.iter().filter(|(it, _)| !matches!(it, Right::Create(_)));
    let made = inspection.makes_topics.filter(|makes| *makes).map(|_| makes_topics());
    std::iter::once(reached).chain(made).chain(topics).chain(rights(others)).collect()
}

fn makes_topics() -> Finding {
    let says = "auto.create.topics.enable is true, Kafka's default: a deleted topic is recreated \
                by the next consumer that requests it, with the brokers' default \
                number of partitions and settings";
    let remedy = "set auto.create.topics.enable=false on the brokers";
    Finding::warning("brokers", says, remedy)
}

/// One finding for all ACLs that are granted, and one for each that is missing.
fn rights<'a>(tried: impl Iterator<Item = &'a (Right, Result<(), KafkaError>)>) -> Vec<Finding> {
    let mut granted = Vec::new();
    let mut findings = Vec::new();
    for (right, outcome) in tried {
        let name = match right {
            Right::Write(_) => "write",
            Right::Read(_) => "read",
            Right::Look(_) => "describe configs",
            Right::Create(_) => "create",
            Right::Transact => "open transactions",
            Right::Note => "commit offsets",
        };
        match outcome {
            Ok(()) if granted.contains(&name) => {}
            Ok(()) => granted.push(name),
            Err(error) if matches!(right, Right::Look(_)) => {
                let says = format!("{}; Kafka's defaults are assumed", error.finding());
                findings.push(Finding::warning("rights", says, "grant DescribeConfigs on it"));
            }
            Err(error) => findings.push(failed("rights".to_owned(), error)),
        }
    }
    if !granted.is_empty() {
        findings.insert(0, Finding::ok("rights", granted.join(", ")));
    }
    findings
}

fn failed(subject: String, error: &KafkaError) -> Finding {
    Finding::failed(subject, error.finding(), error.remedy())
}

// === impl Judge ===

impl Judge<'_> {
    fn topic(
        &self,
        topic: Topic,
        found: FoundTopic,
        settings: Option<&TopicSettings>,
        may_create: Option<&(Right, Result<(), KafkaError>)>,
    ) -> Finding {
        let subject = format!("topic {}", self.cluster.topic(topic));
        let (partitions, replicas) = match (found, may_create) {
            (FoundTopic::There { partitions, replicas }, _) => (partitions, replicas),
            (FoundTopic::Hidden, _) => {
                let remedy = "grant Describe, Write and DescribeConfigs on it, and Read on the \
                              pages and the state topic";
                return Finding::failed(subject, "hidden from this user", Some(remedy));
            }
            (FoundTopic::Missing, Some((_, Err(error)))) => return failed(subject, error),
            (FoundTopic::Missing, Some((_, Ok(())))) => {
                return Finding::ok(subject, "missing; the start creates it");
            }
            (FoundTopic::Missing, None) => {
                let remedy =
                    format!("create it{}, or set kafka.topics.create to true", self.needed(topic));
                let says = "missing, and kafka.topics.create is false";
                return Finding::failed(subject, says, Some(&remedy));
            }
        };
        let mut faults = self.copies(replicas, settings);
        faults.extend(self.partitions(topic, partitions));
        if let Some(settings) = settings {
            faults.extend(self.settings(topic, settings));
            faults.extend(self.stamped_by(topic, settings));
        }
        let there = format!("{partitions} partitions in {replicas} copies");
        let Some(verdict) = faults.iter().map(|(verdict, ..)| *verdict).max() else {
            return Finding::ok(subject, there);
        };
        let says: Vec<_> = faults.iter().map(|(_, says, _)| says.as_str()).collect();
        let remedies: Vec<_> = faults.iter().map(|(_, _, remedy)| remedy.as_str()).collect();
        Finding::of(verdict, subject, says.join("; "), Some(remedies.join("; ")))
    }

    /// The settings that a manually created topic needs.
    fn needed(&self, topic: Topic) -> String {
        let partitions = self.topics.page_partitions;
        let stamped = "message.timestamp.type=LogAppendTime";
        match topic {
            Topic::Pages => format!(
                " with {partitions} partitions, max.message.bytes={LARGEST_PAGE} and {stamped}"
            ),
            Topic::State => {
                format!(" with {partitions} partitions, cleanup.policy=compact and {stamped}")
            }
            Topic::DeadLetter | Topic::Gaps => format!(" with {stamped}"),
            Topic::UserEvents | Topic::ChannelEvents => String::new(),
        }
    }

    fn copies(&self, replicas: usize, settings: Option<&TopicSettings>) -> Vec<TopicFault> {
        let in_sync = settings.and_then(|it| it.number("min.insync.replicas")).unwrap_or(1);
        let copies = u64::try_from(replicas).unwrap_or(u64::MAX);
        if in_sync > copies {
            return vec![(
                Severity::Failed,
                format!("min.insync.replicas is {in_sync}, but there are only {replicas} copies"),
                "lower it or add copies: until then, no write succeeds".to_owned(),
            )];
        }
        if self.brokers > 1 && replicas == 1 {
            return vec![(
                Severity::Warning,
                "one copy: its data is lost if its broker is lost".to_owned(),
                "add copies (kafka-reassign-partitions), or set \
                 kafka.topics.replication_factor before it is created"
                    .to_owned(),
            )];
        }
        if replicas > 1 && in_sync < 2 {
            return vec![(
                Severity::Warning,
                "min.insync.replicas is 1: a write may be confirmed by one broker alone".to_owned(),
                "set min.insync.replicas=2".to_owned(),
            )];
        }
        Vec::new()
    }

    fn partitions(&self, topic: Topic, partitions: usize) -> Option<TopicFault> {
        let fixed = matches!(topic, Topic::Pages | Topic::State);
        let (key, wanted) = match fixed {
            true => ("page_partitions", self.topics.page_partitions.get()),
            false => ("partitions", self.topics.partitions.get()),
        };
        let says = format!("{partitions} partitions, but kafka.topics.{key} is {wanted}");
        let misfits = match self.spread {
            Ok(misfits) => misfits,
            Err(error) if fixed && partitions != wanted as usize => {
                let remedy = "set the key to the number that the memory was written with: an app \
                              must not move between partitions";
                return Some((Severity::Failed, error.finding(), remedy.to_owned()));
            }
            Err(_) => return None,
        };
        let misfit = misfits.iter().find(|misfit| misfit.topic == topic)?;
        let (verdict, remedy) = match (misfit.lacks(), fixed, self.topics.create) {
            (false, ..) => {
                let remedy = format!("no action needed: the first {wanted} are used");
                (Severity::Warning, remedy)
            }
            (true, true, false) => {
                let remedy = format!("add partitions until it has {wanted}");
                (Severity::Failed, remedy)
            }
            (true, true, true) => {
                let remedy = "no action needed: the start adds the others".to_owned();
                (Severity::Warning, remedy)
            }
            (true, false, _) => {
                let remedy = format!(
                    "set the key to {partitions} if that is intended; the start adds partitions \
                     only while the topic is empty"
                );
                (Severity::Warning, remedy)
            }
        };
        Some((verdict, says, remedy))
    }

    /// All topics but those of events should use the broker's timestamps.
    fn stamped_by(&self, topic: Topic, settings: &TopicSettings) -> Option<TopicFault> {
        let is_of_events = matches!(topic, Topic::UserEvents | Topic::ChannelEvents);
        let by = settings.get("message.timestamp.type").filter(|by| *by != "LogAppendTime")?;
        (!is_of_events && !self.topics.create).then(|| {
            (
                Severity::Warning,
                format!(
                    "message.timestamp.type is {by}: records carry this machine's time, so a \
                     machine with a wrong clock can't write them"
                ),
                "set message.timestamp.type=LogAppendTime".to_owned(),
            )
        })
    }

    fn settings(&self, topic: Topic, settings: &TopicSettings) -> Vec<TopicFault> {
        match topic {
            Topic::State => state(settings),
            Topic::Pages => self.pages(settings),
            Topic::UserEvents | Topic::ChannelEvents => events(settings).into_iter().collect(),
            Topic::DeadLetter | Topic::Gaps => Vec::new(),
        }
    }

    fn pages(&self, settings: &TopicSettings) -> Vec<TopicFault> {
        let mut faults = Vec::new();
        if settings.get("cleanup.policy").is_some_and(|it| it.contains("compact")) {
            faults.push((
                Severity::Failed,
                "it is compacted: Kafka would keep only the newest page of each app".to_owned(),
                "set cleanup.policy=delete".to_owned(),
            ));
        }
        let largest = u64::try_from(LARGEST_PAGE).unwrap_or(u64::MAX);
        if let Some(bytes) = settings.number("max.message.bytes").filter(|it| *it < largest) {
            faults.push((
                Severity::Warning,
                format!("max.message.bytes is {bytes}: a larger answer from Agora would not fit"),
                format!("set max.message.bytes={LARGEST_PAGE}"),
            ));
        }
        let wanted = u64::try_from(self.topics.page_retention.as_millis()).unwrap_or(u64::MAX);
        if let Some(kept) = settings.number("retention.ms").filter(|it| *it < wanted) {
            faults.push((
                Severity::Warning,
                format!(
                    "retention.ms is {kept}, less than kafka.topics.page_retention ({wanted}): \
                     pages not published by then are lost"
                ),
                format!("set retention.ms={wanted}"),
            ));
        }
        faults
    }
}

fn state(settings: &TopicSettings) -> Vec<TopicFault> {
    match settings.get("cleanup.policy") {
        None | Some("compact") => Vec::new(),
        Some(policy) => vec![(
            Severity::Failed,
            format!("cleanup.policy is {policy}: the memory of what was delivered would expire"),
            "set cleanup.policy=compact".to_owned(),
        )],
    }
}

/// An event's time becomes its record's timestamp only up to half the age that the topic allows.
fn events(settings: &TopicSettings) -> Option<TopicFault> {
    let bounds = [
        "retention.ms",
        "message.timestamp.before.max.ms",
        "message.timestamp.difference.max.ms",
        "segment.ms",
    ];
    let (bound, kept) = bounds
        .into_iter()
        .filter_map(|name| Some((name, settings.number(name)?)))
        .min_by_key(|(_, value)| *value)?;
    (kept / 2 < OLD_EVENT_MS).then(|| {
        let hours = kept / 2 / 3_600_000;
        (
            Severity::Warning,
            format!(
                "{bound} is {kept}: events older than {hours} h, as after an outage, get the \
                 broker's timestamp, so that they don't expire at once (ce_time keeps their time)"
            ),
            format!("set {bound} to {} or more", 2 * OLD_EVENT_MS),
        )
    })
}

#[cfg(test)]
mod tests;
