//! Polls each feed once with the whole daemon: the answers are durable in the journal before
//! anything reads them, and stay there for the next `run`.
//!
//! It differs from `run` in two places: the transport sends only the first request for each feed,
//! and Kafka is replaced by a stub, so that nothing leaves the journal.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::agora::http::Http;
use crate::agora::{Contents, Raw, Reply, Request, Shape, Transport, TransportError};
use crate::check::{Finding, Severity};
use crate::config::Settings;
use crate::daemon::{Daemon, Parts};
use crate::error::Chain;
use crate::journal::Journal;
use crate::kafka::{
    Batch, Failure, HistoryRecords, Kafka, KafkaError, Limits, Look, Owned, PageRecord,
    StateRecords, Topic,
};
use crate::model::{Clock, Feed, Incarnation, Wholeness};
use crate::observe::metrics::Metrics;

/// Sends only the first request for each feed.
struct Once {
    http: Http,
    /// The feed of each URL; a feed has one URL per host.
    feeds: HashMap<String, Feed>,
    shared: Arc<AskShared>,
}

/// The outcomes of the requests.
#[derive(Debug, Default)]
struct AskShared {
    seen: Mutex<AskOutcomes>,
    /// Cancelled once every feed has an answer.
    done: CancellationToken,
}

#[derive(Debug, Default)]
struct AskOutcomes {
    asked: Vec<Feed>,
    answered: Vec<(Feed, Severity, String)>,
}

/// A Kafka that is always unavailable.
#[derive(Clone, Debug)]
struct Nowhere;

/// A partition of it; no values exist, because it can't be claimed.
#[derive(Debug)]
enum OfNowhere {}

/// Polls each feed once. Returns one finding per answer.
pub(super) async fn once(settings: Settings) -> Vec<Finding> {
    match ask(settings).await {
        Ok(findings) => findings,
        Err(reason) => vec![Finding::failed("asked", reason, None)],
    }
}

async fn ask(settings: Settings) -> Result<Vec<Finding>, String> {
    // Before the journal is opened: only the last step of a start may change anything.
    let http = Http::new(&settings.agora).map_err(|error| Chain(&error).to_string())?;
    let clock = Clock::system();
    let incarnation = Incarnation::from_u128(rand::random());
    let opened =
        Journal::open(&settings.data_dir, settings.journal.max_size, incarnation, clock.now());
    let (journal, recovered) = opened.map_err(|error| Chain(&error).to_string())?;
    let shared = Arc::new(AskShared::default());
    let transport = Once { http, feeds: feeds(&settings), shared: Arc::clone(&shared) };
    let seed = rand::random::<u32>().into();
    let kafka = Nowhere;
    let parts = Parts { settings, transport, kafka, journal, recovered, clock, seed };
    let daemon = Daemon::start(parts, &mut Metrics::new());
    shared.done.cancelled().await;
    let waiting = daemon.stop(Duration::ZERO).await;
    let mut findings: Vec<_> = shared.lock().answered.iter().map(finding).collect();
    let says = format!("{} waiting for the next run to publish them", pages(waiting.in_journal));
    findings.push(Finding::ok("journal", says));
    Ok(findings)
}

fn feeds(settings: &Settings) -> HashMap<String, Feed> {
    let mut feeds = HashMap::new();
    for app in &settings.apps {
        for region in &app.regions {
            for path in &app.endpoints {
                let endpoint = path.endpoint;
                let region_name = region.name.clone();
                let feed = Feed { app: app.app_id.clone(), region: region_name, endpoint };
                for host in &region.hosts {
                    feeds.insert(host.url(&app.app_id, &path.path), feed.clone());
                }
            }
        }
    }
    feeds
}

fn finding((feed, verdict, says): &(Feed, Severity, String)) -> Finding {
    let remedy = (*verdict == Severity::Failed)
        .then(|| "compare app_id and credentials with Agora's Console".to_owned());
    Finding::of(*verdict, format!("asked {feed}"), says, remedy)
}

fn pages(count: u64) -> String {
    if count == 1 { "1 page".to_owned() } else { format!("{count} pages and gaps") }
}

/// Describes an answer for a person. The page itself goes to the journal.
fn said(reply: &Reply) -> (Severity, String) {
    match reply {
        Reply::Answered(raw @ Raw { status: 200, body, cut, .. }) => {
            let wholeness = if cut.is_some() { Wholeness::Cut } else { Wholeness::Whole };
            let glance = Contents::read(body, raw.encoding(), wholeness).glance();
            if matches!(glance.shape, Shape::Alien | Shape::Strange) {
                let says = "status 200, but the body is not in Agora's format";
                return (Severity::Failed, says.to_owned());
            }
            let times = glance.times.map(|(first, last)| format!(", from {first} to {last}"));
            let broken = raw.cut.as_ref().map(|why| format!("; the body was cut off: {why}"));
            let events = glance.received;
            let (times, broken) = (times.unwrap_or_default(), broken.unwrap_or_default());
            (Severity::Ok, format!("{events} events{times}{broken}"))
        }
        Reply::Answered(Raw { status, .. }) => (Severity::Failed, format!("status {status}")),
        Reply::NotSent(why) => (Severity::Failed, format!("request not sent: {why}")),
        Reply::Lost(why) => (Severity::Failed, format!("no answer; events may be lost: {why}")),
    }
}

// === impl Once ===

impl Transport for Once {
    async fn ask_with(&self, request: Request, on_head: impl FnOnce(Instant) + Send) -> Reply {
        let feed = self.feeds.get(&request.url).expect("the daemon polls only configured URLs");
        {
            let mut seen = self.shared.lock();
            if seen.asked.contains(feed) {
                return Reply::NotSent(TransportError("already polled once".to_owned()));
            }
            seen.asked.push(feed.clone());
        }
        let reply = self.http.ask_with(request, on_head).await;
        let (verdict, says) = said(&reply);
        let mut seen = self.shared.lock();
        let feeds: std::collections::HashSet<_> = self.feeds.values().collect();
        if matches!(&reply, Reply::Answered(raw) if raw.status == 401) {
            // The refusal applies to the whole app. Its other feeds would only be polled a minute
            // apart.
            for other in feeds.iter().filter(|it| it.app == feed.app) {
                if !seen.asked.contains(other) {
                    seen.asked.push((*other).clone());
                    seen.answered.push(((*other).clone(), verdict, says.clone()));
                }
            }
        }
        seen.answered.push((feed.clone(), verdict, says));
        if seen.answered.len() == feeds.len() {
            self.shared.done.cancel();
        }
        reply
    }

    fn longest(&self) -> Duration {
        self.http.longest()
    }
}

// === impl Shared ===

impl AskShared {
    fn lock(&self) -> MutexGuard<'_, AskOutcomes> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Nowhere ===

fn nowhere() -> KafkaError {
    KafkaError::new(Failure::Unavailable, "use", "Kafka", "this command keeps pages in the journal")
}

impl Kafka for Nowhere {
    type Owned = OfNowhere;

    async fn prepare(&self) -> Result<(), KafkaError> {
        Err(nowhere())
    }

    fn append(
        &self,
        _: i32,
        _: PageRecord,
    ) -> impl Future<Output = Result<i64, KafkaError>> + Send + 'static {
        std::future::ready(Err(nowhere()))
    }

    async fn look(&self, _: i32) -> Result<Look, KafkaError> {
        Err(nowhere())
    }

    async fn claim<M: StateRecords>(&self, _: i32, _: M) -> Result<(OfNowhere, M), KafkaError> {
        Err(nowhere())
    }
}

impl Owned for OfNowhere {
    async fn read_from(&mut self, _: Option<i64>) -> Result<(), KafkaError> {
        match *self {}
    }

    async fn pages(&mut self, _: usize) -> Result<Vec<(i64, PageRecord)>, KafkaError> {
        match *self {}
    }

    async fn deliver(&mut self, _: Batch, _: i64) -> Result<(), KafkaError> {
        match *self {}
    }

    async fn span(&mut self) -> Result<Range<i64>, KafkaError> {
        match *self {}
    }

    async fn history<H: HistoryRecords>(&mut self, _: H) -> Result<H, KafkaError> {
        match *self {}
    }

    fn limits(&self, _: Topic) -> Limits {
        match *self {}
    }

    fn doubt_limits(&mut self) {
        match *self {}
    }
}
