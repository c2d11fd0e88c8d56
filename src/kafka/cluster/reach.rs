//! The first word with the brokers, or why there is none.
//!
//! librdkafka reports the reason of a refusal only as an event of a client that is polled, not to a call
//! that waits for an answer. So the call is made in short steps with a poll in between, and ends at once
//! if waiting can't help.

use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::metadata::Metadata;
use tokio::time::Instant;

use super::ANSWER_TIMEOUT;
use super::clients::Listener;
use crate::kafka::{Failure, KafkaError};

/// Maximum time to wait for a possibly transient failure: another broker may answer.
const PASSING_REASON_WAIT: Duration = Duration::from_secs(3);

/// Between two looks at what was said.
const STEP: Duration = Duration::from_millis(500);

/// What librdkafka may have to say after a step; more than it queues in one.
const WORDS: usize = 32;

/// What the brokers know of a topic, or of all that we may see; blocks.
pub(super) fn reach(
    reader: &BaseConsumer<Listener>,
    servers: &str,
    topic: Option<&str>,
) -> Result<Metadata, KafkaError> {
    let begun = Instant::now();
    let listener = reader.context();
    listener.take_said();
    loop {
        let error = match reader.fetch_metadata(topic, STEP) {
            Ok(metadata) => return Ok(metadata),
            Err(error) => error,
        };
        // Its errors only: the listener hears them on the way.
        for _ in 0..WORDS {
            drop(reader.poll(Duration::ZERO));
        }
        let patience = if listener.has_reason() { PASSING_REASON_WAIT } else { ANSWER_TIMEOUT };
        if listener.is_refused() || begun.elapsed() >= patience {
            let is_refused = listener.is_refused();
            let failure = if is_refused { Failure::Refused } else { Failure::Unavailable };
            let reason = listener.take_said().unwrap_or_else(|| error.to_string());
            return Err(KafkaError::new(failure, "reach Kafka at", servers, reason));
        }
    }
}
