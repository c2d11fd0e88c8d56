//! One request, from the ticket to its end.

use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use tokio::sync::Mutex;
use tokio::time::Instant;
use tracing::debug;
use tracing::error;

use super::Target;
use super::Tools;
use super::order::Ended;
use super::order::Order;
use super::order::Turn;
use crate::agora;
use crate::agora::Answer;
use crate::agora::Credentials;
use crate::agora::Glance;
use crate::agora::NoCredentials;
use crate::agora::Request;
use crate::agora::Shape;
use crate::agora::Transport;
use crate::agora::answer::Trouble;
use crate::journal::Held;
use crate::journal::JournalError;
use crate::journal::Reservation;
use crate::journal::Settlement;
use crate::model::CLOCK_MARGIN;
use crate::model::Content;
use crate::model::Gap;
use crate::model::GapCause;
use crate::model::PAGE_LIMIT;
use crate::model::Page;
use crate::model::Ticket;
use crate::model::Timestamp;
use crate::observe::accounts::Column;
use crate::schedule::Asked;
use crate::schedule::Outcome;
use crate::schedule::Seen;

/// What a request has to do, and for whom.
#[derive(Debug)]
pub(super) struct Errand {
    /// Index of the feed.
    pub(super) index: usize,
    /// The schedule's name of the request.
    pub(super) asked: Asked,
    /// The feed.
    pub(super) target: Target,
    /// Whether its page may be seen before others.
    pub(super) order: Arc<Mutex<Order<Held>>>,
    /// The fastest round trip when it left.
    pub(super) fastest: Duration,
}

/// A request that has come to its end.
#[derive(Debug)]
pub(super) struct Done {
    /// Index of the feed.
    pub(super) index: usize,
    /// The schedule's name of the request.
    pub(super) asked: Asked,
    /// The journal's.
    pub(super) ticket: Ticket,
    /// When the head of the answer was there.
    pub(super) head_at: Option<Instant>,
    /// For the schedule.
    pub(super) outcome: Outcome,
    /// For the order of pages.
    pub(super) ended: Ended<Held>,
    /// The answer proves that the feed was empty when it was asked.
    pub(super) emptied_at: Option<Timestamp>,
    /// For a person.
    pub(super) trouble: Option<String>,
    /// Whether the journal took what there was.
    pub(super) stored: Result<(), JournalError>,
}

/// Why a request can't leave.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotAsked {
    /// There is no room, or no database.
    #[error("reserve room for an answer")]
    Journal(#[from] JournalError),
    /// There are no credentials.
    #[error(transparent)]
    Credentials(#[from] NoCredentials),
}

// === impl Errand ===

impl Errand {
    /// Takes a request to its end. From the answer on a page is in our hands and nowhere else: no
    /// select and no timeout around it.
    pub(super) async fn run<T: Transport>(
        self,
        tools: Tools<T>,
        request: Request,
        reservation: Reservation,
    ) -> Done {
        let feed = &self.target.feed;
        let ticket = reservation.ticket();
        let asked_at = tools.clock.now();
        let sent = Instant::now();
        let reply = tools.transport.ask(request).await;
        let head_at = reply.head_at();
        let answered_at = tools.clock.now();
        tools.metrics.request_duration.observe(sent.elapsed().as_secs_f64());
        let answer = agora::judge(reply, system_time(answered_at));
        tools.metrics.answer(feed, &answer);
        let mut done = Done::new(self.index, self.asked, ticket, head_at);
        match answer {
            Answer::Page { status, wholeness, body, request_id, resource_id, trouble } => {
                let page = Page {
                    feed: feed.clone(),
                    since: self.target.empty_at,
                    asked_at,
                    answered_at,
                    status,
                    wholeness,
                    request_id,
                    resource_id,
                    body,
                };
                self.commit(&tools, page, reservation, &mut done).await;
                done.fail_with(trouble);
            }
            Answer::Empty => {
                done.stored = reservation.settle(Settlement::Nothing).await;
                done.outcome = Outcome::Events(Seen::default());
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
                    from: self.target.empty_at,
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
    async fn commit<T>(
        &self,
        tools: &Tools<T>,
        page: Page,
        reservation: Reservation,
        done: &mut Done,
    ) {
        let ticket = reservation.ticket();
        let (feed, body) = (page.feed.clone(), page.body.clone());
        let (status, wholeness, asked_at) = (page.status, page.wholeness, page.asked_at);
        let head_at = done.head_at.unwrap_or_else(Instant::now);
        let turn = self.order.lock().await.arrived(ticket, head_at, self.fastest);
        let held = match turn {
            Turn::Now => {
                done.stored = reservation.settle(Settlement::Page(page)).await;
                None
            }
            Turn::Later => {
                let (held, stored) = reservation.hold(Content::Page(page)).await;
                tools.metrics.pages_held.inc();
                done.stored = stored;
                Some(held)
            }
        };
        if done.stored.is_ok() {
            tools.metrics.pages_committed.inc();
        }
        let Glance { received, shape, times } = agora::glance(&body, wholeness);
        if let Some(held) = held {
            done.ended = Ended::Held { held, times };
        }
        tools.accounts.open(&feed.app, feed.endpoint).add(Column::Received, received);
        debug!(%feed, %ticket, received, status, ?shape, "page committed");
        match shape {
            Shape::Sound | Shape::Torn => {
                let torn = shape == Shape::Torn;
                done.outcome = Outcome::Events(Seen { events: received, times, torn });
            }
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

// === impl Tools ===

impl<T> Tools<T> {
    /// A ticket, room for the answer, and the request.
    pub(super) async fn prepare(
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
}

// === impl Done ===

impl Done {
    /// A request that failed, unless something better is known of it.
    fn new(index: usize, asked: Asked, ticket: Ticket, head_at: Option<Instant>) -> Self {
        Self {
            index,
            asked,
            ticket,
            head_at,
            outcome: Outcome::Failed,
            ended: Ended::Done,
            emptied_at: None,
            trouble: None,
            stored: Ok(()),
        }
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

/// The wall clock for `Retry-After`.
fn system_time(moment: Timestamp) -> SystemTime {
    UNIX_EPOCH + moment.since(Timestamp::default())
}
