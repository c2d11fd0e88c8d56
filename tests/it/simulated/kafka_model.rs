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

mod dice;

use std::collections::BTreeMap;
use std::collections::HashSet;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use agora_rtm_bridge::kafka::Batch;
use agora_rtm_bridge::kafka::Failure;
use agora_rtm_bridge::kafka::Kafka;
use agora_rtm_bridge::kafka::KafkaError;
use agora_rtm_bridge::kafka::Limits;
use agora_rtm_bridge::kafka::Look;
use agora_rtm_bridge::kafka::Owned;
use agora_rtm_bridge::kafka::PageRecord;
use agora_rtm_bridge::kafka::Rebuild;
use agora_rtm_bridge::kafka::Recall;
use agora_rtm_bridge::kafka::Stamping;
use agora_rtm_bridge::kafka::Topic;
use agora_rtm_bridge::kafka::Unfit;
use agora_rtm_bridge::model::Timestamp;
use rand::RngExt as _;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use tokio::sync::watch;

pub(crate) use self::dice::Trouble;

use self::dice::Dice;
use self::dice::PATIENCE;
use self::dice::Told;
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

/// A record of the memory.
#[derive(Clone, Debug)]
struct StateRecord {
    key: Vec<u8>,
    value: Option<Vec<u8>>,
}

/// A record that `read_committed` shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stored {
    /// Since when.
    pub(crate) shown_at: Duration,
    pub(crate) key: Vec<u8>,
    pub(crate) value: Option<Vec<u8>>,
    pub(crate) headers: Vec<(&'static str, Vec<u8>)>,
}

#[derive(Debug)]
struct State {
    seed: u64,
    trouble: Trouble,
    /// What its clock showed when everything began; without one it stamps no pages.
    clock: Option<Timestamp>,
    /// The largest record that the event topics take, in bytes.
    largest: usize,
    partitions: Vec<Partition>,
    /// One log a topic: only the order of records with the same key has a meaning.
    topics: BTreeMap<Topic, Vec<Stored>>,
    last_id: u64,
    looks_to_fail: u32,
    published_is_cut: bool,
    /// Ids of committed transactions.
    committed: HashSet<u64>,
    transactions: Transactions,
    /// The process is ending: what it drops now, nobody could have waited for.
    ending: bool,
    broken_promises: Vec<String>,
}

/// A partition of the pages topic, with that of the state topic and the fence that belong to it.
#[derive(Debug)]
struct Partition {
    /// Luck has a stream for each task that draws: the order in which tasks wake up in the same
    /// instant is not the seed's to decide.
    writing: StdRng,
    owning: StdRng,
    pages: Vec<(u64, PageRecord)>,
    /// Everything before this was deleted.
    begin: usize,
    on_the_way: VecDeque<Sending>,
    /// After a failure, until the caller has seen it: all that is handed over fails as well.
    poisoned: Option<Poison>,
    epoch: u64,
    open: Option<Open>,
    memory: Vec<StateRecord>,
    delivered_to: usize,
    news: watch::Sender<u64>,
}

#[derive(Debug)]
struct Sending {
    id: u64,
    record: PageRecord,
    arrives_at: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Poison {
    told_at: Duration,
    still_storing: bool,
}

/// A transaction that is neither committed nor aborted.
#[derive(Debug)]
struct Open {
    id: u64,
    epoch: u64,
    records: Vec<(Topic, Stored)>,
    memory: Vec<StateRecord>,
    position: usize,
    commit: Option<Commit>,
}

/// When the wish to commit leaves the process and when it arrives.
#[derive(Clone, Copy, Debug)]
struct Commit {
    leaves_at: Duration,
    arrives_at: Duration,
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

    /// So many of the next looks at a partition fail.
    pub(crate) fn fail_looks(&self, count: u32) {
        self.lock().looks_to_fail = count;
    }

    /// Nothing goes wrong from now on.
    pub(crate) fn heal(&self) {
        self.lock().trouble = Trouble::default();
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

    async fn claim(
        &self,
        partition: i32,
        mut recall: Recall,
    ) -> Result<(Claimed, Recall), KafkaError> {
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
        }
        self.told(told, "claim").await?;
        for StateRecord { key, value } in self.state().read_memory(partition) {
            recall.take(&key, value.as_deref());
        }
        let largest = self.state().largest;
        Ok((Claimed { client: self.clone(), partition, epoch, position: 0, largest }, recall))
    }
}

// === impl Claimed ===

impl Owned for Claimed {
    async fn read_from(&mut self, position: Option<i64>) -> Result<(), KafkaError> {
        self.position = usize::try_from(position.unwrap_or(0)).expect("offsets are positive");
        Ok(())
    }

    async fn pages(&mut self, limit: usize) -> Result<Vec<(i64, PageRecord)>, KafkaError> {
        let told = self.client.state().owning(self.partition).read(self.client.now.get());
        self.client.told(told, "read").await?;
        let mut news = self.client.state().partition(self.partition).news.subscribe();
        loop {
            let arrives = {
                let mut state = self.client.state();
                let limit = state.owning(self.partition).rng.random_range(1..=limit);
                let partition = state.partition(self.partition);
                if !(partition.begin..=partition.pages.len()).contains(&self.position) {
                    // `auto.offset.reset` is `earliest`.
                    self.position = partition.begin;
                }
                let pages = partition.pages.iter().zip(0_i64..).skip(self.position).take(limit);
                let pages: Vec<_> =
                    pages.map(|((_, record), offset)| (offset, record.clone())).collect();
                if !pages.is_empty() {
                    self.position += pages.len();
                    return Ok(pages);
                }
                partition.on_the_way.front().map_or(Duration::MAX, |it| it.arrives_at)
            };
            let arrives = arrives.min(self.client.now.get() + Duration::from_secs(3_600));
            tokio::select! {
                biased;
                changed = news.changed() => changed.expect("the cluster outlives its clients"),
                () = self.client.now.reaches(arrives) => {}
            }
        }
    }

    async fn deliver(&mut self, batch: Batch, position: i64) -> Result<(), KafkaError> {
        let now = self.client.now.get();
        let position = usize::try_from(position).expect("offsets are positive");
        let unfit = self.client.state().unfit(now, &batch, self.largest);
        let (id, told) =
            self.client.state().begin(now, self.partition, self.epoch, &batch, position, unfit);
        let promise = NotDropped { cluster: self.client.cluster.clone(), kept: false };
        let told = self.client.told(told, "deliver").await;
        promise.keep();
        told.map_err(|error| match error.failure() {
            Failure::Unfit => error.with_unfit(unfit),
            _ => error,
        })?;
        if self.client.state().committed.contains(&id) {
            return Ok(());
        }
        Err(KafkaError::new(Failure::Fenced, "deliver", "the model", "a younger owner"))
    }

    async fn span(&mut self) -> Result<Range<i64>, KafkaError> {
        let state = self.client.state();
        let partition = state.partition(self.partition);
        Ok(partition.begin as i64..partition.pages.len() as i64)
    }

    async fn history(&mut self, mut rebuild: Rebuild) -> Result<Rebuild, KafkaError> {
        let state = self.client.state();
        let partition = state.partition(self.partition);
        for ((_, page), offset) in partition.pages.iter().zip(0_i64..).skip(partition.begin) {
            rebuild.take_page(offset, page);
        }
        let naming = [Topic::UserEvents, Topic::ChannelEvents, Topic::DeadLetter, Topic::Gaps];
        for topic in naming {
            if state.published_is_cut {
                rebuild.is_cut(topic);
            }
            for record in state.topics.get(&topic).into_iter().flatten() {
                let header = |name: &str| {
                    let mut headers = record.headers.iter();
                    headers.find(|(found, _)| *found == name).map(|(_, value)| value.as_slice())
                };
                rebuild.take_published(topic, &record.key, None, header);
            }
        }
        Ok(rebuild)
    }

    fn limits(&self, _: Topic) -> Limits {
        let oldest = Duration::from_secs(3 * 86_400);
        let ahead = self.client.state().trouble.told_ahead.unwrap_or(Stamping::AHEAD);
        Limits { stamping: Stamping { oldest, ahead }, largest_record: self.largest }
    }

    fn doubt_limits(&mut self) {}
}

/// Notes when a transaction is dropped by anything but the end of its process.
struct NotDropped {
    cluster: Cluster,
    kept: bool,
}

// === impl NotDropped ===

impl NotDropped {
    fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for NotDropped {
    fn drop(&mut self) {
        let mut state = self.cluster.lock();
        if !self.kept && !state.ending {
            state.broken_promises.push("a transaction was dropped before its end".to_owned());
        }
    }
}

// === impl State ===

impl State {
    /// Lets arrive what arrives until now.
    fn settle(&mut self, now: Duration) {
        for partition in &mut self.partitions {
            partition.store_until(now, self.clock);
            let arrived = partition
                .open
                .take_if(|open| open.commit.is_some_and(|commit| commit.arrives_at <= now));
            let Some(open) = arrived else { continue };
            assert_eq!(open.epoch, partition.epoch, "a claim aborts what is open");
            self.committed.insert(open.id);
            self.transactions.committed += 1;
            if open.position > 0 {
                partition.delivered_to = open.position;
            }
            partition.memory.extend(open.memory);
            let shown_at = open.commit.map_or(now, |commit| commit.arrives_at);
            for (topic, record) in open.records {
                let record = Stored { shown_at, ..record };
                self.topics.entry(topic).or_default().push(record);
            }
        }
    }

    fn partition(&self, partition: i32) -> &Partition {
        &self.partitions[usize::try_from(partition).expect("partitions are positive")]
    }

    fn partition_mut(&mut self, partition: i32) -> &mut Partition {
        &mut self.partitions[usize::try_from(partition).expect("partitions are positive")]
    }

    /// A look at topics, by whomever.
    fn look(&self, now: Duration) -> Told {
        let moment = now.as_secs() << 32 | u64::from(now.subsec_nanos());
        let mut rng = StdRng::seed_from_u64(self.seed ^ moment);
        Dice { rng: &mut rng, trouble: &self.trouble }.question(now, self.trouble.prepare)
    }

    /// The luck of the owner of a partition.
    fn owning(&mut self, partition: i32) -> Dice<'_> {
        let index = usize::try_from(partition).expect("partitions are positive");
        Dice { rng: &mut self.partitions[index].owning, trouble: &self.trouble }
    }

    /// The luck of those who write pages.
    fn writing(&mut self, partition: i32) -> Dice<'_> {
        let index = usize::try_from(partition).expect("partitions are positive");
        Dice { rng: &mut self.partitions[index].writing, trouble: &self.trouble }
    }

    fn hand_over(&mut self, now: Duration, partition: i32, record: PageRecord) -> (u64, Told) {
        self.last_id += 1;
        let id = self.last_id;
        let last = self.partition(partition).on_the_way.back().map(|it| it.arrives_at);
        let share = self.trouble.append;
        let mut dice = self.writing(partition);
        let strikes = dice.strikes(now, share);
        let (there, back) = (dice.latency(now), dice.latency(now));
        let arrives_at = dice.through(now + there).max(last.unwrap_or_default());
        // The answer, where it falls into an outage, comes with the connection.
        let mut told = Told { at: dice.through(arrives_at + back), failure: None };
        let goes_on = dice.rng.random_bool(0.5);
        let poison = self.partition(partition).poisoned;
        let unfit = self.trouble.refuses_page(&record);
        let stored = match poison {
            Some(poison) => {
                told =
                    Told { at: told.at.max(poison.told_at), failure: Some(Failure::Unavailable) };
                poison.still_storing && goes_on
            }
            None if unfit => {
                told.failure = Some(Failure::Unfit);
                false
            }
            None if strikes => {
                told.failure = Some(Failure::Unavailable);
                goes_on
            }
            None => true,
        };
        let partition = self.partition_mut(partition);
        if told.failure.is_some() {
            let told_at = poison.map_or(told.at, |poison| poison.told_at);
            partition.poisoned = Some(Poison { told_at, still_storing: stored });
        }
        if stored {
            partition.on_the_way.push_back(Sending { id, record, arrives_at });
            partition.news.send_modify(|news| *news += 1);
        }
        (id, told)
    }

    fn raise_epoch(&mut self, partition: i32) -> u64 {
        let partition = self.partition_mut(partition);
        partition.epoch += 1;
        let epoch = partition.epoch;
        let aborted = partition.open.take().is_some();
        self.transactions.aborted += u32::from(aborted);
        epoch
    }

    /// The memory as a reader finds it: sometimes the log cleaner has been there.
    fn read_memory(&mut self, partition: i32) -> Vec<StateRecord> {
        let cleans = self.owning(partition).rng.random_bool(0.5);
        let memory = &mut self.partition_mut(partition).memory;
        if cleans {
            let mut seen = HashSet::new();
            let mut kept: Vec<StateRecord> = Vec::new();
            for record in memory.drain(..).rev() {
                if seen.insert(record.key.clone()) {
                    kept.push(record);
                }
            }
            kept.reverse();
            *memory = kept;
        }
        memory.clone()
    }

    /// The first event that is refused for what it is. A client that believes in a larger limit than
    /// there is fills its batches to that, and they are refused as a whole.
    fn unfit(&self, now: Duration, batch: &Batch, believed: usize) -> Option<Unfit> {
        let is_event = |topic| [Topic::UserEvents, Topic::ChannelEvents].contains(&topic);
        batch.iter().filter(|record| is_event(record.topic())).find_map(|record| {
            let (topic, value) = (record.topic(), record.value().unwrap_or_default());
            let is_time =
                self.clock.zip(self.trouble.refused_ahead).is_some_and(|(epoch, most)| {
                    // Without a timestamp it would be our clock's, which such a test has set wrong.
                    record.timestamp().is_none_or(|stamp| stamp > epoch.after(now).after(most))
                });
            let is_large = believed.max(record.size()) > self.largest;
            let refused = is_time || is_large || self.trouble.refuses_event(topic, value);
            refused.then_some(Unfit { topic, is_time })
        })
    }

    /// Begins a transaction and decides how it will end, as far as it is not another's to decide.
    fn begin(
        &mut self,
        now: Duration,
        partition: i32,
        epoch: u64,
        batch: &Batch,
        position: usize,
        unfit: Option<Unfit>,
    ) -> (u64, Told) {
        self.last_id += 1;
        let id = self.last_id;
        let share = self.trouble.deliver;
        let mut dice = self.owning(partition);
        let strikes = dice.strikes(now, share);
        let unknown = strikes && dice.rng.random_bool(0.5);
        let legs = [dice.latency(now), dice.latency(now), dice.latency(now)];
        let early = Duration::from_millis(dice.rng.random_range(0..2_000));
        let leaves_at = dice.through(now + legs[0]);
        let arrives_at = dice.through(leaves_at + legs[1]);
        let answered_at = dice.through(arrives_at + legs[2]);
        let mut commit = Some(Commit { leaves_at, arrives_at });
        let mut told = Told { at: answered_at, failure: None };
        let mut told_wrong = 0;
        if strikes {
            told.failure = Some(Failure::Broken);
            if unknown {
                // The caller may give up before the wish to commit has arrived.
                told.at = answered_at.saturating_sub(early).max(leaves_at);
                told_wrong = 1;
            } else {
                commit = None;
            }
        } else if arrives_at > now + PATIENCE {
            told = Told { at: now + PATIENCE, failure: Some(Failure::Unavailable) };
            commit = None;
        } else if answered_at > now + PATIENCE {
            told = Told { at: now + PATIENCE, failure: Some(Failure::Broken) };
        }
        let partition = self.partition_mut(partition);
        if epoch != partition.epoch {
            self.transactions.fenced += 1;
            return (id, Told { at: answered_at, failure: Some(Failure::Fenced) });
        }
        if partition.open.is_some() {
            self.broken_promises.push("a second transaction beside an open one".to_owned());
            return (id, Told { at: answered_at, failure: Some(Failure::Broken) });
        }
        let (records, memory) = read_batch(batch);
        if unfit.is_some() {
            return (id, Told { at: answered_at, failure: Some(Failure::Unfit) });
        }
        partition.open = Some(Open { id, epoch, records, memory, position, commit });
        self.transactions.told_wrong += told_wrong;
        (id, told)
    }
}

fn read_batch(batch: &Batch) -> (Vec<(Topic, Stored)>, Vec<StateRecord>) {
    let mut records = Vec::new();
    let mut memory = Vec::new();
    for record in batch.iter() {
        let (key, value) = (record.key().to_vec(), record.value().map(<[u8]>::to_vec));
        if record.topic() == Topic::State {
            memory.push(StateRecord { key, value });
            continue;
        }
        let headers = record.headers().map(|(name, value)| (name, value.to_vec())).collect();
        records.push((record.topic(), Stored { shown_at: Duration::MAX, key, value, headers }));
    }
    (records, memory)
}

// === impl Partition ===

impl Partition {
    fn new(seed: u64) -> Self {
        Self {
            writing: StdRng::seed_from_u64(seed),
            owning: StdRng::seed_from_u64(!seed),
            pages: Vec::new(),
            begin: 0,
            on_the_way: VecDeque::new(),
            poisoned: None,
            epoch: 0,
            open: None,
            memory: Vec::new(),
            delivered_to: 0,
            news: watch::Sender::default(),
        }
    }

    fn store_until(&mut self, now: Duration, clock: Option<Timestamp>) {
        let arrived = self.on_the_way.iter().take_while(|it| it.arrives_at <= now).count();
        let stored = self.on_the_way.drain(..arrived).map(|it| {
            let appended = clock.map(|epoch| epoch.after(it.arrives_at));
            (it.id, PageRecord { appended, ..it.record })
        });
        self.pages.extend(stored);
    }
}

// === impl Stored ===

impl Stored {
    /// A header, as text.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().find(|(found, _)| *found == name)?;
        std::str::from_utf8(value).ok()
    }
}
