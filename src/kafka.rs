//! Kafka as the bridge uses it: topics, records as bytes, and transactions. What the records mean is
//! known to [`records`](crate::records) and [`memory`](crate::memory).
//!
//! Two traits are the seam: [`Kafka`] and, for a claimed partition, [`Owned`]. `cluster` implements them
//! on librdkafka; the simulated-time tests use a model of topics and transactions instead. The rest of
//! this room does no I/O.
//!
//! There is one way to handle errors. After any failure the owner of a partition discards its state,
//! backs off, and claims the partition again: `init_transactions` ends what was open, the memory is
//! read again, and its position says where to continue. The kinds of [`KafkaError`] only decide what is
//! reported and how long the backoff is.

use std::fmt;
use std::future::Future;
use std::ops::Range;

use bytes::Bytes;

mod batch;
mod cluster;
mod partition;
mod progress;
mod remedy;
mod stamping;

pub use self::batch::{Batch, Draft, Record};
pub use self::cluster::{
    Cluster, FoundTopic, Inspection, LARGEST_PAGE, Misfit, Reader, Replayer, Right, Spans, Stored,
    TopicSettings,
};
pub use self::partition::partition_of;
pub use self::progress::{Elements, Progress, wait_to_try_again};
pub use self::stamping::{BrokerTime, Stamping};

use crate::error::shortened;
use crate::model::{Endpoint, Timestamp};

/// The topics of the bridge, by what they are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Topic {
    /// User events, keyed by user.
    UserEvents,
    /// Channel events, keyed by channel.
    ChannelEvents,
    /// What is not an event, as received.
    DeadLetter,
    /// What may be missing.
    Gaps,
    /// Pages, as received.
    Pages,
    /// The memory of the publisher; compacted.
    State,
}

/// A record of the pages topic, as it is stored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PageRecord {
    /// The App ID.
    pub key: Vec<u8>,
    /// The body; empty for a gap.
    pub value: Bytes,
    /// Everything else.
    pub headers: Vec<(String, Vec<u8>)>,
    /// When the broker appended it, by the broker's clock. `None` before it is stored, and where the
    /// topic keeps the times of its producers.
    pub appended: Option<Timestamp>,
}

/// The key of the record that the owner of a partition writes before it reads the memory.
pub(crate) const CLAIM: &str = "claim";

/// Takes in the records of a partition of the state topic, in their order.
pub trait StateRecords: Send + 'static {
    /// The next record; one without a value is a tombstone. Of records with the same key the last
    /// counts.
    fn take(&mut self, key: &[u8], value: Option<&[u8]>);
}

/// Takes in what the topics still hold: first the records of a partition of the pages topic, then
/// [`Topic::PUBLISHED`].
pub trait HistoryRecords: Send + 'static {
    /// A record of the pages topic.
    fn take_page(&mut self, offset: i64, record: &PageRecord);

    /// A record of one of the topics that are published: its key, its timestamp, and its headers by
    /// name.
    fn take_published<'a>(
        &mut self,
        topic: Topic,
        key: &[u8],
        stamped: Option<Timestamp>,
        header: impl Fn(&str) -> Option<&'a [u8]>,
    );

    /// Records of this topic were deleted.
    fn is_cut(&mut self, topic: Topic);
}

/// A Kafka cluster.
pub trait Kafka: Clone + Send + Sync + 'static {
    /// A partition of the pages topic that this process owns.
    type Owned: Owned;

    /// Makes sure that the topics exist and fit. Nothing else works before.
    fn prepare(&self) -> impl Future<Output = Result<(), KafkaError>> + Send;

    /// Hands a page record over, in the order of the calls for a partition. The future ends when
    /// all in-sync replicas have it, with its offset. Dropping the future takes nothing back.
    fn append(
        &self,
        partition: i32,
        record: PageRecord,
    ) -> impl Future<Output = Result<i64, KafkaError>> + Send + 'static;

    /// Looks at a partition from outside; another process may own it.
    fn look(&self, partition: i32) -> impl Future<Output = Result<Look, KafkaError>> + Send;

    /// Makes this process the owner of a partition and ends the open transaction of a former owner.
    /// `memory` takes in the records of the partition's state topic and is returned.
    fn claim<M: StateRecords>(
        &self,
        partition: i32,
        memory: M,
    ) -> impl Future<Output = Result<(Self::Owned, M), KafkaError>> + Send;
}

/// A claimed partition.
pub trait Owned: Send {
    /// Reads on from this offset; `None` is the beginning.
    fn read_from(
        &mut self,
        position: Option<i64>,
    ) -> impl Future<Output = Result<(), KafkaError>> + Send;

    /// The next pages with their offsets, at most `limit`; waits until there is one. May be dropped
    /// while it waits: nothing is lost.
    fn pages(
        &mut self,
        limit: usize,
    ) -> impl Future<Output = Result<Vec<(i64, PageRecord)>, KafkaError>> + Send;

    /// Writes a batch, all of it or nothing, and notes for lag tools that everything before
    /// `position` is delivered, unless that is zero. If the future is dropped before it ends, the
    /// partition can't be used any more: the memory shows whether the batch was written.
    fn deliver(
        &mut self,
        batch: Batch,
        position: i64,
    ) -> impl Future<Output = Result<(), KafkaError>> + Send;

    /// What the pages topic holds of the partition now, by its offsets. May be dropped.
    fn span(&mut self) -> impl Future<Output = Result<Range<i64>, KafkaError>> + Send;

    /// Shows `history` everything that the pages topic holds of the partition, then everything that
    /// was published, and returns it.
    fn history<H: HistoryRecords>(
        &mut self,
        history: H,
    ) -> impl Future<Output = Result<H, KafkaError>> + Send;

    /// What a topic takes.
    fn limits(&self, topic: Topic) -> Limits;

    /// Has what the topics take read again by the next claim.
    fn doubt_limits(&mut self);
}

/// What can be seen of a partition from outside. It may be a second old.
#[derive(Clone, Debug, Default)]
pub struct Look {
    /// The first record that is still there.
    pub begin: i64,
    /// Behind the last record.
    pub end: i64,
    /// Everything before this was delivered; `None` where no position was committed.
    pub delivered: Option<i64>,
    /// The instance that noted it.
    pub owner: Option<String>,
}

/// What a topic takes.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Which event times may stamp its records.
    pub stamping: Stamping,
    /// The largest record, in bytes of key, value and headers.
    pub largest_record: usize,
}

/// What a failure means for the one who called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Kafka can't be reached, or not in time. It will pass.
    Unavailable,
    /// Somebody else has claimed the partition since.
    Fenced,
    /// Kafka refuses: a topic, a right or a setting is not as it has to be. A person is needed.
    Refused,
    /// Kafka refuses these records, however often they are sent: too large for their topic, or of
    /// a time that it does not take. Others would pass.
    Unfit,
    /// The client is of no more use, or the outcome is unknown. A new one finds out.
    Broken,
}

/// What is known of records that were refused for what they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unfit {
    /// The topic that refused one of them.
    pub topic: Topic,
    /// Its timestamp is outside of the topic's limits.
    pub is_time: bool,
}

/// The longest reason or subject that an error keeps, in bytes: both may quote what others wrote.
const LONGEST_TEXT: usize = 1_000;

/// A failure of Kafka: the operation, its object, the consequence, and the reason.
#[derive(Clone, Debug)]
pub struct KafkaError {
    failure: Failure,
    unfit: Option<Unfit>,
    operation: &'static str,
    subject: String,
    reason: String,
}

// === impl Topic ===

impl Topic {
    /// Every topic.
    pub const ALL: [Self; 6] = [
        Self::UserEvents,
        Self::ChannelEvents,
        Self::DeadLetter,
        Self::Gaps,
        Self::Pages,
        Self::State,
    ];

    /// The topics whose records name the page that they come from.
    pub const PUBLISHED: [Self; 4] =
        [Self::UserEvents, Self::ChannelEvents, Self::DeadLetter, Self::Gaps];

    /// Where the events of an endpoint go.
    pub const fn of_events(endpoint: Endpoint) -> Self {
        match endpoint {
            Endpoint::User => Self::UserEvents,
            Endpoint::Channel => Self::ChannelEvents,
        }
    }
}

// === impl Look ===

impl Look {
    /// Whether unpublished pages wait.
    pub fn has_backlog(&self) -> bool {
        self.delivered.unwrap_or(self.begin).max(self.begin) < self.end
    }
}

// === impl KafkaError ===

impl KafkaError {
    /// A failure of `operation` on `subject`.
    pub fn new(
        failure: Failure,
        operation: &'static str,
        subject: impl Into<String>,
        reason: impl fmt::Display,
    ) -> Self {
        let short = |text: String| shortened(&text, LONGEST_TEXT).into_owned();
        let (subject, reason) = (short(subject.into()), short(reason.to_string()));
        Self { failure, unfit: None, operation, subject, reason }
    }

    /// The same, and what is known of the records that were refused.
    pub fn with_unfit(self, unfit: Option<Unfit>) -> Self {
        Self { unfit, ..self }
    }

    /// Which records were refused, where that is known.
    pub fn unfit(&self) -> Option<Unfit> {
        self.unfit
    }

    /// The same failure, of which more is known.
    #[must_use]
    pub fn with_reason(mut self, why: impl fmt::Display) -> Self {
        self.reason = format!("{}; {why}", self.reason);
        self
    }

    /// What it means.
    pub fn failure(&self) -> Failure {
        self.failure
    }

    /// What a person can do about it, where that is known.
    pub fn remedy(&self) -> Option<&'static str> {
        remedy::remedy(&self.reason)
    }

    /// What happened, without the remedy.
    pub fn finding(&self) -> String {
        format!("{} `{}`: {}", self.operation, self.subject, self.reason)
    }
}

impl fmt::Display for KafkaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.finding())?;
        match self.remedy() {
            Some(remedy) => write!(f, "; {remedy}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for KafkaError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_quotes_no_more_than_a_line() {
        let long = "ä".repeat(600_000);
        let error = KafkaError::new(Failure::Broken, "read", long.clone(), &long);
        assert!(error.to_string().len() < 3 * LONGEST_TEXT, "{}", error.to_string().len());
    }
}
