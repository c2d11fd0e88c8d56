//! What a cluster holds: logs, transactions, and what is on its way.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::time::Duration;

use agora_rtm_bridge::kafka::{Batch, Failure, PageRecord, Topic, Unfit};
use agora_rtm_bridge::model::Timestamp;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::sync::watch;

use super::Transactions;
use super::dice::{Dice, PATIENCE, Told, Trouble};
/// A record of the memory.
#[derive(Clone, Debug)]
pub(super) struct StateRecord {
    pub(super) key: Vec<u8>,
    pub(super) value: Option<Vec<u8>>,
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
pub(super) struct State {
    pub(super) seed: u64,
    pub(super) trouble: Trouble,
    /// What its clock showed when everything began; without one it stamps no pages.
    pub(super) clock: Option<Timestamp>,
    /// The largest record that the event topics take, in bytes.
    pub(super) largest: usize,
    pub(super) partitions: Vec<Partition>,
    /// One log a topic: only the order of records with the same key has a meaning.
    pub(super) topics: BTreeMap<Topic, Vec<Stored>>,
    pub(super) last_id: u64,
    pub(super) looks_to_fail: u32,
    pub(super) published_is_cut: bool,
    /// Nobody may read what was published.
    pub(super) history_is_refused: bool,
    /// Clients that exist now return no pages; new ones do.
    pub(super) readers_are_stuck: bool,
    /// Ids of committed transactions.
    pub(super) committed: HashSet<u64>,
    pub(super) transactions: Transactions,
    /// The process is ending: what it drops now, nobody could have waited for.
    pub(super) ending: bool,
    pub(super) broken_promises: Vec<String>,
}

/// A partition of the pages topic, with that of the state topic and the fence that belong to it.
#[derive(Debug)]
pub(super) struct Partition {
    /// Luck has a stream for each task that draws: the order in which tasks wake up in the same
    /// instant is not the seed's to decide.
    pub(super) writing: StdRng,
    pub(super) owning: StdRng,
    pub(super) pages: Vec<(u64, PageRecord)>,
    /// Everything before this was deleted.
    pub(super) begin: usize,
    pub(super) on_the_way: VecDeque<Sending>,
    /// After a failure, until the caller has seen it: all that is handed over fails as well.
    pub(super) poisoned: Option<Poison>,
    pub(super) epoch: u64,
    pub(super) open: Option<Open>,
    pub(super) memory: Vec<StateRecord>,
    pub(super) delivered_to: usize,
    pub(super) news: watch::Sender<u64>,
}

#[derive(Debug)]
pub(super) struct Sending {
    pub(super) id: u64,
    pub(super) record: PageRecord,
    pub(super) arrives_at: Duration,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Poison {
    pub(super) told_at: Duration,
    pub(super) still_storing: bool,
}

/// A transaction that is neither committed nor aborted.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) id: u64,
    pub(super) epoch: u64,
    pub(super) records: Vec<(Topic, Stored)>,
    pub(super) memory: Vec<StateRecord>,
    pub(super) position: usize,
    pub(super) commit: Option<Commit>,
}

/// When the wish to commit leaves the process and when it arrives.
#[derive(Clone, Copy, Debug)]
pub(super) struct Commit {
    pub(super) leaves_at: Duration,
    pub(super) arrives_at: Duration,
}

// === impl State ===

impl State {
    /// Lets arrive what arrives until now.
    pub(super) fn settle(&mut self, now: Duration) {
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

    pub(super) fn partition(&self, partition: i32) -> &Partition {
        &self.partitions[usize::try_from(partition).expect("partitions are positive")]
    }

    pub(super) fn partition_mut(&mut self, partition: i32) -> &mut Partition {
        &mut self.partitions[usize::try_from(partition).expect("partitions are positive")]
    }

    /// A look at topics, by whomever.
    pub(super) fn look(&self, now: Duration) -> Told {
        let moment = now.as_secs() << 32 | u64::from(now.subsec_nanos());
        let mut rng = StdRng::seed_from_u64(self.seed ^ moment);
        Dice { rng: &mut rng, trouble: &self.trouble }.question(now, self.trouble.prepare)
    }

    /// The luck of the owner of a partition.
    pub(super) fn owning(&mut self, partition: i32) -> Dice<'_> {
        let index = usize::try_from(partition).expect("partitions are positive");
        Dice { rng: &mut self.partitions[index].owning, trouble: &self.trouble }
    }

    /// The luck of those who write pages.
    pub(super) fn writing(&mut self, partition: i32) -> Dice<'_> {
        let index = usize::try_from(partition).expect("partitions are positive");
        Dice { rng: &mut self.partitions[index].writing, trouble: &self.trouble }
    }

    pub(super) fn hand_over(
        &mut self,
        now: Duration,
        partition: i32,
        record: PageRecord,
    ) -> (u64, Told) {
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
        let fails = self.trouble.fails_page(&record);
        let unanswered = self.trouble.leaves_unanswered(&record);
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
            None if fails || unanswered => {
                told.failure = Some(Failure::Unavailable);
                unanswered
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

    pub(super) fn raise_epoch(&mut self, partition: i32) -> u64 {
        let partition = self.partition_mut(partition);
        partition.epoch += 1;
        let epoch = partition.epoch;
        let aborted = partition.open.take().is_some();
        self.transactions.aborted += u32::from(aborted);
        epoch
    }

    /// The memory as a reader finds it: sometimes the log cleaner has been there.
    pub(super) fn read_memory(&mut self, partition: i32) -> Vec<StateRecord> {
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
    pub(super) fn unfit(&self, now: Duration, batch: &Batch, believed: usize) -> Option<Unfit> {
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
    pub(super) fn begin(
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
    pub(super) fn new(seed: u64) -> Self {
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

    pub(super) fn store_until(&mut self, now: Duration, clock: Option<Timestamp>) {
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
