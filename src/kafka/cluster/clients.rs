//! How librdkafka's clients are set up, one function for each role.
//!
//! What the promises rest on is set last, over the operator's options; the configuration refuses
//! those keys anyway.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rdkafka::admin::AdminClient;
use rdkafka::config::{ClientConfig, FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, ConsumerContext};
use rdkafka::error::{KafkaError as ClientError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, DeliveryResult, ProducerContext};
use rdkafka::{ClientContext, Message as _};
use tokio::time::Instant;

use super::failure::is_a_consequence;
use super::noter::Noter;
use super::page_writer::Confirming;
use crate::config;
use crate::config::OptionValue;
use crate::kafka::{Failure, KafkaError, Topic};

/// The largest page record, in bytes: a body, its headers, and room.
pub const LARGEST_PAGE: usize = 10 * 1024 * 1024;

/// Broker time after which an open transaction is ended: long enough for a slow broker, short
/// enough that consumers are not held back for long by a dead bridge.
pub(super) const TRANSACTION_TIMEOUT_MS: &str = "15000";

/// How long a request, or setting up a connection, may go unanswered, in milliseconds. The
/// connection is replaced then, while a transaction still has time to be finished on a new one.
const SOCKET_TIMEOUT_MS: &str = "10000";

/// A connection without traffic for this long is closed, in milliseconds: NAT gateways and load
/// balancers forget an idle connection after four to six minutes, and tell neither end.
const LONGEST_IDLE_MS: &str = "180000";

/// How long a producer of events collects records before it sends them, in milliseconds: the time
/// in which a page of 1,000 events is handed over.
pub(super) const LINGER_MS: &str = "5";

/// Makes clients. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Clients {
    settings: Arc<config::Kafka>,
    instance: Arc<str>,
    listener: Listener,
    /// Something failed since the topics were looked at.
    doubt: Arc<AtomicBool>,
    /// Partitions whose former transactional id is fenced.
    former: Arc<Mutex<BTreeSet<i32>>>,
    noter: Arc<Noter>,
}

/// Receives librdkafka's error events. Wrong credentials and a wrong CA are reported only here, not in
/// the answers. Cheap to clone; clones share.
#[derive(Clone, Debug, Default)]
pub(super) struct Listener {
    said: Arc<Mutex<Option<Said>>>,
    refused_at: Arc<Mutex<Option<Instant>>>,
    undelivered: Arc<Mutex<Option<Undelivered>>>,
}

/// A record that was not delivered: why, and where it was to go.
pub(super) type Undelivered = (ClientError, String);

/// What librdkafka said.
#[derive(Debug)]
struct Said {
    text: String,
    weight: Weight,
    at: Instant,
}

/// How much a message of librdkafka tells. It says `all brokers down` after the reason for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Weight {
    Echo,
    Reason,
    /// Waiting does not help.
    Refusal,
}

/// A reason gives way to an echo when it is so old.
const STALE: Duration = Duration::from_secs(30);

/// A refusal is in force for this long after librdkafka reported it. It holds back identical errors
/// for 30 s (`rd_kafka_broker_set_error`), so that one that lasts is reported twice within this.
const REFUSAL_LASTS: Duration = Duration::from_secs(60);

// === impl Clients ===

impl Clients {
    pub(super) fn new(settings: config::Kafka, instance: &str) -> Self {
        Self {
            settings: Arc::new(settings),
            instance: instance.into(),
            listener: Listener::default(),
            doubt: Arc::default(),
            former: Arc::default(),
            noter: Arc::default(),
        }
    }

    /// Notes that the topics may not be what they were.
    pub(super) fn doubt_topics(&self) {
        self.doubt.store(true, Ordering::Relaxed);
    }

    /// Whether that was noted since this was last asked.
    pub(super) fn take_doubt(&self) -> bool {
        self.doubt.swap(false, Ordering::Relaxed)
    }

    pub(super) fn settings(&self) -> &config::Kafka {
        &self.settings
    }

    /// The name of this process.
    pub(super) fn instance(&self) -> &str {
        &self.instance
    }

    /// What librdkafka said last.
    pub(super) fn listener(&self) -> &Listener {
        &self.listener
    }

    /// Notes delivered positions for lag tools.
    pub(super) fn noter(&self) -> &Noter {
        &self.noter
    }

    /// The name of a topic.
    pub(super) fn topic(&self, topic: Topic) -> &str {
        let topics = &self.settings.topics;
        match topic {
            Topic::UserEvents => &topics.user_events,
            Topic::ChannelEvents => &topics.channel_events,
            Topic::DeadLetter => &topics.dead_letter,
            Topic::Gaps => &topics.gaps,
            Topic::Pages => &topics.pages,
            Topic::State => &topics.state,
        }
    }

    /// The topic of a name.
    pub(super) fn topic_named(&self, name: &str) -> Option<Topic> {
        Topic::ALL.into_iter().find(|topic| self.topic(*topic) == name)
    }

    /// Makes topics and reads their settings.
    pub(super) fn admin(&self) -> Result<AdminClient<Listener>, KafkaError> {
        AdminClient::from_config_and_context(&self.common()?, self.listener.clone())
            .map_err(|error| self.not_made("an administration client", error))
    }

    /// Asks for `acks=2`, which no broker supports: a client with the Write permission gets
    /// `INVALID_REQUIRED_ACKS`, one without it an authorization error, and nothing is written.
    pub(super) fn probing_producer<C: ProducerContext>(
        &self,
        context: C,
    ) -> Result<BaseProducer<C>, KafkaError> {
        let mut config = self.common()?;
        config.set("acks", "2").set("retries", "0").set("message.timeout.ms", "10000");
        BaseProducer::from_config_and_context(&config, context)
            .map_err(|error| self.not_made("a producer", error))
    }

    /// The transactional id of an owner, a partition as a rule. Installations may share a group (it
    /// has a default), so the pages topic is part of it. A slash can be in neither name.
    pub(super) fn transactional_id(&self, owner: impl Display) -> String {
        format!("{}.{owner}/{}", self.settings.group, self.topic(Topic::Pages))
    }

    /// Fences a publisher of an earlier version, whose transactional ids did not name the pages
    /// topic; blocks. Once for each partition in the life of a process, which begins after an
    /// upgrade.
    pub(super) fn fence_former(
        &self,
        partition: i32,
        init: impl FnOnce(&BaseProducer<Listener>) -> Result<(), KafkaError>,
    ) -> Result<(), KafkaError> {
        let former = || self.former.lock().unwrap_or_else(PoisonError::into_inner);
        if former().contains(&partition) {
            return Ok(());
        }
        init(&self.transactions(format!("{}.{partition}", self.settings.group))?)?;
        former().insert(partition);
        Ok(())
    }

    /// Opens transactions under an id that no partition has, so that no owner is fenced.
    pub(super) fn probing_transactions(&self) -> Result<BaseProducer<Listener>, KafkaError> {
        self.transactions(format!("{}.check", self.settings.group))
    }

    fn transactions(&self, id: String) -> Result<BaseProducer<Listener>, KafkaError> {
        let mut config = self.common()?;
        set_transactional(&mut config, &id);
        BaseProducer::from_config_and_context(&config, Listener::default())
            .map_err(|error| self.not_made("a producer", error))
    }

    /// Writes pages: idempotent, for as long as it takes.
    pub(super) fn page_producer(
        &self,
        context: Confirming,
    ) -> Result<BaseProducer<Confirming>, KafkaError> {
        let mut config = self.common()?;
        self.default(&mut config, "compression.type", "lz4");
        self.default(&mut config, "linger.ms", "0");
        config
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("message.timeout.ms", "0")
            // A page that fails for good must not be overtaken by those behind it.
            .set("enable.gapless.guarantee", "true")
            .set("message.max.bytes", LARGEST_PAGE.to_string())
            // Bounded by pages in flight long before.
            .set("queue.buffering.max.kbytes", "262144");
        BaseProducer::from_config_and_context(&config, context)
            .map_err(|error| self.not_made("the producer of pages", error))
    }

    /// Writes events: in transactions, or idempotent only where the operator chose so. Of all who
    /// are the same `owner` (a partition, as a rule) the last one fences the others.
    ///
    /// A batch that is larger than its topic's `max.message.bytes` is refused whole, so no batch is
    /// larger than `largest_batch`, unless it is a single record.
    pub(super) fn event_producer(
        &self,
        owner: impl Display,
        largest_batch: usize,
        listener: Listener,
    ) -> Result<BaseProducer<Listener>, KafkaError> {
        let mut config = self.common()?;
        self.default(&mut config, "compression.type", "lz4");
        self.default(&mut config, "linger.ms", LINGER_MS);
        let wanted = config.get("batch.size").and_then(|size| size.parse().ok());
        let batch = largest_batch.min(wanted.unwrap_or(usize::MAX));
        config
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("partitioner", "murmur2_random")
            .set("batch.size", batch.to_string())
            // Successes need no report: the commit fails if one record was not delivered.
            .set("delivery.report.only.error", "true");
        if self.settings.delivery == config::Delivery::ExactlyOnce {
            set_transactional(&mut config, &self.transactional_id(owner));
        }
        BaseProducer::from_config_and_context(&config, listener)
            .map_err(|error| self.not_made("the producer of events", error))
    }

    /// Reads pages, which are not in transactions, as they come.
    pub(super) fn page_reader(&self) -> Result<BaseConsumer<Listener>, KafkaError> {
        let mut config = self.reader()?;
        config.set("isolation.level", "read_uncommitted");
        self.consumer(&config, "the reader of pages")
    }

    /// Commits positions and reads nothing.
    pub(super) fn committer(&self) -> Result<BaseConsumer<Listener>, KafkaError> {
        BaseConsumer::from_config_and_context(&self.reader()?, Listener::default())
            .map_err(|error| self.not_made("a client that commits positions", error))
    }

    /// For one question. It has its own listener, so its errors concern no other client.
    pub(super) fn probing_reader(&self) -> Result<BaseConsumer<Listener>, KafkaError> {
        BaseConsumer::from_config_and_context(&self.reader()?, Listener::default())
            .map_err(|error| self.not_made("a reader that asks", error))
    }

    /// Reads a topic to its end.
    pub(super) fn end_reader(&self) -> Result<BaseConsumer<Listener>, KafkaError> {
        self.consumer(&self.reader_to_end()?, "a reader to the end")
    }

    /// Reads a memory. At a start all partitions are read at once, so little is fetched ahead.
    pub(super) fn memory_reader(&self) -> Result<BaseConsumer<Listener>, KafkaError> {
        let mut config = self.reader_to_end()?;
        config.set("queued.max.messages.kbytes", "1024").set("fetch.message.max.bytes", "262144");
        self.consumer(&config, "a reader of the memory")
    }

    fn reader_to_end(&self) -> Result<ClientConfig, KafkaError> {
        let mut config = self.reader()?;
        // A replica nearby may lag behind the leader and report an earlier end.
        config.remove("client.rack");
        config
            .set("isolation.level", "read_committed")
            .set("enable.partition.eof", "true")
            // The end is reported one such wait after the last record.
            .set("fetch.wait.max.ms", "10");
        Ok(config)
    }

    fn reader(&self) -> Result<ClientConfig, KafkaError> {
        let mut config = self.common()?;
        config
            .set("group.id", &self.settings.group)
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "earliest")
            // Prefetched pages count against our memory.
            .set("queued.max.messages.kbytes", "4096");
        // That queue is full all the time while much is read, and librdkafka looks at a full one
        // again after a second.
        self.default(&mut config, "fetch.queue.backoff.ms", "10");
        Ok(config)
    }

    fn common(&self) -> Result<ClientConfig, KafkaError> {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &self.settings.bootstrap_servers)
            .set("client.id", format!("agora-rtm-bridge-{}", self.instance))
            .set_log_level(RDKafkaLogLevel::Warning);
        let mut has_ca = false;
        for (name, value) in &self.settings.options {
            let value = match value {
                OptionValue::Plain(value) => value.clone(),
                OptionValue::Secret(secret) => secret.reveal().map_err(|error| {
                    KafkaError::new(Failure::Refused, "read option", name.as_str(), error)
                })?,
            };
            has_ca |= name.starts_with("ssl.ca");
            config.set(name, value);
        }
        // A producer's default is true: a topic that was deleted would come back with the broker's
        // number of partitions and none of our settings.
        config.set("allow.auto.create.topics", "false");
        // By default it grows to ten seconds, in which a broker that is back waits for us.
        self.default(&mut config, "reconnect.backoff.max.ms", "1000");
        self.default(&mut config, "socket.keepalive.enable", "true");
        self.default(&mut config, "socket.timeout.ms", SOCKET_TIMEOUT_MS);
        self.default(&mut config, "socket.connection.setup.timeout.ms", SOCKET_TIMEOUT_MS);
        self.default(&mut config, "connections.max.idle.ms", LONGEST_IDLE_MS);
        if !has_ca {
            // The OpenSSL that is linked in knows no system's certificates by itself.
            config.set("ssl.ca.location", "probe");
        }
        Ok(config)
    }

    /// Sets what the operator may decide and did not.
    fn default(&self, config: &mut ClientConfig, name: &str, value: &str) {
        if !self.settings.options.contains_key(name) {
            config.set(name, value);
        }
    }

    fn consumer(
        &self,
        config: &ClientConfig,
        what: &'static str,
    ) -> Result<BaseConsumer<Listener>, KafkaError> {
        BaseConsumer::from_config_and_context(config, self.listener.clone())
            .map_err(|error| self.not_made(what, error))
    }

    fn not_made(&self, what: &'static str, error: ClientError) -> KafkaError {
        // Its own text ends with the value, which may be a secret under a misspelt name.
        let mut reason = match &error {
            ClientError::ClientConfig(_, reason, key, _) if reason.contains(key) => reason.clone(),
            ClientError::ClientConfig(_, reason, key, _) => format!("{reason} ({key})"),
            other => other.to_string(),
        };
        for value in self.settings.options.values() {
            if let OptionValue::Secret(secret) = value
                && let Ok(secret) = secret.reveal()
            {
                reason = reason.replace(&secret, "***");
            }
        }
        KafkaError::new(Failure::Refused, "make", what, reason)
    }
}

/// librdkafka takes no `socket.timeout.ms` that is longer than a transaction may last.
fn set_transactional(config: &mut ClientConfig, id: &str) {
    let number = |text: &str| text.parse::<u64>().unwrap_or(u64::MAX);
    if config.get("socket.timeout.ms").map(number) > Some(number(TRANSACTION_TIMEOUT_MS)) {
        config.set("socket.timeout.ms", TRANSACTION_TIMEOUT_MS);
    }
    config
        .set("transactional.id", id)
        .set("transaction.timeout.ms", TRANSACTION_TIMEOUT_MS)
        .set("message.timeout.ms", TRANSACTION_TIMEOUT_MS);
}

// === impl Listener ===

impl Listener {
    /// What was said since this was last asked.
    pub(super) fn take_said(&self) -> Option<String> {
        self.said().take().map(|said| said.text)
    }

    /// Whether a broker refused a connection lately: its password, certificate or protocol. Other
    /// connections of the client may be fine.
    pub(super) fn is_refused(&self) -> bool {
        let refused_at = *self.refused_at.lock().unwrap_or_else(PoisonError::into_inner);
        refused_at.is_some_and(|at| at.elapsed() < REFUSAL_LASTS)
    }

    /// Whether something was said that tells why.
    pub(super) fn has_reason(&self) -> bool {
        self.said().as_ref().is_some_and(|said| said.weight >= Weight::Reason)
    }

    fn said(&self) -> MutexGuard<'_, Option<Said>> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a record that was not delivered, if it is the first that failed for a reason of its own: a
    /// refused batch fails all others of its transaction, and these may be reported first.
    pub(super) fn note_undelivered(&self, error: ClientError, topic: &str) {
        let mut known = self.undelivered.lock().unwrap_or_else(PoisonError::into_inner);
        if known.as_ref().is_none_or(|(known, _)| is_a_consequence(known)) {
            *known = Some((error, topic.to_owned()));
        }
    }

    /// Whether an undelivered record has not been taken yet.
    pub(super) fn has_undelivered(&self) -> bool {
        self.undelivered.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// The first record that was not delivered, since this was last asked.
    pub(super) fn take_undelivered(&self) -> Option<Undelivered> {
        self.undelivered.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl ClientContext for Listener {
    fn error(&self, error: ClientError, reason: &str) {
        tracing::debug!(%error, reason, "librdkafka reports");
        let weight = match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::AllBrokersDown) => Weight::Echo,
            Some(RDKafkaErrorCode::Authentication | RDKafkaErrorCode::SSL) => Weight::Refusal,
            // With TLS 1.3 a broker refuses a certificate after the handshake: to librdkafka a
            // connection that broke.
            _ if reason.contains("SSL routines") && reason.contains(" alert ") => Weight::Refusal,
            _ => Weight::Reason,
        };
        let now = Instant::now();
        if weight == Weight::Refusal {
            *self.refused_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
        }
        let mut said = self.said();
        let outweighed =
            |known: &Said| known.weight > weight && now.duration_since(known.at) < STALE;
        if !said.as_ref().is_some_and(outweighed) {
            *said = Some(Said { text: bare(reason), weight, at: now });
        }
    }

    /// A failed connection is heard above and told as a condition, once. Here it comes again with
    /// each attempt.
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        match level {
            _ if facility == "FAIL" || is_our_choice(facility, text) => {
                tracing::debug!(target: "librdkafka", "{facility} {text}");
            }
            RDKafkaLogLevel::Warning => tracing::warn!(target: "librdkafka", "{facility} {text}"),
            RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info => {
                tracing::info!(target: "librdkafka", "{facility} {text}");
            }
            RDKafkaLogLevel::Debug => tracing::debug!(target: "librdkafka", "{facility} {text}"),
            _ => tracing::error!(target: "librdkafka", "{facility} {text}"),
        }
    }
}

/// `enable.gapless.guarantee` is experimental, as librdkafka warns at each start.
fn is_our_choice(facility: &str, text: &str) -> bool {
    facility == "CONFWARN" && text.contains("enable.gapless.guarantee")
}

/// `sasl_ssl://kafka:9094/bootstrap: why (after 315ms in state AUTH_REQ)` → `why`: the message
/// already names the address, and the duration differs each time.
fn bare(reason: &str) -> String {
    let after_address = reason.split_once("/bootstrap: ").map_or(reason, |(_, rest)| rest);
    let before_time = after_address.split(" (after ").next().unwrap_or(after_address);
    before_time.to_owned()
}

impl ConsumerContext for Listener {}

impl ProducerContext for Listener {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((error, record)) = result {
            tracing::debug!(%error, topic = record.topic(), "a record was not delivered");
            self.note_undelivered(error.clone(), record.topic());
        }
    }
}
