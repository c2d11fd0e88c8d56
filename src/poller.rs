//! The drain loop: reserve, request, commit.
//!
//! One task per App ID asks its [`Schedule`](crate::schedule::Schedule) what to do ([`app`]); one
//! short task per request sees it through to its end ([`request`]). Once sent, a request is never
//! cancelled, neither by a stop nor by an error elsewhere. It ends with an answer, a connection
//! error, or silence, and then its ticket is settled in the journal. Only after that is the page
//! looked into, and only to count its events and read their times.
//!
//! Requests to one feed may overlap; [`order`] puts their pages in the order in which Agora handed
//! them over before they become readable.

mod access;
mod app;
mod clocks;
mod gate;
mod metrics;
mod order;
mod request;
mod tokens;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use self::clocks::Clocks;
pub use self::metrics::PollerMetrics;
pub use self::tokens::Tokens;

use self::app::App;
use crate::agora::{Contents, Credentials, Transport};
use crate::journal::{Held, Journal};
use crate::model::{AppId, Clock, Feed, Pace, Page, Timestamp};
use crate::observe::accounts::Accounts;
use crate::observe::health::Health;
use crate::schedule::{Decision, FeedFacts, Former, Limits};

/// Drains the feeds of one App ID.
#[derive(Debug)]
pub struct Poller<T> {
    /// The App ID.
    pub app: AppId,
    /// Its feeds.
    pub feeds: Vec<Target>,
    /// The partition of the pages topic that the app belongs to.
    pub partition: i32,
    /// How its requests authenticate.
    pub credentials: Credentials,
    /// The limits that the operator configured.
    pub limits: Limits,
    /// Requests of a previous process that still count against the limit.
    pub former: Former,
    /// Pages of its feeds that a previous process left held.
    pub held: Vec<(Held, Page)>,
    /// Seed for jitter.
    pub seed: u64,
    /// Shared resources.
    pub tools: Tools<T>,
}

/// Resources that all pollers share. Cheap to clone.
#[derive(Debug)]
pub struct Tools<T> {
    /// Sends requests to Agora.
    pub transport: Arc<T>,
    /// Where pages become durable.
    pub journal: Journal,
    /// The wall clock.
    pub clock: Clock,
    /// Counts what happened to the events.
    pub accounts: Accounts,
    /// Reports conditions to `/ready`.
    pub health: Health,
    /// Counters.
    pub metrics: PollerMetrics,
    /// Tracks requests, so that the stop waits for them.
    pub tracker: TaskTracker,
}

/// A feed and the URLs to poll it at.
#[derive(Clone, Debug)]
pub struct Target {
    /// The feed.
    pub feed: Feed,
    /// Index of its region in the app's configuration.
    pub region: usize,
    /// One URL per host, in failover order.
    pub urls: Vec<String>,
    /// When the feed was last known to be empty.
    pub empty_at: Option<Timestamp>,
    /// The pace that a previous process recorded, and how long ago.
    pub pace: Option<(Pace, Duration)>,
}

/// Puts pages that a previous process left held in order and releases them. Must be called for
/// every feed in the journal, polled or not: nothing else releases them.
pub async fn release_held(journal: &Journal, held: Vec<(Held, Page)>) {
    let mut feeds: Vec<(Feed, Vec<_>)> = Vec::new();
    for (held, page) in held {
        let times = Contents::of(&page).glance().times;
        let page_of_feed = (held.id(), times, held);
        match feeds.iter_mut().find(|(feed, _)| *feed == page.feed) {
            Some((_, pages)) => pages.push(page_of_feed),
            None => feeds.push((page.feed, vec![page_of_feed])),
        }
    }
    for (_, pages) in feeds {
        journal.release(order::recovered(pages)).await;
    }
}

// === impl Poller ===

impl<T: Transport> Poller<T> {
    /// Drains until `stop`, then waits until every request in flight has ended and no page is held
    /// any longer.
    pub async fn run(mut self, stop: CancellationToken) {
        release_held(&self.tools.journal, std::mem::take(&mut self.held)).await;
        let most = usize::try_from(self.limits.requests_per_second.get()).unwrap_or(usize::MAX);
        // Each request sends two messages: one for the head of the answer, one for its end.
        let (sender, mut news) = mpsc::channel(2 * most);
        let mut app = App::begin(self);
        loop {
            let stopping = stop.is_cancelled();
            if stopping && app.is_at_rest() {
                return app.end().await;
            }
            let asks = match app.decide(Instant::now()) {
                _ if stopping => None,
                Decision::WaitForAnswer => None,
                Decision::Wait(until) => Some(until),
                Decision::Ask { feed, host } => {
                    app.ask(feed, host, &sender).await;
                    continue;
                }
            };
            let until = asks.into_iter().chain(app.looks_at()).chain(app.overdue()).min();
            tokio::select! {
                biased;
                Some(news) = news.recv(), if app.is_asking() => app.learn(news).await,
                () = stop.cancelled(), if !stopping => {}
                () = sleep_until(until.unwrap_or_else(Instant::now)), if until.is_some() => {
                    app.give_up_waiting(Instant::now()).await;
                }
            }
        }
    }
}

// === impl Target ===

impl Target {
    fn facts(&self) -> FeedFacts {
        FeedFacts { region: self.region, hosts: self.urls.len(), known: self.pace }
    }
}

// === impl Tools ===

impl<T> Clone for Tools<T> {
    fn clone(&self) -> Self {
        Self {
            transport: Arc::clone(&self.transport),
            journal: self.journal.clone(),
            clock: self.clock,
            accounts: self.accounts.clone(),
            health: self.health.clone(),
            metrics: self.metrics.clone(),
            tracker: self.tracker.clone(),
        }
    }
}
