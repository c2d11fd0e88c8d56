//! The pages for people, probes and Prometheus.
//!
//! Read-only and small: what a page shows is prepared by others, and no request changes anything.
//! It is bounded because it may be reachable by strangers: at most [`MAX_CONNECTIONS`], one request
//! on each, a second for its head and [`CONNECTION_TIMEOUT`] for the whole. Bodies of requests are
//! not read. When all places are taken, a new connection evicts the oldest one whose client doesn't read
//! its answer, or else the oldest one that has sent no head, so slow clients can't block probes.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{fmt, future, io};

use bytes::Bytes;
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use crate::error::{Chain, may_panic};
use crate::observe::health::Health;
use crate::observe::metrics;
use crate::observe::metrics::Metrics;

/// What the pages show. Cheap to clone.
#[derive(Clone)]
pub struct Pages {
    /// Behind `/metrics`.
    pub metrics: Arc<Metrics>,
    /// Behind `/ready`.
    pub health: Health,
    /// Behind `/status.json`. It is called on each request and must not block.
    pub status: Arc<dyn Fn() -> serde_json::Value + Send + Sync>,
}

const MAX_CONNECTIONS: usize = 64;

/// The largest head of a request, in bytes, and what is buffered for one connection.
const MAX_HEAD: usize = 16 * 1024;

/// From the connection to the end of the request's head, which is a few hundred bytes: one that takes
/// longer is of no use to a probe.
const HEAD_TIMEOUT: Duration = Duration::from_secs(1);

/// From the connection to the last byte of the answer.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(15);

/// A client that hasn't read its answer after this time may be evicted: every answer is ready at once,
/// and the largest takes a fraction of this to send.
const UNREAD: Duration = Duration::from_secs(1);

/// How long an answer that has begun may go on after the stop.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// How long to let be after the operating system refused a connection, mostly for want of file
/// descriptors: it would refuse the next at once.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// The connections that are open. Cheap to clone; clones share.
#[derive(Clone, Debug)]
struct Connections {
    places: Arc<Semaphore>,
    open: Arc<Mutex<Open>>,
}

#[derive(Debug, Default)]
struct Open {
    /// Grows with each connection, so the oldest comes first.
    next: u64,
    /// Ends those whose head has not come.
    silent: BTreeMap<u64, CancellationToken>,
    /// Ends those that are being answered, since the time given.
    answered: BTreeMap<u64, (Instant, CancellationToken)>,
}

/// The place of one connection, given back when this is dropped.
#[derive(Debug)]
struct Seat {
    connections: Connections,
    number: u64,
    /// Somebody else needs the place.
    taken: CancellationToken,
    _place: OwnedSemaphorePermit,
}

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";

const INDEX: &str = "\
agora-rtm-bridge

/metrics      everything that is measured, as OpenMetrics
/ready        200 while all is well, else 503 and the reasons
/live         200 as long as the process answers
/status.json  accounts and state
";

/// Answers on `listener` until `stop`; each connection is a task of `tracker`.
pub async fn serve(
    listener: TcpListener,
    pages: Pages,
    stop: CancellationToken,
    tracker: &TaskTracker,
) {
    let connections = Connections::new();
    loop {
        may_panic("http");
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            accepted = accept(&listener, &connections) => accepted,
        };
        match accepted {
            Ok((stream, seat)) => {
                tracker.spawn(converse(stream, seat, pages.clone(), stop.clone()));
            }
            Err(error) => {
                warn!(error = %Chain(&error), "connection not accepted");
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = sleep(ACCEPT_PAUSE) => {}
                }
            }
        }
    }
}

async fn accept(
    listener: &TcpListener,
    connections: &Connections,
) -> io::Result<(TcpStream, Seat)> {
    let (stream, _) = listener.accept().await?;
    Ok((stream, connections.seat().await))
}

async fn converse(stream: TcpStream, seat: Seat, pages: Pages, stop: CancellationToken) {
    let service = service_fn(|request: Request<_>| {
        seat.head_has_come();
        let response = respond(&pages, request.method(), request.uri().path());
        future::ready(Ok::<_, Infallible>(response))
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .keep_alive(false)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        biased;
        ended = timeout(CONNECTION_TIMEOUT, connection.as_mut()) => ended,
        () = seat.taken.cancelled() => return debug!("connection given up: others need its place"),
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            timeout(LAST_WORDS, connection.as_mut()).await
        }
    };
    match ended {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(error = %Chain(&error), "connection broke"),
        Err(error) => debug!(error = %Chain(&error), "connection given up"),
    }
}

/// Answers one request. HEAD is answered as GET; hyper leaves the body out.
fn respond(pages: &Pages, method: &Method, path: &str) -> Response<Full<Bytes>> {
    let (status, content_type, body) = match path {
        _ if method != Method::GET && method != Method::HEAD => return method_not_allowed(),
        "/" => (StatusCode::OK, TEXT, INDEX.into()),
        "/live" => (StatusCode::OK, TEXT, "live\n".into()),
        "/ready" => ready(&pages.health),
        "/metrics" => (StatusCode::OK, metrics::CONTENT_TYPE, pages.metrics.text().into()),
        "/status.json" => (StatusCode::OK, JSON, format!("{:#}\n", (pages.status)()).into()),
        _ => (StatusCode::NOT_FOUND, TEXT, "not found; / lists the pages\n".into()),
    };
    page(status, content_type, body)
}

fn ready(health: &Health) -> (StatusCode, &'static str, Bytes) {
    let readiness = health.readiness();
    let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = serde_json::to_vec(&readiness).expect("readiness has only text for keys");
    (status, JSON, body.into())
}

fn method_not_allowed() -> Response<Full<Bytes>> {
    let mut response = page(StatusCode::METHOD_NOT_ALLOWED, TEXT, "GET and HEAD only\n".into());
    response.headers_mut().insert(header::ALLOW, header::HeaderValue::from_static("GET, HEAD"));
    response
}

fn page(status: StatusCode, content_type: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    Response::builder()
        .status(status)
        .header(header::CONTENT_TYPE, content_type)
        .header(header::CACHE_CONTROL, "no-store")
        .body(Full::new(body))
        .expect("the parts are constants")
}

// === impl Connections ===

impl Connections {
    fn new() -> Self {
        Self { places: Arc::new(Semaphore::new(MAX_CONNECTIONS)), open: Arc::default() }
    }

    /// Takes a place; when there is none, evicts a connection.
    async fn seat(&self) -> Seat {
        if self.places.available_permits() == 0 {
            self.lock().evict();
        }
        let place = Arc::clone(&self.places).acquire_owned().await;
        let place = place.expect("nobody closes the places");
        let taken = CancellationToken::new();
        let mut open = self.lock();
        open.next += 1;
        let number = open.next;
        open.silent.insert(number, taken.clone());
        drop(open);
        Seat { connections: self.clone(), number, taken, _place: place }
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Open ===

impl Open {
    /// Ends the oldest connection whose client doesn't read; if all read, the oldest without a head; if
    /// all have sent one, the oldest.
    fn evict(&mut self) {
        let unread = |(since, _): &(Instant, CancellationToken)| since.elapsed() > UNREAD;
        let oldest = self.answered.first_entry().filter(|oldest| unread(oldest.get()));
        let evicted = match oldest {
            Some(oldest) => Some(oldest.remove().1),
            None => (self.silent.pop_first().map(|(_, taken)| taken))
                .or_else(|| self.answered.pop_first().map(|(_, (_, taken))| taken)),
        };
        if let Some(evicted) = evicted {
            evicted.cancel();
        }
    }
}

// === impl Seat ===

impl Seat {
    fn head_has_come(&self) {
        let mut open = self.connections.lock();
        if let Some(taken) = open.silent.remove(&self.number) {
            open.answered.insert(self.number, (Instant::now(), taken));
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut open = self.connections.lock();
        open.silent.remove(&self.number);
        open.answered.remove(&self.number);
    }
}

// === impl Pages ===

impl fmt::Debug for Pages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pages").field("health", &self.health).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
