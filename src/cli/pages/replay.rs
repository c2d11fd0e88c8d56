//! `pages replay`: publishes the events of selected pages again, after confirmation.
//!
//! The topic is read twice: first to show what would be published, then to publish it. A dedupe
//! window like the bridge's own removes events that occur in more than one of the pages, so that
//! each is published once.

use std::collections::HashMap;
use std::io;
use std::io::{IsTerminal as _, Write as _};
use std::ops::ControlFlow;
use std::time::Duration;

use clap::Args;
use indicatif::HumanCount;
use serde::Serialize;

use super::selection::{FoundEntry, Selection};
use super::{Bridge, Failure};
use crate::agora::{Contents, event};
use crate::kafka::BrokerTime;
use crate::kafka::{Batch, KafkaError, Limits, Reader, Replayer, Topic};
use crate::memory::{Fingerprint, Window};
use crate::model::{AppId, Clock, Content, Endpoint, Page, PageId, Timestamp};
use crate::records::public;
use crate::records::public::Source;

/// Number of regions for whose repeats the dedupe window has room: more than anyone drains.
const REGIONS: usize = 8;

/// Maximum events per transaction, which keeps transactions short.
const EVENTS_A_TRANSACTION: usize = 10_000;

/// Publish the events of selected pages again, after confirmation
///
/// The events keep their key, value and `ce_id`, and get a header `replayed` with the time. An
/// event that occurs in several of the pages is published once. Elements that are not events are
/// skipped. The bridge may keep running; consumers will see the events again.
#[derive(Debug, Args)]
pub(super) struct Replay {
    #[command(flatten)]
    selection: Selection,
    /// Don't ask for confirmation
    #[arg(long)]
    yes: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    bridge: Bridge,
}

/// Counts of what is, or would be, published.
#[derive(Debug, Default, Serialize)]
struct Sum {
    pages: u64,
    user_events: u64,
    channel_events: u64,
    /// Events that also occur in an earlier one of the pages.
    repeats: u64,
    not_events: u64,
    too_large: u64,
}

/// Decodes pages into a batch of records.
struct Decoder<'a> {
    limits: &'a dyn Fn(Topic) -> Limits,
    now: Timestamp,
    /// Minimum time that a window remembers an event.
    hold: Duration,
    windows: HashMap<(AppId, Endpoint), Window>,
    batch: Batch,
    sum: Sum,
}

// === impl Replay ===

impl Replay {
    pub(super) async fn run(self) -> Result<(), Failure> {
        if self.selection.is_everything() {
            let message = "select pages with --app, --endpoint, --page, --since, --from or --to";
            return Err(Failure { message: message.to_owned(), code: 2 });
        }
        let (cluster, hold) = self.bridge.cluster_and_hold()?;
        let failed = |error: KafkaError| Failure::of(&error);
        let reader = cluster.reader().map_err(failed)?;
        // If no bridge has run here, there is nothing to replay, and no topics must be created.
        let (reader, pages) = super::aside(move || {
            let pages = reader.partitions(Topic::Pages);
            (reader, pages)
        })
        .await;
        pages.map_err(failed)?;
        let replayer = cluster.replayer().await.map_err(failed)?;
        let (yes, json) = (self.yes, self.json);
        let selection = self.selection.fixed(Clock::system());
        super::aside(move || {
            let planned = read(&selection, &reader, &replayer, hold, |_| Ok(()))?;
            if planned.events() == 0 {
                return say(&planned, json, "there is nothing to publish");
            }
            eprint!("{}", planned.announcement(&reader));
            if !yes && !asked()? {
                let message = "nothing was published".to_owned();
                return Err(Failure { message, code: 1 });
            }
            replayer.begin().map_err(failed)?;
            let done = read(&selection, &reader, &replayer, hold, |batch| replayer.publish(batch))?;
            say(&done, json, "published again")
        })
        .await
    }
}

/// Reads the pages and publishes their events, batch by batch.
fn read(
    selection: &Selection,
    reader: &Reader,
    replayer: &Replayer,
    hold: Duration,
    mut publish: impl FnMut(&Batch) -> Result<(), KafkaError>,
) -> Result<Sum, Failure> {
    let mut decoder = Decoder {
        limits: &|topic| replayer.limits(topic),
        now: Clock::system().now(),
        hold,
        windows: HashMap::new(),
        batch: Batch::default(),
        sum: Sum::default(),
    };
    let (mut published, mut outcome) = (0, Ok(()));
    let mut hand_over = |batch: &mut Batch| {
        let batch = std::mem::take(batch);
        publish(&batch).map(|()| published += batch.len())
    };
    selection.read(reader, |FoundEntry { entry, .. }| {
        if let Content::Page(page) = &entry.content {
            decoder.take(entry.id, page);
        }
        if decoder.batch.len() >= EVENTS_A_TRANSACTION {
            outcome = hand_over(&mut decoder.batch);
        }
        if outcome.is_err() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    if outcome.is_ok() && !decoder.batch.is_empty() {
        outcome = hand_over(&mut decoder.batch);
    }
    match outcome {
        Ok(()) => Ok(decoder.sum),
        Err(error) => {
            let published = HumanCount(published as u64);
            let message = format!("{error}; {published} events had already been published again");
            Err(Failure { message, code: 1 })
        }
    }
}

/// Asks for confirmation on the terminal.
fn asked() -> Result<bool, Failure> {
    if !io::stdin().is_terminal() {
        let message =
            "nothing was published: stdin is not a terminal; confirm with --yes".to_owned();
        return Err(Failure { message, code: 2 });
    }
    eprint!("Publish them? [y/N] ");
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).map_err(|error| Failure::of(&error))?;
    Ok(["y", "yes"].contains(&answer.trim().to_lowercase().as_str()))
}

fn say(sum: &Sum, json: bool, what: &str) -> Result<(), Failure> {
    let text = if json {
        serde_json::to_string(sum).expect("numbers are JSON")
    } else {
        format!("{what}: {} events of {} pages", HumanCount(sum.events()), HumanCount(sum.pages))
    };
    writeln!(io::stdout(), "{text}").map_err(|error| Failure::of(&error))
}

// === impl Decoder ===

impl Decoder<'_> {
    fn take(&mut self, id: PageId, page: &Page) {
        let feed = &page.feed;
        let source = Source::new(&feed.app, feed.endpoint, id);
        let topic = Topic::of_events(feed.endpoint);
        let limits = (self.limits)(topic);
        let window = self
            .windows
            .entry((feed.app.clone(), feed.endpoint))
            .or_insert_with(|| Window::new(REGIONS, self.hold));
        let now = self.now;
        self.sum.pages += 1;
        for raw in Contents::of(page).split().elements {
            let Ok(event) = event::read(feed.endpoint, raw) else {
                self.sum.not_events += 1;
                continue;
            };
            let fingerprint = Fingerprint::of(&feed.app, feed.endpoint, &event);
            if !window.insert(fingerprint, page.answered_at) {
                self.sum.repeats += 1;
                continue;
            }
            let stamp = limits.stamping.stamp(event.time, BrokerTime { appended: None, now });
            let draft = public::write_event(&mut self.batch, &source, &event, fingerprint, stamp);
            draft.header("replayed", now.to_string().as_bytes());
            if self.batch.last().is_some_and(|record| record.size() > limits.largest_record) {
                self.batch.remove_last();
                self.sum.too_large += 1;
                continue;
            }
            *match feed.endpoint {
                Endpoint::User => &mut self.sum.user_events,
                Endpoint::Channel => &mut self.sum.channel_events,
            } += 1;
        }
    }
}

// === impl Sum ===

impl Sum {
    fn events(&self) -> u64 {
        self.user_events + self.channel_events
    }

    fn announcement(&self, reader: &Reader) -> String {
        let mut text = format!("{} pages contain", HumanCount(self.pages));
        for (count, topic) in
            [(self.user_events, Topic::UserEvents), (self.channel_events, Topic::ChannelEvents)]
        {
            if count > 0 {
                let line = format!("\n  {} events for {}", HumanCount(count), reader.name(topic));
                text.push_str(&line);
            }
        }
        for (count, what) in [
            (self.repeats, "repeats of events in another of these pages: skipped"),
            (self.not_events, "elements that are not events: skipped"),
            (self.too_large, "events too large for their topic: skipped"),
        ] {
            if count > 0 {
                text.push_str(&format!("\n  {} {what}", HumanCount(count)));
            }
        }
        text.push_str(
            "\nConsumers will see them again, with the same ce_id and a header `replayed`.\n",
        );
        text
    }
}
