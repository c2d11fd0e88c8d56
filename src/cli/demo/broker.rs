//! The broker of the demo: librdkafka's mock cluster, on a thread of its own.
//!
//! It speaks enough of Kafka's protocol for producers, transactions and consumers, in memory and on
//! loopback. It is no proof of exactly-once: records of an aborted transaction stay visible, and
//! nobody is fenced. It can't create topics for a client, so they are made here, and it keeps 5 MiB
//! of a partition.

use std::fmt;
use std::io;
use std::sync::mpsc;
use std::thread;
use std::thread::JoinHandle;

use rdkafka::error::KafkaError;
use rdkafka::mocking::MockCluster;
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;

/// One broker: when it is away, all of Kafka is.
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

/// Why there is no broker, or not the one that is needed.
#[derive(Debug, thiserror::Error)]
pub(super) enum BrokerError {
    #[error("start a thread for the embedded broker")]
    Thread(#[source] io::Error),
    #[error("{0} the embedded broker")]
    Refused(Command, #[source] KafkaError),
    #[error("the embedded broker has ended")]
    Gone,
}

/// What can be asked of it.
#[derive(Clone, Debug)]
pub(super) enum Command {
    /// Begin to serve.
    Start,
    /// Make a topic with so many partitions.
    Create(String, i32),
    /// Close every connection and take no new one.
    Pause,
    /// Take connections again. Nothing is forgotten.
    Resume,
}

type Job = (Command, oneshot::Sender<Result<(), KafkaError>>);

// === impl Broker ===

impl Broker {
    /// Starts it, without topics.
    pub(super) async fn start() -> Result<Self, BrokerError> {
        let (jobs, received) = mpsc::channel();
        let (started, address) = oneshot::channel();
        let thread = thread::Builder::new()
            .name("demo-broker".to_owned())
            .spawn(move || serve(started, received))
            .map_err(BrokerError::Thread)?;
        let address = address.await.map_err(|_| BrokerError::Gone)?;
        let address = address.map_err(|cause| BrokerError::Refused(Command::Start, cause))?;
        Ok(Self { address, jobs, thread })
    }

    /// `host:port`.
    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// Asks something of it and waits until it is done.
    pub(super) async fn ask(&self, command: Command) -> Result<(), BrokerError> {
        let (reply, done) = oneshot::channel();
        self.jobs.send((command.clone(), reply)).map_err(|_| BrokerError::Gone)?;
        let outcome = done.await.map_err(|_| BrokerError::Gone)?;
        outcome.map_err(|cause| BrokerError::Refused(command, cause))
    }

    /// Ends it. Its clients should be gone.
    pub(super) async fn end(self) {
        drop(self.jobs);
        let thread = self.thread;
        // What it held is gone either way.
        spawn_blocking(|| thread.join().ok()).await.ok();
    }
}

/// The cluster can't leave the thread that made it.
fn serve(started: oneshot::Sender<Result<String, KafkaError>>, jobs: mpsc::Receiver<Job>) {
    let cluster = match MockCluster::new(BROKERS) {
        Ok(cluster) => cluster,
        Err(error) => return drop(started.send(Err(error))),
    };
    drop(started.send(Ok(cluster.bootstrap_servers())));
    for (command, done) in jobs {
        let outcome = match command {
            Command::Start => Ok(()),
            Command::Create(topic, partitions) => cluster.create_topic(&topic, partitions, 1),
            Command::Pause => cluster.broker_down(BROKER),
            Command::Resume => cluster.broker_up(BROKER),
        };
        drop(done.send(outcome));
    }
}

// === impl Command ===

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start => f.write_str("start"),
            Self::Create(topic, _) => write!(f, "create `{topic}` in"),
            Self::Pause => f.write_str("pause"),
            Self::Resume => f.write_str("resume"),
        }
    }
}
