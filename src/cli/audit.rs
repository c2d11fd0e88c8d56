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
use std::ops::Range;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::Duration;

use clap::Args;
use tokio::time::Instant;

use self::ledger::Ledger;
use self::ledger::Letter;
use self::ledger::Published;
use self::ledger::digest;
use self::verdict::Outcome;
use self::verdict::Verdict;
use super::Failure;
use super::pages::aside;
use super::progress::Progress;
use super::settings;
use crate::error::Chain;
use crate::kafka::Cluster;
use crate::kafka::KafkaError;
use crate::kafka::Reader;
use crate::kafka::Spans;
use crate::kafka::Stored;
use crate::kafka::Topic;
use crate::kafka::pages;
use crate::kafka::pages::BadPageRecord;
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

  0 proved; 1 disproved; 2 wrong usage; 3 not covered: nothing contradicts, but
  something could not be looked at (pages that wait, pages or records that Kafka
  has deleted, or Kafka could not be read); 78 wrong configuration.";

/// Exit code of an audit that found no fault, and could not look at everything.
const NOT_COVERED: u8 = 3;

/// How long pages that were forwarded before the audit began may take to be delivered.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(15);

/// Between two looks whether they are.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

pub(super) async fn run(args: Audit) -> Result<(), Failure> {
    let settings = settings::load(args.config.as_deref())?;
    let cluster = Cluster::new(settings.kafka, &settings.instance);
    let since = Clock::system().now().before(args.since);
    // What could not be read is not disproved.
    let verdict = aside(move || audit(&cluster, since))
        .await
        .map_err(|failure| Failure { code: NOT_COVERED, ..failure })?;
    let text = if args.json { verdict.json() } else { verdict.text() };
    let mut stdout = io::stdout().lock();
    let printed = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    printed.map_err(|error| Failure::of(&error))?;
    let code = match verdict.outcome() {
        Outcome::Proved => return Ok(()),
        Outcome::Disproved => 1,
        Outcome::NotCovered => NOT_COVERED,
    };
    Err(Failure { message: verdict.outcome().name().replace('_', " "), code })
}

fn audit(cluster: &Cluster, since: Timestamp) -> Result<Verdict, Failure> {
    let failed = |error: KafkaError| Failure::of(&error);
    let reader = cluster.reader().map_err(failed)?;
    let all = reader.spans(Topic::Pages, None).map_err(failed)?;
    let partitions = u32::try_from(all.len()).unwrap_or(u32::MAX);
    let mut ledger = Ledger::new(partitions, since);
    let delivered = positions(&reader, &all)?;
    // What a page has brought is written after it was forwarded, by a clock that may go wrong.
    let written = Some(since.before(CLOCK_MARGIN));
    read(&reader, Topic::DeadLetter, written, |stored| {
        ledger.dead_letter(&letter(stored), stored.header("index"));
    })?;
    read(&reader, Topic::Gaps, written, |stored| {
        let number = |name| text(stored.header(name)).parse::<i64>().ok();
        if let (Some(partition), Some(first), Some(end)) =
            (number("pages_partition"), number("pages_first"), number("pages_end"))
        {
            ledger.lost_pages(i32::try_from(partition).unwrap_or(-1), first..end);
        }
        ledger.gap(&letter(stored), stored.value());
    })?;
    let (pages, waiting) = window(&reader, since, &all, &delivered, &mut ledger).map_err(failed)?;
    read_spans(&reader, Topic::Pages, &pages, |stored| {
        ledger.offset(stored.partition(), stored.offset());
        match pages::decode(&stored.page_record()) {
            Ok(forwarded) => ledger.page(stored.partition(), &forwarded),
            Err(BadPageRecord::Newer(_)) => ledger.newer_page(),
            Err(_) => ledger.unreadable_page(),
        }
    })?;
    for (partition, span) in &pages {
        ledger.ends(*partition, span.end);
    }
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

/// Where each partition of the pages topic is delivered to. A running bridge delivers what was
/// forwarded a moment ago: that is waited for.
fn positions(reader: &Reader, all: &Spans) -> Result<BTreeMap<i32, i64>, Failure> {
    let deadline = Instant::now() + DELIVERY_TIMEOUT;
    let mut positions = BTreeMap::new();
    loop {
        let is_behind = |(partition, span): &(&i32, &Range<i64>)| {
            positions.get(*partition).is_none_or(|position| *position < span.end)
        };
        let behind: Vec<i32> =
            all.iter().filter(is_behind).map(|(partition, _)| *partition).collect();
        for partition in &behind {
            positions.insert(*partition, position(reader, *partition)?);
        }
        let wait = behind.iter().any(|it| {
            let end = all.get(it).map_or(0, |span| span.end);
            positions.get(it).is_none_or(|position| *position < end)
        });
        if !wait || Instant::now() > deadline {
            return Ok(positions);
        }
        sleep(LOOK_AGAIN);
    }
}

fn position(reader: &Reader, partition: i32) -> Result<i64, Failure> {
    let recall = reader.memory(partition).map_err(|error| Failure::of(&error))?;
    let memory = recall.finish().map_err(|error| {
        let message = format!("read the memory of partition {partition}: {}", Chain(&error));
        Failure { message, code: NOT_COVERED }
    })?;
    Ok(memory.position().unwrap_or(0))
}

/// The delivered pages of the window, and how many pages wait behind them.
fn window(
    reader: &Reader,
    since: Timestamp,
    all: &Spans,
    delivered: &BTreeMap<i32, i64>,
    ledger: &mut Ledger,
) -> Result<(Spans, u64), KafkaError> {
    let mut spans = reader.spans(Topic::Pages, Some(since))?;
    let mut waiting = 0;
    for (partition, span) in &mut spans {
        let position = delivered.get(partition).copied().unwrap_or(0);
        let Some(all) = all.get(partition) else { continue };
        // What is forwarded while the audit runs is the next one's.
        span.end = span.end.min(all.end.max(span.start));
        ledger.begins(*partition, all, span.start, position);
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
