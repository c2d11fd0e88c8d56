//! Kafka without a broker: logs of records, transactions, epochs, and everything that goes wrong.
//!
//! It outlives the bridge. What a bridge handed over and what has arrived are two things: a record
//! or a commit is on its way for a while, arrives (or not) whether or not somebody still waits for
//! the answer, and the answer may say less than the truth.
//!
//! Kept as in Kafka:
//! * records of a partition arrive in the order of handing over; where one fails, so do all that
//!   were handed over behind it before the failure was told (an idempotent producer);
//! * a transaction is visible as a whole or not at all, and only `read_committed` is looked at;
//! * a claim raises the epoch: what an older owner has open is aborted, what it tries is fenced.

mod claimed;
mod dice;
mod state;

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use agora_rtm_bridge::kafka::{Failure, Kafka, KafkaError, Look, PageRecord, StateRecords, Topic};
use agora_rtm_bridge::model::Timestamp;
use rand::RngExt as _;

pub(crate) use self::dice::Trouble;
pub(crate) use self::state::Stored;

use self::dice::Told;
use self::state::{Partition, State, StateRecord};
use super::time::Now;

/// A cluster. Cheap to clone; clones share.
#[derive(Clone, Debug)]
pub(crate) struct Cluster(Arc<Mutex<State>>);

/// One process's way to the cluster.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    cluster: Cluster,
    now: Now,
    prepared: Arc<AtomicBool>,
}

/// A partition that a process claimed.
#[derive(Debug)]
pub(crate) struct Claimed {
    client: Client,
    partition: i32,
    epoch: u64,
    position: usize,
    /// What the event topics took when it was claimed.
    largest: usize,
}

/// What became of transactions.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Transactions {
    pub(crate) committed: u32,
    /// An error was told, and the wish to commit was on its way. Some a later owner aborted.
    pub(crate) told_wrong: u32,
    /// Aborted by a later owner.
    pub(crate) aborted: u32,
    /// Refused: there was a younger owner.
    pub(crate) fenced: u32,
}

// === impl Cluster ===

impl Cluster {
    pub(crate) fn new(partitions: u32, trouble: Trouble, seed: u64) -> Self {
        Self(Arc::new(Mutex::new(State {
            seed,
            trouble,
            clock: None,
            largest: 1_000_000,
            partitions: (0..partitions)
                .map(|it| Partition::new(seed ^ u64::from(it) << 32))
                .collect(),
            topics: BTreeMap::new(),
            last_id: 0,
            looks_to_fail: 0,
            published_is_cut: false,
            history_is_refused: false,
            readers_are_stuck: false,
            committed: HashSet::new(),
            transactions: Transactions::default(),
            ending: false,
            broken_promises: Vec::new(),
        })))
    }

    /// Gives it a clock, which showed this when everything began.
    pub(crate) fn set_clock(&self, epoch: Timestamp) {
        self.lock().clock = Some(epoch);
    }

    /// Sets the largest record that the event topics take, in bytes.
    pub(crate) fn set_largest(&self, bytes: usize) {
        self.lock().largest = bytes;
    }

    /// A process begins to speak to it.
    pub(crate) fn connect(&self, now: Now) -> Client {
        self.lock().partitions.iter_mut().for_each(|it| it.poisoned = None);
        Client { cluster: self.clone(), now, prepared: Arc::default() }
    }

    /// The process is about to end, by a stop or a kill. From now on it may drop what is open.
    pub(crate) fn ends(&self, now: Duration) {
        let mut state = self.lock();
        state.settle(now);
        state.ending = true;
    }

    /// The process is dead: what had not left it never comes.
    pub(crate) fn ended(&self, now: Duration) {
        const ON_THE_WIRE: Duration = Duration::from_millis(30);
        let mut state = self.lock();
        for partition in &mut state.partitions {
            let rng = &mut partition.writing;
            let sent = partition
                .on_the_way
                .iter()
                .take_while(|it| it.arrives_at <= now + ON_THE_WIRE && rng.random_bool(0.7))
                .count();
            partition.on_the_way.truncate(sent);
            partition.poisoned = None;
            let open = partition.open.iter_mut();
            open.for_each(|open| open.commit = open.commit.filter(|it| it.leaves_at <= now));
        }
        state.ending = false;
    }

    /// The pages topic is deleted and made again; half of what it held stands there anew, as
    /// another bridge would have forwarded it since.
    pub(crate) fn recreate_pages(&self) {
        for partition in &mut self.lock().partitions {
            partition.pages.drain(..partition.pages.len() / 2);
        }
    }

    /// The records of the memory are deleted.
    pub(crate) fn forget_memory(&self) {
        self.lock().partitions.iter_mut().for_each(|it| it.memory.clear());
    }

    /// The position that was noted for lag tools is deleted.
    pub(crate) fn forget_noted(&self) {
        self.lock().partitions.iter_mut().for_each(|it| it.delivered_to = 0);
    }

    /// Somebody notes a position.
    pub(crate) fn note(&self, position: usize) {
        self.lock().partitions.iter_mut().for_each(|it| it.delivered_to = position);
    }

    /// What was published is deleted, as retention would.
    pub(crate) fn forget_published(&self) {
        let mut state = self.lock();
        state.topics.clear();
        state.published_is_cut = true;
    }

    /// All pages are deleted that are there, as retention would. How many of them nobody has
    /// delivered.
    pub(crate) fn delete_pages(&self, now: Duration) -> usize {
        let mut state = self.lock();
        state.settle(now);
        let partitions = state.partitions.iter_mut();
        partitions
            .map(|it| {
                it.begin = it.pages.len();
                it.begin - it.delivered_to
            })
            .sum()
    }

    /// From now on the clients that exist return no pages. Clients of a later claim do.
    pub(crate) fn stick_readers(&self) {
        self.lock().readers_are_stuck = true;
    }

    /// From now on nobody may read what was published.
    pub(crate) fn refuse_history(&self) {
        self.lock().history_is_refused = true;
    }

    /// So many of the next looks at a partition fail.
    pub(crate) fn fail_looks(&self, count: u32) {
        self.lock().looks_to_fail = count;
    }

    /// Nothing goes wrong from now on.
    pub(crate) fn heal(&self) {
        self.turn_to(Trouble::default());
    }

    /// Something else goes wrong from now on.
    pub(crate) fn turn_to(&self, trouble: Trouble) {
        self.lock().trouble = trouble;
    }

    /// Whether every page has been delivered.
    pub(crate) fn is_delivered(&self, now: Duration) -> bool {
        let mut state = self.lock();
        state.settle(now);
        state
            .partitions
            .iter()
            .all(|it| it.on_the_way.is_empty() && it.delivered_to == it.pages.len())
    }

    /// The records of a topic, without those of open and aborted transactions.
    pub(crate) fn records(&self, topic: Topic) -> Vec<Stored> {
        self.lock().topics.get(&topic).cloned().unwrap_or_default()
    }

    /// The records of the pages topic.
    pub(crate) fn pages(&self) -> Vec<PageRecord> {
        let state = self.lock();
        let partitions = state.partitions.iter();
        partitions.flat_map(|it| it.pages.iter().map(|(_, record)| record.clone())).collect()
    }

    /// What became of transactions.
    pub(crate) fn transactions(&self) -> Transactions {
        self.lock().transactions
    }

    /// What the bridge did although the seam forbids it.
    pub(crate) fn broken_promises(&self) -> Vec<String> {
        self.lock().broken_promises.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Client ===

impl Client {
    /// How old the simulation is.
    pub(crate) fn now(&self) -> Duration {
        self.now.get()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        let mut state = self.cluster.lock();
        state.settle(self.now.get());
        state
    }

    /// Waits until a call's answer is there.
    async fn told(&self, told: Told, operation: &'static str) -> Result<(), KafkaError> {
        self.now.reaches(told.at).await;
        match told.failure {
            None => Ok(()),
            Some(failure) => Err(KafkaError::new(failure, operation, "the model", "as drawn")),
        }
    }
}

impl Kafka for Client {
    type Owned = Claimed;

    async fn prepare(&self) -> Result<(), KafkaError> {
        if self.prepared.load(Ordering::Relaxed) {
            return Ok(());
        }
        let told = self.state().look(self.now.get());
        self.told(told, "prepare").await?;
        self.prepared.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn append(
        &self,
        partition: i32,
        record: PageRecord,
    ) -> impl Future<Output = Result<i64, KafkaError>> + Send + 'static {
        let (id, told) = self.state().hand_over(self.now.get(), partition, record);
        let client = self.clone();
        async move {
            if let Err(error) = client.told(told, "append").await {
                client.state().partition_mut(partition).poisoned = None;
                return Err(error);
            }
            let state = client.state();
            let pages = &state.partition(partition).pages;
            let offset = pages.iter().rposition(|(stored, _)| *stored == id);
            Ok(offset.expect("what is confirmed is stored") as i64)
        }
    }

    async fn look(&self, partition: i32) -> Result<Look, KafkaError> {
        let told = self.state().look(self.now.get());
        self.told(told, "look at").await?;
        let mut state = self.state();
        if let Some(left) = state.looks_to_fail.checked_sub(1) {
            state.looks_to_fail = left;
            return Err(KafkaError::new(Failure::Unavailable, "look at", "the model", "as asked"));
        }
        let partition = state.partition(partition);
        let delivered = (partition.delivered_to > 0).then_some(partition.delivered_to as i64);
        let (begin, end) = (partition.begin as i64, partition.pages.len() as i64);
        Ok(Look { begin, end, delivered, owner: None })
    }

    async fn claim<M: StateRecords>(
        &self,
        partition: i32,
        mut memory: M,
    ) -> Result<(Claimed, M), KafkaError> {
        let (raised_at, told) = {
            let mut state = self.state();
            let share = state.trouble.claim;
            let mut dice = state.owning(partition);
            let told = dice.question(self.now.get(), share);
            let raises = told.failure.is_none() || dice.rng.random_bool(0.5);
            (raises.then_some(self.now.get() + (told.at - self.now.get()) / 2), told)
        };
        let mut epoch = 0;
        if let Some(at) = raised_at {
            self.now.reaches(at).await;
            epoch = self.state().raise_epoch(partition);
            self.state().readers_are_stuck = false;
        }
        self.told(told, "claim").await?;
        for StateRecord { key, value } in self.state().read_memory(partition) {
            memory.take(&key, value.as_deref());
        }
        let largest = self.state().largest;
        Ok((Claimed { client: self.clone(), partition, epoch, position: 0, largest }, memory))
    }
}
