//! The producer of pages, shared by all partitions.
//!
//! It retries without limit. So a connection that died silently, or secrets that changed while it ran,
//! fail no page: pages are just never confirmed. A producer that has confirmed nothing for a while is
//! therefore given up once a new client ([`probe`]) gets an answer or is refused for good. Its pages
//! fail, and the forwarder gives them to a new producer, which rereads every file in `kafka.options`.
//!
//! That keeps the order. Both producers write their pages in order, and the new one begins at the oldest
//! unconfirmed page. Even if the old one still delivers some, each page arrives for the first time after
//! all earlier ones, and the publisher recognises second copies.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::thread::JoinHandle;
use std::time::Duration;

use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError as ClientError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{
    BaseProducer, BaseRecord, DeliveryResult, Producer as _, ProducerContext, PurgeConfig,
};
use rdkafka::{ClientContext, Message as _};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::clients::{Clients, Listener};
use super::failure::failure_of;
use super::reach::reach;
use crate::error::may_panic;
use crate::kafka::{Failure, KafkaError, PageRecord, Topic};

/// How long the polling thread waits in one call. Each call ends with up to a millisecond of
/// spinning (what remains is cut to whole milliseconds), so a wait of 100 ms, as in rdkafka's own
/// `ThreadedProducer`, costs 0.7 % of a core.
const POLL: Duration = Duration::from_secs(1);

/// A producer that confirmed no page for this long may have to be replaced: longer than a request
/// waits for its answer, so that librdkafka's own reconnect comes first.
const SILENCE: Duration = Duration::from_secs(15);

/// The same for one that was refused by a broker: others may accept it meanwhile.
const SILENCE_AFTER_REFUSAL: Duration = Duration::from_secs(3);

/// Between two probes.
const PROBE_EVERY: Duration = Duration::from_secs(5);

/// Writes pages; creates its client when it is first needed, and a new one after an error.
#[derive(Debug)]
pub(super) struct PageWriter {
    clients: Clients,
    slot: Slot,
}

type Slot = Arc<Mutex<Option<Producer>>>;

#[derive(Clone)]
struct Producer {
    client: Arc<BaseProducer<Confirming>>,
    unconfirmed: Arc<Mutex<Unconfirmed>>,
    listener: Listener,
}

/// The pages that a producer was handed and has not confirmed.
#[derive(Debug, Default)]
struct Unconfirmed {
    /// By partition: each may have another broker, and the others' confirmations say nothing about it.
    partitions: BTreeMap<i32, InFlight>,
    /// Why the producer was given up.
    given_up: Option<(Failure, String)>,
}

/// Pages of a partition that are not confirmed.
#[derive(Debug)]
struct InFlight {
    pages: usize,
    /// The last confirmation, or when the first of these pages was handed over.
    silent_since: Instant,
}

/// Confirms each page to the one who waits for it.
#[derive(Clone, Debug)]
pub(super) struct Confirming {
    listener: Listener,
    unconfirmed: Arc<Mutex<Unconfirmed>>,
}

type Confirmation = oneshot::Sender<Result<i64, ClientError>>;

// === impl PageWriter ===

impl PageWriter {
    pub(super) fn new(clients: Clients) -> Self {
        Self { clients, slot: Slot::default() }
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
        let slot = Arc::clone(&self.slot);
        async move {
            let (listener, unconfirmed, confirmed) = handed_over?;
            let failure = match confirmed.await {
                Ok(Ok(offset)) => return Ok(offset),
                Ok(Err(error)) => error,
                Err(_) => ClientError::Canceled,
            };
            // A fatal error ends an idempotent producer, and a new one starts clean after any error.
            take_out(&slot, &unconfirmed);
            clients.doubt_topics();
            let given_up = lock(&unconfirmed).given_up.clone();
            let (failure, reason) = match given_up {
                Some(given_up) if is_purged(&failure) => given_up,
                _ => {
                    let said = listener.take_said();
                    let said = said.map(|said| format!("; librdkafka says: {said}"));
                    (failure_of(&failure), format!("{failure}{}", said.unwrap_or_default()))
                }
            };
            Err(KafkaError::new(failure, "forward a page to", topic, reason))
        }
    }

    fn hand_over(&self, partition: i32, record: &PageRecord) -> Result<HandedOver, KafkaError> {
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
        let producer = self.producer()?;
        // Before it is sent: its confirmation may be quicker than we are.
        lock(&producer.unconfirmed).add(partition);
        producer.client.send(record).map_err(|(error, _)| {
            lock(&producer.unconfirmed).remove(partition);
            if error.rdkafka_error_code() != Some(RDKafkaErrorCode::QueueFull) {
                take_out(&self.slot, &producer.unconfirmed);
            }
            let said = producer.listener.take_said().map(|said| format!("; {said}"));
            let reason = format!("{error}{}", said.unwrap_or_default());
            KafkaError::new(failure_of(&error), "hand a page over to", topic, reason)
        })?;
        Ok((producer.listener.clone(), Arc::clone(&producer.unconfirmed), confirmed))
    }

    fn producer(&self) -> Result<Producer, KafkaError> {
        let mut known = lock(&self.slot);
        if let Some(producer) = &*known {
            return Ok(producer.clone());
        }
        let (listener, unconfirmed) = (Listener::default(), Arc::default());
        let context =
            Confirming { listener: listener.clone(), unconfirmed: Arc::clone(&unconfirmed) };
        let client = Arc::new(self.clients.page_producer(context)?);
        let watched = Watched {
            clients: self.clients.clone(),
            slot: Arc::downgrade(&self.slot),
            client: Arc::downgrade(&client),
            listener: listener.clone(),
            unconfirmed: Arc::clone(&unconfirmed),
        };
        thread::Builder::new().name("pages".to_owned()).spawn(move || watched.poll()).map_err(
            |error| KafkaError::new(Failure::Unavailable, "start", "the thread of pages", error),
        )?;
        Ok(known.insert(Producer { client, unconfirmed, listener }).clone())
    }
}

type HandedOver = (Listener, Arc<Mutex<Unconfirmed>>, oneshot::Receiver<Result<i64, ClientError>>);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Lets the next page be handed to a new producer, unless it is that already.
fn take_out(slot: &Mutex<Option<Producer>>, unconfirmed: &Arc<Mutex<Unconfirmed>>) {
    lock(slot).take_if(|it| Arc::ptr_eq(&it.unconfirmed, unconfirmed));
}

fn is_purged(error: &ClientError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(RDKafkaErrorCode::PurgeQueue | RDKafkaErrorCode::PurgeInflight)
    )
}

// === impl Unconfirmed ===

impl Unconfirmed {
    fn add(&mut self, partition: i32) {
        let new = InFlight { pages: 0, silent_since: Instant::now() };
        self.partitions.entry(partition).or_insert(new).pages += 1;
    }

    /// A page is confirmed, or has failed.
    fn settle(&mut self, partition: i32) {
        self.remove(partition);
        if let Some(in_flight) = self.partitions.get_mut(&partition) {
            in_flight.silent_since = Instant::now();
        }
    }

    /// A page was not handed over after all, which says nothing about the others.
    fn remove(&mut self, partition: i32) {
        if let Some(in_flight) = self.partitions.get_mut(&partition) {
            in_flight.pages = in_flight.pages.saturating_sub(1);
        }
        self.partitions.retain(|_, in_flight| in_flight.pages > 0);
    }

    /// How long pages of a partition have been waiting for a confirmation, at worst.
    fn silence(&self) -> Duration {
        let silences = self.partitions.values().map(|it| it.silent_since.elapsed());
        silences.max().unwrap_or_default()
    }
}

/// A producer as its own thread sees it.
struct Watched {
    clients: Clients,
    slot: Weak<Mutex<Option<Producer>>>,
    client: Weak<BaseProducer<Confirming>>,
    listener: Listener,
    unconfirmed: Arc<Mutex<Unconfirmed>>,
}

// === impl Watched ===

impl Watched {
    /// Serves confirmations until the last other reference is dropped, or the producer is given up.
    fn poll(self) {
        let mut probed = Instant::now();
        let mut probing: Option<JoinHandle<Result<String, KafkaError>>> = None;
        while let Some(client) = self.client.upgrade() {
            if Arc::strong_count(&client) == 1 {
                return;
            }
            may_panic("page-writer");
            client.poll(POLL);
            if let Some((code, text)) = client.client().fatal_error() {
                self.give_up(&client, (failure_of(&ClientError::Global(code)), text));
                return;
            }
            let silence = lock(&self.unconfirmed).silence();
            let longest = if self.listener.is_refused() { SILENCE_AFTER_REFUSAL } else { SILENCE };
            if let Some(probe) = probing.take_if(|probe| probe.is_finished()) {
                probed = Instant::now();
                if let Ok(found) = probe.join()
                    && silence >= longest
                    && let Some(why) = reason_to_give_up(found)
                {
                    self.give_up(&client, why);
                    return;
                }
            }
            if silence >= longest && probing.is_none() && probed.elapsed() >= PROBE_EVERY {
                let clients = self.clients.clone();
                let work = move || probe(&clients);
                probing = thread::Builder::new().name("probe".to_owned()).spawn(work).ok();
            }
        }
    }

    /// Fails every page that is not confirmed.
    fn give_up(&self, client: &BaseProducer<Confirming>, why: (Failure, String)) {
        lock(&self.unconfirmed).given_up = Some(why);
        if let Some(slot) = self.slot.upgrade() {
            take_out(&slot, &self.unconfirmed);
        }
        client.purge(PurgeConfig::default().queue().inflight());
        client.poll(Duration::ZERO);
    }
}

/// Asks Kafka for the pages topic with a new client, which reads secrets and certificates from their
/// files; blocks. What it found is fit for a sentence.
fn probe(clients: &Clients) -> Result<String, KafkaError> {
    let reader = clients.probing_reader()?;
    let topic = clients.topic(Topic::Pages);
    let metadata = reach(&reader, &clients.settings().bootstrap_servers, Some(topic))?;
    let partitions = metadata.topics().iter().flat_map(|topic| topic.partitions());
    let in_sync = partitions.map(|partition| (partition.isr().len(), partition.replicas().len()));
    Ok(in_sync.min().map_or_else(
        || "the topic is missing".to_owned(),
        |(in_sync, replicas)| format!("{in_sync} of {replicas} replicas are in sync, at worst"),
    ))
}

/// A cluster that can't be reached by a new client either is waited for.
fn reason_to_give_up(probed: Result<String, KafkaError>) -> Option<(Failure, String)> {
    match probed {
        Ok(found) => {
            let reason = format!(
                "no page was confirmed for {SILENCE:?} although Kafka answers ({found}); trying \
                 again on a new connection"
            );
            Some((Failure::Unavailable, reason))
        }
        Err(error) if error.failure() == Failure::Refused => {
            Some((Failure::Refused, error.finding()))
        }
        Err(_) => None,
    }
}

// === impl Confirming ===

impl ClientContext for Confirming {
    fn error(&self, error: ClientError, reason: &str) {
        self.listener.error(error, reason);
    }

    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        self.listener.log(level, facility, text);
    }
}

impl ProducerContext for Confirming {
    type DeliveryOpaque = Box<Confirmation>;

    fn delivery(&self, result: &DeliveryResult<'_>, confirmation: Box<Confirmation>) {
        let partition = match result {
            Ok(record) => record.partition(),
            Err((_, record)) => record.partition(),
        };
        lock(&self.unconfirmed).settle(partition);
        let outcome = match result {
            Ok(record) => {
                // Whatever was refused before is accepted now.
                self.listener.take_said();
                Ok(record.offset())
            }
            Err((error, _)) => Err(error.clone()),
        };
        // The forwarder may have started over.
        drop(confirmation.send(outcome));
    }
}

// === impl Producer ===

impl std::fmt::Debug for Producer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Producer")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_partition_without_confirmations_is_silent_whatever_the_others_do() {
        let mut unconfirmed = Unconfirmed::default();
        let second = Duration::from_secs(1);
        unconfirmed.add(1);
        for _ in 0..20 {
            unconfirmed.add(2);
            tokio::time::advance(second).await;
            unconfirmed.settle(2);
            // One that could not be handed over.
            unconfirmed.add(1);
            unconfirmed.remove(1);
        }
        assert_eq!(unconfirmed.silence(), 20 * second);
        unconfirmed.add(1);
        unconfirmed.settle(1);
        tokio::time::advance(second).await;
        assert_eq!(unconfirmed.silence(), second);
        unconfirmed.settle(1);
        assert_eq!(unconfirmed.silence(), Duration::ZERO);
    }
}
