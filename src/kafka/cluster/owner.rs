//! A claimed partition: one thread that reads its pages and writes its transactions.
//!
//! The thread executes commands from a channel one after the other: read on, wait for pages, deliver. librdkafka fetches ahead in the background meanwhile.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError as ClientError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Header, Headers as _, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::{Message as _, Timestamp as MessageTime};
use tokio::sync::oneshot;
use tokio::time::Instant;
use tracing::debug;

use super::clients::{Clients, Listener};
use super::coordinator::{Log, explained, missing};
use super::failure::{failure_of, is_a_consequence, is_passing};
use super::memory::Until;
use super::topics::Facts;
use super::{ANSWER_TIMEOUT, history, memory};
use crate::config::Delivery;
use crate::error::may_panic;
use crate::kafka::{
    Batch, CLAIM, Failure, HistoryRecords, KafkaError, Limits, Owned, PageRecord, Record,
    StateRecords, Topic, Unfit,
};
use crate::model::Timestamp;

/// How long a transaction may take before its failure can only be its own time-out.
const LONG_TRANSACTION: Duration = Duration::from_secs(10);

/// How long the end of a transaction, or of taking a partition over, is waited for.
const TRANSACTION_WAIT: Duration = Duration::from_secs(30);

/// Between two looks whether all records have arrived. A wait inside librdkafka would spin: it
/// cuts what remains to whole milliseconds.
const LOOK_AGAIN: Duration = Duration::from_micros(500);

/// The same once an answer takes long: a broker that hangs must not keep a core busy.
const LOOK_AGAIN_LATER: Duration = Duration::from_millis(20);

/// An answer takes long from here on.
const USUAL_ANSWER: Duration = Duration::from_millis(100);

/// A broker that refused a connection is waited for no longer than this: the client will not get
/// better, as it never reads passwords and certificates again.
const REFUSED_WAIT: Duration = Duration::from_secs(3);

/// Records that are handed over before all of them have to be confirmed: a full page, which takes less
/// than librdkafka collects records for ([`super::clients::LINGER_MS`]).
const CHUNK_RECORDS: usize = 1_000;

/// Bytes of the same, where topics take batches that are smaller than this.
const CHUNK_BYTES: usize = 64 * 1024;

/// Interval of checking whether the request for pages was dropped.
const STILL_WANTED: Duration = Duration::from_millis(200);

/// The handle of the thread. When it is dropped, the thread ends.
#[derive(Debug)]
pub struct OwnedPartition {
    commands: mpsc::Sender<Command>,
    clients: Clients,
    facts: Arc<Facts>,
}

enum Command {
    ReadFrom { position: Option<i64>, reply: Reply<()> },
    Pages { limit: usize, reply: Reply<Vec<(i64, PageRecord)>> },
    Deliver { batch: Batch, position: i64, reply: Reply<()> },
    Span { reply: Reply<Range<i64>> },
    History { show: ShowHistory },
}

/// Reads the history of a partition and sends the reply.
type ShowHistory = Box<dyn FnOnce(&Clients, i32) + Send>;

type Reply<T> = oneshot::Sender<Result<T, KafkaError>>;

/// What the thread works with.
struct Worker {
    clients: Clients,
    partition: i32,
    largest_batch: usize,
    listener: Listener,
    producer: BaseProducer<Listener>,
    reader: BaseConsumer<Listener>,
    /// Pages that were read for a request that was dropped.
    ahead: VecDeque<(i64, PageRecord)>,
    /// When pages came, or the brokers answered, last.
    answered_at: Instant,
}

// === impl OwnedPartition ===

impl OwnedPartition {
    /// Starts the thread, takes the partition over and reads its memory.
    pub(super) async fn claim<M: StateRecords>(
        clients: Clients,
        facts: Arc<Facts>,
        partition: i32,
        mut memory: M,
    ) -> Result<(Self, M), KafkaError> {
        let (commands, receiver) = mpsc::channel();
        let (reply, claimed) = oneshot::channel();
        let (of_thread, largest_batch) = (clients.clone(), facts.largest_batch());
        let work = move || match Worker::claim(of_thread, largest_batch, partition, &mut memory) {
            Ok(worker) => {
                if reply.send(Ok(memory)).is_ok() {
                    worker.run(receiver);
                }
            }
            Err(error) => drop(reply.send(Err(error))),
        };
        thread::Builder::new().name(format!("publish-{partition}")).spawn(work).map_err(
            |error| {
                let subject = format!("partition {partition}");
                KafkaError::new(Failure::Unavailable, "start a thread for", subject, error)
            },
        )?;
        let claimed = claimed.await.unwrap_or_else(|_| Err(gone()));
        let memory = claimed.inspect_err(|_| clients.doubt_topics())?;
        Ok((Self { commands, clients, facts }, memory))
    }

    async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, KafkaError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).map_err(|_| gone())?;
        let answer = answer.await.unwrap_or_else(|_| Err(gone()));
        answer.inspect_err(|_| self.clients.doubt_topics())
    }
}

impl Owned for OwnedPartition {
    async fn read_from(&mut self, position: Option<i64>) -> Result<(), KafkaError> {
        self.ask(|reply| Command::ReadFrom { position, reply }).await
    }

    async fn pages(&mut self, limit: usize) -> Result<Vec<(i64, PageRecord)>, KafkaError> {
        self.ask(|reply| Command::Pages { limit, reply }).await
    }

    async fn deliver(&mut self, batch: Batch, position: i64) -> Result<(), KafkaError> {
        self.ask(|reply| Command::Deliver { batch, position, reply }).await
    }

    async fn span(&mut self) -> Result<Range<i64>, KafkaError> {
        self.ask(|reply| Command::Span { reply }).await
    }

    async fn history<H: HistoryRecords>(&mut self, history: H) -> Result<H, KafkaError> {
        let show = |reply: Reply<H>| {
            Box::new(move |clients: &Clients, partition| {
                drop(reply.send(history::show(clients, partition, history)));
            })
        };
        self.ask(|reply| Command::History { show: show(reply) }).await
    }

    fn limits(&self, topic: Topic) -> Limits {
        self.facts.limits(topic)
    }

    fn doubt_limits(&mut self) {
        self.clients.doubt_topics();
    }
}

fn gone() -> KafkaError {
    KafkaError::new(Failure::Broken, "ask", "the thread of the partition", "it has ended")
}

// === impl Worker ===

impl Worker {
    fn claim(
        clients: Clients,
        largest_batch: usize,
        partition: i32,
        memory: &mut impl StateRecords,
    ) -> Result<Self, KafkaError> {
        let listener = Listener::default();
        let producer = clients.event_producer(partition, largest_batch, listener.clone())?;
        let reader = clients.page_reader()?;
        let ahead = VecDeque::new();
        let worker = Self {
            clients,
            partition,
            largest_batch,
            listener,
            producer,
            reader,
            ahead,
            answered_at: Instant::now(),
        };
        if worker.transactional() {
            // First of all: this ends the open transaction of a former owner.
            worker.take_over(&worker.producer)?;
            worker.clients.fence_former(partition, |former| worker.take_over(former))?;
        }
        let claim = format!("{}/{:032x}", worker.clients.instance(), rand::random::<u128>());
        worker.write_claim(&claim)?;
        let until = Until::Claim(claim.as_bytes());
        memory::read(&worker.clients, &worker.reader, partition, memory, until)?;
        Ok(worker)
    }

    fn take_over(&self, producer: &BaseProducer<Listener>) -> Result<(), KafkaError> {
        let taken = self.retried("take over", || producer.init_transactions(ANSWER_TIMEOUT));
        taken.map_err(|error| match error.failure() {
            Failure::Fenced => error,
            _ => explained(error, missing(&self.reader, Log::Transactions)),
        })
    }

    /// Writes a unique record into the memory. Once it is read back, everything before it has been read
    /// too.
    fn write_claim(&self, claim: &str) -> Result<(), KafkaError> {
        let mut batch = Batch::default();
        batch
            .begin(Topic::State)
            .partition(self.partition)
            .key(CLAIM.as_bytes())
            .value(|bytes| bytes.extend_from_slice(claim.as_bytes()));
        self.deliver(&batch)
    }

    fn run(mut self, commands: mpsc::Receiver<Command>) {
        for command in commands {
            may_panic("owner");
            match command {
                Command::ReadFrom { position, reply } => drop(reply.send(self.read_from(position))),
                Command::Pages { limit, reply } => self.pages(limit, reply),
                Command::Deliver { batch, position, reply } => {
                    let delivered = self.deliver(&batch);
                    if delivered.is_ok() && position > 0 {
                        let noter = self.clients.noter();
                        noter.note(&self.clients, self.partition, position);
                    }
                    drop(reply.send(delivered));
                }
                Command::Span { reply } => drop(reply.send(self.span())),
                Command::History { show } => show(&self.clients, self.partition),
            }
        }
    }

    fn read_from(&mut self, position: Option<i64>) -> Result<(), KafkaError> {
        let topic = self.clients.topic(Topic::Pages);
        let failed = |error| KafkaError::new(Failure::Broken, "read on in", topic, error);
        let offset = position.map_or(Offset::Beginning, Offset::Offset);
        let mut start = TopicPartitionList::new();
        start.add_partition_offset(topic, self.partition, offset).map_err(failed)?;
        self.ahead.clear();
        self.reader.assign(&start).map_err(failed)
    }

    /// Waits for pages as long as the request is not dropped. Pages of a dropped request are kept for
    /// the next one.
    fn pages(&mut self, limit: usize, reply: Reply<Vec<(i64, PageRecord)>>) {
        while self.ahead.is_empty() && !reply.is_closed() {
            if let Err(error) = self.fetch(limit).and_then(|()| self.doubt()) {
                drop(reply.send(Err(error)));
                return;
            }
            self.clients.noter().commit_if_due(&self.clients);
        }
        let pages: Vec<_> = self.ahead.drain(..self.ahead.len().min(limit)).collect();
        if let Err(Ok(unwanted)) = reply.send(Ok(pages)) {
            for page in unwanted.into_iter().rev() {
                self.ahead.push_front(page);
            }
        }
    }

    fn fetch(&mut self, limit: usize) -> Result<(), KafkaError> {
        let mut wait = STILL_WANTED;
        while self.ahead.len() < limit {
            match self.reader.poll(wait) {
                Some(Ok(message)) => {
                    self.ahead.push_back((message.offset(), page_record(&message)))
                }
                Some(Err(error)) if is_passing(&error) => {
                    debug!(%error, partition = self.partition, "reading pages continues");
                }
                Some(Err(error)) => {
                    let topic = self.clients.topic(Topic::Pages);
                    let failure = failure_of(&error);
                    return Err(KafkaError::new(failure, "read pages from", topic, error));
                }
                None => break,
            }
            wait = Duration::ZERO;
        }
        Ok(())
    }

    /// Makes sure that no pages come because there are none: a reader that brokers refuse says
    /// nothing, and would wait for ever.
    fn doubt(&mut self) -> Result<(), KafkaError> {
        if !self.ahead.is_empty() {
            self.answered_at = Instant::now();
        } else if self.answered_at.elapsed() > REFUSED_WAIT && self.is_refused() {
            self.span()?;
            self.answered_at = Instant::now();
        }
        Ok(())
    }

    fn is_refused(&self) -> bool {
        self.listener.is_refused() || self.clients.listener().is_refused()
    }

    fn span(&self) -> Result<Range<i64>, KafkaError> {
        let topic = self.clients.topic(Topic::Pages);
        let span = self.reader.fetch_watermarks(topic, self.partition, ANSWER_TIMEOUT);
        let (begin, end) = span.map_err(|error| {
            KafkaError::new(failure_of(&error), "look for pages in", topic, error)
        })?;
        Ok(begin..end)
    }

    fn deliver(&self, batch: &Batch) -> Result<(), KafkaError> {
        let begun = Instant::now();
        let delivered = if self.transactional() {
            self.deliver_at_once(batch)
        } else {
            self.deliver_in_order(batch)
        };
        let undelivered = self.listener.take_undelivered();
        delivered.map_err(|error| {
            // A transaction that outlives its time is fenced by the broker itself.
            let own_fault =
                error.failure() == Failure::Fenced && begun.elapsed() > LONG_TRANSACTION;
            let mut failure = if own_fault { Failure::Broken } else { error.failure() };
            let mut unfit = error.unfit();
            let mut reason = error.finding();
            if let Some((why, topic)) = undelivered {
                reason = format!("{reason}; no record reached `{topic}`: {why}");
                // The commit knows what was refused, but not of which topic.
                if failure == Failure::Unfit && unfit.is_none() {
                    let refused = self.not_written(&topic, &why);
                    (failure, unfit) = (refused.failure(), refused.unfit());
                }
            }
            let subject = format!("partition {}", self.partition);
            KafkaError::new(failure, "deliver pages of", subject, reason).with_unfit(unfit)
        })
    }

    /// Events, memory and position in one transaction.
    fn deliver_at_once(&self, batch: &Batch) -> Result<(), KafkaError> {
        self.producer
            .begin_transaction()
            .map_err(|error| self.failed("begin a transaction of", error))?;
        self.send_all(batch.iter())?;
        // A commit that timed out continues when it is called again.
        self.retried("commit", || self.producer.commit_transaction(REFUSED_WAIT))
    }

    /// Events first, and the memory when they have arrived: a crash between the two repeats them.
    fn deliver_in_order(&self, batch: &Batch) -> Result<(), KafkaError> {
        let is_memory = |record: &Record<'_>| record.topic() == Topic::State;
        for memory in [false, true] {
            self.send_all(batch.iter().filter(|record| is_memory(record) == memory))?;
        }
        Ok(())
    }

    /// Hands records over and waits until all of them have arrived, chunk by chunk. A chunk is handed
    /// over within the time in which librdkafka collects records, and fits into one request, so that
    /// all of a partition's records leave together. Those that stay behind with five or more in
    /// flight would keep librdkafka's thread spinning until the broker answers
    /// (`rd_kafka_toppar_producer_serve` sets its wake-up before it looks at what is in flight), and
    /// they could not leave earlier anyway.
    fn send_all<'a>(&self, records: impl Iterator<Item = Record<'a>>) -> Result<(), KafkaError> {
        let most_bytes = (self.largest_batch / 2).max(CHUNK_BYTES);
        let (mut count, mut bytes) = (0, 0);
        for record in records {
            let size = record.size();
            if count >= CHUNK_RECORDS || (count > 0 && bytes + size > most_bytes) {
                self.wait_until_sent()?;
                (count, bytes) = (0, 0);
            }
            self.send(&record)?;
            (count, bytes) = (count + 1, bytes + size);
        }
        self.wait_until_sent()
    }

    fn send(&self, record: &Record<'_>) -> Result<(), KafkaError> {
        let topic = self.clients.topic(record.topic());
        loop {
            let headers = record.headers();
            let headers = headers.len().checked_sub(1).map(|_| {
                headers.fold(OwnedHeaders::new_with_capacity(8), |headers, (key, value)| {
                    headers.insert(Header { key, value: Some(value) })
                })
            });
            let sent = self.producer.send(BaseRecord {
                topic,
                partition: record.partition(),
                payload: record.value(),
                key: Some(record.key()),
                timestamp: record.timestamp().map(|stamp| stamp.as_millis()),
                headers,
                delivery_opaque: (),
            });
            match sent {
                Ok(()) => return Ok(()),
                Err((ClientError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => {
                    self.producer.poll(Duration::ZERO);
                    thread::sleep(LOOK_AGAIN);
                }
                Err((error, _)) if self.transactional() && is_a_consequence(&error) => {
                    self.listener.note_undelivered(error, topic);
                    return Ok(());
                }
                Err((error, _)) => return Err(self.not_written(topic, &error)),
            }
        }
    }

    /// Waits until every record has arrived or failed: the commit would wait in steps of 100 ms.
    /// What only follows from a transaction's failure is no failure here: the commit says why.
    fn wait_until_sent(&self) -> Result<(), KafkaError> {
        let begun = Instant::now();
        loop {
            self.producer.poll(Duration::ZERO);
            // A transaction of which one record fails has failed, and what librdkafka still holds of
            // it may wait until it is too old.
            let has_failed = || {
                self.listener.has_undelivered() || self.producer.client().fatal_error().is_some()
            };
            if self.transactional() && has_failed() || self.producer.in_flight_count() == 0 {
                break;
            }
            let waited = begun.elapsed();
            if waited > TRANSACTION_WAIT || waited > REFUSED_WAIT && self.listener.is_refused() {
                let subject = format!("partition {}", self.partition);
                return Err(KafkaError::new(
                    Failure::Unavailable,
                    "deliver pages of",
                    subject,
                    "no answer",
                ));
            }
            thread::sleep(if waited < USUAL_ANSWER { LOOK_AGAIN } else { LOOK_AGAIN_LATER });
        }
        // The commit would first wait for what librdkafka still holds.
        if self.transactional()
            && let Some((code, _)) = self.producer.client().fatal_error()
        {
            return Err(self.failed("write to", ClientError::Global(code)));
        }
        match self.listener.take_undelivered() {
            Some((error, _)) if self.transactional() && is_a_consequence(&error) => Ok(()),
            Some((error, topic)) => Err(self.not_written(&topic, &error)),
            None => Ok(()),
        }
    }

    /// A call that may say "the same again".
    fn retried(
        &self,
        operation: &'static str,
        call: impl Fn() -> Result<(), ClientError>,
    ) -> Result<(), KafkaError> {
        let begun = Instant::now();
        let may_wait = || match self.listener.is_refused() {
            true => begun.elapsed() < REFUSED_WAIT,
            false => begun.elapsed() < TRANSACTION_WAIT,
        };
        loop {
            match call() {
                Ok(()) => return Ok(()),
                // A refusal by the coordinator looks like a timeout.
                Err(ClientError::Transaction(error))
                    if error.is_retriable()
                        && !error.to_string().contains("authorization failed")
                        && may_wait() =>
                {
                    debug!(%error, operation, partition = self.partition, "trying again");
                    thread::sleep(LOOK_AGAIN * 20);
                }
                Err(error) => return Err(self.failed(operation, error)),
            }
        }
    }

    /// A record of the memory or a gap fits every topic that is set up as it has to be: its refusal
    /// says nothing about the page. Its timestamp is our choice.
    fn not_written(&self, topic: &str, error: &ClientError) -> KafkaError {
        let is_time = error.rdkafka_error_code() == Some(RDKafkaErrorCode::InvalidTimestamp);
        let unfit = match failure_of(error) {
            Failure::Unfit => self.clients.topic_named(topic).map(|topic| Unfit { topic, is_time }),
            _ => None,
        };
        let failure = match unfit {
            Some(Unfit { topic: Topic::State | Topic::Gaps, is_time: false }) => Failure::Refused,
            _ => failure_of(error),
        };
        KafkaError::new(failure, "write to", topic, error).with_unfit(unfit)
    }

    fn failed(&self, operation: &'static str, error: ClientError) -> KafkaError {
        let failure = failure_of(&error);
        let said = self.listener.take_said().map(|said| format!("; {said}")).unwrap_or_default();
        let subject = format!("partition {}", self.partition);
        KafkaError::new(failure, operation, subject, format!("{error}{said}"))
    }

    fn transactional(&self) -> bool {
        self.clients.settings().delivery == Delivery::ExactlyOnce
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Another bridge may be the owner by now and have noted more.
        self.clients.noter().forget(self.partition);
    }
}

pub(super) fn page_record(message: &BorrowedMessage<'_>) -> PageRecord {
    let headers = message.headers().map(|headers| {
        let header = |header: Header<'_, &[u8]>| {
            (header.key.to_owned(), header.value.unwrap_or_default().to_vec())
        };
        headers.iter().map(header).collect()
    });
    let appended = match message.timestamp() {
        MessageTime::LogAppendTime(millis) => Some(Timestamp::from_millis(millis)),
        _ => None,
    };
    PageRecord {
        appended,
        key: message.key().unwrap_or_default().to_vec(),
        value: Bytes::copy_from_slice(message.payload().unwrap_or_default()),
        headers: headers.unwrap_or_default(),
    }
}
