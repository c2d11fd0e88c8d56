//! The demo's broker: librdkafka's mock cluster, on its own thread.
//!
//! It speaks enough of Kafka's protocol for producers, transactions and consumers, in memory and on
//! loopback. It doesn't prove exactly-once delivery: records of aborted transactions stay visible,
//! and no producer is fenced. Clients can't create topics on it, so they are created here. It keeps
//! 5 MiB per partition.

use std::sync::mpsc;
use std::thread::JoinHandle;
use std::{fmt, io, thread};

use rdkafka::error::KafkaError;
use rdkafka::mocking::MockCluster;
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;

/// Number of brokers; with one, an outage affects all of Kafka.
const BROKERS: i32 = 1;

/// Its id; the mock counts from 1.
const BROKER: i32 = 1;

/// A broker that runs until [`Self::end`].
#[derive(Debug)]
pub(super) struct Broker {
    address: String,
    jobs: mpsc::Sender<Job>,
    thread: JoinHandle<()>,
}

/// Why there is no broker, or not in the required state.
#[derive(Debug, thiserror::Error)]
pub(super) enum BrokerError {
    #[error("start the embedded broker's thread")]
    Thread(#[source] io::Error),
    #[error("{0} the embedded broker")]
    Refused(BrokerCommand, #[source] KafkaError),
    #[error("the embedded broker has stopped")]
    Gone,
}

/// Requests to the broker's thread.
#[derive(Clone, Debug)]
pub(super) enum BrokerCommand {
    /// Start serving.
    Start,
    /// Create a topic with this many partitions.
    Create(String, i32),
    /// Close all connections and refuse new ones.
    Pause,
    /// Accept connections again. No data is lost.
    Resume,
}

type Job = (BrokerCommand, oneshot::Sender<Result<(), KafkaError>>);

// === impl Broker ===

impl Broker {
    /// Starts the broker, without topics.
    pub(super) async fn start() -> Result<Self, BrokerError> {
        let (jobs, received) = mpsc::channel();
        let (started, address) = oneshot::channel();
        let thread = thread::Builder::new()
            .name("demo-broker".to_owned())
            .spawn(move || serve(started, received))
            .map_err(BrokerError::Thread)?;
        let address = address.await.map_err(|_| BrokerError::Gone)?;
        let address = address.map_err(|cause| BrokerError::Refused(BrokerCommand::Start, cause))?;
        Ok(Self { address, jobs, thread })
    }

    /// `host:port`.
    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// Sends a command and waits until it is done.
    pub(super) async fn ask(&self, command: BrokerCommand) -> Result<(), BrokerError> {
        let (reply, done) = oneshot::channel();
        self.jobs.send((command.clone(), reply)).map_err(|_| BrokerError::Gone)?;
        let outcome = done.await.map_err(|_| BrokerError::Gone)?;
        outcome.map_err(|cause| BrokerError::Refused(command, cause))
    }

    /// Stops the broker. Its clients should be stopped first.
    pub(super) async fn end(self) {
        drop(self.jobs);
        let thread = self.thread;
        // Its contents are discarded in any case.
        spawn_blocking(|| thread.join().ok()).await.ok();
    }
}

/// The cluster can't leave the thread that created it.
fn serve(started: oneshot::Sender<Result<String, KafkaError>>, jobs: mpsc::Receiver<Job>) {
    let cluster = match MockCluster::new(BROKERS) {
        Ok(cluster) => cluster,
        Err(error) => return drop(started.send(Err(error))),
    };
    drop(started.send(Ok(cluster.bootstrap_servers())));
    for (command, done) in jobs {
        let outcome = match command {
            BrokerCommand::Start => Ok(()),
            BrokerCommand::Create(topic, partitions) => cluster.create_topic(&topic, partitions, 1),
            BrokerCommand::Pause => cluster.broker_down(BROKER),
            BrokerCommand::Resume => cluster.broker_up(BROKER),
        };
        drop(done.send(outcome));
    }
}

// === impl Command ===

impl fmt::Display for BrokerCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start => f.write_str("start"),
            Self::Create(topic, _) => write!(f, "create `{topic}` in"),
            Self::Pause => f.write_str("pause"),
            Self::Resume => f.write_str("resume"),
        }
    }
}
