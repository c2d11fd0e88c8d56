//! Topics as data, and the findings about them.

use std::num::NonZeroU32;
use std::time::Duration;

use super::*;
use crate::config::{Delivery, Kafka};

fn topics() -> Topics {
    Topics {
        user_events: "users".to_owned(),
        channel_events: "channels".to_owned(),
        dead_letter: "dead".to_owned(),
        gaps: "gaps".to_owned(),
        pages: "pages".to_owned(),
        state: "state".to_owned(),
        create: true,
        partitions: NonZeroU32::new(6).unwrap(),
        page_partitions: NonZeroU32::new(8).unwrap(),
        replication_factor: -1,
        page_retention: Duration::from_secs(86_400),
    }
}

fn found(topic: Topic, brokers: usize, there: (usize, usize), set: &[(&str, &str)]) -> Finding {
    found_with(topics(), topic, brokers, there, set)
}

fn found_with(
    topics: Topics,
    topic: Topic,
    brokers: usize,
    there: (usize, usize),
    set: &[(&str, &str)],
) -> Finding {
    let wanted = match topic {
        Topic::Pages | Topic::State => topics.page_partitions.get() as usize,
        Topic::UserEvents | Topic::ChannelEvents => topics.partitions.get() as usize,
        Topic::DeadLetter | Topic::Gaps => there.0,
    };
    let misfit = (there.0 != wanted).then_some(Misfit { topic, has: there.0, wanted });
    let kafka = Kafka {
        bootstrap_servers: "unused".to_owned(),
        group: "bridge".to_owned(),
        delivery: Delivery::ExactlyOnce,
        topics: topics.clone(),
        options: [].into(),
    };
    let cluster = Cluster::new(kafka, "test");
    let spread = Ok(misfit.into_iter().collect());
    let judge = Judge { cluster: &cluster, topics: &topics, brokers, spread: &spread };
    let settings: TopicSettings =
        set.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let (partitions, replicas) = there;
    judge.topic(topic, FoundTopic::There { partitions, replicas }, Some(&settings), None)
}

#[test]
fn a_topic_that_would_lose_something_is_named_with_what_mends_it() {
    let (ok, warning, failed) = (Severity::Ok, Severity::Warning, Severity::Failed);
    let (short, week) = (("retention.ms", "3600000"), ("retention.ms", "604800000"));
    let policy = |value: &'static str| [("cleanup.policy", value)];
    for (topic, brokers, there, set, verdict, words) in [
        (Topic::State, 1, (8, 1), &policy("compact")[..], ok, "8 partitions"),
        (Topic::State, 1, (8, 1), &policy("delete"), failed, "cleanup.policy=compact"),
        (Topic::State, 1, (8, 1), &policy("compact,delete"), failed, "would expire"),
        (Topic::State, 1, (4, 1), &policy("compact"), warning, "the start adds the others"),
        (Topic::Pages, 1, (12, 1), &[], warning, "the first 8 are used"),
        (Topic::UserEvents, 1, (1, 1), &[week], warning, "set the key to 1 if that is intended"),
        (Topic::Pages, 1, (8, 1), &policy("compact"), failed, "cleanup.policy=delete"),
        (Topic::Pages, 1, (8, 1), &[("max.message.bytes", "9")], warning, "bytes=10485760"),
        (Topic::Pages, 1, (8, 1), &[short], warning, "retention.ms=86400000"),
        (Topic::Pages, 1, (8, 1), &[("retention.ms", "-1")], ok, ""),
        (Topic::UserEvents, 1, (6, 1), &[week], ok, ""),
        (Topic::UserEvents, 1, (6, 1), &[short], warning, "retention.ms to 172800000"),
        (Topic::UserEvents, 1, (6, 1), &[week, ("segment.ms", "9")], warning, "segment.ms to"),
        (
            Topic::UserEvents,
            1,
            (6, 1),
            &[("message.timestamp.difference.max.ms", "9")],
            warning,
            "difference.max.ms to",
        ),
        (Topic::Gaps, 3, (1, 1), &[], warning, "one copy"),
        (Topic::Gaps, 3, (1, 3), &[], warning, "min.insync.replicas=2"),
        (Topic::Gaps, 3, (1, 3), &[("min.insync.replicas", "2")], ok, ""),
        (Topic::Gaps, 3, (1, 2), &[("min.insync.replicas", "3")], failed, "no write"),
    ] {
        let finding = found(topic, brokers, there, set);
        assert_eq!(finding.verdict, verdict, "{set:?}: {finding}");
        assert!(finding.to_string().contains(words), "{set:?}: {finding}");
    }
}

#[test]
fn what_the_start_would_alter_is_named_where_it_may_not() {
    let of = |create: bool, topic, there, set: &[(&str, &str)]| {
        found_with(Topics { create, ..topics() }, topic, 1, there, set)
    };
    let ours = [("message.timestamp.type", "CreateTime")];
    let brokers = [("message.timestamp.type", "LogAppendTime")];
    for topic in [Topic::Pages, Topic::State, Topic::Gaps, Topic::DeadLetter] {
        let there = if matches!(topic, Topic::Pages | Topic::State) { (8, 1) } else { (1, 1) };
        let finding = of(false, topic, there, &ours);
        assert_eq!(finding.verdict, Severity::Warning, "{finding}");
        assert!(finding.to_string().contains("set message.timestamp.type=LogAppendTime"));
        assert_eq!(of(true, topic, there, &ours).verdict, Severity::Ok);
        assert_eq!(of(false, topic, there, &brokers).verdict, Severity::Ok);
    }
    assert_eq!(of(false, Topic::UserEvents, (6, 1), &ours).verdict, Severity::Ok);
    let few = of(false, Topic::Pages, (1, 1), &brokers);
    assert_eq!(few.verdict, Severity::Failed, "{few}");
    assert!(few.to_string().contains("add partitions until it has 8"), "{few}");
}
