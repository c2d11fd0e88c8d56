//! The loop that drains: reserve, ask, commit.
//!
//! One task for each App ID asks its [`Schedule`](crate::schedule::Schedule) what to do
//! ([`app`]); one short task for each request takes it to its end ([`request`]). A request that was
//! sent is never cancelled: not by the stop, not by an error beside it. It ends by an answer, an
//! error of the connection, or silence, and then its ticket is settled in the journal. Only after
//! that does anybody look into the page, and only to count and for its times.
//!
//! Requests to one feed may overlap; [`order`] puts their pages in the order in which Agora handed
//! them over, before anybody can read them.

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
use tokio::time::Instant;
use tokio::time::sleep_until;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use self::clocks::Clocks;
pub use self::metrics::PollerMetrics;
pub use self::tokens::Tokens;

use self::app::App;
use crate::agora::Contents;
use crate::agora::Credentials;
use crate::agora::Transport;
use crate::journal::Held;
use crate::journal::Journal;
use crate::model::AppId;
use crate::model::Clock;
use crate::model::Feed;
use crate::model::Pace;
use crate::model::Page;
use crate::model::Timestamp;
use crate::observe::accounts::Accounts;
use crate::observe::health::Health;
use crate::schedule::Decision;
use crate::schedule::FeedFacts;
use crate::schedule::Former;
use crate::schedule::Limits;

/// Drains the feeds of one App ID.
#[derive(Debug)]
pub struct Poller<T> {
    /// The App ID.
    pub app: AppId,
    /// Its feeds.
    pub feeds: Vec<Target>,
    /// The partition of the pages topic that the app belongs to.
    pub partition: i32,
    /// How its requests prove who asks.
    pub credentials: Credentials,
    /// What the operator decided.
    pub limits: Limits,
    /// Requests of a former process that still count.
    pub former: Former,
    /// Pages of its feeds that a former process held back.
    pub held: Vec<(Held, Page)>,
    /// For jitter.
    pub seed: u64,
    /// What it works with.
    pub tools: Tools<T>,
}

/// What every poller works with. Cheap to clone.
#[derive(Debug)]
pub struct Tools<T> {
    /// The way to Agora.
    pub transport: Arc<T>,
    /// Where pages become durable.
    pub journal: Journal,
    /// The wall clock.
    pub clock: Clock,
    /// What became of the events.
    pub accounts: Accounts,
    /// Whether all is well.
    pub health: Health,
    /// Counters.
    pub metrics: PollerMetrics,
    /// Where requests run, so that the stop waits for them.
    pub tracker: TaskTracker,
}

/// A feed and where to ask for it.
#[derive(Clone, Debug)]
pub struct Target {
    /// The feed.
    pub feed: Feed,
    /// The place of its region in the app's configuration.
    pub region: usize,
    /// A URL for each host, in the order of failover.
    pub urls: Vec<String>,
    /// When the feed was last known to hold nothing.
    pub empty_at: Option<Timestamp>,
    /// What a former process knew of its pace, and how long ago.
    pub pace: Option<(Pace, Duration)>,
}

/// Puts pages that a former process held back in order, and lets them be read. It has to be done for
/// every feed that the journal knows, polled or not: nobody else will.
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
    /// Drains until `stop`, and then until every request that is out has its end and no page is held
    /// back any more.
    pub async fn run(mut self, stop: CancellationToken) {
        release_held(&self.tools.journal, std::mem::take(&mut self.held)).await;
        let most = usize::try_from(self.limits.requests_per_second.get()).unwrap_or(usize::MAX);
        // Each request tells of its head and of its end.
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
