//! The loop that drains: reserve, ask, commit.
//!
//! One task for each App ID asks its [`Schedule`] what to do; one short task for each request takes
//! it to its end. A request that was sent is never cancelled: not by the stop, not by an error
//! beside it. It ends by an answer, an error of the connection, or silence, and then its ticket is
//! settled in the journal. Only after that does anybody look into the page, and only to count.

mod gate;
mod metrics;
#[cfg_attr(not(test), expect(dead_code, reason = "the loop asks one request at a time so far"))]
mod order;

use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio::time::sleep_until;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::debug;
use tracing::error;

pub use self::metrics::PollerMetrics;

use self::gate::Gate;
use crate::agora;
use crate::agora::Answer;
use crate::agora::Credentials;
use crate::agora::Glance;
use crate::agora::NoCredentials;
use crate::agora::Request;
use crate::agora::Shape;
use crate::agora::Transport;
use crate::agora::answer::Trouble;
use crate::error::Chain;
use crate::journal::Journal;
use crate::journal::JournalError;
use crate::journal::Reservation;
use crate::journal::Settlement;
use crate::model::CLOCK_MARGIN;
use crate::model::Clock;
use crate::model::Feed;
use crate::model::Gap;
use crate::model::GapCause;
use crate::model::PAGE_LIMIT;
use crate::model::Page;
use crate::model::Timestamp;
use crate::observe::accounts::Accounts;
use crate::observe::accounts::Column;
use crate::observe::health::Condition;
use crate::observe::health::Health;
use crate::schedule::Decision;
use crate::schedule::Former;
use crate::schedule::Limits;
use crate::schedule::Outcome;
use crate::schedule::Schedule;

/// How long a feed waits for the journal to have room again.
const WAIT_FOR_JOURNAL: Duration = Duration::from_secs(1);

/// Failures in a row that make a feed a reason not to be ready.
const FAILURES_TO_TELL: u32 = 2;

/// Drains the feeds of one App ID.
#[derive(Debug)]
pub struct Poller<T> {
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
    /// A URL for each host, in the order of failover.
    pub urls: Vec<String>,
    /// When the feed was last known to hold nothing.
    pub empty_at: Option<Timestamp>,
}

/// An App ID while it is being drained.
struct App<T> {
    states: Vec<State>,
    partition: i32,
    credentials: Credentials,
    schedule: Schedule,
    gate: Gate,
    journal_condition: Condition,
    /// Requests that have no end yet.
    out: usize,
    tools: Tools<T>,
}

/// What the loop remembers of a feed beside the schedule.
#[derive(Debug)]
struct State {
    target: Target,
    failures: u32,
    condition: Condition,
}

/// A request that has come to its end.
#[derive(Debug)]
struct Done {
    index: usize,
    outcome: Outcome,
    /// The answer proves that the feed was empty when it was asked.
    emptied_at: Option<Timestamp>,
    trouble: Option<String>,
    stored: Result<(), JournalError>,
}

// === impl Poller ===

impl<T: Transport> Poller<T> {
    /// Drains until `stop`, and then until every request that is out has its end.
    pub async fn run(self, stop: CancellationToken) {
        let mut app = self.begin();
        let (sender, mut done) = mpsc::channel(app.states.len().max(1));
        loop {
            let stopping = stop.is_cancelled();
            if stopping && app.out == 0 {
                return;
            }
            let until = match app.schedule.next(Instant::now()) {
                _ if stopping => None,
                Decision::WaitForAnswer => None,
                Decision::Wait(until) => Some(until),
                Decision::Ask { feed, host } => {
                    app.ask(feed, host, &sender).await;
                    continue;
                }
            };
            tokio::select! {
                biased;
                Some(done) = done.recv(), if app.out > 0 => app.learn(done),
                () = stop.cancelled(), if !stopping => {}
                () = sleep_until(until.unwrap_or_else(Instant::now)), if until.is_some() => {}
            }
        }
    }

    fn begin(self) -> App<T> {
        let hosts: Vec<usize> = self.feeds.iter().map(|target| target.urls.len()).collect();
        let state = |target: Target| State {
            condition: self.tools.health.condition("agora", target.feed.to_string()),
            target,
            failures: 0,
        };
        App {
            states: self.feeds.into_iter().map(state).collect(),
            partition: self.partition,
            credentials: self.credentials,
            schedule: Schedule::new(self.limits, &hosts, Instant::now(), self.former, self.seed),
            gate: Gate::new(self.limits.requests_per_second),
            journal_condition: self.tools.health.condition("journal", ""),
            out: 0,
            tools: self.tools,
        }
    }
}

// === impl App ===

impl<T: Transport> App<T> {
    /// Sends a request to a feed, or postpones it where that is not possible.
    async fn ask(&mut self, feed: usize, host: usize, sender: &mpsc::Sender<Done>) {
        let state = self.states.get(feed).expect("the schedule knows our feeds");
        let prepared =
            self.tools.prepare(&self.credentials, &state.target, host, self.partition).await;
        let (request, reservation) = match prepared {
            Ok(prepared) => prepared,
            Err(error) => {
                error.condition(state, &self.journal_condition).failing(Chain(&error));
                self.schedule.postponed(feed, Instant::now() + WAIT_FOR_JOURNAL);
                return;
            }
        };
        if !self.gate.opens() {
            self.tools.metrics.gate_refusals.inc();
            error!(feed = %state.target.feed, "a request was held back by the last gate: a defect");
            drop(reservation.settle(Settlement::Nothing).await);
            self.schedule.postponed(feed, Instant::now() + WAIT_FOR_JOURNAL);
            return;
        }
        self.schedule.asked(feed, Instant::now());
        self.out += 1;
        let tools = self.tools.clone();
        let task = tools.request(feed, state.target.clone(), request, reservation);
        let sender = sender.clone();
        self.tools.tracker.spawn(async move {
            sender.send(task.await).await.expect("the loop outlives its requests");
        });
    }

    /// Takes in how a request ended.
    fn learn(&mut self, done: Done) {
        self.out -= 1;
        self.schedule.answered(done.index, Instant::now(), done.outcome);
        match &done.stored {
            Ok(()) => self.journal_condition.ok(),
            Err(error) => self.journal_condition.failing(Chain(error)),
        }
        self.states.get_mut(done.index).expect("the schedule knows our feeds").learn(done);
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

/// Why a request can't leave.
#[derive(Debug, thiserror::Error)]
enum NotAsked {
    #[error("reserve room for an answer")]
    Journal(#[from] JournalError),
    #[error(transparent)]
    Credentials(#[from] NoCredentials),
}

// === impl NotAsked ===

impl NotAsked {
    fn condition<'a>(&self, state: &'a State, journal: &'a Condition) -> &'a Condition {
        match self {
            Self::Journal(_) => journal,
            Self::Credentials(_) => &state.condition,
        }
    }
}

impl<T: Transport> Tools<T> {
    async fn prepare(
        &self,
        credentials: &Credentials,
        target: &Target,
        host: usize,
        partition: i32,
    ) -> Result<(Request, Reservation), NotAsked> {
        let proof = credentials.headers()?;
        let url = target.urls.get(host).expect("the schedule knows our hosts").clone();
        let now = self.clock.now();
        let reservation =
            self.journal.reserve(&target.feed, partition, target.empty_at, now).await?;
        Ok((Request { url, proof }, reservation))
    }

    /// Takes a request to its end. From the answer on a page is in our hands and nowhere else: no
    /// select and no timeout around it.
    async fn request(
        self,
        index: usize,
        target: Target,
        request: Request,
        reservation: Reservation,
    ) -> Done {
        let feed = &target.feed;
        let ticket = reservation.ticket();
        let asked_at = self.clock.now();
        let sent = Instant::now();
        let reply = self.transport.ask(request).await;
        let answered_at = self.clock.now();
        self.metrics.request_duration.observe(sent.elapsed().as_secs_f64());
        let answer = agora::judge(reply, system_time(answered_at));
        self.metrics.answer(feed, &answer);
        let mut done = Done::new(index);
        match answer {
            Answer::Page { status, wholeness, body, request_id, resource_id, trouble } => {
                let page = Page {
                    feed: feed.clone(),
                    since: target.empty_at,
                    asked_at,
                    answered_at,
                    status,
                    wholeness,
                    request_id,
                    resource_id,
                    body,
                };
                self.commit(page, reservation, &mut done).await;
                done.fail_with(trouble);
            }
            Answer::Empty => {
                done.stored = reservation.settle(Settlement::Nothing).await;
                done.outcome = Outcome::Events(0);
                done.emptied_at = Some(asked_at);
            }
            Answer::Nothing(trouble) => {
                done.stored = reservation.settle(Settlement::Nothing).await;
                done.fail_with(Some(trouble));
            }
            Answer::Lost(error) => {
                error!(%feed, %ticket, %error, "answer lost; a page may be gone");
                let gap = Gap {
                    feed: feed.clone(),
                    cause: GapCause::AnswerLost,
                    from: target.empty_at,
                    to: answered_at.after(CLOCK_MARGIN),
                    at_least: 0,
                    at_most: Some(PAGE_LIMIT),
                };
                done.stored = reservation.settle(Settlement::Gap(gap)).await;
                done.trouble = Some(format!("answer lost: {error}"));
            }
        }
        if let Some(trouble) = &done.trouble {
            debug!(%feed, %ticket, trouble, "request failed");
        }
        done
    }

    /// Makes a page durable, and only then looks at it.
    async fn commit(&self, page: Page, reservation: Reservation, done: &mut Done) {
        let ticket = reservation.ticket();
        let (feed, body) = (page.feed.clone(), page.body.clone());
        let (status, wholeness, asked_at) = (page.status, page.wholeness, page.asked_at);
        done.stored = reservation.settle(Settlement::Page(page)).await;
        if done.stored.is_ok() {
            self.metrics.pages_committed.inc();
        }
        let Glance { received, shape, .. } = agora::glance(&body, wholeness);
        self.accounts.open(&feed.app, feed.endpoint).add(Column::Received, received);
        debug!(%feed, %ticket, received, status, ?shape, "page committed");
        match shape {
            Shape::Sound => done.outcome = Outcome::Events(received),
            // What broke off may have been a full page.
            Shape::Torn => done.outcome = Outcome::Events(PAGE_LIMIT),
            Shape::Alien => {
                done.trouble = Some("the answer is not what Agora sends".to_owned());
            }
        }
        // An error status says nothing about what the feed still holds.
        let emptied =
            shape == Shape::Sound && (200..=299).contains(&status) && received < PAGE_LIMIT;
        done.emptied_at = emptied.then_some(asked_at);
    }
}

// === impl Done ===

impl Done {
    /// A request that failed, unless something better is known of it.
    fn new(index: usize) -> Self {
        Self { index, outcome: Outcome::Failed, emptied_at: None, trouble: None, stored: Ok(()) }
    }

    fn fail_with(&mut self, trouble: Option<Trouble>) {
        let Some(trouble) = trouble else { return };
        let (outcome, text) = match trouble {
            Trouble::NotSent(error) => (Outcome::Failed, format!("not reached: {error}")),
            Trouble::Throttled { retry_after } => {
                (Outcome::Throttled { retry_after }, "too many requests (429)".to_owned())
            }
            Trouble::Failed(said) => (Outcome::Failed, said.to_string()),
            Trouble::Refused(said) => {
                (Outcome::Refused, format!("{said}: {}", remedy(said.status)))
            }
        };
        self.outcome = outcome;
        self.trouble = Some(text);
    }
}

/// What a refusal means at Agora, and what to do.
fn remedy(status: u16) -> &'static str {
    match status {
        401 => "check the credentials of the app (apps.auth)",
        403 => "enable Signaling (RTM) for the App ID in Agora's console",
        404 => "check the hosts and the path of the endpoint",
        _ => "check the App ID (apps.app_id)",
    }
}

// === impl State ===

impl State {
    fn learn(&mut self, done: Done) {
        if let Some(emptied_at) = done.emptied_at {
            self.target.empty_at = Some(emptied_at.before(CLOCK_MARGIN));
        }
        let Some(trouble) = done.trouble else {
            self.failures = 0;
            self.condition.ok();
            return;
        };
        self.failures += 1;
        if self.failures >= FAILURES_TO_TELL || done.outcome == Outcome::Refused {
            self.condition.failing(trouble);
        }
    }
}

/// The wall clock for `Retry-After`.
fn system_time(moment: Timestamp) -> SystemTime {
    UNIX_EPOCH + moment.since(Timestamp::default())
}
