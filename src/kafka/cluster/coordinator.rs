//! Why brokers that answer have no coordinator.
//!
//! A coordinator keeps its log in a topic that the brokers make when the first client asks for one.
//! Where they can't, they say "not available" for ever, and why is in their own log only.

use rdkafka::consumer::{BaseConsumer, Consumer as _};

use super::ANSWER_TIMEOUT;
use super::clients::Listener;
use crate::kafka::KafkaError;

/// The log of a coordinator.
#[derive(Clone, Copy, Debug)]
pub(super) enum Log {
    /// That of transactions.
    Transactions,
    /// That of consumer groups.
    Groups,
}

// === impl Log ===

impl Log {
    fn topic(self) -> &'static str {
        match self {
            Self::Transactions => "__transaction_state",
            Self::Groups => "__consumer_offsets",
        }
    }

    /// How its settings begin in the brokers' configuration.
    fn settings(self) -> &'static str {
        match self {
            Self::Transactions => "transaction.state.log",
            Self::Groups => "offsets.topic",
        }
    }
}

/// What keeps the brokers from having a coordinator, where that shows; blocks. `reader` must not
/// create topics.
pub(super) fn missing(reader: &BaseConsumer<Listener>, log: Log) -> Option<String> {
    let (name, settings) = (log.topic(), log.settings());
    let metadata = reader.fetch_metadata(Some(name), ANSWER_TIMEOUT).ok()?;
    let brokers = metadata.brokers().len();
    let topic = metadata.topics().iter().find(|topic| topic.name() == name)?;
    let partitions = topic.partitions();
    if partitions.iter().any(|partition| partition.leader() < 0) {
        return Some(format!("a partition of `{name}` has no leader: a broker is down"));
    }
    match partitions.iter().map(|partition| partition.isr().len()).min() {
        // Three copies by default.
        None if brokers < 3 => Some(format!(
            "`{name}` can't be made by {brokers} broker(s): {settings}.replication.factor is larger"
        )),
        Some(1) => {
            Some(format!("`{name}` has one replica in sync, perhaps fewer than {settings}.min.isr"))
        }
        _ => None,
    }
}

/// A failure to reach a coordinator, and what it lacks. A right that is missing says enough.
pub(super) fn explained(error: KafkaError, lack: Option<String>) -> KafkaError {
    match lack {
        Some(why) if !error.finding().contains("uthorization") => error.with_reason(why),
        _ => error,
    }
}
