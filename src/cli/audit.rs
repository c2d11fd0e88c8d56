//! `audit`: proves from the topics alone that what was drained was delivered exactly once.
//!
//! The pages topic holds what Agora answered; the audit decodes it anew and holds the other topics
//! to it. How far each partition is delivered stands in the publisher's memory: that is read first,
//! and the ends of the other topics after it, so that whatever a page before that position has
//! brought can be read. What the ledger proves, and what it can't, is told in [`ledger`].

mod ledger;
mod verdict;

use std::collections::BTreeMap;
use std::io;
use std::io::Write as _;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use self::ledger::Ledger;
use self::ledger::Letter;
use self::ledger::Published;
use self::verdict::Verdict;
use super::Failure;
use super::pages::aside;
use super::progress::Progress;
use super::run;
use crate::error::Chain;
use crate::kafka::Cluster;
use crate::kafka::KafkaError;
use crate::kafka::Reader;
use crate::kafka::Spans;
use crate::kafka::Stored;
use crate::kafka::Topic;
use crate::kafka::pages;
use crate::model::AppId;
use crate::model::CLOCK_MARGIN;
use crate::model::Clock;
use crate::model::Endpoint;
use crate::model::Timestamp;

/// Prove from the topics that everything was delivered exactly once, and in order
#[derive(Debug, Args)]
#[command(after_long_help = TEACH)]
pub(super) struct Audit {
    /// What was forwarded in so long a time until now, as in 10m, 1h, 2h 30m
    #[arg(long, value_name = "TIME", default_value = "1h")]
    #[arg(value_parser = humantime::parse_duration)]
    since: Duration,
    /// The verdict as JSON
    #[arg(long)]
    json: bool,
    /// The configuration of the bridge; the environment counts too
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

const TEACH: &str = "\
WHAT IS PROVED

  The pages of the window (by when they were forwarded, up to the last that is
  delivered) are decoded anew, and the other topics are held to them, as a
  read_committed consumer sees them:

  * Each event is in its topic once: nothing missing, nothing twice (by ce_id),
    and nothing that its page does not hold.
  * In a partition of its topic the events of an App ID, and so those of each
    key, stand in the order of their pages and of their places in them; and
    pages of a feed stand in the order of asking where one was answered before
    the other was asked for.
  * Each element that is no event is in the dead-letter topic once, and each
    known gap in the gaps topic.

  So received = delivered + repeats + dead letters + set aside, for each App ID
  and endpoint. Gaps are told and are no fault: they say what Agora may have
  dropped before anybody had it. What `pages replay` published is counted apart.

WHAT IS NOT

  A repeat of an event of before the window is found in its topic, however old,
  as long as the topic still holds it; else it is counted as not provable. An
  App ID that another bridge publishes with another group can't be told apart.
  With kafka.delivery = \"at-least-once\" events may be there twice after a
  crash, and the audit says so.

  The audit only reads; a bridge may run beside it. It needs up to 120 bytes of
  memory for each event that it reads, and less than 100 MB beside.

EXAMPLES

  agora-rtm-bridge audit --config bridge.toml
  agora-rtm-bridge audit --config bridge.toml --since 24h --json | jq .faults

EXIT CODES

  0 proved; 1 not proved, or Kafka could not be read; 2 wrong usage;
  78 wrong configuration.";

pub(super) async fn run(args: Audit) -> Result<(), Failure> {
    let settings = run::load(args.config.as_deref())?;
    let cluster = Cluster::new(settings.kafka, &settings.instance);
    let since = Clock::system().now().before(args.since);
    let verdict = aside(move || audit(&cluster, since)).await?;
    let text = if args.json { verdict.json() } else { verdict.text() };
    let mut stdout = io::stdout().lock();
    let printed = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    printed.map_err(|error| Failure::of(&error))?;
    match verdict.is_proved() {
        true => Ok(()),
        false => Err(Failure { message: "not proved".to_owned(), code: 1 }),
    }
}

fn audit(cluster: &Cluster, since: Timestamp) -> Result<Verdict, Failure> {
    let failed = |error: KafkaError| Failure::of(&error);
    let reader = cluster.reader().map_err(failed)?;
    let delivered = positions(&reader)?;
    let (pages, waiting) = window(&reader, since, &delivered).map_err(failed)?;
    let partitions = u32::try_from(pages.len()).unwrap_or(u32::MAX);
    let mut ledger = Ledger::new(partitions, since);
    // What a page has brought is written after it was forwarded, by a clock that may go wrong.
    let written = Some(since.before(CLOCK_MARGIN));
    read(&reader, Topic::DeadLetter, written, |stored| {
        ledger.dead_letter(&letter(stored), stored.header("index"));
    })?;
    read(&reader, Topic::Gaps, written, |stored| {
        ledger.gap(&letter(stored), stored.value());
    })?;
    read_spans(&reader, Topic::Pages, &pages, |stored| {
        match pages::decode(&stored.page_record()) {
            Ok(forwarded) => ledger.page(stored.partition(), &forwarded),
            Err(_) => ledger.unreadable_page(),
        }
    })?;
    // By the time of the oldest event: that is what stamps its record, unless it is too old.
    let oldest = ledger.oldest().map_or(since, |oldest| oldest.min(since));
    for endpoint in Endpoint::ALL {
        let topic = Topic::of_events(endpoint);
        let mut begun = begins_later(&reader, topic).map_err(failed)?;
        read(&reader, topic, Some(oldest.before(CLOCK_MARGIN)), |stored| {
            if let Some(begin) = begun.remove(&stored.partition())
                && begin == stored.offset()
            {
                ledger.topic_begins(endpoint, stored.stamped());
            }
            ledger.event(&published(endpoint, stored));
        })?;
    }
    Ok(Verdict::new(ledger, Clock::system().now(), waiting))
}

/// Where each partition of the pages topic is delivered to.
fn positions(reader: &Reader) -> Result<BTreeMap<i32, i64>, Failure> {
    let partitions = reader.partitions(Topic::State).map_err(|error| Failure::of(&error))?;
    let mut positions = BTreeMap::new();
    for partition in 0..i32::try_from(partitions).unwrap_or(i32::MAX) {
        let recall = reader.memory(partition).map_err(|error| Failure::of(&error))?;
        let memory = recall.finish().map_err(|error| {
            let message = format!("read the memory of partition {partition}: {}", Chain(&error));
            Failure { message, code: 1 }
        })?;
        positions.insert(partition, memory.position().unwrap_or(0));
    }
    Ok(positions)
}

/// The delivered pages of the window, and how many pages wait behind them.
fn window(
    reader: &Reader,
    since: Timestamp,
    delivered: &BTreeMap<i32, i64>,
) -> Result<(Spans, u64), KafkaError> {
    let mut spans = reader.spans(Topic::Pages, Some(since))?;
    let mut waiting = 0;
    for (partition, span) in &mut spans {
        let position = delivered.get(partition).copied().unwrap_or(0);
        let end = position.clamp(span.start, span.end);
        waiting += span.end.abs_diff(end);
        span.end = end;
    }
    Ok((spans, waiting))
}

/// The partitions of a topic from which Kafka has deleted something, with their first offsets.
fn begins_later(reader: &Reader, topic: Topic) -> Result<BTreeMap<i32, i64>, KafkaError> {
    let all = reader.spans(topic, None)?;
    Ok(all.into_iter().map(|(it, span)| (it, span.start)).filter(|(_, it)| *it > 0).collect())
}

fn read(
    reader: &Reader,
    topic: Topic,
    since: Option<Timestamp>,
    each: impl FnMut(&Stored<'_>),
) -> Result<(), Failure> {
    let spans = reader.spans(topic, since).map_err(|error| Failure::of(&error))?;
    read_spans(reader, topic, &spans, each)
}

fn read_spans(
    reader: &Reader,
    topic: Topic,
    spans: &Spans,
    mut each: impl FnMut(&Stored<'_>),
) -> Result<(), Failure> {
    let total = spans.values().map(|span| span.end.abs_diff(span.start)).sum();
    let mut progress = Progress::begin(topic_name(topic), total);
    let read = reader.read(topic, spans, |stored| {
        progress.step();
        each(&stored);
        ControlFlow::Continue(())
    });
    drop(progress);
    read.map_err(|error| Failure::of(&error))
}

fn topic_name(topic: Topic) -> &'static str {
    match topic {
        Topic::UserEvents => "user events",
        Topic::ChannelEvents => "channel events",
        Topic::DeadLetter => "dead letters",
        Topic::Gaps => "gaps",
        Topic::Pages => "pages",
        Topic::State => "the memory",
    }
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
        is_replayed: stored.header("replayed").is_some(),
    }
}

fn app(key: &[u8]) -> AppId {
    AppId::new(String::from_utf8_lossy(key).into_owned())
}

fn text(header: Option<&[u8]>) -> &str {
    header.and_then(|value| std::str::from_utf8(value).ok()).unwrap_or_default()
}
