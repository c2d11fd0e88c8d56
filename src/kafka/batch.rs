//! Records on their way into one transaction, without an allocation for each.
//!
//! All bytes of a batch are in one buffer; a record is a few ranges of it. At thousands of events
//! a second, each with eight headers, this is a large part of what an event costs.

use std::ops::Range;

use crate::kafka::Topic;
use crate::model::Timestamp;

/// Records of one transaction, in the order in which they are produced.
#[derive(Debug, Default)]
pub struct Batch {
    bytes: Vec<u8>,
    headers: Vec<(&'static str, Range<usize>)>,
    records: Vec<Spans>,
    rest: Option<Timestamp>,
}

/// One record of a [`Batch`].
#[derive(Clone, Debug)]
pub struct Record<'a> {
    batch: &'a Batch,
    spans: &'a Spans,
}

/// A record that is being written; it is part of the batch when it is dropped.
#[derive(Debug)]
pub struct Draft<'a> {
    batch: &'a mut Batch,
}

#[derive(Debug)]
struct Spans {
    topic: Topic,
    partition: Option<i32>,
    timestamp: Option<Timestamp>,
    key: Range<usize>,
    /// `None` is a tombstone.
    value: Option<Range<usize>>,
    headers: Range<usize>,
}

// === impl Batch ===

impl Batch {
    /// Begins a record without key, value and headers.
    pub fn begin(&mut self, topic: Topic) -> Draft<'_> {
        self.records.push(Spans {
            topic,
            partition: None,
            timestamp: None,
            key: self.bytes.len()..self.bytes.len(),
            value: None,
            headers: self.headers.len()..self.headers.len(),
        });
        Draft { batch: self }
    }

    /// Sets the timestamp of all records that have none. Otherwise librdkafka uses the time of sending,
    /// by the clock of this machine.
    pub fn stamp_rest(&mut self, timestamp: Option<Timestamp>) {
        self.rest = timestamp;
    }

    /// The records.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Record<'_>> {
        self.records.iter().map(|spans| Record { batch: self, spans })
    }

    /// The last record.
    pub fn last(&self) -> Option<Record<'_>> {
        self.records.last().map(|spans| Record { batch: self, spans })
    }

    /// Takes the last record back.
    pub fn remove_last(&mut self) {
        if let Some(spans) = self.records.pop() {
            self.headers.truncate(spans.headers.start);
            self.bytes.truncate(spans.key.start);
        }
    }

    /// Continues the last record, where there is one.
    pub(crate) fn resume_last(&mut self) -> Option<Draft<'_>> {
        (!self.records.is_empty()).then_some(Draft { batch: self })
    }

    /// How many records there are.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether there is no record.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    fn slice(&self, range: &Range<usize>) -> &[u8] {
        self.bytes.get(range.clone()).expect("a range of the batch's own buffer")
    }
}

// === impl Record ===

impl<'a> Record<'a> {
    /// Where it goes.
    pub fn topic(&self) -> Topic {
        self.spans.topic
    }

    /// Its partition; `None` leaves it to the key.
    pub fn partition(&self) -> Option<i32> {
        self.spans.partition
    }

    /// Its timestamp; `None` is the time of sending.
    pub fn timestamp(&self) -> Option<Timestamp> {
        self.spans.timestamp.or(self.batch.rest)
    }

    /// Its key.
    pub fn key(&self) -> &'a [u8] {
        self.batch.slice(&self.spans.key)
    }

    /// Its value; `None` is a tombstone.
    pub fn value(&self) -> Option<&'a [u8]> {
        self.spans.value.as_ref().map(|range| self.batch.slice(range))
    }

    /// Its headers, in order.
    pub fn headers(&self) -> impl ExactSizeIterator<Item = (&'static str, &'a [u8])> + use<'a> {
        let headers = self.batch.headers.get(self.spans.headers.clone()).unwrap_or_default();
        let batch = self.batch;
        headers.iter().map(move |(name, range)| (*name, batch.slice(range)))
    }

    /// Bytes of key, value and headers.
    pub fn size(&self) -> usize {
        let headers: usize = self.headers().map(|(name, value)| name.len() + value.len()).sum();
        self.key().len() + self.value().map_or(0, <[u8]>::len) + headers
    }
}

// === impl Draft ===

impl Draft<'_> {
    /// Sends the record to this partition, regardless of its key.
    pub fn partition(mut self, partition: i32) -> Self {
        self.spans().partition = Some(partition);
        self
    }

    /// Stamps the record; `None` leaves that to [`Batch::stamp_rest`].
    pub fn timestamp(mut self, timestamp: Option<Timestamp>) -> Self {
        self.spans().timestamp = timestamp;
        self
    }

    /// Writes the key.
    pub fn key(mut self, key: &[u8]) -> Self {
        self.spans().key = self.append(|bytes| bytes.extend_from_slice(key));
        self
    }

    /// Writes the value.
    pub fn value(mut self, write: impl FnOnce(&mut Vec<u8>)) -> Self {
        self.spans().value = Some(self.append(write));
        self
    }

    /// Writes a header.
    pub fn header(self, name: &'static str, value: &[u8]) -> Self {
        self.header_with(name, |bytes| bytes.extend_from_slice(value))
    }

    /// Writes a header whose value is put together in place.
    pub fn header_with(mut self, name: &'static str, write: impl FnOnce(&mut Vec<u8>)) -> Self {
        let range = self.append(write);
        self.batch.headers.push((name, range));
        self.spans().headers.end = self.batch.headers.len();
        self
    }

    fn append(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> Range<usize> {
        let start = self.batch.bytes.len();
        write(&mut self.batch.bytes);
        start..self.batch.bytes.len()
    }

    fn spans(&mut self) -> &mut Spans {
        self.batch.records.last_mut().expect("a draft has begun its record")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_read_back_as_they_were_written() {
        let mut batch = Batch::default();
        batch
            .begin(Topic::UserEvents)
            .timestamp(Some(Timestamp::from_millis(5)))
            .key(b"u")
            .value(|bytes| bytes.extend_from_slice(b"{}"))
            .header("a", b"1")
            .header_with("b", |bytes| bytes.push(b'2'));
        batch.begin(Topic::Gaps).key(b"gone").header("gone", b"too");
        batch.remove_last();
        batch.begin(Topic::State).partition(3).key(b"k");

        let [first, second] = &batch.iter().collect::<Vec<_>>()[..] else { panic!("two records") };
        assert_eq!(
            (first.topic(), first.key(), first.value()),
            (Topic::UserEvents, &b"u"[..], Some(&b"{}"[..]))
        );
        assert_eq!(first.headers().collect::<Vec<_>>(), [("a", &b"1"[..]), ("b", b"2")]);
        assert_eq!(first.timestamp(), Some(Timestamp::from_millis(5)));
        assert_eq!(first.size(), 7);
        assert_eq!((second.partition(), second.value()), (Some(3), None));
        assert_eq!(second.timestamp(), None);
        assert_eq!(second.headers().len(), 0);
    }

    #[test]
    fn records_without_a_time_of_their_own_get_that_of_the_batch() {
        let mut batch = Batch::default();
        batch.begin(Topic::UserEvents).timestamp(Some(Timestamp::from_millis(5))).key(b"u");
        batch.begin(Topic::State).key(b"k");
        batch.stamp_rest(Some(Timestamp::from_millis(9)));
        let stamps: Vec<_> = batch.iter().map(|record| record.timestamp()).collect();
        assert_eq!(stamps, [5, 9].map(|millis| Some(Timestamp::from_millis(millis))));
    }
}
