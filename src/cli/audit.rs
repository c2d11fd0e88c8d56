//! `audit`: proves from the topics that what was drained was delivered exactly once.

use std::io;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::pages::aside;
use super::progress::Progress;
use super::{Failure, settings};
use crate::audit;
use crate::audit::Outcome;
use crate::kafka::{Cluster, Topic};
use crate::model::Clock;

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

  * Whether an event repeats one of before the window, if its topic doesn't hold
    that any more, or if it is older than a day: that counts as not provable.
  * The order of pages that the pages topic refused for a while, or that an
    earlier process left behind.
  * Whether anything of a window without pages is missing. Nothing is disproved.
  * Events of an App ID that another bridge publishes with another group: they
    can't be told apart.
  * With kafka.delivery = \"at-least-once\" events may be there twice after a
    crash, and the audit says so.

  An event, dead-letter or gaps topic that was deleted and created again counts as
  missing everything from before.

  The audit only reads; a bridge may run at the same time. It needs up to 120
  bytes of memory for each event that it reads, and less than 100 MB more.

EXAMPLES

  agora-rtm-bridge audit --config bridge.toml
  agora-rtm-bridge audit --config bridge.toml --since 24h --json | jq .faults

EXIT CODES

  0 proved; 1 disproved; 2 wrong usage; 3 not covered: nothing contradicts, but
  something could not be looked at (pages that wait, pages or records that were
  deleted or can't be read, or Kafka could not be read); 78 wrong configuration.";

/// Exit code of an audit that found no fault, and could not look at everything.
const NOT_COVERED: u8 = 3;

pub(super) async fn run(args: Audit) -> Result<(), Failure> {
    let settings = settings::load(args.config.as_deref())?;
    let cluster = Cluster::new(settings.kafka, &settings.instance);
    let since = Clock::system().now().before(args.since);
    // What could not be read is not disproved.
    let verdict = aside(move || audit::audit(&cluster, since, &mut progress))
        .await
        .map_err(|error| Failure { code: NOT_COVERED, ..Failure::of(&error) })?;
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

/// A bar for the records of a topic.
fn progress(topic: Topic, records: u64) -> Box<dyn FnMut()> {
    let mut progress = Progress::begin(topic_name(topic), records);
    Box::new(move || progress.step())
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
