//! How librdkafka's clients are set up, one function for each role.
//!
//! What the promises rest on is set last, over the operator's options; the configuration refuses
//! those keys anyway.

use std::fmt::Display;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;

use rdkafka::ClientContext;
use rdkafka::Message as _;
use rdkafka::admin::AdminClient;
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::BaseConsumer;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::KafkaError as ClientError;
use rdkafka::producer::BaseProducer;
use rdkafka::producer::DeliveryResult;
use rdkafka::producer::ProducerContext;

use super::page_writer::Confirming;
use crate::config;
use crate::config::OptionValue;
use crate::kafka::Failure;
use crate::kafka::KafkaError;
use crate::kafka::Topic;

/// The largest page record, in bytes: a body, its headers, and room.
pub(super) const LARGEST_PAGE: usize = 10 * 1024 * 1024;

/// Broker time after which an open transaction is ended: long enough for a slow broker, short
/// enough that consumers are not held back for long by a dead bridge.
pub(super) const TRANSACTION_TIMEOUT_MS: &str = "15000";

/// Makes clients. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Clients {
    settings: Arc<config::Kafka>,
    instance: Arc<str>,
    listener: Listener,
}

/// Hears what librdkafka says beside the answers: wrong credentials and a wrong CA are told by
/// nobody else. Cheap to clone; clones share.
#[derive(Clone, Debug, Default)]
pub(super) struct Listener {
    said: Arc<Mutex<Option<String>>>,
    undelivered: Arc<Mutex<Option<ClientError>>>,
}

// === impl Clients ===

impl Clients {
    pub(super) fn new(settings: config::Kafka, instance: &str) -> Self {
        Self {
            settings: Arc::new(settings),
            instance: instance.into(),
            listener: Listener::default(),
        }
    }

    pub(super) fn settings(&self) -> &config::Kafka {
        &self.settings
    }

    /// What librdkafka said last.
    pub(super) fn listener(&self) -> &Listener {
        &self.listener
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

    /// Makes topics and reads their settings.
    pub(super) fn admin(&self) -> Result<AdminClient<DefaultClientContext>, KafkaError> {
        self.common()?.create().map_err(|error| self.not_made("an administration client", error))
    }

    /// Writes pages: idempotent, for as long as it takes.
    pub(super) fn page_producer(&self) -> Result<BaseProducer<Confirming>, KafkaError> {
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
        BaseProducer::from_config_and_context(&config, Confirming(self.listener.clone()))
            .map_err(|error| self.not_made("the producer of pages", error))
    }

    /// Writes events: in transactions, or idempotent only where the operator chose so. Of all who
    /// are the same `owner` (a partition, as a rule) the last one fences the others.
    pub(super) fn event_producer(
        &self,
        owner: impl Display,
        listener: Listener,
    ) -> Result<BaseProducer<Listener>, KafkaError> {
        let mut config = self.common()?;
        self.default(&mut config, "compression.type", "lz4");
        self.default(&mut config, "linger.ms", "2");
        config
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("partitioner", "murmur2_random")
            // Successes need no report: the commit fails if one record was not delivered.
            .set("delivery.report.only.error", "true");
        if self.settings.delivery == config::Delivery::ExactlyOnce {
            config
                .set("transactional.id", format!("{}.{owner}", self.settings.group))
                .set("transaction.timeout.ms", TRANSACTION_TIMEOUT_MS)
                .set("message.timeout.ms", TRANSACTION_TIMEOUT_MS);
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

    /// Reads the memory to its end.
    pub(super) fn memory_reader(&self) -> Result<BaseConsumer<Listener>, KafkaError> {
        let mut config = self.reader()?;
        config
            .set("isolation.level", "read_committed")
            .set("enable.partition.eof", "true")
            // The end is told one wait after the last record.
            .set("fetch.wait.max.ms", "10");
        self.consumer(&config, "the reader of the memory")
    }

    fn reader(&self) -> Result<ClientConfig, KafkaError> {
        let mut config = self.common()?;
        config
            .set("group.id", &self.settings.group)
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "earliest")
            .set("allow.auto.create.topics", "false")
            // Prefetched pages count against our memory.
            .set("queued.max.messages.kbytes", "4096");
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
        KafkaError::new(Failure::Refused, "make", what, error)
    }
}

// === impl Listener ===

impl Listener {
    /// What was said since this was last asked.
    pub(super) fn take_said(&self) -> Option<String> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Why a record was not delivered, since this was last asked.
    pub(super) fn take_undelivered(&self) -> Option<ClientError> {
        self.undelivered.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl ClientContext for Listener {
    fn error(&self, error: ClientError, reason: &str) {
        let said = format!("{error}: {reason}");
        tracing::debug!(said, "librdkafka reports");
        *self.said.lock().unwrap_or_else(PoisonError::into_inner) = Some(said);
    }
}

impl ConsumerContext for Listener {}

impl ProducerContext for Listener {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((error, record)) = result {
            tracing::debug!(%error, topic = record.topic(), "a record was not delivered");
            let mut first = self.undelivered.lock().unwrap_or_else(PoisonError::into_inner);
            first.get_or_insert_with(|| error.clone());
        }
    }
}
