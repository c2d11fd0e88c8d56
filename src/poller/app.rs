//! The state of an App ID that is being drained, and what happens with each answer.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, mpsc};
use tokio::time::Instant;
use tracing::{error, info, warn};

use super::access::Access;
use super::clocks::host_of;
use super::gate::Gate;
use super::order::Order;
use super::request::{Done, Errand, News};
use super::{Poller, Target, Tools};
use crate::agora::{Moment, Refused, Request, Transport};
use crate::error::{Chain, may_panic};
use crate::journal::Held;
use crate::model::{CLOCK_MARGIN, Gap, GapCause, Pace, Ticket};
use crate::observe::health::Condition;
use crate::schedule::{Answered, Decision, Outcome, Refusal, Schedule, Seen, Suspected};

/// Delay before a feed retries after the journal could not reserve room.
const WAIT_FOR_JOURNAL: Duration = Duration::from_secs(1);

/// Delay before a feed retries after its secret could not be read.
const WAIT_FOR_SECRET: Duration = Duration::from_secs(1);

/// Consecutive failures after which a feed makes `/ready` fail.
const FAILURES_TO_TELL: u32 = 2;

/// A feed or app that pauses for longer makes `/ready` fail: meanwhile 2,000 events may gather.
const REST_TO_TELL: Duration = Duration::from_secs(10);

/// Minimum interval between two records of a feed's pace in the journal; only changes are recorded.
const PACE_EVERY: Duration = Duration::from_secs(10);

/// 429s less than this apart belong to the same episode, which is logged once.
const EPISODE: Duration = Duration::from_secs(300);

/// An App ID that is being drained.
pub(super) struct App<T> {
    states: Vec<FeedState>,
    partition: i32,
    access: Access,
    schedule: Schedule,
    gate: Gate,
    journal_condition: Condition,
    /// Whether Agora has asked for a pause of the whole app (`Retry-After`).
    throttled: Condition,
    /// Requests in flight.
    out: usize,
    /// When Agora last answered with a 429.
    throttled_at: Option<Instant>,
    tools: Tools<T>,
}

/// State of a feed that the schedule doesn't keep.
struct FeedState {
    target: Target,
    /// The last request that found it empty.
    emptied_by: Option<Ticket>,
    failures: u32,
    condition: Condition,
    /// Shared with the feed's requests, which ask it whether their pages may become visible.
    order: Arc<Mutex<Order<Held>>>,
    /// When the first held page will have waited too long.
    overdue: Option<Instant>,
    /// The pace that the journal has, and since when.
    kept: (Pace, Instant),
    /// Index of the host that served it last, in failover order.
    served_by: usize,
}

// === impl App ===

impl<T: Transport> App<T> {
    pub(super) fn begin(poller: Poller<T>) -> Self {
        let now = Instant::now();
        let facts: Vec<_> = poller.feeds.iter().map(Target::facts).collect();
        let health = &poller.tools.health;
        let longest = poller.tools.transport.longest();
        poller.feeds.iter().for_each(|target| poller.tools.metrics.failover(&target.feed, 0));
        let state = |target: Target| FeedState {
            condition: health.condition("agora", target.feed.to_string()),
            emptied_by: None,
            failures: 0,
            order: Arc::new(Mutex::new(Order::new(longest))),
            overdue: None,
            kept: (Pace { events_per_second: 0.0, burst: 0.0 }, now),
            served_by: 0,
            target,
        };
        let app = &poller.app;
        let access = Access::new(app, poller.credentials, health, &poller.tools.metrics.tokens);
        Self {
            states: poller.feeds.into_iter().map(state).collect(),
            partition: poller.partition,
            access,
            schedule: Schedule::new(poller.limits, &facts, now, poller.former, poller.seed),
            gate: Gate::new(poller.limits.requests_per_second),
            journal_condition: health.condition("journal", ""),
            throttled: health.condition("throttled", app.as_str()),
            out: 0,
            throttled_at: None,
            tools: poller.tools,
        }
    }

    /// Decides what to do at `now`.
    pub(super) fn decide(&mut self, now: Instant) -> Decision {
        may_panic("poller");
        if self.schedule.is_locked_out() {
            self.access.look(now);
        }
        if self.access.has_changed() {
            self.schedule.credentials_changed(now);
        }
        self.schedule.next(now)
    }

    /// When the secret is checked again; `None` unless every host refuses it.
    pub(super) fn looks_at(&self) -> Option<Instant> {
        self.schedule.is_locked_out().then(|| self.access.look_at())
    }

    /// Whether a request is in flight.
    pub(super) fn is_asking(&self) -> bool {
        self.out > 0
    }

    /// Whether no request is in flight and no page is held.
    pub(super) fn is_at_rest(&self) -> bool {
        self.out == 0 && self.overdue().is_none()
    }

    /// When the first held page will have waited too long.
    pub(super) fn overdue(&self) -> Option<Instant> {
        self.states.iter().filter_map(|state| state.overdue).min()
    }

    /// Sends a request to a feed, or postpones it where that isn't possible.
    pub(super) async fn ask(&mut self, feed: usize, host: usize, sender: &mpsc::Sender<News>) {
        let state = self.states.get(feed).expect("the schedule knows our feeds");
        let url = state.target.urls.get(host).expect("the schedule knows our hosts");
        let wall = self.tools.agora_now(host_of(url));
        let now = Moment { wall, monotonic: Instant::now() };
        let Ok(proof) = self.access.proof(now) else {
            self.schedule.postponed(feed, now.monotonic + WAIT_FOR_SECRET);
            return;
        };
        let prepared = self.tools.prepare(&state.target, host, self.partition).await;
        let reservation = match prepared {
            Ok(reservation) => reservation,
            Err(error) => {
                self.journal_condition.failing(Chain(&error));
                self.schedule.postponed(feed, Instant::now() + WAIT_FOR_JOURNAL);
                return;
            }
        };
        self.journal_condition.ok();
        if !self.gate.opens() {
            self.tools.metrics.gate_refusals.inc();
            error!(
                feed = %state.target.feed,
                "the rate-limit guard blocked a request that the schedule allowed: this is a bug"
            );
            reservation.close().await;
            self.schedule.postponed(feed, Instant::now() + WAIT_FOR_JOURNAL);
            return;
        }
        let sent = Instant::now();
        let asked = self.schedule.asked(feed, sent);
        let host = self.schedule.host(asked);
        state.order.lock().await.begin(reservation.ticket(), sent, host);
        let url = state.target.urls.get(host).expect("the schedule knows our hosts").clone();
        let request = Request { url, proof: proof.headers };
        let errand = Errand {
            index: feed,
            asked,
            edition: proof.edition,
            place: host,
            target: state.target.clone(),
            order: Arc::clone(&state.order),
            fastest: self.schedule.fastest_round_trip(asked),
        };
        self.out += 1;
        let (tools, sender) = (self.tools.clone(), sender.clone());
        self.tools.tracker.spawn(async move {
            let done = errand.run(tools, request, reservation, &sender).await;
            let end = News::End(Box::new(done));
            sender.send(end).await.expect("the loop outlives its requests");
        });
    }

    /// Processes a message from a request.
    pub(super) async fn learn(&mut self, news: News) {
        match news {
            News::Head { asked, at } => self.schedule.heard(asked, at),
            News::End(done) => self.learn_end(*done).await,
        }
    }

    /// Processes the end of a request.
    async fn learn_end(&mut self, mut done: Done) {
        self.out -= 1;
        let now = Instant::now();
        if let Err(error) = &done.stored {
            self.journal_condition.failing(Chain(error));
        }
        let refuses_credentials =
            matches!(done.outcome, Outcome::Refused { refusal: Refusal::Credentials, .. });
        if refuses_credentials
            && self.access.refused(done.edition, &done.host, now) == Refused::Outdated
        {
            done.outcome = Outcome::Outdated;
        }
        let (index, outcome) = (done.index, done.outcome);
        let when = Answered { head_at: done.head_at, now, wall: self.tools.agora_now(&done.host) };
        let suspected = self.schedule.answered(done.asked, when, outcome);
        if outcome.accepts_credentials() {
            self.access.accepted(done.edition, &done.host);
        } else if refuses_credentials && self.schedule.is_locked_out() {
            let said = done.trouble.as_deref().unwrap_or_default();
            self.access.locked_out(&done.host, said, now);
        }
        if let Outcome::Events(seen) = outcome {
            self.show(index, seen, now);
        }
        let rest = self.schedule.rests(index, now);
        if matches!(outcome, Outcome::Throttled { .. }) {
            self.say_throttled(&done, rest, now);
        } else {
            self.throttled.ok();
        }
        let locked_out = self.schedule.is_locked_out();
        self.states
            .get_mut(index)
            .expect("the schedule knows our feeds")
            .learn(&self.tools, done, rest, locked_out)
            .await;
        if let Some(suspected) = suspected {
            self.publish_overflow(index, suspected).await;
        }
        self.keep_pace(index, now).await;
    }

    /// Releases pages that have waited too long for others.
    pub(super) async fn give_up_waiting(&mut self, now: Instant) {
        for state in self.states.iter_mut().filter(|it| it.overdue.is_some_and(|at| at <= now)) {
            let mut order = state.order.lock().await;
            let late = order.give_up(now);
            self.tools.metrics.pages_released_late.inc_by(late.len() as u64);
            self.tools.journal.release(late).await;
            state.overdue = order.overdue();
        }
    }

    /// Records for the next process what it needs: suspected overflows and paces.
    pub(super) async fn end(mut self) {
        let now = Instant::now();
        for index in 0..self.states.len() {
            if let Some(suspected) = self.schedule.suspicion(index) {
                self.publish_overflow(index, suspected).await;
            }
            let state = self.states.get(index).expect("as many as there are");
            let pace = self.schedule.pace(index, now);
            let wall = self.tools.clock.now();
            self.tools.journal.keep_pace(&state.target.feed, pace, wall).await;
        }
    }

    /// Updates the metrics that show how close the feed is to overflow.
    fn show(&self, index: usize, seen: Seen, now: Instant) {
        let state = self.states.get(index).expect("the schedule knows our feeds");
        let found = seen.events as f64 + self.schedule.level(index, now).unwrap_or(0.0);
        let rate = self.schedule.pace(index, now).events_per_second;
        self.tools.metrics.show_feed(&state.target.feed, found, rate);
    }

    fn say_throttled(&mut self, done: &Done, rest: Duration, now: Instant) {
        let before = self.throttled_at.replace(now);
        if before.is_none_or(|before| now >= before + EPISODE) {
            let app = self.states.first().map(|state| &state.target.feed.app);
            warn!(
                app = app.map(tracing::field::display),
                "Agora answers 429 although we keep within the limit: another client may be \
                 polling this App ID, or requests_per_second is too high for it"
            );
        }
        if rest > REST_TO_TELL {
            let (host, said) = (&done.host, done.trouble.as_deref().unwrap_or_default());
            let until = self.tools.clock.now().after(rest);
            self.throttled.failing(format_args!(
                "{host} asked for a pause (Retry-After): no request of this app before {until}: \
                 {said}"
            ));
        }
    }

    async fn publish_overflow(&mut self, index: usize, suspected: Suspected) {
        let feed = &self.states.get(index).expect("the schedule knows our feeds").target.feed;
        let Suspected { from, to, begins } = suspected;
        self.tools.metrics.overflow(feed);
        if begins {
            error!(
                %feed, from = from.map(tracing::field::display), %to,
                "Agora's buffer was full; events may have been overwritten there"
            );
        }
        let gap = Gap {
            feed: feed.clone(),
            cause: GapCause::Overflow,
            from: from.map(|from| from.before(CLOCK_MARGIN)),
            to: to.after(CLOCK_MARGIN),
            at_least: 0,
            at_most: None,
        };
        if let Err(error) = self.tools.journal.note_gap(self.partition, gap).await {
            self.journal_condition.failing(Chain(&error));
        }
    }

    async fn keep_pace(&mut self, index: usize, now: Instant) {
        let pace = self.schedule.pace(index, now);
        let state = self.states.get_mut(index).expect("the schedule knows our feeds");
        let (kept, since) = state.kept;
        if now < since + PACE_EVERY || !differs(kept, pace) {
            return;
        }
        state.kept = (pace, now);
        let wall = self.tools.clock.now();
        self.tools.journal.keep_pace(&state.target.feed, pace, wall).await;
    }
}

// === impl State ===

impl FeedState {
    async fn learn<T>(&mut self, tools: &Tools<T>, done: Done, rest: Duration, locked_out: bool) {
        let mut order = self.order.lock().await;
        // Hold the lock until the journal has released them: they precede all later pages.
        let released = order.settled(done.ticket, done.ended);
        if !released.is_empty() {
            tools.journal.release(released).await;
        }
        self.overdue = order.overdue();
        drop(order);
        if let Some(emptied_at) = done.emptied_at {
            let emptied_at = emptied_at.before(CLOCK_MARGIN);
            // The request with the highest ticket decides. Comparing times instead would ignore all
            // answers for an hour after a clock was set back by an hour.
            if self.emptied_by.is_none_or(|ticket| ticket < done.ticket) {
                self.emptied_by = Some(done.ticket);
                self.target.empty_at = Some(emptied_at);
            }
        }
        let Some(trouble) = done.trouble else {
            self.failures = 0;
            self.condition.ok();
            self.show_host(tools, done.place, &done.host);
            return;
        };
        let tell_at = match done.outcome {
            // A problem of the app, not of the feed.
            Outcome::Outdated => return,
            Outcome::Refused { refusal: Refusal::Credentials, .. } if locked_out => return,
            // Other hosts may accept them, or be about to refuse them too.
            Outcome::Refused { refusal: Refusal::Credentials, .. } => FAILURES_TO_TELL,
            Outcome::Refused { refusal: Refusal::Request, .. } => 1,
            Outcome::Events(_) | Outcome::Failed { .. } if rest > REST_TO_TELL => 1,
            Outcome::Events(_) | Outcome::Failed { .. } | Outcome::Throttled { .. } => {
                FAILURES_TO_TELL
            }
        };
        self.failures += 1;
        if self.failures < tell_at {
            return;
        }
        let refuses = match done.outcome {
            Outcome::Refused { refusal: Refusal::Credentials, .. } => {
                " refuses the credentials of this app, but not every host does"
            }
            _ => "",
        };
        let host = &done.host;
        if rest > REST_TO_TELL {
            let until = tools.clock.now().after(rest);
            let next = format_args!("next request of this feed at {until}");
            self.condition.failing(format_args!("{host}{refuses}: {trouble}; {next}"));
        } else {
            self.condition.failing(format_args!("{host}{refuses}: {trouble}"));
        }
    }

    /// Updates which host serves the feed, and logs a change.
    fn show_host<T>(&mut self, tools: &Tools<T>, place: usize, host: &str) {
        if place == self.served_by {
            return;
        }
        self.served_by = place;
        let feed = &self.target.feed;
        tools.metrics.failover(feed, place);
        match place {
            0 => info!(%feed, host, "feed is back on its preferred host"),
            _ => warn!(%feed, host, "feed failed over to another host"),
        }
    }
}

/// Whether the difference is large enough for the next process to act differently.
fn differs(kept: Pace, pace: Pace) -> bool {
    let apart = |one: f64, other: f64| (one - other).abs() > 1.0 + 0.1 * one.max(other);
    apart(kept.events_per_second, pace.events_per_second) || apart(kept.burst, pace.burst)
}
