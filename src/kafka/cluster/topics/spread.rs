//! Over how many partitions pages and memory are spread, where a topic has another number than the
//! configuration.
//!
//! An app belongs to a partition by its name and the number of partitions, and its memory lies in
//! the partition of its pages. So the number is fixed, but topics change: partitions are added, and
//! a topic that was deleted comes back with the broker's default. What the memory holds tells which
//! number is right; where it holds nothing, the last pages do.
//!
//! | the topic has | and the memory fits the configuration | and it does not |
//! |---|---|---|
//! | more | the first ones are used | refused: the key was changed |
//! | fewer | partitions are added, where topics may be created | refused: the key was changed |

use std::collections::{BTreeSet, HashMap};
use std::ops::ControlFlow;

use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions};
use tracing::{info, warn};

use super::super::clients::{Clients, Listener};
use super::super::reader::Reader;
use super::super::{ANSWER_TIMEOUT, blocking};
use super::TopicsSeen;
use crate::kafka::{Failure, KafkaError, Topic, partition_of};

/// The last pages of each partition that are looked at where there is no memory.
const LAST_PAGES: i64 = 20;

/// A topic whose number of partitions is another than the configuration's.
#[derive(Clone, Debug)]
pub struct Misfit {
    /// The topic: pages or state, or one of events that is empty.
    pub topic: Topic,
    /// How many partitions it has.
    pub has: usize,
    /// How many it should have.
    pub wanted: usize,
}

/// Where apps were found: by name, and the partition.
type Homes = BTreeSet<(Vec<u8>, i32)>;

// === impl Misfit ===

impl Misfit {
    /// Whether it has fewer than it should.
    pub fn lacks(&self) -> bool {
        self.has < self.wanted
    }
}

/// The topics that don't fit, all of which can be helped; or the reason why one can't.
pub(in super::super) async fn misfits(
    clients: &Clients,
    found: &HashMap<Topic, usize>,
    seen: &mut TopicsSeen,
) -> Result<Vec<Misfit>, KafkaError> {
    let topics = &clients.settings().topics;
    let misfits = |wanted: u32, of: [Topic; 2]| {
        let wanted = wanted as usize;
        let has = of.into_iter().filter_map(|topic| Some((topic, *found.get(&topic)?)));
        let misfits = has.filter(move |(_, has)| *has != wanted);
        misfits.map(move |(topic, has)| Misfit { topic, has, wanted })
    };
    let fixed: Vec<Misfit> =
        misfits(topics.page_partitions.get(), [Topic::Pages, Topic::State]).collect();
    if fixed.is_empty() {
        seen.spread = None;
    } else {
        let numbers: Vec<usize> = fixed.iter().map(|misfit| misfit.has).collect();
        if seen.spread.as_ref() != Some(&numbers) {
            judge(clients, &fixed).await?;
            seen.spread = Some(numbers);
        }
    }
    let mut misfits: Vec<Misfit> =
        misfits(topics.partitions.get(), [Topic::UserEvents, Topic::ChannelEvents])
            .filter(Misfit::lacks)
            .filter(|_| topics.create)
            .collect();
    misfits.splice(0..0, fixed);
    Ok(misfits)
}

/// Refuses numbers by which apps would lose their memory.
async fn judge(clients: &Clients, misfits: &[Misfit]) -> Result<(), KafkaError> {
    let asked = clients.clone();
    let homes = blocking(move || homes(&asked)).await?;
    let expected = clients.settings().topics.page_partitions.get();
    if fits(&homes, expected) {
        return Ok(());
    }
    let Some(misfit) = misfits.last() else { return Ok(()) };
    let numbers = misfits.iter().rev().filter_map(|misfit| u32::try_from(misfit.has).ok());
    let right = numbers.into_iter().find(|number| fits(&homes, *number));
    let remedy = match right {
        Some(number) => format!("Set the key to {number}"),
        None => "Set the key to the number that it had when the memory was written".to_owned(),
    };
    let reason = format!(
        "it has {} partitions and kafka.topics.page_partitions is {expected}; the memory was \
         written with another number than that, and an app's pages would go to another partition \
         than its memory. {remedy}",
        misfit.has,
    );
    Err(KafkaError::new(Failure::Refused, "use", clients.topic(misfit.topic), reason))
}

/// Adds the partitions that are missing, and says which are of no use. True where a topic of pages or
/// memory was found with too few: it was made again.
pub(super) async fn settle(
    clients: &Clients,
    admin: &AdminClient<Listener>,
    misfits: &[Misfit],
    seen: &mut TopicsSeen,
) -> Result<(), KafkaError> {
    for misfit in misfits {
        let Misfit { topic, has, wanted } = misfit;
        let (topic, name) = (*topic, clients.topic(*topic));
        let is_fixed = matches!(topic, Topic::Pages | Topic::State);
        if !misfit.lacks() {
            if seen.tell(topic, "more") {
                warn!(
                    topic = name,
                    partitions = has,
                    used = wanted,
                    "partitions were added; the first ones are used, since each app keeps its \
                     partition (kafka.topics.page_partitions)"
                );
            }
            continue;
        }
        if is_fixed && !clients.settings().topics.create {
            let reason = format!(
                "it has {has} partitions and kafka.topics.page_partitions is {wanted}, as its memory \
                 says; it was made again by somebody else. Add partitions until it has {wanted} \
                 (kafka-topics --alter --partitions {wanted}), or set kafka.topics.create to true"
            );
            return Err(KafkaError::new(Failure::Refused, "use", name, reason));
        }
        if !is_fixed && !is_empty(clients, topic, *has).await? {
            if seen.tell(topic, "fewer") {
                warn!(
                    topic = name,
                    partitions = has,
                    "the topic has fewer partitions than kafka.topics.partitions ({wanted}) and \
                     holds events; if that is meant, set the key to {has}; otherwise it was made \
                     again by another program: add partitions, or delete it"
                );
            }
            continue;
        }
        add(admin, name, *wanted).await?;
        info!(topic = name, from = has, to = wanted, "partitions added: the topic was made again");
    }
    Ok(())
}

async fn add(admin: &AdminClient<Listener>, name: &str, wanted: usize) -> Result<(), KafkaError> {
    let failed = |failure, reason: &dyn std::fmt::Display| {
        KafkaError::new(failure, "add partitions to", name, reason)
    };
    let options = AdminOptions::new()
        .operation_timeout(Some(ANSWER_TIMEOUT))
        .request_timeout(Some(ANSWER_TIMEOUT));
    let added = admin.create_partitions([&NewPartitions::new(name, wanted)], &options).await;
    let added = added.map_err(|error| failed(Failure::Unavailable, &error))?;
    match added.into_iter().next() {
        Some(Err((_, error))) => Err(failed(Failure::Refused, &error)),
        Some(Ok(_)) | None => Ok(()),
    }
}

/// Whether no partition has ever had a record.
pub(super) async fn is_empty(
    clients: &Clients,
    topic: Topic,
    partitions: usize,
) -> Result<bool, KafkaError> {
    let clients = clients.clone();
    blocking(move || {
        let spans = Reader::new(&clients)?.all_spans(topic, partitions)?;
        Ok(spans.values().all(|span| span.end == 0))
    })
    .await
}

/// Where the apps are that the memory knows, or those of the last pages; blocks.
fn homes(clients: &Clients) -> Result<Homes, KafkaError> {
    let reader = Reader::new(clients)?;
    let mut homes = Homes::new();
    for topic in [Topic::State, Topic::Pages] {
        let Ok(partitions) = reader.count(topic) else { continue };
        let mut spans = reader.all_spans(topic, partitions as usize)?;
        if topic == Topic::Pages {
            for span in spans.values_mut() {
                span.start = span.start.max(span.end - LAST_PAGES);
            }
        }
        reader.read(topic, &spans, |stored| {
            let app = match topic {
                Topic::State if !stored.value().is_empty() => app_of_window(stored.key()),
                Topic::Pages => stored.header("page").map(|_| stored.key()),
                _ => None,
            };
            homes.extend(app.map(|app| (app.to_vec(), stored.partition())));
            ControlFlow::Continue(())
        })?;
        if !homes.is_empty() {
            break;
        }
    }
    Ok(homes)
}

/// The app of a record of the memory that holds its events.
fn app_of_window(key: &[u8]) -> Option<&[u8]> {
    let mut parts = key.strip_prefix(b"window/")?.rsplitn(3, |byte| *byte == b'/');
    parts.nth(2)
}

/// Whether each app is in its partition, given this number of partitions.
fn fits(homes: &Homes, partitions: u32) -> bool {
    homes.iter().all(|(app, partition)| partition_of(app, partitions) == *partition)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spread_over(partitions: u32, apps: u32) -> Homes {
        let names = (0..apps).map(|app| format!("app-{app}").into_bytes());
        names.map(|app| (app.clone(), partition_of(&app, partitions))).collect()
    }

    #[test]
    fn the_memory_tells_over_how_many_partitions_it_is_spread() {
        let homes = spread_over(8, 50);
        for (partitions, expected) in [(1, false), (4, false), (8, true), (12, false), (16, false)]
        {
            assert_eq!(fits(&homes, partitions), expected, "{partitions}");
        }
        assert!(fits(&Homes::new(), 3), "no memory fits any number");
    }

    #[test]
    fn the_app_of_a_window_is_read_from_its_key() {
        for (key, app) in [
            ("window/a1/user_events/0", Some("a1")),
            ("window/a/b/channel_events/17", Some("a/b")),
            ("position", None),
            ("tickets/0000", None),
            ("window/broken", None),
        ] {
            assert_eq!(app_of_window(key.as_bytes()), app.map(str::as_bytes), "{key}");
        }
    }
}
