//! Proves from the topics alone that what was drained was delivered exactly once.
//!
//! The pages topic holds what Agora answered; the audit decodes it again and holds the other topics to
//! it. How far each partition is delivered is in the publisher's memory: that is read first, and the
//! ends of the other topics after it, so that everything that a page before that position has brought
//! can be read. [`ledger`] says what is proved, and what can't be.
//!
//! It shares no judgement with the publisher, only the formats of records, and what a torn body is.

mod cut;
mod findings;
mod ledger;
mod verdict;
mod written;

use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};
use std::thread::sleep;
use std::time::Duration;

use tokio::time::Instant;

pub use self::verdict::{Outcome, Verdict};

use self::cut::Lack;
use self::ledger::Ledger;
use self::written::{Letter, Published, digest};
use crate::kafka::{Cluster, KafkaError, Reader, Spans, Stored, Topic};
use crate::memory::{BadMemory, Recall};
use crate::model::{AppId, CLOCK_MARGIN, Clock, Endpoint, PageId, Timestamp};
use crate::records::pages;
use crate::records::pages::BadPageRecord;

/// Why an audit can't look at the topics.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// Kafka can't be read.
    #[error(transparent)]
    Kafka(#[from] KafkaError),
    /// What the publisher remembers of a partition can't be read.
    #[error("read the memory of partition {partition}")]
    Memory {
        /// The partition of the pages topic.
        partition: i32,
        /// Why.
        source: BadMemory,
    },
}

/// Called with a topic and the number of records that are about to be read; what it returns is called
/// after each of them, and dropped after the last.
pub type ProgressSink<'a> = &'a mut dyn FnMut(Topic, u64) -> Box<dyn FnMut()>;

/// How long pages that were forwarded before the audit began may take to be delivered.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(15);

/// Interval between two looks whether they are.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// The age up to which events are looked for by their times.
const OLDEST: Duration = Duration::from_secs(24 * 3_600);

/// How far a partition of the pages topic is delivered.
#[derive(Clone, Copy, Debug, Default)]
struct Position {
    /// The offset of the next page; unknown where the publisher has no memory of the partition.
    offset: Option<i64>,
    /// The page before it.
    last_page: Option<PageId>,
    /// When the newest delivered page was answered.
    answered: Option<Timestamp>,
}

/// Audits what was forwarded since then; blocks.
///
/// # Errors
///
/// A topic can't be read. Nothing is known then.
pub fn audit(
    cluster: &Cluster,
    since: Timestamp,
    progress: ProgressSink<'_>,
) -> Result<Verdict, AuditError> {
    let reader = cluster.reader()?;
    let all = reader.spans(Topic::Pages, None)?;
    let partitions = u32::try_from(all.len()).unwrap_or(u32::MAX);
    let mut ledger = Ledger::new(partitions, since);
    let delivered = positions(&reader, &all)?;
    // A running bridge goes beyond `all` meanwhile, but not beyond this.
    let ends = reader.spans(Topic::Pages, None)?;
    // What a page has brought is written after it was forwarded, by a clock that may go wrong.
    let written = since.before(CLOCK_MARGIN);
    ledger.letters_lack = read(&reader, Topic::DeadLetter, written, progress, |stored| {
        ledger.dead_letter(&letter(stored), stored.header("index"));
    })?;
    ledger.gaps_lack = read(&reader, Topic::Gaps, written, progress, |stored| {
        let number = |name| text(stored.header(name)).parse::<i64>().ok();
        if let (Some(partition), Some(first)) = (number("pages_partition"), number("pages_first")) {
            let partition = i32::try_from(partition).unwrap_or(-1);
            match number("pages_end") {
                Some(end) => ledger.lost_pages(partition, first..end),
                None => ledger.created_again(),
            }
        }
        ledger.gap(&letter(stored), stored.value());
    })?;
    let (pages, waiting) = window(&reader, since, (&all, &ends), &delivered, &mut ledger)?;
    read_spans(&reader, Topic::Pages, &pages, progress, |stored| {
        ledger.offset(stored.partition(), stored.offset());
        match pages::decode(&stored.page_record()) {
            Ok(forwarded) => {
                let position = delivered.get(&stored.partition());
                let last = position.filter(|it| it.offset == Some(stored.offset() + 1));
                let last = last.and_then(|it| it.last_page);
                if last.is_some_and(|last| last != forwarded.entry.id) {
                    ledger.created_again();
                }
                ledger.page(stored.partition(), &forwarded);
            }
            Err(BadPageRecord::Newer(_)) => ledger.newer_page(),
            Err(_) => ledger.unreadable_page(),
        }
    })?;
    for (partition, span) in &pages {
        ledger.ends(*partition, span.end);
    }
    // The time of an event stamps its record, unless it is too old. Events that are older than a day are
    // found only behind younger ones, so that a single one doesn't make the audit read everything.
    let oldest = ledger.oldest().map_or(since, |oldest| oldest.min(since));
    ledger.looked_from = oldest.max(since.before(OLDEST)).before(CLOCK_MARGIN);
    for endpoint in Endpoint::ALL {
        let topic = Topic::of_events(endpoint);
        let TopicContents { spans, mut cut, emptied } = held(&reader, topic, ledger.looked_from)?;
        // A partition without keys that are in use is empty after a while, and tells nothing.
        if emptied.len() == spans.len() {
            cut = emptied;
        }
        cut.iter().for_each(|partition| ledger.is_cut(endpoint, *partition));
        read_spans(&reader, topic, &spans, progress, |stored| {
            ledger.event(&published(endpoint, stored));
        })?;
    }
    Ok(Verdict::new(ledger, Clock::system().now(), waiting))
}

/// Where each partition of the pages topic is delivered to. A running bridge delivers what was
/// forwarded a moment ago: that is waited for.
fn positions(reader: &Reader, all: &Spans) -> Result<BTreeMap<i32, Position>, AuditError> {
    let deadline = Instant::now() + DELIVERY_TIMEOUT;
    let mut positions: BTreeMap<i32, Position> = BTreeMap::new();
    loop {
        let is_behind = |(partition, span): &(&i32, &Range<i64>)| {
            positions.get(*partition).is_none_or(|it| it.offset.unwrap_or(0) < span.end)
        };
        let behind: Vec<i32> =
            all.iter().filter(is_behind).map(|(partition, _)| *partition).collect();
        for partition in &behind {
            positions.insert(*partition, position(reader, *partition)?);
        }
        let wait = behind.iter().any(|it| {
            let end = all.get(it).map_or(0, |span| span.end);
            positions.get(it).is_none_or(|it| it.offset.unwrap_or(0) < end)
        });
        if !wait || Instant::now() > deadline {
            return Ok(positions);
        }
        sleep(LOOK_AGAIN);
    }
}

fn position(reader: &Reader, partition: i32) -> Result<Position, AuditError> {
    let memory = reader.memory(partition, Recall::default())?.finish();
    let memory = memory.map_err(|source| AuditError::Memory { partition, source })?;
    Ok(Position {
        offset: memory.position(),
        last_page: memory.last_page(),
        answered: memory.last_answer(),
    })
}

/// The delivered pages of the window, and how many pages wait behind them.
fn window(
    reader: &Reader,
    since: Timestamp,
    (all, ends): (&Spans, &Spans),
    delivered: &BTreeMap<i32, Position>,
    ledger: &mut Ledger,
) -> Result<(Spans, u64), KafkaError> {
    let mut spans = reader.spans(Topic::Pages, Some(since))?;
    let mut waiting = 0;
    for (partition, span) in &mut spans {
        let position = delivered.get(partition).copied().unwrap_or_default();
        let (Some(all), Some(ends)) = (all.get(partition), ends.get(partition)) else { continue };
        // What is forwarded while the audit runs is the next one's.
        span.end = span.end.min(all.end.max(span.start));
        ledger.begins(*partition, ends, span.start, position.offset, position.answered);
        let end = position.offset.unwrap_or(0).clamp(span.start, span.end);
        waiting += span.end.abs_diff(end);
        span.end = end;
    }
    Ok((spans, waiting))
}

/// What a topic holds since a time.
struct TopicContents {
    spans: Spans,
    /// Partitions that begin with a record of that time: older ones were deleted, and may be of it too.
    cut: Vec<i32>,
    /// Partitions without a record, although there were some. As a rule they were deleted long ago.
    emptied: Vec<i32>,
}

fn held(reader: &Reader, topic: Topic, since: Timestamp) -> Result<TopicContents, KafkaError> {
    // Taken first: what is deleted meanwhile counts.
    let spans = reader.spans(topic, Some(since))?;
    let (mut cut, mut emptied) = (Vec::new(), Vec::new());
    for (partition, whole) in reader.spans(topic, None)? {
        let start = spans.get(&partition).map_or(0, |span| span.start);
        match whole.start > 0 && whole.start >= start {
            true if whole.is_empty() => emptied.push(partition),
            true => cut.push(partition),
            false => {}
        }
    }
    Ok(TopicContents { spans, cut, emptied })
}

/// Reads what a topic holds since a time, and says whether something of it may be deleted.
fn read(
    reader: &Reader,
    topic: Topic,
    since: Timestamp,
    progress: ProgressSink<'_>,
    each: impl FnMut(&Stored<'_>),
) -> Result<Lack, AuditError> {
    let TopicContents { spans, cut, emptied } = held(reader, topic, since)?;
    read_spans(reader, topic, &spans, progress, each)?;
    Ok(match (cut.is_empty(), emptied.is_empty()) {
        (false, _) => Lack::Cut,
        (true, false) => Lack::Emptied,
        (true, true) => Lack::Nothing,
    })
}

fn read_spans(
    reader: &Reader,
    topic: Topic,
    spans: &Spans,
    progress: ProgressSink<'_>,
    mut each: impl FnMut(&Stored<'_>),
) -> Result<(), AuditError> {
    let total = spans.values().map(|span| span.end.abs_diff(span.start)).sum();
    let mut step = progress(topic, total);
    reader.read(topic, spans, |stored| {
        step();
        each(&stored);
        ControlFlow::Continue(())
    })?;
    Ok(())
}

fn letter(stored: &Stored<'_>) -> Letter {
    Letter { app: app(stored.key()), page: text(stored.header("agora_page")).parse().ok() }
}

fn published(endpoint: Endpoint, stored: &Stored<'_>) -> Published {
    // /agora/{app}/rtm/{endpoint}
    let source = text(stored.header("ce_source"));
    let of_app = source.strip_prefix("/agora/").and_then(|rest| rest.rsplit_once("/rtm/"));
    Published {
        endpoint,
        partition: stored.partition(),
        offset: stored.offset(),
        app: of_app.map(|(app, _)| AppId::new(app)),
        id: u128::from_str_radix(text(stored.header("ce_id")), 16).ok().map(u128::to_be_bytes),
        page: text(stored.header("agora_page")).parse().ok(),
        digest: digest(stored.key(), stored.value()),
        is_replayed: stored.header("replayed").is_some(),
    }
}

fn app(key: &[u8]) -> AppId {
    AppId::new(String::from_utf8_lossy(key).into_owned())
}

fn text(header: Option<&[u8]>) -> &str {
    header.and_then(|value| std::str::from_utf8(value).ok()).unwrap_or_default()
}
