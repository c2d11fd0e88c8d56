//! Publishes events again, without affecting a running bridge.
//!
//! Its transactional id is `{group}.replay/{pages topic}`: under the prefix that the bridge's rights
//! cover, and no partition's, so that it fences another replay and never a publisher. It touches no memory: the
//! bridge does not learn that anything was published again.

use std::sync::Arc;
use std::thread::sleep;
use std::time::Duration;

use rdkafka::error::{KafkaError as ClientError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};

use super::ANSWER_TIMEOUT;
use super::clients::{Clients, Listener};
use super::failure::failure_of;
use super::memory::{LOOK_AGAIN, STABLE_TIMEOUT};
use super::topics::Facts;
use crate::config::Delivery;
use crate::kafka::{Batch, Failure, KafkaError, Limits, Record, Topic};

/// The owner's name in the transactional id.
const OWNER: &str = "replay";

/// Publishes batches of events; blocks.
pub struct Replayer {
    clients: Clients,
    facts: Arc<Facts>,
    listener: Listener,
    producer: BaseProducer<Listener>,
}

// === impl Replayer ===

impl Replayer {
    /// A replayer that has not begun.
    pub(super) fn new(clients: &Clients, facts: Arc<Facts>) -> Result<Self, KafkaError> {
        let listener = Listener::default();
        let producer = clients.event_producer(OWNER, facts.largest_batch(), listener.clone())?;
        Ok(Self { clients: clients.clone(), facts, listener, producer })
    }

    /// Ends what another replay has open. Nothing can be published before.
    pub fn begin(&self) -> Result<(), KafkaError> {
        if !self.transactional() {
            return Ok(());
        }
        self.retried("begin", || self.producer.init_transactions(ANSWER_TIMEOUT))
    }

    /// What a topic takes.
    pub fn limits(&self, topic: Topic) -> Limits {
        self.facts.limits(topic)
    }

    /// Publishes a batch: all of it or nothing, where there are transactions.
    pub fn publish(&self, batch: &Batch) -> Result<(), KafkaError> {
        let transactional = self.transactional();
        if transactional {
            self.producer.begin_transaction().map_err(|error| self.failed("begin", error))?;
        }
        batch.iter().try_for_each(|record| self.send(&record))?;
        self.producer.flush(STABLE_TIMEOUT).map_err(|error| self.failed("publish", error))?;
        if let Some((error, _)) = self.listener.take_undelivered() {
            return Err(self.failed("publish", error));
        }
        if transactional {
            self.retried("commit", || self.producer.commit_transaction(STABLE_TIMEOUT))?;
        }
        Ok(())
    }

    fn send(&self, record: &Record<'_>) -> Result<(), KafkaError> {
        let headers = record.headers();
        let none = OwnedHeaders::new_with_capacity(headers.len());
        let headers = headers
            .fold(none, |headers, (key, value)| headers.insert(Header { key, value: Some(value) }));
        let mut message = BaseRecord {
            topic: self.clients.topic(record.topic()),
            partition: record.partition(),
            payload: record.value(),
            key: Some(record.key()),
            timestamp: record.timestamp().map(|stamp| stamp.as_millis()),
            headers: Some(headers),
            delivery_opaque: (),
        };
        while let Err((error, unsent)) = self.producer.send(message) {
            if !matches!(error, ClientError::MessageProduction(RDKafkaErrorCode::QueueFull)) {
                return Err(self.failed("publish", error));
            }
            message = unsent;
            self.producer.poll(LOOK_AGAIN);
        }
        Ok(())
    }

    /// A call that may say "the same again", and does for as long as a topic is being made.
    fn retried(
        &self,
        operation: &'static str,
        call: impl Fn() -> Result<(), ClientError>,
    ) -> Result<(), KafkaError> {
        let deadline = tokio::time::Instant::now() + STABLE_TIMEOUT;
        loop {
            match call() {
                Ok(()) => return Ok(()),
                Err(ClientError::Transaction(error))
                    if error.is_retriable() && tokio::time::Instant::now() < deadline =>
                {
                    sleep(LOOK_AGAIN);
                }
                Err(error) => return Err(self.failed(operation, error)),
            }
        }
    }

    fn failed(&self, operation: &'static str, error: ClientError) -> KafkaError {
        let said = self.listener.take_said().map(|said| format!("; {said}")).unwrap_or_default();
        let (failure, reason) = match failure_of(&error) {
            Failure::Fenced => (Failure::Fenced, "another replay has begun since".to_owned()),
            failure => (failure, format!("{error}{said}")),
        };
        let id = self.clients.transactional_id(OWNER);
        KafkaError::new(failure, operation, id, reason)
    }

    fn transactional(&self) -> bool {
        self.clients.settings().delivery == Delivery::ExactlyOnce
    }
}

impl Drop for Replayer {
    /// A transaction that is left open would hold back readers until the broker ends it.
    fn drop(&mut self) {
        if self.transactional() {
            // Without an open transaction there is nothing to abort.
            self.producer.abort_transaction(Duration::from_secs(5)).ok();
        }
    }
}

impl std::fmt::Debug for Replayer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Replayer").finish_non_exhaustive()
    }
}
