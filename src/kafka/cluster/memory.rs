//! Reads the memory of a partition to its end.
//!
//! The end is not where a `read_committed` client thinks it is: an open transaction holds that back,
//! commit markers are never delivered, and a lagging replica reports an earlier end. So the
//! high watermark is taken first, as a `read_uncommitted` client sees it, after `init_transactions`
//! has ended what a former owner left open; then the last stable offset has to reach it; then
//! everything up to there is read, from the leader.
//!
//! An owner has proof. It writes a claim record first, and reads until it finds that record: everything
//! before it has been read.

use std::thread::sleep;
use std::time::Duration;

use rdkafka::Message as _;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError as ClientError;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tokio::time::Instant;

use super::ANSWER_TIMEOUT;
use super::clients::{Clients, Listener};
use crate::kafka::{CLAIM, Failure, KafkaError, StateRecords, Topic};

/// Maximum time for the last stable offset to catch up: the broker ends the open transaction of a dead
/// owner within it.
pub(super) const STABLE_TIMEOUT: Duration = Duration::from_secs(30);

/// Between two looks at the last stable offset.
pub(super) const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Where reading ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Until<'a> {
    /// At the record that the owner itself has just written.
    Claim(&'a [u8]),
    /// Where the topic ends now.
    End,
}

/// What a consumer was given.
#[derive(Clone, Copy, Debug)]
enum Polled<'a> {
    Record {
        offset: i64,
        key: &'a [u8],
        value: Option<&'a [u8]>,
    },
    /// The client reports an end.
    PartitionEnd,
}

/// Reads the records into `memory`; blocks. `uncommitted` is a `read_uncommitted` client.
pub(super) fn read(
    clients: &Clients,
    uncommitted: &BaseConsumer<Listener>,
    partition: i32,
    memory: &mut impl StateRecords,
    until: Until<'_>,
) -> Result<(), KafkaError> {
    let topic = clients.topic(Topic::State);
    let failed = |error: ClientError| {
        KafkaError::new(Failure::Unavailable, "read the memory in", topic, error)
    };
    let unavailable =
        |reason| KafkaError::new(Failure::Unavailable, "read the memory in", topic, reason);
    let (low, high) =
        uncommitted.fetch_watermarks(topic, partition, ANSWER_TIMEOUT).map_err(failed)?;
    if low >= high && until == Until::End {
        return Ok(());
    }
    let reader = clients.memory_reader()?;
    let deadline = Instant::now() + STABLE_TIMEOUT;
    while reader.fetch_watermarks(topic, partition, ANSWER_TIMEOUT).map_err(failed)?.1 < high {
        if Instant::now() > deadline {
            return Err(unavailable("a transaction on it stays open"));
        }
        sleep(LOOK_AGAIN);
    }
    let mut start = TopicPartitionList::new();
    start.add_partition_offset(topic, partition, Offset::Beginning).map_err(failed)?;
    reader.assign(&start).map_err(failed)?;
    loop {
        let message = match reader.poll(ANSWER_TIMEOUT) {
            Some(Ok(message)) => Some(message),
            Some(Err(ClientError::PartitionEOF(_))) => None,
            Some(Err(error)) => return Err(failed(error)),
            None if until == Until::End => return Err(unavailable("no answer")),
            None => {
                return Err(unavailable(
                    "the record that this process has just written to it is not there",
                ));
            }
        };
        let polled = match &message {
            Some(message) => Polled::Record {
                offset: message.offset(),
                key: message.key().unwrap_or_default(),
                value: message.payload(),
            },
            None => Polled::PartitionEnd,
        };
        if until.is_reached(polled, high, memory) {
            return Ok(());
        }
    }
}

// === impl Until ===

impl Until<'_> {
    /// Takes in what was given. Whether it was the last. `high` is the high watermark that was taken
    /// first.
    fn is_reached(self, polled: Polled<'_>, high: i64, memory: &mut impl StateRecords) -> bool {
        match (polled, self) {
            (Polled::Record { key, value, .. }, Self::Claim(claim))
                if key == CLAIM.as_bytes() && value == Some(claim) =>
            {
                true
            }
            (Polled::Record { offset, key, value }, _) => {
                memory.take(key, value);
                self == Self::End && offset + 1 >= high
            }
            // The last stable offset is beyond the watermark, and only marks of transactions are
            // left before it.
            (Polled::PartitionEnd, Self::End) => true,
            // Another owner can fence this one, and write behind its claim, but not before it.
            (Polled::PartitionEnd, Self::Claim(_)) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The keys of the records, in the order in which they were taken.
    #[derive(Default)]
    struct Taken(Vec<String>);

    impl StateRecords for Taken {
        fn take(&mut self, key: &[u8], _: Option<&[u8]>) {
            self.0.push(String::from_utf8_lossy(key).into_owned());
        }
    }

    fn record<'a>(offset: i64, key: &'a str, value: &'a [u8]) -> Polled<'a> {
        Polled::Record { offset, key: key.as_bytes(), value: Some(value) }
    }

    /// How many of these are read, and which records are taken until then.
    fn read_until(until: Until<'_>, given: &[Polled<'_>]) -> (Option<usize>, String) {
        let mut taken = Taken::default();
        let last = given.iter().position(|polled| until.is_reached(*polled, 3, &mut taken));
        (last.map(|last| last + 1), taken.0.join(" "))
    }

    #[test]
    fn an_owner_reads_on_until_it_finds_its_claim_wherever_an_end_is_told() {
        let claim = b"drawn".as_slice();
        let given = [
            record(0, CLAIM, b"of a former owner"),
            Polled::PartitionEnd,
            record(1, "position", b"42"),
            Polled::PartitionEnd,
            record(2, CLAIM, claim),
        ];
        assert_eq!(read_until(Until::Claim(claim), &given), (Some(5), "claim position".to_owned()));
        assert_eq!(
            read_until(Until::Claim(claim), &given[..4]),
            (None, "claim position".to_owned())
        );
        assert_eq!(read_until(Until::Claim(claim), &[Polled::PartitionEnd]), (None, String::new()));
    }

    #[test]
    fn one_who_only_reads_ends_at_the_watermark_or_where_only_marks_are_left() {
        let given = [record(0, "position", b"42"), record(2, CLAIM, b"drawn")];
        assert_eq!(read_until(Until::End, &given), (Some(2), "position claim".to_owned()));
        let given = [record(1, "position", b"42"), Polled::PartitionEnd];
        assert_eq!(read_until(Until::End, &given), (Some(2), "position".to_owned()));
    }
}
