//! The producer of pages, shared by all partitions.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::Weak;
use std::thread;
use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::Message as _;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::KafkaError as ClientError;
use rdkafka::message::Header;
use rdkafka::message::OwnedHeaders;
use rdkafka::producer::BaseProducer;
use rdkafka::producer::BaseRecord;
use rdkafka::producer::DeliveryResult;
use rdkafka::producer::ProducerContext;
use tokio::sync::oneshot;

use super::clients::Clients;
use super::clients::Listener;
use super::failure::failure_of;
use crate::kafka::Failure;
use crate::kafka::KafkaError;
use crate::kafka::PageRecord;
use crate::kafka::Topic;

/// How long the polling thread waits in one call. Each call ends with up to a millisecond of
/// spinning (what remains is cut to whole milliseconds), so a wait of 100 ms, as in rdkafka's own
/// `ThreadedProducer`, costs 0.7 % of a core.
const POLL: Duration = Duration::from_secs(5);

/// Writes pages; makes its client when it is first needed, and anew after an error.
#[derive(Debug)]
pub(super) struct PageWriter {
    clients: Clients,
    producer: Arc<Mutex<Option<Producer>>>,
}

#[derive(Clone)]
struct Producer(Arc<BaseProducer<Confirming>>);

/// Tells the one who waits for a page what became of it.
#[derive(Clone, Debug)]
pub(super) struct Confirming(pub(super) Listener);

type Confirmation = oneshot::Sender<Result<i64, ClientError>>;

// === impl PageWriter ===

impl PageWriter {
    pub(super) fn new(clients: Clients) -> Self {
        Self { clients, producer: Arc::default() }
    }

    /// Hands a record over now; the future ends when it is confirmed, with its offset.
    pub(super) fn append(
        &self,
        partition: i32,
        record: PageRecord,
    ) -> impl Future<Output = Result<i64, KafkaError>> + Send + 'static {
        let handed_over = self.hand_over(partition, &record);
        let topic = self.clients.topic(Topic::Pages).to_owned();
        let clients = self.clients.clone();
        let producer = Arc::clone(&self.producer);
        async move {
            let failure = match handed_over?.await {
                Ok(Ok(offset)) => return Ok(offset),
                Ok(Err(error)) => error,
                Err(_) => ClientError::Canceled,
            };
            // A fatal error ends an idempotent producer; whatever the error, a new one starts clean.
            producer.lock().unwrap_or_else(PoisonError::into_inner).take();
            clients.doubt_topics();
            let said = clients.listener().take_said();
            let reason = said.map_or_else(
                || failure.to_string(),
                |said| format!("{failure}; librdkafka says: {said}"),
            );
            Err(KafkaError::new(failure_of(&failure), "forward a page to", topic, reason))
        }
    }

    fn hand_over(
        &self,
        partition: i32,
        record: &PageRecord,
    ) -> Result<oneshot::Receiver<Result<i64, ClientError>>, KafkaError> {
        let topic = self.clients.topic(Topic::Pages);
        let headers = record.headers.iter().fold(
            OwnedHeaders::new_with_capacity(record.headers.len()),
            |headers, (key, value)| headers.insert(Header { key, value: Some(value) }),
        );
        let (confirmation, confirmed) = oneshot::channel();
        let record = BaseRecord::with_opaque_to(topic, Box::new(confirmation))
            .partition(partition)
            .key(&record.key)
            .payload(&record.value[..])
            .headers(headers);
        self.producer()?.0.send(record).map_err(|(error, _)| {
            KafkaError::new(failure_of(&error), "hand a page over to", topic, error)
        })?;
        Ok(confirmed)
    }

    fn producer(&self) -> Result<Producer, KafkaError> {
        let mut known = self.producer.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(producer) = &*known {
            return Ok(producer.clone());
        }
        let producer = Arc::new(self.clients.page_producer()?);
        let polled = Arc::downgrade(&producer);
        thread::Builder::new().name("pages".to_owned()).spawn(move || poll(&polled)).map_err(
            |error| KafkaError::new(Failure::Unavailable, "start", "the thread of pages", error),
        )?;
        Ok(known.insert(Producer(producer)).clone())
    }
}

/// Serves confirmations until nobody else holds the producer.
fn poll(producer: &Weak<BaseProducer<Confirming>>) {
    while let Some(producer) = producer.upgrade() {
        if Arc::strong_count(&producer) == 1 {
            return;
        }
        producer.poll(POLL);
    }
}

// === impl Confirming ===

impl ClientContext for Confirming {
    fn error(&self, error: ClientError, reason: &str) {
        self.0.error(error, reason);
    }

    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        self.0.log(level, facility, text);
    }
}

impl ProducerContext for Confirming {
    type DeliveryOpaque = Box<Confirmation>;

    fn delivery(&self, result: &DeliveryResult<'_>, confirmation: Box<Confirmation>) {
        let outcome = match result {
            Ok(record) => Ok(record.offset()),
            Err((error, _)) => Err(error.clone()),
        };
        // The forwarder may have begun anew.
        drop(confirmation.send(outcome));
    }
}

// === impl Producer ===

impl std::fmt::Debug for Producer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Producer")
    }
}
