//! One request, from the ticket until it is settled.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::{Mutex, mpsc};
use tokio::time::Instant;
use tracing::{debug, error, warn};

use super::clocks::host_of;
use super::order::{Ended, Order, Turn};
use super::{Target, Tools};
use crate::agora;
use crate::agora::answer::{Ids, Said};
use crate::agora::{Answer, Contents, Edition, Glance, Moment, Reply, Request, Shape, Transport};
use crate::error::may_panic;
use crate::journal::{Held, JournalError, Reservation};
use crate::model::{
    CLOCK_MARGIN, Content, Gap, GapCause, PAGE_LIMIT, Page, Ticket, Timestamp, Wholeness,
};
use crate::observe::accounts::Column;
use crate::schedule::{Asked, Outcome, Refusal, Seen};

/// A request that is about to be sent.
#[derive(Debug)]
pub(super) struct Errand {
    /// Index of the feed.
    pub(super) index: usize,
    /// The schedule's id of the request.
    pub(super) asked: Asked,
    /// Which edition of the credentials it carries.
    pub(super) edition: Edition,
    /// Index of the host, in failover order.
    pub(super) place: usize,
    /// The feed.
    pub(super) target: Target,
    /// Decides whether its page may become visible before others.
    pub(super) order: Arc<Mutex<Order<Held>>>,
    /// The fastest round trip to the host, as known when the request left.
    pub(super) fastest: Duration,
}

/// A message from a request to its app.
#[derive(Debug)]
pub(super) enum News {
    /// The head of an answer has arrived; the body may still take long.
    Head {
        /// The schedule's id of the request.
        asked: Asked,
        /// When it arrived.
        at: Instant,
    },
    /// The request has ended.
    End(Box<Done>),
}

/// A request that has ended.
#[derive(Debug)]
pub(super) struct Done {
    /// Index of the feed.
    pub(super) index: usize,
    /// The schedule's id of the request.
    pub(super) asked: Asked,
    /// Which edition of the credentials it carried.
    pub(super) edition: Edition,
    /// The journal's number of the request.
    pub(super) ticket: Ticket,
    /// When the head of the answer arrived.
    pub(super) head_at: Option<Instant>,
    /// Index of the host that it asked, in failover order.
    pub(super) place: usize,
    /// The name of that host.
    pub(super) host: String,
    /// The result, for the schedule.
    pub(super) outcome: Outcome,
    /// The result, for the order of pages.
    pub(super) ended: Ended<Held>,
    /// The request's time, if its answer proves that the feed was then empty.
    pub(super) emptied_at: Option<Timestamp>,
    /// What went wrong, for the operator.
    pub(super) trouble: Option<String>,
    /// Whether the journal stored the result.
    pub(super) stored: Result<(), JournalError>,
}

/// Why a request can't be sent: the journal has no room, or no database.
#[derive(Debug, thiserror::Error)]
#[error("reserve room for an answer")]
pub(super) struct NotAsked(#[from] JournalError);

// === impl Errand ===

impl Errand {
    /// Sees a request through to its end. From the answer on, we hold the only copy of a page: no
    /// select and no timeout around it.
    pub(super) async fn run<T: Transport>(
        self,
        tools: Tools<T>,
        request: Request,
        reservation: Reservation,
        news: &mpsc::Sender<News>,
    ) -> Done {
        let feed = &self.target.feed;
        let ticket = reservation.ticket();
        let host = host_of(&request.url).to_owned();
        let asked_at = tools.agora_now(&host);
        let sent = Instant::now();
        let asked = self.asked;
        let on_head = |at| {
            // The channel has room for two messages per request. If it were full, the end would
            // report it too.
            drop(news.try_send(News::Head { asked, at }));
        };
        let reply = tools.transport.ask_with(request, on_head).await;
        may_panic("request");
        let head_at = reply.head_at();
        tools.learn_time(&host, &reply);
        let answered_at = tools.agora_now(&host);
        // Our clock may have been set while the request was in flight, or the machine may have
        // slept.
        let asked_at = asked_at.min(answered_at.before(sent.elapsed()));
        let since = self.target.empty_at.filter(|at| *at <= asked_at);
        tools.metrics.request_duration.observe(sent.elapsed().as_secs_f64());
        let answer = agora::judge(reply, system_time(tools.clock.now()));
        tools.metrics.answer(feed, &answer);
        let mut done = Done::new(&self, ticket, head_at, &host);
        match answer {
            Answer::Page { status, cut, body, content_encoding, ids, problem } => {
                if let Some(error) = &cut {
                    warn!(
                        %feed, %ticket, %error, %ids,
                        "answer was cut off; keeping the received part"
                    );
                }
                let wholeness = if cut.is_some() { Wholeness::Cut } else { Wholeness::Whole };
                let page = Page {
                    feed: feed.clone(),
                    since,
                    asked_at,
                    answered_at,
                    status,
                    wholeness,
                    request_id: ids.request,
                    resource_id: ids.resource,
                    content_encoding,
                    body,
                };
                self.commit(&tools, page, reservation, &mut done).await;
                if let Some(said) = problem {
                    done.fail_with(&said);
                }
            }
            Answer::Empty => {
                reservation.close().await;
                done.outcome = Outcome::Events(Seen::default());
                done.emptied_at = Some(asked_at);
            }
            Answer::Nothing(said) => {
                reservation.close().await;
                done.fail_with(&said);
            }
            Answer::NotSent(error) => {
                reservation.close().await;
                done.trouble = Some(format!("could not reach Agora: {error}"));
            }
            Answer::Lost(error) => {
                error!(%feed, %ticket, %error, "answer lost; a page may be gone");
                let gap = Gap {
                    feed: feed.clone(),
                    cause: GapCause::AnswerLost,
                    from: since,
                    to: answered_at.after(CLOCK_MARGIN),
                    at_least: 0,
                    at_most: Some(PAGE_LIMIT),
                };
                done.stored = reservation.settle(Content::Gap(gap)).await;
                done.trouble = Some(format!("answer lost: {error}"));
            }
        }
        if let Some(trouble) = &done.trouble {
            debug!(%feed, %ticket, trouble, "request failed");
        }
        done
    }

    /// Makes a page durable, and only then looks into it.
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
        let encoding = page.content_encoding.clone();
        let ids = Ids { request: page.request_id.clone(), resource: page.resource_id.clone() };
        let head_at = done.head_at.unwrap_or_else(Instant::now);
        let turn = self.order.lock().await.arrived(ticket, head_at, self.fastest);
        let held = match turn {
            Turn::Now => {
                done.stored = reservation.settle(Content::Page(page)).await;
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
        let contents = Contents::read(&body, encoding.as_deref(), wholeness);
        let Glance { received, shape, times } = contents.glance();
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
            Shape::Strange => {
                // Agora is still handing events over, so keep polling at the usual pace.
                done.outcome = Outcome::Events(Seen { events: received, ..Seen::default() });
                done.trouble = Some(format!(
                    "Agora reports success and sent data, but not in `events` ({ids}): it is kept \
                     in the pages topic and the dead-letter topic; a newer release of the bridge \
                     may be able to read it"
                ));
            }
            Shape::Alien => {
                let encoding = encoding.map(|it| format!(", Content-Encoding {it}"));
                let encoding = encoding.unwrap_or_default();
                done.trouble = Some(format!(
                    "the answer doesn't look like Agora's (status {status}, {ids}{encoding}): \
                     check the hosts of the app and the proxy"
                ));
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
    /// Reads the host's clock from the head of an answer.
    fn learn_time(&self, host: &str, reply: &Reply) {
        let (Some(head_at), Some(date)) = (reply.head_at(), reply.date()) else { return };
        let wall = self.clock.now().before(head_at.elapsed());
        let date = date.duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = Moment { wall, monotonic: head_at };
        self.metrics.clocks.observe(host, Timestamp::default().after(date), now);
    }

    /// The time by the clock of an Agora host, as far as it is known. Times of events are by that
    /// clock, so everything compared with them must be too.
    pub(super) fn agora_now(&self, host: &str) -> Timestamp {
        self.metrics.clocks.by_host(host, self.clock.now())
    }

    /// Reserves a ticket, and room for the answer.
    pub(super) async fn prepare(
        &self,
        target: &Target,
        host: usize,
        partition: i32,
    ) -> Result<Reservation, NotAsked> {
        let url = target.urls.get(host).expect("the schedule knows our hosts");
        // The next process doesn't know Agora's clock, so the times it reads are by ours.
        let by_us = |at| self.metrics.clocks.by_us(host_of(url), at);
        let (now, empty_at) = (self.clock.now(), target.empty_at.map(by_us));
        Ok(self.journal.reserve(&target.feed, partition, empty_at, now).await?)
    }
}

// === impl Done ===

impl Done {
    /// A failed request, until more is known.
    fn new(errand: &Errand, ticket: Ticket, head_at: Option<Instant>, host: &str) -> Self {
        Self {
            index: errand.index,
            asked: errand.asked,
            edition: errand.edition,
            ticket,
            head_at,
            place: errand.place,
            host: host.to_owned(),
            outcome: Outcome::Failed { retry_after: None },
            ended: Ended::Done,
            emptied_at: None,
            trouble: None,
            stored: Ok(()),
        }
    }

    fn fail_with(&mut self, said: &Said) {
        self.outcome = outcome(said);
        self.trouble = Some(match said.status {
            // The app's credentials know the remedy.
            401 => said.to_string(),
            _ => format!("{said}: {}", said.meaning()),
        });
    }
}

/// What an answer without success means for the schedule.
pub(super) fn outcome(said: &Said) -> Outcome {
    let retry_after = said.retry_after;
    match said.status {
        429 => Outcome::Throttled { retry_after },
        401 => Outcome::Refused { refusal: Refusal::Credentials, retry_after },
        400 | 403 | 404 => Outcome::Refused { refusal: Refusal::Request, retry_after },
        _ => Outcome::Failed { retry_after },
    }
}

/// The wall clock, to evaluate `Retry-After`.
fn system_time(moment: Timestamp) -> SystemTime {
    UNIX_EPOCH + moment.since(Timestamp::default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_tells_whether_to_wait_to_ask_elsewhere_or_to_change_credentials() {
        let retry_after = Some(Duration::from_secs(7));
        let kind = |status| {
            let (text, ids) = (String::new(), Ids::default());
            match outcome(&Said { status, text, ids, retry_after }) {
                Outcome::Throttled { retry_after } => ("throttled", retry_after),
                Outcome::Failed { retry_after } => ("failed", retry_after),
                Outcome::Refused { refusal: Refusal::Credentials, retry_after } => {
                    ("credentials", retry_after)
                }
                Outcome::Refused { refusal: Refusal::Request, retry_after } => {
                    ("request", retry_after)
                }
                outcome => panic!("{status}: {outcome:?}"),
            }
        };
        for (status, expected) in [
            (200, "failed"),
            (302, "failed"),
            (400, "request"),
            (401, "credentials"),
            (403, "request"),
            (404, "request"),
            (407, "failed"),
            (408, "failed"),
            (429, "throttled"),
            (500, "failed"),
            (503, "failed"),
        ] {
            assert_eq!(kind(status), (expected, retry_after), "{status}");
        }
    }
}
